"""Every kind of index: what it finds, filters, changes, and the same again from disk."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.index.oracle import clustered, naive, whole_numbers
from twotower.errors import ArtifactError, ConfigError, DataError
from twotower.index import HNSW, IVFPQ, IVFSQ8, KINDS, LSH, Exact, Found, Index, IndexSettings
from twotower.index.files import INDEX
from twotower.index.structures import Structure

pytest.importorskip("faiss")

WIDTH = 16
EXHAUSTIVE: list[IndexSettings] = [
    Exact(),
    IVFSQ8(nlist=8, nprobe=8, k_factor=4.0),
    IVFPQ(nlist=8, nprobe=8, m=8, k_factor=40.0),
    HNSW(ef_search=600, k_factor=2.0),
    LSH(bits=256, k_factor=100.0),
]
"""Each kind looking so hard that it finds everything among some hundred items."""
USUAL: list[IndexSettings] = [Exact(), IVFSQ8(), IVFPQ(), HNSW(), LSH()]


def kind_of(one: IndexSettings) -> str:
    return type(one).__name__


def expect(found: Found, place: int, wanted: list[tuple[int, float]]) -> None:
    """Rows may change places where scores are equal but for rounding."""
    n = len(wanted)
    assert (found.row_Bk[place, n:] == -1).all()
    assert (found.score_Bk[place, n:] == -np.inf).all()
    assert sorted(found.row_Bk[place, :n].tolist()) == sorted(row for row, _ in wanted)
    assert found.score_Bk[place, :n].tolist() == pytest.approx([score for _, score in wanted], abs=1e-5)


def recall(found: Found, truth: Found) -> float:
    return float(np.mean([np.isin(b[b >= 0], a).mean() for a, b in zip(found.row_Bk, truth.row_Bk, strict=True)]))


@cache
def some_vectors() -> NDArray[np.float32]:
    return clustered(np.random.default_rng(1), 3_000, WIDTH)


@cache
def built(kind: IndexSettings) -> Index:
    return Index.build(some_vectors(), kind)


def test_every_kind_is_tested() -> None:
    assert {type(one) for one in EXHAUSTIVE} == {type(one) for one in USUAL} == set(KINDS)


@pytest.mark.parametrize("kind", EXHAUSTIVE, ids=kind_of)
@pytest.mark.parametrize("unit", [True, False], ids=["unit", "of all lengths"])
def test_scores_are_inner_products_whatever_the_lengths(kind: IndexSettings, unit: bool) -> None:
    rng = np.random.default_rng(0)
    vector_MD, query_BD = clustered(rng, 400, WIDTH, unit=unit), clustered(rng, 5, WIDTH, unit=unit)
    vector_MD *= 1 if unit else rng.uniform(0.2, 3.0, (400, 1)).astype(np.float32)
    found = Index.build(vector_MD, kind).search(query_BD, 10)
    assert found.row_Bk.dtype == np.int64
    assert found.score_Bk.dtype == np.float32
    for place, query_D in enumerate(query_BD):
        expect(found, place, naive(query_D, dict(enumerate(vector_MD)), 10))


@pytest.mark.parametrize("kind", [one for one in USUAL if not isinstance(one, Exact)], ids=kind_of)
@pytest.mark.parametrize("unit", [True, False], ids=["unit", "of all lengths"])
def test_as_set_it_finds_most(kind: IndexSettings, unit: bool) -> None:
    rng = np.random.default_rng(0)
    vector_MD, query_BD = clustered(rng, 2_500, WIDTH, unit=unit), clustered(rng, 200, WIDTH, unit=unit)
    vector_MD *= 1 if unit else rng.lognormal(0, 0.4, (len(vector_MD), 1)).astype(np.float32)
    truth = Index.build(vector_MD).search(query_BD, 20)
    assert recall(Index.build(vector_MD, kind).search(query_BD, 20), truth) > 0.85


@pytest.mark.parametrize("kind", USUAL, ids=kind_of)
@pytest.mark.parametrize("share", [0.004, 0.03, 0.3, 0.97])
def test_filters_never_leave_fewer_than_there_are(
    kind: IndexSettings, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twotower.index.index.EXACT_BELOW", 5)  # so that a structure is asked at all
    monkeypatch.setattr(Structure, "is_worth_it", lambda *_: True)
    rng = np.random.default_rng(0)
    vector_MD, query_BD = some_vectors(), clustered(rng, 20, WIDTH)
    allowed = vector_MD[:, 0] <= np.quantile(vector_MD[:, 0], share)  # not where most queries look
    excluded = [rng.choice(3_000, 500, replace=False) for _ in query_BD]
    truth = Index.build(vector_MD).search(query_BD, 40, allowed=allowed, excluded=excluded)
    index = built(kind).look(kind)  # changes of this one are its own
    index.delete(np.arange(100))
    index.upsert(np.arange(100), vector_MD[:100])
    found = index.search(query_BD, 40, allowed=allowed, excluded=excluded)
    for place, gone in enumerate(excluded):
        there = np.setdiff1d(np.flatnonzero(allowed), gone)
        rows = found.row_Bk[place][found.row_Bk[place] >= 0]
        assert len(set(rows.tolist())) == len(rows) == min(40, len(there))
        assert np.isin(rows, there).all()
    assert (found.score_Bk[:, 1:] <= found.score_Bk[:, :-1]).all()
    assert recall(found, truth) > 0.8


@pytest.mark.parametrize("kind", EXHAUSTIVE, ids=kind_of)
def test_a_mask_may_be_shorter_than_the_catalogue(kind: IndexSettings) -> None:
    vector_MD = whole_numbers(np.random.default_rng(0), 300, WIDTH)
    index = Index.build(vector_MD, kind)
    index.upsert([400], np.full((1, WIDTH), 9.0))
    query = np.ones((1, WIDTH))
    assert index.search(query, 1).row_Bk.tolist() == [[400]]
    assert index.search(query, 400, allowed=np.ones(300, bool)).row_Bk.max() == 299
    assert index.search(query, 1, allowed=np.ones(900, bool)).row_Bk.tolist() == [[400]]


@pytest.mark.parametrize("kind", EXHAUSTIVE, ids=kind_of)
@settings(max_examples=15)
@given(data=st.data())
def test_any_order_of_changes_is_what_a_dict_says(kind: IndexSettings, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n = data.draw(st.sampled_from([3, 300, 330]))
    live_M = rng.random(n) < data.draw(st.sampled_from([0.9, 1.0]))
    vector_MD = clustered(rng, n, WIDTH)
    items = {int(row): vector_MD[row] for row in np.flatnonzero(live_M)}
    index = Index.build(vector_MD, kind, live_M=live_M)
    for change in data.draw(st.lists(st.sampled_from(["upsert", "delete", "compact"]), max_size=6)):
        rows = rng.choice(n + 50, rng.integers(0, 12), replace=False)
        if change == "upsert":
            vectors = clustered(rng, len(rows), WIDTH)
            index.upsert(rows, vectors)
            items |= {int(row): vector for row, vector in zip(rows, vectors, strict=True)}
        elif change == "delete":
            index.delete(rows)
            items = {row: vector for row, vector in items.items() if row not in rows}
        else:
            index.compact()
            assert index.stale_share == 0.0
        query_BD, excluded = clustered(rng, 2, WIDTH), [rng.choice(n, 2, replace=False) for _ in range(2)]
        found = index.search(query_BD, 8, excluded=excluded)
        assert index.n == len(items)
        assert index.holds(np.arange(n + 60)).tolist() == [row in items for row in range(n + 60)]
        for place in range(2):
            wanted = naive(query_BD[place], items, 8, without=set(excluded[place].tolist()))
            expect(found, place, wanted)
            expect(index.search(query_BD[place : place + 1], 8, excluded=[excluded[place]]), 0, wanted)


@pytest.mark.parametrize("kind", USUAL, ids=kind_of)
@pytest.mark.parametrize("mmap", [True, False])
def test_what_is_saved_opens_and_finds_the_same(kind: IndexSettings, mmap: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vector_MD, query_BD = clustered(rng, 800, WIDTH, unit=False), clustered(rng, 10, WIDTH)
    index = Index.build(vector_MD, kind, live_M=rng.random(800) < 0.9, seed=5)
    index.upsert([3, 900], clustered(rng, 2, WIDTH))
    index.delete([1, 2])
    before = index.search(query_BD, 30)
    index.save(tmp_path / "index")
    opened = Index.open(tmp_path / "index", mmap=mmap, verify=True)
    after = opened.search(query_BD, 30)
    assert (after.row_Bk == before.row_Bk).all()
    assert (after.score_Bk == before.score_Bk).all()
    assert (opened.settings, opened.n, opened.n_rows, opened.seed) == (kind, index.n, 901, 5)
    assert opened.stale_share == index.stale_share > 0
    opened.delete(before.row_Bk[:, 0])
    opened.compact()
    opened.save(tmp_path / "index")  # over the files that it has mapped
    again = Index.open(tmp_path / "index").search(query_BD, 30)
    assert not np.isin(again.row_Bk, before.row_Bk[:, 0]).any()


@pytest.mark.parametrize("kind", USUAL, ids=kind_of)
def test_the_same_seed_builds_the_same_files(kind: IndexSettings, tmp_path: Path) -> None:
    vector_MD = clustered(np.random.default_rng(0), 1_000, WIDTH)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        Index.build(vector_MD, kind, seed=seed).save(tmp_path / name)
    a, b, c = (INDEX.read(tmp_path / name)["files"] for name in "abc")
    assert a == b
    assert isinstance(kind, Exact) or a != c


def test_an_index_without_vectors_takes_them_from_its_owner(tmp_path: Path) -> None:
    vector_MD = clustered(np.random.default_rng(0), 500, WIDTH)
    index = Index.build(vector_MD, IVFSQ8())
    index.save(tmp_path / "index", vectors=False)
    with pytest.raises(ArtifactError, match="saved without its vectors: give them"):
        Index.open(tmp_path / "index")
    with pytest.raises(ArtifactError, match="the index belongs to others"):
        Index.open(tmp_path / "index", vector_MD=vector_MD[1:])
    opened = Index.open(tmp_path / "index", vector_MD=vector_MD)
    assert (opened.search(vector_MD[:5], 9).row_Bk == index.search(vector_MD[:5], 9).row_Bk).all()
    index.upsert([0], vector_MD[:1])
    with pytest.raises(ConfigError, match="1 items changed since the index was built"):
        index.save(tmp_path / "index", vectors=False)


def _break_size(folder: Path) -> None:
    with open(folder / "base.faiss", "ab") as file:
        file.write(b"x")


def _break_content(folder: Path) -> None:
    content = bytearray((folder / "vectors.bin").read_bytes())
    content[-1] ^= 1
    (folder / "vectors.bin").write_bytes(content)


def _break_faiss(folder: Path) -> None:
    size = (folder / "base.faiss").stat().st_size
    (folder / "base.faiss").write_bytes(b"x" * size)


def _edit(folder: Path, **changes: object) -> None:
    """As if it had been written with other facts, all checksums right."""
    manifest = INDEX.read(folder)
    (folder / "index.json").unlink()
    body = {name: value for name, value in manifest.items() if name not in ("format", "version", "files")}
    INDEX.write(folder, body | changes)


def _as_other(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda folder: (folder / "index.json").unlink(),
            "there is no index here .*: make one with twotower index build",
        ),
        (lambda folder: (folder / "index.json").write_text("{"), "can't be read"),
        (
            lambda folder: _as_other(folder, version=99),
            "the index has version 99, this program reads version 1: use a newer twotower, or build the index again",
        ),
        (lambda folder: _as_other(folder, format="twotower bundle"), "this is not the manifest of an index"),
        (lambda folder: _as_other(folder, n=401), r"the manifest is damaged \(its checksum differs\)"),
        (lambda folder: _edit(folder, settings={"kind": "IVFSQ9"}), "did you mean 'IVFSQ8'"),
        (lambda folder: _edit(folder, n_built="many"), "is damaged"),
        (lambda folder: _edit(folder, arrays={}), "saved without its vectors"),
        (lambda folder: (folder / "live.bin").unlink(), "the index is incomplete, live.bin is missing: build the"),
        (_break_size, "the index is damaged, base.faiss has .* bytes, expected"),
        (_break_content, "the index is damaged, the checksum of vectors.bin differs"),
        (_break_faiss, "the checksum of base.faiss differs"),
    ],
)
def test_a_damaged_index_is_refused(harm: object, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    Index.build(clustered(np.random.default_rng(0), 400, WIDTH), IVFSQ8()).save(folder)
    harm(folder)  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=message):
        Index.open(folder, verify=True)


def test_faiss_that_is_damaged_is_refused_without_a_look_at_checksums(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    Index.build(clustered(np.random.default_rng(0), 400, WIDTH), IVFSQ8()).save(folder)
    _break_faiss(folder)
    with pytest.raises(ArtifactError, match="Faiss can't read it"):
        Index.open(folder)


def test_only_an_index_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "mine.txt").write_text("keep")
    index = Index.build(np.eye(3, dtype=np.float32))
    with pytest.raises(ArtifactError, match=r"holds what is no part of an index \(mine.txt\)"):
        index.save(tmp_path / "index")
    with pytest.raises(ArtifactError, match="there is a file"):
        index.save(tmp_path / "index" / "mine.txt")
    assert [path.name for path in tmp_path.rglob("*")] == ["index", "mine.txt"]


def test_an_index_that_can_not_be_written_leaves_the_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faiss on a full disk."""
    vector_MD = clustered(np.random.default_rng(0), 400, WIDTH)
    Index.build(vector_MD, IVFSQ8(), seed=1).save(tmp_path / "index")

    def full(self: object, path: str) -> None:
        raise RuntimeError("Error in write at io.cpp:9: Error: 'ret == n' failed: write error in " + path)

    monkeypatch.setattr("faiss.write_index", full)
    with pytest.raises(ArtifactError, match=r"index: the index can't be written \('ret == n' failed: write error in"):
        Index.build(vector_MD, IVFSQ8(), seed=2).save(tmp_path / "index")
    assert Index.open(tmp_path / "index", verify=True).seed == 1
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_an_index_knows_whose_it_is(tmp_path: Path) -> None:
    """Of the vectors and rows that it was built of, up to rounding; not of others, nor after a change."""
    vector_MD, live_M = clustered(np.random.default_rng(0), 400, WIDTH), np.arange(400) % 5 > 0
    index = Index.build(vector_MD, IVFSQ8(), live_M=live_M)
    index.save(tmp_path / "index")
    opened = Index.open(tmp_path / "index")
    moved, gone = vector_MD.copy(), vector_MD.copy()
    moved[399, 0] += 1e-3
    gone[400 // 5 * 4] = 7.0  # row 320 is in nobody's list
    for one in (index, opened):
        assert one.is_of(vector_MD, live_M)
        assert one.is_of(vector_MD * np.float32(1 + 1e-7), live_M)
        assert one.is_of(gone, live_M)
        assert not one.is_of(moved, live_M)
        assert not one.is_of(vector_MD, np.arange(400) % 5 > 1)
        assert not one.is_of(vector_MD[:399], live_M[:399])
    opened.upsert([1], vector_MD[:1])
    assert not opened.is_of(vector_MD, live_M)


@pytest.mark.parametrize(
    "kind", [IVFSQ8(nlist=8, nprobe=8, k_factor=1.5), HNSW(ef_search=600, k_factor=1.5)], ids=kind_of
)
def test_a_single_query_counts_what_it_came_up_with(kind: IndexSettings) -> None:
    """10 and as many as are excluded, of which those that it came up with are left out, whatever it looked at."""
    vector_MD, query_1D = some_vectors(), clustered(np.random.default_rng(3), 1, WIDTH)
    index = Index.build(vector_MD, kind)
    best = np.array([row for row, _ in naive(query_1D[0], dict(enumerate(vector_MD)), 12)])
    excluded = np.union1d(best[[0, 3]], [2_998, 2_999])
    one = index.search_one(query_1D, 10, excluded)
    assert one is not None
    assert (one.row_k.tolist(), one.found, one.left) == (np.delete(best, [0, 3]).tolist(), 14, 12)
    assert one.score_k.tolist() == pytest.approx((vector_MD[one.row_k] @ query_1D[0]).tolist())
    index.upsert([2_998, 4_000], np.concatenate([9 * query_1D, 8 * query_1D]))
    changed = index.search_one(query_1D, 10, excluded)
    assert changed is not None
    assert (changed.row_k.tolist(), changed.found) == ([4_000, *one.row_k[:9].tolist()], 14)
    assert index.search_one(query_1D, 3_000, excluded) is None  # there are no more than 2,997: left to the long way
    assert (index.search(query_1D, 3_000, excluded=[excluded]).row_Bk >= 0).sum() == 2_997


@pytest.mark.parametrize("kind", EXHAUSTIVE, ids=kind_of)
def test_a_query_that_is_not_finite_is_refused_and_a_long_one_is_not(kind: IndexSettings) -> None:
    index = built(kind)
    for number in (np.nan, np.inf, -np.inf):
        query_1D = np.ones((1, WIDTH), np.float32)
        query_1D[0, 3] = number
        for excluded in (None, [np.array([1, 2])]):
            with pytest.raises(DataError, match="vector 0 is not finite"):
                index.search(query_1D, 5, excluded=excluded)
    query_1D = np.ones((1, WIDTH), np.float32)
    assert index.search(1e20 * query_1D, 5).row_Bk.tolist() == index.search(query_1D, 5).row_Bk.tolist()


def test_searches_of_one_query_side_by_side() -> None:
    """Threads share a structure, but not what it writes its findings into."""
    index, query_BD = built(IVFSQ8(nlist=8, nprobe=8, k_factor=4.0)), clustered(np.random.default_rng(4), 64, WIDTH)
    wanted = [index.search(query[None], 1 + n).row_Bk.tolist() for n, query in enumerate(query_BD)]

    def ask(_: int) -> bool:
        return all(index.search(query[None], 1 + n).row_Bk.tolist() == wanted[n] for n, query in enumerate(query_BD))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(ask, range(40)))


