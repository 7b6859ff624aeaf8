"""Whether two samples of events are of one law, as far as their sizes can tell.

Events of one query are not independent draws: who comes today is drawn, and brings all its events. So events come in
groups, and a mean's standard error is that of sums over groups, with the deviations from the mean of both samples
together (what the error is where nothing shifted):

    SE^2 = (G / (G - 1)) sum over groups g of (sum over events e of g of (x_e - mean))^2 / n^2

Source: Liang and Zeger, Longitudinal data analysis using generalized linear models (Biometrika 73, 1986), for
independence working equations; with each event a group of its own it is the usual standard error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STANDARD_ERRORS = 4.0
"""What is no further off is taken for chance: of thirty lines every day, one in a year and a half."""
LEAST_DEVIATIONS = 0.1
"""Shift of a mean, in deviations of single values, from which it matters."""
LEAST_SHARE = 0.02
"""Shift of a share from which it matters."""
LEAST_VARIATION = 0.05
"""Total variation distance, less what chance gives, from which it matters."""
LEAST_OF_A_ROW = 10
"""Rows with fewer events in both samples together are taken for one."""

_ABSOLUTE_MEAN = math.sqrt(2 / math.pi)
"""E|X| of a normal X of mean 0 and deviation 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftLine:
    """One comparison of what arrived with what was there before."""

    of: str
    """What is compared, such as ``item.price``."""
    what: str
    """Of what it: ``mean``, ``missing``, ``distribution``."""
    before: float | None
    """None where it is no single number."""
    arrived: float | None
    shift: float
    """Of a share its difference, of a mean that in deviations before, of a distribution the total variation distance
    less what chance gives."""
    least: float
    """Shift from which it matters."""
    standard_errors: float
    """How far off it is by chance alone; nan where there is too little to tell."""

    @property
    def shifted(self) -> bool:
        """Whether the shift matters and is none of chance."""
        return abs(self.shift) > self.least and self.standard_errors > STANDARD_ERRORS

    def in_words(self) -> str:
        """What is compared, and its numbers: ``items new from 0.1 to 0.4``, ``item.price distribution by 0.2``."""
        if self.before is None or self.arrived is None:
            return f"{self.of} {self.what} by {self.shift:.3g}"
        return f"{self.of} {self.what} from {self.before:.3g} to {self.arrived:.3g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """What n events have: numbers [n], truth values [n], rows [n] or vectors [n, d], and the group of each event."""

    value: NDArray[Any]
    group: NDArray[np.int64]
    """Small numbers from 0 on."""

    def __len__(self) -> int:
        return len(self.value)

    def where(self, mask: NDArray[np.bool_]) -> Values:
        """Those of some of the events."""
        return Values(value=self.value[mask], group=self.group[mask])

    def factor(self) -> float:
        """G / (G - 1) / n^2; infinite where one group tells nothing of others."""
        n_groups = np.count_nonzero(np.bincount(self.group))
        return n_groups / (n_groups - 1) / len(self) ** 2 if n_groups > 1 else math.inf


def compare_shares(of: str, what: str, before: Values, arrived: Values) -> DriftLine | None:
    """Shares of events of which something is true; None where a sample is empty, or it is true of no event."""
    if not len(before) or not len(arrived) or not (before.value.any() or arrived.value.any()):
        return None
    share, now = float(before.value.mean()), float(arrived.value.mean())
    return DriftLine(
        of=of,
        what=what,
        before=share,
        arrived=now,
        shift=now - share,
        least=LEAST_SHARE,
        standard_errors=_off(now - share, *_squared_errors(before, arrived)),
    )


def compare_share_with(of: str, what: str, expected: float, squared_error: float, arrived: Values) -> DriftLine:
    """A share of what arrived against an expected one with an error of its own."""
    now = float(arrived.value.mean())
    return DriftLine(
        of=of,
        what=what,
        before=expected,
        arrived=now,
        shift=now - expected,
        least=LEAST_SHARE,
        standard_errors=_off(now - expected, squared_error, _squared_error(arrived, np.float64(expected))),
    )


def compare_means(of: str, what: str, before: Values, arrived: Values) -> DriftLine | None:
    """Means of numbers, in deviations of single values before; None where a sample is empty."""
    if not len(before) or not len(arrived):
        return None
    mean, now = float(before.value.mean(dtype=np.float64)), float(arrived.value.mean(dtype=np.float64))
    return DriftLine(
        of=of,
        what=what,
        before=mean,
        arrived=now,
        shift=(now - mean) / _deviation(before.value),
        least=LEAST_DEVIATIONS,
        standard_errors=_off(now - mean, *_squared_errors(before, arrived)),
    )


def compare_vectors(of: str, before: Values, arrived: Values) -> DriftLine | None:
    """Mean vectors: the norm of their difference, in root mean squared distances of single vectors from their mean.

    Standard errors are the norm's over its root mean square by chance.
    """
    if not len(before) or not len(arrived):
        return None
    mean, now = before.value.mean(0, dtype=np.float64), arrived.value.mean(0, dtype=np.float64)
    norm = float(np.linalg.norm(now - mean))
    spread = math.sqrt(float(((before.value - mean) ** 2).sum(1).mean()))
    return DriftLine(
        of=of,
        what="mean vector",
        before=None,
        arrived=None,
        shift=norm / _floor(spread, float(np.linalg.norm(mean))),
        least=LEAST_DEVIATIONS,
        standard_errors=_off(norm, *_squared_errors(before, arrived)),
    )


def compare_rows(of: str, before: Values, arrived: Values) -> DriftLine | None:
    """Distributions over rows; None where a sample is empty or there is one row.

        TV = 1/2 sum_r |p_r - p'_r|
        by chance (2 pi)^(-1/2) sum_r SE_r in the mean, with the deviation SD = (1/2 - 1/pi)^(1/2) (sum_r SE_r^2)^(1/2)

    as each difference is nearly normal with a standard error SE_r. SD is that of two rows, which are one another's
    opposite, and 2^(1/2) times too large for many that differ independently. The shift is what TV is above its mean by
    chance, and SD its standard error.
    """
    if not len(before) or not len(arrived):
        return None
    code = _merged(np.concatenate([before.value, arrived.value]))
    n_rows = int(code.max()) + 1
    if n_rows == 1:
        return None
    pooled_R = np.bincount(code) / len(code)
    ours, theirs = code[: len(before)], code[len(before) :]
    difference_R = np.bincount(ours, minlength=n_rows) / len(ours) - np.bincount(theirs, minlength=n_rows) / len(theirs)
    squared_R = _squared_errors_of_rows(ours, before, pooled_R) + _squared_errors_of_rows(theirs, arrived, pooled_R)
    distance = 0.5 * float(np.abs(difference_R).sum())
    by_chance = 0.5 * _ABSOLUTE_MEAN * float(np.sqrt(squared_R).sum())
    above = distance - by_chance if math.isfinite(by_chance) else 0.0
    return DriftLine(
        of=of,
        what="distribution",
        before=None,
        arrived=None,
        shift=above,
        least=LEAST_VARIATION,
        standard_errors=_off(max(above, 0.0), (0.5 - 1 / math.pi) * float(squared_R.sum())),
    )


def _merged(row: NDArray[Any]) -> NDArray[np.int64]:
    """[n] rows numbered from 0; the rare ones have one number."""
    _, number, count = np.unique(row, return_inverse=True, return_counts=True)
    rare_R = count < LEAST_OF_A_ROW
    code_R = np.cumsum(~rare_R) - 1 + int(rare_R.any())
    return np.where(rare_R, 0, code_R)[number]


def _squared_errors(before: Values, arrived: Values) -> tuple[float, float]:
    """Squared standard errors of both means, from the mean of both samples together."""
    n, m = len(before), len(arrived)
    total = before.value.sum(0, dtype=np.float64) + arrived.value.sum(0, dtype=np.float64)
    return _squared_error(before, total / (n + m)), _squared_error(arrived, total / (n + m))


def _squared_error(values: Values, centre: Any) -> float:
    """Of a mean; summed over dimensions for vectors."""
    factor = values.factor()
    if math.isinf(factor):
        return factor
    off = (values.value - centre).reshape(len(values), -1)
    return factor * sum(float((np.bincount(values.group, column) ** 2).sum()) for column in off.T)


def _squared_errors_of_rows(
    code: NDArray[np.int64], values: Values, pooled_R: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[R] of the share of each row: with c_gr events of a group in a row and n_g in all,
    sum_g (c_gr - n_g p_r)^2 / n^2, its square worked out so that rows a group has not cost nothing."""
    factor, n_rows = values.factor(), len(pooled_R)
    if math.isinf(factor):
        return np.full(n_rows, math.inf)
    size_G = np.bincount(values.group).astype(np.float64)
    cell, count = np.unique(values.group * n_rows + code, return_counts=True)
    own_R = np.bincount(cell % n_rows, count.astype(np.float64) ** 2, minlength=n_rows)
    both_R = np.bincount(cell % n_rows, count * size_G[cell // n_rows], minlength=n_rows)
    squares_R = own_R - 2 * pooled_R * both_R + pooled_R**2 * (size_G**2).sum()
    return np.asarray(np.maximum(squares_R, 0.0) * factor)


def _deviation(value: NDArray[Any]) -> float:
    """Standard deviation; where values differ by no more than rounding, what rounding may be."""
    return _floor(float(value.std(dtype=np.float64)), abs(float(value.mean(dtype=np.float64))))


def _floor(deviation: float, size: float) -> float:
    return max(deviation, 1e-6 * size, 1e-12)


def _off(difference: float, *squared_errors: float) -> float:
    """Standard errors of a difference; nan where they can't be told."""
    squared = sum(squared_errors)
    if not math.isfinite(squared):
        return math.nan
    return abs(difference) / math.sqrt(squared) if squared > 0 else (math.inf if difference else 0.0)
