"""Items near one another in the graph of queries and items."""

from __future__ import annotations

import torch
from torch import Tensor

from ..records import Ragged, running_sum
from .drawing import one_of

_WALKS = 4
"""Random walks for each neighbour that is wanted."""
_WALKS_AT_A_TIME = 2**22


def two_hop_neighbours(pairs: Ragged, n_items: int, most: int) -> Ragged:
    """[M] lists of the items that share queries with each, rising: a symmetric relation.

    From each item 4 times ``most`` random walks go to a query that has it and on to an item of that query's; the
    ``most`` items they end at most often are near. Items are neighbours where either is near the other. The walks are
    the same for the same data.
    """
    items_of = pairs.to("cpu")
    by_item = items_of.value.sort(stable=True).indices
    count_M = items_of.value.bincount(minlength=n_items)
    queries_of = Ragged(offset=running_sum(count_M), value=items_of.owner()[by_item])
    rng = torch.Generator().manual_seed(0)
    n_walks, keys = most * _WALKS, []
    for item_C in count_M.nonzero()[:, 0].split(max(1, _WALKS_AT_A_TIME // n_walks)):
        from_W = item_C.repeat_interleave(n_walks)
        to_W = one_of(items_of, one_of(queries_of, from_W, rng), rng)
        moved = to_W != from_W
        key, times = (from_W * n_items + to_W)[moved].unique(return_counts=True)
        from_E, to_E = _most_often(key // n_items, key % n_items, times, most)
        keys += [from_E * n_items + to_E, to_E * n_items + from_E]
    key = torch.cat(keys).unique() if keys else torch.zeros(0, dtype=torch.int64)
    offset = running_sum((key // n_items).bincount(minlength=n_items))
    return Ragged(offset=offset, value=key % n_items).to(pairs.value.device)


def _most_often(from_E: Tensor, to_E: Tensor, times_E: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Of the pairs of each item, sorted by it, those met most often; the lower rows of equal ones."""
    order = times_E.argsort(descending=True, stable=True)
    order = order[from_E[order].argsort(stable=True)]
    from_E, to_E = from_E[order], to_E[order]
    first_E = torch.searchsorted(from_E, from_E)
    kept = torch.arange(len(from_E)) - first_E < most
    return from_E[kept], to_E[kept]
