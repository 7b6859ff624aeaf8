"""Draws from any fixed law over the catalogue in constant time each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .drawing import uniform


class AliasTable(nn.Module):
    """M columns of height 1: column i is item i up to the height ``keep_M[i]``, and item ``other_M[i]`` above.

    A draw picks a column, then a height in it. So P(i) = (keep_i + sum of 1 - keep_j over the columns j whose other is
    i) / M, which is weight_i / sum of weights. An item of weight 0 is never drawn.

    Source: Walker, An efficient method for generating discrete random variables with general distributions (1977), and
    Vose, A linear algorithm for generating random numbers with a given distribution (1991); filled here by cumulative
    sums as in Huebschle-Schneider and Sanders, Parallel weighted random sampling (2019), section 4.
    """

    keep_M: Tensor
    other_M: Tensor

    def __init__(self, weight_M: Tensor) -> None:
        super().__init__()
        keep_M, other_M = _fill(weight_M.detach().cpu().double())
        # Follow from the weights, so they are not saved.
        self.register_buffer("keep_M", keep_M.to(weight_M.device), persistent=False)
        self.register_buffer("other_M", other_M.to(weight_M.device), persistent=False)

    def draw(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Item rows of that shape, with replacement, on the device of the table; numbers come from the generator's.

        One number tells both: its whole part the column, the rest the height, even to 2^-53 M.
        """
        n_columns = len(self.keep_M)
        place = uniform(shape, rng, self.keep_M.device).flatten().mul_(n_columns)
        column = place.long().clamp_(max=n_columns - 1)  # the product may round up to M
        is_own = place.sub_(column) < self.keep_M.index_select(0, column)  # twice as fast as by []
        return torch.where(is_own, column, self.other_M.index_select(0, column)).view(shape)


def _fill(weight_M: Tensor) -> tuple[Tensor, Tensor]:
    """Weights -> (keep_M float64, other_M int64), without a loop over items.

    Scale weights to mean 1. A small item, below 1, leaves a hole in its column; a large one has an excess. Lay the
    holes end to end along a line, and the excesses along another of the same length. Holes are filled in order: one
    that starts at x is filled whole by the large item whose excess covers x. The last hole that a large item fills may
    end beyond its excess; what it gave too much is then missing in its own column, and the next large item fills that.
    """
    size = len(weight_M)
    height_M = weight_M * (size / weight_M.sum())
    is_large_M = height_M >= height_M.max().clamp(max=1.0)  # rounding may leave the largest just below 1
    large, small = is_large_M.nonzero()[:, 0], (~is_large_M).nonzero()[:, 0]
    keep_M, other_M = height_M.clamp(max=1.0), torch.arange(size)
    if not len(small):
        return keep_M, other_M
    excess_end = (height_M[large] - 1).clamp(min=0).cumsum(0)
    hole_end = (1 - height_M[small]).cumsum(0)
    hole_start = torch.cat([hole_end.new_zeros(1), hole_end[:-1]])
    filler = torch.searchsorted(excess_end, hole_start, right=True).clamp(max=len(large) - 1)
    other_M[small] = large[filler]

    # The holes that begin before the end of an excess and end beyond it; the last excess ends with the last hole.
    at = torch.searchsorted(hole_end, excess_end[:-1], right=True).clamp(max=len(small) - 1)
    overrun = ((hole_start[at] < excess_end[:-1]) & (excess_end[:-1] < hole_end[at])).nonzero()[:, 0]
    given_too_much = hole_end[at[overrun]] - excess_end[overrun]
    keep_M[large[overrun]] = (1 - given_too_much).clamp(min=0.0)
    other_M[large[overrun]] = large[overrun + 1]
    return keep_M, other_M
