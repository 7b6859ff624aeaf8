"""One raw query at a time becomes what the query tower reads, without an Arrow array where there is a shorter way.

``RawQueries`` is the oracle: what is encoded here is bit for bit what it encodes, and whatever is not plain (an odd
type, a feature of several columns, a mistake) is left to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..bundle.served_tower import list_inputs
from ..data.columns import Column, RaggedArray
from ..data.encoders import Encoders
from ..data.raw_queries import HISTORY, feature_columns
from ..data.vocabulary import HashedVocabulary, Vocabulary
from ..schema import Categorical, Feature, History, Id, Number, Seed, table_of

Inputs = dict[str, NDArray[Any]]
"""Arrays of one row by input of the tower's graph."""

_FEW = 32
"""Up to so many items of a history are looked up one by one."""
_MAX_INT = 2**53
"""Whole numbers below are the same as floats."""
_LARGE = 1e30
"""Numbers beyond may be too large for a float32."""
_NO_ROWS, _NO_WEIGHTS = np.full((1, 1), -1, np.int64), np.zeros((1, 1), np.float32)


def plain_text(value: object) -> str | None:
    """The text form of text and of whole numbers, what ids mostly are; None where another look is needed."""
    if type(value) is str:
        return value
    return str(value) if type(value) is int and -_MAX_INT < value < _MAX_INT else None


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one feature of a query is encoded."""

    side: str
    name: str
    columns: frozenset[str]
    replaced_by: frozenset[str]
    """Columns that, if given, count more than what is stored; none of a feature that is not stored: all count."""
    is_stored: bool
    quick: Callable[[object], NDArray[Any] | None] | None
    """An encoded value from a raw one of the only column; None where that is not plain."""


class SingleQuery:
    """The query side of a bundle, specialised when it is opened."""

    def __init__(self, bundle: Bundle) -> None:
        self._raw, self._tower = bundle.raw_queries, bundle.query_tower
        self._queries, self._items = self._raw.queries, self._raw.items
        nothing: dict[str, Column] = {}
        for side in ("query", "context"):
            nothing |= bundle.encoders.encode_rows(side, [{}])
        for name, _, _ in self._raw.histories:
            nothing[name] = RaggedArray.of_lengths(np.zeros(1, np.int64), np.zeros(0, np.int64))
        self._nothing: Inputs = self._tower.inputs_of(nothing)
        keys = frozenset(self._raw.keys)
        self._keys = tuple(self._raw.keys)
        self._known = frozenset(self._raw.columns) | {HISTORY}
        self._tells = frozenset(column for column in self._known if self._raw.tells_of_new(column))
        plans = [
            _plan(bundle.encoders, side, name, feature, keys)
            for side, name, feature in bundle.schema.features()
            if side != "item" and not isinstance(feature, History)
        ]
        self._plans_of: dict[str, list[_Plan]] = {
            column: [plan for plan in plans if column in plan.columns] for column in self._known
        }
        self._stored = [(key, _plain(column)) for key, column in self._raw.stored.items() if self._is_read(key)]
        self._histories = [
            (name, k, np.asarray(id_M), bool((id_M < 0).any()))
            for name, k, id_M in self._raw.histories
            if self._is_read(name)
        ]
        self._recent = _plain(self._raw.recent()) if self._histories else None
        self._outputs_of = {
            (plan.side, plan.name): [key for key in nothing if key == plan.name or key.startswith(f"{plan.name}.")]
            for plan in plans
        }

    def _is_read(self, key: str) -> bool:
        return key in self._nothing or list_inputs(key)[0] in self._nothing

    def row(self, query: Mapping[str, object]) -> int:
        """Row of a query's id, -1 where it has none or is new; raises what ``RawQueries.row`` raises."""
        row, named = -1, False
        for key in self._keys:
            value = query.get(key)
            if value is None:
                continue
            text = plain_text(value)
            if text is None:
                return self._raw.row(query)
            named = True
            if self._queries is not None:
                row = self._queries.row_of_text(text)
            break
        if query.keys() <= self._known and (row >= 0 or (self._says_something(query) if named else len(query))):
            return row if row >= 0 or not self._all_missing(query) else self._raw.row(query)
        return self._raw.row(query)

    def _says_something(self, query: Mapping[str, object]) -> bool:
        return self._queries is None or any(column in self._tells and query[column] is not None for column in query)

    @staticmethod
    def _all_missing(query: Mapping[str, object]) -> bool:
        return all(value is None for value in query.values())

    def inputs(self, query: Mapping[str, object], row: int) -> Inputs:
        """What the tower reads of a query whose id has this row.

        Raises DataError for a value of the wrong type.
        """
        inputs = self._nothing.copy()
        if row >= 0:
            for key, column in self._stored:
                _put(inputs, key, column, row)
        self._put_given(inputs, query, row)
        if HISTORY in query and query[HISTORY] is not None:
            self._put_histories(inputs, self._rows_of(query[HISTORY]))
        elif row >= 0 and self._recent is not None:
            recent = self._recent
            assert isinstance(recent, RaggedArray)
            self._put_histories(inputs, recent.value[recent.offset[row] : recent.offset[row + 1]])
        return inputs

    def _put_given(self, inputs: Inputs, query: Mapping[str, object], row: int) -> None:
        slow: list[_Plan] = []
        for name, value in query.items():
            if value is None:
                continue
            for plan in self._plans_of[name]:
                if row >= 0 and plan.is_stored and name not in plan.replaced_by:
                    continue
                array = None if plan.quick is None else plan.quick(value)
                if array is None:
                    slow.append(plan)
                elif plan.name in inputs:
                    inputs[plan.name] = array
        if slow:
            self._encode_slowly(inputs, query, slow)

    def _encode_slowly(self, inputs: Inputs, query: Mapping[str, object], plans: list[_Plan]) -> None:
        for side in dict.fromkeys(plan.side for plan in plans):
            of_side = [plan for plan in plans if plan.side == side]
            columns = frozenset().union(*(plan.columns for plan in of_side))
            given = {column: query[column] for column in query if column in columns and query[column] is not None}
            encoded = self._raw.encoders.encode_rows(side, [given])
            keys = {key for plan in of_side for key in self._outputs_of[side, plan.name]}
            inputs |= self._tower.inputs_of({key: encoded[key] for key in keys if key in encoded})

    def _rows_of(self, history: object) -> NDArray[np.int64]:
        if self._raw.histories and type(history) is list and len(history) <= _FEW:
            texts = [plain_text(item) for item in history]
            if None not in texts:
                found = [self._items.row_of_text(text) for text in texts if text is not None]
                return np.array([row for row in found if row >= 0], np.int64)
        return self._raw.rows_of(history)

    def _put_histories(self, inputs: Inputs, item_row: NDArray[Any]) -> None:
        for name, k, id_M, has_gaps in self._histories:
            rows = id_M[item_row[-k:]]
            _put_list(inputs, name, rows[rows >= 0] if has_gaps else rows, None)


