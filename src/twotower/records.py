"""The records of one training step: who knows these knows the program.

Shapes: ``B`` queries, ``P`` positive pairs (``P = B`` in a batch of pairs), ``N`` shared candidates, ``K`` candidates
of a query's own, ``M`` catalogue, ``D`` width. A *row* is an encoded number, an *id* the caller's raw value.

    Batch       encoded query features, positives, weights, what each query is known to like
    Block       candidates of one source: rows and the log of their expected count
    Candidates  the blocks of one draw
    Encoded     the vectors a loss compares
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

NEG_INF = float("-inf")


def running_sum(value: Tensor) -> Tensor:
    """[n + 1] sum of the values before each place, and of all: of lengths, the offsets of lists laid end to end."""
    return torch.cat([value.new_zeros(1), value.cumsum(0)])


def find(rising: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Where values of any shape are in a rising list, and whether they are there; any place where not."""
    if not len(rising):
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    at = torch.searchsorted(rising, wanted).clamp_(max=len(rising) - 1)
    return at, rising[at] == wanted


def spans(start: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets [n + 1] of spans laid end to end, and for each place the index it came from: start, start + 1, ..."""
    offset = running_sum(length)
    at = torch.repeat_interleave(start - offset[:-1], length)
    return offset, at.add_(torch.arange(len(at), device=start.device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ragged:
    """n lists end to end: list ``i`` is ``value[offset[i]:offset[i + 1]]``."""

    offset: Tensor
    """[n + 1] int64, starts at 0."""
    value: Tensor
    """Rows, int64."""
    weight: Tensor | None = None
    """One float32 a value; None means 1."""

    def __len__(self) -> int:
        return len(self.offset) - 1

    def lengths(self) -> Tensor:
        """[n] how many values each list has."""
        return self.offset[1:] - self.offset[:-1]

    def owner(self) -> Tensor:
        """[len(value)] which list each value belongs to."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.offset.device), self.lengths())

    def holds(self, row: Tensor) -> Tensor:
        """[n, K] whether each of a list's rows ``row`` [n, K] is in it, for lists that rise."""
        if not len(self.value) or not row.numel():
            return torch.zeros(row.shape, dtype=torch.bool, device=row.device)
        stride = int(torch.maximum(self.value.max(), row.max())) + 2
        key = self.owner() * stride + self.value  # rises: lists follow one another, and values rise inside a list
        want = torch.arange(len(self), device=row.device)[:, None] * stride + row
        return find(key, want)[1] & (row >= 0)

    def slice(self, start: int, stop: int) -> Ragged:
        """Lists ``start`` to ``stop``."""
        lo, hi = int(self.offset[start]), int(self.offset[stop])
        weight = None if self.weight is None else self.weight[lo:hi]
        return Ragged(offset=self.offset[start : stop + 1] - lo, value=self.value[lo:hi], weight=weight)

    def take(self, index: Tensor) -> Ragged:
        """The lists of ``index`` [n'], in that order, repeats allowed."""
        start = self.offset.index_select(0, index)
        offset, at = spans(start, self.offset.index_select(0, index + 1) - start)
        weight = None if self.weight is None else self.weight.index_select(0, at)
        return Ragged(offset=offset, value=self.value.index_select(0, at), weight=weight)

    def to(self, device: torch.device | str) -> Ragged:
        """The same lists on another device."""
        weight = None if self.weight is None else self.weight.to(device)
        return Ragged(offset=self.offset.to(device), value=self.value.to(device), weight=weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lives:
    """When each item of a catalogue is live: ``since_us <= t < until_us``, in microseconds since 1970 (UTC)."""

    since_us_M: Tensor
    until_us_M: Tensor
    _moved: dict[str, Lives] = field(default_factory=dict, repr=False, compare=False)

    def during(self, first_us: int, last_us: int) -> Tensor:
        """[M] whether an item is live at some moment from the first to the last."""
        return (self.since_us_M <= last_us) & (self.until_us_M > first_us)

    def to(self, device: torch.device | str) -> Lives:
        """The same on another device; moved once, as every batch asks for it."""
        if self.since_us_M.device == torch.device(device):
            return self
        if str(device) not in self._moved:
            moved = Lives(since_us_M=self.since_us_M.to(device), until_us_M=self.until_us_M.to(device))
            self._moved[str(device)] = moved
        return self._moved[str(device)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveAt:
    """Which items n queries may be offered: those that are live at some moment of each query's own period.

        item i is gone for query q    where    since_us_M[i] > last_us_n[q]  or  until_us_M[i] <= first_us_n[q]

    The period of an event is its moment: ``first_us_n`` and ``last_us_n`` are equal.
    """

    lives: Lives
    first_us_n: Tensor
    last_us_n: Tensor

    @staticmethod
    def throughout(lives: Lives, first_us: int, last_us: int, n: int) -> LiveAt:
        """n queries of one period."""
        first_us_n, last_us_n = (torch.tensor([us]).expand(n) for us in (first_us, last_us))
        return LiveAt(lives=lives, first_us_n=first_us_n, last_us_n=last_us_n)

    def gone(self, row: Tensor) -> Tensor:
        """[n, N] of rows [N], or [n, K] of each query's own: whether it is no candidate. A row below 0 is no item."""
        at = row.clamp(min=0)
        since, until = self.lives.since_us_M[at], self.lives.until_us_M[at]
        return ((since > self.last_us_n[:, None]) | (until <= self.first_us_n[:, None])) & (row >= 0)

    def ever_gone(self, row_N: Tensor) -> Tensor:
        """[N] whether rows are no candidates of some query; of one period for all it is of every query."""
        if not len(self.first_us_n):
            return torch.zeros_like(row_N, dtype=torch.bool)
        at_N = row_N.clamp(min=0)
        since_N, until_N = self.lives.since_us_M[at_N], self.lives.until_us_M[at_N]
        return ((since_N > self.last_us_n.min()) | (until_N <= self.first_us_n.max())) & (row_N >= 0)

    def slice(self, start: int, stop: int) -> LiveAt:
        """Queries ``start`` to ``stop``."""
        return replace(self, first_us_n=self.first_us_n[start:stop], last_us_n=self.last_us_n[start:stop])

    def take(self, index: Tensor) -> LiveAt:
        """The queries of ``index``, repeats allowed."""
        return replace(self, first_us_n=self.first_us_n[index], last_us_n=self.last_us_n[index])

    def to(self, device: torch.device | str) -> LiveAt:
        """The same on another device."""
        return LiveAt(
            lives=self.lives.to(device), first_us_n=self.first_us_n.to(device), last_us_n=self.last_us_n.to(device)
        )


Features = dict[str, Tensor | Ragged]
"""Encoded features of n queries or items: int64 [n] rows (-1: missing), float32 [n] or [n, d] numbers, ragged row
lists."""

Items = Callable[[Tensor], Tensor]
"""Distinct item rows [U] -> vectors [U, D]: the item tower over the features of those rows. By layers: [U, H, D]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One global batch. Pairs are sorted by the query they belong to."""

    query: Features
    """Encoded features of the B queries."""
    query_B: Tensor
    """Row of the query id, -1 where it has none."""
    item_P: Tensor
    """Item row of each positive."""
    of_P: Tensor
    """Which of the B queries each positive belongs to, rising. In a batch of pairs it is ``arange(B)``, or pairs of one
    query share its row where nothing about the query depends on the event."""
    weight_P: Tensor
    """Weight of each positive (reward times query weight), float32."""
    known: Ragged
    """[B] lists: items each query is known to like from training events up to now, its positives here included;
    rising and distinct inside a list."""
    live: LiveAt | None = None
    """[B] which items each query may be offered; None where all are, always."""

    def closed(self, row: Tensor, at: slice = slice(None)) -> Tensor:
        """[b, K] whether queries ``at`` of the batch are not to be offered their rows: known, or not live."""
        start, stop, _ = at.indices(len(self.query_B))
        is_known = self.known.slice(start, stop).holds(row)
        return is_known if self.live is None else is_known | self.live.slice(start, stop).gone(row)

    def positives(self) -> Ragged:
        """[B] lists of each query's positives in the batch, in its order."""
        return Ragged(offset=running_sum(self.of_P.bincount(minlength=len(self.query_B))), value=self.item_P)

    def first_lines(self) -> Tensor:
        """[B] the first line that has the same query as this one: itself where the query has no row."""
        line_B = torch.arange(len(self.query_B), device=self.query_B.device)
        of_B = torch.where(self.query_B >= 0, self.query_B, -1 - line_B).unique(return_inverse=True)[1]
        return torch.full_like(line_B, len(line_B)).scatter_reduce_(0, of_B, line_B, "amin")[of_B]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            query={name: column.to(device) for name, column in self.query.items()},
            query_B=self.query_B.to(device),
            item_P=self.item_P.to(device),
            of_P=self.of_P.to(device),
            weight_P=self.weight_P.to(device),
            known=self.known.to(device),
            live=None if self.live is None else self.live.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Vectors between two items, layer by layer: share_h * e_h(first) + (1 - share_h) * e_h(second_h), meaned over h.

    Of one layer (H = 1) e is the vector of the item; of several, the layers of a graph.
    """

    first_BK: Tensor
    """Item rows."""
    second_BKH: Tensor
    """Item rows; a layer may have another item than the next."""
    share_BKH: Tensor
    """0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Candidates of one source: ``[N]`` shared by the batch, or ``[B, K]`` one list a query."""

    row: Tensor
    """Item rows; -1 is no item of the catalogue (then ``vector`` is given or the place is empty)."""
    log_count: Tensor
    """log E[summed weight of the item among this query's candidates], shape of ``row`` ([B, N] too); nan: no density.
    """
    log_weight: Tensor
    """Shape of ``row``: 0 for once, log m for m times, -inf for an empty place."""
    source: int = 0
    """Which part of a mixture it came from."""
    of_batch: bool = False
    """True where the rows are the batch's own positives (each distinct one once)."""
    vector: Tensor | None = None
    """``row.shape + [D]``, only where vectors can't be looked up by row (a queue of stale ones)."""
    mix: Mix | None = None
    """Of a block [B, K] that is no items, its rows -1, but what lies between some."""

    @staticmethod
    def of(row: Tensor, *, of_batch: bool = False) -> Block:
        """Rows that are there once each; whoever draws for a whole sampler fills in the counts."""
        nothing = torch.zeros(row.shape, device=row.device)
        return Block(row=row, log_count=nothing + float("nan"), log_weight=nothing, of_batch=of_batch)

    @staticmethod
    def chosen(row: Tensor, log_weight: Tensor | None = None, *, mix: Mix | None = None) -> Block:
        """Rows whose empty places (-1, unless they are a mix) weigh nothing."""
        block = Block.of(row)
        if log_weight is None:
            log_weight = block.log_weight
        if mix is None:
            log_weight = log_weight.masked_fill(row < 0, NEG_INF)
        return replace(block, log_weight=log_weight, mix=mix)

    def with_count(self, log_count: Tensor) -> Block:
        """The same candidates with their expected counts."""
        return replace(self, log_count=log_count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """What one draw offers: the blocks, counted by the law of the whole sampler."""

    blocks: tuple[Block, ...]
    positive_log_count_P: Tensor
    """Log expected count of each positive as a candidate; nan: no density."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What a loss gets: vectors with gradient. Only ``scoring.encode`` makes it."""

    batch: Batch
    query_BD: Tensor
    table_TD: Tensor
    """Vectors of every distinct item of the batch: positives and own candidates point into it."""
    row_T: Tensor
    """Their item rows."""
    positive_slot_P: Tensor
    column_ND: Tensor
    """Vectors of the shared candidates, equal rows merged."""
    shared: Block
    """[N] rows, rising; ``log_weight`` of a merged row is the log of its summed weight."""
    slot_BK: Tensor
    own: Block
    """[B, K]"""
    positive_log_count_P: Tensor
    total_weight: Tensor
    """Weight of the global batch, a scalar."""

    @property
    def positives_are_columns(self) -> bool:
        """Whether each positive of the batch is among the shared columns: a sampler offered the batch itself."""
        return self.shared.of_batch
