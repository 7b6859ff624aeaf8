"""Embedding tables: only the rows a batch looks up take part in autograd, so a table never has a dense gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ConfigError
from .part import carry_rows
from .records import Ragged


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """How a table starts and how fast it learns."""

    init: Literal["normal", "zeros"] = "normal"
    deviation: float | None = None
    """Standard deviation of a normal start; 1 / sqrt(dim) without it."""
    lr_scale: float = 1.0
    """Multiplies the learning rate of tables."""

    def __post_init__(self) -> None:
        if not self.lr_scale >= 0:
            raise ConfigError(f"towers.tables: lr_scale is {self.lr_scale}, expected 0 or more")
        if self.deviation is not None and not self.deviation > 0:
            raise ConfigError(f"towers.tables: deviation is {self.deviation}, expected a positive number")


def where_present(row: Tensor, vectors: Callable[[Tensor], Tensor], like_RD: Tensor) -> Tensor:
    """[n] rows -> their vectors [n, D], of the width and type of ``like_RD``; zeros where the row is -1."""
    present = row >= 0
    if bool(present.all()):
        return vectors(row)
    at = present.nonzero()[:, 0]
    return like_RD.new_zeros(len(row), like_RD.shape[1]).index_copy(0, at, vectors(row.index_select(0, at)))


_WORTH_MARKING = 16
"""A table of up to so many times the rows looked up is marked row by row; sorting is quicker for larger ones."""


def distinct_rows(row: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """The distinct of some rows of a table, rising, and where each went: ``torch.unique``, without a sort where marking
    all rows of the table is cheaper."""
    if n_rows > _WORTH_MARKING * len(row):
        distinct, at = row.unique(return_inverse=True)
        return distinct, at
    met_R = torch.zeros(n_rows, dtype=torch.bool, device=row.device)
    met_R[row] = True
    distinct = met_R.nonzero()[:, 0]
    place_R = torch.empty(n_rows, dtype=torch.int64, device=row.device)
    place_R[distinct] = torch.arange(len(distinct), device=row.device)
    return distinct, place_R.index_select(0, row)


class Table(nn.Module):
    """``rows x dim`` vectors. A look-up while training is a leaf whose gradient an optimiser takes from ``touched``."""

    weight: Tensor
    met_R: Tensor
    """[rows] whether a training step ever had a gradient for the row, or it was given a vector to start from; kept only
    where rows can be cold."""

    def __init__(
        self, rows: int, dim: int, settings: TableSettings, *, of: Literal["values", "items", "queries"] | None = None
    ) -> None:
        """``of``: what a row is. One of a vocabulary's values that training never met says nothing (see ``settle``); a
        row of hashed text (None) tells its word from others even so."""
        super().__init__()
        self.settings, self.of = settings, of
        self.has_cold_rows = of == "values" and settings.init == "normal"
        self.deviation = dim**-0.5 if settings.deviation is None else settings.deviation
        weight = torch.zeros(rows, dim)
        if settings.init == "normal":
            weight.normal_(std=self.deviation)
        self.register_buffer("weight", weight)
        self.register_buffer("met_R", torch.zeros(rows if self.has_cold_rows else 0, dtype=torch.bool))
        self.touched: list[tuple[Tensor, Tensor]] = []
        """(distinct rows [U], their leaf [U, D]) of every look-up since the optimiser's last step."""

    def look_up(self, row: Tensor) -> Tensor:
        """[n] rows -> [n, D]; zeros where the row is -1, which touches no row of the table."""
        return where_present(row, self._vectors, self.weight)

    def _vectors(self, row: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return self.weight.index_select(0, row)
        leaf_UD, at = self._leaf(row)
        return leaf_UD if at is None else F.embedding(at, leaf_UD)

    def whole(self) -> Tensor:
        """[rows, D] every vector; while training a leaf, as of a look-up of all rows."""
        if not (self.training and torch.is_grad_enabled()):
            return self.weight
        leaf_RD, _ = self._leaf(torch.arange(len(self.weight), device=self.weight.device))
        return leaf_RD

    def awaits(self, leaf: Tensor) -> bool:
        """Whether ``gradient`` has yet to look at a leaf."""
        return any(leaf is known for _, known in self.touched)

    @torch.no_grad()
    def start_from(self, row: Tensor, vector_nD: Tensor) -> None:
        """Rows start at these vectors, as if training had met them; columns beyond theirs keep their start."""
        self.weight[row, : vector_nD.shape[1]] = vector_nD.to(self.weight)
        if self.has_cold_rows:
            self.met_R[row] = True

    def bag(self, rows: Ragged) -> Tensor:
        """[n] lists of rows -> [n, D], their weighted sums; zeros for an empty list."""
        weight, at = self.weight, rows.value
        if self.training and torch.is_grad_enabled():
            weight, where = self._leaf(rows.value)
            at = torch.arange(len(weight), device=weight.device) if where is None else where
        if not len(at):
            return self.weight.new_zeros(len(rows), self.weight.shape[1])
        return F.embedding_bag(at, weight, rows.offset[:-1], mode="sum", per_sample_weights=rows.weight)

    def _leaf(self, row: Tensor) -> tuple[Tensor, Tensor | None]:
        """The distinct rows as a leaf, and where each row went; None where they were distinct and rising already."""
        if len(row) < 2 or bool((row[1:] > row[:-1]).all()):
            distinct, at = row, None
        else:
            distinct, at = distinct_rows(row, len(self.weight))
        leaf = self.weight.index_select(0, distinct).requires_grad_()
        self.touched.append((distinct, leaf))
        return leaf, at

    def gradient(self) -> tuple[Tensor, Tensor] | None:
        """(distinct rows [U], summed gradient [U, D]) of all look-ups since the last call; None without any."""
        found = [(rows, leaf.grad) for rows, leaf in self.touched if leaf.grad is not None]
        self.touched.clear()
        if not found:
            return None
        rows, total = found[0] if len(found) == 1 else self._summed(found)
        if self.has_cold_rows and not bool(self.met_R[rows].all()):
            self.met_R[rows[total.abs().amax(1) > 0]] = True  # of numbers ``any`` is ten times slower
        return rows, total

    def _summed(self, found: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        rows, at = distinct_rows(torch.cat([rows for rows, _ in found]), len(self.weight))
        total = torch.zeros(len(rows), self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device)
        total.index_add_(0, at, torch.cat([gradient for _, gradient in found]))
        return rows, total

    @torch.no_grad()
    def settle(self) -> tuple[Tensor, Tensor] | None:
        """Set the rows that training never met to the mean of those it met; returns them as they were.

        A random vector would rank the catalogue at random. The mean of all queries' vectors ranks it by the mean of
        their scores, which is what to show somebody unknown. A table that starts at zero stays as it is: there a row
        is a difference to what other features say.
        """
        cold = (~self.met_R).nonzero()[:, 0]
        if len(cold) in (0, len(self.weight)):
            return None
        before = self.weight.index_select(0, cold)
        self.weight[cold] = self._mean_met()
        return cold, before

    def _mean_met(self) -> Tensor:
        """[D] of the rows that training met, of which there are some."""
        return self.met_R.to(self.weight.dtype) @ self.weight / int(self.met_R.sum())

    @torch.no_grad()
    def carry(self, saved: Mapping[str, Tensor], changed_R: Tensor, start_R: Tensor | None = None) -> None:
        """Take over saved rows but those that changed, which start anew: nothing of what they were is left.

        A new value starts at what it was served with until now: the vector of its bucket ``start_R`` (-1 for none)
        where training met that (and then counts as met, so that ``settle`` leaves it); else the mean of the rows that
        training met, or zeros where the table starts at zero. Rows that are no values keep their start.
        """
        carry_rows(self.weight, saved["weight"], changed_R)
        if self.has_cold_rows:
            carry_rows(self.met_R, saved["met_R"], changed_R)
        if self.of != "values":
            return
        changed_R = changed_R.to(self.weight.device)
        row_C = changed_R.nonzero()[:, 0]
        if self.has_cold_rows:
            self.met_R[row_C] = False
            if bool(self.met_R.any()):
                self.weight[row_C] = self._mean_met()
        else:
            self.weight[row_C] = 0.0
        if start_R is None:
            return
        bucket_C = start_R.to(row_C.device)[row_C]
        says_R = self.met_R if self.has_cold_rows else ~changed_R
        says_C = (bucket_C >= 0) & says_R[bucket_C.clamp(min=0)]
        self.start_from(row_C[says_C], self.weight[bucket_C[says_C]])

    @contextmanager
    def settled(self) -> Iterator[None]:
        """``settle`` for as long as the block lasts."""
        changed = self.settle()
        try:
            yield
        finally:
            if changed is not None:
                self.weight[changed[0]] = changed[1]
