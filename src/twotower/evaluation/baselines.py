"""What a model has to beat: the most popular items, and a random order."""

from __future__ import annotations

import torch
from torch import Tensor

from ..records import Ragged
from .inputs import pairs
from .ranks import Ranks


def popularity_vectors(item_count_M: Tensor, n_queries: int) -> tuple[Tensor, Tensor]:
    """Vectors of width 1 whose inner product ranks items by training events, the same for all queries.

    The score is the rank of the count among the distinct counts: a float32 holds it where it may not hold the count.
    """
    place_M = torch.unique(item_count_M, return_inverse=True)[1]
    return torch.ones((1, 1), device=item_count_M.device).expand(n_queries, 1), place_M.float()[:, None]


class RandomOrder:
    """A random order of the items a query has not seen, in closed form: expectations, nothing is drawn."""

    def __init__(self, seen: Ragged | None, *, n_queries: int, item_count_M: Tensor) -> None:
        n_items, device = len(item_count_M), item_count_M.device
        pair_E = pairs(seen, n_items).unique() if seen is not None else torch.empty(0, dtype=torch.int64, device=device)
        self._query_E, self._row_E = pair_E // max(n_items, 1), pair_E % max(n_items, 1)
        self._item_count_M = item_count_M.double()
        self.candidates_Q = n_items - torch.bincount(self._query_E, minlength=n_queries)

    def ranks(self, truth: Ragged, depth: int) -> Ranks:
        """All candidates tied. No relevant item may be a seen one."""
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
        return (self._item_count_M.sum() - seen_Q) / candidates_Q

    def log_unlisted_M(self, k: int) -> Tensor:
        """Log of the probability that an item is in no list of k: ``sum over q of log(1 - k / candidates of q)``."""
        chance_Q = (k / self.candidates_Q.double()).clamp(max=1.0)
        log_miss_Q = torch.log1p(-chance_Q).clamp(min=-1e3)  # -inf where all are listed would not subtract
        log_miss_M = log_miss_Q.sum().expand(len(self._item_count_M)).clone()
        return log_miss_M.index_add_(0, self._row_E, -log_miss_Q[self._query_E])
