"""What each kind of index would cost and find on given vectors."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from ..settings import Tree
from .exact import Mask, Vectors
from .index import Found, Index
from .kinds import HNSW, IVFPQ, IVFSQ8, LSH, SEARCH_SETTINGS, Exact, IndexSettings
from .tuning import LEAST_QUERIES, lower_bound, recall_of, tune

MOST_QUERIES = 1_000
"""Held-out queries that are tuned on, and as many that are measured."""
_TIMED = 300
_WARM = 5
_AROUND = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Points of a curve: how hard it looks, as a multiple of what was tuned."""
DECILES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """One query at a time on one thread, in milliseconds."""

    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Filtered:
    """Searches among some of the items."""

    recall: float
    latency: Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One setting of a search."""

    look: float
    """``nprobe``, ``ef_search`` or ``k_factor``."""
    recall: float
    p50_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One kind."""

    settings: IndexSettings
    met: bool
    """Whether the target was met on the queries that it was tuned on."""
    recall: float
    low: float
    """Where the true mean lies above with 95%."""
    recall_by_decile: tuple[float | None, ...]
    """Share of the right items of each popularity decile that are found, most popular first; None: there are none."""
    latency: Latency
    filtered: Mapping[str, Filtered]
    build_s: float
    memory_bytes: int
    curve: tuple[Point, ...]

    @property
    def kind(self) -> str:
        """Name of the settings' class."""
        return type(self.settings).__name__


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexReport:
    """Recall against exact search, latency, time to build and memory, a line a kind."""

    n_items: int
    width: int
    k: int
    target_recall: float
    n_queries: int
    filter_share: float
    lines: tuple[Line, ...]

    def render(self) -> str:
        """As a table for people."""
        header = ["kind", f"recall@{self.k}", "95% above", "head", "tail", *_names(self.lines), "p50 ms", "p99 ms",
                  "filter ms", "build s", "MiB", "settings"]  # fmt: skip
        rows = [header, *(_cells(line) for line in self.lines)]
        widths = [max(len(row[at]) for row in rows) for at in range(len(header))]
        lines = [
            f"{self.n_items:,} items of {self.width} numbers; tuned for recall@{self.k} of {self.target_recall:g}, "
            f"measured on {self.n_queries:,} other held-out queries; one query at a time, one thread"
        ]
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:-1], widths[1:-1], strict=True))]
            lines.append("  ".join([*cells, row[-1]]))
        lines.append(
            f"head, tail: right items of the first and the last popularity decile that has any. Filters leave "
            f"{self.filter_share:.0%} of the items: at random, or those least like the queries (ms: p50 of those)."
        )
        missed = [line.kind for line in self.lines if not line.met]
        if missed:
            lines.append(f"The target was NOT met by {', '.join(missed)}, however hard it looked.")
        return "\n".join(lines)

    def to_tree(self) -> Tree:
        """As plain JSON, such as a bundle keeps."""
        tree = dataclasses.asdict(self)
        for line, content in zip(self.lines, tree["lines"], strict=True):
            content["settings"] = {"kind": line.kind, **content["settings"]}
        return tree

    def to_json(self) -> str:
        """As JSON, on one line."""
        return json.dumps(self.to_tree())

    def plot(self, path: str | Path) -> bool:
        """Write a picture, recall against latency; False where matplotlib is not installed.

        Raises ArtifactError where it can't be written.
        """
        from .plot import plot

        return plot(self, Path(path))


USUAL: tuple[IndexSettings, ...] = (Exact(), IVFSQ8(), IVFPQ(), HNSW(), LSH())


