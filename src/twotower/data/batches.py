"""Training events as shuffled batches: of pairs, or of queries with all their positives.

Vectorised throughout: a batch is a handful of index operations on memory-mapped columns, about a thousandth of a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..part import Events, Facts
from ..records import Batch, Features, LiveAt, Ragged, running_sum, spans
from ..schema import History, Id, Schema, table_of
from .arrow import US_PER_DAY
from .life import lives_of, period_of
from .store import Store
from .thinning import UNIT, ThinnedEvents, Thinning

BatchOf = Literal["pairs", "queries"]
Order = Literal["shuffled", "days"]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Distinct (query, item) pairs sorted by query, then item: list q is the items of query q."""

    offset: Tensor
    """[n_queries + 1]"""
    item: Tensor
    weight: Tensor
    """Summed over equal pairs."""
    first_us: Tensor | None
    """Time of the first of equal pairs."""

    def items(self, query: Tensor) -> Ragged:
        """All items of the given queries."""
        return Ragged(offset=self.offset, value=self.item).take(query)

    def items_until(self, query: Tensor, time_us: Tensor) -> Ragged:
        """The items each query had met by its time."""
        assert self.first_us is not None
        start = self.offset.index_select(0, query)
        offset, at = spans(start, self.offset.index_select(0, query + 1) - start)
        owner = torch.repeat_interleave(torch.arange(len(query)), offset[1:] - offset[:-1])
        met = self.first_us.index_select(0, at) <= time_us.index_select(0, owner)
        return keep(Ragged(offset=offset, value=self.item.index_select(0, at)), met)


def keep(lists: Ragged, kept: Tensor) -> Ragged:
    """The same lists with only the values that are kept (one truth value each)."""
    count = lists.owner()[kept].bincount(minlength=len(lists))
    weight = None if lists.weight is None else lists.weight[kept]
    return Ragged(offset=running_sum(count), value=lists.value[kept], weight=weight)


def without(lists: Ragged, other: Ragged) -> tuple[Ragged, int]:
    """Lists less the values of the other's list of the same number, and how many went."""
    top = max(int(lists.value.max()) if len(lists.value) else 0, int(other.value.max()) if len(other.value) else 0) + 1
    drop = torch.isin(lists.owner() * top + lists.value, other.owner() * top + other.value)
    return keep(lists, ~drop), int(drop.sum())


