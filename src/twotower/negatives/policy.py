"""Samplers that are models of their own and learn from the towers which items to draw: by policy gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import field
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Facts
from ..records import NEG_INF, Batch, Block, Encoded, Ragged, spans
from ..tables import Table, TableSettings
from .sampler import Look, Sampler, require_some

_TILE = 2**22
"""Most scores or kernel values that are held at a time: 16 MiB of float32."""

_DEVIATION = 0.1
"""Of the generator's vectors at the start: it begins near the uniform law."""

_MEMORY = 0.99
"""How much of the running mean reward of ``RNS`` is kept a step."""


class Policy(Sampler):
    """n items a query, rows [B, n], drawn with replacement by a generator of its own, a matrix factorisation over ids:

        g(u, i) = <a_u, b_i> + c_i,    p_G(i | u) ~ e^{g(u, i) / temperature}

    A query without an id has no vector in it: for it all items are alike, and nothing is learned. Settings are checked,
    and vectors made, here; a subclass says over which items p_G runs and what a draw earns.

    The generator takes a step of the policy gradient in every ``every``-th training step, on the items drawn in it:

        loss = - mean over u and k of R_uk log p_G(i_k | u),    R_uk, the reward less the baseline, a constant

    Its vectors are tables: they are moved by the table optimiser with ``lr_scale`` times its learning rate, and saved.

    Raises ConfigError where a setting is out of its range or queries have no ids.
    """

    n: int = 1
    dim: int = 16
    """Of the generator's vectors."""
    bias: bool = True
    """Whether items have c_i."""
    temperature: float = 0.2
    scale: float = 1.0
    """Multiplies the towers' scores in the reward. Where they are cosines, one over the loss's temperature fits."""
    baseline: bool = True
    """Whether what is to be expected is taken off the rewards: that changes no mean, and steadies the gradient."""
    every: int = 1
    """Steps of training to one of the generator."""
    lr_scale: float = 1.0

    n_items: int = field(init=False)
    of_query: Table = field(init=False)
    of_item: Table = field(init=False)
    of_bias: Table | None = field(init=False)

    def __post_init__(self) -> None:
        require_some(self, self.n)
        name = type(self).__name__
        for setting, count in (("dim", self.dim), ("every", self.every)):
            if count < 1:
                raise ConfigError(f"{name}: {setting} is {count}, expected at least 1")
        for setting, value in (("temperature", self.temperature), ("scale", self.scale)):
            if not 0 < value < math.inf:
                raise ConfigError(f"{name}: {setting} is {value}, expected a positive number")
        if not 0 <= self.lr_scale < math.inf:
            raise ConfigError(f"{name}: lr_scale is {self.lr_scale}, expected 0 or more")

    def setup(self, facts: Facts) -> None:
        if not len(facts.query_count_Q):
            raise ConfigError(
                f"negatives: {type(self).__name__} has a vector for each query, but queries have no id: name one, or "
                "choose another sampler"
            )
        settings = TableSettings(deviation=_DEVIATION, lr_scale=self.lr_scale)
        self.n_items = facts.n_items
        self.of_query = Table(len(facts.query_count_Q), self.dim, settings)
        self.of_item = Table(facts.n_items, self.dim, settings)
        self.of_bias = None
        if self.bias:
            self.of_bias = Table(facts.n_items, 1, TableSettings(init="zeros", lr_scale=self.lr_scale))

    def learns(self, blocks: tuple[Block, ...], look: Look) -> bool:
        """Whether the generator takes a step: what it drew is there, and it is its turn."""
        return bool(blocks) and look.step % self.every == 0


def reinforce(log_p_CK: Tensor, reward_CK: Tensor) -> Tensor:
    """Mean of -reward log p: its gradient is minus the policy gradient's, in expectation over what was drawn.

    Source: Williams, Simple statistical gradient-following algorithms (Machine Learning 1992).
    """
    return -(reward_CK.detach() * log_p_CK).mean()


def choose(score_CM: Tensor, u_CK: Tensor) -> Tensor:
    """[C, K] places drawn by softmax, one for each uniform number in [0, 1); -1 where all scores are -inf.

    By the distribution function in float64: one in float32 has no room for rare items of a large catalogue.
    """
    top_C1 = score_CM.amax(1, keepdim=True).clamp(min=torch.finfo(score_CM.dtype).min)
    upto_CM = (score_CM - top_C1).exp_().cumsum(1, dtype=torch.float64)
    total_C1 = upto_CM[:, -1:].contiguous()
    # The last of positive weight: u times the total may round up to it. (Scores that are no numbers have none, and
    # are told of when the generator learns.)
    last_C1 = torch.searchsorted(upto_CM, total_C1).clamp(max=upto_CM.shape[1] - 1)
    place_CK = torch.searchsorted(upto_CM, u_CK.double() * total_C1, right=True)
    return torch.minimum(place_CK, last_C1).masked_fill(total_C1 == 0, -1)


