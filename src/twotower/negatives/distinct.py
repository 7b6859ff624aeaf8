"""Draws without replacement from any fixed law over the catalogue, with exact expected counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .drawing import uniform

_TINY = 1e-300


class DistinctTable(nn.Module):
    """n distinct items, item i among them with probability exactly pi_i = min(1, c w_i), c such that they sum to n.

    Items lie on a circle of length n in a fixed random order, item i on an arc of length pi_i. A draw cuts the circle
    where some item starts, drawn evenly, and from there on into n stretches of length 1, and takes a point of each. The
    points are even and independent, but for an item that lies across a border, with a of its arc before and b after:
    taken before the border it is not taken again, otherwise it is with probability b / (1 - a). In all that makes
    a + (1 - a) b / (1 - a) = pi_i. Items with pi_i = 1 are always taken and not on the circle.

    So the probability of each item is exact. That of two together is not their product, but at most it: items near one
    another on the circle come together more rarely.

    A draw costs O(n log M), the table three numbers an item.

    Source: Deville, Une nouvelle (encore une!) méthode de tirage à probabilités inégales (INSEE, 1998); Chauvet, On a
    characterization of ordered pivotal sampling (Bernoulli 18(4), 2012). With one common point for all stretches it
    would be Madow, On the theory of systematic sampling II (1949): as exact for each item, but with few samples,
    about M / n where items are alike, each of which always comes whole.
    """

    count_M: Tensor
    """Expected count of each item: pi."""
    always: Tensor
    """Rows that are in every draw."""
    row_C: Tensor
    """Rows around the circle."""
    end_C: Tensor
    """Where their arcs end."""

    def __init__(self, weight_M: Tensor, n: int) -> None:
        """Fewer than n items with weight are an error of the caller."""
        super().__init__()
        count_M = inclusion(weight_M.detach().double(), n)
        order = torch.randperm(len(count_M), generator=torch.Generator().manual_seed(0)).to(count_M.device)
        always = (count_M == 1).nonzero()[:, 0]
        row_C = order[(count_M[order] > 0) & (count_M[order] < 1)]
        end_C = count_M[row_C].cumsum(0)
        if len(end_C):
            end_C *= (n - len(always)) / end_C[-1]
            end_C[-1] = n - len(always)
        # Follow from the weights, so they are not saved.
        for name, value in (("count_M", count_M), ("always", always), ("row_C", row_C), ("end_C", end_C)):
            self.register_buffer(name, value, persistent=False)

    def draw(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Item rows of that shape, distinct along its last axis, which is n long; on the device of the table."""
        device, lists, n = self.row_C.device, shape[:-1], shape[-1] - len(self.always)
        always = self.always.expand(*lists, -1)
        if not n:
            return always
        first = torch.randint(len(self.row_C), (*lists, 1), generator=rng, device=rng.device).to(device)
        height = uniform((*lists, n), rng, device)
        return torch.cat([always, self.row_C[self._places(first, height)]], -1)

    def _places(self, first: Tensor, height: Tensor) -> Tensor:
        """[..., n] places on the circle from the one it is cut at, [..., 1], and a number below 1 for each stretch."""
        stretch = self._start(first) + torch.arange(height.shape[-1], device=height.device)
        border = self._around(stretch[..., 1:])
        across = self._place_of(border)
        before, after = border - self._start(across), self.end_C[across] - border

        # Of each stretch: lengths of the items across its borders, and the chance that the one on the left, not taken
        # before, is taken now: it has the lowest heights. The one on the right has the highest.
        left, right = pad(after, (1, 0)), pad(before, (0, 1))
        chance = pad((after / (1 - before).clamp(min=_TINY)).clamp(max=1), (1, 0))
        inner = ((1 - left - right) / (1 - left).clamp(min=_TINY)).clamp(0, 1)
        right_if_left_was = height >= inner
        right_if_not = height >= chance + (1 - chance) * inner
        left_was = pad(_last_settled(right_if_left_was, right_if_not)[..., :-1], (1, 0))

        left_is = ~left_was & (height < chance)
        height = torch.where(left_was, height, (height - chance) / (1 - chance).clamp(min=_TINY))
        drawn = self._place_of(self._around(stretch + left + height.clamp(0, 1) * (1 - left)))
        return torch.where(left_is, torch.cat([first, across], -1), drawn)

    def _start(self, place: Tensor) -> Tensor:
        return torch.where(place > 0, self.end_C[place - 1], 0.0)

    def _around(self, point: Tensor) -> Tensor:
        """Points beyond the end of the circle as points from its start."""
        return torch.where(point >= self.end_C[-1], point - self.end_C[-1], point)

    def _place_of(self, point: Tensor) -> Tensor:
        return torch.searchsorted(self.end_C, point, right=True).clamp(max=len(self.end_C) - 1)


def _last_settled(if_was: Tensor, if_not: Tensor) -> Tensor:
    """[..., n] of a chain of truths, each of which depends on the one before it, the first on none.

    ``if_not`` implies ``if_was``: so where they differ a truth is the one before it, and all are that of the last
    place where they agree.
    """
    place = torch.arange(if_was.shape[-1], device=if_was.device)
    settled = torch.where(if_was == if_not, place, 0).cummax(-1).values
    return if_not.gather(-1, settled)


def inclusion(weight_M: Tensor, n: int) -> Tensor:
    """[M] min(1, c w), with c such that they sum to n; at least n weights are positive.

    With k at 1, c is what is left of n over the sum of the other weights. k is the least that leaves none above 1.
    """
    largest = weight_M.sort(descending=True).values
    rest = largest.flip(0).cumsum(0).flip(0)[:n]
    left = torch.arange(n, 0, -1, dtype=torch.float64, device=weight_M.device)
    k = int((left * largest[:n] <= rest).int().argmax())
    count_M = (weight_M * (left[k] / rest[k])).clamp(max=1.0)
    return torch.where(count_M > 1 - 1e-12, 1.0, count_M)
