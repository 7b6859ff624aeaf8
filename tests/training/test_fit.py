"""Training a planted truth: it is found, the same way twice, and what interrupts it leaves a usable model."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.checkerboard import EVENTS, PART, SIZE, checkerboard, run_of
from twotower.config import Run
from twotower.data.batches import TrainingBatches
from twotower.data.held_out import held_out
from twotower.data.store import Store
from twotower.errors import ConfigError
from twotower.frequency import StreamingFrequency
from twotower.losses import CCL, HierarchicalSoftmax, Loss, Losses, Margin, SampledSoftmax, Symmetric, Warp
from twotower.optimisers import RowwiseAdam
from twotower.records import Ragged
from twotower.schema import History, Number
from twotower.towers import Tower, TwoTower
from twotower.training import checkpoint, loop
from twotower.training.loop import Fit, fit_once, refit, settings_of
from twotower.training.matmul import Matmul
from twotower.training.recorder import Recorder
from twotower.training.retriever import Retriever
from twotower.training.step import Model, Stepper


def model_of(run: Run, store: Store) -> Model:
    batches = TrainingBatches(store, np.flatnonzero(PART == 0), batch_of="pairs", batch_size=run.training.batch_size)
    return Model(run, store, batches.facts())


# ---------------------------------------------------------------- the planted truth


EASIER: dict[object, Callable[[], Loss]] = {
    CCL: lambda: CCL(margin=0.5, negative_weight=2.0),
    Margin: lambda: Margin(margin=1.0),
    SampledSoftmax: lambda: SampledSoftmax(temperature=0.2),
    Symmetric: lambda: Symmetric(of=SampledSoftmax(temperature=0.2)),
    Warp: lambda: Warp(margin=1.0),
}
"""Losses whose defaults are for larger data."""
WITH_ITEMS = [loss for loss in typing.get_args(Losses) if loss is not HierarchicalSoftmax]
"""Losses that learn item vectors."""


@pytest.mark.parametrize(("batch_of", "batch_size"), [("pairs", 64), ("queries", 8)])
@pytest.mark.parametrize("loss", WITH_ITEMS, ids=lambda loss: loss.__name__)
def test_every_loss_finds_the_checkerboard(loss: type[Loss], batch_of: str, batch_size: int) -> None:
    """A guess among the 16 items a user has not met would give 1/16."""
    store = checkerboard()
    made = EASIER[loss]() if loss in EASIER else loss()
    run = run_of(store, loss=made, epochs=20, validate_every=10, batch_of=batch_of, batch_size=batch_size)
    fit = fit_once(run, store, PART)
    assert fit.best_metric is not None
    assert fit.best_metric >= 0.95
    per_epoch = -(-(SIZE if batch_of == "queries" else int((PART == 0).sum())) // batch_size)
    assert fit.steps == 20 * per_epoch
    assert [validation["epoch"] for validation in fit.history] == [10.0, 20.0]


def test_towers_with_layers_and_other_parts_find_it_too() -> None:
    """Layers on both sides, learned temperature, momentum, estimated frequencies, times, a history and a context."""
    store = checkerboard(
        time_us=list(range(len(EVENTS))),
        context={"history": History(k=5), "n": Number(column="n")},
        context_columns={"n": np.array([user % 2 for user, _ in EVENTS], np.float32)},
    )
    run = run_of(
        store,
        towers=TwoTower(
            dim=8, query=Tower(combine="concat", widths=(16, 8), id_dropout=0.1), item=Tower(projection=True)
        ),
        loss=SampledSoftmax(temperature=0.2, learn_temperature=True),
        parts={"frequency": StreamingFrequency(buckets=64, initial_gap=2.0)},
        tables=RowwiseAdam(lr=0.03),
        clip_norm=1.0,
        schedule="cosine",
        warmup_steps=5,
        query_weight=-0.5,
        metric="recall@10",
    )
    fit = fit_once(run, store, PART)
    assert fit.best_metric is not None
    assert fit.best_metric > 0.9


def test_training_is_validated_by_what_it_is_asked() -> None:
    """Each user is asked for the withheld item, worth 3, and one of the other parity, worth 1: the first is found."""
    store = checkerboard()
    own = held_out(store, PART, "valid")
    other = (own.truth.value + 1) % SIZE
    pair = torch.stack([own.truth.value, other], dim=1)
    truth = Ragged(
        offset=torch.arange(0, 2 * SIZE + 1, 2), value=pair.flatten(), weight=torch.tensor([3.0, 1.0]).repeat(SIZE)
    )
    run = run_of(store, metric="weighted_recall@1", epochs=20, validate_every=20)
    fit = fit_once(run, store, PART, questions=replace(own, truth=truth))
    assert fit.best_metric == pytest.approx(3 / 4, abs=0.05)
    assert fit.history == ({"epoch": 20.0, "weighted_recall@1": fit.best_metric},)


def test_a_metric_of_weights_needs_weights() -> None:
    store = checkerboard()
    with pytest.raises(ConfigError, match=r"training\.metric: metric 'weighted_recall@1' is not reported"):
        fit_once(run_of(store, metric="weighted_recall@1"), store, PART)
    weighted = checkerboard(weight=[0.5] * len(EVENTS))
    assert fit_once(run_of(weighted, metric="weighted_recall@1", epochs=1), weighted, PART).best_metric is not None


# ---------------------------------------------------------------- the same again


def bits(fit: Fit) -> dict[str, Any]:
    return {"history": fit.history, **{name: value.tolist() for name, value in fit.model.state_dict().items()}}


@pytest.mark.parametrize("batch_of", ["pairs", "queries"])
def test_a_seed_makes_a_run_bit_for_bit(batch_of: str) -> None:
    store = checkerboard()
    towers = TwoTower(dim=4, query=Tower(widths=(8, 4), dropout=0.2, id_dropout=0.2))
    one, two, other = (
        fit_once(
            run_of(store, towers=towers, batch_of=batch_of, batch_size=16, epochs=2, validate_every=1, seed=seed),
            store,
            PART,
        )
        for seed in (7, 7, 8)
    )
    assert bits(one) == bits(two)
    assert bits(one) != bits(other)


def test_validating_changes_nothing_but_what_is_reported() -> None:
    store = checkerboard()
    towers = TwoTower(dim=4, query=Tower(widths=(8, 4), dropout=0.2))
    one, two = (
        fit_once(run_of(store, towers=towers, epochs=3, validate_every=every), store, PART) for every in (0.3, 3)
    )
    assert len(one.history) > len(two.history) == 1
    assert one.history[-1] == two.history[-1]
    assert bits(one) | {"history": ()} == bits(two) | {"history": ()}


def test_a_recipe_is_not_changed_by_a_run() -> None:
    store = checkerboard()
    loss = SampledSoftmax(temperature=0.2, learn_temperature=True)
    before = loss.log_temperature.item()
    run = run_of(store, loss=loss, epochs=1)
    fit = fit_once(run, store, PART)
    assert fit.model.loss.get_parameter("log_temperature").item() != before
    assert run.towers.state_dict() == {}
    assert run.loss.get_parameter("log_temperature").item() == before
    assert run.training.tables.state_dict() == {}


# ---------------------------------------------------------------- stopping and refitting


def scripted(monkeypatch: pytest.MonkeyPatch, metrics: list[float]) -> None:
    """Validations give these metrics, one after the other."""
    left = iter(metrics)

    def measure(*_: object) -> object:
        value = next(left)
        return SimpleNamespace(metric=lambda name: value)

    monkeypatch.setattr(loop.Loop, "measure", measure)


def test_patience_ends_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Best is the second validation of .1 .3 .2 .3 .1 (equal is no better); a patience of 2 ends with the fourth."""
    scripted(monkeypatch, [0.1, 0.3, 0.2, 0.3, 0.1])
    store = checkerboard()
    run = run_of(store, epochs=10, validate_every=1, patience=2)
    fit = fit_once(run, store, PART, folder=tmp_path)
    steps = -(-int((PART == 0).sum()) // 64)
    assert (fit.steps, fit.epochs, fit.best_epoch, fit.best_metric) == (4 * steps, 4.0, 2.0, 0.3)
    assert fit.history == tuple({"epoch": float(i + 1), "recall@1": m} for i, m in enumerate([0.1, 0.3, 0.2, 0.3]))
    best, last = (checkpoint.read_state(tmp_path / name) for name in ("best", "last"))
    assert (best["step"], best["metric"], last["step"]) == (2 * steps, 0.3, 4 * steps)


def test_patience_begins_anew_with_every_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """.1 (worse: .05) .2 (worse: .1 and .15)"""
    scripted(monkeypatch, [0.1, 0.05, 0.2, 0.1, 0.15, 0.1])
    store = checkerboard()
    fit = fit_once(run_of(store, epochs=10, validate_every=1, patience=2), store, PART)
    assert (fit.epochs, fit.best_epoch) == (5.0, 3.0)


def test_without_patience_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [0.3, 0.2, 0.1])
    store = checkerboard()
    fit = fit_once(run_of(store, epochs=3, validate_every=1), store, PART)
    assert (fit.epochs, fit.best_epoch) == (3.0, 1.0)


