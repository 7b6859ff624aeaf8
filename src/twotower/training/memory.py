"""What a run will need, before it starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config import Run
from ..data.store import Store
from ..negatives import Impressions, Mixture, Policy, Rotations, Sampler
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
    catalogue: int
    """Vectors of all items, when the model is measured."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.tables + self.optimiser + self.events + self.step + self.catalogue

    def render(self) -> str:
        """One line for people."""
        available = available_bytes()
        beside = "" if available is None else f" of {available / MIB:,.0f} MiB available"
        return (
            f"memory: about {self.total / MIB:,.0f} MiB{beside} (tables {self.tables / MIB:,.0f}, "
            f"their optimiser {self.optimiser / MIB:,.0f}, events {self.events / MIB:,.0f}, "
            f"a step {self.step / MIB:,.0f}, vectors of the catalogue {self.catalogue / MIB:,.0f})"
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
    """From the sizes of tables, events and one batch."""
    rows, dim = sum(store.encoders.table_sizes.values()), run.towers.dim
    return Memory(
        tables=rows * dim * FLOAT,
        optimiser=rows * state_size(run.training.tables, dim) * FLOAT,
        events=store.n_events * EVENT,
        step=step_bytes(run, store),
        catalogue=store.n_items * dim * FLOAT,
    )


def step_bytes(run: Run, store: Store) -> int:
    """Vectors of a batch's queries and distinct items, and three tiles of scores."""
    dim = run.towers.dim
    by_pairs = run.training.batch_of == "pairs"
    queries = min(run.training.batch_size, store.n_events if by_pairs else store.n_queries)
    pairs = queries if by_pairs else queries * store.n_events // max(store.n_queries, 1)
    shared, own = candidates(run.negatives)
    columns = min(pairs + shared, store.n_items)
    distinct = min(pairs + shared + queries * own, store.n_items)
    tile = min(run.training.tile or tile_for(torch.device(run.training.device), columns + own), queries)
    return (COPIES * (queries + columns + distinct) * dim + 3 * tile * (columns + own) + tile * own * dim) * FLOAT


def state_size(optimiser: TableOptimiser, dim: int) -> int:
    """Numbers an optimiser keeps of a table's row."""
    if isinstance(optimiser, RowwiseAdam):
        return 2 + (dim if optimiser.beta1 > 0 else 0)
    return 1


def candidates(sampler: Sampler) -> tuple[int, int]:
    """Candidates a sampler adds to a batch (beside the batch itself), and to each query's own."""
    if isinstance(sampler, Mixture):
        shared, own = zip(*(candidates(part) for part in sampler.parts), strict=True)
        return sum(shared), sum(own)
    n = int(getattr(sampler, "n", 0))
    is_own = isinstance(sampler, Impressions | Rotations | Policy) or getattr(sampler, "per_query", False)
    return (0, n) if is_own else (n, 0)


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
