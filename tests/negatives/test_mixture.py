"""Mixtures: counts add, blocks know their source, parts and registered modules are the same thing."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from twotower.errors import ConfigError
from twotower.negatives import InBatch, Mixture, Popularity, Sampler, Uniform, propose
from twotower.part import Facts
from twotower.records import Batch, Block, Encoded

from .conftest import COUNT, RunLook, batch_of


class Remembering(Sampler):
    """Offers one item, and keeps how often it was told to learn and from what."""

    density = "exact"

    row: int
    loss: float | None = None

    def setup(self, facts: Facts) -> None:
        self.register_buffer("seen_M", torch.zeros(facts.n_items))

    def draw(self, batch: Batch, look: RunLook, rng: torch.Generator) -> tuple[Block, ...]:
        return (Block.of(torch.tensor([self.row])), Block.of(torch.tensor([self.row + 1])))

    def log_count(self, row: Tensor, batch: Batch, look: RunLook) -> Tensor:
        return torch.where((row == self.row) | (row == self.row + 1), 0.0, -math.inf)

    def observe(self, blocks: tuple[Block, ...], encoded: Encoded, look: RunLook) -> Tensor | None:
        for block in blocks:
            self.seen_M[block.row] += 1
        return None if self.loss is None else torch.tensor(self.loss)


def test_counts_add_whatever_source_an_item_came_from(facts: Facts, look: RunLook) -> None:
    mixture = InBatch() + Uniform(24)
    mixture.setup(facts)
    batch = batch_of([3, 9, 3, 0])
    candidates = propose(mixture, batch, look, torch.Generator().manual_seed(0))
    rows = torch.cat([block.row for block in candidates.blocks]).tolist() + batch.item_P.tolist()
    counts = torch.cat([block.log_count for block in candidates.blocks] + [candidates.positive_log_count_P]).tolist()
    for row, log_count in zip(rows, counts, strict=True):
        presence = 1 - (1 - COUNT[row] / sum(COUNT)) ** 15
        assert math.exp(log_count) == pytest.approx(presence + 24 / 12, rel=1e-5)


def test_an_item_that_no_part_draws_has_count_zero_and_one_that_some_part_draws_a_finite_one(
    facts: Facts, look: RunLook
) -> None:
    never = torch.tensor([2])  # no training event
    neither, one = InBatch() + Popularity(5), InBatch() + Popularity(5) + Uniform(6)
    for mixture in (neither, one):
        mixture.setup(facts)
    assert neither.log_count(never, batch_of([0]), look).tolist() == [-math.inf]
    assert one.log_count(never, batch_of([0]), look).tolist() == pytest.approx([math.log(6 / 12)])


def test_blocks_keep_their_source(facts: Facts, look: RunLook) -> None:
    mixture = Mixture(parts=(Uniform(3), InBatch(), Remembering(row=4), Uniform(2, per_query=True)))
    mixture.setup(facts)
    blocks = propose(mixture, batch_of([1, 1, 5]), look, torch.Generator()).blocks
    assert [block.source for block in blocks] == [0, 1, 2, 2, 3]
    assert [block.of_batch for block in blocks] == [False, True, False, False, False]
    assert [tuple(block.row.shape) for block in blocks] == [(3,), (2,), (1,), (1,), (3, 2)]


def test_parts_observe_their_own_blocks_only_and_losses_add(facts: Facts, look: RunLook) -> None:
    first, second = Remembering(row=2, loss=0.5), Remembering(row=7, loss=0.25)
    mixture = first + InBatch() + second
    mixture.setup(facts)
    blocks = mixture.draw(batch_of([0, 2, 7]), look, torch.Generator())
    loss = mixture.observe(blocks, None, look)  # type: ignore[arg-type]
    assert float(loss) == 0.75
    assert first.seen_M.nonzero()[:, 0].tolist() == [2, 3]
    assert second.seen_M.nonzero()[:, 0].tolist() == [7, 8]
    assert (Uniform(2) + Uniform(3)).observe((), None, look) is None  # type: ignore[arg-type]


def test_adding_dissolves_mixtures() -> None:
    a, b, c, d = Uniform(1), Uniform(2), InBatch(), Popularity(3)
    assert (a + b + c).parts == (a, b, c)
    assert (a + (b + c)).parts == (a, b, c)
    assert ((a + b) + (c + d)).parts == (a, b, c, d)
    assert Mixture(parts=(Mixture(parts=(a, Mixture(parts=(b,)))), c)).parts == (a, b, c)


def test_parts_are_the_registered_modules_also_in_a_copy(facts: Facts) -> None:
    recipe = Remembering(row=1) + Uniform(2)
    assert recipe.state_dict() == {}
    run = copy.deepcopy(recipe)
    run.setup(facts)
    assert set(run.state_dict()) == {"held.0.seen_M"}
    assert recipe.state_dict() == {}
    assert list(run.held) == list(run.parts)
    assert run.parts[0] is not recipe.parts[0]
    run.parts = (InBatch(), recipe)
    assert list(run.held) == list(run.parts) == [run.parts[0], *recipe.parts]


def test_a_mixture_needs_a_part() -> None:
    with pytest.raises(ConfigError, match="parts is empty"):
        Mixture(parts=())


def test_the_density_is_that_of_the_weakest_part() -> None:
    class Relative(Uniform):
        density = "relative"

    class Unknown(Uniform):
        density = "none"

    assert (Uniform(1) + Popularity(1)).density == "exact"
    assert (Uniform(1) + InBatch()).density == "approximate"
    assert Mixture(parts=(Relative(1),)).density == "relative"
    assert (Relative(1) + Uniform(1)).density == "none"  # an unknown factor can't be added to a count
    assert (Unknown(1) + Uniform(1)).density == "none"
