"""What an experiment showed to whom: the record, and the log that a service writes it to without waiting."""

from __future__ import annotations

import atexit
import json
import os
import queue
import secrets
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import ArtifactError

_BATCH = 256
"""Records that are written at once, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """One answer that a unit of an experiment was given. Ids are text."""

    time: float
    """Seconds since 1970, UTC."""
    request: str
    """Id of the request."""
    experiment: str
    arm: str
    user: str | None
    items: Sequence[str]
    """Ids of the items that were returned."""
    scores: Sequence[float]
    ranks: Sequence[int]
    """Place of each item, the best is 1."""
    k: int
    """How many were asked for."""
    found: int
    """Candidates that the index found."""
    filtered: int
    """Those that passed the filters."""
    returned: int
    """Those that were returned: the length of ``items``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCounts:
    """What became of the exposures of one process."""

    written: int
    dropped: int
    """Lost, as the queue was full, a file could not be written or the log was closed."""
    waiting: int
    error: str | None
    """The last fault of a file."""


class ExposureLog:
    """Appends exposures to files of JSON lines in a folder, without ever making a request wait.

    ``put`` hands the record to a queue; one thread a process writes, whole lines straight to the system, so that a
    process that is killed loses what was in the queue and leaves half a line at most. A full queue drops the exposure:
    ``counts`` tells, and so does the log itself, as each record says how many were lost before it (``dropped``).

    Each process has files of its own, ``DAY-HOST-PROCESS-RANDOM-NUMBER.ndjson``, and begins a new one with a new day
    (UTC) or at ``max_bytes``. No two write to one file, on shared storage and after a fork either. A new file also
    follows a fault, as when the disk was full: the thread goes on and tries again with the next record.

    Raises:
        ArtifactError: the folder can't be made.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        max_bytes: int = 256 << 20,
        max_waiting: int = 10_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = Path(folder)
        self._max_bytes, self._max_waiting, self._clock = max_bytes, max_waiting, clock
        self._lock = threading.Lock()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"{self.folder}: no folder can be made there ({error.strerror})") from error
        self._closed = self._forked = False
        self._begin()
        atexit.register(self.close)
        if sys.platform != "win32":
            itself = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _after_fork(itself()))

    def _begin(self) -> None:
        """Queue, files and thread of this process."""
        self._waiting: queue.Queue[Exposure | None] = queue.Queue(self._max_waiting)
        self._dropped = 0
        self._files = _Files(self.folder, self._max_bytes, self._clock)
        self._thread = threading.Thread(target=self._write, name="exposure-log", daemon=True)
        self._thread.start()

    def put(self, exposure: Exposure) -> bool:
        """Take a record to be written; False, and counted, where the queue is full or the log closed."""
        with self._lock:
            if self._forked:  # the thread and what waited are the parent's
                self._forked = False
                self._begin()
            if not self._closed:
                try:
                    self._waiting.put_nowait(exposure)
                    return True
                except queue.Full:
                    pass
            self._dropped += 1
            return False

    def counts(self) -> LogCounts:
        """What became of the exposures that this process put."""
        files = self._files
        return LogCounts(
            written=files.written,
            dropped=self._dropped + files.lost,
            waiting=self._waiting.qsize(),
            error=files.error,
        )

    def close(self) -> LogCounts:
        """Write what waits, and end."""
        with self._lock:
            ends = not self._closed
            self._closed = True
        if ends and not self._forked:
            self._waiting.put(None)
            self._thread.join()
            atexit.unregister(self.close)
        return self.counts()

    def __enter__(self) -> ExposureLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self) -> None:
        """The thread: blocks for a record, takes what else is there, writes."""
        reported = 0
        while True:
            batch = [self._waiting.get()]
            while len(batch) < _BATCH and batch[-1] is not None:
                try:
                    batch.append(self._waiting.get_nowait())
                except queue.Empty:
                    break
            ended = batch[-1] is None
            records = [record for record in batch if record is not None]
            lost = self._dropped + self._files.lost
            if self._files.append(records, lost - reported):
                reported = lost
            if ended:
                self._files.close()
                return


class _Files:
    """The files of one process, one after the other."""

    def __init__(self, folder: Path, max_bytes: int, clock: Callable[[], float]) -> None:
        self.folder, self.max_bytes, self.clock = folder, max_bytes, clock
        self.written = self.lost = self.number = self.n_bytes = 0
        self.error: str | None = None
        self.day = ""
        self.file: int | None = None
        host = "".join(c if c.isalnum() else "_" for c in socket.gethostname())
        self.process = f"{host}-{os.getpid()}-{secrets.token_hex(4)}"

    def append(self, records: Sequence[Exposure], dropped: int) -> bool:
        """Write those that can be; whether one was, which says ``dropped``."""
        lines: list[bytes] = []
        for record in records:
            try:
                lines.append(_line(record, 0 if lines else dropped))
            except (TypeError, ValueError) as error:  # must not end the log
                self.error = f"no JSON can be made of {record}: {error}"
                self.lost += 1
        if not lines:
            return False
        try:
            self._write(b"".join(lines))
        except OSError as error:
            self.error = str(error)
            self.lost += len(lines)
            self.close()
            return False
        self.written += len(lines)
        return True

    def _write(self, data: bytes) -> None:
        day = time.strftime("%Y%m%d", time.gmtime(self.clock()))
        if self.file is None or day != self.day or self.n_bytes >= self.max_bytes:
            self.close()
            self.number += 1
            path = self.folder / f"{day}-{self.process}-{self.number:04d}.ndjson"
            self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            self.day, self.n_bytes = day, 0
        while data:
            n = os.write(self.file, data)
            self.n_bytes += n
            data = data[n:]

    def close(self) -> None:
        if self.file is not None:
            os.close(self.file)
            self.file = None


_NAMES = tuple(field.name for field in fields(Exposure))


def _line(record: Exposure, dropped: int) -> bytes:
    tree = {name: getattr(record, name) for name in _NAMES} | {"dropped": dropped}
    return (json.dumps(tree, ensure_ascii=False, allow_nan=False, default=_plain) + "\n").encode()


def _plain(value: Any) -> object:
    """Numpy's numbers and arrays as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"found {type(value).__name__}, expected text, numbers and lists")


def _after_fork(log: ExposureLog | None) -> None:
    if log is not None:
        log._lock, log._forked = threading.Lock(), True
