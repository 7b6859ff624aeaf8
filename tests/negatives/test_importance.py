"""Estimates of expectations, and the sampler that learns a proposal and draws until it is enough."""

from __future__ import annotations

import copy
import itertools
import math
import random

import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor

from twotower.errors import ConfigError
from twotower.losses import BilateralSoftmax, SampledSoftmax
from twotower.negatives import (
    AdaptiveImportance,
    Catalogue,
    Sampler,
    effective_sample_size,
    importance_sampling,
    monte_carlo,
    propose,
    self_normalised,
)
from twotower.part import Facts
from twotower.records import Batch, Block, Candidates, Encoded, Ragged
from twotower.scoring import encode

from .conftest import COUNT, RunLook, batch_of
from .laws import M, ready

F64 = torch.float64
LOGIT = torch.tensor([1.2, -0.7, 0.4, 2.0, -1.5], dtype=F64)
VALUE = torch.tensor([3.0, -1.0, 0.5, 2.0, 7.0], dtype=F64)
Q = torch.tensor([0.3, 0.1, 0.2, 0.25, 0.15], dtype=F64)
P = LOGIT.exp() / LOGIT.exp().sum()
EXACT = float((P * VALUE).sum())


def drawn(law: Tensor, shape: tuple[int, ...], seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.multinomial(law, math.prod(shape), replacement=True, generator=rng).view(shape)


def estimates(kind: str, shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    if kind == "Monte Carlo":
        return monte_carlo(VALUE[drawn(P, shape, seed)])
    at = drawn(Q, shape, seed)
    if kind == "importance sampling":
        return importance_sampling(VALUE[at], P.log()[at], Q.log()[at])
    return self_normalised(VALUE[at], LOGIT[at] - Q.log()[at])


KINDS = ["Monte Carlo", "importance sampling", "self-normalised"]


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_cover_the_exact_sum(kind: str) -> None:
    """95% of 4000 intervals of 1.96 standard errors, give or take 4 standard deviations of the share."""
    mean, error = estimates(kind, (4000, 400), 0)
    covered = float(((mean - EXACT).abs() < 1.96 * error).double().mean())
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))


@pytest.mark.parametrize("kind", KINDS)
def test_errors_fall_as_one_over_the_root_of_the_draws(kind: str) -> None:
    sizes = [50, 200, 800]
    rms = [float((estimates(kind, (3000, n), n)[0] - EXACT).square().mean().sqrt()) for n in sizes]
    for before, after in itertools.pairwise(rms):
        assert math.log(after / before) / math.log(4) == pytest.approx(-0.5, abs=0.04)


def test_estimates_by_hand() -> None:
    mean, error = monte_carlo(torch.tensor([1.0, 2.0, 6.0]))
    assert float(mean) == 3.0
    assert float(error) == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    assert math.isnan(float(monte_carlo(torch.tensor([1.0])).standard_error))
    mean, error = self_normalised(torch.tensor([1.0, 4.0]), torch.tensor([0.0, math.log(2)]))
    assert float(mean) == pytest.approx(3.0)
    assert float(error) == pytest.approx(math.sqrt(((1 / 3) * -2.0) ** 2 + ((2 / 3) * 1.0) ** 2))


def test_importance_sampling_is_unbiased_by_enumeration() -> None:
    """The mean over all samples of two draws, each with its probability."""
    mean = sum(
        float(Q[i] * Q[j] * importance_sampling(VALUE[[i, j]], P.log()[[i, j]], Q.log()[[i, j]]).mean)
        for i in range(5)
        for j in range(5)
    )
    assert mean == pytest.approx(EXACT, abs=1e-12)


def test_the_self_normalised_bias_falls_as_one_over_the_draws() -> None:
    """Exactly, over all 3^K samples of K draws of three items."""
    p, q, value = P[:3] / P[:3].sum(), Q[:3] / Q[:3].sum(), VALUE[:3]
    bias = {}
    for n in (2, 4, 8):
        sample = torch.tensor(list(itertools.product(range(3), repeat=n)))
        mean, _ = self_normalised(value[sample], (p / q).log()[sample])
        bias[n] = abs(float((q[sample].prod(1) * mean).sum() - (p * value).sum()))
    assert bias[4] / bias[2] == pytest.approx(0.5, abs=0.1)
    assert bias[8] / bias[4] == pytest.approx(0.5, abs=0.05)


