"""Samplers that choose among a pool by the scores of the model."""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from twotower.errors import ConfigError
from twotower.negatives import (
    AHNS,
    BNS,
    DNS,
    SIR,
    Catalogue,
    InBatch,
    Pool,
    Pooled,
    Popularity,
    Rotations,
    Sampler,
    SoftmaxDNS,
    Uniform,
    propose,
    tiles,
)
from twotower.negatives.pool import pools
from twotower.part import Facts
from twotower.records import Batch, Block, Ragged

from .conftest import COUNT, RunLook, batch_of, batch_of_queries
from .examples import EXAMPLES
from .laws import TOTAL, M, ready
from .scored import drawn, fits, open_batch, random_scores, see

POOLED = {name: sampler for name, sampler in EXAMPLES.items() if isinstance(sampler, Pooled)}
SHARE = torch.tensor(COUNT, dtype=torch.float64) / TOTAL
MANY = 8000


class Given(Sampler):
    """Blocks that are given."""

    density = "exact"

    blocks: tuple[Block, ...] = ()

    def draw(self, batch: Batch, look: RunLook, rng: torch.Generator) -> tuple[Block, ...]:
        return self.blocks

    def log_count(self, row: Tensor, batch: Batch, look: RunLook) -> Tensor:
        return -row.float()


def given(*rows: list[int] | list[list[int]], log_weight: list[Tensor] | None = None) -> Given:
    blocks = tuple(Block.chosen(torch.tensor(row)) for row in rows)
    if log_weight is not None:
        blocks = tuple(replace(block, log_weight=own) for block, own in zip(blocks, log_weight, strict=True))
    return Given(blocks=blocks)


def chosen(sampler: Sampler, batch: Batch, look: RunLook, seed: int = 0) -> list[list[int]]:
    """Rows of each query's candidates."""
    (block,) = sampler.draw(batch, look, drawn(seed))
    return [list(own) for own in block.row.tolist()]


def only(pool_of: Sampler, batch: Batch, look: RunLook) -> Pool:
    (pool,) = pools(pool_of, batch, look, drawn(0))
    return pool


# The pool


def test_a_pool_is_what_is_offered_shared_and_own(look: RunLook) -> None:
    """Shared items merged, each query's own behind them, empty places and known items closed."""
    batch = batch_of([3, 0])
    score = random_scores(2)
    own_weight = torch.tensor([[0.0, math.log(2), 0.0], [0.0, -math.inf, 0.0]])
    of = given(
        [7, 3, 7],
        [7, 5, -1],
        [[1, 1, 3], [2, 4, -1]],
        log_weight=[torch.zeros(3), Tensor([0, 0, -math.inf]), own_weight],
    )
    pool = only(of, batch, see(look, score))
    assert pool.query_C.tolist() == [0, 1]
    assert pool.row_CP.tolist() == [[3, 5, 7, 1, 1, 3], [3, 5, 7, 2, -1, -1]]
    assert pool.log_weight_CP.exp().tolist() == [
        pytest.approx([1, 1, 3, 1, 2, 1]),
        pytest.approx([1, 1, 3, 1, 0, 0]),
    ]
    assert pool.open_CP.tolist() == [[False, True, True, True, True, False], [True, True, True, True, False, False]]
    for at, own in enumerate(pool.row_CP.tolist()):
        for place, row in enumerate(own):
            if pool.open_CP[at, place]:
                assert float(pool.score_CP[at, place]) == pytest.approx(float(score[at, row]))
                assert float(pool.log_count_CP[at, place]) == -row
            else:
                assert float(pool.score_CP[at, place]) == -math.inf
    assert pool.positive_C.tolist() == pytest.approx([float(score[0, 3]), float(score[1, 0])])


def test_an_item_is_open_once_with_its_summed_weight(look: RunLook) -> None:
    pool = only(given([7, 7, 4], [[4, 9, 7, 9, -1]]), open_batch(1), see(look, random_scores(1))).distinct()
    assert pool.row_CP.tolist() == [[4, 7, 4, 9, 7, 9, -1]]
    assert pool.open_CP.tolist() == [[True, True, False, True, False, False, False]]
    assert pool.log_weight_CP.exp().tolist() == [pytest.approx([2, 3, 0, 2, 0, 0, 0])]


