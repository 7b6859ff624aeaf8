"""What samplers say they take up, against what they draw and keep."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from twotower.negatives import DNS, Catalogue, InBatch, Queue, Room, Sampler, Sizes, SoftmaxDNS, Uniform, propose
from twotower.part import Facts
from twotower.scoring import encode
from twotower.tables import Table

from .conftest import BATCH_SIZE, COUNT, N_QUERIES, RunLook, batch_of
from .examples import EXAMPLES
from .laws import M, ready

SIZES = Sizes(
    n_items=12,
    n_queries=N_QUERIES,
    n_events=sum(COUNT),
    n_shown=3 * N_QUERIES,
    batch_items=12,
    most_batch_items=12,
    width=3,
)
"""Those of the facts that samplers are set up by: each query was shown three items."""

DEPENDS_ON_THE_DATA = {"Conditional", "Conditional in a mixture", "MCNS"}
"""They keep lists whose lengths only the data tell."""

BATCH = [3, 0, 3, 11, 5, 7, 7, 9, 1, 6, 0, 11, 3, 5, 4, 8]


@pytest.fixture
def seeing(look: RunLook) -> RunLook:
    rng = torch.Generator().manual_seed(0)
    look.query_BD, look.item_MD = torch.randn(BATCH_SIZE, 3, generator=rng), torch.randn(M, 3, generator=rng)
    return look


def drawn_by(sampler: Sampler, look: RunLook, steps: int) -> Room:
    """The most candidates of one of a few steps, each observed."""
    found = Room()
    for step in range(1, steps + 1):
        look.step, batch = step, batch_of(BATCH)
        candidates = propose(sampler, batch, look, torch.Generator().manual_seed(step))
        shared = [block for block in candidates.blocks if block.row.dim() == 1]
        found = Room(
            shared=max(found.shared, sum(len(block.row) for block in shared)),
            of_batch=found.of_batch or any(block.of_batch for block in shared),
            stale=max(found.stale, sum(len(block.row) for block in shared if block.vector is not None)),
            own=max(found.own, sum(block.row.shape[1] for block in candidates.blocks if block.row.dim() == 2)),
        )
        encoded = encode(look.query_BD, look.items, batch, candidates, layers=look.layers)
        sampler.observe(candidates.blocks, encoded, look)
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_candidates_are_at_most_those_told(name: str, facts: Facts, seeing: RunLook) -> None:
    """And exactly so many, but for items that are not in every batch."""
    sampler, told = ready(copy.deepcopy(EXAMPLES[name]), facts), EXAMPLES[name].room(SIZES)
    found = drawn_by(sampler, seeing, steps=5)
    assert found.of_batch == told.of_batch
    assert found.stale <= told.stale
    assert found.shared <= told.shared
    assert found.own <= told.own
    if name in {"AdaptiveImportance", "SoftmaxDNS"} or told.of_batch or told.stale:
        return
    assert (found.shared, found.own) == (told.shared, told.own)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_kept_is_at_most_what_is_told(name: str, facts: Facts) -> None:
    sampler, told = ready(copy.deepcopy(EXAMPLES[name]), facts), EXAMPLES[name].room(SIZES)
    tables = [module for module in sampler.modules() if isinstance(module, Table)]
    assert sorted(tuple(table.weight.shape) for table in tables) == sorted(told.tables)
    of_tables = {id(tensor) for table in tables for tensor in table.buffers()}
    kept = sum(x.numel() * x.element_size() for x in sampler.buffers() if id(x) not in of_tables)
    assert kept <= told.kept
    if name not in DEPENDS_ON_THE_DATA:
        assert told.kept <= 1.2 * kept + 100


def test_a_pool_of_everything_is_offered_to_each_query() -> None:
    of = InBatch() + Uniform(5) + Uniform(4, per_query=True)
    assert SoftmaxDNS(of=of).room(SIZES) == Room(own=12 + 5 + 4)
    assert DNS(n=2, of=of).room(SIZES) == Room(own=2)
    assert (InBatch() + Queue(batches=2)).room(SIZES) == Room(shared=36, of_batch=True, stale=24, kept=24 * 20 + 8)
    assert Catalogue().room(replace(SIZES, n_items=70)) == Room(shared=70)
