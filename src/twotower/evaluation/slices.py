"""Items by how often they were in the training events: unseen, tail, middle, head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError, DataError

SLICES = ("head", "middle", "tail", "unseen")
"""Names of the slices, most popular first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slices:
    """The slice of every item, by its training events alone: items with as many events are in one slice.

    ``unseen``: none. ``tail``: 1 to ``tail_max``. ``head``: of the others, those of the smallest set of most popular
    items that holds at least ``head_share`` of all training events, and all that have as many events as its last.
    ``middle``: what is between. Where few items have more than ``tail_max`` events, head or middle may be empty.
    """

    slice_M: Tensor
    """Index into ``SLICES`` of each item, int64."""
    tail_max: int
    head_min: int
    """Fewest events of an item of the head."""

    @staticmethod
    def of(item_count_M: Tensor, *, tail_max: int, head_share: float) -> Slices:
        """Slices of a catalogue with these training events.

        Raises:
            ConfigError: ``tail_max`` below 0, or ``head_share`` not between 0 and 1.
            DataError: a count that is negative or not finite.
        """
        if tail_max < 0:
            raise ConfigError(f"evaluation: tail_max is {tail_max}, expected 0 or more training events")
        if not 0.0 < head_share < 1.0:
            raise ConfigError(f"evaluation: head_share is {head_share}, expected a share of the events between 0 and 1")
        if not bool(((item_count_M >= 0) & torch.isfinite(item_count_M)).all()):
            raise DataError("item_count_M: a count is negative or not finite, expected training events of each item")
        head_min = max(_head_min(item_count_M, head_share), tail_max + 1)
        slice_M = torch.full(item_count_M.shape, SLICES.index("middle"), device=item_count_M.device)
        slice_M[item_count_M >= head_min] = SLICES.index("head")
        slice_M[item_count_M <= tail_max] = SLICES.index("tail")
        slice_M[item_count_M == 0] = SLICES.index("unseen")
        return Slices(slice_M=slice_M, tail_max=tail_max, head_min=head_min)

    def events(self) -> dict[str, str]:
        """The training events of an item of each slice, in words."""
        return {
            "head": f"{self.head_min} or more",
            "middle": f"{self.tail_max + 1} to {self.head_min - 1}" if self.head_min > self.tail_max + 1 else "none",
            "tail": f"1 to {self.tail_max}" if self.tail_max else "none",
            "unseen": "0",
        }


def _head_min(item_count_M: Tensor, head_share: float) -> int:
    if len(item_count_M) == 0:
        return 1
    falling_M = item_count_M.double().sort(descending=True).values
    held_M = falling_M.cumsum(0)
    n_items = int((held_M < head_share * held_M[-1]).sum()) + 1
    return int(falling_M[min(n_items, len(falling_M)) - 1])
