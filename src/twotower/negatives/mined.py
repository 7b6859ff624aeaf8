"""Candidates chosen among many by the current model."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Facts
from ..records import NEG_INF, Batch, Block, Encoded
from .sampler import Look, Sampler, require_some
from .static import Uniform

_TILE = 2**22
"""Most scores of a pool that are held at a time: 16 MiB of float32."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What some queries of the batch may choose from. P places, of C queries."""

    query_C: Tensor
    """Which queries of the batch they are."""
    row_CP: Tensor
    """Item rows; -1 is an empty place."""
    score_CP: Tensor
    """Of the current model, not divided by a temperature; -inf where the place is empty or the item known."""
    positive_C: Tensor
    """Mean score of the query's positives in the batch."""
    log_count_CP: Tensor
    """By the law of the sampler the pool came from; nan where that has no density."""
    log_weight_CP: Tensor
    """Log of how often the place was offered: 0 for once; -inf where it is empty."""

    @property
    def open_CP(self) -> Tensor:
        """Which places may be chosen."""
        return self.score_CP > NEG_INF

    def distinct(self) -> Pool:
        """The same pool, an item open at the first of its places only, with the weight of all."""
        row_CP, order_CP = self.row_CP.sort(dim=1, stable=True)
        again_CP = torch.zeros_like(row_CP, dtype=torch.bool)
        again_CP[:, 1:] = row_CP[:, 1:] == row_CP[:, :-1]
        item_CP = (~again_CP).cumsum(1) - 1
        weight_CP = self.log_weight_CP.gather(1, order_CP).exp()
        total_CP = torch.zeros_like(weight_CP).scatter_add_(1, item_CP, weight_CP).gather(1, item_CP)
        repeated_CP = torch.zeros_like(again_CP).scatter_(1, order_CP, again_CP)
        return replace(
            self,
            score_CP=self.score_CP.masked_fill(repeated_CP, NEG_INF),
            log_weight_CP=torch.zeros_like(total_CP)
            .scatter_(1, order_CP, total_CP)
            .log_()
            .masked_fill_(repeated_CP, NEG_INF),
        )

    def hardest(self, n: int) -> Tensor:
        """[C, n] places of the n highest scores, best first; -1 where fewer are open."""
        return best(self.score_CP, n)


def best(value_CP: Tensor, n: int) -> Tensor:
    """[C, n] places of the n largest values, largest first; -1 where there are no more above -inf."""
    top = value_CP.topk(min(n, value_CP.shape[1]), 1)
    place = top.indices.masked_fill(top.values == NEG_INF, -1)
    return torch.nn.functional.pad(place, (0, n - place.shape[1]), value=-1)


