"""Losses that compare each positive with each candidate."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..scoring import Correction, Scores
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
    """mean_j max(0, margin - p + s_j), weighted mean over the candidates: hinge, or triplet with distance 1 - cosine.

    Source: Weston et al., WSABIE, IJCAI 2011, equation 3 without the rank weight; Huang et al., KDD 2020, arXiv
    2006.11632 (triplet).
    """

    is_hinge: ClassVar[bool] = True
    per_pair: ClassVar[bool] = True

    margin: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_margin(self)

    def rows(self, scores: Scores) -> Tensor:
        """relu(margin + s_j - p)"""
        return scores.mean(F.relu(self.margin + scores.negative - scores.row["positive"][:, None]))


class Warp(RowLoss):
    """Phi(r) mean_{j in V} (margin - p + s_j), V the candidates with s_j > p - margin, Phi(r) = 1 + 1/2 + ... + 1/r.

    r is the summed weight of V: corrected (the default), it estimates how many items of the catalogue rank above the
    positive or within its margin, so a positive far down presses harder, and one at the top hardly. Phi is continued to
    all r by the digamma function. Phi(r) has no gradient. (Weston et al. draw until a violator is found and estimate r
    from the number of draws; here all candidates vote.)

    Source: Weston et al., WSABIE, IJCAI 2011, equations 2 to 4; Usunier et al., ICML 2009.
    """

    is_hinge: ClassVar[bool] = True
    per_pair: ClassVar[bool] = True

    correction: Correction = "negatives"
    margin: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_margin(self)

    def rows(self, scores: Scores) -> Tensor:
        """Phi(r) / r * sum_j w_j relu(margin - p + s_j)"""
        excess = self.margin + scores.negative - scores.row["positive"][:, None]
        with torch.no_grad():
            rank_p = scores.sum((excess > 0).to(excess.dtype))
            harmonic_p = torch.digamma(rank_p + 1) + _EULER
            share_p = torch.where(rank_p > 0, harmonic_p / rank_p.clamp(min=torch.finfo(rank_p.dtype).tiny), 0.0)
        return share_p * scores.sum(F.relu(excess))


_EULER = 0.57721566490153286
"""-digamma(1)"""


def _require_margin(loss: Margin | Warp) -> None:
    if not 0 <= loss.margin < math.inf:
        raise ConfigError(f"loss.margin of {type(loss).__name__}: found {loss.margin}, expected 0 or more")
