"""Calibration: identities by arithmetic, bins against a loop, and a log whose negatives were downsampled."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from twotower.data.thinning import FrequentThinning
from twotower.errors import DataError
from twotower.evaluation import (
    Reliability,
    calibrate,
    calibrate_logit,
    expected_calibration_error,
    reliability,
)

# ---------------------------------------------------------------- identities


def test_the_printed_formula_is_a_shift_of_the_logit() -> None:
    p, w = torch.linspace(0.001, 0.999, 999, dtype=torch.float64), 0.037
    found = calibrate(p, w)
    assert torch.allclose(found, p / (p + (1 - p) / w), rtol=1e-12, atol=0)
    assert torch.allclose(found.logit(), p.logit() + math.log(w), rtol=0, atol=1e-12)
    assert torch.allclose(calibrate_logit(p.logit(), w).sigmoid(), found, rtol=1e-12, atol=0)


def test_by_hand() -> None:
    """One positive beside 4 of 40 negatives: .2 is 1 / 41 in the whole log. Certainties stay, w = 1 changes nothing."""
    assert calibrate(torch.tensor([0.2, 0.0, 1.0], dtype=torch.float64), 0.1).tolist() == pytest.approx([1 / 41, 0, 1])
    assert calibrate(torch.tensor([0.3]), 1.0).item() == pytest.approx(0.3)
    # Half of the positives were kept too: 1 of 2 beside 4 of 40.
    assert calibrate(torch.tensor([0.2], dtype=torch.float64), 0.1 / 0.5).item() == pytest.approx(2 / 42)
    assert calibrate_logit(torch.tensor([-math.inf, math.inf]), 0.1).tolist() == [-math.inf, math.inf]


def test_it_is_the_shift_of_nce() -> None:
    """A positive with p(y | u) against K q_i noise of item i: the odds without NCE's shift, calibrated, are p."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.rand(50, dtype=torch.float64, generator=generator).softmax(0) for _ in range(2))
    k = 20
    odds = p / (k * q)
    assert torch.allclose(calibrate_logit(odds.log(), k * q), p.log(), rtol=0, atol=1e-12)
    probability = calibrate(p / (p + k * q), k * q)
    assert torch.allclose(probability, p / (p + 1), rtol=1e-12, atol=0)


def test_keep_broadcasts_and_keeps_the_type() -> None:
    keep_M = FrequentThinning(t=0.1).keep_probability(torch.tensor([90, 9, 1]))
    logit_QM = torch.zeros(2, 3)
    found = calibrate_logit(logit_QM, keep_M)
    assert found.dtype == torch.float32
    ratio = [0.1 / 0.9, 0.1 / 0.09, 0.1 / 0.01]
    want = [math.log(min(1, math.sqrt(r) + r)) for r in ratio]
    assert found.tolist() == [pytest.approx(want)] * 2
    assert calibrate(torch.full((2, 3), 0.5), keep_M).logit().tolist() == [pytest.approx(want, abs=1e-6)] * 2


# ---------------------------------------------------------------- a log

W = 0.1


def log_of(n: int, seed: int) -> tuple[Tensor, Tensor, torch.Generator]:
    """True logits of a logistic world, and what came of them: about 7% positives."""
    generator = torch.Generator().manual_seed(seed)
    logit = torch.randn(n, dtype=torch.float64, generator=generator) - 3
    return logit, torch.rand(n, dtype=torch.float64, generator=generator) < logit.sigmoid(), generator


def test_the_error_of_a_model_of_a_downsampled_log_goes_away() -> None:
    """The best model of that log has logit p - log w: it is right there, and far off in the whole one."""
    logit, label, generator = log_of(1_500_000, 0)
    trained = (logit - math.log(W)).sigmoid()
    kept = label | (torch.rand(len(label), dtype=torch.float64, generator=generator) < W)
    assert expected_calibration_error(trained[kept], label[kept]) < 5e-3  # 15 bins of 16,000: chance makes .003
    assert expected_calibration_error(trained, label) > 0.2
    assert expected_calibration_error(calibrate(trained, W), label, bins=5) < 1e-3
    weight = torch.where(label, 1.0, 1 / W)[kept]
    assert expected_calibration_error(calibrate(trained[kept], W), label[kept], bins=5, weight=weight) < 1e-3


