"""Losses that classify each pair by itself."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..scoring import Scores
from .row_loss import RowLoss


class BinaryCrossEntropy(RowLoss):
    """-log sigmoid(p) - negative_weight * mean_j log(1 - sigmoid(s_j)).

    Source: He et al., WWW 2017, arXiv 1708.05031, equation 7, with the mean over a query's candidates.
    """

    temperature: float = 1.0
    negative_weight: float = 1.0

    def rows(self, scores: Scores) -> Tensor:
        """softplus(-p) + negative_weight * mean_j softplus(s_j)"""
        negative_C = scores.mean(F.softplus(scores.negative))
        return F.softplus(-scores.row["positive"]) + self.negative_weight * scores.to_pairs(negative_C)
