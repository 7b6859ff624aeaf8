"""Intervals cover, p-values are uniform, formulas agree with bootstraps and naive arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from numpy.random import Generator
from numpy.typing import NDArray

from twotower.experiment.statistics import (
    Estimate,
    Uplift,
    chi_square_p,
    holm,
    less_of_before,
    ratio,
    ratio_mismatch_p,
    uplift,
)

EXPERIMENTS, UNITS = 1000, 300
LEAST, MOST = 0.95 - 0.028, 0.95 + 0.028  # four standard errors of a share of .95 of 1000
Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


def revenue(draw: Generator, factor: float = 1.0) -> Pair:
    """Most buy nothing."""
    spent = draw.exponential(10.0, UNITS) * (draw.random(UNITS) < 0.4)
    return factor * spent, np.ones(UNITS)


def clicks(draw: Generator, factor: float = 1.0) -> Pair:
    """Clicks and impressions: users differ in how often they come and in how much they like to click."""
    impressions = 1 + draw.geometric(0.1, UNITS)
    rate = factor * draw.beta(0.6, 2.4, UNITS) / 2
    return draw.binomial(impressions, rate).astype(np.float64), impressions.astype(np.float64)


def naive(above: NDArray[np.float64], below: NDArray[np.float64]) -> Estimate:
    """As if every impression was independent."""
    rate, n = above.sum() / below.sum(), below.sum()
    return Estimate(value=float(rate), variance=float(rate * (1 - rate) / n))


def experiments(draw_arm, factor: float = 1.0, estimate=ratio) -> list[Uplift]:  # type: ignore[no-untyped-def]
    draw = np.random.default_rng(7)
    return [uplift(estimate(*draw_arm(draw)), estimate(*draw_arm(draw, factor))) for _ in range(EXPERIMENTS)]


@pytest.mark.parametrize("draw_arm", [revenue, clicks])
def test_without_a_difference_p_is_uniform(draw_arm) -> None:  # type: ignore[no-untyped-def]
    p = [one.p for one in experiments(draw_arm)]
    assert 1 - MOST < np.mean(np.array(p) < 0.05) < 1 - LEAST
    assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3


def test_impressions_of_a_user_are_not_independent() -> None:
    wrong = np.mean([one.p < 0.05 for one in experiments(clicks, estimate=naive)])
    assert wrong > 0.15  # what the delta method is for: 5% are claimed


@pytest.mark.parametrize("draw_arm", [revenue, clicks])
def test_intervals_cover_a_planted_uplift(draw_arm) -> None:  # type: ignore[no-untyped-def]
    value = {revenue: 4.0, clicks: 0.1}[draw_arm]  # .4 x 10; .6 / 3 / 2, whatever the impressions
    found = experiments(draw_arm, factor=1.25)
    assert LEAST < np.mean([one.low < 0.25 * value < one.high for one in found]) < MOST
    assert LEAST < np.mean([one.relative_low < 0.25 < one.relative_high for one in found]) < MOST
    assert abs(np.mean([one.absolute for one in found]) / value - 0.25) < 0.02


def test_the_delta_method_is_the_bootstrap() -> None:
    draw = np.random.default_rng(3)
    arms = [clicks(draw), clicks(draw, 1.3)]
    values = []
    for _ in range(2000):
        picked = [draw.integers(0, UNITS, UNITS) for _ in arms]
        control, arm = (above[at].sum() / below[at].sum() for (above, below), at in zip(arms, picked, strict=True))
        values.append((control, arm - control, arm / control - 1))
    spread = np.std(values, axis=0)
    estimates = [ratio(*arm) for arm in arms]
    found = uplift(*estimates)
    width = 2 * scipy.stats.norm.ppf(0.975)
    errors = (
        math.sqrt(estimates[0].variance),
        (found.high - found.low) / width,
        (found.relative_high - found.relative_low) / width,
    )
    assert errors == pytest.approx(spread, rel=0.1)


def test_a_ratio_by_arithmetic() -> None:
    found = ratio(np.array([1.0, 2.0, 0.0]), np.array([2.0, 3.0, 1.0]))
    assert found.value == 0.5
    assert found.variance == pytest.approx((0.0**2 + 0.5**2 + 0.5**2) / 2 * 3 / 6**2)
    mean = ratio(np.array([1.0, 2.0, 6.0]), np.ones(3))
    assert (mean.value, mean.variance) == (3.0, pytest.approx((4 + 1 + 9) / 2 / 3))


def test_an_uplift_by_arithmetic() -> None:
    found = uplift(Estimate(value=2.0, variance=0.09), Estimate(value=3.0, variance=0.16))
    z = 1.959963984540054
    assert (found.absolute, found.relative) == (1.0, 0.5)
    assert (found.low, found.high) == (pytest.approx(1 - z * 0.5), pytest.approx(1 + z * 0.5))
    error = math.sqrt(0.16 / 4 + 9 * 0.09 / 16)
    assert (found.relative_low, found.relative_high) == (pytest.approx(0.5 - z * error), pytest.approx(0.5 + z * error))
    assert found.p == pytest.approx(2 * scipy.stats.norm.sf(2.0))


def test_what_can_not_be_told_is_nan() -> None:
    assert math.isnan(ratio(np.ones(1), np.ones(1)).value)
    assert math.isnan(ratio(np.zeros(5), np.zeros(5)).value)
    nothing = uplift(Estimate(value=math.nan, variance=math.nan), Estimate(value=1.0, variance=0.1))
    assert all(map(math.isnan, (nothing.absolute, nothing.p, nothing.relative, nothing.low)))
    zero = Estimate(value=0.0, variance=0.0)
    same = uplift(zero, zero)
    assert (same.p, same.absolute, math.isnan(same.relative)) == (1.0, 0.0, True)
    assert uplift(zero, Estimate(value=1.0, variance=0.0)).p == 0.0


def test_what_came_before_is_taken_out() -> None:
    draw = np.random.default_rng(5)
    before = draw.gamma(2.0, size=4000)
    arm = draw.integers(0, 2, 4000)
    value = before + draw.normal(size=4000) + 0.3 * arm  # var x = 2, var noise = 1: the squared correlation is 2/3
    less = less_of_before(value, before, arm)
    assert less.mean() == pytest.approx(value.mean())
    errors = [ratio(one[arm == 1], np.ones((arm == 1).sum())).variance for one in (value, less)]
    assert errors[1] / errors[0] == pytest.approx(1 / 3, rel=0.1)
    found = uplift(*(ratio(less[arm == at], np.ones((arm == at).sum())) for at in (0, 1)))
    assert found.low < 0.3 < found.high
    assert (less_of_before(value, np.ones(4000), arm) == value).all()


def test_less_of_before_keeps_the_error_rate() -> None:
    draw = np.random.default_rng(11)
    p = []
    for _ in range(EXPERIMENTS):
        before = draw.exponential(size=UNITS)
        value = before * draw.exponential(size=UNITS)
        arm = np.arange(UNITS) % 2
        less = less_of_before(value, before, arm)
        p.append(uplift(*(ratio(less[arm == at], np.ones(UNITS // 2)) for at in (0, 1))).p)
    assert 1 - MOST < np.mean(np.array(p) < 0.05) < 1 - LEAST


def test_holm_by_arithmetic() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    nan_first = holm([math.nan, 0.02, 0.6])
    assert math.isnan(nan_first[0])
    assert nan_first[1:] == pytest.approx([0.04, 0.6])
    assert holm([0.7, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 10])
def test_the_tail_of_chi_square(degrees: int) -> None:
    for statistic in (0.0, 1e-9, 0.3, 1.0, 5.0, 30.0, 400.0):
        expected = scipy.stats.chi2.sf(statistic, degrees)
        assert chi_square_p(statistic, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_a_mismatch_of_the_sample_ratio() -> None:
    halves = {"a": 0.5, "b": 0.5}
    assert ratio_mismatch_p({"a": 5000, "b": 5000}, halves) == 1.0
    # (50^2 + 50^2) / 5000 = 1: one standard deviation
    assert ratio_mismatch_p({"a": 5050, "b": 4950}, halves) == pytest.approx(2 * scipy.stats.norm.sf(1.0))
    assert ratio_mismatch_p({"a": 821_588, "b": 815_482}, halves) == pytest.approx(1.8e-6, rel=0.1)
    assert ratio_mismatch_p({"a": 5, "b": 900}, {"a": 0.0, "b": 1.0}) == 0.0
    assert ratio_mismatch_p({"a": 0, "b": 900}, {"a": 0.0, "b": 1.0}) == 1.0
    assert ratio_mismatch_p({"a": 500, "b": 500}, {"a": 0.4, "b": 0.4, "c": 0.2}) < 1e-40


def test_fair_draws_are_no_mismatch() -> None:
    draw = np.random.default_rng(2)
    shares = {"a": 0.6, "b": 0.3, "c": 0.1}
    counts = draw.multinomial(5000, list(shares.values()), EXPERIMENTS)
    p = [ratio_mismatch_p(dict(zip(shares, count.tolist(), strict=True)), shares) for count in counts]
    assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3
