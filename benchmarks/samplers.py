"""What drawing costs: every sampler at a million and ten million items, ``python -m benchmarks.samplers``.

The step is that of benchmarks/step.py: 4,096 pairs against the batch and 8,192 uniform negatives, d = 64. A sampler's
time is that of drawing and counting for one batch, and its share is of that step. *Static* laws draw 8,192 candidates
that the batch shares; they are held against ``torch.multinomial`` and ``numpy.random.Generator.choice`` over the same
law (popularity^3/4), in the same process; *distinct* ones stand beside ``torch.multinomial`` without replacement.
What is mined, chained or learned draws for each query, after looking at scores of the current model: for these the
price is what is told, for smaller batches where a whole one would be minutes.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import cyclopts
import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Apart, report, show
from benchmarks.step import Ours, Sizes
from twotower.negatives import (
    AHNS,
    AOBPR,
    BNS,
    DNS,
    IRGAN,
    MCNS,
    RNS,
    SIR,
    SRNS,
    FirstViolation,
    Gibbs,
    Impressions,
    InBatch,
    LogPopularity,
    LogUniform,
    MetropolisHastings,
    MixGCF,
    Popularity,
    PositiveAware,
    Queue,
    RankWindow,
    Rejection,
    Rotations,
    Sampler,
    SoftmaxDNS,
    TwoBucket,
    Uniform,
    Unknown,
    propose,
)
from twotower.part import Facts
from twotower.records import Batch, Ragged
from twotower.scoring import encode
from twotower.training.matmul import probe
from twotower.training.step import CurrentModel

N = 8192
SHOWN = 8
"""Items that each query was shown and did not take."""
_POOL = Uniform(16, per_query=True)

STATIC: dict[str, Sampler] = {
    "uniform": Uniform(N),
    "popularity": Popularity(N),
    "log-popularity": LogPopularity(N),
    "log-uniform": LogUniform(N),
    "two-bucket": TwoBucket(N, threshold=10.0),
}
OWN: dict[str, Sampler] = {
    "uniform, unique": Uniform(N, unique=True),
    "popularity, unique": Popularity(N, unique=True),
    "rejection": Rejection(of=Uniform(4), target=LogPopularity(N)),
    "unknown (8 a query)": Unknown(of=Popularity(8)),
    "impressions (8 a query)": Impressions(8),
    "in-batch": InBatch(),
    "rotations": Rotations(4),
    "queue": Queue(batches=4),
}
MINED: dict[str, Sampler] = {
    "dns": DNS(of=_POOL),
    "hardest in batch": DNS(n=2, of=InBatch()),
    "softmax-dns": SoftmaxDNS(of=_POOL),
    "sir": SIR(of=_POOL),
    "positive-aware": PositiveAware(share=0.95, of=_POOL),
    "ahns": AHNS(of=_POOL),
    "bns": BNS(),
    "warp": FirstViolation(of=_POOL),
    "aobpr": AOBPR(1),
    "srns": SRNS(pool=64, memory=8, fresh=8),
    "mixgcf": MixGCF(of=_POOL),
    "metropolis-hastings": MetropolisHastings(1, steps=4, burn_in=4, of=Uniform(4, per_query=True)),
    "rns": RNS(),
}
HEAVY: dict[str, Sampler] = {
    "rank window": RankWindow(1),
    "gibbs": Gibbs(1, steps=2, burn_in=2),
    "mcns": MCNS(1, steps=4, burn_in=4, neighbours=20),
    "irgan": IRGAN(),
}
"""They look at the whole catalogue, for a query or a batch: timed for ``HEAVY_BATCH`` queries, at the smaller one."""
HEAVY_BATCH = 64

COMPARED = ("torch.multinomial", "numpy choice")
TARGETS = {"times_multinomial": 5.0, "share_of_step": 0.02}


@dataclass(frozen=True, kw_only=True)
class Price:
    """Of one batch."""

    seconds: float
    draws: int


class Bench:
    """Samplers over one catalogue, beside a training step."""

    def __init__(self, sizes: Sizes) -> None:
        self.ours = Ours(sizes, "float32", probe().precision)
        self.facts = replace(self.ours.batches.facts(), shown=_shown(sizes), width=sizes.dim)

    def step(self, repeats: int) -> float:
        """Seconds of a training step."""
        return _median_of(self.ours.step, repeats)

    def price(self, sampler: Sampler, batch_size: int, repeats: int) -> Price:
        """Of drawing and counting."""
        sampler = _ready(sampler, self.facts)
        batch = self.ours.batches.of_events(torch.arange(batch_size))
        query_BD = self.ours.model.towers.encode_query(batch.query).detach()
        if isinstance(sampler, Queue):
            self._fill(sampler, batch, query_BD)
        number = iter(range(1, repeats + 2))

        def draw() -> None:
            step = next(number)
            look = CurrentModel(self.ours.model, query_BD, step)
            candidates = propose(sampler, batch, look, torch.Generator().manual_seed(step))
            self.drawn = sum(block.row.numel() for block in candidates.blocks)

        return Price(seconds=_median_of(draw, repeats), draws=self.drawn)

    def _fill(self, queue: Queue, batch: Batch, query_BD: Tensor) -> None:
        """As many batches as it holds."""
        look = CurrentModel(self.ours.model, query_BD, 1)
        for _ in range(queue.batches):
            candidates = propose(queue, batch, look, torch.Generator())
            with torch.no_grad():
                queue.observe((), encode(query_BD, self.ours.model.items, batch, candidates), look)

    def baselines(self, repeats: int) -> dict[str, float]:
        """Seconds of ``N`` draws by popularity^3/4."""
        weight_M = self.facts.item_count_M.double() ** 0.75
        p_M = (weight_M / weight_M.sum()).numpy()
        rng = np.random.default_rng(0)
        return {
            "torch.multinomial": _median_of(lambda: torch.multinomial(weight_M, N, replacement=True), repeats),
            "numpy choice": _median_of(lambda: rng.choice(len(p_M), N, p=p_M), repeats),
            "torch.multinomial, distinct": _median_of(lambda: torch.multinomial(weight_M, N), repeats),
        }


def _ready(sampler: Sampler, facts: Facts) -> Sampler:
    sampler = copy.deepcopy(sampler)
    sampler.setup(facts)
    return sampler.train()


def _median_of(action: Callable[[], object], repeats: int) -> float:
    action()
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        found.append(time.perf_counter() - started)
    return median(found)


def _shown(sizes: Sizes) -> Ragged:
    row_QK = torch.randint(sizes.items, (sizes.queries, SHOWN), generator=torch.Generator().manual_seed(0))
    value = row_QK.sort(1).values.flatten()
    return Ragged(offset=torch.arange(sizes.queries + 1) * SHOWN, value=value, weight=torch.ones(len(value)))


def compare(sizes: Sizes, *, with_heavy: bool, repeats: int, threads: int) -> dict[str, dict[str, float]]:
    """One catalogue: prints its table; metrics by sampler."""
    torch.set_num_threads(threads)
    bench = Bench(sizes)
    step = bench.step(repeats)
    baselines = bench.baselines(repeats)
    rows: list[tuple[object, ...]] = [
        (name, N, seconds * 1e3, N / seconds, seconds / step, "", "") for name, seconds in baselines.items()
    ]
    found: dict[str, dict[str, float]] = {"step": {"seconds": step}}
    found |= {name: {"draws_per_s": N / seconds} for name, seconds in baselines.items()}
    groups = {sizes.batch: STATIC | OWN | MINED, HEAVY_BATCH: HEAVY if with_heavy else {}}
    for batch, samplers in groups.items():
        for name, sampler in samplers.items():
            price = bench.price(sampler, batch, repeats)
            times = {of: baselines[of] / price.seconds * price.draws / N for of in COMPARED}
            of_step = price.seconds / step * sizes.batch / batch
            found[name] = {
                "draws_per_s": price.draws / price.seconds,
                "share_of_step": of_step,
                "times_multinomial": times["torch.multinomial"],
                "times_numpy": times["numpy choice"],
            }
            title = name if batch == sizes.batch else f"{name} ({batch} queries)"
            rows.append(
                (title, price.draws, price.seconds * 1e3, price.draws / price.seconds, of_step, *times.values())
            )
    show(
        f"{sizes.items:,} items, a step of {step * 1e3:.0f} ms",
        ("sampler", "draws", "ms", "draws/s", "of a step", "x multinomial", "x numpy choice"),
        rows,
    )
    return found


def main(
    *,
    items: int = 1_000_000,
    large: int = 10_000_000,
    queries: int = 1_000_000,
    batch: int = 4096,
    dim: int = 64,
    repeats: int = 5,
    threads: int | None = None,
    seed: int = 0,
) -> None:
    """Draws a second of every sampler, and its share of a training step.

    ``large`` is a second catalogue (0: none), ``repeats`` how often everything is timed; the median counts.
    """
    started = time.perf_counter()
    threads = threads or torch.get_num_threads()
    found = {}
    for n_items in (items, large) if large else (items,):
        sizes = Sizes(queries=queries, items=n_items, dim=dim, batch=batch, uniform=N, seed=seed)
        with Apart(Comparison, warm=True) as apart:
            found[f"{n_items}"] = apart.call("run", sizes, n_items == items, repeats, threads)
    missed = [
        f"{name} at {n_items} items: {metric} {found[n_items][name][metric]:.3g}"
        for n_items in found
        for name in STATIC
        for metric, bound in TARGETS.items()
        if (found[n_items][name][metric] < bound) == (metric == "times_multinomial")
    ]
    print(f"static laws: at least 5 times torch.multinomial, at most 2% of the step: {'; '.join(missed) or 'all'}")
    settings = {"items": items, "large": large, "queries": queries, "batch": batch, "dim": dim, "repeats": repeats}
    report("samplers", found, seconds=time.perf_counter() - started, seed=seed, settings=settings)


class Comparison:
    """``compare`` in a process of its own."""

    def run(self, sizes: Sizes, with_heavy: bool, repeats: int, threads: int) -> dict[str, dict[str, float]]:
        return compare(sizes, with_heavy=with_heavy, repeats=repeats, threads=threads)


if __name__ == "__main__":
    cyclopts.run(main)
