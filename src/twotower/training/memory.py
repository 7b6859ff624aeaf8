"""What a run will need, before it starts."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..config import Run
from ..data.store import Store
from ..negatives import Mixture, Sampler
from ..optimisers import RowwiseAdam

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes by what they are for; an estimate."""

    tables: int
    optimiser: int
    events: int
    step: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.tables + self.optimiser + self.events + self.step

    def render(self) -> str:
        """One line for people."""
        available = available_bytes()
        beside = "" if available is None else f" of {available / MIB:,.0f} MiB available"
        return (
            f"memory: about {self.total / MIB:,.0f} MiB{beside} (tables {self.tables / MIB:,.0f}, "
            f"their optimiser {self.optimiser / MIB:,.0f}, events {self.events / MIB:,.0f}, a step {self.step / MIB:,.0f})"
        )

    def warning(self) -> str | None:
        """What to do where it will not fit."""
        available = available_bytes()
        if available is None or self.total < available:
            return None
        return (
            "memory: this may not fit: lower towers.dim or training.batch_size, hash large ids (hash_buckets), or raise "
            "min_count in the schema"
        )


def estimate(run: Run, store: Store) -> Memory:
    """From the sizes of tables, events and one batch."""
    rows = sum(store.encoders.table_sizes.values())
    dim = run.towers.dim
    state = dim + 2 if isinstance(run.training.tables, RowwiseAdam) else 1
    per_query = max(store.n_events / max(store.n_queries, 1), 1) if run.training.batch_of == "queries" else 1
    pairs = int(run.training.batch_size * per_query)
    columns = pairs + shared_size(run.negatives)
    vectors = 6 * (pairs + columns + run.training.batch_size) * dim * 4  # values, gradients, what autograd keeps
    return Memory(
        tables=rows * dim * 4,
        optimiser=rows * state * 4,
        events=store.n_events * 48,
        step=vectors + 3 * run.training.tile * columns * 4,
    )


def shared_size(sampler: Sampler) -> int:
    """Candidates a sampler adds to a batch."""
    if isinstance(sampler, Mixture):
        return sum(shared_size(part) for part in sampler.parts)
    return int(getattr(sampler, "n", 0))


def available_bytes() -> int | None:
    """Memory that is free now; None where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
