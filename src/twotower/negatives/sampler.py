"""What a sampler of negatives is: it draws item rows, and knows the expected count of any item."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Part
from ..records import Batch, Block, Candidates, Encoded
from .room import Room, Sizes

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
    per_query_law: ClassVar[bool] = False
    """Whether the law is of each query's own: then, and only then, ``log_count`` gives [B, N] for [N] rows."""

    @property
    def idle_steps(self) -> int:
        """Steps at the start of a run in which nothing is offered."""
        return 0

    def room(self, sizes: Sizes) -> Room:
        """What it takes up, at most: for an estimate of memory before anything is set up."""
        raise TypeError(f"{type(self).__name__} does not say what room it needs")

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        """Candidates of one global batch, not yet counted. The same generator state gives the same rows."""
        raise TypeError(f"{type(self).__name__} defines no draw")

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        """log E[summed weight] of any catalogue rows, in the shape of ``row``: -inf for what is never drawn.

        A law of each query's own gives [B, N] for [N] rows, and takes [B, K] rows, of each query its own.
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
        positive_log_count_P=_by_own_law(count, batch) if sampler.per_query_law else count(batch.item_P),
    )


def _by_own_law(count: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """[P] counts of the positives, each by the law of its own query: asked for as lists [B, K], as [P] rows would give
    [B, P]."""
    positives = batch.positives()
    place_P = torch.arange(len(batch.of_P), device=batch.of_P.device) - positives.offset[batch.of_P]
    row_BK = batch.item_P.new_full((len(positives), int(positives.lengths().max())), -1)
    row_BK[batch.of_P, place_P] = batch.item_P
    return count(row_BK)[batch.of_P, place_P]
