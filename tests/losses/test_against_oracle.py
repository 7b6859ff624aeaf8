"""Every loss, direct and tiled, equals a naive double loop in float64: value and every gradient."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from twotower import scoring
from twotower.losses import (
    BPR,
    CCL,
    GBCE,
    NCE,
    SGNS,
    AdapTau,
    AdaptiveMargin,
    AdaptiveTemperature,
    AdvInfoNCE,
    BilateralSoftmax,
    BinaryCrossEntropy,
    BucketedSoftmax,
    HierarchicalSoftmax,
    Loss,
    Margin,
    Perturbed,
    RowLoss,
    SampledSoftmax,
    SquaredGramian,
    Symmetric,
    Warp,
)
from twotower.part import Facts
from twotower.records import Block, Ragged
from twotower.scoring import Lines, encode

from . import oracle
from .oracle import Case, gone_of, make_case, unit, with_lives

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
    "sgns": ("sgns", SGNS(**SHARED), {}),
    "sgns with the positive": ("sgns", SGNS(exclude="none", **SHARED), {}),
    "sgns negatives": ("sgns", SGNS(correction="negatives", **SHARED), {}),
    "nce": ("nce", NCE(**SHARED), {}),
    "nce with the positive": ("nce", NCE(exclude="none", **SHARED), {}),
    "gbce": ("gbce", GBCE(calibration=0.75, **SHARED), {"calibration": 0.75}),
    "ccl": ("ccl", CCL(margin=0.2, negative_weight=3.0, **SHARED), {"margin": 0.2, "negative_weight": 3.0}),
    "ccl negatives": (
        "ccl", CCL(margin=-0.1, negative_weight=3.0, correction="negatives", **SHARED),
        {"margin": -0.1, "negative_weight": 3.0},
    ),
    "squared": ("squared", SquaredGramian(negative_weight=2.0, **SHARED), {"negative_weight": 2.0}),
    "squared none": ("squared", SquaredGramian(correction="none", **SHARED), {"negative_weight": 1.0}),
    "warp": ("warp", Warp(margin=0.3, **SHARED), {"margin": 0.3}),
    "warp none": ("warp", Warp(margin=0.3, correction="none", exclude="positives", **SHARED), {"margin": 0.3}),
}  # fmt: skip

ADAPTIVE: dict[str, AdaptiveMargin | AdaptiveTemperature] = {
    "margin jd2023": AdaptiveMargin.jd2023(),
    "margin learned": AdaptiveMargin(learn_alpha=True, learn_offset=True, offset=0.2, symmetric=0.3),
    "margin multiplicative": AdaptiveMargin(combine="multiplicative", offset=0.4, correction="negatives"),
    "margin by query": AdaptiveMargin(hardness="query", stop_gradient=False, symmetric=0.0, learn_alpha=True),
    "margin with gradient": AdaptiveMargin(stop_gradient=False, symmetric=0.3),
    "temperature jd2023": AdaptiveTemperature.jd2023(),
    "temperature learned": AdaptiveTemperature(
        temperature=0.3, learn_temperature=True, learn_alpha=True, symmetric=0.4
    ),
    "temperature by logit": AdaptiveTemperature(temperature=0.2, per="logit", learn_temperature=True, strength=0.5),
    "temperature multiplicative": AdaptiveTemperature(
        temperature=0.2, combine="multiplicative", exclude="positives", stop_gradient=False, learn_alpha=True
    ),
}

FACTS = Facts(
    n_items=19,
    n_queries=7,
    item_count_M=torch.arange(1, 20),
    batch_size=7,
    batch_of="queries",
    query_count_Q=torch.ones(7, dtype=torch.int64),
    width=4,
)
for _, made, _ in LOSSES.values():
    made.setup(FACTS)

CASES = {
    "pairs, shared and own": make_case(1, batch_of="pairs"),
    "queries, shared and own": make_case(2, batch_of="queries"),
    "queries, shared": make_case(3, batch_of="queries", own=False),
    "queries, own": make_case(4, batch_of="queries", shared=False),
    "pairs, live at a moment": with_lives(make_case(5, batch_of="pairs"), days=0),
    "queries, live in a period": with_lives(make_case(6, batch_of="queries"), days=2),
}


def evaluate(loss: RowLoss, case: Case, tile: int | None) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    encoded = encode(case.query_BD, lambda row: case.item_MD.index_select(0, row), case.batch, case.candidates)
    value, notes = loss(encoded, tile=tile)
    return value, gradients(value, [case.query_BD, case.item_MD, *loss.parameters()]), notes


def gradients(value: Tensor, wrt: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(value, wrt, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(wrt, found, strict=True)]


def parameters_of(loss: RowLoss) -> dict[str, Tensor]:
    """Float64 copies of what the loss learns, to differentiate the loop by."""
    return {name: p.detach().clone().requires_grad_() for name, p in loss.double().named_parameters()}


def assert_same(loss: RowLoss, case: Case, want: Tensor, leaves: dict[str, Tensor]) -> None:
    """Value and every gradient, direct and tiled."""
    want_gradients = gradients(want, [case.query_BD, case.item_MD, *leaves.values()])
    for tile in TILES:
        value, found, _ = evaluate(loss, case, tile)
        assert abs(value.item() - want.item()) < 1e-10, (tile, value.item(), want.item())
        for got, expected in zip(found, want_gradients, strict=True):
            assert (got - expected).abs().max() < 1e-10, tile


@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize("loss_name", LOSSES)
def test_equals_naive_loop(loss_name: str, case_name: str) -> None:
    name, loss, settings = LOSSES[loss_name]
    case, leaves = CASES[case_name], parameters_of(loss)
    want = oracle.loss(
        case,
        name,
        temperature=leaves["log_temperature"].exp() if loss.learn_temperature else loss.temperature,
        correction=loss.correction,
        strength=loss.strength,
        exclude=loss.exclude,
        **settings,
    )
    assert_same(loss, case, want, leaves)


@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize("loss_name", ADAPTIVE)
def test_adaptive_equals_naive_loop(loss_name: str, case_name: str) -> None:
    """Also by alpha, delta_0 and tau_0, where these are learned."""
    loss = ADAPTIVE[loss_name]
    case, leaves = unit(CASES[case_name]), parameters_of(loss)
    if isinstance(loss, AdaptiveMargin):
        base = leaves.get("learned_offset", loss.offset)
    else:
        base = leaves["log_temperature"].exp() if loss.learn_temperature else loss.temperature
    want = oracle.loss(
        case,
        "adaptive",
        temperature=1.0,
        base=base,
        correction=loss.correction,
        strength=loss.strength,
        exclude=loss.exclude,
        alpha=leaves.get("learned_alpha", loss.alpha),
        **{name: getattr(loss, name, "") for name in ("combine", "hardness", "stop_gradient", "symmetric", "per")},
    )
    assert_same(loss, case, want, leaves)


@pytest.mark.parametrize("beta", [0.5, math.inf])
@pytest.mark.parametrize("case_name", CASES)
def test_adaptau_equals_naive_loop(case_name: str, beta: float) -> None:
    """Temperatures given: they have no gradient."""
    case = unit(CASES[case_name])
    loss = AdapTau(beta=beta)
    loss.setup(FACTS)
    loss.double()
    loss.loss_Q[:5] = torch.tensor([0.3, 1.2, -0.4, 0.0, 2.0])  # the last two were not met yet
    temperature_Q = loss.temperature_of(torch.arange(7))
    want = oracle.loss(
        case,
        "adaptau",
        temperature=1.0,
        correction="none",
        strength=1.0,
        exclude="known",
        temperature_Q=temperature_Q.tolist(),
        temperature_0=1 / loss.inverse_temperature.item(),
    )
    assert_same(loss, case, want, {})


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("case_name", CASES)
def test_advinfonce_equals_naive_loop(case_name: str, tile: int | None) -> None:
    """The adversary's gradient is that of the loop with the other sign."""
    case = CASES[case_name]
    loss = AdvInfoNCE(temperature=0.7, width=3)
    loss.setup(FACTS)
    loss.double().train()
    a_QD = loss.of_query.weight.clone().requires_grad_()
    b_MD = loss.of_item.weight.clone().requires_grad_()
    want = torch.zeros((), dtype=torch.float64)
    for pair in range(len(case.batch.item_P)):
        query = int(case.batch.of_P[pair])
        found = oracle.candidates_of(case, pair, "known")
        hard = [oracle.dot(a_QD[int(case.batch.query_B[query])], b_MD[j]) for j, _ in found]
        log_mean = oracle.log_sum_exp([h + math.log(w) for h, (_, w) in zip(hard, found, strict=True)]) - math.log(
            sum(w for _, w in found)
        )
        positive = oracle.dot(case.query_BD[query], case.item_MD[int(case.batch.item_P[pair])]) / 0.7
        logits = [
            oracle.dot(case.query_BD[query], case.item_MD[j]) / 0.7 + math.log(w) - case.log_count_M[j] + h - log_mean
            for h, (j, w) in zip(hard, found, strict=True)
        ]
        want = want + case.batch.weight_P[pair] * (oracle.log_sum_exp([positive, *logits]) - positive)
    want = want / case.batch.weight_P.sum()
    *want_gradients, want_a, want_b = gradients(want, [case.query_BD, case.item_MD, a_QD, b_MD])

    encoded = encode(case.query_BD, lambda row: case.item_MD.index_select(0, row), case.batch, case.candidates)
    value, _ = loss(encoded, tile=tile)
    leaves = [leaf for table in (loss.of_query, loss.of_item) for _, leaf in table.touched]
    found_gradients = torch.autograd.grad(value, [case.query_BD, case.item_MD, *leaves], allow_unused=True)
    assert abs(value.item() - want.item()) < 1e-10
    for got, expected in zip(found_gradients[:2], want_gradients, strict=True):
        assert got is not None
        assert (got - expected).abs().max() < 1e-10
    for table, expected in ((loss.of_query, want_a), (loss.of_item, want_b)):
        total = torch.zeros_like(expected)
        for (rows, leaf), gradient in zip(table.touched, found_gradients[2:][: len(table.touched)], strict=True):
            assert leaf.shape[0] == len(rows)
            if gradient is not None:
                total.index_add_(0, rows, gradient)
        found_gradients = (*found_gradients[:2], *found_gradients[2 + len(table.touched) :])
        assert (total + expected).abs().max() < 1e-10


