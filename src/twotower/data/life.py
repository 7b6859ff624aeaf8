"""When items are live: from what their file says, and from their events.

    since = given, or the first event of the item, or always
    until = the earlier of the end that is given and idle_days after the item's last event

Functions of arrays over the catalogue, [M] int64 microseconds since 1970 (UTC), so that a store that grows can ask them
again. ``NO_MOMENT`` stands for one that is not known, ``FOREVER`` for the end of what does not end.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ..errors import DataError
from ..records import Lives
from ..schema import Life
from .arrow import US_PER_DAY, microseconds
from .store import Store
from .vocabulary import one_array

NO_MOMENT = int(np.iinfo(np.int64).min)
"""Before every moment: what has no known start has always been there."""
FOREVER = int(np.iinfo(np.int64).max)

GIVEN = ("given_since_us", "given_until_us")
"""Arrays that a store keeps of what was given for its items, so that one that extends it goes on from there."""

_BLOCK_EVENTS = 1 << 22


class GivenLives:
    """What the rows of a catalogue say of when their items come and go, gathered table by table."""

    def __init__(self, life: Life | None) -> None:
        self._life = life
        self._found: dict[str, list[NDArray[np.int64]]] = {} if life is None else {c: [] for c in life.columns}

    def append(self, table: pa.Table) -> None:
        """The next rows of the catalogue, with the columns of the life as they were read.

        Raises:
            DataError: a value is no moment.
        """
        for column, found in self._found.items():
            assert self._life is not None
            time_us, present = microseconds(one_array(table[column]), column, self._life.unit)
            found.append(np.where(present, time_us, NO_MOMENT))

    def moments(self, n_items: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[M] given start and end of each of these rows, ``NO_MOMENT`` where none is."""
        since, until = (None, None) if self._life is None else (self._life.since, self._life.until)
        since_M, until_M = (
            np.full(n_items, NO_MOMENT)
            if column is None
            else np.concatenate([np.zeros(0, np.int64), *self._found[column]])
            for column in (since, until)
        )
        return since_M, until_M


def event_span(
    item_E: NDArray[np.int32], time_us_E: NDArray[np.int64], n_items: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[M] moments of each item's first and last event, ``NO_MOMENT`` where it has none."""
    first_M, last_M = np.full(n_items, FOREVER), np.full(n_items, NO_MOMENT)
    for start in range(0, len(item_E), _BLOCK_EVENTS):
        at = slice(start, start + _BLOCK_EVENTS)
        np.minimum.at(first_M, item_E[at], time_us_E[at])
        np.maximum.at(last_M, item_E[at], time_us_E[at])
    return np.where(last_M == NO_MOMENT, NO_MOMENT, first_M), last_M


def lives(
    life: Life,
    item_id: pa.Array,
    first_us_M: NDArray[np.int64],
    last_us_M: NDArray[np.int64],
    since_us_M: NDArray[np.int64],
    until_us_M: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[M] when each item is live, by its events and by the moments that are given for it.

    ``first_us_M`` and ``last_us_M`` are of all events. An item whose given end is before its first event is never live,
    and that event is outside.

    Raises:
        DataError: an item's given end is before its given start.
    """
    given = since_us_M != NO_MOMENT
    ends = until_us_M != NO_MOMENT
    wrong = np.flatnonzero(given & ends & (until_us_M < since_us_M))
    if len(wrong):
        at = int(wrong[0])
        raise DataError(
            f"schema.life: item {item_id[at].as_py()!r} ends at {_moment(until_us_M[at])} ({life.until}), before it "
            f"starts at {_moment(since_us_M[at])} ({life.since}), and so do {len(wrong):,} of {len(given):,} items: "
            "mend these, or check that the columns are not named the wrong way round"
        )
    until_M = np.where(ends, until_us_M, FOREVER)
    if life.idle_days is not None:
        last_M = np.maximum(last_us_M, since_us_M)
        idle_us = round(life.idle_days * US_PER_DAY)
        ends_idle = (last_M != NO_MOMENT) & (last_M <= FOREVER - idle_us)
        until_M = np.where(ends_idle, np.minimum(until_M, np.where(ends_idle, last_M, 0) + idle_us), until_M)
    since_M = np.where(given, since_us_M, np.minimum(first_us_M, until_M))
    return since_M, until_M


def n_outside(
    item_E: NDArray[np.int32],
    time_us_E: NDArray[np.int64],
    since_us_M: NDArray[np.int64],
    until_us_M: NDArray[np.int64],
) -> int:
    """Events whose item is not live at their time."""
    n = 0
    for start in range(0, len(item_E), _BLOCK_EVENTS):
        at = slice(start, start + _BLOCK_EVENTS)
        item, time_us = item_E[at], time_us_E[at]
        n += int(((time_us < since_us_M[item]) | (time_us >= until_us_M[item])).sum())
    return n


def _moment(time_us: np.int64) -> str:
    return str(np.datetime64(int(time_us), "us"))


# ---------------------------------------------------------------- the lives of a store


def period_of(store: Store, events: NDArray[np.int64]) -> tuple[int, int]:
    """First and last moment of some events; where events have no time it does not matter, and is 0 to 0."""
    if store.time_us is None or not len(events):
        return 0, 0
    time_us = np.asarray(store.time_us[events])
    return int(time_us.min()), int(time_us.max())


def lives_of(store: Store) -> Lives | None:
    """When the items of a store are live; None where all are, always.

    A row of the catalogue that holds no item never is, whether or not the schema declares a life.
    """
    is_free_M = np.asarray(store.item_number) < 0
    if store.since_us is None or store.until_us is None:
        if not is_free_M.any():
            return None
        since_M, until_M = np.full(store.n_items, NO_MOMENT), np.full(store.n_items, FOREVER)
    else:
        since_M, until_M = np.array(store.since_us), np.array(store.until_us)
    since_M[is_free_M] = until_M[is_free_M] = FOREVER
    return Lives(since_us_M=torch.from_numpy(since_M), until_us_M=torch.from_numpy(until_M))
