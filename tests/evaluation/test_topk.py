from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.errors import DataError
from twotower.evaluation import top_k, top_k_and_ranks
from twotower.evaluation.selection import Best, rows_of
from twotower.records import Ragged

from .oracle import ragged, ranking

INF = float("inf")


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int, list[list[int]], list[list[int]], float]:
    """Vectors of small whole numbers, so that scores are exact and many tie; truth, exclusions, k and a memory."""
    n_queries, n_items = draw(st.integers(1, 4)), draw(st.integers(1, 200))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    spread = draw(st.integers(1, 20))
    query_QD = torch.randint(-spread, spread + 1, (n_queries, 2), generator=rng).float()
    item_MD = torch.randint(-spread, spread + 1, (n_items, 2), generator=rng).float()
    rows = st.integers(0, n_items - 1)
    truth = [draw(st.lists(rows, max_size=6, unique=True)) for _ in range(n_queries)]
    excluded = [draw(st.lists(rows, max_size=n_items)) for _ in range(n_queries)]
    return (
        query_QD,
        item_MD,
        draw(st.integers(1, n_items + 3)),
        truth,
        excluded,
        draw(st.sampled_from([1e-4, 0.1, 64.0])),
    )


@settings(max_examples=150, deadline=None)
@given(cases())
def test_top_k_is_a_full_sort(
    case: tuple[torch.Tensor, torch.Tensor, int, list[list[int]], list[list[int]], float],
) -> None:
    query_QD, item_MD, k, _, excluded, memory_mb = case
    top = top_k(query_QD, item_MD, k, exclude=ragged(excluded), memory_mb=memory_mb)
    for query, scores in enumerate((query_QD @ item_MD.T).tolist()):
        best = ranking(scores, excluded[query])[:k]
        empty = k - len(best)
        assert top.row_Qk[query].tolist() == best + [-1] * empty
        assert top.score_Qk[query].tolist() == [scores[row] for row in best] + [-INF] * empty


@settings(max_examples=150, deadline=None)
@given(cases())
def test_ranks_count_greater_and_equal_candidates(
    case: tuple[torch.Tensor, torch.Tensor, int, list[list[int]], list[list[int]], float],
) -> None:
    query_QD, item_MD, k, truth, excluded, memory_mb = case
    exclude = ragged(excluded)
    top, ranks = top_k_and_ranks(query_QD, item_MD, k, ragged(truth), exclude=exclude, memory_mb=memory_mb)
    assert torch.equal(top.row_Qk, top_k(query_QD, item_MD, k, exclude=exclude).row_Qk)
    found = list(zip(ranks.query_T.tolist(), ranks.above_T.tolist(), ranks.tied_T.tolist(), strict=True))
    assert [query for query, _, _ in found] == [query for query, rows in enumerate(truth) for _ in rows]
    assert ranks.truth_Q.tolist() == [len(rows) for rows in truth]
    scores = (query_QD @ item_MD.T).tolist()
    for (query, above, tied), row in zip(found, (row for rows in truth for row in rows), strict=True):
        candidates = [scores[query][other] for other in range(len(item_MD)) if other not in excluded[query]]
        greater = sum(score > scores[query][row] for score in candidates)
        if row in excluded[query] or greater >= k:
            assert above == k
        else:
            assert (above, tied) == (greater, candidates.count(scores[query][row]))


@pytest.mark.parametrize("memory_mb", [1e-3, 0.3, 2.0])
def test_tiles_of_any_size_give_the_same(memory_mb: float) -> None:
    rng = torch.Generator().manual_seed(3)
    query_QD = torch.randint(-9, 10, (37, 4), generator=rng).float()
    item_MD = torch.randint(-9, 10, (3000, 4), generator=rng).float()
    truth = ragged([[query, query + 900, query + 2500] for query in range(37)])
    top, ranks = top_k_and_ranks(query_QD, item_MD, 30, truth, memory_mb=memory_mb)
    top_one, ranks_one = top_k_and_ranks(query_QD, item_MD, 30, truth)
    assert torch.equal(top.row_Qk, top_one.row_Qk)
    assert torch.equal(top.score_Qk, top_one.score_Qk)
    assert torch.equal(ranks.above_T, ranks_one.above_T)
    assert torch.equal(ranks.tied_T, ranks_one.tied_T)


