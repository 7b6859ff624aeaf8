"""Negatives that are no items: made of the positive and of hard candidates, layer by layer."""

from __future__ import annotations

from dataclasses import field

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Facts
from ..records import NEG_INF, Batch, Block, Encoded, Mix
from .drawing import one_of, uniform
from .pool import candidate_rows, require_items
from .room import Room, Sizes
from .sampler import Look, Sampler, require_some
from .scores import layer_scores
from .static import Uniform


class MixGCF(Sampler):
    """n negatives a query, each between a positive of its own and the candidates that are hardest so.

        e'_mh = a_h e_h(y) + (1 - a_h) e_h(m),    a_h ~ U(0, mixing)        positive mixing, layer h = 0 .. L
        m_h = argmax_m <u, e'_mh>,    negative = 1 / (L + 1) sum_h e'_{m_h h}        hop mixing

    ``of`` draws the candidates m; y is a positive of the query in this batch. e_h are the item's vectors by layers of
    the graph (``towers.graph``), so the parts of one negative may come from several items. Without a graph there is
    one layer: positive mixing alone. With ``mixing = 0`` and one layer it is ``DNS``.

    What is made is no item, so nothing excludes it, and it has no density: for losses that are not corrected. Choose it
    with a graph and a pairwise loss, where DNS already helps. A step costs two more propagations of the graph for each
    of the n, one of them without gradient.

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

    def room(self, sizes: Sizes) -> Room:
        return self.of.room(sizes).chosen(self.n)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        return tuple(self._one(batch, look, rng) for _ in range(self.n))

    def _one(self, batch: Batch, look: Look, rng: torch.Generator) -> Block:
        """A block [B, 1]."""
        every_B = torch.arange(len(batch.query_B), device=batch.query_B.device)
        positive_B1 = one_of(batch.positives(), every_B, rng)[:, None]
        row_BP = candidate_rows(self.of, batch, look, rng)
        asked = torch.cat([positive_B1, row_BP], 1).clamp(min=0)
        of_positive_B1H, of_candidate_BPH = layer_scores(look.query_BD, asked, look).tensor_split([1], 1)
        shape = (len(every_B), 1, of_candidate_BPH.shape[2])
        share_B1H = (self.mixing * uniform(shape, rng, row_BP.device)).to(of_positive_B1H.dtype)
        mixed_BPH = share_B1H * of_positive_B1H + (1 - share_B1H) * of_candidate_BPH
        hardest_BH = mixed_BPH.masked_fill((row_BP < 0)[:, :, None], NEG_INF).argmax(1)
        second_B1H = row_BP.gather(1, hardest_BH)[:, None]
        mix = Mix(first_BK=positive_B1.clamp(min=0), second_BKH=second_B1H.clamp(min=0), share_BKH=share_B1H)
        made_B1 = (positive_B1 >= 0) & (second_B1H >= 0).all(2)
        return Block.chosen(torch.full_like(positive_B1, -1), torch.where(made_B1, 0.0, NEG_INF), mix=mix)

    def observe(self, blocks: tuple[Block, ...], encoded: Encoded, look: Look) -> Tensor | None:
        """The candidates' sampler may learn from the batch, though none of the blocks is its own."""
        return self.of.observe((), encoded, look)
