"""One pass over a file that tells what its columns hold: types, distinct and missing values, ranges, examples."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import DataError
from .arrow import TimeUnit, is_list, list_lengths, microseconds, numbers
from .readers import Source, read_chunks
from .vocabulary import DistinctHashes, hash64, one_array, text_form

Kind = Literal["text", "whole", "fraction", "truth", "moment", "list", "vector", "nothing", "other"]
"""What the values of a column are; ``whole``: numbers without fractions, also where they are stored as floats."""

DISTINCT_CAP = 1 << 20
"""Distinct values are counted up to here; more are reported as at least that many."""
LIST_COLUMNS = ("user", "item")
"""What the columns of a file of lists (``user item item ...``) are called."""

_SAMPLE_ROWS = 50_000
_N_EXAMPLES = 3
_LONGEST_EXAMPLE = 30
_SECONDS_1990, _SECONDS_2100 = 631_152_000, 4_102_444_800
_UNITS: dict[TimeUnit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_ISO_START = r"^\d{4}-\d\d-\d\d"


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnProfile:
    """What one column holds."""

    name: str
    type: str
    """The Arrow type, as text."""
    kind: Kind
    n: int
    n_missing: int
    """Null, nan and empty text."""
    n_distinct: int
    """Of the elements, where it holds lists."""
    is_capped: bool
    """There are more distinct values than were counted."""
    examples: tuple[str, ...]
    low: float
    """Smallest number, nan where there is none."""
    high: float
    dim: int
    """The length of all its lists, 0 where it differs."""
    hashes: NDArray[np.uint64]
    """Of the distinct values' text forms, rising."""
    sample: pa.Array
    """Values of the first rows, missing ones left out."""

    @property
    def missing_share(self) -> float:
        """Between 0 and 1."""
        return self.n_missing / max(self.n, 1)

    @property
    def unique_share(self) -> float:
        """Distinct values a value that is there."""
        return self.n_distinct / max(self.n - self.n_missing, 1)

    def words_a_text(self) -> float:
        """Mean number of words, 0 where it is no text."""
        if self.kind != "text" or not len(self.sample):
            return 0.0
        texts = text_form(self.sample, self.name).to_pylist()
        return sum(len(re.findall(r"\w+", text)) for text in texts) / len(texts)

    def share_matching(self, pattern: str) -> float:
        """Share of the sampled texts in which the pattern (RE2) is found."""
        if self.kind != "text" or not len(self.sample):
            return 0.0
        found = pc.match_substring_regex(text_form(self.sample, self.name), pattern)
        return float(pc.mean(found.cast(pa.int8())).as_py())

    def epoch_unit(self) -> TimeUnit | None:
        """The unit in which nearly all its whole numbers are moments between 1990 and 2100."""
        if self.kind != "whole" or not len(self.sample):
            return None
        low, high = np.quantile(numbers(self.sample, self.name), [0.05, 0.95])
        fitting = (u for u, factor in _UNITS.items() if _SECONDS_1990 * factor <= low <= high < _SECONDS_2100 * factor)
        return next(fitting, None)

    def is_iso_text(self) -> bool:
        """Whether all sampled texts are moments in ISO form."""
        if self.share_matching(_ISO_START) < 1.0:
            return False
        try:
            microseconds(self.sample, self.name, "s")
        except DataError:
            return False
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class TableProfile:
    """What one file (or several of the same columns) holds."""

    n: int
    columns: dict[str, ColumnProfile]
    sample: pa.Table
    """The first rows."""


def profile(source: Source, where: str) -> TableProfile:
    """Read ``source`` once and describe its columns; ``where`` is what it is called in messages.

    Raises:
        DataError: it can't be read.
    """
    columns: dict[str, _Running] = {}
    first: list[pa.Table] = []
    n = 0
    for table in read_chunks(source, where=where, list_columns=LIST_COLUMNS):
        for name in table.column_names:
            columns.setdefault(name, _Running(name)).update(one_array(table[name]))
        if n < _SAMPLE_ROWS:
            first.append(table.slice(0, _SAMPLE_ROWS - n))
        n += len(table)
    same = [table for table in first if table.schema == first[0].schema]
    return TableProfile(
        n=n, columns={name: running.finish() for name, running in columns.items()}, sample=pa.concat_tables(same)
    )