def log_p_at(score_CM: Tensor, place_CK: Tensor) -> Tensor:
    """[C, K] log softmax at some places; -inf, and not nan, where all scores are -inf."""
    least = torch.finfo(score_CM.dtype).min
    return score_CM.gather(1, place_CK) - score_CM.logsumexp(1, keepdim=True).clamp(min=least)


def item_vectors(encoded: Encoded, row: Tensor) -> Tensor:
    """Item rows [...], all of the batch -> their vectors [..., D], without gradient."""
    rising_T = encoded.row_T[encoded.row_T >= 0]  # what lies between items comes after them
    return encoded.table_TD.detach()[torch.searchsorted(rising_T, row.contiguous())]


def model_scores(encoded: Encoded, query_C: Tensor, row_CK: Tensor) -> Tensor:
    """[C, K] the towers' scores of items for queries of the batch, without gradient."""
    return (item_vectors(encoded, row_CK) @ encoded.query_BD.detach()[query_C, :, None])[:, :, 0]


class IRGAN(Policy):
    """Items that a generator thinks the query would like, of the whole catalogue; it learns by what the towers think.

        draws       p(i | u) = (1 - known_share) p_G(i | u) + known_share / |N_u| for i in N_u
        log_count   log(n p(i | u)): exact, for any item
        reward      2 (sigmoid(scale s(u, i)) - 1/2),  s the towers' score
        R           (reward - baseline) p_G / p, so that it is the gradient of p_G's mean reward whatever is drawn
        baseline    mean of reward p_G / p over the other n - 1 draws of the query (none for n = 1)

    N_u is what the query is known to like, which the generator learns from too. A loss excludes it by default, so
    ``known_share`` of the draws is no negative for the towers. With ``exclude_known`` p_G runs over the other items
    only (then known_share = 0); a query that knows them all gets none. A query without an id draws with a uniform p_G.

    The draw is exact, so it costs B M dim multiplications a step, as does every counting of a block, and thrice that a
    step of the generator, which moves the vectors of all items: for catalogues up to some hundred thousand, with
    ``every`` above 1 where it is long. Scores are held for some queries at a time.

    Choose it for a study of adversarial training, and with many passes over little data. ``DNS`` looks for hard
    negatives with the towers themselves, at a fraction of the cost. The paper starts both models from trained ones;
    here the generator starts near the uniform law.

    Raises ConfigError as ``Policy`` does, and where known_share is not at least 0 and below 1.

    Source: Wang et al., IRGAN: a minimax game for unifying generative and discriminative information retrieval models
    (SIGIR 2017), section 2. The proposal, its share .2 and the temperature .2 are those of the authors' code, which has
    temperature 1 where the generator learns; here it is one law.
    """

    density = "exact"

    known_share: float = 0.2
    exclude_known: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.known_share < 1:
            raise ConfigError(f"IRGAN: known_share is {self.known_share}, expected 0 or more and below 1")
        if self.exclude_known and self.known_share:
            raise ConfigError(
                f"IRGAN: known_share is {self.known_share}, but exclude_known draws no known items: set known_share to "
                "0, or exclude_known to false"
            )

    @property
    def leaves_out_positives(self) -> bool:  # type: ignore[override]
        """Whether known items are excluded."""
        return self.exclude_known

    @torch.no_grad()
    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        shape, device = (len(batch.query_B), self.n), batch.item_P.device
        u_BK, coin_BK, lot_BK = (
            torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64).to(device) for _ in range(3)
        )
        row_BK = torch.cat([choose(score_CM, u_BK[at]) for at, score_CM in self._tiles(batch)])
        known = batch.known
        if self.known_share and len(known.value):
            length_B1 = known.lengths()[:, None]
            at_BK = known.offset[:-1, None] + (lot_BK * length_B1).long()
            from_known_BK = (coin_BK < self.known_share) & (length_B1 > 0)
            row_BK = torch.where(from_known_BK, known.value[at_BK.clamp(max=len(known.value) - 1)], row_BK)
        return (Block.chosen(row_BK),)

    @torch.no_grad()
    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        row_BK = row.expand(len(batch.query_B), -1) if row.dim() == 1 else row
        log_p_BK = torch.cat([log_p_at(score_CM, row_BK[at]) for at, score_CM in self._tiles(batch)])
        return self._proposal(log_p_BK, row_BK, batch.known) + math.log(self.n)

    def observe(self, blocks: tuple[Block, ...], encoded: Encoded, look: Look) -> Tensor | None:
        """The generator's loss, on what it drew in this step."""
        if not self.learns(blocks, look):
            return None
        batch, row_BK = encoded.batch, torch.cat([block.row for block in blocks], 1)
        query_C = ((batch.query_B >= 0) & (row_BK >= 0).all(1)).nonzero()[:, 0]
        if not len(query_C):
            return None
        row_CK, known = row_BK[query_C], batch.known.take(query_C)
        score_CK = model_scores(encoded, query_C, row_CK)
        vectors = self._vectors(batch.query_B[query_C])
        leaves, total = vectors.leaves(), torch.zeros((), device=row_CK.device)
        for at in self._spans(len(query_C)):  # the gradient is formed here, so no scores [C, M] are kept for it
            tile_CK, tile_known = row_CK[at], known.slice(at.start, at.stop)
            log_p_CK = log_p_at(self._scores(leaves.take(at), tile_known), tile_CK)
            earned_CK = self._earned(log_p_CK.detach(), tile_CK, tile_known, score_CK[at])
            loss = reinforce(log_p_CK, earned_CK) * (len(tile_CK) / len(query_C))
            loss.backward()
            total += loss.detach()
        return vectors.with_gradients(total, leaves)

    def _earned(self, log_p_CK: Tensor, row_CK: Tensor, known: Ragged, score_CK: Tensor) -> Tensor:
        """[C, K] R of each draw."""
        share_CK = (log_p_CK - self._proposal(log_p_CK, row_CK, known)).exp()
        reward_CK = 2 * (torch.sigmoid(self.scale * score_CK) - 0.5)
        if self.baseline and self.n > 1:
            of_draw_CK = share_CK * reward_CK
            reward_CK = reward_CK - (of_draw_CK.sum(1, keepdim=True) - of_draw_CK) / (self.n - 1)
        return share_CK * reward_CK

    def _proposal(self, log_p_BK: Tensor, row_BK: Tensor, known: Ragged) -> Tensor:
        """[B, K] log of the law that is drawn by; p_G where nothing is known."""
        if not self.known_share:
            return log_p_BK
        length_B1 = known.lengths()[:, None]
        log_rest_B1 = torch.where(length_B1 > 0, math.log1p(-self.known_share), 0.0)
        log_known_B1 = math.log(self.known_share) - length_B1.clamp(min=1).log()
        return torch.logaddexp(log_p_BK + log_rest_B1, torch.where(known.holds(row_BK), log_known_B1, NEG_INF))

    def _tiles(self, batch: Batch) -> Iterator[tuple[slice, Tensor]]:
        """Queries of the batch, some at a time, and their scores of all items [C, M]."""
        vectors = self._vectors(batch.query_B)
        for at in self._spans(len(batch.query_B)):
            yield at, self._scores(vectors.take(at), batch.known.slice(at.start, at.stop))

    def _spans(self, n_queries: int) -> Iterator[slice]:
        step = max(1, _TILE // self.n_items)
        return (slice(start, min(start + step, n_queries)) for start in range(0, n_queries, step))

    def _vectors(self, query_C: Tensor) -> _Vectors:
        item_MD = self.of_item.whole()
        bias_M = item_MD.new_zeros(len(item_MD)) if self.of_bias is None else self.of_bias.whole()[:, 0]
        return _Vectors(self.of_query.look_up(query_C), item_MD, bias_M, query_C >= 0)

    def _scores(self, vectors: _Vectors, known: Ragged) -> Tensor:
        """[C, M] g over the temperature; -inf for what may not be drawn."""
        query_CD, bias_M = vectors.query_CD / self.temperature, vectors.bias_M / self.temperature
        score_CM = torch.addmm(bias_M, query_CD, vectors.item_MD.T)
        if not bool(vectors.named_C.all()):
            score_CM = score_CM.masked_fill(~vectors.named_C[:, None], 0.0)
        if self.exclude_known:
            flat = known.owner() * self.n_items + known.value
            score_CM = score_CM.view(-1).index_fill(0, flat, NEG_INF).view_as(score_CM)
        return score_CM


class _Vectors(NamedTuple):
    """The generator, for some queries."""

    query_CD: Tensor
    item_MD: Tensor
    bias_M: Tensor
    named_C: Tensor

    def take(self, at: slice) -> _Vectors:
        return self._replace(query_CD=self.query_CD[at], named_C=self.named_C[at])

    def leaves(self) -> _Vectors:
        """The same numbers, cut off from the tables, to collect gradients at."""
        query_CD, item_MD, bias_M = (x.detach().requires_grad_() for x in self[:3])
        return _Vectors(query_CD, item_MD, bias_M, self.named_C)

    def with_gradients(self, value: Tensor, leaves: _Vectors) -> Tensor:
        """A number of this value, whose gradient by the vectors is what the leaves collected."""
        for x, leaf in zip(self[:3], leaves[:3], strict=True):
            if leaf.grad is not None:
                value = value + ((x - x.detach()) * leaf.grad).sum()
        return value


class RNS(Policy):
    """Items that a generator picks from a small pool, and that look as if the query had been shown them.

        pool      ``pool`` uniform items of the catalogue and one the query was shown and did not take, known ones out
        reward    adversarial + alpha ((1 - beta) shown + beta match)
        adversarial   -sigmoid(-scale s(u, i)),  s the towers' score
        shown         1 where the query was shown item i and never took it
        match         2 mean_e k(e, i) - 2 mean_j k(j, i),  k(x, y) = sum_sigma exp(-|x - y|^2 / (2 sigma^2))
        baseline      running mean of the rewards of earlier steps

    e are the shown items of the pools of the batch, j the items it picked, as the towers' item vectors: match is the
    slope at i of minus the squared maximum mean discrepancy of both, 0 where they are the same.

    A pool is a few uniform items, so no density over the catalogue is told: for losses that are not corrected. A query
    that was shown nothing, or has no id, has the uniform items alone; one without an id draws evenly, and nothing is
    learned from it. Costs pool dim a query, and (B n)^2 D for the match. Choose it where it is logged what was shown.

    Raises ConfigError as ``Policy`` does, where pool, alpha, beta or sigmas are out of range, and where no query of
    the training data was shown anything it did not take.

    Source: Ding et al., Reinforced negative sampling for recommendation with exposure data (IJCAI 2019), section 3;
    rewards, alpha 2.5, beta .75 and 30 places as in the authors' code. There sigma is 19 to 23, for vectors that are
    not of unit length.
    """

    density = "none"

    dim: int = 32
    temperature: float = 1.0
    pool: int = 29
    alpha: float = 2.5
    """Of the rewards for what looks shown."""
    beta: float = 0.75
    """Share of the match in them."""
    sigmas: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Widths of the kernels, in the units of item vectors: about their distances."""

    shown_offset: Tensor = field(init=False)
    shown_item: Tensor = field(init=False)
    mean_reward: Tensor = field(init=False)
    drawn: tuple[Tensor, Tensor] = field(init=False)
    """The pool [B, P] of the last draw and the places [B, n] taken of it: a step observes what it drew."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool < 1:
            raise ConfigError(f"RNS: pool is {self.pool}, expected at least 1")
        if not 0 <= self.alpha < math.inf:
            raise ConfigError(f"RNS: alpha is {self.alpha}, expected 0 or more")
        if not 0 <= self.beta <= 1:
            raise ConfigError(f"RNS: beta is {self.beta}, expected 0 to 1")
        if not self.sigmas or not all(0 < sigma < math.inf for sigma in self.sigmas):
            raise ConfigError(f"RNS: sigmas is {self.sigmas}, expected positive numbers")

    def setup(self, facts: Facts) -> None:
        super().setup(facts)
        if not len(facts.shown.value):
            raise ConfigError(
                "negatives: RNS is rewarded for what a query was shown and did not take, but training has nothing of "
                "the kind: log what was shown, or choose another sampler"
            )
        # Follows from the data, so it is not saved.
        self.register_buffer("shown_offset", facts.shown.offset, persistent=False)
        self.register_buffer("shown_item", facts.shown.value, persistent=False)
        self.register_buffer("mean_reward", torch.zeros(()))

    @torch.no_grad()
    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        n_queries, device = len(batch.query_B), batch.item_P.device
        uniform_BP = torch.randint(self.n_items, (n_queries, self.pool), generator=rng, device=rng.device).to(device)
        lot_B, u_Bn = (
            torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64).to(device)
            for shape in ((n_queries,), (n_queries, self.n))
        )
        shown = self._shown(batch.query_B)
        pool_BP = torch.cat([uniform_BP, _one_of(shown, lot_B)[:, None]], 1)
        pool_BP = pool_BP.masked_fill(batch.known.holds(pool_BP), -1)
        place_Bn = choose(self._scores(batch.query_B, pool_BP), u_Bn)
        self.drawn = pool_BP, place_Bn
        return (Block.chosen(pool_BP.gather(1, place_Bn.clamp(min=0)).masked_fill(place_Bn < 0, -1)),)

    def observe(self, blocks: tuple[Block, ...], encoded: Encoded, look: Look) -> Tensor | None:
        """The generator's loss, on what it drew in this step."""
        if not self.learns(blocks, look):
            return None
        query_B, (pool_BP, place_Bn) = encoded.batch.query_B, self.drawn
        query_C = ((query_B >= 0) & (place_Bn >= 0).all(1)).nonzero()[:, 0]
        if not len(query_C):
            return None
        pool_CP, place_Cn = pool_BP[query_C], place_Bn[query_C]
        reward_Cn = self.reward(pool_CP.gather(1, place_Cn), pool_BP[:, -1], query_C, encoded, look)
        log_p_Cn = log_p_at(self._scores(query_B[query_C], pool_CP), place_Cn)
        loss = reinforce(log_p_Cn, reward_Cn - self.mean_reward if self.baseline else reward_Cn)
        self.mean_reward.lerp_(reward_Cn.mean(), 1 - _MEMORY)
        return loss

    @torch.no_grad()
    def reward(self, row_Cn: Tensor, shown_B: Tensor, query_C: Tensor, encoded: Encoded, look: Look) -> Tensor:
        """[C, n] of the items drawn for queries ``query_C`` of the batch; ``shown_B`` are shown items, -1 for none."""
        adversarial_Cn = -torch.sigmoid(-self.scale * model_scores(encoded, query_C, row_Cn))
        shown_Cn = self._shown(encoded.batch.query_B[query_C]).holds(row_Cn).to(adversarial_Cn.dtype)
        made_GD = item_vectors(encoded, row_Cn.flatten())
        match_Cn = feature_match(made_GD, look.items(shown_B[shown_B >= 0]), self.sigmas).view(row_Cn.shape)
        return adversarial_Cn + self.alpha * ((1 - self.beta) * shown_Cn + self.beta * match_Cn)

    def _shown(self, query_B: Tensor) -> Ragged:
        """[B] what each query was shown and did not take; nothing where it has no id."""
        start_B, stop_B = (self.shown_offset[query_B.clamp(min=0) + end] for end in (0, 1))
        offset, at = spans(start_B, (stop_B - start_B) * (query_B >= 0))
        return Ragged(offset=offset, value=self.shown_item[at])

    def _scores(self, query_B: Tensor, pool_BP: Tensor) -> Tensor:
        """[B, P] g over the temperature for the places of a pool; -inf for empty ones."""
        flat, shape = pool_BP.clamp(min=0).flatten(), (*pool_BP.shape, self.dim)
        score_BP = (self.of_item.look_up(flat).view(shape) @ self.of_query.look_up(query_B)[:, :, None])[:, :, 0]
        if self.of_bias is not None:
            score_BP = score_BP + self.of_bias.look_up(flat).view(pool_BP.shape)
        score_BP = (score_BP / self.temperature).masked_fill((query_B < 0)[:, None], 0.0)
        return score_BP.masked_fill(pool_BP < 0, NEG_INF)


