"""Tuning meets its target on queries that it did not see, and reports say what is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from tests.index.oracle import clustered
from twotower.errors import ArtifactError, ConfigError, DataError
from twotower.index import HNSW, IVFPQ, IVFSQ8, LSH, Exact, Found, Index, IndexSettings, recall_of, report, tune
from twotower.index.kinds import decode, default_m, default_nlist
from twotower.index.structures import Structure
from twotower.index.tuning import Tuned, _least, lower_bound

pytest.importorskip("faiss")

WIDTH, K = 16, 20
KINDS: list[IndexSettings] = [IVFSQ8(nlist=128), IVFPQ(nlist=128, m=4), HNSW(m=4, ef_construction=20), LSH(bits=64)]


def found(rows: list[list[int]], scores: list[list[float]]) -> Found:
    return Found(row_Bk=np.array(rows), score_Bk=np.array(scores, np.float32))


def test_recall_counts_what_ties_with_the_last() -> None:
    truth = found([[1, 2, 3], [4, 5, -1], [-1, -1, -1]], [[3, 2, 2], [9, 8, -np.inf], [-np.inf] * 3])
    other = found([[1, 9, 8], [4, 7, 6], [-1, -1, -1]], [[3, 2, 1], [9, 7.9, 7], [-np.inf] * 3])
    # 1, and 9 which scores as much as 3; 4 alone; nothing of nothing.
    assert recall_of(other, truth).tolist() == [2 / 3, 1 / 2, 1.0]


def test_the_lower_bound_is_of_queries() -> None:
    recall_Q = np.array([1.0, 0.5] * 50)
    error = 0.25 * math.sqrt(100 / 99) / 10
    assert lower_bound(recall_Q) == pytest.approx(0.75 - 1.6448536 * error)
    assert lower_bound(recall_Q, 25) == pytest.approx(0.75 - 2.8781617 * error)  # the normal's quantile of .998


@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize("answer", [1, 2, 3, 4, 5, 17, 63, 64, 65])
def test_the_least_number_that_meets_the_target_is_found(least: int, answer: int) -> None:
    looked: list[int] = []

    def look(number: int) -> Tuned:
        looked.append(number)
        recall = 1.0 if number >= answer else 0.5
        settings = HNSW(ef_search=number)
        return Tuned(settings=settings, k=1, target_recall=0.9, recall=recall, low=recall, n_queries=30)

    tuned = _least(look, least, 64)
    assert tuned.met == (answer <= 64)
    assert tuned.settings == HNSW(ef_search=min(max(answer, least), 64))
    assert len(looked) == len(set(looked)) <= 14


@pytest.mark.parametrize("kind", KINDS, ids=lambda one: type(one).__name__)
def test_the_target_is_met_on_other_queries(kind: IndexSettings) -> None:
    rng = np.random.default_rng(3)
    index = Index.build(clustered(rng, 6_000, WIDTH), kind)
    tuning_QD, query_QD = clustered(rng, 400, WIDTH), clustered(rng, 400, WIDTH)
    tuned = tune(index, tuning_QD, k=K, target_recall=0.9)
    assert tuned.met
    assert tuned.recall >= tuned.low >= 0.9
    truth = index.search(query_QD, K, exact=True)
    recall_Q = recall_of(index.look(tuned.settings).search(query_QD, K), truth)
    assert recall_Q.mean() >= 0.9
    # And no harder than it must: one list less would miss the target.
    if isinstance(tuned.settings, (IVFSQ8, IVFPQ)) and tuned.settings.nprobe > 1:
        less = replace(tuned.settings, nprobe=tuned.settings.nprobe - 1)
        missed_Q = recall_of(index.look(less).search(tuning_QD, K), index.search(tuning_QD, K, exact=True))
        assert lower_bound(missed_Q, 25) < 0.9


def test_lists_that_miss_are_no_reason_to_rank_more() -> None:
    """Without clusters the best items lie in many lists; their codes are as right as ever."""
    rng = np.random.default_rng(0)
    vector_MD, query_QD = (rng.standard_normal((n, 64), np.float32) for n in (4_000, 120))
    tuned = tune(Index.build(vector_MD, IVFSQ8(nlist=100)), query_QD, k=K, target_recall=0.95).settings
    assert isinstance(tuned, IVFSQ8)
    assert tuned.nprobe > 30
    assert tuned.k_factor <= 1.5


def test_lists_too_short_for_k_are_no_success() -> None:
    """A list of ten items can't hold the best twenty: one list would be completed by looking at everything."""
    rng = np.random.default_rng(0)
    index = Index.build(clustered(rng, 3_000, WIDTH), IVFSQ8(nlist=300, nprobe=1))
    query_QD = clustered(rng, 60, WIDTH)
    short, truth = index.search(query_QD, K, complete=False), index.search(query_QD, K, exact=True)
    assert (short.row_Bk == -1).any()
    assert recall_of(index.search(query_QD, K), truth).mean() > recall_of(short, truth).mean()
    tuned = tune(index, query_QD, k=K, target_recall=0.9)
    assert isinstance(tuned.settings, IVFSQ8)
    assert tuned.settings.nprobe > 2
    assert tuned.met


def test_a_target_out_of_reach_is_not_met() -> None:
    rng = np.random.default_rng(0)
    index = Index.build(clustered(rng, 9_000, WIDTH), HNSW(m=2, ef_construction=1))
    tuned = tune(index, clustered(rng, 50, WIDTH), k=K, target_recall=0.999)
    assert not tuned.met
    assert tuned.low < 0.999


