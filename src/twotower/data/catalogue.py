"""The queries and the items of a store: their ids, and the raw columns of their features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import DataError
from ..schema import Feature, Schema
from .arrow import did_you_mean, is_list, list_lengths, mask_of
from .files import listed
from .raw_columns import column_groups
from .readers import Chunk, Source, chunks, column_names
from .report import FORGOTTEN, NO_KEY, REPEATED_KEY, Tally
from .vocabulary import Vocabulary, VocabularyFit, one_array, text_form

_MERGE_AT = 1 << 20
"""Waiting rows that are merged at once (more when there are more ids)."""
_TABLE_ROWS = 1 << 18
"""Rows of a table of features that comes from no file."""


_NO_IDS = pa.array([], pa.large_string())


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the store that is extended has of a side."""

    vocabulary: Vocabulary
    is_listed: bool
    """Whether a file listed its ids: events of others are left out."""
    forgotten: pa.LargeStringArray = field(default_factory=lambda: _NO_IDS)
    """Ids of which nothing may stay."""


class Side:
    """The query or the item side: its ids, and where its features' columns come from.

    A column is looked for in the side's own file, then it may be the id itself, and at last it is an attribute that the
    interactions repeat in every event: the first value of each id that is not missing.

    Of a store that is extended the rows stay. Then ``named`` are the ids whose features are read now: those of the
    file, or without one those that are new. A first ingest reads them all.
    """

    def __init__(
        self,
        name: str,
        schema: Schema,
        source: Source | None,
        types: dict[str, pa.DataType],
        known: Known | None = None,
    ) -> None:
        self.name, self.source, self._types = name, source, types
        self._known = known or Known(vocabulary=Vocabulary(_NO_IDS), is_listed=source is not None)
        self._extends = known is not None
        self.is_listed = self._known.is_listed
        is_item = name == "item"
        self.id_column = schema.interactions.item if is_item else schema.interactions.query
        self.key = (schema.item_key if is_item else schema.query_key) or self.id_column
        self.features: dict[str, Feature] = dict(schema.item if is_item else schema.query)
        self.tally = Tally("items" if is_item else "queries")
        self.vocabulary: Vocabulary | None = None
        """The catalogue: from the start where a file lists it, else once all events were seen."""
        self.named = Vocabulary(_NO_IDS)
        self.gone = np.zeros(0, np.int64)
        """Rows of the store that is extended whose id leaves."""
        self.conflicts: dict[str, int] = {}
        self._ids = VocabularyFit()
        self._trained_ids = VocabularyFit()
        self._attributes: dict[str, pa.ChunkedArray] = {}
        self.in_file = in_file = [] if source is None else column_names(source, where=self.tally.name)
        """Columns of its file."""
        groups = column_groups(list(self.features.values()))
        if is_item and schema.life is not None:
            groups += [(column,) for column in schema.life.columns if (column,) not in groups]
        self._from_file = [column for group in groups for column in group if column in in_file]
        ids = {self.id_column, self.key}
        self._from_id = [c for group in groups for c in group if c not in in_file and c in ids]
        elsewhere = [group for group in groups if not any(c in in_file or c in ids for c in group)]
        self._first = {group: _FirstRows() for group in elsewhere if source is not None or not self.is_listed}
        if source is None and self.is_listed:
            self._grow()
        if source is not None:
            if not self.is_listed:
                raise DataError(
                    f"{self.tally.name}: there is a file, but the ids of the store came from its events: leave it out, "
                    f"or run the ingest again with all interactions and a file of all {self.tally.name}"
                )
            if self.key not in in_file:
                raise DataError(
                    f"{self.tally.name}: there is no column {self.key!r} for the ids of the interactions to point to; "
                    f"the columns are {listed(in_file)}{did_you_mean(str(self.key), in_file)}; name the one of the ids "
                    f"as schema.{name}_key"
                )
            self._read_keys()

    @property
    def n(self) -> int:
        """Rows: queries, or items."""
        return 0 if self.vocabulary is None else self.vocabulary.size

    @property
    def n_ids(self) -> int:
        """Ids: rows that are not free."""
        return 0 if self.vocabulary is None else self.vocabulary.n_values

    @property
    def columns_from_events(self) -> list[str]:
        """Columns that the interactions must have for this side's features."""
        return [column for group in self._first for column in group]

    def _chunks(self, columns: list[str]) -> Iterator[Chunk]:
        assert self.source is not None
        return chunks(self.source, where=self.tally.name, columns=columns, column_types=self._types)

    def _read_keys(self) -> None:
        """The catalogue of a side with a file: its keys in the order of the file."""
        first = _FirstRows()
        n_forgotten = 0
        for chunk in self._chunks([str(self.key)]):
            id_ = ids_of(chunk, str(self.key))
            forgotten = self.is_forgotten(id_)
            n_forgotten += int(forgotten.sum())
            self.tally.read += len(id_)
            self.tally.leave_out(NO_KEY, mask_of(id_.is_null()), chunk)
            first.update(pa.table({"id": id_.filter(pa.array(~forgotten)).drop_null()}))
        self.tally.count(FORGOTTEN, n_forgotten, [])
        found = first.finish()
        if (found is None or not len(found)) and not self._extends:
            raise DataError(f"{self.tally.name}: no row has an id in the column {self.key!r}")
        self.named = Vocabulary(_NO_IDS if found is None else found["id"])
        self._grow()
        if self.tally.read > self.named.n_values:
            for chunk, _, repeated, _ in self._first_rows([str(self.key)]):
                self.tally.leave_out(REPEATED_KEY, repeated, chunk)

    @property
    def forgets(self) -> bool:
        """Whether there are ids of which nothing may stay."""
        return len(self._known.forgotten) > 0

    def is_forgotten(self, id_: pa.LargeStringArray) -> NDArray[np.bool_]:
        """Whether an id is one of those of which nothing may stay."""
        return mask_of(pc.is_in(id_, value_set=self._known.forgotten))

    def _grow(self, gone: NDArray[np.int64] | None = None) -> None:
        """The catalogue: what is known, with the new ids among the named and without those that are gone."""
        base = self._known.vocabulary
        forgotten = base.own_rows(self._known.forgotten)
        self.gone = forgotten if gone is None else np.union1d(forgotten, gone)
        ids = self.named.ids()
        self.vocabulary = base.grown(ids.filter(pa.array(base.own_rows(ids) < 0)), self.gone)

    def _first_rows(self, columns: list[str]) -> Iterator[tuple[Chunk, NDArray[np.int64], NDArray[np.bool_], int]]:
        """The file again: a chunk, its rows that are an id's first, a mask of those that are not, and the number of the
        first of them among the named (which are in the order of the file)."""
        next_row = 0
        for chunk in self._chunks(columns):
            row = self.named.rows(ids_of(chunk, str(self.key)))
            distinct, first = np.unique(row, return_index=True)
            new = np.sort(first[distinct >= next_row])
            repeated = row >= 0
            repeated[new] = False
            yield chunk, new, repeated, next_row
            next_row += len(new)
        if next_row != self.named.n_values:
            raise DataError(f"{self.tally.name}: the files changed while they were read")

    def see_events(self, table: pa.Table, trained: NDArray[np.bool_] | None) -> None:
        """First pass: the ids, and attributes, of a chunk of events."""
        if self.id_column is None:
            return
        id_ = text_form(table[self.id_column], self.id_column)
        if not self.is_listed or self._extends:
            self._ids.update(id_)
        if trained is not None:
            self._trained_ids.update(id_.filter(pa.array(trained)))
        for group, first in self._first.items():
            rows = pa.table({"id": id_, **{column: table[column] for column in group}})
            first.update(rows.filter(_any_present(rows, group)))

    def close_events(self, gone: NDArray[np.int64] | None = None) -> None:
        """The catalogue and the attributes, once all events were seen; the rows ``gone`` are freed."""
        if self.id_column is None:
            return
        if not self.is_listed:
            seen = self._ids.finish().ids()
            self.named = Vocabulary(seen.filter(pa.array(self._known.vocabulary.own_rows(seen) < 0)))
        self._grow(gone)
        n = self.named.size
        for first in self._first.values():
            found = first.finish()
            if found is not None:
                place = _places(self.named.rows(found["id"]), n)
                for column in found.column_names[1:]:
                    self._attributes[column] = found[column].take(pa.array(place, mask=place < 0))
        for column in self.columns_from_events:
            self._attributes.setdefault(column, pa.chunked_array([pa.nulls(n)]))

    def active(self) -> pa.LargeStringArray:
        """The ids that the file names or that have events now, once all events were seen; of a store that is
        extended."""
        return pa.concat_arrays([self.named.ids(), self._ids.finish().ids()])

    def rows_of_named(self) -> NDArray[np.int64]:
        """[n named] their rows in the catalogue."""
        assert self.vocabulary is not None
        return self.vocabulary.rows(self.named.ids()) if self._extends else np.arange(self.n)

    def trained(self) -> NDArray[np.bool_]:
        """[n named] whether an id has training events."""
        trained = np.zeros(self.named.size, bool)
        row = self.named.rows(self._trained_ids.finish().ids())
        trained[row[row >= 0]] = True
        return trained

    def rows(self, table: pa.Table) -> NDArray[np.int64]:
        """Row of each event's id, -1 where it is not in the catalogue."""
        if self.vocabulary is None or self.id_column is None:
            return np.full(len(table), -1, np.int64)
        return self.vocabulary.rows(table[self.id_column], self.id_column)

    def tables(self) -> Iterator[tuple[pa.Table, int, str]]:
        """The raw columns of all features of the named: a table, the number of its first row, where it was read."""
        if not self.named.size:
            return
        if self._from_file:
            for chunk, new, _, start in self._first_rows(list(dict.fromkeys([str(self.key), *self._from_file]))):
                yield self._with_others(chunk.table.take(pa.array(new)), start), start, chunk.span()
            return
        for start in range(0, self.named.size, _TABLE_ROWS):
            ids = pa.table({"id": self.named.ids().slice(start, _TABLE_ROWS)})
            yield self._with_others(ids, start), start, "interactions"

    def _with_others(self, table: pa.Table, start: int) -> pa.Table:
        """The rows with the columns that are no part of the file."""
        n = len(table)
        for column in self._from_id:
            table = table.append_column(column, self.named.ids().slice(start, n))
        for column, values in self._attributes.items():
            table = table.append_column(column, values.slice(start, n).combine_chunks())
        return table

    def count_conflicts(self, table: pa.Table, row: NDArray[np.int64]) -> None:
        """Second pass: events whose attribute is another one than the one that is kept now."""
        if not self._attributes:
            return
        if self._extends:
            row = _places(self.rows_of_named(), self.n)[row]
            table, row = table.filter(pa.array(row >= 0)), row[row >= 0]
        for column, values in self._attributes.items():
            differs = _differs(one_array(values.take(pa.array(row))), one_array(table[column]))
            name = f"{self.name}.{column}"
            self.conflicts[name] = self.conflicts.get(name, 0) + int(differs.sum())


