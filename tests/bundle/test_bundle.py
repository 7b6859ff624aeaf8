"""From a model to a bundle: the same answers, and a folder that is whole or refused."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from tests.bundle import shop
from twotower import cli
from twotower.bundle import Bundle, Recommendation
from twotower.bundle.attributes import read_attributes, rows_where, where_of
from twotower.bundle.bundle import BUNDLE
from twotower.config import Training
from twotower.data.vocabulary import Vocabulary
from twotower.errors import ArtifactError, ConfigError, DataError
from twotower.index import HNSW, IVFPQ, IVFSQ8, LSH, Exact, Found, Index, IndexSettings
from twotower.schema import Id, Interactions, Life, Schema, Text
from twotower.towers import Graph, TwoTower
from twotower.training import (
    Retriever,
    build_index,
    export,
    export_version,
    forget,
    history,
    recommend,
    similar,
    train,
    update,
)

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop.trained(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def folder(model: Path) -> Path:
    done = export(model, model.parent / "bundle", licence="CC0-1.0")
    assert done.difference < 1e-5
    assert (done.n_items, done.n_queries) == (shop.ITEMS, shop.USERS)
    assert done.attributes == ("kind", "price", "title", "year")
    return done.folder


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return Bundle.open(folder, verify=True)


@pytest.fixture(scope="module")
def retriever(model: Path) -> Retriever:
    return Retriever.open(model)


def same(found: list[Recommendation], want: list[Recommendation]) -> None:
    """Equal scores at each place; equal items but where neighbours tie."""
    assert np.allclose([r.score for r in found], [r.score for r in want], atol=1e-5, rtol=0)
    assert len(found) == len(want)
    for place, (ours, theirs) in enumerate(zip(found, want, strict=True)):
        tied = {r.item for r in want if abs(r.score - want[place].score) < 2e-5}
        assert ours.item == theirs.item or ours.item in tied or place == len(want) - 1


# ---------------------------------------------------------------- the same answers


def test_a_thousand_queries_get_what_the_model_gives(bundle: Bundle, retriever: Retriever) -> None:
    generator = np.random.default_rng(1)
    queries = [shop.some_query(generator) for _ in range(1000)]
    for filter_seen, asked in ((True, queries[:500]), (False, queries[500:])):
        want = [retriever.recommend(query, k=10, filter_seen=filter_seen) for query in asked]
        for found, theirs in zip(bundle.recommend_many(asked, k=10, filter_seen=filter_seen), want, strict=True):
            same(found, theirs)
        for query, theirs in zip(asked[:50], want, strict=False):
            same(bundle.recommend(query, k=10, filter_seen=filter_seen), theirs)


@pytest.mark.parametrize(
    "query",
    [
        {"user": "nobody"},
        {"usr": "u1"},
        {},
        {"user": None},
        {"age": "old"},
        {"history": "i1"},
        {"user": ["u1"]},
        {"photo": [1.0]},
        {"history": [["i1"]]},
    ],
)
def test_what_a_model_refuses_a_bundle_refuses_in_the_same_words(
    query: dict[str, object], bundle: Bundle, retriever: Retriever
) -> None:
    with pytest.raises(DataError) as by_model:
        retriever.recommend(query)
    with pytest.raises(DataError) as by_bundle:
        bundle.recommend(query)
    assert str(by_bundle.value) == str(by_model.value)


def test_more_than_there_is(bundle: Bundle) -> None:
    """A user gets every item it has not met, once; all of them unfiltered."""
    met = bundle.seen("u3")
    assert len(met) == len(set(met)) > 0
    found = [r.item for r in bundle.recommend({"user": "u3"}, k=1000)]
    assert len(found) == shop.ITEMS - len(met)
    assert set(found).isdisjoint(met)
    assert len(bundle.recommend({"user": "u3"}, k=1000, filter_seen=False)) == shop.ITEMS
    with pytest.raises(DataError, match="k: found 0, expected at least 1"):
        bundle.recommend({"user": "u3"}, k=0)


def test_seen_is_what_the_log_says(bundle: Bundle, model: Path) -> None:
    events = pq.read_table(model.parent / "events.parquet").to_pydict()
    met = {item for user, item in zip(events["user"], events["item"], strict=True) if user == "u7"}
    assert set(bundle.seen("u7")) == met
    assert bundle.seen("nobody") == []


def test_the_latest_items_are_the_end_of_the_log(bundle: Bundle, model: Path) -> None:
    events = pq.read_table(model.parent / "events.parquet").to_pydict()
    took = [item for user, item in zip(events["user"], events["item"], strict=True) if user == "u7"]
    assert bundle.latest("u7") == took[::-1][:20]
    assert bundle.latest("nobody") == []


def test_vectors_are_those_of_the_towers(bundle: Bundle, retriever: Retriever) -> None:
    assert np.array_equal(bundle.vectors, retriever.item_MD.numpy())
    events = pq.read_table(retriever.run.data.items[0]).to_pylist()  # type: ignore[union-attr]
    again = bundle.encode_items([{c: row[c] for c in ("item", "kind", "price", "title")} for row in events])
    assert np.abs(again - np.asarray(bundle.vectors)).max() < 1e-6  # rows are in the order of the file
    new = bundle.encode_items([{"kind": "k1", "price": 3.0, "title": "red shoe"}])
    assert new.shape == (1, 12)
    assert abs(np.linalg.norm(new) - 1) < 1e-6
    query = bundle.encode_queries([{"user": "u1"}, {"country": "c1", "device": "d1"}])
    assert query.shape == (2, 12)
    best = bundle.recommend({"user": "u1"}, k=1, filter_seen=False)[0]
    assert abs(best.score - float((np.asarray(bundle.vectors) @ query[0]).max())) < 1e-6


def test_similar_items(bundle: Bundle, retriever: Retriever) -> None:
    for item in ("i0", "i41"):
        found = bundle.similar(item, k=7)
        same(found, retriever.similar(item, k=7))
        assert item not in {r.item for r in found}
    row = bundle.items.row("i0")
    vectors = np.asarray(bundle.vectors)
    assert abs(bundle.similar("i0", k=1)[0].score - np.delete(vectors @ vectors[row], row).max()) < 1e-6
    for opened in (bundle, retriever):
        with pytest.raises(DataError, match="item: 'i999' is not known"):
            opened.similar("i999")  # type: ignore[attr-defined]


def test_all_queries_at_once(bundle: Bundle, retriever: Retriever, tmp_path: Path) -> None:
    for name, opened in (("bundle", bundle), ("model", retriever)):
        n = opened.recommend_all(tmp_path / name, k=4)  # type: ignore[attr-defined]
        lines = pq.read_table(tmp_path / name).to_pylist()
        assert n == len(lines) == 4 * shop.USERS
        assert [line["rank"] for line in lines[:8]] == [1, 2, 3, 4, 1, 2, 3, 4]
        for user in ("u0", "u33"):
            mine = [line for line in lines if line["query"] == user]
            same(
                [Recommendation(item=line["item"], score=line["score"]) for line in mine],
                retriever.recommend({"user": user}, k=4),
            )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "model"]


# ---------------------------------------------------------------- exclusions, filters, titles


def test_excluded_items_make_room_for_others(bundle: Bundle) -> None:
    ten = [r.item for r in bundle.recommend({"user": "u1"}, k=10)]
    rest = bundle.recommend({"user": "u1"}, k=6, exclude=[*ten[:4], "no such item"])
    assert [r.item for r in rest] == ten[4:]
    seven = [r.item for r in bundle.similar("i1", k=7)]
    assert [r.item for r in bundle.similar("i1", k=5, exclude=seven[:2])] == seven[2:]


def test_a_model_leaves_out_the_same_items(bundle: Bundle, retriever: Retriever, model: Path) -> None:
    out = [r.item for r in retriever.recommend({"user": "u1"}, k=3)] + ["no such item"]
    for filter_seen in (True, False):
        found = retriever.recommend({"user": "u1"}, k=300, filter_seen=filter_seen, exclude=out)
        assert len(found) == shop.ITEMS - 3 - filter_seen * len(bundle.seen("u1"))
        same(found, bundle.recommend({"user": "u1"}, k=300, filter_seen=filter_seen, exclude=out))
    assert recommend(model, {"user": "u1"}, k=1, exclude=out)[0].item not in out
    stranger = retriever.recommend({"country": "c1"}, k=2)
    assert retriever.recommend({"country": "c1"}, k=1, exclude=[stranger[0].item]) == stranger[1:]
    near = [r.item for r in retriever.similar("i1", k=3)]
    assert [r.item for r in similar(model, "i1", k=2, exclude=near[:1])] == near[1:]


def test_filters_leave_as_many_as_there_are(bundle: Bundle) -> None:
    everything = bundle.recommend({"user": "u1"}, k=1000, filter_seen=False)
    shown = dict(zip([r.item for r in everything], bundle.shown([r.item for r in everything]), strict=True))
    for where, holds in (
        ({"kind": "k2"}, lambda a: a["kind"] == "k2"),
        ({"kind": ["k2", "k3"], "price": {"from": 10, "to": 40.5}},
         lambda a: a["kind"] in ("k2", "k3") and 10 <= a["price"] <= 40.5),
        ({"year": {"from": 2010}}, lambda a: a["year"] is not None and a["year"] >= 2010),
        ({"year": 2003.0}, lambda a: a["year"] == 2003),
        ({"kind": "none such"}, lambda a: False),
    ):  # fmt: skip
        want = [r for r in everything if holds(shown[r.item])]
        same(bundle.recommend({"user": "u1"}, k=1000, filter_seen=False, where=where), want)  # type: ignore[arg-type]
        same(bundle.recommend({"user": "u1"}, k=3, filter_seen=False, where=where), want[:3])  # type: ignore[arg-type]


def test_what_python_can_get_wrong(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    assert bundle.encode_queries([]).shape == (0, bundle.vectors.shape[1])
    with pytest.raises(DataError, match="query: found 'u1', expected its columns"):
        bundle.recommend("u1")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="k: found '3', expected a whole number"):
        bundle.recommend({"user": "u1"}, k="3")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="exclude: found the text 'i1', expected a list"):
        bundle.recommend({"user": "u1"}, exclude="i1")
    with pytest.raises(ArtifactError, match=r"this is a bundle, .* expected the folder of the model"):
        Retriever.open(folder)
    with pytest.raises(ArtifactError, match="holds a bundle"):
        train(shop.run_of(shop.write_files(tmp_path)), folder, quiet=True)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"knd": "k1"}, "where: there is no attribute 'knd', but .* did you mean 'kind'"),
        ({"price": "cheap"}, "where: 'price' is 'cheap', expected double"),
        ({"kind": 7}, "where: 'kind' is 7, expected string"),
        ({"price": {"above": 3}}, "where: 'price' has 'above', expected 'from', 'to' or both"),
        ({"price": None}, "where: 'price' is None"),
    ],
)
def test_filters_that_make_no_sense(where: dict[str, object], says: str, bundle: Bundle) -> None:
    with pytest.raises(DataError, match=says):
        bundle.recommend({"user": "u1"}, where=where)


def test_what_is_shown(bundle: Bundle, model: Path) -> None:
    titles = pq.read_table(model.parent / "items.parquet").to_pylist()
    found = bundle.shown(["i9", "i10"])
    assert [row["title"] for row in found] == [titles[9]["title"], titles[10]["title"]]
    assert found[0]["year"] is None
    assert bundle.shown(["i10", "i9"], ["year", "title"]) == [
        {"year": 2010, "title": titles[10]["title"]},
        {"year": None, "title": titles[9]["title"]},
    ]
    assert bundle.shown(["i9"], []) == [{}]
    with pytest.raises(DataError, match=r"show: there is no attribute 'yaer', but .* did you mean 'year'"):
        bundle.shown(["i9"], ["yaer"])
    with pytest.raises(DataError, match="item: 'i999' is not known"):
        bundle.shown(["i999"])


def test_columns_to_show_are_chosen(model: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "some", show=["title", "tags"])
    assert Bundle.open(tmp_path / "some").shown(["i2"])[0]["tags"] == ["x", "x"]
    export(model, tmp_path / "none", show=[])
    none = Bundle.open(tmp_path / "none")
    assert none.shown(["i2"]) == [{}]
    for ask in (lambda: none.shown(["i2"], ["kind"]), lambda: none.where_of(["kind=k1"])):
        with pytest.raises(DataError, match="the bundle has no attributes"):
            ask()
    with pytest.raises(DataError, match="the bundle has no attributes"):
        none.recommend({"user": "u1"}, where={"kind": "k1"})
    with pytest.raises(DataError, match=r"items: there is no column 'titel' to show, but .* did you mean 'title'"):
        export(model, tmp_path / "wrong", show=["titel"])
    assert not (tmp_path / "wrong").exists()


NIGHT = {
    "kind": pa.array(["a", "b, c", None, "a..z"]),
    "year": pa.array([2001, 2004, None, 2010], pa.int32()),
    "price": [1.5, 2.5, -3.0, 1e9],
    "new": [True, False, None, True],
    "day": pa.array([0, 19_000, 19_723, None], pa.date32()),  # 1970-01-01, 2022-01-08, 2024-01-01
}


@pytest.mark.parametrize(
    ("texts", "rows"),
    [
        (["kind=a"], [0]),
        (["kind=a,none such"], [0]),
        (['kind=["b, c", "a..z"]'], [1, 3]),
        (["kind=a..b, c", "year=2001"], None),
        (["year=2004,2010"], [1, 3]),
        (["year=2004.."], [1, 3]),
        (["year=..2004"], [0, 1]),
        (["year=2002..2009", "price=2.5"], [1]),
        (['year={"from": 2002}', "price=..2.5"], [1]),
        (["price=-3.0..1.5"], [0, 2]),
        (["price=1e9"], [3]),
        (["new=true"], [0, 3]),
        (["day=2022-01-08..2023-12-31"], [1]),
        (["day=2024-01-01"], [2]),
        (["kind="], []),
    ],
)
def test_what_people_type_is_a_filter(texts: list[str], rows: list[int] | None) -> None:
    if rows is None:
        with pytest.raises(DataError, match=r"'a\.\.b, c', expected a value, a list a,b or a range from\.\.to"):
            where_of(pa.table(NIGHT), texts)
    else:
        assert np.flatnonzero(rows_where(pa.table(NIGHT), where_of(pa.table(NIGHT), texts))).tolist() == rows


def test_a_decimal_is_held_against_whole_numbers() -> None:
    table = pa.table({"price": pa.array([Decimal("4.50"), Decimal("5.00"), None], pa.decimal128(10, 2))})
    assert rows_where(table, {"price": 5}).tolist() == [False, True, False]
    assert rows_where(table, {"price": {"from": 4, "to": 5}}).tolist() == [True, True, False]


@pytest.mark.parametrize("wanted", [[], ["a"], {"from": []}, 1])
@pytest.mark.parametrize("values", [[["a"], []], [{"x": 1}, None]])
def test_lists_are_shown_but_not_compared(values: list[object], wanted: object) -> None:
    with pytest.raises(DataError, match=r"where: 'tags' is .*, expected an attribute of one text, number or date"):
        rows_where(pa.table({"tags": values}), {"tags": wanted})


def test_a_number_that_is_none_is_no_value() -> None:
    items = pa.table({"sku": ["a", "b"], "size": [math.nan, 1.0], "half": pa.array(np.array([0.5, 1], np.float16))})
    schema = Schema(
        interactions=Interactions(query="user", item="sku"),
        query={"user": Id(column="user")},
        item={"sku": Id(column="sku")},
    )
    found = read_attributes([items], schema, Vocabulary(pa.array(["b", "a"])))
    assert found["size"].to_pylist() == [1.0, None]
    assert rows_where(found, {"half": 0.5}).tolist() == [False, True]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["kind"], "where: found 'kind', expected name=value, name=a,b or name=from..to"),
        (["knd=a"], "where: there is no attribute 'knd', but .* did you mean 'kind'"),
        (["kind=a", "kind=b"], "where: 'kind' is given twice"),
        (["kind=.."], "where: 'kind' is '..', expected a value, a list a,b or a range"),
        (["kind=a..b..c"], "where: 'kind' is 'a..b..c', expected a value"),
        (["year=late"], "where: 'year' is 'late', expected int32"),
        (["year=2001..late"], "where: 'year' is 'late', expected int32"),
        (["year=[1"], r"where: 'year' is '\[1', which is no JSON"),
        (["year="], "where: 'year' is '', expected int32"),
        (["new=yes"], "where: 'new' is 'yes', expected bool"),
    ],
)
def test_what_people_type_that_is_no_filter(texts: list[str], says: str) -> None:
    table = pa.table(NIGHT)
    with pytest.raises(DataError, match=says):
        rows_where(table, where_of(table, texts))


# ---------------------------------------------------------------- other indexes


def test_an_approximate_index_says_what_it_finds(model: Path, tmp_path: Path, bundle: Bundle) -> None:
    """One of seven lists holds some of the best items; with all of them nothing is missed."""
    pytest.importorskip("faiss")
    few = export(model, tmp_path / "few", index=IVFSQ8(nlist=7, nprobe=1))
    assert 0.2 < few.recall < 0.98
    assert few.index == "IVFSQ8"
    assert "IVFSQ8 finds 0." in few.render()
    everything = export(model, tmp_path / "all", index=IVFSQ8(nlist=7, nprobe=7, k_factor=4))
    assert everything.recall > 0.99
    opened = Bundle.open(tmp_path / "all", verify=True)
    assert opened.index.settings == IVFSQ8(nlist=7, nprobe=7, k_factor=4)
    same(opened.recommend({"user": "u1"}, k=5), bundle.recommend({"user": "u1"}, k=5))
    assert len(opened.recommend({"user": "u1"}, k=1000)) == shop.ITEMS - len(opened.seen("u1"))


KINDS = [IVFSQ8(nlist=7, nprobe=3), IVFPQ(nlist=7, nprobe=3, m=6), HNSW(m=8), LSH(bits=64), Exact()]


@pytest.fixture
def own(model: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be changed."""
    return Path(shutil.copytree(model.parent, tmp_path / "own")) / "model"


