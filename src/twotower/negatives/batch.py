"""The batch's own positives as candidates."""

from __future__ import annotations

import math
from dataclasses import field

import torch
from torch import Tensor

from ..part import Facts
from ..records import Batch, Block
from .room import Room, Sizes
from .sampler import Look, Sampler, require_some


class InBatch(Sampler):
    """Each distinct item of the global batch, once; its count is the probability that it is in the batch.

    Items come as often as they are popular, so without correction popular ones are held down. The presence is the
    run's frequency estimate, over the other rows of the batch where it is exact: a query's own positive is not its
    negative. Offered once each, an item's count is at most 1; a count of (B - 1) q would fit an item listed as often as
    it comes.

    The density is approximate: a streaming estimate is noisy, and an exact one treats rows of a batch as independent,
    where an epoch draws each event once.

    Source: Yi et al., Sampling-bias-corrected neural modeling for large corpus item recommendations (RecSys 2019),
    section 3, with equal items merged.
    """

    density = "approximate"

    def room(self, sizes: Sizes) -> Room:
        return Room(shared=sizes.batch_items, of_batch=True)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        return (Block.of(torch.unique(batch.item_P), of_batch=True),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        return look.log_presence(row)


class Rotations(Sampler):
    """n other positives of the batch for each query: those r_1, ..., r_n pairs further on than its own.

        candidate k of query b = item_P[(last pair of b + r_k) mod P],    rows [B, n]

    The n distinct shifts are drawn anew for each batch, uniformly from 1 to P minus the most pairs that one query has,
    and are the same for all queries: so none is offered a positive of its own row, and every candidate is one index
    away. Where each pair is a row of its own, row i gets ``item_P[(i + r) mod B]`` with r from 1 to B - 1. Where there
    are fewer shifts than n, all are taken.

    Each candidate is the item of some other pair, so the expected count of an item is n times its share of the training
    events, as for ``Popularity(n, alpha=1, per_query=True)``, but there are no further items to encode. The density is
    approximate: pairs of a batch are taken for independent draws, where an epoch draws each event once. Shares are
    counted before the run, whatever frequency estimate it has: that tells whether an item is in a batch, not how often.

    Raises ConfigError where n is below 1.

    Source: Huang et al., Learning deep structured semantic models for web search using clickthrough data (CIKM 2013),
    section 3.3: four random unclicked documents a query. Taking them by rotating the batch is common practice.
    """

    density = "approximate"

    n: int = field(default=4, kw_only=False)

    log_share_M: Tensor = field(init=False)

    def __post_init__(self) -> None:
        require_some(self, self.n)

    def setup(self, facts: Facts) -> None:
        # Follows from the data, so it is not saved: tomorrow's run counts tomorrow's events.
        self.register_buffer("log_share_M", facts.item_share_M.log().float(), persistent=False)

    def room(self, sizes: Sizes) -> Room:
        return Room(own=self.n, kept=4 * sizes.n_items)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        shift = torch.randperm(_n_shifts(batch), generator=rng, device=rng.device)[: self.n] + 1
        last_B = batch.positives().offset[1:] - 1
        at_BK = (last_B[:, None] + shift.to(last_B.device)) % max(len(batch.item_P), 1)
        return (Block.of(batch.item_P[at_BK]),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        k = min(self.n, _n_shifts(batch))
        return self.log_share_M[row] + (math.log(k) if k else -math.inf)


def _n_shifts(batch: Batch) -> int:
    """Shifts that lead from no query to a pair of its own."""
    return len(batch.item_P) - int(batch.positives().lengths().max()) if len(batch.of_P) else 0
