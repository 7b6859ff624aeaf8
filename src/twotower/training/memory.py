"""What a run will need, before it starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..config import Run
from ..data.life import lives_of
from ..data.store import Store
from ..negatives import Room, Sizes
from ..optimisers import RowwiseAdam, TableOptimiser
from ..scoring import tile_for

MIB = 2**20
FLOAT = 4
EVENT = 48
"""Bytes of a training event: query, item, weight and time, and the same again grouped into pairs."""
COPIES = 6
"""Of a vector in a step: value, unit length, gradients of both, and what autograd keeps."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes by what they are for; an estimate."""

    tables: int
    optimiser: int
    events: int
    step: int
    negatives: int
    """What the sampler keeps from one batch to the next, its tables aside."""
    catalogue: int
    """Vectors of all items, when the model is measured."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.tables + self.optimiser + self.events + self.step + self.negatives + self.catalogue

    def render(self) -> str:
        """One line for people."""
        available = available_bytes()
        beside = "" if available is None else f" of {available / MIB:,.0f} MiB available"
        return (
            f"memory: about {self.total / MIB:,.0f} MiB{beside} (tables {self.tables / MIB:,.0f}, "
            f"their optimiser {self.optimiser / MIB:,.0f}, events {self.events / MIB:,.0f}, "
            f"a step {self.step / MIB:,.0f}, what negatives keep {self.negatives / MIB:,.0f}, "
            f"vectors of the catalogue {self.catalogue / MIB:,.0f})"
        )

    def warning(self) -> str | None:
        """What to do where it will not fit."""
        available = available_bytes()
        if available is None or self.total < available:
            return None
        return (
            "memory: this may not fit: lower towers.dim or training.batch_size, hash large ids (hash_buckets), or "
            "raise min_count in the schema"
        )


def estimate(run: Run, store: Store) -> Memory:
    """From the sizes of tables, events, candidates and one batch."""
    dim, sizes = run.towers.dim, sizes_of(run, store)
    room = run.negatives.room(sizes)
    tables = [(sum(store.encoders.table_sizes.values()), dim), *room.tables]
    return Memory(
        tables=sum(rows * width for rows, width in tables) * FLOAT,
        optimiser=sum(rows * state_size(run.training.tables, width) for rows, width in tables) * FLOAT,
        events=store.n_events * EVENT,
        step=step_bytes(run, sizes, room),
        negatives=room.kept,
        catalogue=store.n_items * dim * FLOAT,
    )


def sizes_of(run: Run, store: Store) -> Sizes:
    """Those of a run on all events of its store."""
    events = store.taken_events()
    if run.training.batch_of == "pairs":
        pairs = most_pairs = min(run.training.batch_size, len(events))
    else:
        count_Q = np.bincount(store.query_row[events], minlength=store.n_queries)
        queries = min(run.training.batch_size, store.n_queries)
        pairs = queries * len(events) // max(store.n_queries, 1)
        most_pairs = int(np.partition(count_Q, -queries)[-queries:].sum()) if queries else 0
    return Sizes(
        n_items=store.n_items,
        some_come_and_go=lives_of(store) is not None,
        n_queries=store.n_queries,
        n_events=len(events),
        n_shown=store.n_events - len(events),
        batch_items=min(pairs, store.n_items),
        most_batch_items=min(most_pairs, store.n_items),
        width=run.towers.dim,
    )


def step_bytes(run: Run, sizes: Sizes, room: Room) -> int:
    """Vectors of a batch's queries, columns and distinct items, and three tiles of scores."""
    dim, own = run.towers.dim, room.own
    queries = min(run.training.batch_size, sizes.n_events if run.training.batch_of == "pairs" else sizes.n_queries)
    looked_up = room.shared - room.stale
    columns = min(looked_up, sizes.n_items) + room.stale
    positives = 0 if room.of_batch else sizes.batch_items
    distinct = min(positives + looked_up + queries * own, sizes.n_items)
    tile = min(run.training.tile or tile_for(torch.device(run.training.device), columns + own), queries)
    return (COPIES * (queries + columns + distinct) * dim + 3 * tile * (columns + own) + tile * own * dim) * FLOAT


def state_size(optimiser: TableOptimiser, dim: int) -> int:
    """Numbers an optimiser keeps of a table's row."""
    if isinstance(optimiser, RowwiseAdam):
        return 2 + (dim if optimiser.beta1 > 0 else 0)
    return 1


def available_bytes() -> int | None:
    """Memory that can be had now, caches given up included; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
