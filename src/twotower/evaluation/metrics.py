"""Metrics of one ranking a query: pure functions of ``Ranks``, one value a query, averaged by whoever calls.

Every value is the exact expectation over a random order of the items whose scores are equal, so a model that gives all
items one score gets what a random list gets. Recall, precision and NDCG are linear in P(relevant at p), which makes
that simple; hit rate and reciprocal rank use P(first relevant at p), average precision P(relevant at p) times the
expected number of relevant items up to p (``ranks.Positions``).

With ``T`` the relevant items of the query, p = 1, 2, ... the positions and rel(p) = 1 where the item at p is relevant.
A query without relevant items gets nan: it is to be left out and counted.

Source: McSherry and Najork, "Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied
Scores", ECIR 2008.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .ranks import Ranks


def recall(ranks: Ranks, k: int) -> Tensor:
    """Share of the relevant items among the first k: ``hits@k / |T|``, [Q].

    Source: He et al., "LightGCN", SIGIR 2020 (recall@20 as its code computes it).
    """
    return _expected_hits(ranks, k) / ranks.truth_Q


def weighted_recall(ranks: Ranks, k: int) -> Tensor:
    """Share of what the relevant items are worth that is among the first k, [Q].

        sum of w_t over the t in T among the first k / sum of w_t over T

    With the time watched of each item as w it is the share of that time that the list would have served. Equal weights
    give ``recall``; a query whose relevant items are worth nothing gets nan.
    """
    if ranks.weight_T is None:
        return recall(ranks, k)
    weight_T = ranks.weight_T.double()
    return _sum_by_query(ranks, weight_T * _chance(ranks, k)) / _sum_by_query(ranks, weight_T)


def precision(ranks: Ranks, k: int) -> Tensor:
    """Share of the first k places that hold a relevant item: ``hits@k / k``, [Q]; an empty place is a miss.

    Source: Manning, Raghavan and Schütze, "Introduction to Information Retrieval", 2008, section 8.4.
    """
    return _expected_hits(ranks, k) / k * _defined(ranks)


def hit_rate(ranks: Ranks, k: int) -> Tensor:
    """Whether any relevant item is among the first k: ``P(hits@k >= 1)``, [Q].

    Source: Deshpande and Karypis, "Item-Based Top-N Recommendation Algorithms", TOIS 2004.
    """
    return _first_k(ranks, k, ranks.positions.first_QK).sum(1) * _defined(ranks)


def ndcg(ranks: Ranks, k: int) -> Tensor:
    """``sum_{p <= k} rel(p) / log2(1 + p)`` over its value for the best list, [Q].

    That is ``sum_{p <= min(|T|, k)} 1 / log2(1 + p)``.

    Source: Järvelin and Kekäläinen, "Cumulated Gain-Based Evaluation of IR Techniques", TOIS 2002, with binary gains;
    the ideal list as in He et al., "LightGCN", SIGIR 2020.
    """
    gain_K = 1.0 / torch.log2(_place(ranks, k) + 1.0)
    ideal_K = torch.cat([gain_K.new_zeros(1), gain_K.cumsum(0)])
    ideal_Q = ideal_K[ranks.truth_Q.clamp(max=k)]
    return _first_k(ranks, k, ranks.positions.relevant_QK) @ gain_K / ideal_Q


def mrr(ranks: Ranks, k: int) -> Tensor:
    """One over the position of the first relevant item, 0 when it is after k: ``E[1(p_1 <= k) / p_1]``, [Q].

    Source: Voorhees, "The TREC-8 Question Answering Track Report", 1999.
    """
    return _first_k(ranks, k, ranks.positions.first_QK) @ (1.0 / _place(ranks, k)) * _defined(ranks)


def average_precision(ranks: Ranks, k: int) -> Tensor:
    """``sum_{p <= k} rel(p) hits@p / p / min(|T|, k)``, [Q]; its mean over queries is MAP@k.

    Source: Manning, Raghavan and Schütze, "Introduction to Information Retrieval", 2008, section 8.4; cut at k with
    ``min(|T|, k)`` below, so that a perfect list gets 1.
    """
    positions = ranks.positions
    hit_QK = positions.relevant_QK * (1.0 + positions.ahead_QK)
    total_Q = _first_k(ranks, k, hit_QK) @ (1.0 / _place(ranks, k))
    return total_Q / ranks.truth_Q.clamp(max=k)


METRICS: dict[str, Callable[[Ranks, int], Tensor]] = {
    "recall": recall,
    "ndcg": ndcg,
    "hit_rate": hit_rate,
    "precision": precision,
    "mrr": mrr,
    "map": average_precision,
}
"""The metrics under the names reports give them, in the order of a report."""

WEIGHTED_METRICS: dict[str, Callable[[Ranks, int], Tensor]] = {"weighted_recall": weighted_recall}
"""Those that stand beside them where relevant items have weights."""


def _expected_hits(ranks: Ranks, k: int) -> Tensor:
    """E[relevant items among the first k], [Q]."""
    return _sum_by_query(ranks, _chance(ranks, k))


def _chance(ranks: Ranks, k: int) -> Tensor:
    """P(a relevant item is among the first k), [T]: one tied with e - 1 others after a greater ones is in with
    probability ``clamp((k - a) / e, 0, 1)``."""
    _check_depth(ranks, k)
    return ((k - ranks.above_T).double() / ranks.tied_T).clamp(0.0, 1.0)


def _sum_by_query(ranks: Ranks, value_T: Tensor) -> Tensor:
    """Sum over the relevant items of each query, [Q]."""
    sum_Q = torch.zeros(len(ranks.truth_Q), dtype=torch.float64, device=value_T.device)
    return sum_Q.index_add_(0, ranks.query_T, value_T)


def _first_k(ranks: Ranks, k: int, value_QK: Tensor) -> Tensor:
    _check_depth(ranks, k)
    return value_QK[:, :k]


def _check_depth(ranks: Ranks, k: int) -> None:
    if not 1 <= k <= ranks.depth:
        raise ValueError(f"k is {k}, expected 1 to {ranks.depth}, the depth the ranks were computed to")


def _place(ranks: Ranks, k: int) -> Tensor:
    """Positions 1 to k."""
    return torch.arange(1, k + 1, dtype=torch.float64, device=ranks.truth_Q.device)


def _defined(ranks: Ranks) -> Tensor:
    """1 for a query with relevant items, nan for one without."""
    return torch.where(ranks.truth_Q > 0, 1.0, torch.nan).double()
