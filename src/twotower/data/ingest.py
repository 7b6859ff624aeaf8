"""From raw files to a store, in two streaming passes: fit, then encode and append; then events are sorted by time.

Memory is that of the distinct values of the features and ids, and 16 bytes an event for the sort (the moments in order
and the order itself): everything else passes through in chunks. On disk the events lie twice for a while.

Nothing is left out in silence. An event is left out, and counted under the first of these that is true of it, where

    its item id or its query id is missing or empty;
    its time is missing, can't be read, or is not between 1970 and 2200 (what a wrong ``time_unit`` looks like);
    whether it was taken (``taken``) is missing, or neither yes nor no;
    what its weight is a share of (``weight.per``) is missing or not positive, and it was taken;
    its weight is missing, negative or not finite, and it was taken;
    there is an item file (query file) and its item (query) is not in it;
    it repeats an earlier event: same query, item, moment, answer (``taken``) and part of a given split, whatever its
    context.

Events without a query id are searches: two alike are two. Of rows of one id in an item or query file the first is kept.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import DataError, SchemaError
from ..schema import Feature, History, Number, Schema, Time, Vector, table_of
from .catalogue import Side
from .column_files import ArrayFile, ColumnsWriter, Tree, open_array
from .columns import Column, RaggedArray, taken
from .encoders import Encoders, EncodersFit, Gone, Waiting
from .events import Events, Group, Kept
from .life import GIVEN, GivenLives, event_span, lives, n_outside
from .order import BLOCK_EVENTS, days_of, in_order
from .raw_columns import column_types
from .readers import Source, chunks, naming, reads_once
from .report import DUPLICATE, EXAMPLES, GroupReport, Growth, IngestReport, Tally, why_left_out
from .staging import Staging
from .store import WAITING, encode_schema, write_manifest
from .vocabulary import Vocabulary

__all__ = ["IngestReport", "Progress", "ingest"]

RAW = "raw"
"""Folder of what is encoded and not yet in its place."""

Progress = Callable[[str, int], None]
"""Called now and then with what is being done and the rows that are done."""


def ingest(
    schema: Schema,
    *,
    interactions: Source,
    queries: Source | None = None,
    items: Source | None = None,
    valid: Source | None = None,
    test: Source | None = None,
    out: str | os.PathLike[str],
    overwrite: bool = False,
    progress: Progress | None = None,
) -> IngestReport:
    """Read files or frames into a new store at ``out``.

    The catalogue is the item file's, in its order; without one it is all items of the events that stay, those with many
    events first. The same of queries. A feature's column that is not in the query or item file is taken from the
    interactions: the first value of each id that is not missing; events with another value are counted.

    Where a split is given (``schema.interactions.split``, or files of ``valid`` or ``test`` events), what encoders
    learn (vocabularies, mean and deviation, quantiles) is learnt from training events, and from the queries and items
    that have some; else from all. Vocabularies of items are of the whole catalogue always.

    Args:
        schema: what the columns mean.
        interactions: the events; with ``valid`` or ``test`` the training events.
        queries: attributes of queries, keyed by ``schema.query_key``.
        items: attributes of items, keyed by ``schema.item_key``.
        valid: events given for validation.
        test: events given for the test.
        out: folder of the store; made by a rename once all is written, so what interrupts an ingest leaves no store.
        overwrite: replace a store that is there. A folder that holds anything else is never touched.
        progress: called with what is being done and the rows that are done.

    Raises:
        SchemaError: the sources don't fit the schema.
        DataError: a file, row or value can't be used, or no event stays.
        ArtifactError: ``out`` is taken or can't be written.
    """
    _check_sources(schema, queries, valid, test)
    with Staging(Path(out), overwrite) as staging:
        sources = Sources(interactions=interactions, queries=queries, items=items, valid=valid, test=test)
        return Ingest(schema, sources, staging, progress).run()


def _check_sources(schema: Schema, queries: Source | None, valid: Source | None, test: Source | None) -> None:
    if queries is not None and schema.interactions.query is None:
        raise SchemaError("schema: there is a file of queries, but interactions.query names no column to join it by")
    if schema.interactions.split is not None and (valid is not None or test is not None):
        raise SchemaError(
            f"schema: the split is given twice, by the column {schema.interactions.split!r} and by files of valid or "
            "test events: leave one out"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where an ingest reads."""

    interactions: Source | None
    queries: Source | None
    items: Source | None
    valid: Source | None
    test: Source | None


