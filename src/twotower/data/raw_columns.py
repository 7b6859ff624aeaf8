"""Which raw columns the features of a schema read, and as what."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from ..schema import Categories, Feature, History, Number, Schema, Text, Time, Vector


def columns_of(feature: Feature) -> dict[str, pa.DataType | None]:
    """Raw columns of a feature, with the type that it wants of a text file."""
    match feature:
        case History():
            return {}
        case Number():
            return {feature.column: pa.float64()}
        case Time():
            return {feature.column: pa.timestamp("us")}
        case Vector():
            return {feature.column: None}
        case Text():
            return dict.fromkeys(feature.columns + feature.name_columns, pa.string())
        case Categories(weights=str(weights)):
            return {feature.column: pa.string(), weights: None}
        case _:
            return {feature.column: pa.string()}


_PRECEDENCE = (pa.float64(), pa.timestamp("us"), pa.string(), None)
"""Of two wishes for one column the earlier one here wins: numbers and moments have a text form."""


def column_types(schema: Schema) -> dict[str, pa.DataType]:
    """The type that text files are asked for, by column: ids and categories are text as it is written."""
    events = schema.interactions
    wishes: list[tuple[str | None, pa.DataType | None]] = [
        *((column, pa.string()) for column in (events.item, events.query, events.taken, events.split)),
        *((column, pa.string()) for column in (schema.item_key, schema.query_key)),
        (events.time, pa.timestamp("us")),
        *((column, pa.float64()) for column in events.weight_columns),
        *((column, pa.timestamp("us")) for column in (schema.life.columns if schema.life is not None else ())),
    ]
    for _, _, feature in schema.features():
        wishes += columns_of(feature).items()
    types: dict[str, pa.DataType] = {}
    for column, kind in sorted(wishes, key=lambda wish: -_PRECEDENCE.index(wish[1])):
        if column is not None and kind is not None:
            types[column] = kind
    return types


def column_groups(features: Sequence[Feature]) -> list[tuple[str, ...]]:
    """Groups of columns that must come from one row: values and their weights together, others alone."""
    groups: dict[tuple[str, ...], None] = {}
    for feature in features:
        columns = tuple(columns_of(feature))
        for group in [columns] if isinstance(feature, Categories) else [(column,) for column in columns]:
            groups[group] = None
    return list(groups)
