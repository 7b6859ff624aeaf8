"""Exposures read back: the files of an ``ExposureLog``, or the same columns in Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..data.arrow import column_of, did_you_mean, mask_of, microseconds, numbers
from ..data.files import File, files_at, listed
from ..data.readers import chunks, column_names, naming
from ..data.vocabulary import text_form
from ..errors import DataError

COUNTS = ("found", "filtered", "returned")
"""Columns that count items of an answer, each those that passed one stage more."""
_TEXTS = ("request", "experiment", "arm", "user")
_COLUMNS = ("time", *_TEXTS, *COUNTS, "dropped")
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Exposures:
    """The exposures of one experiment, E of them in no order."""

    experiment: str
    time_us_E: NDArray[np.int64]
    user_E: pa.LargeStringArray
    """Null where there was none."""
    request_E: pa.LargeStringArray
    arm_E: pa.LargeStringArray
    count_E: dict[str, NDArray[np.float64]]
    """By name of ``COUNTS``: those that all files have."""
    n_dropped: int
    """Exposures, of any experiment, that the log says it lost."""
    n_cut_lines: int
    """Last lines of which a killed process wrote only a part, left out."""


@dataclass(slots=True)
class _Tally:
    dropped: int = 0
    cut_lines: int = 0


def read_exposures(source: str | Path, experiment: str | None = None) -> Exposures:
    """The exposures of an experiment, in a file or a folder: NDJSON, Parquet and whatever else data is read from.

    Needed are the columns time (seconds since 1970, or a timestamp), experiment, arm, and user or request. A last line
    that was cut off is counted and left out; any other damage is an error.

    Args:
        source: file or folder.
        experiment: may be left out where the files know only one.

    Raises:
        DataError: nothing there, a column missing or of another type, no such experiment, or several and none is named.
    """
    tally, parts, names = _Tally(), list[pa.Table](), set[str]()
    for file in files_at(Path(source), "exposures"):
        for table in _tables(file, tally):
            names |= set(pc.unique(table["experiment"]).to_pylist())
            wanted = table if experiment is None else table.filter(pc.equal(table["experiment"], experiment))
            if len(wanted) or not parts:  # of a file of another experiment, columns tell nothing of this one
                parts = [*(part for part in parts if len(part)), wanted]
    known = sorted(names)
    if experiment is None and len(known) != 1:
        found = listed(known, most=5)
        raise DataError(f"{source}: found the experiments {found}, expected one: say which (--name)")
    name = known[0] if experiment is None else experiment
    if name not in names:
        near = did_you_mean(name, known)
        raise DataError(f"{source}: there is no experiment {name!r}; found {listed(known, most=5)}{near}")
    counts = [count for count in COUNTS if all(count in part.column_names for part in parts)]
    kept = ["time", "user", "request", "arm", *counts]
    table = pa.concat_tables([part.select(kept) for part in parts]).combine_chunks()
    return Exposures(
        experiment=name,
        time_us_E=column_of(table, "time").to_numpy(),
        user_E=column_of(table, "user"),
        request_E=column_of(table, "request"),
        arm_E=column_of(table, "arm"),
        count_E={count: column_of(table, count).to_numpy() for count in counts},
        n_dropped=tally.dropped,
        n_cut_lines=tally.cut_lines,
    )


def _tables(file: File, tally: _Tally) -> Iterator[pa.Table]:
    """The columns that matter, each of one type: microseconds, text, float counts."""
    if file.path.stat().st_size == 0:  # a process that was killed before its first line
        return
    if file.kind == ".ndjson" and file.path.suffix != ".gz":
        is_cut = _is_cut(file.path)
        tally.cut_lines += is_cut
        file = replace(file, whole_lines_only=is_cut, may_be_empty=file.may_be_empty or is_cut)
    columns = None
    if file.kind in (".parquet", ".arrow"):  # the lists of items need not be read
        there = column_names(file, where="exposures")
        columns = [name for name in there if name in _COLUMNS]
    texts = {name: pa.large_string() for name in _TEXTS}
    for chunk in chunks(file, where="exposures", columns=columns, column_types=texts):
        with naming(chunk.span()):
            if "dropped" in chunk.table.column_names:
                tally.dropped += int(np.nansum(numbers(column_of(chunk.table, "dropped"), "dropped")))
            yield _typed(chunk.table)


def _typed(table: pa.Table) -> pa.Table:
    time_us, present = microseconds(column_of(table, "time"), "time", "s")
    if "user" not in table.column_names and "request" not in table.column_names:
        column_of(table, "user")
    typed: dict[str, pa.Array] = {"time": pa.array(time_us)}
    for name in _TEXTS:
        may_lack = name in ("user", "request") and name not in table.column_names
        typed[name] = pa.nulls(len(table), pa.large_string()) if may_lack else text_form(column_of(table, name), name)
    has_all = {"time": present} | {name: mask_of(typed[name].is_valid()) for name in ("experiment", "arm")}
    for name, has in has_all.items():
        if not has.all():
            raise DataError(
                f"column {name!r}: row {int(np.argmin(has)) + 1} of these has no value, expected one in all"
            )
    for name in COUNTS:
        if name in table.column_names:
            typed[name] = pa.array(np.nan_to_num(numbers(column_of(table, name), name)))
    return pa.table(typed)


def _is_cut(path: Path) -> bool:
    """Whether the file does not end with a whole record."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        tail, start = b"", size
        while b"\n" not in tail and start > 0:
            start = max(0, start - _TAIL_BYTES)
            file.seek(start)
            tail = file.read(size - start)
    last = tail.rpartition(b"\n")[2]
    if not last.strip():
        return False
    try:
        json.loads(last)
    except ValueError:  # of which a cut UTF-8 character is one, too
        return True
    return False
