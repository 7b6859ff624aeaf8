"""The result of an experiment, as text, JSON and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import ArtifactError
from ..settings import without_nan
from .join import By
from .statistics import Uplift

LEAST_MISMATCH_P = 0.001
"""Below it counts of units do not fit their shares, and no number can be trusted (Fabijan et al. 2019)."""
FEW_UNITS = 200
"""An arm with fewer is too small for intervals from the normal distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm, without units that were left out."""

    name: str
    share: float
    """Of units, as expected."""
    units: int
    exposures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One metric of one arm against the control arm."""

    metric: str
    primary: bool
    arm: str
    control_value: float
    value: float
    uplift: Uplift
    p_holm: float
    """Adjusted for all comparisons of the primary metric, or for all of the others."""
    less_of_before: bool
    """Whether what units did before their first exposure was taken out (CUPED)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Items that passed a stage, in one arm."""

    name: str
    arm: str
    items: float
    of_previous: float
    """By those of the stage before; nan for the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """What the numbers do not count."""

    exposures_without_id: int
    units_in_several_arms: int
    exposures_dropped: int
    """By the log, of any experiment."""
    cut_lines: int
    """Half lines of processes that were killed."""
    outcomes_before: int
    """Rows of the time before the unit's first exposure."""
    outcomes_unexposed: int
    """Rows of nobody who was exposed, or of units that are left out."""
    outcomes_without_time: int


