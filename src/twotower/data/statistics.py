"""What encoders learn of numbers in one pass: moments, and a bounded fair sample for quantiles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(kw_only=True)
class Moments:
    """Mean and deviation of a stream.

    Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances"
    (Welford's update for a whole chunk).
    """

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared differences from the mean."""

    def update(self, value: NDArray[np.float64]) -> None:
        """Add numbers, none missing."""
        if not len(value):
            return
        n, mean = len(value), float(value.mean())
        gap, total = mean - self.mean, self.n + n
        self.squares += float(((value - mean) ** 2).sum()) + gap * gap * self.n * n / total
        self.mean += gap * n / total
        self.n = total

    @property
    def deviation(self) -> float:
        """Standard deviation (of the population); 1 where the numbers don't differ, so that dividing by it is safe."""
        if self.n == 0 or self.squares / self.n <= (1e-12 * abs(self.mean)) ** 2:
            return 1.0
        return math.sqrt(self.squares / self.n)


class Slots:
    """A fair sample of ``size`` out of a stream: which place of the sample each newcomer takes.

    The draw depends on how many came before, not on how they were cut into chunks.

    Source: Vitter 1985, "Random sampling with a reservoir", algorithm R.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.n = 0
        """How many came."""
        self._rng = np.random.default_rng(0)

    def of(self, n: int) -> NDArray[np.int64]:
        """[n] the place each of the next n takes, -1 for none; the last one to take a place has it."""
        number = self.n + np.arange(n)
        self.n += n
        place = np.floor(self._rng.random(n) * (number + 1)).astype(np.int64)
        place = np.where(number < self.size, number, place)
        return np.where(place < self.size, place, -1)


class Sample:
    """A fair sample of a stream of numbers."""

    def __init__(self, size: int) -> None:
        self._slots = Slots(size)
        self._value = np.full(size, np.nan)

    def update(self, value: NDArray[np.float64]) -> None:
        """Add numbers, none missing."""
        place = self._slots.of(len(value))
        kept = place >= 0
        self._value[place[kept]] = value[kept]

    def values(self) -> NDArray[np.float64]:
        """The numbers sampled so far."""
        return self._value[: min(self._slots.n, self._slots.size)]


def quantile_edges(sample: NDArray[np.float64], buckets: int) -> NDArray[np.float64]:
    """Rising distinct edges that cut the sample into at most ``buckets`` parts of about equal counts.

    A number's bucket is how many edges are at or below it. The smallest number is no edge: nothing would be below it.
    """
    if not len(sample):
        return np.zeros(0)
    edges = np.unique(np.quantile(sample, np.arange(1, buckets) / buckets))
    return np.asarray(edges[edges > sample.min()], np.float64)