def test_the_self_normalised_gradient_is_the_softmax_over_the_sample() -> None:
    """Three ways: r / sum r by hand, the gradient of log sum e^{s - log q}, and that of the corrected loss."""
    sample = torch.tensor([3, 0, 0, 2, 4, 3, 3])
    r = [math.exp(LOGIT[i]) / float(Q[i]) for i in sample.tolist()]
    share = torch.zeros(6, dtype=F64)
    for i, weight in zip(sample.tolist(), r, strict=True):
        share[i] += weight / sum(r)
    one_hot = torch.eye(6, dtype=F64)[:, sample]
    estimate = self_normalised(one_hot, LOGIT[sample] - Q.log()[sample]).mean
    assert float((estimate - share).abs().max()) < 1e-12

    logit = LOGIT.clone().requires_grad_()
    (logit[sample] - Q.log()[sample]).logsumexp(0).backward()
    assert float((logit.grad - share[:5]).abs().max()) < 1e-12

    item_MD = torch.cat([LOGIT, torch.tensor([0.3], dtype=F64)])[:, None].requires_grad_()  # item 5 is the positive
    batch = batch_of([5])
    batch = Batch(**{**{name: getattr(batch, name) for name in Batch.__slots__}, "weight_P": torch.ones(1, dtype=F64)})
    log_count = (len(sample) * Q).log()[sample]
    block = Block.of(sample[None]).with_count(log_count[None])
    candidates = Candidates(blocks=(block,), positive_log_count_P=torch.zeros(1, dtype=F64))
    encoded = encode(torch.ones(1, 1, dtype=F64), lambda row: item_MD[row], batch, candidates)
    loss, _ = BilateralSoftmax(temperature=1.0, exponent=1.0, correction="negatives")(encoded, tile=None)
    loss.backward()
    share[5] = -1.0
    assert float((item_MD.grad[:, 0] - share).abs().max()) < 1e-12


def test_effective_sample_size() -> None:
    log_weight = torch.tensor([1.0, 2.0, 4.0], dtype=F64).log()
    assert float(effective_sample_size(log_weight)) == pytest.approx(49 / 21)
    assert float(effective_sample_size(log_weight + 900)) == pytest.approx(49 / 21)
    assert effective_sample_size(torch.zeros(2, 7)).tolist() == pytest.approx([7.0, 7.0])
    assert float(effective_sample_size(torch.tensor([0.0, -math.inf]))) == pytest.approx(1.0)
    assert float(effective_sample_size(torch.tensor([-math.inf, -math.inf]))) == 0.0


SAMPLER = AdaptiveImportance(ess=10.0, block=4, cap=80, share=0.6, bits=2, temperature=0.5, alpha=1.0, smoothing=20.0)


def seeing(look: RunLook, n_queries: int, seed: int = 0) -> RunLook:
    rng = torch.Generator().manual_seed(seed)
    look.query_BD = torch.randn(n_queries, 3, generator=rng)
    look.item_MD = 0.4 * torch.randn(M, 3, generator=rng)
    return look


def learnt(sampler: AdaptiveImportance, seed: int = 1) -> AdaptiveImportance:
    """With histograms of some other law in each cluster."""
    rng = torch.Generator().manual_seed(seed)
    sampler.histogram_CM.copy_(torch.randn(sampler.histogram_CM.shape, generator=rng).softmax(1))
    return sampler


def naive_cluster(sampler: AdaptiveImportance, query_D: Tensor) -> int:
    at = 0
    for bit in range(sampler.bits):
        dot = sum(float(query_D[d]) * float(sampler.projection_DH[d, bit]) for d in range(len(query_D)))
        at += 2**bit if dot > 0 else 0
    return at


def naive_law(sampler: AdaptiveImportance, query_D: Tensor) -> list[float]:
    """(1 - share) popular + share histogram"""
    weight = [(count + sampler.smoothing) ** sampler.alpha for count in COUNT]
    histogram = sampler.histogram_CM[naive_cluster(sampler, query_D)].tolist()
    return [(1 - sampler.share) * w / sum(weight) + sampler.share * h for w, h in zip(weight, histogram, strict=True)]


def adaptive(facts: Facts, **changed: float) -> AdaptiveImportance:
    sampler = copy.deepcopy(SAMPLER)
    for name, value in changed.items():
        assert hasattr(sampler, name)
        setattr(sampler, name, value)
    sampler.__post_init__()
    ready(sampler, facts)
    return learnt(sampler)


