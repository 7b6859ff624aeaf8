"""A loss that also holds for perturbed vectors: the perturbation, and what is learned from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from twotower.errors import ConfigError
from twotower.losses import BPR, AdapTau, HierarchicalSoftmax, Loss, Perturbed, SampledSoftmax, Symmetric
from twotower.records import Block, Encoded
from twotower.scoring import encode

from . import oracle
from .oracle import Case, make_case, unit
from .test_contract import FACTS

CASES = {
    "pairs, shared and own": make_case(1, batch_of="pairs"),
    "queries, shared": make_case(3, batch_of="queries", own=False),
    "queries, own": make_case(4, batch_of="queries", shared=False),
}


class Recording(SampledSoftmax):
    """Writes down the vectors that it is given."""

    def forward(self, encoded: Encoded, **settings: object) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
        SEEN.append(encoded)
        return super().forward(encoded, **settings)  # type: ignore[arg-type]


SEEN: list[Encoded] = []


def encoded_of(case: Case) -> Encoded:
    return encode(case.query_BD, lambda row: case.item_MD.index_select(0, row), case.batch, case.candidates)


def set_up(loss: Loss) -> Loss:
    loss.setup(FACTS)
    return loss


def naive(case: Case, name: str, epsilon: float, weight: float, **settings: object) -> Tensor:
    """One vector a query and an item of the catalogue, moved along the gradient of the double loop."""
    clean = oracle.loss(case, name, **settings)  # type: ignore[arg-type]
    moved = []
    for x, gradient in zip(
        (case.query_BD, case.item_MD),
        torch.autograd.grad(clean, (case.query_BD, case.item_MD), retain_graph=True),
        strict=True,
    ):
        rows = [
            row + (epsilon * g / g.norm() if float(g.norm()) else 0 * g) for row, g in zip(x, gradient, strict=True)
        ]
        moved.append(torch.stack(rows))
    query_BD, item_MD = moved
    perturbed = oracle.loss(replace(case, query_BD=query_BD, item_MD=item_MD), name, **settings)  # type: ignore[arg-type]
    return clean + weight * perturbed


INNER = {
    "softmax": (
        SampledSoftmax(temperature=0.7),
        {"temperature": 0.7, "correction": "negatives", "strength": 1.0, "exclude": "known"},
    ),
    "bpr": (BPR(temperature=0.7), {"temperature": 0.7, "correction": "none", "strength": 1.0, "exclude": "known"}),
}


@pytest.mark.parametrize("case_name", CASES)
@pytest.mark.parametrize("name", INNER)
def test_equals_a_naive_loop(name: str, case_name: str) -> None:
    """Value and gradient, direct and tiled."""
    case, (inner, settings) = CASES[case_name], INNER[name]
    leaves = [case.query_BD, case.item_MD]
    want = naive(case, name, 0.3, 0.6, **settings)
    want_gradients = torch.autograd.grad(want, leaves)
    for tile in (None, 1, 3):
        value, notes = Perturbed(of=inner, epsilon=0.3, weight=0.6)(encoded_of(case), tile=tile)
        assert abs(value.item() - want.item()) < 1e-10
        for got, expected in zip(torch.autograd.grad(value, leaves), want_gradients, strict=True):
            assert (got - expected).abs().max() < 1e-10
        alone, _ = inner(encoded_of(case), tile=tile)
        share_P = case.batch.weight_P / case.batch.weight_P.sum()
        assert (notes["loss"] * share_P).sum().item() == pytest.approx(alone.item(), abs=1e-10)


@pytest.mark.parametrize("tile", [None, 3])
def test_every_vector_is_moved_by_epsilon_up_the_loss(tile: int | None) -> None:
    case = CASES["pairs, shared and own"]
    SEEN.clear()
    encoded = encoded_of(case)
    Perturbed(of=Recording(temperature=0.7), epsilon=0.25)(encoded, tile=tile)
    before, after = SEEN
    for name in ("query_BD", "table_TD", "column_ND"):
        assert torch.equal(getattr(before, name), getattr(encoded, name))
    query = (after.query_BD - before.query_BD).norm(dim=1)
    table = (after.table_TD - before.table_TD).norm(dim=1)
    assert torch.allclose(query, torch.full_like(query, 0.25), atol=1e-12)
    moved = table > 0  # an item that is known to all that could see it costs nothing
    assert torch.allclose(table[moved], torch.full_like(table[moved], 0.25), atol=1e-12)
    assert moved.sum() > len(moved) / 2
    slot_N = torch.searchsorted(after.row_T, after.shared.row)
    assert torch.equal(after.column_ND, after.table_TD[slot_N])  # an item is one vector, whatever it is there for
    assert after.shared is before.shared
    assert after.own is before.own


@pytest.mark.parametrize("case_name", CASES)
def test_to_first_order_the_loss_rises_by_epsilon_times_the_length_of_its_gradient(case_name: str) -> None:
    case = CASES[case_name]
    inner = SampledSoftmax(temperature=0.7)
    clean, _ = inner(encoded_of(case))
    slope = sum(float(g.norm(dim=1).sum()) for g in torch.autograd.grad(clean, [case.query_BD, case.item_MD]))
    for epsilon, tolerance in ((1e-3, 1e-2), (1e-5, 1e-4)):
        value, _ = Perturbed(of=inner, epsilon=epsilon)(encoded_of(case))
        rise = value.item() - 2 * clean.item()
        assert rise > 0
        assert rise / epsilon == pytest.approx(slope, rel=tolerance)


def test_cosines_stay_cosines() -> None:
    """A loss that takes scores for cosines never sees another length."""

    class RecordingAdapTau(AdapTau):
        def forward(self, encoded: Encoded, **settings: object) -> tuple[Tensor, dict[str, Tensor]]:  # type: ignore[override]
            SEEN.append(encoded)
            return super().forward(encoded, **settings)  # type: ignore[arg-type]

    case = unit(CASES["pairs, shared and own"])
    SEEN.clear()
    value, _ = set_up(Perturbed(of=RecordingAdapTau(), epsilon=0.5))(encoded_of(case))
    before, after = SEEN
    for vectors in (after.query_BD, after.table_TD, after.column_ND):
        assert torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors), dtype=torch.float64))
    angle_B = (after.query_BD * before.query_BD).sum(1).acos()
    assert torch.allclose(angle_B.tan(), torch.full_like(angle_B, 0.5))
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(value, [case.query_BD, case.item_MD]))


def test_a_given_vector_is_moved_for_itself() -> None:
    """A stale vector of an item of the batch is not the item's vector, and has a gradient of its own."""
    case = CASES["queries, shared"]
    row = torch.cat([case.batch.item_P[:2], torch.tensor([-1])])
    stale = torch.randn(3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    block = Block(row=row, log_count=torch.zeros(3).double(), log_weight=torch.zeros(3).double(), vector=stale)
    candidates = replace(case.candidates, blocks=(*case.candidates.blocks, block))
    encoded = encoded_of(replace(case, candidates=candidates))
    given = (encoded.column_ND[:, None] == stale).all(2).any(1)
    assert given.sum() == 3
    SEEN.clear()
    value, _ = Perturbed(of=Recording(temperature=0.7, exclude="positives"), epsilon=0.25)(encoded)
    before, after = SEEN
    assert torch.equal(before.column_ND, encoded.column_ND)
    step_ND = after.column_ND - before.column_ND
    assert torch.allclose(step_ND[given].norm(dim=1), torch.full((3,), 0.25).double())
    slot_N = torch.searchsorted(after.row_T, after.shared.row)
    assert torch.equal(after.column_ND[~given], after.table_TD[slot_N[~given]])
    assert bool(torch.autograd.grad(value, case.item_MD)[0].isfinite().all())


@pytest.mark.parametrize("tile", [None, 3])
def test_it_can_be_measured_without_gradient(tile: int | None) -> None:
    case = CASES["pairs, shared and own"]
    loss = Perturbed(of=SampledSoftmax(temperature=0.7), epsilon=0.3)
    want, _ = loss(encoded_of(case), tile=tile)
    with torch.no_grad():
        value, _ = loss(encoded_of(case), tile=tile)
    assert not value.requires_grad
    assert value.item() == pytest.approx(want.item(), abs=1e-12)


def test_vectors_that_a_loss_does_not_use_stay() -> None:
    """A tree has no item vectors: only queries move."""
    case = CASES["pairs, shared and own"]
    loss = set_up(Perturbed(of=HierarchicalSoftmax(), epsilon=0.3)).double()
    with torch.no_grad():
        for buffer in (b for name, b in loss.named_buffers() if name.endswith("weight")):
            buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(0)))
    value, _ = loss(encoded_of(case))
    gradient = torch.autograd.grad(value, [case.query_BD, case.item_MD], allow_unused=True)
    assert float(gradient[0].norm()) > 0
    assert gradient[1] is None or not gradient[1].any()


