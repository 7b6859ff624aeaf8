"""Arrow columns read as what a feature expects: numbers, moments, lists, vectors. The one place that checks types.

Every error names the column, what was found and what was expected. Missing is null, nan and infinite alike.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import DataError
from .columns import RaggedArray
from .vocabulary import one_array, text_form

TimeUnit = Literal["s", "ms", "us", "ns"]

US_PER_HOUR = 3_600 * 10**6
US_PER_DAY = 24 * US_PER_HOUR
_YEAR_10000_US = 253_402_300_800 * 10**6
_PER_US: dict[str, float] = {"s": 1e-6, "ms": 1e-3, "us": 1.0, "ns": 1e3}
_HAS_ZONE = r":[0-9.]+ ?(Z|z|[+-][0-9]{2}(:?[0-9]{2})?)$"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing where no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def column_of(table: pa.Table, column: str) -> pa.Array:
    """One column as one array.

    Raises:
        DataError: the table has no such column.
    """
    if column not in table.column_names:
        raise DataError(
            f"column {column!r} is missing; found {', '.join(table.column_names) or 'no columns'}"
            f"{did_you_mean(column, table.column_names)}"
        )
    return one_array(table[column])


def mask_of(array: pa.Array) -> NDArray[np.bool_]:
    """A truth-value array as numpy, null as False."""
    return np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False), bool)


# ---------------------------------------------------------------- numbers and moments


def numbers(array: pa.Array, column: str) -> NDArray[np.float64]:
    """[n] numbers (truth values as 0 and 1), nan where missing or infinite."""
    kind = array.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not (is_number or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise DataError(f"column {column!r}: found {kind}, expected numbers; declare text as Categorical or Text")
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    value = np.array(array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)
    value[~np.isfinite(value)] = np.nan
    return value


def microseconds(array: pa.Array, column: str, unit: TimeUnit) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """[n] microseconds since 1970 (UTC; 0 where missing) and [n] whether there is one.

    Timestamps, dates and ISO text need no unit; numbers are in ``unit`` since 1970. Moments without a zone are UTC.
    """
    kind = array.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _scaled(numbers(array, column), array, column, unit)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        array = _parsed(text_form(array, column), column)
    elif pa.types.is_date(kind):
        array = array.cast(pa.timestamp("s")).cast(pa.timestamp("us"))
    elif pa.types.is_null(kind):
        array = array.cast(pa.timestamp("us"))
    elif not pa.types.is_timestamp(kind):
        raise DataError(f"column {column!r}: found {kind}, expected timestamps, dates, ISO text or numbers since 1970")
    present = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), bool)
    whole = array.cast(pa.timestamp("us", tz=array.type.tz), safe=False).cast(pa.int64())
    return np.array(whole.fill_null(0).to_numpy(zero_copy_only=False), np.int64), present


def _scaled(
    number: NDArray[np.float64], array: pa.Array, column: str, unit: TimeUnit
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    present = ~np.isnan(number)
    number = np.where(present, number, 0.0)
    late = np.flatnonzero(np.abs(number) / _PER_US[unit] >= _YEAR_10000_US)
    if len(late):
        raise DataError(
            f"column {column!r}: row {late[0]} holds {array[int(late[0])].as_py()}, which in unit {unit!r} is beyond "
            "the year 9999: set another unit (s, ms, us or ns)"
        )
    if pa.types.is_integer(array.type):  # whole numbers stay exact: a float has 53 bits, microseconds of today 51
        exact = np.asarray(array.fill_null(0).to_numpy(zero_copy_only=False)).astype(np.int64)
        return (exact // 1000 if unit == "ns" else exact * round(1 / _PER_US[unit])), present
    return np.floor(number / _PER_US[unit]).astype(np.int64), present


def _parsed(text: pa.LargeStringArray, column: str) -> pa.Array:
    text = pc.utf8_trim_whitespace(text)
    text = pc.if_else(pc.equal(text, ""), None, text)
    zoned = pc.match_substring_regex(text, _HAS_ZONE)
    try:
        with_zone = pc.if_else(zoned, text, None).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
        without = pc.if_else(zoned, None, text).cast(pa.timestamp("us")).cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise DataError(
            f"column {column!r}: {error}; expected ISO text such as 2024-05-01 or 2024-05-01T12:30:00Z"
        ) from error
    return pc.coalesce(with_zone, without).cast(pa.timestamp("us"))


# ---------------------------------------------------------------- lists


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds a list a row."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def list_lengths(array: pa.Array) -> NDArray[np.int64]:
    """[n] length of each list, 0 where missing."""
    length = pc.list_value_length(array).cast(pa.int64())
    return np.array(length.fill_null(0).to_numpy(zero_copy_only=False), np.int64)


def text_lists(array: pa.Array, column: str, separator: str | None) -> tuple[NDArray[np.int64], pa.LargeStringArray]:
    """Lists of values as [n] lengths and the text form of all values end to end, missing ones included.

    Text is split at ``separator``, white space around the parts removed, empty parts left out.
    """
    if is_list(array.type):
        return list_lengths(array), text_form(pc.list_flatten(array), column)
    if pa.types.is_null(array.type):
        return np.zeros(len(array), np.int64), pa.array([], pa.large_string())
    if separator is None:
        raise DataError(
            f"column {column!r}: found {array.type}, expected a list column; set separator to split text, "
            "or declare one value a row as Categorical"
        )
    parts = pc.split_pattern(text_form(array, column), separator)
    owner = np.repeat(np.arange(len(array)), list_lengths(parts))
    value = pc.utf8_trim_whitespace(pc.list_flatten(parts))
    filled = mask_of(pc.not_equal(value, ""))
    return np.bincount(owner[filled], minlength=len(array)), value.filter(pa.array(filled))


def number_lists(array: pa.Array, column: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Lists of numbers as [n] lengths and all numbers end to end, nan where missing or infinite."""
    if pa.types.is_null(array.type):
        return np.zeros(len(array), np.int64), np.zeros(0)
    if not is_list(array.type):
        raise DataError(f"column {column!r}: found {array.type}, expected a list of numbers in each row")
    return list_lengths(array), numbers(pc.list_flatten(array), column)


def vectors(array: pa.Array, column: str, dim: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """[n, dim] vectors (zeros where missing) and [n] whether there is one. One with a missing number is missing."""
    length, value = number_lists(array, column)
    present = np.zeros(len(array), bool) if pa.types.is_null(array.type) else mask_of(array.is_valid())
    wrong = np.flatnonzero(present & (length != dim))
    if len(wrong):
        raise DataError(
            f"column {column!r}: row {wrong[0]} holds {length[wrong[0]]} numbers, expected dim = {dim} in every row"
        )
    vector = np.zeros((len(array), dim), np.float32)
    vector[present] = value.reshape(-1, dim)
    broken = np.isnan(vector).any(axis=1)
    vector[broken] = 0.0
    return vector, present & ~broken


def weighted_rows(length: NDArray[np.int64], row: NDArray[np.int64], weight: NDArray[np.float64] | None) -> RaggedArray:
    """Lists of rows whose weights sum to one in each list; entries without a row (-1) or weight (0) left out."""
    owner = np.repeat(np.arange(len(length)), length)
    kept = row >= 0 if weight is None else (row >= 0) & (weight > 0)
    owner, row = owner[kept], row[kept]
    share = np.ones(len(row)) if weight is None else weight[kept]
    share = share / np.bincount(owner, share, minlength=len(length))[owner]
    return RaggedArray.of_lengths(
        np.bincount(owner, minlength=len(length)), row.astype(np.int32), share.astype(np.float32)
    )
