"""The events of all files, cleaned: what stays, and why the others don't."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import DataError, SchemaError
from ..schema import Reward, Schema, Time
from .arrow import TimeUnit, did_you_mean, mask_of, microseconds, numbers
from .catalogue import Side, ids_of
from .raw_columns import column_groups, columns_of
from .readers import Chunk, Source, chunks, column_names, naming
from .report import (
    BAD_PER,
    BAD_TAKEN,
    BAD_TIME,
    BAD_WEIGHT,
    FORGOTTEN,
    NO_ITEM,
    NO_QUERY,
    UNKNOWN_ITEM,
    UNKNOWN_QUERY,
    Tally,
)
from .vocabulary import one_array, text_form

PARTS = ("train", "valid", "test")
"""What a split column says; the number of a part is its place."""
_YES = ("1", "1.0", "true")
_NO = ("0", "0.0", "false")
_LATEST_US = 7_258_118_400 * 10**6  # 2200-01-01


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Files of events that belong together."""

    source: Source | None
    """None where no event arrived."""
    tally: Tally
    part: int | None
    """Their part of the split: 0 train, 1 valid, 2 test; None where no files were given as valid or test."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The events of a chunk that stay."""

    where: str
    table: pa.Table
    """Ids as text, and all columns that features read."""
    item_row: NDArray[np.int64]
    """-1 in the first pass where no file lists the items."""
    query_row: NDArray[np.int64]
    time_us: NDArray[np.int64] | None
    taken: NDArray[np.bool_] | None
    """None where the schema names no such column."""
    weight: NDArray[np.float32]
    """0 where not taken."""
    part: NDArray[np.int8] | None


