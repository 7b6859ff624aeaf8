"""A truth to be found: even users like even items and odd users odd ones, and each has one such item withheld."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.stores import make_store
from twotower.config import Evaluation, Run, Training
from twotower.data.splits import GivenSplit
from twotower.data.store import Store
from twotower.losses import Loss, SampledSoftmax
from twotower.negatives import InBatch, Uniform
from twotower.optimisers import RowwiseAdagrad
from twotower.towers import TwoTower

SIZE = 30
EVENTS = [(user, item) for user in range(SIZE) for item in range(SIZE) if user % 2 == item % 2]
PART = np.array([1 if user == item else 0 for user, item in EVENTS])
"""User i has item i withheld: the only item of its parity it has not met, among 15 of the other one."""


def checkerboard(**kwargs: Any) -> Store:
    return make_store(EVENTS, **kwargs)


def run_of(
    store: Store,
    *,
    loss: Loss | None = None,
    towers: TwoTower | None = None,
    parts: dict[str, Any] | None = None,
    **training: Any,
) -> Run:
    """A small run; ``training`` replaces its settings."""
    settings: dict[str, Any] = {
        "batch_size": 64,
        "epochs": 20,
        "metric": "recall@1",
        "tables": RowwiseAdagrad(lr=0.2),
        "validate_every": 5,
        **training,
    }
    return Run(
        schema=store.schema,
        split=GivenSplit(),
        towers=towers or TwoTower(dim=4),
        negatives=InBatch() + Uniform(16),
        loss=loss or SampledSoftmax(temperature=0.2),
        training=Training(**settings),
        evaluation=Evaluation(k=(1, 10)),
        **(parts or {}),
    )
