"""Probabilities that hold: undoing the downsampling of negatives, and measuring how far predictions are off.

calibrate(p, w), calibrate_logit(s, w)     from the odds of a thinned log to those of the whole one
expected_calibration_error, reliability    predicted against observed, in bins of equal mass
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import DataError
from .report import aligned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Z = 1.959964
"""Half the width of a normal's middle 95%, in standard deviations."""
WIDE = 10.0
"""From this ratio of the largest to the smallest rate, a plot has logarithmic axes."""


def calibrate(probability: Tensor, keep: float | Tensor) -> Tensor:
    """The probability in the whole log, from that of a model whose negatives were kept with probability w = ``keep``.

        p = p' / (p' + (1 - p') / w),    the same as logit p = logit p' + log w

    ``keep`` is one number or a tensor that broadcasts to ``probability``, such as w_i of each item (what
    ``keep_probability`` of a thinning gives). Where positives were kept with probability v, pass w / v: it may be above
    1. Near 1, float32 has no digits left for the odds: ``calibrate_logit`` has.

    Choose it where a probability is shown or multiplied by a price. An order of items needs it only where ``keep``
    differs between them.

    Raises:
        DataError: a probability is outside 0 to 1 or nan, a keep is not positive and finite, or the shapes don't fit.

    Source: He et al., Practical lessons from predicting clicks on ads at Facebook (ADKDD 2014), section 6.3.
    """
    _check_share("probability", probability)
    w = _keep_for(probability, keep)
    return probability * w / (probability * w + (1 - probability))


def calibrate_logit(logit: Tensor, keep: float | Tensor) -> Tensor:
    """``calibrate`` of log odds: logit p = logit p' + log w.

    With the expected count of the item as a negative for w, K q_i, this is the shift of NCE: a model trained without
    it learns s - log(K q_i), and calibrating gives back s.

    Raises:
        DataError: a logit is nan, a keep is not positive and finite, or the shapes don't fit.
    """
    _check_no_nan("logit", logit)
    return logit + _keep_for(logit, keep).log()


