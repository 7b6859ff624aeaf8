"""Candidates chosen among many by the current model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Facts
from ..records import NEG_INF, Batch, Block, Encoded
from .sampler import Look, Sampler, require_some
from .static import Uniform

_TILE = 2**22
"""Most scores of a pool that are held at a time: 16 MiB of float32."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What some queries of the batch may choose from. P places, of C queries."""

    query_C: Tensor
    """Which queries of the batch they are."""
    row_CP: Tensor
    """Item rows; -1 is an empty place."""
    score_CP: Tensor
    """Of the current model, not divided by a temperature; -inf where the place is empty or the item known."""
    positive_C: Tensor
    """Mean score of the query's positives in the batch."""
    log_count_CP: Tensor
    """By the law of the sampler the pool came from; nan where that has no density."""

    def distinct(self) -> Pool:
        """The same pool, an item open at one of its places only."""
        row_CP, order_CP = self.row_CP.sort(dim=1, stable=True)
        again_CP = torch.zeros_like(row_CP, dtype=torch.bool)
        again_CP[:, 1:] = row_CP[:, 1:] == row_CP[:, :-1]
        repeated_CP = torch.zeros_like(again_CP).scatter_(1, order_CP, again_CP)
        return replace(self, score_CP=self.score_CP.masked_fill(repeated_CP, NEG_INF))

    def hardest(self, n: int) -> Tensor:
        """[C, n] places of the n highest scores, best first; -1 where fewer are open."""
        return best(self.score_CP, n)


def best(value_CP: Tensor, n: int) -> Tensor:
    """[C, n] places of the n largest values, largest first; -1 where there are no more above -inf."""
    top = value_CP.topk(min(n, value_CP.shape[1]), 1)
    place = top.indices.masked_fill(top.values == NEG_INF, -1)
    return torch.nn.functional.pad(place, (0, n - place.shape[1]), value=-1)


