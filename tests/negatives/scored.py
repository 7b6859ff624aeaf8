"""A model whose scores are given, and laws that are enumerated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from scipy.stats import chisquare, kstest
from torch import Tensor

from twotower.records import Batch, Ragged

from .conftest import RunLook, batch_of
from .laws import M


def see(look: RunLook, score_BM: Tensor) -> RunLook:
    """A look at a model by which query b gives item i the score ``score_BM[b, i]``, whatever M."""
    look.query_BD, look.item_MD = score_BM, torch.eye(score_BM.shape[1])
    return look


def random_scores(n: int, seed: int = 0) -> Tensor:
    """[n, M]"""
    return torch.randn(n, M, generator=torch.Generator().manual_seed(seed))


def open_batch(n: int) -> Batch:
    """n queries whose positive is item 0, and who are known to like nothing: all items are open."""
    nothing = Ragged(offset=torch.zeros(n + 1, dtype=torch.int64), value=torch.zeros(0, dtype=torch.int64))
    return replace(batch_of([0] * n), known=nothing)


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fits(count: Callable[[int], Tensor], law: Tensor) -> bool:
    """Whether cells are hit by the law: chi-square of the counts of 20 seeds, whose p-values are uniform. Cells the law
    leaves out must be empty."""
    p_values = []
    for seed in range(20):
        found = count(seed).double()
        if bool(found[law == 0].any()):
            return False
        expected = law.double() / law.sum() * found.sum()
        assert float(expected[law > 0].min()) > 5
        p_values.append(float(chisquare(found[law > 0].numpy(), expected[law > 0].numpy()).pvalue))
    return bool(kstest(p_values, "uniform").pvalue > 0.01)