@dataclass(frozen=True, kw_only=True)
class ExperimentReport:
    """What ``analyse`` found."""

    experiment: str
    control: str
    unit: By
    """What arms were drawn for."""
    joined_by: By
    arms: tuple[Arm, ...]
    mismatch_p: float
    """Of counts of units as far from their shares by chance."""
    outcomes: int
    """Rows that count."""
    left_out: LeftOut
    compared: tuple[Compared, ...]
    """By metric, the primary first."""
    stages: tuple[Stage, ...]

    @property
    def trusted(self) -> bool:
        """Whether counts of units fit their shares. Where they do not, who is counted depends on the arm."""
        return self.mismatch_p >= LEAST_MISMATCH_P

    @property
    def warning(self) -> str:
        """What to say where the report is not to be trusted."""
        return (
            f"DO NOT TRUST these numbers: sample ratio mismatch, p = {self.mismatch_p:.2g} (below {LEAST_MISMATCH_P}): "
            f"found {', '.join(f'{arm.name} {arm.units:,}' for arm in self.arms)} {self.unit}s, expected shares "
            f"{', '.join(f'{arm.name} {arm.share:.3g}' for arm in self.arms)}. Look for what loses or adds "
            f"{self.unit}s in one arm only (a crash, a redirect, a bot filter, a log that drops), or give the shares "
            "that were set"
        )

    def render(self) -> str:
        """Tables for people."""
        parts = [
            f"experiment {self.experiment}: arms by {self.unit}, {self.outcomes:,} outcomes joined by {self.joined_by}",
            self._arms(),
            f"sample ratio: p = {_p(self.mismatch_p)}" if self.trusted else self.warning,
            self._metrics(),
        ]
        if self.stages:
            parts.append(self._stages())
        return "\n\n".join([*parts, "\n".join(self._notes())])

    def to_json(self) -> str:
        """Everything; null for what there is not."""
        tree = asdict(self) | {"trusted": self.trusted}
        return json.dumps(without_nan(tree), indent=1, ensure_ascii=False, allow_nan=False)

    def plot(self, path: str | Path) -> bool:
        """Write a picture: relative uplift with its interval, a line a metric and arm; False where matplotlib is not
        installed.

        Raises ArtifactError where it can't be written.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return False
        told = [one for one in self.compared if math.isfinite(one.uplift.relative_low)]
        figure = Figure(figsize=(8, 1.5 + 0.4 * len(told)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(0.0, color="gray", linewidth=1)
        for at, one in enumerate(told):
            reach = 100 * (one.uplift.relative_high - one.uplift.relative)
            axes.errorbar(100 * one.uplift.relative, at, xerr=reach, fmt="o", capsize=3, color=f"C{not one.primary:d}")
        axes.set_yticks(range(len(told)), [f"{one.metric} ({one.arm})" for one in told])
        axes.invert_yaxis()
        axes.set(xlabel=f"uplift over {self.control}, %, 95% interval", title=self.experiment)
        if not self.trusted:
            axes.set_title(f"{self.experiment}: DO NOT TRUST (sample ratio mismatch)", color="C3")
        try:
            figure.savefig(path, dpi=150)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: the picture can't be written ({error}): choose a .png elsewhere") from error
        return True

    def _arms(self) -> str:
        total = max(1, sum(arm.units for arm in self.arms))
        rows = [
            (arm.name, f"{arm.share:.1%}", f"{arm.units / total:.1%}", f"{arm.units:,}", f"{arm.exposures:,}")
            for arm in self.arms
        ]
        return _table(("arm", "expected", "found", f"{self.unit}s", "exposures"), rows, left=1)

    def _metrics(self) -> str:
        rows = []
        for one in self.compared:
            up = one.uplift
            absolute = f"{_signed(up.absolute)} ({_signed(up.low)} to {_signed(up.high)})"
            relative = f"{_percent(up.relative)} ({_percent(up.relative_low)} to {_percent(up.relative_high)})"
            name = one.metric + " *" * one.primary
            values = (_number(one.control_value), _number(one.value))
            rows.append((name, one.arm, *values, absolute, relative, _p(up.p), _p(one.p_holm)))
        heads = ("metric", "arm", self.control, "arm's", "uplift (95%)", "relative (95%)", "p", "Holm's p")
        return _table(heads, rows, left=2)

    def _stages(self) -> str:
        names = list(dict.fromkeys(stage.name for stage in self.stages))
        of = {(stage.name, stage.arm): stage for stage in self.stages}
        heads = ["items", *(head for arm in self.arms for head in (arm.name, "of the stage before"))]
        rows = []
        for name in names:
            row = [name]
            for arm in self.arms:
                stage = of[name, arm.name]
                row += [f"{stage.items:,.0f}", "" if math.isnan(stage.of_previous) else f"{stage.of_previous:.2%}"]
            rows.append(row)
        return _table(heads, rows, left=1)

    def _notes(self) -> list[str]:
        out = self.left_out
        counted = {
            f"exposures without a {self.unit}": out.exposures_without_id,
            f"{self.unit}s shown several arms": out.units_in_several_arms,
            "exposures that the log dropped": out.exposures_dropped,
            "half lines of killed processes": out.cut_lines,
            "outcomes before the first exposure": out.outcomes_before,
            f"outcomes of {self.unit}s that are not in it": out.outcomes_unexposed,
            "outcomes without a time": out.outcomes_without_time,
        }
        left = [f"{count:,} {what}" for what, count in counted.items() if count]
        small = [arm.name for arm in self.arms if arm.units < FEW_UNITS]
        notes = [
            "* primary: it decides. Holm's p is adjusted for all comparisons of the primary metric, or of the others;",
            "  each interval is 95% by itself.",
        ]
        if any(one.less_of_before for one in self.compared):
            adjusted = list(dict.fromkeys(one.metric for one in self.compared if one.less_of_before))
            notes.append(f"less of what came before the first exposure (CUPED): {', '.join(adjusted)}")
        if small:
            notes.append(f"fewer than {FEW_UNITS} {self.unit}s, intervals are rough: {', '.join(small)}")
        if left:
            notes.append(f"left out: {', '.join(left)}")
        return notes


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Aligned columns, the first ``left`` of them to the left."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (heads, *rows)
    )
    return "\n".join(lines)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.4g}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+,.3g}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2%}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "<.0001" if value < 1e-4 else f"{value:.4f}"
