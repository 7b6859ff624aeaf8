"""Searching a bundle's vectors: the one place that knows what finds them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_TILE = 1 << 16
"""Items scored at a time."""


class Found(NamedTuple):
    """The best items of each query, best first: -1 and -inf where there are no more."""

    row_Bk: NDArray[np.int64]
    score_Bk: NDArray[np.float32]


class Search:
    """The k items of greatest inner product with each query, among rows that are live; of equal ones the lower row."""

    def __init__(self, vector_MD: NDArray[np.float32], row_n: NDArray[np.int64]) -> None:
        """``row_n``, rising, are the rows of the catalogue that may be found."""
        self._vector_MD, self._row_n = vector_MD, row_n

    @property
    def n(self) -> int:
        """Items that can be found."""
        return len(self._row_n)

    def search(self, query_BD: NDArray[np.float32], k: int, *, allowed: NDArray[np.bool_] | None = None) -> Found:
        """[B, k]; ``allowed`` [M] says which rows may be found at all."""
        row_n = self._row_n if allowed is None else self._row_n[allowed[self._row_n]]
        row_Bk = np.full((len(query_BD), k), -1, np.int64)
        score_Bk = np.full((len(query_BD), k), -np.inf, np.float32)
        for start in range(0, len(row_n), _TILE):
            row_c = row_n[start : start + _TILE]
            score_Bc = query_BD @ self._vector_MD[row_c].T
            all_score = np.concatenate([score_Bk, score_Bc], 1)
            all_row = np.concatenate([row_Bk, np.broadcast_to(row_c, score_Bc.shape)], 1)
            best = np.argsort(-all_score, axis=1, kind="stable")[:, :k]
            row_Bk, score_Bk = np.take_along_axis(all_row, best, 1), np.take_along_axis(all_score, best, 1)
        return Found(row_Bk, score_Bk)

    def save(self, folder: Path) -> None:
        """Write what ``open`` reads."""
        folder.mkdir()
        np.save(folder / "rows.npy", self._row_n, allow_pickle=False)

    @staticmethod
    def open(folder: Path, vector_MD: NDArray[np.float32]) -> Search:
        """What was saved, over the same vectors."""
        return Search(vector_MD, np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False))
