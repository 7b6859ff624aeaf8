"""Files and frames as a stream of Arrow tables of bounded size.

    .csv .tsv (.gz)         a header line, then a record a line; quotes may hold line breaks; an empty field is missing
    .ndjson .jsonl (.gz)    an object a line
    .parquet                as it is
    .arrow .feather .ipc    Arrow IPC, file or stream
    .txt (.gz)              ``query item item ...`` a line (the format of LightGCN), interactions only

Whatever is wrong with a file comes out as a ``DataError`` that names the file and, where it can be found, the line or
row and the column. To find it a text file is read a second time, carefully: slow, but only on the way to the error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, cast

import pyarrow as pa

from ..errors import DataError
from .arrow_files import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    ArrowStream,
    frame_names,
    ipc_names,
    parquet_names,
    read_frame,
    read_ipc,
    read_parquet,
)
from .csv_files import csv_header, read_csv
from .files import File, Wanted, files_at, short
from .line_files import read_lists, read_ndjson

Source = Union[str, "os.PathLike[str]", File, ArrowStream, Iterable["Source"]]
"""Where rows come from: a file, a folder, a frame, or several of those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Rows of one file that follow one another."""

    table: pa.Table
    file: str
    """Path of the file, or the name of the frame."""
    first_row: int
    """Number of the first row in its file, from 1; a header is not counted."""

    def span(self) -> str:
        """Where its rows stand, for a message."""
        return f"{self.file} (rows {self.first_row} to {self.first_row + len(self.table) - 1})"


def read_chunks(
    source: Source,
    *,
    where: str,
    columns: Sequence[str] | None = None,
    column_types: Mapping[str, pa.DataType] | None = None,
    list_columns: tuple[str, str] | None = None,
) -> Iterator[pa.Table]:
    """The rows of ``source`` in order, as tables of at most ``CHUNK_ROWS`` rows.

    Args:
        source: a path, a folder (all supported files in it and below, sorted by path, without hidden ones and
            ``.txt``), a frame, or any iterable of those.
        where: what the source is to the caller, such as "interactions"; begins messages that no file name can begin.
        columns: the columns to read; all by default. Files may have others, and in another order.
        column_types: types of CSV columns: text stays as it is written ("007"), numbers are checked, a column asked for
            as a timestamp is numbers where it holds nothing else and text otherwise. Other columns get the type of the
            first block. In NDJSON it keeps text from being taken for a moment. Other formats carry their types.
        list_columns: names of the two columns made of a ``.txt`` file.

    Raises:
        DataError: a file is missing, empty, damaged, truncated, of an unsupported kind, not UTF-8, without one of the
            columns, or holds a record that does not fit.
    """
    for chunk in chunks(source, where=where, columns=columns, column_types=column_types, list_columns=list_columns):
        yield chunk.table


def chunks(
    source: Source,
    *,
    where: str,
    columns: Sequence[str] | None = None,
    column_types: Mapping[str, pa.DataType] | None = None,
    list_columns: tuple[str, str] | None = None,
) -> Iterator[Chunk]:
    """``read_chunks`` with the place each table comes from."""
    wanted = Wanted(
        where=where,
        columns=None if columns is None else tuple(columns),
        column_types=column_types or {},
        list_columns=list_columns,
    )
    anything = False
    for part in _parts(source, where):
        anything = True
        yield from _read_part(part, wanted)
    if not anything:
        raise DataError(f"{where}: no file and no frame was given")


def column_names(source: Source, *, where: str, list_columns: tuple[str, str] | None = None) -> list[str]:
    """The columns of the first file or frame of ``source``, read from its head. Not for one that can be read only once.

    Raises:
        DataError: as ``read_chunks``.
    """
    part = next(_parts(source, where), None)
    if part is None:
        raise DataError(f"{where}: no file and no frame was given")
    if not isinstance(part, File):
        return frame_names(part)
    match part.kind:
        case ".csv" | ".tsv":
            return csv_header(part)
        case ".parquet":
            return parquet_names(part)
        case ".arrow":
            return ipc_names(part)
        case ".txt" if list_columns is not None:
            return list(list_columns)
        case _:
            first = next(_read_file(part, Wanted(where=where, list_columns=list_columns)), None)
            return [] if first is None else list(first.column_names)


def reads_once(source: Any) -> bool:
    """Whether the source is used up by reading it: an iterator, or a stream that is no known kind of frame."""
    if isinstance(source, (str, os.PathLike, pa.Table, pa.RecordBatch)):
        return False
    if hasattr(source, "__arrow_c_stream__"):
        return type(source).__module__.partition(".")[0] not in ("pandas", "polars")
    if isinstance(source, Iterator):
        return True
    return isinstance(source, Iterable) and any(reads_once(part) for part in source)


def _parts(source: Source, where: str) -> Iterator[File | ArrowStream]:
    if isinstance(source, (str, os.PathLike)):
        yield from files_at(Path(source), where)
    elif isinstance(source, File):
        yield source
    elif hasattr(source, "__arrow_c_stream__"):
        yield cast(ArrowStream, source)
    elif isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise DataError(
            f"{where}: found {type(source).__name__}, expected a path, a folder, a frame (pandas, Polars, PyArrow) "
            "or a list of those"
        )
    else:
        for part in source:
            yield from _parts(part, where)


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Say in which file a data error was met, where it does not say so itself."""
    try:
        yield
    except DataError as error:
        if str(error).startswith(where.partition(" (rows")[0]):
            raise
        raise DataError(f"{where}: {error}") from error


