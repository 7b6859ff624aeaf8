"""Generators that learn what to draw: their laws, their gradients in expectation, their rewards."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor

from twotower.errors import ConfigError
from twotower.negatives import IRGAN, RNS, Policy, Uniform, propose, tiles
from twotower.negatives.rns import feature_match
from twotower.part import Facts
from twotower.records import Batch, Block, Candidates, Encoded, Ragged
from twotower.scoring import encode

from .conftest import RunLook, batch_of
from .laws import M, ready

QUERIES = [7, -1, 31, 5]
"""Rows of the queries of the batch; one has no id."""
KNOWN = [[0, 4, 9], [3], [], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]


@pytest.fixture
def seeing(look: RunLook) -> RunLook:
    """A model of random vectors."""
    rng = torch.Generator().manual_seed(0)
    look.query_BD = torch.randn(len(QUERIES), 3, generator=rng)
    look.item_MD = torch.randn(M, 3, generator=rng)
    return look


def batch_with(known: list[list[int]], query: list[int]) -> Batch:
    batch = batch_of([own[0] if own else 0 for own in known])
    offset = torch.tensor([0, *itertools.accumulate(len(own) for own in known)])
    value = torch.tensor([item for own in known for item in own], dtype=torch.int64)
    return replace(batch, query_B=torch.tensor(query), known=Ragged(offset=offset, value=value))


BATCH = batch_with(KNOWN, QUERIES)


def lively(sampler: Policy, facts: Facts) -> Policy:
    """A generator that is far from uniform."""
    ready(sampler, facts)
    rng = torch.Generator().manual_seed(1)
    for table in (sampler.of_query, sampler.of_item, sampler.of_bias):
        if table is not None:
            table.weight.copy_(0.5 * torch.randn(table.weight.shape, generator=rng))
    return sampler


def parameters_of(sampler: Policy) -> list[Tensor]:
    """Float64 leaves: query vectors, item vectors, biases."""
    tables = [sampler.of_query, sampler.of_item, *([sampler.of_bias] if sampler.of_bias is not None else [])]
    return [table.weight.double().clone().requires_grad_() for table in tables]


def naive_log_p(sampler: Policy, parameters: list[Tensor], query: int, rows: list[int]) -> list[Tensor]:
    """log p_G of each of the items, among them."""
    of_query, of_item, *bias = parameters
    scores = []
    for item in rows:
        score = torch.zeros((), dtype=torch.float64)
        if query >= 0:
            score = score + (of_query[query] * of_item[item]).sum() + sum(c[item, 0] for c in bias)
        scores.append(score / sampler.temperature)
    total = torch.stack(scores).exp().sum().log()
    return [score - total for score in scores]


def naive_law(sampler: IRGAN, query: int, known: list[int]) -> list[float]:
    """p(i | u) of one draw, item by item."""
    open_to = [i for i in range(M) if not (sampler.exclude_known and i in known)]
    p = [0.0] * M
    for item, log_p in zip(open_to, naive_log_p(sampler, parameters_of(sampler), query, open_to), strict=True):
        p[item] = math.exp(log_p.item())
    share = sampler.known_share if known else 0.0
    return [(1 - share) * p_i + (share / len(known) if i in known else 0.0) for i, p_i in enumerate(p)]


LAWS: dict[str, IRGAN] = {
    "paper": IRGAN(n=24, temperature=1.0),
    "catalogue": IRGAN(n=24, temperature=1.5, known_share=0.0, bias=False),
    "unknown": IRGAN(n=24, temperature=1.0, known_share=0.0, exclude_known=True),
}


# ---------------------------------------------------------------- IRGAN: the law


@pytest.mark.parametrize("name", LAWS)
def test_irgan_draws_for_each_query_by_its_own_law(name: str, facts: Facts, seeing: RunLook) -> None:
    """Of 20 times 20000 draws for each of four queries; a law 5% off at one item has no chance."""
    sampler = lively(LAWS[name], facts)
    many = lively(with_n(sampler, 20_000), facts)
    drawn = [many.draw(BATCH, seeing, torch.Generator().manual_seed(seed))[0].row for seed in range(20)]
    p_values = []
    for at, (query, known) in enumerate(zip(QUERIES, KNOWN, strict=True)):
        law = naive_law(sampler, query, known)
        assert sum(law) == pytest.approx(1, abs=1e-12)
        counts = [row_BK[at].bincount(minlength=M).double() for row_BK in drawn]
        wrong = [p * (1.05 if i == law.index(max(law)) else 1) for i, p in enumerate(law)]
        assert goodness(torch.stack(counts).sum(0), [p / sum(wrong) for p in wrong]) < 1e-6
        p_values += [goodness(count, law) for count in counts]
    assert kstest(p_values, "uniform").pvalue > 0.01


def with_n(sampler: IRGAN, n: int) -> IRGAN:
    return IRGAN(
        n=n,
        temperature=sampler.temperature,
        bias=sampler.bias,
        known_share=sampler.known_share,
        exclude_known=sampler.exclude_known,
    )


def goodness(count_M: Tensor, law: list[float]) -> float:
    """Chi-square p-value; what is never to be drawn was not."""
    p_M = torch.tensor(law, dtype=torch.float64)
    assert not count_M[p_M == 0].any()
    possible = p_M > 0
    return float(chisquare(count_M[possible].numpy(), (p_M[possible] * count_M.sum()).numpy()).pvalue)


@pytest.mark.parametrize("name", LAWS)
def test_irgan_counts_are_the_law_and_sum_to_n(name: str, facts: Facts, seeing: RunLook) -> None:
    sampler = lively(LAWS[name], facts)
    count_BM = sampler.log_count(torch.arange(M), BATCH, seeing).double().exp()
    want = torch.tensor([naive_law(sampler, q, known) for q, known in zip(QUERIES, KNOWN, strict=True)]).double()
    assert torch.allclose(count_BM, 24 * want, rtol=1e-4, atol=1e-9)
    assert count_BM.sum(1).tolist() == pytest.approx([24.0] * 4, rel=1e-5)
    assert torch.equal(count_BM == 0, want == 0)


def test_irgan_without_an_id_is_uniform(facts: Facts, seeing: RunLook) -> None:
    sampler = lively(IRGAN(n=3, known_share=0.0), facts)
    log_count = sampler.log_count(torch.arange(M), BATCH, seeing)[1]
    assert log_count.tolist() == pytest.approx([math.log(3 / 12)] * 12)


def test_irgan_draws_nothing_where_all_is_known(facts: Facts, seeing: RunLook) -> None:
    sampler = lively(IRGAN(n=3, known_share=0.0, exclude_known=True), facts)
    batch = batch_with([[0, 4], list(range(M))], [7, 8])
    (block,) = sampler.draw(batch, seeing, torch.Generator().manual_seed(0))
    assert block.row[1].tolist() == [-1, -1, -1]
    assert block.log_weight[1].tolist() == [-math.inf] * 3
    assert sampler.log_count(torch.arange(M), batch, seeing)[1].tolist() == [-math.inf] * M
    looking = replace(seeing, query_BD=seeing.query_BD[:2])
    loss = sampler.observe((block,), encoded_of(batch, (block,), looking), looking)
    assert loss is not None
    loss.backward()
    assert all(bool(g.isfinite().all()) for g in gradients_of(sampler))


def test_scores_held_some_queries_at_a_time_are_the_same(
    facts: Facts, seeing: RunLook, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = lively(IRGAN(n=5), facts)
    found = []
    for tile in (2**22, 2 * M, 1):
        monkeypatch.setattr(tiles, "MOST", tile)
        block = propose(sampler, BATCH, seeing, torch.Generator().manual_seed(3)).blocks[0]
        loss = sampler.observe((block,), encoded_of(BATCH, (block,), seeing), seeing)
        assert loss is not None
        loss.backward()
        found.append([block.row, block.log_count, *gradients_of(sampler)])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.allclose(one, two, atol=1e-7)


# ---------------------------------------------------------------- IRGAN: the gradient


def encoded_of(batch: Batch, blocks: tuple[Block, ...], look: RunLook) -> Encoded:
    candidates = Candidates(blocks=blocks, positive_log_count_P=torch.zeros(len(batch.item_P)))
    return encode(look.query_BD, look.items, batch, candidates)


def gradients_of(sampler: Policy) -> list[Tensor]:
    """Float64, of every table, dense; takes them from the tables."""
    found = []
    for table in (sampler.of_query, sampler.of_item, sampler.of_bias):
        if table is not None:
            dense, gradient = torch.zeros_like(table.weight, dtype=torch.float64), table.gradient()
            if gradient is not None:
                dense[gradient[0]] = gradient[1].double()
            found.append(dense)
    return found


def one_query(look: RunLook) -> tuple[Batch, RunLook]:
    """The batch of the first query alone."""
    return batch_with(KNOWN[:1], QUERIES[:1]), replace(look, query_BD=look.query_BD[:1])


def loss_gradients(sampler: Policy, rows: list[list[int]], batch: Batch, look: RunLook) -> list[Tensor]:
    block = Block.chosen(torch.tensor(rows))
    loss = sampler.observe((block,), encoded_of(batch, (block,), look), look)
    assert loss is not None
    assert loss.dim() == 0
    loss.backward()
    return gradients_of(sampler)


def exact_gradients(sampler: IRGAN, look: RunLook) -> list[Tensor]:
    """Of -sum_i p_G(i) reward_i for the first query."""
    parameters = parameters_of(sampler)
    open_to = [i for i in range(M) if not (sampler.exclude_known and i in KNOWN[0])]
    value = torch.zeros((), dtype=torch.float64)
    for item, log_p in zip(open_to, naive_log_p(sampler, parameters, QUERIES[0], open_to), strict=True):
        score = sampler.scale * float(look.query_BD[0].double() @ look.item_MD[item].double())
        value = value - log_p.exp() * 2 * (1 / (1 + math.exp(-score)) - 0.5)
    return list(torch.autograd.grad(value, parameters))


GRADIENTS: dict[str, IRGAN] = {
    "paper": IRGAN(n=1, temperature=1.0),
    "catalogue": IRGAN(n=1, temperature=0.7, known_share=0.0, bias=False, scale=3.0),
    "mostly known": IRGAN(n=1, temperature=1.0, known_share=0.7),
    "unknown": IRGAN(n=1, temperature=1.0, known_share=0.0, exclude_known=True),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_irgan_learns_by_the_policy_gradient(name: str, facts: Facts, seeing: RunLook) -> None:
    """All that may be drawn, weighed by how likely it is, add up to the gradient of the mean reward."""
    sampler = lively(GRADIENTS[name], facts)
    batch, look = one_query(seeing)
    total = [torch.zeros_like(g) for g in parameters_of(sampler)]
    for item, p in enumerate(naive_law(sampler, QUERIES[0], KNOWN[0])):
        if p:
            for sum_, gradient in zip(total, loss_gradients(sampler, [[item]], batch, look), strict=True):
                sum_ += p * gradient
    for got, want in zip(total, exact_gradients(sampler, look), strict=True):
        assert (got - want).abs().max() < 1e-6
        assert want.abs().max() > 1e-3


@pytest.mark.parametrize("known_share", [0.0, 0.4])
def test_irgan_keeps_its_gradient_with_a_baseline(known_share: float, facts: Facts, seeing: RunLook) -> None:
    """All pairs of draws; the baseline makes the gradient of a pair another one."""
    sampler = lively(IRGAN(n=2, temperature=1.0, known_share=known_share), facts)
    batch, look = one_query(seeing)
    law = naive_law(sampler, QUERIES[0], KNOWN[0])
    total = [torch.zeros_like(g) for g in parameters_of(sampler)]
    for first, second in itertools.product(range(M), repeat=2):
        for sum_, gradient in zip(total, loss_gradients(sampler, [[first, second]], batch, look), strict=True):
            sum_ += law[first] * law[second] * gradient
    for got, want in zip(total, exact_gradients(sampler, look), strict=True):
        assert (got - want).abs().max() < 1e-6
    with_it = loss_gradients(sampler, [[1, 2]], batch, look)
    sampler.baseline = False
    without = loss_gradients(sampler, [[1, 2]], batch, look)
    assert not torch.allclose(with_it[0], without[0])


def test_irgan_from_its_own_draws_learns_the_same_on_average(facts: Facts, seeing: RunLook) -> None:
    """200 steps of 32 draws: every number within what chance allows, and a baseline narrows that."""
    batch, look = one_query(seeing)
    spread = {}
    for baseline in (True, False):
        sampler = lively(IRGAN(n=32, temperature=1.0, baseline=baseline, scale=0.5), facts)
        found = []
        for seed in range(200):
            (block,) = sampler.draw(batch, look, torch.Generator().manual_seed(seed))
            found.append(torch.cat([g.flatten() for g in loss_gradients(sampler, block.row.tolist(), batch, look)]))
        gradient_TX = torch.stack(found)
        want_X = torch.cat([g.flatten() for g in exact_gradients(sampler, look)])
        error_X = gradient_TX.std(0) / math.sqrt(200)
        moves = error_X > 0
        assert not want_X[~moves].any()
        z_X = ((gradient_TX.mean(0) - want_X) / error_X)[moves]
        assert float(z_X.abs().max()) < 4.5
        assert float(z_X.square().mean()) < 2
        spread[baseline] = float(gradient_TX.var(0).sum())
    assert spread[True] < spread[False]


def test_irgan_averages_over_the_queries_that_have_ids(facts: Facts, seeing: RunLook) -> None:
    sampler = lively(IRGAN(n=1, temperature=1.0), facts)
    rows = [[5], [6], [7], [11]]
    together = loss_gradients(sampler, rows, BATCH, seeing)
    alone = []
    for at in (0, 2, 3):
        batch = batch_with([KNOWN[at]], [QUERIES[at]])
        alone.append(loss_gradients(sampler, [rows[at]], batch, replace(seeing, query_BD=seeing.query_BD[at : at + 1])))
    for got, *each in zip(together, *alone, strict=True):
        assert torch.allclose(got, torch.stack(each).mean(0), atol=1e-7)


@pytest.mark.parametrize("sampler", [IRGAN(n=2, every=3), RNS(n=2, pool=4, every=3)])
def test_a_generator_rests_between_its_steps(sampler: Policy, facts: Facts, seeing: RunLook) -> None:
    ready(sampler, facts)
    nameless = replace(BATCH, query_B=torch.full((4,), -1))
    for step, batch, moves in ((2, BATCH, False), (3, BATCH, True), (3, nameless, False), (6, BATCH, True)):
        looking = replace(seeing, step=step)
        blocks = sampler.draw(batch, looking, torch.Generator().manual_seed(step))
        loss = sampler.observe(blocks, encoded_of(batch, blocks, looking), looking)
        assert (loss is not None) == moves
        if loss is not None:
            assert loss.isfinite()
            assert loss.requires_grad
    assert sampler.observe((), encoded_of(BATCH, (), seeing), replace(seeing, step=3)) is None


def test_towers_learn_nothing_from_a_generators_loss(facts: Facts, seeing: RunLook) -> None:
    for sampler in (IRGAN(n=2), RNS(n=2, pool=4)):
        ready(sampler, facts)
        seeing.query_BD, seeing.item_MD = (x.detach().requires_grad_() for x in (seeing.query_BD, seeing.item_MD))
        blocks = sampler.draw(BATCH, seeing, torch.Generator().manual_seed(0))
        loss = sampler.observe(blocks, encoded_of(BATCH, blocks, seeing), seeing)
        assert loss is not None
        loss.backward()
        assert seeing.query_BD.grad is None
        assert seeing.item_MD.grad is None


# ---------------------------------------------------------------- RNS: the pool


def shown_to(facts: Facts, query: int) -> list[int]:
    return facts.shown.value[facts.shown.offset[query] : facts.shown.offset[query + 1]].tolist() if query >= 0 else []


def test_rns_draws_from_its_pool_by_its_policy(facts: Facts, seeing: RunLook) -> None:
    """The pool of each of 20 seeds, 5000 draws a query; what is known is not drawn."""
    sampler = lively(RNS(n=5000, pool=8, dim=6, temperature=0.8), facts)
    p_values = []
    for seed in range(20):
        (block,) = sampler.draw(BATCH, seeing, torch.Generator().manual_seed(seed))
        pool_BP, _ = sampler.drawn
        for at, (query, known) in enumerate(zip(QUERIES, KNOWN, strict=True)):
            rows = [row for row in pool_BP[at].tolist() if row >= 0]
            assert not set(rows) & set(known)
            if not rows:
                assert set(block.row[at].tolist()) == {-1}
                continue
            law = [0.0] * M
            for row, log_p in zip(rows, naive_log_p(sampler, parameters_of(sampler), query, rows), strict=True):
                law[row] += math.exp(log_p.item())
            if len(set(rows)) > 1:
                p_values.append(goodness(block.row[at].bincount(minlength=M).double(), law))
    assert len(p_values) > 60
    assert kstest(p_values, "uniform").pvalue > 0.01


def test_rns_pools_are_uniform_items_and_one_that_was_shown(facts: Facts, seeing: RunLook) -> None:
    sampler = ready(RNS(pool=6), facts)
    uniform, shown = torch.zeros(M), torch.zeros(4, M)
    batch = batch_with([[], [], [], []], QUERIES)
    for seed in range(600):
        sampler.draw(batch, seeing, torch.Generator().manual_seed(seed))
        pool_BP, place_Bn = sampler.drawn
        assert pool_BP.shape == (4, 7)
        uniform += pool_BP[:, :6].flatten().bincount(minlength=M)
        for at in (0, 2, 3):
            shown[at, pool_BP[at, 6]] += 1
        assert int(pool_BP[1, 6]) == -1  # no id: nobody knows what it was shown
        assert int(place_Bn[1]) != 6
    assert chisquare(uniform.numpy()).pvalue > 0.001
    for at in (0, 2, 3):
        there = shown[at].nonzero()[:, 0].tolist()
        assert there == shown_to(facts, QUERIES[at])
        assert chisquare(shown[at, there].numpy()).pvalue > 0.001


def test_rns_needs_no_query_to_be_shown_anything(facts: Facts, seeing: RunLook) -> None:
    """Only query 31 was shown something: the others have the uniform items alone, and a reward without match."""
    offset = torch.zeros(101, dtype=torch.int64)
    offset[32:] = 1
    sampler = ready(RNS(n=2, pool=3), replace(facts, shown=Ragged(offset=offset, value=torch.tensor([6]))))
    for batch, shown in ((BATCH, [-1, -1, 6, -1]), (batch_with(KNOWN[:1] * 4, [7] * 4), [-1] * 4)):
        blocks = sampler.draw(batch, seeing, torch.Generator().manual_seed(0))
        assert sampler.drawn[0][:, -1].tolist() == shown
        loss = sampler.observe(blocks, encoded_of(batch, blocks, seeing), seeing)
        assert loss is not None
        assert loss.isfinite()


# ---------------------------------------------------------------- RNS: rewards and gradient


SIGMAS = (0.5, 1.0, 2.0)


def kernel(x: Tensor, y: Tensor) -> float:
    squared = sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True))
    return sum(math.exp(-squared / (2 * sigma**2)) for sigma in SIGMAS)


def mean_kernel(xs: list[Tensor], y: Tensor) -> float:
    return sum(kernel(x, y) for x in xs) / len(xs)


def naive_rewards(
    sampler: RNS, rows: list[list[int]], queries: list[int], shown_items: list[int], look: RunLook, facts: Facts
) -> list[list[float]]:
    """Of the items drawn for each query of the batch, by the definition."""
    made = [look.item_MD[row] for own in rows for row in own]
    shown = [look.item_MD[row] for row in shown_items]
    rewards = []
    for at, own in enumerate(rows):
        rewards.append([])
        for row in own:
            score = sampler.scale * float(look.query_BD[at].double() @ look.item_MD[row].double())
            match = 2 * mean_kernel(shown, look.item_MD[row]) - 2 * mean_kernel(made, look.item_MD[row])
            was_shown = float(row in shown_to(facts, queries[at]))
            adversarial = -1 / (1 + math.exp(score))
            rewards[-1].append(adversarial + sampler.alpha * ((1 - sampler.beta) * was_shown + sampler.beta * match))
    return rewards


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.0}, {"beta": 0.0}, {"beta": 1.0}, {"scale": 4.0}])
def test_rns_rewards_are_a_naive_loop(settings: dict[str, float], facts: Facts, seeing: RunLook) -> None:
    sampler = ready(RNS(n=2, pool=6, sigmas=SIGMAS, **settings), facts)  # type: ignore[arg-type]
    rows, shown = [[1, 2], [5, 6], [2, 11], [11, 0]], [1, -1, 3, 11]
    block = Block.chosen(torch.tensor(rows))
    encoded = encoded_of(BATCH, (block,), seeing)
    reward = sampler.reward(block.row, torch.tensor(shown), torch.arange(4), encoded, seeing)
    assert any(row in shown_to(facts, q) for q, own in zip(QUERIES, rows, strict=True) for row in own)
    want = naive_rewards(sampler, rows, QUERIES, [row for row in shown if row >= 0], seeing, facts)
    assert torch.allclose(reward, torch.tensor(want), atol=1e-5)


def test_vectors_like_those_shown_match(monkeypatch: pytest.MonkeyPatch) -> None:
    """0 for equal sets, whatever their order; else minus the slope of the squared discrepancy; 0 without any shown."""
    rng = torch.Generator().manual_seed(0)
    one, other = torch.randn(9, 3, generator=rng), torch.randn(5, 3, generator=rng) + 1
    assert feature_match(one, one[torch.randperm(9, generator=rng)], SIGMAS).abs().max() < 1e-6
    assert feature_match(one, one.repeat(2, 1), SIGMAS).abs().max() < 1e-6
    assert feature_match(one, one[:0], SIGMAS).tolist() == [0.0] * 9
    kernels = {
        name: torch.tensor([[kernel(x, y) for y in ys] for x in xs], dtype=torch.float64)
        for name, xs, ys in (("made", one, one), ("shown", other, other), ("both", one, other))
    }
    weight = torch.full((9,), 1 / 9, dtype=torch.float64, requires_grad=True)
    discrepancy = weight @ kernels["made"] @ weight + kernels["shown"].mean() - 2 * (weight @ kernels["both"].mean(1))
    (slope,) = torch.autograd.grad(discrepancy, weight)
    assert discrepancy.item() > 0.05
    assert torch.allclose(feature_match(one, other, SIGMAS).double(), -slope, atol=1e-5)
    monkeypatch.setattr(tiles, "MOST", 1)
    assert torch.allclose(feature_match(one, other, SIGMAS).double(), -slope, atol=1e-5)


@pytest.mark.parametrize(("alpha", "baseline"), [(2.5, True), (2.5, False), (0.0, True)])
def test_rns_learns_by_the_policy_gradient(alpha: float, baseline: bool, facts: Facts, seeing: RunLook) -> None:
    """All pairs of choices of two queries from their pools, weighed by how likely they are; the running mean reward
    changes nothing."""
    sampler = lively(RNS(n=1, dim=5, pool=3, alpha=alpha, sigmas=SIGMAS, baseline=baseline), facts)
    queries, pools = [7, 31], [[3, 8, 2, 2], [9, 9, 0, 3]]
    batch = batch_with([[0], [5]], queries)
    looking = replace(seeing, query_BD=seeing.query_BD[[0, 2]])
    parameters = parameters_of(sampler)
    log_p = [naive_log_p(sampler, parameters, q, pool) for q, pool in zip(queries, pools, strict=True)]
    total = [torch.zeros_like(g) for g in parameters]
    want = [torch.zeros_like(g) for g in parameters]
    shown = [pool[-1] for pool in pools]
    for first, second in itertools.product(range(4), repeat=2):
        p = math.exp(log_p[0][first].item() + log_p[1][second].item())
        rows = [[pools[0][first]], [pools[1][second]]]
        sampler.drawn = torch.tensor(pools), torch.tensor([[first], [second]])
        sampler.mean_reward.fill_(-0.7)
        for sum_, gradient in zip(total, loss_gradients(sampler, rows, batch, looking), strict=True):
            sum_ += p * gradient
        rewards = naive_rewards(sampler, rows, queries, shown, looking, facts)
        value = -(rewards[0][0] * log_p[0][first] + rewards[1][0] * log_p[1][second]) / 2
        for sum_, gradient in zip(want, torch.autograd.grad(value, parameters, retain_graph=True), strict=True):
            sum_ += p * gradient
    for got, expected in zip(total, want, strict=True):
        assert (got - expected).abs().max() < 1e-6
        assert expected.abs().max() > 1e-3


def test_rns_remembers_the_mean_reward(facts: Facts, seeing: RunLook) -> None:
    sampler = ready(RNS(n=2, pool=4), facts)
    blocks = sampler.draw(BATCH, seeing, torch.Generator().manual_seed(0))
    encoded = encoded_of(BATCH, blocks, seeing)
    learning = torch.tensor([at for at in (0, 2, 3) if bool((blocks[0].row[at] >= 0).all())])
    mean = sampler.reward(blocks[0].row[learning], sampler.drawn[0][:, -1], learning, encoded, seeing).mean().item()
    sampler.observe(blocks, encoded, seeing)
    assert sampler.mean_reward.item() == pytest.approx(0.01 * mean, rel=1e-5)
    assert "mean_reward" in sampler.state_dict()
    assert not any("shown" in name for name in sampler.state_dict())


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        (IRGAN, {"n": 0}, "IRGAN: n is 0"),
        (IRGAN, {"dim": 0}, "IRGAN: dim is 0"),
        (RNS, {"every": 0}, "RNS: every is 0"),
        (RNS, {"temperature": 0.0}, "RNS: temperature is 0.0"),
        (IRGAN, {"scale": float("inf")}, "IRGAN: scale is inf"),
        (IRGAN, {"lr_scale": -1.0}, "IRGAN: lr_scale is -1.0"),
        (IRGAN, {"known_share": 1.0}, "IRGAN: known_share is 1.0"),
        (IRGAN, {"exclude_known": True}, "known_share is 0.2, but exclude_known"),
        (RNS, {"pool": 0}, "RNS: pool is 0"),
        (RNS, {"alpha": -1.0}, "RNS: alpha is -1.0"),
        (RNS, {"beta": 1.5}, "RNS: beta is 1.5"),
        (RNS, {"sigmas": ()}, r"RNS: sigmas is \(\)"),
        (RNS, {"sigmas": (1.0, 0.0)}, r"RNS: sigmas is \(1.0, 0.0\)"),
    ],
)
def test_settings_that_can_not_be(kind: type[Policy], settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        kind(**settings)  # type: ignore[arg-type]


def test_data_that_can_not_be(facts: Facts) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ConfigError, match="IRGAN has a vector for each query, but queries have no id"):
        IRGAN().setup(replace(facts, query_count_Q=nothing))
    with pytest.raises(ConfigError, match="nothing of the kind: log what was shown"):
        RNS().setup(replace(facts, shown=Ragged(offset=torch.zeros(101, dtype=torch.int64), value=nothing)))


def test_densities() -> None:
    assert (IRGAN() + Uniform(4)).density == "exact"
    assert (RNS() + Uniform(4)).density == "none"
