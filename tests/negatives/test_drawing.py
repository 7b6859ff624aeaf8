"""Draws by chance, against enumeration and arithmetic."""

from __future__ import annotations

import pytest
import torch

from twotower.negatives.drawing import best, bounds, by_softmax, by_weight, one_of, picked, some_of
from twotower.negatives.tiles import tiles
from twotower.records import Ragged, running_sum

from .scored import drawn, fits

INF = torch.inf


def test_places_by_softmax_are_those_of_the_distribution_function() -> None:
    weight = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0], [0.0] * 5])
    lot = torch.tensor([[0.0, 0.2499, 0.2501, 1 - 2**-53], [0.0, 0.3, 0.6, 0.9]], dtype=torch.float64)
    assert by_softmax(weight.log(), lot).tolist() == [[1, 1, 3, 3], [-1] * 4]
    assert by_softmax(weight.log()[:, None] - 1000, lot[:, None]).tolist() == [[[1, 1, 3, 3]], [[-1] * 4]]


def test_the_softmax_of_many_items_keeps_the_rare_ones() -> None:
    """2^24 items as heavy as one: a float32 sum of them stands still."""
    logit = torch.zeros(1, 2**24 + 2)
    lot = (torch.tensor([[2**24 + 0.5, 2**24 + 1.5]], dtype=torch.float64)) / (2**24 + 2)
    assert by_softmax(logit, lot).tolist() == [[2**24, 2**24 + 1]]


def test_places_of_a_span_come_by_their_weight() -> None:
    """Of three spans of [1, 0, 2, 5, 4, 3], one of them empty: never a place without weight."""
    until_L = running_sum(torch.tensor([1.0, 0, 2, 5, 4, 3], dtype=torch.float64))
    start, stop = torch.tensor([0, 3, 2]), torch.tensor([3, 3, 6])

    def count(seed: int) -> torch.Tensor:
        place = by_weight(until_L, start, stop, 3000, drawn(seed))
        assert place[1].tolist() == [-1] * 3000
        return torch.cat([place[0].bincount(minlength=6), place[2].bincount(minlength=6)])

    law = torch.tensor([1, 0, 2, 0, 0, 0, 0, 0, 2, 5, 4, 3], dtype=torch.float64)
    assert fits(count, law / torch.tensor([3] * 6 + [14] * 6))


LISTS = Ragged(offset=torch.tensor([0, 2, 2, 5]), value=torch.tensor([7, 7, 3, 9, 4], dtype=torch.int32))


def test_bounds_of_lists() -> None:
    start, stop = bounds(LISTS.offset, torch.tensor([[2, -1], [1, 0]]))
    assert start.tolist() == [[2, 0], [2, 0]]
    assert stop.tolist() == [[5, 0], [2, 2]]


def test_one_of_a_list_is_any_of_its_values() -> None:
    which = torch.tensor([2, 1, -1, 0]).repeat(900, 1)

    def count(seed: int) -> torch.Tensor:
        row = one_of(LISTS, which, drawn(seed))
        assert row[:, 1:].unique(dim=0).tolist() == [[-1, -1, 7]]
        return row[:, 0].bincount(minlength=10)

    assert fits(count, torch.tensor([0, 0, 0, 1, 1, 0, 0, 0, 0, 1]))
    nothing = Ragged(offset=torch.zeros(2, dtype=torch.int64), value=torch.zeros(0, dtype=torch.int64))
    assert one_of(nothing, torch.tensor([0, -1]), drawn(0)).tolist() == [-1, -1]


def test_the_best_and_what_is_there() -> None:
    place = best(torch.tensor([[1.0, 3.0, -INF, 2.0], [-INF, -INF, 0.0, -INF]]), 3)
    assert place.tolist() == [[1, 3, 0], [2, -1, -1]]
    assert picked(torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]]), place).tolist() == [[6, 8, 5], [11, -1, -1]]


def test_some_are_drawn_by_weight_and_never_twice() -> None:
    """One of three by weight 1 : 2 : 5; two of them always differ; all where there are no more."""
    row = torch.tensor([[4, -1, 6, 8]]).repeat(2000, 1)
    log_weight = torch.tensor([1.0, 9.0, 2.0, 5.0]).log().repeat(2000, 1)
    law = torch.zeros(9).index_copy(0, torch.tensor([4, 6, 8]), torch.tensor([1.0, 2, 5]))
    assert fits(lambda seed: some_of(row, 1, drawn(seed), log_weight)[:, 0].bincount(minlength=9), law)
    two = some_of(row, 2, drawn(0))
    assert bool((two[:, 0] != two[:, 1]).all())
    assert some_of(row[:2], 4, drawn(0)).tolist() == row[:2].tolist()
    assert some_of(row[:1], 3, drawn(0)).sort().values.tolist() == [[4, 6, 8]]


@pytest.mark.parametrize(("n", "width", "length"), [(7, 2**21, 2), (7, 2**23, 1), (7, 1, 7), (0, 5, 0), (3, 0, 3)])
def test_tiles_cover_all_lines_once(n: int, width: int, length: int) -> None:
    """Of 2^22 numbers each, but a line at least."""
    found = list(tiles(n, width))
    assert [line for at in found for line in range(at.start, at.stop)] == list(range(n))
    assert found
    assert max(at.stop - at.start for at in found) == length
