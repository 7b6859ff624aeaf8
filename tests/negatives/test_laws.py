"""Every sampler draws by the law that its ``log_count`` tells."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from twotower.errors import ConfigError
from twotower.negatives import Catalogue, InBatch, Mixture, Popularity, Rotations, Sampler, Uniform, propose
from twotower.part import Facts
from twotower.records import Batch, Block

from .conftest import BATCH_SIZE, COUNT, RunLook, batch_of, batch_of_queries
from .laws import TOTAL, M, check_law, offered_to_first, p_value, ready

DRAWN: dict[str, Sampler] = {
    "InBatch": InBatch(),
    "Uniform shared": Uniform(24),
    "Uniform per query": Uniform(24, per_query=True),
    "Popularity shared": Popularity(24),
    "Popularity per query": Popularity(24, per_query=True),
    "Popularity smoothed": Popularity(24, alpha=0.5, smoothing=5.0),
    "Popularity flat": Popularity(24, alpha=0.0),
    "Rotations": Rotations(14),
    "Mixture": InBatch() + Uniform(10) + Popularity(10, per_query=True),
}
SAMPLERS: dict[str, Sampler] = {"Catalogue": Catalogue(), **DRAWN}
"""All; the catalogue is not drawn."""


def popularity(alpha: float, smoothing: float) -> list[float]:
    weight = [(count + smoothing) ** alpha if count + smoothing > 0 else 0.0 for count in COUNT]
    return [w / sum(weight) for w in weight]


def covariance(sampler: Sampler) -> Tensor:
    """Of how often each item is offered to one query, from the definition of each law. [M, M]"""
    if isinstance(sampler, Mixture):
        return torch.stack([covariance(part) for part in sampler.parts]).sum(0)
    if isinstance(sampler, InBatch):
        q = torch.tensor(COUNT, dtype=torch.float64) / TOTAL
        absent = (1 - q) ** (BATCH_SIZE - 1)
        both_absent = (1 - q[:, None] - q).clamp(min=0) ** (BATCH_SIZE - 1)
        return both_absent.where(~torch.eye(M, dtype=torch.bool), absent.diag()) - absent[:, None] * absent
    if isinstance(sampler, Uniform):
        p = torch.full((M,), 1 / M, dtype=torch.float64)
    elif isinstance(sampler, Rotations):
        p = torch.tensor(COUNT, dtype=torch.float64) / TOTAL
    else:
        assert isinstance(sampler, Popularity)
        p = torch.tensor(popularity(sampler.alpha, sampler.smoothing), dtype=torch.float64)
    return sampler.n * (p.diag() - p[:, None] * p)


@pytest.mark.parametrize("name", DRAWN)
def test_draws_follow_the_counts(name: str, facts: Facts, look: RunLook) -> None:
    sampler = ready(DRAWN[name], facts)
    check_law(sampler, look, covariance(sampler))


def test_the_catalogue_is_offered_whole(facts: Facts, look: RunLook) -> None:
    candidates = propose(ready(Catalogue(), facts), batch_of([0, 4]), look, torch.Generator())
    assert offered_to_first(candidates).tolist() == [1.0] * M


def test_the_test_notices_a_wrong_count(facts: Facts, look: RunLook) -> None:
    """The classic one: (B - 1) q, the count of repeated items, for items that are offered once."""

    class PerDraw(InBatch):
        def log_count(self, row: Tensor, batch: Batch, look: RunLook) -> Tensor:
            return (torch.tensor(COUNT)[row] * ((BATCH_SIZE - 1) / TOTAL)).log()

    sampler = ready(PerDraw(), facts)
    p_values = [p_value(sampler, look, trials=150, seed=seed, covariance_MM=covariance(sampler)) for seed in range(3)]
    assert max(p_values) < 1e-6


def expected_total(sampler: Sampler) -> float:
    """Expected summed weight of a query's candidates; in the batch, the expected distinct items of the other rows, or
    by rotation the one other row of a batch of two."""
    if isinstance(sampler, Mixture):
        return sum(expected_total(part) for part in sampler.parts)
    if isinstance(sampler, InBatch):
        return sum(1 - (1 - count / TOTAL) ** (BATCH_SIZE - 1) for count in COUNT)
    if isinstance(sampler, Catalogue):
        return M
    if isinstance(sampler, Rotations):
        return 1
    assert isinstance(sampler, Uniform | Popularity)
    return sampler.n


@pytest.mark.parametrize("name", SAMPLERS)
def test_counts_sum_to_the_expected_weight(name: str, facts: Facts, look: RunLook) -> None:
    sampler = ready(SAMPLERS[name], facts)
    log_count = sampler.log_count(torch.arange(M), batch_of([0, 1]), look)
    assert float(log_count.double().exp().sum()) == pytest.approx(expected_total(sampler), rel=1e-5)


def test_the_batch_is_offered_once_each(look: RunLook) -> None:
    (block,) = InBatch().draw(batch_of([7, 3, 7, 11, 3, 3]), look, torch.Generator())
    assert block.row.tolist() == [3, 7, 11]
    assert block.log_weight.tolist() == [0.0, 0.0, 0.0]
    assert block.of_batch


def test_uniform_counts_and_shapes(facts: Facts, look: RunLook) -> None:
    batch, rng = batch_of([0, 1, 2]), torch.Generator()
    shared, own = ready(Uniform(7), facts), ready(Uniform(7, per_query=True), facts)
    assert shared.draw(batch, look, rng)[0].row.shape == (7,)
    assert own.draw(batch, look, rng)[0].row.shape == (3, 7)
    assert own.log_count(torch.tensor([4]), batch, look).tolist() == pytest.approx([math.log(7 / 12)])


def rotated(batch: Batch, n: int, facts: Facts, look: RunLook, seed: int) -> list[list[int]]:
    (block,) = ready(Rotations(n), facts).draw(batch, look, torch.Generator().manual_seed(seed))
    return [list(own) for own in block.row.tolist()]


def test_rotations_offer_distinct_other_rows_of_the_batch(facts: Facts, look: RunLook) -> None:
    """Items are their places in the batch, so a candidate tells the shift: equal for all rows, 1 to 7, each alike."""
    batch, drawn = batch_of(list(range(8))), torch.zeros(8, dtype=torch.int64)
    for seed in range(700):
        rows = rotated(batch, 3, facts, look, seed)
        shifts = rows[0]
        assert len(set(shifts)) == 3
        for at, own in enumerate(rows):
            assert own == [(at + shift) % 8 for shift in shifts]
        drawn[shifts] += 1
    assert int(drawn[0]) == 0
    assert drawn.sum() == 2100
    assert chisquare(drawn[1:].numpy()).pvalue > 0.001


def test_rotations_of_queries_with_several_positives_skip_all_of_their_own(facts: Facts, look: RunLook) -> None:
    """Six pairs, at most three of a query: shifts are 1 to 3, from the last pair of each query."""
    batch = batch_of_queries([[0, 1], [2, 3, 4], [5]])
    after = {1: [2, 5, 0], 2: [3, 0, 1], 3: [4, 1, 2]}
    seen = set()
    for seed in range(30):
        own = rotated(batch, 1, facts, look, seed)
        shift = next(shift for shift, items in after.items() if items == [items_of[0] for items_of in own])
        seen.add(shift)
    assert seen == {1, 2, 3}


def test_rotations_take_what_there_is(facts: Facts, look: RunLook) -> None:
    """Three rows have two others; one row, and one query with all the pairs, have none."""
    assert [sorted(own) for own in rotated(batch_of([5, 7, 9]), 4, facts, look, 0)] == [[7, 9], [5, 9], [5, 7]]
    sampler = ready(Rotations(4), facts)
    three = sampler.log_count(torch.tensor([3, 2]), batch_of([5, 7, 9]), look).tolist()
    assert three == pytest.approx([math.log(2 * 900 / 4000), -math.inf])
    for batch in (batch_of([5]), batch_of_queries([[5, 7, 9]])):
        (block,) = propose(sampler, batch, look, torch.Generator()).blocks
        assert block.row.shape == (1, 0)
        assert sampler.log_count(torch.tensor([3]), batch, look).tolist() == [-math.inf]


def test_popularity_counts(facts: Facts, look: RunLook) -> None:
    batch = batch_of([0])
    for sampler in (Popularity(6), Popularity(6, alpha=1.0, smoothing=2.0), Popularity(6, alpha=-0.5)):
        log_count = ready(sampler, facts).log_count(torch.arange(M), batch, look).tolist()
        for found, p in zip(log_count, popularity(sampler.alpha, sampler.smoothing), strict=True):
            assert found == (pytest.approx(math.log(6 * p), rel=1e-5) if p else -math.inf)


def test_a_place_without_an_item_counts_once(facts: Facts, look: RunLook) -> None:
    class HalfEmpty(Uniform):
        def draw(self, batch: Batch, look: RunLook, rng: torch.Generator) -> tuple[Block, ...]:
            return (Block.of(torch.tensor([5, -1])),)

    (block,) = propose(ready(HalfEmpty(6), facts), batch_of([0]), look, torch.Generator()).blocks
    assert block.log_count.tolist() == pytest.approx([math.log(1 / 2), 0.0])


def test_counts_are_unknown_without_a_density(facts: Facts, look: RunLook) -> None:
    class Chosen(Uniform):
        density = "none"

    candidates = propose(ready(Chosen(6), facts), batch_of([0, 1]), look, torch.Generator())
    assert bool(candidates.blocks[0].log_count.isnan().all())
    assert bool(candidates.positive_log_count_P.isnan().all())


def test_settings_that_make_no_sense_are_refused(facts: Facts) -> None:
    with pytest.raises(ConfigError, match="Uniform: n is 0, expected at least 1"):
        Uniform(0)
    with pytest.raises(ConfigError, match="Rotations: n is 0"):
        Rotations(0)
    with pytest.raises(ConfigError, match="Popularity: n is -3"):
        Popularity(-3)
    with pytest.raises(ConfigError, match="smoothing is -1"):
        Popularity(3, smoothing=-1)
    with pytest.raises(ConfigError, match="expected a positive number"):
        Popularity(3, alpha=500.0).setup(facts)
