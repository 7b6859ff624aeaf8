"""A small catalogue, its batches, and a look at a run that has no model."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from twotower.frequency import ExactFrequency, Frequency
from twotower.part import Events, Facts
from twotower.records import Batch, Features, Ragged

COUNT = [500, 60, 0, 900, 240, 30, 420, 150, 10, 690, 0, 1000]
"""Training events of each item: 4000 of 12 items, two of which have none."""

BATCH_SIZE = 16

N_QUERIES, TAKEN = 100, 6
"""Queries, and distinct items that each has in training."""


@dataclass
class RunLook:
    """The frequencies of a run, and a model whose vectors are given."""

    frequency: Frequency
    query_BD: Tensor = field(default_factory=lambda: torch.zeros(0, 3))
    item_MD: Tensor = field(default_factory=lambda: torch.zeros(len(COUNT), 3))
    step: int = 1

    def items(self, row: Tensor) -> Tensor:
        return self.item_MD[row]

    def layers(self, row: Tensor) -> Tensor:
        return self.item_MD[row][..., None, :]

    def log_presence(self, row: Tensor) -> Tensor:
        return self.frequency.log_presence(row)


@pytest.fixture
def facts() -> Facts:
    count_M = torch.tensor(COUNT)
    return Facts(
        n_items=12,
        n_queries=N_QUERIES,
        item_count_M=count_M,
        batch_size=BATCH_SIZE,
        batch_of="pairs",
        query_count_Q=torch.full((N_QUERIES,), TAKEN),
        steps_per_epoch=10,
        width=3,
        pairs=lists_of(0, 6),
        shown=lists_of(6, 9),
        events=Events(item_E=torch.repeat_interleave(torch.arange(12), count_M), features=features_of),
    )


def features_of(event: Tensor) -> Features:
    """A country that mostly goes with the item, of some events none; and a history of up to two items."""
    item_E = torch.repeat_interleave(torch.arange(12), torch.tensor(COUNT))
    country = torch.where(event % 4 > 0, item_E[event] % 3, event // 4 % 4 - 1)
    length = event % 3
    offset = torch.cat([torch.zeros(1, dtype=torch.int64), length.cumsum(0)])
    return {"country": country, "age": event.float(), "history": Ragged(offset=offset, value=_items_before(event))}


def _items_before(event: Tensor) -> Tensor:
    """Of the events end to end, the last only depends on the event: 3 to 7."""
    before = torch.stack([event % 12, event % 5 + 3], 1)
    return before[torch.arange(2) >= 2 - (event % 3)[:, None]]


def lists_of(start: int, stop: int) -> Ragged:
    """Of query q: the items (q + start) to (q + stop - 1) around the catalogue, so nobody took what was only shown."""
    row_QK = ((torch.arange(N_QUERIES)[:, None] + torch.arange(start, stop)) % len(COUNT)).sort(1).values
    offset = torch.arange(N_QUERIES + 1) * (stop - start)
    return Ragged(offset=offset, value=row_QK.flatten(), weight=torch.ones(row_QK.numel()))


@pytest.fixture
def look(facts: Facts) -> RunLook:
    frequency = ExactFrequency()
    frequency.setup(facts)
    return RunLook(frequency)


def batch_of(item: list[int] | Tensor) -> Batch:
    """A batch of pairs with these positives and queries of countries 0, 1, 2, 0, ..."""
    item_P = torch.as_tensor(item)
    n = len(item_P)
    return Batch(
        query={"country": torch.arange(n) % 3},
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