def test_a_query_with_several_positives_has_their_mean(look: RunLook) -> None:
    batch = batch_of_queries([[1, 4, 6], [2]])
    score = random_scores(2)
    pool = only(given(list(range(M))), batch, see(look, score))
    assert pool.positive_C.tolist() == pytest.approx([float(score[0, [1, 4, 6]].mean()), float(score[1, 2])])
    assert pool.open_CP[0].nonzero()[:, 0].tolist() == [0, 2, 3, 5, 7, 8, 9, 10, 11]


def test_counts_of_a_pool_without_density_are_unknown(look: RunLook, facts: Facts) -> None:
    pool = only(ready(DNS(), facts), batch_of([3, 0]), see(look, random_scores(2)))
    assert bool(pool.log_count_CP.isnan().all())


@pytest.mark.parametrize("name", POOLED)
def test_tiles_of_queries_are_one_tile(name: str, facts: Facts, look: RunLook, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pools, whatever is held at a time, and the same choices: lots are drawn query by query."""
    sampler = ready(copy.deepcopy(POOLED[name]), facts)
    batch = batch_of_queries([[3], [0, 5, 7], [3], [11], [2, 6], [1], [8]])
    see(look, random_scores(7))
    (whole,) = sampler.draw(batch, look, drawn(3))
    (first,) = pools(given(list(range(M))), batch, look, drawn(3))
    monkeypatch.setattr(tiles, "MOST", 3 * 16)
    (tiled,) = sampler.draw(batch, look, drawn(3))
    assert torch.equal(whole.row, tiled.row)
    assert torch.allclose(whole.log_weight, tiled.log_weight)
    monkeypatch.setattr(tiles, "MOST", 3 * M)
    parts = list(pools(given(list(range(M))), batch, look, drawn(3)))
    assert [len(part.query_C) for part in parts] == [3, 3, 1]
    for name_ in ("query_C", "row_CP", "score_CP", "positive_C", "log_count_CP", "log_weight_CP"):
        assert torch.equal(torch.cat([getattr(part, name_) for part in parts]), getattr(first, name_))


@pytest.mark.parametrize("name", POOLED)
def test_what_is_known_is_never_chosen(name: str, facts: Facts, look: RunLook) -> None:
    """Not the positives, and not what else is known: here all but two items, which a query of its own always gets."""
    sampler = ready(copy.deepcopy(POOLED[name]), facts)
    lists = [[0, 1, 2, 3, 4, 6, 7, 8, 10, 11], [3]]
    batch = replace(
        batch_of([3, 3]), known=Ragged(offset=torch.tensor([0, 10, 11]), value=torch.tensor(lists[0] + lists[1]))
    )
    score = random_scores(2)
    score[:, 3] = 9.0
    see(look, score)
    for seed in range(40):
        (block,) = sampler.draw(batch, look, drawn(seed))
        for row, log_weight, known in zip(block.row.tolist(), block.log_weight.tolist(), lists, strict=True):
            taken = [item for item in row if item >= 0]
            assert not set(taken) & set(known)
            assert all((item < 0) == (weight == -math.inf) for item, weight in zip(row, log_weight, strict=True))


@pytest.mark.parametrize("name", POOLED)
def test_nothing_to_choose_from_is_no_candidate(name: str, facts: Facts, look: RunLook) -> None:
    """A batch of one row has no other row to offer."""
    sampler = copy.deepcopy(POOLED[name])
    sampler.of = Rotations(4)
    see(look, random_scores(1))
    (block,) = propose(ready(sampler, facts), batch_of([5]), look, drawn(0)).blocks
    assert bool((block.row == -1).all())
    assert bool((block.log_weight == -math.inf).all())


def test_vectors_that_nobody_told_of_are_an_error(look: RunLook) -> None:
    block = replace(Block.of(torch.tensor([-1])), vector=torch.zeros(1, M))
    with pytest.raises(TypeError, match="Given offers vectors that are no items"):
        chosen(DNS(of=Given(blocks=(block,))), batch_of([1]), see(look, random_scores(1)))


# DNS


def order_statistic(n: int) -> Tensor:
    """[M] of the rank, 0 the best, that the best of n uniform draws has."""
    return torch.tensor([((M - r) ** n - (M - r - 1) ** n) / M**n for r in range(M)], dtype=torch.float64)


def ranks_of(sampler: Sampler, look: RunLook, seed: int) -> Tensor:
    """[M] how often an item of each rank is chosen, of many queries with scores of their own."""
    score = random_scores(MANY, seed)
    (block,) = sampler.draw(open_batch(MANY), see(look, score), drawn(seed))
    rank = (score > score.gather(1, block.row[:, :1])).sum(1)
    return rank.bincount(minlength=M)


@pytest.mark.parametrize("n", [2, 5])
def test_dns_chooses_by_the_order_statistic(n: int, facts: Facts, look: RunLook) -> None:
    sampler = ready(DNS(of=Uniform(n, per_query=True)), facts)
    law = order_statistic(n).where(order_statistic(n) * MANY > 5, 0)
    rare = law == 0

    def count(seed: int) -> Tensor:
        return ranks_of(sampler, look, seed).masked_fill(rare, 0)

    assert fits(count, law)
    off = law.clone()
    off[0] *= 1.05
    assert not fits(count, off)


def test_dns_of_a_shared_pool_chooses_by_the_order_statistic(look: RunLook) -> None:
    """Of 3 distinct items, one of them twice, by scores of each query's own: P(r) = C(M - 1 - r, 2) / C(M, 3)."""
    sampler = DNS(of=given([2, 5, 5, 9]))
    law = torch.tensor([math.comb(M - 1 - r, 2) / math.comb(M, 3) for r in range(M)], dtype=torch.float64)
    assert fits(lambda seed: ranks_of(sampler, look, seed), law)


def test_dns_among_all_is_the_law_of_the_pool(facts: Facts, look: RunLook) -> None:
    """An item that is in the pool twice is as likely as two others."""
    sampler = ready(DNS(among=6, of=Popularity(6, alpha=1.0, per_query=True)), facts)

    def count(seed: int) -> Tensor:
        (block,) = sampler.draw(open_batch(MANY), see(look, random_scores(MANY, seed)), drawn(seed))
        return block.row[:, 0].bincount(minlength=M)

    assert fits(count, SHARE)
    off = SHARE.clone()
    off[11] *= 1.05
    assert not fits(count, off)


def test_dns_among_some_is_even_among_the_best_of_the_pool(facts: Facts, look: RunLook) -> None:
    """Every pool of 3 enumerated: an item of the top 2 as often as it comes."""
    law = torch.zeros(M, dtype=torch.float64)
    for pool in itertools.product(range(M), repeat=3):
        times = Counter(pool)
        top = sorted(times)[:2]
        for rank in top:
            law[rank] += times[rank] / sum(times[item] for item in top)
    law[law * MANY / law.sum() < 5] = 0
    sampler = ready(DNS(among=2, of=Uniform(3, per_query=True)), facts)
    assert fits(lambda seed: ranks_of(sampler, look, seed).masked_fill(law == 0, 0), law)


POOLS = {
    "shared": Uniform(7),
    "own": Uniform(7, per_query=True),
    "batch": InBatch(),
    "mixed": InBatch() + Uniform(4) + Popularity(5, per_query=True) + Uniform(3, per_query=True),
}


def offered(of: Sampler, batch: Batch, look: RunLook, seed: int) -> list[list[int]]:
    """What each query is offered that it is not known to like, item by item, repeats included."""
    rows: list[list[int]] = [[] for _ in batch.query_B]
    for block in of.draw(batch, look, drawn(seed)):
        for query, own in enumerate(rows):
            known = batch.known.slice(query, query + 1).value.tolist()
            offer = block.row if block.row.dim() == 1 else block.row[query]
            own += [row for row in offer.tolist() if row not in known]
    return rows


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("n", [1, 4])
def test_dns_takes_the_hardest_items(name: str, n: int, facts: Facts, look: RunLook) -> None:
    """A loop over queries says the same: the n best distinct items that are not known, best first, or all there are."""
    of = ready(copy.deepcopy(POOLS[name]), facts)
    batch = batch_of_queries([[3], [0, 5, 7], [3], [11], [2, 6, 9, 10]])
    score = random_scores(5)
    see(look, score)
    for seed in range(10):
        rows = chosen(DNS(n=n, of=of), batch, look, seed)
        for query, own in enumerate(offered(of, batch, look, seed)):
            best = sorted(set(own), key=lambda row: -float(score[query, row]))[:n]
            assert rows[query] == best + [-1] * (n - len(best))


# Softmax(rho, N)


def test_softmax_dns_weighs_the_whole_pool(facts: Facts, look: RunLook) -> None:
    """A loop over queries and items, with the law of the pool counted by hand; weights sum to the size of the pool."""
    of = ready(Popularity(9, alpha=1.0, per_query=True), facts)
    batch, rho, score = batch_of_queries([[3], [0, 5, 7], [11]]), 0.7, random_scores(3)
    see(look, score)
    (block,) = SoftmaxDNS(rho=rho, of=of).draw(batch, look, drawn(5))
    for query, pool in enumerate(offered(of, batch, look, 5)):
        scores = [float(score[query, row]) for row in pool]
        mean = sum(scores) / len(pool)
        t = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(pool) / (2 * rho))
        raw = [math.exp(s / t) / (9 * float(SHARE[row])) for s, row in zip(scores, pool, strict=True)]
        expected = [len(pool) * w / sum(raw) for w in raw]
        found = block.log_weight[query][block.row[query] >= 0].exp().tolist()
        assert [row for row in block.row[query].tolist() if row >= 0] == pool
        assert found == pytest.approx(expected, rel=1e-4)


