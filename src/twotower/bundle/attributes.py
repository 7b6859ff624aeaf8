"""Raw columns of items, for titles and filters: read from item files, kept row by row of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..data.arrow import did_you_mean, is_list, mask_of
from ..data.catalogue import ids_of
from ..data.files import listed
from ..data.raw_columns import column_types
from ..data.readers import chunks, column_names
from ..data.vocabulary import Vocabulary, one_array
from ..errors import DataError
from ..schema import Schema

Where = Mapping[str, object]
"""What items must be, by attribute: a value, a list of values, or ``{"from": value, "to": value}`` with either end,
both of them included. An item without a value is none of it."""


def read_attributes(
    files: Sequence[str], schema: Schema, items: Vocabulary, show: Sequence[str] | None = None
) -> pa.Table:
    """[M] rows of the item files' columns ``show`` (all that hold one value a row, without it), null where the files
    have no row for an item; of several rows the first.

    Raises DataError where a file can't be read or has no such column.
    """
    key = schema.item_key or schema.interactions.item
    there = column_names(list(files), where="items")
    for column in show or ():
        if column not in there:
            raise DataError(
                f"items: there is no column {column!r} to show, but {listed(there)}{did_you_mean(column, there)}"
            )
    wanted = [column for column in (there if show is None else show) if column != key]
    rows: list[NDArray[np.int64]] = []
    tables: list[pa.Table] = []
    read = {"where": "items", "columns": list(dict.fromkeys([key, *wanted])), "column_types": column_types(schema)}
    for chunk in chunks(list(files), **read):  # type: ignore[arg-type]
        row = items.own_rows(ids_of(chunk, key))
        known = row >= 0
        rows.append(row[known])
        tables.append(chunk.table.select(wanted).filter(pa.array(known)))
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"items: a column has another type in one file than in another: {error}") from error
    if show is None:
        table = table.select([field.name for field in table.schema if _is_plain(field.type)])
    row, place = np.concatenate(rows), np.full(len(items.ids()), -1, np.int64)
    place[row[::-1]] = np.arange(len(row))[::-1]  # of several the first stays
    taken = table.take(pa.array(place, mask=place < 0))
    return pa.table({name: one_array(taken[name]) for name in taken.column_names})


def _is_plain(kind: pa.DataType) -> bool:
    return not (is_list(kind) or pa.types.is_nested(kind) or pa.types.is_binary(kind))


def save_attributes(table: pa.Table, path: Path) -> None:
    """Write one Arrow IPC file, in one piece."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def open_attributes(path: Path) -> pa.Table:
    """What was saved, as a memory map."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def rows_where(attributes: pa.Table, where: Where) -> NDArray[np.bool_]:
    """[M] whether an item is all that it must be.

    Raises DataError for an attribute that is not there, or a value of another type.
    """
    allowed = np.ones(len(attributes), bool)
    for column, wanted in where.items():
        if column not in attributes.column_names:
            names = attributes.column_names
            raise DataError(
                f"where: there is no attribute {column!r}, but {listed(names)}{did_you_mean(column, names)}; which "
                "there are is chosen at the export (--show)"
            )
        values = attributes[column]
        if isinstance(wanted, Mapping):
            allowed &= _within(values, column, wanted)
        else:
            each = wanted if isinstance(wanted, list | tuple) else [wanted]
            options = pa.array([_of_type(one, values.type, column).as_py() for one in each], values.type)
            allowed &= mask_of(one_array(pc.is_in(values, value_set=options)))
    return allowed


def _within(values: pa.ChunkedArray, column: str, ends: Mapping[object, object]) -> NDArray[np.bool_]:
    unknown = sorted(str(name) for name in set(ends) - {"from", "to"})
    if unknown or not ends:
        raise DataError(f"where: {column!r} has {listed(unknown)}, expected 'from', 'to' or both")
    inside = mask_of(one_array(values.is_valid()))
    for name, compare in (("from", pc.greater_equal), ("to", pc.less_equal)):
        if name in ends:
            inside &= mask_of(one_array(compare(values, _of_type(ends[name], values.type, column))))
    return inside


def _of_type(value: object, kind: pa.DataType, column: str) -> pa.Scalar:
    """A value as the attribute holds its own; numbers need not be of the same kind, and nothing becomes text."""
    try:
        scalar = pa.scalar(value)
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if scalar.is_valid and (pa.types.is_temporal(kind) or is_text == pa.types.is_string(scalar.type)):
            return scalar.cast(kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass
    raise DataError(f"where: {column!r} is {value!r}, expected {kind}")