@pytest.mark.parametrize("settings", KINDS, ids=lambda one: type(one).__name__)
def test_the_index_that_was_built_for_the_model_is_taken(settings: IndexSettings, own: Path, tmp_path: Path) -> None:
    """File by file as it is, the vectors left out, which the bundle has; a kind that is named is built instead."""
    pytest.importorskip("faiss")
    build_index(own, settings, seed=3)
    built = {path.name: path.read_bytes() for path in (own / "index").iterdir() if path.name != "index.json"}
    assert built.pop("vectors.bin") == (np.asarray(Retriever.open(own).item_MD).tobytes())
    done = export(own, tmp_path / "bundle")
    assert (done.index, done.rebuilt, done.tuned) == (type(settings).__name__, False, None)
    taken = tmp_path / "bundle" / "index"
    assert {path.name: path.read_bytes() for path in taken.iterdir() if path.name != "index.json"} == built
    opened = Bundle.open(tmp_path / "bundle", verify=True).index
    assert (opened.settings, opened.seed) == (settings, 3)
    export(own, tmp_path / "named", index=HNSW(m=4))
    assert Bundle.open(tmp_path / "named").index.settings == HNSW(m=4)


def test_after_an_update_the_index_is_built_anew_with_its_settings(own: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    build_index(own, IVFSQ8(nlist=7, nprobe=5), seed=3)
    before = Index.open(own / "index")
    event = {"user": "u1", "item": "i5", "time": 1_650_000_999, "page": "i6", "device": "d1"}
    update(own, interactions=[pa.Table.from_pylist([event])], set=["update.valid=0"], quiet=True)
    done = export(own, tmp_path / "bundle")
    assert done.rebuilt
    assert "the model has changed since its index was built: built anew for this bundle with its" in done.render()
    vector_MD = Retriever.open(own).item_MD.numpy()
    again = Index.build(vector_MD, IVFSQ8(nlist=7, nprobe=5), seed=3)
    again.save(tmp_path / "again", vectors=False)
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (tmp_path / "bundle" / "index" / path.name).read_bytes()
    assert not before.is_of(vector_MD, np.ones(shop.ITEMS, bool))


def test_a_damaged_index_of_the_model_is_no_reason_for_another(own: Path, tmp_path: Path) -> None:
    build_index(own, Exact())
    (own / "index" / "live.bin").unlink()
    with pytest.raises(ArtifactError, match=r"the index is incomplete, live.bin is missing: build the index again"):
        export(own, tmp_path / "bundle")
    export(own, tmp_path / "bundle", index=Exact())


def test_an_export_tunes_as_the_index_build_does(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    built = build_index(own, IVFSQ8(nlist=7, nprobe=1), target_recall=0.8, k=10, out=tmp_path / "index")
    asked = export(own, tmp_path / "asked", index=IVFSQ8(nlist=7, nprobe=1), target_recall=0.8, k=10)
    build_index(own, IVFSQ8(nlist=7, nprobe=1))
    left = export(own, tmp_path / "left", target_recall=0.8, k=10)
    assert built.settings != IVFSQ8(nlist=7, nprobe=1)
    for done in (asked, left):
        assert done.tuned is not None
        assert done.tuned.low >= 0.8
        assert done.tuned == built.tuned
        assert Bundle.open(done.folder).index.settings == built.settings
        assert "(target 0.8)" in done.render()
        assert json.loads(done.to_json())["tuned"]["k"] == 10
    monkeypatch.setattr("twotower.index.tuning.lower_bound", lambda *_: 0.0)
    with pytest.raises(ConfigError, match=r"target_recall is 0.8, but IVFSQ8 finds .*: lower the target"):
        export(own, tmp_path / "no", target_recall=0.8, k=10)
    assert not (tmp_path / "no").exists()


# ---------------------------------------------------------------- other models


def test_life_updates_and_free_rows(tmp_path: Path) -> None:
    """Items that ended are not found; after an update that forgets and brings anew, rows are free or taken over."""
    schema = replace(shop.SCHEMA, life=Life(idle_days=60))
    model = shop.trained(tmp_path / "shop", schema=schema)
    export(model, tmp_path / "before")
    retriever = Retriever.open(model)
    live = retriever.live_rows()
    assert 0 < len(live) < shop.ITEMS
    first = Bundle.open(tmp_path / "before")
    assert len(first.recommend({"user": "u1"}, k=100, filter_seen=False)) == len(live) == first.index.n

    events, users, items = (
        pq.read_table(tmp_path / "shop" / f"{name}.parquet").to_pylist() for name in ("events", "users", "items")
    )
    soon = events[-1]["time"] + 1000
    arrived = {
        "events": [{**events[u], "user": f"u{u}", "item": f"i{u % 9 + 70}", "time": soon + u} for u in range(20)]
        + [{**events[0], "user": "newcomer", "item": "brand new", "time": soon + 50}],
        "users": [{**users[5], "user": "newcomer"}],
        "items": [{**items[5], "item": "brand new", "title": "blue wool"}, {**items[6], "title": "renamed"}],
    }
    for name, rows in arrived.items():
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    forget(model, ["u9"])
    new_events, new_users, new_items = (str(tmp_path / f"{name}.parquet") for name in arrived)
    update(model, interactions=[new_events], queries=[new_users], items=[new_items], quiet=True)
    files = [str(tmp_path / "shop" / "items.parquet"), new_items]
    done = export(model, tmp_path / "before", overwrite=True, items=files)
    second, retriever = Bundle.open(done.folder, verify=True), Retriever.open(model)
    assert second.manifest["model"]["updates"] == 2  # to forget is one
    day = history(model).days[-1]
    assert second.manifest["metrics"] == {"recall@10": day.after, "recall@10 of what arrived": day.served}
    assert second.fingerprint != first.fingerprint
    for user in ("newcomer", "u3", "u50"):
        same(second.recommend({"user": user}), retriever.recommend({"user": user}))
    titles = [items[5]["title"], "renamed", "blue wool"]
    assert [shown["title"] for shown in second.shown(["i5", "i6", "brand new"])] == titles
    assert second.latest("newcomer") == ["brand new"]
    assert second.seen("newcomer") == ["brand new"]
    for opened in (second, retriever):
        with pytest.raises(DataError, match="user 'u9' is not known"):
            opened.recommend({"user": "u9"})  # type: ignore[attr-defined]


def test_item_files_beside_a_stream_bring_its_new_items(own: Path, tmp_path: Path) -> None:
    (tmp_path / "days").mkdir()
    events = [{"user": "u1", "item": "new", "time": 1_650_000_999, "page": "i6", "device": "d1"}]
    pq.write_table(pa.Table.from_pylist(events), tmp_path / "days" / "1.parquet")
    row = {"item": "new", "kind": "k1", "price": 2.0, "title": "blue wool", "year": 2030, "tags": ["x"]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "new.parquet")
    command = ["update", str(own), "--source", str(tmp_path / "days"), "--set", "update.valid=0"]
    assert cli.main([*command, "--items", str(tmp_path / "new.parquet")]) == 0
    (day,) = history(own).days
    assert (day.n_events, day.new_items) == (1, 1)
    assert "new" in [one.item for one in similar(own, "i5", k=shop.ITEMS)]


def test_a_file_of_events_is_no_file_of_items(own: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found [\d,]+ rows of \d+ items of the catalogue, expected one an item"):
        export(own, tmp_path / "bundle", items=[str(own.parent / "events.parquet")])


def test_a_version_knows_what_the_one_before_knew(own: Path, tmp_path: Path) -> None:
    """The first is exported by hand, with what is to be shown; titles of new items come with the updates."""
    export(own, tmp_path / "versions" / "000000", show=["year", "title"], licence="CC0-1.0")
    for number, (item, title) in enumerate((("new", "blue wool"), ("newer", "red silk")), 1):
        event = {"user": "u1", "item": item, "time": 1_650_000_999 + number, "page": "i6", "device": "d1"}
        row = {"item": item, "kind": "k1", "price": 2.0, "title": title, "year": 2030 + number, "tags": ["x"]}
        rows = pa.Table.from_pylist([row])
        update(own, interactions=[pa.Table.from_pylist([event])], items=rows, set=["update.valid=0"], quiet=True)
        done = export_version(own, tmp_path / "versions", items=[rows])
        assert done is not None
        assert done.folder == tmp_path / "versions" / f"00000{number}"
        assert export_version(own, tmp_path / "versions", items=[rows]) is None
    first, last = (Bundle.open(tmp_path / "versions" / name) for name in ("000000", "000002"))
    assert last.shown(["i5"]) == first.shown(["i5"])
    assert set(last.shown(["i5"])[0]) == {"year", "title"}
    assert last.shown(["new", "newer"]) == [
        {"year": 2031, "title": "blue wool"},
        {"year": 2032, "title": "red silk"},
    ]
    assert last.manifest["licence"] == "CC0-1.0"


def test_queries_that_are_items_do_not_get_themselves(tmp_path: Path) -> None:
    schema = Schema(
        interactions=Interactions(query="page", item="item", time="time", query_is_item=True),
        query={"page": Id(column="page", table="item")},
        item={"item": Id(column="item")},
    )
    model = shop.trained(tmp_path / "shop", schema=schema, towers=TwoTower(dim=8))
    export(model, tmp_path / "bundle", show=[])
    opened, retriever = Bundle.open(tmp_path / "bundle"), Retriever.open(model)
    for page in ("i3", "i250"):
        for filter_seen in (True, False):
            found = opened.recommend({"page": page}, k=shop.ITEMS, filter_seen=filter_seen)
            assert page not in {r.item for r in found}
            assert len(found) == shop.ITEMS - (len(opened.seen(page)) if filter_seen else 1)
            same(found, retriever.recommend({"page": page}, k=shop.ITEMS, filter_seen=filter_seen))
    for one, name in ((opened, "ours"), (retriever, "theirs")):
        one.recommend_all(tmp_path / name, k=shop.ITEMS, filter_seen=False)  # type: ignore[attr-defined]
        lines = pq.read_table(tmp_path / name).to_pylist()
        assert not [line for line in lines if line["query"] == line["item"]]


def test_a_graph_without_attributes(tmp_path: Path) -> None:
    schema = Schema(
        interactions=Interactions(query="user", item="item", time="time"),
        query={"user": Id(column="user")},
        item={"item": Id(column="item")},
    )
    towers = TwoTower(dim=8, graph=Graph(layers=1, served_layers=1))
    model = shop.trained(tmp_path / "shop", schema=schema, towers=towers)
    export(model, tmp_path / "bundle")
    opened, retriever = Bundle.open(tmp_path / "bundle"), Retriever.open(model)
    for user in range(shop.USERS):
        same(opened.recommend({"user": f"u{user}"}), retriever.recommend({"user": f"u{user}"}))


def test_a_search_without_ids_of_queries(tmp_path: Path) -> None:
    """Vectors as they are, of any length, compared by dot product."""
    schema = Schema(
        interactions=Interactions(item="item", time="time"),
        context={"words": Text(columns=("page",), buckets=64)},
        item={"item": Id(column="item"), "title": Text(columns=("title",), buckets=64)},
    )
    towers = TwoTower(dim=8, normalise=False)
    model = shop.trained(tmp_path / "shop", schema=schema, towers=towers)
    export(model, tmp_path / "bundle")
    opened, retriever = Bundle.open(tmp_path / "bundle"), Retriever.open(model)
    assert opened.manifest["score"] == "dot"
    assert opened.queries is None
    same(opened.recommend({"page": "i1 i2"}), retriever.recommend({"page": "i1 i2"}))
    for one in (opened, retriever):
        with pytest.raises(DataError, match="there are no known queries"):
            one.recommend_all(tmp_path / "all")  # type: ignore[attr-defined]


# ---------------------------------------------------------------- the folder


def test_torch_is_not_needed_to_answer(folder: Path) -> None:
    code = (
        f"import sys; from twotower.bundle import Bundle; b = Bundle.open({str(folder)!r}, verify=True);"
        "b.warm(); b.recommend({'user': 'u1'}, where={'kind': 'k1'}); b.encode_items([{'kind': 'k1'}]);"
        "b.similar('i1');"
        "print([n for n in ('torch', 'onnx') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_manifest_tells_what_it_is_and_not_where_the_data_was(folder: Path, bundle: Bundle, model: Path) -> None:
    text = (folder / "bundle.json").read_text(encoding="utf-8")
    assert str(model.parent) not in text
    manifest = bundle.manifest
    assert (manifest["licence"], manifest["score"], manifest["width"]) == ("CC0-1.0", "cosine", 12)
    assert manifest["counts"] == {"items": shop.ITEMS, "live": shop.ITEMS, "queries": shop.USERS}
    assert "recall@10" in manifest["metrics"]
    assert manifest["run"]["towers"]["dim"] == 8


def test_metrics_of_a_refit_are_those_of_the_fit_before_it(tmp_path: Path) -> None:
    training = Training(batch_size=128, epochs=2, metric="recall@10", validate_every=1, refit=True)
    model = shop.trained(tmp_path / "shop", training=training)
    found = json.loads((model / "train.json").read_text(encoding="utf-8"))
    metrics = Bundle.open(export(model, tmp_path / "bundle").folder).manifest["metrics"]
    assert metrics == {"recall@10": found["best_metric"], "epoch": found["best_epoch"]}


def test_equal_models_give_equal_bundles(model: Path, folder: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "again", licence="CC0-1.0")
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes(), path


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_every_file_is_missed_and_its_damage_found(copied: Path, folder: Path) -> None:
    for path in sorted(p for p in copied.rglob("*") if p.is_file() and p.name != "bundle.json"):
        original = path.read_bytes()
        name = path.relative_to(copied).as_posix()
        path.unlink()
        with pytest.raises(ArtifactError, match=f"bundle is incomplete, {name} is missing: export the model again"):
            Bundle.open(copied)
        path.write_bytes(original + b"!")
        with pytest.raises(ArtifactError, match=f"bundle is damaged, {name} has {len(original) + 1} bytes"):
            Bundle.open(copied)
        if original:
            path.write_bytes(bytes([original[0] ^ 1]) + original[1:])
            with pytest.raises(ArtifactError, match=f"bundle is damaged, the checksum of {name} differs"):
                Bundle.open(copied, verify=True)
        path.write_bytes(original)
    assert Bundle.open(copied, verify=True).fingerprint == Bundle.open(folder).fingerprint


def changed(manifest: Path, **values: object) -> None:
    tree = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps({**tree, **values}), encoding="utf-8")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"version": 99}, "the bundle has version 99, this program reads version 1: use a newer twotower, or export"),
        ({"version": 0}, "the bundle has version 0, this program reads version 1: export the model again"),
        ({"format": "twotower store"}, "not the manifest of a bundle"),
        ({"width": 13}, "the manifest is damaged"),
    ],
)
def test_manifests_that_are_refused(values: dict[str, object], says: str, copied: Path) -> None:
    changed(copied / "bundle.json", **values)
    with pytest.raises(ArtifactError, match=says):
        Bundle.open(copied)


