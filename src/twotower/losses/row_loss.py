"""What all tiled losses share: correction, exclusion, temperature."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..part import Part
from ..records import Encoded
from ..scoring import DEFAULT_TILE, Correction, Exclude, Prepared, Scores, positive_scores, run


class Loss(Part):
    """Anything that turns ``Encoded`` into a scalar."""

    learns_items: ClassVar[bool] = True
    """Whether item vectors are learnt, which an index could search."""

    def forward(
        self, encoded: Encoded, *, tile: int | None = DEFAULT_TILE, gemm: torch.dtype | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the batch (weighted sum over the total weight) and notes of each positive."""
        raise TypeError(f"{type(self).__name__} defines no forward")

    def check(self) -> None:
        """Raise ConfigError where it can't learn from what ``setup`` was told of; asked when a training begins."""

    def constrain(self) -> None:
        """Bring learned settings back into their range; called after every step."""

    def observe(self, encoded: Encoded, notes: dict[str, Tensor]) -> None:
        """Learn from a finished step what is not learned by gradient; called once a global batch."""

    def keep(self, first: Self) -> None:
        """In a refit, before its first step: keep what the same loss found in the first fit, where validation judged
        it."""

    def uses_counts(self) -> bool:
        """Whether it needs the expected count of every candidate."""
        return False

    def reads_counts(self) -> bool:
        """Whether it looks at expected counts where there are any. Otherwise nobody counts: some laws take long to."""
        return self.uses_counts()

    def compared(self) -> Loss:
        """The loss that compares positives with candidates: itself, or the one that it is made of."""
        return self


class RowLoss(Loss):
    """A loss that is a sum over positives, each compared with the candidates of its query.

    Order of operations: similarity, divided by the temperature, then reduced with weights
    ``log_weight - strength * log_count`` and exclusions inside the reduction. Served scores are uncorrected.

    ``strength`` scales the shape of the counts, not their sum (``scoring.corrected_log_count``), so
    that a sweep does not change the odds of positives against negatives.
    """

    per_pair: ClassVar[bool] = False
    """Whether each positive is compared with each candidate; otherwise a query's candidates are reduced once."""
    by_log_sum_exp: ClassVar[bool] = False
    is_hinge: ClassVar[bool] = False
    """Whether it is 0 for a positive far enough above all of its candidates."""
    corrects_positive: ClassVar[bool] = False
    """Whether correction ``all`` has a meaning for this loss."""
    needs_counts: ClassVar[bool] = False
    """Whether expected counts are part of the formula, corrected or not."""
    any_scale_of_counts: ClassVar[bool] = False
    """Whether a factor that all counts of a query have in common leaves the gradient as it is."""
    needs_unit_vectors: ClassVar[bool] = False
    """Whether the formula takes scores for cosines."""
    knows_queries: ClassVar[bool] = False
    """Whether it keeps something for each query, by its row: then items can't take the place of queries."""
    positive_may_be_noise: ClassVar[bool] = False
    """Whether the loss is meant for negatives among which the positive may be too."""

    temperature: float = 1.0
    learn_temperature: bool = False
    min_temperature: float = 0.01
    """Clamps of a learned temperature."""
    max_temperature: float = 2.0
    correction: Correction = "none"
    strength: float = 1.0
    exclude: Exclude = "known"

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"loss.temperature of {name}: found {self.temperature}, expected a positive number")
        if not 0 <= self.strength <= 1:
            raise ConfigError(f"loss.strength of {name}: found {self.strength}, expected 0 to 1")
        if self.correction == "all" and not self.corrects_positive:
            raise ConfigError(
                f"loss.correction of {name}: 'all' corrects the positive's logit, which only SampledSoftmax has: "
                "use 'negatives' or 'none'"
            )
        if self.exclude == "none" and not (self.corrects_positive or self.positive_may_be_noise):
            raise ConfigError(
                f"loss.exclude of {name}: 'none' leaves the positive among its own negatives, which only "
                "SampledSoftmax, NCE and SGNS account for: use 'positives' or 'known'"
            )
        if self.exclude == "none" and self.correction == "negatives":
            raise ConfigError(
                f"loss.exclude of {name}: 'none' leaves the positive among its own negatives, which correction "
                "'negatives' would count twice: use exclude = 'positives' or 'known', or correction = 'all'"
            )
        if self.learn_temperature:
            if not 0 < self.min_temperature <= self.temperature <= self.max_temperature:
                raise ConfigError(
                    f"loss.temperature of {name}: found {self.temperature}, expected {self.min_temperature} to "
                    f"{self.max_temperature} (min_temperature, max_temperature) as it is learned"
                )
            self.log_temperature = nn.Parameter(torch.tensor(math.log(self.temperature)))

    def uses_counts(self) -> bool:
        """A correction is made of counts."""
        return self.needs_counts or self.correction != "none"

    def current_temperature(self) -> Tensor | float:
        """The temperature scores are divided by."""
        return self.log_temperature.exp() if self.learn_temperature else self.temperature

    @torch.no_grad()
    def constrain(self) -> None:
        """Clamp a learned temperature. Done after a step: a clamp on the way would have no gradient to come back by."""
        if self.learn_temperature:
            self.log_temperature.clamp_(math.log(self.min_temperature), math.log(self.max_temperature))

    def prepare(self, encoded: Encoded) -> Prepared:
        """Query vectors over the temperature, and each positive's score."""
        query_BD = encoded.query_BD / self.current_temperature()
        return Prepared(query_BD, {"positive": positive_scores(query_BD, encoded)})

    def rows(self, scores: Scores) -> Tensor:
        """[p] loss of each positive of a tile."""
        raise TypeError(f"{type(self).__name__} defines no rows")

    def forward(
        self, encoded: Encoded, *, tile: int | None = DEFAULT_TILE, gemm: torch.dtype | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``scoring.run``."""
        return run(self, encoded, tile=tile, gemm=gemm)


class LogSumExpRowLoss(RowLoss):
    """A row loss that sees its candidates only through log sum_j w_j e^{s_j}: reduced once a query, gradient in closed
    form."""

    by_log_sum_exp: ClassVar[bool] = True

    def finish(self, log_sum_p: Tensor, scores: Scores) -> Tensor:
        """[p] loss of each positive from its query's log-sum-exp."""
        raise TypeError(f"{type(self).__name__} defines no finish")

    def rows(self, scores: Scores) -> Tensor:
        """The same by plain autograd."""
        return self.finish(scores.to_pairs(scores.log_sum_exp(scores.negative)), scores)
