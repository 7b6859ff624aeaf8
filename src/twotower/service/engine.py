"""One bundle at work: a wish and a query in, the bytes of an answer out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import DataError
from .asking import AtMost, Wish
from .catalogue import Catalogue, text_of
from .single_query import SingleQuery

_LEAVE_OUT = 1024
"""Up to so many items that a query must not get are found and left out; more are not searched."""
_NOTHING = np.zeros(0, np.int64)
_WARM = 64
"""Queries answered before the first caller's."""

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]


class Answer(NamedTuple):
    """Items for one query, best first, and how many were left at each stage."""

    row_k: Rows
    score_k: NDArray[np.float32]
    found: int
    """Items the index came up with; those that ``where`` does not hold for are not looked for."""
    filtered: int
    """Of these, without what was seen, excluded or one too many of its kind."""
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Encoding, tower, search."""

    @property
    def returned(self) -> int:
        """Items of the answer."""
        return len(self.row_k)


class Encoded(NamedTuple):
    """A query as a search takes it."""

    query_D: NDArray[np.float32]
    excluded: Rows
    """Items that it must not get, rising."""
    encode_s: float
    tower_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NewItem:
    """An item as callers have it."""

    item: str
    columns: Mapping[str, object]


class Engine:
    """Answers from a bundle, and from what came and went since (``upsert``, ``delete``).

    Any number of threads may ask; one at a time may change.
    """

    def __init__(self, bundle: Bundle, arm: str | None = None) -> None:
        self.bundle, self.arm = bundle, arm
        self.catalogue = Catalogue(bundle)
        self.index = bundle.index.look(bundle.index.settings)  # of its own: its changes are not the bundle's
        self.single = SingleQuery(bundle)
        bundle.item_tower  # noqa: B018 # opened now: later its folder may hold another bundle
        self._seen_offset, self._seen_value = np.asarray(bundle.seen_rows.offset), np.asarray(bundle.seen_rows.value)
        self._count()
        end = f'}},"bundle":"{bundle.fingerprint}"'.encode()
        self._end, self._end_of_arm = end + b"}", end + b',"arm":' + orjson.dumps(arm) + b"}"

    def _count(self) -> None:
        self.n_items = self.index.n
        self.n_changed = self.catalogue.n_changed

    def warm(self) -> None:
        """Answer some queries, so that files are at hand and nothing is made first when a caller asks."""
        queries = self.bundle.queries
        for row in range(0 if queries is None else min(_WARM, len(self.bundle.seen_rows))):
            text = self.query_id(row)
            if text is not None:
                query = {self.bundle.raw_queries.keys[0]: text}
                self.answer_bytes(self.recommend(query, Wish()), Wish())
        self.search(np.zeros(self.index.width, np.float32), Wish(filter_seen=False), _NOTHING)
        self.catalogue.row("")

    def query_id(self, row: int) -> str | None:
        """The id of a known query's row, None of one that went."""
        assert self.bundle.queries is not None
        text: str | None = self.bundle.queries.ids()[row].as_py() if row < len(self.bundle.queries.ids()) else None
        return text

    # ------------------------------------------------------------ answers

    def recommend(self, query: Mapping[str, object], wish: Wish) -> Answer:
        """The best items for a query given by its raw columns.

        Raises DataError for an unknown column or attribute, a value of the wrong type, or a query of which nothing is
        known.
        """
        return self.find(self.encode(query, wish), wish)

    def encode(self, query: Mapping[str, object], wish: Wish) -> Encoded:
        """The first half of ``recommend``, and all that may go wrong with a query."""
        started = perf_counter()
        row = self.single.row(query)
        inputs = self.single.inputs(query, row)
        excluded = self._excluded(row, wish)
        encoded = perf_counter()
        query_D = self.bundle.query_tower.run(inputs)[0]
        return Encoded(query_D=query_D, excluded=excluded, encode_s=encoded - started, tower_s=perf_counter() - encoded)

    def find(self, encoded: Encoded, wish: Wish) -> Answer:
        """The second half."""
        return self.search(encoded.query_D, wish, encoded.excluded, encoded.encode_s, encoded.tower_s)

    def recommend_many(self, queries: Sequence[Mapping[str, object]], wish: Wish) -> list[Answer]:
        """``recommend`` for several queries, whose vectors are made in one go."""
        raw = self.bundle.raw_queries
        row_B = np.array([self.single.row(query) for query in queries], np.int64)
        query_BD = self.bundle.query_tower(raw.encode(queries, row_B), len(queries))
        return [
            self.search(query_D, wish, self._excluded(row, wish))
            for query_D, row in zip(query_BD, row_B.tolist(), strict=True)
        ]

    def similar(self, item: object, wish: Wish) -> Answer:
        """The items with the greatest inner product with an item's vector, without itself.

        Raises DataError for an item that is not known.
        """
        row = self.catalogue.known_row(item)
        excluded = np.union1d(self._given(wish), np.array([row], np.int64))
        return self.search(self.catalogue.vector_of(row), wish, excluded)

    def _given(self, wish: Wish) -> Rows:
        rows = [self.catalogue.row(item, "exclude") for item in wish.exclude]
        return np.array(sorted({row for row in rows if row >= 0}), np.int64)

    def _excluded(self, row: int, wish: Wish) -> Rows:
        """Rows that a query must not get, rising."""
        not_for = _NOTHING
        if row >= 0 and wish.filter_seen:
            not_for = self._seen_value[self._seen_offset[row] : self._seen_offset[row + 1]]
        elif row >= 0 and self.bundle.own_rows is not None and self.bundle.own_rows[row] >= 0:
            not_for = np.asarray(self.bundle.own_rows[row : row + 1])
        return np.union1d(not_for, self._given(wish)) if wish.exclude else not_for

    def search(
        self, query_D: NDArray[np.float32], wish: Wish, excluded: Rows, encode_s: float = 0.0, tower_s: float = 0.0
    ) -> Answer:
        """The best items for a vector, without the rows ``excluded``, which rise."""
        started = perf_counter()
        allowed = None if wish.where is None else self.catalogue.allowed(wish.where)
        if wish.at_most is not None:
            row_k, score_k, found, filtered = self._spread(query_D, wish.k, wish.at_most, excluded, allowed)
        else:
            row_k, score_k, found, filtered = self._best(query_D, wish.k, excluded, allowed)
        seconds = (encode_s, tower_s, perf_counter() - started)
        return Answer(row_k=row_k, score_k=score_k, found=found, filtered=filtered, seconds=seconds)

    def _best(
        self, query_D: NDArray[np.float32], k: int, excluded: Rows, allowed: Mask | None
    ) -> tuple[Rows, NDArray[np.float32], int, int]:
        """So many more are looked for that k are left."""
        if len(excluded) > _LEAVE_OUT:
            allowed, excluded = self._without(allowed, excluded), _NOTHING
        elif allowed is None:
            best = self.index.search_one(query_D[None], k, excluded)
            if best is not None:
                return best
        row_n, score_n = self._search(query_D, k + len(excluded), allowed)
        found = len(row_n)
        if len(excluded) and found:
            kept_n = excluded.take(excluded.searchsorted(row_n), mode="clip") != row_n
            row_n, score_n = row_n[kept_n], score_n[kept_n]
        return row_n[:k], score_n[:k], found, len(row_n)

    def _spread(
        self, query_D: NDArray[np.float32], k: int, at_most: AtMost, excluded: Rows, allowed: Mask | None
    ) -> tuple[Rows, NDArray[np.float32], int, int]:
        """In order of the score, each item unless there are ``n`` of its value; values that are full are not looked for
        again, so that fewer than k come back only where there are no more."""
        allowed = self._without(allowed, excluded)
        taken: list[int] = []
        score: list[float] = []
        count: dict[int, int] = {}
        found, size = 0, max(64, 4 * k)
        while len(taken) < k:
            row_n, score_n = self._search(query_D, size, allowed)
            found += len(row_n)
            for row, value, code in zip(
                row_n.tolist(), score_n.tolist(), self.catalogue.codes(at_most.attribute, row_n), strict=True
            ):
                if len(taken) < k and (code < 0 or count.get(code, 0) < at_most.n):
                    count[code] = count.get(code, 0) + 1
                    taken.append(row)
                    score.append(value)
            if len(row_n) < size:
                break
            allowed[row_n] = False
            code_n = np.array(self.catalogue.codes(at_most.attribute, np.flatnonzero(allowed)), np.int64)
            full = [code for code, n in count.items() if code >= 0 and n >= at_most.n]
            allowed[np.flatnonzero(allowed)[np.isin(code_n, full)]] = False
            size *= 2
        return np.array(taken, np.int64), np.array(score, np.float32), found, len(taken)

    def _without(self, allowed: Mask | None, excluded: Rows) -> Mask:
        allowed = np.ones(self.catalogue.n_rows, bool) if allowed is None else allowed.copy()
        allowed[excluded] = False
        return allowed

    def _search(self, query_D: NDArray[np.float32], k: int, allowed: Mask | None) -> tuple[Rows, NDArray[np.float32]]:
        found = self.index.search(query_D[None], max(1, min(k, self.n_items)), allowed=allowed)
        row_n, score_n = found.row_Bk[0], found.score_Bk[0]
        if len(row_n) and row_n[-1] < 0:
            there = int((row_n >= 0).sum())
            return row_n[:there], score_n[:there]
        return row_n, score_n

    # ------------------------------------------------------------ bytes

    def answer_bytes(self, answer: Answer, wish: Wish, *, in_experiment: bool = False) -> bytes:
        """The JSON of an answer. Raises DataError for an attribute to show that is not there."""
        return self.items_bytes(answer, wish) + (self._end_of_arm if in_experiment else self._end)

    def items_bytes(self, answer: Answer, wish: Wish) -> bytes:
        """The same without what tells of the bundle."""
        counts = f'],"counts":{{"found":{answer.found},"filtered":{answer.filtered},"returned":{answer.returned}'
        if answer.returned == 0:
            return b'{"items":[' + counts.encode()
        ids = self.catalogue.json_ids(answer.row_k)
        scores = orjson.dumps(answer.score_k, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
        if not wish.show:
            pieces = [b'},{"item":"', b"", b'","score":', b""] * answer.returned
            pieces[0], pieces[1::4], pieces[3::4] = b'{"items":[{"item":"', ids, scores
            return b"".join(pieces) + b"}" + counts.encode()
        shown = self.catalogue.shown(answer.row_k.tolist(), wish.show)
        lines = [
            b'{"item":"%b","score":%b,"attributes":%b}' % (item, score, orjson.dumps(attributes, default=str))
            for item, score, attributes in zip(ids, scores, shown, strict=True)
        ]
        return b'{"items":[%b%b' % (b",".join(lines), counts.encode())

    # ------------------------------------------------------------ changes

    def encode_items(self, items: Sequence[NewItem]) -> tuple[NDArray[np.float32], list[dict[str, object]]]:
        """[n, D] vectors of items, and their attributes.

        Raises DataError for an unknown column, or a value of the wrong type.
        """
        schema, encoders = self.bundle.schema, self.bundle.encoders
        key = schema.item_key or schema.interactions.item
        for at, one in enumerate(items):
            if text_of(one.columns.get(key, one.item), f"item {at}") != one.item:
                raise DataError(
                    f"item {at}: {key!r} is {one.columns[key]!r}, but its id is {one.item!r}: leave one out"
                )
        only_shown = set(self.catalogue.attribute_names) - set(encoders.columns("item"))
        rows = [
            {key: one.item, **{c: v for c, v in one.columns.items() if c not in only_shown and v is not None}}
            for one in items
        ]
        attributes = [self.catalogue.attributes_of(one.columns, at) for at, one in enumerate(items)]
        vector_nD = self.bundle.encode_items(rows)
        if not np.isfinite(vector_nD).all():
            at = int(np.argmin(np.isfinite(vector_nD).all(1)))
            raise DataError(f"item {at}: its vector is not finite, expected smaller numbers")
        return vector_nD, attributes

    def upsert(
        self, items: Sequence[NewItem], vector_nD: NDArray[np.float32], attributes: Sequence[dict[str, object]]
    ) -> None:
        """Items came or changed, each id once; they are found from now on. One that is there already, with this vector
        and these attributes, stays as it is: what is put is compared with every query."""
        row_n = np.array([self.catalogue.row(one.item) for one in items], np.int64)
        known_n = np.flatnonzero(row_n >= 0)
        held_n = known_n[self.index.holds(row_n[known_n])].tolist()
        same = {at for at in held_n if self.catalogue.has(int(row_n[at]), vector_nD[at], attributes[at])}
        put = [at for at in range(len(items)) if at not in same]
        if not put:
            return
        rows = [self.catalogue.place(items[at].item) for at in put]
        for row, at in zip(rows, put, strict=True):
            self.catalogue.put(row, vector_nD[at], attributes[at])
        self.index.upsert(np.array(rows, np.int64), vector_nD[put])
        self._count()

    def delete(self, items: Sequence[str]) -> int:
        """Items went, those that there were; how many."""
        rows = {self.catalogue.row(item) for item in items}
        there = [row for row in rows if row >= 0 and row not in self.catalogue.gone]
        if not there:
            return 0
        self.index.delete(np.array(there, np.int64))
        for row in there:
            self.catalogue.take_away(row)
        self._count()
        return len(there)

    def embed(self, kind: str, columns: Mapping[str, object]) -> list[float]:
        """The vector of a ``query`` or an ``item`` given by raw columns."""
        if kind == "query":
            row = self.single.row(columns)
            vector_D = self.bundle.query_tower.run(self.single.inputs(columns, row))[0]
        else:
            vector_D = self.bundle.encode_items([columns])[0]
        if not np.isfinite(vector_D).all():
            raise DataError(f"{kind}: its vector is not finite, expected smaller numbers")
        vector: list[float] = vector_D.tolist()
        return vector


def checked_id(item: object, at: int) -> str:
    """Text form of an id that an item is to have. Raises DataError for what can be none."""
    text = text_of(item, f"item {at}")
    if not text:
        raise DataError(f"item {at}: found the id {item!r}, expected text or a number")
    return text
