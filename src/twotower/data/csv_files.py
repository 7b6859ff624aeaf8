"""CSV and TSV as tables, and the line and column of what is wrong with them."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ..errors import DataError
from .files import File, Wanted, is_text_type, short

BLOCK_BYTES = 1 << 24
"""Bytes of a text file that are parsed at once."""

NO_NUMBER = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
"""Text that means a missing number in a column of numbers. In a column of text only the empty field is missing: "NA" is
a country, and "null" may be a product."""


def _delimiter(file: File) -> str:
    return "\t" if file.kind == ".tsv" else ","


def read_csv(file: File, wanted: Wanted) -> Iterator[pa.Table]:
    """The wanted columns, a block at a time."""
    header = csv_header(file)
    columns = wanted.of(header, str(file))
    types = {name: kind for name, kind in wanted.column_types.items() if name in columns}
    converted = {name: kind for name, kind in types.items() if not is_text_type(kind)}
    first_row = 1
    try:
        for batch in _open_csv(file, columns, types | dict.fromkeys(converted, pa.large_string())):
            table = pa.Table.from_batches([batch])
            for name, kind in converted.items():
                values = _converted(table[name], kind, _Place(file=file, column=name, first_row=first_row))
                table = table.set_column(table.column_names.index(name), name, values)
            first_row += len(table)
            yield table
    except (pa.ArrowException, OSError) as error:
        _raise_csv_fault(file, header, error)


def _open_csv(file: File, columns: list[str], column_types: Mapping[str, pa.DataType]) -> Any:
    return pyarrow.csv.open_csv(
        pa.input_stream(str(file.path)),
        read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
        parse_options=pyarrow.csv.ParseOptions(delimiter=_delimiter(file), newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=columns, column_types=dict(column_types), strings_can_be_null=True, null_values=[""]
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where the values of one chunk of a column stand."""

    file: File
    column: str
    first_row: int


def _converted(text: pa.ChunkedArray, kind: pa.DataType, place: _Place) -> pa.ChunkedArray:
    """Text as the type that was asked for."""
    present = pc.if_else(pc.is_in(text, value_set=pa.array(NO_NUMBER, text.type)), pa.scalar(None, text.type), text)
    if pa.types.is_timestamp(kind):
        return _numbers_or_text(present)
    try:
        return present.cast(kind)
    except pa.ArrowInvalid as error:
        raise _number_fault(present, kind, place) from error


def _numbers_or_text(text: pa.ChunkedArray) -> pa.ChunkedArray:
    for kind in (pa.int64(), pa.float64()):
        try:
            return text.cast(kind)
        except pa.ArrowInvalid:
            continue
    return text


def _number_fault(text: pa.ChunkedArray, kind: pa.DataType, place: _Place) -> DataError:
    """The error of the first value that is no number; the rows of a chunk are tried one after the other."""
    at = next(at for at, value in enumerate(text) if not _casts(value, kind))
    where = f"row {place.first_row + at}"
    for number, record in enumerate(_csv_records(place.file)):
        if number == place.first_row + at:  # the header is record 0
            where = f"line {record.line}"
            break
    return DataError(f"{place.file}, {where}, column {place.column!r}: found {text[at].as_py()!r}, expected a number")


def _casts(value: pa.Scalar, kind: pa.DataType) -> bool:
    try:
        value.cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    fields: list[str]
    line: int
    """Line of the file on which it begins, from 1."""


def _open_text(file: File) -> TextIO:
    """Text in which bytes that are not UTF-8 stay visible as lone surrogates."""
    open_it = gzip.open if file.path.suffix.lower() == ".gz" else open
    return cast(TextIO, open_it(file.path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=""))


def _csv_records(file: File) -> Iterator[_Record]:
    """All records, the header too, a record at a time: the careful, slow way."""
    with _open_text(file) as text:
        reader = csv.reader(text, delimiter=_delimiter(file))
        line = 1
        for fields in reader:
            if fields:  # an empty line is no record
                yield _Record(fields=fields, line=line)
            line = reader.line_num + 1


def csv_header(file: File) -> list[str]:
    """The column names in the first line.

    Raises:
        DataError: there is none, or it can't be read.
    """
    try:
        header = next(_csv_records(file), None)
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(f"{file}: the header can't be read: damaged or truncated ({short(error)})") from error
    if header is None:
        raise DataError(f"{file}: the file is empty, expected a line of column names")
    if any(_is_broken(name) for name in header.fields):
        raise DataError(f"{file}, line {header.line}: the column names are not UTF-8: save the file as UTF-8")
    return header.fields


def _is_broken(text: str) -> bool:
    return re.search("[\ud800-\udfff]", text) is not None


def _raise_csv_fault(file: File, header: list[str], error: Exception) -> NoReturn:
    """Find the record that made PyArrow stop and raise the error that names it."""
    conversion = re.search(r"In CSV column #(\d+): .*invalid value '(.*)'", str(error), re.DOTALL)
    n_records = 0
    try:
        for record in _csv_records(file):
            n_records += 1
            _check_csv_record(file, header, record)
            if conversion and n_records > 1 and record.fields[int(conversion[1])] == conversion[2]:
                raise DataError(
                    f"{file}, line {record.line}, column {header[int(conversion[1])]!r}: found {conversion[2]!r}, "
                    "which is of another type than the column's first values"
                ) from error
    except (OSError, EOFError, zlib.error, csv.Error) as damage:
        raise DataError(f"{file}: damaged or truncated, found after record {n_records} ({short(damage)})") from error
    if n_records <= 1:
        raise DataError(f"{file}: there are no rows, only a header") from error
    raise DataError(f"{file}: can't be read as CSV ({short(error)})") from error


def _check_csv_record(file: File, header: list[str], record: _Record) -> None:
    for at, value in enumerate(record.fields):
        if _is_broken(value):
            column = header[at] if at < len(header) else str(at + 1)
            shown = value.encode("utf-8", "surrogateescape")[:60]
            raise DataError(f"{file}, line {record.line}, column {column!r}: {shown!r} is not UTF-8: save it as UTF-8")
    if len(record.fields) != len(header):
        is_open = any("\n" in value for value in record.fields)
        quote = "; a quote that begins there is closed on a later line or never" if is_open else ""
        raise DataError(
            f"{file}, line {record.line}: found {len(record.fields)} fields, expected {len(header)} as in the header"
            f"{quote}"
        )