def test_exact_needs_no_tuning_and_too_little_to_tune_on_is_refused() -> None:
    rng = np.random.default_rng(0)
    index = Index.build(clustered(rng, 500, WIDTH))
    tuned = tune(index, clustered(rng, 30, WIDTH), k=K, target_recall=0.99)
    assert (tuned.settings, tuned.recall, tuned.low, tuned.met) == (Exact(), 1.0, 1.0, True)
    with pytest.raises(DataError, match="found 29 queries, expected at least 30"):
        tune(index, clustered(rng, 29, WIDTH))
    with pytest.raises(ConfigError, match="target_recall is 1"):
        tune(index, clustered(rng, 30, WIDTH), target_recall=1.0)


def test_defaults_by_size() -> None:
    assert [default_nlist(n) for n in (10, 1_000, 100_000, 1_000_000, 67_108_864)] == [1, 25, 1024, 4096, 32_768]
    assert [default_m(width) for width in (1, 2, 7, 16, 48, 64, 90)] == [1, 1, 1, 8, 24, 32, 45]
    assert decode("IVFPQ", ["nprobe=3", "m=8"]) == IVFPQ(nprobe=3, m=8)
    with pytest.raises(ConfigError, match=r"index\.nprobes is not a setting of IVFSQ8: did you mean 'nprobe'\?"):
        decode("IVFSQ8", ["nprobes=3"])
    with pytest.raises(ConfigError, match=r"found 'IVF'.*expected one of Exact, IVFSQ8"):
        decode("IVF")


def test_a_report_says_what_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vector_MD, query_QD = clustered(rng, 3_000, WIDTH), clustered(rng, 200, WIDTH)
    count_M = rng.permutation(3_000)
    live_M = rng.random(3_000) < 0.9
    kinds = (Exact(), IVFSQ8(nlist=32))
    found = report(
        vector_MD, query_QD, count_M=count_M, live_M=live_M, kinds=kinds, k=K, target_recall=0.9, filter_share=0.1
    )
    exact, lists = found.lines
    assert (found.n_items, found.k, found.n_queries) == (int(live_M.sum()), K, 100)
    assert exact.recall == exact.low == 1.0
    assert set(exact.recall_by_decile) == {1.0}
    assert exact.curve == ()
    assert (exact.kind, lists.kind) == ("Exact", "IVFSQ8")
    assert exact.memory_bytes == 3_000 * (WIDTH * 4 + 1)
    assert 0.85 < lists.recall < 1.0
    assert len(lists.recall_by_decile) == 10
    recalls = [recall for recall in lists.recall_by_decile if recall is not None]
    assert min(recalls) <= lists.recall <= max(recalls)
    assert all(one.recall == 1.0 for one in lists.filtered.values())  # so few items are all looked at
    looks = [point.look for point in lists.curve]
    assert looks == sorted(looks)
    assert isinstance(lists.settings, IVFSQ8)
    assert lists.settings.nprobe in looks
    shown = found.render()
    assert "recall@20" in shown
    assert "NOT met" not in shown
    tree = json.loads(found.to_json())
    assert tree["lines"][1]["settings"]["kind"] == "IVFSQ8"
    assert found.plot(tmp_path / "index.png")
    assert (tmp_path / "index.png").stat().st_size > 1000
    with pytest.raises(ArtifactError, match="can't be written there"):
        found.plot(tmp_path / "no" / "index.png")


def test_deciles_are_tenths_by_popularity() -> None:
    """Of two lists of items the index holds only one: exactly the right ones of one decile are found."""
    from twotower.index.report import _deciles

    live_M = np.ones(40, bool)
    live_M[::4] = False
    count_M = np.arange(40)
    decile_M = _deciles(count_M, live_M)
    rows = np.flatnonzero(live_M)[::-1]  # most popular first
    assert decile_M[rows].tolist() == [place // 3 for place in range(30)]


def test_a_report_of_too_little_is_refused() -> None:
    vector_MD = clustered(np.random.default_rng(0), 100, WIDTH)
    with pytest.raises(DataError, match="found 59 held-out queries, expected at least 60"):
        report(vector_MD, vector_MD[:59], count_M=np.ones(100))
    with pytest.raises(DataError, match="count_M"):
        report(vector_MD, vector_MD, count_M=np.ones(99))
    with pytest.raises(ConfigError, match="filter_share is 1"):
        report(vector_MD, vector_MD, count_M=np.ones(100), filter_share=1.0)


@pytest.mark.parametrize("kind", [IVFSQ8(nlist=128), HNSW(), LSH(bits=128)], ids=lambda one: type(one).__name__)
def test_the_target_holds_under_a_filter_too(kind: IndexSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("twotower.index.index", "twotower.index.tuning"):
        monkeypatch.setattr(import_module(module), "EXACT_BELOW", 100)
    monkeypatch.setattr(Structure, "is_worth_it", lambda *_: True)
    rng = np.random.default_rng(0)
    index = Index.build(clustered(rng, 12_000, WIDTH), kind)
    tuned = tune(index, clustered(rng, 300, WIDTH), k=K, target_recall=0.9).settings
    assert not isinstance(tuned, Exact)
    query_QD, allowed = clustered(rng, 300, WIDTH), rng.random(12_000) < 0.1
    truth = index.search(query_QD, K, allowed=allowed, exact=True)
    recall_Q = recall_of(index.look(tuned).search(query_QD, K, allowed=allowed), truth)
    assert recall_Q.mean() > 0.9 - 4 * recall_Q.std() / math.sqrt(len(recall_Q)) - 0.01  # another mask than tuned on
    if tuned.filter_factor > 1:
        less_Q = recall_of(index.look(replace(tuned, filter_factor=1.0)).search(query_QD, K, allowed=allowed), truth)
        assert less_Q.mean() < recall_Q.mean()
