"""Row optimisers against per-row loops in Python floats; what a batch does not touch stays as it is, bit for bit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from twotower.errors import ConfigError
from twotower.optimisers import Adagrad, AdamW, RowOptimiser, RowwiseAdagrad, RowwiseAdam
from twotower.tables import Table, TableSettings

ROWS, DIM = 6, 3
STEPS = [[0, 2, 5], [2], [1, 2, 3], [0, 5], [2, 5]]
"""Rows of each step; row 4 is in none."""
RATES = [1.0, 1.0, 0.5, 0.25, 0.1]


def gradients() -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(len(rows), DIM, generator=g, dtype=torch.float64) for rows in STEPS]


def start() -> Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def stepped(optimiser: RowOptimiser) -> Tensor:
    weight = start()
    optimiser.allocate(ROWS, DIM, torch.device("cpu"))
    optimiser.double()
    for rows, gradient, rate in zip(STEPS, gradients(), RATES, strict=True):
        optimiser.step(weight, torch.tensor(rows), gradient.clone(), rate)
    return weight


def close(found: Tensor, want: list[list[float]]) -> bool:
    return bool((found - torch.tensor(want, dtype=torch.float64)).abs().max() < 1e-12)


@pytest.mark.parametrize("initial", [0.0, 0.25])  # a quarter is exact in float32
def test_adagrad_is_a_loop_over_rows(initial: float) -> None:
    lr, eps = 0.2, 1e-6
    weight = start().tolist()
    accumulator = [initial] * ROWS
    for rows, gradient, rate in zip(STEPS, gradients(), RATES, strict=True):
        for row, g in zip(rows, gradient.tolist(), strict=True):
            accumulator[row] += sum(x * x for x in g) / DIM
            for d in range(DIM):
                weight[row][d] -= lr * rate * g[d] / (math.sqrt(accumulator[row]) + eps)
    assert close(stepped(RowwiseAdagrad(lr=lr, eps=eps, initial_accumulator=initial)), weight)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_adam_is_a_loop_over_rows(beta1: float) -> None:
    lr, beta2, eps = 0.1, 0.95, 1e-6
    weight = start().tolist()
    first = [[0.0] * DIM for _ in range(ROWS)]
    second, steps = [0.0] * ROWS, [0] * ROWS
    for rows, gradient, rate in zip(STEPS, gradients(), RATES, strict=True):
        for row, g in zip(rows, gradient.tolist(), strict=True):
            steps[row] += 1
            second[row] = beta2 * second[row] + (1 - beta2) * sum(x * x for x in g) / DIM
            for d in range(DIM):
                first[row][d] = beta1 * first[row][d] + (1 - beta1) * g[d]
                m = first[row][d] / (1 - beta1 ** steps[row])
                v = second[row] / (1 - beta2 ** steps[row])
                weight[row][d] -= lr * rate * m / (math.sqrt(v) + eps)
    assert close(stepped(RowwiseAdam(lr=lr, beta1=beta1, beta2=beta2, eps=eps)), weight)


@pytest.mark.parametrize("optimiser", [RowwiseAdagrad(), RowwiseAdam(), RowwiseAdam(beta1=0.0)])
def test_rows_that_are_not_touched_keep_weight_and_state(optimiser: RowOptimiser) -> None:
    optimiser = copy.deepcopy(optimiser)
    weight = start().float()
    optimiser.allocate(ROWS, DIM, torch.device("cpu"))
    for rows, gradient in zip(STEPS, gradients(), strict=True):
        before = [weight.clone(), *(value.clone() for value in optimiser.buffers())]
        optimiser.step(weight, torch.tensor(rows), gradient.float(), 1.0)
        rest = [row for row in range(ROWS) if row not in rows]
        for old, new in zip(before, [weight, *optimiser.buffers()], strict=True):
            if len(new) == ROWS:
                assert torch.equal(old[rest], new[rest])
                assert not torch.equal(old[rows], new[rows])


@pytest.mark.parametrize("optimiser", [RowwiseAdagrad(), RowwiseAdam(), RowwiseAdam(beta1=0.0)])
def test_a_gradient_of_zero_or_no_row_moves_nothing(optimiser: RowOptimiser) -> None:
    optimiser = copy.deepcopy(optimiser)
    weight = start().float()
    optimiser.allocate(ROWS, DIM, torch.device("cpu"))
    optimiser.step(weight, torch.tensor([1, 3]), torch.zeros(2, DIM), 1.0)
    optimiser.step(weight, torch.empty(0, dtype=torch.int64), torch.empty(0, DIM), 1.0)
    assert torch.equal(weight, start().float())


def test_a_million_rows_are_never_copied() -> None:
    """A step reads and writes the rows it looked up: no dense gradient, and the table stays where it is."""
    table = Table(1_000_000, 4, TableSettings(init="zeros"))
    optimiser = RowwiseAdagrad()
    optimiser.allocate(1_000_000, 4, table.weight.device)
    place, state = table.weight.data_ptr(), optimiser.accumulator_R.data_ptr()
    rows = torch.tensor([7, 999_999, 500, 7])
    (table.look_up(rows) * torch.arange(1.0, 5.0)[:, None]).sum().backward()
    assert table.weight.grad is None
    assert not table.weight.requires_grad
    found = table.gradient()
    assert found is not None
    assert found[0].tolist() == [7, 500, 999_999]
    assert found[1][:, 0].tolist() == [5.0, 3.0, 2.0]  # row 7 came as the first and the fourth
    optimiser.step(table.weight, *found, 1.0)
    assert (table.weight.data_ptr(), optimiser.accumulator_R.data_ptr()) == (place, state)
    assert table.weight.any(1).nonzero()[:, 0].tolist() == [7, 500, 999_999]
    # the first step of Adagrad is lr for every number of a row of equal numbers
    assert torch.allclose(table.weight[[7, 500, 999_999]], torch.full((3, 4), -0.05))
    assert optimiser.accumulator_R[[7, 500, 999_999]].tolist() == [25.0, 9.0, 4.0]


def test_sizes_of_states() -> None:
    """Adagrad keeps a number a row; Adam the table once more and two numbers a row, or only those without momentum."""
    for optimiser, numbers in (
        (RowwiseAdagrad(), 10),
        (RowwiseAdam(), 10 * 8 + 20),
        (RowwiseAdam(beta1=0.0), 20),
    ):
        optimiser.allocate(10, 8, torch.device("cpu"))
        assert sum(value.numel() for value in optimiser.state_dict().values()) == numbers


def test_a_recipe_has_no_state() -> None:
    assert RowwiseAdagrad().state_dict() == {}
    assert RowwiseAdam().state_dict() == {}


def test_dense_optimisers_take_their_settings() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    adam = AdamW(lr=0.1, beta1=0.5, beta2=0.6, weight_decay=0.2).build([parameter])
    group = adam.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.1, (0.5, 0.6), 0.2)
    parameter.grad = torch.tensor([3.0])
    adam.step()
    assert parameter.item() == pytest.approx(1.0 - 0.1 * 0.2 * 1.0 - 0.1)  # decay, then a first step of lr

    parameter = nn.Parameter(torch.tensor([1.0]))
    adagrad = Adagrad(lr=0.1, initial_accumulator=7.0).build([parameter])
    parameter.grad = torch.tensor([3.0])
    adagrad.step()
    assert parameter.item() == pytest.approx(1.0 - 0.1 * 3.0 / 4.0)  # sqrt(7 + 9) = 4


@pytest.mark.parametrize(
    ("make", "setting", "named"),
    [
        (RowwiseAdagrad, {"lr": 0.0}, "lr of RowwiseAdagrad is 0.0"),
        (RowwiseAdagrad, {"lr": float("nan")}, "lr of RowwiseAdagrad is nan"),
        (RowwiseAdagrad, {"initial_accumulator": -1.0}, "initial_accumulator of RowwiseAdagrad is -1.0"),
        (RowwiseAdagrad, {"eps": 0.0}, "eps of RowwiseAdagrad is 0.0"),
        (RowwiseAdam, {"lr": -1.0}, "lr of RowwiseAdam is -1.0"),
        (RowwiseAdam, {"beta1": 1.0}, "beta1 of RowwiseAdam is 1.0"),
        (RowwiseAdam, {"beta2": -0.1}, "beta2 of RowwiseAdam is -0.1"),
        (RowwiseAdam, {"eps": 0.0}, "eps of RowwiseAdam is 0.0"),
        (AdamW, {"lr": 0.0}, "lr of AdamW is 0.0"),
        (AdamW, {"beta1": 1.5}, "beta1 of AdamW is 1.5"),
        (AdamW, {"weight_decay": -1.0}, "weight_decay of AdamW is -1.0"),
        (Adagrad, {"lr": float("inf")}, "lr of Adagrad is inf"),
        (Adagrad, {"initial_accumulator": -1.0}, "initial_accumulator of Adagrad is -1.0"),
    ],
)
def test_settings_out_of_range(make: type, setting: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make(**setting)
