"""What a sampler offers, held against the counts it claims."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..negatives import Density, Look, Sampler
from ..records import Batch, Block
from .deciles import Deciles
from .subject import Step, Subject

MOST_PLACES = 2**22
"""Counts [B, n] of a law of each query's own that are held at a time: the n items that are looked at follow from it."""
PRIOR_HITS = 10.0
"""A variance that few hits tell of is drawn towards that of independent draws, as so many hits would."""
ROUNDING = 1e-5
"""Relative difference that is none: counts are float32."""
N_WORST = 5


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Weight per query that some items were offered with, and should have been by the counts."""

    claimed: float
    """nan where the sampler has no density."""
    found: float
    low: float
    """Of an interval that holds the ratio found / claimed with 95%."""
    high: float
    z: float
    """How many standard errors found is from claimed, as a normal quantile."""

    @property
    def ratio(self) -> float:
        """found / claimed; nan where nothing is claimed."""
        return self.found / self.claimed if self.claimed > 0 else math.nan


@dataclass(frozen=True, kw_only=True)
class DecileLaw:
    """A tenth of the catalogue."""

    number: int
    """1 is the most popular."""
    items: int
    least_events: int
    most_events: int
    share_of_items: float
    share_of_events: float
    share_of_candidates: float
    """Of the weight that was offered."""
    count: Compared
    """Summed over its items."""


@dataclass(frozen=True, kw_only=True)
class ItemLaw:
    """One item."""

    id: str
    row: int
    events: int
    count: Compared


@dataclass(frozen=True, kw_only=True)
class Law:
    """Claims and draws of a number of batches."""

    density: Density
    n_batches: int
    n_items: int
    """Items looked at."""
    of_items: int
    """Of the catalogue."""
    claimed: float
    """Summed weight per query; nan without a density."""
    found: float
    deciles: tuple[DecileLaw, ...]
    worst: tuple[ItemLaw, ...]
    """Furthest from their claim first; without a density the most offered."""
    p_deciles: float
    """Probability of a decile as far off, if the counts are right; nan without a density."""
    p_items: float
    """Of an item as far off as the worst."""
    carried_over: float
    """How many times the variance of draws from batch to batch exceeds that of independent batches; 1 where it does
    not. Intervals are wider by it."""

    @property
    def p(self) -> float:
        """Of anything as far off as what was found (Bonferroni over both tests)."""
        return min(1.0, 2 * min(self.p_deciles, self.p_items))


def offered(blocks: tuple[Block, ...], batch: Batch, n_items: int) -> tuple[Tensor, float]:
    """[M] weight that each item has among a query's candidates, meaned over the queries of the batch, and the sum of
    the squares of what each place adds to it.

    An item of the batch is offered by the other rows: to a query that alone brings it, it is not.
    """
    n_queries = max(len(batch.query_B), 1)
    found_M = torch.zeros(n_items, dtype=torch.float64, device=batch.item_P.device)
    squares = 0.0
    for block in blocks:
        weight = block.log_weight.double().exp()
        if block.row.dim() == 2:
            weight = weight / n_queries
        elif block.of_batch:
            weight = weight * _offered_to(block.row, batch, n_items, n_queries)
        there = block.row >= 0
        found_M.index_add_(0, block.row[there], weight[there])
        squares += float(weight[there].square().sum())
    return found_M, squares


def _offered_to(row_N: Tensor, batch: Batch, n_items: int, n_queries: int) -> Tensor:
    """[N] share of the queries to whom another one brings the item."""
    pair = (batch.of_P * n_items + batch.item_P).unique()
    bringing_M = (pair % n_items).bincount(minlength=n_items)
    return torch.where(bringing_M[row_N.clamp(min=0)] == 1, 1 - 1 / n_queries, 1.0).double()


class LawTally:
    """Adds up claims and draws, batch by batch, in memory of a few numbers an item.

    What is claimed of all items is asked where one law serves the batch. Where each query has its own, counts are
    [B, n], and of the catalogue n items are looked at: half of them the most popular, the others drawn evenly, each of
    which then stands for more than itself.
    """

    def __init__(self, subject: Subject, n_batches: int, seed: int) -> None:
        self.sampler, self.store, self.facts = subject.model.negatives, subject.store, subject.facts
        self.deciles = Deciles.of(self.facts.item_count_M)
        self.n_batches, self.device = n_batches, subject.device
        self.window = max(round(n_batches**0.5), 1)
        self.seed = seed
        self.seen = 0
        self.squares = 0.0
        self.found_BG: list[Tensor] = []
        self.claimed_BG: list[Tensor] = []

    def add(self, step: Step) -> None:
        """One batch; its counts are read now, before anything learns from it."""
        if self.seen == 0:
            self._choose_items(step)
        found_M, squares = offered(step.candidates.blocks, step.batch, self.facts.n_items)
        found_n = found_M[self.row_n]
        claimed_n = torch.full_like(found_n, math.nan)
        if self.sampler.density != "none":
            claimed_n = claimed(self.sampler, self.row_n, step, found_n)
        self.seen += 1
        self.squares += squares
        self.found_n += found_n
        self.claimed_n += claimed_n
        difference_n = found_n - claimed_n.nan_to_num()
        self.square_n += difference_n.square()
        self.window_n += difference_n
        if self.seen % self.window == 0:
            self.window_square_n += self.window_n.square()
            self.window_n.zero_()
        for value_n, series in ((found_n, self.found_BG), (claimed_n, self.claimed_BG)):
            zeros_G = torch.zeros(len(self.deciles.number_G), dtype=torch.float64, device=self.device)
            series.append(zeros_G.index_add(0, self.group_n, value_n * self.stands_for_n).cpu())

    def _choose_items(self, step: Step) -> None:
        self.row_n, self.stands_for_n = self._items(step)
        self.group_n = self.deciles.group_M.to(self.device)[self.row_n]
        zeros_n = torch.zeros(len(self.row_n), dtype=torch.float64, device=self.device)
        self.found_n, self.claimed_n, self.square_n = zeros_n.clone(), zeros_n.clone(), zeros_n.clone()
        self.window_n, self.window_square_n = zeros_n.clone(), zeros_n.clone()

    def _items(self, step: Step) -> tuple[Tensor, Tensor]:
        n_items, all_M = self.facts.n_items, torch.arange(self.facts.n_items, device=self.device)
        most = max(MOST_PLACES // max(len(step.batch.query_B), 1), 2)
        if self.sampler.density == "none" or not self.sampler.per_query_law or n_items <= most:
            return all_M, torch.ones(n_items, dtype=torch.float64, device=self.device)
        rng = torch.Generator().manual_seed(self.seed)
        falling = self.facts.item_count_M.cpu().argsort(descending=True, stable=True)
        popular, others = falling[: most // 2], falling[most // 2 :]
        some = others[torch.randperm(len(others), generator=rng)[: most - most // 2]]
        weight = torch.ones(len(popular) + len(some), dtype=torch.float64)
        weight[len(popular) :] = len(others) / len(some)
        row, order = torch.cat([popular, some]).sort()
        return row.to(self.device), weight[order].to(self.device)

    def result(self) -> Law:
        """The comparison."""
        has_density = self.sampler.density != "none"
        found_n, claimed_n = self.found_n.cpu(), self.claimed_n.cpu()
        carried = self._carried_over()
        hit = self.squares / max(float((self.found_n * self.stands_for_n).sum()), 1e-300)
        variance_n = self._variance().cpu() * carried
        bin_n = claimed_n.nan_to_num().clamp(min=1e-30).log2().floor().long()
        _, bin_n = bin_n.unique(return_inverse=True)
        z_n = z_scores(found_n, claimed_n, variance_n, hit, bin_n)
        found_BG, claimed_BG = torch.stack(self.found_BG), torch.stack(self.claimed_BG)
        found_G, claimed_G = found_BG.sum(0), claimed_BG.sum(0)
        series_BG = found_BG - claimed_BG.nan_to_num()
        variance_G = carried * _variance_of_sum(series_BG.sum(0), series_BG.square().sum(0), self.seen)
        z_G = as_normal(
            z_scores(found_G, claimed_G, variance_G, hit, torch.arange(len(found_G))), max(self.seen - 1, 1)
        )
        tested_n = (found_n > 0) | (claimed_n > 0)
        order = (z_n.abs() if has_density else found_n).argsort(descending=True, stable=True)[:N_WORST]
        counted_n = self._compared(found_n[order], claimed_n[order], variance_n[order], z_n[order], hit)
        return Law(
            density=self.sampler.density,
            n_batches=self.seen,
            n_items=len(self.row_n),
            of_items=self.facts.n_items,
            claimed=float(claimed_G.sum()) / self.seen,
            found=float(found_G.sum()) / self.seen,
            deciles=self._deciles(found_G, self._compared(found_G, claimed_G, variance_G, z_G, hit)),
            worst=self._named(self.row_n.cpu()[order], counted_n),
            p_deciles=_p_of_worst(z_G, len(z_G)) if has_density else math.nan,
            p_items=_p_of_worst(z_n, int(tested_n.sum())) if has_density else math.nan,
            carried_over=carried,
        )

    def _variance(self) -> Tensor:
        """[n] of found - claimed, summed over the batches, taken for independent."""
        return _variance_of_sum(self.found_n - self.claimed_n.nan_to_num(), self.square_n, self.seen)

    def _carried_over(self) -> float:
        """Variance of sums over windows of batches to that of as many independent batches, over all items."""
        n_windows = self.seen // self.window
        if n_windows < 2 or self.window < 2:
            return 1.0
        single = float(self._variance().sum())
        total_n = self.found_n - self.claimed_n.nan_to_num() - self.window_n  # without the last batches of no window
        windows = float(_variance_of_sum(total_n, self.window_square_n, n_windows).sum())
        return max(1.0, windows / (n_windows * self.window) * self.seen / single) if single > 0 else 1.0

    def _compared(self, found: Tensor, claimed: Tensor, variance: Tensor, z: Tensor, hit: float) -> list[Compared]:
        expected = torch.maximum(found, claimed.nan_to_num())
        error = ((variance + PRIOR_HITS * hit**2) / (expected + PRIOR_HITS * hit) * expected).sqrt()
        error = torch.where(variance > 0, torch.maximum(error, variance.sqrt()), torch.where(z == 0, 0.0, error))
        low, high = ((found + side * 1.96 * error).clamp(min=0) / claimed for side in (-1, 1))
        return [
            Compared(claimed=c / self.seen, found=f / self.seen, low=lo, high=hi, z=one)
            for c, f, lo, hi, one in zip(
                claimed.tolist(), found.tolist(), low.tolist(), high.tolist(), z.tolist(), strict=True
            )
        ]

    def _deciles(self, found_G: Tensor, count: list[Compared]) -> tuple[DecileLaw, ...]:
        d = self.deciles
        return tuple(
            DecileLaw(
                number=int(d.number_G[at]),
                items=int(d.items_G[at]),
                least_events=int(d.least_G[at]),
                most_events=int(d.most_G[at]),
                share_of_items=int(d.items_G[at]) / int(d.items_G.sum()),
                share_of_events=int(d.events_G[at]) / max(int(d.events_G.sum()), 1),
                share_of_candidates=float(found_G[at] / found_G.sum()) if float(found_G.sum()) else math.nan,
                count=one,
            )
            for at, one in enumerate(count)
        )

    def _named(self, row_n: Tensor, count: list[Compared]) -> tuple[ItemLaw, ...]:
        rows = row_n.tolist()
        names = self.store.item_vocabulary.ids_of(rows)
        events = self.facts.item_count_M.cpu()[row_n].tolist()
        return tuple(
            ItemLaw(id=name, row=row, events=int(n), count=one)
            for name, row, n, one in zip(names, rows, events, count, strict=True)
        )


def claimed(sampler: Sampler, row_n: Tensor, step: Step, found_n: Tensor) -> Tensor:
    """[n] weight per query by the counts of a batch, meaned over its queries.

    Counts that are right up to a factor are scaled to what was offered: to the batch, or to each query its own.
    """
    look: Look = step.look
    log_count = sampler.log_count(row_n, step.batch, look).double()
    if sampler.density != "relative":
        return log_count.exp() if log_count.dim() == 1 else log_count.exp().mean(0)
    if log_count.dim() == 1:
        return log_count.softmax(0) * found_n.sum()
    held_Bn = log_count.softmax(1)
    return (held_Bn * _offered_to_each(step, row_n)[:, None]).mean(0)


def _offered_to_each(step: Step, row_n: Tensor) -> Tensor:
    """[B] summed weight of the candidates of each query that are among some rising rows."""
    total_B = torch.zeros(len(step.batch.query_B), dtype=torch.float64, device=row_n.device)
    for block in step.candidates.blocks:
        at = torch.searchsorted(row_n, block.row.clamp(min=0)).clamp(max=len(row_n) - 1)
        weight = block.log_weight.double().exp() * (row_n[at] == block.row)
        total_B += weight.sum(-1)
    return total_B


def _variance_of_sum(total: Tensor, squares: Tensor, n: int) -> Tensor:
    """Of a sum of n equally distributed, independent numbers with this sum and sum of squares."""
    if n < 2:
        return torch.zeros_like(total)
    return ((squares - total.square() / n) * n / (n - 1)).clamp(min=0)


def z_scores(found: Tensor, claimed: Tensor, variance: Tensor, hit: float, bins: Tensor) -> Tensor:
    """How far each total is from its claim, as a normal quantile; over 30 where what is never drawn was.

    A total of variance phi times its mean is taken for phi times a Poisson number, so k = found / phi hits came where
    n = claimed / phi were expected:

        z = sign(k - n) sqrt(2 (k log(k / n) - k + n))

    which holds for few hits as for many. phi is the variance over the batches to the mean, so draws that share
    candidates, or never repeat an item, are what they are; it is that of all totals of about the same claim
    (``bins``), or the total's own where that is larger. ``hit`` is the mean squared weight of a place to its weight:
    phi of independent draws, towards which few hits are drawn.
    """
    claimed = claimed.nan_to_num()
    size = int(bins.max()) + 1 if len(bins) else 0
    of_bins = [torch.zeros(size, dtype=torch.float64).index_add(0, bins, x) for x in (variance, claimed)]
    pooled = (of_bins[0] + PRIOR_HITS * hit**2) / (of_bins[1] + PRIOR_HITS * hit)
    own = variance / torch.maximum(found, claimed).clamp(min=1e-300)
    phi = torch.maximum(pooled[bins], own)
    k, n = found / phi, claimed / phi
    deviance = 2 * (torch.special.xlogy(k, k / n.clamp(min=1e-300)) - k + n).clamp(min=0)
    z = (k - n).sign() * deviance.sqrt()
    return torch.where((found - claimed).abs() <= ROUNDING * claimed, 0.0, z)


def as_normal(t: Tensor, degrees: int) -> Tensor:
    """The normal quantile of a t statistic. Source: Abramowitz and Stegun 26.7.8."""
    return t * (1 - 1 / (4 * degrees)) / (1 + t.square() / (2 * degrees)).sqrt()


def _p_of_worst(z: Tensor, n: int) -> float:
    """Probability of one of n as far off, two-sided (Bonferroni)."""
    if not len(z):
        return 1.0
    return min(1.0, n * math.erfc(float(z.abs().max()) / math.sqrt(2)))
