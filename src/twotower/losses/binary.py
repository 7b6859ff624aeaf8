"""Losses that classify each pair by itself."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..scoring import Scores
from .row_loss import RowLoss


class BinaryCrossEntropy(RowLoss):
    """-log sigmoid(p) - negative_weight * mean_j log(1 - sigmoid(s_j)).

    Source: He et al., WWW 2017, arXiv 1708.05031, equation 7, with the mean over a query's candidates.
    """

    temperature: float = 1.0
    negative_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.negative_weight < math.inf:
            raise ConfigError(
                f"loss.negative_weight of BinaryCrossEntropy: found {self.negative_weight}, expected 0 or more"
            )

    def rows(self, scores: Scores) -> Tensor:
        """softplus(-p) + negative_weight * mean_j softplus(s_j)"""
        negative_C = scores.mean(F.softplus(scores.negative))
        return F.softplus(-scores.row["positive"]) + self.negative_weight * scores.to_pairs(negative_C)
