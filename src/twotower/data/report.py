"""What an ingest reports: rows read, kept and left out, by cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .readers import Chunk

NO_ITEM = "item id missing"
NO_QUERY = "query id missing"
BAD_TIME = "time missing, unreadable or not in 1970-2200"
BAD_WEIGHT = "weight missing, negative or not finite"
BAD_TAKEN = "taken missing, or neither yes nor no"
BAD_PER = "weight.per missing, not positive or not finite"
UNKNOWN_ITEM = "item not in the item file"
UNKNOWN_QUERY = "query not in the query file"
DUPLICATE = "repeats an earlier event"
NO_KEY = "id missing"
REPEATED_KEY = "id already there"
FORGOTTEN = "query is to be forgotten"

EXAMPLES = 3
"""Rows that are shown of each cause."""
_EXAMPLE_COLUMNS = 6  # of events: item, query, time, taken, and weight with what it is a share of


@dataclass(frozen=True, kw_only=True)
class GroupReport:
    """One group of files: interactions, valid, test, queries or items."""

    name: str
    read: int
    """Rows."""
    left_out: dict[str, int]
    """By cause."""
    examples: dict[str, list[str]]
    """By cause, a few rows."""

    @property
    def kept(self) -> int:
        """Rows that are in the store."""
        return self.read - sum(self.left_out.values())


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What an update brought to a store, and what went."""

    update: int
    """Its number, from 1."""
    n_new: int
    """Events that arrived and stay."""
    n_repeats: int
    """Events that arrived and repeat others."""
    new_queries: int
    new_items: int
    waiting: int
    """Values of features that are still below ``min_count``."""
    evicted_items: int
    evicted_events: int
    """Events that went with them."""
    forgotten_queries: int
    forgotten_events: int

    @property
    def is_nothing(self) -> bool:
        """Whether the events and the ids are as they were."""
        return not (self.n_new or self.new_queries or self.new_items or self.evicted_items or self.forgotten_queries)

    def render(self) -> list[str]:
        """Lines of text."""
        lines = [f"update       {self.update}"]
        lines += [f"new          {self.n_new:,} events, {self.new_queries:,} queries, {self.new_items:,} items"]
        lines += [f"repeats      {self.n_repeats:,} events that were there"]
        lines += [f"waiting      {self.waiting:,} values below min_count"]
        if self.evicted_items:
            lines += [f"evicted      {self.evicted_items:,} items with {self.evicted_events:,} events"]
        if self.forgotten_queries:
            lines += [f"forgotten    {self.forgotten_queries:,} queries with {self.forgotten_events:,} events"]
        return lines


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """What an ingest read, kept and left out."""

    store: str
    groups: tuple[GroupReport, ...]
    n_events: int
    n_shown: int
    """Events among them that were shown and not taken."""
    n_queries: int
    n_items: int
    queries_with_events: int
    items_with_events: int
    missing: dict[str, list[int]]
    """By ``side.feature``: rows without a value, rows."""
    collisions: dict[str, dict[str, int]]
    """By hashed table: distinct ``values``, distinct ``buckets_hit``, ``buckets``."""
    conflicts: dict[str, int]
    """By ``side.column`` taken from the interactions: events whose value is another one than the first of their id,
    which is kept."""
    n_outside_life: int
    """Events whose item was not live at their time (``schema.life``); they stay."""
    in_buckets: dict[str, list[int]]
    """By ``side.feature`` with an exact vocabulary: values without a row of their own, values."""
    growth: Growth | None = None
    """What an update brought; None of a first ingest."""
    seconds: float

    def render(self) -> str:
        """The report as plain text."""
        lines = [f"store        {self.store}", f"seconds      {self.seconds:.1f}"]
        shown = f" ({self.n_shown:,} shown and not taken)" if self.n_shown else ""
        lines += [f"events       {self.n_events:,}{shown}"]
        lines += [f"queries      {self.n_queries:,} ({self.queries_with_events:,} with events)"]
        lines += [f"items        {self.n_items:,} ({self.items_with_events:,} with events)"]
        lines += [f"             {self.n_outside_life:,} events outside their item's life"] * bool(self.n_outside_life)
        lines += [] if self.growth is None else self.growth.render()
        lines += [""]
        lines += _render_groups(self.groups)
        missing = [[name, f"{n:,}", f"{n / max(of, 1):.1%}"] for name, (n, of) in self.missing.items() if n]
        if missing:
            lines += ["", *_aligned([["without a value", "rows", "share"], *missing])]
        shared = [[name, f"{n:,}", f"{n / max(of, 1):.1%}"] for name, (n, of) in self.in_buckets.items() if n]
        if shared:
            lines += ["", *_aligned([["without a row of its own", "values", "share"], *shared])]
        if self.conflicts:
            conflicts = [[name, f"{n:,}"] for name, n in self.conflicts.items()]
            lines += ["", *_aligned([["taken from the interactions", "events that differ from the first"], *conflicts])]
        if self.collisions:
            header = ["hashed table", "distinct values", "buckets hit", "buckets"]
            hashed = [
                [name, f"{c['values']:,}", f"{c['buckets_hit']:,}", f"{c['buckets']:,}"]
                for name, c in self.collisions.items()
            ]
            lines += ["", *_aligned([header, *hashed])]
        return "\n".join(lines)


