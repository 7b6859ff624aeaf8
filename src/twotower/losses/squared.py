"""Losses that are polynomials of cosines: no exponential presses on the hardest candidate."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..scoring import Correction, Scores
from .row_loss import RowLoss


class CCL(RowLoss):
    """1 - p + negative_weight * mean_j max(0, s_j - margin): cosine contrastive loss.

    Candidates below the margin are easy and left alone. ``negative_weight`` is large where candidates are many.

    Source: Mao et al., SimpleX, CIKM 2021, arXiv 2109.12613, equation 2.
    """

    needs_unit_vectors: ClassVar[bool] = True

    margin: float = 0.8
    negative_weight: float = 150.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.margin < 1:
            raise ConfigError(f"loss.margin of CCL: found {self.margin}, expected a cosine, -1 up to but not 1")
        _require_weight(self)

    def rows(self, scores: Scores) -> Tensor:
        """1 - p + negative_weight * mean_j relu(s_j - margin)"""
        negative_C = scores.mean(F.relu(scores.negative - self.margin))
        return 1 - scores.row["positive"] + self.negative_weight * scores.to_pairs(negative_C)


class SquaredGramian(RowLoss):
    """(p - 1)^2 + negative_weight * mean_j s_j^2: squared error over positives and, towards 0, over the catalogue.

    Corrected (the default), the mean estimates that over the whole catalogue less what is excluded:
    u^T G u with the Gramian G = mean_j v_j v_j^T. ``mse-gramian`` in the tables of Yi et al., RecSys 2019.

    Source: Krichene et al., ICLR 2019, arXiv 1807.07187, equations 1 and 2.
    """

    correction: Correction = "negatives"
    negative_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_weight(self)

    def rows(self, scores: Scores) -> Tensor:
        """(p - 1)^2 + negative_weight * mean_j s_j^2"""
        negative_C = scores.mean(scores.negative.square())
        return (scores.row["positive"] - 1).square() + self.negative_weight * scores.to_pairs(negative_C)


def _require_weight(loss: CCL | SquaredGramian) -> None:
    if not 0 <= loss.negative_weight < math.inf:
        raise ConfigError(
            f"loss.negative_weight of {type(loss).__name__}: found {loss.negative_weight}, expected 0 or more"
        )