class Pooled(Sampler):
    """What another sampler offers, as chosen or weighed for each query by the scores of the current model.

    ``of`` draws the pool: its own candidates for each query, or shared ones for all to choose from. What a query is
    known to like is never chosen. The choice has no density, so it goes with losses that are not corrected.

    A subclass says in ``choose`` which places of a pool are taken.
    """

    density = "none"

    of: Sampler = field(default_factory=lambda: Uniform(16, per_query=True))

    def __post_init__(self) -> None:
        require_items(self, self.of)

    @property
    def idle_steps(self) -> int:
        """Those of the pool."""
        return self.of.idle_steps

    def setup(self, facts: Facts) -> None:
        self.of.setup(facts)

    @abstractmethod
    def choose(self, pool: Pool, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """[C, n] places of the pool, -1 for none, and log weights of the chosen, None for 0."""

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        rows, weights = [], []
        for pool in pools(self.of, batch, look, rng):
            place_Cn, log_weight_Cn = self.choose(pool, rng)
            row_Cn = pool.row_CP.gather(1, place_Cn.clamp(min=0)).masked_fill(place_Cn < 0, -1)
            rows.append(row_Cn)
            weights.append(torch.zeros(row_Cn.shape) if log_weight_Cn is None else log_weight_Cn)
        return (Block.chosen(torch.cat(rows), torch.cat(weights).to(rows[0].device)),)

    def observe(self, blocks: tuple[Block, ...], encoded: Encoded, look: Look) -> Tensor | None:
        """The pool's sampler may learn from the batch, though none of the blocks is its own."""
        return self.of.observe((), encoded, look)


class Mined(Pooled):
    """n items of a pool for each query; a query with fewer items to choose from than n gets those."""

    n: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_some(self, self.n)


def require_items(sampler: Sampler, of: Sampler) -> None:
    """ConfigError where a sampler is to choose from vectors that have no row."""
    if not of.offers_items:
        raise ConfigError(
            f"{type(sampler).__name__}: of is {type(of).__name__}, which offers vectors that are no items of the "
            "catalogue, so they can't be chosen by row: choose from another sampler, such as Uniform or InBatch"
        )


def offered(of: Sampler, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, Block]:
    """What ``of`` offers to all queries [N], each item once with its summed weight, and to each its own [B, K], the row
    of an empty place -1. There is at least one place.
    """
    blocks = of.draw(batch, look, rng)
    if any(block.vector is not None or block.mix is not None for block in blocks):
        raise TypeError(f"{type(of).__name__} offers vectors that are no items, but says that it offers_items")
    shared, own = (_side_by_side([b for b in blocks if b.row.dim() == dim], batch, dim) for dim in (1, 2))
    there = shared.row >= 0
    row_N, at = shared.row[there].unique(return_inverse=True)
    weight_N = torch.zeros(len(row_N), device=row_N.device).index_add_(0, at, shared.log_weight[there].exp())
    shared = Block.chosen(row_N, weight_N.log())
    if not len(row_N) and not own.row.shape[1]:
        own = Block.chosen(own.row.new_full((len(own.row), 1), -1))
    return shared, own


def _side_by_side(blocks: list[Block], batch: Batch, dim: int) -> Block:
    """Blocks [N], or [B, K], as one."""
    if not blocks:
        return Block.of(batch.item_P.new_zeros((0,) if dim == 1 else (len(batch.query_B), 0)))
    log_weight = torch.cat([block.log_weight for block in blocks], -1)
    row = torch.cat([block.row for block in blocks], -1)
    return Block.chosen(row.masked_fill(log_weight == NEG_INF, -1), log_weight)


def candidate_rows(of: Sampler, batch: Batch, look: Look, rng: torch.Generator) -> Tensor:
    """[B, P] rows that ``of`` offers to each query, shared ones too; -1 for an empty place or what the query knows."""
    shared, own = offered(of, batch, look, rng)
    row_BP = torch.cat([shared.row.expand(len(own.row), -1), own.row], 1)
    return row_BP.masked_fill(batch.known.holds(row_BP), -1)


def pools(of: Sampler, batch: Batch, look: Look, rng: torch.Generator) -> Iterator[Pool]:
    """What ``of`` offers to the queries of a batch, some queries at a time, scored by the current model."""
    shared, own = offered(of, batch, look, rng)
    shared_N, own_BK = shared.row, own.row
    n_queries, query_BD = len(batch.query_B), look.query_BD
    column_ND = look.items(shared_N)
    item_U, slot = own_BK.clamp(min=0).flatten().unique(return_inverse=True)
    slot_BK, table_UD = slot.view(own_BK.shape), look.items(item_U)
    log_count_BP = _counts(of, shared_N, own_BK, batch, look)
    positive_B = positive_scores(batch, look)
    width = len(shared_N) + own_BK.shape[1]
    step = max(1, _TILE // max(width + own_BK.shape[1] * query_BD.shape[1], 1))
    for start in range(0, n_queries, step):
        at = slice(start, min(start + step, n_queries))
        query_CD, own_CK = query_BD[at], own_BK[at]
        row_CP = torch.cat([shared_N.expand(len(query_CD), -1), own_CK], 1)
        log_weight_CP = torch.cat([shared.log_weight.expand(len(query_CD), -1), own.log_weight[at]], 1)
        own_score_CK = (table_UD[slot_BK[at]] @ query_CD[:, :, None])[:, :, 0]
        score_CP = torch.cat([query_CD @ column_ND.T, own_score_CK], 1)
        closed_CP = (row_CP < 0) | batch.known.slice(at.start, at.stop).holds(row_CP)
        yield Pool(
            query_C=torch.arange(at.start, at.stop, device=row_CP.device),
            row_CP=row_CP,
            score_CP=score_CP.masked_fill(closed_CP, NEG_INF),
            positive_C=positive_B[at],
            log_count_CP=log_count_BP[at] if log_count_BP.dim() == 2 else log_count_BP.expand(len(query_CD), -1),
            log_weight_CP=log_weight_CP,
        )


def _counts(of: Sampler, shared_N: Tensor, own_BK: Tensor, batch: Batch, look: Look) -> Tensor:
    """[P] or [B, P] log counts of the places; nan without a density."""
    if of.density == "none":
        return torch.full((len(shared_N) + own_BK.shape[1],), float("nan"), device=own_BK.device)
    shared = of.log_count(shared_N, batch, look)
    if not own_BK.shape[1]:
        return shared
    return torch.cat([shared.expand(len(own_BK), -1), of.log_count(own_BK.clamp(min=0), batch, look)], 1)


def positive_scores(batch: Batch, look: Look) -> Tensor:
    """[B] mean score of each query's positives; 0 without any."""
    score_P = (look.query_BD[batch.of_P] * look.items(batch.item_P)).sum(1)
    count_B = batch.of_P.bincount(minlength=len(batch.query_B))
    return score_P.new_zeros(len(count_B)).index_add_(0, batch.of_P, score_P) / count_B.clamp(min=1)


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
            return best(logit_CP + gumbel(logit_CP.shape, rng).to(logit_CP.device), self.n), None
        return draws(logit_CP, self.n, rng), None


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
        count_M = facts.item_count_M.double()
        # Follows from the data, so it is not saved: tomorrow's run counts tomorrow's events.
        self.register_buffer("prior_M", (count_M / count_M.sum().clamp(min=1)).float(), persistent=False)

    def choose(self, pool: Pool, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        lot_CP = gumbel(pool.row_CP.shape, rng).to(pool.row_CP.device)
        place_Ck = best(lot_CP.masked_fill(~pool.distinct().open_CP, NEG_INF), self.candidates)
        row_Ck = pool.row_CP.gather(1, place_Ck.clamp(min=0))
        score_Ck = pool.score_CP.gather(1, place_Ck.clamp(min=0))
        lower_Ck, theta_Ck = share_below(pool, score_Ck), self.prior_M[row_Ck.clamp(min=0)]
        true_Ck, false_Ck = (1 - lower_Ck) * (1 - theta_Ck), lower_Ck * theta_Ck
        unbias_Ck = true_Ck / (true_Ck + false_Ck)
        info_Ck = torch.sigmoid(score_Ck - pool.positive_C[:, None])
        risk_Ck = info_Ck * (1 - (1 + self.trust) * unbias_Ck)
        at_Cn = best((-risk_Ck).masked_fill(place_Ck < 0, NEG_INF), self.n)
        return place_Ck.gather(1, at_Cn.clamp(min=0)).masked_fill(at_Cn < 0, -1), None


def share_below(pool: Pool, score_Ck: Tensor) -> Tensor:
    """[C, k] F(score): what is open in the pool with scores up to so much, of all and one more."""
    sorted_CP, order_CP = pool.score_CP.sort(1)
    weight_CP = pool.log_weight_CP.exp().where(pool.open_CP, 0.0)
    below_CP = weight_CP.gather(1, order_CP).cumsum(1)
    at_Ck = torch.searchsorted(sorted_CP, score_Ck, right=True) - 1
    return below_CP.gather(1, at_Ck.clamp(min=0)) / (below_CP[:, -1:] + 1)


def some_of(place_Cn: Tensor, n: int, rng: torch.Generator, log_weight_Cn: Tensor | None = None) -> Tensor:
    """[C, n] of the places of each row that are not -1, evenly or by weight, without repeating; all where there are no
    more."""
    if place_Cn.shape[1] <= n:
        return place_Cn
    lot_Cn = gumbel(place_Cn.shape, rng).to(place_Cn.device)
    if log_weight_Cn is not None:
        lot_Cn = lot_Cn + log_weight_Cn
    at_Cn = best(lot_Cn.masked_fill(place_Cn < 0, NEG_INF), n)
    return place_Cn.gather(1, at_Cn.clamp(min=0)).masked_fill(at_Cn < 0, -1)


def gumbel(shape: torch.Size, rng: torch.Generator) -> Tensor:
    """Standard Gumbel draws, on the device of the generator: the largest of n of ``logit + gumbel`` are n draws by
    softmax(logit) without replacement."""
    lot = torch.rand(shape, generator=rng, device=rng.device)
    return -(-lot.clamp_(min=torch.finfo(lot.dtype).tiny).log_()).log_()


def draws(logit_CP: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """[C, n] places by softmax(logit), independent; -1 where no logit is above -inf."""
    top_C1 = logit_CP.amax(1, keepdim=True)
    share_CP = (logit_CP - top_C1.clamp(min=torch.finfo(logit_CP.dtype).min)).double().exp()
    upto_CP = share_CP.cumsum(1)
    lot_Cn = torch.rand((len(logit_CP), n), generator=rng, device=rng.device).to(logit_CP.device).double()
    place_Cn = torch.searchsorted(upto_CP, lot_Cn * upto_CP[:, -1:], right=True)
    return place_Cn.masked_fill(top_C1 == NEG_INF, -1)


def _open_log_share(pool: Pool) -> Tensor:
    """[C, P] log(weight / expected count) of a place, -inf where it is closed: what it stands for in the catalogue."""
    return (pool.log_weight_CP - pool.log_count_CP).where(pool.open_CP, NEG_INF)


def _require_density(sampler: Pooled) -> None:
    if sampler.of.density == "none":
        raise ConfigError(
            f"{type(sampler).__name__}: of is {type(sampler.of).__name__}, which has no density, but the items of the "
            "pool are weighed by their expected counts: choose another sampler under of"
        )
