"""Naive search, and vectors to search among."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def naive(
    query_D: Vectors, items: Mapping[int, Vectors], k: int, *, without: Collection[int] = ()
) -> list[tuple[int, float]]:
    """(row, score) of the k best, by a loop over all in float64."""
    scored = [
        (row, sum(float(q) * float(x) for q, x in zip(query_D, vector, strict=True)))
        for row, vector in items.items()
        if row not in without
    ]
    return sorted(scored, key=lambda one: (-one[1], one[0]))[:k]


def whole_numbers(rng: np.random.Generator, n: int, width: int, most: int = 3) -> Vectors:
    """Vectors whose inner products are exact in float32, with many ties."""
    return rng.integers(-most, most + 1, (n, width)).astype(np.float32)


def clustered(rng: np.random.Generator, n: int, width: int, *, clusters: int = 50, unit: bool = True) -> Vectors:
    """Vectors around random centres."""
    centre_CD = np.random.default_rng(1).standard_normal((clusters, width))
    vector_nD = centre_CD[rng.integers(0, clusters, n)] + 0.7 * rng.standard_normal((n, width))
    if unit:
        vector_nD /= np.linalg.norm(vector_nD, axis=1, keepdims=True)
    return vector_nD.astype(np.float32)
