"""The store: encoded events, queries and items on disk, memory-mapped.

    store.json      the manifest: schema, sizes, what every file is and its checksum, days, ingest report; written last
    *.bin           columns, raw and little-endian
    *.arrow         the catalogues: raw id of every query and item row; values that wait below ``min_count``
    encoders/       how raw values become rows and numbers

A store is written into a hidden folder beside its place and takes its place by a rename, so a folder with a manifest is
whole: whatever interrupts the writing leaves nothing that opens, and the next writing removes the leftover.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError, TwoTowerError
from ..schema import Schema
from ..settings import Codec
from .artifact import ArtifactKind
from .column_files import Tree, open_array, open_column
from .columns import Columns
from .encoders import Encoders
from .vocabulary import Vocabulary

WAITING = "waiting.arrow"
_AGAIN = "run the ingest again"
STORE = ArtifactKind(
    name="store", version=2, made_with="ingest", way_out=_AGAIN, replace_with="overwrite (--overwrite)"
)
MANIFEST = STORE.manifest


class Day(NamedTuple):
    """The events of one day (UTC): events ``start`` to ``stop``."""

    date: date
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Store:
    """Encoded data. Events are sorted by time where there is one; all arrays are read-only memory maps.

    A store is never changed: ``extend`` writes a new one, in which every id that stays has its row. The row of an item
    or query that went is free (null in its vocabulary, no events) until a new id takes it.
    """

    path: Path
    schema: Schema
    encoders: Encoders
    report: Tree
    """What the ingest reported: ``IngestReport`` as plain JSON."""
    n_queries: int
    n_items: int
    n_events: int
    query_vocabulary: Vocabulary | None
    """Raw query id <-> row; None where the schema names no query column."""
    item_vocabulary: Vocabulary
    """Raw item id <-> row."""
    query: Columns
    """Features of all queries, ``n_queries`` rows."""
    item: Columns
    """Features of all items, ``n_items`` rows."""
    context: Columns
    """Features of all events' contexts, ``n_events`` rows; a History has no column."""
    query_row: NDArray[np.int32]
    """[E] row of the query, -1 without a query column."""
    item_row: NDArray[np.int32]
    """[E]"""
    weight: NDArray[np.float32]
    """[E]"""
    time_us: NDArray[np.int64] | None
    """[E] microseconds since 1970, UTC, rising."""
    taken: NDArray[np.uint8] | None
    """[E] 1 where the query took the item, 0 where it was shown it and did not; None where all were taken."""
    split: NDArray[np.int8] | None
    """[E] the given split: 0 train, 1 valid, 2 test."""
    arrived: NDArray[np.int32]
    """[E] number of the update that brought the event, 0 for the first ingest."""
    n_updates: int
    """Number of the newest update, 0 after the first ingest."""
    item_number: NDArray[np.int64]
    """[M] a number that each item has for itself for good, -1 for a free row: what is hashed by item hashes this, so
    that an item that takes over a row inherits nothing."""
    item_seen_us: NDArray[np.int64] | None
    """[M] when an item was last seen: its last event, or the newest of all when an item file listed it last; None
    without a time."""
    days: tuple[Day, ...]
    """The days that have events, in order; empty without a time."""
    query_item_row: NDArray[np.int32] | None
    """[n_queries] where query ids are item ids: the item row of each query, -1 for none."""
    since_us: NDArray[np.int64] | None = None
    """[n_items] when each item's life starts (``data.life``); None where the schema declares no ``life``."""
    until_us: NDArray[np.int64] | None = None
    """[n_items] when it ends: live where ``since_us <= t < until_us``."""

    def taken_events(self) -> NDArray[np.int64]:
        """The events that say what a query likes, in order: all but impressions."""
        return np.arange(self.n_events) if self.taken is None else np.flatnonzero(self.taken)

    @staticmethod
    def open(path: str | os.PathLike[str], *, verify: bool = False) -> Store:
        """Open a store. Sizes of all files are always checked, their checksums with ``verify`` (reads everything).

        Raises:
            ArtifactError: there is no store, or it is incomplete, damaged or of another version.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        STORE.check_files(folder, manifest, verify=verify)
        try:
            return _opened(folder, manifest)
        except ArtifactError:
            raise
        except (TwoTowerError, KeyError, TypeError, ValueError, OSError) as error:
            raise ArtifactError(f"{folder}: the store's manifest is damaged ({error!r}): {_AGAIN}") from error


def _opened(folder: Path, manifest: Tree) -> Store:
    schema = decode_schema(manifest["schema"], folder)
    counts, arrays = manifest["counts"], manifest["arrays"]

    def columns(side: str, n: int) -> Columns:
        return Columns({name: open_column(folder, leaf) for name, leaf in arrays[side].items()}, n)

    def array(leaf: Tree | None) -> Any:
        return None if leaf is None else open_array(folder, leaf)

    has_query = schema.interactions.query is not None
    event = {name: array(leaf) for name, leaf in arrays["event"].items()}
    return Store(
        path=folder,
        schema=schema,
        encoders=Encoders.load(folder / "encoders", schema),
        report=manifest["report"],
        n_queries=counts["queries"],
        n_items=counts["items"],
        n_events=counts["events"],
        query_vocabulary=Vocabulary.load(folder / "queries.arrow") if has_query else None,
        item_vocabulary=Vocabulary.load(folder / "items.arrow"),
        query=columns("query", counts["queries"]),
        item=columns("item", counts["items"]),
        context=columns("context", counts["events"]),
        query_row=event["query_row"],
        item_row=event["item_row"],
        weight=event["weight"],
        time_us=event.get("time_us"),
        taken=event.get("taken"),
        split=event.get("split"),
        arrived=event["arrived"],
        n_updates=counts["updates"],
        item_number=array(arrays["catalogue"]["item_number"]),
        item_seen_us=array(arrays["catalogue"].get("item_seen_us")),
        days=tuple(Day(date.fromisoformat(day), start, stop) for day, start, stop in manifest["days"]),
        query_item_row=array(arrays["query_item_row"]),
        since_us=array(arrays.get("since_us")),
        until_us=array(arrays.get("until_us")),
    )


# ---------------------------------------------------------------- the schema in the manifest


def encode_schema(schema: Schema) -> Tree:
    """The schema as plain JSON."""
    return dict(Codec().encode(Schema, schema))


def decode_schema(tree: object, folder: Path, kind: ArtifactKind = STORE) -> Schema:
    """What ``encode_schema`` was given.

    Raises:
        ArtifactError: the tree is no schema of this version.
    """
    try:
        schema: Schema = Codec().decode(Schema, tree, "schema")
    except TwoTowerError as error:
        raise ArtifactError(f"{folder}: the {kind.name}'s schema can't be read ({error}): {kind.way_out}") from error
    return schema


# ---------------------------------------------------------------- the manifest


def read_manifest(folder: Path) -> Tree:
    """The checked manifest of the store in ``folder``.

    Raises:
        ArtifactError: there is none, or it is damaged or of another version.
    """
    return STORE.read(folder)


def write_manifest(folder: Path, body: Tree) -> None:
    """Describe every file in ``folder`` and write the manifest: the last step of a store."""
    STORE.write(folder, body)
