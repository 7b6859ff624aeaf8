"""What is held out of what arrives: the share, for good, and the parts that follow from it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stores import make_store
from twotower.data.arrivals import held_out_for_good, parts_of_arrivals
from twotower.data.lock import locked
from twotower.data.splits import SHOWN, TRAIN, VALID
from twotower.data.store import Store
from twotower.errors import ArtifactError
from twotower.schema import Categorical

DAY_US = 86_400_000_000


def store_of(n: int, *, arrived: np.ndarray | None = None, step_us: int = 1_000_000, **columns: object) -> Store:
    """Event e is query e % 97, item e * 7 % 1009, second e."""
    events = [(e % 97, e * 7 % 1009) for e in range(n)]
    made = make_store(
        events,
        time_us=[e * step_us for e in range(n)],
        n_queries=97,
        n_items=1009,
        **columns,  # type: ignore[arg-type]
    )
    return replace(made, arrived=np.ones(n, np.int32) if arrived is None else arrived)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_the_share_is_about_right(share: float) -> None:
    """A hundred events a day, so each event is a query's only one of its day."""
    n = 100_000
    found = held_out_for_good(store_of(n, step_us=DAY_US // 97), share)
    assert abs(found.sum() - share * n) < 4 * np.sqrt(n * share * (1 - share))


def held_out(events: list[tuple[int, int]], time_us: list[int] | None, arrived: list[int], **more: Any) -> np.ndarray:
    made = make_store(events, time_us=time_us, n_items=400, **more)
    return held_out_for_good(replace(made, arrived=np.array(arrived, np.int32)), 0.5)


def test_all_of_a_query_and_a_day_or_nothing() -> None:
    """400 queries with an event at the start and one at the end of each of two days."""
    events = [(q, day * 2 + end) for day in range(2) for end in range(2) for q in range(400)]
    times = [day * DAY_US + end * (DAY_US - 1) for day in range(2) for end in range(2) for _ in range(400)]
    found = held_out(events, times, [1] * 1600, n_queries=400).reshape(2, 2, 400)
    assert (found[:, 0] == found[:, 1]).all()
    for day in range(2):
        assert 140 < found[day, 0].sum() < 260
    assert 140 < (found[0, 0] == found[1, 0]).sum() < 260  # the days of a query have nothing to do with one another


def test_without_a_time_all_of_a_query_and_an_update_or_nothing() -> None:
    events = [(q, item) for _ in range(2) for item in range(3) for q in range(400)]
    found = held_out(events, None, [1] * 1200 + [2] * 1200, n_queries=400).reshape(2, 3, 400)
    assert (found == found[:, :1]).all()
    assert 140 < (found[0, 0] == found[1, 0]).sum() < 260


def test_without_a_query_each_event_alone() -> None:
    """By its item and its moment."""
    context = {"word": Categorical(column="word")}
    for items, times in ((range(400), [0] * 400), ([3] * 400, range(400))):
        events = [(-1, item) for item in items]
        columns = {"word": np.zeros(400, np.int32)}
        found = held_out(events, list(times), [1] * 400, has_query=False, context=context, context_columns=columns)
        assert 140 < found.sum() < 260


def test_the_same_event_gets_the_same_answer_in_a_store_that_grew() -> None:
    """Every other event of the larger store is there before, at another place, and some arrived later."""
    large = store_of(4000)
    at = np.arange(0, 4000, 2)
    small = replace(
        large,
        n_events=len(at),
        query_row=large.query_row[at],
        item_row=large.item_row[at],
        time_us=None if large.time_us is None else large.time_us[at],
        arrived=np.ones(len(at), np.int32),
    )
    assert (held_out_for_good(small, 0.2) == held_out_for_good(large, 0.2)[at]).all()


def test_a_larger_share_holds_out_the_same_and_more() -> None:
    less, more = (held_out_for_good(store_of(4000), share) for share in (0.1, 0.3))
    assert (more | ~less).all()
    assert more.sum() > less.sum()


def test_nothing_of_the_first_ingest_is_held_out() -> None:
    arrived = np.where(np.arange(1000) < 600, 0, 2).astype(np.int32)
    found = held_out_for_good(store_of(1000, arrived=arrived), 0.5)
    assert not found[:600].any()
    assert found[600:].any()
    assert not held_out_for_good(store_of(1000), 0.0).any()


def test_only_the_last_days_are_asked_for() -> None:
    """A hundred events a day, ten days: the window of two and a half has events of the last three dates."""
    store = store_of(1000, step_us=DAY_US // 100)
    part = parts_of_arrivals(store, share=0.3, days=2.5)
    held = held_out_for_good(store, 0.3)
    recent = np.arange(1000) > 999 - 250
    assert (part == np.where(held & recent, VALID, TRAIN)).all()
    assert (part[recent] == VALID).sum() == held[-250:].sum() > 0


def test_impressions_are_shown_in_the_part_of_their_moment() -> None:
    store = store_of(1000, taken=[e % 3 > 0 for e in range(1000)])
    part = parts_of_arrivals(store, share=0.3, days=1)
    held = held_out_for_good(store, 0.3)
    shown = np.arange(1000) % 3 == 0
    assert (part == np.where(held, VALID, TRAIN) + SHOWN * shown).all()


def test_without_a_time_all_that_is_held_out_is_asked_for() -> None:
    store = replace(store_of(500), time_us=None)
    assert ((parts_of_arrivals(store, share=0.3, days=1) == VALID) == held_out_for_good(store, 0.3)).all()


# ---------------------------------------------------------------- one at a time

HOLD = """
import sys, time
from pathlib import Path
from twotower.data.lock import locked
with locked(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_that_another_process_holds(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ArtifactError, match="it is taken"), locked(file, "it is taken"):
            pass
        assert file.exists()
    finally:
        holder.kill()
        holder.communicate()
    with locked(file, "it is taken"):  # who was killed let it go
        pass
    assert not file.exists()


def test_a_lock_in_a_place_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="can't be written there"), locked(tmp_path / "no" / ".lock", "taken"):
        pass