def test_counts_are_those_of_the_mixture(facts: Facts, look: RunLook) -> None:
    sampler, look = adaptive(facts), seeing(look, 9)
    log_count = sampler.log_count(torch.arange(M), batch_of(range(9)), look)
    assert len({naive_cluster(sampler, query) for query in look.query_BD}) > 2
    for own, query in zip(log_count.tolist(), look.query_BD, strict=True):
        expected = [math.log(10 * q) for q in naive_law(sampler, query)]
        assert own == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_positives_are_counted_by_the_law_of_their_query(facts: Facts, look: RunLook) -> None:
    """Queries with two positives, one and three."""
    sampler, look = adaptive(facts), seeing(look, 3)
    item_P, of_P = torch.tensor([4, 1, 7, 2, 0, 9]), torch.tensor([0, 0, 1, 2, 2, 2])
    batch = Batch(
        query={},
        query_B=torch.arange(3),
        item_P=item_P,
        of_P=of_P,
        weight_P=torch.ones(6),
        known=Ragged(offset=torch.tensor([0, 2, 3, 6]), value=torch.tensor([1, 4, 7, 0, 2, 9])),
    )
    found = propose(sampler, batch, look, torch.Generator()).positive_log_count_P.tolist()
    laws = [naive_law(sampler, query) for query in look.query_BD]
    expected = [math.log(10 * laws[b][i]) for i, b in zip(item_P.tolist(), of_P.tolist(), strict=True)]
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_draws_follow_the_law(facts: Facts, look: RunLook) -> None:
    """One block is enough for anyone: 20 seeds of 12 draws for each of 1000 queries of two clusters."""
    sampler, look = adaptive(facts, ess=1.0, block=12, cap=12), seeing(look, 1)
    look.query_BD = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]).repeat(1000, 1)
    laws = [torch.tensor(naive_law(sampler, query), dtype=F64) for query in look.query_BD[:2]]
    assert float((laws[0] - laws[1]).abs().max()) > 0.05
    found = torch.zeros(20, 2, M, dtype=torch.int64)
    for seed in range(20):
        (block,) = sampler.draw(batch_of([0] * 2000), look, torch.Generator().manual_seed(seed))
        assert block.row.shape == (2000, 12)
        for own in range(2):
            found[seed, own] = block.row[own::2].flatten().bincount(minlength=M)
    for own, law in enumerate(laws):
        p_values = [p_of(n, law) for n in found[:, own]]
        assert kstest(p_values, "uniform").pvalue > 0.01, p_values
        assert p_of(found[:, own].sum(0), torch.where(torch.arange(M) % 2 == 0, law * 1.05, law)) < 1e-6


def p_of(found: Tensor, law: Tensor) -> float:
    return float(chisquare(found.numpy(), (law / law.sum() * found.sum()).numpy()).pvalue)


def test_each_query_draws_until_its_effective_sample_size_is_enough(facts: Facts, look: RunLook) -> None:
    """By the formula on its own list; a draw weighs ess / k, so all queries weigh the same."""
    sampler, look = adaptive(facts, cap=4000), seeing(look, 40)
    batch = batch_of([0] * 40)
    (block,) = sampler.draw(batch, look, torch.Generator().manual_seed(0))
    lengths = set()
    for own, log_weight, query in zip(block.row.tolist(), block.log_weight, look.query_BD, strict=True):
        items = [i for i in own if i >= 0]
        law = naive_law(sampler, query)
        r = [math.exp(float(query @ look.item_MD[i]) / 0.5) / law[i] for i in items]
        sizes = [sum(r[:k]) ** 2 / sum(x * x for x in r[:k]) for k in range(4, len(r) + 1, 4)]
        assert len(items) % 4 == 0
        assert sizes[-1] >= 10 - 1e-3
        assert all(size < 10 + 1e-3 for size in sizes[:-1])
        assert own == items + [-1] * (len(own) - len(items))
        assert float(log_weight.exp().sum()) == pytest.approx(10.0, rel=1e-5)
        assert log_weight[: len(items)].tolist() == pytest.approx([math.log(10 / len(items))] * len(items))
        lengths.add(len(items))
    assert len(lengths) > 3


def relative_sum(sampler: AdaptiveImportance, look: RunLook, n: int) -> float:
    """Mean of sum w e^s / count over n times the one query, over sum e^s."""
    exact = sum(math.exp(float(look.query_BD[0] @ item) / 0.5) for item in look.item_MD)
    look.query_BD = look.query_BD[:1].repeat(n, 1)
    block = propose(sampler, batch_of([0] * n), look, torch.Generator().manual_seed(0)).blocks[0]
    score = (look.item_MD[block.row.clamp(min=0)] @ look.query_BD[0]) / 0.5
    return float((block.log_weight - block.log_count + score).double().exp().sum(1).mean()) / exact


