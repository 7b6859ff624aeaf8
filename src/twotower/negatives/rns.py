"""A generator that picks from a small pool what looks as if it had been shown."""

from __future__ import annotations

import math
from dataclasses import field

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Facts
from ..records import NEG_INF, Batch, Block, Encoded, Ragged
from .drawing import by_softmax, one_of, picked, uniform
from .policy import Policy, log_p_at, model_scores, reinforce, slots_of
from .room import Room, Sizes
from .sampler import Look
from .tiles import tiles

_MEMORY = 0.99
"""How much of the running mean reward is kept a step."""


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

    def room(self, sizes: Sizes) -> Room:
        return super().room(sizes) + Room(kept=8 * (sizes.n_queries + 1 + sizes.n_shown) + 4)

    @torch.no_grad()
    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        n_queries, device = len(batch.query_B), batch.item_P.device
        any_BP = self.live.draw((n_queries, self.pool), rng).to(device)
        pool_BP = torch.cat([any_BP, one_of(self._shown, batch.query_B, rng)[:, None]], 1)
        pool_BP = pool_BP.masked_fill(batch.closed(pool_BP), -1)
        lot_Bn = uniform((n_queries, self.n), rng, device)
        place_Bn = by_softmax(self._scores(batch.query_B, pool_BP), lot_Bn)
        self.drawn = pool_BP, place_Bn
        return (Block.chosen(picked(pool_BP, place_Bn)),)

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
        of_C = encoded.batch.query_B[query_C]
        is_shown_Cn = self._shown.take(of_C.clamp(min=0)).holds(row_Cn) & (of_C >= 0)[:, None]
        made_GD = encoded.table_TD.detach()[slots_of(encoded, row_Cn.flatten())]
        match_Cn = feature_match(made_GD, look.items(shown_B[shown_B >= 0]), self.sigmas).view(row_Cn.shape)
        return adversarial_Cn + self.alpha * ((1 - self.beta) * is_shown_Cn + self.beta * match_Cn)

    @property
    def _shown(self) -> Ragged:
        """[Q] what each query was shown and did not take."""
        return Ragged(offset=self.shown_offset, value=self.shown_item)

    def _scores(self, query_B: Tensor, pool_BP: Tensor) -> Tensor:
        """[B, P] g over the temperature for the places of a pool; -inf for empty ones."""
        flat, shape = pool_BP.clamp(min=0).flatten(), (*pool_BP.shape, self.dim)
        score_BP = (self.of_item.look_up(flat).view(shape) @ self.of_query.look_up(query_B)[:, :, None])[:, :, 0]
        if self.of_bias is not None:
            score_BP = score_BP + self.of_bias.look_up(flat).view(pool_BP.shape)
        score_BP = (score_BP / self.temperature).masked_fill((query_B < 0)[:, None], 0.0)
        return score_BP.masked_fill(pool_BP < 0, NEG_INF)


def feature_match(made_GD: Tensor, shown_ED: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """[G] 2 (mean_e k(e, i) - mean_j k(j, i)), k a sum of Gaussians: the slope of minus the squared maximum mean
    discrepancy of made and shown vectors, by the weight of i among the made. 0 where nothing was shown."""
    if not len(shown_ED):
        return made_GD.new_zeros(len(made_GD))
    return 2 * (_mean_kernel(made_GD, shown_ED, sigmas) - _mean_kernel(made_GD, made_GD, sigmas))


def _mean_kernel(x_GD: Tensor, y_ED: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """[G] mean over y of sum_sigma exp(-|x - y|^2 / (2 sigma^2)), some x at a time."""
    found = []
    for at in tiles(len(x_GD), len(y_ED)):
        squared_CE = torch.cdist(x_GD[at], y_ED, compute_mode="donot_use_mm_for_euclid_dist").square()
        kernels = ((-squared_CE / (2 * sigma**2)).exp().mean(1) for sigma in sigmas)
        found.append(torch.stack(list(kernels)).sum(0))
    return torch.cat(found)
