"""Holding draws against the law that a sampler tells, and the samplers that the tests of all go through."""

from __future__ import annotations

import torch
from scipy.stats import chi2, kstest
from torch import Tensor

from twotower.negatives import Sampler, propose
from twotower.part import Facts
from twotower.records import Candidates

from .conftest import BATCH_SIZE, COUNT, RunLook, batch_of

M = len(COUNT)
TOTAL = sum(COUNT)


def ready(sampler: Sampler, facts: Facts) -> Sampler:
    sampler.setup(facts)
    return sampler


def offered_to_first(candidates: Candidates) -> Tensor:
    """[M] summed weight of each item among the candidates of the batch's first query."""
    offered = torch.zeros(M, dtype=torch.float64)
    for block in candidates.blocks:
        row, log_weight = (x if x.dim() == 1 else x[0] for x in (block.row, block.log_weight))
        there = row >= 0
        offered.index_add_(0, row[there], log_weight[there].double().exp())
    return offered


def independent(p_M: Tensor, n: int) -> Tensor:
    """[M, M] covariance of how often each item comes in n independent draws by the law p."""
    p_M = p_M.double()
    return n * (p_M.diag() - p_M[:, None] * p_M)


def p_value(sampler: Sampler, look: RunLook, trials: int, seed: int, covariance_MM: Tensor | None) -> float:
    """Chi-square of what the first query is offered in many batches, each from a reshuffle, against exp(log_count).

    Its own positive is item 0, which is no negative of its own and left out; the other rows are drawn. The statistic is
    Pearson's with the covariance of the law in place of that of one multinomial: d' C^-1 d / trials. Where the
    covariance of the law is not known (None) it is that of the trials.
    """
    rng = torch.Generator().manual_seed(seed)
    event = torch.repeat_interleave(torch.arange(M), torch.tensor(COUNT))
    batch, own = batch_of([0]), torch.zeros(1, dtype=torch.int64)
    found = []
    for _ in range(trials):
        others = event[torch.randperm(TOTAL, generator=rng)[: BATCH_SIZE - 1]]
        batch = batch_of(torch.cat([own, others]))
        found.append(offered_to_first(propose(sampler, batch, look, rng)))
    offered_TM = torch.stack(found)
    count = sampler.log_count(torch.arange(M), batch, look).double().exp()
    expected = trials * (count if count.dim() == 1 else count[0])
    assert not offered_TM[:, expected == 0].any()
    kept = (expected > 0).nonzero()[:, 0]
    kept = kept[kept > 0]
    assert float(expected[kept].min()) > 5
    difference = (offered_TM.sum(0) - expected)[kept]
    covariance = offered_TM.T.cov() if covariance_MM is None else covariance_MM
    inverse = torch.linalg.pinv(trials * covariance[kept][:, kept], hermitian=True, rtol=1e-9)
    rank = int(torch.linalg.matrix_rank(covariance[kept][:, kept], hermitian=True, rtol=1e-9))
    return float(chi2.sf(float(difference @ inverse @ difference), rank))


def check_law(sampler: Sampler, look: RunLook, covariance_MM: Tensor | None, *, trials: int = 150) -> None:
    """Draws follow the counts: over 20 seeds the p-values are uniform."""
    p_values = [p_value(sampler, look, trials, seed, covariance_MM) for seed in range(20)]
    assert kstest(p_values, "uniform").pvalue > 0.01, p_values
