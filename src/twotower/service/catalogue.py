"""The items a service answers with: those of a bundle, with what came, changed and went since."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from ..bundle import Bundle, Where
from ..bundle.attributes import check_attribute, check_comparable, rows_where
from ..data import vocabulary
from ..errors import DataError
from .single_query import plain_text

_NEEDS_ESCAPE = re.compile(rb'["\\\x00-\x1f]')
_MASKS = 32
"""Filters that are remembered; one takes a byte an item."""
_SAME = 1e-6
"""Vectors are the same that differ by no more than this share of their length, or of 1: what is encoded again, among
other items, differs in its last bits (measured: 1.2e-7 for cosines, 2.4e-7 for dot products of vectors of length 6)."""


class NotKnown(DataError):
    """There is no such item."""


class Catalogue:
    """Ids, attributes and vectors by row. Rows of items that come live follow those of the bundle, and stay theirs.

    One thread changes it at a time, and any number may read meanwhile.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self.items = bundle, bundle.items
        self.n_base = len(bundle.vectors)
        self._offset, self._data = self.items.text_bytes
        first, last = int(self._offset[0]), int(self._offset[-1])
        self._is_plain = _NEEDS_ESCAPE.search(self._data[first:last]) is None
        self._cells = self.items.cells if self._is_plain else None
        self._new_row: dict[str, int] = {}
        self._new_text: list[str] = []
        self._new_json: list[bytes] = []
        self.vector: dict[int, NDArray[np.float32]] = {}
        """[D] by row, of items that came or changed."""
        self.given: dict[int, dict[str, object]] = {}
        """Attributes by row, of the same."""
        self.gone: set[int] = set()
        self._version = 0
        self._masks: OrderedDict[bytes, tuple[int, NDArray[np.bool_]]] = OrderedDict()
        self._codes: dict[str, tuple[NDArray[np.int32], dict[object, int]]] = {}

    @property
    def n_rows(self) -> int:
        """One more than the greatest row."""
        return self.n_base + len(self._new_text)

    @property
    def n_changed(self) -> int:
        """Items of the bundle that changed or went, and those that are not of it."""
        return len(self.given.keys() - self.gone) + sum(row < self.n_base for row in self.gone)

    # ------------------------------------------------------------ ids

    def row(self, item: object, where: str = "item") -> int:
        """Row of an item's id, gone or not; -1 where there never was one. Raises DataError for what is no id."""
        text = text_of(item, where)
        row = -1 if text is None else self.items.row_of_text(text)
        return self._new_row.get(text, -1) if row < 0 and text is not None else row

    def known_row(self, item: object, where: str = "item") -> int:
        """Row of an item that there is. Raises DataError for one that there is not."""
        row = self.row(item, where)
        if row < 0 or row in self.gone:
            raise NotKnown(f"{where}: {item!r} is not known, expected the id of an item of the catalogue")
        return row

    def vector_of(self, row: int) -> NDArray[np.float32]:
        """[D] of an item."""
        changed = self.vector.get(row)
        return np.asarray(self._bundle.vectors[row]) if changed is None else changed

    def texts(self, rows: Sequence[int]) -> list[str]:
        """Ids of rows."""
        offset, data, base = self._offset, self._data, self.n_base
        return [
            str(data[offset[row] : offset[row + 1]], "utf-8") if row < base else self._new_text[row - base]
            for row in rows
        ]

    def json_ids(self, row_k: NDArray[np.int64]) -> list[bytes]:
        """Ids of rows as the inside of JSON strings."""
        if not self._is_plain:
            return [orjson.dumps(text)[1:-1] for text in self.texts(row_k.tolist())]
        data, n = self._data, self.n_base
        if len(self._new_text) and len(row_k) and row_k.max() >= n:
            offset, new = self._offset, self._new_json
            return [new[row - n] if row >= n else data[offset[row] : offset[row + 1]] for row in row_k.tolist()]
        if self._cells is not None:
            cells: list[bytes] = self._cells.take(row_k).tolist()
            return cells
        starts, ends = self._offset[row_k].tolist(), self._offset[row_k + 1].tolist()
        return [data[start:end] for start, end in zip(starts, ends, strict=True)]

    # ------------------------------------------------------------ attributes

    @property
    def attribute_names(self) -> list[str]:
        """What can be filtered by and shown."""
        return [] if self._bundle.attributes is None else list(self._bundle.attributes.column_names)

    def allowed(self, where: Where) -> NDArray[np.bool_]:
        """[n_rows] whether an item is all that it must be.

        Raises DataError for an attribute that is not there, or a value of another type.
        """
        table = self._bundle.attributes
        if table is None:
            raise DataError("where: the bundle has no attributes of items: export it with item files (--items)")
        key = _key(where)
        kept = None if key is None else self._masks.get(key)
        if kept is not None and kept[0] == self._version:
            return kept[1]
        version, n_rows = self._version, self.n_rows
        mask = np.zeros(n_rows, bool)
        mask[: self.n_base] = rows_where(table, where)
        if self.given:
            rows = [row for row in list(self.given) if row < n_rows]
            each = {name: [self.given[row].get(name) for row in rows] for name in table.column_names}
            changed = pa.table({name: pa.array(each[name], table[name].type) for name in table.column_names})
            mask[rows] = rows_where(changed, where)
        if key is not None:
            self._masks[key] = (version, mask)
            while len(self._masks) > _MASKS:
                self._masks.popitem(last=False)
        return mask

    def codes(self, attribute: str, row_n: NDArray[np.int64]) -> list[int]:
        """A number for each row's value of an attribute, the same for equal values; -1 where there is none.

        Raises DataError for an attribute that is not there.
        """
        check_attribute(attribute, self.attribute_names, "at_most")
        if attribute not in self._codes:
            table = self._bundle.attributes
            assert table is not None
            check_comparable(table, attribute, "at_most")
            encoded = table[attribute].combine_chunks().dictionary_encode()
            encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
            code = np.asarray(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), np.int32)
            self._codes[attribute] = (code, {value: at for at, value in enumerate(encoded.dictionary.to_pylist())})
        code_M, number = self._codes[attribute]
        codes: list[int] = np.where(row_n < self.n_base, code_M[np.minimum(row_n, self.n_base - 1)], -1).tolist()
        if self.given:
            for place, row in enumerate(row_n.tolist()):
                if row in self.given:
                    value = self.given[row].get(attribute)
                    codes[place] = -1 if value is None else number.setdefault(value, len(number))
        return codes

    def shown(self, rows: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
        """Attributes of rows. Raises DataError for one that is not there."""
        for name in names:
            check_attribute(name, self.attribute_names, "show")
        table = self._bundle.attributes
        if table is None or not names:
            return [{} for _ in rows]
        base = [row for row in rows if row < self.n_base]
        taken = table.select(list(dict.fromkeys(names))).take(pa.array(base, pa.int64())).to_pylist()
        told = dict(zip(base, taken, strict=True))
        for row in rows:
            if row in self.given:
                told[row] = {name: self.given[row].get(name) for name in names}
        return [told[row] for row in rows]

    def attributes_of(self, columns: Mapping[str, object], at: int) -> dict[str, object]:
        """The attributes among raw columns of item number ``at``, as the bundle's have their type.

        Raises DataError for a value that is not of it.
        """
        table, found = self._bundle.attributes, dict[str, object]()
        for name in self.attribute_names:
            value = columns.get(name)
            if value is None:
                continue
            assert table is not None
            try:
                kind = table[name].type
                exact = Decimal(value) if pa.types.is_decimal(kind) and type(value) is int else value
                found[name] = pa.array([exact]).cast(kind)[0].as_py()
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise DataError(f"item {at}: {name!r} is {value!r}, expected {table[name].type}") from error
        return found

    # ------------------------------------------------------------ changes

    def has(self, row: int, vector_D: NDArray[np.float32], attributes: Mapping[str, object]) -> bool:
        """Whether an item has this vector and these attributes."""
        length = max(1.0, float(np.linalg.norm(vector_D)))
        if not np.allclose(self.vector_of(row), vector_D, rtol=0, atol=_SAME * length):
            return False
        names = self.attribute_names
        (shown,) = self.shown([row], names)
        return all(shown[name] == attributes.get(name) for name in names)

    def place(self, item: str) -> int:
        """Row of an item, a new one where it has none."""
        row = self.row(item)
        if row < 0:
            row = self.n_rows
            self._new_json.append(orjson.dumps(item)[1:-1])
            self._new_text.append(item)
            self._new_row[item] = row
        return row

    def put(self, row: int, vector: NDArray[np.float32], attributes: dict[str, object]) -> None:
        """An item came or changed."""
        self.vector[row], self.given[row] = vector, attributes
        self.gone.discard(row)
        self._version += 1

    def take_away(self, row: int) -> None:
        """An item went."""
        self.gone.add(row)
        self._version += 1


def text_of(item: object, where: str) -> str | None:
    """Text form of an item's id; None of a missing one. Raises DataError for what is no id."""
    text = plain_text(item)
    if text is not None or item is None:
        return text
    try:
        return vocabulary.text_of(item, where)
    except DataError as error:
        raise DataError(f"{where}: found {item!r}, expected an item's id: text or a number") from error


def _key(where: Where) -> bytes | None:
    try:
        return orjson.dumps(where, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return None
