"""Evaluation as a reader would write it first: Python loops over lists, and all orders of tied items tried out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise, permutations

import torch

from twotower.records import Ragged


def ragged(lists: Iterable[Sequence[int]], weights: Iterable[Sequence[float]] | None = None) -> Ragged:
    """Lists of rows, and the weight of each row, as the package takes them."""
    lists = list(lists)
    offset = [0]
    for rows in lists:
        offset.append(offset[-1] + len(rows))
    value = [row for rows in lists for row in rows]
    weight = None if weights is None else torch.tensor([w for row_weights in weights for w in row_weights])
    return Ragged(offset=torch.tensor(offset), value=torch.tensor(value, dtype=torch.int64), weight=weight)


def ranking(scores: Sequence[float], excluded: Iterable[int] = ()) -> list[int]:
    """Rows by falling score, ties by rising row."""
    excluded = set(excluded)
    return sorted((row for row in range(len(scores)) if row not in excluded), key=lambda row: (-scores[row], row))


def expected(
    metric: Callable[[list[bool], int, int], float],
    scores: Sequence[float],
    relevant: set[int],
    excluded: set[int],
    k: int,
) -> float:
    """Mean of a metric over all orders of the candidates in which scores do not rise."""
    candidates = [row for row in range(len(scores)) if row not in excluded]
    values = []
    for order in permutations(candidates):
        if all(scores[a] >= scores[b] for a, b in pairwise(order)):
            values.append(metric([row in relevant for row in order], len(relevant), k))
    return sum(values) / len(values)


def recall(hits: list[bool], n_relevant: int, k: int) -> float:
    return sum(hits[:k]) / n_relevant


def precision(hits: list[bool], n_relevant: int, k: int) -> float:
    return sum(hits[:k]) / k


def hit_rate(hits: list[bool], n_relevant: int, k: int) -> float:
    return float(any(hits[:k]))


def ndcg(hits: list[bool], n_relevant: int, k: int) -> float:
    gain = sum(1 / math.log2(place + 2) for place, hit in enumerate(hits[:k]) if hit)
    return gain / sum(1 / math.log2(place + 2) for place in range(min(n_relevant, k)))


def mrr(hits: list[bool], n_relevant: int, k: int) -> float:
    return next((1 / (place + 1) for place, hit in enumerate(hits[:k]) if hit), 0.0)


def average_precision(hits: list[bool], n_relevant: int, k: int) -> float:
    total = sum(sum(hits[: place + 1]) / (place + 1) for place, hit in enumerate(hits[:k]) if hit)
    return total / min(n_relevant, k)


METRICS = {
    "recall": recall,
    "ndcg": ndcg,
    "hit_rate": hit_rate,
    "precision": precision,
    "mrr": mrr,
    "map": average_precision,
}
