"""What is the same under two names.

self-normalised importance sampling = softmax without its positive     test_importance (1e-12)
refined logQ = softmax with negatives corrected                        losses/test_properties
calibration = a shift of the logit = the shift of NCE                  evaluation/test_calibration (1e-12)
SGNS corrected = NCE; their optima differ by log(K q)                  here
uncorrected in-batch = uncorrected unigram negatives: PMI              here
others' clicks = what the batch offers a row, draw by draw             test_rejection
two buckets = popularity above the threshold; 0: all, inf: uniform     test_static
thinning of positives, impressions or all events: law f k              here
DNS(1, N) = DNS; DNS(N, N) = its pool                                  test_mined
DNS = the coldest policy of the model itself over the pool             here
sampling-importance-resampling of a large pool = softmax policy        test_mined
Gibbs = Metropolis-Hastings that always accepts                        here, test_chains
MixGCF without mixing and graph = DNS                                  test_mixgcf
SRNS without variance, fresh items and with a whole memory = DNS       test_srns
BPR over K negatives is no softmax; log(1 + sum e^(s - p)) is          here
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from twotower.data.thinning import FrequentThinning, UniformThinning, keep_probability
from twotower.losses import BPR, NCE, SGNS, RowLoss, SampledSoftmax
from twotower.negatives import DNS, SIR, Gibbs, Impressions, Popularity, Uniform
from twotower.part import Facts
from twotower.records import Batch, Block, Candidates, Ragged
from twotower.scoring import encode

from .conftest import COUNT, RunLook, batch_of
from .laws import M, ready
from .scored import drawn, open_batch, random_scores, see


def slope(loss: RowLoss, score_M: Tensor, batch: Batch, block: Block, log_count_P: Tensor) -> Tensor:
    """[M] gradient of the loss by scores that all queries share: items are the axes."""
    score_1M = score_M[None].detach().requires_grad_()
    candidates = Candidates(blocks=(block,), positive_log_count_P=log_count_P)
    axes = torch.eye(len(score_M), dtype=torch.float64)
    encoded = encode(score_1M.expand(len(batch.query_B), -1), lambda row: axes[row], batch, candidates)
    (found,) = torch.autograd.grad(loss(encoded)[0], score_1M)
    return found[0]


P = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
"""Of each positive, given the query."""
Q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
"""Of each negative."""


def one_negative_each() -> tuple[Batch, Block]:
    """Every pair (positive, one negative), weighted by how likely it is: p_y q_j."""
    item_P, negative_P = (x.flatten() for x in torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij"))
    batch = replace(batch_of(item_P), weight_P=P[item_P] * Q[negative_P])
    return batch, Block.of(negative_P[:, None]).with_count(Q.log()[negative_P][:, None])


def test_uncorrected_unigram_negatives_learn_pmi() -> None:
    """log p(y | u) / q(y), where correcting both sides learns log p(y | u): in-batch negatives are unigram ones."""
    batch, block = one_negative_each()
    count_P = Q.log()[batch.item_P]
    none = SampledSoftmax(temperature=1.0, correction="none")
    assert slope(none, P.log() - Q.log(), batch, block, count_P).abs().max() < 1e-12
    assert slope(none, P.log(), batch, block, count_P).abs().max() > 1e-3
    both = SampledSoftmax(temperature=1.0, correction="all")
    assert slope(both, P.log(), batch, block, count_P).abs().max() < 1e-12


def test_sgns_of_shifted_scores_is_nce() -> None:
    """NCE compares sigmoid(s - log K q): the same gradient at scores a shift apart, so optima log(K q) apart."""
    batch = replace(batch_of(torch.arange(4)), weight_P=P, known=no_lists(4))
    k = 5
    log_count = (k * Q).log()
    block = Block(row=torch.arange(4), log_count=log_count, log_weight=log_count)
    score = torch.tensor([0.3, -1.0, 0.7, 0.1], dtype=torch.float64)
    nce = slope(NCE(exclude="none"), score, batch, block, log_count)
    sgns = slope(SGNS(exclude="none"), score - log_count, batch, block, log_count)
    torch.testing.assert_close(nce, sgns, rtol=0, atol=1e-14)


def no_lists(n: int) -> Ragged:
    return Ragged(offset=torch.zeros(n + 1, dtype=torch.int64), value=torch.zeros(0, dtype=torch.int64))


def test_pairs_of_k_are_a_softmax_and_bpr_of_k_is_not() -> None:
    score = torch.tensor([0.9, -0.3, 0.4, 0.2], dtype=torch.float64)
    batch = batch_of([0])
    block = Block.of(torch.tensor([[1, 2, 3]]))
    nothing = torch.full((1,), math.nan)
    leaf = score.clone().requires_grad_()
    torch.log1p((leaf[1:] - leaf[0]).exp().sum()).backward()
    softmax = slope(SampledSoftmax(temperature=1.0, correction="none"), score, batch, block, nothing)
    torch.testing.assert_close(softmax, leaf.grad)
    assert (slope(BPR(), score, batch, block, nothing) - softmax).abs().max() > 0.05
    one = Block.of(torch.tensor([[2]]))
    torch.testing.assert_close(
        slope(BPR(), score, batch, one, nothing),
        slope(SampledSoftmax(temperature=1.0, correction="none"), score, batch, one, nothing),
    )


def test_dns_is_the_coldest_policy_over_its_pool(facts: Facts, look: RunLook) -> None:
    """A generator tied to the model, over a pool, at a temperature that goes to 0."""
    pool = Uniform(6, per_query=True)
    look = see(look, random_scores(50))
    (hard,) = ready(DNS(of=pool), facts).draw(open_batch(50), look, drawn(3))
    (cold,) = ready(SIR(of=pool, temperature=1e-6), facts).draw(open_batch(50), look, drawn(3))
    assert torch.equal(hard.row, cold.row)
    (warm,) = ready(SIR(of=pool, temperature=1.0), facts).draw(open_batch(50), look, drawn(3))
    assert not torch.equal(hard.row, warm.row)


@pytest.mark.parametrize("t", [0.02, 0.1])
def test_thinning_is_one_operator(t: float, facts: Facts, look: RunLook) -> None:
    """Popularity of a thinned stream, and impressions thinned by the same rule: the law is f k either way."""
    count = torch.tensor(COUNT)
    f = count.double() / count.sum()
    law = f * keep_probability(f, t=t)
    assert torch.equal(FrequentThinning(t=t).keep_probability(count), keep_probability(f, t=t))
    law = law / law.sum()

    thinned = replace(facts, item_count_M=count * FrequentThinning(t=t).keep_probability(count))
    of_positives = ready(Popularity(1, alpha=1.0), thinned).log_count(torch.arange(M), batch_of([0]), look)
    torch.testing.assert_close(of_positives.exp().double(), law, rtol=1e-5, atol=1e-8)

    there = count > 0
    shown = Ragged(offset=torch.tensor([0, int(there.sum())]), value=there.nonzero()[:, 0], weight=count[there].float())
    of_shown = ready(Impressions(1, alpha=1.0, thin=t), replace(facts, query_count_Q=torch.ones(1), shown=shown))
    batch = replace(batch_of([0]), query_B=torch.tensor([0]))
    torch.testing.assert_close(
        of_shown.log_count(torch.arange(M), batch, look)[0].exp().double(), law, rtol=1e-5, atol=1e-8
    )

    same = replace(facts, item_count_M=count * UniformThinning(keep=0.3).keep_probability(count))
    uniform = ready(Popularity(1, alpha=1.0), same).log_count(torch.arange(M), batch_of([0]), look)
    torch.testing.assert_close(uniform.exp().double(), f, rtol=1e-5, atol=1e-8)


def test_gibbs_proposes_what_is_always_accepted(facts: Facts, look: RunLook) -> None:
    """Its kernel against that of Metropolis-Hastings that proposes by it: acceptance is 1, so both are one."""
    sampler = ready(Gibbs(1, temperature=1.0), facts)
    assert isinstance(sampler, Gibbs)
    log_target_M = torch.randn(M, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    proposal_MM = sampler.kernel(log_target_M, batch_of([0]), look)
    ratio_MM = (log_target_M.exp() * proposal_MM.T) / (log_target_M.exp()[:, None] * proposal_MM)
    moved = proposal_MM > 0
    torch.testing.assert_close(ratio_MM[moved], torch.ones_like(ratio_MM[moved]), rtol=1e-10, atol=0)
    accepted_MM = proposal_MM * ratio_MM.nan_to_num(0).clamp(max=1)
    accepted_MM += torch.diag(1 - accepted_MM.sum(1))
    torch.testing.assert_close(accepted_MM, proposal_MM, rtol=0, atol=1e-10)