def test_real_numbers_give_what_torch_sorts() -> None:
    rng = torch.Generator().manual_seed(4)
    query_QD, item_MD = torch.randn(50, 16, generator=rng), torch.randn(5000, 16, generator=rng)
    top = top_k(query_QD, item_MD, 100)
    score_Qk, row_Qk = (query_QD.double() @ item_MD.double().T).topk(100)
    assert (top.row_Qk == row_Qk).double().mean() > 0.999  # the last bit of a float32 may swap neighbours
    torch.testing.assert_close(top.score_Qk, score_Qk.float())


def test_scores_below_zero_and_both_zeros_are_in_order() -> None:
    item_MD = torch.tensor([[-3.0], [-0.0], [0.0], [1e-30], [-1e-30], [-2.0]])
    top = top_k(torch.tensor([[1.0]]), item_MD, 6)
    assert top.row_Qk.tolist() == [[3, 1, 2, 4, 5, 0]]


def test_both_zeros_tie_in_the_selection() -> None:
    best = Best(1, 2, torch.device("cpu"))
    best.add(torch.tensor([[-0.0, 0.0] + [-1.0] * 62]), 10, count_ties=True)
    assert rows_of(best.key_qL).tolist() == [[10, 11]]
    assert best.tied_q.tolist() == [2]


def test_checked_vectors_need_no_second_check() -> None:
    query_QD, item_MD = torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    assert top_k(query_QD, item_MD, 2, check=False).row_Qk.tolist() == [[2, 0]]


def test_half_precision_and_no_queries() -> None:
    item_MD = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16)
    assert top_k(torch.tensor([[1.0, 1.0]]), item_MD, 1).row_Qk.tolist() == [[1]]
    assert top_k(torch.empty(0, 2), item_MD, 5).row_Qk.shape == (0, 5)


@pytest.mark.parametrize(("side", "bad"), [("query", float("nan")), ("item", float("nan")), ("item", INF)])
def test_vectors_that_are_not_finite_are_named(side: str, bad: float) -> None:
    vectors = {"query": torch.zeros(4, 2), "item": torch.zeros(5, 2)}
    vectors[side][3, 1] = bad
    with pytest.raises(DataError, match=rf"{side} vectors: 1 of \d are not finite, the first is row 3"):
        top_k(vectors["query"], vectors["item"], 2)


def test_scores_that_overflow_are_refused() -> None:
    with pytest.raises(DataError, match="what a float32 holds"):
        top_k(torch.full((1, 2), 1e20), torch.full((1, 2), 1e20), 1)


def test_lists_that_do_not_fit_are_refused() -> None:
    query_QD, item_MD = torch.zeros(2, 1), torch.zeros(3, 1)
    with pytest.raises(DataError, match="exclude: row 3 of query 1 is not in the catalogue, expected 0 to 2"):
        top_k(query_QD, item_MD, 1, exclude=ragged([[0], [3]]))
    with pytest.raises(DataError, match=r"exclude: found 1 lists .* expected one list for each of the 2 queries"):
        top_k(query_QD, item_MD, 1, exclude=ragged([[0]]))
    with pytest.raises(DataError, match="truth: row -1 of query 0"):
        top_k_and_ranks(query_QD, item_MD, 1, ragged([[-1], []]))
    with pytest.raises(DataError, match="truth: row 2 is given twice to query 1"):
        top_k_and_ranks(query_QD, item_MD, 1, ragged([[2], [2, 0, 2]]))
    with pytest.raises(DataError, match="query vectors are 1 wide, item vectors 2"):
        top_k(query_QD, torch.zeros(3, 2), 1)
    with pytest.raises(ValueError, match="k is 0"):
        top_k(query_QD, item_MD, 0)


def test_lists_of_a_slice_are_accepted() -> None:
    """A slice of lists starts at 0 again."""
    lists = ragged([[0], [1], [2]]).slice(1, 3)
    assert isinstance(lists, Ragged)
    assert top_k(torch.ones(2, 1), torch.ones(3, 1), 2, exclude=lists).row_Qk.tolist() == [[0, 2], [0, 1]]