class Events:
    """The events of all groups, cleaned. Both passes see the same ones; the first counts what is left out."""

    def __init__(
        self, schema: Schema, groups: list[Group], sides: Sequence[Side], types: dict[str, pa.DataType]
    ) -> None:
        self.groups = groups
        self._schema, self._types = schema.interactions, types
        self._query, self._item = sides
        context = [column for group in column_groups(list(schema.context.values())) for column in group]
        named = (self._schema.item, self._schema.query, self._schema.time, self._schema.taken)
        columns = [*named, *self._schema.weight_columns, self._schema.split]
        attributes = [column for side in sides for column in side.columns_from_events]
        self._columns = list(dict.fromkeys(c for c in [*columns, *context, *attributes] if c is not None))
        self._time_is_feature = _time_is_feature(schema)
        self._check_columns()

    @property
    def list_columns(self) -> tuple[str, str] | None:
        """Names of the columns of text lists."""
        return None if self._schema.query is None else (self._schema.query, self._schema.item)

    def _check_columns(self) -> None:
        """An attribute that is nowhere is better explained now than when the file is read."""
        source, tally = self.groups[0].source, self.groups[0].tally
        if source is None:
            return
        names = column_names(source, where=tally.name, list_columns=self.list_columns)
        for side in (self._query, self._item):
            for column in side.columns_from_events:
                if column not in names:
                    there = f"the interactions have {', '.join(names)}"
                    if side.source is None:
                        among, theirs = "there is no file of", ""
                    else:
                        among, theirs = "neither in the file of", f", the {side.tally.name} {', '.join(side.in_file)}"
                    raise DataError(
                        f"schema.{side.name}: column {column!r} is not in the interactions, and {among} "
                        f"{side.tally.name}{did_you_mean(column, [*side.in_file, *names])}; {there}{theirs}"
                    )

    def kept(self, *, count: bool) -> Iterator[Kept]:
        """All events that stay, in chunks; with ``count`` those that don't are counted."""
        for group in self.groups:
            if group.source is None:
                continue
            for chunk in chunks(
                group.source,
                where=group.tally.name,
                columns=self._columns,
                column_types=self._types,
                list_columns=self.list_columns,
            ):
                with naming(chunk.span()):
                    kept = self._clean(chunk, group, count)
                yield kept

    def _clean(self, chunk: Chunk, group: Group, count: bool) -> Kept:
        causes = _Causes(len(chunk.table))
        table, item_row, query_row = self._with_ids(chunk, causes)
        table, time_us = self._with_moments(table, causes)
        taken = self._taken(table, causes)
        weight = self._weights(table, taken, causes)
        part = self._parts(chunk, group)
        causes.mark(UNKNOWN_ITEM, item_row < 0, self._item.is_listed)
        causes.mark(UNKNOWN_QUERY, query_row < 0, self._query.is_listed)
        if count:
            group.tally.read += len(table)
            for cause, mask in causes.masks():
                group.tally.leave_out(cause, mask, chunk)
        stays = causes.none()
        everything = bool(stays.all())
        return Kept(
            where=chunk.span(),
            table=table if everything else table.filter(pa.array(stays)),
            item_row=item_row[stays],
            query_row=query_row[stays],
            time_us=None if time_us is None else time_us[stays],
            taken=None if taken is None else taken[stays],
            weight=weight[stays],
            part=None if part is None else part[stays],
        )

    def _with_ids(self, chunk: Chunk, causes: _Causes) -> tuple[pa.Table, NDArray[np.int64], NDArray[np.int64]]:
        """The table with its ids as text, and their rows."""
        table = chunk.table
        if self._schema.query is not None and self._query.forgets:  # first, so that no other cause shows one
            causes.mark(FORGOTTEN, self._query.is_forgotten(ids_of(chunk, self._schema.query)))
        for column, cause in ((self._schema.item, NO_ITEM), (self._schema.query, NO_QUERY)):
            if column is not None:
                id_ = ids_of(chunk, column)
                causes.mark(cause, mask_of(id_.is_null()))
                table = _replaced(table, column, id_)
        return table, self._item.rows(table), self._query.rows(table)

    def _with_moments(self, table: pa.Table, causes: _Causes) -> tuple[pa.Table, NDArray[np.int64] | None]:
        column, unit = self._schema.time, self._schema.time_unit
        if column is None:
            return table, None
        time_us, present = lenient_microseconds(one_array(table[column]), column, unit)
        causes.mark(BAD_TIME, ~present)
        if self._time_is_feature:  # as a moment it needs no unit, and no parsing again
            table = _replaced(table, column, pa.array(time_us, mask=~present).cast(pa.timestamp("us")))
        return table, time_us

    def _taken(self, table: pa.Table, causes: _Causes) -> NDArray[np.bool_] | None:
        """[n] whether the query took the item, False where that can't be read."""
        column = self._schema.taken
        if column is None:
            return None
        said = pc.utf8_lower(pc.utf8_trim_whitespace(text_form(table[column], column)))
        yes, no = (mask_of(pc.is_in(said, value_set=pa.array(words, said.type))) for words in (_YES, _NO))
        causes.mark(BAD_TAKEN, ~(yes | no))
        return yes

    def _weights(self, table: pa.Table, taken: NDArray[np.bool_] | None, causes: _Causes) -> NDArray[np.float32]:
        rule, counts = self._schema.weight, np.ones(len(table), bool) if taken is None else taken
        if rule is None:
            return counts.astype(np.float32)
        amount, *per = (numbers(one_array(table[name]), name) for name in self._schema.weight_columns)
        for whole in per:
            causes.mark(BAD_PER, counts & ~(whole > 0))
        value = rewards(rule, amount, *per) if isinstance(rule, Reward) else amount
        with np.errstate(over="ignore"):
            weight = value.astype(np.float32)
        causes.mark(BAD_WEIGHT, counts & ~(np.isfinite(weight) & (amount >= 0)))
        return np.where(counts, weight, np.float32(0))

    def _parts(self, chunk: Chunk, group: Group) -> NDArray[np.int8] | None:
        if group.part is not None:
            return np.full(len(chunk.table), group.part, np.int8)
        if self._schema.split is None:
            return None
        value = text_form(chunk.table[self._schema.split], self._schema.split)
        part = pc.fill_null(pc.index_in(value, value_set=pa.array(PARTS, value.type)), -1)
        found = np.asarray(part.to_numpy(zero_copy_only=False), np.int8)
        if (found < 0).any():
            at = int(np.argmax(found < 0))
            raise DataError(
                f"{chunk.file}, row {chunk.first_row + at}, column {self._schema.split!r}: "
                f"found {value[at].as_py()!r}, expected one of {', '.join(PARTS)}"
            )
        return found


