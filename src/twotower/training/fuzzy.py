"""Positives that nobody confirmed: likely pairs, trained on with their probability for a weight."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.batches import keep, without
from ..errors import DataError
from ..records import Ragged


class Platt(NamedTuple):
    """From scores to probabilities: p = sigmoid(slope * score + intercept).

    Source: Platt, Probabilistic outputs for support vector machines (1999), with its smoothed targets.
    """

    slope: float
    intercept: float

    @staticmethod
    def fit(score_N: Tensor, taken_N: Tensor) -> Platt:
        """By what was taken of N impressions. Take some that the model was not trained on: of others it is too sure.

        Raises DataError where a score is not finite, where all were taken or none, and where higher scores were not
        taken more often.
        """
        taken_N = taken_N.bool()
        n_yes, n_no = int(taken_N.sum()), int((~taken_N).sum())
        if not n_yes or not n_no or not bool(score_N.isfinite().all()):
            raise DataError(
                f"Platt: found {n_yes:,} impressions taken, {n_no:,} not, {int((~score_N.isfinite()).sum()):,} scores "
                "not finite: expected some of both, and finite scores"
            )
        target_N = torch.where(taken_N, (n_yes + 1) / (n_yes + 2), 1 / (n_no + 2)).double()
        mean, deviation = score_N.double().mean(), score_N.double().std(correction=0).clamp(min=1e-300)
        z_N = (score_N.double() - mean) / deviation
        line = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([line], max_iter=100, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

        def loss() -> float:
            optimiser.zero_grad()
            value = F.binary_cross_entropy_with_logits(line[0] * z_N + line[1], target_N)
            value.backward()
            return float(value.detach())

        optimiser.step(loss)
        slope = float(line.detach()[0] / deviation)
        if not slope > 0:
            raise DataError(
                f"Platt: the slope is {slope:.3g}, expected above 0: these scores are no higher for what was taken "
                "than for what was not, so no probability follows from them"
            )
        return Platt(slope, float(line.detach()[1]) - slope * float(mean))

    def probability(self, score_N: Tensor) -> Tensor:
        """[N] float32, above 0 and below 1."""
        tiny, below_one = torch.finfo(torch.float32).tiny, math.nextafter(1.0, 0.0)
        p_N = torch.sigmoid(self.slope * score_N.double() + self.intercept).clamp(tiny, below_one).float()
        return p_N.clamp(max=1 - 2.0**-24)  # the float32 before 1


class FuzzyPositives(NamedTuple):
    """N pairs to train on beside the events, by query, then as they were given."""

    query_N: Tensor
    """Query rows."""
    item_N: Tensor
    """Item rows."""
    label_N: Tensor
    """Probability that the query takes the item, in (0, 1): the weight of the pair as an interaction."""


def fuzzy_positives(
    pairs: Ragged, score_L: Tensor, known: Ragged, *, platt: Platt, least: float = 0.5
) -> FuzzyPositives:
    """Pairs without a confirmed answer that are likely positives, with a label below that of a confirmed one.

        label = sigmoid(slope * score + intercept), kept where it is at least ``least`` and the item is not known

    ``pairs`` are [Q] lists of distinct items of each query row, shown and not taken (``Facts.shown``) or never shown,
    L pairs in all, with a trained model's score for each: ``(query_QD[pairs.owner()] * item_MD[pairs.value]).sum(1)``.
    ``known`` are [Q] lists of what each query is known to like (``Facts.pairs``): no such pair comes out, as it is a
    positive already. Written with the ids of the rows, a column ``taken`` of 1 and the label in the column of the
    weight, they are interactions to ingest beside the others, whose weight is 1.

    Choose it where few positives are confirmed and what is shown is chosen by a policy that favours some items.

    Raises DataError where ``least`` is no probability, or there is not one score a pair.

    Source: Fei et al., Sample optimization for display advertising (CIKM 2020), fuzzy positives; that labels are
    calibrated by Platt's line is ours.
    """
    if not 0 < least < 1:
        raise DataError(f"fuzzy_positives: least is {least}, expected a probability between 0 and 1")
    if score_L.shape != pairs.value.shape:
        raise DataError(
            f"fuzzy_positives: found {len(score_L):,} scores for {len(pairs.value):,} pairs, expected equal"
        )
    labelled = Ragged(offset=pairs.offset, value=pairs.value, weight=platt.probability(score_L))
    unknown, _ = without(labelled, known)
    assert unknown.weight is not None
    likely = keep(unknown, unknown.weight >= least)
    assert likely.weight is not None
    return FuzzyPositives(likely.owner(), likely.value, likely.weight)