def test_settings_of_the_search_change_without_building() -> None:
    rng = np.random.default_rng(0)
    vector_MD, query_BD = clustered(rng, 4_000, WIDTH), clustered(rng, 100, WIDTH)
    index = Index.build(vector_MD, IVFSQ8(nlist=64, nprobe=1))
    truth = Index.build(vector_MD).search(query_BD, 20)
    wider = index.look(IVFSQ8(nlist=64, nprobe=64, k_factor=2.0))
    assert recall(index.search(query_BD, 20), truth) < 0.8
    assert recall(wider.search(query_BD, 20), truth) > 0.99
    assert (index.most, Index.build(vector_MD).most) == (64, 1)
    with pytest.raises(ConfigError, match="only nprobe, k_factor, filter_factor may differ"):
        index.look(IVFSQ8(nlist=32))
    with pytest.raises(ConfigError, match="only nprobe, k_factor, filter_factor may differ"):
        index.look(HNSW())


def test_searches_beside_changes_see_a_whole_index() -> None:
    """One item of two is there at any moment: a search must never find both or none."""
    rng = np.random.default_rng(0)
    vector_MD = 0.1 * clustered(rng, 2_000, WIDTH)
    query_BD = clustered(rng, 1, WIDTH)
    index = Index.build(vector_MD, IVFSQ8(nlist=16, nprobe=16))
    index.upsert([0, 1], np.concatenate([query_BD, query_BD]))
    index.delete([1])
    stop, seen = threading.Event(), set()

    def search() -> None:
        while not stop.is_set():
            seen.add(tuple(index.search(query_BD, 2).row_Bk[0].tolist()))

    searching = threading.Thread(target=search)
    searching.start()
    for step in range(30):
        index.upsert([0], query_BD * (1 + step % 2))
        if step % 10 == 0:
            index.compact()
    stop.set()
    searching.join()
    assert {found[0] for found in seen} == {0}
    assert len(seen) == 1