def _any_present(rows: pa.Table, columns: Sequence[str]) -> pa.Array:
    present = np.zeros(len(rows), bool)
    for column in columns:
        values = rows[column]
        present |= ~mask_of(one_array(values).is_null(nan_is_null=True))
    return pa.array(present)


def _places(row: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """[n] where each row stands in ``row`` (there -1 is none), -1 where it does not."""
    place = np.full(n, -1, np.int64)
    place[row[row >= 0]] = np.flatnonzero(row >= 0)
    return place


def _differs(kept: pa.Array, found: pa.Array) -> NDArray[np.bool_]:
    """[n] whether a value that is not missing is another one than the kept one."""
    if is_list(kept.type) and is_list(found.type):
        return _lists_differ(kept, found)
    if pa.types.is_null(kept.type) or pa.types.is_null(found.type):
        return np.zeros(len(kept), bool)
    unequal = pc.not_equal(kept, found.cast(kept.type, safe=False))
    return mask_of(pc.and_not(unequal, found.is_null(nan_is_null=True)))


def _lists_differ(kept: pa.Array, found: pa.Array) -> NDArray[np.bool_]:
    """The same of lists, which Arrow does not compare: by their lengths, then value by value."""
    length = list_lengths(found)
    differs = np.asarray(mask_of(found.is_valid()) & (list_lengths(kept) != length), bool)
    same_length = list_lengths(kept) == length
    ours, theirs = (pc.list_flatten(lists.filter(pa.array(same_length))) for lists in (kept, found))
    owner = np.repeat(np.flatnonzero(same_length), length[same_length])
    differs[owner[_differs(ours, theirs)]] = True
    return differs


def ids_of(chunk: Chunk, column: str) -> pa.Array:
    """Ids as text; an empty one is missing."""
    try:
        text = text_form(chunk.table[column], column)
    except DataError as error:
        raise DataError(f"{chunk.file}: {error}") from error
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text)


