"""Exact search by inner product, in tiles: no matrix of all queries and items, no thread, no library but numpy.

A tile of scores is narrowed down by the best of every 64 columns, then of every 8: only groups whose best can still
enter the list are looked into, which after the first tiles is next to none. What is kept is one int64 a candidate, the
score's bits in order above and the row below, so that the order is total: greater score first, then lower row, whatever
the tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]
Keys = NDArray[np.int64]

LAST_ROW = 2**31 - 1
"""The greatest row that a key holds."""
NOTHING = np.iinfo(np.int64).min
"""The key of no candidate; below all others."""

_PARTS = 8
_GROUP = _PARTS * _PARTS
"""Columns of a group, and of the groups inside it."""
_QUERIES = 256
_SCORES = 2**20
"""Queries of a tile, and scores unless it would be narrower than ``_LEAST_WIDE``: what stays in a core's share of
the cache."""
_LEAST_WIDE, _MOST_WIDE = 8_192, 2**17
_SPARSE = 16
"""From one column in so many on, columns are left out by adding -inf to all instead of one by one."""


def keys_of(score: NDArray[np.float32], row: Rows) -> Keys:
    """Sort keys that fall with the score and, at equal scores, with rising row."""
    bits = (score + np.float32(0)).view(np.int32)  # -0.0 becomes 0.0
    ordered = np.where(bits < 0, bits ^ np.int32(LAST_ROW), bits).astype(np.int64)
    keys: Keys = (ordered << 32) + (LAST_ROW - row)
    return keys


def scores_of(key: Keys) -> NDArray[np.float32]:
    """Scores of keys; -inf where there is no candidate."""
    ordered = (key >> 32).astype(np.int32)
    score = np.where(ordered < 0, ordered ^ np.int32(LAST_ROW), ordered).view(np.float32)
    return np.where(key == NOTHING, np.float32(-np.inf), score)


def rows_of(key: Keys) -> Rows:
    """Rows of keys; -1 where there is no candidate."""
    return np.where(key == NOTHING, -1, LAST_ROW - (key & (2**32 - 1)))


def best_of(key_BL: Keys, k: int) -> Keys:
    """[B, k] the greatest keys of each query, greatest first, filled up with ``NOTHING``."""
    if key_BL.shape[1] > k:
        key_BL = np.partition(key_BL, key_BL.shape[1] - k, axis=1)[:, -k:]
    best_BL = np.sort(key_BL, axis=1)[:, ::-1]
    missing = k - best_BL.shape[1]
    return np.pad(best_BL, ((0, 0), (0, missing)), constant_values=NOTHING) if missing else best_BL


def nearest(
    query_BD: Vectors,
    vector_nD: Vectors,
    k: int,
    *,
    row_n: Rows | None = None,
    allowed_n: Mask | None = None,
    excluded: Sequence[Rows] | None = None,
) -> Keys:
    """[B, k] keys of the k vectors with the greatest inner product with each query, best first.

    ``row_n``, rising, are the rows that the vectors stand for (their positions, if None), ``allowed_n`` says which
    vectors may be found at all, ``excluded`` holds rows that a query must not find.
    """
    best_BL = np.full((len(query_BD), k), NOTHING, np.int64)
    n = len(vector_nD)
    if n == 0:
        return best_BL
    for start in range(0, len(query_BD), _QUERIES):
        query_qD = query_BD[start : start + _QUERIES]
        lists = None if excluded is None else excluded[start : start + _QUERIES]
        best = _Best(len(query_qD), min(k, n))
        pairs = None if lists is None else _Pairs(lists, row_n)
        width = min(max(_LEAST_WIDE, min(_SCORES // len(query_qD), _MOST_WIDE)), n)
        width = -(-width // _GROUP) * _GROUP
        buffer = np.empty(len(query_qD) * width, np.float32)
        for first in range(0, n, width):
            last = min(first + width, n)
            score_qC = _scores(query_qD, vector_nD[first:last], buffer)
            if allowed_n is not None:
                _leave_out(score_qC, allowed_n[first:last])
            if pairs is not None:
                score_qC[pairs.within(first, last)] = -np.inf
            best.add(score_qC, first)
        best_BL[start : start + _QUERIES, : best.keep] = best.finish()
    if row_n is None:
        return best_BL
    there = best_BL != NOTHING
    keys = keys_of(scores_of(best_BL), row_n[np.maximum(rows_of(best_BL), 0)])
    return np.where(there, keys, NOTHING)


def _scores(query_qD: Vectors, vector_cD: Vectors, buffer: NDArray[np.float32]) -> NDArray[np.float32]:
    """[q, C] scores in the buffer, C full groups, filled up with -inf."""
    n, columns = len(vector_cD), -(-len(vector_cD) // _GROUP) * _GROUP
    score_qC = buffer[: len(query_qD) * columns].reshape(len(query_qD), columns)
    if len(query_qD) == 1:  # a matrix and a vector: twice as fast as two matrices
        np.matmul(vector_cD, query_qD[0], out=score_qC[0, :n])
    else:
        np.matmul(query_qD, vector_cD.T, out=score_qC[:, :n])
    score_qC[:, n:] = -np.inf
    return score_qC


def _leave_out(score_qC: NDArray[np.float32], allowed_c: Mask) -> None:
    """-inf for the columns that are not allowed."""
    gone = np.flatnonzero(~allowed_c)
    if len(gone) * _SPARSE < len(allowed_c):
        score_qC[:, gone] = -np.inf
    else:
        score_qC[:, : len(allowed_c)] += np.where(allowed_c, np.float32(0), np.float32(-np.inf))


def _best_of_parts(score_qC: NDArray[np.float32]) -> NDArray[np.float32]:
    """[q, C / 8] the best of every 8 columns that lie C / 8 apart."""
    best: NDArray[np.float32] = score_qC.reshape(len(score_qC), _PARTS, -1).max(1)
    return best


class _Pairs:
    """Which query must not find which position, by position."""

    def __init__(self, excluded: Sequence[Rows], row_n: Rows | None) -> None:
        query = np.repeat(np.arange(len(excluded)), [len(rows) for rows in excluded])
        row = np.concatenate([np.asarray(rows, np.int64) for rows in excluded]) if excluded else np.empty(0, np.int64)
        if row_n is not None:
            place = np.minimum(np.searchsorted(row_n, row), len(row_n) - 1)
            there = row_n[place] == row
            query, row = query[there], place[there]
        order = np.argsort(row, kind="stable")
        self._query, self._position = query[order], row[order]

    def within(self, first: int, last: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """(query, column counted from ``first``) of the pairs with ``first <= position < last``."""
        low, high = np.searchsorted(self._position, (first, last))
        return self._query[low:high], self._position[low:high] - first


class _Best:
    """The best candidates of a few queries among the tiles seen so far."""

    def __init__(self, n_queries: int, keep: int) -> None:
        self.keep = keep
        self._key_qL = np.full((n_queries, 3 * keep), NOTHING, np.int64)
        self._filled_q = np.zeros(n_queries, np.int64)
        self._floor_q = np.full(n_queries, -np.inf, np.float32)
        """What a candidate must reach: at least ``keep`` have it."""

    def add(self, score_qC: NDArray[np.float32], first: int) -> None:
        """Take in a tile whose first column is at position ``first``."""
        # Groups are of every n-th column: the best of all groups at once is a few passes over whole rows.
        best_qn = _best_of_parts(score_qC)
        best_qN = _best_of_parts(best_qn)
        if first == 0 and best_qn.shape[1] >= self.keep:  # as many groups have a column with this score
            place = best_qn.shape[1] - self.keep
            self._floor_q = np.partition(best_qn, place, axis=1)[:, place]
        query_e, group_e = np.nonzero((best_qN >= self._floor_q[:, None]) & (best_qN > -np.inf))
        if len(query_e) == 0:
            return
        query_e, group_e, _ = self._inside(best_qn, query_e, group_e)
        query_e, column_e, score_e = self._inside(score_qC, query_e, group_e)
        self._put(query_e, keys_of(score_e, first + column_e))

    def _inside(
        self, score_qc: NDArray[np.float32], query_e: Rows, group_e: Rows
    ) -> tuple[Rows, Rows, NDArray[np.float32]]:
        """(query, column, score) of the columns inside the groups that may be among the best, ordered by query."""
        column_ep = group_e[:, None] + score_qc.shape[1] // _PARTS * np.arange(_PARTS)
        score_ep = score_qc[query_e[:, None], column_ep]
        kept_ep = (score_ep >= self._floor_q[query_e, None]) & (score_ep > -np.inf)
        return query_e[np.nonzero(kept_ep)[0]], column_ep[kept_ep], score_ep[kept_ep]

    def _put(self, query_e: Rows, key_e: Keys) -> None:
        """Add candidates, ordered by query."""
        n_queries = len(self._filled_q)
        new_q = np.bincount(query_e, minlength=n_queries)
        if int((self._filled_q + new_q).max()) > self._key_qL.shape[1]:
            self._compact(room=int(new_q.max()))
        before_q = np.concatenate([[0], np.cumsum(new_q)[:-1]])
        self._key_qL[query_e, (self._filled_q - before_q)[query_e] + np.arange(len(query_e))] = key_e
        self._filled_q += new_q

    def _compact(self, room: int) -> None:
        """Forget what can't be among the best, and make room beside them."""
        best_qk = np.partition(self._key_qL, self._key_qL.shape[1] - self.keep, axis=1)[:, -self.keep :]
        least_q = best_qk.min(1)
        self._floor_q = np.maximum(self._floor_q, scores_of(least_q))
        self._filled_q = np.minimum(self._filled_q, self.keep)
        self._key_qL = np.full((len(best_qk), self.keep + max(room, 2 * self.keep)), NOTHING, np.int64)
        if (least_q == NOTHING).any():  # those that are there come first
            best_qk = np.sort(best_qk, axis=1)[:, ::-1]
        self._key_qL[:, : self.keep] = best_qk

    def finish(self) -> Keys:
        """[q, keep] keys, best first."""
        return best_of(self._key_qL, self.keep)
