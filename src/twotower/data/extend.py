"""A store that grows: what arrived is read like an ingest, what was there is copied, and every row stays where it is.

Only events from the first moment that arrived on are merged in memory (without a time or query none is, without a time
all are looked through for repeats); those before are copied from file to file. On disk the store lies twice until the
old one is removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import ArtifactError, DataError, SchemaError
from ..schema import Categorical, Id, table_of
from .arrow import US_PER_DAY
from .catalogue import Known, Side
from .column_files import ColumnsWriter, Tree, open_array
from .columns import Column, RaggedArray, cut, put_together, taken
from .encoders import Encoders, EncodersFit, Gone, id_features
from .events import Group
from .ingest import RAW, Ingest, Progress, Sources, read_waiting
from .life import GIVEN, NO_MOMENT
from .order import BLOCK_EVENTS, in_order
from .readers import Source, naming
from .report import DUPLICATE, Growth, IngestReport, Tally
from .staging import Staging
from .store import WAITING, Store, read_manifest
from .vocabulary import Vocabulary, text_form

__all__ = ["extend"]


def extend(
    base: Store,
    *,
    interactions: Source | None = None,
    queries: Source | None = None,
    items: Source | None = None,
    out: str | os.PathLike[str],
    overwrite: bool = False,
    forget: Sequence[object] = (),
    evict_idle_days: float | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Write a new store at ``out``: ``base`` and what arrived. ``base`` stays as it is.

    Every id that stays keeps its row. New ids take the rows that are free, the lowest first, then rows at the end; so
    do new values of features, once they reach ``min_count`` over all updates together. What encoders learnt besides
    (moments, quantile edges, document frequencies, subwords, what ages count from) stays that of the first ingest,
    since a model was trained on it.

    Events are cleaned as by ``ingest``, go where their time puts them, and are left out where they repeat one that is
    there or that arrived with them. Where the first ingest had a file of items (queries), events of others are left
    out unless ``items`` (``queries``) lists them now. Features are read of new ids, and of those that the file names
    again; of others they stay. With a given split and no split column what arrives is training data.

    Args:
        base: the store that grows.
        interactions: the events that arrived; none, where only queries or items did.
        queries: new queries, and those whose attributes changed; only where the first ingest had such a file.
        items: the same of items.
        out: folder of the new store, which is not that of ``base``.
        overwrite: replace a store that is there.
        forget: ids of queries of which nothing stays: no event, no feature, no count; what arrived of them is left out.
        evict_idle_days: items that were last seen (``Store.item_seen_us``) more than so many days before the newest
            event, and neither have an event among those that arrived nor are listed in ``items``, go with their events.
        progress: as of ``ingest``.

    Raises:
        SchemaError: the sources don't fit the schema, or items are to be evicted and events have no time.
        DataError: a file, row or value can't be used, an id to forget is not in the store, or no event stays.
        ArtifactError: ``out`` is taken or can't be written.
    """
    if Path(out).resolve() == base.path.resolve():
        raise ArtifactError(f"{out}: this is the store that is extended: choose another place for the new one")
    if evict_idle_days is not None and base.time_us is None:
        raise SchemaError("evict_idle_days: items can't be idle without times: interactions.time names no column")
    with Staging(Path(out), overwrite) as staging:
        sources = Sources(interactions=interactions, queries=queries, items=items, valid=None, test=None)
        return _Extension(base, _texts_of(forget, base), evict_idle_days, sources, staging, progress).run()


def _texts_of(forget: Sequence[object], base: Store) -> pa.LargeStringArray:
    """The ids to forget, as text.

    Raises:
        DataError: one of them is not in the store.
    """
    try:
        ids = text_form(pa.array([] if isinstance(forget, str) else list(forget)), "forget")
    except pa.ArrowException as error:
        raise DataError(f"forget: {error}; expected query ids of one type") from error
    if isinstance(forget, str):
        raise DataError(f"forget: found the text {forget!r}, expected a list of query ids")
    unknown = np.ones(len(ids), bool) if base.query_vocabulary is None else base.query_vocabulary.own_rows(ids) < 0
    if unknown.any():
        some = ", ".join(repr(ids[int(at)].as_py()) for at in np.flatnonzero(unknown)[:3])
        raise DataError(
            f"forget: {int(unknown.sum()):,} of {len(ids):,} ids are no queries of {base.path}, such as {some}"
        )
    return ids


