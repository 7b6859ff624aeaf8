"""Runs whose negatives come from a generator: it learns beside the towers, and is saved with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.checkerboard import PART, SIZE, checkerboard, run_of
from twotower.config import Run
from twotower.data.batches import TrainingBatches
from twotower.errors import DataError
from twotower.losses import BPR, Perturbed, SampledSoftmax
from twotower.negatives import IRGAN, RNS, Policy, Uniform
from twotower.records import Batch, Ragged
from twotower.training import checkpoint
from twotower.training.loop import fit_once
from twotower.training.retriever import encode_catalogue
from twotower.training.step import CurrentModel, Model, Stepper

SHOWN = Ragged(
    offset=torch.arange(SIZE + 1) * 3,
    value=((torch.arange(SIZE)[:, None] + torch.tensor([1, 3, 5])) % SIZE).sort(1).values.flatten(),
)
"""Each user was shown three items of the other parity."""


def run_with(policy: Policy, **training: object) -> Run:
    run = run_of(checkerboard(), loss=SampledSoftmax(temperature=0.2, correction="none"), **training)
    schema = replace(run.schema, interactions=replace(run.schema.interactions, taken="taken"))
    return replace(run, schema=schema, negatives=Uniform(16, per_query=True) + policy)


def started(run: Run) -> tuple[Stepper, list[Batch]]:
    store = checkerboard()
    batches = TrainingBatches(
        store, np.flatnonzero(PART == 0), batch_of=run.training.batch_of, batch_size=run.training.batch_size
    )
    torch.manual_seed(0)
    model = Model(run, store, replace(batches.facts(), shown=SHOWN)).train()
    return Stepper(model, run.training), list(batches.epoch(0))


def policy_of(model: Model) -> Policy:
    return model.negatives.parts[1]  # type: ignore[attr-defined, no-any-return]


def mean_rewards(stepper: Stepper, batch: Batch) -> tuple[float, float]:
    """Of what the generator would draw, and of uniform draws."""
    model = stepper.model
    look = CurrentModel(model, model.towers.encode_query(batch.query), 1)
    item_MD = encode_catalogue(model.towers.eval(), model.store)
    model.towers.train()
    policy = policy_of(model)
    log_p_BM = policy.log_count(torch.arange(SIZE), batch, look)
    p_BM = log_p_BM.exp() / policy.n
    reward_BM = torch.tanh(policy.scale * look.query_BD @ item_MD.T / 2)  # = 2 sigmoid(x) - 1
    return float((p_BM * reward_BM).sum(1).mean()), float(reward_BM.mean())


def test_irgan_learns_to_draw_what_the_towers_like() -> None:
    """Half of the items score near 1 and half near -1: a generator that knows which are is paid far more than chance;
    what it draws concentrates."""
    policy = IRGAN(n=4, dim=8, scale=4.0, known_share=0.0)
    stepper, batches = started(run_with(policy))
    before = mean_rewards(stepper, batches[0])
    assert abs(before[0] - before[1]) < 0.1
    for step in range(120):
        stepper(batches[step % len(batches)], step + 1, 1.0)
    drawn, uniform = mean_rewards(stepper, batches[0])
    assert abs(uniform) < 0.3
    assert drawn > uniform + 0.4


def test_rns_learns_to_pick_what_was_shown() -> None:
    """One of about four open places of a pool was shown for sure: soon it is picked twice as often."""
    policy = RNS(n=1, dim=8, pool=7, alpha=5.0, beta=0.0)
    stepper, batches = started(run_with(policy))
    picked = []
    for step in range(150):
        stepper(batches[step % len(batches)], step + 1, 1.0)
        rns = policy_of(stepper.model)
        assert isinstance(rns, RNS)
        picked.append(float((rns.drawn[1] == 7).float().mean()))
    assert sum(picked[:5]) / 5 < 0.35
    assert sum(picked[-30:]) / 30 > 0.55
    assert float(rns.mean_reward) > 0


@pytest.mark.parametrize("policy", [IRGAN(n=2, every=2), RNS(n=2, pool=4)])
def test_a_generator_is_saved_and_loaded(policy: Policy, tmp_path: Path) -> None:
    """And training goes on from there bit for bit."""
    stepper, batches = started(run_with(policy, batch_size=16))
    through, _ = started(run_with(policy, batch_size=16))
    start = {name: value.clone() for name, value in policy_of(stepper.model).state_dict().items()}
    for step in range(1, 5):
        for one in (stepper, through):
            one(batches[step], step, 1.0)
    saved = policy_of(stepper.model).state_dict()
    assert all(not torch.equal(value, saved[name]) for name, value in start.items() if name.endswith("weight"))
    checkpoint.save(tmp_path, stepper.model, stepper.optimiser, {"step": 4})
    resumed, _ = started(run_with(policy, batch_size=16))
    checkpoint.load(tmp_path, resumed.model, resumed.optimiser)
    for name, value in policy_of(resumed.model).state_dict().items():
        assert torch.equal(value, saved[name])
    for step in (5, 6):
        assert through(batches[step], step, 1.0).loss == resumed(batches[step], step, 1.0).loss
    for name, value in through.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_generator_moves_at_its_own_rate_and_on_its_own_steps() -> None:
    for lr_scale, every, moves in ((1.0, 1, True), (0.0, 1, False), (1.0, 2, False)):
        stepper, batches = started(run_with(IRGAN(n=2, lr_scale=lr_scale, every=every)))
        before = {name: value.clone() for name, value in policy_of(stepper.model).state_dict().items()}
        stepper(batches[0], 1, 1.0)
        after = policy_of(stepper.model).state_dict()
        assert any(not torch.equal(value, after[name]) for name, value in before.items()) == moves


def test_a_gradient_of_a_generator_that_is_not_finite_is_named() -> None:
    stepper, batches = started(run_with(IRGAN(n=2)))
    policy_of(stepper.model).of_item.weight[3] = torch.inf
    with pytest.raises(DataError, match=r"the gradient of table negatives\.held\.1\.of_\w+ is not finite at step 1"):
        stepper(batches[0], 1, 1.0)


@pytest.mark.parametrize("batch_of", ["pairs", "queries"])
@pytest.mark.parametrize(
    "run",
    [
        run_with(IRGAN(n=4, every=2)),
        replace(run_with(IRGAN(n=4)), loss=BPR()),
        replace(run_with(IRGAN(n=4)), loss=Perturbed(of=SampledSoftmax(temperature=0.2))),
    ],
    ids=["softmax", "bpr", "AdvIR"],
)
def test_towers_beside_a_generator_find_the_checkerboard(run: Run, batch_of: str) -> None:
    training = replace(run.training, batch_of=batch_of, batch_size=64 if batch_of == "pairs" else 8)
    fit = fit_once(replace(run, training=training), checkerboard(), PART)
    assert fit.best_metric is not None
    assert fit.best_metric >= 0.9
