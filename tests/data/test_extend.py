"""Stores that grow: rows never move, what arrived is what a naive loop adds, and what went has left no trace."""

from __future__ import annotations

import sys
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
from twotower.schema import (
    Categorical,
    History,
    Id,
    Interactions,
    Number,
    Schema,
    Seed,
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
        newest = max([t for *_, t, _ in rows] + [event[2] for event in self.events])
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


@settings(max_examples=12, deadline=None)
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


@settings(max_examples=10, deadline=None)
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