EVERY: dict[str, RowLoss] = {name: loss for name, (_, loss, _) in LOSSES.items()} | dict(ADAPTIVE)
EVERY |= {"adaptau": AdapTau(), "advinfonce": AdvInfoNCE(temperature=0.7)}
for name in ("adaptau", "advinfonce"):
    EVERY[name].setup(FACTS)


@pytest.mark.parametrize("loss_name", [name for name, loss in EVERY.items() if loss.exclude == "known"])
@pytest.mark.parametrize("tile", TILES)
def test_excluded_candidates_get_no_gradient(loss_name: str, tile: int | None) -> None:
    """Everything is known to every query: no candidate is left, so nothing is lost and nothing moves."""
    loss = EVERY[loss_name].double()
    case = CASES["queries, shared and own"]
    n_items, n_queries = len(case.item_MD), len(case.batch.query_B)
    everything = Ragged(offset=torch.arange(n_queries + 1) * n_items, value=torch.arange(n_items).repeat(n_queries))
    full = dataclasses.replace(case, batch=dataclasses.replace(case.batch, known=everything))
    value, found, notes = evaluate(loss, full, tile)
    assert value.item() == 0
    assert all((g == 0).all() for g in found)
    assert not notes["alive"].any()


@pytest.mark.parametrize("loss_name", [name for name, loss in EVERY.items() if loss.exclude == "known"])
@pytest.mark.parametrize("tile", TILES)
def test_an_excluded_candidate_among_others_gets_no_gradient(loss_name: str, tile: int | None) -> None:
    """One candidate, nobody's positive, is known to every query: nothing moves it, while its neighbours move."""
    loss, case = EVERY[loss_name].double(), CASES["queries, shared and own"]
    offered = torch.cat([block.row.flatten() for block in case.candidates.blocks]).unique()
    item = next(row for row in offered.tolist() if row not in case.batch.item_P.tolist() and row >= 0)
    before = case.batch.known
    lists = [
        torch.cat([before.value[before.offset[q] : before.offset[q + 1]], torch.tensor([item])]).unique()
        for q in range(len(case.batch.query_B))
    ]
    lengths = torch.tensor([0, *map(len, lists)])
    batch = dataclasses.replace(case.batch, known=Ragged(offset=lengths.cumsum(0), value=torch.cat(lists)))
    _, found, _ = evaluate(loss, dataclasses.replace(case, batch=batch), tile)
    assert (found[1][item] == 0).all()
    assert found[1].abs().sum() > 0


