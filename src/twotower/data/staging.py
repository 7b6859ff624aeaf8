"""Where a store, bundle or index is made before it takes its place, so that nothing half-made is ever found there."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from ..errors import ArtifactError
from .artifact import ArtifactKind
from .store import STORE


class Staging:
    """The hidden folder in which a store (or another ``kind``) for ``out`` is made; ``publish`` puts it in its place.

    Whatever else ends the ``with`` block removes the folder. Beside ``out``, named after it: ``.NAME.partial`` (being
    written), ``.NAME.replaced`` (the old one, for the moment of the exchange) and ``.NAME.lock``.

    Raises:
        ArtifactError: ``out`` is taken, another process is writing it, or it can't be written.
    """

    def __init__(self, out: Path, overwrite: bool, kind: ArtifactKind = STORE) -> None:
        self.out, self._overwrite, self._kind = out, overwrite, kind
        place = out.resolve()
        self._place = place
        self.folder = place.with_name(f".{place.name}.partial")
        self._replaced = place.with_name(f".{place.name}.replaced")
        self._lock_file = place.with_name(f".{place.name}.lock")
        self._lock: BinaryIO | None = None

    def __enter__(self) -> Self:
        with self._writing():
            check_destination(self.out, self._overwrite, self._kind)
            self._place.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            try:
                self._tidy()
                self.folder.mkdir()
            except BaseException:
                self._release_lock()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._release_lock()
        if isinstance(error, OSError):
            raise ArtifactError(f"{self.out}: the {self._kind.name} can't be written ({error})") from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ArtifactError(f"{self.out}: the {self._kind.name} can't be written ({error})") from error

    def publish(self) -> None:
        """Let the finished folder take its place, and remove the one that was there."""
        check_destination(self.out, self._overwrite, self._kind)
        if (self._place / self._kind.manifest).exists():
            self._place.rename(self._replaced)
        elif self._place.exists():
            self._place.rmdir()
        self.folder.rename(self._place)
        shutil.rmtree(self._replaced, ignore_errors=True)

    def _tidy(self) -> None:
        """Remove what an interrupted writing left; what was just being replaced gets its place back."""
        if self._replaced.exists() and not self._place.exists():
            self._replaced.rename(self._place)
            check_destination(self.out, self._overwrite, self._kind)
        for leftover in (self.folder, self._replaced):
            if leftover.exists():
                shutil.rmtree(leftover)

    def _take_lock(self) -> None:
        if sys.platform == "win32":
            return
        import fcntl

        self._lock = open(self._lock_file, "wb")  # noqa: SIM115 - held until all is written
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise ArtifactError(
                f"{self.out}: another {self._kind.made_with} is writing this {self._kind.name}: wait for it, or choose "
                "another place"
            ) from error

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock_file.unlink(missing_ok=True)
            self._lock.close()


def check_destination(out: Path, overwrite: bool, kind: ArtifactKind = STORE) -> None:
    """Only an absent place, an empty folder or (with ``overwrite``) one of the same kind may be taken.

    Raises:
        ArtifactError: anything else is there.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise ArtifactError(f"{out}: there is a file, expected a free place for the {kind.name}'s folder")
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if not there and not any(out.iterdir()):
        return
    foreign = sorted(there - kind.files_of(out))
    if foreign or not there:
        raise ArtifactError(
            f"{out}: the folder holds what is no part of {kind.one} ({foreign[0] if foreign else 'folders'}): "
            "choose another place, or remove it yourself"
        )
    if not overwrite:
        raise ArtifactError(
            f"{out}: there is {kind.one} already: choose another place, or replace it with {kind.replace_with}"
        )
