"""How well word vectors agree with people: rank correlation on rated pairs, and analogies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

RatedPair = tuple[str, str, float]
Analogy = tuple[str, str, str, str]
"""a is to b as c is to d."""
Question = TypeVar("Question", RatedPair, Analogy)


def read_rated_pairs(path: Path) -> list[RatedPair]:
    """Lines of two words and a rating between tabs; ``#`` starts a comment. Words are lower-cased."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    fields = (line.split("\t") for line in lines if line and not line.startswith("#"))
    return [(a.lower(), b.lower(), float(rating)) for a, b, rating, *_ in fields]


def read_analogies(path: Path) -> list[Analogy]:
    """Lines of four words; ``:`` starts the name of a section. Words are lower-cased."""
    lines = path.read_text(encoding="utf-8").lower().splitlines()
    return [(a, b, c, d) for a, b, c, d in (line.split() for line in lines if line and not line.startswith(":"))]


def covered(questions: Sequence[Question], row_of: Mapping[str, int]) -> list[Question]:
    """The questions all of whose words have a vector."""
    return [question for question in questions if all(part in row_of for part in question if isinstance(part, str))]


def similarity(vector_VD: NDArray[np.float32], row_of: Mapping[str, int], pairs: Sequence[RatedPair]) -> float:
    """Spearman's rank correlation of the cosine with people's ratings; all words must have a vector."""
    a_P = np.array([row_of[a] for a, _, _ in pairs])
    b_P = np.array([row_of[b] for _, b, _ in pairs])
    unit_VD = unit_rows(vector_VD)
    cosine_P = np.einsum("pd,pd->p", unit_VD[a_P], unit_VD[b_P])
    return rank_correlation(cosine_P, np.array([rating for *_, rating in pairs]))


def analogies(
    vector_VD: NDArray[np.float32], row_of: Mapping[str, int], questions: Sequence[Analogy], *, chunk: int = 512
) -> float:
    """Share of questions a : b = c : d that argmax over all words but a, b and c of cos(x, b - a + c) answers with d;
    all words must have a vector.

    Source: Mikolov et al., arXiv 1301.3781, section 4.1, over unit vectors (3CosAdd: Levy and Goldberg, CoNLL 2014).
    """
    row_Q4 = np.array([[row_of[word] for word in question] for question in questions])
    unit_VD, right = unit_rows(vector_VD), 0
    for start in range(0, len(row_Q4), chunk):
        a_q, b_q, c_q, d_q = row_Q4[start : start + chunk].T
        score_qV = (unit_VD[b_q] - unit_VD[a_q] + unit_VD[c_q]) @ unit_VD.T
        score_qV[np.arange(len(a_q))[:, None], np.stack([a_q, b_q, c_q], 1)] = -np.inf
        right += int((score_qV.argmax(1) == d_q).sum())
    return right / len(row_Q4)


def unit_rows(vector_VD: NDArray[np.float32]) -> NDArray[np.float32]:
    """x / |x|; a row of zeros stays zero."""
    length_V1 = np.linalg.norm(vector_VD, axis=1, keepdims=True)
    return vector_VD / np.where(length_V1 > 0, length_V1, 1)


def rank_correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Spearman's: Pearson's correlation of the ranks, equal values sharing the mean of theirs."""
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(x: NDArray[np.float64]) -> NDArray[np.float64]:
    _, where, count = np.unique(x, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count - 1) / 2)[where]
