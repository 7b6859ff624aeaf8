"""A store and the one that grew out of it: an item and a query went, a row is another item's, others are new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tests.stores import make_store
from twotower.data.batches import TrainingBatches
from twotower.data.store import Store
from twotower.data.vocabulary import Vocabulary
from twotower.schema import Categorical, Id


class Rows(Vocabulary):
    """A vocabulary by its rows: None is a free row, or the bucket of all other values."""

    def __init__(self, texts: Sequence[str | None], bucket: int = -1) -> None:
        super().__init__(pa.array([text for text in texts if text is not None], pa.large_string()))
        self.texts, self.bucket = list(texts), bucket

    @property
    def size(self) -> int:
        return len(self.texts)

    def ids(self) -> pa.LargeStringArray:
        return pa.array(self.texts, pa.large_string())

    def rows(self, values: pa.Array | pa.ChunkedArray, column: str = "values") -> NDArray[np.int64]:
        known = {text: row for row, text in enumerate(self.texts) if text is not None}
        return np.array([-1 if v is None else known.get(v, self.bucket) for v in values.to_pylist()], np.int64)


QUERIES = [f"u{row}" for row in range(8)]
USERS: list[str | None] = [*QUERIES[:7], None]
"""Of the table: u7 is looked up in the bucket, row 7."""
ITEMS: list[str | None] = [f"i{row}" for row in range(12)]
FORGOTTEN, FREED, REUSED = 2, 4, 5
BUCKET, NEW_QUERIES, NEW_ITEMS = 7, (8, 9), (12, 13, 14)

CHANGED_ITEMS = {FREED, REUSED, *NEW_ITEMS}
CHANGED_QUERIES = {FORGOTTEN, *NEW_QUERIES}
ITEM_NUMBERS = [0, 1, 2, 3, -1, 12, 6, 7, 8, 9, 10, 11, 13, 14, 15]


def store_before() -> Store:
    """Every query took half of the items, and was shown one more."""
    return _store(QUERIES, USERS, ITEMS, [(q, i) for q in range(8) for i in range(12) if (q + i) % 2 == 0])


def store_after() -> Store:
    """What came that day: new and old queries took new and old items."""
    queries, users, items = [*QUERIES, "u8", "u9"], [*USERS, "u8", "u9"], [*ITEMS, "j12", "j13", "j14"]
    left = [None if row == FORGOTTEN else text for row, text in enumerate(queries)]
    users = [None if row == FORGOTTEN else text for row, text in enumerate(users)]
    items[FREED], items[REUSED] = None, "j5"
    events = [(q, i) for q in range(10) for i in range(15) if (q + i) % 3 == 0 and q != FORGOTTEN and i != FREED]
    return _store(left, users, items, events)


def _store(
    queries: list[str | None] | list[str],
    users: list[str | None],
    items: list[str | None],
    events: list[tuple[int, int]],
) -> Store:
    shown = [(q, next(i for i in (0, 1, 3) if (q, i) not in events)) for q in sorted({q for q, _ in events})]
    all_events = [*events, *shown]
    made = make_store(
        all_events,
        taken=[True] * len(events) + [False] * len(shown),
        n_queries=len(queries),
        n_items=len(items),
        query={"user": Id(column="user"), "country": Categorical(column="country")},
        query_columns={"country": np.arange(len(queries)) % 3},
    )
    vocabularies = {"query.user": Rows(users, BUCKET), "query.country": Rows(["a", "b", "c"]), "item": Rows(items)}
    sizes = {name: vocabulary.size for name, vocabulary in vocabularies.items()}
    return replace(
        made,
        encoders=cast(Any, SimpleNamespace(table_sizes=sizes, vocabularies=vocabularies)),
        query_vocabulary=Rows(queries),
        item_vocabulary=Rows(items),
    )


def batches_of(store: Store) -> TrainingBatches:
    assert store.taken is not None
    return TrainingBatches(
        store,
        np.flatnonzero(store.taken),
        shown=np.flatnonzero(store.taken == 0),
        batch_of="pairs",
        batch_size=16,
    )