def test_each_item_has_its_own_rate() -> None:
    logit, label, generator = log_of(1_500_000, 1)
    keep_M = torch.tensor([0.01, 0.1, 0.5, 1.0], dtype=torch.float64)
    keep = keep_M[torch.randint(4, logit.shape, generator=generator)]
    trained = (logit - keep.log()).sigmoid()
    assert expected_calibration_error(calibrate(trained, keep), label, bins=5) < 1e-3
    assert expected_calibration_error(calibrate(trained, float(keep_M.mean())), label) > 0.02


# ---------------------------------------------------------------- bins


def naive_bins(p: list[float], y: list[float], w: list[float], bins: int) -> list[tuple[float, float, int, float]]:
    total = math.fsum(w)
    found: dict[int, list[int]] = {}
    for i, value in enumerate(p):
        below = math.fsum(w[j] for j in range(len(p)) if p[j] < value)
        equal = math.fsum(w[j] for j in range(len(p)) if p[j] == value)
        if w[i] > 0:
            found.setdefault(int((below + equal / 2) / total * bins), []).append(i)
    out = []
    for _, members in sorted(found.items()):
        mass = math.fsum(w[i] for i in members)
        mean, rate = (math.fsum(w[i] * x[i] for i in members) / mass for x in (p, y))
        out.append((mean, rate, len(members), mass))
    return out


