"""What the columns of a data set mean.

A *query* is described by its own attributes (``query``), by what surrounds one event (``context``: the columns of the
interaction itself, the seed item, the history) and an *item* by its content (``item``). A feature is declared once, by
name; how its values become rows and numbers is in ``data.encoders``, how those become vectors in ``towers``.

Features that name the same ``table`` share one embedding table and hence one vocabulary. By default a feature has a
table of its own, except that item ids, seed items and histories share the table ``item``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from .errors import SchemaError

ITEM_TABLE = "item"
"""The table that item ids, seed items and histories share by default."""


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise SchemaError(message)


def _check_buckets(feature: Id | Categorical | Categories) -> None:
    where = f"{type(feature).__name__}(column={feature.column!r})"
    _require(feature.min_count >= 1, f"{where}: min_count is {feature.min_count}, expected at least 1")
    _require(feature.oov_buckets >= 1, f"{where}: oov_buckets is {feature.oov_buckets}, expected at least 1")
    _require(
        feature.hash_buckets is None or feature.hash_buckets >= 2,
        f"{where}: hash_buckets is {feature.hash_buckets}, expected at least 2, or none for an exact vocabulary",
    )


@dataclass(frozen=True, kw_only=True)
class Id:
    """The id of a query or an item as a feature: one learned vector each.

    An exact vocabulary keeps values seen at least ``min_count`` times; the rest hash into ``oov_buckets`` vectors. With
    ``hash_buckets`` there is no vocabulary: every value is hashed, and the collisions are counted in the ingest report.
    """

    column: str
    min_count: int = 1
    oov_buckets: int = 1
    hash_buckets: int | None = None
    table: str | None = None

    def __post_init__(self) -> None:
        _check_buckets(self)


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """One value out of many (text, number or truth value): one learned vector each."""

    column: str
    min_count: int = 1
    oov_buckets: int = 1
    hash_buckets: int | None = None
    table: str | None = None

    def __post_init__(self) -> None:
        _check_buckets(self)


@dataclass(frozen=True, kw_only=True)
class Categories:
    """Several values (a list column, or text split at ``separator``): the weighted mean of their vectors.

    ``weights`` names a list column of equal lengths with non-negative weights; without it every value weighs the same.
    """

    column: str
    weights: str | None = None
    separator: str | None = None
    min_count: int = 1
    oov_buckets: int = 1
    hash_buckets: int | None = None
    table: str | None = None

    def __post_init__(self) -> None:
        _check_buckets(self)


@dataclass(frozen=True, kw_only=True)
class Number:
    """A quantity.

    ``standard``: (x - mean) / deviation. ``log``: the same of sign(x) log(1 + |x|). ``quantile``: the number of the
    bucket (``buckets`` of equal counts), with one learned vector each. The statistics are of the training data and are
    stored. A missing value is the mean, or has no bucket.
    """

    column: str
    transform: Literal["standard", "log", "quantile"] = "standard"
    buckets: int = 16
    table: str | None = None

    def __post_init__(self) -> None:
        _require(self.buckets >= 2, f"Number(column={self.column!r}): buckets is {self.buckets}, expected at least 2")


@dataclass(frozen=True, kw_only=True)
class Time:
    """A moment (timestamp, ISO text, or a number in ``unit`` since 1970): hour of day and weekday (UTC) as categories,
    and age as log(1 + days until the data's last event)."""

    column: str
    parts: tuple[Literal["hour", "weekday", "age"], ...] = ("hour", "weekday", "age")
    unit: Literal["s", "ms", "us", "ns"] = "s"

    def __post_init__(self) -> None:
        _require(len(self.parts) > 0, f"Time(column={self.column!r}): parts is empty, expected hour, weekday or age")


@dataclass(frozen=True, kw_only=True)
class Text:
    """Words of one or more columns as a weighted bag.

    Lower-cased words, with ``chars = (3, 5)`` also the character 3- to 5-grams of each word, both hashed into
    ``buckets`` vectors; ``subwords = n`` instead trains n subword tokens (byte-pair encoding) on the text.
    ``name_columns`` hold names such as ``libgtk-3-dev``: they also give their parts with and without digits, their
    first and last part and their stem. ``length = n`` reads no more than the first n words, or subwords, of each text
    (names are read whole). Weights: ``tfidf`` ((1 + log count) times log inverse document frequency, unit length) or
    ``mean``.
    """

    columns: tuple[str, ...]
    name_columns: tuple[str, ...] = ()
    chars: tuple[int, int] | None = None
    subwords: int | None = None
    buckets: int = 2**18
    length: int | None = None
    weighting: Literal["tfidf", "mean"] = "tfidf"
    table: str | None = None

    def __post_init__(self) -> None:
        where = f"Text(columns={list(self.columns)})"
        _require(len(self.columns) + len(self.name_columns) > 0, f"{where}: no column is named")
        _require(self.buckets >= 2, f"{where}: buckets is {self.buckets}, expected at least 2")
        _require(self.length is None or self.length >= 1, f"{where}: length is {self.length}, expected at least 1")
        _require(
            self.chars is None or 1 <= self.chars[0] <= self.chars[1],
            f"{where}: chars is {self.chars}, expected two rising lengths such as [3, 5]",
        )
        _require(
            self.subwords is None or self.subwords >= 300,
            f"{where}: subwords is {self.subwords}, expected at least 300 (256 bytes and some merges)",
        )
        _require(
            self.subwords is None or self.chars is None,
            f"{where}: subwords and chars are two ways to cut a word: choose one",
        )


@dataclass(frozen=True, kw_only=True)
class Vector:
    """A vector computed elsewhere: a list column of ``dim`` numbers, used as it is."""

    column: str
    dim: int

    def __post_init__(self) -> None:
        _require(self.dim >= 1, f"Vector(column={self.column!r}): dim is {self.dim}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class History:
    """The ``k`` most recent items of the query strictly before the event: the mean of their id vectors."""

    k: int = 50
    table: str | None = None

    def __post_init__(self) -> None:
        _require(self.k >= 1, f"History: k is {self.k}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Seed:
    """An item the query starts from (the page that is open), by its item id."""

    column: str
    table: str | None = None


QueryFeature = Id | Categorical | Categories | Number | Time | Text | Vector
ContextFeature = Categorical | Categories | Number | Time | Text | Vector | History | Seed
ItemFeature = Id | Categorical | Categories | Number | Time | Text | Vector
Feature = Id | Categorical | Categories | Number | Time | Text | Vector | History | Seed
"""Every kind of feature: public API, settings type and docs table at once."""


@dataclass(frozen=True, kw_only=True)
class Reward:
    """How far an event was a success, between 0 and 1, by a quantity such as the share of a video that was watched.

        x = column, or column / per
        reward = 0 where x < zero_below, else min(x / one_from, 1)

    With ``zero_below`` equal to ``one_from`` it is yes or no. An event without x (``column``
    missing or negative, ``per`` missing or not positive) is left out by the ingest and counted by cause.

    Source: Yi et al., Sampling-bias-corrected neural modeling for large corpus item recommendations (RecSys 2019),
    section 4: 0 for a click that was hardly watched, 1 for a whole view. The line between is ours.
    """

    column: str
    per: str | None = None
    """Column that ``column`` is divided by, in the same unit: the duration of what was played."""
    zero_below: float = 0.0
    one_from: float = 1.0

    def __post_init__(self) -> None:
        where = f"Reward(column={self.column!r})"
        _require(
            0 < self.one_from < math.inf, f"{where}: one_from is {self.one_from}, expected a positive, finite number"
        )
        _require(
            0 <= self.zero_below <= self.one_from,
            f"{where}: zero_below is {self.zero_below}, expected a number from 0 to one_from, which is {self.one_from}",
        )
        _require(self.per != self.column, f"{where}: per names the same column, so every event would be worth the same")


@dataclass(frozen=True, kw_only=True)
class Interactions:
    """The columns of the interaction files. ``query`` may be left out where a query is only its context (search)."""

    item: str
    query: str | None = None
    time: str | None = None
    time_unit: Literal["s", "ms", "us", "ns"] = "s"
    """Unit of a numeric time column; timestamps and ISO text need none."""
    weight: str | Reward | None = None
    """Reward of the event: a column that is used as it is, not negative, or a rule; 1 without it. An event of weight 0
    trains nothing but stays known and counted.
    """
    taken: str | None = None
    """Column that says whether the query took what it was shown: yes or no, as truth values, 1 and 0, or text of those.

    An event with a no is an impression: a negative for the samplers that ask for such (``Impressions``), and nothing
    else. It trains nothing, is in no history, frequency or popularity, is not known, and neither asked for nor seen in
    an evaluation. Its weight is not read. Without a column every event was taken.
    """
    split: str | None = None
    """Column that says train, valid or test."""
    query_is_item: bool = False
    """Query ids are item ids: an item is then never a candidate or a result for itself."""

    @property
    def weight_columns(self) -> tuple[str, ...]:
        """The columns that the weight is made of."""
        if isinstance(self.weight, Reward):
            return (self.weight.column,) if self.weight.per is None else (self.weight.column, self.weight.per)
        return () if self.weight is None else (self.weight,)


@dataclass(frozen=True, kw_only=True)
class Life:
    """When an item is there to be offered: since <= t < until.

    ``since`` and ``until`` name columns of moments (timestamps, ISO text or numbers in ``unit`` since 1970) of the item
    file, or of the interactions where they repeat them. Without ``since`` an item lives from its first event on, or
    always where it has no event; without ``until`` it does not end. ``idle_days`` ends it so many days after the last
    event that is known of it, or after its ``since`` where there is none since then; of two ends the earlier counts.

    An item that is not live at the time of an event is no negative of it, it is no candidate in an evaluation of that
    time, and what is not live at the end of the data is not recommended.
    """

    since: str | None = None
    until: str | None = None
    idle_days: float | None = None
    unit: Literal["s", "ms", "us", "ns"] = "s"

    def __post_init__(self) -> None:
        _require(
            self.idle_days is None or 0 < self.idle_days < math.inf,
            f"Life: idle_days is {self.idle_days}, expected a positive number of days, or none for no such end",
        )
        _require(
            self.since is None or self.since != self.until,
            f"Life: since and until both name the column {self.since!r}, so no item would ever be live",
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return tuple(column for column in (self.since, self.until) if column is not None)


@dataclass(frozen=True, kw_only=True)
class Schema:
    """Which columns describe an interaction, a query, its context and an item."""

    interactions: Interactions
    query: dict[str, QueryFeature] = field(default_factory=dict)
    context: dict[str, ContextFeature] = field(default_factory=dict)
    item: dict[str, ItemFeature] = field(default_factory=dict)
    query_key: str | None = None
    """Column of the query id in the query file; ``interactions.query`` without it."""
    item_key: str | None = None
    """Column of the item id in the item file; ``interactions.item`` without it."""
    life: Life | None = None
    """When items come and go; without it all are there always."""

    def __post_init__(self) -> None:
        both = sorted(set(self.query) & set(self.context))
        _require(not both, f"schema: {both} are declared under query and under context: give each feature one name")
        _require(
            bool(self.query or self.context),
            "schema: the query side has no feature: declare one under [schema.query] or [schema.context], "
            'such as user = { kind = "Id", column = "user_id" }',
        )
        _require(
            bool(self.item),
            "schema: the item side has no feature: declare one under [schema.item], "
            'such as item = { kind = "Id", column = "item_id" }',
        )
        _require(
            not self.query or self.interactions.query is not None,
            "schema: there are features under query but interactions.query names no column: name the column of the "
            "query id, or declare the features under context",
        )
        history = [name for name, feature in self.context.items() if isinstance(feature, History)]
        _require(
            not history or self.interactions.query is not None,
            f"schema: context.{history[0] if history else ''} is a History but interactions.query names no column",
        )
        _require(
            not self.interactions.query_is_item or self.interactions.query is not None,
            "schema: interactions.query_is_item is set but interactions.query names no column",
        )
        _require(
            self.life is None or self.interactions.time is not None,
            "schema: life says when items are there, but interactions.time names no column, so no event has a time to "
            "compare with: name it, or leave life out",
        )
        self._check_tables()

    def _check_tables(self) -> None:
        """Features of one table must agree on how values become its rows."""
        users: dict[str, list[tuple[str, Feature]]] = {}
        for side, name, feature in self.features():
            table = table_of(side, name, feature)
            if table is not None and not isinstance(feature, (History, Seed)):
                users.setdefault(table, []).append((f"{side}.{name}", feature))
        for table, members in users.items():
            (first_name, first), *rest = members
            for name, feature in rest:
                ours, theirs = _vocabulary_settings(first), _vocabulary_settings(feature)
                differing = [setting for setting in ours if theirs.get(setting) != ours[setting]]
                _require(
                    ours == theirs,
                    f"schema: {first_name} and {name} share the table {table!r} but make its rows differently ("
                    + ", ".join(f"{setting} is {ours[setting]} and {theirs.get(setting)}" for setting in differing)
                    + "): give them equal settings or two tables",
                )
        for name, feature in self.context.items():
            if isinstance(feature, (History, Seed)):
                table = table_of("context", name, feature)
                ids = [n for n, f in users.get(table or "", []) if isinstance(f, Id) and n.startswith("item.")]
                _require(
                    bool(ids),
                    f"schema: context.{name} looks item ids up in the table {table!r}, but no item feature of kind Id "
                    "uses it: "
                    'declare one, such as [schema.item] item = { kind = "Id", column = "item_id" }',
                )

    def features(self) -> list[tuple[str, str, Feature]]:
        """All features as (side, name, feature); side is ``query``, ``context`` or ``item``."""
        sides: list[tuple[str, dict[str, Feature]]] = [
            ("query", {**self.query}),
            ("context", {**self.context}),
            ("item", {**self.item}),
        ]
        return [(side, name, feature) for side, features in sides for name, feature in features.items()]


def table_of(side: str, name: str, feature: Feature) -> str | None:
    """The embedding table of a feature, None where it has none (``Time`` has ``side.name.hour`` and ``.weekday``)."""
    if isinstance(feature, (Vector, Time)) or (isinstance(feature, Number) and feature.transform != "quantile"):
        return None
    if feature.table is not None:
        return feature.table
    if isinstance(feature, (History, Seed)) or (isinstance(feature, Id) and side == "item"):
        return ITEM_TABLE
    return f"{side}.{name}"


def _vocabulary_settings(feature: Feature) -> dict[str, object]:
    """What decides which row a value gets."""
    if isinstance(feature, Text):
        return {"kind": "Text", "subwords": feature.subwords, "buckets": feature.buckets}
    if isinstance(feature, (Id, Categorical, Categories)):
        return {
            "kind": "values",
            "min_count": feature.min_count,
            "oov_buckets": feature.oov_buckets,
            "hash_buckets": feature.hash_buckets,
        }
    if isinstance(feature, Number):
        return {"kind": "Number", "column": feature.column, "buckets": feature.buckets}
    return {"kind": type(feature).__name__}
