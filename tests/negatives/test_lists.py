"""Impressions as candidates: the law of each query's list, what may not be drawn, and what the model has a say in."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from twotower.errors import ConfigError
from twotower.negatives import Impressions, InBatch, Sampler, Uniform, propose
from twotower.part import Facts
from twotower.records import Batch, Ragged

from .conftest import RunLook, batch_of
from .laws import M, check_law, independent, p_value, ready

TIMES: list[dict[int, int]] = [
    {2: 1, 3: 4, 7: 2, 8: 16, 11: 9},
    {},
    {5: 3},
    {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 6: 40, 10: 5},
]
"""How often each of four queries was shown each item that it did not take."""


def lists_of(times: list[dict[int, int]]) -> Ragged:
    """Of 16 queries, the last ones without a list."""
    length = torch.tensor([len(own) for own in times] + [0] * (16 - len(times)))
    return Ragged(
        offset=torch.cat([length.new_zeros(1), length.cumsum(0)]),
        value=torch.tensor([item for own in times for item in own]),
        weight=torch.tensor([float(n) for own in times for n in own.values()]),
    )


@pytest.fixture
def shown(facts: Facts) -> Facts:
    only_above = lists_of([{3: 1, 11: 2}, {}, {}, {6: 1}])
    return replace(facts, shown=lists_of(TIMES), passed_over=only_above)


def law(query: int, *, alpha: float = 0.0, thin: float | None = None) -> dict[int, float]:
    """From the formulas, one item at a time."""
    total = sum(n for own in TIMES for n in own.values())
    weight = {}
    for item, n in TIMES[query].items():
        f = sum(own.get(item, 0) for own in TIMES) / total
        weight[item] = n**alpha * (1.0 if thin is None else min(1.0, (math.sqrt(f / thin) + 1) * thin / f))
    return {item: w / sum(weight.values()) for item, w in weight.items()}


def asking(queries: list[int]) -> Batch:
    return replace(batch_of([9] * len(queries)), query_B=torch.tensor(queries))


def drawn(sampler: Sampler, batch: Batch, look: RunLook, seed: int = 0) -> Tensor:
    (block,) = propose(sampler, batch, look, torch.Generator().manual_seed(seed)).blocks
    assert torch.equal(block.row < 0, block.log_weight == -torch.inf)
    return block.row


SETTINGS: list[dict[str, float]] = [{}, {"alpha": 1.0}, {"thin": 0.05}, {"alpha": 0.5, "thin": 0.02}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_each_query_draws_from_its_list_by_the_law(settings: dict[str, float], shown: Facts, look: RunLook) -> None:
    """20,000 draws of every query: no other item, and a chi-square that an error of 5% in a share would fail."""
    sampler = ready(Impressions(5000, **settings), shown)  # type: ignore[arg-type]
    row_BK = torch.cat([drawn(sampler, asking([0, 1, 2, 3, -1]), look, seed) for seed in range(4)], 1)
    assert bool((row_BK[[1, 4]] == -1).all())  # no list, no id
    for query in (0, 2, 3):
        expected = law(query, **settings)
        found = row_BK[query].bincount(minlength=M)
        assert set(found.nonzero()[:, 0].tolist()) == set(expected)
        counts = [int(found[item]) for item in expected]
        assert len(expected) == 1 or chisquare(counts, [20_000 * p for p in expected.values()]).pvalue > 0.001


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_counts_are_those_of_the_law(settings: dict[str, float], shown: Facts, look: RunLook) -> None:
    sampler = ready(Impressions(6, **settings), shown)  # type: ignore[arg-type]
    batch = asking([3, 0, -1, 1, 2])
    log_count = sampler.log_count(torch.arange(M), batch, look)
    assert log_count.dtype == torch.float32
    for own, query in zip(log_count.exp().tolist(), [3, 0, None, 1, 2], strict=True):
        expected = {} if query is None else law(query, **settings)
        assert own == pytest.approx([6 * expected.get(item, 0.0) for item in range(M)], rel=1e-5)
        assert sum(own) == pytest.approx(6 if expected else 0, rel=1e-5)
    of_each = sampler.log_count(torch.tensor([[6, 6], [8, 5], [8, 5], [8, 5], [8, 5]]), batch, look)
    rows = [(0, [6, 6]), (1, [8, 5]), (2, [8, 5]), (3, [8, 5]), (4, [8, 5])]
    assert of_each.tolist() == [[float(log_count[at, item]) for item in own] for at, own in rows]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_follow_the_counts(settings: dict[str, float], shown: Facts, look: RunLook) -> None:
    sampler = ready(Impressions(24, **settings), shown)  # type: ignore[arg-type]
    p_M = torch.tensor([law(0, **settings).get(item, 0.0) for item in range(M)])
    check_law(sampler, look, independent(p_M, 24), trials=100)


def test_the_test_notices_a_share_that_is_off_by_five_percent(shown: Facts, look: RunLook) -> None:
    sampler = ready(Impressions(24 * 40), shown)
    p_M = torch.tensor([law(0).get(item, 0.0) for item in range(M)])
    assert isinstance(sampler, Impressions)
    sampler.share_L[1] *= 1.05
    sampler.share_L[4] -= 0.05 * 0.2
    values = [p_value(sampler, look, 150, seed, independent(p_M, 24 * 40)) for seed in range(3)]
    assert max(values) < 1e-6


def test_thinning_spares_what_is_shown_most(shown: Facts, look: RunLook) -> None:
    """Item 6 has 40 of the 90 impressions: f = .4444, t = .01 keeps (6.6667 + 1) * .0225 = .1725 of them; item 10 has
    5: f = .0556, keeps (2.3570 + 1) * .18 = .6043. So of query 3 they are drawn as .1725 to .6043."""
    total = sum(n for own in TIMES for n in own.values())
    assert total == 90 - 5
    sampler = ready(Impressions(1, thin=0.01), shown)
    log_count = sampler.log_count(torch.tensor([6, 10]), asking([3]), look)[0]
    keep = [(math.sqrt(n / total / 0.01) + 1) * 0.01 * total / n for n in (40, 5)]
    assert float((log_count[0] - log_count[1]).exp()) == pytest.approx(keep[0] / keep[1], rel=1e-5)


def test_skipping_above_draws_from_what_was_passed_over(shown: Facts, look: RunLook) -> None:
    row_BK = drawn(ready(Impressions(200, skip_above=True), shown), asking([0, 1, 2, 3]), look)
    assert [set(own) for own in row_BK.tolist()] == [{3, 11}, {-1}, {-1}, {6}]


# ---------------------------------------------------------------- what the model has a say in


def seeing(look: RunLook, queries: list[int]) -> RunLook:
    rng = torch.Generator().manual_seed(4)
    look.query_BD, look.item_MD = torch.randn(len(queries), 3, generator=rng), torch.randn(M, 3, generator=rng)
    return look


@pytest.mark.parametrize("reliable", [0.01, 0.4, 0.5, 0.99])
def test_only_the_lowest_scores_are_reliable(reliable: float, shown: Facts, look: RunLook) -> None:
    queries = [3, 0, 1, -1, 2, 0]
    seeing(look, queries)
    sampler = ready(Impressions(4000, alpha=1.0, reliable=reliable), shown)
    assert sampler.density == "none"
    row_BK = drawn(sampler, asking(queries), look)
    for at, query in enumerate(queries):
        own = TIMES[query] if query >= 0 else {}
        score = {item: float(look.query_BD[at] @ look.item_MD[item]) for item in own}
        lowest = sorted(own, key=lambda item: score[item])[: math.ceil(reliable * len(own))]
        found = row_BK[at].bincount(minlength=M) if own else torch.zeros(M, dtype=torch.int64)
        assert set(row_BK[at].tolist()) == (set(lowest) or {-1})
        weight = [own[item] for item in lowest]
        if len(lowest) > 1:
            expected = [4000 * w / sum(weight) for w in weight]
            assert chisquare([int(found[item]) for item in lowest], expected).pvalue > 0.001


def test_a_batch_without_any_list_gets_empty_places(shown: Facts, look: RunLook) -> None:
    seeing(look, [1, -1])
    for reliable in (0.5, 1.0):
        assert drawn(ready(Impressions(3, reliable=reliable), shown), asking([1, -1]), look).tolist() == [[-1] * 3] * 2


# ---------------------------------------------------------------- settings, and beside others


def test_the_density_and_the_count_beside_other_samplers(shown: Facts, look: RunLook) -> None:
    """A shared item counts for a query as both parts say, and so does a positive."""
    mixture = ready(Uniform(6) + Impressions(4), shown)
    assert mixture.density == "exact"
    assert (InBatch() + Impressions(4, reliable=0.5)).density == "none"
    batch = replace(asking([0, 2]), item_P=torch.tensor([8, 8]))
    candidates = propose(mixture, batch, look, torch.Generator().manual_seed(0))
    shared, own = candidates.blocks
    for column, row in enumerate(shared.row.tolist()):
        for at, query in enumerate([0, 2]):
            expected = 6 / M + 4 * law(query).get(row, 0.0)
            assert float(shared.log_count[at, column].exp()) == pytest.approx(expected, rel=1e-5)
    assert own.log_count.exp().tolist() == [pytest.approx([6 / M + 4 / 5] * 4), pytest.approx([6 / M + 4] * 4)]
    assert candidates.positive_log_count_P.exp().tolist() == pytest.approx([6 / M + 4 / 5, 6 / M])


def test_settings_that_make_no_sense_are_refused(facts: Facts, shown: Facts) -> None:
    with pytest.raises(ConfigError, match="Impressions: n is 0"):
        Impressions(0)
    for thin in (0.0, -1.0, math.inf):
        with pytest.raises(ConfigError, match="thin is"):
            Impressions(1, thin=thin)
    for reliable in (0.0, 1.5, math.nan):
        with pytest.raises(ConfigError, match="reliable is"):
            Impressions(1, reliable=reliable)
    nobody = replace(facts, shown=lists_of([{}, {}]), passed_over=lists_of([{}, {}]))
    with pytest.raises(ConfigError, match="no query has an impression that it did not take: name schema"):
        Impressions(1).setup(nobody)
    with pytest.raises(ConfigError, match="and that lies above one it took"):
        Impressions(1, skip_above=True).setup(replace(shown, passed_over=lists_of([{}])))