# ---------------------------------------------------------------- first values in a stream


class _FirstRows:
    """Of the rows of a stream the first one of each id; memory is that of the distinct ids."""

    def __init__(self) -> None:
        self._merged: pa.Table | None = None
        self._waiting: list[pa.Table] = []
        self._n_waiting = 0

    def update(self, table: pa.Table) -> None:
        """See rows; ``id`` is the name of the id column, a text without gaps."""
        self._waiting.append(_first_of_each(table))
        self._n_waiting += len(self._waiting[-1])
        if self._n_waiting > max(_MERGE_AT, 0 if self._merged is None else len(self._merged)):
            self._merge()

    def _merge(self) -> pa.Table:
        seen = [*([] if self._merged is None else [self._merged]), *self._waiting]
        try:
            together = pa.concat_tables(seen, promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"a column has another type in one file than in another: {error}") from error
        self._merged, self._waiting, self._n_waiting = _first_of_each(together), [], 0
        return self._merged

    def finish(self) -> pa.Table | None:
        """The rows in the order in which their ids first came; None if there was none."""
        return self._merge() if self._waiting else self._merged


def _first_of_each(table: pa.Table) -> pa.Table:
    code = one_array(table["id"]).dictionary_encode()
    number = np.asarray(code.indices.to_numpy(zero_copy_only=False))
    first = np.empty(len(code.dictionary), np.int64)
    first[number[::-1]] = np.arange(len(number))[::-1]  # of equal places the last assignment stays
    return table.take(pa.array(first))
