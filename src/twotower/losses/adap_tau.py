"""A temperature for each query, found from how well the query is fitted."""

from __future__ import annotations

import math
from dataclasses import field
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Facts
from ..records import Block, Encoded
from ..scoring import Prepared, Scores, positive_scores
from .row_loss import RowLoss

_LEAST_ODDS = 1e-6
"""Of a pair that it is none, less 1, for a temperature of any use."""
_START = 0.7
"""Gap between positive and mean cosines assumed before it is measured."""


class AdapTau(RowLoss):
    """-p / t_0 + log sum_j w_j e^{s_j / t_u}: temperatures without tuning, one in all and one a query.

        1 / t_0 = log(|U| |I| / (2 |D|)) / (mean cosine of positives - mean cosine of all pairs)
        t_u = t_0 e^{W(max((L_u - L) / beta, -1/e))}

    |U| queries, |I| live items, |D| training pairs; W is Lambert's function; L_u the loss of the query's positives at
    temperature 1 when it was last met, L its mean over queries. A query that is fitted badly gets a higher temperature:
    softer. One that was not met yet has t_0. The gap of cosines is taken as .7 until ``warm_up`` epochs are over, then
    measured anew over every epoch, so that training has to be longer than that. A refit has the t_0 that the first fit
    ended with, from its own warm-up on: the formula holds the density of the pairs, and with validation joined to
    training it would find another than was validated. Nothing of this is needed to serve: temperatures do not change a
    query's order of items.

    The authors' code counts in |U| and |D| no queries below the quantile .2 of their numbers of pairs (``least``). The
    rest is denser than the data, which in dense data makes t_0 too high (docs/choose-loss.md); here all are counted.

    ``beta = inf`` keeps the global temperature alone, which saves a reduction over the candidates. ``temperature`` has
    no say: it is found. Scores are cosines.

    Source: Chen et al., Adap-tau, WWW 2023, arXiv 2302.04775 (the authors' code, main.py and utils/losses.py).
    """

    needs_unit_vectors: ClassVar[bool] = True

    beta: float = 1.0
    warm_up: float = 3.0
    """Epochs before the gap is measured."""
    least: float = 0.0
    """Quantile of the queries' numbers of pairs below which they are not counted in the density."""

    inverse_temperature: Tensor = field(init=False)
    """1 / t_0"""
    kept: Tensor = field(init=False)
    """1 / t_0 of the first fit; nan: there was none, it is measured."""
    loss_Q: Tensor = field(init=False)
    """[Q] L_u; nan: not met yet."""
    gap_sums: Tensor = field(init=False)
    """[2] positives of this epoch: sum of cosines, number."""
    query_sum: Tensor = field(init=False)
    """[D + 1] queries of this epoch: sum of vectors, number."""
    item_sum: Tensor = field(init=False)
    """[D + 1] candidates of this epoch: weighted sum of vectors, weight."""
    steps: Tensor = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature != 1 or self.learn_temperature:
            raise ConfigError(
                f"loss.temperature of AdapTau: found {self.temperature}, but it finds its own: leave it out"
            )
        if not self.beta > 0:
            raise ConfigError(
                f"loss.beta of AdapTau: found {self.beta}, expected a positive number; inf for none a query"
            )
        if not 0 <= self.least < 1:
            raise ConfigError(f"loss.least of AdapTau: found {self.least}, expected a quantile, 0 up to but not 1")

    def setup(self, facts: Facts) -> None:
        count_Q = facts.query_count_Q
        trained = count_Q[count_Q > 0].double()
        if not len(trained):
            raise ConfigError("loss: AdapTau counts the pairs of each query, but queries have no id: name one")
        kept = trained[trained >= float(np.quantile(trained.cpu().numpy(), self.least))]  # torch's ends at 2^24
        self.pairs = f"{float(kept.sum()):,.0f} of {len(kept):,} queries and {facts.n_live:,} items"
        odds = len(kept) * facts.n_live / (2 * float(kept.sum()))
        self.log_odds = math.log(max(odds, 1 + _LEAST_ODDS))
        self.steps_per_epoch = facts.steps_per_epoch
        self.register_buffer("inverse_temperature", torch.tensor(self.log_odds / _START))
        self.register_buffer("kept", torch.tensor(math.nan))
        self.register_buffer("loss_Q", torch.full((len(count_Q),), math.nan))
        self.register_buffer("gap_sums", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("query_sum", torch.zeros(facts.width + 1, dtype=torch.float64))
        self.register_buffer("item_sum", torch.zeros(facts.width + 1, dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def check(self) -> None:
        """Temperatures grow beyond all bounds as half of all pairs become positives."""
        if self.log_odds <= math.log(1 + _LEAST_ODDS):
            raise ConfigError(
                "loss: AdapTau finds no temperature where half of all pairs or more are positives, found "
                f"{self.pairs}: use SampledSoftmax and tune its temperature"
            )

    def keep(self, first: Self) -> None:
        """Its t_0."""
        self.kept.copy_(first.inverse_temperature)

    @property
    def knows_queries(self) -> bool:  # type: ignore[override]
        """Their losses, unless there is one temperature for all."""
        return not math.isinf(self.beta)

    def reads_counts(self) -> bool:
        """For the mean cosine of all pairs: an item drawn stands for 1 / c of them."""
        return True

    def current_temperature(self) -> Tensor | float:
        """t_0"""
        return 1 / self.inverse_temperature

    def temperature_of(self, query: Tensor) -> Tensor:
        """[n] t_u of query rows; t_0 where a query was not met yet, or has no row (-1)."""
        loss = self.loss_Q[query.clamp(min=0)]
        met_Q = ~self.loss_Q.isnan()
        mean = torch.where(met_Q, self.loss_Q, 0.0).sum() / met_Q.sum().clamp(min=1)
        excess = torch.where(loss.isnan() | (query < 0), 0.0, (loss - mean) / self.beta)
        return lambert(excess.clamp(-math.exp(-1), 1000.0)).exp() / self.inverse_temperature

    def prepare(self, encoded: Encoded) -> Prepared:
        """Cosines as they are; positives over t_0."""
        positive_P = positive_scores(encoded.query_BD, encoded)
        return Prepared(encoded.query_BD, {"positive": positive_P})

    def rows(self, scores: Scores) -> Tensor:
        """log sum_j w_j e^{s_j / t_u} - p / t_0"""
        positive_p = scores.row["positive"]
        inverse = self.inverse_temperature.to(positive_p.dtype)
        scores.note("cosine", positive_p)
        if math.isinf(self.beta):  # one temperature in all: no query's loss is needed
            similarity = scores.negative * inverse
        else:
            with torch.no_grad():
                scores.note("at_one", scores.to_pairs(scores.log_sum_exp(scores.negative)) - positive_p)
            similarity = scores.negative / self.temperature_of(scores.query_C).to(positive_p.dtype)[:, None]
        return scores.to_pairs(scores.log_sum_exp(similarity)) - positive_p * inverse

    @torch.no_grad()
    def observe(self, encoded: Encoded, notes: dict[str, Tensor]) -> None:
        """Remember each query's loss; at the end of an epoch measure the gap anew."""
        if "at_one" in notes:
            self._remember_losses(encoded, notes)
        weight_N = _items_stood_for(encoded.shared)
        weight_N = weight_N if weight_N.dim() == 1 else weight_N.mean(0)
        weight_T = torch.zeros(len(encoded.table_TD), dtype=torch.float64, device=weight_N.device)
        weight_BK = _items_stood_for(encoded.own)
        weight_T.index_add_(0, encoded.slot_BK.flatten(), weight_BK.flatten() / len(encoded.query_BD))
        one_B = torch.ones(len(encoded.query_BD), dtype=torch.float64, device=weight_N.device)
        for total, vector, weight in (
            (self.query_sum, encoded.query_BD, one_B),
            (self.item_sum, encoded.column_ND, weight_N),
            (self.item_sum, encoded.table_TD, weight_T),
        ):
            total += torch.cat([weight @ vector.double(), weight.sum()[None]])
        self.gap_sums += torch.stack(
            [notes["cosine"].double().sum(), notes["cosine"].double().new_tensor(len(notes["cosine"]))]
        )
        self.steps += 1
        if int(self.steps) % self.steps_per_epoch == 0:
            if int(self.steps) >= self.warm_up * self.steps_per_epoch:
                self._measure()
            for total in (self.gap_sums, self.query_sum, self.item_sum):
                total.zero_()

    def _remember_losses(self, encoded: Encoded, notes: dict[str, Tensor]) -> None:
        batch, alive_P = encoded.batch, notes["alive"]
        query_P = batch.query_B.index_select(0, batch.of_P)
        use_P = alive_P & (query_P >= 0)
        rows, at = query_P[use_P].unique(return_inverse=True)
        total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        total.index_add_(0, at, notes["at_one"][use_P].double())
        self.loss_Q[rows] = (total / at.bincount(minlength=len(rows))).to(self.loss_Q.dtype)

    def _measure(self) -> None:
        if not bool(self.kept.isnan()):
            self.inverse_temperature.copy_(self.kept)
            return
        positive = self.gap_sums[0] / self.gap_sums[1]
        mean = (self.query_sum[:-1] / self.query_sum[-1]) @ (self.item_sum[:-1] / self.item_sum[-1])
        gap = positive - mean
        if bool(gap > 0):  # before anything is learnt positives are no nearer than others
            self.inverse_temperature.copy_(self.log_odds / gap)


def _items_stood_for(block: Block) -> Tensor:
    """w / c of each candidate: how many items of the catalogue it stands for; 0 where there is none."""
    return (block.log_weight - torch.nan_to_num(block.log_count)).double().exp()


def lambert(x: Tensor) -> Tensor:
    """W(x), the solution of w e^w = x with w >= -1, for x >= -1/e.

    By Newton's steps from above, log(1 + x) or -1 + sqrt(2 (e x + 1)): w e^w is convex there, so they never overshoot.

    Source: Corless et al., On the Lambert W function, Adv. Comput. Math. 5 (1996), equations 4.22 and 5.8.
    """
    x = x.double()
    w = -1 + (2 * (math.e * x + 1).clamp(min=0)).sqrt()
    w = torch.where(x > 0, torch.minimum(w, x.clamp(min=0).log1p()), w)
    for _ in range(12):
        slope = w.exp() * (w + 1)
        w = w - torch.where(slope > 1e-12, (w * w.exp() - x) / slope.clamp(min=1e-12), 0.0)
    return w
