"""Embedding tables: look-ups, bags and their gradients against naive loops and a dense embedding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from twotower.errors import ConfigError
from twotower.records import Ragged
from twotower.tables import Table, TableSettings, distinct_rows

ROWS, DIM = 7, 3


def table() -> Table:
    torch.manual_seed(0)
    return Table(ROWS, DIM, TableSettings()).double()


def ragged(lists: list[list[int]], weights: list[list[float]] | None = None) -> Ragged:
    return Ragged(
        offset=torch.tensor([0, *[len(x) for x in lists]]).cumsum(0),
        value=torch.tensor([row for rows in lists for row in rows], dtype=torch.int64),
        weight=None if weights is None else torch.tensor([w for ws in weights for w in ws], dtype=torch.float64),
    )


def naive_look_up(weight: Tensor, rows: list[int]) -> Tensor:
    return torch.stack([torch.zeros(DIM, dtype=weight.dtype) if row < 0 else weight[row] for row in rows])


def naive_bag(weight: Tensor, lists: list[list[int]], weights: list[list[float]] | None) -> Tensor:
    result = []
    for i, rows in enumerate(lists):
        total = torch.zeros(DIM, dtype=weight.dtype)
        for j, row in enumerate(rows):
            total = total + weight[row] * (1.0 if weights is None else weights[i][j])
        result.append(total)
    return torch.stack(result)


ROW_LISTS = st.lists(st.integers(-1, ROWS - 1), min_size=1, max_size=9)
BAGS = st.lists(st.lists(st.integers(0, ROWS - 1), max_size=4), min_size=1, max_size=5)


@pytest.mark.parametrize("training", [True, False])
@given(rows=ROW_LISTS)
@settings(max_examples=40)
def test_a_look_up_is_a_naive_loop(training: bool, rows: list[int]) -> None:
    t = table().train(training)
    assert torch.equal(t.look_up(torch.tensor(rows)), naive_look_up(t.weight, rows))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@given(lists=BAGS, data=st.data())
@settings(max_examples=40)
def test_a_bag_is_a_naive_loop(training: bool, weighted: bool, lists: list[list[int]], data: st.DataObject) -> None:
    weights = [[data.draw(st.floats(0, 2)) for _ in rows] for rows in lists] if weighted else None
    t = table().train(training)
    found = t.bag(ragged(lists, weights))
    assert torch.allclose(found, naive_bag(t.weight, lists, weights), atol=1e-12, rtol=0)


@given(rows=st.lists(ROW_LISTS, min_size=1, max_size=3), lists=BAGS)
@settings(max_examples=60)
def test_the_gradient_is_that_of_a_dense_embedding(rows: list[list[int]], lists: list[list[int]]) -> None:
    """Several look-ups and a bag of one table in one step, rows repeated in and between them."""
    t, dense = table(), nn.Embedding(ROWS, DIM, dtype=torch.float64)
    dense.weight.data.copy_(t.weight)
    g = torch.Generator().manual_seed(1)
    found, want = [], []
    for few in rows:
        slope = torch.randn(len(few), DIM, generator=g, dtype=torch.float64)
        found.append((t.look_up(torch.tensor(few)) * slope).sum())
        want.append((naive_look_up(dense.weight, few) * slope).sum())
    slope = torch.randn(len(lists), DIM, generator=g, dtype=torch.float64)
    found.append((t.bag(ragged(lists)).sin() * slope).sum())
    want.append((naive_bag(dense.weight, lists, None).sin() * slope).sum())
    total = torch.stack(found).sum()
    if total.requires_grad:  # not where every value is missing
        total.backward()
    (torch.stack(want).sum() + 0 * dense.weight.sum()).backward()

    assert t.weight.grad is None
    gradient = torch.zeros(ROWS, DIM, dtype=torch.float64)
    gathered = t.gradient()
    touched = sorted({row for few in [*rows, *lists] for row in few if row >= 0})
    if gathered is not None:
        distinct, of_rows = gathered
        assert distinct.tolist() == touched
        gradient[distinct] = of_rows
    assert dense.weight.grad is not None
    assert torch.allclose(gradient, dense.weight.grad, atol=1e-12, rtol=0)
    assert t.gradient() is None  # taken once


def test_a_missing_value_touches_no_row() -> None:
    """Else an optimiser with momentum would move row 0 for every missing value."""
    t = table()
    (t.look_up(torch.tensor([-1, 4, -1])).sum() + t.look_up(torch.tensor([-1])).sum()).backward()
    found = t.gradient()
    assert found is not None
    assert found[0].tolist() == [4]


def test_nothing_is_remembered_outside_training() -> None:
    t = table().eval()
    t.look_up(torch.tensor([1]))
    t.train()
    with torch.no_grad():
        t.look_up(torch.tensor([1]))
        t.bag(ragged([[1]]))
    assert t.touched == []


def test_starts() -> None:
    """1/sqrt(64) = 0.125 of 64,000 numbers: the deviation is known to 0.125 / sqrt(2 * 64,000) = 0.00035."""
    torch.manual_seed(0)
    assert abs(Table(1000, 64, TableSettings()).weight.std().item() - 0.125) < 5 * 0.00035
    assert abs(Table(1000, 64, TableSettings(deviation=0.5)).weight.std().item() - 0.5) < 5 * 4 * 0.00035
    assert not Table(3, 2, TableSettings(init="zeros")).weight.any()


@pytest.mark.parametrize(
    ("settings_", "named"),
    [
        ({"lr_scale": -0.1}, "lr_scale is -0.1"),
        ({"deviation": 0.0}, "deviation is 0.0"),
        ({"lr_scale": float("nan")}, "nan"),
    ],
)
def test_settings_out_of_range(settings_: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TableSettings(**settings_)  # type: ignore[arg-type]


@given(rows=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=9), n_rows=st.sampled_from([ROWS, 1000]))
@settings(max_examples=40)
def test_distinct_rows_are_those_of_torch(rows: list[int], n_rows: int) -> None:
    row = torch.tensor(rows)
    for found, want in zip(distinct_rows(row, n_rows), row.unique(return_inverse=True), strict=True):
        assert torch.equal(found, want)


# ---------------------------------------------------------------- rows that training never met


def met(t: Table, rows: list[int]) -> Table:
    """After one training step over the rows."""
    t.train().look_up(torch.tensor(rows)).sum().backward()
    t.gradient()
    return t.eval()


def values_table(settings: TableSettings) -> Table:
    torch.manual_seed(0)
    return Table(ROWS, DIM, settings, of="values").double()


def test_rows_never_met_settle_at_the_mean_of_those_met() -> None:
    t = met(values_table(TableSettings()), [1, 4, 4])
    before = t.weight.clone()
    t.settle()
    mean = (before[1] + before[4]) / 2
    for row in range(ROWS):
        assert torch.allclose(t.weight[row], before[row] if row in (1, 4) else mean, atol=1e-12)


def test_settled_for_a_block_only() -> None:
    t = met(values_table(TableSettings()), [0, 2])
    before = t.weight.clone()
    with t.settled():
        assert torch.allclose(t.weight[5], (before[0] + before[2]) / 2)
    assert torch.equal(t.weight, before)


@pytest.mark.parametrize(
    ("t", "rows"),
    [
        (values_table(TableSettings(init="zeros")), [1]),  # a difference to what other features say
        (table(), [1]),  # hashed text tells its word from others even so
        (values_table(TableSettings()), []),  # nothing was met: there is no mean
        (values_table(TableSettings()), list(range(ROWS))),
    ],
    ids=["zeros", "text", "nothing met", "all met"],
)
def test_nothing_to_settle(t: Table, rows: list[int]) -> None:
    before = t.weight.clone()
    if rows:
        met(t, rows)
    t.settle()
    assert torch.equal(t.weight, before)


# ---------------------------------------------------------------- carrying over

GONE, BUCKET, COLD, NEW, NEW_WITH_BUCKET, GROWN = 1, 2, 3, 7, 8, 9


def grown(saved: Table, init: str = "normal", of: str | None = "values") -> Table:
    """Of nine rows: row 1 went, 7 and 8 are new, 8 was looked up in the bucket, row 2."""
    torch.manual_seed(1)
    t = Table(GROWN, DIM, TableSettings(init=init), of=of).double()  # type: ignore[arg-type]
    changed_R = torch.tensor([row in (GONE, NEW, NEW_WITH_BUCKET) for row in range(GROWN)])
    start_R = torch.full((GROWN,), -1)
    start_R[NEW_WITH_BUCKET] = BUCKET
    t.carry(saved.state_dict(), changed_R, start_R)
    return t


@pytest.mark.parametrize("met", [[0, GONE, BUCKET, 4], [0, GONE, 4]])
def test_new_values_start_from_their_bucket_where_training_met_it_else_from_the_mean(met: list[int]) -> None:
    old = values_table(TableSettings())
    old.met_R[met] = True
    t = grown(old)
    kept = [row for row in met if row != GONE]
    mean = sum(old.weight[row] for row in kept) / len(kept)
    for row in range(ROWS):
        if row != GONE:
            assert torch.equal(t.weight[row], old.weight[row])
    assert torch.allclose(t.weight[[GONE, NEW]], mean.expand(2, DIM), atol=1e-15)
    by_bucket = BUCKET in met
    assert torch.allclose(t.weight[NEW_WITH_BUCKET], old.weight[BUCKET] if by_bucket else mean, atol=1e-15)
    assert t.met_R.nonzero()[:, 0].tolist() == kept + [NEW_WITH_BUCKET] * by_bucket  # met: served as it is


def test_where_training_met_nothing_new_values_start_at_random() -> None:
    old = values_table(TableSettings())
    torch.manual_seed(1)
    fresh = Table(GROWN, DIM, TableSettings(), of="values").double()
    t = grown(old)
    assert torch.equal(t.weight[[GONE, NEW, NEW_WITH_BUCKET]], fresh.weight[[GONE, NEW, NEW_WITH_BUCKET]])
    assert not bool(t.met_R.any())


def test_a_table_that_starts_at_zero_gives_new_values_zeros_or_what_their_bucket_learned() -> None:
    old = values_table(TableSettings(init="zeros"))
    old.weight += torch.arange(1.0, ROWS + 1)[:, None]
    t = grown(old, init="zeros")
    assert t.weight[:, 0].tolist() == [1.0, 0.0, 3.0, 4.0, 5.0, 6.0, 7.0, 0.0, 3.0]


def test_rows_that_are_no_values_start_as_they_were_made() -> None:
    old, t = table(), grown(table(), of="items")
    torch.manual_seed(1)
    fresh = Table(GROWN, DIM, TableSettings()).double()
    for row in range(GROWN):
        assert torch.equal(t.weight[row], (fresh if row in (GONE, NEW, NEW_WITH_BUCKET) else old).weight[row])
