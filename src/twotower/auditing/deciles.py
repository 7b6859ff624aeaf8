"""Items by tenths of the catalogue, most popular first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciles:
    """Tenths of the items by training events. Items with as many events are in one tenth, that of the middle one of
    them, so a tenth may be larger, and those without items are left out."""

    group_M: Tensor
    """Index of each item's tenth among those that have items."""
    number_G: Tensor
    """1 (most popular) to 10."""
    items_G: Tensor
    events_G: Tensor
    """Training events of all items of a tenth."""
    least_G: Tensor
    most_G: Tensor
    """Fewest and most training events of one item."""

    @staticmethod
    def of(item_count_M: Tensor) -> Deciles:
        """Of a catalogue with these training events."""
        count_M = item_count_M.long()
        falling_M = count_M.sort(descending=True).values
        more_M = torch.searchsorted(-falling_M, -count_M)  # how many items have more events
        equal_M = torch.searchsorted(-falling_M, -count_M, right=True) - more_M
        tenth_M = 10 * (2 * more_M + equal_M) // max(2 * len(count_M), 1)
        number_G, group_M = tenth_M.clamp(max=9).unique(return_inverse=True)
        n_groups = len(number_G)
        zeros_G = count_M.new_zeros(n_groups)
        return Deciles(
            group_M=group_M,
            number_G=number_G + 1,
            items_G=group_M.bincount(minlength=n_groups),
            events_G=zeros_G.index_add(0, group_M, count_M),
            least_G=zeros_G.scatter_reduce(0, group_M, count_M, "amin", include_self=False),
            most_G=zeros_G.scatter_reduce(0, group_M, count_M, "amax", include_self=False),
        )
