"""Samplers whose law is each query's own train like others, beside the batch and alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.training.checkerboard import EVENTS, PART, checkerboard, run_of
from twotower.data.store import Store
from twotower.losses import AdapTau, BucketedSoftmax, Loss, SampledSoftmax, Warp
from twotower.negatives import Conditional, InBatch, Popularity, Sampler, Uniform, Unknown
from twotower.schema import Categorical, History
from twotower.training.loop import fit_once

NEGATIVES: dict[str, Sampler] = {
    "by the item before, alone": Conditional(16, by="history", smoothing=0.5),
    "by the item before": InBatch() + Conditional(8, by="history", smoothing=0.5),
    "by group": InBatch() + Conditional(8, by="side", smoothing=0.5),
    "unknown": InBatch() + Unknown(of=Popularity(8, alpha=1.0)),
    "unknown, alone": Unknown(of=Uniform(16)),
    "distinct": InBatch() + Uniform(16, unique=True),
}


def with_history() -> Store:
    """The side of a user is its parity: of the items it likes, too."""
    return checkerboard(
        time_us=list(range(len(EVENTS))),
        context={"history": History(k=5), "side": Categorical(column="side")},
        context_columns={"side": np.array([user % 2 for user, _ in EVENTS], np.int32)},
        table_sizes={"context.side": 2},
    )


@pytest.mark.parametrize("name", NEGATIVES)
def test_the_checkerboard_is_found(name: str) -> None:
    """The one item of its side that a user has not met, among 16 it has not: a guess gives 1/16, the side 1."""
    run = dataclasses.replace(run_of(with_history(), epochs=10), negatives=NEGATIVES[name])
    fit = fit_once(run, with_history(), PART)
    assert fit.best_metric is not None
    assert fit.best_metric >= 0.9


@pytest.mark.parametrize("loss", [AdapTau(), BucketedSoftmax(temperature=0.2), SampledSoftmax(strength=0.5), Warp()])
def test_losses_take_counts_of_each_query(loss: Loss) -> None:
    run = run_of(with_history(), loss=loss, epochs=1, validate_every=1)
    fit = fit_once(dataclasses.replace(run, negatives=NEGATIVES["by the item before"]), with_history(), PART)
    assert fit.best_metric is not None
