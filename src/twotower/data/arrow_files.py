"""Parquet, Arrow IPC and frames as tables: formats that carry their types."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet

from ..errors import DataError
from .files import File, Wanted, short

CHUNK_ROWS = 1 << 18
"""Rows of a chunk at most."""
CHUNK_BYTES = 1 << 26
"""Bytes of a chunk at most, unless a single row has more."""


class ArrowStream(Protocol):
    """A frame of pandas, Polars, PyArrow or anything else that exports the Arrow stream interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


@contextmanager
def _faults_of(file: File) -> Iterator[None]:
    """Turns what PyArrow raises about a file into a ``DataError``."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file}: can't be read as {file.path.suffix}: damaged, truncated or another format ({short(error)})"
        ) from error


def frame_names(frame: ArrowStream) -> list[str]:
    """The columns of a frame."""
    names = getattr(frame, "column_names", None)
    if names is None:
        names = getattr(frame, "columns", None)
    if names is None:
        names = pa.RecordBatchReader.from_stream(frame).schema.names
    return [str(name) for name in names]


def read_frame(frame: ArrowStream, wanted: Wanted, file: str) -> Iterator[pa.Table]:
    """The wanted columns of a frame. Only they are turned into Arrow, so others may hold anything."""
    try:
        if isinstance(frame, pa.RecordBatchReader) or not hasattr(frame, "columns"):
            reader = pa.RecordBatchReader.from_stream(frame)
            columns = wanted.of(reader.schema.names, file)
        else:
            columns = wanted.of(frame_names(frame), file)
            selected = frame.select(columns) if isinstance(frame, (pa.Table, pa.RecordBatch)) else frame[columns]  # type: ignore[index]
            reader = pa.RecordBatchReader.from_stream(selected)
        for batch in reader:
            yield pa.Table.from_batches([batch]).select(columns)
    except (pa.ArrowException, TypeError) as error:
        raise DataError(f"{file}: can't be turned into Arrow columns ({short(error)})") from error


def parquet_names(file: File) -> list[str]:
    """The columns of a Parquet file."""
    with _faults_of(file):
        return list(pyarrow.parquet.read_schema(file.path).names)


def read_parquet(file: File, wanted: Wanted) -> Iterator[pa.Table]:
    """The wanted columns of a Parquet file, a chunk at a time."""
    with _faults_of(file), pyarrow.parquet.ParquetFile(file.path) as parquet:
        columns = wanted.of(parquet.schema_arrow.names, str(file))
        about = parquet.metadata
        n_bytes = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        row_bytes = max(1, n_bytes // max(1, about.num_rows))
        rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES // row_bytes))
        for batch in parquet.iter_batches(batch_size=rows, columns=columns):
            yield pa.Table.from_batches([batch]).select(columns)


def _open_ipc(path: Path, columns: list[int] | None) -> Any:
    source = pa.memory_map(str(path))
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    options = pa.ipc.IpcReadOptions(included_fields=columns)
    return pa.ipc.open_file(source, options=options) if is_file else pa.ipc.open_stream(source, options=options)


def ipc_names(file: File) -> list[str]:
    """The columns of an Arrow IPC file or stream."""
    with _faults_of(file):
        return list(_open_ipc(file.path, None).schema.names)


def read_ipc(file: File, wanted: Wanted) -> Iterator[pa.Table]:
    """The wanted columns of an Arrow IPC file or stream."""
    with _faults_of(file):
        names = _open_ipc(file.path, None).schema.names
        columns = wanted.of(names, str(file))
        reader = _open_ipc(file.path, sorted(names.index(column) for column in columns))
        n_batches = getattr(reader, "num_record_batches", None)
        batches = reader if n_batches is None else (reader.get_batch(i) for i in range(n_batches))
        for batch in batches:
            yield pa.Table.from_batches([batch]).select(columns)
