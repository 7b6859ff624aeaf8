"""Exact top-k by inner product over the whole catalogue, and the ranks of relevant items, in bounded memory.

Scores are made a tile of queries times items at a time, in one buffer that is used again; the matrix of all queries and
items never exists. Ties go to the lower row, and any tiling gives the same lists. (The last bit of a score may depend
on the shape of the multiplication it comes from; scores that are exact in float32 do not change at all.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..records import NEG_INF, LiveAt, Ragged
from .inputs import check_lists, check_vectors
from .ranks import Ranks
from .selection import GROUP, Best, bytes_per_query, rows_of, scores_of

# A tile as wide as the catalogue selects once a query; more scores than this no longer fit a core's share of the cache
# (measured on one core: 41k and 1M items of 64 numbers, k of 20 and 100).
_MOST_COLUMNS = 49_152
_MOST_SCORES = 4 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The best k candidates of each query, best first."""

    row_Qk: Tensor
    """Item rows, int64; -1 where fewer than k candidates are left."""
    score_Qk: Tensor
    """Inner products, float32; -inf where the row is -1."""


def top_k(
    query_QD: Tensor,
    item_MD: Tensor,
    k: int,
    *,
    exclude: Ragged | None = None,
    live: LiveAt | None = None,
    memory_mb: float = 64.0,
    check: bool = True,
) -> TopK:
    """The k items with the greatest inner product with each query, without those of its list in ``exclude``, and of
    those that are ``live`` for it where that is given.

    Vectors may be of any float type; they are multiplied in float32 on the device of the queries. ``item_MD`` may be a
    memory-mapped file: it is read in slices. Rows in ``exclude`` may be in any order and repeat. ``memory_mb`` bounds
    the working memory in MiB, vectors, lists and result not counted; it need not be large to be fast.
    ``check=False`` is for one query at a time against vectors that were checked before: to look at all of them takes
    as long as to search them.

    Raises:
        DataError: vectors that are not finite or not of one width, rows outside the catalogue, not one list a query.
    """
    if check:
        check_vectors(query_QD, item_MD)
    found = _scan(query_QD, item_MD, k, exclude=exclude, live=live, truth=None, memory_mb=memory_mb)
    return TopK(row_Qk=rows_of(found.key_QL), score_Qk=scores_of(found.key_QL))