class Mined(Sampler):
    """n items of those that another sampler offers, chosen for each query by the scores of the current model.

    ``of`` draws the pool: its own candidates for each query, or shared ones for all to choose from. What a query is
    known to like is never chosen. A query with fewer items to choose from than n gets those. The choice has no density,
    so it goes with losses that are not corrected.

    A subclass says in ``choose`` which places of a pool are taken.
    """

    density = "none"

    n: int = 1
    of: Sampler = field(default_factory=lambda: Uniform(16, per_query=True))

    def __post_init__(self) -> None:
        require_some(self, self.n)

    def setup(self, facts: Facts) -> None:
        self.of.setup(facts)

    @abstractmethod
    def choose(self, pool: Pool, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """[C, n] places of the pool, -1 for none, and log weights of the chosen, None for 0."""

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        rows, weights = [], []
        for pool in pools(self.of, batch, look, rng):
            place_Cn, log_weight_Cn = self.choose(pool, rng)
            row_Cn = pool.row_CP.gather(1, place_Cn.clamp(min=0)).masked_fill(place_Cn < 0, -1)
            rows.append(row_Cn)
            weights.append(torch.zeros(row_Cn.shape) if log_weight_Cn is None else log_weight_Cn)
        return (Block.chosen(torch.cat(rows), torch.cat(weights).to(rows[0].device)),)

    def observe(self, blocks: tuple[Block, ...], encoded: Encoded, look: Look) -> Tensor | None:
        """The pool's sampler may learn from the batch, though none of the blocks is its own."""
        return self.of.observe((), encoded, look)


def offered(of: Sampler, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows that ``of`` offers to all queries [N], each once, and to each its own [B, K], -1 for an empty place.

    Raises ConfigError where it offers vectors that are no items.
    """
    blocks = of.draw(batch, look, rng)
    if any(block.vector is not None or block.mix is not None for block in blocks):
        raise ConfigError(
            f"negatives.of: {type(of).__name__} offers vectors that are no items of the catalogue, so they can't be "
            "chosen by row: mine another sampler"
        )
    shared = [block.row for block in blocks if block.row.dim() == 1]
    shared_N = torch.cat(shared).unique() if shared else batch.item_P.new_zeros(0)
    own = [block.row.masked_fill(block.log_weight == NEG_INF, -1) for block in blocks if block.row.dim() == 2]
    return shared_N, torch.cat(own, 1) if own else batch.item_P.new_zeros(len(batch.query_B), 0)


def candidate_rows(of: Sampler, batch: Batch, look: Look, rng: torch.Generator) -> Tensor:
    """[B, P] rows that ``of`` offers to each query, shared ones too; -1 for an empty place or what the query knows."""
    shared_N, own_BK = offered(of, batch, look, rng)
    row_BP = torch.cat([shared_N.expand(len(own_BK), -1), own_BK], 1)
    return row_BP.masked_fill(batch.known.holds(row_BP), -1)


def pools(of: Sampler, batch: Batch, look: Look, rng: torch.Generator) -> Iterator[Pool]:
    """What ``of`` offers to the queries of a batch, some queries at a time, scored by the current model.

    Raises ConfigError where it offers vectors that are no items.
    """
    shared_N, own_BK = offered(of, batch, look, rng)
    n_queries, query_BD = len(batch.query_B), look.query_BD
    column_ND = look.items(shared_N)
    item_U, slot = own_BK.clamp(min=0).flatten().unique(return_inverse=True)
    slot_BK, table_UD = slot.view(own_BK.shape), look.items(item_U)
    log_count_BP = _counts(of, shared_N, own_BK, batch, look)
    positive_B = _positive_scores(batch, look)
    width = len(shared_N) + own_BK.shape[1]
    step = max(1, _TILE // max(width + own_BK.shape[1] * query_BD.shape[1], 1))
    for start in range(0, n_queries, step):
        at = slice(start, min(start + step, n_queries))
        query_CD, own_CK = query_BD[at], own_BK[at]
        row_CP = torch.cat([shared_N.expand(len(query_CD), -1), own_CK], 1)
        own_score_CK = (table_UD[slot_BK[at]] @ query_CD[:, :, None])[:, :, 0]
        score_CP = torch.cat([query_CD @ column_ND.T, own_score_CK], 1)
        closed_CP = (row_CP < 0) | batch.known.slice(at.start, at.stop).holds(row_CP)
        yield Pool(
            query_C=torch.arange(at.start, at.stop, device=row_CP.device),
            row_CP=row_CP,
            score_CP=score_CP.masked_fill(closed_CP, NEG_INF),
            positive_C=positive_B[at],
            log_count_CP=log_count_BP[at] if log_count_BP.dim() == 2 else log_count_BP.expand(len(query_CD), -1),
        )


def _counts(of: Sampler, shared_N: Tensor, own_BK: Tensor, batch: Batch, look: Look) -> Tensor:
    """[P] or [B, P] log counts of the places; nan without a density."""
    if of.density == "none":
        return torch.full((len(shared_N) + own_BK.shape[1],), float("nan"), device=own_BK.device)
    shared = of.log_count(shared_N, batch, look)
    if not own_BK.shape[1]:
        return shared
    return torch.cat([shared.expand(len(own_BK), -1), of.log_count(own_BK.clamp(min=0), batch, look)], 1)


def _positive_scores(batch: Batch, look: Look) -> Tensor:
    """[B] mean score of each query's positives; 0 without any."""
    score_P = (look.query_BD[batch.of_P] * look.items(batch.item_P)).sum(1)
    count_B = batch.of_P.bincount(minlength=len(batch.query_B))
    return score_P.new_zeros(len(count_B)).index_add_(0, batch.of_P, score_P) / count_B.clamp(min=1)


class DNS(Mined):
    """Of a pool of the query's, one of the ``among`` that the model ranks highest; n such draws without repeating.

        law of the item of rank r among M that are open to a pool of N uniform draws (among = 1):
        P(r) = ((M - r + 1)^N - (M - r)^N) / M^N

    With ``among`` = n, its default, the n hardest are taken. A larger one softens: DNS(M, N) takes evenly among the top
    M of N, and is a one-way partial AUC with beta = M / N; with ``among`` = N it is the pool's own law.

    ``DNS(n=2, of=InBatch())`` is online hard mining: the two hardest items of the batch that are not the query's own.
    They cost one product of the batch with itself, no further item is encoded. More than two a positive made it worse.

    Source: Zhang et al., Optimizing top-n collaborative filtering via dynamic negative item sampling (SIGIR 2013); Shi
    et al., On the theories behind hard negative sampling for recommendation (WWW 2023), DNS(M, N); of the batch: Huang
    et al., Embedding-based retrieval in Facebook search (KDD 2020), section 6.1.
    """

    among: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.among is not None and self.among < self.n:
            raise ConfigError(f"DNS: among is {self.among}, expected at least n, {self.n}: it takes n of so many")

    def choose(self, pool: Pool, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        hardest = pool.distinct().hardest(self.among or self.n)
        return some_of(hardest, self.n, rng), None


def some_of(place_Cn: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """[C, n] of the places of each row that are not -1, evenly, without repeating; all where there are no more."""
    if place_Cn.shape[1] <= n:
        return place_Cn
    lot_Cn = torch.rand(place_Cn.shape, generator=rng, device=rng.device).to(place_Cn.device)
    at_Cn = best(lot_Cn.masked_fill(place_Cn < 0, NEG_INF), n)
    return place_Cn.gather(1, at_Cn.clamp(min=0)).masked_fill(at_Cn < 0, -1)
