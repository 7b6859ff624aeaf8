"""Hard items that the model is unsure of: those it always ranks high are probably positives nobody recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..part import Changes, Facts
from ..records import NEG_INF, Batch, Block, Encoded
from .drawing import best, gumbel, picked, uniform
from .live import LiveRows
from .room import Room, Sizes
from .sampler import Look, Sampler, require_some
from .scores import positive_scores, scores

_VISITS = 5
"""A standard deviation is that of so many last visits."""


@dataclass(frozen=True, kw_only=True)
class _Visit:
    """What a step leaves in the buffers: of V distinct queries that have a row."""

    query_V: Tensor
    pool_VP: Tensor
    history_VPT: Tensor
    memory_VS: Tensor
    visits_V: Tensor


class SRNS(Sampler):
    """Of a query's memory, the n items with the largest P_j + alpha_t std(P_j): high scores that go up and down.

        P_j     = sigmoid(s_j - s_y)                                    s_y the mean score of the query's positives
        std     = of P_j at the last 5 visits of the query, this one included
        alpha_t = alpha min(1, epoch / warm_up_epochs)

    A query has a pool of random items that it watches, and a memory of some places of it. A visit records P of the
    whole pool, chooses from the memory, and then renews the memory: of the old one and ``fresh`` other places of the
    pool, evenly drawn, ``memory`` stay, drawn without replacement by softmax(s_j / temperature). Then ``turnover``
    places of the pool, in turn, get new items, whose history starts anew: an item is watched for pool / turnover
    visits. A pool of at least M places is the whole catalogue and has no turnover.

    Where a query comes several times in a batch, all choose from the same memory, and the first renews it. Queries
    without a row choose each time from a memory of a new pool: plain DNS.

    It costs B times ``pool`` scores a step, and it has state for each of Q queries, saved with a checkpoint:
    4 bytes a place of the pool for its item and 10 for its history, 4 bytes a place of the memory; 1.8 KB a query by
    default, 1.8 GB for a million.

    Choose it where many positives are unrecorded and queries come often (tens of events each): DNS keeps hitting false
    negatives there. A query that comes twice has no standard deviation to speak of, and SRNS is DNS at a higher price.

    Raises ConfigError where queries have no id, and where a size is not positive or the memory does not fit the pool.

    Source: Ding et al., Simplify and robustify negative sampling for implicit collaborative filtering (NeurIPS 2020),
    algorithm 1; as there alpha 5, 50 epochs, memory 8, fresh 64 of MovieLens-1M (whose temperature
    is 10). There pools of 3000 are scored once an epoch and are all replaced after it.
    """

    density = "none"

    n: int = 1
    pool: int = 128
    memory: int = 8
    fresh: int = 64
    turnover: int = 8
    alpha: float = 5.0
    warm_up_epochs: float = 50.0
    temperature: float = 1.0

    pool_QP: Tensor = field(init=False)
    """Item rows; -1 before the first visit, and where an item went."""
    history_QPT: Tensor = field(init=False)
    """P at the last visits, in turn; nan before."""
    memory_QS: Tensor = field(init=False)
    """Places of the pool; -1 for none."""
    visits_Q: Tensor = field(init=False)

    def __post_init__(self) -> None:
        require_some(self, self.n)
        for name, least in (("memory", self.n), ("pool", self.memory), ("fresh", 0), ("turnover", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"SRNS: {name} is {getattr(self, name)}, expected at least {least}")
        if self.fresh > self.pool - self.memory:
            raise ConfigError(
                f"SRNS: fresh is {self.fresh}, expected at most pool - memory, {self.pool - self.memory}: it comes "
                "from the rest of the pool"
            )
        if self.turnover > self.pool:
            raise ConfigError(f"SRNS: turnover is {self.turnover}, expected at most pool, {self.pool}")
        if not 0 <= self.alpha < math.inf:
            raise ConfigError(f"SRNS: alpha is {self.alpha}, expected 0 or more")
        for name in ("warm_up_epochs", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"SRNS: {name} is {getattr(self, name)}, expected a positive number")

    def setup(self, facts: Facts) -> None:
        n_queries = len(facts.query_count_Q)
        if not n_queries:
            raise ConfigError("negatives: SRNS has a memory for each query, but queries have no id: name one")
        self.live, self.steps_per_epoch = LiveRows(facts), facts.steps_per_epoch
        places = min(self.pool, facts.n_items)
        self.whole = places == facts.n_items
        history = torch.full((n_queries, places, _VISITS), float("nan"), dtype=torch.float16)
        memory = torch.full((n_queries, min(self.memory, places)), -1, dtype=torch.int32)
        self.register_buffer("pool_QP", torch.full((n_queries, places), -1, dtype=torch.int32))
        self.register_buffer("history_QPT", history)
        self.register_buffer("memory_QS", memory)
        self.register_buffer("visits_Q", torch.zeros(n_queries, dtype=torch.int32))
        self.visit: _Visit | None = None

    def carry(self, saved: Mapping[str, Tensor], changes: Changes) -> None:
        """A place of a pool whose item went is empty, and so are those that a larger catalogue adds: the query's next
        visit puts new items there."""
        more_places = self.pool_QP.shape[1] - saved["pool_QP"].shape[1]
        more_memory = self.memory_QS.shape[1] - saved["memory_QS"].shape[1]
        padded = {
            "pool_QP": F.pad(saved["pool_QP"], (0, more_places), value=-1),
            "history_QPT": F.pad(saved["history_QPT"], (0, 0, 0, more_places), value=math.nan),
            "memory_QS": F.pad(saved["memory_QS"], (0, more_memory), value=-1),
        }
        super().carry({**saved, **padded}, changes)
        self.pool_QP.copy_(changes.still(self.pool_QP))
        self.history_QPT[self.pool_QP < 0] = math.nan

    def room(self, sizes: Sizes) -> Room:
        places = min(self.pool, sizes.n_items)
        of_query = places * (4 + 2 * _VISITS) + min(self.memory, places) * 4 + 4
        return Room(own=self.n, kept=of_query * sizes.n_queries) + LiveRows.room(sizes)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        first_B = batch.first_lines()
        pool_BP, history_BPT, memory_BS, visits_B = self._recalled(batch.query_B, first_B, rng)
        score_BP = scores(look.query_BD, pool_BP, look)
        p_BP = torch.sigmoid(score_BP - positive_scores(batch, look)[:, None])
        at_B = (visits_B % _VISITS)[:, None, None].expand(-1, p_BP.shape[1], 1)
        history_BPT = history_BPT.scatter(2, at_B, p_BP[:, :, None].to(history_BPT.dtype))
        known_BP = batch.closed(pool_BP) | self.live.gone(pool_BP)
        renewed_BS = self._renewed(memory_BS, score_BP.masked_fill(known_BP, NEG_INF), rng)
        kept = ((first_B == torch.arange(len(first_B), device=first_B.device)) & (batch.query_B >= 0)).nonzero()[:, 0]
        self.visit = _Visit(  # the buffers are as they were until the step is observed
            query_V=batch.query_B[kept],
            pool_VP=pool_BP[kept],
            history_VPT=history_BPT[kept],
            memory_VS=renewed_BS[kept],
            visits_V=visits_B[kept] + 1,
        )
        place_BS = memory_BS.clamp(min=0)
        value_BS = p_BP.gather(1, place_BS) + self._alpha(look) * _deviation(history_BPT, place_BS)
        row_BS = pool_BP.gather(1, place_BS)
        closed_BS = (memory_BS < 0) | known_BP.gather(1, place_BS) | _again(row_BS)
        at_Bn = best(value_BS.masked_fill(closed_BS, NEG_INF), self.n)
        return (Block.chosen(picked(row_BS, at_Bn)),)

    def observe(self, blocks: tuple[Block, ...], encoded: Encoded, look: Look) -> Tensor | None:
        visit = self.visit
        if visit is not None:
            self.pool_QP[visit.query_V] = visit.pool_VP.int()
            self.history_QPT[visit.query_V] = visit.history_VPT
            self.memory_QS[visit.query_V] = visit.memory_VS.int()
            self.visits_Q[visit.query_V] = visit.visits_V.int()
            self.visit = None
        return None

    def _recalled(
        self, query_B: Tensor, first_B: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pool [B, P], history [B, P, T], memory [B, S] and visits [B] of each query: those of its first line, new ones
        for a query that has none, and places whose turn it is with new items."""
        n_places, size = self.pool_QP.shape[1], self.memory_QS.shape[1]
        device, shape = query_B.device, (len(query_B), n_places)
        place_P = torch.arange(n_places, device=device)
        row_BP = place_P.expand(shape) if self.whole else self.live.draw(shape, rng).to(device)[first_B]
        memory_BS = uniform(shape, rng, device)[first_B].topk(size, 1).indices
        at_B = query_B.clamp(min=0)
        visits_B = self.visits_Q[at_B].long().masked_fill(query_B < 0, 0)
        is_new_B1 = (visits_B == 0)[:, None]
        turnover = 0 if self.whole else self.turnover
        pool_BP = self.pool_QP[at_B].long()
        is_turn_BP = (place_P - visits_B[:, None] * turnover) % n_places < turnover
        is_turned_BP = is_new_B1 | is_turn_BP | (pool_BP < 0)
        return (
            torch.where(is_turned_BP, row_BP, pool_BP),
            self.history_QPT[at_B].masked_fill(is_turned_BP[:, :, None], float("nan")),
            torch.where(is_new_B1, memory_BS, self.memory_QS[at_B].long()),
            visits_B,
        )

    def _renewed(self, memory_BS: Tensor, score_BP: Tensor, rng: torch.Generator) -> Tensor:
        """[B, S] places of the next memory."""
        remembered_BP = _marked(memory_BS, score_BP.shape[1])
        lot_BP = uniform(score_BP.shape, rng, score_BP.device)
        fresh = min(self.fresh, score_BP.shape[1] - memory_BS.shape[1])
        fresh_BF = best(lot_BP.masked_fill(remembered_BP, NEG_INF), fresh)
        union_BP = remembered_BP | _marked(fresh_BF, score_BP.shape[1])
        turn_BP = score_BP / self.temperature + gumbel(score_BP.shape, rng, score_BP.device)
        return best(turn_BP.masked_fill(~union_BP, NEG_INF), memory_BS.shape[1])

    def _alpha(self, look: Look) -> float:
        epoch = (look.step - 1) / self.steps_per_epoch
        return self.alpha * min(1.0, epoch / self.warm_up_epochs)


def _deviation(history_BPT: Tensor, place_BS: Tensor) -> Tensor:
    """[B, S] standard deviation of what is recorded of some places."""
    p_BST = history_BPT.gather(1, place_BS[:, :, None].expand(-1, -1, _VISITS)).float()
    mean_BS1 = p_BST.nanmean(2, keepdim=True)
    return (p_BST - mean_BS1).square().nanmean(2).sqrt()


def _marked(place_BS: Tensor, n_places: int) -> Tensor:
    """[B, P] whether a place is among those given; -1 is none."""
    mark = torch.zeros(len(place_BS), n_places + 1, dtype=torch.bool, device=place_BS.device)
    return mark.scatter_(1, place_BS.where(place_BS >= 0, n_places), True)[:, :-1]


def _again(row_BS: Tensor) -> Tensor:
    """[B, S] whether the row was there before among those of the query."""
    return (row_BS[:, :, None] == row_BS[:, None, :]).tril(-1).any(2)
