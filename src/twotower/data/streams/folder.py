"""A folder that files are added to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...errors import DataError
from ..files import SUPPORTED, File, kind_of, listed
from .stream import Arrival, Position, saved

_SOURCE = "folder"
_UNFINISHED = (".tmp", ".partial", ".crdownload")


@dataclass(frozen=True, slots=True)
class Folder:
    """Files as they come: each file of the folder is an arrival, and so are the files of each folder in it together.

    Names are in order with numbers as numbers and without ``key=``, so that ``day=2024-05-01/``, ``2024-05-02.parquet``
    and ``year=2024/month=5/day=3/`` are in the order of their days. A file that comes late, with a name before those
    that were read or in a day that was read, is an arrival of its own, after them.

    A file must appear as a whole, by a rename. Names that begin with ``.`` or ``_`` or end in .tmp, .partial or
    .crdownload, folders of such a name and files of 0 bytes are not there yet; files that ``data.readers`` doesn't read
    in folders (``.txt`` among them) are left alone. What a folder is called is no column: ``day=`` is not read.

    The position holds name and bytes of each file that was read, some 50 bytes a file.
    """

    path: str

    def since(self, position: Position | None) -> Iterator[Arrival]:
        """The files that ``position`` has not, by name.

        Raises:
            DataError: there is no such folder, it holds nothing but unreadable files, or a file has another size than
                when it was read.
        """
        bytes_of: dict[str, int] = {} if position is None else dict(saved(position, _SOURCE, self.path)["files"])
        for name, files in self._arrivals(bytes_of):
            bytes_of |= files
            yield Arrival(
                name=name,
                interactions=[self._file(file) for file in files],
                position={"source": _SOURCE, "files": dict(bytes_of)},
            )

    def _file(self, name: str) -> File:
        path = Path(self.path, name)
        return File(path=path, kind=kind_of(path) or "", may_be_empty=True)  # a day may have no rows

    def _arrivals(self, bytes_of: dict[str, int]) -> list[tuple[str, dict[str, int]]]:
        """Name, and bytes by file, of each arrival that is not read yet, in order."""
        arrivals: dict[str, dict[str, int]] = {}
        for name, n_bytes in self._there(anything_read=bool(bytes_of)).items():
            before = bytes_of.get(name)
            if before is None:
                folder = str(PurePosixPath(name).parent)
                arrivals.setdefault(name if folder == "." else f"{folder}/", {})[name] = n_bytes
            elif before != n_bytes:
                raise DataError(
                    f"{Path(self.path, name)}: found {n_bytes:,} bytes, but {before:,} when it was read: files must "
                    "not change once they are there; put the new rows into a file of their own and restore this one"
                )
        return sorted(arrivals.items(), key=lambda arrival: _in_order(arrival[0]))

    def _there(self, *, anything_read: bool) -> dict[str, int]:
        """Bytes of the readable files by name, sorted."""
        root = Path(self.path)
        if not root.is_dir():
            raise DataError(f"{self.path}: there is no such folder")
        bytes_of = {path: _bytes(path) for path in root.rglob("*") if not _is_unfinished(path.relative_to(root))}
        whole = [path for path, n_bytes in bytes_of.items() if n_bytes]
        files = [path for path in whole if kind_of(path) not in (None, ".txt")]
        if whole and not files and not anything_read:
            names = listed(sorted(str(path.relative_to(root)) for path in whole), most=5)
            raise DataError(
                f"{self.path}: no readable file in the folder (files in it: {names}); supported: {SUPPORTED}"
            )
        return {path.relative_to(root).as_posix(): bytes_of[path] for path in sorted(files)}


def _bytes(path: Path) -> int:
    """Of a file; 0 for what is none, or is gone by now."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def _is_unfinished(path: Path) -> bool:
    return any(part.startswith((".", "_")) or part.endswith(_UNFINISHED) for part in path.parts)


def _in_order(name: str) -> list[str | int]:
    """What names are sorted by: text and numbers in turn."""
    plain = "/".join(part.rpartition("=")[2] for part in name.split("/"))
    return [int(piece) if piece.isdecimal() else piece for piece in [*re.split(r"([0-9]+)", plain), name]]
