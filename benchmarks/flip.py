"""Popularity that turns round in one moment, and the frequencies of a running model that follow it.

    python -m benchmarks.flip [--draw events|distinct] [--only-frequencies] [--seed 0] [--plot docs/flip.png]

Section 6.1 of Yi et al. (RecSys 2019) in the running system: 1000 items, q_i ~ i^2 for 10,000 batches of 128, then
q_i ~ (999 - i)^2 for as many. The log is ingested, and a model trains on it once, in order of time; what is measured is
its frequency estimate, and others beside it that observe the same batches. What they learn depends on the batches
alone, so ``--only-frequencies``, which leaves out all else of a step, gives the same figures sooner. Two ways to draw
the log:

    events     every event an independent draw, as logs are: p_i = 1 - (1 - q_i)^B. What a batch holds stays so if the
               events of a day are shuffled.
    distinct   the paper's batches: 128 distinct items, each with probability p_i = B q_i exactly (systematic sampling)

Shown are the error, 1 / (2 B) sum_i |estimate_i - p_i|, over the steps, for ``distinct`` beside an independent
reproduction of the paper's experiment; and what is left of an item's error after n hits, beside Proposition 4.1 as
corrected: with gaps D of mean d and the estimate d_0 at the first hit after the flip,

    E d_n - d = (1 - a)^n (d_0 - d),    Var d_n = a / (2 - a) (1 - (1 - a)^(2n)) Var D,    Var D = (1 - p) / p^2

Hits count from the first after the flip: the gap that spans the flip is of neither law.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from benchmarks.harness import report, show
from twotower.config import Run, Training
from twotower.data.ingest import ingest
from twotower.data.store import Store
from twotower.frequency import Frequency, StreamingFrequency
from twotower.negatives import InBatch
from twotower.records import Batch
from twotower.schema import Id, Interactions, Schema
from twotower.towers import TwoTower
from twotower.training.loop import batches_of, settings_of
from twotower.training.step import Model, Stepper

Draw = Literal["events", "distinct"]

SCHEMA = Schema(
    interactions=Interactions(query="user", item="item", time="time", time_unit="us"),
    query={"user": Id(column="user")},
    item={"item": Id(column="item")},
)
N_USERS = 100_000
DAY_US = 86_400 * 10**6
BATCHES_A_DAY = 250
START_US = 19_000 * DAY_US
STEPS = (1000, 2500, 5000, 10_000, 10_250, 11_000, 12_500, 15_000, 20_000)
"""Batches after which errors are told."""
HITS = (1, 3, 10, 30, 100, 200)
CERTAIN = 0.05
"""Presence from which an item has all those hits in 10,000 batches, whatever chance does."""


def paper(buckets: int, hashes: int, alpha: float) -> StreamingFrequency:
    """The paper's form."""
    return StreamingFrequency(buckets=buckets, hashes=hashes, alpha=alpha, patience=math.inf, warm_up=False)


