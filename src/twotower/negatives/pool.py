"""What another sampler offers, scored by the current model: a pool to choose from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Facts
from ..records import NEG_INF, Batch, Block, Encoded
from .drawing import best, picked
from .room import Room, Sizes
from .sampler import Look, Sampler, require_some
from .scores import dots, positive_scores
from .static import Uniform
from .tiles import tiles


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What some queries of the batch may choose from. P places, of C queries."""

    query_C: Tensor
    """Which queries of the batch they are."""
    row_CP: Tensor
    """Item rows; -1 is an empty place."""
    score_CP: Tensor
    """Of the current model, not divided by a temperature; -inf where the place is empty, or the item known or not
    live."""
    positive_C: Tensor
    """Mean score of the query's positives in the batch."""
    log_count_CP: Tensor
    """By the law of the sampler the pool came from; nan where that has no density."""
    log_weight_CP: Tensor
    """Log of how often the place was offered: 0 for once; -inf where it is empty."""

    @property
    def open_CP(self) -> Tensor:
        """Which places may be chosen."""
        return self.score_CP > NEG_INF

    def distinct(self) -> Pool:
        """The same pool, an item open at the first of its places only, with the weight of all."""
        row_CP, order_CP = self.row_CP.sort(dim=1, stable=True)
        again_CP = torch.zeros_like(row_CP, dtype=torch.bool)
        again_CP[:, 1:] = row_CP[:, 1:] == row_CP[:, :-1]
        item_CP = (~again_CP).cumsum(1) - 1
        weight_CP = self.log_weight_CP.gather(1, order_CP).exp()
        total_CP = torch.zeros_like(weight_CP).scatter_add_(1, item_CP, weight_CP).gather(1, item_CP)
        repeated_CP = torch.zeros_like(again_CP).scatter_(1, order_CP, again_CP)
        return replace(
            self,
            score_CP=self.score_CP.masked_fill(repeated_CP, NEG_INF),
            log_weight_CP=torch.zeros_like(total_CP)
            .scatter_(1, order_CP, total_CP)
            .log_()
            .masked_fill_(repeated_CP, NEG_INF),
        )

    def hardest(self, n: int) -> Tensor:
        """[C, n] places of the n highest scores, best first; -1 where fewer are open."""
        return best(self.score_CP, n)


