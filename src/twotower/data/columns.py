"""Encoded columns as they lie on disk, and the one bridge from there to tensors.

A column of n rows is a numpy array (often a memory map) or, where every row holds a list, a ``RaggedArray``. Torch is
imported where tensors are asked for: what serves a bundle encodes without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from ..records import Features, Ragged


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedArray:
    """n lists end to end: list ``i`` is ``value[offset[i]:offset[i + 1]]``."""

    offset: NDArray[np.int64]
    """[n + 1], starts at 0."""
    value: NDArray[Any]
    """Rows, any integer type."""
    weight: NDArray[np.float32] | None = None
    """One a value; None means 1."""

    @staticmethod
    def of_lengths(
        length: NDArray[np.int64], value: NDArray[Any], weight: NDArray[np.float32] | None = None
    ) -> RaggedArray:
        """Lists of these lengths [n], one after the other."""
        offset = np.zeros(len(length) + 1, np.int64)
        np.cumsum(length, out=offset[1:])
        return RaggedArray(offset=offset, value=value, weight=weight)

    def __len__(self) -> int:
        return len(self.offset) - 1

    def lengths(self) -> NDArray[np.int64]:
        """[n] how many values each list has."""
        return np.diff(self.offset)

    def owner(self) -> NDArray[np.int64]:
        """[len(value)] which list each value belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths())

    def take(self, index: NDArray[np.int64]) -> RaggedArray:
        """The lists of ``index`` [n'], in that order, repeats allowed."""
        length = self.offset[index + 1] - self.offset[index]
        end = np.cumsum(length)
        at = np.arange(end[-1] if len(end) else 0) + np.repeat(self.offset[index] - (end - length), length)
        return RaggedArray.of_lengths(length, self.value[at], None if self.weight is None else self.weight[at])


Column = np.ndarray | RaggedArray
"""Rows [n] (integers, -1: missing), numbers [n] or [n, d] (floats), or lists of rows."""


def taken(column: Column, row: NDArray[np.int64]) -> Column:
    """The rows of a column, in that order."""
    return column.take(row) if isinstance(column, RaggedArray) else np.asarray(column[row])


def cut(column: Column, start: int, stop: int) -> Column:
    """The rows ``start`` to ``stop`` of a column, where they lie."""
    if not isinstance(column, RaggedArray):
        return column[start:stop]
    offset = column.offset[start : stop + 1]
    inside = slice(int(offset[0]), int(offset[-1]))
    weight = None if column.weight is None else column.weight[inside]
    return RaggedArray(offset=offset - offset[0], value=column.value[inside], weight=weight)


def put_together(first: Column, second: Column) -> Column:
    """The rows of one column, then those of another of its kind."""
    if isinstance(first, RaggedArray) and isinstance(second, RaggedArray):
        both = None if first.weight is None or second.weight is None else (first.weight, second.weight)
        return RaggedArray(
            offset=np.concatenate([first.offset, second.offset[1:] + first.offset[-1]]),
            value=np.concatenate([first.value, second.value]),
            weight=None if both is None else np.concatenate(both),
        )
    assert not isinstance(first, RaggedArray)
    assert not isinstance(second, RaggedArray)
    return np.concatenate([first, second])


class Columns(Mapping[str, Column]):
    """Named columns of the same n rows.

    The arrays are never copied: ``take`` gathers from them, so memory maps stay on disk but for the pages it touches.
    """

    def __init__(self, columns: Mapping[str, Column], n: int) -> None:
        wrong = {name: len(column) for name, column in columns.items() if len(column) != n}
        if wrong:
            raise ValueError(f"columns of {n} rows were expected, found {wrong}")
        self.n = n
        self._columns = dict(columns)

    @cached_property
    def _tensors(self) -> dict[str, Tensor | Ragged]:
        return {name: _as_tensors(column) for name, column in self._columns.items()}

    def __getitem__(self, name: str) -> Column:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def take(self, row: Tensor) -> Features:
        """The features of rows ``row`` [m] (int64, 0 to n-1, repeats allowed), in that order: integers as int64,
        numbers as float32, lists as ``Ragged``."""
        return {name: _take(tensors, row) for name, tensors in self._tensors.items()}


def _as_tensors(column: Column) -> Tensor | Ragged:
    """Views of the arrays' memory, in the types they are stored in."""
    from ..records import Ragged

    if not isinstance(column, RaggedArray):
        return _view(column)
    weight = None if column.weight is None else _view(column.weight)
    return Ragged(offset=_view(column.offset), value=_view(column.value), weight=weight)


def _view(array: np.ndarray) -> Tensor:
    import torch

    with warnings.catch_warnings():  # a read-only map is fine: nobody writes through these views
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _take(tensors: Tensor | Ragged, row: Tensor) -> Tensor | Ragged:
    from ..records import Ragged

    if not isinstance(tensors, Ragged):
        return _widen(tensors.index_select(0, row))
    lists = tensors.take(row)
    weight = None if lists.weight is None else _widen(lists.weight)
    return Ragged(offset=lists.offset, value=_widen(lists.value), weight=weight)


def _widen(values: Tensor) -> Tensor:
    """The type features have, whatever narrower type the disk holds."""
    import torch

    return values.to(torch.float32 if values.is_floating_point() else torch.int64)