def expected_calibration_error(
    probability: Tensor, label: Tensor, bins: int = 15, weight: Tensor | None = None
) -> float:
    """sum over bins of (share of the weight) |mean prediction - observed rate|, in ``bins`` bins of equal weight.

    Chance alone makes it about sqrt(2 / pi) times the mean over bins of sqrt(p (1 - p) bins / n): compare with that.

    Raises:
        DataError: as for ``reliability``.

    Source: Naeini, Cooper and Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning (AAAI 2015);
    bins of equal mass: Nixon et al., Measuring calibration in deep learning (CVPR workshops 2019).
    """
    return reliability(probability, label, bins, weight).expected_calibration_error


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Predictions that lie next to one another."""

    mean_prediction: float
    rate: float
    """Observed: mean label."""
    low: float
    high: float
    """Wilson's 95% interval of the rate."""
    count: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """What was predicted against what came, bin by bin, predictions rising."""

    bins: tuple[ReliabilityBin, ...]

    @property
    def expected_calibration_error(self) -> float:
        """Mean over the weight of |mean prediction - observed rate|."""
        total = math.fsum(found.weight for found in self.bins)
        return math.fsum(found.weight * abs(found.mean_prediction - found.rate) for found in self.bins) / total

    def render(self) -> str:
        """Plain text: a line a bin, those whose interval misses the prediction marked, then the error."""
        lines = [
            [
                f"{found.mean_prediction:.4g}",
                f"{found.rate:.4g}",
                f"{found.low:.4g} to {found.high:.4g}",
                f"{found.count:,}",
                "" if found.low <= found.mean_prediction <= found.high else "off",
            ]
            for found in self.bins
        ]
        return "\n".join(
            [
                *aligned([["predicted", "observed", "95% interval", "count", ""], *lines]),
                "",
                f"expected calibration error {self.expected_calibration_error:.4g}",
            ]
        )

    def to_json(self) -> str:
        """The bins and the error."""
        tree = {
            "expected_calibration_error": self.expected_calibration_error,
            "bins": [asdict(found) for found in self.bins],
        }
        return json.dumps(tree, indent=2, allow_nan=False)

    def plot(self, path: Path) -> bool:
        """Write the reliability diagram; False where matplotlib is not installed (``pip install 'twotower[plots]'``).

        Axes are logarithmic where all bins have positives and rates span a factor of ten, as those of clicks do.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return False
        figure = Figure(figsize=(4.5, 4.5), layout="constrained")
        self._draw(figure.add_subplot())
        figure.savefig(path, dpi=150)
        return True

    def _draw(self, axes: Axes) -> None:
        predicted, rate = [found.mean_prediction for found in self.bins], [found.rate for found in self.bins]
        below, above = [found.rate - found.low for found in self.bins], [found.high - found.rate for found in self.bins]
        ends = [min(predicted + rate), max(predicted + rate)]
        if 0 < WIDE * ends[0] <= ends[1]:
            axes.set(xscale="log", yscale="log")
        axes.plot(ends, ends, color="0.7", zorder=0)
        axes.errorbar(predicted, rate, yerr=[below, above], fmt="o", capsize=2)
        axes.set(xlabel="predicted", ylabel="observed", title=f"ECE {self.expected_calibration_error:.3g}")


def reliability(probability: Tensor, label: Tensor, bins: int = 10, weight: Tensor | None = None) -> Reliability:
    """Predicted against observed in at most ``bins`` bins of about equal weight.

    Equal predictions share a bin, so the order of the input has no say. Labels are 0 or 1, or shares between. With
    ``weight`` a log whose negatives were thinned is measured as the whole one: 1 / w_i for each negative.

    Raises:
        DataError: no values, other lengths, a probability or label outside 0 to 1 or nan, a weight that is negative or
            not finite, all weights 0, or no bins.
    """
    _check_lengths(probability, label, weight)
    if bins < 1:
        raise DataError(f"bins: found {bins}, expected at least 1")
    _check_share("probability", probability)
    _check_share("label", label)
    w_n = torch.ones(len(probability), dtype=torch.float64) if weight is None else weight.detach().cpu().double()
    _check_weight(w_n)
    p_n, y_n = probability.detach().cpu().double(), label.detach().cpu().double()
    bin_n = _equal_mass(p_n, w_n, bins)
    present, at_n, count = bin_n[w_n > 0].unique(return_inverse=True, return_counts=True)
    p_n, y_n, w_n = p_n[w_n > 0], y_n[w_n > 0], w_n[w_n > 0]

    def total(value_n: Tensor) -> Tensor:
        return torch.zeros(len(present), dtype=torch.float64).index_add(0, at_n, value_n)

    weight_b, square_b = total(w_n), total(w_n**2)
    mean_b, rate_b = total(w_n * p_n) / weight_b, (total(w_n * y_n) / weight_b).clamp(0.0, 1.0)
    low_b, high_b = _wilson(rate_b, weight_b**2 / square_b)
    columns = (x.tolist() for x in (mean_b, rate_b, low_b, high_b, count, weight_b))
    return Reliability(
        bins=tuple(
            ReliabilityBin(mean_prediction=mean, rate=rate, low=low, high=high, count=n, weight=mass)
            for mean, rate, low, high, n, mass in zip(*columns, strict=True)
        )
    )


def _equal_mass(p_n: Tensor, w_n: Tensor, bins: int) -> Tensor:
    """[n] the bin of each prediction: by the middle of the mass of those equal to it, among all in rising order."""
    distinct, at_n = p_n.unique(return_inverse=True)
    mass_d = torch.zeros(len(distinct), dtype=torch.float64).index_add(0, at_n, w_n)
    end_d = mass_d.cumsum(0)
    middle_d = (end_d - mass_d / 2) / end_d[-1]
    return (middle_d * bins).long().clamp(max=bins - 1)[at_n]


def _wilson(rate: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """95% interval of a rate among n; with weights n is Kish's effective number, (sum w)^2 / sum w^2.

    Source: Wilson, Journal of the American Statistical Association 22 (1927).
    """
    shrunk = 1 + Z**2 / n
    centre = (rate + Z**2 / (2 * n)) / shrunk
    half = Z / shrunk * (rate * (1 - rate) / n + (Z / (2 * n)) ** 2).sqrt()
    return torch.minimum(centre - half, rate).clamp(min=0.0), torch.maximum(centre + half, rate).clamp(max=1.0)


def _keep_for(value: Tensor, keep: float | Tensor) -> Tensor:
    """``keep`` as a tensor that goes with ``value``."""
    if not value.is_floating_point():
        raise DataError(f"found predictions of {value.dtype}, expected floating-point numbers")
    w = torch.as_tensor(keep, dtype=value.dtype, device=value.device)
    try:
        fits = torch.broadcast_shapes(w.shape, value.shape) == value.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise DataError(
            f"keep: found shape {list(w.shape)} for predictions of shape {list(value.shape)}, expected one number, or "
            "one for each"
        )
    if not bool(((w > 0) & w.isfinite()).all()):
        raise DataError("keep: found a value that is nan, infinite, 0 or negative, expected positive numbers")
    return w


def _check_no_nan(name: str, value: Tensor) -> None:
    missing = int(value.isnan().sum())
    if missing:
        raise DataError(f"{name}: found nan at {missing:,} of {value.numel():,} places, expected numbers")


def _check_share(name: str, value: Tensor) -> None:
    _check_no_nan(name, value)
    outside = value[(value < 0) | (value > 1)]
    if len(outside):
        hint = "; of logits, take the sigmoid first" if name == "probability" else ""
        raise DataError(f"{name}: found {float(outside[0]):g}, expected 0 to 1{hint}")


def _check_lengths(probability: Tensor, label: Tensor, weight: Tensor | None) -> None:
    shape = probability.shape
    if len(shape) != 1 or not len(probability):
        raise DataError(f"probability: found shape {list(shape)}, expected a list of at least one")
    for name, value in (("label", label), ("weight", weight)):
        if value is not None and value.shape != shape:
            raise DataError(
                f"{name}: found shape {list(value.shape)}, expected {list(shape)}, one for each probability"
            )


def _check_weight(weight: Tensor) -> None:
    if not bool(((weight >= 0) & weight.isfinite()).all()):
        raise DataError("weight: found a value that is nan, infinite or negative, expected 0 or more")
    if not float(weight.sum()) > 0:
        raise DataError("weight: all are 0, expected at least one above")