class Ingest:
    """One ingest: its sources, what it learns of them, where it writes. ``data.extend`` goes on from a store."""

    update = 0
    """Number of the update: a first ingest is none."""

    def __init__(self, schema: Schema, sources: Sources, staging: Staging, progress: Progress | None) -> None:
        self._started = time.monotonic()
        self._schema, self._staging, self._folder, self._progress = schema, staging, staging.folder, progress
        self._types = column_types(schema)
        self._spooled: list[Path] = []
        self._query = self._side("query", self._rereadable(sources.queries, "queries"))
        self._item = self._side("item", self._rereadable(sources.items, "items"))
        self._events = Events(schema, self._groups_of(sources), (self._query, self._item), self._types)
        self._missing: dict[str, list[int]] = {}
        self._in_buckets: dict[str, list[int]] = {}
        self._waiting: Waiting = {}
        self._arrays: dict[str, Any] = {"query_item_row": None}
        self._given = GivenLives(schema.life)

    def _side(self, name: str, source: Source | None) -> Side:
        return Side(name, self._schema, source, self._types)

    def _groups_of(self, sources: Sources) -> list[Group]:
        given = sources.valid is not None or sources.test is not None
        named = (("interactions", sources.interactions), ("valid", sources.valid), ("test", sources.test))
        found = [(part, name, self._rereadable(source, name)) for part, (name, source) in enumerate(named)]
        return [
            Group(source=source, tally=Tally(name), part=part if given else None)
            for part, name, source in found
            if source is not None
        ]

    def _rereadable(self, source: Source | None, where: str) -> Source | None:
        """A source that can be read only once is put on disk first."""
        if source is None or not reads_once(source):
            return source
        interactions = self._schema.interactions
        lists = None if interactions.query is None else (interactions.query, interactions.item)
        files: list[Path] = []
        for chunk in chunks(source, where=where, column_types=self._types, list_columns=lists):
            files.append(self._folder / f"{where}-{len(files)}.arrow")  # a file each: types may differ
            with pa.OSFile(str(files[-1]), "wb") as file, pa.ipc.new_file(file, chunk.table.schema) as writer:
                writer.write_table(chunk.table)
        self._spooled += files
        return files

    def run(self) -> IngestReport:
        """Fit, encode, sort, publish."""
        encoders, n_kept = self._fit()
        self._encode_sides(encoders)
        event, context = self._encode_events(encoders, n_kept)
        self._write_events(event, context)
        self._write_catalogues(encoders, event)
        n_outside_life = self._write_lives()
        del event, context  # their files go now
        report = self._report(encoders, n_outside_life)
        self._publish(report)
        return report

    def _say(self, what: str, rows: int) -> None:
        if self._progress is not None:
            self._progress(what, rows)

    # ------------------------------------------------------------ first pass

    def _fit(self) -> tuple[Encoders, int]:
        """What stays, the catalogues, and what the encoders learn; how many events stay."""
        fit = self._new_fit()
        last_us: int | None = None
        n_kept = 0
        for kept in self._events.kept(count=True):
            trained = None if kept.part is None else kept.part == 0
            self._query.see_events(kept.table, trained)
            self._item.see_events(kept.table, trained)
            with naming(kept.where):
                fit.update("context", kept.table, trained)
            if kept.time_us is not None and len(kept.time_us):
                last_us = max(last_us or 0, int(kept.time_us.max()))
            n_kept += len(kept.table)
            self._say("reading events", n_kept)
        self._close_sides(n_kept, last_us)
        for side in (self._query, self._item):
            self._fit_side(fit, side)
        gone = self._gone_values()
        self._waiting = fit.waiting(gone)
        return fit.finish(last_us, gone), n_kept

    def _new_fit(self) -> EncodersFit:
        return EncodersFit(self._schema)

    def _close_sides(self, n_kept: int, last_us: int | None) -> None:
        """The catalogues, once all events were seen."""
        if not n_kept:
            raise DataError(f"no event can be used: {'; '.join(why_left_out(self._groups()))}")
        for side in (self._query, self._item):
            side.close_events()

    def _gone_values(self) -> Gone:
        """What leaves the vocabularies."""
        return {}

    def _fit_side(self, fit: EncodersFit, side: Side) -> None:
        trained, again = self._trained(side), self._again(side)
        for table, start, where in side.tables():
            rows = slice(start, start + len(table))
            with naming(where):
                fit.update(
                    side.name,
                    table,
                    None if trained is None else trained[rows],
                    None if again is None else again[rows],
                )

    def _trained(self, side: Side) -> NDArray[np.bool_] | None:
        """[n named] whether an id has training events; None where all are training data."""
        has_split = self._schema.interactions.split is not None or self._events.groups[0].part is not None
        return side.trained() if has_split and side.vocabulary is not None else None

    def _again(self, side: Side) -> NDArray[np.bool_] | None:
        """[n named] whether an id was there before; None where none was."""
        return None

    # ------------------------------------------------------------ second pass

    def _encode_sides(self, encoders: Encoders) -> None:
        for side in (self._query, self._item):
            writer = ColumnsWriter(self._folder, side.name)
            for table, start, where in side.tables():
                with naming(where):
                    writer.append(self._encoded(encoders, side.name, table))
                    if side is self._item:
                        self._given.append(table)
                self._say(f"encoding {side.tally.name}", start + len(table))
            self._arrays[side.name] = writer.close()

    def _encode_events(self, encoders: Encoders, n_kept: int) -> tuple[dict[str, Column], dict[str, Column]]:
        """Events and their contexts, as they come, on disk."""
        (self._folder / RAW).mkdir(exist_ok=True)
        event, context = (ColumnsWriter(self._folder / RAW, name) for name in ("event", "context"))
        n = 0
        for kept in self._events.kept(count=False):
            self._check_known(kept)
            event.append(self._event_columns(kept))
            with naming(kept.where):
                context.append(self._encoded(encoders, "context", kept.table))
            self._query.count_conflicts(kept.table, kept.query_row)
            self._item.count_conflicts(kept.table, kept.item_row)
            n += len(kept.table)
            self._say("encoding events", n)
        if n != n_kept:
            raise DataError(f"interactions: the files changed while they were read ({n_kept:,} events, then {n:,})")
        return event.close_and_open(), context.close_and_open()

    def _check_known(self, kept: Kept) -> None:
        """The first pass saw every id that stays."""
        for side, row in ((self._item, kept.item_row), (self._query, kept.query_row)):
            if side.id_column is not None and (row < 0).any():
                raise DataError(f"{kept.where}: the files changed while they were read (a new {side.name} id)")

    def _encoded(self, encoders: Encoders, side: str, table: pa.Table) -> dict[str, Column]:
        encoded = encoders.transform(side, table)
        for of_side, name, feature in self._schema.features():
            if of_side == side and not isinstance(feature, History):
                count = self._missing.setdefault(f"{side}.{name}", [0, 0])
                count[0] += _n_missing(name, feature, encoded, table)
                count[1] += len(table)
                self._count_in_buckets(encoders, side, name, feature, encoded)
        return encoded

    def _count_in_buckets(
        self, encoders: Encoders, side: str, name: str, feature: Feature, encoded: dict[str, Column]
    ) -> None:
        vocabulary = encoders.vocabularies.get(table_of(side, name, feature) or "")
        if isinstance(vocabulary, Vocabulary):
            column = encoded[name]
            row = column.value if isinstance(column, RaggedArray) else column
            count = self._in_buckets.setdefault(f"{side}.{name}", [0, 0])
            count[0] += int(vocabulary.in_buckets(row).sum())
            count[1] += int((row >= 0).sum())

    def _event_columns(self, kept: Kept) -> dict[str, Column]:
        columns: dict[str, Column] = {
            "query_row": kept.query_row.astype(np.int32),
            "item_row": kept.item_row.astype(np.int32),
            "weight": kept.weight,
        }
        if kept.time_us is not None:
            columns["time_us"] = kept.time_us
        if kept.taken is not None:
            columns["taken"] = kept.taken.astype(np.uint8)
        if kept.part is not None:
            columns["split"] = kept.part
        return columns | {"arrived": np.full(len(kept.weight), self.update, np.int32)}

    # ------------------------------------------------------------ order

    def _write_events(self, event: dict[str, Column], context: dict[str, Column]) -> None:
        """Events and their contexts in order of time, without repeats."""
        order = in_order(event, self._item.n, self._schema.interactions.query is not None)
        self._count_repeats(event, order.repeated)
        for name, columns in (("event", event), ("context", context)):
            self._arrays[name] = self._write_in_order(name, columns, order.order)

    def _count_repeats(self, event: dict[str, Any], repeated: NDArray[np.int64]) -> None:
        groups = self._events.groups
        group = event["split"][repeated] if groups[0].part is not None else np.zeros(len(repeated), np.int8)
        for found in groups:
            mine = repeated[group == (found.part or 0)]
            found.tally.count(DUPLICATE, len(mine), [self._described(event, int(at)) for at in mine[:EXAMPLES]])

    def _described(self, event: dict[str, Any], at: int) -> str:
        assert self._query.vocabulary is not None  # without queries nothing is a repeat
        assert self._item.vocabulary is not None
        query = self._query.vocabulary.ids()[int(event["query_row"][at])].as_py()
        item = self._item.vocabulary.ids()[int(event["item_row"][at])].as_py()
        when = f", time {np.datetime64(int(event['time_us'][at]), 'us')}" if "time_us" in event else ""
        return f"query {query!r}, item {item!r}{when}"

    def _write_in_order(self, name: str, columns: dict[str, Column], order: NDArray[np.int64]) -> Tree:
        writer = ColumnsWriter(self._folder, name)
        for start in range(0, len(order), BLOCK_EVENTS):
            row = order[start : start + BLOCK_EVENTS]
            writer.append({key: taken(column, row) for key, column in columns.items()})
            self._say("sorting events", start + len(row))
        return writer.close()

    # ------------------------------------------------------------ the end

    def _write_catalogues(self, encoders: Encoders, event: dict[str, Any]) -> None:
        assert self._item.vocabulary is not None  # there are events
        self._item.vocabulary.save(self._folder / "items.arrow")
        encoders.save(self._folder / "encoders")
        write_waiting(self._folder / WAITING, self._waiting)
        self._arrays["catalogue"] = {"item_number": self._written("item_number", self._item_numbers())}
        if self._schema.interactions.time is not None:
            self._arrays["catalogue"]["item_seen_us"] = self._written("item_seen_us", self._items_seen(event))
        if self._query.vocabulary is not None:
            self._query.vocabulary.save(self._folder / "queries.arrow")
        if self._query.vocabulary is not None and self._schema.interactions.query_is_item:
            own = self._item.vocabulary.rows(self._query.vocabulary.ids()).astype(np.int32)
            self._arrays["query_item_row"] = self._written("query_item_row", own)

    def _written(self, name: str, array: NDArray[Any]) -> Tree:
        file = ArrayFile(self._folder / f"{name}.bin")
        file.append(array)
        return file.close()

    def _item_numbers(self) -> NDArray[np.int64]:
        """[M] a number of its own for each item."""
        return np.arange(self._item.n)

    def _items_seen(self, event: dict[str, Any]) -> NDArray[np.int64]:
        """[M] when each item was last seen: its last event among these, or where a file lists it now the newest."""
        seen = self._items_seen_before()
        for start in range(0, len(event.get("item_row", ())), BLOCK_EVENTS):  # a store may grow by no event
            block = slice(start, start + BLOCK_EVENTS)
            np.maximum.at(seen, event["item_row"][block], event["time_us"][block])
        if self._item.source is not None:
            seen[self._item.rows_of_named()] = seen.max()
        return seen

    def _items_seen_before(self) -> NDArray[np.int64]:
        return np.zeros(self._item.n, np.int64)

    def _n_item_numbers(self) -> int:
        """How many numbers items ever had."""
        return self._item.n

    def _written_events(self) -> dict[str, Any]:
        """The columns of the events as they lie in the new store."""
        return {name: open_array(self._folder, leaf) for name, leaf in self._arrays["event"].items()}

    def _write_lives(self) -> int:
        """When each item is live, where the schema says that they come and go; how many events are outside."""
        life, vocabulary = self._schema.life, self._item.vocabulary
        if life is None:
            return 0
        assert vocabulary is not None  # there are events
        event = self._written_events()
        first_us_M, last_us_M = event_span(event["item_row"], event["time_us"], self._item.n)
        given = self._given_lives()
        since_us_M, until_us_M = lives(life, vocabulary.ids(), first_us_M, last_us_M, *given)
        for name, moment_M in zip(("since_us", "until_us", *GIVEN), (since_us_M, until_us_M, *given), strict=True):
            self._arrays[name] = self._written(name, moment_M)
        return n_outside(event["item_row"], event["time_us"], since_us_M, until_us_M)

    def _given_lives(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """[M] what is given of when each item comes and goes."""
        return self._given.moments(self._item.n)

    def _groups(self) -> tuple[GroupReport, ...]:
        tallies = [group.tally for group in self._events.groups]
        tallies += [side.tally for side in (self._query, self._item) if side.source is not None]
        return tuple(tally.report() for tally in tallies)

    def _report(self, encoders: Encoders, n_outside_life: int) -> IngestReport:
        event = self._written_events()
        n_events = len(event["item_row"])
        n_shown = n_events - int(np.sum(event["taken"])) if "taken" in event else 0
        return IngestReport(
            store=str(self._staging.out),
            groups=self._groups(),
            n_events=n_events,
            n_shown=n_shown,
            n_queries=self._query.n_ids,
            n_items=self._item.n_ids,
            queries_with_events=_n_distinct(event["query_row"], self._query.n),
            items_with_events=_n_distinct(event["item_row"], self._item.n),
            missing=self._missing,
            in_buckets=self._in_buckets,
            collisions=encoders.collisions(),
            conflicts={**self._query.conflicts, **self._item.conflicts},
            growth=self._growth(),
            n_outside_life=n_outside_life,
            seconds=time.monotonic() - self._started,
        )

    def _growth(self) -> Growth | None:
        """What an update brought."""
        return None

    def _publish(self, report: IngestReport) -> None:
        """Leave only the store's files, write the manifest last, and take the place."""
        shutil.rmtree(self._folder / RAW)
        for file in self._spooled:
            file.unlink()
        time_leaf = self._arrays["event"].get("time_us")
        body = {
            "schema": encode_schema(self._schema),
            "counts": {
                "queries": self._query.n,
                "items": self._item.n,
                "events": report.n_events,
                "updates": self.update,
                "item_numbers": self._n_item_numbers(),
            },
            "listed": {side.name: side.is_listed for side in (self._query, self._item)},
            "arrays": self._arrays,
            "days": days_of(None if time_leaf is None else open_array(self._folder, time_leaf)),
            "report": dataclasses.asdict(report),
        }
        write_manifest(self._folder, body)
        self._staging.publish()


_WAITING_SCHEMA = pa.schema(
    {"table": pa.string(), "value": pa.large_string(), "listed": pa.int64(), "counted": pa.int64()}
)


def write_waiting(path: Path, waiting: Waiting) -> None:
    """All tables' waiting values as one Arrow IPC file."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, _WAITING_SCHEMA) as writer:
        for name, values in waiting.items():
            named = values.add_column(0, "table", pa.array([name] * len(values), pa.string()))
            writer.write_table(named.combine_chunks())


def read_waiting(path: Path) -> Waiting:
    """What ``write_waiting`` wrote."""
    with pa.OSFile(str(path), "rb") as file:
        table = pa.ipc.open_file(file).read_all()
    return {
        name: table.filter(pc.equal(table["table"], name)).drop_columns("table")
        for name in pc.unique(table["table"]).to_pylist()
    }


def _n_missing(name: str, feature: Feature, encoded: dict[str, Column], table: pa.Table) -> int:
    """Rows without a value: no row or an empty list; of numbers, which encode as the mean, what the raw column says."""
    if isinstance(feature, (Number, Time, Vector)):
        return int(pc.sum(table[feature.column].is_null(nan_is_null=True)).as_py() or 0)
    column = encoded[name]
    return int((column.lengths() == 0).sum() if isinstance(column, RaggedArray) else (column < 0).sum())


def _n_distinct(row: NDArray[np.int32], n: int) -> int:
    """How many of n rows occur."""
    occurs = np.zeros(n, bool)
    for start in range(0, len(row) if n else 0, BLOCK_EVENTS):
        occurs[row[start : start + BLOCK_EVENTS]] = True
    return int(occurs.sum())