ESTIMATES = {
    "m=1 alpha=.1": paper(5000, 1, 0.1),
    "m=1 alpha=.05": paper(5000, 1, 0.05),
    "m=1 alpha=.01": paper(5000, 1, 0.01),
    "m=2 alpha=.01": paper(2500, 2, 0.01),
    "m=4 alpha=.01": paper(1250, 4, 0.01),
    "no collisions alpha=.01": paper(2**20, 2, 0.01),
    "as by default": StreamingFrequency(),
}
MODEL = "no collisions alpha=.01"
"""The model's own; the others observe what it observes."""
REPRODUCED = {
    "m=1 alpha=.1": (0.163, 0.164, 0.163, 0.158, 0.295, 0.221, 0.189, 0.188, 0.177),
    "m=1 alpha=.05": (0.140, 0.141, 0.137, 0.137, 0.410, 0.206, 0.167, 0.164, 0.153),
    "m=1 alpha=.01": (0.321, 0.141, 0.112, 0.113, 0.642, 0.408, 0.176, 0.150, 0.135),
    "m=2 alpha=.01": (0.323, 0.100, 0.067, 0.067, 0.631, 0.376, 0.137, 0.104, 0.088),
    "m=4 alpha=.01": (0.324, 0.084, 0.049, 0.050, 0.616, 0.342, 0.101, 0.072, 0.060),
    "no collisions alpha=.01": (0.326, 0.080, 0.038, 0.033, 0.650, 0.391, 0.111, 0.077, 0.059),
}
"""Errors of an independent reproduction of section 6.1 at ``STEPS``: of one draw of the hash functions; without
collisions of several runs, the middles of their ranges."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A popularity that is turned round after ``steps`` batches, and goes on for as many."""

    n_items: int = 1000
    batch_size: int = 128
    steps: int = 10_000
    draw: Draw = "events"

    def share_M(self, after: bool) -> Tensor:
        """[M] q, before or after the flip."""
        weight_M = torch.arange(self.n_items).double() ** 2
        return (weight_M.flip(0) if after else weight_M) / weight_M.sum()

    def presence_M(self, after: bool) -> Tensor:
        """[M] p: the probability that an item is in a batch."""
        q_M = self.share_M(after)
        return self.batch_size * q_M if self.draw == "distinct" else -torch.expm1(self.batch_size * torch.log1p(-q_M))

    def items(self, seed: int) -> Tensor:
        """[2 steps, B] the items of all batches."""
        rng = torch.Generator().manual_seed(seed)
        return torch.cat([self._half(self.share_M(after), rng) for after in (False, True)])

    def _half(self, q_M: Tensor, rng: torch.Generator) -> Tensor:
        if self.draw == "events":
            at = torch.rand(self.steps, self.batch_size, generator=rng, dtype=torch.float64)
            return torch.searchsorted(q_M.cumsum(0), at).clamp(max=self.n_items - 1)
        return torch.stack([systematic(self.batch_size * q_M, rng) for _ in range(self.steps)])


def systematic(p_M: Tensor, rng: torch.Generator) -> Tensor:
    """Distinct items, each with its probability p, as many as these sum to: items lie end to end in random order, each
    as long as its p, and are drawn where a comb of step 1 from a random start meets them.

    Source: Madow, On the theory of systematic sampling II (Annals of Mathematical Statistics 20, 1949).
    """
    order = torch.randperm(len(p_M), generator=rng)
    end_M = p_M[order].cumsum(0)
    comb = torch.arange(round(float(end_M[-1])), dtype=torch.float64) + torch.rand((), generator=rng).double()
    return order[torch.searchsorted(end_M, comb, right=True).clamp(max=len(p_M) - 1)]


