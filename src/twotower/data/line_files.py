"""Text with a record a line as tables: NDJSON, and the lists of LightGCN."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from ..errors import DataError
from .csv_files import BLOCK_BYTES
from .files import File, Wanted, short


def _line_blocks(file: File) -> Iterator[tuple[str, int]]:
    """Whole lines, about ``BLOCK_BYTES`` at a time, and the number of the first one, from 1."""
    rest, line = b"", 1
    try:
        with pa.input_stream(str(file.path)) as stream:
            while read := stream.read(BLOCK_BYTES):
                whole, newline, rest_of_block = read.rpartition(b"\n")
                if not newline:
                    rest += read
                    continue
                block = rest + whole + newline
                rest = rest_of_block
                yield _decoded(block, line, file), line
                line += block.count(b"\n")
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: damaged or truncated, found after line {line - 1} ({short(error)})") from error
    if rest.strip() and not file.whole_lines_only:
        yield _decoded(rest, line, file), line


def _decoded(block: bytes, line: int, file: File) -> str:
    try:
        return block.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        bad = line + block[: error.start].count(b"\n")
        shown = block[max(block.rfind(b"\n", 0, error.start) + 1, error.start - 20) : error.start + 20]
        raise DataError(f"{file}, line {bad}: {shown!r} is not UTF-8: save the file as UTF-8") from error


def read_ndjson(file: File, wanted: Wanted) -> Iterator[pa.Table]:
    """The wanted columns, a block at a time. Types are found anew in every block; a column must be in the first one."""
    columns: list[str] | None = None
    last: pa.Table | None = None
    for block, line in _line_blocks(file):
        if not block.strip():
            continue
        table = _json_table(block, line, file, wanted)
        if wanted.columns is None and last is not None:
            columns = list(dict.fromkeys([*last.column_names, *table.column_names]))
        columns = columns or wanted.of(table.column_names, str(file))
        table = _with_columns(table, columns, last)
        last = table.slice(0, 0)
        yield table


def _with_columns(table: pa.Table, columns: list[str], last: pa.Table | None) -> pa.Table:
    """The columns in that order; one that no object of this block has is missing all through."""
    for name in columns:
        if name not in table.column_names:
            kind = last.schema.field(name).type if last is not None and name in last.column_names else pa.null()
            table = table.append_column(name, pa.nulls(len(table), kind))
    return table.select(columns)


def _json_table(block: str, line: int, file: File, wanted: Wanted) -> pa.Table:
    data = block.encode()
    options = pyarrow.json.ReadOptions(block_size=len(data) + 1)
    try:
        table = pyarrow.json.read_json(pa.BufferReader(data), read_options=options)
        moments = [column for column in table.schema if wanted.is_text(column.name) and _holds_moments(column.type)]
        if moments:  # the parser takes text such as "2020-01-01" for a moment
            parse = pyarrow.json.ParseOptions(explicit_schema=pa.schema([(c.name, _as_text(c.type)) for c in moments]))
            table = pyarrow.json.read_json(pa.BufferReader(data), read_options=options, parse_options=parse)
        return table
    except pa.ArrowException as error:
        return _careful_json_table(block, line, file, wanted, error)


def _holds_moments(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind.value_type if pa.types.is_list(kind) else kind))


def _as_text(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.string()) if pa.types.is_list(kind) else pa.string()


def _careful_json_table(block: str, line: int, file: File, wanted: Wanted, error: Exception) -> pa.Table:
    """Line by line: finds the line that is at fault, or reads the wanted columns where the fault is in another one."""
    objects: list[dict[str, object]] = []
    lines: list[int] = []
    for at, text in enumerate(block.split("\n"), start=line):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except ValueError as fault:
            raise DataError(f"{file}, line {at}: not a JSON object ({short(fault)})") from error
        if not isinstance(value, dict):
            found = type(value).__name__
            raise DataError(f"{file}, line {at}: found a JSON {found}, expected an object in every line") from error
        objects.append(value)
        lines.append(at)
    names = list(dict.fromkeys(name for value in objects for name in value))
    columns = wanted.of(names, str(file))
    return pa.table({name: _json_column(name, objects, lines, file) for name in columns})


def _json_column(name: str, objects: list[dict[str, object]], lines: list[int], file: File) -> pa.Array:
    values = [value.get(name) for value in objects]
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        kinds = [type(value) for value in values]
        present = [kind for kind in kinds if kind is not type(None)]
        odd = next((at for at, kind in enumerate(kinds) if kind not in (type(None), present[0])), 0)
        raise DataError(
            f"{file}, line {lines[odd]}, column {name!r}: found {values[odd]!r}, which is of another type than the "
            f"column's first values ({present[0].__name__})"
        ) from error


def read_lists(file: File, wanted: Wanted) -> Iterator[pa.Table]:
    """Pairs of lines ``query item item ...``, a block at a time."""
    if wanted.list_columns is None:
        raise DataError(
            f"{file}: a .txt file is read as lines of `query item item ...`, which is for interactions with a query "
            "column: use another format here"
        )
    names = list(wanted.list_columns)
    columns = wanted.of(names, str(file))
    for block, line in _line_blocks(file):
        tokens = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(pa.array(block.split("\n"), pa.large_string())))
        tokens = tokens.filter(pc.greater(pc.binary_length(pc.list_element(tokens, 0)), 0))
        if line == 1:
            _refuse_table(tokens, file)
        yield pa.table(dict(zip(names, _pairs(tokens), strict=True))).select(columns)


def _refuse_table(tokens: pa.Array, file: File) -> None:
    """Lines such as ``user item rating`` would pass for lists: all of one length, and several for a query."""
    length = pc.unique(pc.list_value_length(tokens)).to_pylist()
    if len(length) != 1 or length[0] < 3 or 2 * len(pc.unique(pc.list_element(tokens, 0))) > len(tokens):
        return
    raise DataError(
        f"{file}: every line has {length[0]} fields and many begin alike, such as {' '.join(tokens[0].as_py())!r}: "
        "it looks like a table, but a .txt file is read as lines of `query item item ...`: save it as .tsv, with a "
        "first line of column names"
    )


def _pairs(tokens: pa.Array) -> tuple[pa.Array, pa.Array]:
    """(query, item) of lists that hold a query and its items."""
    length = np.asarray(pc.list_value_length(tokens).to_numpy(zero_copy_only=False), np.int64)
    flat = pc.list_flatten(tokens)
    first = np.cumsum(length) - length
    is_item = np.ones(len(flat), bool)
    is_item[first] = False
    query = flat.take(pa.array(np.repeat(first, length - 1)))
    return query, flat.filter(pa.array(is_item))
