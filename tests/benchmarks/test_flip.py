"""A popularity flip in a running model is followed as Proposition 4.1 says; the log is of the law it is said to be."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.flip import Flip, Hits, error, ingested, paper, run_of, systematic, trained

torch.set_num_threads(1)

SMALL = Flip(n_items=300, batch_size=64, steps=500)
ALPHA = 0.05


def test_systematic_draws_are_distinct_and_of_their_probabilities() -> None:
    rng, n = torch.Generator().manual_seed(0), 4000
    p_M = torch.tensor([0.9, 0.1, 0.5, 0.25, 0.25, 1.0]).double()
    count_M = torch.zeros(6)
    for _ in range(n):
        item = systematic(p_M, rng)
        assert len(item.unique()) == len(item) == 3
        count_M[item] += 1
    deviation_M = (p_M * (1 - p_M) / n).sqrt()
    assert bool(((count_M / n - p_M).abs() <= 4 * deviation_M).all())


@pytest.mark.parametrize("draw", ["events", "distinct"])
def test_batches_hold_items_as_often_as_is_said_before_and_after_the_flip(draw: str) -> None:
    flip = Flip(n_items=50, batch_size=10, steps=2000, draw=draw)  # type: ignore[arg-type]
    batches = flip.items(seed=1)
    for after, half in ((False, batches[:2000]), (True, batches[2000:])):
        present_M = torch.zeros(50).double()
        for batch in half:
            present_M[batch.unique()] += 1
        p_M = flip.presence_M(after)
        assert bool(((present_M / 2000 - p_M).abs() <= 4.5 * (p_M * (1 - p_M) / 2000).sqrt() + 1e-9).all())


def test_a_model_trains_on_the_log_in_the_order_in_which_it_was_drawn(tmp_path: Path) -> None:
    flip = replace(SMALL, steps=8)
    store, expected = ingested(flip, tmp_path, seed=0), flip.items(seed=0)
    run, twins = run_of(flip.batch_size, paper(2**12, 2, ALPHA)), {"twin": paper(2**12, 2, ALPHA)}
    steps = list(trained(run, store, twins))
    assert [number for number, _, _ in steps] == list(range(1, 17))
    assert all(torch.equal(batch.item_P, expected[number - 1]) for number, batch, _ in steps)
    *_, (_, _, alone) = trained(run, store, {}, only_frequencies=True)
    # what a model learns of frequencies depends on nothing else of a step
    for name, state in steps[-1][2].frequency.state_dict().items():
        assert torch.equal(state, twins["twin"].state_dict()[name])
        assert torch.equal(state, alone.frequency.state_dict()[name])


def test_the_flip_is_followed_per_hit_as_the_corrected_proposition_says(tmp_path: Path) -> None:
    certain, steps = 0.25, SMALL.steps
    run, beside = run_of(SMALL.batch_size, paper(2**16, 2, ALPHA)), {"quick": paper(2**16, 2, 0.2)}
    hits, errors = Hits(p_M=SMALL.presence_M(True), most=60), {}
    store = ingested(SMALL, tmp_path, seed=0)
    for step, batch, model in trained(run, store, beside, only_frequencies=True):
        if step > steps:
            hits.see(batch.item_P, model.frequency)
        if step in (steps, steps + 40, 2 * steps):
            errors[step - steps] = [error(f, SMALL, step > steps) for f in (model.frequency, beside["quick"])]
    for n in (1, 5, 20, 60):
        found = hits.after(n, ALPHA, certain=certain)
        assert found.n_items > 90
        assert abs(found.off) < 4
        assert found.deviation == pytest.approx(1, abs=0.4)
        assert found.found == pytest.approx(found.expected, abs=4 * math.sqrt(ALPHA / 2 / found.n_items))
    assert hits.after(1, ALPHA, certain=certain).printed_off > 4  # the bias as printed is one hit off
    # a larger alpha ends higher and adapts faster
    slow, quick = zip(errors[0], errors[40], errors[steps], strict=True)
    assert slow[0] < quick[0]
    assert quick[1] < slow[1]
    assert slow[2] < slow[1] / 3