def test_what_the_loss_within_learns_it_goes_on_learning() -> None:
    inner = SampledSoftmax(temperature=0.5, learn_temperature=True, min_temperature=0.4)
    loss = Perturbed(of=inner, epsilon=0.3, weight=0.5)
    assert loss.uses_counts()
    assert not Perturbed(of=BPR()).uses_counts()
    assert loss.compared() is inner
    assert Perturbed(of=Symmetric(of=inner)).compared() is inner
    value, _ = loss(encoded_of(CASES["queries, shared"]))
    value.backward()
    assert inner.log_temperature.grad is not None
    with torch.no_grad():
        inner.log_temperature.fill_(-9.0)
    loss.constrain()
    assert inner.log_temperature.exp().item() == pytest.approx(0.4)
    case = unit(CASES["pairs, shared and own"])
    adaptive = AdapTau()
    wrapped = set_up(Perturbed(of=adaptive))
    state = {name: value.clone() for name, value in adaptive.state_dict().items()}
    encoded = encoded_of(case)
    _, notes = wrapped(encoded)
    wrapped.observe(encoded, notes)
    assert any(not torch.equal(value, state[name]) for name, value in adaptive.state_dict().items())


@pytest.mark.parametrize("settings", [{"epsilon": 0.0}, {"epsilon": float("inf")}, {"weight": -1.0}])
def test_settings_that_can_not_be(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=rf"loss\.{next(iter(settings))} of Perturbed: found .* a positive number"):
        Perturbed(**settings)