class Pooled(Sampler):
    """What another sampler offers, as chosen or weighed for each query by the scores of the current model.

    ``of`` draws the pool: its own candidates for each query, or shared ones for all to choose from. What a query is
    known to like, and what is not live at its time, is never chosen. The choice has no density, so it goes with losses
    that are not corrected.

    A subclass says in ``choose`` which places of a pool are taken.
    """

    density = "none"

    of: Sampler = field(default_factory=lambda: Uniform(16, per_query=True))

    def __post_init__(self) -> None:
        require_items(self, self.of)

    @property
    def idle_steps(self) -> int:
        """Those of the pool."""
        return self.of.idle_steps

    def setup(self, facts: Facts) -> None:
        self.of.setup(facts)

    def room(self, sizes: Sizes) -> Room:
        """All that is offered may be chosen."""
        of = self.of.room(sizes)
        return of.chosen(max(of.shared + of.own, 1))

    @abstractmethod
    def choose(self, pool: Pool, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """[C, n] places of the pool, -1 for none, and log weights of the chosen, None for 0."""

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        rows, weights = [], []
        for pool in pools(self.of, batch, look, rng):
            place_Cn, log_weight_Cn = self.choose(pool, rng)
            row_Cn = picked(pool.row_CP, place_Cn)
            rows.append(row_Cn)
            weights.append(torch.zeros(row_Cn.shape) if log_weight_Cn is None else log_weight_Cn)
        return (Block.chosen(torch.cat(rows), torch.cat(weights).to(rows[0].device)),)

    def observe(self, blocks: tuple[Block, ...], encoded: Encoded, look: Look) -> Tensor | None:
        """The pool's sampler may learn from the batch, though none of the blocks is its own."""
        return self.of.observe((), encoded, look)


class Mined(Pooled):
    """n items of a pool for each query; a query with fewer items to choose from than n gets those."""

    n: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_some(self, self.n)

    def room(self, sizes: Sizes) -> Room:
        return super().room(sizes).chosen(self.n)


def require_items(sampler: Sampler, of: Sampler) -> None:
    """ConfigError where a sampler is to choose from vectors that have no row."""
    if not of.offers_items:
        raise ConfigError(
            f"{type(sampler).__name__}: of is {type(of).__name__}, which offers vectors that are no items of the "
            "catalogue, so they can't be chosen by row: choose from another sampler, such as Uniform or InBatch"
        )


def offered(of: Sampler, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, Block]:
    """What ``of`` offers to all queries [N], each item once with its summed weight, and to each its own [B, K], the row
    of an empty place -1. There is at least one place.
    """
    blocks = of.draw(batch, look, rng)
    if any(block.vector is not None or block.mix is not None for block in blocks):
        raise TypeError(f"{type(of).__name__} offers vectors that are no items, but says that it offers_items")
    shared, own = (_side_by_side([b for b in blocks if b.row.dim() == dim], batch, dim) for dim in (1, 2))
    there = shared.row >= 0
    row_N, at = shared.row[there].unique(return_inverse=True)
    weight_N = torch.zeros(len(row_N), device=row_N.device).index_add_(0, at, shared.log_weight[there].exp())
    shared = Block.chosen(row_N, weight_N.log())
    if not len(row_N) and not own.row.shape[1]:
        own = Block.chosen(own.row.new_full((len(own.row), 1), -1))
    return shared, own


def _side_by_side(blocks: list[Block], batch: Batch, dim: int) -> Block:
    """Blocks [N], or [B, K], as one."""
    if not blocks:
        return Block.of(batch.item_P.new_zeros((0,) if dim == 1 else (len(batch.query_B), 0)))
    log_weight = torch.cat([block.log_weight for block in blocks], -1)
    row = torch.cat([block.row for block in blocks], -1)
    return Block.chosen(row.masked_fill(log_weight == NEG_INF, -1), log_weight)


def candidate_rows(of: Sampler, batch: Batch, look: Look, rng: torch.Generator) -> Tensor:
    """[B, P] rows that ``of`` offers to each query, shared ones too; -1 for an empty place, what the query knows
    and what is not live for it."""
    shared, own = offered(of, batch, look, rng)
    row_BP = torch.cat([shared.row.expand(len(own.row), -1), own.row], 1)
    return row_BP.masked_fill(batch.closed(row_BP), -1)


def pools(of: Sampler, batch: Batch, look: Look, rng: torch.Generator) -> Iterator[Pool]:
    """What ``of`` offers to the queries of a batch, some queries at a time, scored by the current model."""
    shared, own = offered(of, batch, look, rng)
    shared_N, own_BK = shared.row, own.row
    column_ND = look.items(shared_N)
    item_U, slot_BK = own_BK.clamp(min=0).unique(return_inverse=True)
    table_UD = look.items(item_U)
    log_count_BP = _counts(of, shared_N, own_BK, batch, look)
    positive_B = positive_scores(batch, look)
    for at in tiles(len(own_BK), len(shared_N) + own_BK.shape[1]):
        query_CD, own_CK = look.query_BD[at], own_BK[at]
        row_CP = torch.cat([shared_N.expand(len(query_CD), -1), own_CK], 1)
        log_weight_CP = torch.cat([shared.log_weight.expand(len(query_CD), -1), own.log_weight[at]], 1)
        score_CP = torch.cat([query_CD @ column_ND.T, dots(query_CD, table_UD, slot_BK[at])], 1)
        closed_CP = (row_CP < 0) | batch.closed(row_CP, at)
        yield Pool(
            query_C=torch.arange(at.start, at.stop, device=row_CP.device),
            row_CP=row_CP,
            score_CP=score_CP.masked_fill(closed_CP, NEG_INF),
            positive_C=positive_B[at],
            log_count_CP=log_count_BP[at] if log_count_BP.dim() == 2 else log_count_BP.expand(len(query_CD), -1),
            log_weight_CP=log_weight_CP,
        )


def _counts(of: Sampler, shared_N: Tensor, own_BK: Tensor, batch: Batch, look: Look) -> Tensor:
    """[P] or [B, P] log counts of the places; nan without a density."""
    if of.density == "none":
        return torch.full((len(shared_N) + own_BK.shape[1],), float("nan"), device=own_BK.device)
    shared = of.log_count(shared_N, batch, look)
    if not own_BK.shape[1]:
        return shared
    return torch.cat([shared.expand(len(own_BK), -1), of.log_count(own_BK.clamp(min=0), batch, look)], 1)
