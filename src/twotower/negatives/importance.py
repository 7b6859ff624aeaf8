"""Estimates of an expectation from samples, and a sampler that learns what to propose and how much is enough.

    E_p f = sum_i p_i f_i

is estimated from S draws: of p itself (Monte Carlo), of another law q where p is known (importance sampling), or known
up to a factor only (self-normalised, also called biased). A softmax without its positive, corrected by counts, is the
last one: its gradient by the scores is the self-normalised estimate of the full softmax's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Changes, Facts, carry_rows
from ..records import NEG_INF, Batch, Block, Encoded, running_sum
from .drawing import by_weight
from .live import LiveRows
from .room import Room, Sizes
from .sampler import Look, Sampler
from .scores import scores


class Estimate(NamedTuple):
    """An estimate [...] and its standard error [...], from samples [..., S]."""

    mean: Tensor
    standard_error: Tensor


def monte_carlo(value_S: Tensor) -> Estimate:
    """E_p f ≈ mean of f over S draws of p; its error, sigma / √S, halves with four times the draws.

    ``value_S`` [..., S] is f at each draw; one draw alone tells no error (nan).

    Source: Metropolis and Ulam, The Monte Carlo method (JASA 1949).
    """
    n = value_S.shape[-1]
    mean = value_S.mean(-1)
    square = (value_S - mean[..., None]).square().sum(-1)
    return Estimate(mean, (square / (n - 1) / n).sqrt() if n > 1 else torch.full_like(mean, math.nan))


def importance_sampling(value_S: Tensor, log_p_S: Tensor, log_q_S: Tensor) -> Estimate:
    """E_p f ≈ mean of f p / q over S draws of q: unbiased wherever q covers p f. [..., S] each.

    The best q is ∝ |f| p: for a softmax's gradient, the candidates that the model likes most.

    Source: Kahn and Marshall, Methods of reducing sample size in Monte Carlo computations (Operations Research 1953).
    """
    return monte_carlo(value_S * (log_p_S - log_q_S).exp())


def self_normalised(value_S: Tensor, log_weight_S: Tensor) -> Estimate:
    """E_p f ≈ sum r f / sum r over S draws of q, r = p / q up to any factor. [..., S] each.

    Neither p nor q need be normalised. The bias falls as 1 / S; the standard error is that of the delta method. With
    f = gradient of the score and log r = s - log q it is the gradient of log sum e^{s - log q}: the weights r / sum r
    are softmax(s - log q) over the sample.

    Source: Bengio and Senécal, Quick training of probabilistic neural nets by importance sampling (AISTATS 2003).
    """
    share_S = log_weight_S.softmax(-1)
    mean = (share_S * value_S).sum(-1)
    return Estimate(mean, (share_S * (value_S - mean[..., None])).square().sum(-1).sqrt())


def effective_sample_size(log_weight_S: Tensor) -> Tensor:
    """(sum r)^2 / sum r^2 of weights [..., S] given by their logs: how many draws of p the weighted ones are worth.

    S where all weigh the same, 1 where one outweighs all, 0 without any.

    Source: Kong, A note on importance sampling using standardized weights (1992); Bengio and Senécal 2008, section IV.
    """
    return _ess(log_weight_S.logsumexp(-1), (2 * log_weight_S).logsumexp(-1))


def _ess(log_sum: Tensor, log_square_sum: Tensor) -> Tensor:
    return torch.where(log_sum == NEG_INF, 0.0, (2 * log_sum - log_square_sum).exp())


class AdaptiveImportance(Sampler):
    """As many draws as each query needs, of a law that learns to be like its softmax: own lists [B, K].

        q(i | u) = (1 - share) q_popular(i) + share q_cluster(u)(i),    r = e^{s(u, i) / temperature} / q(i | u)

    Blocks of ``block`` items are drawn for a query until the effective sample size of its weights r reaches ``ess``. If
    ``cap`` draws are not enough it gets the whole catalogue, each item once, and its sum is the full one.

    A query's cluster is the sign pattern of ``bits`` fixed random projections of its current vector: 2^bits clusters. A
    cluster's law is a histogram over the catalogue, the running mean (stochastic EM: step size ``rate``) of the
    self-normalised weights of its queries' candidates, known ones included. It starts as the popular law, ∝ (training
    events + smoothing)^alpha, which has a share everywhere: so every item can be drawn, and r is bounded.

    Queries stop at different numbers k_u of draws. A draw weighs ``ess`` / k_u, and an item of the catalogue
    ``ess`` q(i | u), so that every query's expected count is ess q(i | u), and divided by it an item of the whole
    catalogue counts exactly once. The density is approximate: when drawing stops depends on what was drawn, which makes
    the softmax's sum too large by a part of the order of 1 / ess (in a small example 0.8% at 64, 6% at 10).

    It pays on a catalogue of moderate size with an expensive softmax: the histograms take 4 · 2^bits · M bytes of
    memory and of every checkpoint, each batch sums up 8 C M bytes for the C clusters it has, and one query that gets
    the whole catalogue makes lists [B, M]. Keep ``ess`` and ``cap`` such that few do (a higher temperature helps); the
    temperature is that of the loss.

    Raises ConfigError where a setting is out of its range.

    Source: Bengio and Senécal, Adaptive importance sampling to accelerate training of a neural probabilistic language
    model (IEEE TNN 2008), with clusters of queries for the contexts of n-grams.
    """

    density = "approximate"
    per_query_law = True

    ess: float = 64.0
    block: int = 32
    cap: int = 1024
    share: float = 0.5
    bits: int = 4
    rate: float = 0.05
    temperature: float = 0.05
    alpha: float = 0.75
    smoothing: float = 1.0

    popular_M: Tensor = field(init=False)
    projection_DH: Tensor = field(init=False)
    histogram_CM: Tensor = field(init=False)
    live: LiveRows = field(init=False)
    has_forgotten: bool = field(init=False)

    def __post_init__(self) -> None:
        _require(self.block >= 1, "block", self.block, "at least 1 item")
        _require(self.cap >= self.block, "cap", self.cap, f"at least block, {self.block}")
        _require(1 <= self.ess <= self.cap, "ess", self.ess, f"1 to cap, {self.cap}: n draws are worth n at most")
        _require(0 <= self.share < 1, "share", self.share, "0 to below 1: the popular law reaches what clusters miss")
        _require(0 <= self.bits <= 16, "bits", self.bits, "0 to 16: there are 2^bits histograms of the catalogue")
        _require(0 < self.rate <= 1, "rate", self.rate, "above 0, up to 1")
        _require(0 < self.temperature < math.inf, "temperature", self.temperature, "a positive number, the loss's own")
        _require(math.isfinite(self.alpha), "alpha", self.alpha, "a number")
        _require(0 < self.smoothing < math.inf, "smoothing", self.smoothing, "above 0: an item without a share is lost")

    def setup(self, facts: Facts) -> None:
        self.live, self.has_forgotten = LiveRows(facts), False
        weight_M = facts.of_live((facts.item_count_M.double() + self.smoothing) ** self.alpha)
        popular_M = (weight_M / weight_M.sum()).float()
        least = float(popular_M[self.live.rows(popular_M.device)].min())
        _require(least > 0, "alpha", self.alpha, f"one that leaves every item a share; the smallest would be {least}")
        projection_DH = torch.randn(facts.width, self.bits, generator=torch.Generator().manual_seed(0))
        # The popular law follows from the data, so it is not saved: tomorrow's run counts tomorrow's events.
        self.register_buffer("popular_M", popular_M, persistent=False)
        self.register_buffer("projection_DH", projection_DH.to(popular_M.device))
        self.register_buffer("histogram_CM", popular_M.repeat(2**self.bits, 1))

    def carry(self, saved: Mapping[str, Tensor], changes: Changes) -> None:
        """Laws stay what they were among the items that stay; a changed item has its share of the popular law."""
        kept = {name: value for name, value in saved.items() if name != "histogram_CM"}
        super().carry(kept, changes)
        carry_rows(self.histogram_CM.T, saved["histogram_CM"].T, changes.item_M)
        changed_M = changes.item_M.to(self.popular_M.device)
        if bool(changed_M.any()):  # a law sums to 1
            kept_CK, popular_K = self.histogram_CM[:, ~changed_M], self.popular_M[~changed_M]
            total_C1 = kept_CK.sum(1, keepdim=True)
            self.histogram_CM[:, ~changed_M] = torch.where(
                total_C1 > 0, kept_CK * (popular_K.sum() / total_C1), popular_K
            )

    def room(self, sizes: Sizes) -> Room:
        most = max(self.cap // self.block * self.block, sizes.n_items)
        return Room(own=most, kept=4 * (sizes.n_items * (1 + 2**self.bits) + sizes.width * self.bits)) + LiveRows.room(
            sizes
        )

    def cluster(self, query_BD: Tensor) -> Tensor:
        """[B] sign patterns, as numbers from 0 to 2^bits - 1."""
        is_positive_BH = query_BD @ self.projection_DH.to(query_BD.dtype) > 0
        return (is_positive_BH * 2 ** torch.arange(self.bits, device=query_BD.device)).sum(1)

    def law(self, cluster_C: Tensor) -> Tensor:
        """[C, M] what is proposed to queries of some clusters."""
        return torch.lerp(self.popular_M, self.histogram_CM[cluster_C], self.share)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        cluster_B = self.cluster(look.query_BD)
        return self._log_law(cluster_B, row.expand(len(cluster_B), row.shape[-1])) + math.log(self.ess)

    def _log_law(self, cluster_B: Tensor, row_BK: Tensor) -> Tensor:
        """[B, K]"""
        return torch.lerp(self.popular_M[row_BK], self.histogram_CM[cluster_B[:, None], row_BK], self.share).log()

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        row_BK, reached_B = self._draw_until_enough(look, rng)
        n_B = (row_BK >= 0).sum(1)
        log_weight_BK = (math.log(self.ess) - n_B.log())[:, None].expand(row_BK.shape)
        if not bool(reached_B.all()):
            row_BK, log_weight_BK = self._with_catalogue(row_BK, log_weight_BK, ~reached_B, batch, look)
        return (Block.chosen(row_BK, log_weight_BK),)

    def _draw_until_enough(self, look: Look, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """[B, K] what was drawn, and [B] whether it is enough."""
        self._forget_gone()
        cluster_B = self.cluster(look.query_BD)
        present_C, which_B = cluster_B.unique(return_inverse=True)
        n_queries, n_items, device = len(cluster_B), len(self.popular_M), cluster_B.device
        until_L = running_sum(self.law(present_C).double().flatten())  # the laws end to end
        log_sum_B = torch.full((n_queries,), NEG_INF, device=device)
        log_square_B = log_sum_B.clone()
        reached_B = torch.zeros(n_queries, dtype=torch.bool, device=device)
        open_A = torch.arange(n_queries, device=device)
        drawn: list[Tensor] = []
        while len(open_A) and len(drawn) < self.cap // self.block:
            start_A = which_B[open_A] * n_items
            row_AK = by_weight(until_L, start_A, start_A + n_items, self.block, rng) - start_A[:, None]
            score_AK = scores(look.query_BD[open_A], row_AK, look).float()
            log_r_AK = score_AK / self.temperature - self._log_law(cluster_B[open_A], row_AK)
            log_sum_B[open_A] = torch.logaddexp(log_sum_B[open_A], log_r_AK.logsumexp(1))
            log_square_B[open_A] = torch.logaddexp(log_square_B[open_A], (2 * log_r_AK).logsumexp(1))
            reached_B[open_A] = _ess(log_sum_B[open_A], log_square_B[open_A]) >= self.ess
            row_BK = torch.full((n_queries, self.block), -1, device=device)
            row_BK[open_A] = row_AK
            drawn.append(row_BK)
            open_A = open_A[~reached_B[open_A]]
        return torch.cat(drawn, 1) if drawn else which_B.new_zeros(0, self.block), reached_B

    def _forget_gone(self) -> None:
        """The histograms of a saved state may have shares of items that may not be drawn any more; looked at once."""
        if self.has_forgotten:
            return
        self.has_forgotten = True
        gone_M = self.live.gone(torch.arange(len(self.popular_M), device=self.popular_M.device))
        if bool((self.histogram_CM[:, gone_M] > 0).any()):
            self.histogram_CM[:, gone_M] = 0
            total_C1 = self.histogram_CM.sum(1, keepdim=True)
            self.histogram_CM.copy_(torch.where(total_C1 > 0, self.histogram_CM / total_C1, self.popular_M))

    def _with_catalogue(
        self, row_BK: Tensor, log_weight_BK: Tensor, is_short_B: Tensor, batch: Batch, look: Look
    ) -> tuple[Tensor, Tensor]:
        """The same lists, but the whole catalogue, weighed by its own count, for those that were not enough."""
        n_items = self.live.n
        row_BL = row_BK.new_full((len(row_BK), max(n_items, row_BK.shape[1])), -1)
        log_weight_BL = log_weight_BK.new_zeros(row_BL.shape)
        row_BL[:, : row_BK.shape[1]] = row_BK
        log_weight_BL[:, : row_BK.shape[1]] = log_weight_BK
        every_L = self.live.rows(row_BK.device)
        row_BL[is_short_B] = -1
        row_BL[is_short_B, :n_items] = every_L
        log_weight_BL[is_short_B, :n_items] = self.log_count(every_L, batch, look)[is_short_B]
        return row_BL, log_weight_BL

    def observe(self, blocks: tuple[Block, ...], encoded: Encoded, look: Look) -> Tensor | None:
        """Move the histograms of the batch's clusters towards the weights of what their queries were offered."""
        for block in blocks:
            place_BK = block.row.clamp(min=0)
            log_r_BK = scores(look.query_BD, place_BK, look).float() / self.temperature
            log_r_BK = log_r_BK + block.log_weight - self.log_count(place_BK, encoded.batch, look)
            present_C, which_B, n_C = self.cluster(look.query_BD).unique(return_inverse=True, return_counts=True)
            step_BK = (self.rate / n_C)[which_B, None] * log_r_BK.softmax(1)
            histogram_CM = self.histogram_CM[present_C] * (1 - self.rate)
            at_BK = which_B[:, None] * histogram_CM.shape[1] + place_BK
            histogram_CM.view(-1).index_add_(0, at_BK.flatten(), step_BK.flatten())
            self.histogram_CM[present_C] = histogram_CM
        return None


def _require(ok: bool, setting: str, found: float, expected: str) -> None:
    if not ok:
        raise ConfigError(f"AdaptiveImportance: {setting} is {found}, expected {expected}")
