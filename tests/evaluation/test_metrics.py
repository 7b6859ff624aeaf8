from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.evaluation import METRICS, WEIGHTED_METRICS, Ranks, top_k_and_ranks

from . import oracle
from .oracle import ragged


def ranks_of(scores: list[list[float]], truth: list[list[int]], k: int, seen: list[list[int]] | None = None) -> Ranks:
    """Ranks of given scores: the queries are unit vectors, so the inner products are the scores."""
    item_MD = torch.tensor(scores).T.contiguous()
    return top_k_and_ranks(
        torch.eye(len(scores)), item_MD, k, ragged(truth), exclude=None if seen is None else ragged(seen)
    )[1]


# Ten items in the order of their rows; 0, 2 and 7 are relevant: hits at positions 1, 3 and 8.
TEN = [[float(-row) for row in range(10)]]
RELEVANT = [[0, 2, 7]]


@pytest.mark.parametrize(
    ("name", "k", "value"),
    [
        ("recall", 1, 1 / 3),
        ("recall", 5, 2 / 3),
        ("recall", 10, 3 / 3),
        ("precision", 1, 1 / 1),
        ("precision", 5, 2 / 5),
        ("precision", 10, 3 / 10),
        ("hit_rate", 5, 1.0),
        ("mrr", 5, 1 / 1),
        ("map", 1, 1 / 1),
        ("map", 5, 1 / 3 * (1 / 1 + 2 / 3)),
        ("map", 10, 1 / 3 * (1 / 1 + 2 / 3 + 3 / 8)),
        ("map", 2, 1 / 2 * (1 / 1)),
        ("ndcg", 1, 1.0),
        ("ndcg", 2, 1 / (1 + 1 / math.log2(3))),
        ("ndcg", 10, (1 + 1 / math.log2(4) + 1 / math.log2(9)) / (1 + 1 / math.log2(3) + 1 / math.log2(4))),
    ],
)
def test_without_ties(name: str, k: int, value: float) -> None:
    assert METRICS[name](ranks_of(TEN, RELEVANT, 10), k).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "k", "value"),
    [
        ("hit_rate", 3, 0.0),
        ("mrr", 3, 0.0),
        ("hit_rate", 4, 1.0),
        ("mrr", 4, 1 / 4),
        ("mrr", 10, 1 / 4),
    ],
)
def test_first_hit_at_position_four(name: str, k: int, value: float) -> None:
    assert METRICS[name](ranks_of(TEN, [[3, 5]], 10), k).item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "k", "value"),
    [
        # One item above, then three tied with one relevant among them: positions 2, 3, 4 with chance 1/3 each.
        ("recall", 1, 0.0),
        ("recall", 2, 1 / 3),
        ("recall", 3, 2 / 3),
        ("hit_rate", 3, 2 / 3),
        ("precision", 3, 2 / 3 / 3),
        ("mrr", 4, 1 / 3 * (1 / 2 + 1 / 3 + 1 / 4)),
        ("mrr", 3, 1 / 3 * (1 / 2 + 1 / 3)),
        ("map", 4, 1 / 3 * (1 / 2 + 1 / 3 + 1 / 4)),
        ("ndcg", 3, 1 / 3 * (1 / math.log2(3) + 1 / math.log2(4))),
    ],
)
def test_ties_count_for_their_chance(name: str, k: int, value: float) -> None:
    ranks = ranks_of([[5.0, 2.0, 2.0, 2.0, 1.0]], [[2]], 4)
    assert METRICS[name](ranks, k).item() == pytest.approx(value, rel=1e-12)


def test_two_relevant_items_in_one_tie() -> None:
    # Four tied, two relevant, two places: hit rate 1 - C(2,2)/C(4,2), first hit at 1 with 1/2, at 2 with 1/2 * 2/3.
    ranks = ranks_of([[1.0, 1.0, 1.0, 1.0]], [[0, 3]], 2)
    assert METRICS["hit_rate"](ranks, 2).item() == pytest.approx(1 - 1 / 6, rel=1e-12)
    assert METRICS["mrr"](ranks, 2).item() == pytest.approx(1 / 2 + 1 / 2 * 2 / 3 * 1 / 2, rel=1e-12)
    assert METRICS["map"](ranks, 2).item() == pytest.approx(1 / 2 * (1 / 2 + 1 / 2 * (1 + 1 / 3) / 2), rel=1e-12)


@pytest.mark.parametrize("n_items", [7, 64, 65, 1000])
def test_constant_scores_recall_k_of_the_catalogue(n_items: int) -> None:
    ranks = top_k_and_ranks(torch.ones(2, 3), torch.ones(n_items, 3), 5, ragged([[0], [1, n_items - 1]]))[1]
    assert METRICS["recall"](ranks, 5).tolist() == pytest.approx([5 / n_items, 5 / n_items], rel=1e-12)
    assert METRICS["hit_rate"](ranks, 5)[0].item() == pytest.approx(5 / n_items, rel=1e-12)


