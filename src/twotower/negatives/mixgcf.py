"""Negatives that are no items: made of the positive and of hard candidates, layer by layer."""

from __future__ import annotations

from dataclasses import field

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Facts
from ..records import NEG_INF, Batch, Block, Encoded, Mix
from .mined import candidate_rows, require_items
from .sampler import Look, Sampler, require_some
from .static import Uniform

_TILE = 2**23
"""Most numbers of candidates' vectors that are held at a time: 32 MiB of float32."""


class MixGCF(Sampler):
    """n negatives a query, each between a positive of its own and the candidates that are hardest so.

        e'_mh = a_h e_h(y) + (1 - a_h) e_h(m),    a_h ~ U(0, mixing)        positive mixing, layer h = 0 .. L
        m_h = argmax_m <u, e'_mh>,    negative = 1 / (L + 1) sum_h e'_{m_h h}        hop mixing

    ``of`` draws the candidates m; y is a positive of the query in this batch. e_h are the item's vectors by layers of
    the graph (``towers.graph``), so the parts of one negative may come from several items. Without a graph there is
    one layer: positive mixing alone. With ``mixing = 0`` and one layer it is ``DNS``.

    What is made is no item, so nothing excludes it, and it has no density: for losses that are not corrected. Choose it
    with a graph and a pairwise loss, where DNS already helps. A step costs two more propagations of the graph.

    Source: Huang et al., MixGCF: an improved training method for graph neural network-based recommender systems (KDD
    2021), equations 6 to 9.
    """

    density = "none"
    offers_items = False

    n: int = 1
    of: Sampler = field(default_factory=lambda: Uniform(16, per_query=True))
    mixing: float = 1.0

    def __post_init__(self) -> None:
        require_items(self, self.of)
        require_some(self, self.n)
        if not 0 <= self.mixing <= 1:
            raise ConfigError(f"MixGCF: mixing is {self.mixing}, expected a share of the positive, 0 to 1")

    @property
    def idle_steps(self) -> int:
        """Those of the pool."""
        return self.of.idle_steps

    def setup(self, facts: Facts) -> None:
        self.of.setup(facts)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        return tuple(self._one(batch, look, rng) for _ in range(self.n))

    def _one(self, batch: Batch, look: Look, rng: torch.Generator) -> Block:
        """A block [B, 1]."""
        n_queries = len(batch.query_B)
        positive_B = _one_of_each(batch, rng)
        row_BP = candidate_rows(self.of, batch, look, rng)
        n_layers = look.layers(batch.item_P[:1]).shape[-2]
        share_BH = self.mixing * torch.rand(n_queries, n_layers, generator=rng, device=rng.device).to(row_BP.device)
        tile = max(1, _TILE // max(row_BP.shape[1] * n_layers * look.query_BD.shape[1], 1))
        chosen = [
            _hardest(positive_B[at], row_BP[at], share_BH[at], look.query_BD[at], look)
            for at in (slice(start, start + tile) for start in range(0, n_queries, tile))
        ]
        second_BH = torch.cat(chosen) if chosen else row_BP.new_empty(0, n_layers)
        mix = Mix(
            first_BK=positive_B[:, None].clamp(min=0),
            second_BKH=second_BH[:, None].clamp(min=0),
            share_BKH=share_BH[:, None],
        )
        made = (positive_B >= 0) & (second_BH >= 0).all(1)
        log_weight_B = torch.zeros(n_queries, device=row_BP.device).masked_fill(~made, NEG_INF)
        return Block.chosen(torch.full_like(positive_B, -1)[:, None], log_weight_B[:, None], mix=mix)

    def observe(self, blocks: tuple[Block, ...], encoded: Encoded, look: Look) -> Tensor | None:
        """The candidates' sampler may learn from the batch, though none of the blocks is its own."""
        return self.of.observe((), encoded, look)


def _hardest(positive_C: Tensor, row_CP: Tensor, share_CH: Tensor, query_CD: Tensor, look: Look) -> Tensor:
    """[C, H] rows of the candidates whose mix scores highest, layer by layer; -1 where there is none."""
    of_positive_CH = (look.layers(positive_C.clamp(min=0)) @ query_CD[:, :, None])[:, :, 0]
    of_candidate_CPH = (look.layers(row_CP.clamp(min=0)) @ query_CD[:, None, :, None])[..., 0]
    mixed_CPH = share_CH[:, None] * of_positive_CH[:, None] + (1 - share_CH[:, None]) * of_candidate_CPH
    place_CH = mixed_CPH.masked_fill((row_CP < 0)[:, :, None], NEG_INF).argmax(1)
    return row_CP.gather(1, place_CH)


def _one_of_each(batch: Batch, rng: torch.Generator) -> Tensor:
    """[B] one of each query's positives in the batch, at random; -1 where it has none."""
    count_B = batch.of_P.bincount(minlength=len(batch.query_B))
    first_B = count_B.cumsum(0) - count_B
    lot_B = torch.rand(len(count_B), generator=rng, device=rng.device).to(count_B.device)
    at_B = first_B + (lot_B * count_B).long().clamp(max=count_B - 1)
    item_P = batch.item_P if len(batch.item_P) else batch.item_P.new_full((1,), -1)
    return item_P[at_B.clamp(0, len(item_P) - 1)].masked_fill(count_B == 0, -1)
