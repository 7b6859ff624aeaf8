"""Which float32 product to use: the fast paths differ from machine to machine, so they are measured, not assumed.

On a CPU without bfloat16 units oneDNN's float32 product can be twice as fast as the default at the same error; on one
with them the same switch rounds to bfloat16. So the switch is taken only where its error stays that of float32.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
"""oneDNN keeps compiled code and its memory for each shape it met, 1,024 of them unless told: with batches that differ
in columns that is some GiB. Read once, at a process's first product."""

MAX_ERROR = 1e-6
"""Relative error of a float32 product of width 64 stays well below this; one rounded to bfloat16 is near 3e-3."""


@dataclass(frozen=True, kw_only=True)
class Matmul:
    """The chosen setting of ``torch.set_float32_matmul_precision`` and what the probe saw."""

    precision: str
    seconds: dict[str, float]
    error: dict[str, float]

    def is_sound(self, precision: str) -> bool:
        """Whether a setting's error is that of float32 on this machine."""
        return precision == "highest" or self.error.get(precision, math.inf) <= MAX_ERROR


def probe(rows: int = 128, columns: int = 4096, width: int = 64, repeats: int = 5) -> Matmul:
    """Time and relative error of each setting on a tile-shaped product; the fastest within ``MAX_ERROR``."""
    rng = torch.Generator().manual_seed(0)
    left, right = torch.randn(rows, width, generator=rng), torch.randn(columns, width, generator=rng)
    exact = left.double() @ right.double().T
    before = torch.get_float32_matmul_precision()
    seconds, error = {}, {}
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            result = left @ right.T
            error[precision] = float((result.double() - exact).norm() / exact.norm())
            seconds[precision] = min(_time(left, right) for _ in range(repeats))
    finally:
        torch.set_float32_matmul_precision(before)
    sound = ["highest", *(precision for precision in seconds if error[precision] <= MAX_ERROR)]
    # a tie goes to the default: only a clear gain is worth leaving it
    best = min(sound, key=lambda precision: seconds[precision] * (1.0 if precision == "highest" else 1.1))
    return Matmul(precision=best, seconds=seconds, error=error)


def _time(left: Tensor, right: Tensor) -> float:
    start = time.perf_counter()
    for _ in range(10):
        torch.mm(left, right.T)
    return (time.perf_counter() - start) / 10


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Use a setting of ``torch.set_float32_matmul_precision`` inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
