"""Hard candidates that stay below the positive."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ConfigError
from ..records import NEG_INF
from .drawing import best
from .pool import Mined, Pool


class PositiveAware(Mined):
    """The n hardest of a pool among those not too close to the positive, which may well be positives themselves.

        margin: score <= p - margin           share: score <= p - (1 - share) |p|

    p is the score of the query's positive, the mean of them where the batch has several. Where p is not negative, the
    second is ``share * p`` as printed; a share of a negative p would lie above it and let in what is harder than the
    positive, so there the same distance is taken downwards. Scores are those of the towers, cosines where they
    normalise, not divided by a temperature. A query with fewer than n below the threshold gets those: early in
    training, with positives that are not above the rest yet, that may be none.

    Choose it over ``DNS`` where many positives are unknown, so that the hardest candidates are mostly no negatives.
    The share of the paper is 0.95 and its margin of cosines 0.05, for a teacher that is trained already.

    Raises ConfigError unless exactly one of ``margin``, 0 or more, and ``share``, above 0 and at most 1, is given.

    Source: Moreira et al., NV-Retriever: improving text embedding models with effective hard-negative mining (2024),
    arXiv 2407.15831, TopK-MarginPos and TopK-PercPos.
    """

    margin: float | None = None
    """Least distance to the positive, in scores."""
    share: float | None = None
    """Most score, as a share of the positive's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.margin is None) == (self.share is None):
            found = "neither" if self.margin is None else "both"
            raise ConfigError(f"PositiveAware: found {found} of margin and share, expected one: set share = 0.95")
        if self.margin is not None and not 0 <= self.margin < math.inf:
            raise ConfigError(f"PositiveAware: margin is {self.margin}, expected a distance of scores, 0 or more")
        if self.share is not None and not 0 < self.share <= 1:
            raise ConfigError(f"PositiveAware: share is {self.share}, expected above 0, at most 1")

    def choose(self, pool: Pool, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        open_ = pool.distinct()
        too_close_CP = open_.score_CP > self.threshold(pool.positive_C)[:, None]
        return best(open_.score_CP.masked_fill(too_close_CP, NEG_INF), self.n), None

    def threshold(self, positive_C: Tensor) -> Tensor:
        """[C] the highest score that a candidate may have beside positives of these."""
        if self.margin is not None:
            return positive_C - self.margin
        assert self.share is not None
        return positive_C - (1 - self.share) * positive_C.abs()
