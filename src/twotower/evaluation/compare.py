"""Comparing two models on the same queries."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDifference:
    """Mean over queries of ``a - b`` and its standard error; a clear difference is two or three of those."""

    mean: float
    standard_error: float
    """nan with a single query."""
    n_queries: int


def paired_difference(metric_a_Q: Tensor, metric_b_Q: Tensor) -> PairedDifference:
    """``mean(a - b)`` and ``std(a - b) / sqrt(n)``, std with n - 1, over the n queries that have the metric.

    Pairing takes out how hard a query is for both, so it shows far smaller differences than two separate errors. It
    says nothing of the spread between training runs: for that, compare several seeds.

    Raises:
        DataError: other numbers of queries, a query that only one side has (nan on the other), or none at all.
    """
    if metric_a_Q.shape != metric_b_Q.shape:
        raise DataError(f"a has {len(metric_a_Q)} queries and b {len(metric_b_Q)}, expected values of the same queries")
    only_one = int((metric_a_Q.isnan() != metric_b_Q.isnan()).sum())
    if only_one:
        raise DataError(f"{only_one} queries have a value on one side only, expected the same queries on both")
    difference_q = (metric_a_Q.double() - metric_b_Q.double())[~metric_a_Q.isnan()]
    n = len(difference_q)
    if n == 0:
        raise DataError("no query has a value, expected at least one")
    error = float(difference_q.std()) / math.sqrt(n) if n > 1 else math.nan
    return PairedDifference(mean=float(difference_q.mean()), standard_error=error, n_queries=n)
