"""Experiments: who gets which arm, what was shown, and what it changed. Of files alone: no model, no service."""

from .analysis import analyse
from .assignment import Assignment
from .exposures import Exposure, ExposureLog, LogCounts
from .join import OutcomeColumns
from .metrics import AnyOf, Metric, Ratio, Total, metric_of
from .read import Exposures, read_exposures
from .report import ExperimentReport

__all__ = [
    "AnyOf",
    "Assignment",
    "ExperimentReport",
    "Exposure",
    "ExposureLog",
    "Exposures",
    "LogCounts",
    "Metric",
    "OutcomeColumns",
    "Ratio",
    "Total",
    "analyse",
    "metric_of",
    "read_exposures",
]
