"""Which files a source names, and what is wanted of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from ..errors import DataError
from .arrow import did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a source."""

    path: Path
    kind: str
    """The format, as a suffix: .csv, .tsv, .ndjson, .parquet, .arrow or .txt."""
    may_be_empty: bool = False
    """Part of a folder: writers of many parts leave some without rows."""
    whole_lines_only: bool = False
    """Leave out what follows the last line break: a writer that was killed leaves half a line there."""

    def __str__(self) -> str:
        return str(self.path)


_KINDS = {
    ".csv": ".csv",
    ".tsv": ".tsv",
    ".txt": ".txt",
    ".ndjson": ".ndjson",
    ".jsonl": ".ndjson",
    ".parquet": ".parquet",
    ".arrow": ".arrow",
    ".feather": ".arrow",
    ".ipc": ".arrow",
}
SUPPORTED = ".csv, .tsv, .ndjson, .jsonl, .txt (each also .gz), .parquet, .arrow, .feather, .ipc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to take from every file."""

    where: str
    columns: tuple[str, ...] | None = None
    column_types: Mapping[str, pa.DataType] = field(default_factory=dict)
    list_columns: tuple[str, str] | None = None

    def is_text(self, column: str) -> bool:
        """Whether the column is asked for as text."""
        return column in self.column_types and is_text_type(self.column_types[column])

    def of(self, names: Sequence[str], file: str) -> list[str]:
        """The columns to read of a file that has ``names``."""
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise DataError(f"{file}: column {repeated[0]!r} is there twice: give every column a name of its own")
        if self.columns is None:
            return list(names)
        require_columns(self.columns, names, file)
        return list(self.columns)


def require_columns(columns: Sequence[str], names: Sequence[str], file: str) -> None:
    """Raise a ``DataError`` that lists what is there unless every one of ``columns`` is among ``names``."""
    for column in columns:
        if column not in names:
            near = did_you_mean(column, names)
            raise DataError(f"{file}: there is no column {column!r}; the columns are {listed(names)}{near}")


def listed(names: Sequence[str], most: int = 30) -> str:
    """Names for a message."""
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "") if names else "none"


def files_at(path: Path, where: str) -> Iterator[File]:
    """The file, or the files of the folder, at ``path``.

    Raises:
        DataError: there is none that can be read.
    """
    try:
        if path.is_dir():
            yield from _files_of_folder(path, where)
            return
        exists = path.exists()
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror})") from error
    if not exists:
        raise DataError(f"{where}: there is no file or folder {path}")
    kind = kind_of(path)
    if kind is None:
        suffix = path.suffix or "(no suffix)"
        raise DataError(
            f"{path}: files of kind {suffix!r} can't be read; supported are {SUPPORTED}: save lines of text as .csv "
            "(commas) or .tsv (tabs), with a first line of column names"
        )
    yield File(path=path, kind=kind)


def _files_of_folder(folder: Path, where: str) -> Iterator[File]:
    inside = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
    kinds = [(path, kind_of(path)) for path in inside]
    files = [File(path=path, kind=kind, may_be_empty=True) for path, kind in kinds if kind not in (None, ".txt")]
    if not files:
        there = listed([str(path.relative_to(folder)) for path in inside], most=5)
        raise DataError(
            f"{where}: no readable file in the folder {folder} (files in it: {there}); supported are {SUPPORTED}; "
            ".txt files must be named one by one"
        )
    yield from files


def _is_hidden(path: Path) -> bool:
    return any(name.startswith((".", "_")) for name in path.parts)


def kind_of(path: Path) -> str | None:
    """The format a file name says; None for an unsupported one."""
    suffix = path.suffix.lower()
    if suffix != ".gz":
        return _KINDS.get(suffix)
    kind = _KINDS.get(Path(path.stem).suffix.lower())
    return None if kind in (".parquet", ".arrow") else kind


def is_text_type(kind: pa.DataType) -> bool:
    """Whether the type is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def short(error: BaseException) -> str:
    """What an error says, in one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."