def test_softmax_dns_goes_from_even_to_the_hardest(look: RunLook) -> None:
    batch, score = open_batch(2), random_scores(2)
    score[1] = 4.0
    see(look, score)

    def weights(rho: float) -> Tensor:
        (block,) = SoftmaxDNS(rho=rho, of=evenly()).draw(batch, look, drawn(0))
        return block.log_weight.exp()

    assert weights(0.0).flatten().tolist() == pytest.approx([1.0] * 2 * M)
    assert float(weights(1e6)[0, score[0].argmax()]) == pytest.approx(M)
    assert weights(5.0)[1].tolist() == pytest.approx([1.0] * M)  # no spread: even, whatever rho


def evenly(n_items: int = M) -> Catalogue:
    """The catalogue, a count of 1 each."""
    sampler = Catalogue()
    sampler.setup(Facts(n_items=n_items, n_queries=1, item_count_M=torch.ones(n_items), batch_size=1, batch_of="pairs"))
    return sampler


def test_rho_is_the_divergence_of_the_weights(look: RunLook) -> None:
    """For small rho: sum_j p_j log(N p_j) = Var s / (2 t^2) = rho, up to its third moment."""
    n = 4000
    of = evenly(n)
    look.query_BD, look.item_MD = torch.ones(1, 1), 3 * torch.randn(n, 1, generator=drawn(0))
    (block,) = SoftmaxDNS(rho=0.01, of=of).draw(open_batch(1), look, drawn(0))
    p = block.log_weight.double().exp() / n
    assert float((p * block.log_weight).sum()) == pytest.approx(0.01, rel=0.03)


