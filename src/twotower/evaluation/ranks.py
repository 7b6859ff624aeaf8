"""Where the relevant items of each query stand in its ranking, with ties kept as ties."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """What an expectation over random orders of tied items says of positions 1 to K of Q rankings; all float64 [Q, K].

    A group of tied items that starts after ``a`` others and holds ``e`` items, ``r`` of them relevant, fills positions
    ``a + 1 .. a + e``. At its ``j``-th position an item is relevant with probability ``r / e``; given that, on average
    ``(j - 1) (r - 1) / (e - 1)`` of the group's other relevant items stand before it; and given that none of the first
    ``j - 1`` was relevant, the ``j``-th is with probability ``r / (e - j + 1)``.
    """

    relevant_QK: Tensor
    """P(the item at the position is relevant)."""
    ahead_QK: Tensor
    """E[relevant items before the position | the item at the position is relevant]."""
    first_QK: Tensor
    """P(the first relevant item is at the position)."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The T relevant items of Q queries among the candidates of their query, known down to position ``depth``."""

    query_T: Tensor
    """Which query each relevant item belongs to, rising."""
    above_T: Tensor
    """Candidates with a strictly greater score; ``depth`` stands for that many or more, and for an excluded item."""
    tied_T: Tensor
    """Candidates with an equal score, itself included; only meant where ``above_T < depth``."""
    truth_Q: Tensor
    """Relevant items of each query, however far down they stand."""
    depth: int
    weight_T: Tensor | None = None
    """What it is worth to find each relevant item, 0 or more; None: all are worth the same."""

    @staticmethod
    def of(
        query_T: Tensor,
        above_T: Tensor,
        tied_T: Tensor,
        *,
        n_queries: int,
        depth: int,
        weight_T: Tensor | None = None,
    ) -> Ranks:
        """Ranks whose every relevant item is listed."""
        truth_Q = torch.bincount(query_T, minlength=n_queries)
        return Ranks(query_T=query_T, above_T=above_T, tied_T=tied_T, truth_Q=truth_Q, depth=depth, weight_T=weight_T)

    def only(self, keep_T: Tensor) -> Ranks:
        """The ranks of some of the relevant items; they still compete with the whole catalogue."""
        return Ranks.of(
            self.query_T[keep_T],
            self.above_T[keep_T],
            self.tied_T[keep_T],
            n_queries=len(self.truth_Q),
            depth=self.depth,
            weight_T=None if self.weight_T is None else self.weight_T[keep_T],
        )

    @cached_property
    def positions(self) -> Positions:
        """The same facts, laid out by position."""
        relevant_QK, tied_QK = self._groups()
        place_K = torch.arange(self.depth, device=relevant_QK.device)
        start_QK = torch.where(relevant_QK > 0, place_K, -1).cummax(1).values
        within_QK = place_K - start_QK
        at_QK = start_QK.clamp(min=0)
        tied_here_QK = tied_QK.gather(1, at_QK)
        inside_QK = (start_QK >= 0) & (within_QK < tied_here_QK)
        r_QK = torch.where(inside_QK, relevant_QK.gather(1, at_QK), 0).double()
        e_QK = torch.where(inside_QK, tied_here_QK, 1).double()
        j_QK = torch.where(inside_QK, within_QK, 0).double()
        higher_QK = (relevant_QK.cumsum(1) - relevant_QK).gather(1, at_QK)
        hazard_QK = (r_QK / (e_QK - j_QK)).clamp(max=1.0)
        found_not_QK = (1.0 - hazard_QK).cumprod(1)
        before_QK = torch.cat([torch.ones_like(found_not_QK[:, :1]), found_not_QK[:, :-1]], dim=1)
        return Positions(
            relevant_QK=r_QK / e_QK,
            ahead_QK=higher_QK + j_QK * (r_QK - 1.0).clamp(min=0.0) / (e_QK - 1.0).clamp(min=1.0),
            first_QK=before_QK * hazard_QK,
        )

    def _groups(self) -> tuple[Tensor, Tensor]:
        """Relevant items and all items [Q, K] of the group of ties that starts at each position; 0 where none does."""
        shape = (len(self.truth_Q), self.depth)
        reached_T = self.above_T < self.depth
        at_T = self.query_T[reached_T] * self.depth + self.above_T[reached_T]
        relevant = torch.bincount(at_T, minlength=shape[0] * shape[1])
        tied = torch.zeros_like(relevant).scatter_(0, at_T, self.tied_T[reached_T])
        return relevant.view(shape), tied.view(shape)
