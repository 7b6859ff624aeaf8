"""When items come and go: what files and events say, in the store, in batches and in held-out questions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.stores import make_store
from twotower.data.batches import BatchOf, TrainingBatches
from twotower.data.extend import extend
from twotower.data.held_out import held_out
from twotower.data.ingest import ingest
from twotower.data.life import FOREVER, NO_MOMENT, event_span, lives, lives_of, n_outside
from twotower.data.store import Store
from twotower.errors import DataError, SchemaError
from twotower.schema import Categorical, Id, Interactions, Life, Schema

DAY = 86_400 * 10**6
NAMES = pa.array([f"i{n}" for n in range(9)])


def moments(*days: float | None) -> np.ndarray:
    return np.array([NO_MOMENT if day is None else round(day * DAY) for day in days], np.int64)


def lived(
    life: Life, first: np.ndarray, last: np.ndarray, since: np.ndarray, until: np.ndarray
) -> list[tuple[int, int]]:
    found = lives(life, NAMES, first, last, since, until)
    return list(zip(*(moment_M.tolist() for moment_M in found), strict=True))


def test_lives_follow_from_what_is_given_and_from_events() -> None:
    first = moments(2, 2, None, None, 2, 2)
    last = moments(5, 5, None, None, 5, 5)
    since = moments(None, 1, None, 1, None, 3)
    until = moments(None, 4, None, 9, 1, None)
    always = NO_MOMENT
    assert lived(Life(since="a", until="b"), first, last, since, until) == [
        (2 * DAY, FOREVER),
        (1 * DAY, 4 * DAY),
        (always, FOREVER),
        (1 * DAY, 9 * DAY),
        (1 * DAY, 1 * DAY),  # it ended before its first event: it is never live
        (3 * DAY, FOREVER),
    ]
    assert lived(Life(since="a", until="b", idle_days=1.5), first, last, since, until) == [
        (2 * DAY, round(6.5 * DAY)),
        (1 * DAY, 4 * DAY),
        (always, FOREVER),
        (1 * DAY, round(2.5 * DAY)),
        (1 * DAY, 1 * DAY),
        (3 * DAY, round(6.5 * DAY)),
    ]


def test_an_item_that_came_back_is_idle_from_its_new_start() -> None:
    found = lived(Life(since="a", idle_days=2), moments(1), moments(3), moments(10), moments(None))
    assert found == [(10 * DAY, 12 * DAY)]


def test_an_end_before_the_start_is_an_error_that_names_both() -> None:
    with pytest.raises(DataError, match=r"'i1' ends at 1970-01-03.*\(gone\).*starts at 1970-01-05.*\(there\)"):
        lived(Life(since="there", until="gone"), moments(1, 1), moments(2, 2), moments(1, 4), moments(3, 2))


def test_spans_and_events_outside_are_counted_as_a_loop_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twotower.data.life._BLOCK_EVENTS", 7)
    rng = np.random.default_rng(0)
    item, time_us = rng.integers(0, 6, 40).astype(np.int32), rng.integers(0, 100, 40)
    item[item == 4] = 5
    first, last = event_span(item, time_us, 6)
    for i in range(6):
        own = [t for j, t in zip(item.tolist(), time_us.tolist(), strict=True) if j == i]
        assert (first[i], last[i]) == ((min(own), max(own)) if own else (NO_MOMENT, NO_MOMENT))
    since, until = np.array([0, 20, 50, 0, 0, 90]), np.array([30, 60, 50, 100, 0, 95])
    outside = [t for j, t in zip(item.tolist(), time_us.tolist(), strict=True) if not since[j] <= t < until[j]]
    assert n_outside(item, time_us, since, until) == len(outside) > 0


@pytest.mark.parametrize("days", [0.0, -1.0, math.inf, math.nan])
def test_idle_days_are_some(days: float) -> None:
    with pytest.raises(SchemaError, match="idle_days"):
        Life(idle_days=days)


def test_a_life_needs_times_and_two_columns() -> None:
    with pytest.raises(SchemaError, match="both name the column 'a'"):
        Life(since="a", until="a")
    with pytest.raises(SchemaError, match="names no column, so no event has a time"):
        Schema(
            interactions=Interactions(item="item", query="user"),
            query={"user": Id(column="user")},
            item={"item": Id(column="item")},
            life=Life(),
        )


# ---------------------------------------------------------------- the store

SCHEMA = Schema(
    interactions=Interactions(item="item", query="user", time="t"),
    query={"user": Id(column="user")},
    item={"item": Id(column="item"), "kind": Categorical(column="kind")},
    item_key="id",
    life=Life(since="from", until="to"),
)
EVENTS = pa.table(
    {"user": ["u", "u", "v", "v", "v"], "item": ["a", "b", "a", "c", "c"], "t": [day * 86_400 for day in range(1, 6)]}
)
ITEMS = pa.table(
    {
        "id": ["d", "c", "b", "a"],
        "kind": ["x", "x", "y", "y"],
        "from": ["1970-01-02", "1970-01-05 12:00:00", None, None],
        "to": ["1970-02-01", None, "1970-01-04", None],
    }
)


def stored(tmp_path: Path, life: Life | None, items: pa.Table = ITEMS, events: pa.Table = EVENTS) -> tuple[Any, Store]:
    report = ingest(
        replace(SCHEMA, life=life), interactions=events, items=items, out=tmp_path / "store", overwrite=True
    )
    return report, Store.open(tmp_path / "store", verify=True)


def in_days(moment_M: np.ndarray | None) -> list[float]:
    assert moment_M is not None
    return [{NO_MOMENT: -math.inf, FOREVER: math.inf}.get(t, t / DAY) for t in moment_M.tolist()]


def test_a_store_keeps_lives_and_counts_what_is_outside(tmp_path: Path) -> None:
    report, store = stored(tmp_path, SCHEMA.life)
    assert store.schema.life == SCHEMA.life
    assert in_days(store.since_us) == [1, 4.5, 2, 1]  # d, c, b, a
    assert in_days(store.until_us) == [31, math.inf, 3, math.inf]
    assert store.n_events == 5
    assert report.n_outside_life == 1
    assert "1 events outside their item's life" in report.render()


def test_lives_from_events_alone_from_numbers_and_from_the_interactions(tmp_path: Path) -> None:
    _, store = stored(tmp_path, Life(idle_days=1))
    assert in_days(store.since_us) == [-math.inf, 4, 2, 1]
    assert in_days(store.until_us) == [math.inf, 6, 3, 4]

    numbers = ITEMS.set_column(3, "to", pa.array([7000, None, 259_200_000, None]))
    _, store = stored(tmp_path, Life(until="to", unit="ms"), numbers)
    assert in_days(store.until_us)[1:] == [math.inf, 3, math.inf]

    repeated = EVENTS.append_column("to", pa.array([8 * 86_400, 9 * 86_400, 8 * 86_400, None, None]))
    _, store = stored(tmp_path, Life(until="to"), ITEMS.drop_columns(["to"]), repeated)
    assert in_days(store.until_us) == [math.inf, math.inf, 9, 8]

    report, store = stored(tmp_path, None)
    assert (store.since_us, store.until_us, report.n_outside_life) == (None, None, 0)


def test_a_life_from_text_files(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("id,kind,from,to\nd,x,1970-01-02,\nc,x,,\nb,y,,1970-01-04\na,y,,\n")
    ingest(SCHEMA, interactions=EVENTS, items=tmp_path / "items.csv", out=tmp_path / "store")
    store = Store.open(tmp_path / "store")
    assert in_days(store.since_us) == [1, 4, 2, 1]
    assert in_days(store.until_us) == [math.inf, math.inf, 3, math.inf]


def test_a_column_that_is_nowhere_and_a_value_that_is_no_moment(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'begin' is not in the interactions"):
        stored(tmp_path, Life(since="begin"))
    with pytest.raises(DataError, match=r"items.*'kind'.*ISO text"):
        stored(tmp_path, Life(since="kind"))


def test_lives_go_on_in_a_store_that_grows(tmp_path: Path) -> None:
    """As if all had been there at once: what a file gave stays, what it gives anew counts, and so do later events."""
    life = Life(since="from", until="to", idle_days=10)
    _, base = stored(tmp_path, life)
    later = pa.table({"user": ["u", "w", "w"], "item": ["d", "e", "a"], "t": [day * 86_400 for day in (7, 8, 9)]})
    named = pa.table(
        {"id": ["e", "b"], "kind": ["x", "y"], "from": [None, "1970-01-01"], "to": ["1970-01-12", "1970-01-08"]}
    )
    report = extend(base, interactions=later, items=named, out=tmp_path / "more")
    store = Store.open(tmp_path / "more", verify=True)
    assert store.item_vocabulary.ids().to_pylist() == ["d", "c", "b", "a", "e"]
    assert in_days(store.since_us) == [1, 4.5, 0, 1, 8]
    assert in_days(store.until_us) == [17, 15, 7, 19, 11]
    assert report.n_outside_life == 1

    extend(store, interactions=later.set_column(2, "t", pa.array([12 * 86_400] * 3)), out=tmp_path / "again")
    again = Store.open(tmp_path / "again")
    assert in_days(again.since_us) == [1, 4.5, 0, 1, 8]
    assert in_days(again.until_us) == [22, 15, 7, 22, 11]


def test_an_item_that_went_leaves_its_row_without_a_life(tmp_path: Path) -> None:
    """And one that takes the row inherits none."""
    _, base = stored(tmp_path, Life(since="from", until="to"))
    later = pa.table({"user": ["w"], "item": ["e"], "t": [40 * 86_400]})
    named = pa.table({"id": ["e"], "kind": ["x"], "from": [None], "to": [None]}).cast(
        pa.schema([("id", "string"), ("kind", "string"), ("from", "string"), ("to", "string")])
    )
    extend(base, interactions=later, items=named, out=tmp_path / "more", evict_idle_days=30)
    store = Store.open(tmp_path / "more")
    assert store.item_vocabulary.ids().to_pylist() == ["e", None, None, None]
    found = lives_of(store)
    assert found is not None
    assert in_days(found.since_us_M.numpy())[0] == 40
    assert in_days(found.until_us_M.numpy())[0] == math.inf
    assert found.during(0, 50 * DAY).tolist() == [True, False, False, False]


# ---------------------------------------------------------------- batches and questions

PAIRS = [(0, 0), (1, 1), (0, 2), (1, 2), (0, 3), (2, 0)]


def living(**changes: Any) -> Store:
    """Items 0 always, 1 until 3, 2 from 3, 3 from 5 to 6, 4 never while events last; events at 1 to 6."""
    store = make_store(PAIRS, time_us=[1, 2, 3, 4, 5, 6], n_items=5)
    since, until = np.array([NO_MOMENT, NO_MOMENT, 3, 5, 40]), np.array([FOREVER, 3, FOREVER, 6, FOREVER])
    return replace(store, schema=replace(store.schema, life=Life()), since_us=since, until_us=until, **changes)


def gone(store: Store, events: list[int], batch_of: BatchOf, index: list[int]) -> list[list[int]]:
    """Of each line of the batch the items that it is not to be offered."""
    batches = TrainingBatches(store, np.array(events), batch_of=batch_of, batch_size=8)
    live = batches.at(torch.tensor(index)).live
    assert live is not None
    return [row.nonzero()[:, 0].tolist() for row in live.gone(torch.arange(store.n_items))]


def test_events_are_offered_what_is_live_at_their_moment() -> None:
    assert gone(living(), [0, 1, 2, 4, 5], "pairs", [0, 1, 2, 3, 4]) == [
        [2, 3, 4],
        [2, 3, 4],
        [1, 3, 4],
        [1, 4],
        [1, 3, 4],
    ]


def test_whole_queries_are_offered_what_is_live_in_the_period() -> None:
    assert gone(living(), [1, 2, 3], "queries", [0, 1]) == [[3, 4]] * 2
    assert gone(living(), [2, 3], "queries", [0]) == [[1, 3, 4]]


def test_laws_may_draw_what_is_live_in_the_period_and_holds_an_item() -> None:
    def live(store: Store, events: list[int]) -> list[bool]:
        return TrainingBatches(store, np.array(events), batch_of="pairs", batch_size=2).facts().live_M.tolist()

    assert live(living(), [0, 1, 2]) == [True, True, True, False, False]
    assert live(living(), [2, 3, 4, 5]) == [True, False, True, True, False]
    plain = make_store(PAIRS, time_us=[1, 2, 3, 4, 5, 6], n_items=5)
    assert live(plain, [0, 1]) == []
    free = with_free_rows(make_store(PAIRS, n_items=5))
    assert live(free, [0, 1]) == [True, True, True, True, False]


def with_free_rows(store: Store) -> Store:
    """The last row holds no item any more."""
    number = np.array([*range(store.n_items - 1), -1])
    return replace(store, item_number=number)


def test_a_row_without_an_item_is_never_live() -> None:
    store = with_free_rows(living())
    found = lives_of(store)
    assert found is not None
    assert found.during(0, 100).tolist() == [True, True, True, True, False]
    free = with_free_rows(make_store(PAIRS, n_items=5))
    assert gone(free, [0, 1, 2], "pairs", [0, 1]) == [[4]] * 2
    assert lives_of(make_store(PAIRS, n_items=5)) is None


def test_questions_are_answered_by_what_is_live_then() -> None:
    part = np.array([0, 0, 0, 0, 2, 2])
    by_query = held_out(living(), part, "test")
    assert by_query.live is not None
    assert by_query.live.gone(torch.arange(5)).tolist() == [[False, True, False, False, True]] * 2
    context = {"kind": Categorical(column="kind")}
    store = make_store(PAIRS, time_us=[1, 2, 3, 4, 5, 6], n_items=5, context=context,
                       context_columns={"kind": np.zeros(6, np.int64)})  # fmt: skip
    store = replace(store, since_us=living().since_us, until_us=living().until_us)
    by_event = held_out(store, part, "test")
    assert by_event.live is not None
    assert by_event.live.gone(torch.arange(5)).tolist() == [
        [False, True, False, False, True],
        [False, True, False, True, True],
    ]
    assert held_out(make_store(PAIRS), part, "test").live is None