def group_pairs(
    query: np.ndarray, item: np.ndarray, weight: np.ndarray, time_us: np.ndarray | None, n_queries: int
) -> Pairs:
    """Events as distinct pairs. Events without a query (row -1) are in no list."""
    has_query = query >= 0
    query, item, weight = query[has_query].astype(np.int64), item[has_query].astype(np.int64), weight[has_query]
    n_items = int(item.max()) + 1 if len(item) else 1
    key, where = np.unique(query * n_items + item, return_inverse=True)
    total = np.bincount(where, weights=weight, minlength=len(key)).astype(np.float32)
    first = None
    if time_us is not None:
        first = np.full(len(key), np.iinfo(np.int64).max)
        np.minimum.at(first, where, time_us[has_query])
    offset = np.searchsorted(key // n_items, np.arange(n_queries + 1))
    return Pairs(
        offset=torch.from_numpy(offset.astype(np.int64)),
        item=torch.from_numpy(key % n_items),
        weight=torch.from_numpy(total),
        first_us=None if first is None else torch.from_numpy(first),
    )


def pairs_of(store: Store, events: np.ndarray, *, with_self: bool = False) -> Pairs:
    """The pairs of a store's events; ``with_self`` each query's own item too, of weight 0, where queries are items."""
    query, item, weight = (np.asarray(column[events]) for column in (store.query_row, store.item_row, store.weight))
    time_us = None if store.time_us is None else np.asarray(store.time_us[events])
    if with_self and store.query_item_row is not None:
        own = np.asarray(store.query_item_row)
        self_query = np.flatnonzero(own >= 0)
        query, item = np.concatenate([query, self_query]), np.concatenate([item, own[self_query]])
        weight = np.concatenate([weight, np.zeros(len(self_query), np.float32)])
        if time_us is not None:
            time_us = np.concatenate([time_us, np.full(len(self_query), np.iinfo(np.int64).min)])
    return group_pairs(query, item, weight, time_us, store.n_queries)


def _lengths(pairs: Pairs) -> Tensor:
    return pairs.offset[1:] - pairs.offset[:-1]


def _sums(value_n: Tensor, group_n: Tensor) -> Tensor:
    """Sum of the values of each group, for all groups up to the largest number."""
    return value_n.new_zeros(int(group_n.max()) + 1).index_add_(0, group_n, value_n)


def _joined(total_D: Tensor, least: int) -> Tensor:
    """[D] numbers, rising, that make neighbours one until each number has ``least``: small ones join the next."""
    number, total, found = 0, 0, []
    for one in total_D.tolist():
        found.append(number)
        total += one
        if total >= least:
            number, total = number + 1, 0
    return torch.tensor(found).clamp(max=max(number - 1, 0))


class Histories:
    """The most recent items of a query strictly before a moment, for every ``History`` feature."""

    def __init__(self, store: Store, events: np.ndarray) -> None:
        """From the events (indices) that may be remembered."""
        schema = store.schema
        self.features = [
            (name, f, id_rows(store, table_of("context", name, f)))
            for name, f in schema.context.items()
            if isinstance(f, History)
        ]
        self.offset = torch.zeros(1, dtype=torch.int64)
        if not self.features:
            return
        _check_histories(store.schema)
        assert store.time_us is not None
        query, time_us = np.asarray(store.query_row[events]), np.asarray(store.time_us[events])
        order = np.lexsort((time_us, query))
        query, self.time_us = query[order].astype(np.int64), time_us[order]
        self.item = torch.from_numpy(np.asarray(store.item_row[events])[order].astype(np.int64))
        self.offset = torch.from_numpy(np.searchsorted(query, np.arange(store.n_queries + 1)).astype(np.int64))
        self.query = query

    def before(self, query: Tensor, time_us: np.ndarray | None) -> Features:
        """History features of queries at their times; of everything remembered where no time is given."""
        found: Features = {}
        if not self.features:
            return found
        none = query < 0
        start = self.offset.index_select(0, query.clamp(min=0))
        stop = self.offset.index_select(0, query.clamp(min=0) + 1)
        if time_us is not None:
            stop = self._strictly_before(query, time_us, start, stop)
        stop = torch.where(none, start, stop)
        for name, feature, row_M in self.features:
            first = torch.maximum(start, stop - feature.k)
            offset, at = spans(first, stop - first)
            found[name] = mean_of(Ragged(offset=offset, value=row_M[self.item.index_select(0, at)]))
        return found

    def _strictly_before(self, query: Tensor, time_us: np.ndarray, start: Tensor, stop: Tensor) -> Tensor:
        """First place of each query's span whose time is not before: a binary search in every span at once."""
        low, high = start.numpy().copy(), stop.numpy().copy()
        while (low < high).any():
            middle = (low + high) // 2
            earlier = (low < high) & (self.time_us[np.minimum(middle, len(self.time_us) - 1)] < time_us)
            low, high = np.where(earlier, middle + 1, low), np.where(earlier | (low >= high), high, middle)
        return torch.from_numpy(low)


def mean_of(lists: Ragged) -> Ragged:
    """Lists of table rows weighted 1 / length; items without an id (row -1) are left out."""
    there = lists.value >= 0
    if not bool(there.all()):
        lists = keep(lists, there)
    length = lists.lengths()
    return replace(lists, weight=torch.repeat_interleave(1.0 / length.clamp(min=1).float(), length))


def id_rows(store: Store, table: str | None) -> Tensor:
    """[M] row of every catalogue item in the embedding table of item ids."""
    for name, feature in store.schema.item.items():
        if isinstance(feature, Id) and table_of("item", name, feature) == table:
            column = store.item[name]
            assert isinstance(column, np.ndarray)
            return torch.from_numpy(np.asarray(column).astype(np.int64))
    raise ConfigError(f"schema.context: no item feature of kind Id uses the table {table!r}")


def varies_within_query(schema: Schema) -> bool:
    """Whether a query's features depend on the event, not only on who asks."""
    return bool(schema.context) or schema.interactions.query is None


def check_batches(schema: Schema, batch_of: BatchOf, thin: Thinning | None = None, order: Order = "shuffled") -> None:
    """Raise ConfigError where a schema has no such batches; a run asks before its files are read."""
    _check_histories(schema)
    if order == "days" and batch_of == "queries":
        raise ConfigError(
            "training.order: found 'days', but training.batch_of = 'queries' batches each query with the positives of "
            "all its days: use batch_of = 'pairs', or order = 'shuffled'"
        )
    if order == "days" and schema.interactions.time is None:
        raise ConfigError(
            "training.order: found 'days', but schema.interactions.time names no column: name the column of the time, "
            "or use order = 'shuffled'"
        )
    if batch_of == "queries" and thin is not None:
        raise ConfigError(
            f"training.thin: found {type(thin).__name__}, but training.batch_of = 'queries' batches each query with "
            "all its positives, so no event of it can be left out: use batch_of = 'pairs', or leave training.thin out"
        )
    if batch_of == "queries" and varies_within_query(schema):
        raise ConfigError(
            "training.batch_of: 'queries' batches whole queries, but this schema has context features (or no "
            "query id), which differ from event to event: use batch_of = 'pairs'"
        )


def _check_histories(schema: Schema) -> None:
    history = next((name for name, feature in schema.context.items() if isinstance(feature, History)), None)
    if history is not None and schema.interactions.time is None:
        raise ConfigError(
            f"schema.context.{history}: a History needs the time of events, but interactions.time is not set: "
            "name the column of the time, or leave the History out"
        )


class TrainingBatches:
    """The training events of a store, shuffled anew every epoch by (seed, epoch).

    With ``order = "days"`` an epoch goes through the days (UTC) that have events, oldest first, and shuffles within
    each: no batch is of two days, so the last of each may be smaller. Days of which ``thin`` leaves less than one event
    an epoch are taken as one with the next (the last with the one before). Popularity is then that of the days at hand,
    which ``StreamingFrequency`` follows and ``ExactFrequency`` takes for that of all.

    With ``known`` some events are batched while others are known as well: today's events, say, with all before them.
    Only ``events`` are drawn and counted (``item_count_M``, ``query_count_Q``, ``n_queries``, ``Facts.events``); what a
    query is known to like, histories, ``Facts.pairs`` and the n_q of ``query_weight`` are of the ``known``.

    With ``thin`` an epoch is of fewer events, drawn anew too (``thinning.ThinnedEvents``). The others are not batched
    in that epoch, but all else stays as it is: they are known, so never negatives, they are in histories, and the
    n_q of ``query_weight`` counts them. All epochs have the same number of steps. Counts (``Facts.item_count_M``,
    ``query_count_Q``) are the expected ones of an epoch, f_i k_i for item i, so each law of popularity, each presence
    and each correction is that of the thinned stream.

    Where items come and go (``schema.life``) a pair is compared with what is live at its moment. A whole query has no
    moment, so ``batch_of = "queries"`` compares it with all that is live at some moment of the training events: the
    shorter their period, the nearer that is to what could have been offered.
    """

    def __init__(
        self,
        store: Store,
        events: np.ndarray,
        *,
        batch_of: BatchOf,
        batch_size: int,
        known: np.ndarray | None = None,
        shown: np.ndarray | None = None,
        query_weight: float = 0.0,
        thin: Thinning | None = None,
        order: Order = "shuffled",
        seed: int = 0,
    ) -> None:
        """``events`` are the indices to train on, ``shown`` those of the impressions of that part that were not taken.

        ``known`` are indices of events too, all of ``events`` among them; without it they are the ``events``.
        ``query_weight`` multiplies a pair's weight by n_q ** query_weight, n_q the number of distinct known pairs of
        its query.

        Raises DataError where there is no event, or one that is not known, and ConfigError as ``check_batches`` does.
        """
        if not len(events):
            raise DataError("training: no event is left to train on")
        check_batches(store.schema, batch_of, thin, order)
        self.store, self.events = store, events
        self.known_events = events if known is None else known
        if known is not None and (unknown := int((~np.isin(events, known)).sum())):
            raise DataError(f"training: {unknown:,} of {len(events):,} events are not among the known, expected all")
        self.shown = np.zeros(0, np.int64) if shown is None else shown
        self.batch_of, self.batch_size, self.seed = batch_of, batch_size, seed
        query = np.asarray(store.query_row[events])
        item = np.asarray(store.item_row[events])
        weight = np.asarray(store.weight[events])
        time_us = None if store.time_us is None else np.asarray(store.time_us[events])
        self.event_query = torch.from_numpy(query.astype(np.int64))
        self.event_item = torch.from_numpy(item.astype(np.int64))
        self.event_weight = torch.from_numpy(weight.astype(np.float32))
        self.event_us = time_us
        self.lives = lives_of(store)
        self.period = period_of(store, events)
        self.batched_pairs = group_pairs(query, item, weight, time_us, store.n_queries)
        """Of the events."""
        self.pairs = self.batched_pairs if known is None else pairs_of(store, known)
        """Of the known events."""
        self.known = self._with_self()
        self.histories = Histories(store, self.known_events)
        self.trained_Q = _lengths(self.batched_pairs).nonzero()[:, 0]
        self.query_weight_Q = _lengths(self.pairs).clamp(min=1).float() ** query_weight
        self.varies = varies_within_query(store.schema)
        self.thinned = None if thin is None else self._thinned(thin)
        self.day_E: Tensor | None = None
        self.least_D = [self.n_batched]
        if order == "days":
            self.day_E, self.least_D = self._by_day()

    def _by_day(self) -> tuple[Tensor, list[int]]:
        """[E] the day of each event, from 0, and how many events an epoch has of each day at least.

        A thinned epoch draws day by day too, so that each day has as many as expected, rounded down or up.
        """
        assert self.event_us is not None
        day_E = torch.from_numpy(np.unique(self.event_us // US_PER_DAY, return_inverse=True)[1].astype(np.int64))
        thinned, unit = self.thinned, 1 if self.thinned is None else UNIT
        length_E = torch.ones_like(day_E) if thinned is None else thinned.length_M[thinned.item_E]
        day_E = _joined(_sums(length_E, day_E), unit)[day_E]
        if thinned is not None:
            self.thinned = replace(thinned, day_E=day_E)
        return day_E, (_sums(length_E, day_E) // unit).tolist()

    def _thinned(self, thin: Thinning) -> ThinnedEvents:
        keep_M = thin.keep_probability(self.event_item.bincount(minlength=self.store.n_items))
        thinned = ThinnedEvents(item_E=self.event_item, keep_M=keep_M)
        if thinned.n_least < 1:
            raise ConfigError(
                f"training.thin: {thin} keeps {float(keep_M[self.event_item].sum()):.3g} of the {len(self.events):,} "
                "training events in an epoch, expected at least 1: keep more, or leave it out"
            )
        return thinned

    def _with_self(self) -> Pairs:
        """What is never a negative: known positives, and the query's own item where queries are items."""
        if self.store.query_item_row is None:
            return self.pairs
        return pairs_of(self.store, self.known_events, with_self=True)

    @property
    def n_batched(self) -> int:
        """Events or queries of an epoch; an epoch of thinned events may have one more."""
        if self.thinned is not None:
            return self.thinned.n_least
        return len(self.events) if self.batch_of == "pairs" else len(self.trained_Q)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; the last of it, or of a day, may be smaller, or have one event more where events are
        thinned."""
        return sum(self._steps(least) for least in self.least_D)

    def _steps(self, n: int) -> int:
        """Batches of n events or queries."""
        return -(-n // self.batch_size)

    def facts(self) -> Facts:
        """What samplers and frequency estimates need to know before they start."""
        item = self.event_item if self.batch_of == "pairs" else self.batched_pairs.item
        item_count_M, query_count_Q = self._counts(item)
        return Facts(
            n_items=self.store.n_items,
            n_queries=len(self.trained_Q),
            item_count_M=item_count_M,
            batch_size=min(self.batch_size, max(self.least_D)),
            batch_of=self.batch_of,
            query_count_Q=query_count_Q,
            steps_per_epoch=self.steps_per_epoch,
            pairs=Ragged(offset=self.pairs.offset, value=self.pairs.item, weight=self.pairs.weight),
            shown=self._never_taken(self.shown),
            passed_over=self._never_taken(passed_over(self.store, self.known_events, self.shown)),
            events=Events(item_E=item, features=self._features_of),
            item_number_M=torch.from_numpy(np.array(self.store.item_number)),
            live_M=torch.zeros(0, dtype=torch.bool) if self.lives is None else self.lives.during(*self.period),
        )

    def _never_taken(self, shown: np.ndarray) -> Ragged:
        """[Q] the items of these impressions that their query never took in training, and how often each was shown."""
        query, item = np.asarray(self.store.query_row[shown]), np.asarray(self.store.item_row[shown])
        pairs = group_pairs(query, item, np.ones(len(shown), np.float32), None, self.store.n_queries)
        lists = Ragged(offset=pairs.offset, value=pairs.item, weight=pairs.weight)
        return without(lists, Ragged(offset=self.known.offset, value=self.known.item))[0]

    def _counts(self, item: Tensor) -> tuple[Tensor, Tensor]:
        """Training events of each item, and pairs of each query: of an epoch, expected ones where it is thinned."""
        count_M, count_Q = item.bincount(minlength=self.store.n_items), _lengths(self.batched_pairs)
        if self.thinned is None:
            return count_M, count_Q
        keep_M = self.thinned.keep_M
        pairs = Ragged(offset=self.batched_pairs.offset, value=self.batched_pairs.item)
        kept_Q = torch.zeros(len(pairs), dtype=keep_M.dtype).index_add(0, pairs.owner(), keep_M[pairs.value])
        return count_M * keep_M, kept_Q

    def _features_of(self, index: Tensor) -> Features:
        """Query features of events [n], as batches of them have."""
        if self.batch_of == "pairs":
            return self.features_at(index, self.event_query[index])
        query = torch.searchsorted(self.batched_pairs.offset, index, right=True) - 1
        return self.store.query.take(query)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch, from its step ``start`` on."""
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = self.order(rng)
        bound = [0, *self._ends(order)]
        for step in range(start, self.steps_per_epoch):
            yield self.at(order[bound[step] : bound[step + 1]])

    def _ends(self, order: Tensor) -> Iterator[int]:
        """Where each batch of an epoch ends; the last of a day takes all that is left of it."""
        day_n = torch.zeros_like(order) if self.day_E is None else self.day_E[order]
        stop = 0
        for count, least in zip(day_n.bincount(minlength=len(self.least_D)).tolist(), self.least_D, strict=True):
            start, stop = stop, stop + count
            yield from (start + step * self.batch_size for step in range(1, self._steps(least)))
            yield stop

    def at(self, index: Tensor) -> Batch:
        """The batch of these events, or queries."""
        return self.of_events(index) if self.batch_of == "pairs" else self.of_queries(self.trained_Q[index])

    def order(self, rng: torch.Generator) -> Tensor:
        """Events or queries of an epoch, in the order in which they are batched: numbers for ``at``."""
        if self.thinned is None:
            order = torch.randperm(self.n_batched, generator=rng)
        else:
            kept = self.thinned.draw(rng)
            order = kept[torch.randperm(len(kept), generator=rng)]
        return order if self.day_E is None else order[torch.sort(self.day_E[order], stable=True).indices]

    def of_queries(self, query_B: Tensor) -> Batch:
        """Whole queries with all their positives."""
        pairs = self.batched_pairs
        start = pairs.offset.index_select(0, query_B)
        offset, at = spans(start, pairs.offset.index_select(0, query_B + 1) - start)
        of_P = torch.repeat_interleave(torch.arange(len(query_B)), offset[1:] - offset[:-1])
        item_P = pairs.item.index_select(0, at)
        same = self.known is pairs
        return Batch(
            query=self.store.query.take(query_B),
            query_B=query_B,
            item_P=item_P,
            of_P=of_P,
            weight_P=pairs.weight.index_select(0, at) * self.query_weight_Q[query_B].index_select(0, of_P),
            known=Ragged(offset=offset, value=item_P) if same else self.known.items(query_B),
            live=self._live_throughout(len(query_B)),
        )

    def of_events(self, index: Tensor) -> Batch:
        """Pairs; those of one query share its row where nothing about the query depends on the event."""
        query_P, item_P, weight_P = self.event_query[index], self.event_item[index], self.event_weight[index]
        if self.store.n_queries:
            weight_P = weight_P * torch.where(query_P < 0, 1.0, self.query_weight_Q[query_P.clamp(min=0)])
        if self.event_us is None and not self.varies:
            query_B, of_P = query_P.unique(return_inverse=True)
            by_query = torch.sort(of_P, stable=True).indices
            query, known = self.store.query.take(query_B), self.known.items(query_B)
            return Batch(
                query=query,
                query_B=query_B,
                item_P=item_P[by_query],
                of_P=of_P[by_query],
                weight_P=weight_P[by_query],
                known=known,
                live=self._live_throughout(len(query_B)),
            )
        return Batch(
            query=self.features_at(index, query_P),
            query_B=query_P,
            item_P=item_P,
            of_P=torch.arange(len(index)),
            weight_P=weight_P,
            known=self._known_at(index, query_P, item_P),
            live=self._live_at(index),
        )

    def _live_at(self, index: Tensor) -> LiveAt | None:
        """What is live at the moment of each event."""
        if self.lives is None or self.event_us is None:
            return self._live_throughout(len(index))
        time_us = torch.from_numpy(self.event_us[index.numpy()])
        return LiveAt(lives=self.lives, first_us_n=time_us, last_us_n=time_us)

    def _live_throughout(self, n: int) -> LiveAt | None:
        """What is live at some moment of the events that are trained on: for lines that are of no single moment."""
        return None if self.lives is None else LiveAt.throughout(self.lives, *self.period, n)

    def features_at(self, index: Tensor, query_P: Tensor) -> Features:
        """Query and context features of events, histories cut strictly before each."""
        event = torch.from_numpy(np.asarray(self.events))[index]
        time_us = None if self.event_us is None else self.event_us[index.numpy()]
        return query_features(self.store, query_P, event, self.histories, time_us)

    def _known_at(self, index: Tensor, query_P: Tensor, item_P: Tensor) -> Ragged:
        """Known items of each event's query up to its time; an event without a query knows its own item."""
        if self.store.schema.interactions.query is None:
            return Ragged(offset=torch.arange(len(index) + 1), value=item_P)
        if self.event_us is None:
            return self.known.items(query_P)
        return self.known.items_until(query_P, torch.from_numpy(self.event_us[index.numpy()]))


def passed_over(store: Store, events: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Those of the impressions ``shown`` that their query looked at and passed over: it took something further down.

    Events are in order of time, and of the file where times are equal. A query's events of one moment are a list in
    order of its positions, and an impression counts where something below it in the list was taken. An event that is
    alone at its moment belongs to a feed, and counts where the query took anything later. Without times all events of a
    query are one list. Both are indices of events, in order; events without a query pass nothing over.

    Source: Joachims, Optimizing search engines using clickthrough data (KDD 2002), section 3: a click prefers what was
    clicked to what was skipped above it.
    """
    if not len(shown):
        return shown
    at = np.sort(np.concatenate([events, shown]))
    at = at[np.asarray(store.query_row[at]) >= 0]
    query = np.asarray(store.query_row[at]).astype(np.int64)
    time_us = np.zeros(len(at), np.int64) if store.time_us is None else np.asarray(store.time_us[at])
    place = np.where(np.isin(at, shown), -1, np.arange(len(at)))  # of what was taken
    order = np.lexsort((time_us, query))
    starts_list = (np.diff(query[order], prepend=-1) != 0) | (np.diff(time_us[order], prepend=-1) != 0)
    list_of = np.empty(len(at), np.int64)
    list_of[order] = np.cumsum(starts_list) - 1
    last = np.where(np.bincount(list_of)[list_of] > 1, _last(place, list_of), _last(place, query))
    return np.asarray(at[(place < 0) & (np.arange(len(at)) < last)])


def _last(place: np.ndarray, group: np.ndarray) -> np.ndarray:
    """[n] the largest place in the group of each; -1 for none."""
    largest = np.full(int(group.max(initial=-1)) + 1, -1)
    np.maximum.at(largest, group, place)
    return np.asarray(largest[group])


def query_features(
    store: Store, query: Tensor, event: Tensor | None, histories: Histories, time_us: np.ndarray | None
) -> Features:
    """Features of queries: their attributes, the context of their events, and their histories up to a time."""
    found: Features = {}
    if store.schema.query:
        found.update(store.query.take(query))
    if any(not isinstance(f, History) for f in store.schema.context.values()):
        assert event is not None
        found.update(store.context.take(event))
    found.update(histories.before(query, time_us))
    return found
