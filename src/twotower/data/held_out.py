"""Held-out events as questions with known answers: which queries to ask, what is true, what was seen before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..records import Features, LiveAt, Ragged
from ..schema import History
from .batches import Histories, Pairs, group_pairs, keep, query_features, without
from .life import lives_of, period_of
from .splits import TEST, TRAIN, VALID
from .store import Store

PARTS = {"train": TRAIN, "valid": VALID, "test": TEST}
"""The numbers a split gives to events that were taken."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Q questions of one part of a split."""

    store: Store
    query_Q: Tensor
    """Row of the query id, -1 none."""
    event_Q: Tensor | None
    """The event whose context is asked with; None where a question is a query with all its held-out items."""
    truth: Ragged
    """[Q] items that answer, rising inside a list; with the weight of their events where the schema names one."""
    seen: Ragged
    """[Q] items the query met before (and itself, where queries are items), rising inside a list."""
    histories: Histories
    n_repeats: int
    """Held-out pairs left out because the query had met the item before."""
    live: LiveAt | None
    """[Q] which items each question may be answered with; None where all are live, always."""

    def __len__(self) -> int:
        return len(self.query_Q)

    def features(self, start: int, stop: int) -> Features:
        """Query features of questions ``start`` to ``stop``."""
        event = None if self.event_Q is None else self.event_Q[start:stop]
        time_us = None
        if event is not None and self.store.time_us is not None:
            time_us = np.asarray(self.store.time_us[event.numpy()])
        return query_features(self.store, self.query_Q[start:stop], event, self.histories, time_us)


def held_out(store: Store, part_E: np.ndarray, part: str, *, filter_seen: bool = True) -> HeldOut:
    """Questions from the events of ``part`` (valid or test).

    Events of weight 0 answer nothing. What came before is train, and valid too when test is asked. With ``filter_seen``
    an item the query met before is no answer (it could not be recommended) and is counted in ``n_repeats``. Impressions
    that were not taken are neither asked for nor met.

    Where items come and go (``schema.life``) a question that is an event may be answered with what is live at its
    moment, one that is a query with its held-out items with what is live at some moment of all held-out events.

    Raises DataError where nothing is left to ask.
    """
    if part not in PARTS:
        raise DataError(f"evaluation: there is no part {part!r} of a split, expected one of {sorted(PARTS)}")
    target = PARTS[part]
    asked = np.flatnonzero((part_E == target) & (store.weight != 0))
    if not len(asked):
        raise DataError(
            f"evaluation: the split has no {part} events: give it a {part} share, or a split column with {part!r}"
        )
    before = np.flatnonzero((part_E >= 0) & (part_E < target))
    histories = Histories(store, before)
    seen = seen_pairs(store, before)
    context = [f for f in store.schema.context.values() if not isinstance(f, History)]
    by_event = context or store.schema.interactions.query is None
    found = (_by_event if by_event else _by_query)(store, asked, seen, histories, filter_seen)
    if not len(found):
        raise DataError(
            f"evaluation: all {found.n_repeats} {part} pairs were met before, so none is left to ask: set "
            "evaluation.filter_seen = false, or choose another split"
        )
    return found


def seen_pairs(store: Store, before: np.ndarray) -> Pairs:
    """What each query met in the events ``before``, and itself where queries are items."""
    query, item = np.asarray(store.query_row[before]), np.asarray(store.item_row[before])
    if store.query_item_row is not None:
        own = np.asarray(store.query_item_row)
        self_query = np.flatnonzero(own >= 0)
        query, item = np.concatenate([query, self_query]), np.concatenate([item, own[self_query]])
    return group_pairs(query, item, np.ones(len(query), np.float32), None, store.n_queries)


def _by_query(store: Store, asked: np.ndarray, seen: Pairs, histories: Histories, filter_seen: bool) -> HeldOut:
    query, item = np.asarray(store.query_row[asked]), np.asarray(store.item_row[asked])
    pairs = group_pairs(query, item, np.asarray(store.weight[asked]), None, store.n_queries)
    weighted = store.schema.interactions.weight is not None
    truth_all = Ragged(offset=pairs.offset, value=pairs.item, weight=pairs.weight if weighted else None)
    n_repeats = 0
    if filter_seen:
        truth_all, n_repeats = without(truth_all, Ragged(offset=seen.offset, value=seen.item))
    query_Q = (truth_all.lengths() > 0).nonzero()[:, 0]
    return HeldOut(
        store=store,
        query_Q=query_Q,
        event_Q=None,
        truth=truth_all.take(query_Q),
        seen=seen.items(query_Q) if filter_seen else _nothing(len(query_Q)),
        histories=histories,
        n_repeats=n_repeats,
        live=_live_throughout(store, asked, len(query_Q)),
    )


def _by_event(store: Store, asked: np.ndarray, seen: Pairs, histories: Histories, filter_seen: bool) -> HeldOut:
    query = torch.from_numpy(np.asarray(store.query_row[asked]).astype(np.int64))
    truth = Ragged(
        offset=torch.arange(len(asked) + 1),
        value=torch.from_numpy(np.asarray(store.item_row[asked]).astype(np.int64)),
        weight=None if store.schema.interactions.weight is None else torch.from_numpy(np.array(store.weight[asked])),
    )
    seen_Q, n_repeats = _nothing(len(asked)), 0
    event = torch.from_numpy(asked)
    if filter_seen and store.n_queries:
        seen_Q = _clear(seen.items(query.clamp(min=0)), query < 0)
        truth, n_repeats = without(truth, seen_Q)
        left = (truth.lengths() > 0).nonzero()[:, 0]
        query, event, truth, seen_Q = query[left], event[left], truth.take(left), seen_Q.take(left)
    return HeldOut(
        store=store,
        query_Q=query,
        event_Q=event,
        truth=truth,
        seen=seen_Q,
        histories=histories,
        n_repeats=n_repeats,
        live=_live_at(store, event),
    )


def _live_at(store: Store, event: Tensor) -> LiveAt | None:
    """What is live at the moment of each event."""
    lives = lives_of(store)
    if lives is None or store.time_us is None:
        return _live_throughout(store, event.numpy(), len(event))
    time_us = torch.from_numpy(np.asarray(store.time_us[event.numpy()]))
    return LiveAt(lives=lives, first_us_n=time_us, last_us_n=time_us)


def _live_throughout(store: Store, asked: np.ndarray, n: int) -> LiveAt | None:
    """What is live at some moment of the events ``asked``, for n questions."""
    lives = lives_of(store)
    return None if lives is None else LiveAt.throughout(lives, *period_of(store, asked), n)


def _nothing(n: int) -> Ragged:
    return Ragged(offset=torch.zeros(n + 1, dtype=torch.int64), value=torch.empty(0, dtype=torch.int64))


def _clear(lists: Ragged, cleared: Tensor) -> Ragged:
    return keep(lists, ~cleared[lists.owner()])