def _plain(column: Column) -> Column:
    """The same numbers as plain arrays: a slice of a mapped one takes five times as long."""
    if not isinstance(column, RaggedArray):
        return np.asarray(column)
    weight = None if column.weight is None else np.asarray(column.weight)
    return RaggedArray(offset=np.asarray(column.offset), value=np.asarray(column.value), weight=weight)


def _put(inputs: Inputs, key: str, column: Column, row: int) -> None:
    """One row of a stored column."""
    if isinstance(column, RaggedArray):
        start, stop = int(column.offset[row]), int(column.offset[row + 1])
        weight = None if column.weight is None else column.weight[start:stop]
        _put_list(inputs, key, column.value[start:stop], weight)
    else:
        inputs[key] = column[row : row + 1].astype(inputs[key].dtype)


def _put_list(inputs: Inputs, key: str, rows: NDArray[Any], weight: NDArray[np.float32] | None) -> None:
    row_name, weight_name = list_inputs(key)
    n = len(rows)
    if n == 0:
        inputs[row_name], inputs[weight_name] = _NO_ROWS, _NO_WEIGHTS
        return
    inputs[row_name] = rows.astype(np.int64).reshape(1, n)
    inputs[weight_name] = _mean_of(n) if weight is None else np.ascontiguousarray(weight).reshape(1, n)


@lru_cache
def _mean_of(n: int) -> NDArray[np.float32]:
    """[1, n] weights of a mean."""
    share = np.full((1, n), 1 / n, np.float32)
    share.flags.writeable = False
    return share


def _plan(encoders: Encoders, side: str, name: str, feature: Feature, keys: frozenset[str]) -> _Plan:
    columns = frozenset(feature_columns(feature))
    return _Plan(
        side=side,
        name=name,
        columns=columns,
        replaced_by=columns - keys,
        is_stored=side == "query",
        quick=_quick(encoders, side, name, feature),
    )


def _quick(
    encoders: Encoders, side: str, name: str, feature: Feature
) -> Callable[[object], NDArray[Any] | None] | None:
    match feature:
        case Id() | Categorical() | Seed():
            table = table_of(side, name, feature)
            assert table is not None
            return _row_quickly(encoders.vocabularies[table])
        case Number():
            return _number_quickly(encoders, side, name, feature)
        case _:
            return None


def _row_quickly(vocabulary: Vocabulary | HashedVocabulary) -> Callable[[object], NDArray[Any] | None]:
    def quick(value: object) -> NDArray[Any] | None:
        text = plain_text(value)
        return None if text is None else np.array([vocabulary.row_of_text(text)], np.int64)

    return quick


def _number_quickly(
    encoders: Encoders, side: str, name: str, feature: Number
) -> Callable[[object], NDArray[Any] | None] | None:
    if feature.transform == "quantile":
        table = table_of(side, name, feature)
        assert table is not None
        edges = encoders.edges[table]

        def bucket(value: object) -> NDArray[Any] | None:
            number = _number(value)
            return None if number is None else edges.searchsorted(number, side="right").astype(np.int64)

        return bucket
    scaling, is_log = encoders.scalings[f"{side}.{name}"], feature.transform == "log"

    def scaled(value: object) -> NDArray[Any] | None:
        number = _number(value)
        if number is None:
            return None
        measure = np.sign(number) * np.log1p(np.abs(number)) if is_log else number
        return np.nan_to_num((measure - scaling.mean) / scaling.deviation).astype(np.float32)

    return scaled


def _number(value: object) -> NDArray[np.float64] | None:
    if type(value) is float or (type(value) is int and -_MAX_INT < value < _MAX_INT):
        return np.array([value], np.float64) if -_LARGE < value < _LARGE else None
    return None
