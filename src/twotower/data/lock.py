"""One writer at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ArtifactError


@contextmanager
def locked(file: Path, taken: str) -> Iterator[None]:
    """Hold the lock ``file`` for as long as the block lasts; a process that is killed lets it go.

    On Windows nothing is locked.

    Raises:
        ArtifactError: ``taken``, where another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with open(file, "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtifactError(taken) from error
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
