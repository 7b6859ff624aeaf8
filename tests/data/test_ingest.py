"""Ingest: every event is kept or counted, the store is what a naive loop would make, and nothing half-made opens."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.data import catalogue, order, readers
from twotower.data.columns import RaggedArray
from twotower.data.events import lenient_microseconds
from twotower.data.ingest import ingest
from twotower.data.order import in_order
from twotower.data.store import Store
from twotower.errors import ArtifactError, DataError, SchemaError
from twotower.schema import (
    Categorical,
    Categories,
    History,
    Id,
    Interactions,
    Number,
    Schema,
    Text,
    Time,
    Vector,
)

DATA = Path(os.environ.get("TWOTOWER_DATA", Path(__file__).parents[3] / "shared" / "data"))
SECOND = 10**6

EVENTS = Interactions(item="item", query="user", time="t", weight="w")
SCHEMA = Schema(interactions=EVENTS, query={"user": Id(column="user")}, item={"item": Id(column="item")})


SEARCH = Schema(
    interactions=Interactions(item="item"), context={"w": Number(column="w")}, item={"item": Id(column="item")}
)
"""Queries that are only their context."""


def with_events(**changes: Any) -> Schema:
    return replace(SCHEMA, interactions=replace(EVENTS, **changes))


PAIRS = with_events(time=None, weight=None)


def events_of(store: Store) -> list[tuple[str | None, str]]:
    """(query id, item id) of all events."""
    item = store.item_vocabulary.ids().to_pylist()
    query = [] if store.query_vocabulary is None else store.query_vocabulary.ids().to_pylist()
    return [
        (query[q] if q >= 0 else None, item[i])
        for q, i in zip(store.query_row.tolist(), store.item_row.tolist(), strict=True)
    ]


def left_out(report: Any, group: str = "interactions") -> dict[str, int]:
    return dict(next(found.left_out for found in report.groups if found.name == group))


# ---------------------------------------------------------------- what is kept


def test_every_cause_is_counted_once(tmp_path: Path) -> None:
    rows = [
        ("a", "x", 10, 1.0),
        (None, "x", 10, 1.0),
        ("", "x", 10, 1.0),
        ("a", None, 10, None),  # the item id comes first
        ("a", "x", None, 1.0),
        ("a", "x", -1, 1.0),
        ("a", "x", 9e15, 1.0),
        ("a", "x", 10, -1.0),
        ("a", "x", 10, float("nan")),
        ("a", "x", 10, float("inf")),
        ("a", "gone", 10, 1.0),
        ("nobody", "x", 10, 1.0),
        ("a", "x", 10, 7.0),  # repeats the first
        ("a", "x", 11, 0.0),
        ("b", "x", 10, 2.0),
    ]
    table = pa.table(
        {name: list(column) for name, column in zip(("user", "item", "t", "w"), zip(*rows, strict=True), strict=True)}
    )
    report = ingest(
        SCHEMA,
        interactions=table,
        items=pa.table({"item": ["y", "x", None, "x", ""]}),
        queries=pa.table({"user": ["b", "a", "a"]}),
        out=tmp_path / "store",
    )
    assert left_out(report) == {
        "item id missing": 1,
        "query id missing": 2,
        "time missing, unreadable or not in 1970-2200": 3,
        "weight missing, negative or not finite": 3,
        "item not in the item file": 1,
        "query not in the query file": 1,
        "repeats an earlier event": 1,
    }
    assert left_out(report, "items") == {"id missing": 2, "id already there": 1}
    assert left_out(report, "queries") == {"id already there": 1}
    assert [(group.read, group.kept) for group in report.groups] == [(15, 3), (3, 2), (5, 2)]
    examples = report.groups[0].examples
    assert (
        examples["query id missing"][1]
        == "interactions (pyarrow frame) row 3: item = 'x', user = '', t = 10.0, w = 1.0"
    )
    assert examples["repeats an earlier event"] == ["query 'a', item 'x', time 1970-01-01T00:00:10.000000"]
    assert len(examples["time missing, unreadable or not in 1970-2200"]) == 3
    store = Store.open(tmp_path / "store", verify=True)
    assert events_of(store) == [("a", "x"), ("b", "x"), ("a", "x")]
    assert store.weight.tolist() == [1.0, 2.0, 0.0]
    assert (report.queries_with_events, report.items_with_events, report.n_items) == (2, 1, 2)
    text = report.render()
    assert re.search(r"interactions +15 +3 +12\n", text)
    assert "item not in the item file: interactions (pyarrow frame) row 11: item = 'gone', user = 'a'" in text
    assert store.report == json.loads(json.dumps(store.report))


IDS = st.one_of(st.none(), st.sampled_from(["", "a", "b", "c", "7", "é"]))
ROWS = st.lists(
    st.tuples(
        IDS,
        IDS,
        st.one_of(st.none(), st.integers(-2, 4), st.sampled_from([8 * 10**9])),
        st.one_of(st.none(), st.sampled_from([-1.0, 0.0, 0.5, float("inf"), float("nan")])),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, chunk=st.integers(1, 7), with_time=st.booleans(), with_query=st.booleans())
def test_the_store_is_what_a_naive_loop_makes(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]], chunk: int, with_time: bool, with_query: bool
) -> None:
    kept: list[tuple[Any, ...]] = []
    seen = set()
    for user, item, t, w in rows:
        fine = item not in (None, "") and w is not None and 0 <= w < float("inf")
        fine = fine and (not with_query or user not in (None, ""))
        fine = fine and (not with_time or (t is not None and 0 <= t <= 7_258_118_399))
        user, t = user if with_query else None, t if with_time else None
        if fine and (not with_query or (user, item, t) not in seen):
            seen.add((user, item, t))
            kept.append((user, item, t, w))
    kept.sort(key=lambda row: row[2] or 0)
    interactions = replace(EVENTS, time="t" if with_time else None, query="user" if with_query else None)
    schema = replace(SCHEMA if with_query else SEARCH, interactions=interactions)
    names = ("user", "item", "t", "w")
    types = (pa.string(), pa.string(), pa.int64(), pa.float64())
    columns = {n: pa.array(c, k) for n, c, k in zip(names, zip(*rows, strict=True), types, strict=True)}
    frame = pa.table(columns)
    out = tmp_path_factory.mktemp("ingest") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK_ROWS", chunk)
        patch.setattr(order, "BLOCK_EVENTS", chunk)
        patch.setattr(catalogue, "_MERGE_AT", chunk)
        if not kept:
            with pytest.raises(DataError, match="no event can be used"):
                ingest(schema, interactions=frame, out=out)
            return
        report = ingest(schema, interactions=frame, out=out)
    store = Store.open(out, verify=True)
    assert events_of(store) == [(user, item) for user, item, _, _ in kept]
    assert store.weight.tolist() == [w for *_, w in kept]
    assert store.time_us is None if not with_time else store.time_us.tolist() == [t * SECOND for _, _, t, _ in kept]
    assert report.groups[0].read == len(rows)
    assert report.n_events == report.groups[0].kept == len(kept)
    assert set(store.item_vocabulary.ids().to_pylist()) == {item for _, item, _, _ in kept}
    assert store.n_queries == len({user for user, *_ in kept if user is not None})


def test_catalogue_without_files_has_the_frequent_first(tmp_path: Path) -> None:
    frame = pa.table({"user": [3, 1, 2, 1], "item": ["y", "y", "x", "z"]})
    ingest(PAIRS, interactions=frame, out=tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.item_vocabulary.ids().to_pylist() == ["y", "x", "z"]
    assert store.query_vocabulary is not None
    assert store.query_vocabulary.ids().to_pylist() == ["1", "2", "3"]
    assert store.query_vocabulary.rows(pa.array(["3", "9"])).tolist() == [2, -1]


def test_all_kinds_of_sources_give_the_same_store(tmp_path: Path) -> None:
    frame = pa.table({"user": ["007", "b", "b"], "item": ["1", "2", "1"], "t": [5, 3, 4], "w": [1.0, 2.0, 3.0]})
    pyarrow.parquet.write_table(frame, tmp_path / "e.parquet")
    (tmp_path / "e.csv").write_text("user,item,t,w\n007,1,5,1\nb,2,3,2\nb,1,4,3\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.csv").write_text("item,user,w,t\n1,007,1,5\n")
    (tmp_path / "folder" / "2.ndjson").write_text(
        '{"user":"b","item":2,"t":3,"w":2}\n{"user":"b","item":1,"t":4,"w":3}\n'
    )
    sources = {
        "frame": frame,
        "pandas": frame.to_pandas(),
        "polars": pl.from_arrow(frame),
        "parquet": tmp_path / "e.parquet",
        "csv": str(tmp_path / "e.csv"),
        "folder": tmp_path / "folder",
        "stream": frame.to_reader(max_chunksize=1),
        "iterator": iter([frame.slice(0, 1), frame.slice(1).to_pandas()]),
    }
    for name, source in sources.items():
        out = tmp_path / f"store-of-{name}"
        ingest(SCHEMA, interactions=source, out=out)
        store = Store.open(out, verify=True)
        assert events_of(store) == [("b", "2"), ("b", "1"), ("007", "1")], name
        assert store.weight.tolist() == [2.0, 3.0, 1.0], name
        assert not list(out.rglob("*interactions*")), name


# ---------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        (pa.array([1, None, -1]), "s", [SECOND, None, None]),
        (pa.array([1.5, float("nan"), 8e9]), "s", [1_500_000, None, None]),
        (pa.array([1_700_000_000_123]), "ms", [1_700_000_000_123_000]),
        (pa.array([1_700_000_000_123]), "s", [None]),
        (pa.array([1_700_000_000_123_456_789]), "ns", [1_700_000_000_123_456]),
        (pa.array([datetime.date(1970, 1, 2)]), "s", [86_400 * SECOND]),
        (pa.array([1], pa.timestamp("ms", tz="Europe/Berlin")), "s", [1000]),
        (
            pa.array(["1970-01-01T01:00:00+01:00", "1970-01-01 00:00:01", "1970-01-02"]),
            "s",
            [0, SECOND, 86_400 * SECOND],
        ),
        (
            pa.array(["1970-02-29", "1972-02-29", "1900-02-29", "1970-13-01", "soon", "", None, "1970-01-01T24:00"]),
            "s",
            [None, (365 * 2 + 31 + 28) * 86_400 * SECOND, None, None, None, None, None, None],
        ),
        (pa.array(["1970-01-01T00:00:00.123456789Z", "1970-04-31"]), "s", [123_456, None]),
        (pa.array(["10", "soon", "11.5"]), "s", [10 * SECOND, None, 11_500_000]),
    ],
)
def test_moments(values: pa.Array, unit: Any, expected: list[int | None]) -> None:
    time_us, present = lenient_microseconds(values, "t", unit)
    assert [int(t) if there else None for t, there in zip(time_us, present, strict=True)] == expected


@given(st.dates(datetime.date(1970, 1, 1), datetime.date(2199, 12, 31)), st.times())
def test_moments_as_the_standard_library_reads_them(day: datetime.date, clock: datetime.time) -> None:
    moment = datetime.datetime.combine(day, clock)
    gap = moment - datetime.datetime(1970, 1, 1)
    expected = (gap.days * 86_400 + gap.seconds) * SECOND + gap.microseconds
    time_us, present = lenient_microseconds(pa.array([moment.isoformat(), "never"]), "t", "s")
    assert (time_us[0], present.tolist()) == (expected, [True, False])


def test_csv_times_one_of_which_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_text("user,item,t,w\na,x,1600000000,1\na,y,yesterday,1\na,z,,1\n")
    report = ingest(SCHEMA, interactions=path, out=tmp_path / "store")
    assert left_out(report) == {"time missing, unreadable or not in 1970-2200": 2}
    assert report.groups[0].examples["time missing, unreadable or not in 1970-2200"] == [
        f"{path} row 2: item = 'y', user = 'a', t = 'yesterday', w = 1.0",
        f"{path} row 3: item = 'z', user = 'a', t = None, w = 1.0",
    ]


def test_time_of_the_event_as_a_feature(tmp_path: Path) -> None:
    day = 86_400
    frame = pa.table({"user": ["a", "a"], "item": ["x", "y"], "t": [day * 1000, (3 * day + 3600) * 1000], "w": [1, 1]})
    schema = replace(with_events(time_unit="ms"), context={"when": Time(column="t", unit="ms"), "past": History()})
    ingest(schema, interactions=frame, out=tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert set(store.context) == {"when.hour", "when.weekday", "when.age"}
    assert np.asarray(store.context["when.hour"]).tolist() == [0, 1]
    assert np.asarray(store.context["when.weekday"]).tolist() == [4, 6]  # 1970-01-01 was a Thursday
    age = np.asarray(store.context["when.age"])
    np.testing.assert_allclose(age, [np.log1p(2 + 1 / 24), 0.0], rtol=1e-6)
    with pytest.raises(SchemaError, match=r"context.when reads the column 't' in unit 's', but .*time_unit is 'ms'"):
        ingest(replace(schema, context={"when": Time(column="t")}), interactions=frame, out=tmp_path / "other")


# ---------------------------------------------------------------- attributes


def test_attributes_from_the_interactions(tmp_path: Path) -> None:
    frame = pa.table(
        {
            "user": ["a", "a", "b", "a"],
            "item": ["x", "y", "x", "z"],
            "country": [None, "de", "fr", "at"],
            "price": [1.0, 3.0, float("nan"), None],
            "tags": [["t"], None, ["t", "u"], ["u"]],
            "share": [[1.0], None, [0.5, 0.5], [2.0]],
            "v": pa.array([[1, 2], [3, 4], [1, 3], None], pa.list_(pa.float32(), 2)),
        }
    )
    schema = Schema(
        interactions=PAIRS.interactions,
        query={"user": Id(column="user"), "country": Categorical(column="country")},
        item={
            "item": Id(column="item"),
            "price": Number(column="price"),
            "tags": Categories(column="tags", weights="share"),
            "v": Vector(column="v", dim=2),
        },
    )
    report = ingest(schema, interactions=frame, out=tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.query_vocabulary is not None
    assert store.query_vocabulary.ids().to_pylist() == ["a", "b"]
    countries = store.encoders.vocabularies["query.country"].rows(pa.array(["de", "fr"])).tolist()
    assert np.asarray(store.query["country"]).tolist() == countries
    assert store.item_vocabulary.ids().to_pylist() == ["x", "y", "z"]
    np.testing.assert_allclose(np.asarray(store.item["price"]), [-1.0, 1.0, 0.0])  # of 1 and 3: mean 2, deviation 1
    tags = store.item["tags"]
    assert isinstance(tags, RaggedArray)
    assert tags.lengths().tolist() == [1, 0, 1]
    np.testing.assert_allclose(np.asarray(store.item["v"]), [[1, 2], [3, 4], [0, 0]])
    assert report.conflicts == {"query.country": 1, "item.price": 0, "item.tags": 1, "item.share": 1, "item.v": 1}
    assert report.missing == {
        "query.user": [0, 2],
        "query.country": [0, 2],
        "item.item": [0, 3],
        "item.price": [1, 3],
        "item.tags": [1, 3],
        "item.v": [1, 3],
    }
    assert "query.country" in report.render()


def test_first_value_is_of_the_first_file_that_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_MERGE_AT", 1)
    files = [
        pa.table({"user": ["a"], "item": ["x"], "age": pa.array([None], pa.null())}),
        pa.table({"user": ["a", "b"], "item": ["y", "y"], "age": pa.array([4, 6], pa.int32())}),
        pa.table({"user": ["a"], "item": ["z"], "age": [9.0]}),
    ]
    schema = replace(PAIRS, query={"user": Id(column="user"), "age": Number(column="age")})
    report = ingest(schema, interactions=files, out=tmp_path / "store")
    store = Store.open(tmp_path / "store")
    np.testing.assert_allclose(np.asarray(store.query["age"]), [-1.0, 1.0])  # 4 and 6
    assert report.conflicts == {"query.age": 1}


def test_files_of_queries_and_items_with_keys_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CHUNK_ROWS", 2)
    schema = Schema(
        interactions=PAIRS.interactions,
        query={"user": Id(column="uid"), "age": Number(column="age"), "plan": Categorical(column="plan")},
        item={"item": Id(column="item"), "title": Text(columns=("title",))},
        query_key="uid",
        item_key="sku",
    )
    events = pa.table({"user": [1, 2, 1], "item": ["x", "z", "z"], "plan": ["pro", None, "free"]})
    users = pd.DataFrame({"uid": [3.0, 1.0, None, 1.0, 2.0], "age": [10, 30, 0, 99, 20]})
    items = pa.table({"sku": ["z", "z", "y", "x"], "title": ["one", "two", "three", None]})
    report = ingest(schema, interactions=events, queries=users, items=items, out=tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.query_vocabulary is not None
    assert store.query_vocabulary.ids().to_pylist() == ["3", "1", "2"]
    assert store.item_vocabulary.ids().to_pylist() == ["z", "y", "x"]
    deviation = np.sqrt(200 / 3)
    np.testing.assert_allclose(np.asarray(store.query["age"]), np.array([-10, 10, 0]) / deviation, rtol=1e-6)
    assert np.asarray(store.query["plan"]).tolist() == [
        -1,
        store.encoders.vocabularies["query.plan"].rows(pa.array(["pro"]))[0],
        -1,
    ]
    ids = store.encoders.vocabularies["item"].rows(pa.array(["z", "y", "x"]))
    assert np.asarray(store.item["item"]).tolist() == ids.tolist()
    title = store.item["title"]
    assert isinstance(title, RaggedArray)
    assert title.lengths().tolist() == [1, 1, 0]
    assert events_of(store) == [("1", "x"), ("2", "z"), ("1", "z")]
    assert left_out(report, "queries") == {"id missing": 1, "id already there": 1}
    assert left_out(report, "items") == {"id already there": 1}


def test_queries_that_are_items(tmp_path: Path) -> None:
    schema = replace(PAIRS, interactions=replace(PAIRS.interactions, query_is_item=True))
    frame = pa.table({"user": ["x", "q", "y"], "item": ["y", "x", "z"]})
    ingest(schema, interactions=frame, out=tmp_path / "store")
    store = Store.open(tmp_path / "store", verify=True)
    assert store.query_vocabulary is not None
    rows = dict(zip(store.query_vocabulary.ids().to_pylist(), store.query_item_row, strict=True))  # type: ignore[arg-type]
    items = store.item_vocabulary.ids().to_pylist()
    assert {query: items[row] if row >= 0 else None for query, row in rows.items()} == {"x": "x", "y": "y", "q": None}


def test_search_without_query_ids_keeps_equal_events(tmp_path: Path) -> None:
    schema = Schema(
        interactions=Interactions(item="item"),
        context={"words": Text(columns=("words",))},
        item={"item": Id(column="item")},
    )
    frame = pa.table({"words": ["red shoe", "red shoe", "hat"], "item": ["x", "x", "y"]})
    ingest(schema, interactions=frame, out=tmp_path / "store")
    store = Store.open(tmp_path / "store", verify=True)
    assert (store.n_queries, store.query_vocabulary, store.query.n) == (0, None, 0)
    assert store.query_row.tolist() == [-1, -1, -1]
    words = store.context["words"]
    assert isinstance(words, RaggedArray)
    assert words.lengths().tolist() == [2, 2, 1]


def test_contexts_follow_their_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CHUNK_ROWS", 3)
    monkeypatch.setattr(order, "BLOCK_EVENTS", 4)
    rng = np.random.default_rng(0)
    n = 50
    t, repeat = rng.integers(0, 10, n), rng.integers(0, 3, n)
    frame = pa.table(
        {
            "user": [f"u{k}" for k in rng.integers(0, 3, n)],
            "item": [f"i{k}" for k in rng.integers(0, 4, n)],
            "t": t,
            "w": np.ones(n),
            "tags": [[f"tag{k}"] * r for k, r in enumerate(repeat)],
            "x": np.arange(n, dtype=np.float64),
        }
    )
    schema = replace(SCHEMA, context={"tags": Categories(column="tags"), "x": Number(column="x")})
    ingest(schema, interactions=frame, out=tmp_path / "store")
    store = Store.open(tmp_path / "store")
    rows = sorted(range(n), key=lambda k: t[k])
    seen: set[tuple[str, str, int]] = set()
    expected = []
    for k in rows:
        key = (frame["user"][k].as_py(), frame["item"][k].as_py(), int(t[k]))
        if key not in seen:
            seen.add(key)
            expected.append(k)
    assert len(expected) < n
    x = np.asarray(store.context["x"], np.float64) * np.std(np.arange(n)) + np.mean(np.arange(n))
    np.testing.assert_allclose(x, expected, atol=1e-4)
    tags = store.context["tags"]
    assert isinstance(tags, RaggedArray)
    vocabulary = store.encoders.vocabularies["context.tags"]
    for at, k in enumerate(expected):
        row = tags.value[tags.offset[at] : tags.offset[at + 1]]
        assert row.tolist() == vocabulary.rows(pa.array([f"tag{k}"] * repeat[k], pa.string())).tolist()


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=30),
    st.integers(1, 5),
)
def test_order_in_blocks(events: list[tuple[int, int, int]], block: int) -> None:
    query, item, t = (np.array(column) for column in zip(*events, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "BLOCK_EVENTS", block)
        found = in_order({"query_row": query, "item_row": item, "time_us": t}, 3, True)
    first = {event: at for at, event in reversed(list(enumerate(events)))}
    expected = sorted(first.values(), key=lambda at: (t[at], at))
    assert found.order.tolist() == expected
    assert found.repeated.tolist() == sorted(set(range(len(events))) - set(expected))


# ---------------------------------------------------------------- splits that the data brings


def test_split_column_and_what_is_learnt_from_it(tmp_path: Path) -> None:
    frame = pa.table(
        {
            "user": ["a", "b", "c", "a", "a"],
            "item": ["x", "y", "x", "z", "x"],
            "part": ["train", "train", "valid", "test", "test"],
            "n": [1.0, 3.0, 50.0, 60.0, 70.0],
        }
    )
    schema = Schema(
        interactions=Interactions(item="item", query="user", split="part"),
        query={"user": Id(column="user")},
        context={"n": Number(column="n")},
        item={"item": Id(column="item")},
    )
    ingest(schema, interactions=frame, out=tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert store.split is not None
    assert store.split.tolist() == [0, 0, 1, 2, 2]  # a, x twice: once in train, once in test
    np.testing.assert_allclose(np.asarray(store.context["n"]), [-1, 1, 48, 58, 68])  # of 1 and 3
    assert store.query_vocabulary is not None
    users = store.query_vocabulary.ids().to_pylist()
    vocabulary = store.encoders.vocabularies["query.user"]
    assert [vocabulary.rows(pa.array([user]))[0] for user in ("a", "b", "c")] == [0, 1, 2]  # c: the row of the unknown
    assert vocabulary.size == 3
    assert len(users) == 3
    for bad, shown in (("Train", "'Train'"), (None, "None")):
        wrong = frame.set_column(2, "part", pa.array(["train", bad, "test", "test", "test"]))
        with pytest.raises(DataError, match=f"row 2, column 'part': found {shown}, expected one of train, valid, test"):
            ingest(schema, interactions=wrong, out=tmp_path / "wrong")


def test_files_of_given_parts(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("0 1 2\n1 1\n")
    (tmp_path / "test.txt").write_text("0 3 1\n1 4 4\n2\n")
    report = ingest(PAIRS, interactions=tmp_path / "train.txt", test=tmp_path / "test.txt", out=tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert events_of(store) == [("0", "1"), ("0", "2"), ("1", "1"), ("0", "3"), ("0", "1"), ("1", "4")]
    assert store.split is not None
    assert store.split.tolist() == [0, 0, 0, 2, 2, 2]
    assert store.n_items == 4
    assert left_out(report) == {}
    assert left_out(report, "test") == {"repeats an earlier event": 1}
    schema = replace(PAIRS, interactions=replace(PAIRS.interactions, split="part"))
    with pytest.raises(SchemaError, match="the split is given twice, by the column 'part' and by files"):
        ingest(schema, interactions=tmp_path / "train.txt", test=tmp_path / "test.txt", out=tmp_path / "other")


# ---------------------------------------------------------------- what can't be ingested


def test_no_usable_event_shows_why(tmp_path: Path) -> None:
    frame = pa.table({"user": ["a", None], "item": ["x", "x"], "t": [1_700_000_000_000, 1], "w": [1.0, 1.0]})
    with pytest.raises(DataError, match=r"no event can be used: 1 of .*query id missing.*t = 1700000000000"):
        ingest(SCHEMA, interactions=frame, out=tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


FINE = pa.table({"user": ["a"], "item": ["x"], "t": [1], "w": [1.0]})
PRICED = replace(SCHEMA, item={"item": Id(column="item"), "price": Number(column="price")})


@pytest.mark.parametrize(
    ("schema", "sources", "error", "message"),
    [
        (
            with_events(item="itm"),
            {},
            DataError,
            r"interactions \(pyarrow frame\): there is no column 'itm'; the columns are .*; did you mean 'item'",
        ),
        (
            PRICED,
            {},
            DataError,
            "schema.item: column 'price' is not in the interactions, and there is no file of items",
        ),
        (
            PRICED,
            {"items": pa.table({"item": ["x"], "prize": [1]})},
            DataError,
            "'price' is .*neither in the file of items; did you mean 'prize'.; .*, the items item, prize",
        ),
        (
            SCHEMA,
            {"items": pa.table({"sku": ["x"]})},
            DataError,
            "items: there is no column 'item' .*; the columns are 'sku'; name the one of the ids as schema.item_key",
        ),
        (SCHEMA, {"items": pa.table({"item": [None, ""]})}, DataError, "items: no row has an id in the column 'item'"),
        (
            SCHEMA,
            {"items": pa.table({"item": [["x"]]})},
            DataError,
            r"items \(pyarrow frame\): column 'item': found list",
        ),
        (
            PRICED,
            {"items": pa.table({"item": ["x"], "price": ["1"]})},
            DataError,
            r"items .*rows 1 to 1\): item.price: .*found string",
        ),
        (
            with_events(weight="user"),
            {},
            DataError,
            r"rows 1 to 1\): column 'user': found large_string, expected numbers",
        ),
        (SEARCH, {"queries": FINE}, SchemaError, "interactions.query names no column"),
        (SCHEMA, {"items": "nowhere.csv"}, DataError, "items: there is no file or folder nowhere.csv"),
        (SCHEMA, {"items": FINE.slice(0, 0)}, DataError, r"items \(pyarrow frame\): there are no rows"),
        (SCHEMA, {"interactions": []}, DataError, "interactions: no file and no frame was given"),
    ],
)
def test_what_does_not_fit_is_explained(
    tmp_path: Path, schema: Schema, sources: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ingest(schema, **({"interactions": FINE} | sources), out=tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_source_that_changes_between_the_passes(tmp_path: Path) -> None:
    class Fickle(list[pa.Table]):
        reads = 0

        def __iter__(self) -> Any:
            self.reads += 1
            return iter([FINE] if self.reads < 4 else [FINE, FINE.set_column(0, "user", pa.array(["b"]))])

    with pytest.raises(DataError, match=r"the files changed while they were read \(a new query id\)"):
        ingest(SCHEMA, interactions=Fickle(), out=tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- interruptions


STAGES = ("reading events", "encoding queries", "encoding items", "encoding events", "sorting events")


@pytest.mark.parametrize("stage", STAGES)
def test_an_error_inside_leaves_nothing(tmp_path: Path, stage: str) -> None:
    def stop(what: str, rows: int) -> None:
        if what == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(SCHEMA, interactions=FINE, items=FINE, out=tmp_path / "store", progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_an_artifact_error(tmp_path: Path, stage: str) -> None:
    def fail(what: str, rows: int) -> None:
        if what == stage:
            raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactError, match=r"store: the store can't be written \(.*No space left on device"):
        ingest(SCHEMA, interactions=FINE, out=tmp_path / "store", progress=fail)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
import pyarrow as pa
from twotower.data import ingest as module
from twotower.data.staging import Staging
from twotower.schema import Id, Interactions, Schema

folder = Path(sys.argv[1])
schema = Schema(
    interactions=Interactions(item="item", query="user"),
    query={"user": Id(column="user")},
    item={"item": Id(column="item")},
)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

for at, stage in enumerate(sys.argv[2:]):
    child = os.fork()  # before Arrow has started threads
    if child == 0:
        def progress(what, rows):
            if what == stage:
                die()
        if stage == "manifest":
            module.write_manifest = die
        if stage == "rename":
            Staging.publish = die
        events = pa.table({"user": ["a", "b"], "item": ["x", "y"]})
        module.ingest(schema, interactions=events, out=folder / str(at), progress=progress)
        os._exit(0)
    print(os.waitpid(child, 0)[1])
"""


