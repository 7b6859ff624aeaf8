"""Made-up raw rows for a schema: known and unknown values, missing ones, extremes. To hold two ways to encode against
each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from ..data.encoders import Encoders
from ..data.raw_queries import feature_columns
from ..data.vocabulary import Vocabulary
from ..schema import Categorical, Categories, Feature, Id, Number, Seed, Text, Time, Vector, table_of

_WORDS = ("web", "server", "gimp", "libgtk-3-dev", "Überblick", "音楽", "x", "a-very-long-word-that-nobody-wrote", "7")
_MISSING = 0.1
_LENGTH = 3
"""Values of a list: always as many, as weights are drawn apart from what they weigh."""

Make = Callable[[np.random.Generator], object]


def sample_rows(encoders: Encoders, side: str, n: int, seed: int = 0) -> list[dict[str, object]]:
    """n rows of raw values for the features of a side."""
    generator = np.random.default_rng(seed)
    makers = _makers(encoders, side)
    together = {
        column for _, _, f in encoders.schema.features() if isinstance(f, Categories) for column in feature_columns(f)
    }
    rows = []
    for _ in range(n):
        there = {column: column in together or generator.random() >= _MISSING for column in makers}
        rows.append({column: make(generator) for column, make in makers.items() if there[column]})
    return rows


def _makers(encoders: Encoders, side: str) -> Mapping[str, Make]:
    """By column. A column that several features read has the values of the choosiest."""
    makers: dict[str, Make] = {}
    features = [(name, f) for of, name, f in encoders.schema.features() if of == side]
    for name, feature in sorted(features, key=lambda one: _choosiness(one[1])):  # the choosiest last, over the others
        for column in feature_columns(feature):
            makers[column] = _maker(encoders, side, name, feature, column)
    return makers


def _choosiness(feature: Feature) -> int:
    order = (Text, Id | Categorical | Seed, Time, Number, Categories, Vector)
    return next((at for at, kind in enumerate(order) if isinstance(feature, kind)), 0)


def _maker(encoders: Encoders, side: str, name: str, feature: Feature, column: str) -> Make:
    match feature:
        case Vector(dim=dim):
            return lambda generator: generator.normal(size=dim).tolist()
        case Number():
            return lambda generator: float(generator.normal() * 10.0 ** generator.integers(-2, 6))
        case Time():
            return lambda generator: str(np.datetime64(int(generator.integers(0, 2_000_000_000)), "s"))
        case Text():
            return lambda generator: " ".join(generator.choice(_WORDS, generator.integers(0, 12)))
        case Categories(weights=weights) if column == weights:
            return lambda generator: generator.random(_LENGTH).tolist()
    table = table_of(side, name, feature)
    vocabulary = encoders.vocabularies[table or ""]
    ids = vocabulary.ids() if isinstance(vocabulary, Vocabulary) else pa.array(_WORDS, pa.large_string())

    def value(generator: np.random.Generator) -> str:
        known = ids[int(generator.integers(len(ids)))].as_py() if len(ids) else None
        return known if known is not None and generator.random() < 0.8 else f"unknown {generator.integers(1000)}"

    if isinstance(feature, Categories):
        separator = feature.separator
        if separator is None:
            return lambda generator: [value(generator) for _ in range(_LENGTH)]
        return lambda generator: separator.join(value(generator) for _ in range(_LENGTH))
    return value
