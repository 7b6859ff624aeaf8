"""Fixed laws over the catalogue: what is drawn depends on neither query nor model."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import field, replace

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Facts
from ..records import Batch, Block
from .alias import AliasTable
from .distinct import DistinctTable
from .live import LiveRows
from .room import Room, Sizes
from .sampler import Look, Sampler, require_some


class Law(Sampler):
    """n items of a fixed law: of independent draws with probability q_i each, n q_i are expected.

    Shared by the batch, rows [n]: one matrix product, and each item is encoded once. With ``per_query`` each query has
    its own n, rows [B, n]: the same law, but queries of a batch no longer err together, for B times the items.

    With ``unique`` the n items are distinct, item i among them with probability min(1, c q_i), which is its expected
    count, exactly (``DistinctTable``). No candidate is wasted on a repeat: take it where n is not small beside the
    catalogue, or the law steep.

    A subclass says in ``weights`` what q is in proportion to. Items that are not live in the period that is trained on
    (``Facts.live_M``) have no part in it: they are never drawn, and count 0.

    Raises ConfigError where n is below 1, where no item has weight, and with ``unique`` where fewer than n have.
    """

    density = "exact"

    n: int = field(kw_only=False)
    per_query: bool = False
    unique: bool = False

    table: AliasTable | DistinctTable = field(init=False)
    log_count_M: Tensor = field(init=False)

    def __post_init__(self) -> None:
        require_some(self, self.n)

    @abstractmethod
    def weights(self, facts: Facts) -> Tensor:
        """[M] float64, not negative, in proportion to the probability of one draw if the item may be drawn."""

    def live_weights(self, facts: Facts) -> Tensor:
        """[M] the same, and 0 for items that may not be drawn."""
        return facts.of_live(self.weights(facts))

    def setup(self, facts: Facts) -> None:
        weight_M = self.live_weights(facts)
        q_M = share(self, weight_M)
        if self.unique:
            some = int((weight_M > 0).sum())
            if some < self.n:
                raise ConfigError(
                    f"{type(self).__name__}: n is {self.n} distinct items, but {some} of {len(weight_M)} can be drawn;"
                    f" set n to at most {some}, or unique to false"
                )
            self.table = DistinctTable(weight_M, self.n)
            count_M = self.table.count_M
        else:
            self.table = AliasTable(weight_M)
            count_M = q_M * self.n
        # Follows from the data, so it is not saved: tomorrow's run counts tomorrow's events.
        self.register_buffer("log_count_M", count_M.log().float(), persistent=False)

    def room(self, sizes: Sizes) -> Room:
        shared, own = (0, self.n) if self.per_query else (self.n, 0)
        return Room(shared=shared, own=own, kept=(28 if self.unique else 20) * sizes.n_items)

    def rows(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Item rows of that shape: independent draws, or with ``unique`` lists of n along the last axis."""
        return self.table.draw(shape, rng)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        shape = (len(batch.query_B), self.n) if self.per_query else (self.n,)
        return (Block.of(self.rows(shape, rng).to(batch.item_P.device)),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        return self.log_count_M.index_select(0, row.flatten()).view(row.shape)


def share(sampler: Sampler, weight_M: Tensor) -> Tensor:
    """[M] probability of each item where it is in proportion to a weight; ConfigError where the weights are no law."""
    total = float(weight_M.sum())
    if not 0 < total < math.inf:
        raise ConfigError(
            f"{type(sampler).__name__}: the weights of {len(weight_M)} items sum to {total}, expected a positive"
            " number; check that there are training events and that no setting (alpha) is extreme"
        )
    return weight_M / total


class Uniform(Law):
    """n items of the catalogue, each equally likely: expected count n / M, with ``unique`` too; M counts those that are
    live in the period that is trained on.

    Nothing is kept an item, unless ``unique`` or where some are not live. Choose it first: it is what evens out the
    popular items that a batch brings, and what a softmax over the catalogue is estimated with.
    """

    live: LiveRows = field(init=False)

    def weights(self, facts: Facts) -> Tensor:
        return torch.ones(facts.n_items, dtype=torch.float64, device=facts.item_count_M.device)

    def setup(self, facts: Facts) -> None:
        self.live = LiveRows(facts)
        if self.unique:
            super().setup(facts)

    def room(self, sizes: Sizes) -> Room:
        room = super().room(sizes)
        return (room if self.unique else replace(room, kept=0)) + LiveRows.room(sizes)

    def rows(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        if self.unique:
            return super().rows(shape, rng)
        return self.live.draw(shape, rng)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        return self.live.only(torch.full(row.shape, math.log(self.n / self.live.n), device=row.device), row)


class Catalogue(Sampler):
    """Every item of the catalogue that is live in the period that is trained on, once, nothing left to chance: expected
    count 1. A softmax over it is the full softmax."""

    density = "exact"

    live: LiveRows = field(init=False)

    def setup(self, facts: Facts) -> None:
        self.live = LiveRows(facts)

    def room(self, sizes: Sizes) -> Room:
        return Room(shared=sizes.n_items) + LiveRows.room(sizes)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        return (Block.of(self.live.rows(batch.item_P.device)),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        return self.live.only(torch.zeros(row.shape, device=row.device), row)


class Popularity(Law):
    """n items, each with probability ∝ (training events + smoothing)^alpha.

    An item without training event is never drawn (count 0, its log -inf), whatever alpha, unless ``smoothing`` gives it
    a share. Choose it where popular items are to be told apart: they make up most of a softmax, and of its error.

    Raises ConfigError where smoothing is negative.

    Source: Mikolov et al., Distributed representations of words and phrases (NIPS 2013), section 2.2, alpha 3/4.
    """

    alpha: float = 0.75
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.smoothing < math.inf:
            raise ConfigError(f"Popularity: smoothing is {self.smoothing}, expected 0 or more events")

    def weights(self, facts: Facts) -> Tensor:
        return power(facts.item_count_M.double() + self.smoothing, self.alpha)


def power(event: Tensor, alpha: float) -> Tensor:
    """``event ** alpha``, and 0 for no event whatever alpha."""
    return torch.where(event > 0, event**alpha, 0.0)


class LogPopularity(Law):
    """n items, each with probability ∝ log(1 + training events).

    Flatter at the head than any power: a thousand times the events make an item ten times, not 178 times (alpha 3/4),
    as likely. An item without training event is never drawn. Choose it where ``Popularity`` draws little but the head.

    Source: common practice in candidate samplers of recommenders (TorchRec, torch-rechub).
    """

    def weights(self, facts: Facts) -> Tensor:
        return facts.item_count_M.double().log1p()


class LogUniform(Law):
    """n items by a Zipf law of their rank, items without training event included.

        P(r) = (log(r + 2) - log(r + 1)) / log(M + 1),    r = 0 the item with most training events, M the live ones

    Items of equal events rank by row. Choose it where events are few or come from elsewhere, so that counts say less
    than their order, or to have what others have: with ``unique`` it is TensorFlow's candidate sampler, but for counts
    that are exact where that has an estimate.

    Source: TensorFlow, ``log_uniform_candidate_sampler``; the law follows from rounding down exp(u log(M + 1)) - 1.
    """

    def weights(self, facts: Facts) -> Tensor:
        by_rank = facts.of_live(facts.item_count_M.double(), -1.0).argsort(descending=True, stable=True)
        rank_M = torch.empty(len(by_rank), dtype=torch.float64, device=by_rank.device)
        rank_M[by_rank] = torch.arange(len(by_rank), dtype=torch.float64, device=by_rank.device)
        return torch.log1p(1 / (rank_M + 1))


class TwoBucket(Law):
    """Popularity where an item has enough events to tell, uniform below.

        A_high = {i: f_i >= threshold}    P(i) = f_i^alpha / sum of f^alpha over all items
        A_low  = the others               P(i) = P_low / |A_low|,  P_low = sum of f^alpha over A_low / that over all

    f counts training events. So an item of few events, or none, is as likely as another. Threshold 0 gives
    ``Popularity``, a threshold above all counts ``Uniform``. Choose it for a long tail whose counts are chance.

    Raises ConfigError where threshold is negative.

    Source: Fei et al., Sample optimization for display advertising (CIKM 2020), weighted random negatives, after
    a public re-implementation; there it saves most of a sampling table.
    """

    threshold: float
    alpha: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.threshold >= 0:
            raise ConfigError(f"TwoBucket: threshold is {self.threshold}, expected 0 or more training events")

    def weights(self, facts: Facts) -> Tensor:
        event_M = facts.item_count_M.double()
        weight_M = power(event_M, self.alpha)
        low_M = event_M < self.threshold
        low_live_M = facts.of_live(low_M, False)
        return torch.where(low_M, weight_M[low_live_M].sum() / low_live_M.sum().clamp(min=1), weight_M)
