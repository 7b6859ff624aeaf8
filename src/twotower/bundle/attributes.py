"""Raw columns of items, for titles and filters: read from item files, kept row by row of the catalogue."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..data.arrow import did_you_mean, is_list, mask_of
from ..data.catalogue import ids_of
from ..data.files import listed
from ..data.raw_columns import column_types
from ..data.readers import Source, chunks, column_names
from ..data.vocabulary import Vocabulary, one_array
from ..errors import DataError
from ..schema import Schema

Where = Mapping[str, object]
"""What items must be, by attribute: a value, a list of values, or ``{"from": value, "to": value}`` with either end,
both of them included. An item without a value is none of it."""


_ROWS_AN_ITEM = 2
"""A file of items may list some twice; one that lists each so often is of something else."""


def read_attributes(
    sources: Sequence[Source], schema: Schema, items: Vocabulary, show: Sequence[str] | None = None
) -> pa.Table:
    """[M] rows of the columns ``show`` of item files (all that hold one value a row, without it), null for other items.

    Of several rows of a source the first counts, of several sources the last.

    Raises DataError where a file can't be read, has no such column, or has several rows an item.
    """
    key = schema.item_key or schema.interactions.item
    there = column_names(sources[0], where="items")
    for column in show or ():
        if column not in there:
            found = f"{listed(there)}{did_you_mean(column, there)}"
            raise DataError(f"items: there is no column {column!r} to show, but {found}")
    wanted = [column for column in (there if show is None else show) if column != key]
    columns, types = list(dict.fromkeys([key, *wanted])), column_types(schema)
    tables: list[pa.Table] = []
    place, n = np.full(len(items.ids()), -1, np.int64), 0
    for source in sources:
        row = [np.zeros(0, np.int64)]
        for chunk in chunks(source, where="items", columns=columns, column_types=types):
            row.append(items.own_rows(ids_of(chunk, key)))
            tables.append(chunk.table.select(wanted))
        row_n = np.concatenate(row)
        at = np.flatnonzero(row_n >= 0)[::-1]
        n_known = len(np.unique(row_n[at]))
        if len(at) > _ROWS_AN_ITEM * n_known > 0:
            raise DataError(
                f"items: found {len(at):,} rows of {n_known:,} items of the catalogue, expected one an item: is this a "
                "file of events?"
            )
        place[row_n[at]] = n + at  # of equal rows the last assignment stays: the first of the source
        n += len(row_n)
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"items: a column has another type in one file than in another: {error}") from error
    if show is None:
        table = table.select([field.name for field in table.schema if is_plain(field.type)])
    taken = table.take(pa.array(place, mask=place < 0))
    return pa.table({name: _column(one_array(taken[name])) for name in taken.column_names})


def _column(values: pa.Array) -> pa.Array:
    """A number that is not one is a missing value; halves, which Arrow does not compare, get whole."""
    if not pa.types.is_floating(values.type):
        return values
    values = values.cast(pa.float32()) if pa.types.is_float16(values.type) else values
    return pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)


def is_plain(kind: pa.DataType) -> bool:
    """Whether it is a type of values that can be compared."""
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
        check_attribute(column, attributes.column_names, "where")
        check_comparable(attributes, column, "where")
        values = attributes[column]
        if isinstance(wanted, Mapping):
            allowed &= _within(values, column, wanted)
        else:
            each = wanted if isinstance(wanted, list | tuple) else [wanted]
            options = pa.array([_of_type(one, values.type, column).as_py() for one in each], values.type)
            allowed &= mask_of(one_array(pc.is_in(values, value_set=options)))
    return allowed


def check_attribute(name: str, there: Sequence[str], where: str) -> None:
    """Raises DataError for an attribute that is not there."""
    if name not in there:
        raise DataError(
            f"{where}: there is no attribute {name!r}, but {listed(there)}{did_you_mean(name, there)}; which there are "
            "is chosen at the export (--show)"
        )


def check_comparable(attributes: pa.Table, name: str, where: str) -> None:
    """Raises DataError for an attribute that holds no one value a row, which can be shown, but not compared."""
    kind = attributes.schema.field(name).type
    if not is_plain(kind):
        raise DataError(f"{where}: {name!r} is {kind}, expected an attribute of one text, number or date an item")


def where_of(attributes: pa.Table, texts: Sequence[str]) -> Where:
    """What items must be, as people type it: ``name=value``, ``name=a,b`` for a list, ``name=from..to`` with either
    end, or a list or range as JSON after the ``=``, for values that hold a comma or two dots.

    Raises DataError for an attribute that is not there or given twice, or a text that is none of this.
    """
    where: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise DataError(f"where: found {text!r}, expected name=value, name=a,b or name=from..to")
        check_attribute(name, attributes.column_names, "where")
        if name in where:
            raise DataError(f"where: {name!r} is given twice, expected one value, list or range (name=a,b)")
        where[name] = _typed(value, attributes.schema.field(name).type, name)
    return where


def _typed(value: str, kind: pa.DataType, column: str) -> object:
    if value.startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"where: {column!r} is {value!r}, which is no JSON: {error}") from error
    first, dots, last = value.partition("..")
    if not dots:
        return [_one_typed(one, kind) for one in value.split(",")]
    ends = {name: _one_typed(end, kind) for name, end in (("from", first), ("to", last)) if end}
    if "," in value or ".." in last or not ends:
        raise DataError(f"where: {column!r} is {value!r}, expected a value, a list a,b or a range from..to")
    return ends


def _one_typed(text: str, kind: pa.DataType) -> object:
    """As JSON would have it: text and times are text, all else is a number, true or false. What is of another type is
    refused with the filter itself."""
    if _is_text(kind) or pa.types.is_temporal(kind):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


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
        if pa.types.is_decimal(kind) and isinstance(value, int) and not isinstance(value, bool):
            value = Decimal(value)  # Arrow takes a whole number for one of 19 digits
        scalar = pa.scalar(value)
        if scalar.is_valid and (pa.types.is_temporal(kind) or _is_text(kind) == pa.types.is_string(scalar.type)):
            return scalar.cast(kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass
    raise DataError(f"where: {column!r} is {value!r}, expected {kind}")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
