"""What every sampler promises."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch

from twotower.config import Run, dump_run, parse_run
from twotower.data.splits import RandomSplit
from twotower.losses import BPR
from twotower.negatives import Negatives, propose
from twotower.part import Facts
from twotower.schema import Categorical, Id, Interactions, Schema

from .conftest import RunLook, batch_of
from .examples import EXAMPLES
from .laws import M, ready

SCHEMA = Schema(
    interactions=Interactions(query="user", item="item", taken="taken"),
    query={"id": Id(column="user"), "country": Categorical(column="country")},
    item={"id": Id(column="item")},
)


def test_every_sampler_is_here() -> None:
    assert {type(sampler) for sampler in EXAMPLES.values()} == set(get_args(Negatives))


@pytest.fixture
def seeing(look: RunLook) -> RunLook:
    """A model of random vectors."""
    rng = torch.Generator().manual_seed(0)
    look.query_BD, look.item_MD = torch.randn(4, 3, generator=rng), torch.randn(M, 3, generator=rng)
    return look


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_contract_of_a_sampler(name: str, facts: Facts, seeing: RunLook) -> None:
    """Same generator, same rows; blocks counted as any rows are; rows of any shape; no state before it is set up."""
    recipe = EXAMPLES[name]
    assert recipe.state_dict() == {}
    sampler = ready(copy.deepcopy(recipe), facts)
    sampler.train()
    batch = batch_of([3, 0, 3, 11])
    twin = copy.deepcopy(sampler)
    first, again = (propose(s, batch, seeing, torch.Generator().manual_seed(1)) for s in (sampler, twin))
    for block, same in zip(first.blocks, again.blocks, strict=True):
        assert torch.equal(block.row, same.row)
        assert torch.equal(block.log_weight, same.log_weight)
        assert block.row.dtype == torch.int64
        assert block.row.shape == block.log_weight.shape
        assert block.row.dim() == 1 or len(block.row) == 4
        assert bool(((block.row >= -1) & (block.row < M)).all())
        if block.mix is None and block.vector is None:
            assert bool((block.log_weight[block.row < 0] == -torch.inf).all())
        counted = block.log_count[block.row >= 0] if block.row.dim() == 2 else block.log_count[..., block.row >= 0]
        assert bool((counted.isnan() if sampler.density == "none" else counted.isfinite()).all())
    for name_, value in sampler.state_dict().items():
        assert torch.equal(value.nan_to_num(), twin.state_dict()[name_].nan_to_num())
    if sampler.density == "none":
        return
    row = torch.arange(M)
    log_count = sampler.log_count(row, batch, seeing)
    assert log_count.shape == ((4, M) if sampler.per_query_law else (M,))
    assert not bool(log_count.isnan().any())
    assert log_count.dtype == torch.float32
    own = sampler.log_count(row.expand(4, M), batch, seeing)
    torch.testing.assert_close(own, log_count.expand(4, M), rtol=1e-6, atol=1e-6)  # a last bit depends on the shape


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_sampler_is_written_to_toml_and_read_back(name: str) -> None:
    run = Run(schema=SCHEMA, split=RandomSplit(), negatives=EXAMPLES[name], loss=BPR())
    again = parse_run(dump_run(run))
    assert repr(again.negatives) == repr(run.negatives)
    assert dump_run(again) == dump_run(run)
