"""A line a request, written beside the requests."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from pathlib import Path

from ..errors import ConfigError

_WAITING = 100_000
_EVERY_S = 0.25


class AccessLog:
    """Appends lines of JSON to a file, four times a second; what is more than fits in between is counted as lost.

    Made in the process that uses it. Raises ConfigError for a file that can't be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise ConfigError(f"--access-log {path}: can't be written ({error.strerror})") from error
        self._waiting: deque[tuple[float, str, int, float]] = deque()
        self._lost = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, name="access-log", daemon=True)
        self._thread.start()

    def put(self, path: str, status: int, seconds: float) -> None:
        """Note a request that was answered."""
        if len(self._waiting) < _WAITING:
            self._waiting.append((time.time(), path, status, seconds))
        else:
            self._lost += 1

    def close(self) -> None:
        """Write what waits, and end."""
        self._ended.set()
        self._thread.join()
        self._file.close()

    def _write(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(_EVERY_S)
            lines = []
            while self._waiting:
                moment, path, status, seconds = self._waiting.popleft()
                line = {"time": round(moment, 3), "path": path, "status": status, "ms": round(1000 * seconds, 3)}
                lines.append(json.dumps(line) + "\n")
            n, lost = len(lines), self._lost
            if lost:
                lines.append(json.dumps({"time": round(time.time(), 3), "lost": lost}) + "\n")
            try:
                self._file.write("".join(lines).encode())
                self._lost -= lost
            except OSError:  # such as a full disk: there may be room again
                self._lost += n
