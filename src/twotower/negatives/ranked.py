"""Candidates by their rank: of one factor of the model, or against the positive."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Changes, Facts
from ..records import NEG_INF, Batch, Block
from .drawing import best, by_softmax, gumbel, uniform
from .live import LiveRows
from .pool import Pool, Pooled
from .room import Room, Sizes
from .sampler import Look, Sampler, require_some
from .scores import snapshot


class AOBPR(Sampler):
    """n items of each query's own, by their rank in the order of one factor of the model: adaptive oversampling.

        p(f | u) ∝ |u_f| sigma_f          a factor the query cares about and items differ in, sigma_f = std_i v_{i,f}
        p(r)     ∝ exp(-r / scale)        a rank, r = 0, ..., M - 1
        item     = the r-th by falling sgn(u_f) v_f

    Hard items without scoring any: a draw costs O(D), M log M draws pay for sorting the catalogue by each factor. The
    law is known, ``log_count`` is exact given the orders:

        expected count of i = n sum_f p(f | u) p(rank of i in the order of f)

    An item more than about 700 times ``scale`` down in every order that matters to a query counts as never drawn.

    The orders are made at the first draw and again when they are ``refresh_every`` steps old; by default after M log M
    draws. They take 8 D M bytes, saved with a checkpoint, and one encoding of the catalogue each time.

    Choose it for hard negatives at the price of popular ones, in models whose single factors mean something (matrix
    factorisation, shallow towers). Known items are drawn too; losses leave them out.

    Raises ConfigError where n, scale or refresh_every is not positive.

    Source: Rendle and Freudenthaler, Improving pairwise learning for item recommendation from implicit feedback (WSDM
    2014), adaptive oversampling; there too new orders every M log M draws.
    """

    density = "exact"
    per_query_law = True

    n: int = field(default=1, kw_only=False)
    scale: float = 500.0
    """Ranks after which an item is e times less likely."""
    refresh_every: int | None = None
    """Steps."""

    order_DM: Tensor = field(init=False)
    """Item rows by falling value of each factor."""
    rank_DM: Tensor = field(init=False)
    """Where each item is in them."""
    deviation_D: Tensor = field(init=False)
    refreshed_at: Tensor = field(init=False)
    """Step; 0 is never."""
    live: LiveRows = field(init=False)
    orders_fit: bool = field(init=False)
    """Whether the orders are known to be of the items that may be drawn: those of a saved state may not be."""

    def __post_init__(self) -> None:
        require_some(self, self.n)
        if not 0 < self.scale < math.inf:
            raise ConfigError(f"AOBPR: scale is {self.scale}, expected a positive number of ranks")
        if self.refresh_every is not None and self.refresh_every < 1:
            raise ConfigError(f"AOBPR: refresh_every is {self.refresh_every}, expected at least 1 step")

    def setup(self, facts: Facts) -> None:
        self.live, self.orders_fit = LiveRows(facts), False
        draws_a_step = self.n * max(facts.batch_size, 1)
        by_paper = round(facts.n_items * math.log(max(facts.n_items, 1)) / draws_a_step)
        self.period = max(1, by_paper) if self.refresh_every is None else self.refresh_every
        shape = (facts.width, facts.n_items)
        self.register_buffer("order_DM", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("rank_DM", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("deviation_D", torch.zeros(facts.width))
        self.register_buffer("refreshed_at", torch.zeros((), dtype=torch.int64))

    def carry(self, saved: Mapping[str, Tensor], changes: Changes) -> None:
        """Nothing: old orders lack the new items, so the next draw makes new ones."""

    def room(self, sizes: Sizes) -> Room:
        return Room(own=self.n, kept=(8 * sizes.n_items + 4) * sizes.width + 8) + LiveRows.room(sizes)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        self._refresh(look)
        share_BD, n_live = self._factors(look), self.live.n
        lot_BK, rank_lot_BK = (uniform((len(share_BD), self.n), rng, share_BD.device) for _ in range(2))
        factor_BK, rank_BK = by_softmax(share_BD.log(), lot_BK), self._rank(rank_lot_BK)
        falls_BK = look.query_BD.gather(1, factor_BK) >= 0
        place_BK = torch.where(falls_BK, rank_BK, n_live - 1 - rank_BK)
        return (Block.of(self.order_DM[factor_BK, place_BK].long()),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        self._refresh(look)
        share_BD = self._factors(look)
        falls_BD = look.query_BD >= 0
        share_BE = torch.cat([share_BD.where(falls_BD, 0.0), share_BD.where(~falls_BD, 0.0)], 1)
        if row.dim() == 1:
            return (share_BE @ self._by_rank(row)).mul_(self.n).log_().float()
        p_BK = share_BE.new_zeros(row.shape)
        for f in range(share_BD.shape[1]):  # factor by factor: [B, K, 2 D] may not fit
            high_BK, low_BK = self._by_rank(row.flatten(), f).view(2, *row.shape)
            p_BK += share_BE[:, f, None] * high_BK + share_BE[:, f + share_BD.shape[1], None] * low_BK
        return p_BK.mul_(self.n).log_().float()

    def _refresh(self, look: Look) -> None:
        """Make the orders where there are none, or old ones."""
        at = int(self.refreshed_at)
        if at and look.step < at + self.period and self._orders_fit():
            return
        width, n_items = self.order_DM.shape
        item_MD = snapshot(self.deviation_D.new_empty(n_items, width), look)
        row_L = self.live.rows(item_MD.device)
        item_LD, rank_L = item_MD[row_L], torch.arange(len(row_L), dtype=torch.int32, device=item_MD.device)
        self.deviation_D.copy_(item_LD.std(0, correction=0))
        for order_M, rank_M, value_L in zip(self.order_DM, self.rank_DM, item_LD.T, strict=True):
            order_L = row_L[value_L.argsort(descending=True, stable=True)]
            order_M[: len(row_L)] = order_L
            rank_M[order_L] = rank_L
        self.refreshed_at.fill_(look.step)
        self.orders_fit = True

    def _orders_fit(self) -> bool:
        """Whether the orders are of the items that may be drawn; looked at once."""
        if not self.orders_fit:
            ordered_L = self.order_DM[0, : self.live.n].long().sort().values
            self.orders_fit = torch.equal(ordered_L, self.live.rows(ordered_L.device))
        return self.orders_fit

    def _factors(self, look: Look) -> Tensor:
        """[B, D] float64 p(f | u); even where nothing is known of the query, or of any factor it cares about."""
        weight_BD = (look.query_BD.abs() * self.deviation_D).double()
        total_B1 = weight_BD.sum(1, keepdim=True)
        return torch.where(total_B1 > 0, weight_BD / total_B1, 1 / weight_BD.shape[1])

    def _rank(self, lot: Tensor) -> Tensor:
        """Uniform lots -> ranks 0 to M - 1: an exponential variate below M, rounded down; M counts the live."""
        below_end = -math.expm1(-self.live.n / self.scale)
        return (-self.scale * torch.log1p(-lot * below_end)).long().clamp(max=self.live.n - 1)

    def _by_rank(self, row_N: Tensor, factor: int | None = None) -> Tensor:
        """[2 D, N] float64 p(rank) of items, in the falling orders of all factors and then the rising ones; of one
        factor [2, N]."""
        rank_DM = self.rank_DM if factor is None else self.rank_DM[factor : factor + 1]
        rank_DN = rank_DM[:, row_N].double()
        both_EN = torch.cat([rank_DN, self.live.n - 1 - rank_DN])
        scaled = -math.expm1(-1 / self.scale) / -math.expm1(-self.live.n / self.scale)
        return self.live.only(both_EN.div_(-self.scale), row_N).exp_().mul_(scaled)


class FirstViolation(Pooled):
    """The first item of the pool, tried in random order, that violates: s_j > s_y - margin; the sampler of WARP.

        r = floor((M - 1) / trials),    weight r, or log max(1, r)

    The more trials it takes, the fewer items of the catalogue violate: r estimates how many, and the found one stands
    for them all. No violation in the whole pool is no candidate, nor is a weight of 0. Items the query is known to like
    are no trials. A query with several positives in the batch is tried against their mean score.

    With ``weight="rank"`` the loss makes of r what it will: ``Warp(correction="none")`` with the same margin gives
    WSABIE's loss, Phi(r) (margin - s_y + s_j) with Phi(r) = 1 + 1/2 + ... + 1/r. With ``"log_rank"``, LightFM's, the
    weight is log max(1, r) itself, for losses that sum over their candidates. Means (``BPR``, ``Margin``) divide one
    candidate's weight out again, and learn from violators without weight.

    Choose it for WARP as published; loss ``Warp`` over plain samplers lets all candidates vote on the rank instead, and
    is less noisy. All of the pool is scored at once, so ``of`` is as large as the most trials.

    Raises ConfigError where the margin is negative.

    Source: Weston, Bengio and Usunier, WSABIE: scaling up to large vocabulary image annotation (IJCAI 2011), algorithm
    1; weight log max(1, floor((M - 1) / trials)): LightFM.
    """

    margin: float = 0.1
    weight: Literal["rank", "log_rank"] = "rank"

    n_live: int = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.margin < math.inf:
            raise ConfigError(f"FirstViolation: margin is {self.margin}, expected 0 or more")
        if self.weight not in ("rank", "log_rank"):
            raise ConfigError(f"FirstViolation: weight is {self.weight!r}, expected 'rank' or 'log_rank'")

    def setup(self, facts: Facts) -> None:
        super().setup(facts)
        self.n_live = facts.n_live

    def room(self, sizes: Sizes) -> Room:
        return super().room(sizes).chosen(1)

    def choose(self, pool: Pool, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        turn_CP = pool.log_weight_CP + gumbel(pool.row_CP.shape, rng, pool.row_CP.device)
        turn_CP = turn_CP.masked_fill(~pool.open_CP, NEG_INF)
        violates_CP = pool.score_CP > (pool.positive_C - self.margin)[:, None]
        place_C1 = best(turn_CP.masked_fill(~violates_CP, NEG_INF), 1)
        trials_C1 = (turn_CP >= turn_CP.gather(1, place_C1.clamp(min=0))).sum(1, keepdim=True)
        rank_C1 = ((self.n_live - 1) // trials_C1).float()
        log_weight_C1 = rank_C1.log() if self.weight == "rank" else rank_C1.clamp(min=1).log().log()
        return place_C1.masked_fill(log_weight_C1 == NEG_INF, -1), log_weight_C1
