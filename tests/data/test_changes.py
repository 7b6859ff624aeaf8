"""Rows that changed from one store to the next, against a naive loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.stores import make_store
from tests.training.grown import (
    BUCKET,
    CHANGED_ITEMS,
    CHANGED_QUERIES,
    FORGOTTEN,
    FREED,
    NEW_QUERIES,
    Rows,
    store_after,
    store_before,
)
from twotower.data.changes import changes
from twotower.data.extend import extend
from twotower.data.ingest import ingest
from twotower.data.store import Store
from twotower.data.vocabulary import Vocabulary
from twotower.errors import ArtifactError
from twotower.part import Changes
from twotower.schema import Id, Interactions, Schema, Seed


def rows(mask: torch.Tensor) -> set[int]:
    return set(mask.nonzero()[:, 0].tolist())


def test_a_row_changed_where_it_is_new_or_its_text_is_another() -> None:
    found = changes(store_before(), store_after())
    assert (rows(found.item_M), len(found.item_M)) == (CHANGED_ITEMS, 15)
    assert (rows(found.query_Q), len(found.query_Q)) == (CHANGED_QUERIES, 10)
    assert rows(found.table["item"]) == CHANGED_ITEMS
    assert rows(found.table["query.user"]) == CHANGED_QUERIES  # and not the bucket, which has no text in either
    assert rows(found.table["query.country"]) == set()


def test_a_new_value_was_looked_up_in_its_bucket() -> None:
    found = changes(store_before(), store_after())
    assert {row for row in range(10) if found.start["query.user"][row] == BUCKET} == set(NEW_QUERIES)
    assert found.start["query.user"][FORGOTTEN] == -1
    assert found.start["item"].tolist() == [-1] * 15  # it has no buckets


def test_nothing_changed_in_the_same_store() -> None:
    found = changes(store_before(), store_before())
    assert not any(bool(x.any()) for x in (found.item_M, found.query_Q, *found.table.values()))


def test_a_store_without_query_ids() -> None:
    store = replace(
        make_store([(0, 0), (0, 1)], has_query=False, query={}, context={"seed": _seed()}, context_columns=_seeds()),
        item_vocabulary=Rows(["a", "b"]),
    )
    store.encoders.vocabularies = {"item": Rows(["a", "b"])}  # type: ignore[misc]
    found = changes(store, store)
    assert len(found.query_Q) == 0
    assert not bool(found.item_M.any())


def _seed() -> Seed:
    return Seed(column="item", table="item")


def _seeds() -> dict[str, np.ndarray]:
    return {"seed": np.zeros(2, np.int32)}


def test_what_did_not_grow_out_of_a_store_is_refused() -> None:
    before, after = store_before(), store_after()
    with pytest.raises(ArtifactError, match=r"'query.user' has 8 rows, expected the 10 of the store it grew out of"):
        changes(after, before)
    with pytest.raises(ArtifactError, match="has another schema"):
        changes(before, make_store([(0, 0)]))
    wider = store_after()
    wider.encoders.table_sizes["query.hour"] = 7
    hours = store_before()
    hours.encoders.table_sizes["query.hour"] = 24
    with pytest.raises(ArtifactError, match=r"table 'query.hour' has 7 rows, expected the 24 of .* can't grow"):
        changes(hours, wider)


def test_item_rows_that_still_hold() -> None:
    item_M = torch.zeros(6, dtype=torch.bool)
    item_M[[FREED, 5]] = True
    found = Changes(item_M=item_M, query_Q=torch.zeros(0, dtype=torch.bool), table={})
    row = torch.tensor([[0, FREED, -1], [5, 3, -1]], dtype=torch.int32)
    assert found.still(row).tolist() == [[0, -1, -1], [-1, 3, -1]]
    assert found.still(row).dtype == torch.int32


DAY = 86_400
GROWING = Schema(
    interactions=Interactions(query="user", item="item", time="t"),
    query={"user": Id(column="user", min_count=2, oov_buckets=3)},
    item={"item": Id(column="item")},
)


def texts(vocabulary: Vocabulary) -> list[str | None]:
    known = vocabulary.ids().to_pylist()
    return known + [None] * (vocabulary.size - len(known))


def test_stores_that_grew_by_updates(tmp_path: Path) -> None:
    """Items come and go, their rows are taken by others, a user is forgotten, and some get a row of their own late."""
    days = [
        [("a", "x"), ("a", "y"), ("b", "x"), ("b", "z"), ("c", "z"), ("f", "z")],
        [("c", "x"), ("d", "x"), ("d", "v"), ("e", "x"), ("f", "x")],
        [("e", "w"), ("g", "u"), ("g", "w"), ("h", "t")],
    ]
    frames = [
        pa.table({"user": [u for u, _ in d], "item": [i for _, i in d], "t": [9 * DAY * at] * len(d)})
        for at, d in enumerate(days)
    ]
    ingest(GROWING, interactions=frames[0], out=tmp_path / "0")
    extend(Store.open(tmp_path / "0"), interactions=frames[1], out=tmp_path / "1", evict_idle_days=5)
    extend(Store.open(tmp_path / "1"), interactions=frames[2], out=tmp_path / "2", evict_idle_days=12)
    extend(Store.open(tmp_path / "2"), interactions=frames[2].slice(0, 1), out=tmp_path / "3", forget=["c"])
    n_changed, n_from_bucket = 0, 0
    for at in range(3):
        old, new = Store.open(tmp_path / str(at)), Store.open(tmp_path / str(at + 1))
        found = changes(old, new)
        assert old.query_vocabulary is not None
        assert new.query_vocabulary is not None
        for mask, before, after in (
            (found.item_M, old.item_vocabulary, new.item_vocabulary),
            (found.query_Q, old.query_vocabulary, new.query_vocabulary),
            *((m, old.encoders.vocabularies[name], new.encoders.vocabularies[name]) for name, m in found.table.items()),
        ):
            assert isinstance(before, Vocabulary)
            assert isinstance(after, Vocabulary)
            was, now = texts(before), texts(after)
            expected = [row >= len(was) or was[row] != text for row, text in enumerate(now)]
            assert mask.tolist() == expected
            n_changed += sum(expected)
        users = new.encoders.vocabularies["query.user"]
        assert isinstance(users, Vocabulary)
        for row, text in enumerate(texts(users)):
            if found.table["query.user"][row] and text is not None:
                served_as = int(old.encoders.vocabularies["query.user"].rows(pa.array([text]))[0])
                assert int(found.start["query.user"][row]) == served_as >= 2  # behind a and b
                n_from_bucket += 1
    assert n_changed > 10
    assert n_from_bucket == 5  # c, d and f on the second day, e and g on the third