@pytest.mark.parametrize("bins", [1, 3, 10, 200])
@pytest.mark.parametrize("weighted", [False, True])
def test_bins_are_those_of_a_loop(bins: int, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(bins)
    p = (torch.rand(97, generator=generator) * 20).round() / 20  # with ties
    y = (torch.rand(97, generator=generator) < p).float()
    w = (torch.rand(97, generator=generator) * 4).floor() if weighted else torch.ones(97)
    found = reliability(p, y, bins, w if weighted else None)
    want = naive_bins(p.tolist(), y.tolist(), w.tolist(), bins)
    got = [(b.mean_prediction, b.rate, b.count, b.weight) for b in found.bins]
    assert [x for row in got for x in row] == pytest.approx([x for row in want for x in row])
    total = sum(mass for *_, mass in want)
    error = sum(mass * abs(mean - rate) for mean, rate, _, mass in want) / total
    assert found.expected_calibration_error == pytest.approx(error)
    order = torch.randperm(97, generator=generator)
    again = reliability(p[order], y[order], bins, w[order] if weighted else None)
    assert [b.count for b in again.bins] == [b.count for b in found.bins]


def test_distinct_predictions_fill_bins_alike() -> None:
    found = reliability(torch.linspace(0, 1, 100), torch.zeros(100, dtype=torch.bool), 4)
    assert [b.count for b in found.bins] == [25] * 4
    assert found.expected_calibration_error == pytest.approx(0.5)


def test_the_interval_is_that_of_wilson() -> None:
    """0 of 10: up to z^2 / (n + z^2) = .2775; 5 of 10: .2366 to .7634. Weights of 5 tell no more than weights of 1."""
    none = reliability(torch.full((10,), 0.5), torch.zeros(10), 1).bins[0]
    assert (none.low, none.high) == pytest.approx((0, 0.27753), abs=1e-4)
    half = reliability(torch.full((10,), 0.5), torch.arange(10) % 2, 1).bins[0]
    assert (half.low, half.high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    heavy, light = (
        reliability(torch.full((2,), 0.5), torch.tensor([0, 1]), 1, torch.full((2,), w)) for w in (5.0, 1.0)
    )
    assert (heavy.bins[0].low, heavy.bins[0].high) == pytest.approx((light.bins[0].low, light.bins[0].high))


def test_intervals_cover_at_their_level() -> None:
    """200 bins of a calibrated model: 95% of the intervals hold the prediction, 190 give or take 3.1."""
    logit, label, _ = log_of(200_000, 2)
    bins = reliability(logit.sigmoid(), label, 200).bins
    assert 178 <= sum(b.low <= b.mean_prediction <= b.high for b in bins) <= 199


# ---------------------------------------------------------------- report


@pytest.fixture
def report() -> Reliability:
    p = torch.tensor([0.1] * 10 + [0.9] * 10)
    return reliability(p, torch.tensor([1] + [0] * 9 + [1] * 2 + [0] * 8), 2)


def test_render(report: Reliability) -> None:
    lines = report.render().splitlines()
    assert lines[0].split() == ["predicted", "observed", "95%", "interval", "count"]
    assert lines[1].split() == ["0.1", "0.1", "0.01788", "to", "0.4042", "10"]
    assert lines[2].split() == ["0.9", "0.2", "0.05668", "to", "0.5098", "10", "off"]
    assert lines[-1] == "expected calibration error 0.35"  # .5 |.1 - .1| + .5 |.9 - .2|


def test_json(report: Reliability) -> None:
    tree = json.loads(report.to_json())
    assert tree["expected_calibration_error"] == pytest.approx(0.35)
    assert [(b["count"], b["rate"]) for b in tree["bins"]] == [(10, 0.1), (10, 0.2)]


@pytest.mark.parametrize("rare", [True, False])
def test_plot(report: Reliability, rare: bool, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    if rare:
        logit, label, _ = log_of(20_000, 3)
        report = reliability(logit.sigmoid(), label)
    assert report.plot(tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_picture(
    report: Reliability, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not report.plot(tmp_path / "reliability.png")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- errors

P, Y = torch.tensor([0.1, 0.2]), torch.tensor([0.0, 1.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibrate(torch.tensor([1.2]), 0.1), r"probability: found 1.2, expected 0 to 1; of logits, take the"),
        (lambda: calibrate(torch.tensor([0.1, math.nan]), 0.1), "probability: found nan at 1 of 2 places"),
        (lambda: calibrate(torch.tensor([0, 1]), 0.1), "predictions of torch.int64, expected floating-point"),
        (lambda: calibrate_logit(torch.tensor([math.nan]), 0.1), "logit: found nan at 1 of 1"),
        (lambda: calibrate(P, 0.0), "keep: found a value that is nan, infinite, 0 or negative"),
        (lambda: calibrate_logit(P, math.nan), "keep: found a value that is nan"),
        (lambda: calibrate(P, torch.ones(3)), r"keep: found shape \[3\] for predictions of shape \[2\]"),
        (lambda: calibrate(P, torch.ones(4, 2)), r"keep: found shape \[4, 2\] for predictions of shape \[2\]"),
        (lambda: reliability(P, Y[:1]), r"label: found shape \[1\], expected \[2\], one for each probability"),
        (lambda: reliability(P, Y, weight=torch.ones(3)), r"weight: found shape \[3\], expected \[2\]"),
        (lambda: reliability(P[:0], Y[:0]), r"probability: found shape \[0\], expected a list of at least one"),
        (lambda: reliability(P, Y, 0), "bins: found 0, expected at least 1"),
        (lambda: reliability(P, Y * 2), "label: found 2, expected 0 to 1$"),
        (lambda: reliability(P, Y * math.nan), "label: found nan"),
        (lambda: reliability(P, Y, weight=-Y), "weight: found a value that is nan, infinite or negative"),
        (lambda: expected_calibration_error(P, Y, weight=0 * Y), "weight: all are 0"),
        (lambda: expected_calibration_error(P - 1, Y), "probability: found -0.9"),
    ],
)
def test_what_can_not_be_measured_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
