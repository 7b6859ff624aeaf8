"""Units of an experiment, and what became of each: exposures grouped, outcomes joined to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..data.arrow import TimeUnit, column_of, mask_of, microseconds, numbers
from ..data.readers import Source, chunks, naming
from ..data.vocabulary import text_form
from ..errors import DataError
from .read import Exposures

By = Literal["user", "request"]
"""What arms were drawn for, or what outcomes are joined by."""

EXPOSURES = "exposures"
"""Name of the column that counts a unit's exposures."""


@dataclass(frozen=True, kw_only=True)
class Units:
    """The U units of one arm each."""

    arms: tuple[str, ...]
    """Sorted."""
    id_U: pa.LargeStringArray
    arm_U: NDArray[np.int64]
    first_us_U: NDArray[np.int64]
    """Time of the first exposure."""
    count_U: Mapping[str, NDArray[np.float64]]
    """Sums over its exposures: how many, and those of ``read.COUNTS``."""
    request_R: pa.LargeStringArray
    """Requests that outcomes may name, each once."""
    unit_R: NDArray[np.int64]
    """Unit of each."""
    n_without_id: int
    """Exposures that name no unit, left out."""
    n_in_several_arms: int
    """Units that were shown more than one arm, left out."""


def units_of(exposures: Exposures, unit: By) -> Units:
    """Group exposures by unit; units in more than one arm are no evidence for any, and are counted and left out."""
    id_E = exposures.user_E if unit == "user" else exposures.request_E
    keep = mask_of(id_E.is_valid()) & mask_of(pc.not_equal(id_E, ""))
    if not keep.any():
        raise DataError(f"experiment {exposures.experiment!r}: no exposure names a {unit}, expected some to")
    kept = pa.array(keep)
    id_V, unit_E = _numbered(id_E.filter(kept))
    arm_names, arm_E = _numbered(exposures.arm_E.filter(kept))
    time_E = exposures.time_us_E[keep]
    n = len(id_V)
    low_V, high_V = np.full(n, len(arm_names)), np.full(n, -1)
    np.minimum.at(low_V, unit_E, arm_E)
    np.maximum.at(high_V, unit_E, arm_E)
    first_V = np.full(n, np.iinfo(np.int64).max)
    np.minimum.at(first_V, unit_E, time_E)
    pure_V = low_V == high_V
    if not pure_V.any():
        raise DataError(f"experiment {exposures.experiment!r}: every {unit} was shown several arms: nothing to compare")
    order = np.argsort(np.array(arm_names.to_pylist(), object))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    counts = {EXPOSURES: np.bincount(unit_E, minlength=n)[pure_V].astype(np.float64)}
    for name, count_E in exposures.count_E.items():
        counts[name] = np.bincount(unit_E, count_E[keep], minlength=n)[pure_V]
    number_V = np.where(pure_V, np.cumsum(pure_V) - 1, -1)
    request_R, unit_R = _requests(exposures.request_E.filter(kept), number_V[unit_E])
    return Units(
        arms=tuple(sorted(arm_names.to_pylist())),
        id_U=id_V.filter(pa.array(pure_V)),
        arm_U=place[low_V[pure_V]],
        first_us_U=first_V[pure_V],
        count_U=counts,
        request_R=request_R,
        unit_R=unit_R,
        n_without_id=int((~keep).sum()),
        n_in_several_arms=int((~pure_V).sum()),
    )


def _numbered(values: pa.LargeStringArray) -> tuple[pa.LargeStringArray, NDArray[np.int64]]:
    """Distinct values in the order they come, and the number of each."""
    coded = values.dictionary_encode()
    return coded.dictionary, np.asarray(coded.indices.to_numpy(zero_copy_only=False), np.int64)


def _requests(
    request_E: pa.LargeStringArray, unit_E: NDArray[np.int64]
) -> tuple[pa.LargeStringArray, NDArray[np.int64]]:
    """Distinct requests and the unit of each, -1 of one that is left out or that several units claim."""
    named = mask_of(request_E.is_valid())
    request_R, number_E = _numbered(request_E.filter(pa.array(named)))
    unit_R = np.full(len(request_R), np.iinfo(np.int64).max)
    most_R = np.full(len(request_R), -1)
    np.minimum.at(unit_R, number_E, unit_E[named])
    np.maximum.at(most_R, number_E, unit_E[named])
    return request_R, np.where(unit_R == most_R, unit_R, -1)


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """[U] sums over the rows of each unit, and what was left out."""

    sum_U: Mapping[str, NDArray[np.float64]]
    """By column; from the first exposure on, where rows are joined by user."""
    before_U: Mapping[str, NDArray[np.float64]]
    """The same of the time before."""
    n_joined: int
    n_before: int
    """Rows of the time before the unit's first exposure."""
    n_unexposed: int
    """Rows of nobody who was exposed, or of units that are left out."""
    n_without_time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeColumns:
    """What columns of outcomes are called."""

    user: str = "user"
    request: str = "request"
    time: str = "time"
    time_unit: TimeUnit = "s"
    """Of times that are numbers."""


def join(source: Source, units: Units, by: By, columns: Sequence[str], names: OutcomeColumns) -> Outcomes:
    """Sum the columns over the rows of each unit.

    By user: a row counts from the moment of the user's first exposure on, whatever the user did in between (intention
    to treat). By request: a row counts for the request that it names, and no time is asked for. A missing value adds
    nothing.
    """
    n = len(units.id_U)
    sums, before = ({name: np.zeros(n) for name in columns} for _ in range(2))
    n_joined = n_before = n_unexposed = n_without_time = 0
    key = names.user if by == "user" else names.request
    wanted = list(dict.fromkeys([key, *([names.time] if by == "user" else []), *columns]))
    ids, unit_I = (units.id_U, np.arange(n)) if by == "user" else (units.request_R, units.unit_R)
    types = {name: pa.float64() for name in columns} | {key: pa.large_string(), names.time: pa.timestamp("us")}
    for chunk in chunks(source, where="outcomes", columns=wanted, column_types=types):
        with naming(chunk.span()):
            unit = _found(text_form(column_of(chunk.table, key), key), ids, unit_I)
            is_late = np.ones(len(unit), bool)
            has_time = is_late
            if by == "user":
                time_us, has_time = microseconds(column_of(chunk.table, names.time), names.time, names.time_unit)
                is_late = time_us >= units.first_us_U[unit]  # -1 reads some unit's, and is left out below
            of_unit = (unit >= 0) & has_time
            n_unexposed += int((unit < 0).sum())
            n_without_time += int(((unit >= 0) & ~has_time).sum())
            n_joined += int((of_unit & is_late).sum())
            n_before += int((of_unit & ~is_late).sum())
            for name in columns:
                value = np.nan_to_num(numbers(column_of(chunk.table, name), name))
                sums[name] += np.bincount(unit[of_unit & is_late], value[of_unit & is_late], minlength=n)
                before[name] += np.bincount(unit[of_unit & ~is_late], value[of_unit & ~is_late], minlength=n)
    return Outcomes(
        sum_U=sums,
        before_U=before,
        n_joined=n_joined,
        n_before=n_before,
        n_unexposed=n_unexposed,
        n_without_time=n_without_time,
    )


def _found(text: pa.LargeStringArray, ids: pa.LargeStringArray, unit_I: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n] unit of each id, -1 of none."""
    at = pc.index_in(text, value_set=ids, skip_nulls=True).fill_null(-1)
    place = np.asarray(at.to_numpy(zero_copy_only=False), np.int64)
    return np.where(place >= 0, unit_I[place], -1)
