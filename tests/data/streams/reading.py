"""What a stream gives, read as an update would, with a kill between any two arrivals."""

from __future__ import annotations

import json
from itertools import islice

import pyarrow as pa

from twotower.data.readers import read_chunks
from twotower.data.streams import Arrival, Position, Stream


def rows(arrival: Arrival, column: str = "item") -> list[object]:
    """A column of an arrival, in its order."""
    if arrival.interactions is None:
        return []
    tables = list(read_chunks(arrival.interactions, where="interactions"))
    return [value for table in tables for value in table[column].to_pylist()]


def table(arrival: Arrival) -> pa.Table:
    assert arrival.interactions is not None
    return pa.concat_tables(read_chunks(arrival.interactions, where="interactions"))


def caught_up(
    stream: Stream, position: Position | None = None
) -> tuple[list[tuple[str, list[object]]], Position | None]:
    """Name and rows of each arrival, and the position after the last."""
    found = []
    for arrival in stream.since(position):
        found.append((arrival.name, rows(arrival)))
        position = arrival.position
    return found, position


def with_kills(stream: Stream, every: int) -> list[object]:
    """All rows, read by a process that ends after ``every`` arrivals and begins anew with the position on disk."""
    found: list[object] = []
    saved: str | None = None
    while True:
        arrivals = list(islice(stream.since(None if saved is None else json.loads(saved)), every))
        if not arrivals:
            return found
        for arrival in arrivals:
            found += rows(arrival)
        saved = json.dumps(arrivals[-1].position)