# SIR


def enumerated(score: Tensor, n: int, *, replacement: bool) -> Tensor:
    """[M, M + 1] of the first and second item resampled from n draws by popularity; the last column is no second."""
    law = torch.zeros(M, M + 1, dtype=torch.float64)
    for pool in itertools.product(SHARE.nonzero()[:, 0].tolist(), repeat=n):
        p_pool = math.prod(float(SHARE[row]) for row in pool)
        weight: Counter[int] = Counter()
        for row in pool:
            weight[row] += math.exp(float(score[row])) / float(SHARE[row])
        total = sum(weight.values())
        for first, second in itertools.product(weight, repeat=2):
            p = p_pool * weight[first] / total
            if replacement:
                law[first, second] += p * weight[second] / total
            elif first != second:
                law[first, second] += p * weight[second] / (total - weight[first])
            elif len(weight) == 1:
                law[first, M] += p
    return law


@pytest.mark.parametrize("replacement", [True, False])
def test_sir_resamples_by_the_enumerated_law(replacement: bool, facts: Facts, look: RunLook) -> None:
    of = Popularity(3, alpha=1.0, per_query=True)
    sampler = ready(SIR(n=2, temperature=0.5, replacement=replacement, of=of), facts)
    score = random_scores(1, 4)[0] / 2
    law = enumerated(score / 0.5, 3, replacement=replacement)
    rare = law * MANY < 8

    def count(seed: int) -> Tensor:
        (block,) = sampler.draw(open_batch(MANY), see(look, score.expand(MANY, M)), drawn(seed))
        second = block.row[:, 1].where(block.row[:, 1] >= 0, M)
        pair = (block.row[:, 0] * (M + 1) + second).bincount(minlength=M * (M + 1)).view(M, M + 1)
        assert not bool(pair[law == 0].any())
        return torch.cat([pair[~rare], pair[rare].sum()[None]])

    together = torch.cat([law[~rare], law[rare].sum()[None]])
    assert fits(count, together)
    first = law.sum(1)
    first[first * MANY < 8] = 0

    def count_first(seed: int) -> Tensor:
        (block,) = sampler.draw(open_batch(2 * MANY), see(look, score.expand(2 * MANY, M)), drawn(seed))
        return block.row[:, 0].bincount(minlength=M).masked_fill(first == 0, 0)

    assert fits(count_first, first)
    first[first.argmax()] *= 1.05
    assert not fits(count_first, first)


