"""Batches larger than memory: a tower keeps a graph of a few rows at a time, and the gradient stays exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..records import Features, Ragged

EncodeRows = Callable[[int, int], Tensor]
"""``start``, ``stop`` -> vectors [stop - start, D] of those rows."""


class GradCache:
    """Encodes twice, ``chunk`` rows at a time: without a graph for the loss, then with one for the gradient.

        v_c = f(x_c) without graph for every chunk c;   g = d loss(v) / d v;   d loss = sum_c <g_c, d f(x_c)>

    Each chunk is back-propagated before the next is encoded, so a tower's activations are those of ``chunk`` rows; all
    vectors, and the loss over them, are held as in a direct step. Both passes start a chunk from the same state of the
    random generators: dropout hides the same units. A chunk as large as the batch is the direct step. What must not be
    in a tower is a layer that looks from row to row, such as batch normalisation: it would see chunks.

    Source: Gao et al., Scaling deep contrastive learning batch size under memory limited setup (RepL4NLP 2021), arXiv
    2101.06983, section 3.
    """

    def __init__(self, chunk: int, device: torch.device) -> None:
        self.chunk, self.device = chunk, device
        self._encoded: list[_Encoded] = []

    def encode(self, n: int, encode: EncodeRows) -> Tensor:
        """[n, D] vectors of n rows as a leaf, whose gradient ``backward`` carries on."""
        states, parts = [], []
        for start, stop in self._chunks(n):
            states.append(_random_state(self.device))
            with torch.no_grad():
                parts.append(encode(start, stop))
        leaf = torch.cat(parts).requires_grad_()
        self._encoded.append(_Encoded(leaf=leaf, encode=encode, states=states))
        return leaf

    def backward(self) -> None:
        """Add to the gradients of all that was encoded with, once the loss has given the leaves theirs."""
        for part in self._encoded:
            if part.leaf.grad is None:
                continue
            for (start, stop), state in zip(self._chunks(len(part.leaf)), part.states, strict=True):
                with _replayed(state, self.device):
                    vectors = part.encode(start, stop)
                if vectors.requires_grad:
                    vectors.backward(part.leaf.grad[start:stop])
        self._encoded.clear()

    def _chunks(self, n: int) -> list[tuple[int, int]]:
        return [(start, min(start + self.chunk, n)) for start in range(0, n, self.chunk)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Encoded:
    """What one call of ``encode`` leaves for the second pass."""

    leaf: Tensor
    encode: EncodeRows
    states: list[list[Tensor]]
    """Of the random generators, at the start of each chunk."""


def rows_of(features: Features, start: int, stop: int) -> Features:
    """Features of rows ``start`` to ``stop``."""
    return {
        name: column.slice(start, stop) if isinstance(column, Ragged) else column[start:stop]
        for name, column in features.items()
    }


def _random_state(device: torch.device) -> list[Tensor]:
    """Of the generators that layers draw from: the CPU's, and the device's."""
    state = [torch.get_rng_state()]
    return state if device.type == "cpu" else [*state, torch.cuda.get_rng_state(device)]


@contextmanager
def _replayed(state: list[Tensor], device: torch.device) -> Iterator[None]:
    """The generators as they were then, and afterwards as they are now."""
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.set_rng_state(state[0])
        if device.type != "cpu":
            torch.cuda.set_rng_state(state[1], device)
        yield