def test_changes_during_a_compaction_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from twotower.index import structures

    vector_MD = clustered(np.random.default_rng(0), 600, WIDTH)
    index = Index.build(vector_MD, IVFSQ8(nlist=4, nprobe=4))
    build = structures.build

    def build_while_changing(*args: object, **kwargs: object) -> object:
        index.delete([7])
        index.upsert([8, 700], vector_MD[[9, 7]])
        return build(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(structures, "build", build_while_changing)
    index.compact()
    found = index.search(vector_MD[[7, 8, 9]], 2)
    assert found.row_Bk[0, 0] == 700
    assert 8 not in found.row_Bk[1, :1]
    assert sorted(found.row_Bk[2].tolist()) == [8, 9]
    assert index.n == 600


def test_memory_is_what_the_kinds_promise() -> None:
    vector_MD = clustered(np.random.default_rng(0), 2_000, 32)
    bytes_of = {kind_of(one): Index.build(vector_MD, one).memory_bytes() / 2_000 for one in USUAL}
    assert bytes_of["Exact"] == 32 * 4 + 1
    assert bytes_of["IVFSQ8"] == pytest.approx(32 + 8 + 1, rel=0.4)  # codes, ids, mask; centres on top
    projections = 4 * 32 * 32 * 4 / 2_000
    assert bytes_of["LSH"] - projections == pytest.approx(4 * 32 / 8 + 1, rel=0.1)
    codebooks = 256 * 32 * 4 / 2_000  # a constant, which few items share
    assert bytes_of["IVFPQ"] - codebooks < bytes_of["IVFSQ8"] < bytes_of["Exact"] < bytes_of["HNSW"]


def test_a_centre_takes_two_bytes_a_number() -> None:
    vector_MD = clustered(np.random.default_rng(0), 2_000, 128)
    few, many = (Index.build(vector_MD, IVFSQ8(nlist=nlist)).memory_bytes() for nlist in (16, 48))
    assert 2 * 128 <= (many - few) / 32 < 2 * 128 + 32, "and what Faiss writes of a list"


@pytest.mark.parametrize("settings", [IVFSQ8(), IVFPQ()])
def test_a_vector_that_would_end_the_process_is_refused(settings: IndexSettings) -> None:
    vector_MD = clustered(np.random.default_rng(0), 1_000, 16)
    vector_MD[5] *= np.float32(1e14)
    assert Index.build(vector_MD, settings).search(vector_MD[:1], 3).row_Bk.shape == (1, 3)
    vector_MD[5] *= np.float32(1e11)
    with pytest.raises(DataError, match=r"vectors: number 5 of the live ones is 1e\+25 times as long as is usual"):
        Index.build(vector_MD, settings)


@pytest.mark.parametrize("settings", [IVFSQ8(nlist=64, nprobe=64, k_factor=1.0), IVFPQ(nlist=64, nprobe=64, m=16)])
def test_how_long_vectors_are_is_nothing_to_lists(settings: IndexSettings) -> None:
    """By a power of two they change without rounding, so that the same rows are found. Every list is looked into:
    what is missing is what codes and rounded centres got wrong."""
    rng = np.random.default_rng(0)
    vector_MD, query_QD = clustered(rng, 4_000, 32), clustered(rng, 50, 32)
    found = [
        Index.build(vector_MD * np.float32(scale), settings).search(query_QD, 50).row_Bk
        for scale in (2.0**-80, 1.0, 2.0**80)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[2], found[1])
    truth = Index.build(vector_MD).search(query_QD, 50).row_Bk
    shared = [len(np.intersect1d(a, b)) / 50 for a, b in zip(found[1], truth, strict=True)]
    assert np.mean(shared) > (0.98 if isinstance(settings, IVFSQ8) else 0.8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: IVFSQ8(nprobe=0), "nprobe is 0, expected at least 1"),
        (lambda: IVFSQ8(k_factor=math.inf), "k_factor is inf, expected at least 1"),
        (lambda: IVFPQ(m=0), "m is 0, expected at least 1"),
        (lambda: HNSW(m=1), "m is 1, expected at least 2"),
        (lambda: LSH(bits=9), "bits is 9, expected a multiple of 8"),
        (lambda: LSH(k_factor=0.5), "k_factor is 0.5, expected at least 1"),
        (lambda: LSH(k_factor=float("nan")), "k_factor is nan, expected at least 1"),
        (lambda: Index.build(np.eye(300, dtype=np.float32), IVFSQ8(nlist=301)), "expected at most 300"),
        (lambda: Index.build(np.ones((300, 16), np.float32), IVFPQ(m=5)), "expected a divisor of the width"),
    ],
)
def test_settings_that_can_not_be_are_refused(settings: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings()  # type: ignore[operator]


def test_what_can_not_be_searched_or_stored_is_refused() -> None:
    index = Index.build(np.eye(4, dtype=np.float32))
    one = np.ones((1, 4), np.float32)
    for call, message in (
        (lambda: Index.build(np.eye(4)), "found float64"),
        (lambda: Index.build(np.full((2, 2), np.nan, np.float32)), "that of row 0 is not finite"),
        (lambda: Index.build(np.eye(4, dtype=np.float32), live_M=np.ones(3, bool)), "live_M"),
        (lambda: index.search(one[:, :3], 1), r"expected \(queries, 4\)"),
        (lambda: index.search(one * np.inf, 1), "vector 0 is not finite"),
        (lambda: index.search(one, 0), "k is 0"),
        (lambda: index.search(one, 1, allowed=np.ones(4)), "allowed: found float64"),
        (lambda: index.search(one, 1, excluded=[]), "found 0 arrays"),
        (lambda: index.upsert([0, 0], np.ones((2, 4))), "given twice"),
        (lambda: index.upsert([0], np.ones((2, 4))), r"expected \(1, 4\)"),
        (lambda: index.upsert([0], one * np.nan), "not finite"),
        (lambda: index.upsert([-1], one), "expected 0 to"),
        (lambda: index.delete([0.5]), "whole numbers"),
    ):
        with pytest.raises(DataError, match=message):
            call()
    assert index.search(one, 9).row_Bk.tolist() == [[0, 1, 2, 3, -1, -1, -1, -1, -1]]


def test_without_faiss_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"pip install 'twotower\[faiss\]'"):
        Index.build(np.eye(4, dtype=np.float32), HNSW())
    assert Index.build(np.eye(4, dtype=np.float32)).n == 4


def test_exact_needs_neither_torch_nor_faiss() -> None:
    program = (
        "import sys, numpy as np; from twotower.index import Index;"
        "Index.build(np.eye(4, dtype=np.float32)).search(np.ones((1, 4)), 2);"
        "print([n for n in ('torch', 'faiss', 'pyarrow') if n in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        IVFSQ8().nprobe = 3  # type: ignore[misc]


@pytest.mark.parametrize("kind", EXHAUSTIVE, ids=kind_of)
def test_of_no_queries_nothing_is_found(kind: IndexSettings) -> None:
    vector_MD = clustered(np.random.default_rng(0), 300, WIDTH)
    found = Index.build(vector_MD, kind).search(vector_MD[:0], 5, excluded=[])
    assert found.row_Bk.shape == found.score_Bk.shape == (0, 5)
