"""Samplers of a catalogue that comes and goes: what may not be drawn is not, and counts nothing."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from twotower.errors import ConfigError
from twotower.negatives import (
    AOBPR,
    DNS,
    AdaptiveImportance,
    Catalogue,
    Conditional,
    FirstViolation,
    Gibbs,
    Law,
    LogPopularity,
    LogUniform,
    Popularity,
    RankWindow,
    Rejection,
    Sampler,
    TwoBucket,
    Uniform,
    Unknown,
    propose,
)
from twotower.part import Events, Facts
from twotower.records import LiveAt, Lives

from .conftest import COUNT, RunLook, batch_of, features_of
from .examples import EXAMPLES
from .laws import M, check_law, independent, ready
from .test_room import DEPENDS_ON_THE_DATA, SIZES

GONE = [2, 3, 8, 11]
"""Of them 2 never had an event, and 3 and 11 are popular."""
LIVE = [row for row in range(M) if row not in GONE]
OF_THE_BATCH = {"InBatch", "Queue", "Queue alone", "Rotations", "Impressions", "Impressions thinned, by times",
                "Impressions, reliable"}  # fmt: skip
"""They offer what events bring; what of it is not live is excluded by the loss."""


@pytest.fixture
def living(facts: Facts) -> Facts:
    live_M = torch.ones(M, dtype=torch.bool)
    live_M[GONE] = False
    return replace(facts, live_M=live_M)


@pytest.fixture
def seeing(look: RunLook) -> RunLook:
    rng = torch.Generator().manual_seed(0)
    look.query_BD, look.item_MD = torch.randn(4, 3, generator=rng), torch.randn(M, 3, generator=rng)
    return look


def shares(weight: dict[int, float]) -> Tensor:
    return torch.tensor([weight.get(row, 0.0) / math.fsum(weight.values()) for row in range(M)], dtype=torch.float64)


def zipf() -> Tensor:
    falling = sorted(LIVE, key=lambda row: (-COUNT[row], row))
    return shares({row: math.log((rank + 2) / (rank + 1)) for rank, row in enumerate(falling)})


def two_buckets() -> Tensor:
    low = [row for row in LIVE if COUNT[row] < 200]
    even = sum(COUNT[row] ** 0.75 for row in low) / len(low)
    return shares({row: even if row in low else COUNT[row] ** 0.75 for row in LIVE})


POPULAR = shares({row: COUNT[row] ** 0.75 for row in LIVE})
LAWS: dict[str, tuple[Sampler, Tensor]] = {
    "Uniform": (Uniform(24), shares(dict.fromkeys(LIVE, 1.0))),
    "Popularity": (Popularity(24), POPULAR),
    "Popularity, smoothed": (Popularity(24, smoothing=5.0), shares({row: (COUNT[row] + 5) ** 0.75 for row in LIVE})),
    "LogPopularity": (LogPopularity(24), shares({row: math.log1p(COUNT[row]) for row in LIVE})),
    "LogUniform": (LogUniform(24), zipf()),
    "TwoBucket": (TwoBucket(24, threshold=200), two_buckets()),
    "Rejection": (Rejection(of=Uniform(4), target=Popularity(24)), POPULAR),
}


@pytest.mark.parametrize("name", LAWS)
def test_laws_are_those_of_their_definition_over_the_live(name: str, living: Facts, look: RunLook) -> None:
    sampler, q_M = LAWS[name]
    sampler = ready(copy.deepcopy(sampler), living)
    count_M = sampler.log_count(torch.arange(M), batch_of([0]), look).double().exp()
    assert count_M.tolist() == pytest.approx((24 * q_M).tolist(), rel=1e-5)


@pytest.mark.parametrize("name", ["Uniform", "Popularity", "LogUniform"])
def test_draws_follow_the_law_of_the_live(name: str, living: Facts, look: RunLook) -> None:
    sampler, q_M = LAWS[name]
    check_law(ready(copy.deepcopy(sampler), living), look, independent(q_M, 24), trials=60)


def test_distinct_draws_are_of_the_live(living: Facts, look: RunLook) -> None:
    law: Law = Uniform(6, unique=True)
    law.setup(living)
    count_M = law.log_count(torch.arange(M), batch_of([0]), look).double().exp()
    assert count_M.tolist() == pytest.approx([6 / 8 if row in LIVE else 0.0 for row in range(M)])
    with pytest.raises(ConfigError, match="9 distinct items, but 8 of 12 can be drawn"):
        Uniform(9, unique=True).setup(living)


def test_the_catalogue_is_what_is_live(living: Facts, look: RunLook) -> None:
    catalogue = ready(Catalogue(), living)
    (block,) = propose(catalogue, batch_of([0]), look, torch.Generator()).blocks
    assert block.row.tolist() == LIVE
    assert catalogue.log_count(torch.arange(M), batch_of([0]), look).exp().tolist() == [
        float(row in LIVE) for row in range(M)
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_sampler_draws_what_may_not_be(name: str, living: Facts, seeing: RunLook) -> None:
    """Not those that bring it with the batch, or with what was shown; those of the catalogue never do."""
    sampler = ready(copy.deepcopy(EXAMPLES[name]), living)
    sampler.train()
    batch, brought = batch_of([0, 1, 4, 5]), name in OF_THE_BATCH or "RNS" in name
    for seed in range(10):
        drawn = propose(sampler, batch, seeing, torch.Generator().manual_seed(seed))
        for block in drawn.blocks:
            offered = block.row[(block.log_weight > -math.inf) & (block.row >= 0)]
            assert brought or not bool(torch.isin(offered, torch.tensor(GONE)).any())
        if sampler.density != "none" and "InBatch" not in repr(sampler) and not brought:
            log_count = sampler.log_count(torch.arange(M), batch, seeing)
            assert bool((log_count[..., GONE] == -math.inf).all())
            positive = drawn.positive_log_count_P
            assert not bool(positive.isnan().any())


@pytest.mark.parametrize("name", EXAMPLES)
def test_more_is_kept_where_not_all_may_be_drawn_and_it_is_told(name: str, living: Facts) -> None:
    if name in DEPENDS_ON_THE_DATA:
        return
    sampler, told = (
        ready(copy.deepcopy(EXAMPLES[name]), living),
        EXAMPLES[name].room(replace(SIZES, some_come_and_go=True)),
    )
    tables = {id(x) for table in sampler.modules() if type(table).__name__ == "Table" for x in table.buffers()}
    assert sum(x.numel() * x.element_size() for x in sampler.buffers() if id(x) not in tables) <= told.kept


@pytest.mark.parametrize("name", EXAMPLES)
def test_where_all_are_live_nothing_changes(name: str, facts: Facts, seeing: RunLook) -> None:
    everything = replace(facts, live_M=torch.ones(M, dtype=torch.bool))
    made = []
    for found in (facts, everything):
        torch.manual_seed(0)  # some have vectors of their own
        made.append(ready(copy.deepcopy(EXAMPLES[name]), found))
    plain, same = made
    batch = batch_of([3, 0, 3, 11])
    for of_plain, of_same in zip(
        *(propose(s, batch, seeing, torch.Generator().manual_seed(1)).blocks for s in (plain, same)), strict=True
    ):
        assert torch.equal(of_plain.row, of_same.row)
        assert torch.equal(of_plain.log_weight, of_same.log_weight)
        assert torch.equal(of_plain.log_count.nan_to_num(), of_same.log_count.nan_to_num())


def test_nothing_live_is_an_error(facts: Facts) -> None:
    with pytest.raises(ConfigError, match="none of the 12 items is live"):
        Uniform(3).setup(replace(facts, live_M=torch.zeros(M, dtype=torch.bool)))


def test_ranks_and_estimates_count_the_live(living: Facts, seeing: RunLook) -> None:
    with pytest.raises(ConfigError, match="first is rank 9, but there are 8 items"):
        RankWindow(first=9, last=9).setup(living)
    violation = FirstViolation()
    violation.setup(living)
    assert violation.n_live == 8
    window = RankWindow(8, first=1, last=12)
    window.setup(living)
    (block,) = window.draw(batch_of([0, 1, 4, 5]), seeing, torch.Generator())
    assert [sorted(set(line) - {-1}) for line in block.row.tolist()] == [
        [row for row in LIVE if row != own] for own in (0, 1, 4, 5)
    ]


def test_groups_have_no_pairs_of_the_gone(living: Facts, look: RunLook) -> None:
    conditional = Conditional(24, by="country", smoothing=0.25, alpha=1.0)
    conditional.setup(living)
    item_E = torch.repeat_interleave(torch.arange(M), torch.tensor(COUNT))
    country_E = features_of(torch.arange(len(item_E)))["country"]
    total = [sum(COUNT[row] for row in LIVE)]
    want = []
    for country in range(3):  # those of the batch's queries
        of_group = [int(((item_E == row) & (country_E == country)).sum()) * (row in LIVE) for row in range(M)]
        want.append([
            24 * (0.75 * n / sum(of_group) + 0.25 * COUNT[row] * (row in LIVE) / total[0])
            for row, n in enumerate(of_group)
        ])  # fmt: skip
    found = conditional.log_count(torch.arange(M), batch_of([0, 1, 4]), look).double().exp()
    for line, wanted in zip(found.tolist(), want, strict=True):
        assert line == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("sampler", [AOBPR(8, scale=4.0), AdaptiveImportance(ess=4.0, block=4, cap=16, bits=2),
                                     Gibbs(5, temperature=1.0)], ids=lambda s: type(s).__name__)  # fmt: skip
def test_a_state_of_other_times_is_mended(sampler: Sampler, facts: Facts, living: Facts, seeing: RunLook) -> None:
    """What was learnt while all were live draws only the live today, and its counts are a law of them."""
    old, batch = ready(copy.deepcopy(sampler), facts), batch_of([0, 1, 4, 5])
    for step in (1, 2, 3):
        seeing.step = step
        old.draw(batch, seeing, torch.Generator().manual_seed(step))
    new = ready(copy.deepcopy(sampler), living)
    new.load_state_dict(old.state_dict())
    (block,) = new.draw(batch, seeing, torch.Generator())
    assert not bool(torch.isin(block.row, torch.tensor(GONE)).any())
    count_BM = new.log_count(torch.arange(M), batch, seeing).double().exp()
    assert not bool(count_BM[:, GONE].any())
    if sampler.density != "relative":
        n = 8 if isinstance(sampler, AOBPR) else 4.0
        assert count_BM.sum(1).tolist() == pytest.approx([n] * 4, rel=1e-5)


# ---------------------------------------------------------------- at the moment of a query


def test_pools_choose_among_what_is_live_at_the_moment(facts: Facts, seeing: RunLook) -> None:
    """A query's hardest item is the hardest of those that live then."""
    since = torch.tensor([0, 0, 0, 5, 5, 5, 0, 0, 0, 0, 5, 0])
    until = torch.tensor([9, 3, 9, 9, 9, 9, 3, 9, 9, 9, 9, 2])
    time_us = torch.tensor([1, 2, 4, 6])
    live = LiveAt(lives=Lives(since_us_M=since, until_us_M=until), first_us_n=time_us, last_us_n=time_us)
    batch = replace(batch_of([0, 1, 2, 3]), live=live)
    score_BM = (seeing.query_BD @ seeing.item_MD.T).tolist()
    hardest = [
        max((i for i in range(M) if since[i] <= t < until[i] and i != own), key=lambda i, line=line: line[i])
        for line, t, own in zip(score_BM, time_us.tolist(), [0, 1, 2, 3], strict=True)
    ]
    for sampler in (DNS(of=Catalogue()), RankWindow(first=1, last=1)):
        sampler.setup(facts)
        (block,) = sampler.draw(batch, seeing, torch.Generator())
        assert block.row[:, 0].tolist() == hardest


def test_unknown_items_are_live_ones(living: Facts, look: RunLook) -> None:
    unknown = ready(Unknown(of=Popularity(24)), living)
    found = unknown.log_count(torch.arange(M), batch_of([0, 1]), look).double().exp()
    for line, own in zip(found.tolist(), (0, 1), strict=True):
        left = {row: COUNT[row] ** 0.75 for row in LIVE if row != own}
        assert line == pytest.approx((24 * shares(left)).tolist(), rel=1e-4)


def test_events_of_the_gone_are_no_error(living: Facts) -> None:
    """Their frequencies are counted as trained, and a sampler by features sets up."""
    only_gone = replace(living, events=Events(item_E=torch.tensor(GONE), features=features_of))
    Conditional(24, by="country").setup(only_gone)
