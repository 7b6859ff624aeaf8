"""Training on a stream whose popular items are thinned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.stores import make_store
from tests.training.checkerboard import PART, checkerboard, run_of
from twotower.data.store import Store
from twotower.data.thinning import FrequentThinning, UniformThinning
from twotower.frequency import ExactFrequency, StreamingFrequency
from twotower.losses import SampledSoftmax, Symmetric
from twotower.training.loop import Fit, fit_once


@pytest.mark.parametrize("frequency", [ExactFrequency(), StreamingFrequency(buckets=64, initial_gap=2.0, burn_in=1.0)])
@pytest.mark.parametrize("loss", [SampledSoftmax(temperature=0.2), Symmetric(of=SampledSoftmax(temperature=0.2))])
def test_half_of_the_events_an_epoch_find_the_checkerboard(frequency: Any, loss: Any) -> None:
    """420 training events: 210 an epoch, 4 steps, and what an epoch leaves out is learned in another."""
    store = checkerboard()
    run = run_of(store, thin=UniformThinning(keep=0.5), loss=loss, epochs=40, parts={"frequency": frequency})
    fit = fit_once(run, store, PART)
    assert fit.steps == 40 * 4
    assert fit.best_metric is not None
    assert fit.best_metric >= 0.95


def skewed() -> tuple[Store, np.ndarray]:
    """Item 0 has most of the training events; every third user has another item withheld."""
    events = [(user, item) for user in range(30) for item in (0,) * 6 + (1 + user % 2, 3 + user % 5, 8 + user % 3)]
    part = np.zeros(len(events), np.int64)
    part[8::27] = 1
    return make_store(events), part


def test_the_counts_of_a_run_are_those_of_its_batches() -> None:
    store, part = skewed()
    thin = FrequentThinning(t=0.02, form="paper")
    fit = fit_once(run_of(store, thin=thin, epochs=2, batch_size=16), store, part)
    count_M = np.bincount(store.item_row[part == 0], minlength=11)
    share_M = count_M / count_M.sum()
    kept_M = count_M * np.minimum(1, np.sqrt(0.02 / np.maximum(share_M, 1e-9)))
    presence_M = 1 - (1 - kept_M / kept_M.sum()) ** 15
    assert fit.model.frequency.log_presence(torch.arange(11)).exp().numpy() == pytest.approx(presence_M, rel=1e-5)
    assert fit.steps == 2 * -(-int(kept_M.sum()) // 16)


def bits(fit: Fit) -> dict[str, Any]:
    return {"history": fit.history, **{name: value.tolist() for name, value in fit.model.state_dict().items()}}


def test_a_seed_makes_a_run_bit_for_bit() -> None:
    store, part = skewed()
    one, two, other = (
        fit_once(run_of(store, thin=FrequentThinning(t=0.02), epochs=3, batch_size=16, seed=seed), store, part)
        for seed in (7, 7, 8)
    )
    assert bits(one) == bits(two)
    assert bits(one) != bits(other)