COMPOSED = {
    "buckets": BucketedSoftmax(temperature=0.7, buckets=3, queries=4, items=5),
    "symmetric": Symmetric(of=SampledSoftmax(temperature=0.7)),
    "symmetric pairs": Symmetric(of=BPR()),
    "perturbed": Perturbed(of=SampledSoftmax(temperature=0.7), epsilon=0.1),
    "hierarchical": HierarchicalSoftmax(),
}


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("all_known", [False, True])
def test_a_loss_made_of_more_is_finite_too(name: str, scale: float, all_known: bool) -> None:
    """At extreme scores, and with no candidate left."""
    loss, case = COMPOSED[name], CASES["queries, shared"]
    loss.setup(FACTS)
    for part in loss.modules():
        if isinstance(part, Loss):
            part.setup(FACTS)
    loss.double()
    if all_known:
        n_items, n_queries = len(case.item_MD), len(case.batch.query_B)
        everything = Ragged(offset=torch.arange(n_queries + 1) * n_items, value=torch.arange(n_items).repeat(n_queries))
        case = dataclasses.replace(case, batch=dataclasses.replace(case.batch, known=everything))
    query_BD = (case.query_BD.detach() * scale).requires_grad_()
    encoded = encode(query_BD, lambda row: case.item_MD.index_select(0, row), case.batch, case.candidates)
    value, _ = loss(encoded)
    found = torch.autograd.grad(value, [query_BD, case.item_MD], allow_unused=True)
    assert value.isfinite()
    assert all(g is None or g.isfinite().all() for g in found)