def test_sir_comes_nearer_to_the_softmax_with_larger_pools(facts: Facts, look: RunLook) -> None:
    """Total variation of what is drawn to the softmax of all scores; pools of 1 leave no choice."""
    score = 2 * random_scores(1, 1)[0]
    softmax = score.double().softmax(0)
    distance = []
    for n in (1, 4, 20, 200):
        sampler = ready(SIR(n=4, of=Uniform(n, per_query=True)), facts)
        (block,) = sampler.draw(open_batch(20000), see(look, score.expand(20000, M)), drawn(n))
        share = block.row.flatten().bincount(minlength=M).double() / block.row.numel()
        distance.append(float((share - softmax).abs().sum()) / 2)
    of_uniform = float((1 / M - softmax).abs().sum()) / 2
    assert distance[0] == pytest.approx(of_uniform, abs=0.02)
    assert distance[0] > 1.3 * distance[1] > 1.3**2 * distance[2] > 1.3**3 * distance[3]
    assert distance[3] < 0.02


def test_sir_of_the_batch_corrects_what_comes_often(facts: Facts, look: RunLook) -> None:
    """All scores equal: an item of the batch is resampled by 1 / P(it is in a batch)."""
    batch = replace(batch_of([0, 0, 3, 5, 11]), known=open_batch(5).known)
    see(look, torch.zeros(5, M))
    (block,) = ready(SIR(n=20000, of=InBatch()), facts).draw(batch, look, drawn(0))
    weight = torch.tensor([1 / (1 - (1 - float(SHARE[row])) ** 15) for row in (0, 3, 5, 11)])
    share = block.row.flatten().bincount(minlength=M)[[0, 3, 5, 11]] / 100000
    assert share.tolist() == pytest.approx((weight / weight.sum()).tolist(), abs=0.005)


# AHNS


