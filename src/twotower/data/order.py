"""Events in order of time, without repeats."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrow import US_PER_DAY

_PARTS = 3
BLOCK_EVENTS = 1 << 22
"""Events that are put in order at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Events in order of time, those that repeat an earlier one left out."""

    order: NDArray[np.int64]
    repeated: NDArray[np.int64]
    """The events that are left out."""


def days_of(time_us: NDArray[np.int64] | None) -> list[tuple[str, int, int]]:
    """Date, start and stop of every day that has events, of rising moments."""
    days: list[tuple[str, int, int]] = []
    stop, n = 0, 0 if time_us is None else len(time_us)
    while time_us is not None and stop < n:
        start, day = stop, int(time_us[stop]) // US_PER_DAY
        stop = int(np.searchsorted(time_us, np.int64((day + 1) * US_PER_DAY)))
        days.append(((date(1970, 1, 1) + timedelta(days=day)).isoformat(), start, stop))
    return days


def in_order(event: dict[str, Any], n_items: int, has_query: bool) -> Order:
    """Sort by time, stable, in 16 bytes an event; then look for repeats among events of one moment."""
    time_us, n = event.get("time_us"), len(event["item_row"])
    order = np.arange(n) if time_us is None else np.argsort(time_us, kind="stable")
    moment = None if time_us is None else np.asarray(time_us)[order]
    if not has_query:
        return Order(order=order, repeated=np.zeros(0, np.int64))
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
    return Order(order=order[~repeated], repeated=np.sort(order[repeated]))


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
