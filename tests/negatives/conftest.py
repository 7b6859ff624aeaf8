"""A small catalogue, its batches, and a look at a run that has no model."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from twotower.frequency import ExactFrequency, Frequency
from twotower.part import Facts
from twotower.records import Batch, Ragged

COUNT = [500, 60, 0, 900, 240, 30, 420, 150, 10, 690, 0, 1000]
"""Training events of each item: 4000 of 12 items, two of which have none."""

BATCH_SIZE = 16


@dataclass
class RunLook:
    """Only the frequencies: samplers that ask for vectors would fail here."""

    frequency: Frequency

    @property
    def query_BD(self) -> Tensor:
        raise AssertionError("no sampler here needs query vectors")

    def items(self, row: Tensor) -> Tensor:
        raise AssertionError("no sampler here needs item vectors")

    def log_presence(self, row: Tensor) -> Tensor:
        return self.frequency.log_presence(row)


@pytest.fixture
def facts() -> Facts:
    count_M = torch.tensor(COUNT)
    return Facts(n_items=12, n_queries=100, item_count_M=count_M, batch_size=BATCH_SIZE, batch_of="pairs")


@pytest.fixture
def look(facts: Facts) -> RunLook:
    frequency = ExactFrequency()
    frequency.setup(facts)
    return RunLook(frequency)


def batch_of(item: list[int] | Tensor) -> Batch:
    """A batch of pairs with these positives and queries without features."""
    item_P = torch.as_tensor(item)
    n = len(item_P)
    return Batch(
        query={},
        query_B=torch.arange(n),
        item_P=item_P,
        of_P=torch.arange(n),
        weight_P=torch.ones(n),
        known=Ragged(offset=torch.arange(n + 1), value=item_P),
    )


def batch_of_queries(items: list[list[int]]) -> Batch:
    """A batch of queries without features, with these positives each."""
    length = torch.tensor([len(own) for own in items])
    item_P = torch.tensor([item for own in items for item in own])
    offset = torch.cat([torch.zeros(1, dtype=torch.int64), length.cumsum(0)])
    return Batch(
        query={},
        query_B=torch.arange(len(items)),
        item_P=item_P,
        of_P=torch.repeat_interleave(torch.arange(len(items)), length),
        weight_P=torch.ones(len(item_P)),
        known=Ragged(offset=offset, value=item_P),
    )
