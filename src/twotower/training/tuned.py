"""The result of a search: trials by arm, as tables, JSON lines and a run."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from ..settings import Tree

TRIALS, BEST_RUN = "trials.jsonl", "best.toml"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended."""

    state: Literal["done", "pruned", "failed"]
    value: float | None
    """Mean over the seeds of the best validation; None unless done."""
    values: tuple[float, ...]
    """Of each seed."""
    epochs: tuple[float, ...]
    """Of each seed, at its best validation."""
    seconds: float
    """Wall time of all seeds, validation included."""
    error: str | None = None
    """Why it failed: what training said, such as a loss that is not finite."""

    @classmethod
    def from_tree(cls, tree: Tree) -> Outcome:
        """From what JSON makes of an outcome."""
        lists: Tree = {name: tuple(tree[name]) for name in ("values", "epochs")}
        return cls(**tree | lists)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One set of settings that was tried."""

    arm: str
    number: int
    """Within its arm, from 1."""
    settings: dict[str, Any]
    """By name."""
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What ``tune`` found."""

    folder: Path
    metric: str
    arms: tuple[str, ...]
    names: tuple[str, ...]
    """Of the settings that were varied, in any arm."""
    by_log: frozenset[str]
    """Those that were drawn by their logarithm."""
    is_sweep: bool
    trials: tuple[Trial, ...]
    plot: Path | None
    """None where matplotlib is not installed."""

    def of(self, arm: str) -> list[Trial]:
        """The trials of an arm, in order."""
        return [trial for trial in self.trials if trial.arm == arm]

    @property
    def best(self) -> Trial | None:
        """Of all arms; of equals the first. None where no trial has a value."""
        return best_of(self.trials)

    def table(self) -> str:
        """Plain text: a line an arm with its best settings; for a sweep also a line a combination, a column an arm."""
        arms = Table(box=None, pad_edge=False)
        for at, head in enumerate(["arm", self.metric, *self.names, "trials", "s a trial"]):
            arms.add_column(head, justify="right" if at else "left")
        for arm in self.arms:
            trials = self.of(arm)
            best = best_of(trials)
            settings = best.settings if best else {}
            seconds = mean(trial.outcome.seconds for trial in trials) if trials else math.nan
            arms.add_row(
                *(arm, _value(best), *_cells(settings, self.names), _counts(trials)),
                f"{seconds:.1f}",
            )
        return "\n\n".join(_text(table) for table in (arms, *([self._combinations()] if self.is_sweep else [])))

    def _combinations(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for head in (*self.names, *self.arms):
            table.add_column(head, justify="right")
        by_settings: dict[str, dict[str, Trial]] = {}
        for trial in self.trials:
            by_settings.setdefault(json.dumps(trial.settings), {})[trial.arm] = trial
        for settings, by_arm in by_settings.items():
            cells = _cells(json.loads(settings), self.names)
            table.add_row(*cells, *(_value(by_arm.get(arm)) for arm in self.arms))
        return table

    def render(self) -> str:
        """The table, and where everything is."""
        names = [TRIALS, BEST_RUN] + ([self.plot.name] if self.plot else [])
        lines = [self.table(), "", f"{', '.join(names)}: {self.folder}"]
        if self.plot is None:
            lines.append("no plot, as matplotlib is not installed: pip install 'twotower[plots]'")
        return "\n".join([*lines, f"next: twotower train {self.folder / BEST_RUN} --out model"])


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The first with the highest value, if any has one."""
    return max((trial for trial in trials if trial.outcome.value is not None), key=_known_value, default=None)


def to_json(trial: Trial) -> str:
    """A line of trials.jsonl."""
    tree = {"arm": trial.arm, "trial": trial.number, "settings": trial.settings, **asdict(trial.outcome)}
    return json.dumps(tree, ensure_ascii=False)


def in_words(settings: Mapping[str, object]) -> str:
    """Settings in a line."""
    return " ".join(f"{name}={short(value)}" for name, value in settings.items())


def short(value: object) -> str:
    """A value for people."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _known_value(trial: Trial) -> float:
    assert trial.outcome.value is not None
    return trial.outcome.value


def _value(trial: Trial | None) -> str:
    return "-" if trial is None or trial.outcome.value is None else f"{trial.outcome.value:.4f}"


def _counts(trials: Sequence[Trial]) -> str:
    """How many, and how many of these without a value."""
    without = {state: sum(trial.outcome.state == state for trial in trials) for state in ("pruned", "failed")}
    notes = ", ".join(f"{n} {state}" for state, n in without.items() if n)
    return f"{len(trials)} ({notes})" if notes else str(len(trials))


def _cells(settings: Mapping[str, object], names: Sequence[str]) -> list[str]:
    return [short(settings[name]) if name in settings else "-" for name in names]


def _text(table: Table) -> str:
    """As wide as it gets: what a terminal can't show is for it to wrap."""
    console = Console(file=io.StringIO(), width=10_000, markup=False, emoji=False, highlight=False)
    with console.capture() as shown:
        console.print(table)
    return "\n".join(line.rstrip() for line in shown.get().splitlines())
