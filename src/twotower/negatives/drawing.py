"""Draws by chance: numbers, places by softmax or by weight, values out of lists.

Numbers come from the generator's device and go where they are used, in one order on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..records import NEG_INF, Ragged


def uniform(shape: tuple[int, ...], rng: torch.Generator, device: torch.device) -> Tensor:
    """Float64 numbers from 0 to below 1."""
    return torch.rand(shape, generator=rng, device=rng.device, dtype=torch.float64).to(device)


def gumbel(shape: tuple[int, ...], rng: torch.Generator, device: torch.device) -> Tensor:
    """Standard Gumbel numbers: the places of the n largest of ``logit + gumbel`` are n draws by softmax(logit) without
    replacement."""
    lot = torch.rand(shape, generator=rng, device=rng.device)
    return (-(-lot.clamp_(min=torch.finfo(lot.dtype).tiny).log_()).log_()).to(device)


def by_softmax(logit: Tensor, lot: Tensor) -> Tensor:
    """Places [..., n] drawn by the softmax of [..., P], one for each uniform number [..., n], so independent; -1 where
    all logits are -inf.

    By the distribution function in float64: one in float32 has no room for rare items of a large catalogue.
    """
    top = logit.amax(-1, keepdim=True).clamp(min=torch.finfo(logit.dtype).min)
    upto = (logit - top).exp_().cumsum(-1, dtype=torch.float64)
    total = upto[..., -1:].contiguous()
    # The last of positive weight: a number times the total may round up to it. (Logits that are no numbers have none;
    # whoever learns from them will tell.)
    last = torch.searchsorted(upto, total).clamp(max=upto.shape[-1] - 1)
    place = torch.searchsorted(upto, lot.double() * total, right=True)
    return torch.minimum(place, last).masked_fill(total == 0, -1)


def bounds(offset: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Where the lists of these numbers start and end, by the offsets of all; nothing is in list -1."""
    start = offset[which.clamp(min=0)]
    return start, torch.where(which < 0, start, offset[which + 1])


def by_weight(until_L: Tensor, start_B: Tensor, stop_B: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """[B, n] places from ``start_B`` to ``stop_B``, each with its share of the weight there, with replacement.

    ``until_L`` [L + 1] float64 sums the weights before each place. An empty span gives -1.
    """
    below_B, above_B = until_L[start_B, None], until_L[stop_B, None]
    point_Bn = below_B + uniform((len(start_B), n), rng, until_L.device) * (above_B - below_B)
    place_Bn = torch.searchsorted(until_L, point_Bn, right=True) - 1
    # Rounding may reach the end of a span.
    place_Bn = torch.maximum(torch.minimum(place_Bn, stop_B[:, None] - 1), start_B[:, None])
    return place_Bn.masked_fill((stop_B <= start_B)[:, None], -1)


def one_of(lists: Ragged, which: Tensor, rng: torch.Generator) -> Tensor:
    """Of each list that ``which`` numbers one of its values, each as likely, in the shape of ``which``; -1 of an empty
    list and of list -1."""
    start, stop = bounds(lists.offset, which)
    at = start + (uniform(which.shape, rng, which.device) * (stop - start)).long()
    if not len(lists.value):
        return torch.full_like(which, -1)
    return lists.value[at.clamp(max=len(lists.value) - 1)].long().masked_fill(stop == start, -1)


def best(value_CP: Tensor, n: int) -> Tensor:
    """[C, n] places of the n largest values, largest first; -1 where there are no more above -inf."""
    top = value_CP.topk(min(n, value_CP.shape[1]), 1)
    place = top.indices.masked_fill(top.values == NEG_INF, -1)
    return pad(place, (0, n - place.shape[1]), value=-1)


def picked(row_CP: Tensor, place_Cn: Tensor) -> Tensor:
    """[C, n] rows at some places of each line; -1 at place -1."""
    return row_CP.gather(1, place_Cn.clamp(min=0)).masked_fill(place_Cn < 0, -1)


def some_of(row_CP: Tensor, n: int, rng: torch.Generator, log_weight_CP: Tensor | None = None) -> Tensor:
    """[C, n] of the rows (or places) of each line that are not -1, evenly or by weight, none of them twice; all where
    there are no more."""
    if row_CP.shape[1] <= n:
        return row_CP
    turn_CP = gumbel(row_CP.shape, rng, row_CP.device)
    if log_weight_CP is not None:
        turn_CP = turn_CP + log_weight_CP
    return picked(row_CP, best(turn_CP.masked_fill(row_CP < 0, NEG_INF), n))
