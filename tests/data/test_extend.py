"""Stores that grow: rows never move, what arrived is what a naive loop adds, and what went has left no trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.data import catalogue, order, readers
from twotower.data.columns import RaggedArray
from twotower.data.extend import extend
from twotower.data.ingest import ingest
from twotower.data.report import IngestReport
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
    Seed,
    Text,
    Time,
    Vector,
)

DAY = 86_400
SECOND = 10**6

SCHEMA = Schema(
    interactions=Interactions(item="item", query="user", time="t", weight="w"),
    query={"user": Id(column="user")},
    item={"item": Id(column="item")},
)
PAIRS = replace(SCHEMA, interactions=Interactions(item="item", query="user"))
SEARCH = Schema(
    interactions=Interactions(item="item"), context={"w": Number(column="w")}, item={"item": Id(column="item")}
)
"""Queries that are only their context."""


def log(rows: list[tuple[Any, ...]], *names: str) -> pa.Table:
    """Rows of (user, item, t, w), or of other columns."""
    names = names or ("user", "item", "t", "w")
    return pa.table({name: [row[at] for row in rows] for at, name in enumerate(names)})


def first(folder: Path, schema: Schema, events: pa.Table, **sources: Any) -> Store:
    ingest(schema, interactions=events, out=folder / "0", **sources)
    return Store.open(folder / "0", verify=True)


def extended(base: Store, events: Any, **settings: Any) -> tuple[IngestReport, Store]:
    out = base.path.with_name(str(base.n_updates + 1))
    report = extend(base, interactions=events, out=out, **settings)
    return report, Store.open(out, verify=True)


def ids(store: Store, side: str = "item") -> list[str | None]:
    vocabulary = store.item_vocabulary if side == "item" else store.query_vocabulary
    assert vocabulary is not None
    return list(vocabulary.ids().to_pylist())


def events_of(store: Store) -> list[tuple[Any, ...]]:
    """(query id, item id, seconds, weight, arrived) of all events."""
    query = ids(store, "query") if store.query_vocabulary is not None else []
    item = ids(store)
    t = [0] * store.n_events if store.time_us is None else (np.asarray(store.time_us) // SECOND).tolist()
    return [
        (query[q] if q >= 0 else None, item[i], at, w, n)
        for q, i, at, w, n in zip(
            store.query_row.tolist(),
            store.item_row.tolist(),
            t,
            store.weight.tolist(),
            store.arrived.tolist(),
            strict=True,
        )
    ]


def values(store: Store, side: str, name: str, table: str) -> list[str | None]:
    """The text of each row of a column: "?" in a bucket, None where missing."""
    vocabulary: Any = store.encoders.vocabularies[table]
    text, column = vocabulary.ids().to_pylist(), np.asarray(getattr(store, side)[name]).tolist()
    return [
        None if row < 0 else "?" if row >= len(text) or vocabulary.in_buckets(np.array([row]))[0] else text[row]
        for row in column
    ]


def lists(column: Any) -> list[list[int]]:
    assert isinstance(column, RaggedArray)
    return [column.value[a:b].tolist() for a, b in zip(column.offset[:-1], column.offset[1:], strict=True)]


# ---------------------------------------------------------------- a naive loop


class Naive:
    """Updates as dictionaries and lists."""

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self.item: list[str | None] = []
        self.user: list[str | None] = []
        self.number: list[int] = []
        self.n_numbers = 0
        self.seen: dict[str, int] = {}
        self.events: list[tuple[Any, ...]] = []
        self.n_updates = -1
        self.add(rows, (), None)

    def add(self, rows: list[tuple[Any, ...]], forget: tuple[str, ...], days: float | None) -> dict[str, int]:
        self.n_updates += 1
        rows = [row for row in rows if row[0] not in forget]
        newest = max([t for *_, t, _ in rows] + [*self.seen.values()], default=0)
        named = {item for _, item, _, _ in rows}
        idle = {
            item
            for item in self.item
            if item is not None and days is not None and item not in named and self.seen[item] < newest - days * DAY
        }
        forgotten = [event for event in self.events if event[0] in forget]
        evicted = [event for event in self.events if event[1] in idle and event[0] not in forget]
        self.events = [event for event in self.events if event not in forgotten and event not in evicted]
        self.user = [None if user in forget else user for user in self.user]
        for at, item in enumerate(self.item):
            if item in idle:
                self.item[at], self.number[at] = None, -1
                del self.seen[str(item)]
        n_items, n_users = self.n_numbers, sum(user is not None for user in self.user)
        self.place(self.user, Counter(user for user, *_ in rows))
        for item in self.place(self.item, Counter(item for _, item, *_ in rows)):
            at = self.item.index(item)
            self.number += [-1] * (at + 1 - len(self.number))
            self.number[at] = self.n_numbers
            self.n_numbers += 1
        n_repeats = 0
        known = {event[:3] for event in self.events}
        for user, item, t, w in rows:
            self.seen[item] = max(self.seen.get(item, 0), t)
            if (user, item, t) in known:
                n_repeats += 1
            else:
                known.add((user, item, t))
                self.events.append((user, item, t, w, self.n_updates))
        self.events.sort(key=lambda event: event[2])
        return {
            "n_new": len(rows) - n_repeats,
            "n_repeats": n_repeats,
            "new_queries": sum(user is not None for user in self.user) - n_users,
            "new_items": self.n_numbers - n_items,
            "evicted_items": len(idle),
            "evicted_events": len(evicted),
            "forgotten_queries": len(forget),
            "forgotten_events": len(forgotten),
        }

    @staticmethod
    def place(rows: list[Any], count: Counter[str]) -> list[str]:
        new = sorted((value for value in count if value not in rows), key=lambda value: (-count[value], value))
        for value in new:
            if None in rows:
                rows[rows.index(None)] = value
            else:
                rows.append(value)
        return new


ROWS = st.lists(
    st.tuples(
        st.sampled_from("abcde"),
        st.sampled_from("uvwxyz"),
        st.integers(0, 30).map(lambda k: k * DAY // 3),
        st.just(1.0),
    ),
    min_size=1,
    max_size=12,
)
UPDATE = st.tuples(ROWS, st.sets(st.sampled_from("abcde"), max_size=2), st.one_of(st.none(), st.integers(1, 6)))


@settings(max_examples=8, deadline=None)
@given(start=ROWS, updates=st.lists(UPDATE, min_size=1, max_size=3), chunk=st.integers(1, 5))
def test_updates_are_what_a_naive_loop_makes(
    tmp_path_factory: pytest.TempPathFactory, start: list[Any], updates: list[Any], chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("extend")
    naive = Naive(start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK_ROWS", chunk)
        for module in (order, sys.modules["twotower.data.extend"]):
            patch.setattr(module, "BLOCK_EVENTS", chunk)
        patch.setattr(catalogue, "_MERGE_AT", chunk)
        store = first(folder, SCHEMA, log(start))
        for rows, forget, days in updates:
            known = tuple(sorted(forget & {user for user in naive.user if user is not None}))
            would = [event for event in naive.events if event[0] not in known]
            if not would and all(row[0] in known for row in rows):
                return  # nothing would be left, which is an error of its own
            expected = naive.add(rows, known, days)
            if not naive.events:
                return
            report, store = extended(store, log(rows), forget=known, evict_idle_days=days)
            assert report.growth is not None
            assert {name: getattr(report.growth, name) for name in expected} == expected
            assert ids(store) == naive.item
            assert ids(store, "query") == naive.user
            assert sorted(events_of(store)) == sorted(naive.events)
            assert np.all(np.diff(store.time_us) >= 0)
            assert [(str(day.date), day.stop - day.start) for day in store.days] == [
                (str(np.datetime64(day, "D")), n)
                for day, n in sorted(Counter(event[2] // DAY for event in naive.events).items())
            ]
            assert store.item_number.tolist() == naive.number
            assert store.item_seen_us is not None
            assert store.item_seen_us.tolist() == [naive.seen.get(str(item), 0) * SECOND for item in naive.item]
            assert values(store, "item", "item", "item") == naive.item
            assert values(store, "query", "user", "query.user") == naive.user
            assert (store.n_updates, report.n_events) == (naive.n_updates, len(naive.events))


FEATURES = Schema(
    interactions=Interactions(item="item", query="user", time="t"),
    query={"user": Id(column="user", min_count=2)},
    item={"item": Id(column="item", min_count=3), "kind": Categorical(column="kind", min_count=2)},
    context={"from": Seed(column="from"), "page": Categorical(column="page"), "past": History()},
)
VISITS = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.sampled_from("uvwxyz"), st.integers(0, 5), st.sampled_from("uv"), st.just("p")
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=8, deadline=None)
@given(start=VISITS, later=VISITS)
def test_a_store_that_grew_is_that_of_all_events_but_for_its_rows(
    tmp_path_factory: pytest.TempPathFactory, start: list[Any], later: list[Any]
) -> None:
    """The kind of an item follows from its id, so that it does not matter which event tells it."""
    names = ("user", "item", "t", "from", "page", "kind")
    batches = [
        [(*row[:4], f"{row[4]}{row[2]}", "early" if row[1] < "x" else "late") for row in b] for b in (start, later)
    ]
    folder = tmp_path_factory.mktemp("grew")
    base = first(folder, FEATURES, log(batches[0], *names))
    report, grown = extended(base, log(batches[1], *names))
    ingest(FEATURES, interactions=log(batches[0] + batches[1], *names), out=folder / "all")
    whole = Store.open(folder / "all")
    assert Counter(event[:4] for event in events_of(grown)) == Counter(event[:4] for event in events_of(whole))
    assert {*ids(grown)} == {*ids(whole)}
    assert {*ids(grown, "query")} == {*ids(whole, "query")}
    assert ids(grown)[: base.n_items] == ids(base)
    of = {
        "query.user": ("query", "user"),
        "item": ("item", "item"),
        "item.kind": ("item", "kind"),
        "context.page": ("context", "page"),
    }
    for table, (side, name) in of.items():
        ours, theirs, before = (store.encoders.vocabularies[table] for store in (grown, whole, base))
        texts = {text for text in ours.ids().to_pylist() if text is not None}
        assert texts == {*theirs.ids().to_pylist()}, table
        assert ours.size == theirs.size, table
        assert ours.ids().to_pylist()[: before.n_values] == before.ids().to_pylist()
        if side != "context":
            catalogues = [dict(zip(ids(s, side), values(s, side, name, table), strict=True)) for s in (grown, whole)]
            known = {*ids(base, side)} if name == "kind" else set()  # of an old item a kind stays in its bucket
            assert all(a == catalogues[1][key] or (key in known and a == "?") for key, a in catalogues[0].items())
    pages = [
        Counter(zip((e[:3] for e in events_of(s)), values(s, "context", "page", "context.page"), strict=True))
        for s in (grown, whole)
    ]
    assert pages[0] == pages[1]
    assert report.growth is not None
    assert report.growth.n_new + base.n_events == whole.n_events


# ---------------------------------------------------------------- every kind of feature, and late events


EVERYTHING = Schema(
    interactions=Interactions(item="item", query="user", time="t"),
    query={"user": Id(column="user")},
    item={
        "item": Id(column="item"),
        "price": Number(column="price"),
        "rank": Number(column="price", transform="quantile", buckets=2),
        "born": Time(column="born"),
        "title": Text(columns=("title",), buckets=64),
        "tags": Categories(column="tags"),
        "v": Vector(column="v", dim=2),
    },
    context={"past": History(), "with": Categories(column="with"), "when": Time(column="t", parts=("hour", "age"))},
)


def items_of(rows: list[tuple[Any, ...]]) -> pa.Table:
    return log(rows, "item", "price", "born", "title", "tags", "v")


ITEMS = [("x", 1.0, 0, "red shoe", ["a", "b"], [1.0, 2.0]), ("y", 3.0, DAY, "red hat", ["a"], [3.0, 4.0])]


def test_features_are_read_of_new_items_and_of_those_listed_again(tmp_path: Path) -> None:
    names = ("user", "item", "t", "with")
    old = [("a", "x", 10 * DAY, ["m"]), ("a", "y", 20 * DAY, ["m", "n"]), ("b", "x", 30 * DAY, [])]
    base = first(tmp_path, EVERYTHING, log(old, *names), items=items_of(ITEMS))
    again = ("y", 5.0, None, "blue", ["c", "a"], [7.0, 8.0])
    new = ("z", None, 2 * DAY, "shoe", [], None)
    late = [("b", "z", 15 * DAY + 3600, ["o", "m"]), ("c", "y", 40 * DAY, ["n"]), ("c", "gone", 40 * DAY, ["n"])]
    report, store = extended(base, log(late, *names), items=items_of([again, new, again]))
    assert [(group.name, group.left_out) for group in report.groups] == [
        ("interactions", {"item not in the item file": 1}),
        ("items", {"id already there": 1}),
    ]
    assert ids(store) == ["x", "y", "z"]
    assert [event[:4] for event in events_of(store)] == [
        ("a", "x", 10 * DAY, 1.0),
        ("b", "z", 15 * DAY + 3600, 1.0),
        ("a", "y", 20 * DAY, 1.0),
        ("b", "x", 30 * DAY, 1.0),
        ("c", "y", 40 * DAY, 1.0),
    ]
    np.testing.assert_allclose(store.item["price"], [-1.0, 3.0, 0.0])  # mean 2 and deviation 1 of the first ingest
    assert np.asarray(store.item["rank"]).tolist() == [0, 1, -1]
    np.testing.assert_allclose(store.item["born.age"], np.log1p([30, (np.expm1(np.log1p([30, 29]).mean())), 28]))
    np.testing.assert_array_equal(store.item["v"], [[1, 2], [7, 8], [0, 0]])
    tag = {text: row for row, text in enumerate(store.encoders.vocabularies["item.tags"].ids().to_pylist())}
    assert tag == {"a": 0, "b": 1, None: 2, "c": 3}  # the bucket stays behind what came first
    assert lists(store.item["tags"]) == [[0, 1], [3, 0], []]
    assert lists(base.item["title"])[0] == lists(store.item["title"])[0]
    assert len(lists(store.item["title"])[1]) == 1
    page = {text: row for row, text in enumerate(store.encoders.vocabularies["context.with"].ids().to_pylist())}
    assert lists(store.context["with"]) == [
        [page["m"]],
        [page["o"], page["m"]],
        [page["m"], page["n"]],
        [],
        [page["n"]],
    ]
    assert np.asarray(store.context["when.hour"]).tolist() == [0, 1, 0, 0, 0]
    np.testing.assert_allclose(store.context["when.age"], np.log1p([20, 15 - 1 / 24, 10, 0, 0]), rtol=1e-6)
    assert store.item_seen_us is not None
    assert store.item_seen_us.tolist() == [30 * DAY * SECOND, 40 * DAY * SECOND, 40 * DAY * SECOND]
    assert report.missing["item.price"] == [1, 2]
    assert report.in_buckets["context.with"] == [0, 3]
    assert store.encoders.scalings == base.encoders.scalings
    assert store.encoders.last_event_us == base.encoders.last_event_us


# ---------------------------------------------------------------- what goes


def test_a_freed_row_is_missing_everywhere_and_is_taken_by_the_next_new_item(tmp_path: Path) -> None:
    schema = replace(
        SCHEMA,
        query={"user": Id(column="user"), "favourite": Categorical(column="favourite", table="item")},
        context={"from": Seed(column="from")},
    )
    names = ("user", "item", "t", "w", "favourite", "from")
    old = [("a", "x", 0, 1.0, "x", "y"), ("b", "y", 9 * DAY, 1.0, "y", "x"), ("a", "z", 9 * DAY, 1.0, "x", None)]
    base = first(tmp_path, schema, log(old, *names))
    assert ids(base) == ["x", "y", "z"]
    report, store = extended(base, log([("a", "y", 10 * DAY, 1.0, "x", "x")], *names), evict_idle_days=8)
    assert report.growth is not None
    assert (report.growth.evicted_items, report.growth.evicted_events) == (1, 1)
    assert (ids(store), store.item_number.tolist()) == ([None, "y", "z"], [-1, 1, 2])
    assert store.item_vocabulary.free.tolist() == [True, False, False]
    assert values(store, "item", "item", "item") == [None, "y", "z"]
    assert values(store, "query", "favourite", "item") == ["?", "y"]
    assert values(store, "context", "from", "item") == ["?", None, "?"]
    assert (report.n_items, store.n_items) == (2, 3)
    report, store = extended(store, log([("b", "new", 10 * DAY, 1.0, "y", "new")], *names))
    assert (ids(store), store.item_number.tolist()) == (["new", "y", "z"], [3, 1, 2])
    assert values(store, "item", "item", "item") == ["new", "y", "z"]
    assert values(store, "query", "favourite", "item") == ["?", "y"]
    assert values(store, "context", "from", "item") == ["?", None, "?", "new"]
    _, store = extended(store, log([("b", "x", 11 * DAY, 1.0, "y", "x")], *names))
    assert (ids(store), store.item_number.tolist()) == (["new", "y", "z", "x"], [3, 1, 2, 4])
    assert values(store, "item", "item", "item") == ["new", "y", "z", "x"]


def test_idle_is_what_neither_had_an_event_nor_was_listed(tmp_path: Path) -> None:
    listed = pa.table({"item": ["never", "early", "listed", "late"]})
    base = first(tmp_path, SCHEMA, log([("a", "early", 0, 1.0), ("a", "late", 3 * DAY, 1.0)]), items=listed)
    soon = log([("a", "late", 9 * DAY, 1.0)])
    report, store = extended(base, soon, items=pa.table({"item": ["listed"]}), evict_idle_days=7)
    assert (report.growth and report.growth.evicted_items, ids(store)) == (0, ids(base))
    _, store = extended(store, log([("a", "late", 11 * DAY, 1.0)]), evict_idle_days=7)
    assert ids(store) == [None, None, "listed", "late"]
    _, store = extended(store, log([("a", "late", 16 * DAY, 1.0), ("a", "listed", 0, 1.0)]), evict_idle_days=7)
    assert ids(store) == [None, None, "listed", "late"]  # an event arrived, though an old one
    with pytest.raises(DataError, match="no event stays, so there is nothing left to extend"):
        extended(first(tmp_path / "b", SCHEMA, log([("a", "x", 0, 1.0)])), log([("a", "x", 0, 1.0)]), forget=["a"])


SECRET = "secret-7f3a-id"


def traces(folder: Path, text: str) -> list[str]:
    found = [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
    return [path.relative_to(folder).as_posix() for path in found]


@pytest.mark.parametrize("min_count", [1, 4])
def test_nothing_stays_of_a_forgotten_query(tmp_path: Path, min_count: int) -> None:
    schema = replace(
        SCHEMA,
        query={"user": Id(column="user", min_count=min_count), "again": Categorical(column="user")},
        context={"who": Categorical(column="user", min_count=2)},
    )
    old = [("a", "x", 1, 1.0), (SECRET, "x", 2, 1.0), (SECRET, "only", 3, 1.0), ("b", "x", 4, 1.0)]
    base = first(tmp_path, schema, log(old))
    assert "queries.arrow" in traces(base.path, SECRET)
    assert ("waiting.arrow" in traces(base.path, SECRET)) == (min_count > 1)
    arrived = log([(SECRET, "x", 5, 1.0), (SECRET, None, 6, -1.0), ("b", "x", 2, 1.0), ("b", "x", 2, 1.0)])
    report, store = extended(base, arrived, forget=[SECRET])
    assert traces(store.path, SECRET) == []
    assert SECRET not in report.render()
    assert report.groups[0].left_out == {"query is to be forgotten": 2, "repeats an earlier event": 1}
    assert report.growth is not None
    assert (report.growth.forgotten_queries, report.growth.forgotten_events) == (1, 2)
    assert ids(store, "query") == [
        "b" if query == "b" else None if query == SECRET else "a" for query in ids(base, "query")
    ]
    assert {event[1] for event in events_of(store)} == {"x"}
    assert ids(store) == ["x", "only"]
    _, store = extended(store, log([("c", "x", 9, 1.0)]))
    assert ids(store, "query").index("c") == ids(base, "query").index(SECRET)


def test_nothing_stays_of_a_forgotten_query_of_a_file(tmp_path: Path) -> None:
    schema = replace(SCHEMA, query={"user": Id(column="user"), "from": Categorical(column="from")})
    people = log([("a", "de"), (SECRET, "fr"), (SECRET, "fr")], "user", "from")
    base = first(tmp_path, schema, log([("a", "x", 1, 1.0), (SECRET, "x", 1, 1.0)]), queries=people)
    assert "store.json" in traces(base.path, SECRET)
    report, store = extended(base, log([("a", "y", 2, 1.0)]), queries=people, forget=[SECRET])
    assert traces(store.path, SECRET) == []
    assert report.groups[1].left_out == {"query is to be forgotten": 2}
    assert values(store, "query", "from", "query.from") == ["de", None]


def test_an_id_of_both_sides_stays_where_the_other_side_has_it(tmp_path: Path) -> None:
    schema = Schema(
        interactions=Interactions(item="item", query="page", time="t", query_is_item=True),
        query={"page": Id(column="page", table="item")},
        item={"item": Id(column="item")},
    )
    names = ("page", "item", "t")
    base = first(tmp_path, schema, log([("p", "q", 0), ("q", "r", 8 * DAY), ("r", "p", 8 * DAY)], *names))
    assert base.query_item_row is not None
    page = ids(base, "query")
    assert [ids(base)[row] for row in base.query_item_row] == page
    _, store = extended(base, log([("r", "r", 9 * DAY)], *names), evict_idle_days=5, forget=["p"])
    assert ids(store).count(None) == 1  # the item q
    assert ids(store, "query") == [None if text == "p" else text for text in page]
    table = {*store.encoders.vocabularies["item"].ids().to_pylist()} - {None}
    assert table == {"q", "r", "p"}  # q is a page still, p an item
    assert values(store, "query", "page", "item") == ids(store, "query")
    assert values(store, "item", "item", "item") == ids(store)
    assert store.query_item_row is not None
    assert [ids(store)[row] if row >= 0 else None for row in store.query_item_row] == [
        None if text in ("p", "q") else text for text in page
    ]


# ---------------------------------------------------------------- min_count over updates


def test_values_wait_until_they_came_often_enough(tmp_path: Path) -> None:
    schema = replace(
        SCHEMA,
        query={"user": Id(column="user", min_count=3)},
        item={"item": Id(column="item"), "kind": Categorical(column="kind", min_count=2)},
    )
    names = ("item", "kind")
    base = first(
        tmp_path,
        schema,
        log([("a", "x", 1, 1.0), ("a", "y", 2, 1.0), ("b", "x", 3, 1.0), *[("c", "x", t, 1.0) for t in (4, 5, 6)]]),
        items=log([("x", "rare"), ("y", "new"), ("z", "new")], *names),
    )
    assert values(base, "query", "user", "query.user") == ["c" if text == "c" else "?" for text in ids(base, "query")]
    assert values(base, "item", "kind", "item.kind") == ["?", "new", "new"]
    report, store = extended(base, log([("b", "y", 7, 1.0)]), items=log([("x", "rare"), ("z", "odd")], *names))
    assert report.growth is not None
    assert report.growth.waiting == 4  # users a and b, kinds rare and odd: that of x is not counted again
    assert values(store, "item", "kind", "item.kind") == ["?", "new", "?"]
    report, store = extended(store, log([("b", "y", 8, 1.0)]), items=log([("w", "rare")], *names))
    assert report.growth is not None
    assert report.growth.waiting == 2
    known = {"b": "b", "c": "c", "a": "?"}
    assert values(store, "query", "user", "query.user") == [known[str(text)] for text in ids(store, "query")]
    assert values(store, "item", "kind", "item.kind") == ["?", "new", "?", "rare"]
    assert store.encoders.vocabularies["query.user"].ids().to_pylist() == ["c", None, "b"]
    _, store = extended(store, log([("a", "y", 9, 1.0)]), items=log([("x", "rare")], *names))
    assert values(store, "query", "user", "query.user") == ids(store, "query")
    assert values(store, "item", "kind", "item.kind") == ["rare", "new", "?", "rare"]


# ---------------------------------------------------------------- kinds of events


def test_without_times_what_arrived_lies_behind(tmp_path: Path) -> None:
    names = ("user", "item")
    base = first(tmp_path, PAIRS, log([("a", "x"), ("b", "x"), ("a", "y")], *names))
    report, store = extended(base, log([("b", "y"), ("a", "x"), ("c", "z"), ("b", "y")], *names))
    assert [event[:2] for event in events_of(store)] == [("a", "x"), ("b", "x"), ("a", "y"), ("b", "y"), ("c", "z")]
    assert store.arrived.tolist() == [0, 0, 0, 1, 1]
    assert (report.growth and report.growth.n_repeats, store.days, store.item_seen_us) == (2, (), None)
    with pytest.raises(SchemaError, match="items can't be idle without times"):
        extended(store, log([("b", "y")], *names), evict_idle_days=1)


def test_searches_are_never_repeats(tmp_path: Path) -> None:
    base = first(tmp_path, SEARCH, log([("x", 1.0), ("x", 3.0)], "item", "w"))
    report, store = extended(base, log([("x", 1.0), ("y", 5.0)], "item", "w"))
    assert [event[1] for event in events_of(store)] == ["x", "x", "x", "y"]
    np.testing.assert_allclose(store.context["w"], [-1, 1, -1, 3])
    assert (report.n_queries, store.query_row.tolist()) == (0, [-1] * 4)
    with pytest.raises(DataError, match=r"forget: 1 of 1 ids are no queries of .*, such as 'a'"):
        extended(store, log([("x", 1.0)], "item", "w"), forget=["a"])


def test_an_impression_and_its_click_are_two_events(tmp_path: Path) -> None:
    schema = replace(SCHEMA, interactions=replace(SCHEMA.interactions, taken="click", weight=None))
    names = ("user", "item", "t", "click")
    base = first(tmp_path, schema, log([("a", "x", 5, 0), ("a", "y", 5, 1)], *names))
    report, store = extended(base, log([("a", "x", 5, 1), ("a", "x", 5, 0), ("a", "z", 4, 0)], *names))
    assert store.taken is not None
    assert list(zip([event[1] for event in events_of(store)], store.taken.tolist(), strict=True)) == [
        ("z", 0),
        ("x", 0),
        ("y", 1),
        ("x", 1),
    ]
    assert (report.n_shown, report.growth and report.growth.n_repeats) == (2, 1)


def test_given_parts_go_on(tmp_path: Path) -> None:
    column = replace(SCHEMA, interactions=replace(SCHEMA.interactions, split="part"))
    names = ("user", "item", "t", "w", "part")
    old = [("a", "x", 1, 1.0, "train"), ("b", "x", 2, 1.0, "test")]
    base = first(tmp_path, column, log(old, *names))
    assert values(base, "query", "user", "query.user") == ["a", "?"]  # b has no training event
    _, store = extended(base, log([("b", "y", 3, 1.0, "train"), ("c", "x", 3, 1.0, "valid")], *names))
    assert store.split is not None
    assert store.split.tolist() == [0, 2, 0, 1]
    assert values(store, "query", "user", "query.user") == ["a", "b", "?"]
    files = first(tmp_path / "files", SCHEMA, log([("a", "x", 1, 1.0)]), test=log([("b", "x", 2, 1.0)]))
    _, store = extended(files, log([("b", "x", 2, 1.0), ("a", "x", 1, 1.0)]))
    assert store.split is not None
    assert store.split.tolist() == [0, 1 + 1, 0]  # a training event repeats no test event


def test_nothing_new_is_a_store_all_the_same(tmp_path: Path) -> None:
    events = log([("a", "x", 1, 1.0), ("b", "y", 2, 1.0)])
    base = first(tmp_path, SCHEMA, events)
    for arrived, n_repeats in ((events, 2), (log([("a", None, 1, 1.0), ("", "x", 1, 1.0)]), 0)):
        report, store = extended(base, arrived, overwrite=True)
        assert report.growth is not None
        assert (report.growth.n_new, report.growth.n_repeats) == (0, n_repeats)
        assert events_of(store) == events_of(base)
        assert (ids(store), store.n_updates) == (ids(base), 1)


# ---------------------------------------------------------------- refusals and interruptions


def test_what_does_not_fit_is_explained(tmp_path: Path) -> None:
    events = log([("a", "x", 1, 1.0)])
    base = first(tmp_path, SCHEMA, events)
    with pytest.raises(ArtifactError, match="this is the store that is extended"):
        extend(base, interactions=events, out=base.path, overwrite=True)
    with pytest.raises(DataError, match=r"items: there is a file, but the ids of the store came from its events"):
        extended(base, events, items=pa.table({"item": ["x"]}))
    with pytest.raises(DataError, match=r"forget: 2 of 3 ids are no queries of .*, such as 'b', 'c'"):
        extended(base, events, forget=["a", "b", "c"])
    with pytest.raises(DataError, match=r"forget: found the text 'a', expected a list"):
        extended(base, events, forget="a")
    with pytest.raises(ArtifactError, match="there is a store already"):
        extend(base, interactions=events, out=first(tmp_path / "other", SCHEMA, events).path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "other"]


def contents(folder: Path) -> dict[str, Any]:
    """Bytes of all files; of the manifest what does not tell how long it took."""
    files: dict[str, Any] = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    manifest = json.loads(files.pop("store.json"))
    manifest["report"] |= {"seconds": 0, "store": ""}
    return files | {"store.json": {**manifest, "crc32": 0}}


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np, pyarrow as pa
from twotower.data.extend import extend
from twotower.data.store import Store

base, folder, n_kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
ACTIONS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")

def updated(out, kill_at):
    \"\"\"An update in its own process, which is killed before its ``kill_at``-th action on files. Its status.\"\"\"
    child = os.fork()  # before Arrow has started threads
    if child:
        return os.waitpid(child, 0)[1]
    n_actions = 0

    def hook(event, args):
        nonlocal n_actions
        n_actions += event in ACTIONS
        if event in ACTIONS and n_actions == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    rows = np.arange(400)
    user, item = (rows % 17).astype(str), (rows % 13 + 5).astype(str)
    events = pa.table({"user": user, "item": item, "t": rows * 400, "w": rows * 0 + 1.0})
    sys.addaudithook(hook)
    extend(Store.open(base), interactions=events, out=out, forget=["3"], evict_idle_days=1, overwrite=True)
    (folder / "actions").write_text(str(n_actions))
    os._exit(0)

assert updated(folder / "whole", None) == 0
for kill_at in np.linspace(1, int((folder / "actions").read_text()) - 1, n_kills).astype(int).tolist():
    out = folder / str(kill_at)
    status = updated(out, kill_at)
    assert status == signal.SIGKILL, (kill_at, status)
    assert not out.exists() or (out / "store.json").exists()  # it was published just before, whole
    assert updated(out, None) == 0
"""


@pytest.mark.slow
def test_an_update_killed_at_any_moment_is_no_store_and_starts_again(tmp_path: Path) -> None:
    rows = np.arange(500)
    events = pa.table(
        {"user": (rows % 19).astype(str), "item": (rows % 23).astype(str), "t": rows * 370, "w": rows * 0 + 1.0}
    )
    base = first(tmp_path, SCHEMA, events)
    before = contents(base.path)
    (tmp_path / "updates").mkdir()
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(base.path), str(tmp_path / "updates"), "10"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        timeout=300,
        check=True,
    )
    (tmp_path / "updates" / "actions").unlink()
    stores = list((tmp_path / "updates").iterdir())  # no leftover lies beside them
    assert len(stores) == 11
    whole = contents(tmp_path / "updates" / "whole")
    assert all(contents(store) == whole for store in stores)
    assert contents(base.path) == before
