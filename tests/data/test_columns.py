"""Columns on disk against plain Python lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from twotower.data.columns import Columns, RaggedArray, cut, put_together, taken
from twotower.records import Ragged

LISTS = [[3, 1], [], [7], [0, 0, 5]]
WEIGHTS = [[0.25, 0.75], [], [1.0], [0.5, 0.25, 0.25]]


def ragged(value_type: type = np.int32) -> RaggedArray:
    return RaggedArray(
        offset=np.array([0, 2, 2, 3, 6]),
        value=np.array([3, 1, 7, 0, 0, 5], value_type),
        weight=np.array([0.25, 0.75, 1.0, 0.5, 0.25, 0.25], np.float32),
    )


def as_lists(column: object) -> list[list[int]]:
    assert isinstance(column, Ragged)
    return [column.slice(i, i + 1).value.tolist() for i in range(len(column))]


def test_take_gathers_every_kind_in_the_order_asked_for() -> None:
    columns = Columns(
        {
            "row": np.array([5, -1, 2, 9], np.int32),
            "number": np.array([0.5, 1.5, -2.0, 3.0]),
            "vector": np.arange(8, dtype=np.float16).reshape(4, 2),
            "list": ragged(),
        },
        4,
    )
    found = columns.take(torch.tensor([3, 0, 3, 1]))
    row, number, vector, lists = (found[name] for name in ("row", "number", "vector", "list"))
    assert isinstance(row, torch.Tensor)
    assert isinstance(number, torch.Tensor)
    assert isinstance(vector, torch.Tensor)
    assert isinstance(lists, Ragged)
    assert row.tolist() == [9, 5, 9, -1]
    assert row.dtype == torch.int64
    assert number.tolist() == [3.0, 0.5, 3.0, 1.5]
    assert number.dtype == torch.float32
    assert vector.tolist() == [[6.0, 7.0], [0.0, 1.0], [6.0, 7.0], [2.0, 3.0]]
    assert vector.dtype == torch.float32
    assert as_lists(lists) == [LISTS[i] for i in (3, 0, 3, 1)]
    assert lists.value.dtype == torch.int64
    assert lists.weight is not None
    assert lists.weight.tolist() == [w for i in (3, 0, 3, 1) for w in WEIGHTS[i]]


def test_read_only_memory_maps_are_gathered_without_a_warning(tmp_path: Path) -> None:
    np.array([4, 5, 6], np.int32).tofile(tmp_path / "row.bin")
    column = np.memmap(tmp_path / "row.bin", np.int32, "r")
    found = Columns({"row": column}, 3).take(torch.tensor([2, 2, 0]))["row"]
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == [6, 6, 4]


def test_lists_without_weights_stay_without() -> None:
    column = RaggedArray.of_lengths(np.array([1, 2]), np.array([8, 9, 9]))
    found = Columns({"list": column}, 2).take(torch.tensor([1]))["list"]
    assert isinstance(found, Ragged)
    assert found.weight is None
    assert as_lists(found) == [[9, 9]]


def test_nothing_can_be_taken_and_no_column_is_needed() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert as_lists(Columns({"list": ragged()}, 4).take(none)["list"]) == []
    empty = Columns({}, 3)
    assert len(empty) == 0
    assert empty.n == 3
    assert empty.take(torch.tensor([0, 1])) == {}


def test_it_is_a_mapping_of_its_arrays() -> None:
    row = np.array([1, 2])
    columns = Columns({"row": row}, 2)
    assert list(columns) == ["row"]
    assert columns["row"] is row


def test_columns_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 rows were expected, found \{'list': 4\}"):
        Columns({"row": np.zeros(3), "list": ragged()}, 3)


def test_ragged_arrays_take_and_know_their_owners() -> None:
    column = ragged()
    assert column.lengths().tolist() == [2, 0, 1, 3]
    assert column.owner().tolist() == [0, 0, 2, 3, 3, 3]
    taken = column.take(np.array([3, 1, 0, 0]))
    assert taken.offset.tolist() == [0, 3, 3, 5, 7]
    assert taken.value.tolist() == [0, 0, 5, 3, 1, 3, 1]
    assert taken.weight is not None
    assert taken.weight.tolist() == [0.5, 0.25, 0.25, 0.25, 0.75, 0.25, 0.75]
    assert len(column.take(np.zeros(0, np.int64))) == 0


def test_parts_of_columns_are_put_together() -> None:
    lists = ragged()
    whole = put_together(cut(lists, 1, 3), taken(lists, np.array([3, 1, 0])))
    assert isinstance(whole, RaggedArray)
    assert whole.weight is not None
    expected = [LISTS[at] for at in (1, 2, 3, 1, 0)]
    bounds = list(zip(whole.offset[:-1], whole.offset[1:], strict=True))
    assert [whole.value[a:b].tolist() for a, b in bounds] == expected
    assert [whole.weight[a:b].tolist() for a, b in bounds] == [WEIGHTS[at] for at in (1, 2, 3, 1, 0)]
    vectors = np.arange(8).reshape(4, 2)
    np.testing.assert_array_equal(
        put_together(cut(vectors, 1, 2), taken(vectors, np.array([3, 0]))), vectors[[1, 3, 0]]
    )
