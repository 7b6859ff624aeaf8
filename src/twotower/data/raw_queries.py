"""Queries as a caller has them, ids and columns of raw values, become rows and encoded columns. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import DataError
from ..schema import Feature, History, Id, Schema, table_of
from .arrow import did_you_mean, weighted_rows
from .columns import Column, RaggedArray, put_together, taken
from .encoders import Encoders
from .files import listed
from .vocabulary import Vocabulary

HISTORY = "history"
"""What a query gives its history as: a list of item ids, oldest first."""

RawQuery = Mapping[str, object]
"""Columns of one query by name, such as ``{"user_id": "u1"}``; None is as if it were not there."""


class RawQueries:
    """What is known of queries, and how what a caller says of one becomes what a query tower reads.

    A known id brings its stored columns and its history; columns that are given replace them, and ``history`` replaces
    the history.
    """

    def __init__(
        self,
        schema: Schema,
        encoders: Encoders,
        *,
        queries: Vocabulary | None,
        items: Vocabulary,
        stored: Mapping[str, Column],
        item_columns: Mapping[str, Column],
        recent: Callable[[], RaggedArray],
    ) -> None:
        """``stored`` are the encoded columns of all known queries and ``item_columns`` those of all items; ``recent``
        tells the items of every known query, oldest first, and is asked once one is wanted."""
        self.schema, self.encoders = schema, encoders
        self.queries, self.items, self.stored, self.recent = queries, items, stored, recent
        self._columns = {side: _columns(schema, side) for side in ("query", "context")}
        self.keys = [n for n in (schema.query_key, schema.interactions.query) if n is not None]
        self.histories = [
            (name, feature.k, _id_column(schema, item_columns, table_of("context", name, feature)))
            for name, feature in schema.context.items()
            if isinstance(feature, History)
        ]

    @property
    def columns(self) -> list[str]:
        """The columns a query may give, sorted."""
        return sorted({*self._columns["query"], *self._columns["context"], *self.keys})

    @property
    def reads_histories(self) -> bool:
        """Whether the tower reads a query's latest items."""
        return bool(self.histories)

    def row(self, query: RawQuery) -> int:
        """Row of a query's id; -1 where it has none or is new.

        Raises DataError for an unknown column, or a query of which nothing is known.
        """
        given = _given(query)
        self._check(given)
        names = [name for name in self.keys if name in given]
        if not names or self.queries is None:
            return -1
        try:
            row = self.queries.row(given[names[0]], names[0])
        except DataError as error:
            raise DataError(f"query: {error}") from error
        if row < 0 and not any(map(self.tells_of_new, given)):
            raise DataError(
                f"query: {names[0]} {given[names[0]]!r} is not known, and nothing else was given that says anything "
                f"of a new query: give other columns ({listed(self.columns, most=10)}), or an id that has events"
            )
        return row

    def _check(self, given: RawQuery) -> None:
        known = self.columns
        unknown = sorted(set(given) - {*known, HISTORY})
        if unknown:
            raise DataError(
                f"query: {unknown[0]!r} is no column of the query side, which has {listed(known, most=10)}"
                f"{did_you_mean(unknown[0], known)}"
            )
        if not given:
            raise DataError(f"query: it is empty, expected at least one of {listed(known, most=10)}")

    def tells_of_new(self, column: str) -> bool:
        """Whether something was learnt for values of a column that training did not meet."""
        features = [f for side, _, f in self.schema.features() if side != "item" and column in feature_columns(f)]
        return column == HISTORY or not all(isinstance(f, Id) and _is_exact(f) for f in features)

    def encode(self, queries: Sequence[RawQuery], row_B: NDArray[np.int64]) -> dict[str, Column]:
        """What the query tower reads of these queries, whose ids have the rows ``row_B`` (``row`` tells them).

        Raises DataError for a value of the wrong type.
        """
        given = [_given(query) for query in queries]
        encoded: dict[str, Column] = {}
        for side, columns in self._columns.items():
            encoded |= self.encoders.encode_rows(side, [{c: q[c] for c in q if c in columns} for q in given])
        for key, column in self.stored.items():
            holds_B = (row_B >= 0) & np.array([not self._mentions(query, key) for query in given], bool)
            encoded[key] = _replaced(encoded[key], holds_B, taken(column, row_B[holds_B]))
        return encoded | self._history_columns(given, row_B)

    def encode_known(self, row_B: NDArray[np.int64]) -> dict[str, Column]:
        """The same of known queries that give nothing but their ids."""
        nothing = self.encoders.encode_rows("context", [{}])
        encoded = {key: taken(column, np.zeros(len(row_B), np.int64)) for key, column in nothing.items()}
        encoded |= {key: taken(column, row_B) for key, column in self.stored.items()}
        return encoded | self._history_columns([{}] * len(row_B), row_B)

    def _mentions(self, given: RawQuery, key: str) -> bool:
        """Whether a query gives columns that an encoded one is made of; its id is none."""
        feature = self.schema.query[key if key in self.schema.query else key.split(".")[0]]
        return any(c in given and c not in self.keys for c in feature_columns(feature))

    def _history_columns(self, given: Sequence[RawQuery], row_B: NDArray[np.int64]) -> dict[str, Column]:
        told = {at: self.rows_of(query[HISTORY]) for at, query in enumerate(given) if HISTORY in query}
        if not self.histories:
            return {}
        lists = self._recent_of(np.where([at in told for at in range(len(row_B))], -1, row_B))
        if told:
            parts = [told.get(at, lists.value[lists.offset[at] : lists.offset[at + 1]]) for at in range(len(row_B))]
            length = np.array([len(part) for part in parts], np.int64)
            lists = RaggedArray.of_lengths(length, np.concatenate(parts).astype(np.int64))
        found: dict[str, Column] = {}
        for name, k, id_M in self.histories:
            last = last_of_each(lists, k)
            found[name] = weighted_rows(last.lengths(), np.asarray(id_M[last.value], np.int64), None)
        return found

    def _recent_of(self, row_B: NDArray[np.int64]) -> RaggedArray:
        """[B] lists of item rows, oldest first; none where the row is -1."""
        length, known_B = np.zeros(len(row_B), np.int64), row_B >= 0
        if not known_B.any():
            return RaggedArray.of_lengths(length, np.zeros(0, np.int64))
        lists = self.recent().take(row_B[known_B])
        length[known_B] = lists.lengths()
        return RaggedArray.of_lengths(length, lists.value)

    def rows_of(self, history: object) -> NDArray[np.int64]:
        """Rows of the items of a history, without those that are not known."""
        if not self.histories:
            raise DataError("query: history is given, but the schema declares no History feature: leave it out")
        if not isinstance(history, list):
            raise DataError(f"query: history is {type(history).__name__}, expected a list of item ids")
        try:
            row = self.items.rows(pa.array(history), HISTORY)
        except (DataError, pa.ArrowException, OverflowError, UnicodeEncodeError):
            row = np.array([self.items.row(item, HISTORY) for item in history], np.int64)  # ids may mix types
        return row[row >= 0]


