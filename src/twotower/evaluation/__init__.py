"""Exact, tie-safe evaluation of a retrieval model over the full catalogue. It gets vectors, not models; only
``drift`` scores a sample of events itself."""

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
from .drift import Drift, drift
from .evaluate import evaluate
from .frequencies import FrequencyClass, FrequencyReport, frequency_report
from .metrics import METRICS, WEIGHTED_METRICS
from .ranks import Positions, Ranks
from .report import MODEL, BatchRecall, Evaluation, SliceSize, check_metric, metric_names
from .slices import SLICES, Slices
from .topk import TopK, top_k, top_k_and_ranks
from .two_samples import DriftLine

__all__ = [
    "METRICS",
    "MODEL",
    "SLICES",
    "WEIGHTED_METRICS",
    "BatchRecall",
    "Drift",
    "DriftLine",
    "Evaluation",
    "FrequencyClass",
    "FrequencyReport",
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
    "drift",
    "evaluate",
    "expected_calibration_error",
    "frequency_report",
    "metric_names",
    "paired_difference",
    "reliability",
    "top_k",
    "top_k_and_ranks",
]
