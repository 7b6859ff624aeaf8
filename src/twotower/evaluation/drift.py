"""Is today like yesterday? What arrived against what the model was trained on, from encoded columns alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.arrow import US_PER_DAY
from ..data.batches import Histories, query_features
from ..data.columns import Column, RaggedArray
from ..data.store import Store
from ..data.vocabulary import Vocabulary
from ..errors import DataError
from ..records import Features
from ..schema import Feature, Id, Seed, Time, table_of
from ..towers import TwoTower
from .report import aligned
from .two_samples import (
    LEAST_DEVIATIONS,
    DriftLine,
    Values,
    compare_means,
    compare_rows,
    compare_share_with,
    compare_shares,
    compare_vectors,
)

MOST_EVENTS = 1_000_000
"""Events of each side that are looked at, spread evenly over all of them."""
MOST_VECTORS = 20_000
"""Events of each side whose vectors are looked at, or which the model scores."""
LEAST_DAYS = 7
"""Days before from which a number of events a day is judged: a week."""
_CHUNK = 4096


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What ``drift`` found."""

    lines: tuple[DriftLine, ...]
    n_before: int
    """Events taken, all of them; lines are of at most ``MOST_EVENTS``."""
    n_arrived: int

    @property
    def shifted(self) -> tuple[DriftLine, ...]:
        """The lines that shifted."""
        return tuple(line for line in self.lines if line.shifted)

    def render(self) -> str:
        """A table for people, what shifted first."""
        lines = [*self.shifted, *(line for line in self.lines if not line.shifted)]
        heads = ["", "of", "what", "before", "arrived", "shift", "standard errors"]
        cells = [
            [
                "shifted" * line.shifted,
                line.of,
                line.what,
                *(_cell(number) for number in (line.before, line.arrived, line.shift, line.standard_errors)),
            ]
            for line in lines
        ]
        what = f"{len(self.shifted)} of {len(lines)} lines shifted" if self.shifted else "nothing shifted"
        return "\n".join(
            [
                f"{self.n_arrived:,} events arrived, {self.n_before:,} before them: {what}",
                "",
                *aligned([heads, *cells]),
            ]
        )

    def to_json(self) -> str:
        """Everything; null for what there is not, or can't be told."""
        lines = [
            {name: None if _is_no_number(value) else value for name, value in asdict(line).items()}
            | {"shifted": line.shifted}
            for line in self.lines
        ]
        tree = {"n_before": self.n_before, "n_arrived": self.n_arrived, "lines": lines}
        return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False)


