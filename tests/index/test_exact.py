"""Exact search against a loop, Faiss flat and its own order of ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.index.oracle import naive, whole_numbers
from twotower.index import exact
from twotower.index.exact import NOTHING, keys_of, nearest, rows_of, scores_of


def test_keys_order_by_score_and_then_by_falling_row() -> None:
    score = np.array([2.5, -0.0, 0.0, -1.0, 2.5, -np.inf, 3e38, -3e38], np.float32)
    row = np.array([7, 4, 3, 0, 2, 1, 2**31 - 1, 5])
    key = keys_of(score, row)
    assert rows_of(np.sort(key)[::-1]).tolist() == [2**31 - 1, 2, 7, 3, 4, 0, 5, 1]
    assert (scores_of(key) == score).all()
    assert (rows_of(key) == row).all()
    assert scores_of(np.array([NOTHING])).tolist() == [-np.inf]
    assert rows_of(np.array([NOTHING])).tolist() == [-1]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 400),
    n_queries=st.integers(1, 5),
    k=st.integers(1, 70),
    most=st.sampled_from([0, 1, 40]),
    wide=st.sampled_from([64, 128, 8192]),
    share=st.sampled_from([None, 0.02, 0.5, 0.99]),
)
def test_it_is_what_a_loop_finds_ties_and_all(
    seed: int, n: int, n_queries: int, k: int, most: int, wide: int, share: float | None
) -> None:
    rng = np.random.default_rng(seed)
    vector_nD, query_BD = whole_numbers(rng, n, 3, most), whole_numbers(rng, n_queries, 3, most)
    row_n = np.sort(rng.choice(3 * n, n, replace=False))
    allowed_n = None if share is None else rng.random(n) < share
    excluded = [rng.integers(0, 3 * n, rng.integers(0, 30)) for _ in range(n_queries)]
    with pytest.MonkeyPatch.context() as patch:  # several tiles
        patch.setattr(exact, "_LEAST_WIDE", wide)
        patch.setattr(exact, "_MOST_WIDE", wide)
        patch.setattr(exact, "_QUERIES", 2)
        key_Bk = nearest(query_BD, vector_nD, k, row_n=row_n, allowed_n=allowed_n, excluded=excluded)
    items = {int(r): v for place, (r, v) in enumerate(zip(row_n, vector_nD, strict=True))
             if allowed_n is None or allowed_n[place]}  # fmt: skip
    for place, query_D in enumerate(query_BD):
        found = naive(query_D, items, k, without=set(excluded[place].tolist()))
        missing = k - len(found)
        assert rows_of(key_Bk[place]).tolist() == [row for row, _ in found] + [-1] * missing
        assert scores_of(key_Bk[place]).tolist() == [score for _, score in found] + [-np.inf] * missing


def test_it_is_what_faiss_flat_finds() -> None:
    faiss = pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    vector_nD, query_BD = (rng.standard_normal((n, 24), np.float32) for n in (20_000, 150))
    flat = faiss.IndexFlatIP(24)
    flat.add(vector_nD)
    score_Bk, row_Bk = flat.search(query_BD, 50)
    key_Bk = nearest(query_BD, vector_nD, 50)
    assert np.allclose(scores_of(key_Bk), score_Bk, rtol=1e-5, atol=1e-5)
    # Scores that differ in the last bit may change places with their neighbours.
    assert (np.sort(rows_of(key_Bk)) == np.sort(row_Bk)).mean() > 0.999


def test_equal_scores_everywhere_give_the_lowest_rows() -> None:
    key_Bk = nearest(np.zeros((3, 4), np.float32), np.ones((30_000, 4), np.float32), 100)
    assert (rows_of(key_Bk) == np.arange(100)).all()


def test_no_vectors_no_results() -> None:
    key_Bk = nearest(np.ones((2, 4), np.float32), np.empty((0, 4), np.float32), 3, excluded=[np.array([1])] * 2)
    assert (key_Bk == NOTHING).all()
