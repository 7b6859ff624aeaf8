"""The result of an evaluation: numbers by row and metric, as a table and as JSON."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from ..errors import ConfigError
from .metrics import METRICS, WEIGHTED_METRICS
from .slices import SLICES

MODEL = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceSize:
    """How much there is in a slice."""

    name: str
    events: str
    """Training events of its items, in words."""
    n_items: int
    n_queries: int
    """Queries with a relevant item in the slice."""
    n_pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecall:
    """Recall among the items of a batch (``batch_recall.batch_recall``): easier the smaller the batch."""

    batch_size: int
    """Pairs."""
    n_pairs: int
    """Of the held-out part, those that fill no batch and are left out included."""
    rows: dict[str, dict[str, float]]
    """Row -> ``batch_recall@k`` -> share of pairs; nan where no batch is full."""

    @property
    def n_batches(self) -> int:
        """Full batches."""
        return self.n_pairs // self.batch_size

    @property
    def n_pairs_left_out(self) -> int:
        """Pairs that fill no batch."""
        return self.n_pairs % self.batch_size

    def heading(self) -> str:
        """What the numbers are, and are not."""
        return (
            f"easier: among the items of a batch of {self.batch_size:,} pairs, not the catalogue "
            f"({self.n_batches:,} batches; {self.n_pairs_left_out:,} pairs left out)"
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics of a model and of the baselines over the same queries."""

    rows: dict[str, dict[str, float]]
    """Row (``model``, ``popularity``, ``random``) -> metric -> mean over queries; nan where no query has it."""
    per_query: dict[str, dict[str, Tensor]]
    """Row -> metric -> [Q] float64, nan for queries left out; ``coverage`` has no value a query."""
    slices: tuple[SliceSize, ...]
    n_queries: int
    """Queries evaluated: those with a relevant item."""
    n_queries_without_truth: int
    """Queries left out because they have none."""
    n_pairs: int
    n_pairs_seen: int
    """Relevant items left out because the query had seen them."""
    n_pairs_gone: int
    """Relevant items left out because they are not live when they are asked for."""
    n_items: int
    """Candidates: the catalogue, or what is live for some query."""
    seconds: float
    """For the model's row, vectors given."""
    batch_recall: BatchRecall | None = None
    """Where it was asked for."""

    def metric(self, name: str) -> float:
        """A metric of the model.

        Raises:
            ConfigError: no metric of that name.
        """
        check_metric(name, self.rows[MODEL])
        return self.rows[MODEL][name]

    def table(self) -> str:
        """Plain text: a line a metric, a column a row; then the slices."""
        slices = [
            [size.name, size.events, f"{size.n_items:,}", f"{size.n_queries:,}", f"{size.n_pairs:,}"]
            for size in self.slices
        ]
        return "\n".join(
            [
                *_table(self.rows),
                "",
                *aligned([["slice", "training events", "items", "queries", "pairs"], *slices]),
                "",
                self._counts(),
                *([] if self.batch_recall is None else self._in_batches(self.batch_recall)),
            ]
        )

    def to_json(self) -> str:
        """Everything but the values a query; null where no query has a metric."""
        counts = {
            "n_queries": self.n_queries,
            "n_queries_without_truth": self.n_queries_without_truth,
            "n_pairs": self.n_pairs,
            "n_pairs_seen": self.n_pairs_seen,
            "n_pairs_gone": self.n_pairs_gone,
            "n_items": self.n_items,
            "seconds": self.seconds,
        }
        tree = {"rows": _without_nan(self.rows), "slices": [asdict(size) for size in self.slices], **counts}
        if self.batch_recall is not None:
            tree["batch_recall"] = {
                "rows": _without_nan(self.batch_recall.rows),
                "batch_size": self.batch_recall.batch_size,
                "n_batches": self.batch_recall.n_batches,
                "n_pairs_left_out": self.batch_recall.n_pairs_left_out,
            }
        return json.dumps(tree, indent=2, allow_nan=False)

    @staticmethod
    def _in_batches(found: BatchRecall) -> list[str]:
        return ["", found.heading(), *_table(found.rows)]

    def _counts(self) -> str:
        left_out = [
            f"{self.n_queries_without_truth:,} queries left out that have none" * (self.n_queries_without_truth > 0),
            f"{self.n_pairs_seen:,} relevant items left out that were seen" * (self.n_pairs_seen > 0),
            f"{self.n_pairs_gone:,} relevant items left out that were not live" * (self.n_pairs_gone > 0),
        ]
        parts = [
            f"{self.n_queries:,} queries with {self.n_pairs:,} relevant items among {self.n_items:,}",
            *(part for part in left_out if part),
            f"{self.seconds:.1f} s",
        ]
        return "; ".join(parts)


def metric_names(k: Sequence[int], *, weighted: bool = False) -> tuple[str, ...]:
    """Every metric that an evaluation at these k reports, in order; ``weighted``: where relevant items have weights."""
    names: list[str] = []
    for at in sorted(set(k)):
        names += [f"{name}@{at}" for name in METRICS]
        names += [f"{name}@{at}" for name in WEIGHTED_METRICS if weighted]
        names += [f"recall@{at}_{part}" for part in SLICES]
        names += [f"coverage@{at}", f"popularity@{at}"]
    return tuple(names)


def check_metric(name: str, known: Iterable[str]) -> None:
    """Raise a ``ConfigError`` unless the metric is one of the known."""
    known = list(known)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(f"metric {name!r} is not reported, expected one of {', '.join(known)}{hint}")


def _table(rows: dict[str, dict[str, float]]) -> list[str]:
    """A line a metric, a column a row."""
    metrics = next(iter(rows.values()))
    return aligned(
        [["", *rows], *([metric, *(_number(values[metric]) for values in rows.values())] for metric in metrics)]
    )


def _without_nan(rows: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """JSON has no nan."""
    return {
        row: {metric: None if math.isnan(value) else value for metric, value in values.items()}
        for row, values in rows.items()
    }


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if value < 10 else f"{value:,.1f}"


def aligned(lines: list[list[str]]) -> list[str]:
    """Columns to the right, the first to the left."""
    columns = [
        [cell.rjust(max(map(len, column))) if at else cell.ljust(max(map(len, column))) for cell in column]
        for at, column in enumerate(zip(*lines, strict=True))
    ]
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
