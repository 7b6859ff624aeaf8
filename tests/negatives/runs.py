"""A run of a sampler from its TOML, small enough for a test, that ends well and goes on from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.training.checkerboard import PART, checkerboard
from twotower.config import Run, parse_run
from twotower.data.batches import TrainingBatches
from twotower.training import checkpoint
from twotower.training.loop import fit_once
from twotower.training.step import Model, Stepper

STORE = checkerboard()

BATCH_SIZE = 32
"""Of 420 pairs: 14 steps an epoch."""

TOML = """
[schema.interactions]
query = "user"
item = "item"

[schema.query.user]
kind = "Id"
column = "user"

[schema.item.item]
kind = "Id"
column = "item"

[split]
kind = "GivenSplit"

[towers]
dim = 4

[training]
batch_size = 32
epochs = 10
validate_every = 5
metric = "recall@1"
tables = {kind = "RowwiseAdagrad", lr = 0.2}

[evaluation]
k = [1, 10]
"""


def run_from_toml(negatives: str, loss: str) -> Run:
    """The sections [negatives] and [loss] of a run on the checkerboard."""
    return parse_run(f"{TOML}\n[negatives]\n{negatives}\n[loss]\n{loss}\n")


def recall_of(run: Run) -> float:
    """Recall@1 after training, by chance one in sixteen."""
    fit = fit_once(run, STORE, PART)
    assert fit.best_metric is not None
    return fit.best_metric


def check_resume(run: Run, folder: Path, at: int, stop: int) -> Stepper:
    """Saved after ``at`` steps and loaded into a run of its own, training ends as if it had never stopped."""
    through, first, resumed = _started(run, 0, stop), _started(run, 0, at), _started(run, 1, 2)
    checkpoint.save(folder, first.model, first.optimiser, {"step": at})
    checkpoint.load(folder, resumed.model, resumed.optimiser)
    _take(resumed, at, stop)
    found = resumed.model.state_dict()
    for name, value in through.model.state_dict().items():
        assert torch.equal(found[name], value), name
    return through


def _started(run: Run, seed: int, steps: int) -> Stepper:
    torch.manual_seed(seed)
    stepper = Stepper(Model(run, STORE, _batches().facts()).train(), run.training)
    _take(stepper, 0, steps)
    return stepper


def _take(stepper: Stepper, start: int, stop: int) -> None:
    for step, batch in enumerate(_batches().epoch(0, start), start=start + 1):
        if step > stop:
            return
        stepper(batch, step, 1.0)


def _batches() -> TrainingBatches:
    return TrainingBatches(STORE, np.flatnonzero(PART == 0), batch_of="pairs", batch_size=BATCH_SIZE)
