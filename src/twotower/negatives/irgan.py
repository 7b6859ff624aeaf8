"""A generator over the whole catalogue, which learns what the towers score high."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from ..records import NEG_INF, Batch, Block, Encoded, Ragged
from .drawing import by_softmax, one_of, uniform
from .policy import Policy, log_p_at, model_scores, reinforce
from .sampler import Look
from .tiles import tiles


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
    per_query_law = True

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
        lot_BK = uniform(shape, rng, device)
        row_BK = torch.cat([by_softmax(score_CM, lot_BK[at]) for at, score_CM in self._tiles(batch)])
        if self.known_share:
            every_B1 = torch.arange(len(row_BK), device=device)[:, None]
            is_known_BK = uniform(shape, rng, device) < self.known_share
            known_BK = one_of(batch.known, every_B1.expand(shape), rng)
            row_BK = torch.where(is_known_BK & (known_BK >= 0), known_BK, row_BK)
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
        for at in tiles(len(query_C), self.n_items):  # the gradient is formed here, so no scores [C, M] are kept for it
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
        for at in tiles(len(batch.query_B), self.n_items):
            yield at, self._scores(vectors.take(at), batch.known.slice(at.start, at.stop))

    def _vectors(self, query_C: Tensor) -> _Vectors:
        item_MD = self.of_item.whole()
        bias_M = item_MD.new_zeros(len(item_MD)) if self.of_bias is None else self.of_bias.whole()[:, 0]
        return _Vectors(self.of_query.look_up(query_C), item_MD, bias_M, query_C >= 0)

    def _scores(self, vectors: _Vectors, known: Ragged) -> Tensor:
        """[C, M] g over the temperature; -inf for what may not be drawn."""
        query_CD, bias_M = vectors.query_CD / self.temperature, vectors.bias_M / self.temperature
        score_CM = self.live.only(torch.addmm(bias_M, query_CD, vectors.item_MD.T))
        if not bool(vectors.named_C.all()):
            score_CM = self.live.only(score_CM.masked_fill(~vectors.named_C[:, None], 0.0))
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