def why_left_out(groups: Sequence[GroupReport]) -> list[str]:
    """What was left out of each group, by cause, with a row of it."""
    return [
        f"{n:,} of {group.read:,} rows of {group.name} are left out: {cause}"
        + "".join(f", such as {row}" for row in group.examples[cause][:1])
        for group in groups
        for cause, n in group.left_out.items()
    ]


def _render_groups(groups: Sequence[GroupReport]) -> list[str]:
    """Lines of a table: what was read, kept and left out, with examples below."""
    table = [["", "read", "kept", "left out"]]
    for group in groups:
        table.append([group.name, f"{group.read:,}", f"{group.kept:,}", f"{group.read - group.kept:,}"])
        table += [[f"  {cause}", "", "", f"{n:,}"] for cause, n in group.left_out.items()]
    lines = _aligned(table)
    examples = [(cause, row) for group in groups for cause, rows in group.examples.items() for row in rows]
    return lines + [""] * bool(examples) + [f"{cause}: {row}" for cause, row in examples]


def _aligned(table: list[list[str]]) -> list[str]:
    """Lines of a table: the first column to the left, numbers to the right."""
    widths = [max(len(row[at]) for row in table) for at in range(len(table[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in table
    ]


class Tally:
    """Counts of one group while they grow."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.read = 0
        self.left_out: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def leave_out(self, cause: str, mask: NDArray[np.bool_], chunk: Chunk) -> None:
        """Count the rows of a mask. Nothing is shown of what is to be forgotten."""
        if cause == FORGOTTEN:
            self.count(cause, int(mask.sum()), [])
            return
        shown = np.flatnonzero(mask)[: EXAMPLES - len(self.examples.get(cause, []))]
        self.count(cause, int(mask.sum()), [_described_row(chunk, int(at)) for at in shown])

    def count(self, cause: str, n: int, examples: list[str]) -> None:
        """Count ``n`` rows; ``examples`` describes some of them."""
        if n:
            self.left_out[cause] = self.left_out.get(cause, 0) + n
            self.examples[cause] = [*self.examples.get(cause, []), *examples][:EXAMPLES]

    def report(self) -> GroupReport:
        """The counts as they stand."""
        return GroupReport(name=self.name, read=self.read, left_out=self.left_out, examples=self.examples)


def _described_row(chunk: Chunk, at: int) -> str:
    shown = [f"{name} = {chunk.table[name][at].as_py()!r:.60}" for name in chunk.table.column_names[:_EXAMPLE_COLUMNS]]
    return f"{chunk.file} row {chunk.first_row + at}: {', '.join(shown)}"