def ingested(flip: Flip, folder: Path, seed: int) -> Store:
    """The log as a store, item i in row i: events in the order of batches, 250 batches a day, each by a random user."""
    item_E = flip.items(seed).flatten().numpy()
    n = len(item_E)
    user_E = np.random.default_rng(seed).integers(min(N_USERS, n), size=n)
    time_E = START_US + np.arange(n) * (DAY_US // (BATCHES_A_DAY * flip.batch_size))
    events = pa.table({"user": user_E, "item": item_E, "time": time_E})
    ingest(SCHEMA, interactions=events, items=pa.table({"item": np.arange(flip.n_items)}), out=folder / "store")
    return Store.open(folder / "store")


def trained(
    run: Run, store: Store, beside: dict[str, StreamingFrequency], *, only_frequencies: bool = False
) -> Iterator[tuple[int, Batch, Model]]:
    """Train once through all events in order of time; yields after each step, when all estimates have observed it."""
    events = store.taken_events()
    batches = batches_of(run, store, events, None, seed=run.training.seed)
    torch.manual_seed(run.training.seed)
    facts = batches.facts()
    model = Model(run, store, facts).train()
    for frequency in beside.values():
        frequency.setup(facts)
    stepper = Stepper(model, run.training)
    for step, index in enumerate(torch.arange(len(events)).split(run.training.batch_size), start=1):
        batch = batches.at(index)
        if only_frequencies:
            model.frequency.observe(batch.item_P)
        else:
            stepper(batch, step, 1.0)
        for frequency in beside.values():
            frequency.observe(batch.item_P)
        yield step, batch, model


def run_of(batch_size: int, frequency: StreamingFrequency) -> Run:
    """A small model with the items of the batch as negatives, whose counts are the estimate under test."""
    return Run(
        schema=SCHEMA,
        towers=TwoTower(dim=8),
        negatives=InBatch(),
        frequency=frequency,
        training=Training(batch_size=batch_size),
    )


@dataclass(kw_only=True)
class Hits:
    """The model's estimate of the gap of each item at its hits after the flip."""

    p_M: Tensor
    """Presence after the flip."""
    most: int
    """Hits to follow an item for."""
    gap_MN: Tensor = field(init=False)
    """[M, most + 1] estimate right after hit n, from 0 for the first after the flip."""
    hits_M: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.gap_MN = torch.full((len(self.p_M), self.most + 1), math.nan, dtype=torch.float64)
        self.hits_M = torch.zeros(len(self.p_M), dtype=torch.int64)

    def see(self, item_P: Tensor, frequency: Frequency) -> None:
        """A batch after the flip that the estimate has just observed: an item of it is read as its bucket has it."""
        item = item_P.unique()
        item = item[self.hits_M[item] <= self.most]
        self.gap_MN[item, self.hits_M[item]] = (-frequency.log_presence(item).double()).exp()
        self.hits_M[item] += 1

    def after(self, n: int, alpha: float, *, certain: float) -> PerHit:
        """What is left after n hits, over the items of at least the presence ``certain``."""
        chosen = self.p_M >= certain
        p, start, found = self.p_M[chosen], self.gap_MN[chosen, 0], self.gap_MN[chosen, n]
        gap = 1 / p
        left, printed = (1 - alpha) ** n * (start - gap), (1 - alpha) ** n * start - (1 - alpha) ** (n - 1) * gap
        variance = alpha / (2 - alpha) * (1 - (1 - alpha) ** (2 * n)) * (1 - p) / p**2
        off, off_printed = ((found - gap - bias) / variance.sqrt() for bias in (left, printed))
        return PerHit(
            n_items=len(p),
            found=float(((found - gap) * p).mean()),
            expected=float((left * p).mean()),
            off=float(off.mean()) * math.sqrt(len(p)),
            printed_off=float(off_printed.mean()) * math.sqrt(len(p)),
            deviation=float((off**2).mean().sqrt()),
        )


@dataclass(frozen=True, kw_only=True)
class PerHit:
    """Estimates after n hits, against Proposition 4.1."""

    n_items: int
    found: float
    """Mean over items of (d_n - d) / d."""
    expected: float
    off: float
    """Mean of (d_n - E d_n) / deviation, in standard errors of that mean."""
    printed_off: float
    """The same for the bias as printed in the paper, (1 - a)^n d_0 - (1 - a)^(n - 1) d."""
    deviation: float
    """Root mean square of (d_n - E d_n) / deviation: 1 if the variance is as expected."""


def error(frequency: Frequency, flip: Flip, after: bool) -> float:
    """1 / (2 B) sum_i |estimate_i - p_i|"""
    found_M = frequency.log_presence(torch.arange(flip.n_items)).double().exp()
    return float((found_M - flip.presence_M(after)).abs().sum()) / (2 * flip.batch_size)


@dataclass(frozen=True, kw_only=True)
class Followed:
    """What a run through the flip showed."""

    at: list[int]
    """Batches after which errors were taken."""
    errors: dict[str, list[float]]
    hits: Hits


def follow(flip: Flip, folder: Path, *, seed: int, every: int, most_hits: int, only_frequencies: bool) -> Followed:
    """Train through the flip and watch the model's estimate, and those of ``ESTIMATES`` beside it."""
    beside = {name: copy.deepcopy(frequency) for name, frequency in ESTIMATES.items() if name != MODEL}
    run = run_of(flip.batch_size, ESTIMATES[MODEL])
    hits, at = Hits(p_M=flip.presence_M(True), most=most_hits), []
    errors: dict[str, list[float]] = {name: [] for name in ESTIMATES}
    with settings_of(run.training):
        store = ingested(flip, folder, seed)
        for step, batch, model in trained(run, store, beside, only_frequencies=only_frequencies):
            after = step > flip.steps
            if after:
                hits.see(batch.item_P, model.frequency)
            if step % every == 0:
                at.append(step)
                for name, frequency in {MODEL: model.frequency, **beside}.items():
                    errors[name].append(error(frequency, flip, after))
    return Followed(at=at, errors=errors, hits=hits)


def plot(found: Followed, flip: Flip, path: Path) -> None:
    """Errors over the steps, and what is left of an item's error by hits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    over_time, by_hits = figure.subplots(1, 2)
    for name in ("m=1 alpha=.1", "m=1 alpha=.01", "m=4 alpha=.01", MODEL, "as by default"):
        over_time.plot(found.at, found.errors[name], label=name, linewidth=1.2)
    over_time.axvline(flip.steps, color="gray", linewidth=0.8)
    over_time.set(xlabel="batches", ylabel="error of presences", title="popularity flips", ylim=(0, None))
    over_time.legend(fontsize="small")
    alpha = ESTIMATES[MODEL].alpha
    per_hit = [found.hits.after(n, alpha, certain=CERTAIN) for n in range(1, found.hits.most + 1)]
    number = range(1, found.hits.most + 1)
    by_hits.plot(number, [one.found for one in per_hit], label="found, mean over items")
    by_hits.plot(number, [one.expected for one in per_hit], "k--", linewidth=1, label="$(1 - a)^n (d_0 - d) / d$")
    by_hits.set(xlabel="hits after the flip", ylabel="gap too long, in true gaps", title=f"per hit, {MODEL}")
    by_hits.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", choices=("events", "distinct"), default="events")
    parser.add_argument("--steps", type=int, default=10_000, help="batches before the flip, and after it")
    parser.add_argument("--only-frequencies", action="store_true", help="no towers, loss and optimisers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="where to draw errors and hits")
    arguments = parser.parse_args()
    started = time.perf_counter()
    flip = Flip(steps=arguments.steps, draw=arguments.draw)
    with tempfile.TemporaryDirectory() as work:
        found = follow(
            flip,
            Path(work),
            seed=arguments.seed,
            every=250,
            most_hits=max(HITS),
            only_frequencies=arguments.only_frequencies,
        )
    errors = {
        name: {str(step): of[found.at.index(step)] for step in STEPS if step in found.at}
        for name, of in found.errors.items()
    }
    heads = ("estimate", *errors[MODEL])
    show("Error of presences after so many batches", heads, [(name, *of.values()) for name, of in errors.items()])
    if flip.draw == "distinct" and len(heads) == len(STEPS) + 1:
        apart = [
            (name, *(ours - theirs for ours, theirs in zip(errors[name].values(), of, strict=True)))
            for name, of in REPRODUCED.items()
        ]
        show("The same less that of the reproduction", heads, apart)
    alpha = ESTIMATES[MODEL].alpha
    per_hit = {n: found.hits.after(n, alpha, certain=CERTAIN) for n in HITS}
    show(
        f"After n hits, {per_hit[1].n_items} items: gap too long in true gaps, and how far that is off",
        ("hits", "found", "expected", "standard errors off", "as printed", "deviation / expected"),
        [(str(n), h.found, h.expected, h.off, h.printed_off, h.deviation) for n, h in per_hit.items()],
    )
    if arguments.plot is not None:
        plot(found, flip, arguments.plot)
    report(
        f"flip {flip.draw}",
        {"errors": errors, "hits": {str(n): asdict(h) for n, h in per_hit.items()}},
        seconds=time.perf_counter() - started,
        seed=arguments.seed,
        settings={"steps": arguments.steps, "only_frequencies": arguments.only_frequencies},
    )


if __name__ == "__main__":
    main()
