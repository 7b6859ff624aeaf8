"""The arithmetic of experiments. Units are what arms were drawn for (users, or requests), and independent.

Source: Deng, Knoblich and Lu 2018, "Applying the Delta Method in Metric Analytics: A Practical Guide with Novel Ideas"
(percent change; cluster randomisation); Kohavi, Tang and Xu 2020, "Trustworthy Online Controlled Experiments", chapters
17 to 19, 21 and 22.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Of every interval."""
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value and its variance."""

    value: float
    variance: float


def ratio(above_U: NDArray[np.float64], below_U: NDArray[np.float64]) -> Estimate:
    """Sum over units of one number by that of another, as revenue by session or clicks by impression.

        R = sum_u a_u / sum_u b_u        var R = sum_u (a_u - R b_u)^2 / ((n - 1) n mean(b)^2)

    which is (var a + R^2 var b - 2 R cov(a, b)) / (n mean(b)^2). With b = 1 it is the mean over units and its squared
    standard error. The numbers below a unit (its sessions) may depend on one another as they like: only units count as
    independent. Counting each impression as independent makes intervals too small. nan where nothing is below.

    Source: Deng et al. 2018, on cluster randomisation.
    """
    n, total = len(above_U), float(below_U.sum())
    if n < 2 or not total > 0:
        return Estimate(value=math.nan, variance=math.nan)
    value = float(above_U.sum()) / total
    off_U = above_U - value * below_U
    return Estimate(value=value, variance=float(off_U @ off_U) / (n - 1) * n / total**2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uplift:
    """A value of an arm against that of the control arm, with 95% intervals and the probability of it by chance."""

    absolute: float
    low: float
    high: float
    relative: float
    """By the value of the control arm, 0.01 is a percent; nan where that is not above 0."""
    relative_low: float
    relative_high: float
    p: float


def uplift(control: Estimate, arm: Estimate) -> Uplift:
    """Of independent arms, both large enough that their values are nearly normal (hundreds of units).

        absolute  d = v - c                        var d = var v + var c
        relative  r = v / c - 1                    var r = var v / c^2 + v^2 var c / c^4        (delta method)
        p = P(|X| >= |d| / sqrt(var d))            X ~ N(0, 1)

    The relative interval is that of the ratio v / c, symmetric; it needs a control value well away from 0.

    Source: Deng et al. 2018, on percent change.
    """
    difference, variance = arm.value - control.value, arm.variance + control.variance
    error = math.sqrt(variance)
    if not error > 0:  # no spread at all, or nan
        p = math.nan if math.isnan(difference) or math.isnan(variance) else float(difference == 0)
    else:
        p = math.erfc(abs(difference) / error / math.sqrt(2))
    relative = relative_error = math.nan
    if control.value > 0:
        ratio_of = arm.value / control.value
        relative = ratio_of - 1
        relative_error = math.sqrt(arm.variance + ratio_of**2 * control.variance) / control.value
    return Uplift(
        absolute=difference,
        low=difference - _Z * error,
        high=difference + _Z * error,
        relative=relative,
        relative_low=relative - _Z * relative_error,
        relative_high=relative + _Z * relative_error,
        p=p,
    )


def less_of_before(
    value_U: NDArray[np.float64], before_U: NDArray[np.float64], arm_U: NDArray[np.int64]
) -> NDArray[np.float64]:
    """CUPED: [U] values less what the same units' values before the experiment explain; the same mean over all units.

        y_u - theta (x_u - mean(x))        theta = cov(x, y) / var(x), both within arms

    x, of the time before the first exposure, knows nothing of the arm, so the difference of arms stays what it is, and
    its variance falls by the squared correlation of x and y.

    Source: Deng, Xu, Kohavi and Walker 2013, "Improving the Sensitivity of Online Controlled Experiments by Utilizing
    Pre-Experiment Data".
    """
    n_A = np.maximum(np.bincount(arm_U), 1)
    x_U = before_U - (np.bincount(arm_U, before_U) / n_A)[arm_U]
    y_U = value_U - (np.bincount(arm_U, value_U) / n_A)[arm_U]
    squares = float(x_U @ x_U)
    theta = float(x_U @ y_U) / squares if squares > 0 else 0.0
    return np.asarray(value_U - theta * (before_U - before_U.mean()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: refusing those below a level errs in any of them with that probability at most.

    The i-th smallest of m becomes max_{j <= i} min(1, (m - j + 1) p_j). nan stays and is not counted.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
    """
    there = [at for at, p in enumerate(p_values) if not math.isnan(p)]
    adjusted, highest = list(p_values), 0.0
    for done, at in enumerate(sorted(there, key=lambda at: p_values[at])):
        highest = max(highest, min(1.0, (len(there) - done) * p_values[at]))
        adjusted[at] = highest
    return adjusted


def chi_square_p(statistic: float, degrees: int) -> float:
    """P(X >= statistic) of a chi-square X with a whole number of degrees of freedom.

    With h = x / 2:  Q(1) = erfc(sqrt(h)), Q(2) = exp(-h), Q(d + 2) = Q(d) + h^(d/2) exp(-h) / Gamma(d/2 + 1).

    Source: Abramowitz and Stegun 1964, 26.4.4, 26.4.5 and 26.4.8.
    """
    half = statistic / 2
    if half <= 0:
        return 1.0
    at = 1 if degrees % 2 else 2
    tail = math.erfc(math.sqrt(half)) if at == 1 else math.exp(-half)
    while at < degrees:
        tail += math.exp(at / 2 * math.log(half) - half - math.lgamma(at / 2 + 1))
        at += 2
    return min(1.0, tail)


def ratio_mismatch_p(count: Mapping[str, int], share: Mapping[str, float]) -> float:
    """Probability that so many units, or counts further off, come from these shares: below .001 something is broken.

        X^2 = sum_k (n_k - n s_k)^2 / (n s_k)        of a chi-square with one degree less than arms

    0 where an arm of share 0 has units.

    Source: Fabijan et al. 2019, "Diagnosing Sample Ratio Mismatch in Online Controlled Experiments".
    """
    n = sum(count.values())
    expected = {arm: n * s for arm, s in share.items()}
    if any(count.get(arm, 0) and not expected.get(arm) for arm in count):
        return 0.0
    possible = [arm for arm in expected if expected[arm] > 0]
    if len(possible) < 2:
        return 1.0
    statistic = math.fsum((count.get(arm, 0) - expected[arm]) ** 2 / expected[arm] for arm in possible)
    return chi_square_p(statistic, len(possible) - 1)
