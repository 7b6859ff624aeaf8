"""From exposures and outcomes to a report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.arrow import did_you_mean
from ..data.files import listed
from ..data.readers import Source, column_names
from ..errors import ConfigError, DataError
from .join import EXPOSURES, By, OutcomeColumns, Outcomes, Units, join, units_of
from .metrics import Metric, Ratio, Sums, Total
from .read import COUNTS, Exposures, read_exposures
from .report import Arm, Compared, ExperimentReport, LeftOut, Stage
from .statistics import Estimate, holm, less_of_before, ratio, ratio_mismatch_p, uplift

STAGES = ("ranked", "shown", "clicked", "bought")
"""Columns of outcomes that are stages of an item's way, where none are named, in order."""


def analyse(
    exposures: str | Path | Exposures,
    outcomes: Source,
    *,
    control: str,
    experiment: str | None = None,
    metrics: Sequence[Metric] | None = None,
    stages: Sequence[str] | None = None,
    shares: Mapping[str, float] | None = None,
    unit: By = "user",
    join_by: By | None = None,
    columns: OutcomeColumns | None = None,
    before: bool = False,
) -> ExperimentReport:
    """Compare the arms of an experiment with its control arm.

    Everybody who was exposed counts, in the arm of the exposure, whatever came of it (intention to treat); a unit
    without outcomes has 0 of everything. Units that saw several arms are counted and left out. Counts of units are held
    against their shares before anything else.

    Args:
        exposures: file or folder of an ``ExposureLog``, or what ``read_exposures`` read.
        outcomes: files or frames with a row an outcome: id of the user (and the time) or of the request, and columns of
            numbers such as clicks, revenue, or whether an item was shown.
        control: name of the arm that the others are compared with.
        experiment: may be left out where the exposures know only one.
        metrics: the first is the primary one. All columns of the outcomes by default, each as ``Total``. Beside those
            columns there are those of the exposures: ``exposures``, ``found``, ``filtered``, ``returned``.
        stages: columns of the outcomes that an item passes one after the other, after ``returned``; ``STAGES`` that are
            there by default.
        shares: share by arm as assigned; equal ones by default.
        unit: what arms were assigned by.
        join_by: what outcomes name. By user: rows from the user's first exposure on. By request: rows that name a
            request of the experiment. ``unit`` by default.
        columns: what columns of the outcomes are called.
        before: take out of ``Total`` and ``AnyOf`` what the rows before a user's first exposure explain (CUPED).

    Raises:
        DataError: files that can't be read or do not fit, no such arm or experiment.
        ConfigError: settings that contradict one another.
    """
    columns, join_by = columns or OutcomeColumns(), join_by or unit
    if (unit, join_by) == ("request", "user"):
        raise ConfigError(
            "arms by request can't be joined by user, who may have seen several: join by request, or let the unit be "
            "the user"
        )
    if before and join_by == "request":
        raise ConfigError("what came before the first exposure is known where outcomes are joined by user only")
    read = exposures if isinstance(exposures, Exposures) else read_exposures(exposures, experiment)
    units = units_of(read, unit)
    share_of = _shares(units, control, shares)
    there = column_names(outcomes, where="outcomes")
    metrics = _default_metrics(there, columns) if metrics is None else metrics
    if not metrics:
        raise DataError(f"outcomes: found the columns {listed(there)}, expected columns of numbers beside id and time")
    stages = [name for name in STAGES if name in there] if stages is None else stages
    needed = dict.fromkeys([*(name for metric in metrics for name in metric.columns), *stages])
    twice = [name for name in needed if name in there and name in units.count_U]
    if twice:
        raise DataError(f"outcomes: column {twice[0]!r} is a count of the exposures, too: give it another name")
    joined = join(outcomes, units, join_by, [name for name in needed if name not in units.count_U], columns)
    if not joined.n_joined:
        raise DataError(
            f"outcomes: no row is of a {join_by} of the experiment, after its first exposure: {joined.n_unexposed:,} "
            f"are of others, {joined.n_before:,} of the time before, {joined.n_without_time:,} without a time; are ids "
            "the same on both sides, and is the unit of times right?"
        )
    return ExperimentReport(
        experiment=read.experiment,
        control=control,
        unit=unit,
        joined_by=join_by,
        arms=tuple(_arms(units, share_of)),
        mismatch_p=ratio_mismatch_p(_count_by_arm(units), share_of),
        outcomes=joined.n_joined,
        left_out=LeftOut(
            exposures_without_id=units.n_without_id,
            units_in_several_arms=units.n_in_several_arms,
            exposures_dropped=read.n_dropped,
            cut_lines=read.n_cut_lines,
            outcomes_before=joined.n_before,
            outcomes_unexposed=joined.n_unexposed,
            outcomes_without_time=joined.n_without_time,
        ),
        compared=tuple(_compared(units, joined, metrics, control, before)),
        stages=tuple(_stages(units, {**units.count_U, **joined.sum_U}, stages, tuple(share_of))),
    )


