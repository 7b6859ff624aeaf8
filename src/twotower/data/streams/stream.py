"""What comes, in order, and where to go on after it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import DataError
from ..readers import Source
from ..report import GroupReport

Position = dict[str, Any]
"""Where a stream goes on: plain JSON, kept in a checkpoint. Only the stream that made it reads it."""

_NAP_S = 0.1
"""How long a wait for more sleeps before it looks whether it is to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """Rows that came together."""

    name: str
    """For people: a file or day, ``version 7``, ``offsets 0:34 1:33``."""
    interactions: Source | None
    """What ``data.readers`` reads; None where nothing of what came can be used, and only the position moves on."""
    position: Position
    """Where to go on after it."""
    left_out: GroupReport | None = None
    """What could not be read, by cause; None where the source counts nothing itself."""


class Stream(Protocol):
    """An ordered source that can be read on from a position."""

    def since(self, position: Position | None) -> Iterator[Arrival]:
        """What is there after ``position`` (None: from the start), oldest first; ends when caught up.

        Whoever saves the position of an arrival together with what was made of it gets each row exactly once, whenever
        they are killed and start again.

        Raises:
            DataError: what comes next is gone, or was changed after it was read.
        """
        ...


def saved(position: Position, source: str, where: str) -> Position:
    """``position``, if a stream of that kind made it.

    Raises:
        DataError: another kind of stream did.
    """
    if position.get("source") != source:
        raise DataError(
            f"{where}: found a position of the source {position.get('source')!r}, expected one of {source!r}: go on "
            "with the source that was followed before, or start without a position"
        )
    return position


def follow(
    stream: Stream, position: Position | None = None, *, every_s: float, stop: Callable[[], bool]
) -> Iterator[Arrival]:
    """What is there, and then what comes: looks again every ``every_s`` seconds, until ``stop()``.

    It stops between arrivals, never within one, and while it waits within a fraction of a second.

    Raises:
        DataError: as ``Stream.since``.
    """
    while not stop():
        for arrival in stream.since(position):
            position = arrival.position
            yield arrival
            if stop():
                return
        _wait(every_s, stop)


def _wait(seconds: float, stop: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while not stop() and (left := until - time.monotonic()) > 0:
        time.sleep(min(_NAP_S, left))


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """A ``stop`` for ``follow``: true from the first SIGTERM or Ctrl-C on. A second one interrupts at once.

    For the main thread, which is where Python runs signal handlers.
    """
    asked = False

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        restore()

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, ask)
    try:
        yield lambda: asked
    finally:
        restore()
