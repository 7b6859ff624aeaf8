"""Candidates remembered from past batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..part import Changes, Facts
from ..records import Batch, Block, Encoded
from .room import Room, Sizes
from .sampler import Look, Sampler


class Queue(Sampler):
    """The items of the last ``batches`` batches, with the vectors they had there, shared by the batch.

        log count(i) = log P(i in a batch) + log(batches held now)

    Each batch puts in its distinct positives; the oldest batch leaves. Vectors are neither encoded again nor learned
    from, so candidates of many batches cost one product with the queries; they are as stale as they are old, which is
    why the first ``warm_up`` steps do without them, while vectors still move fast. (The queue is filled meanwhile.) An
    item that came in several batches is there with each of its vectors.

    The presence is the run's frequency estimate, as for ``InBatch``, with which it is used: ``InBatch() + Queue()``.
    The density is approximate: a streaming estimate is noisy and speaks of now, not of the batches held, and an exact
    one leaves one row of the batch out, 1 / B too few here.

    Choose it where the item tower is too costly for a large batch. A bag of ids is cheap to look up anew: then more
    negatives of ``Uniform`` or a larger batch are better, and never stale.

    Memory: batches * B * (D + 2) * 4 bytes in batches of pairs; in batches of queries, as much as B of them may bring.
    All of it is in checkpoints: a run that goes on has the same candidates.

    Raises ConfigError where batches is below 1 or warm_up is negative.

    Source: Wang, Zhu and He, Cross-batch negative sampling for training two-tower recommenders (SIGIR 2021).
    """

    density = "approximate"
    offers_items = False

    batches: int = 8
    warm_up: int = 0
    """Steps in which nothing is offered."""

    row_HC: Tensor = field(init=False)
    """Items of each batch held, rising; -1 where it had fewer than C."""
    vector_HCD: Tensor = field(init=False)
    n_seen: Tensor = field(init=False)
    """Batches that were ever put in: the next one goes to place n_seen mod H."""

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ConfigError(f"Queue: batches is {self.batches}, expected at least 1; leave the sampler out for none")
        if self.warm_up < 0:
            raise ConfigError(f"Queue: warm_up is {self.warm_up}, expected 0 or more steps")

    @property
    def idle_steps(self) -> int:
        """The warm-up, and the first step in any case: no batch was before it."""
        return max(self.warm_up, 1)

    def setup(self, facts: Facts) -> None:
        shape, device = (self.batches, _most_items(facts)), facts.item_count_M.device
        self.register_buffer("row_HC", torch.full(shape, -1, dtype=torch.int64, device=device))
        self.register_buffer("vector_HCD", torch.zeros(*shape, facts.width, device=device))
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.int64, device=device))

    def make_room(self, shapes: dict[str, torch.Size]) -> None:
        """For as many items a batch as were saved, where those are more than a batch can have by now."""
        most = shapes.get("row_HC", self.row_HC.shape)[1]
        missing = most - self.row_HC.shape[1]
        if missing > 0:
            self.row_HC = F.pad(self.row_HC, (0, missing), value=-1)
            self.vector_HCD = F.pad(self.vector_HCD, (0, 0, 0, missing))

    def carry(self, saved: Mapping[str, Tensor], changes: Changes) -> None:
        """The batches held stay, without the items that went."""
        self.make_room({name: value.shape for name, value in saved.items()})
        held = saved["row_HC"].shape[1]
        missing = self.row_HC.shape[1] - held
        row_HC = changes.still(saved["row_HC"])
        vector_HCD = saved["vector_HCD"].masked_fill((row_HC < 0)[:, :, None], 0.0)
        padded = {
            "row_HC": F.pad(row_HC, (0, missing), value=-1),
            "vector_HCD": F.pad(vector_HCD, (0, 0, 0, missing)),
        }
        super().carry({**saved, **padded}, changes)

    def room(self, sizes: Sizes) -> Room:
        places = self.batches * sizes.most_batch_items
        return Room(shared=places, stale=places, kept=places * (8 + 4 * sizes.width) + 8)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        place_S = (self.row_HC.flatten() >= 0).nonzero()[:, 0]
        if look.step <= self.warm_up:
            place_S = place_S[:0]
        row_S, vector_SD = (x.flatten(0, 1).index_select(0, place_S) for x in (self.row_HC, self.vector_HCD))
        return (replace(Block.of(row_S), vector=vector_SD),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        held = 0 if look.step <= self.warm_up else min(int(self.n_seen), self.batches)
        return look.log_presence(row) + (math.log(held) if held else -math.inf)

    @torch.no_grad()
    def observe(self, blocks: tuple[Block, ...], encoded: Encoded, look: Look) -> None:
        """Put in the batch's positives, each distinct item once, in place of the oldest batch."""
        slot_U = encoded.positive_slot_P.unique()
        at, n = int(self.n_seen) % self.batches, len(slot_U)
        self.row_HC[at, :n] = encoded.row_T[slot_U]
        self.row_HC[at, n:] = -1
        self.vector_HCD[at, :n] = encoded.table_TD[slot_U].to(self.vector_HCD.dtype)
        self.n_seen += 1


def _most_items(facts: Facts) -> int:
    """Distinct items that a batch can have."""
    if facts.batch_of == "pairs":
        return min(facts.batch_size, facts.n_items)
    pairs = facts.query_count_Q.topk(min(facts.batch_size, len(facts.query_count_Q))).values.sum()
    return min(int(pairs), facts.n_items)