@st.composite
def small(draw: st.DrawFn) -> tuple[list[list[float]], list[list[int]], list[list[int]], int]:
    n_queries, n_items = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    score = st.sampled_from([-1.0, 0.0, 1.0, 2.0])
    rows = st.lists(st.integers(0, n_items - 1), unique=True, max_size=n_items)
    scores = [draw(st.lists(score, min_size=n_items, max_size=n_items)) for _ in range(n_queries)]
    truth, seen = [draw(rows) for _ in range(n_queries)], [draw(rows) for _ in range(n_queries)]
    return scores, truth, seen, draw(st.integers(1, 8))


@settings(max_examples=150, deadline=None)
@given(small())
def test_expectation_over_all_orders_of_ties(
    case: tuple[list[list[float]], list[list[int]], list[list[int]], int],
) -> None:
    scores, truth, seen, k = case
    ranks = ranks_of(scores, truth, k + 2, seen)
    for name, metric in METRICS.items():
        values = metric(ranks, k).tolist()
        for query, value in enumerate(values):
            if not truth[query]:
                assert math.isnan(value)
                continue
            wanted = oracle.expected(oracle.METRICS[name], scores[query], set(truth[query]), set(seen[query]), k)
            assert value == pytest.approx(wanted, rel=1e-9, abs=1e-12), name


def weighted_recall(
    scores: list[list[float]], truth: list[list[int]], weights: list[list[float]], k: int, depth: int = 4
) -> list[float]:
    lists = ragged(truth, weights)
    ranks = top_k_and_ranks(torch.eye(len(scores)), torch.tensor(scores).T.contiguous(), depth, lists)[1]
    return list(WEIGHTED_METRICS["weighted_recall"](ranks, k).tolist())


def test_weighted_recall_is_the_share_of_the_weight() -> None:
    """Ten items in the order of their rows; a query watched 0, 2 and 7 for 30, 10 and 60 seconds."""
    for k, wanted in ((1, 30 / 100), (3, 40 / 100), (7, 40 / 100), (8, 100 / 100)):
        assert weighted_recall(TEN, RELEVANT, [[30.0, 10.0, 60.0]], k, 10) == pytest.approx([wanted], rel=1e-12)


def test_weighted_recall_of_tied_items_is_expected() -> None:
    """One item above, then three tied, two of them relevant with weights 1 and 3: each in the first two by 1/3, so
    (1/3 * 1 + 1/3 * 3) of 4. The other query finds what weighs nothing, and has nothing else."""
    scores = [[5.0, 2.0, 2.0, 2.0], [1.0, 0.0, 0.0, 0.0]]
    first, second = weighted_recall(scores, [[2, 3], [0]], [[1.0, 3.0], [0.0]], 2)
    assert first == pytest.approx(1 / 3, rel=1e-12)
    assert math.isnan(second)


@settings(max_examples=50, deadline=None)
@given(small(), st.sampled_from([0.5, 1.0, 7.0]))
def test_equal_weights_are_none(
    case: tuple[list[list[float]], list[list[int]], list[list[int]], int], weight: float
) -> None:
    scores, truth, _, k = case
    weighted = weighted_recall(scores, truth, [[weight] * len(rows) for rows in truth], k, k)
    plain = METRICS["recall"](ranks_of(scores, truth, k), k).tolist()
    without = WEIGHTED_METRICS["weighted_recall"](ranks_of(scores, truth, k), k).tolist()
    assert weighted == pytest.approx(plain, rel=1e-12, nan_ok=True)
    assert without == pytest.approx(plain, rel=0, nan_ok=True)


def test_k_beyond_the_depth_is_refused() -> None:
    ranks = ranks_of(TEN, RELEVANT, 3)
    for metric in (METRICS | WEIGHTED_METRICS).values():
        with pytest.raises(ValueError, match="k is 4, expected 1 to 3"):
            metric(ranks, 4)


def test_part_of_the_truth_keeps_its_ranks() -> None:
    ranks = ranks_of(TEN, RELEVANT, 10).only(torch.tensor([False, True, True]))
    assert METRICS["recall"](ranks, 5).item() == pytest.approx(1 / 2)
    assert METRICS["mrr"](ranks, 5).item() == pytest.approx(1 / 3)


def test_part_of_the_truth_keeps_its_weights() -> None:
    lists = ragged(RELEVANT, [[30.0, 10.0, 60.0]])
    ranks = top_k_and_ranks(torch.ones(1, 1), torch.tensor(TEN).T.contiguous(), 10, lists)[1]
    part = ranks.only(torch.tensor([False, True, True]))
    assert WEIGHTED_METRICS["weighted_recall"](part, 5).item() == pytest.approx(10 / 70, rel=1e-12)
