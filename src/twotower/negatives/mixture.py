"""Several samplers as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, replace
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..part import Facts
from ..records import Batch, Block, Encoded
from .room import Room, Sizes
from .sampler import Density, Look, Sampler


class _Parts:
    """``Mixture.parts``, kept only as the registered modules: a copy or an assignment can't make the two differ."""

    def __get__(self, mixture: Mixture | None, owner: type[Mixture]) -> tuple[Sampler, ...]:
        if mixture is None:
            raise AttributeError("parts belong to an instance")  # which a dataclass takes for: no default
        return tuple(cast(Sampler, part) for part in mixture.held)

    def __set__(self, mixture: Mixture, parts: tuple[Sampler, ...]) -> None:
        mixture.held = nn.ModuleList(_flat(parts))


class Mixture(Sampler):
    """All candidates of every part; counts add, whichever part an item came from.

        log count(i) = log sum over the parts of count_part(i)

    Also made by ``InBatch() + Uniform(8192)``. Mixtures inside a mixture are dissolved. A block's ``source`` is the
    place of its part in ``parts``, and a part observes its own blocks only.

    Raises ConfigError where there is no part.

    Source: Yang et al., Mixed negative sampling for learning two-tower neural networks in recommendations (WWW 2020
    companion), Equation 5; the summed count is the balance heuristic of Veach and Guibas (SIGGRAPH 1995).
    """

    parts: tuple[Sampler, ...] = _Parts()  # type: ignore[assignment]

    held: nn.ModuleList = field(init=False)
    """The parts as registered modules."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("Mixture: parts is empty, expected at least one sampler")

    @property
    def density(self) -> Density:  # type: ignore[override]
        """That of the weakest part. What is known up to a factor only can't be added to anything else."""
        found = {part.density for part in self.parts}
        if "none" in found or ("relative" in found and len(self.parts) > 1):
            return "none"
        order: tuple[Density, ...] = ("relative", "approximate", "exact")
        return next(density for density in order if density in found)

    @property
    def leaves_out_positives(self) -> bool:  # type: ignore[override]
        """Whether every part does."""
        return all(part.leaves_out_positives for part in self.parts)

    @property
    def offers_items(self) -> bool:  # type: ignore[override]
        """Whether every part does."""
        return all(part.offers_items for part in self.parts)

    @property
    def idle_steps(self) -> int:
        """Those of the part that offers first."""
        return min(part.idle_steps for part in self.parts)

    @property
    def per_query_law(self) -> bool:  # type: ignore[override]
        """One such part is enough."""
        return any(part.per_query_law for part in self.parts)

    def setup(self, facts: Facts) -> None:
        for part in self.parts:
            part.setup(facts)

    def room(self, sizes: Sizes) -> Room:
        return sum((part.room(sizes) for part in self.parts), Room())

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        return tuple(
            replace(block, source=source)
            for source, part in enumerate(self.parts)
            for block in part.draw(batch, look, rng)
        )

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        first, *others = (part.log_count(row, batch, look) for part in self.parts)
        for other in others:
            first = torch.logaddexp(first, other)
        return first

    def observe(self, blocks: tuple[Block, ...], encoded: Encoded, look: Look) -> Tensor | None:
        losses = []
        for source, part in enumerate(self.parts):
            own = tuple(block for block in blocks if block.source == source)
            loss = part.observe(own, encoded, look)
            if loss is not None:
                losses.append(loss)
        return torch.stack(losses).sum() if losses else None


def _flat(parts: tuple[Sampler, ...]) -> Iterator[Sampler]:
    for part in parts:
        yield from part.parts if isinstance(part, Mixture) else (part,)
