"""Losses that reduce the candidates by log-sum-exp."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..records import Encoded
from ..scoring import Correction, Prepared, Scores, corrected_log_count
from .row_loss import LogSumExpRowLoss


class SampledSoftmax(LogSumExpRowLoss):
    """-log( e^p / (e^p + sum_j w_j e^{s_j}) ), scores over the temperature.

    With correction ``negatives`` (the default) w_j is one over the item's expected count: the sum estimates that of the
    full softmax over the items that are not excluded, and so does its gradient as candidates grow. ``all`` takes the
    log count from the positive's logit too, as printed in Yi et al. ``renormalise`` conditions the counts on not
    drawing the positive.

    Source: Yi et al., RecSys 2019, equations 3 and 4; Yang et al., WWW 2020, equation 5; Khrylchenko et al., RecSys
    2025.
    """

    corrects_positive: ClassVar[bool] = True

    temperature: float = 0.05
    correction: Correction = "negatives"
    renormalise: bool = False
    """Divide each count by 1 - q of the positive, q its share of all counts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.renormalise and self.correction != "negatives":
            raise ConfigError(
                f"loss.renormalise of SampledSoftmax: needs correction = 'negatives', found {self.correction!r}"
            )

    @classmethod
    def yi2019(cls, *, temperature: float = 0.05) -> Self:
        """Positive and negatives corrected, nothing excluded: equation 4 as printed. Source: Yi et al., RecSys 2019."""
        return cls(temperature=temperature, correction="all", exclude="none")

    @classmethod
    def mns2020(cls, *, temperature: float = 0.05) -> Self:
        """Negatives corrected by the count of the mixture they are drawn from. Source: Yang et al., WWW 2020, equation
        5."""
        return cls(temperature=temperature, correction="negatives", exclude="positives")

    @classmethod
    def refined2025(cls, *, temperature: float = 0.05) -> Self:
        """Counts conditioned on not drawing the positive, which is not corrected.

        The printed loss, -sg(1 - P) (s_p - log sum_n e^{s_n - log Q'_n}), has exactly the gradient of this
        cross-entropy.
        Source: Khrylchenko et al., RecSys 2025, arXiv 2507.09331.
        """
        return cls(temperature=temperature, correction="negatives", exclude="positives", renormalise=True)

    @classmethod
    def dssm2013(cls, *, gamma: float = 10.0) -> Self:
        """e^{gamma cos} against a few other documents, not corrected: take ``Rotations(4)`` as negatives. Source: Huang
        et al., CIKM 2013, equations 5 and 6."""
        return cls(temperature=1 / gamma, correction="none", exclude="positives")

    def prepare(self, encoded: Encoded) -> Prepared:
        """Also corrects the positive under ``all``, and finds log(1 - q) under ``renormalise``."""
        query_BD, row, _ = super().prepare(encoded)
        if self.correction == "all":
            shift_P = corrected_log_count(encoded.positive_log_count_P, encoded, self.strength)
            row["positive"] = row["positive"] - shift_P.to(query_BD.dtype)
        if self.renormalise:
            log_total = torch.logsumexp(encoded.shared.log_weight, 0) if len(encoded.shared.row) else None
            own = encoded.own.log_weight
            log_own = torch.logsumexp(own, 1).index_select(0, encoded.batch.of_P) if own.shape[1] else None
            totals = [t for t in (log_total, log_own) if t is not None]
            log_all_P = totals[0] if len(totals) == 1 else torch.logaddexp(totals[0], totals[1])
            share_P = (encoded.positive_log_count_P - log_all_P).exp().clamp(max=1 - 1e-6)
            row["log_rest"] = torch.log1p(-share_P).to(query_BD.dtype)
        return Prepared(query_BD, row)

    def finish(self, log_sum_p: Tensor, scores: Scores) -> Tensor:
        """log(e^p + e^z) - p = softplus(z - p)"""
        if self.renormalise:
            log_sum_p = log_sum_p + scores.row["log_rest"]
        margin_p = log_sum_p - scores.row["positive"]
        if self.exclude == "none" and scores.lines.encoded.positives_are_columns:
            return margin_p  # the positive is already one of the columns
        return F.softplus(margin_p)


class BilateralSoftmax(LogSumExpRowLoss):
    """-p + exponent * log sum_j w_j e^{s_j}, scores over the temperature; the positive is not in the sum.

    An exponent over 1 presses harder on popular candidates, one under 1 tolerates noisy positives more. At 1 its
    gradient by the candidates' scores is the self-normalised importance estimate of the full softmax's: counts may be
    known up to one factor a query only (Markov chains), though then the value of the loss means nothing.

    Source: Wu et al., BSL, ICDE 2024, arXiv 2312.12882 (the authors' code, form "reweight").
    """

    any_scale_of_counts: ClassVar[bool] = True

    temperature: float = 0.1
    exponent: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.exponent < math.inf:
            raise ConfigError(f"loss.exponent of BilateralSoftmax: found {self.exponent}, expected a positive number")

    def finish(self, log_sum_p: Tensor, scores: Scores) -> Tensor:
        """exponent * z - p"""
        return self.exponent * log_sum_p - scores.row["positive"]
