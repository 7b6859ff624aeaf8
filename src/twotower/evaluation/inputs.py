"""What an evaluation is given, checked: vectors of both sides and lists of item rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError
from ..records import Ragged

LAST_ROW = 2**31 - 1
"""The greatest item row that can be ranked."""


def check_vectors(query_QD: Tensor, item_MD: Tensor) -> None:
    """Raise a ``DataError`` unless both sides are finite, of one width, and their inner products fit a float32."""
    width = query_QD.shape[1]
    if width != item_MD.shape[1]:
        raise DataError(f"query vectors are {width} wide, item vectors {item_MD.shape[1]}, expected one width")
    if len(item_MD) > LAST_ROW:
        raise DataError(f"the catalogue has {len(item_MD)} items, expected at most {LAST_ROW}")
    bound = _largest("query", query_QD) * _largest("item", item_MD) * width
    if bound > torch.finfo(torch.float32).max:
        raise DataError(
            f"scores may be as large as {bound:.1e}, expected what a float32 holds, at most 3.4e+38; "
            "normalise the vectors or train with a lower learning rate"
        )


def check_lists(name: str, lists: Ragged, *, n_queries: int, n_items: int, distinct: bool = False) -> None:
    """Raise a ``DataError`` unless there is one list a query, of rows of the catalogue (each once, if ``distinct``)."""
    if len(lists) != n_queries or int(lists.offset[-1]) != len(lists.value):
        raise DataError(
            f"{name}: found {len(lists)} lists that end at {int(lists.offset[-1])} of {len(lists.value)} rows, "
            f"expected one list for each of the {n_queries} queries and no row beyond the last"
        )
    if len(lists.value) == 0:
        return
    low, high = (int(end) for end in torch.aminmax(lists.value))
    if low < 0 or high >= n_items:
        bad = int(((lists.value < 0) | (lists.value >= n_items)).nonzero()[0])
        raise DataError(
            f"{name}: row {int(lists.value[bad])} of query {int(lists.owner()[bad])} is not in the catalogue, expected "
            f"0 to {n_items - 1}; leave out items that the catalogue does not hold"
        )
    if distinct:
        pair_T = pairs(lists, n_items).sort().values
        twice = (pair_T[1:] == pair_T[:-1]).nonzero()
        if len(twice):
            query, row = divmod(int(pair_T[int(twice[0])]), n_items)
            raise DataError(f"{name}: row {row} is given twice to query {query}, expected distinct rows in a list")


def check_weights(name: str, lists: Ragged) -> None:
    """Raise a ``DataError`` unless the rows have no weights, or each a finite one that is not negative."""
    if lists.weight is None:
        return
    if lists.weight.shape != lists.value.shape:
        raise DataError(f"{name}: found {len(lists.weight)} weights of {len(lists.value)} rows, expected one each")
    bad_T = ~torch.isfinite(lists.weight) | (lists.weight < 0)
    if bool(bad_T.any()):
        bad = int(bad_T.nonzero()[0])
        raise DataError(
            f"{name}: the weight of row {int(lists.value[bad])} of query {int(lists.owner()[bad])} is "
            f"{float(lists.weight[bad])}, expected a finite number, 0 or more"
        )


def pairs(lists: Ragged, n_items: int) -> Tensor:
    """One number for each (list, row): ``list * n_items + row``."""
    return lists.owner() * n_items + lists.value


def _largest(side: str, vector_ND: Tensor) -> float:
    """The largest size of a number in the vectors."""
    if vector_ND.numel() == 0:
        return 0.0
    low, high = (float(end) for end in torch.aminmax(vector_ND))
    if low - low != 0.0 or high - high != 0.0:  # nan or infinite
        bad_N = ~torch.isfinite(vector_ND).all(1)
        raise DataError(
            f"{side} vectors: {int(bad_N.sum())} of {len(vector_ND)} are not finite, the first is row "
            f"{int(bad_N.nonzero()[0])}, expected no nan and no infinity; the training has diverged, or a feature is "
            "not finite"
        )
    return max(-low, high)
