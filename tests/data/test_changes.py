"""Rows that changed from one store to the next, against a naive loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
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
from twotower.errors import ArtifactError
from twotower.part import Changes


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


def _seed() -> object:
    from twotower.schema import Seed

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
