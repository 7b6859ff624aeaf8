"""What a sampler takes up, known before it is set up: upper bounds, by the sizes of the run."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of a run: what bounds the candidates of a batch, and what a sampler keeps."""

    n_items: int
    n_queries: int
    """Rows of queries; 0 where they have no id."""
    n_events: int
    """Training events."""
    n_shown: int
    """Impressions that were not taken."""
    batch_items: int
    """Distinct items that a batch brings."""
    most_batch_items: int
    """The most that one can: in batches of queries, those of the queries with most pairs."""
    width: int
    some_come_and_go: bool = False
    """Whether not all items may be drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """At most so many candidates a batch, and so many bytes from one batch to the next."""

    shared: int = 0
    """Candidates that a batch shares."""
    of_batch: bool = False
    """Whether the batch's own items are among them."""
    stale: int = 0
    """Those of them that bring their vectors, which nobody encodes."""
    own: int = 0
    """Candidates of each query's own."""
    kept: int = 0
    """Bytes of buffers."""
    tables: tuple[tuple[int, int], ...] = ()
    """Rows and width of each table that is learned."""

    def chosen(self, own: int) -> Room:
        """Where what is offered is only looked at, and so many of it are chosen for each query."""
        return replace(self, shared=0, of_batch=False, stale=0, own=own)

    def __add__(self, other: Room) -> Room:
        return Room(
            shared=self.shared + other.shared,
            of_batch=self.of_batch or other.of_batch,
            stale=self.stale + other.stale,
            own=self.own + other.own,
            kept=self.kept + other.kept,
            tables=self.tables + other.tables,
        )
