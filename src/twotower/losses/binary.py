"""Losses that classify each pair by itself: a positive is data, a candidate is noise."""

from __future__ import annotations

import math
from dataclasses import field
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..part import Facts
from ..records import Encoded
from ..scoring import Prepared, Scores
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


class SGNS(RowLoss):
    """-log sigmoid(p) - sum_j w_j log sigmoid(-s_j): skip-gram with negative sampling.

    Uncorrected, with K noise items of law q, its optimum is s = log p(y|u) - log q(y) - log K: pointwise mutual
    information less log K where q is the popularity. ``exclude = "positives"`` skips a query's own positives alone, as
    word2vec does; the optimum as stated is that of ``"none"``.

    Source: Mikolov et al., NIPS 2013, equation 4; the optimum: Levy and Goldberg, NIPS 2014, equation 11.
    """

    positive_may_be_noise: ClassVar[bool] = True

    def rows(self, scores: Scores) -> Tensor:
        """softplus(-p) + sum_j w_j softplus(s_j)"""
        return F.softplus(-scores.row["positive"]) + scores.to_pairs(scores.sum(F.softplus(scores.negative)))


class NCE(RowLoss):
    """-log sigmoid(p - log c_p) - sum_j w_j log sigmoid(-(s_j - log c_j)), c the expected counts of the candidates.

    Noise contrastive estimation: the classifier knows how often noise brings an item, so that the score itself becomes
    log p(y|u), normalised without a sum over the catalogue. That optimum is exact where the positive may be among the
    noise (``exclude = "none"``), for candidates drawn by a law of their own (not ``InBatch``, where the positive always
    is), and vectors of any length. What a query is known to like is left out by default, which makes it likelier than
    that. Counts are part of the formula: correction is 'none', and the sampler must have a density.

    Source: Gutmann and Hyvarinen, AISTATS 2010, equation 3; Mnih and Teh, ICML 2012, equation 7.
    """

    needs_counts: ClassVar[bool] = True
    positive_may_be_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.correction != "none":
            raise ConfigError(
                f"loss.correction of NCE: found {self.correction!r}, but the counts are in its formula already: "
                "use 'none'"
            )

    def prepare(self, encoded: Encoded) -> Prepared:
        """Also takes the log count from the positive."""
        query_BD, row, _ = super().prepare(encoded)
        row["positive"] = row["positive"] - encoded.positive_log_count_P.to(query_BD.dtype)
        return Prepared(query_BD, row)

    def rows(self, scores: Scores) -> Tensor:
        """softplus(-(p - log c_p)) + sum_j w_j softplus(s_j - log c_j)"""
        noise_C = scores.sum(F.softplus(scores.negative - scores.log_count))
        return F.softplus(-scores.row["positive"]) + scores.to_pairs(noise_C)


class GBCE(RowLoss):
    """-1/(K + 1) [ beta log sigmoid(p) + sum_j w_j log(1 - sigmoid(s_j)) ], beta = 1 - t (1 - K / (M - 1)).

    K = sum_j w_j negatives of M live items sampled without correction make a model overconfident; a positive of weight
    beta undoes that. ``calibration`` t = 0 is plain binary cross-entropy, t = 1 gives probabilities that are calibrated
    over the whole catalogue, where all but the positive may be drawn (``exclude = "positives"``) and vectors have any
    length.

    Source: Petrov and Macdonald, RecSys 2023, arXiv 2308.07192, equations 11 and 12.
    """

    calibration: float = 0.75

    n_live: int = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.calibration <= 1:
            raise ConfigError(f"loss.calibration of GBCE: found {self.calibration}, expected 0 to 1")
        if self.correction != "none":
            raise ConfigError(
                f"loss.correction of GBCE: found {self.correction!r}, but its positive's weight makes up for sampling: "
                "use 'none'"
            )

    def setup(self, facts: Facts) -> None:
        self.n_live = facts.n_live

    def rows(self, scores: Scores) -> Tensor:
        """(beta softplus(-p) + sum_j w_j softplus(s_j)) / (K + 1)"""
        n_C = scores.weight().sum(1)
        beta_C = 1 - self.calibration * (1 - n_C / max(self.n_live - 1, 1)).clamp(min=0)
        positive_p = scores.to_pairs(beta_C) * F.softplus(-scores.row["positive"])
        negative_p = scores.to_pairs(scores.sum(F.softplus(scores.negative)))
        return (positive_p + negative_p) / scores.to_pairs(n_C + 1)