# ---------------------------------------------------------------- from a part to chunks


def _read_part(part: File | ArrowStream, wanted: Wanted) -> Iterator[Chunk]:
    file = str(part) if isinstance(part, File) else f"{wanted.where} ({type(part).__module__.partition('.')[0]} frame)"
    tables = _read_file(part, wanted) if isinstance(part, File) else read_frame(part, wanted, file)
    row = 1
    for table in _regroup(tables, file):
        yield Chunk(table=table, file=file, first_row=row)
        row += len(table)
    if row == 1 and not (isinstance(part, File) and part.may_be_empty):
        raise DataError(f"{file}: there are no rows, expected at least one")


def _read_file(file: File, wanted: Wanted) -> Iterator[pa.Table]:
    try:
        if file.path.stat().st_size == 0:
            raise DataError(f"{file}: the file is empty (0 bytes), expected rows")
    except OSError as error:
        raise DataError(f"{file}: can't be read ({error.strerror})") from error
    return _READERS[file.kind](file, wanted)


def _regroup(tables: Iterator[pa.Table], file: str) -> Iterator[pa.Table]:
    """The same rows in tables neither much smaller nor larger than a chunk, in plain types, each checked."""
    waiting: list[pa.Table] = []
    n_rows = n_bytes = 0
    for table in tables:
        table = _plain(_checked(table, file), file)
        if waiting and table.schema != waiting[0].schema:
            yield from _sliced(waiting)
            waiting, n_rows, n_bytes = [], 0, 0
        waiting.append(table)
        n_rows, n_bytes = n_rows + len(table), n_bytes + table.nbytes
        if n_rows >= CHUNK_ROWS or n_bytes >= CHUNK_BYTES:
            yield from _sliced(waiting)
            waiting, n_rows, n_bytes = [], 0, 0
    if waiting:
        yield from _sliced(waiting)


def _sliced(tables: list[pa.Table]) -> Iterator[pa.Table]:
    table = pa.concat_tables(tables)
    if not len(table):
        return
    row_bytes = max(1, table.nbytes // len(table))
    step = max(1, min(CHUNK_ROWS, CHUNK_BYTES // row_bytes))
    for start in range(0, len(table), step):
        yield table.slice(start, step).combine_chunks()


def _checked(table: pa.Table, file: str) -> pa.Table:
    """Text must be UTF-8 and offsets must be in order, also in formats that are not parsed."""
    for name in table.column_names:
        try:
            table[name].validate(full=True)
        except pa.ArrowInvalid as error:
            raise DataError(f"{file}, column {name!r}: damaged values ({short(error)}); text must be UTF-8") from error
    return table


def _plain(table: pa.Table, file: str) -> pa.Table:
    """Dictionaries, views and extension types as the plain values they stand for."""
    for at, column in enumerate(table.schema):
        values = table.column(at)
        try:
            plain = pa.chunked_array([_plain_array(chunk) for chunk in values.chunks], _plain_type(values.type))
        except pa.ArrowException as error:
            raise DataError(f"{file}, column {column.name!r}: {values.type} can't be used ({short(error)})") from error
        if plain.type != values.type:
            table = table.set_column(at, column.name, plain)
    return table


def _plain_array(array: pa.Array) -> pa.Array:
    if isinstance(array.type, pa.BaseExtensionType):
        return _plain_array(array.storage)
    if pa.types.is_dictionary(array.type):
        return _plain_array(array.dictionary).take(array.indices)
    plain = _plain_type(array.type)
    return array if plain == array.type else array.cast(plain)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = _plain_type(kind.value_type)
        same = inner == kind.value_type
        return kind if same else pa.list_(inner) if pa.types.is_list(kind) else pa.large_list(inner)
    return pa.large_string() if pa.types.is_string_view(kind) else kind


_READERS: dict[str, Callable[[File, Wanted], Iterator[pa.Table]]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".ndjson": read_ndjson,
    ".parquet": read_parquet,
    ".arrow": read_ipc,
    ".txt": read_lists,
}
