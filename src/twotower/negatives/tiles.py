"""Work done for some queries at a time, so that what is held does not grow with the batch."""

from __future__ import annotations

from collections.abc import Iterator

MOST = 2**22
"""Numbers of a tile: 16 MiB of float32."""


def tiles(n: int, width: int) -> Iterator[slice]:
    """Slices that cover 0 to n, each of as many lines as have ``MOST`` numbers together, ``width`` a line; one line at
    least, and one empty slice where there is no line."""
    step = max(1, MOST // max(width, 1))
    return (slice(start, min(start + step, n)) for start in range(0, max(n, 1), step))