@pytest.mark.parametrize("p", [-2.0, -1.5, -1.0, -0.5])
def test_ahns_takes_what_is_nearest_to_its_aim(p: float, facts: Facts, look: RunLook) -> None:
    """A loop over queries; positives below -alpha have the aim of -alpha."""
    of = ready(copy.deepcopy(POOLS["mixed"]), facts)
    batch = batch_of_queries([[3], [0, 5, 7], [2], [11]])
    score = 2 * random_scores(4)
    score[2, 2] = -5.0
    score[3, 11] = -0.99  # an aim of 50 and more
    see(look, score)
    for seed in range(10):
        rows = chosen(AHNS(n=2, beta=0.5, alpha=1.0, p=p, of=of), batch, look, seed)
        for query, own in enumerate(offered(of, batch, look, seed)):
            positive = float(score[query, batch.item_P[batch.of_P == query]].mean())
            base = positive + 1.0
            aim = 0.5 * base ** (p + 1) if base > 0 else {-2.0: 1e6, -1.5: 1e6, -1.0: 0.5, -0.5: 0.0}[p]
            best = sorted(set(own), key=lambda row: abs(float(score[query, row]) - aim))[:2]
            assert rows[query] == best + [-1] * (2 - len(best))


# BNS


def risk(score: float, positive: float, lower: float, theta: float, trust: float) -> float:
    """As the authors' code has it."""
    unbias = (1 - lower) * (1 - theta) / (1 - lower - theta + 2 * lower * theta)
    info = 1 - 1 / (1 + math.exp(score - positive))
    return (1 - unbias) * info - trust * unbias * info


@pytest.mark.parametrize("name", POOLS)
def test_bns_takes_the_least_risk(name: str, facts: Facts, look: RunLook) -> None:
    """A loop over queries, with all items of the pool as candidates."""
    of = ready(copy.deepcopy(POOLS[name]), facts)
    batch = batch_of_queries([[3], [0, 5, 7], [11]])
    score = 2 * random_scores(3)
    see(look, score)
    sampler = ready(BNS(n=2, candidates=50, trust=3.0, of=of), facts)
    for seed in range(10):
        rows = chosen(sampler, batch, look, seed)
        for query, own in enumerate(offered(of, batch, look, seed)):
            positive = float(score[query, batch.item_P[batch.of_P == query]].mean())
            cost = {
                row: risk(
                    float(score[query, row]),
                    positive,
                    sum(float(score[query, other]) <= float(score[query, row]) for other in own) / (len(own) + 1),
                    COUNT[row] / TOTAL,
                    3.0,
                )
                for row in own
            }
            best = sorted(cost, key=lambda row: cost[row])[:2]
            assert rows[query] == best + [-1] * (2 - len(best))


def test_the_candidates_of_bns_are_drawn_evenly(facts: Facts, look: RunLook) -> None:
    """With one candidate nothing is left to choose: any item of the pool, however often it comes."""
    sampler = ready(BNS(candidates=1, of=given([2, 2, 2, 5, 7])), facts)
    law = torch.zeros(M, dtype=torch.float64)
    law[[2, 5, 7]] = 1 / 3

    def count(seed: int) -> Tensor:
        (block,) = sampler.draw(open_batch(2000), see(look, random_scores(2000)), drawn(seed))
        return block.row[:, 0].bincount(minlength=M)

    assert fits(count, law)


def test_settings_of_miners_that_make_no_sense_are_refused() -> None:
    for make, message in (
        (lambda: DNS(n=0), "DNS: n is 0"),
        (lambda: DNS(n=3, among=2), "among is 2, expected at least n, 3"),
        (lambda: SIR(temperature=0.0), "temperature is 0"),
        (lambda: SIR(of=DNS()), "SIR: of is DNS, which has no density"),
        (lambda: SoftmaxDNS(of=DNS()), "SoftmaxDNS: of is DNS"),
        (lambda: SoftmaxDNS(rho=-1.0), "rho is -1"),
        (lambda: AHNS(beta=0.0), "beta is 0"),
        (lambda: AHNS(p=math.inf), "p is inf"),
        (lambda: BNS(n=3, candidates=2), "candidates is 2"),
        (lambda: BNS(trust=0.0), "trust is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
