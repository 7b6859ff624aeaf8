"""Messages that are JSON objects, as a table. What can't be used is counted: a message never stops the rest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

import pyarrow as pa

from ..files import short
from ..report import Tally

TOO_LARGE = "message too large"
NOT_AN_OBJECT = "message is no JSON object"
OTHER_TYPE = "a field is of another type than in most messages"

_MOST_FIELDS = 1_000
"""Names of fields, all messages of a table together."""

Row = dict[str, object]


def table_of(messages: Iterable[tuple[str, bytes | None]], tally: Tally, *, most_bytes: int) -> pa.Table:
    """A row a message, a column a field; what is no row is counted in ``tally``.

    Values keep their JSON type; objects within become text. Where messages disagree about the type of a field, that of
    most is the column's, and the others are left out: what reads numbers must not stop at one message with text.

    Args:
        messages: where each stands, for a person, and its value.
        most_bytes: messages with more are left out unread.
    """
    places: list[str] = []
    rows: list[Row] = []
    names: dict[str, None] = {}
    for place, value in messages:
        tally.read += 1
        row = _object(place, value, most_bytes, tally)
        if row is None:
            continue
        if len(names) + len(row.keys() - names.keys()) > _MOST_FIELDS:
            tally.count(NOT_AN_OBJECT, 1, [f"{place}: more than {_MOST_FIELDS:,} fields, with those before"])
            continue
        names |= dict.fromkeys(row)
        places.append(place)
        rows.append(row)
    misfits = _misfits(rows, names)
    for at, why in misfits.items():
        tally.count(OTHER_TYPE, 1, [f"{places[at]}: {why}"])
    kept = [row for at, row in enumerate(rows) if at not in misfits]
    return pa.table({name: _array([row.get(name) for row in kept]) for name in names if kept})


def _object(place: str, value: bytes | None, most_bytes: int, tally: Tally) -> Row | None:
    if value is not None and len(value) > most_bytes:
        tally.count(TOO_LARGE, 1, [f"{place}: {len(value):,} bytes, at most {most_bytes:,}"])
        return None
    try:
        row = json.loads((value or b"").decode())
    except (ValueError, RecursionError) as error:
        tally.count(NOT_AN_OBJECT, 1, [f"{place}: {short(error)}"])
        return None
    if not isinstance(row, dict) or not row:
        tally.count(NOT_AN_OBJECT, 1, [f"{place}: {'{}' if row == {} else type(row).__name__}"])
        return None
    return row


def _misfits(rows: list[Row], names: Iterable[str]) -> dict[int, str]:
    """Rows with a field of another type than most have, and why."""
    misfits: dict[int, str] = {}
    for name in names:
        values = [row.get(name) for row in rows]
        if {type(value) for value in values} - {type(None)} in _ALIKE and _as_they_are(values) is not None:
            continue  # the quick way, for most columns of most topics
        kinds = [_kind(value) for value in values]
        there = Counter(kind for kind in kinds if kind is not None and kind != _EMPTY)
        usual = there.most_common(1)[0][0] if there else _EMPTY
        fits = {None, usual, _EMPTY} if usual.startswith(_EMPTY) else {None, usual}
        for at, kind in enumerate(kinds):
            if kind == _UNUSABLE or kind not in fits:
                misfits.setdefault(at, f"{name} is {kind}, {usual} in most")
    return misfits


_EMPTY = "list"
_UNUSABLE = "a value that no column holds"
_NESTED = "an object"
_ALIKE: tuple[set[type], ...] = (set(), {bool}, {int}, {float}, {int, float}, {str})
_KINDS: dict[type, str] = {bool: "true or false", int: "number", float: "number", str: "text", dict: _NESTED}


def _kind(value: object) -> str | None:
    """What a JSON value is; None for null."""
    if value is None:
        return None
    if isinstance(value, list):
        inside = {_kind(item) for item in value} - {None}
        flat = len(inside) <= 1 and not any(kind == _NESTED or str(kind).startswith(_EMPTY) for kind in inside)
        return _UNUSABLE if _UNUSABLE in inside else _NESTED if not flat else " of ".join([_EMPTY, *map(str, inside)])
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return _UNUSABLE
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            return _UNUSABLE
    return _KINDS[type(value)]


def _array(values: list[object]) -> pa.Array:
    """Values of one kind as a column."""
    array = _as_they_are(values)
    if array is not None and not _is_nested(array.type):
        return array
    try:
        return pa.array([_floats(value) for value in values])  # whole numbers above 2^53 beside others
    except TypeError:
        return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())


def _floats(value: object) -> object:
    """Numbers, also within a list, as floats; TypeError where there is something else."""
    if isinstance(value, list):
        return [_floats(item) for item in value]
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return None if value is None else float(value)
    raise TypeError


def _as_they_are(values: list[object]) -> pa.Array | None:
    """The column that Arrow makes of them; None where they are of several types, or one has no place."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return None


def _is_nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind) and (pa.types.is_struct(kind) or pa.types.is_nested(kind.value_type)))
