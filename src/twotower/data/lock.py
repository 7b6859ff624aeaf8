"""One writer at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import ArtifactError


@contextmanager
def locked(file: Path, taken: str) -> Iterator[None]:
    """Hold the lock ``file`` for as long as the block lasts; a process that is killed lets it go.

    On Windows nothing is locked.

    Raises:
        ArtifactError: ``taken``, where another process holds it; the file can't be written.
    """
    if sys.platform == "win32":
        yield
        return
    try:
        lock = open(file, "wb")  # noqa: SIM115 - below
    except OSError as error:
        raise ArtifactError(f"{file.parent}: can't be written there ({error.strerror})") from error
    with lock:
        if not _is_ours(lock, file):
            raise ArtifactError(taken)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _is_ours(lock: BinaryIO, file: Path) -> bool:
    """Take the lock; False where another holds it, or held it when this one was opened and removed the file since."""
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock.fileno()), file.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