def test_the_sum_of_the_softmax_is_estimated(facts: Facts, look: RunLook) -> None:
    """Without bias where the number of draws is given. When to stop depends on what was drawn, which adds a part in
    the effective sample size, as a loop over single queries finds too."""
    look = seeing(look, 1)
    assert relative_sum(adaptive(facts, ess=1.0, block=32, cap=32), look, 10_000) == pytest.approx(1.0, abs=0.015)
    small, large = (relative_sum(adaptive(facts, ess=ess, cap=4000), look, 10_000) for ess in (10.0, 40.0))
    assert small - 1 == pytest.approx(naive_bias(adaptive(facts), look), abs=0.015)
    assert abs(large - 1) < 0.5 * abs(small - 1)


def naive_bias(sampler: AdaptiveImportance, look: RunLook) -> float:
    law, chance = naive_law(sampler, look.query_BD[0]), random.Random(0)
    r_of = [math.exp(float(look.query_BD[0] @ item) / 0.5) for item in look.item_MD]
    exact, total, n = sum(r_of), 0.0, 10_000
    for _ in range(n):
        r: list[float] = []
        while not r or sum(r) ** 2 / sum(x * x for x in r) < 10:
            r += [r_of[i] / law[i] for i in chance.choices(range(M), law, k=4)]
        total += sum(r) / len(r)
    return total / n / exact - 1


def loss_of(sampler: Sampler, batch: Batch, look: RunLook) -> tuple[Tensor, Tensor]:
    item_MD = look.item_MD.clone().requires_grad_()
    candidates = propose(sampler, batch, look, torch.Generator().manual_seed(0))
    encoded = encode(look.query_BD, lambda row: item_MD[row], batch, candidates)
    loss, _ = SampledSoftmax(temperature=0.5)(encoded)
    loss.backward()
    return loss.detach(), item_MD.grad


def test_a_query_that_never_has_enough_gets_the_full_softmax(facts: Facts, look: RunLook) -> None:
    """Four draws are never worth four: every query has the whole catalogue, and it counts exactly."""
    sampler, look = adaptive(facts, ess=4.0, block=4, cap=4), seeing(look, 6)
    look.query_BD, look.item_MD = look.query_BD.double(), look.item_MD.double()
    batch = batch_of([3, 0, 3, 11, 2, 7])
    (block,) = propose(sampler, batch, look, torch.Generator()).blocks
    assert block.row.tolist() == [list(range(M))] * 6
    assert bool((block.log_weight == block.log_count).all())
    for ours, full in zip(loss_of(sampler, batch, look), loss_of(ready(Catalogue(), facts), batch, look), strict=True):
        assert float((ours - full).abs().max()) < 1e-12


def test_only_queries_that_are_short_get_the_catalogue(facts: Facts, look: RunLook) -> None:
    sampler, look = adaptive(facts, ess=3.0, block=4, cap=4), seeing(look, 60)
    batch = batch_of([0] * 60)
    (block,) = propose(sampler, batch, look, torch.Generator().manual_seed(0)).blocks
    n_B = (block.row >= 0).sum(1)
    assert sorted(n_B.unique().tolist()) == [4, M]
    for n, row, log_weight, log_count in zip(n_B, block.row, block.log_weight, block.log_count, strict=True):
        if n == M:
            assert torch.equal(row, torch.arange(M))
            assert torch.equal(log_weight, log_count)
        else:
            assert bool((row[4:] == -1).all())
            assert bool(log_weight[4:].isneginf().all())
            assert float(log_weight.exp().sum()) == pytest.approx(3.0, rel=1e-5)


def step(sampler: AdaptiveImportance, look: RunLook, seed: int) -> tuple[Candidates, Encoded]:
    batch = batch_of([0] * len(look.query_BD))
    candidates = propose(sampler, batch, look, torch.Generator().manual_seed(seed))
    encoded = encode(look.query_BD, look.items, batch, candidates)
    sampler.observe(candidates.blocks, encoded, look)
    return candidates, encoded