def report(
    vector_MD: Vectors,
    query_QD: Vectors,
    *,
    count_M: NDArray[Any],
    live_M: Mask | None = None,
    kinds: Sequence[IndexSettings] = USUAL,
    k: int = 100,
    target_recall: float = 0.95,
    filter_share: float = 0.1,
    threads: int = 1,
    seed: int = 0,
) -> IndexReport:
    """Build each kind, tune it on half of the queries and measure it on the others.

    ``query_QD`` are vectors of held-out queries; ``count_M`` says how often each item was taken, for the deciles.
    ``threads`` are for building; measured is on one.

    Raises:
        DataError: fewer than 60 queries, counts that are not one an item; as ``Index.build``.
        ConfigError: settings out of range.
    """
    if not 0 < filter_share < 1:
        raise ConfigError(f"filter_share is {filter_share}, expected more than 0 and less than 1")
    if len(query_QD) < 2 * LEAST_QUERIES:
        raise DataError(f"index report: found {len(query_QD)} held-out queries, expected at least {2 * LEAST_QUERIES}")
    if count_M.shape != (len(vector_MD),):
        raise DataError(f"count_M: found the shape {count_M.shape}, expected one for each of {len(vector_MD)} items")
    rng = np.random.default_rng(seed)
    live_M = np.ones(len(vector_MD), bool) if live_M is None else live_M
    query_QD = query_QD[rng.permutation(len(query_QD))[: 2 * MOST_QUERIES]]
    half = len(query_QD) // 2
    task = _Task(
        vector_MD=vector_MD,
        live_M=live_M,
        tuning_QD=query_QD[:half],
        query_QD=query_QD[half:],
        decile_M=_deciles(count_M, live_M),
        filters=_filters(vector_MD, query_QD, filter_share, rng),
        k=min(k, max(int(live_M.sum()), 1)),
        target_recall=target_recall,
        threads=threads,
        seed=seed,
    )
    return IndexReport(
        n_items=int(live_M.sum()),
        width=vector_MD.shape[1],
        k=task.k,
        target_recall=target_recall,
        n_queries=len(task.query_QD),
        filter_share=filter_share,
        lines=task.lines(kinds),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What is asked of every kind."""

    vector_MD: Vectors
    live_M: Mask
    tuning_QD: Vectors
    query_QD: Vectors
    decile_M: NDArray[Any]
    filters: Mapping[str, Mask]
    k: int
    target_recall: float
    threads: int
    seed: int

    def lines(self, kinds: Sequence[IndexSettings]) -> tuple[Line, ...]:
        exact = Index.build(self.vector_MD, live_M=self.live_M)
        truth = exact.search(self.query_QD, self.k)
        truths = {name: exact.search(self.query_QD, self.k, allowed=mask) for name, mask in self.filters.items()}
        return tuple(self._line(settings, truth, truths) for settings in kinds)

    def _line(self, settings: IndexSettings, truth: Found, truths: Mapping[str, Found]) -> Line:
        started = time.perf_counter()
        index = Index.build(self.vector_MD, settings, live_M=self.live_M, threads=self.threads, seed=self.seed)
        build_s = time.perf_counter() - started
        tuned = tune(index, self.tuning_QD, k=self.k, target_recall=self.target_recall)
        index = index.look(tuned.settings)
        found = index.search(self.query_QD, self.k)
        recall_Q = recall_of(found, truth)
        return Line(
            settings=tuned.settings,
            met=tuned.met,
            recall=float(recall_Q.mean()),
            low=lower_bound(recall_Q),
            recall_by_decile=self._by_decile(found, truth),
            latency=self._latency(index),
            filtered={
                name: Filtered(
                    recall=float(recall_of(index.search(self.query_QD, self.k, allowed=mask), truths[name]).mean()),
                    latency=self._latency(index, mask),
                )
                for name, mask in self.filters.items()
            },
            build_s=build_s,
            memory_bytes=index.memory_bytes(),
            curve=tuple(self._point(index.look(one), truth) for one in _around(index)),
        )

    def _by_decile(self, found: Found, truth: Found) -> tuple[float | None, ...]:
        n_right, n_found = np.zeros(DECILES), np.zeros(DECILES)
        for found_k, truth_k in zip(found.row_Bk, truth.row_Bk, strict=True):
            right = truth_k[truth_k >= 0]
            n_right += np.bincount(self.decile_M[right], minlength=DECILES)
            n_found += np.bincount(self.decile_M[right[np.isin(right, found_k)]], minlength=DECILES)
        return tuple(float(f / r) if r else None for f, r in zip(n_found, n_right, strict=True))

    def _latency(self, index: Index, allowed: Mask | None = None, most: int = _TIMED) -> Latency:
        times_ms = []
        for at in range(-_WARM, min(most, len(self.query_QD))):
            query_1D = self.query_QD[max(at, 0)][None]
            started = time.perf_counter()
            index.search(query_1D, self.k, allowed=allowed)
            times_ms.append(1000 * (time.perf_counter() - started))
        p50, p99 = np.percentile(times_ms[_WARM:], (50, 99))
        return Latency(p50_ms=float(p50), p99_ms=float(p99))

    def _point(self, index: Index, truth: Found) -> Point:
        return Point(
            look=float(getattr(index.settings, _knob(index.settings))),
            recall=float(recall_of(index.search(self.query_QD, self.k), truth).mean()),
            p50_ms=self._latency(index, most=_TIMED // 3).p50_ms,
        )


def _knob(settings: IndexSettings) -> str:
    """The setting that says how hard it looks."""
    return next(name for name in SEARCH_SETTINGS if hasattr(settings, name))


def _around(index: Index) -> list[IndexSettings]:
    """The settings, and such that look less hard or harder."""
    settings = index.settings
    if isinstance(settings, Exact):
        return []
    value = getattr(settings, _knob(settings))
    near = (type(value)(max(1, min(round(times * value), index.most))) for times in _AROUND)
    return [_with(settings, value) for value in dict.fromkeys(near)]


def _with(settings: IndexSettings, value: float) -> IndexSettings:
    if isinstance(settings, (IVFSQ8, IVFPQ)):
        return replace(settings, nprobe=int(value))
    if isinstance(settings, HNSW):
        return replace(settings, ef_search=int(value))
    assert isinstance(settings, LSH)
    return replace(settings, k_factor=float(value))


def _deciles(count_M: NDArray[Any], live_M: Mask) -> NDArray[Any]:
    """[M] popularity decile of the items that are live: tenths of them by events, most popular first."""
    row_n = np.flatnonzero(live_M)
    order_n = np.argsort(-count_M[row_n].astype(np.float64), kind="stable")
    decile_M = np.zeros(len(live_M), np.int64)
    decile_M[row_n[order_n]] = np.arange(len(row_n)) * DECILES // max(len(row_n), 1)
    return decile_M


def _filters(vector_MD: Vectors, query_QD: Vectors, share: float, rng: np.random.Generator) -> dict[str, Mask]:
    """Masks that leave a share of the items: at random, and those with the least scores for the mean query."""
    score_M = np.asarray(vector_MD @ query_QD.mean(0))
    unlike = np.zeros(len(vector_MD), bool)
    unlike[np.argsort(score_M, kind="stable")[: math.ceil(share * len(vector_MD))]] = True
    return {"random": rng.random(len(vector_MD)) < share, "unlike": unlike}


def _names(lines: Sequence[Line]) -> list[str]:
    return [f"{name} filter" for name in lines[0].filtered] if lines else []


def _cells(line: Line) -> list[str]:
    deciles = [recall for recall in line.recall_by_decile if recall is not None]
    settings = dataclasses.asdict(line.settings)
    return [
        line.kind,
        f"{line.recall:.4f}",
        f"{line.low:.4f}",
        *(f"{recall:.3f}" for recall in (deciles[0], deciles[-1])),
        *(f"{one.recall:.3f}" for one in line.filtered.values()),
        f"{line.latency.p50_ms:.3f}",
        f"{line.latency.p99_ms:.3f}",
        f"{list(line.filtered.values())[-1].latency.p50_ms:.3f}",
        f"{line.build_s:.1f}",
        f"{line.memory_bytes / 2**20:,.1f}",
        " ".join(f"{name}={value:g}" for name, value in settings.items() if value is not None),
    ]
