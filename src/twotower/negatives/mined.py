"""Candidates chosen among many by the current model."""

from __future__ import annotations

import math
from dataclasses import field

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Facts
from ..records import NEG_INF
from .drawing import best, by_softmax, gumbel, picked, some_of, uniform
from .pool import Mined, Pool, Pooled
from .room import Room, Sizes
from .sampler import Sampler
from .static import Uniform


class DNS(Mined):
    """Of a pool of the query's, one of the ``among`` that the model ranks highest; n such draws without repeating.

        law of the item of rank r among M that are open to a pool of N uniform draws (among = 1):
        P(r) = ((M - r + 1)^N - (M - r)^N) / M^N

    With ``among`` = n, its default, the n hardest are taken. A larger one softens: DNS(M, N) takes any of the top M of
    N, an item as likely as the pool offers it often, and is a one-way partial AUC with beta = M / N; with ``among`` = N
    it is the pool's own law.

    Choose it first of those that mine: it has nothing to tune but the size of the pool, and a larger one is harder.

    ``DNS(n=2, of=InBatch())`` is online hard mining: the two hardest items of the batch that are not the query's own.
    They cost one product of the batch with itself, no further item is encoded. More than two a positive made it worse.

    Source: Zhang et al., Optimizing top-n collaborative filtering via dynamic negative item sampling (SIGIR 2013); Shi
    et al., On the theories behind hard negative sampling for recommendation (WWW 2023), DNS(M, N); of the batch: Huang
    et al., Embedding-based retrieval in Facebook search (KDD 2020), section 6.1.
    """

    among: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.among is not None and self.among < self.n:
            raise ConfigError(f"DNS: among is {self.among}, expected at least n, {self.n}: it takes n of so many")

    def choose(self, pool: Pool, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        pool = pool.distinct()
        hardest = pool.hardest(self.among or self.n)
        return some_of(hardest, self.n, rng, pool.log_weight_CP.gather(1, hardest.clamp(min=0))), None


class SoftmaxDNS(Pooled):
    """Every item of the pool, a hard one weighing more: N softmax_j(s_j / t - log c_j), t = sqrt(Var s / (2 rho)).

    The N items of the pool get these weights, which sum to N, and c_j is the expected count of item j in the pool. The
    temperature t is the query's own, of the spread of its pool's scores, so ``rho`` says how far the weights are from
    even ones whatever the scale of the scores: 0 gives even weights, a large one all weight to the hardest. It is the
    radius, in Kullback-Leibler divergence, of the distributionally robust objective that the weights belong to.

    Choose it instead of DNS where one hard item a query is too noisy a lesson: all N items are compared with the
    positive, so a step costs N times as much. Pools of a query's own fit best: shared ones are copied for each query.

    Raises ConfigError where rho is negative, and where ``of`` has no density.

    Source: Shi et al., On the theories behind hard negative sampling for recommendation (WWW 2023), Softmax(rho, N).
    """

    rho: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rho < math.inf:
            raise ConfigError(f"SoftmaxDNS: rho is {self.rho}, expected 0 or more")
        _require_density(self)

    def choose(self, pool: Pool, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        open_CP, weight_CP = pool.open_CP, pool.log_weight_CP.exp().where(pool.open_CP, 0.0)
        n_C1 = weight_CP.sum(1, keepdim=True)
        score_CP = pool.score_CP.where(open_CP, 0.0)
        deviation_CP = score_CP - (weight_CP * score_CP).sum(1, keepdim=True) / n_C1
        variance_C1 = (weight_CP * deviation_CP.square()).sum(1, keepdim=True) / n_C1
        # Where all scores are equal there is no spread to divide by, and every temperature gives the same weights.
        inverse_C1 = (2 * self.rho / variance_C1).sqrt().where(variance_C1 > 0, 0.0)
        logit_CP = deviation_CP * inverse_C1 + _open_log_share(pool)
        log_weight_CP = logit_CP - logit_CP.logsumexp(1, keepdim=True) + n_C1.log()
        place_CP = torch.arange(logit_CP.shape[1], device=logit_CP.device).expand_as(logit_CP)
        return place_CP.masked_fill(~open_CP, -1), log_weight_CP.where(open_CP, NEG_INF)


class SIR(Mined):
    """n items of the pool by chance, resampled with probability softmax_j(s_j / temperature - log c_j).

    c_j is the expected count of item j in the pool, so the chosen come nearly by the softmax of the whole catalogue,
    the nearer the larger the pool is, at the price of scoring the pool only. With ``replacement`` they are independent
    draws, as published; without, no item comes twice.

    Choose it for negatives of a softmax of the model's own scores: as hard as the temperature says, and never only the
    hardest as in DNS. ``SIR(of=InBatch())`` resamples the batch and encodes no further items.

    Raises ConfigError where the temperature is not positive, and where ``of`` has no density.

    Source: Chen et al., Learning recommenders for implicit feedback with importance resampling (WWW 2022), AdaSIR; of
    the batch: Chen et al., Cache-augmented inbatch importance resampling for training recommender retriever (NeurIPS
    2022), BIR, without its cache. Sampling-importance-resampling itself: Rubin (1987).
    """

    temperature: float = 1.0
    replacement: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"SIR: temperature is {self.temperature}, expected a positive number")
        _require_density(self)

    def choose(self, pool: Pool, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        if not self.replacement:
            pool = pool.distinct()
        logit_CP = pool.score_CP / self.temperature + _open_log_share(pool)
        if not self.replacement:
            return best(logit_CP + gumbel(logit_CP.shape, rng, logit_CP.device), self.n), None
        return by_softmax(logit_CP, uniform((len(logit_CP), self.n), rng, logit_CP.device)), None


class AHNS(Mined):
    """The n items of the pool whose scores are nearest to beta (s_y + alpha)^(p + 1), s_y the score of the positive.

    With p < -1 the aim falls as the positive's score rises: a positive that scores low is compared with hard items, one
    that scores high with easy ones. p = -1 aims at the score beta for all. Up to s_y = -alpha the aim is its limit from
    above: with p < -1 infinity, the hardest of the pool, and 0 with p > -1. A query with several positives in the batch
    aims by their mean score.

    Choose it where DNS overfits: positives already ranked high meet no false negatives. It has three settings in the
    scale of the scores, to be tuned again for another model.

    Raises ConfigError where beta is not positive, and where alpha or p is not finite.

    Source: Lai et al., Adaptive hardness negative sampling for collaborative filtering (AAAI 2024). The
    limit for low s_y is ours: there the published power is not defined, or turns back.
    """

    beta: float = 0.5
    alpha: float = 1.0
    p: float = -2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < math.inf:
            raise ConfigError(f"AHNS: beta is {self.beta}, expected a positive number")
        for name, value in (("alpha", self.alpha), ("p", self.p)):
            if not math.isfinite(value):
                raise ConfigError(f"AHNS: {name} is {value}, expected a finite number")

    def choose(self, pool: Pool, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        aim_C1 = self.beta * (pool.positive_C + self.alpha).clamp(min=0)[:, None] ** (self.p + 1)
        # min(s, 2 aim - s) = aim - |s - aim| orders as nearness does, and by the score where the aim is infinite.
        score_CP = pool.distinct().score_CP
        return best(torch.minimum(score_CP, 2 * aim_C1 - score_CP), self.n), None


class BNS(Mined):
    """Of a few candidates of the pool, the n with the least Bayesian risk: hard, but probably no false negatives.

        risk(j)   = info(j) (1 - (1 + trust) unbias(j))
        info(j)   = sigmoid(s_j - s_y)                                    what the item would teach
        unbias(j) = (1 - F)(1 - theta) / ((1 - F)(1 - theta) + F theta)   P(true negative), F = F(s_j), theta = theta_j

    The ``candidates`` are drawn evenly from the items of the pool. F is the share of the pool with scores up to s_j,
    the pool counted as one more so that F < 1; theta_j, the prior that j is a positive nobody recorded, is the item's
    share of the training events. A larger ``trust`` (lambda) prefers informative items to safe ones.

    Choose it where many positives are unrecorded: it takes hard items but steps back from popular ones at the very top.
    ``of`` shared by the batch, as by default, makes a good F for little; ``of=Catalogue()`` is the published one.

    Raises ConfigError where candidates is below n, and where trust is not above 0.

    Source: Liu and Wang, Bayesian negative sampling for recommendation (ICDE 2023); theta and the one more as
    in the authors' code. That F is that of a pool is ours.
    """

    of: Sampler = field(default_factory=lambda: Uniform(256))
    candidates: int = 5
    trust: float = 5.0

    prior_M: Tensor = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.candidates < self.n:
            raise ConfigError(
                f"BNS: candidates is {self.candidates}, expected at least n, {self.n}: it takes n of them"
            )
        if not 0 < self.trust < math.inf:
            raise ConfigError(f"BNS: trust is {self.trust}, expected a positive number")

    def setup(self, facts: Facts) -> None:
        super().setup(facts)
        # Follows from the data, so it is not saved: tomorrow's run counts tomorrow's events.
        self.register_buffer("prior_M", facts.item_share_M.float(), persistent=False)

    def room(self, sizes: Sizes) -> Room:
        return super().room(sizes) + Room(kept=4 * sizes.n_items)

    def choose(self, pool: Pool, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        turn_CP = gumbel(pool.row_CP.shape, rng, pool.row_CP.device)
        place_Ck = best(turn_CP.masked_fill(~pool.distinct().open_CP, NEG_INF), self.candidates)
        row_Ck = pool.row_CP.gather(1, place_Ck.clamp(min=0))
        score_Ck = pool.score_CP.gather(1, place_Ck.clamp(min=0))
        lower_Ck, theta_Ck = share_below(pool, score_Ck), self.prior_M[row_Ck.clamp(min=0)]
        true_Ck, false_Ck = (1 - lower_Ck) * (1 - theta_Ck), lower_Ck * theta_Ck
        unbias_Ck = true_Ck / (true_Ck + false_Ck)
        info_Ck = torch.sigmoid(score_Ck - pool.positive_C[:, None])
        risk_Ck = info_Ck * (1 - (1 + self.trust) * unbias_Ck)
        at_Cn = best((-risk_Ck).masked_fill(place_Ck < 0, NEG_INF), self.n)
        return picked(place_Ck, at_Cn), None


def share_below(pool: Pool, score_Ck: Tensor) -> Tensor:
    """[C, k] F(score): what is open in the pool with scores up to so much, of all and one more."""
    sorted_CP, order_CP = pool.score_CP.sort(1)
    weight_CP = pool.log_weight_CP.exp().where(pool.open_CP, 0.0)
    below_CP = weight_CP.gather(1, order_CP).cumsum(1)
    at_Ck = torch.searchsorted(sorted_CP, score_Ck, right=True) - 1
    return below_CP.gather(1, at_Ck.clamp(min=0)) / (below_CP[:, -1:] + 1)


def _open_log_share(pool: Pool) -> Tensor:
    """[C, P] log(weight / expected count) of a place, -inf where it is closed: what it stands for in the catalogue."""
    return (pool.log_weight_CP - pool.log_count_CP).where(pool.open_CP, NEG_INF)


def _require_density(sampler: Pooled) -> None:
    if sampler.of.density == "none":
        raise ConfigError(
            f"{type(sampler).__name__}: of is {type(sampler.of).__name__}, which has no density, but the items of the "
            "pool are weighed by their expected counts: choose another sampler under of"
        )