def test_a_folder_without_a_bundle(tmp_path: Path, model: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere", model):
        with pytest.raises(
            ArtifactError, match=r"there is no bundle here \(no bundle.json\): make one with twotower exp"
        ):
            Bundle.open(place)


def test_an_older_version_is_brought_up_to_date(copied: Path) -> None:
    """A made-up version 0 called the licence a license; the way from there to 1 renames it."""
    kind = replace(BUNDLE, version=0)
    manifest = BUNDLE.read(copied)
    body = {name: value for name, value in manifest.items() if name not in ("format", "version", "files", "licence")}
    (copied / "bundle.json").unlink()
    kind.write(copied, {**body, "license": "CC0-1.0"})
    with pytest.raises(ArtifactError, match="version 0"):
        BUNDLE.read(copied)

    def from_0(tree: dict[str, object]) -> dict[str, object]:
        return {("licence" if name == "license" else name): value for name, value in tree.items()}

    assert replace(BUNDLE, migrations={0: from_0}).read(copied) == manifest


# ---------------------------------------------------------------- the export


def test_what_is_there_is_not_overwritten(model: Path, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is a bundle already: choose another place, or replace it with over"):
        export(model, copied)
    export(model, copied, overwrite=True, show=[])
    assert Bundle.open(copied).attributes is None
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"no part of a bundle \(notes.txt\)"):
        export(model, tmp_path / "own", overwrite=True)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("query.country", "query tower .* through its feature 'country'"),
        ("item.kind", "item tower .* feature 'kind'"),
        ("item", "query tower .* feature '(page|history)'"),
    ],
)
def test_towers_that_differ_are_not_published(
    table: str, says: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["twotower.training.export"]
    write = module.write_bundle

    def write_other(folder: Path, store: object, towers: TwoTower, content: object) -> None:
        weight = towers.table(table).weight
        kept = weight.clone()
        with torch.no_grad():
            weight += 0.01
        write(folder, store, towers, content)  # type: ignore[arg-type]
        with torch.no_grad():
            weight.copy_(kept)

    monkeypatch.setattr(module, "write_bundle", write_other)
    with pytest.raises(ArtifactError, match=says):
        export(model, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_search_that_differs_is_not_published(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores a little off, and the right scores of the wrong items: the second best instead of the best."""
    search = Index.search

    def off(self: Index, query_BD: NDArray[np.float32], k: int, *, exact: bool = False) -> Found:
        found = search(self, query_BD, k, exact=exact)
        return Found(row_Bk=found.row_Bk, score_Bk=found.score_Bk + np.float32(1e-4))

    def second(self: Index, query_BD: NDArray[np.float32], k: int, *, exact: bool = False) -> Found:
        found = search(self, query_BD, k + 1, exact=exact)
        return Found(row_Bk=found.row_Bk[:, 1:], score_Bk=found.score_Bk[:, 1:])

    for wrong in (off, second):
        monkeypatch.setattr(Index, "search", wrong)
        with pytest.raises(ArtifactError, match="the bundle's search gives other scores than PyTorch"):
            export(model, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the command line


def test_the_command_line_asks_bundles_as_it_asks_models(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(model), "--out", str(tmp_path / "bundle"), "--show", "title", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["attributes"] == ["title"]
    for verb in (
        ["recommend", "--query", '{"user": "u1"}', "--k", "3"],
        ["similar", "--item", "i3", "--k", "3"],
        ["recommend", "--all-queries", "--out", str(tmp_path / "all.parquet"), "--k", "2"],
    ):
        printed = []
        for folder in (model, tmp_path / "bundle"):
            assert cli.main([verb[0], str(folder), *verb[1:]]) == 0
            printed.append(capsys.readouterr().out)
        assert printed[0] == printed[1]
    assert len(pq.read_table(tmp_path / "all.parquet")) == 2 * shop.USERS
    assert recommend(tmp_path / "bundle", {"user": "u1"}, k=3)[0].item in printed_items(model)
    assert similar(tmp_path / "bundle", "i3", k=1)[0].item == similar(model, "i3", k=1)[0].item


def printed_items(model: Path) -> list[str]:
    return [found.item for found in recommend(model, {"user": "u1"}, k=3)]


@pytest.mark.parametrize(
    ("texts", "where"),
    [
        ([], None),
        (["kind=k2"], {"kind": "k2"}),
        (["kind=k2,k3", "year=2004..2011"], {"kind": ["k2", "k3"], "year": {"from": 2004, "to": 2011}}),
        (["price=..40.5"], {"price": {"to": 40.5}}),
        (['kind=["k1"]', 'price={"from": 7}'], {"kind": ["k1"], "price": {"from": 7}}),
    ],
)
def test_filters_of_the_command_line_are_those_of_python(
    texts: list[str], where: dict[str, object] | None, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [word for text in texts for word in ("--where", text)]
    out = [r.item for r in bundle.recommend({"user": "u1"}, k=2, where=where)]
    more += [word for item in out for word in ("--exclude", item)] + ["--k", "5", "--show", "year,kind", "--json"]
    for verb, want in (
        (["recommend", "--query", '{"user": "u1"}'], bundle.recommend({"user": "u1"}, k=5, exclude=out, where=where)),
        (["similar", "--item", "i3"], bundle.similar("i3", k=5, exclude=out, where=where)),
    ):
        assert cli.main([verb[0], str(bundle.folder), *verb[1:], *more]) == 0
        found = json.loads(capsys.readouterr().out)
        assert len(found) == 5
        same([Recommendation(item=line["item"], score=line["score"]) for line in found], want)
        assert not {line["item"] for line in found} & set(out)
        for line in found:
            number = int(line["item"][1:])  # what write_files gave it
            year = 2000 + number % 20 if number % 9 else None
            assert list(line["attributes"].items()) == [("year", year), ("kind", f"k{number % 4}")]


def test_attributes_are_printed_beside_items(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["similar", str(bundle.folder), "--item", "i3", "--where", "kind=k1", "--k", "100", "--show", "year, kind"]
    assert cli.main(asked) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.strip().splitlines()]
    assert len(lines) == shop.ITEMS // 4
    assert {line[-1] for line in lines} == {"k1"}
    years = {line[-3]: line[-2] for line in lines}
    assert (years["i9"], years["i5"]) == ("-", "2005")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--where", "knd=k1"], "there is no attribute 'knd'"),
        (["--where", "year=late"], "where: 'year' is 'late', expected int64"),
        (["--show", "titel"], "show: there is no attribute 'titel'"),
    ],
)
def test_filters_of_the_command_line_that_make_no_sense(
    more: list[str], says: str, folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in (["recommend", "--query", '{"user": "u1"}'], ["similar", "--item", "i3"]):
        assert cli.main([verb[0], str(folder), *verb[1:], *more]) == 2
        assert says in capsys.readouterr().err
        assert cli.main([verb[0], str(model), *verb[1:], *more]) == 2
        assert "found no bundle, and --where and --show need the attributes of one" in capsys.readouterr().err
    assert cli.main(["recommend", str(folder), "--all-queries", "--out", str(model / "all"), *more]) == 2
    assert "--where, --exclude and --show are for one query" in capsys.readouterr().err
