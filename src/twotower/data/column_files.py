"""Columns as raw little-endian files, written by appending and read as memory maps."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import Column, RaggedArray

Tree = dict[str, Any]
"""Plain JSON."""


def open_column(folder: Path, leaf: Tree) -> Column:
    """Map the column that a manifest describes.

    Raises:
        ValueError, OSError, KeyError: the description does not fit the files.
    """
    if "file" in leaf:
        return open_array(folder, leaf)
    parts = {name: open_array(folder, part) for name, part in leaf.items()}
    column = RaggedArray(offset=parts["offset"], value=parts["value"], weight=parts.get("weight"))
    if column.offset[-1] != len(column.value):
        raise ValueError(f"{leaf['offset']['file']} does not fit {leaf['value']['file']}")
    return column


def open_array(folder: Path, leaf: Tree) -> NDArray[Any]:
    """Map the array that a manifest describes."""
    dtype, shape = np.dtype(leaf["dtype"]), tuple(leaf["shape"])
    if 0 in shape:  # an empty file can't be mapped
        return np.zeros(shape, dtype)
    return np.memmap(folder / leaf["file"], dtype, mode="r", shape=shape)


class ArrayFile:
    """One array, written by appending."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dtype: np.dtype[Any] | None = None
        self.n = 0
        self._row_shape: tuple[int, ...] = ()
        path.touch(exist_ok=False)

    def append(self, array: NDArray[Any]) -> None:
        """Add rows, all of one type and width."""
        little = array.dtype.newbyteorder("<")
        if self.dtype is None:
            self.dtype, self._row_shape = little, array.shape[1:]
        if little != self.dtype or array.shape[1:] != self._row_shape:
            raise ValueError(f"{self.path.name}: {little} {array.shape[1:]} after {self.dtype} {self._row_shape}")
        with open(self.path, "ab") as file:  # opened anew for each chunk: a wide schema has more columns than handles
            np.ascontiguousarray(array, little).tofile(file)
        self.n += len(array)

    def close(self) -> Tree:
        """Put everything on disk; returns what the manifest says of it."""
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        dtype = np.dtype("<i4") if self.dtype is None else self.dtype
        return {"file": self.path.name, "dtype": dtype.str, "shape": [self.n, *self._row_shape]}


def write_array(path: Path, array: NDArray[Any]) -> Tree:
    """Write one array whole; returns what the manifest says of it."""
    file = ArrayFile(path)
    file.append(array)
    return file.close()


class ColumnFile:
    """One column, written by appending: an array, or the offsets, values and weights of lists."""

    def __init__(self, stem: Path) -> None:
        self._stem = stem
        self._parts: dict[str, ArrayFile] = {}
        self._n_values = 0

    def append(self, column: Column) -> None:
        """Add rows."""
        if not isinstance(column, RaggedArray):
            self._append("", column)
            return
        if "offset" not in self._parts:
            self._append("offset", np.zeros(1, np.int64))
        self._append("offset", np.asarray(column.offset[1:], np.int64) + self._n_values)
        self._append("value", column.value)
        if column.weight is not None:
            self._append("weight", column.weight)
        self._n_values += len(column.value)

    def _append(self, part: str, array: NDArray[Any]) -> None:
        if part not in self._parts:
            name = f"{self._stem.name}.{part}.bin" if part else f"{self._stem.name}.bin"
            self._parts[part] = ArrayFile(self._stem.with_name(name))
        self._parts[part].append(array)

    def close(self) -> Tree:
        """Put everything on disk; returns what the manifest says of it."""
        leaves = {part: file.close() for part, file in self._parts.items()}
        return leaves.get("", leaves)


class ColumnsWriter:
    """Named columns of the same rows, written by appending."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder, self._prefix = folder, prefix
        self._files: dict[str, ColumnFile] = {}

    def append(self, columns: Mapping[str, Column]) -> None:
        """Add the same number of rows to every column."""
        for name, column in columns.items():
            if name not in self._files:  # numbered: a feature's name may be no file name
                plain = re.sub(r"[^A-Za-z0-9_]", "_", name)[:40]
                self._files[name] = ColumnFile(self._folder / f"{self._prefix}-{len(self._files)}-{plain}")
            self._files[name].append(column)

    def close(self) -> Tree:
        """Put everything on disk; returns what the manifest says of it, by column."""
        return {name: file.close() for name, file in self._files.items()}

    def close_and_open(self) -> dict[str, Column]:
        """The columns as they are on disk now, for columns that are only passing through."""
        return {name: open_column(self._folder, leaf) for name, leaf in self.close().items()}
