"""From raw columns to encoded columns: all features of a schema, fitted in one pass over the data.

    Id, Categorical, Seed, Number(quantile)   rows [n], -1 missing
    Number(standard, log), Time age           float32 [n]
    Time hour and weekday                     rows [n], -1 missing
    Categories, Text                          lists of rows with weights
    Vector                                    float32 [n, dim], zeros where missing

``EncodersFit`` sees every chunk once, in memory of the distinct values; ``Encoders`` is what it learnt.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import ArtifactError, DataError
from ..schema import Categorical, Categories, Feature, History, Id, Number, Schema, Seed, Text, Time, Vector, table_of
from .arrow import (
    US_PER_DAY,
    US_PER_HOUR,
    column_of,
    did_you_mean,
    is_list,
    microseconds,
    number_lists,
    numbers,
    text_lists,
    vectors,
    weighted_rows,
)
from .columns import Column, Columns, RaggedArray, taken
from .statistics import Moments, Sample, quantile_edges
from .text import TextFit, TextTable, hashed_bags, open_subwords, subword_bags, text_columns
from .vocabulary import HashedVocabulary, HashedVocabularyFit, Vocabulary, VocabularyFit, text_form, text_of

if TYPE_CHECKING:
    from ..records import Features

FORMAT = 1
"""Version of the saved folder."""

Waiting = Mapping[str, pa.Table]
"""By table: values without a row yet, and how often they were listed and counted."""
Gone = Mapping[str, pa.LargeStringArray]
"""By table: values that leave their rows."""

_HOURS, _WEEKDAYS = 24, 7
_PART_SIZES = {"hour": _HOURS, "weekday": _WEEKDAYS}
_THURSDAY = 3  # 1970-01-01; Monday is 0
_SAMPLED_NUMBERS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How a number is standardised."""

    mean: float
    deviation: float


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """All features of a schema, fitted. ``EncodersFit`` makes it; everything is keyed by table or by ``side.name``."""

    schema: Schema
    vocabularies: Mapping[str, Vocabulary | HashedVocabulary]
    """By table: ids, categories."""
    texts: Mapping[str, TextTable]
    """By table."""
    edges: Mapping[str, NDArray[np.float64]]
    """By table: quantile edges."""
    scalings: Mapping[str, Scaling]
    """By ``side.name``."""
    mean_ages: Mapping[str, float]
    """By ``side.name`` of a Time: the age where the moment is missing."""
    last_event_us: int
    """What ages are counted from, microseconds since 1970."""
    missing: Mapping[str, int]
    """By ``side.name``: values seen in the fit that were missing (null, nan, infinite, empty)."""

    @cached_property
    def table_sizes(self) -> dict[str, int]:
        """Rows of every embedding table, those of Time included."""
        sizes: dict[str, int] = {}
        for side, name, feature in self.schema.features():
            if isinstance(feature, Time):
                sizes |= {f"{side}.{name}.{part}": _PART_SIZES[part] for part in feature.parts if part in _PART_SIZES}
        sizes |= {table: vocabulary.size for table, vocabulary in self.vocabularies.items()}
        sizes |= {table: text.size for table, text in self.texts.items()}
        return sizes | {table: len(edges) + 1 for table, edges in self.edges.items()}

    def columns(self, side: str) -> tuple[str, ...]:
        """Raw columns that a side (``query``, ``context`` or ``item``) reads, and the names of its histories."""
        return tuple(
            dict.fromkeys(c for name, feature in _side(self.schema, side).items() for c in _reads(name, feature))
        )

    def collisions(self) -> dict[str, dict[str, int]]:
        """By hashed table: distinct ``values`` seen in the fit, distinct ``buckets_hit`` by them, and ``buckets``."""
        counts = {
            table: {"values": vocabulary.n_values, "buckets_hit": vocabulary.n_hit, "buckets": vocabulary.buckets}
            for table, vocabulary in self.vocabularies.items()
            if isinstance(vocabulary, HashedVocabulary)
        }
        for table, text in self.texts.items():
            if text.subwords is None:
                counts[table] = {"values": text.n_tokens, "buckets_hit": text.n_hit, "buckets": text.size}
        return counts

    # ------------------------------------------------------------ encoding

    def transform(self, side: str, table: pa.Table) -> dict[str, Column]:
        """Encode a chunk: ``side`` is query, context or item; History has no column of its own.

        Raises:
            DataError: a column is missing or mistyped.
        """
        encoded: dict[str, Column] = {}
        for name, feature in _side(self.schema, side).items():
            if not isinstance(feature, History):
                with _naming(side, name):
                    encoded |= self._encode(side, name, feature, table)
        return encoded

    def _encode(self, side: str, name: str, feature: Feature, table: pa.Table) -> dict[str, Column]:
        match feature:
            case Id() | Categorical() | Seed():
                return {name: self._rows(side, name, feature, column_of(table, feature.column))}
            case Categories():
                return {name: self._lists(side, name, feature, table)}
            case Number():
                return {name: self._number(side, name, feature, table)}
            case Time():
                return self._moments(side, name, feature, table)
            case Text():
                return {name: self._bags(side, name, feature, table)}
            case Vector():
                return {name: vectors(column_of(table, feature.column), feature.column, feature.dim)[0]}
            case History():
                raise ValueError("a history is made of events, not of a column")

    def _rows(self, side: str, name: str, feature: Id | Categorical | Seed, array: pa.Array) -> Column:
        vocabulary = self.vocabularies[_table(side, name, feature)]
        return vocabulary.rows(array, feature.column).astype(np.int32)

    def _lists(self, side: str, name: str, feature: Categories, table: pa.Table) -> RaggedArray:
        length, value = text_lists(column_of(table, feature.column), feature.column, feature.separator)
        row = self.vocabularies[_table(side, name, feature)].rows(value, feature.column)
        return weighted_rows(length, row, _weights(feature, table, length))

    def _number(self, side: str, name: str, feature: Number, table: pa.Table) -> Column:
        value = numbers(column_of(table, feature.column), feature.column)
        if feature.transform == "quantile":
            row = np.searchsorted(self.edges[_table(side, name, feature)], value, side="right")
            return np.where(np.isnan(value), -1, row).astype(np.int32)
        scaling = self.scalings[f"{side}.{name}"]
        with np.errstate(over="ignore"):  # what is too large is infinite, and refused where its vector is used
            return np.nan_to_num((_measure(feature, value) - scaling.mean) / scaling.deviation).astype(np.float32)

    def _moments(self, side: str, name: str, feature: Time, table: pa.Table) -> dict[str, Column]:
        time_us, present = microseconds(column_of(table, feature.column), feature.column, feature.unit)
        age = np.where(present, _age(time_us, self.last_event_us), self.mean_ages[f"{side}.{name}"])
        of_part: dict[str, Column] = {
            "hour": np.where(present, time_us // US_PER_HOUR % _HOURS, -1).astype(np.int32),
            "weekday": np.where(present, (time_us // US_PER_DAY + _THURSDAY) % _WEEKDAYS, -1).astype(np.int32),
            "age": age.astype(np.float32),
        }
        return {f"{name}.{part}": of_part[part] for part in feature.parts}

    def _bags(self, side: str, name: str, feature: Text, table: pa.Table) -> RaggedArray:
        table_name = _table(side, name, feature)
        text, columns = self.texts[table_name], text_columns(feature, table)
        if text.subwords is None:
            bags = hashed_bags(feature, columns)
        else:
            bags = subword_bags(feature, columns, self._tokenizers[table_name], text.size)
        return bags.weighted(text.idf if feature.weighting == "tfidf" else None)

    @cached_property
    def _tokenizers(self) -> dict[str, Any]:
        return {name: open_subwords(text.subwords) for name, text in self.texts.items() if text.subwords is not None}

    # ------------------------------------------------------------ live rows

    def transform_rows(self, side: str, rows: Sequence[Mapping[str, object]]) -> Features:
        """``encode_rows`` as tensors."""
        import torch

        return Columns(self.encode_rows(side, rows), len(rows)).take(torch.arange(len(rows)))

    def encode_rows(self, side: str, rows: Sequence[Mapping[str, object]]) -> dict[str, Column]:
        """Encode raw values of live queries or items, one mapping of column -> value each; absent is missing.

        A history is given under its feature's name, as item ids with the oldest first.

        Raises:
            DataError: a key is no column of the side, or a value has the wrong type.
        """
        self._check_keys(side, rows)
        given = {column for row in rows for column in row}
        encoded: dict[str, Column] = {}
        for name, feature in _side(self.schema, side).items():
            if given.isdisjoint(_reads(name, feature)):
                nothing, none = self._nothing(side, name), np.zeros(len(rows), np.int64)
                encoded |= {key: taken(column, none) for key, column in nothing.items()}
            else:
                encoded |= self._encode_rows(side, name, feature, rows)
        return encoded

    def _encode_rows(
        self, side: str, name: str, feature: Feature, rows: Sequence[Mapping[str, object]]
    ) -> dict[str, Column]:
        with _naming(side, name):
            raw = {c: _array_of([row.get(c) for row in rows], c, feature) for c in _reads(name, feature)}
        if isinstance(feature, History):
            return {name: self._history(side, name, feature, raw[name])}
        with _naming(side, name):
            return self._encode(side, name, feature, pa.table(raw))

    def _nothing(self, side: str, name: str) -> dict[str, Column]:
        """One row of a feature that says nothing, encoded once: a live query leaves most features out."""
        if (side, name) not in self._known_nothing:
            feature = _side(self.schema, side)[name]
            self._known_nothing[side, name] = self._encode_rows(side, name, feature, [{}])
        return self._known_nothing[side, name]

    @cached_property
    def _known_nothing(self) -> dict[tuple[str, str], dict[str, Column]]:
        return {}

    def _check_keys(self, side: str, rows: Sequence[Mapping[str, object]]) -> None:
        known = {*self.columns(side), *_keys(self.schema, side)}
        for at, row in enumerate(rows):
            unknown = [key for key in row if key not in known]
            if unknown:
                raise DataError(
                    f"{side} {at}: unknown column {unknown[0]!r}, expected some of {', '.join(sorted(known))}"
                    f"{did_you_mean(unknown[0], known)}"
                )

    def _history(self, side: str, name: str, feature: History, array: pa.Array) -> RaggedArray:
        if not is_list(array.type) and not pa.types.is_null(array.type):
            raise DataError(f"{side}.{name}: found {array.type}, expected a list of item ids, the oldest first")
        length, value = text_lists(array, name, None)
        row = self.vocabularies[_table(side, name, feature)].rows(value, name)
        end = np.repeat(np.cumsum(length), length)
        is_recent = end - np.arange(len(row)) <= feature.k
        return weighted_rows(length, np.where(is_recent, row, -1), None)

    # ------------------------------------------------------------ saving

    def save(self, path: Path) -> None:
        """Write everything into the folder ``path`` (made if absent): JSON, Arrow IPC and ``.npy``, no pickle."""
        path.mkdir(parents=True, exist_ok=True)
        about: dict[str, Any] = {
            "format": FORMAT,
            "features": _features_as_json(self.schema),
            "vocabularies": [],
            "texts": [],
            "edges": {table: edges.tolist() for table, edges in self.edges.items()},
            "scalings": {name: dataclasses.asdict(scaling) for name, scaling in self.scalings.items()},
            "mean_ages": dict(self.mean_ages),
            "last_event_us": self.last_event_us,
            "missing": dict(self.missing),
        }
        for at, (table, vocabulary) in enumerate(
            self.vocabularies.items()
        ):  # numbered: a table's name may be no file name
            file = f"vocabulary-{at}" + (".arrow" if isinstance(vocabulary, Vocabulary) else ".json")
            vocabulary.save(path / file)
            about["vocabularies"].append({"table": table, "file": file})
        for at, (table, text) in enumerate(self.texts.items()):
            np.save(path / f"idf-{at}.npy", text.idf, allow_pickle=False)
            settings = {key: getattr(text, key) for key in ("size", "subwords", "n_tokens", "n_hit")}
            about["texts"].append({"table": table, "idf": f"idf-{at}.npy", **settings})
        (path / "encoders.json").write_text(json.dumps(about), encoding="utf-8")

    @staticmethod
    def load(path: Path, schema: Schema) -> Encoders:
        """Read what ``save`` wrote.

        Raises:
            ArtifactError: the folder is missing, damaged, of another format or fitted for other features.
        """
        try:
            about = json.loads((path / "encoders.json").read_text(encoding="utf-8"))
            _check_artifact(path, about, schema)
            return _restored(path, about, schema)
        except (OSError, TypeError, KeyError, ValueError) as error:
            raise ArtifactError(f"{path}: not saved encoders ({error}): run the ingest again") from error


def _check_artifact(path: Path, about: dict[str, Any], schema: Schema) -> None:
    if about["format"] != FORMAT:
        raise ArtifactError(
            f"{path}: encoders of format {about['format']}, expected {FORMAT}: run the ingest again with this version"
        )
    found, expected = about["features"], _features_as_json(schema)
    if found != expected:
        changed = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise ArtifactError(
            f"{path}: the encoders were fitted for other features than the schema's (different: {', '.join(changed)}): "
            "run the ingest again, or use the schema they were fitted for"
        )


def _restored(path: Path, about: dict[str, Any], schema: Schema) -> Encoders:
    vocabularies: dict[str, Vocabulary | HashedVocabulary] = {}
    for saved in about["vocabularies"]:
        file = path / saved["file"]
        kind = Vocabulary if file.suffix == ".arrow" else HashedVocabulary
        vocabularies[saved["table"]] = kind.load(file)
    texts = {}
    for saved in about["texts"]:
        settings = {key: saved[key] for key in ("size", "subwords", "n_tokens", "n_hit")}
        texts[saved["table"]] = TextTable(idf=np.load(path / saved["idf"], allow_pickle=False), **settings)
    return Encoders(
        schema=schema,
        vocabularies=vocabularies,
        texts=texts,
        edges={table: np.array(edges, np.float64) for table, edges in about["edges"].items()},
        scalings={name: Scaling(**scaling) for name, scaling in about["scalings"].items()},
        mean_ages=about["mean_ages"],
        last_event_us=about["last_event_us"],
        missing=about["missing"],
    )


def _features_as_json(schema: Schema) -> dict[str, Any]:
    """By ``side.name``: kind and settings, as they are after a round trip through JSON."""
    plain = {
        f"{side}.{name}": {"kind": type(f).__name__, **dataclasses.asdict(f)} for side, name, f in schema.features()
    }
    features: dict[str, Any] = json.loads(json.dumps(plain))
    return features


# ---------------------------------------------------------------- what a feature reads


@contextmanager
def _naming(side: str, name: str) -> Iterator[None]:
    """Say which feature a data error is about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{side}.{name}: {error}") from error


def _side(schema: Schema, side: str) -> Mapping[str, Feature]:
    match side:
        case "query":
            return schema.query
        case "context":
            return schema.context
        case "item":
            return schema.item
        case _:
            raise ValueError(f"side is {side!r}, expected query, context or item")


def _table(side: str, name: str, feature: Feature) -> str:
    table = table_of(side, name, feature)
    if table is None:
        raise ValueError(f"{side}.{name} has no table")
    return table


def id_features(schema: Schema, side: str) -> list[tuple[str, Id]]:
    """The features whose values are the ids of a side's rows."""
    return [
        (name, feature)
        for name, feature in _side(schema, side).items()
        if isinstance(feature, Id) and feature.column in _keys(schema, side)
    ]


def _reads(name: str, feature: Feature) -> tuple[str, ...]:
    """Raw columns of a feature; a history's only name is its own."""
    match feature:
        case Text():
            return feature.columns + feature.name_columns
        case Categories():
            return (feature.column,) if feature.weights is None else (feature.column, feature.weights)
        case History():
            return (name,)
        case _:
            return (feature.column,)


def _keys(schema: Schema, side: str) -> set[str]:
    """Columns that identify the rows of a side: not features by themselves, but no mistake in a live row."""
    events = schema.interactions
    keys = {
        "query": (schema.query_key or events.query,),
        "context": (events.query, events.item, events.time, events.taken, *events.weight_columns, events.split),
        "item": (schema.item_key or events.item,),
    }
    return {key for key in keys[side] if key is not None}


def _weights(feature: Categories, table: pa.Table, length: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Weights of all values end to end, checked against the [n] lengths of the lists."""
    if feature.weights is None:
        return None
    found, weight = number_lists(column_of(table, feature.weights), feature.weights)
    uneven = np.flatnonzero(found != length)
    if len(uneven):
        at = uneven[0]
        raise DataError(
            f"column {feature.weights!r}: row {at} holds {found[at]} weights for the {length[at]} values of column "
            f"{feature.column!r}, expected one each"
        )
    wrong = np.flatnonzero(~(weight >= 0))
    if len(wrong):
        at = np.repeat(np.arange(len(length)), length)[wrong[0]]
        raise DataError(f"column {feature.weights!r}: row {at} holds the weight {weight[wrong[0]]}, expected 0 or more")
    return weight


def _measure(feature: Number, value: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quantity that is standardised."""
    return np.sign(value) * np.log1p(np.abs(value)) if feature.transform == "log" else value


def _age(time_us: NDArray[Any], last_event_us: int) -> NDArray[np.float64]:
    days: NDArray[np.float64] = np.maximum(last_event_us - time_us, 0) / US_PER_DAY
    return np.log1p(days)


def _array_of(values: list[object], column: str, feature: Feature) -> pa.Array:
    """Live values as an Arrow array. Ids may mix numbers and text."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        if isinstance(feature, (Id, Categorical, Seed)):
            return pa.array([text_of(value, column) for value in values], pa.large_string())
        raise DataError(
            f"column {column!r}: {error}; expected values of one type for {type(feature).__name__}"
        ) from error


# ---------------------------------------------------------------- fitting


class EncodersFit:
    """Fits all features of a schema in one pass; memory is that of the distinct values.

    ``update`` gets every chunk of the query file, the interactions (side ``context``) and the item file, with a mask
    of the rows that are training data. Vocabularies and document frequencies of items come from all rows: the catalogue
    is known when it is served, and every item has a row of its own even if no event names it. Everything else is learnt
    from training rows only.

    ``min_count`` of an id counts training events, so the interactions must come with their id columns.

    A fit that goes on from ``base`` lets exact vocabularies grow: rows stay, new values take free rows and rows at the
    end, what waits below ``min_count`` (``waiting``, as the last fit told it) is counted on. Everything else stays as
    it was fitted first, since a model was trained on it: moments, quantile edges, document frequencies, subwords, what
    ages count from, counted collisions.
    """

    def __init__(self, schema: Schema, base: Encoders | None = None, waiting: Waiting | None = None) -> None:
        self._schema, self._base, self._waiting = schema, base, waiting or {}
        self._values: dict[str, Id | Categorical | Categories] = {}
        self._vocabularies: dict[str, VocabularyFit | HashedVocabularyFit] = {}
        self._texts: dict[str, TextFit] = {}
        self._buckets: dict[str, int] = {}
        self._samples: dict[str, Sample] = {}
        self._scalings: dict[str, Moments] = {}
        self._times: dict[str, Sample] = {}
        self._latest_us = 0
        self._missing = {f"{side}.{name}": 0 for side, name, f in schema.features() if not isinstance(f, History)}
        for side, name, feature in schema.features():
            if base is None:
                self._prepare(side, name, feature)
            else:
                self._go_on(base, side, name, feature)

    def _go_on(self, base: Encoders, side: str, name: str, feature: Feature) -> None:
        table = table_of(side, name, feature)
        if not isinstance(feature, (Id, Categorical, Categories)) or table is None or table in self._values:
            return
        vocabulary = base.vocabularies[table]
        if isinstance(vocabulary, Vocabulary):
            self._values[table] = feature
            fit = VocabularyFit(vocabulary, self._waiting.get(table))
            fit.has_counts = table in self._id_tables("query") | self._id_tables("item")  # though no event may come
            self._vocabularies[table] = fit

    def _prepare(self, side: str, name: str, feature: Feature) -> None:
        table = table_of(side, name, feature)
        match feature:
            case Id() | Categorical() | Categories() if table is not None and table not in self._values:
                self._values[table] = feature
                self._vocabularies[table] = HashedVocabularyFit() if feature.hash_buckets else VocabularyFit()
            case Text() if table is not None and table not in self._texts:
                self._texts[table] = TextFit(feature)
            case Number(transform="quantile") if table is not None and table not in self._samples:
                self._buckets[table], self._samples[table] = feature.buckets, Sample(_SAMPLED_NUMBERS)
            case Number(transform="standard" | "log"):
                self._scalings[f"{side}.{name}"] = Moments()
            case Time():
                self._times[f"{side}.{name}"] = Sample(_SAMPLED_NUMBERS)
            case _:
                pass

    def update(
        self,
        side: str,
        table: pa.Table,
        training: NDArray[np.bool_] | None = None,
        again: NDArray[np.bool_] | None = None,
    ) -> None:
        """Learn from a chunk of rows; ``training`` [n] says which are training data (all without it), ``again`` [n]
        which had been learnt from before (none without it): those bring what is new and are not counted twice.

        Raises:
            DataError: a column is missing or mistyped.
        """
        if self._base is not None:
            self._learn_new(side, table, training, np.zeros(len(table), bool) if again is None else again)
            return
        known = table if training is None else table.filter(pa.array(training))
        for name, feature in _side(self._schema, side).items():
            is_catalogue = side == "item" and isinstance(feature, (Id, Categorical, Categories, Text))
            if not isinstance(feature, History):
                with _naming(side, name):
                    missing = self._learn(side, name, feature, table if is_catalogue else known)
                self._missing[f"{side}.{name}"] += missing
        if side == "context":
            self._count_events(known)

    def _learn_new(
        self, side: str, table: pa.Table, training: NDArray[np.bool_] | None, again: NDArray[np.bool_]
    ) -> None:
        """Values for the vocabularies, nothing else."""
        trains = np.ones(len(table), bool) if training is None else training
        for name, feature in _side(self._schema, side).items():
            if isinstance(feature, (Id, Categorical, Categories)) and _table(side, name, feature) in self._vocabularies:
                learnt = np.ones(len(table), bool) if side == "item" else trains
                for rows, is_again in ((learnt & ~again, False), (learnt & again, True)):
                    if rows.any():
                        with _naming(side, name):
                            part = table.filter(pa.array(rows))
                            self._learn_values(_table(side, name, feature), feature, part, is_again)
        if side == "context":
            self._count_events(table.filter(pa.array(trains)))

    def _learn(self, side: str, name: str, feature: Feature, table: pa.Table) -> int:
        """Returns how many rows have no value."""
        match feature:
            case Id() | Categorical() | Categories():
                return self._learn_values(_table(side, name, feature), feature, table)
            case Text():
                return self._texts[_table(side, name, feature)].update(feature, table)
            case Number():
                return self._learn_number(side, name, feature, table)
            case Time():
                return self._learn_time(f"{side}.{name}", feature, table)
            case Vector():
                return int((~vectors(column_of(table, feature.column), feature.column, feature.dim)[1]).sum())
            case Seed():
                return int(text_form(column_of(table, feature.column), feature.column).null_count)
            case History():
                return 0

    def _learn_values(
        self, table_name: str, feature: Id | Categorical | Categories, table: pa.Table, again: bool = False
    ) -> int:
        array = column_of(table, feature.column)
        fit = self._vocabularies[table_name]
        update = fit.update_again if again and isinstance(fit, VocabularyFit) else fit.update
        if not isinstance(feature, Categories):
            text = text_form(array, feature.column)
            update(text)
            return int(text.null_count)
        length, value = text_lists(array, feature.column, feature.separator)
        _weights(feature, table, length)
        update(value)
        return int((length == 0).sum())

    def _learn_number(self, side: str, name: str, feature: Number, table: pa.Table) -> int:
        value = numbers(column_of(table, feature.column), feature.column)
        present = value[~np.isnan(value)]
        if feature.transform == "quantile":
            self._samples[_table(side, name, feature)].update(present)
        else:
            self._scalings[f"{side}.{name}"].update(_measure(feature, present))
        return len(value) - len(present)

    def _learn_time(self, key: str, feature: Time, table: pa.Table) -> int:
        time_us, present = microseconds(column_of(table, feature.column), feature.column, feature.unit)
        self._times[key].update(time_us[present].astype(np.float64))
        self._latest_us = max(self._latest_us, int(time_us[present].max(initial=0)))
        return int((~present).sum())

    def _count_events(self, table: pa.Table) -> None:
        """Count the ids of training events for ``min_count`` and the order of the rows."""
        events = self._schema.interactions
        for side, column in (("query", events.query), ("item", events.item)):
            if column is not None and column in table.column_names:
                for table_name in self._id_tables(side):
                    fit = self._vocabularies.get(table_name)
                    if isinstance(fit, VocabularyFit):
                        fit.count(column_of(table, column), column)
                        if self._base is not None:  # an id of the catalogue, whose row may have come before
                            fit.update_again(column_of(table, column), column)

    def _id_tables(self, side: str) -> set[str]:
        """Tables of the ids that name a side's rows."""
        return {_table(side, name, feature) for name, feature in id_features(self._schema, side)}

    def finish(self, last_event_us: int | None, gone: Gone | None = None) -> Encoders:
        """What was learnt. Ages count from ``last_event_us``; without it from the latest moment of any Time feature.

        A fit that goes on frees the rows of the values that are ``gone``.

        Raises:
            ConfigError: a Text feature has subwords and the library ``tokenizers`` is not installed.
        """
        if self._base is not None:
            grown = {table: self._vocabulary(table, gone) for table in self._vocabularies}
            return dataclasses.replace(self._base, vocabularies={**self._base.vocabularies, **grown})
        last = self._latest_us if last_event_us is None else last_event_us
        samples = {name: sample.values() for name, sample in self._times.items()}
        return Encoders(
            schema=self._schema,
            vocabularies={table: self._vocabulary(table) for table in self._vocabularies},
            texts={table: fit.finish() for table, fit in self._texts.items()},
            edges={table: quantile_edges(fit.values(), self._buckets[table]) for table, fit in self._samples.items()},
            scalings={name: Scaling(mean=m.mean, deviation=m.deviation) for name, m in self._scalings.items()},
            mean_ages={name: float(_age(time, last).mean()) if len(time) else 0.0 for name, time in samples.items()},
            last_event_us=last,
            missing=self._missing,
        )

    def waiting(self, gone: Gone | None = None) -> Waiting:
        """By table what waits below ``min_count``, with its counts so far, for a fit that goes on."""
        return {
            table: fit.waiting(min_count=self._values[table].min_count, gone=(gone or {}).get(table))
            for table, fit in self._vocabularies.items()
            if isinstance(fit, VocabularyFit)
        }

    def _vocabulary(self, table: str, gone: Gone | None = None) -> Vocabulary | HashedVocabulary:
        feature, fit = self._values[table], self._vocabularies[table]
        if isinstance(fit, HashedVocabularyFit):
            return fit.finish(buckets=feature.hash_buckets or 0)
        of_ids = table in self._id_tables("query") | self._id_tables("item")
        if of_ids and feature.min_count > 1 and not fit.has_counts:
            raise ValueError(
                f"table {table!r} has min_count {feature.min_count}, but no events were counted: "
                "pass the interactions, with their id columns, to update('context', ...)"
            )
        return fit.finish(min_count=feature.min_count, oov_buckets=feature.oov_buckets, gone=(gone or {}).get(table))