def last_of_each(lists: RaggedArray, k: int) -> RaggedArray:
    """The last k values of each list, without weights."""
    length = lists.lengths()
    kept = np.repeat(lists.offset[1:] - k, length) <= np.arange(len(lists.value))
    return RaggedArray.of_lengths(np.minimum(length, k), lists.value[kept])


def feature_columns(feature: Feature) -> Iterator[str]:
    """The columns a feature reads."""
    for name in ("column", "weights"):
        value = getattr(feature, name, None)
        if value is not None:
            yield value
    yield from getattr(feature, "columns", ())
    yield from getattr(feature, "name_columns", ())


def _given(query: RawQuery) -> dict[str, object]:
    if not isinstance(query, Mapping):
        raise DataError(f'query: found {query!r:.80}, expected its columns, such as {{"user_id": "u1"}}')
    return {column: value for column, value in query.items() if value is not None}


def _replaced(column: Column, where_B: NDArray[np.bool_], by: Column) -> Column:
    """The column with the rows ``where_B`` replaced by those of another, in order."""
    if not len(by):
        return column
    at = np.arange(len(where_B))
    at[where_B] = len(column) + np.arange(len(by))
    return taken(put_together(column, by), at)


def _is_exact(feature: Id) -> bool:
    """Whether ids that training did not meet have a vector that nothing moved."""
    return feature.min_count == 1 and feature.hash_buckets is None


def _columns(schema: Schema, side: str) -> set[str]:
    """Columns the features of a side read."""
    return {column for of, _, feature in schema.features() if of == side for column in feature_columns(feature)}


def _id_column(schema: Schema, item_columns: Mapping[str, Column], table: str | None) -> NDArray[np.int64]:
    """[M] row of every catalogue item in the embedding table of item ids; the schema has seen to it that there is
    one."""
    name = next(n for n, f in schema.item.items() if isinstance(f, Id) and table_of("item", n, f) == table)
    column = item_columns[name]
    assert not isinstance(column, RaggedArray)
    return column
