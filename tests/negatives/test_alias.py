"""The alias table holds exactly the law it was made from, and its draws follow the generator."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from twotower.negatives import AliasTable

WEIGHT = st.one_of(st.just(0.0), st.floats(1e-6, 1e6), st.integers(1, 5).map(float))


def law_of(table: AliasTable) -> list[float]:
    """What a draw gives, column by column."""
    law = [0.0] * len(table.keep_M)
    for column, (keep, other) in enumerate(zip(table.keep_M.tolist(), table.other_M.tolist(), strict=True)):
        assert 0.0 <= keep <= 1.0
        law[column] += keep / len(law)
        law[other] += (1.0 - keep) / len(law)
    return law


def check_law(weight: list[float]) -> None:
    total = sum(weight)
    for found, w in zip(law_of(AliasTable(torch.tensor(weight, dtype=torch.float64))), weight, strict=True):
        assert found == pytest.approx(w / total, abs=1e-12)
        assert w > 0 or found == 0.0


@given(st.lists(WEIGHT, min_size=1, max_size=60).filter(lambda weight: sum(weight) > 0))
@settings(max_examples=200, deadline=None)
def test_the_law_is_exact(weight: list[float]) -> None:
    check_law(weight)


@pytest.mark.parametrize(
    "weight",
    [
        [1.0],
        [0.0, 0.0, 3.0, 0.0],  # one-hot: one item overrun by nobody
        [0.1, 0.1, 0.1],  # all equal, and 3 * 0.1 / (0.1 + 0.1 + 0.1) rounds below 1
        [1.0, 1.0, 1.0, 1.0],
        [0.5, 1.0, 1.5, 1.0],  # items of exactly the mean
        [1e-6, 1.4, 1.3, 1.3, 1e-6],  # one hole overruns a large item, which overruns the next
        [1e-300, 1.0],
    ],
)
def test_the_law_is_exact_at_the_corners(weight: list[float]) -> None:
    check_law(weight)


def test_the_law_of_a_large_catalogue_is_exact() -> None:
    weight_M = torch.arange(1, 200_001, dtype=torch.float64) ** -1.0
    weight_M[::7] = 0
    weight_M = weight_M[torch.randperm(200_000, generator=torch.Generator().manual_seed(0))]
    table = AliasTable(weight_M)
    law_M = table.keep_M.index_add(0, table.other_M, 1 - table.keep_M) / len(weight_M)
    torch.testing.assert_close(law_M, weight_M / weight_M.sum(), atol=1e-13, rtol=0)
    assert not law_M[weight_M == 0].any()


def draw(table: AliasTable, shape: tuple[int, ...], seed: int) -> Tensor:
    return table.draw(shape, torch.Generator().manual_seed(seed))


def test_draws_follow_the_generator_and_the_law() -> None:
    weight = [5.0, 0.0, 1.0, 2.5, 0.5, 1.0]
    table = AliasTable(torch.tensor(weight))
    drawn = draw(table, (100, 200), seed=3)
    assert drawn.shape == (100, 200)
    assert drawn.dtype == torch.int64
    assert torch.equal(drawn, draw(table, (100, 200), seed=3))
    assert not torch.equal(drawn, draw(table, (100, 200), seed=4))
    count = drawn.view(-1).bincount(minlength=6)
    assert int(count[1]) == 0
    kept = [0, 2, 3, 4, 5]
    assert chisquare(count[kept].numpy(), [20_000 * weight[i] / 10 for i in kept]).pvalue > 0.001


def test_nothing_is_saved() -> None:
    assert AliasTable(torch.ones(3)).state_dict() == {}