def top_k_and_ranks(
    query_QD: Tensor,
    item_MD: Tensor,
    k: int,
    truth: Ragged,
    *,
    exclude: Ragged | None = None,
    live: LiveAt | None = None,
    memory_mb: float = 64.0,
) -> tuple[TopK, Ranks]:
    """``top_k`` and, from the same scores, where the relevant items of each query stand down to position k.

    ``truth`` holds the relevant rows, distinct inside a list. One that is also excluded, or not live, can't be reached:
    its rank is k or more.

    Raises:
        DataError: as ``top_k``; a relevant row given twice to a query.
    """
    check_vectors(query_QD, item_MD)
    check_lists("truth", truth, n_queries=len(query_QD), n_items=len(item_MD), distinct=True)
    # One place more than asked for tells whether the items that tie with the k-th go on after it.
    found = _scan(query_QD, item_MD, k + 1, exclude=exclude, live=live, truth=truth, memory_mb=memory_mb)
    score_QL = scores_of(found.key_QL)
    top = TopK(row_Qk=rows_of(found.key_QL[:, :k]), score_Qk=score_QL[:, :k])
    return top, _ranks(truth, found.truth_score_T, score_QL, found.tied_Q)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What one pass over the catalogue finds."""

    key_QL: Tensor
    """The best L candidates of each query as sort keys, best first."""
    tied_Q: Tensor
    """Candidates with the score of the last place where they go on after it, 0 elsewhere."""
    truth_score_T: Tensor
    """Scores of the relevant items as the pass saw them; -inf: excluded."""


class _PairsByItem:
    """Lists of item rows of a tile of queries, looked up by a range of items."""

    def __init__(self, lists: Ragged) -> None:
        self._row, self._order = lists.value.sort()
        self._query = lists.owner()[self._order]

    def within(self, first: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """(query, column counted from ``first``, place in the lists) of the pairs with ``first <= row < stop``."""
        edge = torch.tensor([first, stop], device=self._row.device)
        low, high = torch.searchsorted(self._row, edge).tolist()
        return self._query[low:high], self._row[low:high] - first, self._order[low:high]


def _scan(
    query_QD: Tensor,
    item_MD: Tensor,
    keep: int,
    *,
    exclude: Ragged | None,
    live: LiveAt | None,
    truth: Ragged | None,
    memory_mb: float,
) -> _Found:
    """One pass over all tiles of queries and items."""
    n_queries, n_items, device = len(query_QD), len(item_MD), query_QD.device
    if keep < 1:
        raise ValueError(f"k is {keep}, expected at least 1")
    if exclude is not None:
        check_lists("exclude", exclude, n_queries=n_queries, n_items=n_items)
    found = _Found(
        key_QL=torch.empty((n_queries, keep), dtype=torch.int64, device=device),
        tied_Q=torch.empty(n_queries, dtype=torch.int64, device=device),
        truth_score_T=torch.empty(0 if truth is None else len(truth.value), device=device),
    )
    height, width = _tile_shape(n_queries, n_items, keep, memory_mb)
    buffer = torch.empty(height * width, device=device)
    for start in range(0, n_queries, height):
        stop = min(start + height, n_queries)
        best = Best(stop - start, keep, device)
        excluded = None if exclude is None else _PairsByItem(exclude.slice(start, stop))
        relevant = None if truth is None else _PairsByItem(truth.slice(start, stop))
        first_truth = 0 if truth is None else int(truth.offset[start])
        for first, last, score_qC in _tiles(query_QD[start:stop].float(), item_MD, width, buffer):
            if excluded is not None:
                query_e, column_e, _ = excluded.within(first, last)
                score_qC[query_e, column_e] = NEG_INF
            if live is not None:
                _take_out_gone(score_qC, live.slice(start, stop), first, last)
            if relevant is not None:
                query_t, column_t, place_t = relevant.within(first, last)
                found.truth_score_T[first_truth + place_t] = score_qC[query_t, column_t]
            best.add(score_qC, first, count_ties=truth is not None)
        found.key_QL[start:stop] = best.key_qL
        found.tied_Q[start:stop] = best.tied_q
    return found


def _take_out_gone(score_qC: Tensor, live: LiveAt, first: int, last: int) -> None:
    """Items ``first`` to ``last`` that are not live for a query get -inf there. Only those that some query lacks are
    looked at query by query."""
    row_c = torch.arange(first, last, device=score_qC.device)
    column_s = live.ever_gone(row_c).nonzero()[:, 0]
    for column in column_s.split(max(1, score_qC.shape[1] // 16)):
        score_qC[:, column] = score_qC[:, column].masked_fill_(live.gone(row_c[column]), NEG_INF)


def _tiles(query_qD: Tensor, item_MD: Tensor, width: int, buffer: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """(first item, item after the last, scores [q, C]), all in one buffer; C is full groups, padded with -inf."""
    for first in range(0, len(item_MD), width):
        item_cD = item_MD[first : first + width].to(query_qD)
        n_items, n_columns = len(item_cD), _full_groups(len(item_cD))
        score_qC = buffer[: len(query_qD) * n_columns].view(len(query_qD), n_columns)
        torch.mm(query_qD, item_cD.T, out=score_qC[:, :n_items])
        score_qC[:, n_items:] = NEG_INF
        yield first, first + n_items, score_qC


def _tile_shape(n_queries: int, n_items: int, keep: int, memory_mb: float) -> tuple[int, int]:
    """Queries and columns of a tile such that scores, and what selecting from them needs, fit ``memory_mb``."""
    budget = memory_mb * 2**20
    n_tiles = max(1, math.ceil(n_items / _MOST_COLUMNS))
    width = max(GROUP, _full_groups(math.ceil(n_items / n_tiles)))
    while width > GROUP and budget < GROUP * bytes_per_query(width, keep):
        width = _full_groups(width // 2)
    height = int(budget // bytes_per_query(width, keep))
    return max(1, min(height, _MOST_SCORES // width, n_queries)), width


def _full_groups(columns: int) -> int:
    return -(-columns // GROUP) * GROUP


def _ranks(truth: Ragged, score_T: Tensor, score_QL: Tensor, tied_Q: Tensor) -> Ranks:
    """Ranks of items with these scores against the lists, down to the last place but one."""
    owner_T, depth = truth.owner(), score_QL.shape[1] - 1
    above_T, tied_T = torch.zeros_like(owner_T), torch.zeros_like(owner_T)
    for place in range(depth + 1):
        listed_T = score_QL[owner_T, place]
        above_T += listed_T > score_T
        tied_T += listed_T == score_T
    tied_after_T = torch.where(score_QL[owner_T, depth] == score_T, tied_Q[owner_T], 0)
    reached_T = score_T > NEG_INF
    return Ranks.of(
        owner_T,
        torch.where(reached_T, above_T.clamp(max=depth), depth),
        torch.where(reached_T, torch.maximum(tied_T, tied_after_T), 1).clamp(min=1),
        n_queries=len(score_QL),
        depth=depth,
        weight_T=truth.weight,
    )
