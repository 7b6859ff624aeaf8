"""What callers may ask: checked JSON as records. A mistake is told with what was found and what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..data.arrow import did_you_mean
from ..data.files import listed
from ..errors import DataError, TwoTowerError


class TooMuch(TwoTowerError):
    """More than the service answers at once: a body, a k, a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may ask for."""

    body_bytes: int = 1 << 20
    k: int = 1_000
    batch: int = 256
    """Queries, or items, of one request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtMost:
    """No more than ``n`` items with the same value of an attribute; items without a value are not counted."""

    attribute: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked of a search, whatever it is for."""

    k: int = 10
    filter_seen: bool = True
    exclude: Sequence[object] = ()
    where: Mapping[str, object] | None = None
    at_most: AtMost | None = None
    show: Sequence[str] = ()
    """Attributes to tell of each item."""
    request: str | None = None
    """The caller's id of the request, for logs."""


_OF_WISH = frozenset({"k", "filter_seen", "exclude", "where", "at_most", "show", "request"})


def wish_of(asked: Mapping[str, Any], limits: Limits, also: str) -> Wish:
    """The wish of a request, whose other key is ``also``.

    Raises:
        DataError: a key that is not known, or a value of the wrong type.
        TooMuch: k beyond the limit.
    """
    is_plain = len(asked) - (also in asked) <= ("k" in asked) + ("filter_seen" in asked)
    unknown = () if is_plain else asked.keys() - _OF_WISH - {also}
    if unknown:
        name, known = min(unknown), {*_OF_WISH, also}
        raise DataError(
            f"{name!r} is not known here, expected some of {listed(sorted(known))}{did_you_mean(name, known)}"
        )
    k = asked.get("k", 10)
    if type(k) is not int or k < 1:
        raise DataError(f"k: found {k!r}, expected a whole number from 1 on")
    if k > limits.k:
        raise TooMuch(f"k: found {k}, this service answers at most {limits.k} at once (--max-k)")
    if is_plain:
        return _plain(k, _is_true(asked))
    return Wish(
        k=k,
        filter_seen=_is_true(asked),
        exclude=_ids(asked.get("exclude")),
        where=_where(asked.get("where")),
        at_most=_at_most(asked.get("at_most")),
        show=_names(asked.get("show")),
        request=_text(asked.get("request"), "request"),
    )


@lru_cache
def _plain(k: int, filter_seen: bool) -> Wish:
    return Wish(k=k, filter_seen=filter_seen)


def columns_of(asked: Mapping[str, Any], key: str) -> Mapping[str, object]:
    """Raw columns under a key of a request. Raises DataError for anything else."""
    columns = asked.get(key)
    if type(columns) is not dict:
        raise DataError(f'{key}: found {_kind(columns)}, expected an object of columns, such as {{"user_id": "u1"}}')
    return columns


def many_of(asked: Mapping[str, Any], key: str, limits: Limits) -> list[Any]:
    """A list under a key of a request. Raises DataError for anything else, TooMuch for a longer one."""
    found = asked.get(key)
    if type(found) is not list or not found:
        raise DataError(f"{key}: found {_kind(found)}, expected a list of at least one")
    if len(found) > limits.batch:
        raise TooMuch(f"{key}: found {len(found)}, this service takes at most {limits.batch} at once (--max-batch)")
    return found


def _is_true(asked: Mapping[str, Any]) -> bool:
    value = asked.get("filter_seen", True)
    if type(value) is not bool:
        raise DataError(f"filter_seen: found {value!r}, expected true or false")
    return value


def _ids(value: object) -> Sequence[object]:
    if value is None:
        return ()
    if type(value) is not list or not all(type(one) in (str, int, float) for one in value):
        raise DataError(f"exclude: found {_kind(value)}, expected a list of item ids")
    return value


def _where(value: object) -> Mapping[str, object] | None:
    if value is None or value == {}:
        return None
    if type(value) is not dict:
        raise DataError(f"where: found {_kind(value)}, expected an object of attributes and what they must be")
    return value


def _at_most(value: object) -> AtMost | None:
    if value is None:
        return None
    if type(value) is not dict or value.keys() != {"attribute", "n"}:
        raise DataError(f'at_most: found {_kind(value)}, expected {{"attribute": name, "n": how many}}')
    attribute, n = value["attribute"], value["n"]
    if type(attribute) is not str or type(n) is not int or n < 1:
        raise DataError(f"at_most: found {attribute!r} and {n!r}, expected an attribute's name and a number from 1 on")
    return AtMost(attribute=attribute, n=n)


def _names(value: object) -> Sequence[str]:
    if value is None:
        return ()
    if type(value) is not list or not all(type(one) is str for one in value):
        raise DataError(f"show: found {_kind(value)}, expected a list of attributes")
    return value


def _text(value: object, name: str) -> str | None:
    if value is None or type(value) is str:
        return value
    raise DataError(f"{name}: found {_kind(value)}, expected text")


def _kind(value: object) -> str:
    """What a JSON value is called."""
    if isinstance(value, dict):
        return f"an object with {listed(sorted(map(str, value)), most=5) or 'nothing in it'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "nothing" if value is None else repr(value)[:80]
