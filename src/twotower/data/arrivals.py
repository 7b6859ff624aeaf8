"""What of a store that grows is trained on, and what is held out of what arrives."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .arrow import US_PER_DAY
from .splits import SHOWN, TRAIN, VALID, Parts
from .store import Store
from .vocabulary import mix64

_APART = np.uint64(0x9E3779B97F4A7C15)


def held_out_for_good(store: Store, share: float) -> NDArray[np.bool_]:
    """[E] whether an event that an update brought is held out, about ``share`` of them, by a hash of query and day.

    All that a query does on a day (UTC) is held out or nothing: the rest of a basket would tell too much of it, and a
    model is asked about days to come. Where there is no time, all of it that an update brings; where there is no query,
    each event alone. Rows do not move while a store grows, so an event is held out for ever or never.
    """
    if share == 0:
        return np.zeros(store.n_events, bool)
    query = np.asarray(store.query_row).astype(np.int64)
    if store.time_us is None:
        when = np.asarray(store.arrived).astype(np.int64)
    else:
        when = np.where(query < 0, store.time_us, np.asarray(store.time_us) // US_PER_DAY)
    item = np.where(query < 0, np.asarray(store.item_row), -1)
    with np.errstate(over="ignore"):
        number = mix64(query.view(np.uint64) * _APART + item.astype(np.int64).view(np.uint64))
        number = mix64(number * _APART + when.view(np.uint64))
    return np.asarray((number / 2.0**64 < share) & (np.asarray(store.arrived) > 0))


def parts_of_arrivals(store: Store, *, share: float, days: float) -> Parts:
    """[E] VALID: held out for good in the last ``days`` before the newest event; TRAIN: all else, also what was held
    out before that, which is known by now but was never trained on. SHOWN more for impressions that were not taken."""
    part = np.full(store.n_events, TRAIN, np.int8)
    recent = held_out_for_good(store, share)
    if store.time_us is not None and store.n_events:
        recent &= np.asarray(store.time_us) > store.time_us[-1] - round(days * US_PER_DAY)
    part[recent] = VALID
    return part if store.taken is None else np.where(np.asarray(store.taken, bool), part, part + SHOWN).astype(np.int8)
