"""A picture of a search: the value of each trial against each setting, a panel a setting, arms by colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .tuned import Trial, Tuned, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
"""Panels beside one another, at most."""
WIDE = 10.0
"""From this ratio of the largest to the smallest, values of a sweep are laid out by their logarithm."""


def plot(tuned: Tuned, path: Path) -> bool:
    """Write the picture, as a line an arm where a sweep has one setting; False where matplotlib is not installed.

    Trials without a value are not in it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    columns = min(len(tuned.names), COLUMNS)
    rows = -(-len(tuned.names) // COLUMNS)
    figure = Figure(figsize=(4.5 * columns, 3.5 * rows), layout="constrained")
    for at, name in enumerate(tuned.names):
        axes = figure.add_subplot(rows, columns, at + 1)
        axes.set(xlabel=name, ylabel="" if at % columns else tuned.metric)
        _draw(axes, tuned, name)
        if at == 0 and len(tuned.arms) > 1:
            axes.legend()
    figure.savefig(path, dpi=150)
    return True


def _draw(axes: Axes, tuned: Tuned, name: str) -> None:
    """One panel."""
    from matplotlib.ticker import LogLocator

    found = [trial.settings[name] for trial in tuned.trials if name in trial.settings]
    ticks = None
    if not all(type(value) in (int, float) for value in found):
        ticks = list(dict.fromkeys(short(value) for value in found))
        axes.set_xticks(range(len(ticks)), ticks)
    else:
        if name in tuned.by_log or (tuned.is_sweep and 0 < WIDE * min(found) <= max(found)):
            axes.set_xscale("log")
            axes.minorticks_off()
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_major_formatter("{x:g}")
        if tuned.is_sweep:
            axes.set_xticks(sorted(set(found)), [short(value) for value in sorted(set(found))])
    style = "o-" if tuned.is_sweep and len(tuned.names) == 1 else "o"
    for at, arm in enumerate(tuned.arms):
        points = _points(tuned.of(arm), name, ticks)
        axes.plot([x for x, _ in points], [y for _, y in points], style, color=f"C{at}", label=arm, alpha=0.8)


def _points(trials: Sequence[Trial], name: str, ticks: Sequence[str] | None) -> list[tuple[float, float]]:
    """Place and value of the trials that have the setting, by place."""
    return sorted(
        (
            float(trial.settings[name]) if ticks is None else ticks.index(short(trial.settings[name])),
            trial.outcome.value,
        )
        for trial in trials
        if name in trial.settings and trial.outcome.value is not None
    )