class _Extension(Ingest):
    """An ingest that goes on from a store."""

    def __init__(
        self,
        base: Store,
        forgotten: pa.LargeStringArray,
        evict_idle_days: float | None,
        sources: Sources,
        staging: Staging,
        progress: Progress | None,
    ) -> None:
        self._base, self._forgotten, self._evict_idle_days = base, forgotten, evict_idle_days
        self._is_listed = read_manifest(base.path)["listed"]
        self.update = base.n_updates + 1
        self._n_arrived = self._n_gone_item = self._n_gone_query = 0
        super().__init__(base.schema, sources, staging, progress)

    def _side(self, name: str, source: Source | None) -> Side:
        is_item = name == "item"
        vocabulary = self._base.item_vocabulary if is_item else self._base.query_vocabulary
        if vocabulary is None:
            return Side(name, self._schema, source, self._types)
        forgotten = self._forgotten.slice(0, 0) if is_item else self._forgotten
        known = Known(vocabulary=vocabulary, is_listed=self._is_listed[name], forgotten=forgotten)
        return Side(name, self._schema, source, self._types, known)

    def _groups_of(self, sources: Sources) -> list[Group]:
        given = self._base.split is not None and self._schema.interactions.split is None
        source = self._rereadable(sources.interactions, "interactions")
        return [Group(source=source, tally=Tally("interactions"), part=0 if given else None)]

    # ------------------------------------------------------------ what is learnt

    def _new_fit(self) -> EncodersFit:
        return EncodersFit(self._schema, self._base.encoders, read_waiting(self._base.path / WAITING))

    def _close_sides(self, n_kept: int, last_us: int | None) -> None:
        self._query.close_events()
        self._item.close_events(self._idle_items(last_us))

    def _idle_items(self, last_us: int | None) -> NDArray[np.int64]:
        """Rows of the items that go."""
        seen_us, vocabulary = self._base.item_seen_us, self._base.item_vocabulary
        if self._evict_idle_days is None or seen_us is None:
            return np.zeros(0, np.int64)
        newest_us = max(int(seen_us.max()), last_us or 0)
        idle = (seen_us < newest_us - self._evict_idle_days * US_PER_DAY) & ~vocabulary.free
        active = vocabulary.own_rows(self._item.active())
        idle[active[active >= 0]] = False
        return np.flatnonzero(idle)

    def _vocabulary_of(self, side: Side) -> Vocabulary | None:
        return self._base.item_vocabulary if side is self._item else self._base.query_vocabulary

    def _gone_values(self) -> Gone:
        """Ids leave the vocabularies of all features that read them, unless the other side has the id there too."""
        gone: dict[str, pa.LargeStringArray] = {}
        for side, other in ((self._query, self._item), (self._item, self._query)):
            old = self._vocabulary_of(side)
            if old is None or not len(side.gone):
                continue
            left = old.ids().take(pa.array(side.gone))
            for table in self._tables_of(side):
                values = left
                if other.vocabulary is not None and table in self._tables_of(other):
                    values = left.filter(pa.array(other.vocabulary.own_rows(left) < 0))
                gone[table] = pa.concat_arrays([gone.get(table, left.slice(0, 0)), values])
        return gone

    def _tables_of(self, side: Side) -> set[str]:
        """Tables of the features whose values are a side's ids, wherever they stand."""
        return {
            table
            for at, name, feature in self._schema.features()
            if isinstance(feature, (Id, Categorical)) and feature.column in (side.id_column, side.key)
            if (table := table_of(at, name, feature)) is not None
        }

    def _trained(self, side: Side) -> NDArray[np.bool_] | None:
        trained, old, split = super()._trained(side), self._vocabulary_of(side), self._base.split
        if trained is None or old is None or split is None or side is self._item:
            return trained
        before = np.zeros(old.size, bool)
        for block in _blocks(self._base.n_events):
            before[self._base.query_row[block][split[block] == 0]] = True
        row = old.own_rows(side.named.ids())
        return trained | (row >= 0) & before[row]

    def _again(self, side: Side) -> NDArray[np.bool_] | None:
        old = self._vocabulary_of(side)
        return None if old is None else old.own_rows(side.named.ids()) >= 0

    # ------------------------------------------------------------ features of queries and items

    def _encode_sides(self, encoders: Encoders) -> None:
        (self._folder / RAW).mkdir()
        moved = _moved(self._base.encoders, encoders, self._gone_values())
        self._moved = {
            f"{side}.{name}": moved[table]
            for side, name, feature in self._schema.features()
            if (table := table_of(side, name, feature)) in moved
        }
        for side in (self._query, self._item):
            if side.vocabulary is not None:
                named = ColumnsWriter(self._folder / RAW, side.name)
                for table, start, where in side.tables():
                    with naming(where):
                        named.append(self._encoded(encoders, side.name, table))
                        if side is self._item:
                            self._given.append(table)
                    self._say(f"encoding {side.tally.name}", start + len(table))
                self._arrays[side.name] = self._spliced(side, named.close_and_open(), encoders)
            else:
                self._arrays[side.name] = {}

    def _spliced(self, side: Side, named: dict[str, Column], encoders: Encoders) -> Tree:
        """A side's columns: rows that stay, rows that were read now, and free rows, which have no value."""
        old = self._base.item if side is self._item else self._base.query
        assert side.vocabulary is not None
        nothing = encoders.transform(side.name, _row_without_values(encoders, side.name))
        source = np.full(side.n, old.n + side.named.size, np.int64)
        source[: old.n] = np.arange(old.n)
        source[np.flatnonzero(side.vocabulary.free)] = old.n + side.named.size
        source[side.rows_of_named()] = old.n + np.arange(side.named.size)
        new = {name: put_together(named[name], empty) if named else empty for name, empty in nothing.items()}
        promoted = self._promoted(side, encoders)
        writer = ColumnsWriter(self._folder, side.name)
        for block in _blocks(side.n):
            columns = {name: self._merged(side.name, name, old, new[name], source[block]) for name in new}
            for name, (row, value) in promoted.items():
                inside = (row >= block.start) & (row < block.stop)
                column = np.array(columns[name])
                column[row[inside] - block.start] = value[inside]
                columns[name] = column
            writer.append(columns)
        return writer.close()

    def _promoted(self, side: Side, encoders: Encoders) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """By feature that is the id itself: rows whose id got a row of the table now, and that row."""
        promoted: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        for name, feature in id_features(self._schema, side.name):
            table = table_of(side.name, name, feature) or ""
            old, new = self._base.encoders.vocabularies[table], encoders.vocabularies[table]
            if isinstance(old, Vocabulary) and isinstance(new, Vocabulary) and side.vocabulary is not None:
                value_row = new.gained(old)
                row = side.vocabulary.own_rows(new.ids().take(pa.array(value_row)))
                promoted[name] = row[row >= 0], value_row[row >= 0]
        return promoted

    def _merged(
        self, side: str, name: str, old: Mapping[str, Column], new: Column, source: NDArray[np.int64]
    ) -> Column:
        """The rows ``source`` of an old column with a new one behind it. Values that left are in their buckets."""
        n_old = len(old[name])
        is_old = source < n_old
        stays = self._without_gone(side, name, _gathered(old[name], source[is_old]))
        if is_old.all():
            return stays
        place = np.where(is_old, np.cumsum(is_old) - 1, int(is_old.sum()) + np.cumsum(~is_old) - 1)
        return taken(put_together(stays, taken(new, source[~is_old] - n_old)), place)

    def _without_gone(self, side: str, name: str, column: Column) -> Column:
        row_of = self._moved.get(f"{side}.{name}")
        if row_of is None:
            return column
        if isinstance(column, RaggedArray):
            return RaggedArray(offset=column.offset, value=row_of[column.value], weight=column.weight)
        return row_of[column]

    # ------------------------------------------------------------ events

    def _write_events(self, event: dict[str, Column], context: dict[str, Column]) -> None:
        old = self._old_events()
        stays = self._stays()
        new = event or {name: cut(column, 0, 0) for name, column in old.items()}
        start = self._first_touched(new)
        tail = start + np.flatnonzero(stays[start:]) if stays is not None else np.arange(start, self._base.n_events)
        keys = {"query_row", "item_row", "time_us", "taken", "split"} & set(old)
        together: dict[str, Any] = {name: put_together(taken(old[name], tail), new[name]) for name in keys}
        order = in_order(together, self._item.n, self._schema.interactions.query is not None)
        self._count_repeats(new, order.repeated - len(tail))
        source = np.append(tail, self._base.n_events + np.arange(len(new["item_row"])))[order.order]
        self._n_arrived = int((source >= self._base.n_events).sum())
        n_before = start if stays is None else int(stays[:start].sum())
        if not n_before + len(source):
            raise DataError(f"{self._base.path}: no event stays, so there is nothing left to extend")
        new_context = context or {name: cut(column, 0, 0) for name, column in self._base.context.items()}
        for prefix, before, arrived in (("event", old, new), ("context", self._base.context, new_context)):
            writer = ColumnsWriter(self._folder, prefix)
            for block in _blocks(start):
                writer.append(
                    {
                        name: self._without_gone(prefix, name, _kept(column, block, stays))
                        for name, column in before.items()
                    }
                )
                self._say("copying events", block.stop)
            for block in _blocks(len(source)):
                writer.append(
                    {name: self._merged(prefix, name, before, arrived[name], source[block]) for name in before}
                )
                self._say("sorting events", n_before + block.stop)
            self._arrays[prefix] = writer.close()

    def _old_events(self) -> dict[str, Column]:
        base = self._base
        columns = {
            "query_row": base.query_row,
            "item_row": base.item_row,
            "weight": base.weight,
            "time_us": base.time_us,
            "taken": base.taken,
            "split": base.split,
            "arrived": base.arrived,
        }
        return {name: column for name, column in columns.items() if column is not None}

    def _first_touched(self, new: Mapping[str, Any]) -> int:
        """The first old event before which none arrived and none can be repeated."""
        if not len(new["item_row"]):
            return self._base.n_events
        if self._base.time_us is not None:
            return int(np.searchsorted(self._base.time_us, new["time_us"].min()))
        return 0 if self._schema.interactions.query is not None else self._base.n_events

    def _stays(self) -> NDArray[np.bool_] | None:
        """[E] whether an old event stays; None where all do."""
        if not len(self._query.gone) and not len(self._item.gone):
            return None
        stays = np.ones(self._base.n_events, bool)
        no_query, no_item = (np.zeros(side.n + 1, bool) for side in (self._query, self._item))
        no_query[self._query.gone] = True  # its last place is that of events without a query, row -1
        no_item[self._item.gone] = True
        for block in _blocks(self._base.n_events):
            of_query = no_query[self._base.query_row[block]]
            of_item = no_item[self._base.item_row[block]] & ~of_query
            self._n_gone_query += int(of_query.sum())
            self._n_gone_item += int(of_item.sum())
            stays[block] = ~(of_query | of_item)
        return stays

    # ------------------------------------------------------------ the end

    def _items_without_number(self) -> NDArray[np.int64]:
        """Rows of the items that are new, in the order in which they came."""
        row = self._item.rows_of_named()
        return row[self._base.item_vocabulary.own_rows(self._item.named.ids()) < 0]

    def _item_numbers(self) -> NDArray[np.int64]:
        assert self._item.vocabulary is not None
        number = np.full(self._item.n, -1, np.int64)
        number[: self._base.n_items] = self._base.item_number
        number[: len(self._item.vocabulary.free)][self._item.vocabulary.free] = -1
        new = self._items_without_number()
        number[new] = self._n_numbers_before + np.arange(len(new))
        return number

    def _given_lives(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What was given before, but of items that are named now."""
        assert self._item.vocabulary is not None
        row, arrays = self._item.rows_of_named(), read_manifest(self._base.path)["arrays"]
        since, until = (np.full(self._item.n, NO_MOMENT) for _ in GIVEN)
        for moment, name, named in zip((since, until), GIVEN, self._given.moments(len(row)), strict=True):
            moment[: self._base.n_items] = open_array(self._base.path, arrays[name])
            moment[self._item.vocabulary.free] = NO_MOMENT
            moment[row] = named
        return since, until

    @cached_property
    def _n_numbers_before(self) -> int:
        return int(read_manifest(self._base.path)["counts"]["item_numbers"])

    def _n_item_numbers(self) -> int:
        return self._n_numbers_before + len(self._items_without_number())

    def _items_seen_before(self) -> NDArray[np.int64]:
        assert self._item.vocabulary is not None
        assert self._base.item_seen_us is not None
        seen = np.zeros(self._item.n, np.int64)
        seen[: self._base.n_items] = self._base.item_seen_us
        seen[self._item.vocabulary.free] = 0
        seen[self._items_without_number()] = 0
        return seen

    def _growth(self) -> Growth:
        repeats = self._events.groups[0].tally.left_out.get(DUPLICATE, 0)
        return Growth(
            update=self.update,
            n_new=self._n_arrived,
            n_repeats=repeats,
            new_queries=self._n_new(self._query),
            new_items=self._n_new(self._item),
            waiting=sum(map(len, self._waiting.values())),
            evicted_items=len(self._item.gone),
            evicted_events=self._n_gone_item,
            forgotten_queries=len(self._query.gone),
            forgotten_events=self._n_gone_query,
        )

    def _n_new(self, side: Side) -> int:
        old = self._vocabulary_of(side)
        return 0 if old is None else int((old.own_rows(side.named.ids()) < 0).sum())


def _blocks(n: int) -> Iterator[slice]:
    for start in range(0, n, BLOCK_EVENTS):
        yield slice(start, min(start + BLOCK_EVENTS, n))


def _kept(column: Column, block: slice, stays: NDArray[np.bool_] | None) -> Column:
    """The rows of a block that stay."""
    if stays is None or stays[block].all():
        return cut(column, block.start, block.stop)
    return taken(column, block.start + np.flatnonzero(stays[block]))


def _gathered(column: Column, row: NDArray[np.int64]) -> Column:
    """The rows of a column, rising; those that lie one after the other are not copied."""
    if len(row) and int(row[-1]) - int(row[0]) == len(row) - 1:
        return cut(column, int(row[0]), int(row[-1]) + 1)
    return taken(column, row)


def _moved(old: Encoders, new: Encoders, gone: Gone) -> dict[str, NDArray[np.int32]]:
    """By table where old rows go whose value left: into its bucket. The last place is that of a missing value, -1."""
    moved: dict[str, NDArray[np.int32]] = {}
    for table, values in gone.items():
        vocabulary = old.vocabularies[table]
        if isinstance(vocabulary, Vocabulary):
            row = vocabulary.own_rows(values)
            moved[table] = np.append(np.arange(vocabulary.size, dtype=np.int32), np.int32(-1))
            moved[table][row[row >= 0]] = vocabulary.bucket_of(values)[row >= 0]
    return moved


def _row_without_values(encoders: Encoders, side: str) -> pa.Table:
    return pa.table({column: pa.nulls(1) for column in encoders.columns(side)})
