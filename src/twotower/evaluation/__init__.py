"""Exact, tie-safe evaluation of a retrieval model over the full catalogue. It gets vectors, not models."""

from .batch_recall import batch_recall
from .compare import PairedDifference, paired_difference
from .evaluate import evaluate
from .metrics import METRICS
from .ranks import Positions, Ranks
from .report import MODEL, BatchRecall, Evaluation, SliceSize, check_metric, metric_names
from .slices import SLICES, Slices
from .topk import TopK, top_k, top_k_and_ranks

__all__ = [
    "METRICS",
    "MODEL",
    "SLICES",
    "BatchRecall",
    "Evaluation",
    "PairedDifference",
    "Positions",
    "Ranks",
    "SliceSize",
    "Slices",
    "TopK",
    "batch_recall",
    "check_metric",
    "evaluate",
    "metric_names",
    "paired_difference",
    "top_k",
    "top_k_and_ranks",
]
