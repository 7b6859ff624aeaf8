"""What a sampler of negatives is: it draws item rows, and knows the expected count of any item."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Part
from ..records import Batch, Block, Candidates, Encoded

if TYPE_CHECKING:
    from .mixture import Mixture

Density = Literal["exact", "approximate", "relative", "none"]
"""What ``log_count`` is worth: the law itself, an estimate of it, right up to an unknown factor a query, or nothing."""


class Look(Protocol):
    """The run and the current model as a sampler may see them: without gradient, computed only when asked."""

    @property
    def query_BD(self) -> Tensor:
        """Query vectors of the batch."""

    def items(self, row: Tensor) -> Tensor:
        """Item rows [...] -> their current vectors [..., D]."""

    def layers(self, row: Tensor) -> Tensor:
        """Item rows [...] -> their current vectors by layers of the graph [..., H, D]; H = 1 without a graph."""

    @property
    def step(self) -> int:
        """Number of the step, from 1."""

    def log_presence(self, row: Tensor) -> Tensor:
        """Item rows [...] -> log P(item is in the global batch) [...], as known before this batch."""


class Sampler(Part):
    """Draws candidates to compare the positives with.

    The count of an item is the expected summed weight it has among one query's candidates. It is known for any row,
    drawn or not: so mixtures add their parts' counts, and a test can hold the draws against the law.
    """

    density: ClassVar[Density]
    leaves_out_positives: ClassVar[bool] = False
    """Whether no query is ever offered what it is known to like: then its positives count nothing, -inf in logs."""
    offers_items: ClassVar[bool] = True
    """Whether all that is offered are items of the catalogue as they are now, which others may choose from by row."""

    @property
    def idle_steps(self) -> int:
        """Steps at the start of a run in which nothing is offered."""
        return 0

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        """Candidates of one global batch, not yet counted. The same generator state gives the same rows."""
        raise TypeError(f"{type(self).__name__} defines no draw")

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        """log E[summed weight] of any catalogue rows, in the shape of ``row``: -inf for what is never drawn.

        A law of each query's own gives [B, N] for [N] rows.
        """
        raise TypeError(f"{type(self).__name__} has no density to count by")

    def observe(self, blocks: tuple[Block, ...], encoded: Encoded, look: Look) -> Tensor | None:
        """Learn from a step, once a global batch, with its own blocks, before the towers move.

        May return a loss of its own, whose gradient moves the sampler's parameters and tables in the same step. The
        vectors of ``encoded`` are part of the towers' graph: detach them for it.
        """
        return None

    def __add__(self, other: Sampler) -> Mixture:
        """Both together: all candidates of each, counts added."""
        from .mixture import Mixture  # a mixture is itself a sampler

        return Mixture(parts=(self, other))


def require_some(sampler: Sampler, n: int) -> None:
    """ConfigError where a sampler is to draw nothing."""
    if n < 1:
        raise ConfigError(f"{type(sampler).__name__}: n is {n}, expected at least 1; leave the sampler out for none")


def propose(sampler: Sampler, batch: Batch, look: Look, rng: torch.Generator, *, counted: bool = True) -> Candidates:
    """Draw, then count every block and the positives by the law of the whole sampler, whichever part an item came from.

    Counts are nan where the sampler has no density, or where they are not wanted. A place without an item (row -1)
    counts as once.
    """

    def count(row: Tensor) -> Tensor:
        if sampler.density == "none" or not counted:
            return torch.full(row.shape, float("nan"), device=row.device)
        return sampler.log_count(row.clamp(min=0), batch, look).masked_fill(row < 0, 0.0)

    blocks = sampler.draw(batch, look, rng)
    return Candidates(
        blocks=tuple(block.with_count(count(block.row)) for block in blocks),
        positive_log_count_P=_of_positives(count, batch),
    )


def _of_positives(count: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """[P] counts of the positives, each by the law of its own query where every query has one.

    Such a law is asked for lists [B, K] of each query's positives: [P] rows would give [B, P].
    """
    if count(batch.item_P[:1]).dim() == 1:
        return count(batch.item_P)
    n_B = batch.of_P.bincount(minlength=len(batch.query_B))
    place_P = torch.arange(len(batch.of_P), device=batch.of_P.device) - (n_B.cumsum(0) - n_B)[batch.of_P]
    row_BK = batch.item_P.new_full((len(n_B), int(n_B.max())), -1)
    row_BK[batch.of_P, place_P] = batch.item_P
    return count(row_BK)[batch.of_P, place_P]


_TILE = 2**24
"""Most numbers of item vectors that are held at a time for scores: 64 MiB of float32."""


def scores(query_CD: Tensor, row: Tensor, look: Look) -> Tensor:
    """[C, N] or [C, K] scores of the current model for C queries, of the same rows [N] or of each one's own [C, K]."""
    item_U, slot = row.unique(return_inverse=True)
    return dots(query_CD, look.items(item_U), slot)


def dots(query_CD: Tensor, table_TD: Tensor, slot: Tensor) -> Tensor:
    """[C, N] or [C, K] scores of C queries with the vectors at places [N] or [C, K] of a table.

    An item's score is the same number whichever way it is asked for.
    """
    slot_CK = slot.expand(len(query_CD), slot.shape[-1])
    step = max(1, _TILE // max(slot_CK.shape[1] * query_CD.shape[1], 1))
    tiles = zip(query_CD.split(step), slot_CK.split(step), strict=True)
    return torch.cat([(table_TD[slot_TK] @ query_TD[:, :, None])[:, :, 0] for query_TD, slot_TK in tiles])
