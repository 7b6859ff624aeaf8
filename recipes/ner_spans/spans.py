"""Spans of a sentence, and which of the unlabelled ones are taken for negatives."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def all_spans(n_tokens: int) -> NDArray[np.int64]:
    """[n (n + 1) / 2, 2] first and last token of every span, in order."""
    first, last = np.triu_indices(n_tokens)
    return np.stack([first, last], 1)


def unlabelled(n_tokens: int, labelled: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n (n + 1) / 2 - m, 2] the spans that are not among the m distinct labelled ones."""
    spans = all_spans(n_tokens)
    return spans[~np.isin(spans @ [n_tokens, 1], labelled @ [n_tokens, 1])]


def sample_unlabelled(
    n_tokens: int, labelled: NDArray[np.int64], rate: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """ceil(rate n) of the unlabelled spans, uniformly without replacement; all of them where there are no more.

    So a span's expected count is the number drawn over n (n + 1) / 2 - m. The catalogue is the sentence's own: there
    are O(n^2) spans and O(n) are drawn, so an entity that its annotators missed is drawn with probability O(1 / n).

    Source: Li, Liu and Shi, Empirical analysis of unlabeled entity problem in named entity recognition (ICLR 2021),
    section 4.2.
    """
    found = unlabelled(n_tokens, labelled)
    n = min(math.ceil(rate * n_tokens), len(found))
    return found[rng.choice(len(found), n, replace=False)]
