"""Which events train, validate and test.

    TimeSplit      what comes last in time is held out: what a served model meets
    GivenSplit     a column or files say it: published splits
    QuerySplit     whole queries are held out: how the model does on queries it never met
    LeaveLastOut   the last events of every query: comparable with papers, leaks across time
    RandomSplit    events at random: leaks across time

``split.assign(store)`` gives [E] int8: 0 train, 1 valid, 2 test; an impression, shown in that part and not taken, has
SHOWN more. So whoever asks for the events of a part gets those that were taken. Shares are of taken events (in a
``RandomSplit`` of all, which comes to the same); of queries in ``QuerySplit``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from .store import Store
from .vocabulary import hash64

TRAIN, VALID, TEST = 0, 1, 2
SHOWN = 3
"""What the number of a part is raised by for an event that was shown and not taken."""
Parts = NDArray[np.int8]


@dataclass(frozen=True, kw_only=True)
class TimeSplit:
    """One cut in time for everybody: train, then valid, then test.

    The cuts lie between two different moments, as near to the shares as that allows, so events of one moment stay
    together. With ``valid_from`` or ``test_from`` (ISO, "2024-05-01" or "2024-05-01T12:00:00Z"; UTC without a zone) the
    dates count and the shares don't; a part whose date is left out has no events.
    """

    valid: float = 0.1
    test: float = 0.1
    valid_from: str | None = None
    test_from: str | None = None

    def __post_init__(self) -> None:
        _check_shares("TimeSplit", self.valid, self.test)
        cuts = [_moment_us("valid_from", self.valid_from), _moment_us("test_from", self.test_from)]
        if cuts[0] is not None and cuts[1] is not None and cuts[0] >= cuts[1]:
            raise ConfigError(
                f"TimeSplit: valid_from is {self.valid_from}, expected a moment before test_from, {self.test_from}"
            )

    @property
    def warning(self) -> str | None:
        """What a reader of the results must know."""
        return None

    def assign(self, store: Store) -> Parts:
        """[E] part of each event.

        Raises:
            ConfigError: the store has no time.
            DataError: a part that was asked for gets no event.
        """
        time_us = _time_of(store, "TimeSplit")
        valid_us, test_us = _moment_us("valid_from", self.valid_from), _moment_us("test_from", self.test_from)
        if valid_us is None and test_us is None:
            valid_us, test_us = self._cuts(time_us if store.taken is None else time_us[store.taken_events()])
            asked = (self.valid > 0, self.test > 0)
        else:
            asked = (valid_us is not None, test_us is not None)
        test_start = store.n_events if test_us is None else int(np.searchsorted(time_us, test_us))
        valid_start = test_start if valid_us is None else int(np.searchsorted(time_us, valid_us))
        part = np.full(store.n_events, TRAIN, np.int8)
        part[valid_start:test_start] = VALID
        part[test_start:] = TEST
        return _checked(store, part, "TimeSplit", valid=asked[0], test=asked[1])

    def _cuts(self, time_us: NDArray[np.int64]) -> tuple[int | None, int | None]:
        """The moments that valid and test begin with, by the shares of events at these times; None: no such event."""
        n = len(time_us)
        test_start = _cut_near(time_us, self.test, n) if self.test and n else n
        valid_start = _cut_near(time_us, self.test + self.valid, test_start) if self.valid and n else test_start
        valid_us, test_us = (int(time_us[at]) if at < n else None for at in (valid_start, test_start))
        return valid_us, test_us


@dataclass(frozen=True, kw_only=True)
class GivenSplit:
    """The split that the data brings: the schema's split column, or the files given as valid and test.

    Published splits often have no validation part: ``valid`` cuts that share of each query's training events at random
    (drawn with ``seed``). A query keeps at least one training event, so a query with a single one loses none.
    """

    valid: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_shares("GivenSplit", self.valid, 0.0)

    @property
    def warning(self) -> str | None:
        """What a reader of the results must know."""
        return None

    def assign(self, store: Store) -> Parts:
        """[E] part of each event.

        Raises:
            ConfigError: the store brings no split, or ``valid`` is set and there are validation events already.
            DataError: there are no training events, or too few to cut from.
        """
        if store.split is None:
            raise ConfigError(
                "GivenSplit: the data brings no split: name schema.interactions.split or give files of valid or test "
                "events, and ingest again, or choose another split"
            )
        part = np.array(store.split, np.int8)
        if self.valid > 0:
            if (part == VALID).any():
                raise ConfigError(
                    f"GivenSplit: valid is {self.valid}, but the data brings validation events: set valid = 0 for those"
                )
            query = _query_of(store, "GivenSplit with valid > 0")
            trained = np.flatnonzero((part == TRAIN) & _is_taken(store))
            part[_cut_from_each(query, trained, self.valid, self.seed)] = VALID
        return _checked(store, part, "GivenSplit", valid=self.valid > 0, test=False)


@dataclass(frozen=True, kw_only=True)
class QuerySplit:
    """Whole queries are held out, by a hash of the query id and ``seed``: a query keeps its part when the data grows.

    Shares are expected shares of queries. The model never saw the held-out queries, so it must know queries by more
    than their id.
    """

    valid: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _check_shares("QuerySplit", self.valid, self.test)

    @property
    def warning(self) -> str | None:
        """What a reader of the results must know."""
        return None

    def assign(self, store: Store) -> Parts:
        """[E] part of each event.

        Raises:
            ConfigError: the store has no query ids.
            DataError: a part that was asked for gets no event.
        """
        query = _query_of(store, "QuerySplit")
        assert store.query_vocabulary is not None  # _query_of
        place = hash64(store.query_vocabulary.ids(), self.seed) / 2.0**64  # in [0, 1), alike for every id
        part_of_query = np.where(place < self.test, TEST, np.where(place < self.test + self.valid, VALID, TRAIN))
        part = part_of_query[query].astype(np.int8)
        return _checked(store, part, "QuerySplit", valid=self.valid > 0, test=self.test > 0)


@dataclass(frozen=True, kw_only=True)
class LeaveLastOut:
    """Of every query the last ``test`` events, and the ``valid`` events before those.

    A query keeps at least one training event; what it has besides goes to test first, then to valid. An impression has
    the part of the last event that its query took before it.
    """

    test: int = 1
    valid: int = 1

    def __post_init__(self) -> None:
        for name, value in (("test", self.test), ("valid", self.valid)):
            if value < 0:
                raise ConfigError(f"LeaveLastOut: {name} is {value}, expected a number of events, 0 or more")

    @property
    def warning(self) -> str | None:
        """What a reader of the results must know."""
        return (
            "LeaveLastOut leaks across time: the model trains on events that happened after some of the events it is "
            "tested on, so results are better than a served model's. TimeSplit has one cut for everybody."
        )

    def assign(self, store: Store) -> Parts:
        """[E] part of each event.

        Raises:
            ConfigError: the store has no time or no query ids.
            DataError: a part that was asked for gets no event.
        """
        _time_of(store, "LeaveLastOut")
        query = _query_of(store, "LeaveLastOut")
        order = np.argsort(query, kind="stable")  # events are in order of time
        from_end, n_events = _places_from_end(query[order], _is_taken(store)[order])
        n_test = np.minimum(self.test, n_events - 1)
        n_valid = np.minimum(self.valid, n_events - 1 - n_test)
        part = np.empty(store.n_events, np.int8)
        part[order] = np.where(from_end < n_test, TEST, np.where(from_end < n_test + n_valid, VALID, TRAIN))
        return _checked(store, part, "LeaveLastOut", valid=self.valid > 0, test=self.test > 0)


@dataclass(frozen=True, kw_only=True)
class RandomSplit:
    """Events at random, drawn with ``seed``."""

    valid: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _check_shares("RandomSplit", self.valid, self.test)

    @property
    def warning(self) -> str | None:
        """What a reader of the results must know."""
        return (
            "RandomSplit ignores time: the model trains on events that happened after those it is tested on, so "
            "results are better than a served model's. TimeSplit has one cut for everybody."
        )

    def assign(self, store: Store) -> Parts:
        """[E] part of each event.

        Raises:
            DataError: a part that was asked for gets no event.
        """
        n = store.n_events
        order = np.random.default_rng(self.seed).permutation(n)
        n_test, n_valid = round(n * self.test), round(n * self.valid)
        part = np.full(n, TRAIN, np.int8)
        part[order[:n_test]] = TEST
        part[order[n_test : n_test + n_valid]] = VALID
        return _checked(store, part, "RandomSplit", valid=self.valid > 0, test=self.test > 0)


Split = TimeSplit | GivenSplit | QuerySplit | LeaveLastOut | RandomSplit
"""Every way to split: public API, settings type and docs table at once."""


# ---------------------------------------------------------------- what the splits share


def _check_shares(split: str, valid: float, test: float) -> None:
    for name, share in (("valid", valid), ("test", test)):
        if not 0 <= share < 1:
            raise ConfigError(f"{split}: {name} is {share}, expected a share from 0 to less than 1")
    if valid + test >= 1:
        raise ConfigError(f"{split}: valid and test take {valid + test:g} of the events, expected less than 1")


def _moment_us(name: str, text: str | None) -> int | None:
    """Microseconds since 1970 of ISO text."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(
            f"TimeSplit: {name} is {text!r}, expected an ISO date such as 2024-05-01 or 2024-05-01T12:00:00Z"
        ) from error
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    gap = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (gap.days * 86_400 + gap.seconds) * 10**6 + gap.microseconds


