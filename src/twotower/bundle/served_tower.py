"""A tower of a bundle at work: encoded columns -> vectors, through ONNX Runtime. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.columns import Column, RaggedArray, cut
from ..errors import ArtifactError, ConfigError

_CHUNK = 4096
"""Rows encoded at a time at most."""
_PLACES = 1 << 16
"""Places of lists, filled up to the longest, at a time at most, unless one row has more."""


class ServedTower:
    """The query or the item tower of a bundle. Its tables stay on disk but for the pages that are looked up."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError where ONNX Runtime is not installed, ArtifactError where it can't read the file."""
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ConfigError(
                "bundle: its towers run in ONNX Runtime, which is not installed: pip install 'twotower[serve]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # a server's threads are its requests
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no base of their own
            raise ArtifactError(f"{path}: ONNX Runtime can't read it ({error}): export the model again") from error
        self.inputs = {one.name: one.type for one in self._session.get_inputs()}
        (output,) = self._session.get_outputs()
        self._output, self.width = output.name, int(output.shape[1])
        # Of a small tower's time a fifth goes to the options that each run makes unless it is given some, and a fifth
        # to a look at the names of the inputs, which the session that is wrapped does again.
        self._run_options = onnxruntime.RunOptions()
        self._run_session = getattr(self._session, "_sess", self._session).run

    def __call__(self, columns: Mapping[str, Column], n: int) -> NDArray[np.float32]:
        """[n, D] vectors of n rows, from their encoded columns by name; columns it does not read are left."""
        longest = max([1, *(int(c.lengths().max(initial=1)) for c in columns.values() if isinstance(c, RaggedArray))])
        size = max(1, min(_CHUNK, _PLACES // longest))
        parts = []
        for start in range(0, n, size):
            stop = min(start + size, n)
            parts.append(self._run({name: cut(column, start, stop) for name, column in columns.items()}))
        return np.concatenate(parts) if parts else np.zeros((0, self.width), np.float32)

    def _run(self, columns: Mapping[str, Column]) -> NDArray[np.float32]:
        return self.run(self.inputs_of(columns))

    def inputs_of(self, columns: Mapping[str, Column]) -> dict[str, NDArray[Any]]:
        """Encoded columns as the graph takes them, by input; without those it does not read."""
        given: dict[str, NDArray[Any]] = {}
        for name, column in columns.items():
            if isinstance(column, RaggedArray):
                given |= zip(list_inputs(name), _filled_up(column), strict=True)
            else:
                kind = np.float32 if np.issubdtype(column.dtype, np.floating) else np.int64
                given[name] = np.ascontiguousarray(column, kind)
        return {name: array for name, array in given.items() if name in self.inputs}

    def run(self, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """[n, D] vectors of n rows given as ``inputs_of`` gives them; all of the inputs have to be there."""
        (vector_nD,) = self._run_session([self._output], inputs, self._run_options)
        found: NDArray[np.float32] = vector_nD
        return found


def list_inputs(name: str) -> tuple[str, str]:
    """The inputs of a graph for the rows and the weights of a column of lists."""
    return f"{name}.row", f"{name}.weight"


def _filled_up(lists: RaggedArray) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """[n, L] rows and weights, L the longest list or 1; -1 and 0 where a list has ended."""
    length = lists.lengths()
    shape = (len(lists), max(1, int(length.max(initial=1))))
    row_nL, weight_nL = np.full(shape, -1, np.int64), np.zeros(shape, np.float32)
    there_nL = np.arange(shape[1]) < length[:, None]
    row_nL[there_nL] = lists.value
    weight_nL[there_nL] = 1.0 if lists.weight is None else lists.weight
    return row_nL, weight_nL