def _one_of(lists: Ragged, lot_B: Tensor) -> Tensor:
    """[B] of each list the value that a number in [0, 1) falls on; -1 of an empty one."""
    length_B = lists.lengths()
    if not len(lists.value):
        return torch.full_like(length_B, -1)
    at_B = lists.offset[:-1] + (lot_B * length_B).long()
    return lists.value[at_B.clamp(max=len(lists.value) - 1)].masked_fill(length_B == 0, -1)


def feature_match(made_GD: Tensor, shown_ED: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """[G] 2 (mean_e k(e, i) - mean_j k(j, i)), k a sum of Gaussians: the slope of minus the squared maximum mean
    discrepancy of made and shown vectors, by the weight of i among the made. 0 where nothing was shown."""
    if not len(shown_ED):
        return made_GD.new_zeros(len(made_GD))
    return 2 * (_mean_kernel(made_GD, shown_ED, sigmas) - _mean_kernel(made_GD, made_GD, sigmas))


def _mean_kernel(x_GD: Tensor, y_ED: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """[G] mean over y of sum_sigma exp(-|x - y|^2 / (2 sigma^2)), some x at a time."""
    found = []
    for x_CD in x_GD.split(max(1, _TILE // len(y_ED))):
        squared_CE = torch.cdist(x_CD, y_ED, compute_mode="donot_use_mm_for_euclid_dist").square()
        kernels = ((-squared_CE / (2 * sigma**2)).exp().mean(1) for sigma in sigmas)
        found.append(torch.stack(list(kernels)).sum(0))
    return torch.cat(found)
