"""Laws made of other laws by drawing again."""

from __future__ import annotations

import math
from dataclasses import field
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Facts
from ..records import NEG_INF, Batch, Block, Ragged, running_sum
from .drawing import uniform
from .room import Room, Sizes
from .sampler import Look, Sampler
from .static import Law, share
from .tiles import tiles

_LEAST_ACCEPTED = 1e-4
"""A proposal that is accepted more rarely is refused: each draw would take more than ten thousand."""


def require_independent(sampler: Sampler, name: str, law: Law) -> None:
    """ConfigError for a law of distinct items, which is none of single draws."""
    if law.unique:
        raise ConfigError(
            f"{type(sampler).__name__}: {name} is {type(law).__name__} with unique = true, expected independent draws:"
            " set unique to false"
        )


class Rejection(Sampler):
    """The law ``target``, drawn by accepting some draws of the law ``of``.

        accept i ~ q with probability p_i / (C q_i),    C = max of p_i / q_i over the items of the target

    p is the law of one draw of ``target``, q that of ``of``; the accepted follow p exactly. ``target`` says how many
    are drawn and whether for each query; ``of.n`` is how many are proposed at a time for each place, of which the first
    that is accepted is taken: C of them are needed on average, so n near C wastes least.

    Every law here has a table of its own, so it is rarely faster than ``target`` itself. Choose it to draw one law by
    the table of another, or to see what a law costs by rejection: ``acceptance_rate``.

    Raises ConfigError where a law is one of distinct items, where the target has items that are never proposed, and
    where less than one proposal in ten thousand would be accepted.

    Source: von Neumann, Various techniques used in connection with random digits (1951).
    """

    density = "exact"

    of: Law
    target: Law

    accept_M: Tensor = field(init=False)
    acceptance_rate: float = field(init=False)
    """1 / C: the share of proposals that are accepted; known after ``setup``."""

    def __post_init__(self) -> None:
        require_independent(self, "of", self.of)
        require_independent(self, "target", self.target)

    @property
    def n(self) -> int:
        """Candidates that are drawn."""
        return self.target.n

    @property
    def per_query(self) -> bool:
        """Whether each query has its own."""
        return self.target.per_query

    def setup(self, facts: Facts) -> None:
        self.of.setup(facts)
        self.target.setup(facts)
        q_M, p_M = (share(law, law.live_weights(facts)) for law in (self.of, self.target))
        never = int(((p_M > 0) & (q_M == 0)).sum())
        if never:
            raise ConfigError(
                f"Rejection: {never} of {len(p_M)} items are in the target ({type(self.target).__name__}) but never "
                f"proposed by of ({type(self.of).__name__}): propose by a law that has all of them, such as Uniform"
            )
        ratio_M = torch.where(p_M > 0, p_M / q_M, 0.0)
        self.acceptance_rate = 1 / float(ratio_M.max())
        if self.acceptance_rate < _LEAST_ACCEPTED:
            of, target = type(self.of).__name__, type(self.target).__name__
            raise ConfigError(
                f"Rejection: {target} would accept one of {1 / self.acceptance_rate:,.0f} proposals of {of}, expected "
                f"at least one of {1 / _LEAST_ACCEPTED:,.0f}: use {target} itself, or propose by a law nearer to it"
            )
        # Follows from the data, so it is not saved: tomorrow's run counts tomorrow's events.
        self.register_buffer("accept_M", ratio_M * self.acceptance_rate, persistent=False)

    def room(self, sizes: Sizes) -> Room:
        return self.target.room(sizes) + Room(kept=self.of.room(sizes).kept + 8 * sizes.n_items)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        shape = (len(batch.query_B), self.n) if self.per_query else (self.n,)
        row = torch.full((math.prod(shape),), -1, device=batch.item_P.device)
        waiting = torch.arange(len(row), device=row.device)
        while len(waiting):
            proposed = self.of.rows((len(waiting), self.of.n), rng).to(row.device)
            accepted = uniform(proposed.shape, rng, row.device) < self.accept_M[proposed]
            first = accepted.int().argmax(1)  # of equal values the first
            done = accepted.any(1)
            row[waiting[done]] = proposed.gather(1, first[:, None])[done, 0]
            waiting = waiting[~done]
        return (Block.of(row.view(shape)),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        return self.target.log_count(row, batch, look)


class Unknown(Sampler):
    """n items for each query by the law ``of``, none of them known to be liked: rows [B, n].

        q(i | u) = q_i / (1 - Q(N_u)) for i not in N_u,    Q(N_u) = sum of q_j over the known N_u

    Exactly the law that drawing again until no draw is known would have, without drawing again: the known are cut out
    of the cumulative sum, which a draw then is found in by two bisections. n q(i | u) are expected. A query that knows
    every item of the law has n empty places.

    Losses exclude known items anyway, by default: choose it for short lists, where an excluded place is a wasted one,
    for losses of sums that exclude nothing, or as a pool to mine. The clicks of others, as negatives, are
    ``Unknown(of=Popularity(n, alpha=1))``: a draw has the law of another row of the batch, less what the query knows.
    Positives are never drawn, so correction ``all`` has nothing to correct them by: mix with another sampler for it.

    ``of.per_query`` has no say. A batch costs O(B n (log M + log |N_u|)); one float64 is kept an item.

    Raises ConfigError where ``of`` is a law of distinct items.

    Source: known positives are left out of the sample since Rendle et al., BPR (UAI 2009); shifting uniform draws past
    them is common practice, here for any law.
    """

    density = "exact"
    leaves_out_positives = True
    per_query: ClassVar[bool] = True
    per_query_law = True

    of: Law

    end_M: Tensor = field(init=False)
    """Cumulative weight of the law."""
    n_drawn: int = field(init=False)
    """Items that the law draws."""

    def __post_init__(self) -> None:
        require_independent(self, "of", self.of)

    @property
    def n(self) -> int:
        """Candidates of a query."""
        return self.of.n

    def setup(self, facts: Facts) -> None:
        weight_M = self.of.live_weights(facts)
        share(self.of, weight_M)  # which tells where there is nothing to draw
        self.n_drawn = int((weight_M > 0).sum())
        # Follows from the data, so it is not saved: tomorrow's run counts tomorrow's events.
        self.register_buffer("end_M", weight_M.cumsum(0), persistent=False)

    def room(self, sizes: Sizes) -> Room:
        return Room(own=self.n, kept=8 * sizes.n_items)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        known = batch.known
        before_V, left_B, some_B = self._known_weight(known)
        point_Bn = uniform((len(batch.query_B), self.n), rng, batch.item_P.device) * left_B[:, None]
        # Where a known item starts once those before it are cut out: draws from there on are behind it.
        start_V = self._start(known.value) - before_V[:-1] + before_V[known.offset[:-1]][known.owner()]
        behind_Bn = known.offset[:-1, None] + reached(known, start_V, point_Bn)
        cut_Bn = before_V[behind_Bn] - before_V[known.offset[:-1]][:, None]
        row_Bn = torch.searchsorted(self.end_M, point_Bn + cut_Bn, right=True).clamp(max=len(self.end_M) - 1)
        # Rounding may lead a draw back to a known item, where those are nearly all of the law.
        return (Block.chosen(row_Bn.masked_fill(~some_B[:, None] | known.holds(row_Bn), -1)),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        _, left_B, some_B = self._known_weight(batch.known)
        log_weight = (self.end_M[row] - self._start(row)).log().float()  # [N] or [B, K]
        log_count_BK = log_weight + (math.log(self.n) - left_B.log().float())[:, None]
        row_BK = row.expand(log_count_BK.shape)
        for at in tiles(len(row_BK), 4 * row_BK.shape[1]):
            log_count_BK[at].masked_fill_(batch.known.slice(at.start, at.stop).holds(row_BK[at]), NEG_INF)
        return log_count_BK.masked_fill_(~some_B[:, None], NEG_INF)

    def _start(self, row: Tensor) -> Tensor:
        return torch.where(row > 0, self.end_M[row - 1], 0.0)

    def _known_weight(self, known: Ragged) -> tuple[Tensor, Tensor, Tensor]:
        """[V + 1] weight of the known items end to end, [B] weight of what is not known, and whether there is any."""
        weight_V = self.end_M[known.value] - self._start(known.value)
        before_V, drawn_V = running_sum(weight_V), running_sum((weight_V > 0).long())
        start, stop = known.offset[:-1], known.offset[1:]
        some_B = drawn_V[stop] - drawn_V[start] < self.n_drawn
        return before_V, self.end_M[-1] - (before_V[stop] - before_V[start]), some_B


def reached(lists: Ragged, value_V: Tensor, point_BK: Tensor) -> Tensor:
    """[B, K] how many of a list's values, which rise in each list, are at most its point: a bisection in each."""
    low = torch.zeros(point_BK.shape, dtype=torch.int64, device=point_BK.device)
    if not len(value_V):
        return low
    start, high = lists.offset[:-1, None], lists.lengths()[:, None].expand_as(low)
    for _ in range(int(lists.lengths().max()).bit_length()):
        middle = (low + high) // 2
        is_at_most = (middle < high) & (value_V[(start + middle).clamp(max=len(value_V) - 1)] <= point_BK)
        low, high = torch.where(is_at_most, middle + 1, low), torch.where(is_at_most, high, middle)
    return low
