"""What drawing costs: every sampler at a million and ten million items, ``python -m benchmarks.samplers``.

The step is that of benchmarks/step.py: 4,096 pairs against the batch and 8,192 uniform negatives, d = 64. A sampler's
time is that of drawing and counting for one batch, and its share is of that step. *Static* laws draw 8,192 candidates
that the batch shares; they are held against ``torch.multinomial`` and ``numpy.random.Generator.choice`` over the same
law (popularity^3/4), in the same process. What is mined, chained or learned draws for each query, after looking at
scores of the current model: for these the price is what is told, for smaller batches where a whole one would be
minutes.
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

from benchmarks.harness import Apart, report, show
from benchmarks.step import Ours, Sizes
from twotower.negatives import DNS, InBatch, MixGCF, Popularity, Rotations, Sampler, Uniform, propose
from twotower.part import Facts
from twotower.records import Ragged
from twotower.training.matmul import probe
from twotower.training.step import CurrentModel

N = 8192
SHOWN = 8
"""Items that each query was shown and did not take."""

STATIC: dict[str, Sampler] = {
    "uniform": Uniform(N),
    "popularity": Popularity(N),
}
OF_THE_BATCH: dict[str, Sampler] = {
    "in-batch": InBatch(),
    "rotations": Rotations(4),
}
MINED: dict[str, Sampler] = {
    "dns": DNS(of=Uniform(16, per_query=True)),
    "hardest in batch": DNS(n=2, of=InBatch()),
    "mixgcf": MixGCF(of=Uniform(16, per_query=True)),
}
HEAVY: dict[str, Sampler] = {}
"""They look at the whole catalogue for each query: timed for ``HEAVY_BATCH`` queries, at the smaller catalogue."""
HEAVY_BATCH = 64

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
        self.facts = replace(self.ours.batches.facts(), shown=_shown(sizes))

    def step(self, repeats: int) -> float:
        """Seconds of a training step."""
        return _median_of(self.ours.step, repeats)

    def price(self, sampler: Sampler, batch_size: int, repeats: int) -> Price:
        """Of drawing and counting."""
        sampler = _ready(sampler, self.facts)
        batch = self.ours.batches.of_events(torch.arange(batch_size))
        query_BD = self.ours.model.towers.encode_query(batch.query)
        number = iter(range(1, repeats + 2))

        def draw() -> None:
            step = next(number)
            look = CurrentModel(self.ours.model, query_BD, step)
            candidates = propose(sampler, batch, look, torch.Generator().manual_seed(step))
            self.drawn = sum(block.row.numel() for block in candidates.blocks)

        return Price(seconds=_median_of(draw, repeats), draws=self.drawn)

    def baselines(self, repeats: int) -> dict[str, float]:
        """Seconds of ``N`` draws by popularity^3/4."""
        weight_M = self.facts.item_count_M.double() ** 0.75
        p_M = (weight_M / weight_M.sum()).numpy()
        rng = np.random.default_rng(0)
        return {
            "torch.multinomial": _median_of(lambda: torch.multinomial(weight_M, N, replacement=True), repeats),
            "numpy choice": _median_of(lambda: rng.choice(len(p_M), N, p=p_M), repeats),
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
    groups = {sizes.batch: STATIC | OF_THE_BATCH | MINED, HEAVY_BATCH: HEAVY if with_heavy else {}}
    for batch, samplers in groups.items():
        for name, sampler in samplers.items():
            price = bench.price(sampler, batch, repeats)
            times = {of: seconds / price.seconds * price.draws / N for of, seconds in baselines.items()}
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
