"""Splits against naive loops, and what they refuse."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.data.ingest import ingest
from twotower.data.splits import GivenSplit, LeaveLastOut, QuerySplit, RandomSplit, Split, TimeSplit
from twotower.data.store import Store
from twotower.errors import ConfigError, DataError
from twotower.schema import Id, Interactions, Number, Schema
from twotower.settings import Codec

ITEM = {"item": Id(column="item")}
USER = {"user": Id(column="user")}


def store_of(folder: Path, *, user: Any = None, t: Any = None, part: Any = None) -> Store:
    """A store of these columns; items are all different, so no event repeats another."""
    n = len(next(column for column in (user, t, part) if column is not None))
    columns = {"item": [f"i{k}" for k in range(n)], "x": np.arange(n, dtype=np.float64)}
    columns |= {name: found for name, found in (("user", user), ("t", t), ("part", part)) if found is not None}
    interactions = Interactions(
        item="item",
        query=None if user is None else "user",
        time=None if t is None else "t",
        split=None if part is None else "part",
    )
    schema = Schema(
        interactions=interactions,
        query={} if user is None else {"user": Id(column="user")},
        context={"x": Number(column="x")},
        item=ITEM,
    )
    out = folder / "store"
    ingest(schema, interactions=pa.table(columns), out=out, overwrite=True)
    return Store.open(out)


# ---------------------------------------------------------------- TimeSplit


def test_time_split_cuts_between_moments(tmp_path: Path) -> None:
    store = store_of(tmp_path, t=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert TimeSplit(valid=0.2, test=0.3).assign(store).tolist() == [0] * 5 + [1] * 2 + [2] * 3
    assert TimeSplit(valid=0.0, test=0.1).assign(store).tolist() == [0] * 9 + [2]
    assert TimeSplit(valid=0.1, test=0.0).assign(store).tolist() == [0] * 9 + [1]
    store = store_of(tmp_path, t=[0, 1, 1, 1, 1, 1, 1, 7, 7, 9])
    # test wants 1 event and has it; valid wants to start at event 8, between 7 and 9: 7 is the nearest boundary
    assert TimeSplit(valid=0.1, test=0.1).assign(store).tolist() == [0] * 7 + [1] * 2 + [2]


@settings(max_examples=40, deadline=None)
@given(t=st.lists(st.integers(0, 6), min_size=4, max_size=30), share=st.sampled_from([0.1, 0.25, 0.5, 0.7]))
def test_time_split_is_the_nearest_cut(tmp_path_factory: pytest.TempPathFactory, t: list[int], share: float) -> None:
    moments = sorted(t)
    boundaries = [k for k in range(1, len(t)) if moments[k] != moments[k - 1]]
    store = store_of(tmp_path_factory.mktemp("time"), t=t)
    split = TimeSplit(valid=0.0, test=share)
    if not boundaries:
        with pytest.raises(DataError, match=r"no event is left for (train|test)"):
            split.assign(store)
    else:
        best = min(boundaries, key=lambda cut: (round(abs(cut - len(t) * (1 - share)), 9), cut))
        assert split.assign(store).tolist() == [0] * best + [2] * (len(t) - best)


def test_time_split_by_dates(tmp_path: Path) -> None:
    day = 86_400
    store = store_of(tmp_path, t=[0, day, 2 * day, 2 * day + 1, 3 * day])
    parts = TimeSplit(valid_from="1970-01-03", test_from="1970-01-03T00:00:01Z").assign(store)
    assert parts.tolist() == [0, 0, 1, 2, 2]
    assert TimeSplit(test_from="1970-01-03T01:00:00+01:00").assign(store).tolist() == [0, 0, 2, 2, 2]
    assert TimeSplit(valid_from="1970-01-04").assign(store).tolist() == [0, 0, 0, 0, 1]
    with pytest.raises(
        DataError, match=r"TimeSplit: no event is left for test \(of 5 events 5 are train, 0 valid, 0 test"
    ):
        TimeSplit(test_from="2000-01-01").assign(store)
    with pytest.raises(DataError, match="no event is left for train"):
        TimeSplit(test_from="1970-01-01").assign(store)


# ---------------------------------------------------------------- GivenSplit


def test_given_split(tmp_path: Path) -> None:
    store = store_of(tmp_path, user=list("aabbc"), part=["train", "valid", "train", "test", "test"])
    assert GivenSplit().assign(store).tolist() == [0, 1, 0, 2, 2]
    with pytest.raises(ConfigError, match="the data brings validation events: set valid = 0"):
        GivenSplit(valid=0.1).assign(store)


def test_given_split_cuts_a_share_of_each_query(tmp_path: Path) -> None:
    sizes = {"one": 1, "three": 3, "hundred": 100, "many": 3000}
    users = [user for user, size in sizes.items() for _ in range(size)]
    n_test = 50
    parts = ["train"] * len(users) + ["test"] * n_test
    store = store_of(tmp_path, user=users + ["one"] * n_test, part=parts)
    part = GivenSplit(valid=0.1, seed=3).assign(store)
    assert store.query_vocabulary is not None
    names = np.array(store.query_vocabulary.ids().to_pylist())[store.query_row]
    counts = Counter(zip(names.tolist(), part.tolist(), strict=True))
    assert counts[("one", 0)] == 1
    assert counts[("one", 2)] == n_test
    assert counts[("hundred", 1)] == 10
    assert counts[("many", 1)] == 300
    assert counts[("three", 1)] in (0, 1)  # 0.3 events, rounded at random
    assert part.tolist() == GivenSplit(valid=0.1, seed=3).assign(store).tolist()
    assert part.tolist() != GivenSplit(valid=0.1, seed=4).assign(store).tolist()


def test_given_split_keeps_the_share_where_queries_are_short(tmp_path: Path) -> None:
    n = 4000
    users = [f"u{k // 2}" for k in range(n)]
    store = store_of(tmp_path, user=users, part=["train"] * n)
    part = GivenSplit(valid=0.2).assign(store)
    per_query = np.bincount(store.query_row, part == 1)
    assert set(per_query) == {0, 1}  # of two events one may go
    share = float((part == 1).mean())  # 2000 queries, 0.4 each: deviation of the mean sqrt(0.24 / 2000) / 2 = 0.0055
    assert abs(share - 0.2) < 4 * 0.0055


# ---------------------------------------------------------------- QuerySplit


def test_query_split_holds_out_whole_queries_for_good(tmp_path: Path) -> None:
    users = [f"u{k % 2000}" for k in range(4000)]
    store = store_of(tmp_path, user=users)
    split = QuerySplit(valid=0.1, test=0.2)

    def part_of(store: Store) -> dict[str, int]:
        assert store.query_vocabulary is not None
        names = store.query_vocabulary.ids().to_pylist()
        parts: dict[str, set[int]] = defaultdict(set)
        for row, part in zip(store.query_row.tolist(), split.assign(store).tolist(), strict=True):
            parts[names[row]].add(part)
        assert all(len(found) == 1 for found in parts.values())
        return {name: next(iter(found)) for name, found in parts.items()}

    first = part_of(store)
    counts = Counter(first.values())
    for part, share in ((1, 0.1), (2, 0.2)):  # binomial: 4 deviations
        assert abs(counts[part] - 2000 * share) < 4 * np.sqrt(2000 * share * (1 - share))
    grown = part_of(store_of(tmp_path, user=["new", *reversed(users), "u5"]))
    assert {name: grown[name] for name in first} == first
    assert QuerySplit(seed=1).assign(store).tolist() != QuerySplit(seed=0).assign(store).tolist()


# ---------------------------------------------------------------- LeaveLastOut


@settings(max_examples=40, deadline=None)
@given(
    events=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5)), min_size=6, max_size=30),
    test=st.integers(0, 3),
    valid=st.integers(0, 3),
)
def test_leave_last_out(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int]], test: int, valid: int
) -> None:
    users, t = zip(*events, strict=True)
    expected: dict[str, int] = {}
    for user in set(users):
        own = [k for k in sorted(range(len(events)), key=lambda k: t[k]) if users[k] == user]
        held = own[1:]  # at least one to train on
        tested = held[len(held) - min(test, len(held)) :]
        rest = held[: len(held) - len(tested)]
        validated = rest[len(rest) - min(valid, len(rest)) :]
        expected |= {f"i{k}": 2 if k in tested else 1 if k in validated else 0 for k in own}
    store = store_of(tmp_path_factory.mktemp("last"), user=users, t=t)
    names = np.array(store.item_vocabulary.ids().to_pylist())[store.item_row].tolist()
    split = LeaveLastOut(test=test, valid=valid)
    missing = {1: valid, 2: test}
    if any(asked and part not in expected.values() for part, asked in missing.items()):
        with pytest.raises(DataError, match="LeaveLastOut: no event is left for"):
            split.assign(store)
    else:
        assert split.assign(store).tolist() == [expected[name] for name in names]


# ---------------------------------------------------------------- RandomSplit


def test_random_split(tmp_path: Path) -> None:
    store = store_of(tmp_path, t=np.arange(1000))
    part = RandomSplit(valid=0.1, test=0.25).assign(store)
    assert Counter(part.tolist()) == {0: 650, 1: 100, 2: 250}
    assert part.dtype == np.int8
    assert part.tolist() == RandomSplit(valid=0.1, test=0.25).assign(store).tolist()
    assert part.tolist() != RandomSplit(valid=0.1, test=0.25, seed=1).assign(store).tolist()
    assert abs(np.flatnonzero(part == 2).mean() - 499.5) < 4 * 1000 / np.sqrt(12 * 250)  # spread over all of it


# ---------------------------------------------------------------- what they refuse and say


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimeSplit(valid=1.0), "TimeSplit: valid is 1.0, expected a share from 0 to less than 1"),
        (lambda: TimeSplit(test=-0.1), "TimeSplit: test is -0.1"),
        (lambda: QuerySplit(valid=0.5, test=0.5), "QuerySplit: valid and test take 1 of"),
        (lambda: RandomSplit(valid=float("nan")), "RandomSplit: valid is nan"),
        (lambda: GivenSplit(valid=2), "GivenSplit: valid is 2"),
        (lambda: LeaveLastOut(test=-1), "LeaveLastOut: test is -1, expected a number of events"),
        (lambda: TimeSplit(test_from="May"), "TimeSplit: test_from is 'May', expected an ISO date"),
        (
            lambda: TimeSplit(valid_from="2024-05-02", test_from="2024-05-01"),
            "valid_from is 2024-05-02, expected a moment before",
        ),
    ],
)
def test_settings_that_make_no_sense(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_splits_that_need_what_the_store_has_not(tmp_path: Path) -> None:
    store = store_of(tmp_path, part=["train", "test"])
    for split, message in (
        (TimeSplit(), "TimeSplit: the events have no time: name schema.interactions.time"),
        (LeaveLastOut(), "LeaveLastOut: the events have no time"),
        (QuerySplit(), "QuerySplit: the events have no query id: name schema.interactions.query"),
        (GivenSplit(valid=0.5), "GivenSplit with valid > 0: the events have no query id"),
    ):
        with pytest.raises(ConfigError, match=message):
            split.assign(store)
    store = store_of(tmp_path, user=["a", "b"])
    with pytest.raises(ConfigError, match=r"GivenSplit: the data brings no split: name schema.interactions.split"):
        GivenSplit().assign(store)
    store = store_of(tmp_path, part=["test", "test"])
    with pytest.raises(
        DataError, match=r"GivenSplit: no event is left for train \(of 2 events 0 are train, 0 valid, 2 test"
    ):
        GivenSplit().assign(store)
    store = store_of(tmp_path, user=["a", "b"], part=["train", "train"])
    with pytest.raises(DataError, match="GivenSplit: no event is left for valid"):
        GivenSplit(valid=0.5).assign(store)
    store = store_of(tmp_path, t=[5, 5, 5])
    with pytest.raises(DataError, match="TimeSplit: no event is left for"):
        TimeSplit().assign(store)


def test_warnings_of_splits_that_leak() -> None:
    assert "leaks across time" in (LeaveLastOut().warning or "")
    assert "ignores time" in (RandomSplit().warning or "")
    assert [split.warning for split in (TimeSplit(), GivenSplit(), QuerySplit())] == [None] * 3


@pytest.mark.parametrize(
    "split",
    [TimeSplit(test_from="2024-05-01"), GivenSplit(valid=0.1), QuerySplit(), LeaveLastOut(), RandomSplit(seed=3)],
)
def test_splits_are_settings(split: Split) -> None:
    assert Codec().decode(Split, Codec().encode(Split, split)) == split