def _shares(units: Units, control: str, shares: Mapping[str, float] | None) -> dict[str, float]:
    """Share by arm, the control arm first; arms that nobody saw included."""
    if control not in units.arms:
        raise DataError(
            f"no exposure of the arm {control!r}; found {listed(units.arms)}{did_you_mean(control, units.arms)}"
        )
    if len(units.arms) < 2:
        raise DataError(f"found exposures of the arm {control!r} only, expected another one to compare with it")
    if shares is None:
        shares = dict.fromkeys(units.arms, 1 / len(units.arms))
    missing = [arm for arm in units.arms if arm not in shares]
    if missing or min(shares.values()) < 0 or not sum(shares.values()) > 0:
        raise ConfigError(
            f"found shares {dict(shares)}, expected one of 0 or more for each of the arms {listed(units.arms)}"
        )
    total = math.fsum(shares.values())
    return {arm: shares[arm] / total for arm in (control, *(arm for arm in shares if arm != control))}


def _default_metrics(there: Sequence[str], columns: OutcomeColumns) -> list[Metric]:
    return [Total(name) for name in there if name not in (columns.user, columns.request, columns.time)]


def _count_by_arm(units: Units) -> dict[str, int]:
    count_A = np.bincount(units.arm_U, minlength=len(units.arms))
    return dict(zip(units.arms, count_A.tolist(), strict=True))


def _arms(units: Units, share_of: Mapping[str, float]) -> Iterator[Arm]:
    exposures_A = np.bincount(units.arm_U, units.count_U[EXPOSURES], minlength=len(units.arms))
    exposures = dict(zip(units.arms, exposures_A, strict=True))
    count = _count_by_arm(units)
    for name, share in share_of.items():
        yield Arm(name=name, share=share, units=count.get(name, 0), exposures=int(exposures.get(name, 0)))


def _compared(
    units: Units, joined: Outcomes, metrics: Sequence[Metric], control: str, before: bool
) -> Iterator[Compared]:
    """Every metric, of every arm but the control arm."""
    others = [arm for arm in units.arms if arm != control]
    found: list[tuple[int, str, Estimate, Estimate, bool]] = []
    for at, metric in enumerate(metrics):
        above_U, below_U, adjusted = _parts(units, joined, metric, before)
        estimate = {
            arm: ratio(above_U[units.arm_U == number], below_U[units.arm_U == number])
            for number, arm in enumerate(units.arms)
        }
        found += [(at, arm, estimate[control], estimate[arm], adjusted) for arm in others]
    uplifts = [uplift(ours, theirs) for _, _, ours, theirs, _ in found]
    n = len(others)  # comparisons of the primary metric
    adjusted_p = holm([one.p for one in uplifts[:n]]) + holm([one.p for one in uplifts[n:]])
    for (at, arm, ours, theirs, adjusted), one, p in zip(found, uplifts, adjusted_p, strict=True):
        yield Compared(
            metric=str(metrics[at]),
            primary=at == 0,
            arm=arm,
            control_value=ours.value,
            value=theirs.value,
            uplift=one,
            p_holm=p,
            less_of_before=adjusted,
        )


def _parts(
    units: Units, joined: Outcomes, metric: Metric, before: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """[U] what is summed above and below, and whether what came before was taken out."""
    sums: Sums = {**units.count_U, **joined.sum_U}
    above_U, below_U = metric.parts(sums)
    if not before or isinstance(metric, Ratio) or metric.column not in joined.before_U:
        return above_U, below_U, False
    return less_of_before(above_U, metric.parts(joined.before_U)[0], units.arm_U), below_U, True


def _stages(units: Units, sums: Sums, stages: Sequence[str], arms: Sequence[str]) -> Iterator[Stage]:
    names = [*(name for name in COUNTS if name in units.count_U), *stages]
    for arm in arms:
        previous = math.nan
        is_ours = units.arm_U == (units.arms.index(arm) if arm in units.arms else -1)
        for name in names:
            items = float(sums[name][is_ours].sum())
            yield Stage(name=name, arm=arm, items=items, of_previous=items / previous if previous > 0 else math.nan)
            previous = items