@pytest.mark.parametrize("loss_name", EVERY)
def test_merged_columns_are_unmerged_columns_to_a_loss(loss_name: str) -> None:
    """Repeats of a row as one column of weight m, or as many columns as there are (as vectors that are given)."""
    loss, case = EVERY[loss_name].double(), CASES["queries, shared"]
    in_batch, uniform = case.candidates.blocks
    for tile in (None, 3):
        given = dataclasses.replace(uniform, vector=case.item_MD.index_select(0, uniform.row))
        candidates = dataclasses.replace(case.candidates, blocks=(in_batch, given))
        value, found, _ = evaluate(loss, case, tile)
        apart, found_apart, _ = evaluate(loss, dataclasses.replace(case, candidates=candidates), tile)
        assert abs(value.item() - apart.item()) < 1e-10
        for got, expected in zip(found, found_apart, strict=True):
            assert (got - expected).abs().max() < 1e-10


@pytest.mark.parametrize("loss_name", EVERY)
@pytest.mark.parametrize("given", [False, True])
def test_a_count_may_differ_from_query_to_query(loss_name: str, given: bool) -> None:
    """Shared columns with a count for each query, [B, N], are own candidates with those counts."""
    loss, case = EVERY[loss_name].double(), CASES["queries, shared"]
    n_queries = len(case.batch.query_B)
    log_count_BM = torch.randn(n_queries, len(case.item_MD), generator=torch.Generator().manual_seed(8)).double()
    for tile in (None, 3):
        shared, own = [], []
        for block in case.candidates.blocks:
            vector = case.item_MD.index_select(0, block.row) if given and not block.of_batch else None
            log_count_BN = log_count_BM[:, block.row]
            shared.append(dataclasses.replace(block, log_count=log_count_BN, of_batch=False, vector=vector))
            row_BN, log_weight_BN = (x.expand(n_queries, -1) for x in (block.row, block.log_weight))
            own.append(Block(row=row_BN, log_count=log_count_BN, log_weight=log_weight_BN))
        value, found, _ = evaluate(loss, replaced(case, shared), tile)
        want, expected, _ = evaluate(loss, replaced(case, own), tile)
        assert abs(value.item() - want.item()) < 1e-10
        for got, expected_gradient in zip(found, expected, strict=True):
            assert (got - expected_gradient).abs().max() < 1e-10