def _time_of(store: Store, split: str) -> NDArray[np.int64]:
    if store.time_us is None:
        raise ConfigError(
            f"{split}: the events have no time: name schema.interactions.time and ingest again, or choose another split"
        )
    return store.time_us


def _query_of(store: Store, split: str) -> NDArray[np.int32]:
    if store.query_vocabulary is None:
        raise ConfigError(
            f"{split}: the events have no query id: name schema.interactions.query and ingest again, "
            "or choose another split"
        )
    return store.query_row


def _cut_near(time_us: NDArray[np.int64], share: float, stop: int) -> int:
    """The boundary between two different moments that is nearest to leaving ``share`` behind it; the earlier of two.

    One that leaves nothing before it, or nothing between it and ``stop``, is taken only where there is no other.
    """
    place = round(len(time_us) * (1 - share), 6)  # 1.5000000000000002 is the middle
    moment = time_us[min(int(place), len(time_us) - 1)]
    around = [int(np.searchsorted(time_us, moment, side=side)) for side in ("left", "right")]
    useful = [cut for cut in around if 0 < cut < stop]
    return min(useful or around, key=lambda cut: (abs(cut - place), cut))


def _places_from_end(
    group: NDArray[np.int32], counts: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of rising group numbers: how many of its group that count come behind each, and how many of those it has."""
    starts = np.flatnonzero(np.diff(group, prepend=-2))
    size = np.diff(starts, append=len(group))
    until = np.concatenate([[0], np.cumsum(counts)])
    return np.repeat(until[starts + size], size) - until[1:], np.repeat(until[starts + size] - until[starts], size)


def _cut_from_each(query: NDArray[np.int32], event: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """The events to cut: of the n of ``event`` that a query has, n * share rounded up or down at random, n - 1 at most.

    Rounding at random keeps the share right where queries have few events.
    """
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(event)), query[event]))
    from_end, n_events = _places_from_end(query[event[order]], np.ones(len(event), bool))
    luck_of_query = rng.random(int(query.max(initial=-1)) + 1)
    n_cut = np.minimum(np.floor(n_events * share + luck_of_query[query[event[order]]]), n_events - 1)
    return event[order[from_end < n_cut]]


def _is_taken(store: Store) -> NDArray[np.bool_]:
    """[E] whether an event is more than an impression."""
    return np.ones(store.n_events, bool) if store.taken is None else np.asarray(store.taken, bool)


def _checked(store: Store, part: Parts, split: str, *, valid: bool, test: bool) -> Parts:
    """The parts, impressions marked, once it is sure that those that were asked for are not empty."""
    if store.taken is not None:
        part = np.where(_is_taken(store), part, part + SHOWN).astype(np.int8)
    for name, number, asked in (("train", TRAIN, True), ("valid", VALID, valid), ("test", TEST, test)):
        if asked and not (part == number).any():
            raise DataError(
                f"{split}: no event is left for {name} (of {len(part):,} events {(part == TRAIN).sum():,} are train, "
                f"{(part == VALID).sum():,} valid, {(part == TEST).sum():,} test{_and_shown(part)}): change the shares "
                "or the split"
            )
    return part


def _and_shown(part: Parts) -> str:
    n = (part >= SHOWN).sum()
    return f", {n:,} shown and not taken" if n else ""
