"""Every loss, direct and tiled, equals a naive double loop in float64: value and every gradient."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from twotower.losses import BPR, BilateralSoftmax, BinaryCrossEntropy, Margin, RowLoss, SampledSoftmax
from twotower.records import Ragged
from twotower.scoring import encode

from . import oracle
from .oracle import Case, make_case

TILES = [None, 1, 3, 64]
SHARED = {"temperature": 0.7, "learn_temperature": True}

LOSSES: dict[str, tuple[str, RowLoss, dict[str, float]]] = {
    "softmax none": ("softmax", SampledSoftmax(correction="none", **SHARED), {}),
    "softmax negatives": ("softmax", SampledSoftmax(**SHARED), {}),
    "softmax negatives half": ("softmax", SampledSoftmax(strength=0.5, **SHARED), {}),
    "softmax all": ("softmax", SampledSoftmax(correction="all", **SHARED), {}),
    "softmax all half": ("softmax", SampledSoftmax(correction="all", strength=0.5, **SHARED), {}),
    "softmax positives excluded": ("softmax", SampledSoftmax(exclude="positives", **SHARED), {}),
    "softmax yi2019": ("softmax", SampledSoftmax.yi2019(temperature=0.7), {}),
    "softmax mns2020": ("softmax", SampledSoftmax.mns2020(temperature=0.7), {}),
    "softmax refined2025": ("softmax", SampledSoftmax.refined2025(temperature=0.7), {"renormalise": 1.0}),
    "bilateral": ("bilateral", BilateralSoftmax(exponent=1.35, **SHARED), {"exponent": 1.35}),
    "bilateral negatives": (
        "bilateral", BilateralSoftmax(exponent=0.8, correction="negatives", **SHARED), {"exponent": 0.8}
    ),
    "bpr": ("bpr", BPR(**SHARED), {}),
    "bpr negatives": ("bpr", BPR(correction="negatives", **SHARED), {}),
    "margin": ("margin", Margin(margin=0.3, **SHARED), {"margin": 0.3}),
    "margin negatives": (
        "margin", Margin(margin=0.3, correction="negatives", exclude="positives", **SHARED), {"margin": 0.3}
    ),
    "binary": ("binary", BinaryCrossEntropy(negative_weight=1.5, **SHARED), {"negative_weight": 1.5}),
    "binary negatives": ("binary", BinaryCrossEntropy(correction="negatives", **SHARED), {"negative_weight": 1.0}),
}  # fmt: skip

CASES = {
    "pairs, shared and own": make_case(1, batch_of="pairs"),
    "queries, shared and own": make_case(2, batch_of="queries"),
    "queries, shared": make_case(3, batch_of="queries", own=False),
    "queries, own": make_case(4, batch_of="queries", shared=False),
}


def evaluate(loss: RowLoss, case: Case, tile: int | None) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    encoded = encode(case.query_BD, lambda row: case.item_MD.index_select(0, row), case.batch, case.candidates)
    value, notes = loss(encoded, tile=tile)
    return value, gradients(value, [case.query_BD, case.item_MD, *loss.parameters()]), notes


def gradients(value: Tensor, wrt: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(value, wrt, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(wrt, found, strict=True)]


@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize("loss_name", LOSSES)
def test_equals_naive_loop(loss_name: str, case_name: str) -> None:
    name, loss, settings = LOSSES[loss_name]
    case = CASES[case_name]
    loss = loss.double()
    # the parameter is rounded to float32 when made: give it the temperature exactly, in float64
    log_temperature = torch.tensor(0.7, dtype=torch.float64).log().requires_grad_()
    if loss.learn_temperature:
        loss.log_temperature.data.copy_(log_temperature)
    want = oracle.loss(
        case,
        name,
        temperature=log_temperature.exp(),
        correction=loss.correction,
        strength=loss.strength,
        exclude=loss.exclude,
        **settings,
    )
    want_gradients = gradients(want, [case.query_BD, case.item_MD, log_temperature][: 2 + loss.learn_temperature])
    for tile in TILES:
        value, found, _ = evaluate(loss, case, tile)
        assert abs(value.item() - want.item()) < 1e-10, (tile, value.item(), want.item())
        for got, expected in zip(found, want_gradients, strict=True):
            assert (got - expected).abs().max() < 1e-10, tile


@pytest.mark.parametrize("loss_name", [name for name, (_, loss, _) in LOSSES.items() if loss.exclude == "known"])
@pytest.mark.parametrize("tile", TILES)
def test_excluded_candidates_get_no_gradient(loss_name: str, tile: int | None) -> None:
    """Everything is known to every query: no candidate is left, so nothing is lost and nothing moves."""
    loss = LOSSES[loss_name][1].double()
    case = CASES["queries, shared and own"]
    n_items, n_queries = len(case.item_MD), len(case.batch.query_B)
    everything = Ragged(offset=torch.arange(n_queries + 1) * n_items, value=torch.arange(n_items).repeat(n_queries))
    full = dataclasses.replace(case, batch=dataclasses.replace(case.batch, known=everything))
    value, found, notes = evaluate(loss, full, tile)
    assert value.item() == 0
    assert all((g == 0).all() for g in found)
    assert not notes["alive"].any()


@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_finite_at_extreme_scores(loss_name: str, scale: float) -> None:
    loss = LOSSES[loss_name][1].double()
    case = CASES["queries, shared and own"]
    scaled = dataclasses.replace(case, query_BD=(case.query_BD.detach() * scale).requires_grad_())
    for tile in (None, 3):
        value, found, _ = evaluate(loss, scaled, tile)
        assert value.isfinite()
        assert all(g.isfinite().all() for g in found)


def test_merged_columns_are_unmerged_columns() -> None:
    """Repeats of a row become one column of weight m."""
    case = CASES["queries, shared"]
    encoded = encode(case.query_BD, lambda row: case.item_MD.index_select(0, row), case.batch, case.candidates)
    drawn = torch.cat([block.row for block in case.candidates.blocks])
    rows, times = drawn.unique(return_counts=True)
    assert encoded.shared.row.tolist() == rows.tolist()
    assert torch.allclose(encoded.shared.log_weight, times.double().log())
    assert times.max() > 1


def test_a_batch_of_zero_weight_has_zero_loss() -> None:
    case = CASES["pairs, shared and own"]
    nothing = dataclasses.replace(
        case, batch=dataclasses.replace(case.batch, weight_P=torch.zeros_like(case.batch.weight_P))
    )
    for tile in (None, 2):
        value, found, _ = evaluate(SampledSoftmax(temperature=0.7).double(), nothing, tile)
        assert value.item() == 0
        assert all((g == 0).all() for g in found)


def test_the_item_tower_is_asked_once_for_distinct_rows() -> None:
    case = CASES["queries, shared and own"]
    asked: list[list[int]] = []

    def items(row: Tensor) -> Tensor:
        asked.append(row.tolist())
        return case.item_MD.index_select(0, row)

    encode(case.query_BD, items, case.batch, case.candidates)
    assert len(asked) == 1
    assert len(set(asked[0])) == len(asked[0])


def test_bfloat16_products_keep_the_loss_close() -> None:
    """Products in bfloat16 (8 bits of mantissa, 2^-8 relative each) with float32 sums: within a percent."""
    case = make_case(5, batch_of="queries", own=False)
    query, item = case.query_BD.detach().float().requires_grad_(), case.item_MD.detach().float().requires_grad_()
    encoded = encode(query, lambda row: item.index_select(0, row), case.batch, case.candidates)
    exact, _ = SampledSoftmax(temperature=0.7)(encoded, tile=3)
    low, _ = SampledSoftmax(temperature=0.7)(encoded, tile=3, gemm=torch.bfloat16)
    assert abs(exact.item() - low.item()) < 0.01 * abs(exact.item())
    assert exact.item() != low.item()
