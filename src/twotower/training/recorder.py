"""What a run says while it trains: a progress bar for people, JSON lines for machines, TensorBoard where asked."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import ArtifactError, ConfigError
from .health import Watch
from .step import StepReport

METRICS = "metrics.jsonl"
MOSTLY = 0.5
"""Share of positives without a candidate from which that is said."""
AFTER_STEPS = 100
"""Before it some samplers are warming up; at the end of a shorter stretch it is said all the same."""
LOG_EVERY_S = 1.0
"""Steps are averaged over this many seconds before they are written."""


class Recorder:
    """Collects step reports and validations; a context manager that closes what it opened.

    ``keep`` is how many bytes of a ``metrics.jsonl`` that is there still hold, as ``state`` told; without it all do.
    TensorBoard may be told the same again.
    """

    def __init__(
        self, folder: Path | None, *, tensorboard: bool = False, quiet: bool = False, keep: int | None = None
    ) -> None:
        self.console = Console(quiet=quiet, highlight=False, markup=False, soft_wrap=True)
        self.board: Any = _board(folder) if tensorboard and folder is not None else None
        self.file = None if folder is None else (folder / METRICS).open("ab", buffering=0)
        if self.file is not None and keep is not None:
            self.file.truncate(min(keep, self.file.tell()))
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, TextColumn("{task.fields[note]}"), console=self.console, transient=True)
        self.task: Any = None
        self.reports: list[StepReport] = []
        self.at: tuple[int, float, dict[str, float]] = (0, 0.0, {})
        """Step, epoch and settings of the newest report."""
        self.since = time.perf_counter()
        self.watch = Watch()
        self.n_positives = self.n_alone = 0
        """Of this stretch."""
        self.said_alone = False

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(*(() if error is None else (ArtifactError,))):  # of two errors the first tells more
            self.flush()
        if self.progress.live.is_started:
            self.progress.stop()
        if self.file is not None:
            self.file.close()
        if self.board is not None:
            self.board.close()

    def begin(self, name: str, last_step: int, *, first_step: int = 0) -> None:
        """A new stretch of training with a bar of its own, after ``first_step`` steps."""
        self.flush()
        self.n_positives = self.n_alone = 0
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(name, total=last_step, completed=first_step, note="")

    @property
    def wants_health(self) -> bool:
        """Whether the next step is to be looked at closely: the first of every line is."""
        return not self.reports

    def step(self, step: int, epoch: float, rate: float, report: StepReport, temperature: float | None) -> None:
        """One more step."""
        self.reports.append(report)
        self.n_positives += report.n_pairs
        self.n_alone += report.alone
        if step == AFTER_STEPS:
            self.say_alone()
        self.at = (step, epoch, {"rate": rate} if temperature is None else {"rate": rate, "temperature": temperature})
        if report.health is not None:
            for warning in self.watch.warnings(step, report.health):
                self.say(warning)
        if time.perf_counter() - self.since >= LOG_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write the averages of the steps that no line tells of yet."""
        if self.reports:
            step, epoch, settings = self.at
            row = {**summarise(self.reports, time.perf_counter() - self.since), **settings}
            self.write("train", step, epoch, row)
            note = f"loss {row['loss']:.4f}  {row['examples_per_s']:,.0f} examples/s  excluded {row['excluded']:.2%}"
            if self.task is not None:
                self.progress.update(self.task, completed=step, note=note)
        self.reports, self.since = [], time.perf_counter()

    def say_alone(self) -> None:
        """Say once where most positives had nothing to be compared with, at the end of a stretch or early in it."""
        if self.said_alone or self.n_alone <= MOSTLY * self.n_positives:
            return
        self.said_alone = True
        self.say(
            f"{self.n_alone / self.n_positives:.0%} of the positives had no candidate and taught nothing: twotower "
            "audit tells why; take more or other negatives, or mix with InBatch or Uniform"
        )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For what is no step, such as a validation: its time does not count as that of steps."""
        self.flush()
        yield
        self.since = time.perf_counter()

    def write(self, what: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """A line of ``metrics.jsonl``, and scalars for TensorBoard."""
        row: dict[str, object] = {"what": what, "step": step, "epoch": round(epoch, 4)}
        row |= {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no nan
        if self.file is not None:
            self._append((json.dumps(row) + "\n").encode())
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(f"{what}/{name}", value, step)

    def _append(self, line: bytes) -> None:
        assert self.file is not None
        try:
            while line:
                line = line[self.file.write(line) :]
        except OSError as error:
            raise ArtifactError(
                f"{self.file.name}: can't be written ({error}): free some space, and run the same command again"
            ) from error

    def state(self) -> dict[str, Any]:
        """What it knows after all that it was told, for JSON; ``metrics.jsonl`` is then on the disk up to here."""
        self.flush()
        length = 0
        if self.file is not None:
            os.fsync(self.file.fileno())
            length = self.file.tell()
        return {
            "length": length,
            "positives": self.n_positives,
            "alone": self.n_alone,
            "said_alone": self.said_alone,
            "watch": self.watch.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` told, in a stretch that has begun."""
        self.n_positives, self.n_alone, self.said_alone = state["positives"], state["alone"], state["said_alone"]
        self.watch.restore(state["watch"])

    def say(self, text: str) -> None:
        """A line for people."""
        self.console.print(text)


def summarise(reports: list[StepReport], seconds: float) -> dict[str, float]:
    """Averages over some steps; the gradient's norm over those that know it, health from the first that was asked."""
    n = len(reports)
    norms = [r.gradient_norm for r in reports if r.gradient_norm is not None]
    health = next((asdict(r.health) for r in reports if r.health is not None), {})
    return {
        "loss": sum(r.loss for r in reports) / n,
        "examples_per_s": sum(r.n_pairs for r in reports) / seconds,
        "excluded": sum(r.excluded for r in reports) / n,
        "alone": float(sum(r.alone for r in reports)),
        "columns": sum(r.n_columns for r in reports) / n,
        **({"gradient_norm": sum(norms) / len(norms)} if norms else {}),
        **health,
    }


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "training.tensorboard: TensorBoard is not installed: pip install 'twotower[tensorboard]', or set "
            "it to false"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))
