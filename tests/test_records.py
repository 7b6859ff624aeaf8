"""Lists laid end to end, and what a batch says of its queries."""

from __future__ import annotations

import torch

from twotower.records import Batch, Ragged, find, running_sum, spans


def test_lengths_become_offsets() -> None:
    assert running_sum(torch.tensor([2, 0, 3])).tolist() == [0, 2, 2, 5]
    assert running_sum(torch.tensor([0.5, 1.5], dtype=torch.float64)).tolist() == [0.0, 0.5, 2.0]
    assert running_sum(torch.zeros(0, dtype=torch.int64)).tolist() == [0]


def test_spans_are_laid_end_to_end() -> None:
    offset, at = spans(torch.tensor([5, 0, 9]), torch.tensor([2, 0, 3]))
    assert offset.tolist() == [0, 2, 2, 5]
    assert at.tolist() == [5, 6, 9, 10, 11]


def test_values_are_found_where_they_are() -> None:
    at, is_there = find(torch.tensor([2, 4, 9]), torch.tensor([[4, 3], [9, 10], [2, -1]]))
    assert is_there.tolist() == [[True, False], [True, False], [True, False]]
    assert at[is_there].tolist() == [1, 2, 0]
    assert not find(torch.zeros(0, dtype=torch.int64), torch.tensor([1, 2]))[1].any()


def batch(query: list[int], of: list[int], item: list[int]) -> Batch:
    return Batch(
        query={},
        query_B=torch.tensor(query),
        item_P=torch.tensor(item),
        of_P=torch.tensor(of),
        weight_P=torch.ones(len(item)),
        known=Ragged(offset=torch.zeros(len(query) + 1, dtype=torch.int64), value=torch.zeros(0, dtype=torch.int64)),
    )


def test_positives_by_query() -> None:
    positives = batch([7, 3, 8], [0, 0, 2], [5, 1, 4]).positives()
    assert positives.offset.tolist() == [0, 2, 2, 3]
    assert positives.value.tolist() == [5, 1, 4]


def test_lines_of_one_query() -> None:
    """Queries without a row are nobody's other line."""
    lines = batch([7, -1, 3, 7, -1, 3, 7], list(range(7)), [0] * 7)
    assert lines.first_lines().tolist() == [0, 1, 2, 0, 4, 2, 0]
