"""The batch's own positives as candidates."""

from __future__ import annotations

import torch
from torch import Tensor

from ..records import Batch, Block
from .sampler import Look, Sampler


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

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        return (Block.of(torch.unique(batch.item_P), of_batch=True),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        return look.log_presence(row)
