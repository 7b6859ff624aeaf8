"""Margins and temperatures that adapt to each pair of a positive and a negative item."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..records import Encoded
from ..scoring import Correction, Prepared, Scores, Similarity, positive_scores
from .row_loss import RowLoss

ANCHOR = "anchor"


class Adaptive(RowLoss):
    """What ``AdaptiveMargin`` and ``AdaptiveTemperature`` share: an easy negative gets more room than a hard one.

        room(m) = base + alpha (1 - sg(m))        additive
        room(m) = base (1 + alpha (1 - sg(m)))    multiplicative

    m is the cosine of the positive and the negative item (``hardness = "item"``), or of the query and the negative
    (``"query"``). sg stops the gradient; without it (``stop_gradient = False``) the room itself pulls all items
    together until they collapse. The symmetric term takes the positive item as anchor and the query as its positive:
    it pushes negatives away from the item, with room by s(q, v_j), and counts ``symmetric`` times.

    Scores are cosines: towers must normalise.
    """

    per_pair: ClassVar[bool] = True
    needs_unit_vectors: ClassVar[bool] = True

    alpha: float = 0.5
    learn_alpha: bool = False
    combine: Literal["additive", "multiplicative"] = "additive"
    hardness: Literal["item", "query"] = "item"
    stop_gradient: bool = True
    symmetric: float = 0.05
    """Weight of the symmetric term, 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        for setting, value in (("alpha", self.alpha), ("symmetric", self.symmetric)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"loss.{setting} of {name}: found {value}, expected 0 or more")
        if self.learn_alpha:
            self.learned_alpha = nn.Parameter(torch.tensor(float(self.alpha)))

    def current_alpha(self) -> Tensor | float:
        """alpha, learned or not."""
        return self.learned_alpha if self.learn_alpha else self.alpha

    @torch.no_grad()
    def constrain(self) -> None:
        """A learned alpha stays at 0 or more."""
        super().constrain()
        if self.learn_alpha:
            self.learned_alpha.clamp_(min=0)

    def room(self, base: Tensor | float, cosine: Tensor) -> Tensor:
        """Margin or temperature of each candidate from its cosine m."""
        if self.stop_gradient:
            cosine = cosine.detach()
        ease = self.current_alpha() * (1 - cosine).clamp(min=0)  # rounding may leave a cosine just above 1
        return base + ease if self.combine == "additive" else base * (1 + ease)

    def prepare(self, encoded: Encoded) -> Prepared:
        """Cosines as they are, and those of each positive item with every candidate."""
        query_BD = encoded.query_BD
        anchor_PD = encoded.table_TD.index_select(0, encoded.positive_slot_P)
        beside = {ANCHOR: Similarity(anchor_PD, encoded.column_ND, encoded.table_TD)}
        return Prepared(query_BD, {"positive": positive_scores(query_BD, encoded)}, beside)

    def rows(self, scores: Scores) -> Tensor:
        """L_q + symmetric * L_v"""
        to_query, to_item = scores.negative, scores.beside[ANCHOR]
        total = self.of_anchor(scores, to_query, to_item if self.hardness == "item" else to_query)
        if self.symmetric:
            total = total + self.symmetric * self.of_anchor(scores, to_item, to_query)
        return total

    def of_anchor(self, scores: Scores, negative: Tensor, cosine: Tensor) -> Tensor:
        """[p] the loss of positives against ``negative``, with room by ``cosine``."""
        raise TypeError(f"{type(self).__name__} defines no of_anchor")


class AdaptiveMargin(Adaptive):
    """mean_j max(0, d_j - p + s_j), d_j = offset + alpha (1 - sg(s(v, v_j))), and the symmetric term.

    A negative like the positive item needs a small margin only; one unlike it is to be far away.

    Source: Li et al., Adaptive hyper-parameter learning for deep semantic retrieval, EMNLP 2023 Industry, adaptive
    margin (reconstructed from its description; papers that quote it give no more).
    """

    is_hinge: ClassVar[bool] = True

    offset: float = 0.01
    """Margin of a negative equal to the positive item (delta_0)."""
    learn_offset: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature != 1 or self.learn_temperature:
            raise ConfigError(
                f"loss.temperature of AdaptiveMargin: found {self.temperature}, but a margin is one of cosines: leave "
                "it at 1, or use AdaptiveTemperature"
            )
        if not 0 <= self.offset < math.inf:
            raise ConfigError(f"loss.offset of AdaptiveMargin: found {self.offset}, expected 0 or more")
        if self.learn_offset:
            self.learned_offset = nn.Parameter(torch.tensor(float(self.offset)))

    @classmethod
    def jd2023(cls) -> Self:
        """As published: alpha .5, delta_0 .01, w .05, in-batch negatives. Source: Li et al., EMNLP 2023 Industry."""
        return cls(alpha=0.5, offset=0.01, symmetric=0.05)

    @torch.no_grad()
    def constrain(self) -> None:
        """A learned offset stays at 0 or more."""
        super().constrain()
        if self.learn_offset:
            self.learned_offset.clamp_(min=0)

    def of_anchor(self, scores: Scores, negative: Tensor, cosine: Tensor) -> Tensor:
        """mean_j relu(d_j - p + s_j)"""
        margin = self.room(self.learned_offset if self.learn_offset else self.offset, cosine)
        return scores.mean(F.relu(margin - scores.row["positive"][:, None] + negative))


class AdaptiveTemperature(Adaptive):
    """log(1 + sum_j w_j e^{(s_j - p) / t_j}), t_j = temperature + alpha (1 - sg(s(v, v_j))), and the symmetric term.

    A negative like the positive item has a low temperature, so that what is left of its score counts much; an easy one
    is softened. ``per = "logit"`` divides each logit by itself instead: -log( e^{p/t} / (e^{p/t} + sum_j w_j
    e^{s_j/t_j}) ). ``temperature`` is tau_0, and ``learn_temperature`` learns it.

    Source: Li et al., Adaptive hyper-parameter learning for deep semantic retrieval, EMNLP 2023 Industry, adaptive
    temperature (reconstructed from its description).
    """

    temperature: float = 1 / 30
    correction: Correction = "negatives"
    per: Literal["pair", "logit"] = "pair"

    @classmethod
    def jd2023(cls) -> Self:
        """As published: tau_0 1/30, alpha .5, w .05, in-batch negatives without correction. Source: Li et al., EMNLP
        2023 Industry."""
        return cls(temperature=1 / 30, alpha=0.5, symmetric=0.05, correction="none")

    def of_anchor(self, scores: Scores, negative: Tensor, cosine: Tensor) -> Tensor:
        """softplus(log sum_j w_j e^{(s_j - p) / t_j}), or of logits of their own temperature"""
        base, positive_p = self.current_temperature(), scores.row["positive"]
        temperature = self.room(base, cosine)
        if self.per == "pair":
            return F.softplus(scores.log_sum_exp((negative - positive_p[:, None]) / temperature))
        return F.softplus(scores.log_sum_exp(negative / temperature) - positive_p / base)
