"""Stores in memory, so that a test can say what every event is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from twotower.data.columns import Column, Columns
from twotower.data.store import Store
from twotower.schema import ContextFeature, Id, Interactions, ItemFeature, QueryFeature, Schema


def make_store(
    events: Sequence[tuple[int, int]],
    *,
    time_us: Sequence[int] | None = None,
    weight: Sequence[float] | None = None,
    taken: Sequence[bool] | None = None,
    n_queries: int | None = None,
    n_items: int | None = None,
    query_item_row: Sequence[int] | None = None,
    has_query: bool = True,
    query: Mapping[str, QueryFeature] | None = None,
    context: Mapping[str, ContextFeature] | None = None,
    item: Mapping[str, ItemFeature] | None = None,
    query_columns: Mapping[str, Column] | None = None,
    context_columns: Mapping[str, Column] | None = None,
    item_columns: Mapping[str, Column] | None = None,
    table_sizes: Mapping[str, int] | None = None,
) -> Store:
    """Events are (query row, item row), in the order of their times. Ids are features unless other ones are given."""
    query_row, item_row = (np.array([event[side] for event in events], np.int32) for side in (0, 1))
    n_queries = 0 if not has_query else n_queries or int(query_row.max()) + 1
    n_items = n_items or int(item_row.max()) + 1
    if query is None:
        query = {"user": Id(column="user")} if has_query else {}
    schema = Schema(
        interactions=Interactions(
            query="user" if has_query else None,
            item="item",
            time=None if time_us is None else "time",
            weight=None if weight is None else "weight",
            taken=None if taken is None else "taken",
            query_is_item=query_item_row is not None,
        ),
        query=dict(query),
        context=dict(context or {}),
        item=dict(item or {"item": Id(column="item")}),
    )
    ids = {"user": np.arange(n_queries)} if "user" in schema.query else {}
    return Store(
        path=Path("in-memory"),
        schema=schema,
        encoders=cast(
            Any, SimpleNamespace(table_sizes={"query.user": max(n_queries, 1), "item": n_items, **(table_sizes or {})})
        ),
        report={},
        n_queries=n_queries,
        n_items=n_items,
        n_events=len(events),
        query_vocabulary=None,
        item_vocabulary=cast(Any, None),
        query=Columns({**ids, **(query_columns or {})}, n_queries),
        item=Columns({"item": np.arange(n_items), **(item_columns or {})}, n_items),
        context=Columns(dict(context_columns or {}), len(events)),
        query_row=query_row if has_query else np.full(len(events), -1, np.int32),
        item_row=item_row,
        weight=np.array([1.0] * len(events) if weight is None else weight, np.float32),
        time_us=None if time_us is None else np.array(time_us, np.int64),
        taken=None if taken is None else np.array(taken, np.uint8),
        split=None,
        arrived=np.zeros(len(events), np.int32),
        n_updates=0,
        item_number=np.arange(n_items),
        item_seen_us=None,
        days=(),
        query_item_row=None if query_item_row is None else np.array(query_item_row, np.int32),
    )