def test_histograms_move_to_the_weights(facts: Facts, look: RunLook) -> None:
    """H_c <- (1 - rate) H_c + rate * mean over the cluster's queries of r / sum r, item by item."""
    sampler, look = adaptive(facts, ess=3.0, block=4, cap=8, rate=0.2), seeing(look, 7)
    before = copy.deepcopy(sampler)
    candidates, _ = step(sampler, look, 0)
    members: dict[int, list[int]] = {}
    for b, query in enumerate(look.query_BD):
        members.setdefault(naive_cluster(before, query), []).append(b)
    assert 1 < len(members) < 7
    expected = before.histogram_CM.double().clone()
    for cluster, queries in members.items():
        expected[cluster] *= 0.8
        for b in queries:
            own = candidates.blocks[0].row[b].tolist()
            law = naive_law(before, look.query_BD[b])
            r = {}
            drawn_ = [i for i in own if i >= 0]
            for place, i in enumerate(drawn_):
                per_draw = 1.0 if len(drawn_) == M else 1 / law[i]
                r[place] = math.exp(float(look.query_BD[b] @ look.item_MD[i]) / 0.5) * per_draw
            for place, i in enumerate(drawn_):
                expected[cluster, i] += 0.2 / len(queries) * r[place] / sum(r.values())
    assert float((sampler.histogram_CM - expected).abs().max()) < 1e-6
    assert sampler.histogram_CM.sum(1).tolist() == pytest.approx([1.0] * 4, rel=1e-5)


def planted(look: RunLook) -> None:
    """Queries of four kinds, each with a fourth of twelve items that it likes."""
    kind = torch.tensor([[1.0, 1.0, 0.2], [1.0, -1.0, 0.2], [-1.0, 1.0, 0.2], [-1.0, -1.0, 0.2]])
    look.query_BD = kind.repeat(8, 1)
    look.item_MD = 0.6 * kind.repeat(3, 1)


def distance(sampler: AdaptiveImportance, look: RunLook) -> float:
    """Mean TV distance of the proposals from the softmax."""
    target = (look.query_BD @ look.item_MD.T / 0.5).softmax(1)
    return float((sampler.law(sampler.cluster(look.query_BD)) - target).abs().sum(1).mean() / 2)


def test_proposals_approach_the_softmax(facts: Facts, look: RunLook) -> None:
    """TV falls to a fraction, and so does the number of draws that are enough."""
    sampler = copy.deepcopy(SAMPLER)
    sampler.share, sampler.bits = 0.9, 6
    ready(sampler, facts)
    planted(look)
    found, n_drawn = [distance(sampler, look)], []
    for at in range(100):
        candidates, _ = step(sampler, look, at)
        n_drawn.append(float((candidates.blocks[0].row >= 0).sum(1).float().mean()))
        if at in (9, 29, 99):
            found.append(distance(sampler, look))
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.25 * found[0]
    assert sum(n_drawn[-5:]) < 0.75 * sum(n_drawn[:5])


def test_a_run_resumes(facts: Facts, look: RunLook) -> None:
    sampler, look = adaptive(facts), seeing(look, 8)
    step(sampler, look, 0)
    again = ready(copy.deepcopy(SAMPLER), facts)
    again.load_state_dict(copy.deepcopy(sampler.state_dict()))
    assert set(sampler.state_dict()) == {"histogram_CM", "projection_DH"}
    for seed in (1, 2):
        (own, encoded), (theirs, _) = step(sampler, look, seed), step(again, look, seed)
        assert torch.equal(own.blocks[0].row, theirs.blocks[0].row)
        assert torch.equal(sampler.histogram_CM, again.histogram_CM)
    before = sampler.histogram_CM.clone()
    sampler.observe((), encoded, look)  # mined by another sampler, it has no blocks of its own
    assert torch.equal(before, sampler.histogram_CM)


def test_settings_that_make_no_sense_are_refused(facts: Facts) -> None:
    with pytest.raises(ConfigError, match=r"alpha is 300\.0, expected one that leaves every item a share"):
        AdaptiveImportance(alpha=300.0).setup(facts)
    for changed, message in (
        ({"block": 0}, "block is 0, expected at least 1"),
        ({"cap": 8}, "cap is 8, expected at least block, 32"),
        ({"ess": 2000.0}, "ess is 2000.0, expected 1 to cap, 1024"),
        ({"share": 1.0}, "share is 1.0, expected 0 to below 1"),
        ({"bits": 30}, "bits is 30, expected 0 to 16"),
        ({"rate": 0.0}, "rate is 0.0, expected above 0"),
        ({"temperature": -1.0}, "temperature is -1.0, expected a positive"),
        ({"alpha": math.inf}, "alpha is inf"),
        ({"smoothing": 0.0}, "smoothing is 0.0, expected above 0"),
    ):
        with pytest.raises(ConfigError, match=f"AdaptiveImportance: {message}"):
            AdaptiveImportance(**changed)
