"""A stretch of training that goes on with a model: its steps, orders, rates and what it knows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.checkerboard import PART, checkerboard, run_of
from twotower.config import Run
from twotower.data.store import Store
from twotower.errors import ConfigError
from twotower.frequency import StreamingFrequency
from twotower.negatives import InBatch, Queue
from twotower.training import checkpoint
from twotower.training.loop import Loop, Start, batches_of
from twotower.training.recorder import Recorder
from twotower.training.step import Model, Stepper

NO_EVENTS = np.zeros(0, np.int64)
TRAINED, ARRIVED = np.flatnonzero(PART == 0)[:300], np.flatnonzero(PART == 0)[300:]


def run_on(store: Store, **kwargs: object) -> Run:
    parts = {"frequency": StreamingFrequency(buckets=64, burn_in=1.0)}
    return run_of(store, parts=parts, epochs=2, warmup_steps=3, batch_size=16, **kwargs)  # type: ignore[arg-type]


def first_day(run: Run, store: Store, folder: Path) -> int:
    """Its steps."""
    return Loop(run, store, TRAINED, None, Recorder(None, quiet=True), folder).run_to(2.0).steps


def test_it_is_the_same_as_steps_with_later_numbers(tmp_path: Path) -> None:
    store = checkerboard()
    run = run_on(store)
    steps = first_day(run, store, tmp_path)
    assert steps == 2 * 19  # 300 of 16

    def fill(model: Model, optimiser: torch.optim.Optimizer | None) -> None:
        checkpoint.load(tmp_path / "last", model, optimiser)

    known, start = np.concatenate([TRAINED, ARRIVED]), Start(fill=fill, step=steps, rate=0.5)
    with Recorder(tmp_path, quiet=True) as recorder:
        loop = Loop(run, store, ARRIVED, None, recorder, tmp_path / "next", known=known, start=start)
        fit = loop.run_to(2.0)
    assert (fit.steps, fit.epochs, fit.best_epoch) == (16, 2.0, 2.0)  # 120 of 16
    state = checkpoint.read_state(tmp_path / "next" / "best")
    assert (state["step"], state["epoch"]) == (steps + 16, 2.0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[-1]["step"] == steps + 16

    batches = batches_of(run, store, ARRIVED, None, seed=0, known=known)
    stepper = Stepper(Model(run, store, batches.facts()).train(), run.training)
    checkpoint.load(tmp_path / "last", stepper.model, stepper.optimiser)
    rates = [(1 + at) / 3 if at < 3 else 1 - (at - 3) / 13 for at in range(16)]
    stream = [batch for epoch in (steps, steps + 1) for batch in batches.epoch(epoch)]
    for step, (batch, rate) in enumerate(zip(stream, rates, strict=True), start=steps + 1):
        stepper(batch, step, rate * 0.5)
    for name, value in stepper.model.state_dict().items():
        assert torch.equal(fit.model.state_dict()[name], value), name


def test_what_was_known_before_is_no_negative(tmp_path: Path) -> None:
    store = checkerboard()
    loop = Loop(run_on(store), store, ARRIVED, None, Recorder(None, quiet=True), None, known=np.arange(len(PART)))
    batch = next(loop.batches.epoch(0))
    assert batch.known.lengths().unique().tolist() == [15]  # every item of the query's parity, held out or not
    assert loop.batches.facts().item_count_M.sum() == len(ARRIVED)


def test_a_sampler_that_waits_may_have_waited_before() -> None:
    store = checkerboard()
    run = run_on(store)
    waiting = Run(
        schema=run.schema,
        split=run.split,
        towers=run.towers,
        negatives=Queue(batches=2, warm_up=40),
        loss=run.loss,
        training=run.training,
        evaluation=run.evaluation,
    )
    assert waiting.negatives.idle_steps == 40 > InBatch().idle_steps
    recorder = Recorder(None, quiet=True)
    with pytest.raises(ConfigError, match="offers nothing in the first 40 steps"):
        Loop(waiting, store, ARRIVED, None, recorder, None)
    Loop(waiting, store, ARRIVED, None, recorder, None, start=Start(fill=lambda *_: None, step=38))
