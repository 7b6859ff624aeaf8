"""Runs whose negatives follow the current model's own law: the planted truth is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.training.checkerboard import PART, checkerboard, run_of
from twotower.losses import BPR, BilateralSoftmax, Loss, SampledSoftmax
from twotower.negatives import MCNS, AdaptiveImportance, Gibbs, MetropolisHastings, Sampler
from twotower.towers import TwoTower
from twotower.training.loop import fit_once

CORRECTED = BilateralSoftmax(correction="negatives", temperature=0.2)


@pytest.mark.parametrize(
    ("negatives", "loss"),
    [
        (MetropolisHastings(4, temperature=0.5), CORRECTED),
        (Gibbs(4, temperature=0.5), CORRECTED),
        (MCNS(4, steps=4, burn_in=8, temperature=0.5, neighbours=8), BPR()),
        (AdaptiveImportance(ess=16.0, block=8, cap=64, temperature=0.2), SampledSoftmax(temperature=0.2)),
    ],
)
def test_a_run_finds_the_checkerboard(negatives: Sampler, loss: Loss) -> None:
    store = checkerboard()
    run = replace(run_of(store, towers=TwoTower(dim=8), loss=loss), negatives=negatives)
    fit = fit_once(run, store, PART)
    assert fit.best_metric is not None
    assert fit.best_metric >= 0.95