def test_kill_leaves_nothing_that_opens_and_the_next_ingest_tidies_up(tmp_path: Path) -> None:
    stages = ["reading events", "encoding events", "manifest", "rename"]
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), *stages],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == ["9"] * len(stages)
    for at, _ in enumerate(stages):
        out = tmp_path / str(at)
        assert not out.exists()
        assert (tmp_path / f".{at}.partial").is_dir()
        with pytest.raises(ArtifactError, match="there is no store here"):
            Store.open(out)
        ingest(PAIRS, interactions=FINE, out=out)
        assert Store.open(out, verify=True).n_events == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(str(at) for at in range(len(stages)))


def test_an_interrupted_overwrite_leaves_the_old_store(tmp_path: Path) -> None:
    ingest(PAIRS, interactions=FINE, out=tmp_path / "store")

    def stop(what: str, rows: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        ingest(SCHEMA, interactions=FINE, out=tmp_path / "store", overwrite=True, progress=stop)
    assert Store.open(tmp_path / "store", verify=True).schema == PAIRS


# ---------------------------------------------------------------- real data


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"{DATA / name} is absent: set TWOTOWER_DATA to the folder of the data sets")
    return DATA / name


@pytest.mark.slow
def test_gowalla(tmp_path: Path) -> None:
    folder = real("gowalla")
    report = ingest(PAIRS, interactions=folder / "train.txt", test=folder / "test.txt", out=tmp_path / "store")
    assert (report.n_queries, report.n_items) == (29_858, 40_981)
    assert [(group.read, group.kept) for group in report.groups] == [(810_128, 810_128), (217_242, 217_242)]
    store = Store.open(tmp_path / "store")
    assert store.split is not None
    assert Counter(store.split.tolist()) == {0: 810_128, 2: 217_242}


