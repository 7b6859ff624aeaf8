"""Exact, tie-safe evaluation of a retrieval model over the full catalogue. It gets vectors, not models."""

from .batch_recall import batch_recall
from .calibration import (
    Reliability,
    ReliabilityBin,
    calibrate,
    calibrate_logit,
    expected_calibration_error,
    reliability,
)
from .compare import PairedDifference, paired_difference
from .evaluate import evaluate
from .metrics import METRICS, WEIGHTED_METRICS
from .ranks import Positions, Ranks
from .report import MODEL, BatchRecall, Evaluation, SliceSize, check_metric, metric_names
from .slices import SLICES, Slices
from .topk import TopK, top_k, top_k_and_ranks

__all__ = [
    "METRICS",
    "MODEL",
    "SLICES",
    "WEIGHTED_METRICS",
    "BatchRecall",
    "Evaluation",
    "PairedDifference",
    "Positions",
    "Ranks",
    "Reliability",
    "ReliabilityBin",
    "SliceSize",
    "Slices",
    "TopK",
    "batch_recall",
    "calibrate",
    "calibrate_logit",
    "check_metric",
    "evaluate",
    "expected_calibration_error",
    "metric_names",
    "paired_difference",
    "reliability",
    "top_k",
    "top_k_and_ranks",
]