def replaced(case: Case, blocks: list[Block]) -> Case:
    return dataclasses.replace(case, candidates=dataclasses.replace(case.candidates, blocks=tuple(blocks)))


@pytest.mark.parametrize("loss_name", EVERY)
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_finite_at_extreme_scores(loss_name: str, scale: float) -> None:
    loss = EVERY[loss_name].double()
    case = CASES["queries, shared and own"]
    scaled = dataclasses.replace(case, query_BD=(case.query_BD.detach() * scale).requires_grad_())
    for tile in (None, 3):
        value, found, _ = evaluate(loss, scaled, tile)
        assert value.isfinite()
        assert all(g.isfinite().all() for g in found)


def test_repeats_of_a_row_are_merged() -> None:
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


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("loss", [SampledSoftmax(), BPR()], ids=["lines of queries", "lines of pairs"])
def test_what_is_excluded_is_found_by_table_and_by_bisection(
    case: Case, loss: RowLoss, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = encode(case.query_BD, lambda row: case.item_MD.index_select(0, row), case.batch, case.candidates)
    by_table = Lines(encoded, loss)
    monkeypatch.setattr(scoring, "_INVERSE_AT", 0)
    by_bisection = Lines(encoded, loss)
    assert by_bisection.column_of_item is None
    if len(encoded.shared.row) and by_table.columns_distinct:
        assert by_table.column_of_item is not None
    width = len(encoded.shared.row) + by_table.own.row.shape[1]
    candidate_LC = torch.cat([encoded.shared.row.expand(len(by_table), -1), by_table.own.row], 1)
    for start, stop in ((0, len(by_table)), (1, 3)):
        known, gone = (
            [
                line * width + column
                for line in range(stop - start)
                for column in range(width)
                if int(candidate_LC[start + line, column]) in items_of(case, int(by_table.query_L[start + line]))
            ]
            for items_of in (_known, _gone)
        )
        for lines in (by_table, by_bisection):
            excluded = lines.excluded_at(start, stop)
            assert sorted(excluded.tolist()) == known
            gone_CW = lines.gone_at(start, stop, excluded)
            assert ([] if gone_CW is None else gone_CW.flatten().nonzero()[:, 0].tolist()) == gone


def _known(case: Case, query: int) -> list[int]:
    lo, hi = case.batch.known.offset[query : query + 2].tolist()
    return case.batch.known.value[lo:hi].tolist()


def _gone(case: Case, query: int) -> set[int]:
    """Of what is not known."""
    return set() if case.batch.live is None else gone_of(case, query) - {*_known(case, query)}