@pytest.mark.slow
def test_online_retail(tmp_path: Path) -> None:
    folder = real("online-retail")
    schema = Schema(
        interactions=Interactions(item="StockCode", query="CustomerID", time="InvoiceDate", weight="Quantity"),
        query={"customer": Id(column="CustomerID"), "country": Categorical(column="Country")},
        item={"item": Id(column="StockCode"), "description": Text(columns=("Description",))},
    )
    report = ingest(schema, interactions=folder, out=tmp_path / "store")
    frame = pyarrow.parquet.read_table(
        folder, columns=["CustomerID", "Quantity", "StockCode", "InvoiceDate"]
    ).to_pandas()
    known = frame[frame.CustomerID.notna()]
    bought = known[known.Quantity >= 0]
    kept = bought.drop_duplicates(["CustomerID", "StockCode", "InvoiceDate"])
    assert left_out(report) == {
        "query id missing": len(frame) - len(known),
        "weight missing, negative or not finite": len(known) - len(bought),
        "repeats an earlier event": len(bought) - len(kept),
    }
    assert (report.n_queries, report.n_items) == (kept.CustomerID.nunique(), kept.StockCode.nunique())
    store = Store.open(tmp_path / "store")
    assert store.n_events == len(kept)
    assert len(store.days) == kept.InvoiceDate.dt.date.nunique()
    assert sum(day.stop - day.start for day in store.days) == store.n_events
    assert store.query_vocabulary is not None
    assert store.query_vocabulary.rows(pa.array(["17850"]))[0] >= 0  # in the file it is the number 17850.0
