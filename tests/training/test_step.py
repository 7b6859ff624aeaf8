"""One step: what stops it, how far it moves, and by which rates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.checkerboard import EVENTS, PART, SIZE, checkerboard, run_of
from twotower.config import Run, Training
from twotower.data.batches import TrainingBatches
from twotower.data.held_out import held_out
from twotower.data.store import Store
from twotower.errors import DataError
from twotower.frequency import ExactFrequency
from twotower.losses import BPR, AdapTau, Loss, SampledSoftmax
from twotower.negatives import Look, Uniform
from twotower.optimisers import RowwiseAdagrad
from twotower.records import Batch
from twotower.schema import Id, Number, Vector
from twotower.tables import Table, TableSettings
from twotower.towers import Tower, TwoTower
from twotower.training.loop import fit_once, learning_rate
from twotower.training.retriever import encode_catalogue, encode_questions
from twotower.training.step import Model, Stepper


def stepper_of(run: Run, store: Store) -> tuple[Stepper, list[Batch]]:
    batches = TrainingBatches(
        store, np.flatnonzero(PART == 0), batch_of=run.training.batch_of, batch_size=run.training.batch_size
    )
    torch.manual_seed(0)
    model = Model(run, store, batches.facts()).train()
    return Stepper(model, run.training), list(batches.epoch(0))


# ---------------------------------------------------------------- what it reports


def test_a_step_reports_its_batch() -> None:
    """420 pairs of 30 queries with 14 items each are one batch: nothing is left out but what is known."""
    store = checkerboard()
    run = run_of(store, batch_size=1000)
    stepper, (batch,) = stepper_of(run, store)
    report = stepper(batch, 1, 1.0)
    assert report.n_pairs == 420
    assert report.n_columns == SIZE  # all items are in the batch; uniform ones are merged with them
    assert report.excluded == pytest.approx(14 / SIZE)
    assert report.alone == 0
    assert report.loss > 0


def test_a_step_does_not_depend_on_those_before_it() -> None:
    """Negatives and dropout are drawn from the seed and the number of the step."""
    store = checkerboard()
    run = run_of(store, towers=TwoTower(dim=4, query=Tower(widths=(8, 4), dropout=0.5)), batch_size=16)
    losses = []
    for noise in (0, 3):
        stepper, batches = stepper_of(run, store)
        torch.rand(noise)
        losses.append(stepper(batches[0], 5, 1e-30).loss)
    assert losses[0] == losses[1]


class Log(ExactFrequency):
    """Writes down when it is read and when it learns."""

    def log_presence(self, row: Tensor) -> Tensor:
        CALLS.append("read")
        return super().log_presence(row)

    def observe(self, item_P: Tensor) -> None:
        CALLS.append(sorted(item_P.tolist()))


CALLS: list[object] = []


def test_frequencies_learn_from_a_batch_after_its_counts_are_read() -> None:
    store = checkerboard()
    stepper, batches = stepper_of(run_of(store, batch_size=8, parts={"frequency": Log()}), store)
    CALLS.clear()
    stepper(batches[0], 1, 1.0)
    reads = CALLS[:-1]
    assert len(reads) > 0
    assert set(map(str, reads)) == {"read"}
    assert CALLS[-1] == sorted(batches[0].item_P.tolist())


def test_vectors_to_be_measured_are_without_dropout() -> None:
    """And the towers go on training afterwards."""
    store = checkerboard()
    towers = TwoTower(dim=4, query=Tower(id_dropout=0.9), item=Tower(widths=(8, 4), dropout=0.5))
    stepper, _ = stepper_of(run_of(store, towers=towers), store)
    trained = stepper.model.towers
    questions = held_out(store, PART, "valid")
    found = encode_catalogue(trained, store), encode_questions(trained, questions)
    assert trained.training
    trained.eval()
    assert torch.equal(found[0], trained.encode_item(store.item.take(torch.arange(SIZE))))
    assert torch.equal(found[1], trained.encode_query(store.query.take(questions.query_Q)))
    assert not found[0].requires_grad


# ---------------------------------------------------------------- what is not finite


def test_a_feature_of_an_item_that_is_not_a_number() -> None:
    vectors = np.ones((SIZE, 2), np.float32)
    vectors[3, 1] = np.nan
    store = checkerboard(
        item={"item": Id(column="item"), "photo": Vector(column="photo", dim=2)}, item_columns={"photo": vectors}
    )
    with pytest.raises(DataError, match=r"the loss is not finite at step 1; first found in item vectors"):
        fit_once(run_of(store, batch_size=1000), store, PART)


def test_a_feature_of_a_query_that_is_not_a_number() -> None:
    store = checkerboard(
        context={"clicks": Number(column="clicks")},
        context_columns={"clicks": np.array([np.inf] + [0.0] * (len(EVENTS) - 1), np.float32)},
    )
    part = np.zeros(len(EVENTS), np.int8)
    with pytest.raises(DataError, match=r"step 1; first found in query feature 'clicks'"):
        fit_once(run_of(store, batch_size=1000), store, part)


def test_a_reward_that_is_not_a_number() -> None:
    store = checkerboard(weight=[math.nan] * len(EVENTS))
    with pytest.raises(DataError, match=r"step 1; first found in reward weights"):
        fit_once(run_of(store), store, PART)


def test_a_layer_that_is_not_a_number_is_named_with_its_step() -> None:
    store = checkerboard()
    run = run_of(store, towers=TwoTower(dim=4, query=Tower(projection=True)))
    stepper, batches = stepper_of(run, store)
    stepper(batches[0], 1, 1.0)
    with torch.no_grad():
        stepper.model.towers.query.project.weight[0, 0] = math.nan
    with pytest.raises(DataError, match=r"not finite at step 2; first found in towers\.query\.project\.weight: lower"):
        stepper(batches[1], 2, 1.0)


def test_a_gradient_that_is_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    store = checkerboard()
    stepper, batches = stepper_of(run_of(store, clip_norm=1.0), store)
    gradient = Table.gradient

    def spoilt(self: Table) -> tuple[Tensor, Tensor] | None:
        found = gradient(self)
        return None if found is None else (found[0], found[1] * math.nan)

    monkeypatch.setattr(Table, "gradient", spoilt)
    with pytest.raises(DataError, match=r"the gradient of table query\.user is not finite at step 4"):
        stepper(batches[0], 4, 1.0)


# ---------------------------------------------------------------- how far it moves


class Spy(RowwiseAdagrad):
    """Keeps the gradients it is given."""

    def step(self, weight_RD: Tensor, rows_U: Tensor, gradient_UD: Tensor, rate: float) -> None:
        GIVEN.append((gradient_UD.clone(), rate))


GIVEN: list[tuple[Tensor, float]] = []


def gradients(clip_norm: float | None, patch: pytest.MonkeyPatch) -> tuple[list[Tensor], float]:
    """Gradients of tables and layers as the optimisers get them, and the norm of them all."""
    store = checkerboard()
    towers = TwoTower(dim=4, query=Tower(widths=(4,)), normalise=False)
    run = run_of(store, towers=towers, tables=Spy(), clip_norm=clip_norm, loss=SampledSoftmax(temperature=0.2))
    stepper, batches = stepper_of(run, store)
    assert stepper.optimiser is not None
    dense: list[Tensor] = []
    patch.setattr(
        stepper.optimiser, "step", lambda: dense.extend(p.grad.clone() for p in stepper.dense if p.grad is not None)
    )
    GIVEN.clear()
    stepper(batches[0], 1, 1.0)
    found = [gradient for gradient, _ in GIVEN] + dense
    assert len(found) == 4  # two tables, a weight and a bias
    return found, math.sqrt(sum(float((g.double() ** 2).sum()) for g in found))


def test_gradients_are_clipped_together(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, norm = gradients(None, monkeypatch)
    halved, half = gradients(norm / 2, monkeypatch)
    assert half == pytest.approx(norm / 2, rel=1e-5)
    for one, two in zip(plain, halved, strict=True):
        assert torch.allclose(two, one / 2, rtol=1e-4, atol=1e-7)
    untouched, same = gradients(norm * 2, monkeypatch)
    assert same == norm
    assert all(torch.equal(one, two) for one, two in zip(plain, untouched, strict=True))


def test_tables_learn_at_their_own_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    store = checkerboard()
    towers = TwoTower(dim=4, tables={"item": TableSettings(lr_scale=0.25)})
    stepper, batches = stepper_of(run_of(store, towers=towers, tables=Spy()), store)
    GIVEN.clear()
    stepper(batches[0], 1, 0.5)
    assert [rate for _, rate in GIVEN] == [0.5, 0.125]


def test_a_rate_of_layers_is_scaled_too() -> None:
    """The first step of Adam is its rate: with 0.001 and a factor of 0.25 every number moves by 0.00025."""
    store = checkerboard()
    stepper, batches = stepper_of(run_of(store, towers=TwoTower(dim=4, query=Tower(projection=True))), store)
    weight = stepper.model.towers.query.project.weight
    before = weight.detach().clone()
    stepper(batches[0], 1, 0.25)
    assert torch.allclose((weight - before).abs(), torch.full((4, 4), 0.00025), rtol=1e-2)
    assert weight.grad is None


def test_a_batch_of_no_weight_moves_nothing() -> None:
    store = checkerboard(weight=[0.0] * len(EVENTS))
    stepper, batches = stepper_of(run_of(store), store)
    before = {name: value.clone() for name, value in stepper.model.towers.state_dict().items()}
    assert stepper(batches[0], 1, 1.0).loss == 0.0
    for name, value in stepper.model.towers.state_dict().items():
        assert torch.equal(value, before[name])


def test_only_looked_up_rows_move() -> None:
    store = checkerboard(n_queries=SIZE + 5)
    stepper, batches = stepper_of(run_of(store, batch_size=8), store)
    user, _ = (table for _, table, _ in stepper.model.tables())
    before = user.weight.clone()
    stepper(batches[0], 1, 1.0)
    moved = (user.weight != before).any(1).nonzero()[:, 0].tolist()
    assert moved == sorted(set(batches[0].query_B.tolist()))


# ---------------------------------------------------------------- rates over a run


@pytest.mark.parametrize(
    ("schedule", "warmup", "want"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", 0, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ("linear", 2, [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("constant", 4, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 1, 1]),
        ("cosine", 0, [(1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)]),
        ("cosine", 4, [1 / 4, 2 / 4, 3 / 4, 1, *[(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]]),
        ("linear", 20, [(i + 1) / 20 for i in range(10)]),
    ],
)
def test_learning_rates(schedule: Any, warmup: int, want: list[float]) -> None:
    training = Training(schedule=schedule, warmup_steps=warmup)
    assert [learning_rate(training, step, 10) for step in range(10)] == pytest.approx(want)


def test_a_run_follows_its_schedule() -> None:
    """7 steps of an epoch, 2 epochs: 1 - i / 14."""
    store = checkerboard()
    GIVEN.clear()
    fit_once(run_of(store, tables=Spy(), epochs=2), store, PART)
    assert [rate for _, rate in GIVEN[::2]] == pytest.approx([1 - i / 14 for i in range(14)])


@pytest.mark.parametrize(("loss", "counted"), [(BPR(), False), (SampledSoftmax(), True), (AdapTau(), True)])
def test_counts_are_made_only_for_losses_that_look_at_them(
    loss: Loss, counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    log_count = Uniform.log_count

    def counting(self: Uniform, row: Tensor, batch: Batch, look: Look) -> Tensor:
        asked.append(len(row))
        return log_count(self, row, batch, look)

    monkeypatch.setattr(Uniform, "log_count", counting)
    store = checkerboard()
    fit_once(run_of(store, loss=loss, epochs=1), store, PART)
    assert bool(asked) == counted
