"""Candidates out of a list of each query's own, which the data brings."""

from __future__ import annotations

import math
from dataclasses import field

import torch
from torch import Tensor

from ..data.thinning import keep_probability
from ..errors import ConfigError
from ..part import Facts
from ..records import NEG_INF, Batch, Block, find, running_sum, spans
from .drawing import bounds, by_weight
from .room import Room, Sizes
from .sampler import Density, Look, Sampler, require_some
from .scores import pair_scores


class Impressions(Sampler):
    """n items for each query of those that it was shown in training and never took, drawn with replacement.

        law of an item i of the query's list:  P(i) ∝ times_i^alpha * k_i,  expected count n P(i)
        k_i = min(1, (sqrt(f_i / t) + 1) t / f_i) with ``thin = t``, else 1

    times_i is how often the query was shown the item: alpha 0, the default, draws distinct items alike, alpha 1 by
    impressions. f_i is the item's share of all the impressions in lists; thinning them spares items that are shown so
    often that their being passed over says little of them ("real-negative subsampling"). The schema has to say what was
    taken (``schema.interactions.taken``).

    ``skip_above`` keeps the impressions that the query looked at for sure, because it took something further down: of
    the same moment where that has several events (a list in the order of the file), else anything later (a feed).
    ``data.batches.passed_over`` has the rule.

    With ``reliable`` below 1 only that share of each query's list, rounded up, can be drawn that the current model
    scores lowest: what it scores high may be liked, though it was not taken once. Then there is no density.

    Rows [B, n]. A query without a list, or without an id, gets empty places. A draw takes a bisection; with
    ``reliable`` below 1 all items in the lists of the batch's queries are encoded and scored at each step.

    When to choose it: in a small share (a tenth of the candidates or less) beside ``InBatch`` or ``Uniform``, for data
    that logs what was shown. Items that are shown are those that some recommender held for good: alone they teach
    nothing about the rest of the catalogue.

    Raises ConfigError where a setting is out of range, and where no query has an impression left.

    Source: Fei et al., Sample optimization for display advertising (CIKM 2020), real-negative subsampling and the
    refinement of what was exposed and not clicked by learning from positive and unlabelled data; k_i as in word2vec.c
    (Mikolov et al. 2013). Skipping above: Joachims, Optimizing search engines using clickthrough data (KDD 2002).
    """

    leaves_out_positives = True
    per_query_law = True

    n: int = field(kw_only=False)
    alpha: float = 0.0
    skip_above: bool = False
    thin: float | None = None
    reliable: float = 1.0

    n_items: int = field(init=False)
    offset_Q: Tensor = field(init=False)
    """[Q + 1] where the list of each query starts, L items in all."""
    key_L: Tensor = field(init=False)
    """query * n_items + item, rising."""
    share_L: Tensor = field(init=False)
    """P of each item in its list, float64."""
    until_L: Tensor = field(init=False)
    """[L + 1] summed shares before each place, float64."""

    def __post_init__(self) -> None:
        require_some(self, self.n)
        if self.thin is not None and not 0 < self.thin < math.inf:
            raise ConfigError(f"Impressions: thin is {self.thin}, expected a positive share, such as 1e-3, or none")
        if not 0 < self.reliable <= 1:
            raise ConfigError(f"Impressions: reliable is {self.reliable}, expected a share above 0, up to 1 for all")

    @property
    def density(self) -> Density:  # type: ignore[override]
        """The law is known until the model has a say in it."""
        return "exact" if self.reliable == 1 else "none"

    def setup(self, facts: Facts) -> None:
        lists = facts.passed_over if self.skip_above else facts.shown
        if not len(lists.value):
            raise ConfigError(
                "Impressions: no query has an impression that it did not take"
                + (" and that lies above one it took" if self.skip_above else "")
                + ": name schema.interactions.taken, the column that tells what was taken, and ingest again, or choose "
                "another sampler"
            )
        times_L = torch.ones(len(lists.value)) if lists.weight is None else lists.weight
        weight_L = times_L.double() ** self.alpha
        if self.thin is not None:
            times_M = torch.zeros(facts.n_items, dtype=torch.float64).index_add_(0, lists.value, times_L.double())
            weight_L *= keep_probability(times_M / times_M.sum(), t=self.thin)[lists.value]
        owner_L = lists.owner()
        total_Q = torch.zeros(len(lists), dtype=torch.float64).index_add_(0, owner_L, weight_L)
        share_L = weight_L / total_Q[owner_L]
        self.n_items = facts.n_items
        # All of it follows from the data, so it is not saved.
        self.register_buffer("offset_Q", lists.offset, persistent=False)
        self.register_buffer("key_L", owner_L * facts.n_items + lists.value, persistent=False)
        self.register_buffer("share_L", share_L, persistent=False)
        self.register_buffer("until_L", running_sum(share_L), persistent=False)

    def room(self, sizes: Sizes) -> Room:
        return Room(own=self.n, kept=8 * (sizes.n_queries + 1) + 24 * sizes.n_shown + 8)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        start_B, stop_B = bounds(self.offset_Q, batch.query_B)
        if self.reliable == 1:
            place_BK = by_weight(self.until_L, start_B, stop_B, self.n, rng)
        else:
            place_BK = self._drawn_of_lowest(start_B, stop_B, look, rng)
        row_BK = self.key_L[place_BK.clamp(min=0)] % self.n_items
        return (Block.chosen(row_BK.masked_fill(place_BK < 0, -1)),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        query_B1 = batch.query_B[:, None]
        key = query_B1 * self.n_items + row
        at, is_listed = find(self.key_L, key)
        log_count = (self.n * self.share_L[at]).log().float()
        return log_count.masked_fill(~is_listed | (query_B1 < 0), NEG_INF)

    def _drawn_of_lowest(self, start_B: Tensor, stop_B: Tensor, look: Look, rng: torch.Generator) -> Tensor:
        """[B, n] places among the items of each list that the model scores lowest."""
        offset, place_T = spans(start_B, stop_B - start_B)
        owner_T = torch.repeat_interleave(torch.arange(len(start_B), device=start_B.device), stop_B - start_B)
        score_T = pair_scores(owner_T, self.key_L[place_T] % self.n_items, look)
        order_T = score_T.argsort(stable=True)
        order_T = order_T[owner_T[order_T].argsort(stable=True)]  # by query, the lowest score first
        place_T = place_T[order_T]
        n_open_B = ((stop_B - start_B) * self.reliable - 1e-9).ceil().long()  # 0.55 * 20 is 11, not above it
        at_BK = by_weight(running_sum(self.share_L[place_T]), offset[:-1], offset[:-1] + n_open_B, self.n, rng)
        if not len(place_T):
            return at_BK
        return place_T[at_BK.clamp(min=0)].masked_fill(at_BK < 0, -1)
