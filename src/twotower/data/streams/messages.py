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
        row = json.loads(value or b"")
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
        kinds = [_kind(row.get(name)) for row in rows]
        there = Counter(kind for kind in kinds if kind not in (None, _NO_ITEMS))
        usual = there.most_common(1)[0][0] if there else _NO_ITEMS
        fits = {None, usual, _NO_ITEMS} if usual.startswith("list") else {None, usual}
        if set(kinds) <= fits and usual != _UNUSABLE:
            continue
        for at, kind in enumerate(kinds):
            if kind not in fits or kind == _UNUSABLE:
                misfits.setdefault(at, f"{name} is {kind}, {usual} in most")
    return misfits


_NO_ITEMS = "list"
_UNUSABLE = "a value that no column holds"
_KINDS: dict[type, str] = {bool: "true or false", int: "number", float: "number", str: "text", dict: "object"}


def _kind(value: object) -> str | None:
    """What a JSON value is; None for null."""
    if value is None:
        return None
    if isinstance(value, list):
        inside = {_kind(item) for item in value} - {None}
        if not inside:
            return _NO_ITEMS
        one = inside.pop()
        return _UNUSABLE if inside or one in (_UNUSABLE, "object") else f"list of {one}"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return _UNUSABLE
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            return _UNUSABLE
    return _KINDS[type(value)]


def _array(values: list[object]) -> pa.Array:
    """Values of one kind as a column."""
    if any(isinstance(value, dict) for value in values):
        return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())
    if any(isinstance(value, float) for value in values):  # exact, where pyarrow refuses integers above 2^53
        return pa.array([None if value is None else float(value) for value in values], pa.float64())  # type: ignore[arg-type]
    try:
        return pa.array(values)
    except pa.ArrowInvalid:  # lists of such
        return pa.array(values, pa.list_(pa.float64()), safe=False)
