"""What a model has to beat: the most popular items, and a random order."""

from __future__ import annotations

import torch
from torch import Tensor

from ..records import LiveAt, Ragged, running_sum
from .inputs import pairs
from .ranks import Ranks

_EARLIEST = torch.iinfo(torch.int64).min + 1
"""The first moment that has another before it."""


def popularity_vectors(item_count_M: Tensor, n_queries: int) -> tuple[Tensor, Tensor]:
    """Vectors of width 1 whose inner product ranks items by training events, the same for all queries.

    The score is the rank of the count among the distinct counts: a float32 holds it where it may not hold the count.
    """
    place_M = torch.unique(item_count_M, return_inverse=True)[1]
    return torch.ones((1, 1), device=item_count_M.device).expand(n_queries, 1), place_M.float()[:, None]


class RandomOrder:
    """A random order of the items that are live for a query and that it has not seen, in closed form: expectations,
    nothing is drawn."""

    def __init__(
        self, seen: Ragged | None, *, n_queries: int, item_count_M: Tensor, live: LiveAt | None = None
    ) -> None:
        n_items, device = len(item_count_M), item_count_M.device
        pair_E = pairs(seen, n_items).unique() if seen is not None else torch.empty(0, dtype=torch.int64, device=device)
        query_E, row_E = pair_E // max(n_items, 1), pair_E % max(n_items, 1)
        if live is not None and len(pair_E):
            is_live_E = ~live.take(query_E).gone(row_E[:, None])[:, 0]
            query_E, row_E = query_E[is_live_E], row_E[is_live_E]
        self._query_E, self._row_E, self._live = query_E, row_E, live
        self._item_count_M = item_count_M.double()
        live_Q = _sum_of_live(live, torch.ones(n_items, dtype=torch.int64, device=device), n_queries)
        self.candidates_Q = live_Q - torch.bincount(self._query_E, minlength=n_queries)

    def ranks(self, truth: Ragged, depth: int) -> Ranks:
        """All candidates tied. No relevant item may be a seen one, or one that is not live."""
        owner_T = truth.owner()
        return Ranks.of(
            owner_T,
            torch.zeros_like(owner_T),
            self.candidates_Q[owner_T],
            n_queries=len(self.candidates_Q),
            depth=depth,
            weight_T=truth.weight,
        )

    def popularity_Q(self) -> Tensor:
        """Expected training events of an item listed to each query: the mean over its candidates."""
        candidates_Q = self.candidates_Q.double()
        seen_Q = torch.zeros_like(candidates_Q).index_add_(0, self._query_E, self._item_count_M[self._row_E])
        return (_sum_of_live(self._live, self._item_count_M, len(candidates_Q)) - seen_Q) / candidates_Q

    def log_unlisted_M(self, k: int) -> Tensor:
        """Log of the probability that an item is in no list of k: ``sum over q of log(1 - k / candidates of q)``."""
        chance_Q = (k / self.candidates_Q.double()).clamp(max=1.0)
        log_miss_Q = torch.log1p(-chance_Q).clamp(min=-1e3)  # -inf where all are listed would not subtract
        log_miss_M = _sum_where_live(self._live, log_miss_Q, len(self._item_count_M))
        return log_miss_M.index_add_(0, self._row_E, -log_miss_Q[self._query_E])


def _sum_of_live(live: LiveAt | None, value_M: Tensor, n_queries: int) -> Tensor:
    """[Q] sum over the items that are live for each query: those that have started less those that have ended."""
    if live is None:
        return value_M.sum().expand(n_queries)
    started_Q, ended_Q = (
        _sum_upto(moment_M, value_M, moment_Q)
        for moment_M, moment_Q in (
            (live.lives.since_us_M, live.last_us_n),
            (live.lives.until_us_M, live.first_us_n),
        )
    )
    return started_Q - ended_Q


def _sum_where_live(live: LiveAt | None, value_Q: Tensor, n_items: int) -> Tensor:
    """[M] sum over the queries that each item is live for: those that have not ended before it starts, less those that
    start once it has ended."""
    if live is None:
        return value_Q.sum().expand(n_items).clone()
    before_M, unended_M = (
        _sum_upto(moment_Q, value_Q, moment_M - 1)  # strictly before
        for moment_Q, moment_M in (
            (live.last_us_n, live.lives.since_us_M.clamp(min=_EARLIEST)),
            (live.first_us_n, live.lives.until_us_M),
        )
    )
    return unended_M - before_M


def _sum_upto(moment_n: Tensor, value_n: Tensor, until_m: Tensor) -> Tensor:
    """[m] sum of the values at moments up to each of some others."""
    rising_n, order_n = moment_n.sort()
    return running_sum(value_n[order_n])[torch.searchsorted(rising_n, until_m.contiguous(), right=True)]
