"""Fixed laws over the catalogue, drawn with replacement."""

from __future__ import annotations

import math
from dataclasses import field

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Facts
from ..records import Batch, Block
from .alias import AliasTable
from .sampler import Look, Sampler, require_some


class Uniform(Sampler):
    """n items of the catalogue, each equally likely: expected count n / M.

    Shared by the batch, rows [n]; with ``per_query`` each query has its own n, rows [B, n].

    Raises ConfigError where n is below 1.
    """

    density = "exact"

    n: int = field(kw_only=False)
    per_query: bool = False

    n_items: int = field(init=False)

    def __post_init__(self) -> None:
        require_some(self, self.n)

    def setup(self, facts: Facts) -> None:
        self.n_items = facts.n_items

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        shape = _shape(self.n, self.per_query, batch)
        row = torch.randint(self.n_items, shape, generator=rng, device=rng.device)
        return (Block.of(row.to(batch.item_P.device)),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        return torch.full(row.shape, math.log(self.n / self.n_items), device=row.device)


class Catalogue(Sampler):
    """Every item of the catalogue once, nothing left to chance: expected count 1. A softmax over it is the full
    softmax."""

    density = "exact"

    n_items: int = field(init=False)

    def setup(self, facts: Facts) -> None:
        self.n_items = facts.n_items

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        return (Block.of(torch.arange(self.n_items, device=batch.item_P.device)),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        return torch.zeros(row.shape, device=row.device)


class Popularity(Sampler):
    """n items, each with probability ∝ (training events + smoothing)^alpha: expected count n times that.

    An item without training event is never drawn (count 0, its log -inf), whatever alpha, unless ``smoothing`` gives it
    a share. Shared by the batch, rows [n]; with ``per_query`` each query has its own n, rows [B, n].

    Raises ConfigError where n is below 1, where smoothing is negative, and where no item has a share.

    Source: Mikolov et al., Distributed representations of words and phrases (NIPS 2013), section 2.2, alpha 3/4.
    """

    density = "exact"

    n: int = field(kw_only=False)
    alpha: float = 0.75
    smoothing: float = 0.0
    per_query: bool = False

    log_probability_M: Tensor = field(init=False)
    table: AliasTable = field(init=False)

    def __post_init__(self) -> None:
        require_some(self, self.n)
        if self.smoothing < 0:
            raise ConfigError(f"Popularity: smoothing is {self.smoothing}, expected 0 or more events")

    def setup(self, facts: Facts) -> None:
        event_M = facts.item_count_M.double() + self.smoothing
        weight_M = torch.where(event_M > 0, event_M**self.alpha, 0.0)
        total = weight_M.sum()
        if not 0 < float(total) < math.inf:
            raise ConfigError(
                f"Popularity: the weights of {len(weight_M)} items sum to {float(total)}, expected a positive number;"
                f" check that there are training events and that alpha ({self.alpha}) is not extreme"
            )
        # Follows from the data, so it is not saved: tomorrow's run counts tomorrow's events.
        self.register_buffer("log_probability_M", (weight_M / total).log().float(), persistent=False)
        self.table = AliasTable(weight_M)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        return (Block.of(self.table.draw(_shape(self.n, self.per_query, batch), rng)),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        return self.log_probability_M[row] + math.log(self.n)


def _shape(n: int, per_query: bool, batch: Batch) -> tuple[int, ...]:
    return (len(batch.query_B), n) if per_query else (n,)