class _Causes:
    """Why each row of a chunk is left out: the first cause that was marked."""

    def __init__(self, n: int) -> None:
        self._cause = np.zeros(n, np.int8)
        self._names: list[str] = []

    def mark(self, cause: str, mask: NDArray[np.bool_], applies: bool = True) -> None:
        """Leave out the rows of ``mask`` that still stay."""
        if applies:
            self._names.append(cause)
            self._cause[(self._cause == 0) & mask] = len(self._names)

    def masks(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Each cause with its rows."""
        for number, name in enumerate(self._names, start=1):
            yield name, self._cause == number

    def none(self) -> NDArray[np.bool_]:
        """The rows that stay."""
        return np.asarray(self._cause == 0, bool)


def rewards(rule: Reward, amount: NDArray[np.float64], per: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """[n] reward of each event by the rule; means nothing where ``per`` is not positive."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        x = amount if per is None else amount / per
        return np.where(x < rule.zero_below, 0.0, np.minimum(x / rule.one_from, 1.0))


def _replaced(table: pa.Table, column: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, values)


def _time_is_feature(schema: Schema) -> bool:
    """Whether Time features, and no others, read the column of the event's time.

    Raises:
        SchemaError: one of them reads it in another unit.
    """
    column, unit = schema.interactions.time, schema.interactions.time_unit
    users = [(side, name, f) for side, name, f in schema.features() if column is not None and column in columns_of(f)]
    for side, name, feature in users:
        if isinstance(feature, Time) and feature.unit != unit:
            raise SchemaError(
                f"schema: {side}.{name} reads the column {column!r} in unit {feature.unit!r}, but "
                f"interactions.time_unit is {unit!r}: set unit = {unit!r}"
            )
    return bool(users) and all(isinstance(feature, Time) for _, _, feature in users)


# ---------------------------------------------------------------- moments, row by row forgiving

_ISO = (
    r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
    r"([ T]([01]\d|2[0-3])(:[0-5]\d(:[0-5]\d(\.\d+)?)?(Z|[+-]([01]\d|2[0-3]):?[0-5]\d)?)?)?$"
)
_NO_SUCH_DAY = r"^\d{4}-(02-3|0[469]-31|11-31)"
_NUMBER = r"^[+-]?\d+(\.\d+)?$"


def lenient_microseconds(array: pa.Array, column: str, unit: TimeUnit) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Like ``arrow.microseconds``, but a value that can't be read, or is not in 1970-2200, is missing.

    Raises:
        DataError: the column is of a type that holds no moments.
    """
    try:
        time_us, present = microseconds(array, column, unit)
    except DataError:
        time_us, present = microseconds(_readable(array, column, unit), column, unit)
    return time_us, present & (time_us >= 0) & (time_us < _LATEST_US)


def _readable(array: pa.Array, column: str, unit: TimeUnit) -> pa.Array:
    """The values that can be read, null for the others. Text is ISO or, where no value is, numbers."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        text = _iso_text(array)
        if text.null_count < len(text):
            return text
        array = pc.if_else(pc.match_substring_regex(array, _NUMBER), array, pa.scalar(None, kind)).cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return array
    latest = _LATEST_US / {"s": 10**6, "ms": 10**3, "us": 1, "ns": 1e-3}[unit]
    fits = np.abs(numbers(array, column)) < latest
    return pc.if_else(pa.array(fits), array, pa.scalar(None, array.type))


def _iso_text(array: pa.Array) -> pa.Array:
    """The texts that name a moment that exists, to the microsecond."""
    text = pc.utf8_trim_whitespace(array)
    is_moment = mask_of(pc.match_substring_regex(text, _ISO)) & ~mask_of(pc.match_substring_regex(text, _NO_SUCH_DAY))
    is_moment &= ~mask_of(pc.match_substring_regex(text, r"^\d{4}-02-29")) | _in_leap_year(text)
    text = pc.replace_substring_regex(text, r"(\.\d{6})\d+", r"\1")
    return pc.if_else(pa.array(is_moment), text, pa.scalar(None, text.type))


def _in_leap_year(text: pa.Array) -> NDArray[np.bool_]:
    digits = pc.if_else(pc.match_substring_regex(text, r"^\d{4}"), pc.utf8_slice_codeunits(text, 0, 4), "1")
    year = np.asarray(pc.fill_null(digits, "1").cast(pa.int32()).to_numpy(zero_copy_only=False))
    return np.asarray((year % 4 == 0) & (year % 100 != 0) | (year % 400 == 0), bool)
