"""The history of a model's updates: a line each, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArtifactError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, kw_only=True)
class Day:
    """One update of a model, whatever time it is of."""

    number: int
    """From 1."""
    name: str
    """What arrived, such as the name of a file."""
    first: str | None
    """Day of the first event that arrived (UTC, ISO), late ones included; None without a time."""
    last: str | None
    n_events: int
    """That arrived and were taken."""
    n_repeats: int
    """That the store had already."""
    n_held_out: int
    """Of ``n_events``, never trained on."""
    n_trained: int
    """Events that it trained on and no training that was kept had seen; replayed ones are not counted."""
    new_queries: int
    new_items: int
    evicted_items: int
    served: float | None
    """The metric of what arrived, by the model as it was before; None where there was nothing to ask."""
    before: float | None
    """The metric of what is held out, by the model as it was before."""
    after: float | None
    """The same by the model that was trained on what arrived."""
    kept: bool
    """Whether that model stayed."""
    epochs: float
    """Passes over what it trained on, up to the model that was best."""
    steps: int
    seconds: float
    """Wall time of training steps."""
    shifted: tuple[str, ...]
    """What is not as it was before (``evaluation.drift``)."""
    frequency_error: float | None
    """How far the streaming estimate of item frequencies was from those of what arrived, before it saw that
    (``evaluation.frequency_report``); None of another estimate."""

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Day:
        """From what JSON makes of a day."""
        return cls(**{**tree, "shifted": tuple(tree["shifted"])})


@dataclass(frozen=True, kw_only=True)
class Days:
    """All updates of a model, in order."""

    metric: str
    days: tuple[Day, ...]

    def render(self) -> str:
        """A table, a line an update."""
        if not self.days:
            return "no update yet: twotower update MODEL --interactions NEW"
        head = ["update", "days", "events", "new queries", "new items", "served", "before", "after", "kept", "seconds"]
        rows = [head, *(_cells(day) for day in self.days)]
        widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) if at < 2 else cell.rjust(width) for at, (cell, width) in enumerate(cells))
            for cells in (list(zip(row, widths, strict=True)) for row in rows)
        ]
        said = [f"shifted in update {day.number}: {', '.join(day.shifted)}" for day in self.days[-1:] if day.shifted]
        return "\n".join(
            [
                *lines,
                "",
                f"{self.metric}: served = what arrived, before training on it; before and after = what is held out",
                *said,
            ]
        )

    def to_json(self) -> str:
        """The same for machines."""
        return json.dumps(asdict(self), indent=1)

    def plot(self, path: Path) -> bool:
        """Write a picture: the metric as served, before and after, by update; False where matplotlib is not installed.

        Raises ArtifactError where it can't be written.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return False
        figure = Figure(figsize=(9, 6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        self._draw(above)
        numbers = [day.number for day in self.days]
        below.bar(numbers, [day.n_events for day in self.days], color="C7")
        below.set(xlabel="update", ylabel="events")
        try:
            figure.savefig(path, dpi=150)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: the picture can't be written ({error}): choose another place") from error
        return True

    def _draw(self, axes: Axes) -> None:
        for name, label in (("served", "as served"), ("before", "held out, before"), ("after", "held out, after")):
            points = [(day.number, getattr(day, name)) for day in self.days if getattr(day, name) is not None]
            axes.plot([at for at, _ in points], [value for _, value in points], ".-", label=label)
        lost = [(day.number, day.after) for day in self.days if not day.kept and day.after is not None]
        if lost:
            axes.plot([at for at, _ in lost], [value for _, value in lost], "rx", markersize=9, label="not kept")
        axes.set(ylabel=self.metric)
        axes.legend()


def days_of(rows: Sequence[Mapping[str, Any]], metric: str) -> Days:
    """From a checkpoint's state."""
    return Days(metric=metric, days=tuple(Day.from_tree(row) for row in rows))


def _cells(day: Day) -> list[str]:
    span = "" if day.first is None else day.first if day.first == day.last else f"{day.first} to {day.last}"
    metrics = ["" if value is None else f"{value:.4f}" for value in (day.served, day.before, day.after)]
    return [
        str(day.number),
        span or day.name,
        f"{day.n_events:,}",
        f"{day.new_queries:,}",
        f"{day.new_items:,}",
        *metrics,
        "yes" if day.kept else "no",
        f"{day.seconds:.1f}",
    ]