def _is_no_number(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _cell(number: float | None) -> str:
    return "-" if number is None or math.isnan(number) else f"{number:,.4g}"


def drift(store: Store, before: NDArray[Any], arrived: NDArray[Any], *, towers: TwoTower | None = None) -> Drift:
    """Compare events that arrived with those before them; both are indices of events, in order.

    A line is one comparison. It has *shifted* where the shift matters and is further off than chance: a share by more
    than 0.02, a mean by more than 0.1 deviations of single values before, a distribution by a total variation of more
    than 0.05 above what two samples of these sizes give by chance; and each by more than 4 standard errors, in which
    all events of a query are one draw (``two_samples``).

    - ``queries``, ``items``: share of events whose query (item) no event before had, against what Good and Turing
      expect of more events of the same law, n_1 / n with n_1 ids of one event among n; and the distribution over items.
    - each feature of query, context and item, as often as events have it: the share without a value (in a list
      feature: of empty lists), and of values that the vocabulary does not know; means of numbers, ages, lengths of
      lists; distributions over the rows of categories, quantiles, hours and weekdays; mean vectors. A missing number is
      encoded as the mean, so a number that is exactly the mean counts as missing. Of the event's own time only the
      hour is compared: that days pass is no drift.
    - ``events``: weight, the share that was taken where there are impressions among the events (all other lines are
      of events that were taken), and events a day, against the deviation of whole days before, of which it takes 7; a
      day that is not over counts as one.
    - ``scores``, with ``towers``: s(q, v+) of the events' own items, as served, and how far they are from their mean.
      The model was trained on the pairs before, so a fall of their mean holds what it learnt by heart, too.

    Source: Good, The population frequencies of species and the estimation of population parameters (Biometrika 40,
    1953), Equation 9.

    Raises:
        DataError: no event that was taken on one of the sides.
    """
    sides = [_Events.of(store, np.asarray(events, np.int64)) for events in (before, arrived)]
    for name, side in zip(("before", "arrived"), sides, strict=True):
        if not len(side.taken):
            raise DataError(f"drift: {name} holds no event that was taken, expected at least one")
    lines = [
        *_new_ids(store, *sides),
        compare_rows("items", sides[0].items(), sides[1].items()),
        *_events(store, np.asarray(before), np.asarray(arrived), *sides),
        *_features(store, *sides),
        *([] if towers is None else _scores(store, towers, *sides)),
    ]
    return Drift(
        lines=tuple(line for line in lines if line is not None),
        n_before=len(sides[0].taken),
        n_arrived=len(sides[1].taken),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Events:
    """The events of one side."""

    taken: NDArray[np.int64]
    """All of them that were."""
    event: NDArray[np.int64]
    """[n] the ones that are looked at."""
    query: NDArray[np.int64]
    """[n] rows; -1 without a query."""
    item: NDArray[np.int64]
    group: NDArray[np.int64]
    """[n] as ``_groups`` has it."""

    @staticmethod
    def of(store: Store, events: NDArray[np.int64]) -> _Events:
        taken = events if store.taken is None else events[np.asarray(store.taken[events]) != 0]
        event = _spread(taken, MOST_EVENTS)
        query = np.asarray(store.query_row[event]).astype(np.int64)
        return _Events(
            taken=taken,
            event=event,
            query=query,
            item=np.asarray(store.item_row[event]).astype(np.int64),
            group=_groups(query),
        )

    def fewer(self, most: int) -> _Events:
        """Some of those that are looked at."""
        at = _spread(np.arange(len(self.event)), most)
        return _Events(
            taken=self.taken, event=self.event[at], query=self.query[at], item=self.item[at], group=self.group[at]
        )

    def values(self, value: NDArray[Any]) -> Values:
        return Values(value=value, group=self.group)

    def items(self) -> Values:
        return self.values(self.item)

    def rows(self, side: str) -> NDArray[np.int64]:
        """[n] rows of a side's columns."""
        return {"query": self.query, "item": self.item, "context": self.event}[side]


def _groups(query: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n] events of one query are one draw, an event without a query is one by itself."""
    return np.unique(np.where(query < 0, -1 - np.arange(len(query)), query), return_inverse=True)[1]


def _spread(of: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of them, evenly spread."""
    return of if len(of) <= most else of[np.arange(most) * len(of) // most]


# ---------------------------------------------------------------- ids and events


def _new_ids(store: Store, before: _Events, arrived: _Events) -> Iterator[DriftLine]:
    """Shares of events with ids that none before had."""
    sides = [("items", store.item_row, store.n_items, arrived.item)]
    if store.schema.interactions.query is not None:
        sides.insert(0, ("queries", store.query_row, store.n_queries, arrived.query))
    n = len(before.taken)
    for name, row_E, size, row in sides:
        count = np.bincount(row_E[before.taken], minlength=size)
        once = int((count == 1).sum())
        yield compare_share_with(name, "new", once / n, once / n**2, arrived.values(count[row] == 0))


def _events(
    store: Store, all_before: NDArray[Any], all_arrived: NDArray[Any], before: _Events, arrived: _Events
) -> Iterator[DriftLine | None]:
    """Weights, what was taken, and how many there are."""
    if store.schema.interactions.weight is not None:
        weights = (side.values(np.asarray(store.weight[side.event])) for side in (before, arrived))
        yield compare_means("events", "weight", *weights)
    if len(before.taken) < len(all_before) or len(arrived.taken) < len(all_arrived):
        yield compare_shares("events", "taken", *(_answers(store, events) for events in (all_before, all_arrived)))
    if store.time_us is not None:
        yield _events_a_day(*(np.asarray(store.time_us[side.taken]) // US_PER_DAY for side in (before, arrived)))


def _answers(store: Store, events: NDArray[Any]) -> Values:
    """Whether events were taken, impressions among them."""
    assert store.taken is not None
    event = _spread(events, MOST_EVENTS)
    query = np.asarray(store.query_row[event]).astype(np.int64)
    return Values(value=np.asarray(store.taken[event]) != 0, group=_groups(query))


def _events_a_day(day_before: NDArray[np.int64], day_arrived: NDArray[np.int64]) -> DriftLine:
    """Mean of whole days: the day on which the first of what arrived came is none of those before."""
    earlier = day_before[day_before < day_arrived.min()]
    count_D = np.bincount(earlier - earlier.min()) if len(earlier) else np.zeros(0, np.int64)
    now_D = np.bincount(day_arrived - day_arrived.min())
    mean, now = (float(count.mean()) if len(count) else math.nan for count in (count_D, now_D))
    enough = len(count_D) >= LEAST_DAYS
    # Days are no calmer than chance: a Poisson number of mean m has the deviation sqrt(m).
    deviation = math.sqrt(max(float(count_D.var(ddof=1)), mean)) if enough else math.nan
    return DriftLine(
        of="events",
        what="a day",
        before=mean,
        arrived=now,
        shift=(now - mean) / deviation,
        least=LEAST_DEVIATIONS,
        standard_errors=abs(now - mean) / (deviation * math.sqrt(1 / max(len(count_D), 1) + 1 / len(now_D))),
    )


# ---------------------------------------------------------------- features


def _features(store: Store, before: _Events, arrived: _Events) -> Iterator[DriftLine | None]:
    columns = {"query": store.query, "context": store.context, "item": store.item}
    for side, name, feature in store.schema.features():
        keys = [f"{name}.{part}" for part in feature.parts] if isinstance(feature, Time) else [name]
        for key in keys:
            if key in columns[side] and not _is_the_clock(store, side, feature, key):
                look = _Look(store, side, name, feature, key, columns[side][key])
                yield from look.lines(before, arrived)


def _is_the_clock(store: Store, side: str, feature: Feature, key: str) -> bool:
    """Whether it only tells which day an event is of."""
    of_event = side == "context" and isinstance(feature, Time) and feature.column == store.schema.interactions.time
    return of_event and not key.endswith(".hour")


class _Look:
    """One encoded column of a feature, as often as events have it."""

    def __init__(self, store: Store, side: str, name: str, feature: Feature, key: str, column: Column) -> None:
        self.of, self.side, self.feature, self.column = f"{side}.{key}", side, feature, column
        self.is_id = isinstance(feature, Id | Seed)
        table = table_of(side, name, feature)
        self.vocabulary = None if table is None else store.encoders.vocabularies.get(table)
        is_age = isinstance(feature, Time)
        self.fill = np.float32(store.encoders.mean_ages[f"{side}.{name}"] if is_age else 0.0)
        """What stands for a missing number."""

    def lines(self, before: _Events, arrived: _Events) -> Iterator[DriftLine | None]:
        if isinstance(self.column, RaggedArray):
            yield from self._of_lists(before, arrived)
        elif self.column.ndim == 2:
            yield from self._of_vectors(before.fewer(MOST_VECTORS), arrived.fewer(MOST_VECTORS))
        elif np.issubdtype(self.column.dtype, np.floating):
            yield from self._of_numbers(before, arrived)
        else:
            yield from self._of_rows(before, arrived)

    def _of_lists(self, before: _Events, arrived: _Events) -> Iterator[DriftLine | None]:
        lengths = [side.values(self._lengths(side.rows(self.side))) for side in (before, arrived)]
        yield compare_shares(self.of, "empty", *(Values(value=v.value == 0, group=v.group) for v in lengths))
        yield compare_means(self.of, "length", *lengths)

    def _lengths(self, row: NDArray[np.int64]) -> NDArray[np.int64]:
        assert isinstance(self.column, RaggedArray)
        return np.asarray(self.column.offset[row + 1] - self.column.offset[row])

    def _of_vectors(self, before: _Events, arrived: _Events) -> Iterator[DriftLine | None]:
        both = [self._values(side) for side in (before, arrived)]
        missing = [Values(value=(values.value == 0).all(1), group=values.group) for values in both]
        yield compare_shares(self.of, "missing", *missing)
        yield compare_vectors(self.of, *_present(both, missing))

    def _of_numbers(self, before: _Events, arrived: _Events) -> Iterator[DriftLine | None]:
        both = [self._values(side) for side in (before, arrived)]
        missing = [Values(value=values.value == self.fill, group=values.group) for values in both]
        yield compare_shares(self.of, "missing", *missing)
        yield compare_means(self.of, "mean", *_present(both, missing))

    def _of_rows(self, before: _Events, arrived: _Events) -> Iterator[DriftLine | None]:
        both = [self._values(side) for side in (before, arrived)]
        missing = [Values(value=values.value < 0, group=values.group) for values in both]
        yield compare_shares(self.of, "missing", *missing)
        present = _present(both, missing)
        if isinstance(self.vocabulary, Vocabulary):
            unknown = [Values(value=self.vocabulary.in_buckets(v.value), group=v.group) for v in present]
            yield compare_shares(self.of, "unknown", *unknown)
        if not self.is_id:
            yield compare_rows(self.of, *present)

    def _values(self, side: _Events) -> Values:
        assert isinstance(self.column, np.ndarray)
        return side.values(np.asarray(self.column[side.rows(self.side)]))


def _present(both: list[Values], missing: list[Values]) -> list[Values]:
    return [values.where(~absent.value) for values, absent in zip(both, missing, strict=True)]


# ---------------------------------------------------------------- scores


def _scores(store: Store, towers: TwoTower, before: _Events, arrived: _Events) -> Iterator[DriftLine | None]:
    histories = Histories(store, np.union1d(before.taken, arrived.taken))
    sides = [side.fewer(MOST_VECTORS) for side in (before, arrived)]
    scores = [side.values(positive_scores(towers, store, side.event, histories)) for side in sides]
    yield compare_means("scores", "mean", *scores)
    apart = [Values(value=np.abs(s.value - s.value.mean(dtype=np.float64)), group=s.group) for s in scores]
    yield compare_means("scores", "distance from mean", *apart)


def positive_scores(
    towers: TwoTower, store: Store, event: NDArray[np.int64], histories: Histories
) -> NDArray[np.float64]:
    """[n] the score s(q, v+) of each event's own item, both vectors as served; histories cut before each event."""
    training = towers.training
    towers.eval()
    with torch.no_grad(), towers.settled():
        chunks = [event[at : at + _CHUNK] for at in range(0, len(event), _CHUNK)]
        scores = [_scores_of(towers, store, chunk, histories) for chunk in chunks]
    towers.train(training)
    return np.concatenate(scores)


def _scores_of(towers: TwoTower, store: Store, event: NDArray[np.int64], histories: Histories) -> NDArray[np.float64]:
    query, item = (
        torch.from_numpy(np.asarray(row[event]).astype(np.int64)) for row in (store.query_row, store.item_row)
    )
    time_us = None if store.time_us is None else np.asarray(store.time_us[event])
    query_ND = towers.encode_query(
        _on(towers, query_features(store, query, torch.from_numpy(event), histories, time_us)), served=True
    )
    item_ND = towers.encode_item(_on(towers, store.item.take(item)), served=True)
    return (query_ND * item_ND).sum(1).double().cpu().numpy()


def _on(towers: TwoTower, features: Features) -> Features:
    """Features on the device of the towers."""
    return {name: column.to(towers.device) for name, column in features.items()}
