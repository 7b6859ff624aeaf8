"""Losses that compare each positive with each candidate."""

from __future__ import annotations

import math
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..scoring import Scores
from .row_loss import RowLoss


class BPR(RowLoss):
    """mean_j -log sigmoid(p - s_j), weighted mean over the candidates.

    Source: Rendle et al., UAI 2009, arXiv 1205.2618, BPR-Opt (section 4.1) without the regulariser.
    """

    per_pair: ClassVar[bool] = True

    def rows(self, scores: Scores) -> Tensor:
        """softplus(s_j - p)"""
        return scores.mean(F.softplus(scores.negative - scores.row["positive"][:, None]))


class Margin(RowLoss):
    """mean_j max(0, margin - p + s_j), weighted mean over the candidates.

    Source: Weston et al., WSABIE, IJCAI 2011, equation 3 without the rank weight; Huang et al., KDD 2020, arXiv
    2006.11632 (triplet).
    """

    per_pair: ClassVar[bool] = True

    margin: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.margin < math.inf:
            raise ConfigError(f"loss.margin of Margin: found {self.margin}, expected 0 or more")

    def rows(self, scores: Scores) -> Tensor:
        """relu(margin + s_j - p)"""
        return scores.mean(F.relu(self.margin + scores.negative - scores.row["positive"][:, None]))