class _Running:
    """What is known of a column so far."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._type: pa.DataType | None = None
        self._n = self._n_missing = 0
        self._distinct = DistinctHashes()
        self._is_capped = False
        self._examples: list[str] = []
        self._low, self._high = np.inf, -np.inf
        self._is_whole = True
        self._lengths: set[int] = set()
        self._sample: list[pa.Array] = []
        self._n_sampled = 0

    def update(self, array: pa.Array) -> None:
        self._n += len(array)
        if pa.types.is_null(array.type):
            self._n_missing += len(array)
            return
        if self._type is None or pa.types.is_null(self._type):
            self._type = array.type
        present = self._present(array)
        self._n_missing += len(array) - len(present)
        if is_list(array.type):
            self._lengths |= set(np.unique(list_lengths(present)).tolist())
        if _is_number(array.type):
            self._measure(present)
        self._count(present)
        if array.type == self._type and self._n_sampled < _SAMPLE_ROWS:
            self._sample.append(present.slice(0, _SAMPLE_ROWS - self._n_sampled))
            self._n_sampled += len(self._sample[-1])

    def _present(self, array: pa.Array) -> pa.Array:
        if pa.types.is_floating(array.type):
            return array.filter(pc.fill_null(pc.is_finite(array), False))
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            return array.filter(pc.fill_null(pc.not_equal(array, ""), False))
        return array.drop_null()

    def _measure(self, present: pa.Array) -> None:
        value = numbers(present, self._name)
        if len(value):
            self._low, self._high = min(self._low, float(value.min())), max(self._high, float(value.max()))
            self._is_whole = self._is_whole and bool((value == np.floor(value)).all())

    def _count(self, present: pa.Array) -> None:
        if self._is_capped and len(self._examples) >= _N_EXAMPLES:
            return
        values = pc.list_flatten(present) if is_list(present.type) else present
        try:
            distinct = text_form(pc.unique(values), self._name).drop_null()
        except (DataError, pa.ArrowNotImplementedError):
            distinct = _text_of_others(values)
        self._distinct.add(hash64(distinct))
        self._is_capped = len(self._distinct) > DISTINCT_CAP
        for text in distinct.slice(0, _N_EXAMPLES - len(self._examples)).to_pylist():
            if text not in self._examples:
                self._examples.append(text)

    def finish(self) -> ColumnProfile:
        has_one_length = len(self._lengths) == 1
        return ColumnProfile(
            name=self._name,
            type=str(self._type or pa.null()),
            kind=self._kind(),
            n=self._n,
            n_missing=self._n_missing,
            n_distinct=min(len(self._distinct), DISTINCT_CAP),
            is_capped=self._is_capped,
            examples=tuple(_shortened(text) for text in self._examples),
            low=self._low if self._low <= self._high else np.nan,
            high=self._high if self._low <= self._high else np.nan,
            dim=self._lengths.pop() if has_one_length else 0,
            hashes=self._distinct.values(),
            sample=pa.concat_arrays(self._sample) if self._sample else pa.nulls(0),
        )

    def _kind(self) -> Kind:
        kind = self._type
        if kind is None or self._n == self._n_missing:
            return "nothing"
        if is_list(kind):
            return _kind_of_lists(kind.value_type, has_one_length=len(self._lengths) == 1)
        if _is_number(kind):
            return "whole" if self._is_whole else "fraction"
        if pa.types.is_boolean(kind):
            return "truth"
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return "moment"
        return "text" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else "other"


def _kind_of_lists(element: pa.DataType, *, has_one_length: bool) -> Kind:
    if pa.types.is_floating(element):
        return "vector" if has_one_length else "other"
    is_value = pa.types.is_string(element) or pa.types.is_large_string(element) or pa.types.is_integer(element)
    return "list" if is_value else "other"


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _text_of_others(values: pa.Array) -> pa.LargeStringArray:
    """Moments and whatever else has no text form, as it is printed; only the first few where that is slow."""
    if pa.types.is_timestamp(values.type):
        return (
            pc.unique(values.drop_null())
            .cast(pa.timestamp("us", tz=values.type.tz), safe=False)
            .cast(pa.large_string())
        )
    return pa.array([str(value) for value in values.slice(0, _N_EXAMPLES).to_pylist()], pa.large_string())


def _shortened(text: str) -> str:
    flat = " ".join(text.split())
    flat = flat.removesuffix(".000000")
    return flat if len(flat) <= _LONGEST_EXAMPLE else flat[: _LONGEST_EXAMPLE - 1] + "…"
