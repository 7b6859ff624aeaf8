"""A Delta table that rows are appended to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs

from ...errors import ConfigError, DataError
from ..files import short
from .stream import Arrival, Position, saved

if TYPE_CHECKING:
    import deltalake

_SOURCE = "delta"


@dataclass(frozen=True, slots=True)
class Delta:
    """A Delta table: each version that appended rows is an arrival.

    What was read is decided by the log of the table: files it adds with ``dataChange`` are read; compaction
    (``OPTIMIZE``) adds none. The position is the number of the version, with the id of the table.

    Needs the extra ``twotower[delta]``. Tables with deletion vectors or column mapping can't be read.

    Source: https://github.com/delta-io/delta/blob/master/PROTOCOL.md, "Actions".
    """

    path: str
    """Of the table, or an address that deltalake opens, such as ``s3://bucket/table``."""
    _: KW_ONLY
    first: Literal["versions", "snapshot"] = "versions"
    """What comes where there is no position: every version since the first, or the table as it is, as one arrival."""
    rewrites: Literal["refuse", "skip"] = "refuse"
    """What is done with a version that deleted, updated or overwrote rows. Skipped, the rows it took away stay in what
    was made of them, and the rows it wrote are not read."""

    def since(self, position: Position | None) -> Iterator[Arrival]:
        """The rows appended after ``position``, a version at a time.

        Raises:
            ConfigError: deltalake is not installed.
            DataError: there is no table; its log or its files were cleaned up past the position; a version rewrote
                rows; the table is another one.
        """
        table = self._table(None)
        newest, table_id = table.version(), str(table.metadata().id)
        if position is None and self.first == "snapshot":
            if whole := self._rows(newest, None):
                yield self._arrival(f"version {newest}, whole", whole, newest, table_id)
            return
        files = self._dataset(table).filesystem
        for version in range(self._next(position, newest, table_id), newest + 1):
            if added := self._added(files, version):
                rows = self._rows(version, added)
                yield self._arrival(f"version {version}", rows, version, table_id)

    def _arrival(self, name: str, rows: _Rows | None, version: int, table_id: str) -> Arrival:
        position = {"source": _SOURCE, "table": table_id, "version": version}
        return Arrival(name=name, interactions=rows, position=position)

    def _next(self, position: Position | None, newest: int, table_id: str) -> int:
        """The version to go on with."""
        if position is None:
            return 0
        read = saved(position, _SOURCE, self.path)
        if read["table"] != table_id or read["version"] > newest:
            raise DataError(
                f"{self.path}: found table {table_id} at version {newest}, but the position is version "
                f"{read['version']} of table {read['table']}: the table was made anew or restored; start without a "
                "position"
            )
        return int(read["version"]) + 1

    def _added(self, files: pa.fs.FileSystem, version: int) -> list[str]:
        """Paths of the files that a version appended, in the order of its log."""
        actions = self._actions(files, version)
        changing = [
            (kind, about) for action in actions for kind, about in action.items() if about and about.get("dataChange")
        ]
        if any(kind == "remove" or about.get("deletionVector") for kind, about in changing):
            if self.rewrites == "skip":
                return []
            what = next((about.get("operation") for a in actions for k, about in a.items() if k == "commitInfo"), None)
            raise DataError(
                f"{self.path}: version {version} ({what or 'unknown operation'}) deleted or rewrote rows, expected "
                "appends: pass over such versions with rewrites=skip, or start without a position and with "
                "first=snapshot"
            )
        return [unquote(about["path"]) for kind, about in changing if kind == "add"]

    def _actions(self, files: pa.fs.FileSystem, version: int) -> list[dict[str, Any]]:
        try:
            with files.open_input_stream(f"_delta_log/{version:020d}.json") as log:
                return [json.loads(line) for line in log.read().splitlines() if line.strip()]
        except FileNotFoundError as error:
            raise DataError(f"{self.path}: the log of version {version} was cleaned up; {_START_ANEW}") from error
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path}: the log of version {version} can't be read ({short(error)})") from error

    def _rows(self, version: int, added: list[str] | None) -> _Rows | None:
        """The rows of the files ``added``, or of all; None where there are no files."""
        whole = self._dataset(self._table(version))
        fragment_of = {fragment.path: fragment for fragment in whole.get_fragments()}
        paths = sorted(fragment_of) if added is None else added
        found = whole.filesystem.get_file_info(paths) if paths else []
        gone = [at.path for at in found if at.type != pa.fs.FileType.File or at.path not in fragment_of]
        if gone:
            raise DataError(
                f"{self.path}: version {version} appended {gone[0]}, which is gone (vacuumed?); {_START_ANEW}"
            )
        fragments = [fragment_of[path] for path in paths]
        if not fragments:
            return None
        return _Rows(pa.dataset.FileSystemDataset(fragments, whole.schema, whole.format, whole.filesystem))

    def _table(self, version: int | None) -> deltalake.DeltaTable:
        try:
            import deltalake
        except ImportError as error:
            raise ConfigError(
                f"{self.path}: a Delta table needs deltalake, which is not installed: pip install 'twotower[delta]'"
            ) from error
        with self._naming("can't be opened", deltalake.exceptions.DeltaError):
            return deltalake.DeltaTable(self.path, version=version)

    def _dataset(self, table: deltalake.DeltaTable) -> pa.dataset.FileSystemDataset:
        import deltalake

        with self._naming("can't be read", deltalake.exceptions.DeltaError):
            return table.to_pyarrow_dataset()

    @contextmanager
    def _naming(self, what: str, kind: type[Exception]) -> Iterator[None]:
        try:
            yield
        except (kind, OSError, ValueError) as error:
            raise DataError(f"{self.path}: {what} as a Delta table ({short(error)})") from error


_START_ANEW = "start without a position and with first=snapshot, and keep log and files for longer than an update waits"


class _Rows:
    """Rows of some files, with the values of the partitions; can be read again."""

    def __init__(self, dataset: pa.dataset.FileSystemDataset) -> None:
        self._dataset = dataset

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._dataset.scanner().to_reader().__arrow_c_stream__(requested_schema)
