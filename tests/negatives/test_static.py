"""Fixed laws over the catalogue: each is held against the law as its definition gives it, item by item."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chi2, kstest
from torch import Tensor

from twotower.errors import ConfigError
from twotower.negatives import (
    DistinctTable,
    Law,
    LogPopularity,
    LogUniform,
    Popularity,
    Sampler,
    TwoBucket,
    Uniform,
)
from twotower.part import Facts
from twotower.records import Batch, Ragged

from .conftest import COUNT, RunLook, batch_of
from .laws import M, check_law, independent, ready

N_SEEDS = 20


def shares(weight: list[float]) -> Tensor:
    return torch.tensor([w / math.fsum(weight) for w in weight], dtype=torch.float64)


def zipf() -> list[float]:
    rank = sorted(range(M), key=lambda item: (-COUNT[item], item))
    return [math.log((rank.index(item) + 2) / (rank.index(item) + 1)) / math.log(M + 1) for item in range(M)]


def two_buckets(threshold: float, alpha: float) -> list[float]:
    power = [count**alpha for count in COUNT]
    low = [item for item in range(M) if COUNT[item] < threshold]
    return [sum(power[j] for j in low) / len(low) if item in low else power[item] for item in range(M)]


LAWS: dict[str, tuple[type[Law], dict[str, float], Tensor]] = {
    "LogPopularity": (LogPopularity, {}, shares([math.log(1 + count) for count in COUNT])),
    "LogUniform": (LogUniform, {}, shares(zipf())),
    "Popularity": (Popularity, {}, shares([count**0.75 for count in COUNT])),
    "TwoBucket": (TwoBucket, {"threshold": 200}, shares(two_buckets(200, 0.75))),
    "Uniform": (Uniform, {}, shares([1.0] * M)),
}
"""Class, settings, and the law by its definition."""


def p_values(sampler: Sampler, expected: Tensor, batch: Batch, look: RunLook, cov: Tensor | None = None) -> list[float]:
    """Chi-square of the lists of all queries of the batch, which have one law, against the expected counts [M].

    The covariance is that of the law, or of the lists themselves where it is not given (Hotelling's T squared, of so
    many lists that it makes no difference).
    """
    found = []
    for seed in range(N_SEEDS):
        (block,) = sampler.draw(batch, look, torch.Generator().manual_seed(seed))
        offered_TM = torch.zeros(len(block.row), M, dtype=torch.float64)
        offered_TM.scatter_add_(1, block.row, torch.ones(block.row.shape, dtype=torch.float64))
        assert not bool(offered_TM[:, expected == 0].any())
        covariance = offered_TM.T.cov() if cov is None else cov
        inverse = torch.linalg.pinv(covariance, hermitian=True, rtol=1e-9)
        difference = offered_TM.mean(0) - expected
        statistic = float(difference @ inverse @ difference) * len(offered_TM)
        found.append(float(chi2.sf(statistic, int(torch.linalg.matrix_rank(covariance, hermitian=True, rtol=1e-9)))))
    return found


def uniform(p: list[float]) -> bool:
    return bool(kstest(p, "uniform").pvalue > 0.01)


def alike(n: int) -> Batch:
    """n queries that know nothing."""
    batch = batch_of(torch.zeros(n, dtype=torch.int64))
    nothing = Ragged(offset=torch.zeros(n + 1, dtype=torch.int64), value=torch.zeros(0, dtype=torch.int64))
    return replace(batch, query={"country": torch.zeros(n, dtype=torch.int64)}, known=nothing)


def counts(sampler: Sampler, look: RunLook, batch: Batch | None = None) -> Tensor:
    return sampler.log_count(torch.arange(M), batch or batch_of([0]), look).double().exp()


@pytest.mark.parametrize("name", LAWS)
def test_counts_are_those_of_the_definition(name: str, facts: Facts, look: RunLook) -> None:
    kind, settings, q_M = LAWS[name]
    for per_query in (False, True):
        sampler = ready(kind(7, per_query=per_query, **settings), facts)
        assert counts(sampler, look).tolist() == pytest.approx((7 * q_M).tolist(), rel=1e-5)


@pytest.mark.parametrize("name", ["LogPopularity", "LogUniform", "TwoBucket"])  # the others: test_laws
def test_shared_draws_follow_the_law(name: str, facts: Facts, look: RunLook) -> None:
    kind, settings, q_M = LAWS[name]
    check_law(ready(kind(24, **settings), facts), look, independent(q_M, 24), trials=60)


@pytest.mark.parametrize("name", LAWS)
def test_draws_of_each_query_follow_the_law(name: str, facts: Facts, look: RunLook) -> None:
    kind, settings, q_M = LAWS[name]
    sampler = ready(kind(10, per_query=True, **settings), facts)
    assert uniform(p_values(sampler, 10 * q_M, alike(3000), look, independent(q_M, 10)))


def inclusion(q_M: Tensor, n: int) -> list[float]:
    """min(1, c q), c found by halving."""
    low, high = 0.0, 1e9
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if sum(min(1.0, c * q) for q in q_M.tolist()) < n else (low, c)
    return [min(1.0, high * q) for q in q_M.tolist()]


@pytest.mark.parametrize("n", [1, 4, 9])
@pytest.mark.parametrize("name", LAWS)
def test_unique_draws_have_the_exact_counts(name: str, n: int, facts: Facts, look: RunLook) -> None:
    """Of 9, some items have count 1 in every law but the uniform one."""
    kind, settings, q_M = LAWS[name]
    sampler = ready(kind(n, unique=True, per_query=True, **settings), facts)
    pi_M = torch.tensor(inclusion(q_M, n), dtype=torch.float64)
    assert counts(sampler, look).tolist() == pytest.approx(pi_M.tolist(), rel=1e-5)
    assert float(counts(sampler, look).sum()) == pytest.approx(n, rel=1e-6)
    assert n < 9 or name == "Uniform" or bool((pi_M == 1).any())
    (block,) = sampler.draw(alike(3000), look, torch.Generator().manual_seed(0))
    assert all(len(set(rows)) == n for rows in block.row.tolist())
    assert uniform(p_values(sampler, pi_M, alike(3000), look))


def test_a_shared_unique_draw_follows_the_law(facts: Facts, look: RunLook) -> None:
    check_law(ready(LogPopularity(5, unique=True), facts), look, None, trials=100)


def test_all_items_with_weight_may_be_drawn_at_once(facts: Facts, look: RunLook) -> None:
    (block,) = ready(Popularity(10, unique=True), facts).draw(batch_of([0]), look, torch.Generator())
    assert sorted(block.row.tolist()) == [item for item in range(M) if COUNT[item]]
    with pytest.raises(ConfigError, match="Popularity: n is 11 distinct items, but 10 of 12 can be drawn"):
        Popularity(11, unique=True).setup(facts)


def test_no_two_items_come_together_more_often_than_independent_ones() -> None:
    weight = torch.tensor([3.0, 1, 2, 5, 8, 1, 1, 4, 2, 6])
    table, n_lists = DistinctTable(weight, 4), 100_000
    row = table.draw((n_lists, 4), torch.Generator().manual_seed(0))
    there = torch.zeros(n_lists, 10, dtype=torch.float64).scatter_(1, row, 1.0)
    together = there.T @ there / n_lists
    product = table.count_M[:, None] * table.count_M
    off = ~torch.eye(10, dtype=torch.bool)
    assert float((together - product)[off].max()) < 4 * math.sqrt(0.25 / n_lists)


def test_distinct_draws_from_a_large_catalogue() -> None:
    weight = torch.arange(1, 1_000_001).double() ** -1.0
    table = DistinctTable(weight, 1000)
    assert float(table.count_M.sum()) == pytest.approx(1000, rel=1e-9)
    row = table.draw((3, 1000), torch.Generator().manual_seed(0))
    assert [len(set(rows)) for rows in row.tolist()] == [1000] * 3


class OffByTwentieth(Popularity):
    def weights(self, facts: Facts) -> Tensor:
        return off(super().weights(facts))


class ZipfOffByTwentieth(LogUniform):
    def weights(self, facts: Facts) -> Tensor:
        return off(super().weights(facts))


class UniformOffByTwentieth(Uniform):
    def weights(self, facts: Facts) -> Tensor:
        return off(super().weights(facts))


def off(weight_M: Tensor) -> Tensor:
    """Item 3 is 5% more likely."""
    return weight_M * torch.where(torch.arange(M) == 3, 1.05, 1.0)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (Popularity(10, per_query=True), OffByTwentieth(10, per_query=True)),
        (LogUniform(10, per_query=True), ZipfOffByTwentieth(10, per_query=True)),
        (Uniform(6, per_query=True, unique=True), UniformOffByTwentieth(6, per_query=True, unique=True)),
    ],
)
def test_the_test_notices_a_law_that_is_off_by_a_twentieth(
    right: Sampler, wrong: Sampler, facts: Facts, look: RunLook
) -> None:
    expected, batch = counts(ready(right, facts), look), alike(20_000)
    assert uniform(p_values(right, expected, batch, look))
    assert max(p_values(ready(wrong, facts), expected, batch, look)) < 1e-4


def test_log_uniform_ranks_by_events_and_sums_to_one(facts: Facts, look: RunLook) -> None:
    """Item 11 has most events, then 3; 2 and 10 have none and rank by row. Of the first P is log 2 / log 13."""
    q_M = counts(ready(LogUniform(1), facts), look)
    assert float(q_M.sum()) == pytest.approx(1, rel=1e-6)
    assert q_M.argsort(descending=True).tolist() == [11, 3, 9, 0, 6, 4, 7, 1, 5, 8, 2, 10]
    assert q_M[[11, 10]].tolist() == pytest.approx([math.log(2) / math.log(13), math.log(13 / 12) / math.log(13)])


def test_two_buckets_are_popularity_above_and_uniform_below(facts: Facts, look: RunLook) -> None:
    popularity = counts(ready(Popularity(5), facts), look)
    high, low = [0, 3, 4, 6, 9, 11], [1, 2, 5, 7, 8, 10]
    found = counts(ready(TwoBucket(5, threshold=240), facts), look)
    assert torch.allclose(found[high], popularity[high], rtol=1e-5)
    assert torch.allclose(found[low], (popularity[low].sum() / 6).expand(6), rtol=1e-5)
    assert torch.allclose(counts(ready(TwoBucket(5, threshold=0), facts), look), popularity)
    flat = counts(ready(TwoBucket(5, threshold=math.inf), facts), look)
    assert flat.tolist() == pytest.approx([5 / 12] * 12, rel=1e-5)


def test_laws_that_make_no_sense_are_refused(facts: Facts) -> None:
    with pytest.raises(ConfigError, match="LogUniform: n is 0"):
        LogUniform(0)
    with pytest.raises(ConfigError, match="TwoBucket: threshold is -1"):
        TwoBucket(3, threshold=-1)
    with pytest.raises(ConfigError, match="LogPopularity: the weights of 12 items sum to 0"):
        LogPopularity(3).setup(replace(facts, item_count_M=torch.zeros(12)))
