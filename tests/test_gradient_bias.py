"""How far is the mean gradient of sampled softmax from that of full softmax? (Zipf catalogue, frozen logits)

M = 2000 items of Zipf-1 popularity, logits N(0, 2^2), batches of B = 128 and B' = 128 uniform negatives. The error is
the relative L1 distance between the mean sampled gradient with respect to the logits and that of the full softmax, for
positives whose logit is raised by 0, 5 and 8 (a trained model). Only the first estimator is this package's; the others
are what is found elsewhere, written out naively.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from twotower.frequency import ExactFrequency
from twotower.losses import SampledSoftmax
from twotower.negatives import InBatch, Uniform, propose
from twotower.part import Facts
from twotower.records import Batch, Ragged
from twotower.scoring import encode

N_ITEMS, BATCH, UNIFORM, TRIALS, QUERIES = 2000, 128, 128, 1500, 12
BOOSTS = (0.0, 5.0, 8.0)


class Look:
    """Exact presence; no vectors are asked for."""

    query_BD = torch.empty(0)

    def __init__(self, frequency: ExactFrequency) -> None:
        self.log_presence = frequency.log_presence

    def items(self, row: Tensor) -> Tensor:
        raise AssertionError("no sampler here needs vectors")


@pytest.fixture(scope="module")
def errors() -> dict[str, Tensor]:
    """[boost, query] error of each estimator."""
    g = torch.Generator().manual_seed(7)
    popularity = 1.0 / torch.arange(1, N_ITEMS + 1, dtype=torch.float64)
    q = popularity / popularity.sum()
    logits = 2 * torch.randn(QUERIES, N_ITEMS, generator=g, dtype=torch.float64)
    positive = torch.searchsorted(q.cumsum(0), torch.rand(QUERIES, generator=g, dtype=torch.float64))
    boosted = logits.repeat(len(BOOSTS), 1)
    item = positive.repeat(len(BOOSTS))
    for i, boost in enumerate(BOOSTS):
        boosted[i * QUERIES + torch.arange(QUERIES), positive] += boost
    full = boosted.softmax(1)
    full[torch.arange(len(item)), item] -= 1
    totals = {
        name: torch.zeros_like(boosted) for name in ("mixture", "per source", "unigram everywhere", "uncorrected")
    }
    facts = Facts(
        n_items=N_ITEMS,
        n_queries=1,
        item_count_M=(q * 1e9).round().long(),
        batch_size=BATCH,
        batch_of="pairs",
    )
    frequency, sampler = ExactFrequency(), InBatch() + Uniform(UNIFORM)
    for part in (frequency, sampler):
        part.setup(facts)
    for _ in range(TRIALS):
        others = torch.searchsorted(q.cumsum(0), torch.rand(BATCH - 1, generator=g, dtype=torch.float64)).clamp(
            max=N_ITEMS - 1
        )
        uniform = _ours(totals["mixture"], boosted, item, others, sampler, Look(frequency), g)
        _baselines(totals, boosted, item, others, uniform, q)
    distance = {name: (t / TRIALS - full).abs().sum(1) / full.abs().sum(1) for name, t in totals.items()}
    return {name: d.view(len(BOOSTS), QUERIES) for name, d in distance.items()}


def _ours(
    total: Tensor, logits: Tensor, item: Tensor, others: Tensor, sampler, look: Look, g: torch.Generator
) -> Tensor:
    """One query a row: its vector is a unit vector, an item's vector holds its logits, so a gradient of items is one of
    logits."""
    rows = torch.arange(len(item))
    drawn = propose(sampler, _batch(others, torch.zeros_like(others)), look, g)
    item_MD = logits.T.contiguous().requires_grad_()
    batch = Batch(
        query={},
        query_B=rows,
        item_P=item,
        of_P=rows,
        weight_P=torch.ones(len(item), dtype=torch.float64),
        known=Ragged(offset=torch.arange(len(item) + 1), value=item),
    )
    query_BD = torch.eye(len(item), dtype=torch.float64)
    encoded = encode(query_BD, lambda row: item_MD.index_select(0, row), batch, drawn)
    loss, _ = SampledSoftmax(temperature=1.0)(encoded)
    (gradient,) = torch.autograd.grad(loss, item_MD)
    total += gradient.T * len(item)
    return next(block.row for block in drawn.blocks if not block.of_batch)


def _batch(item: Tensor, query: Tensor) -> Batch:
    n = len(item)
    known = Ragged(offset=torch.arange(n + 1), value=item)
    return Batch(query={}, query_B=query, item_P=item, of_P=torch.arange(n), weight_P=torch.ones(n), known=known)


def _baselines(
    totals: dict[str, Tensor], logits: Tensor, item: Tensor, others: Tensor, uniform: Tensor, q: Tensor
) -> None:
    """Plain softmax over repeated columns with other people's counts."""
    column = torch.cat([others, uniform])
    unigram = (BATCH - 1) * q
    flat = torch.full_like(q, UNIFORM / N_ITEMS)
    per_source = torch.cat([unigram[others], flat[uniform]])
    counts = {
        "per source": per_source,
        "unigram everywhere": (BATCH + UNIFORM - 1) * q[column],
        "uncorrected": torch.ones(len(column), dtype=torch.float64),
    }
    for name, count in counts.items():
        x = logits[:, column] - count.log()
        x = x.masked_fill(column[None] == item[:, None], -math.inf)
        positive = logits[torch.arange(len(item)), item]
        p = torch.cat([positive[:, None], x], 1).softmax(1)
        totals[name].index_add_(1, column, p[:, 1:])
        totals[name][torch.arange(len(item)), item] += p[:, 0] - 1


@pytest.mark.parametrize("boost", range(len(BOOSTS)))
def test_mixture_with_uncorrected_positive_is_nearly_unbiased(errors: dict[str, Tensor], boost: int) -> None:
    """Published reference values for the same setting: .080, .079, .072."""
    assert errors["mixture"][boost].mean() < 0.10


@pytest.mark.parametrize("boost", range(len(BOOSTS)))
@pytest.mark.parametrize("other", ["per source", "unigram everywhere", "uncorrected"])
def test_mixture_is_significantly_closer_than_others(errors: dict[str, Tensor], boost: int, other: str) -> None:
    """By more than two standard errors of the paired difference over the queries."""
    difference = errors[other][boost] - errors["mixture"][boost]
    assert difference.mean() > 2 * difference.std() / math.sqrt(QUERIES)
