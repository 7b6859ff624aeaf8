"""Changes of items that all workers of a service agree on: one file that only grows, and outlives them.

    magic                                    8 bytes
    record   length, crc32 of the payload    2 x uint32, little-endian
             payload                         JSON: {"upsert": [{"item": id, "columns": {...}}]} or {"delete": [id]}

A change is acknowledged once its record is on the disk (fsync). Whoever appends holds a lock of the system, which a
killed process gives back; what such a process left half written is cut off by the next one. Others read on from where
they were. A file that was made shorter (``compact``) takes the place of the old one under its name.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from ..errors import ArtifactError

JOURNAL, LOCK = "items.journal", "items.lock"
_MAGIC = b"2TITEMS\x01"
_HEAD = struct.Struct("<II")

Record = Mapping[str, Any]


class Journal:
    """One process's hand on the file; made after a fork, as a lock belongs to an opened file.

    Raises ArtifactError where the folder can't be used, or holds another file under that name.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self._file, self._at = -1, 0
            with self.locked():
                if not self.path.exists() or self.path.stat().st_size < len(_MAGIC):
                    self._replace(_MAGIC)
            self._open()
        except OSError as error:
            raise ArtifactError(
                f"{folder}: can't keep changes there ({error.strerror}): choose another place"
            ) from error

    def close(self) -> None:
        """Give the files back."""
        for file in (self._file, self._lock):
            if file >= 0:
                os.close(file)
        self._file = self._lock = -1

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else appends meanwhile."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def has_news(self) -> bool:
        """Whether there is something to read."""
        there = os.stat(self.path)
        return there.st_size != self._at or there.st_ino != os.fstat(self._file).st_ino

    def read(self) -> list[Record]:
        """Records since the last read; all of them, where the file was replaced since. A record that is not whole yet
        is left for later.

        Raises ArtifactError where the file is damaged.
        """
        try:
            is_replaced = os.stat(self.path).st_ino != os.fstat(self._file).st_ino
        except FileNotFoundError as error:
            raise ArtifactError(f"{self.path}: is gone, so no change can be kept: start the service again") from error
        if is_replaced:
            os.close(self._file)
            self._open()
        records: list[Record] = []
        data = self._rest()
        at = 0
        while (payload := self._whole(data, at)) is not None:
            records.append(orjson.loads(payload))
            at += _HEAD.size + len(payload)
        self._at += at
        return records

    def append(self, records: Sequence[Record]) -> None:
        """Write records and see them to the disk. Only under the lock, with everything read.

        Raises ArtifactError where they can't be written; nothing of them is then there.
        """
        data = b"".join(_framed(orjson.dumps(record)) for record in records)
        try:
            os.ftruncate(self._file, self._at)  # what a killed process left half written
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._at + written)
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._at)
            raise ArtifactError(
                f"{self.path}: a change can't be written ({error.strerror}); it was not made"
            ) from error
        self._at += len(data)

    def compact(self, records: Sequence[Record]) -> None:
        """Replace the file by one with these records, which say the same. Only under the lock, with everything read."""
        self._replace(_MAGIC + b"".join(_framed(orjson.dumps(record)) for record in records))
        os.close(self._file)
        self._open()
        self._at = os.fstat(self._file).st_size

    @property
    def n_bytes(self) -> int:
        """Bytes of what was read."""
        return self._at

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        if os.pread(self._file, len(_MAGIC), 0) != _MAGIC:
            raise ArtifactError(f"{self.path}: this is no journal of items, or one of another version")
        self._at = len(_MAGIC)

    def _replace(self, data: bytes) -> None:
        partial = self.path.with_name(f".{JOURNAL}.partial")
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _rest(self) -> bytes:
        size = os.fstat(self._file).st_size - self._at
        parts, at = [], self._at
        while size > 0 and (part := os.pread(self._file, size, at)):
            parts.append(part)
            at, size = at + len(part), size - len(part)
        return b"".join(parts)

    def _whole(self, data: bytes, at: int) -> bytes | None:
        """The payload at ``at``, None of one that ends too early or is the last and not what it should be."""
        if len(data) - at < _HEAD.size:
            return None
        length, crc = _HEAD.unpack_from(data, at)
        payload = data[at + _HEAD.size : at + _HEAD.size + length]
        if length and len(payload) == length and zlib.crc32(payload) == crc:
            return payload
        ends_here = at + _HEAD.size + length >= len(data)
        if ends_here or not data[at:].strip(b"\0"):  # half written: the next who appends cuts it off
            return None
        raise ArtifactError(
            f"{self.path}: damaged at byte {self._at + at} with more behind it: restore it from a copy, or "
            "move it away to start without the changes in it"
        )


def _framed(payload: bytes) -> bytes:
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload
