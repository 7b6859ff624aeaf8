"""Events in order of time, without repeats."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrow import US_PER_DAY
from .columns import Column, RaggedArray

_PARTS = 3
BLOCK_EVENTS = 1 << 22
"""Events that are put in order at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Events in order of time, those that repeat an earlier one left out."""

    order: NDArray[np.int64]
    time_us: NDArray[np.int64] | None
    """The moments in that order."""
    repeated: NDArray[np.int64]
    """The events that are left out."""

    def days(self) -> list[tuple[str, int, int]]:
        """Date, start and stop of every day that has events."""
        if self.time_us is None:
            return []
        day = self.time_us // US_PER_DAY
        start = np.flatnonzero(np.diff(day, prepend=-1))
        stop = np.append(start[1:], len(day))
        dates = [(date(1970, 1, 1) + timedelta(days=int(day[at]))).isoformat() for at in start]
        return list(zip(dates, start.tolist(), stop.tolist(), strict=True))


def in_order(event: dict[str, Any], n_items: int, has_query: bool) -> Order:
    """Sort by time, stable, in 16 bytes an event; then look for repeats among events of one moment."""
    time_us, n = event.get("time_us"), len(event["item_row"])
    order = np.arange(n) if time_us is None else np.argsort(time_us, kind="stable")
    moment = None if time_us is None else np.asarray(time_us)[order]
    if not has_query:
        return Order(order=order, time_us=moment, repeated=np.zeros(0, np.int64))
    repeated = np.zeros(n, bool)  # by place in the order
    start = 0
    while start < n:
        stop = _end_of_block(moment, start, n)
        at = order[start:stop]
        key = np.asarray(event["query_row"])[at].astype(np.int64) * n_items + event["item_row"][at]
        if "taken" in event:
            key = key * 2 + event["taken"][at]
        if "split" in event:
            key = key * _PARTS + event["split"][at]
        repeated[start:stop] = _repeats(key, None if moment is None else moment[start:stop])
        start = stop
    return Order(
        order=order[~repeated], time_us=None if moment is None else moment[~repeated], repeated=np.sort(order[repeated])
    )


def _end_of_block(moment: NDArray[np.int64] | None, start: int, n: int) -> int:
    """Where a block that begins at ``start`` ends: it holds whole moments. Without a time all events are of one."""
    if moment is None or start + BLOCK_EVENTS >= n:
        return n
    return int(np.searchsorted(moment, moment[start + BLOCK_EVENTS], side="right"))


def _repeats(key: NDArray[np.int64], moment: NDArray[np.int64] | None) -> NDArray[np.bool_]:
    """[n] whether an earlier event has the same key and moment."""
    order = np.argsort(key, kind="stable") if moment is None else np.lexsort((key, moment))
    same = key[order[1:]] == key[order[:-1]]
    if moment is not None:
        same &= moment[order[1:]] == moment[order[:-1]]
    repeats = np.zeros(len(key), bool)
    repeats[order[1:][same]] = True  # both sorts are stable: the first of equals stays
    return repeats


def taken(column: Column, row: NDArray[np.int64]) -> Column:
    """The rows of a column, in that order."""
    if not isinstance(column, RaggedArray):
        return np.asarray(column[row])
    length = column.offset[row + 1] - column.offset[row]
    within = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
    at = np.repeat(column.offset[row], length) + within
    return RaggedArray.of_lengths(length, column.value[at], None if column.weight is None else column.weight[at])