def test_best_is_the_model_of_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in best/ is what training for that long gives."""
    store = checkerboard()
    settings: dict[str, Any] = {"schedule": "constant", "validate_every": 1}
    short = fit_once(run_of(store, epochs=1, **settings), store, PART)
    scripted(monkeypatch, [0.5, 0.1, 0.2])
    run = run_of(store, epochs=3, **settings)
    fit_once(run, store, PART, folder=tmp_path)
    best, last = model_of(run, store), model_of(run, store)
    checkpoint.load(tmp_path / "best", best)
    checkpoint.load(tmp_path / "last", last)
    for name, value in short.model.state_dict().items():
        assert torch.equal(best.state_dict()[name], value), name
    assert any(not torch.equal(last.state_dict()[name], value) for name, value in short.model.state_dict().items())


def test_a_refit_uses_validation_events_for_the_chosen_length(tmp_path: Path) -> None:
    """450 events of 64 a batch: 8 steps an epoch; training alone would be 420 in 7. Of a schedule of 20 epochs, 2.5."""
    store = checkerboard()
    seen: set[tuple[int, int]] = set()
    steps: list[int] = []

    def spy(self: TrainingBatches, index: torch.Tensor) -> Any:
        steps.append(len(index))
        seen.update(zip(self.event_query[index].tolist(), self.event_item[index].tolist(), strict=True))
        return of_events(self, index)

    of_events = TrainingBatches.of_events
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingBatches, "of_events", spy)
        run = run_of(store, epochs=20, schedule="linear")
        fit = refit(run, store, PART, 2.5, folder=tmp_path)
    assert seen == set(EVENTS)
    assert (fit.steps, fit.epochs, fit.best_epoch, fit.best_metric) == (20, 2.5, 2.5, None)
    assert steps == [64] * 7 + [2] + [64] * 7 + [2] + [64] * 4
    assert checkpoint.read_state(tmp_path / "best")["step"] == 20


def test_a_metric_that_is_not_reported_is_refused_before_training() -> None:
    store = checkerboard()
    with pytest.raises(ConfigError, match="recal@1"):
        fit_once(run_of(store, metric="recal@1"), store, PART)


# ---------------------------------------------------------------- interruptions


def interrupted_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    call = Stepper.__call__

    def stepper(self: Stepper, batch: Any, at: int, rate: float, *, with_health: bool) -> Any:
        if at == step:
            raise KeyboardInterrupt
        return call(self, batch, at, rate, with_health=with_health)

    monkeypatch.setattr(Stepper, "__call__", stepper)


@pytest.mark.parametrize(("step", "best_step"), [(3, 2), (9, 7), (20, 14)])
def test_an_interrupt_leaves_both_checkpoints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: int, best_step: int
) -> None:
    """7 steps an epoch, validated after each: best is the last validated, or the model at hand where there is none."""
    store = checkerboard()
    run = run_of(store, epochs=5, validate_every=1)
    scripted(monkeypatch, [0.1, 0.2, 0.3])
    interrupted_at(monkeypatch, step)
    with pytest.raises(KeyboardInterrupt):
        fit_once(run, store, PART, folder=tmp_path)
    states = {name: checkpoint.load(tmp_path / name, model_of(run, store)) for name in ("best", "last")}
    assert (states["last"]["step"], states["last"]["torn"]) == (step - 1, True)
    assert states["best"]["step"] == best_step


def test_an_interrupted_refit_leaves_the_validated_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = checkerboard()
    run = run_of(store, epochs=1, validate_every=1)
    fit_once(run, store, PART, folder=tmp_path)
    interrupted_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        refit(run, store, PART, 1.0, folder=tmp_path)
    assert checkpoint.read_state(tmp_path / "best")["step"] == 7
    assert checkpoint.read_state(tmp_path / "last")["step"] == 1


# ---------------------------------------------------------------- settings of the process


def test_threads_and_products_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "probe", lambda: Matmul(precision="medium", seconds={}, error={}))
    store = checkerboard()
    before = (torch.get_num_threads(), torch.get_float32_matmul_precision())
    with settings_of(run_of(store, threads=2).training) as precision:
        assert torch.get_num_threads() == 2
        assert torch.get_float32_matmul_precision() == precision == "medium"
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before
    with pytest.raises(KeyboardInterrupt), settings_of(run_of(store, threads=2).training):
        raise KeyboardInterrupt
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ConfigError, match=r"training\.device: found 'cuda'"):
        settings_of(run_of(checkerboard(), device="cuda", threads=before + 1).training).__enter__()
    assert torch.get_num_threads() == before


def test_the_folder_gets_lines_of_json(tmp_path: Path) -> None:
    store = checkerboard()
    with Recorder(tmp_path, quiet=True) as recorder:
        fit_once(run_of(store, epochs=2, validate_every=1), store, PART, recorder=recorder, folder=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["what"], line["step"]) for line in lines] == [
        ("train", 7),
        ("valid", 7),
        ("train", 14),
        ("valid", 14),
    ]
    assert all(line["loss"] > 0 and line["examples_per_s"] > 0 for line in lines if line["what"] == "train")
    assert [line.get("temperature") for line in lines] == [0.2, None, 0.2, None]
    assert [line["rate"] for line in lines if line["what"] == "train"] == [1 - 6 / 14, 1 - 13 / 14]


def test_a_query_that_training_never_met_stands_for_the_mean_of_all_others() -> None:
    """Validation and a finished model see it so; training itself does not."""
    store = checkerboard()
    part = PART.copy()
    part[np.asarray(store.query_row) == 0] = 1  # nothing of query 0 is left to train on
    run = run_of(store, epochs=2)
    fit = fit_once(run, store, part)
    towers = fit.model.towers
    table = towers.weights["/query/user"]
    assert not table.met_R[0]
    others = table.weight[1:].mean(0)
    assert not torch.allclose(table.weight[0], others, atol=1e-4)
    with towers.settled():
        assert torch.allclose(table.weight[0], others, atol=1e-6)
    Retriever(run, store, towers)
    assert torch.allclose(table.weight[0], others, atol=1e-6)


def test_frequencies_may_look_ahead() -> None:
    """Two and a half epochs of ids before the first step, none of it training."""
    store = checkerboard()
    loops = [
        loop.Loop(
            run_of(store, parts={"frequency": StreamingFrequency(buckets=64, burn_in=epochs)}, epochs=1),
            store,
            np.flatnonzero(PART == 0),
            None,
            Recorder(None, quiet=True),
            None,
        )
        for epochs in (0.0, 2.5)
    ]
    for made in loops:
        made._burn_in()
    per_epoch = loops[0].batches.steps_per_epoch
    assert [int(made.model.frequency.step) for made in loops] == [0, round(2.5 * per_epoch)]
    assert torch.equal(*(made.model.towers.weights["/item"].weight for made in loops))


def test_a_tree_learns_which_items_a_user_meets() -> None:
    """Its nodes stand for the items: half of the items are a user's, so a log p of -log 15 each is perfect."""
    store = checkerboard()
    run = run_of(store, loss=HierarchicalSoftmax(), epochs=40, validate_every=40, metric="recall@1")
    fit = fit_once(run, store, PART)
    user = torch.tensor([2, 3])
    query_BD = fit.model.towers.eval().encode_query({"user": user}) * 1.0
    item = torch.arange(SIZE)
    found = fit.model.loss.log_p(query_BD, torch.arange(2).repeat_interleave(SIZE), item.repeat(2))
    log_p = found.detach().view(2, SIZE)
    for row, parity in enumerate((0, 1)):
        mine = (item % 2 == parity) & (item != 2 + row)
        assert float(log_p[row].exp()[mine].sum()) > 0.8
    assert float(log_p.exp().sum()) == pytest.approx(2.0, abs=1e-4)
