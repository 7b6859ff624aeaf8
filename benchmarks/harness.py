"""What the benchmarks share: tables for people, one line of JSON for machines, processes and memory to measure in.

Memory is measured through ``/proc`` and the C library of Linux.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from twotower.cli import keep_freed_memory


def report(
    benchmark: str,
    metrics: Mapping[str, object],
    *,
    seconds: float,
    seed: int,
    settings: Mapping[str, object],
) -> None:
    """Print the line of JSON that ends every benchmark."""
    line = {
        "benchmark": benchmark,
        "metrics": _rounded(metrics),
        "seconds": round(seconds, 1),
        "seed": seed,
        "settings": dict(settings),
        "machine": machine(),
    }
    print(json.dumps(line), flush=True)


def _rounded(value: object) -> object:
    """Six digits, however deep."""
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def machine() -> dict[str, object]:
    """What the figures were measured on. A load above 0 at the start means that the machine was not idle."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def _cpu_model() -> str:
    """The model's name and its family, model and stepping: under a hypervisor the name alone may say nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = said.get("model name", platform.machine())
    numbers = "/".join(said.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return f"{name} ({numbers})"


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table: the first column to the left, the others to the right; floats with four digits."""
    lines = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    print(f"\n{title}")
    for line in lines:
        others = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  " + "  ".join([line[0].ljust(widths[0]), *others]), flush=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


# ---------------------------------------------------------------- memory


def peak_extra_bytes(action: Callable[[], object]) -> int:
    """By how many bytes the resident memory of this process rose at most while ``action`` ran.

    What the allocator still holds of freed memory is given back first, so that reusing it counts as well.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
    before = resident_high_water()
    action()
    return resident_high_water() - before


def resident_high_water() -> int:
    """Most memory this process held, in bytes; ``ru_maxrss`` also knows that of the process that made it."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM: memory can only be measured on Linux")


# ---------------------------------------------------------------- processes


class Apart:
    """An object in a process of its own: its memory, allocator and threads are nobody else's.

    The constructor returns at once; the first ``call`` waits until the object is made.
    """

    def __init__(self, make: Callable[..., object], *args: object, warm: bool = False) -> None:
        """``make(*args)`` makes the object there, after ``keep_freed_memory`` where ``warm``."""
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, make, args, warm), daemon=True)
        self._process.start()
        there.close()

    def call(self, method: str, *args: object) -> Any:
        """What ``method`` returns there. Raises RuntimeError where it fails; the traceback is printed there."""
        try:
            self._here.send((method, args))
            return self._here.recv()
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError(f"the process that was asked for {method} has died") from error

    def close(self) -> None:
        """End the process."""
        self._here.close()
        self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(connection: Connection, make: Callable[..., object], args: tuple[object, ...], warm: bool) -> None:
    if warm and not keep_freed_memory():
        raise OSError("mallopt refused: a warm allocator needs glibc")
    served = make(*args)
    while True:
        try:
            method, its_args = connection.recv()
        except EOFError:
            return
        connection.send(getattr(served, method)(*its_args))
