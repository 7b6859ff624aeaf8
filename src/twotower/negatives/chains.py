"""Markov chains over the catalogue whose law becomes that of the current model: p^alpha, without a sum over all items.

A chain of each query's own moves a few steps a batch and is carried on to the query's next batch. Its target

    pi(i | u)  ∝  exp(alpha s(u, i) / temperature)

is known up to a factor a query, which is all that a chain needs to move, and all that it can tell (``relative``).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import field

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Changes, Facts
from ..records import NEG_INF, Batch, Block, Encoded, Ragged
from .drawing import by_softmax, one_of, uniform
from .live import LiveRows
from .neighbours import two_hop_neighbours
from .room import Room, Sizes
from .sampler import Look, Sampler, require_some
from .scores import dots, scores, snapshot
from .static import Popularity, Uniform
from .tiles import tiles


def acceptance(log_forth: Tensor, log_back: Tensor) -> Tensor:
    """min(1, back / forth) of a proposed move from i to j, in balance for any target: the flow forth is pi_i k(j | i),
    and back pi_j k(i | j), each up to one factor; 0 where the move back is impossible.

    Source: Hastings, Monte Carlo sampling methods using Markov chains and their applications (Biometrika 1970).
    """
    return (log_back - log_forth).clamp(max=0.0).exp().masked_fill(log_back == NEG_INF, 0.0)


class Chain(Sampler):
    """n chains of each query's own, whose law tends to pi ∝ exp(alpha score / temperature): rows [B, n].

    A query's chains go on where its last batch left them, ``steps`` further; new ones, and those of a query without an
    id, start with ``burn_in`` steps. ``log_count`` is alpha score / temperature: it is true once the chains have mixed,
    up to one factor a query. So counts correct losses that keep the positive out of the sum, and no others.

    A peaked target mixes slowly (10 steps may be far from enough where 1000 are): take a mild one, of small
    alpha / temperature. ``kernel`` tells how fast: TV distance to the target falls with its powers.

    The state is one row (int32) for each query and chain.

    Raises ConfigError where n or steps is below 1, burn_in below 0, alpha not finite or temperature not positive.
    """

    density = "relative"
    per_query_law = True

    n: int = field(kw_only=False)
    steps: int = 10
    burn_in: int = 50
    alpha: float = 1.0
    temperature: float = 0.05

    chain_Qn: Tensor = field(init=False)
    """Item row of each query's chains; -1: not started."""

    def __post_init__(self) -> None:
        require_some(self, self.n)
        name = type(self).__name__
        for setting, found, least in (("steps", self.steps, 1), ("burn_in", self.burn_in, 0)):
            if found < least:
                raise ConfigError(f"{name}: {setting} is {found}, expected at least {least}: chains move to mix")
        if not math.isfinite(self.alpha):
            raise ConfigError(f"{name}: alpha is {self.alpha}, expected a number: 1 for the softmax, 0 for a flat law")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"{name}: temperature is {self.temperature}, expected a positive number, as the loss has")

    def setup(self, facts: Facts) -> None:
        chain_Qn = torch.full((len(facts.query_count_Q), self.n), -1, dtype=torch.int32)
        self.register_buffer("chain_Qn", chain_Qn)

    def carry(self, saved: Mapping[str, Tensor], changes: Changes) -> None:
        """Chains go on where they were; those of a query start anew where one of them was at an item that went."""
        super().carry(saved, changes)
        self.chain_Qn.copy_(changes.still(self.chain_Qn))

    def room(self, sizes: Sizes) -> Room:
        return Room(own=self.n, kept=4 * sizes.n_queries * self.n)

    @abstractmethod
    def start(self, batch: Batch, look: Look, rng: torch.Generator) -> Tensor:
        """[B, n] rows that chains may start from."""

    @abstractmethod
    def walk(
        self, row_Cn: Tensor, steps: int, query_C: Tensor, batch: Batch, look: Look, rng: torch.Generator
    ) -> Tensor:
        """[C, n] where the chains of the batch's queries ``query_C`` are after ``steps`` steps from ``row_Cn``."""

    @abstractmethod
    def kernel(self, log_target_M: Tensor, batch: Batch, look: Look) -> Tensor:
        """[M, M] float64 K_ij = P(one step leads from i to j) for a target known up to a factor. For small catalogues:
        to check the balance pi_i K_ij = pi_j K_ji, and to see how fast chains mix."""

    def is_closed(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        """Shape of ``row``: items where chains never come."""
        return torch.zeros_like(row, dtype=torch.bool)

    def log_target(self, query_CD: Tensor, row: Tensor, batch: Batch, look: Look) -> Tensor:
        """[C, N] or [C, K] alpha score / temperature; -inf where chains never come."""
        log_target = scores(query_CD, row, look).float() * (self.alpha / self.temperature)
        return log_target.masked_fill(self.is_closed(row, batch, look), NEG_INF)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        row_Bn = self._carried(batch.query_B)
        # A state from before the data changed may hold items that chains can't leave.
        is_new_B = ((row_Bn < 0) | self.is_closed(row_Bn.clamp(min=0), batch, look)).any(1)
        new_C = is_new_B.nonzero()[:, 0]
        if len(new_C):
            first_Cn = self.start(batch, look, rng)[new_C]
            row_Bn[new_C] = self.walk(first_Cn, self.burn_in, new_C, batch, look, rng)
        every_B = torch.arange(len(row_Bn), device=row_Bn.device)
        return (Block.of(self.walk(row_Bn, self.steps, every_B, batch, look, rng)),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        return self.log_target(look.query_BD, row, batch, look)

    def observe(self, blocks: tuple[Block, ...], encoded: Encoded, look: Look) -> Tensor | None:
        """Keep where the chains are. Of several lines of one query, the first."""
        query_B, first_B = encoded.batch.query_B, encoded.batch.first_lines()
        is_first_B = (query_B >= 0) & (first_B == torch.arange(len(first_B), device=first_B.device))
        for block in blocks:
            self.chain_Qn[query_B[is_first_B]] = block.row[is_first_B].int()
        return None

    def _carried(self, query_B: Tensor) -> Tensor:
        row_Bn = query_B.new_full((len(query_B), self.n), -1)
        with_id = (query_B >= 0).nonzero()[:, 0]
        row_Bn[with_id] = self.chain_Qn[query_B[with_id]].long()
        return row_Bn


class MetropolisHastings(Chain):
    """Chains that propose items by a fixed law q, whatever they hold, and accept by what target and law say.

        from i, propose j ~ q, accept with probability min(1, pi_j q_i / (pi_i q_j))

    ``of`` is q: a law with its exact density, drawn with replacement for each query, as many items at a time as its own
    n. An item that it never offers is never visited. All proposals are drawn before the first step and scored at once:
    n times ``steps`` item vectors a query. Chains mix within a few times max pi / q steps, so the closer q is to the
    target the better.

    Take it for negatives as hard as the softmax's at the cost of some random candidates, where the target is mild; a
    peaked one is better served by ``Gibbs``.

    Raises ConfigError where ``of`` is no such law.

    Source: Hastings, Monte Carlo sampling methods using Markov chains and their applications (Biometrika 1970), section
    2.5 for independent proposals.
    """

    of: Sampler = field(default_factory=lambda: Uniform(32, per_query=True))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_own_draws(self, self.of)

    def setup(self, facts: Facts) -> None:
        super().setup(facts)
        self.of.setup(facts)

    def room(self, sizes: Sizes) -> Room:
        return super().room(sizes) + Room(kept=self.of.room(sizes).kept)

    def start(self, batch: Batch, look: Look, rng: torch.Generator) -> Tensor:
        return proposals(self.of, self.n, batch, look, rng)

    def is_closed(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        return _never_offered(self.of, row, batch, look)

    def walk(
        self, row_Cn: Tensor, steps: int, query_C: Tensor, batch: Batch, look: Look, rng: torch.Generator
    ) -> Tensor:
        at_CL = torch.cat([row_Cn, proposals(self.of, self.n * steps, batch, look, rng)[query_C]], 1)
        log_target_CL = self.log_target(look.query_BD[query_C], at_CL, batch, look)
        log_q_CL = self.of.log_count(at_CL, batch, look)
        row: Tensor
        row, *proposed = at_CL.split(self.n, 1)
        log_target, *log_targets = log_target_CL.split(self.n, 1)
        log_q, *log_qs = log_q_CL.split(self.n, 1)
        for row_j, log_target_j, log_q_j in zip(proposed, log_targets, log_qs, strict=True):
            accepts = uniform(row.shape, rng, row.device) < acceptance(log_target + log_q_j, log_target_j + log_q)
            row = torch.where(accepts, row_j, row)
            log_target = torch.where(accepts, log_target_j, log_target)
            log_q = torch.where(accepts, log_q_j, log_q)
        return row

    def kernel(self, log_target_M: Tensor, batch: Batch, look: Look) -> Tensor:
        return _global_kernel(self.of, log_target_M, batch, look)


class Gibbs(Chain):
    """Chains that redraw one of an item's two coordinates at a time, by the exact law of the target given the other.

    The catalogue is laid out at random on a grid of about √M by √M cells: item i = (a, b). Given the column, the row is
    redrawn by the softmax over that column's cells, then the column given the row: acceptance is 1. Walks begin and end
    with a redraw of the column, so that a step is in balance (R C R, and R R = R for an exact redraw).

    A redraw costs √M scores a chain, where the softmax itself costs M a query; the whole catalogue goes through the
    item tower once a batch (twice where chains start). So it pays where towers are cheap and 2 n steps is well below
    √M. It goes further in a step than ``MetropolisHastings``, which on a peaked target rejects nearly all.

    Source: Geman and Geman, Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of images (IEEE
    TPAMI 1984).
    """

    steps: int = 1
    burn_in: int = 10

    grid_RC: Tensor = field(init=False)
    """Item row of each cell; -1: an empty cell, at the end of the last row."""
    cell_M: Tensor = field(init=False)
    """Cell of each item; -1 where it may not be drawn."""
    live: LiveRows = field(init=False)

    def setup(self, facts: Facts) -> None:
        super().setup(facts)
        self.live = LiveRows(facts)
        n_columns = math.isqrt(max(self.live.n - 1, 0)) + 1
        n_rows = -(-self.live.n // n_columns)
        order_L = self.live.rows(torch.device("cpu"))[
            torch.randperm(self.live.n, generator=torch.Generator().manual_seed(0))
        ]
        grid = torch.full((n_rows * n_columns,), -1)
        grid[: self.live.n] = order_L
        cell_M = torch.full((facts.n_items,), -1)
        cell_M[order_L] = torch.arange(self.live.n)
        # Any layout is right, so that of tomorrow's catalogue may be another.
        self.register_buffer("grid_RC", grid.view(n_rows, n_columns), persistent=False)
        self.register_buffer("cell_M", cell_M, persistent=False)

    def room(self, sizes: Sizes) -> Room:
        n_cells = sizes.n_items + math.isqrt(sizes.n_items) + 1
        return super().room(sizes) + Room(kept=8 * (n_cells + sizes.n_items)) + LiveRows.room(sizes)

    def start(self, batch: Batch, look: Look, rng: torch.Generator) -> Tensor:
        shape = (len(batch.query_B), self.n)
        return self.live.draw(shape, rng).to(self.cell_M.device)

    def is_closed(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        return self.live.gone(row)

    def walk(
        self, row_Cn: Tensor, steps: int, query_C: Tensor, batch: Batch, look: Look, rng: torch.Generator
    ) -> Tensor:
        query_CD = look.query_BD[query_C]
        table_MD = snapshot(query_CD.new_empty(len(self.cell_M), query_CD.shape[1]), look)
        walked = []
        for at in tiles(len(row_Cn), 2 * self.n * max(self.grid_RC.shape)):  # scores of slices are float64
            row, query = row_Cn[at], query_CD[at]
            row = self._redraw_column(row, query, table_MD, rng)
            for _ in range(steps):
                row = self._redraw_row(row, query, table_MD, rng)
                row = self._redraw_column(row, query, table_MD, rng)
            walked.append(row)
        return torch.cat(walked)

    def _redraw_column(self, row_Cn: Tensor, query_CD: Tensor, table_MD: Tensor, rng: torch.Generator) -> Tensor:
        return self._redraw(self.grid_RC[self.cell_M[row_Cn] // self.grid_RC.shape[1]], query_CD, table_MD, rng)

    def _redraw_row(self, row_Cn: Tensor, query_CD: Tensor, table_MD: Tensor, rng: torch.Generator) -> Tensor:
        return self._redraw(self.grid_RC.T[self.cell_M[row_Cn] % self.grid_RC.shape[1]], query_CD, table_MD, rng)

    def _redraw(self, cells_CnS: Tensor, query_CD: Tensor, table_MD: Tensor, rng: torch.Generator) -> Tensor:
        """[C, n] one of the items of each slice, by the target."""
        score_CnS = dots(query_CD, table_MD, cells_CnS.clamp(min=0).flatten(1)).view(cells_CnS.shape)
        log_target_CnS = (score_CnS.double() * (self.alpha / self.temperature)).masked_fill(cells_CnS < 0, NEG_INF)
        lot_Cn1 = uniform((*cells_CnS.shape[:2], 1), rng, cells_CnS.device)
        return cells_CnS.gather(2, by_softmax(log_target_CnS, lot_Cn1))[..., 0]

    def kernel(self, log_target_M: Tensor, batch: Batch, look: Look) -> Tensor:
        column, row = self.redraw_kernels(log_target_M)
        return column @ row @ column

    def redraw_kernels(self, log_target_M: Tensor) -> tuple[Tensor, Tensor]:
        """[M, M] each: a redraw of the column, and one of the row; each is in balance on its own."""
        n_columns = self.grid_RC.shape[1]
        row_M, column_M = self.cell_M // n_columns, self.cell_M % n_columns
        log_target_M = self.live.only(log_target_M)
        column, row = (
            log_target_M.double()
            .expand(len(at_M), -1)
            .masked_fill(at_M[:, None] != at_M, NEG_INF)
            .softmax(1)
            .nan_to_num()
            for at_M in (row_M, column_M)
        )
        return column, row


class MCNS(Chain):
    """Chains over p^alpha that propose half the time any item, and half the time a neighbour of the one they hold.

        any:         j ~ q,                   accept with min(1, pi_j q_i / (pi_i q_j))
        neighbour:   j ~ uniform over N(i),   accept with min(1, pi_j |N(i)| / (pi_i |N(j)|))

    The target is sub-linear in the model's own softmax (alpha 1/4): negatives that are correlated with the positives,
    which keeps the order that the model learns and lowers its risk. Items are neighbours where one is among the
    ``neighbours`` that random walks item, query, item reach most often from the other, both ways; an item without any
    stays where a neighbour is asked for. Each kernel is in balance, and so is a coin's choice among them.

    It differs from the authors' code in what broke the balance there: each kernel counts its own density (theirs fell
    back to q where there is no way back), and each chain has chances of its own (theirs shared one number by the
    batch). Chains are carried by query, not from query to query along a walk of the graph.

    The item tower sees n items a query each step. Memory for neighbours is up to 2 M ``neighbours`` rows (int32), and
    ``setup`` walks 4 M ``neighbours`` times. Take it for graph-like data, where neighbours lead to hard negatives
    quickly; with other data ``MetropolisHastings`` does the same for less.

    Raises ConfigError where ``of`` isn't a law with its exact density, drawn with replacement for each query, or
    neighbours is below 1.

    Source: Yang et al., Understanding negative sampling in graph representation learning (KDD 2020), section 3 and
    Algorithm 1.
    """

    alpha: float = 0.25
    neighbours: int = 100
    of: Sampler = field(default_factory=lambda: Popularity(32, per_query=True))

    offset_M: Tensor = field(init=False)
    near: Tensor = field(init=False)
    """Neighbours of item i: ``near[offset_M[i]:offset_M[i + 1]]``, rising."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_own_draws(self, self.of)
        if self.neighbours < 1:
            raise ConfigError(
                f"MCNS: neighbours is {self.neighbours}, expected at least 1; without any it is MetropolisHastings"
            )

    def setup(self, facts: Facts) -> None:
        super().setup(facts)
        self.of.setup(facts)
        found = two_hop_neighbours(facts.pairs, facts.n_items, self.neighbours)
        # Follow from the data, so they are not saved.
        self.register_buffer("offset_M", found.offset, persistent=False)
        self.register_buffer("near", found.value.int(), persistent=False)

    def room(self, sizes: Sizes) -> Room:
        near = 8 * (sizes.n_items + 1) + 8 * sizes.n_items * min(self.neighbours, sizes.n_items)
        return super().room(sizes) + Room(kept=self.of.room(sizes).kept + near)

    def start(self, batch: Batch, look: Look, rng: torch.Generator) -> Tensor:
        return proposals(self.of, self.n, batch, look, rng)

    def is_closed(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        return _never_offered(self.of, row, batch, look)

    def walk(
        self, row_Cn: Tensor, steps: int, query_C: Tensor, batch: Batch, look: Look, rng: torch.Generator
    ) -> Tensor:
        query_CD, row = look.query_BD[query_C], row_Cn
        anywhere = proposals(self.of, self.n * steps, batch, look, rng)[query_C].split(self.n, 1) if steps else ()
        log_target = self.log_target(query_CD, row, batch, look)
        for any_row in anywhere:
            is_near = uniform(row.shape, rng, row.device) < 0.5
            row_j = torch.where(is_near, self._neighbour(row, rng), any_row)
            log_target_j = self.log_target(query_CD, row_j, batch, look)
            log_q, log_q_j = (self.of.log_count(at, batch, look) for at in (row, row_j))
            log_forth = log_target + torch.where(is_near, -self._degree(row).log(), log_q_j)
            log_back = log_target_j + torch.where(is_near, -self._degree(row_j).log(), log_q)
            accepts = uniform(row.shape, rng, row.device) < acceptance(log_forth, log_back)
            row = torch.where(accepts, row_j, row)
            log_target = torch.where(accepts, log_target_j, log_target)
        return row

    def _degree(self, row: Tensor) -> Tensor:
        """Neighbours of each item; its own only one where it has none."""
        return (self.offset_M[row + 1] - self.offset_M[row]).clamp(min=1)

    def _neighbour(self, row: Tensor, rng: torch.Generator) -> Tensor:
        """Any of each item's neighbours; itself where it has none."""
        near = one_of(Ragged(offset=self.offset_M, value=self.near), row, rng)
        return torch.where(near < 0, row, near)

    def kernel(self, log_target_M: Tensor, batch: Batch, look: Look) -> Tensor:
        n_items = len(log_target_M)
        item = torch.arange(n_items, device=self.near.device)
        log_target_M = log_target_M.masked_fill(self.is_closed(item, batch, look), NEG_INF)
        is_near_MM = torch.zeros(n_items, n_items, dtype=torch.bool, device=self.near.device)
        is_near_MM[item.repeat_interleave(self.offset_M[1:] - self.offset_M[:-1]), self.near.long()] = True
        log_near_MM = (-self._degree(item).double().log())[:, None].expand(n_items, -1)
        near_MM = _kernel(log_near_MM.masked_fill(~is_near_MM, NEG_INF), log_target_M)
        return (_global_kernel(self.of, log_target_M, batch, look) + near_MM) / 2


def _kernel(log_proposal_MM: Tensor, log_target_M: Tensor) -> Tensor:
    """[M, M] transitions of proposals log k(j | i) at [i, j] that are accepted in balance."""
    log_forth_MM = log_target_M.double()[:, None] + log_proposal_MM
    moves_MM = log_proposal_MM.exp() * acceptance(log_forth_MM, log_forth_MM.T)
    moves_MM.fill_diagonal_(0.0)
    return moves_MM + (1 - moves_MM.sum(1)).diag()


def _global_kernel(of: Sampler, log_target_M: Tensor, batch: Batch, look: Look) -> Tensor:
    row_M = torch.arange(len(log_target_M), device=log_target_M.device)
    log_q_M = of.log_count(row_M, batch, look).double().log_softmax(0)
    return _kernel(log_q_M.expand(len(row_M), -1), log_target_M)


def _never_offered(of: Sampler, row: Tensor, batch: Batch, look: Look) -> Tensor:
    return of.log_count(row, batch, look) == NEG_INF


def require_own_draws(sampler: Sampler, of: Sampler) -> None:
    """ConfigError where ``of`` is no law that each query has independent draws of its own by."""
    if of.density != "exact" or not getattr(of, "per_query", False) or getattr(of, "unique", False):
        raise ConfigError(
            f"{type(sampler).__name__}: of is {of!r}, expected a law that proposes items to each query on its own, "
            "independently, and knows their density exactly, such as Uniform(32, per_query=True)"
        )


def proposals(of: Sampler, n: int, batch: Batch, look: Look, rng: torch.Generator) -> Tensor:
    """[B, n] independent draws."""
    drawn, wanted = [batch.item_P.new_zeros(len(batch.query_B), 0)], n
    while wanted > 0:
        (block,) = of.draw(batch, look, rng)
        drawn.append(block.row[:, :wanted])
        wanted -= block.row.shape[1]
    return torch.cat(drawn, 1)
