"""Negatives by rank in a snapshot: who is in the window, when the snapshot is taken, and easy and hard ones mixed."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor

from twotower.errors import ConfigError
from twotower.negatives import InBatch, Mixture, RankWindow, Uniform, propose, rank_window, scores
from twotower.part import Facts
from twotower.records import Batch, Ragged

from .conftest import RunLook, batch_of, batch_of_queries
from .laws import M, independent, p_value, ready
from .runs import check_resume, recall_of, run_from_toml


@pytest.fixture
def seeing(look: RunLook) -> RunLook:
    """A model of random vectors."""
    rng = torch.Generator().manual_seed(0)
    look.query_BD, look.item_MD = torch.randn(3, 3, generator=rng), torch.randn(M, 3, generator=rng)
    return look


BATCH = replace(
    batch_of([3, 0, 8]),
    known=Ragged(offset=torch.tensor([0, 2, 3, 6]), value=torch.tensor([3, 10, 0, 1, 6, 8])),
)
"""Queries who know two, one and three of the twelve items."""


def naive_window(batch: Batch, query_BD: Tensor, item_MD: Tensor, first: int, last: int) -> list[set[int]]:
    """Items of ranks first to last of each query, those it knows not ranked."""
    found = []
    for query in range(len(query_BD)):
        known = batch.known.slice(query, query + 1).value.tolist()
        ranked = sorted(
            (item for item in range(M) if item not in known),
            key=lambda item: -sum(a * b for a, b in zip(query_BD[query].tolist(), item_MD[item].tolist(), strict=True)),
        )
        found.append(set(ranked[first - 1 : last]))
    return found


def drawn(sampler: RankWindow, batch: Batch, look: RunLook, times: int) -> list[list[list[int]]]:
    """[times][B] rows of each draw."""
    rng = torch.Generator().manual_seed(1)
    return [
        [[item for item in own if item >= 0] for own in block.row.tolist()]
        for _ in range(times)
        for block in sampler.draw(batch, look, rng)
    ]


@pytest.mark.parametrize(("first", "last"), [(1, 1), (1, 4), (3, 7), (2, 500), (9, 12)])
@pytest.mark.parametrize("tile", [1, 2, 64])
def test_ranks_are_within_the_window(
    first: int, last: int, tile: int, facts: Facts, seeing: RunLook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By naive sort; some queries have no more than nine items to rank, so the window may be short or empty."""
    monkeypatch.setattr(rank_window, "tile_for", lambda device, n_columns: tile)
    sampler = ready(RankWindow(2, first=first, last=last), facts)
    want = naive_window(BATCH, seeing.query_BD, seeing.item_MD, first, last)
    found: list[set[int]] = [set(), set(), set()]
    for draw in drawn(sampler, BATCH, seeing, 60):
        for query, rows in enumerate(draw):
            assert len(rows) == len(set(rows)) == min(2, len(want[query]))
            found[query] |= set(rows)
    assert found == want
    count_BM = sampler.log_count(torch.arange(M), BATCH, seeing).double().exp()
    for query, window in enumerate(want):
        share = min(2, len(window)) / len(window) if window else 0.0
        assert count_BM[query].tolist() == pytest.approx([share * (item in window) for item in range(M)])
    row_BK = torch.tensor([[0, 5, 5, 11], [7, 2, 4, 4], [9, 9, 1, 0]])
    assert torch.equal(sampler.log_count(row_BK, BATCH, seeing).double().exp(), count_BM.gather(1, row_BK))
    row_N = torch.tensor([5, 0, 5, 11])
    assert torch.equal(sampler.log_count(row_N, BATCH, seeing).double().exp(), count_BM[:, row_N])


def test_inside_the_window_all_are_alike(facts: Facts, seeing: RunLook) -> None:
    """Two of ranks 3 to 7: over 20 seeds the p-values of each item's draws are uniform."""
    sampler, p_values = ready(RankWindow(2, first=3, last=7), facts), []
    for seed in range(20):
        rng, count = torch.Generator().manual_seed(seed), torch.zeros(M)
        for _ in range(80):
            (block,) = sampler.draw(BATCH, seeing, rng)
            count[block.row[0]] += 1
        found = count[count > 0]
        assert len(found) == 5
        # Two of five without repeating vary 3/4 as much as two independent draws do.
        statistic = chisquare(found.numpy()).statistic / 0.75
        p_values.append(float(torch.special.gammaincc(torch.tensor(2.0), torch.tensor(statistic / 2))))
    assert kstest(p_values, "uniform").pvalue > 0.01, p_values


def test_the_snapshot_is_taken_in_time_and_is_stale_between(facts: Facts, seeing: RunLook) -> None:
    """After 3 steps, every 4: before steps 4, 8 and 12. The model of each step has vectors of its own."""
    sampler = ready(RankWindow(3, first=1, last=3, after=3, refresh_every=4), facts)
    of_step = {step: torch.randn(M, 3, generator=torch.Generator().manual_seed(step)) for step in range(1, 14)}
    for step in range(1, 14):
        seeing.step, seeing.item_MD = step, of_step[step]
        (rows,) = drawn(sampler, BATCH, seeing, 1)
        taken = {1: 0, 2: 0, 3: 0, **dict.fromkeys(range(4, 8), 4), **dict.fromkeys(range(8, 12), 8)}.get(step, 12)
        assert int(sampler.taken_at) == taken
        if not taken:
            assert rows == [[], [], []]
            assert bool((sampler.log_count(torch.arange(M), BATCH, seeing) == -math.inf).all())
            continue
        assert [set(own) for own in rows] == naive_window(BATCH, seeing.query_BD, of_step[taken], 1, 3)


def test_a_snapshot_is_encoded_in_parts(facts: Facts, seeing: RunLook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "_CHUNK", 5)
    sampler = ready(RankWindow(first=1, last=3), facts)
    asked: list[int] = []
    items = RunLook.items
    monkeypatch.setattr(RunLook, "items", lambda self, row: asked.append(len(row)) or items(self, row))
    sampler.draw(BATCH, seeing, torch.Generator())
    assert asked == [5, 5, 2]
    assert torch.equal(sampler.item_MD, seeing.item_MD)


def test_it_ranks_anew_for_other_queries(facts: Facts, seeing: RunLook) -> None:
    """Counts belong to the batch and the query vectors they are asked for, not to those last drawn for."""
    sampler = ready(RankWindow(3, first=2, last=4), facts)
    sampler.draw(BATCH, seeing, torch.Generator())
    other = replace(seeing, query_BD=-seeing.query_BD)
    for look, batch in ((seeing, BATCH), (other, BATCH), (seeing, batch_of([1, 2, 4]))):
        windows = naive_window(batch, look.query_BD, seeing.item_MD, 2, 4)
        held_BM = sampler.log_count(torch.arange(M), batch, look) > -math.inf
        assert [set(held.nonzero()[:, 0].tolist()) for held in held_BM] == windows


def test_a_copy_goes_on_from_its_state(facts: Facts, seeing: RunLook) -> None:
    """Saved before and after the first snapshot, between two: ranks go on by the one that was saved."""
    recipe = RankWindow(2, first=2, last=6, after=2, refresh_every=3)
    sampler = ready(copy.deepcopy(recipe), facts)
    for step in range(1, 8):
        resumed = ready(copy.deepcopy(recipe), facts)
        resumed.load_state_dict(sampler.state_dict())
        seeing.step, seeing.item_MD = step, torch.randn(M, 3, generator=torch.Generator().manual_seed(step))
        assert drawn(resumed, BATCH, seeing, 3) == drawn(sampler, BATCH, seeing, 3)


def test_positives_are_counted_by_the_law_of_their_query(facts: Facts, seeing: RunLook) -> None:
    """A positive is known, so a window never holds it: what counts it is the rest of the mixture, 24 / 12."""
    mixture = ready(Uniform(24, per_query=True) + RankWindow(first=1, last=3), facts)
    batch = batch_of_queries([[0, 3], [7], [2, 8, 11]])
    candidates = propose(mixture, batch, seeing, torch.Generator())
    assert candidates.positive_log_count_P.tolist() == pytest.approx([math.log(2)] * 6)
    easy, hard = candidates.blocks
    windows = naive_window(batch, seeing.query_BD, seeing.item_MD, 1, 3)
    for block in (easy, hard):
        for query, window in enumerate(windows):
            for item, log_count in zip(block.row[query].tolist(), block.log_count[query].tolist(), strict=True):
                assert math.exp(log_count) == pytest.approx(2 + (item in window) / 3)


def test_settings_that_make_no_sense_are_refused(facts: Facts) -> None:
    for settings, match in (
        ({"n": 0}, "n is 0"),
        ({"first": 0}, "ranks 0 to 500, expected 1 <= first"),
        ({"first": 9, "last": 8}, "ranks 9 to 8"),
        ({"refresh_every": 0}, "refresh_every is 0"),
        ({"after": -1}, "after is -1"),
    ):
        with pytest.raises(ConfigError, match=match):
            RankWindow(**settings)
    with pytest.raises(ConfigError, match="first is rank 101, but there are 12 items"):
        RankWindow().setup(facts)
    ready(RankWindow(first=12), facts)


# ---------------------------------------------------------------- three kinds: positives, easy and hard ones, 100 to 1


def test_a_hundred_easy_ones_for_each_hard_one(facts: Facts, seeing: RunLook) -> None:
    mixture = ready(Uniform(100, per_query=True) + RankWindow(1, first=2, last=5), facts)
    blocks = propose(mixture, BATCH, seeing, torch.Generator().manual_seed(0)).blocks
    assert [tuple(block.row.shape) for block in blocks] == [(3, 100), (3, 1)]
    windows = naive_window(BATCH, seeing.query_BD, seeing.item_MD, 2, 5)
    assert all(int(blocks[1].row[query]) in window for query, window in enumerate(windows))
    total_B = mixture.log_count(torch.arange(M), BATCH, seeing).double().exp().sum(1)
    assert total_B.tolist() == pytest.approx([101.0] * 3)


class TooMany(RankWindow):
    """Says that it draws 5% more than it does."""

    def log_count(self, row: Tensor, batch: Batch, look: RunLook) -> Tensor:
        return super().log_count(row, batch, look) + math.log(1.05)


def p_values_of(n_easy: int, hard: RankWindow, facts: Facts, look: RunLook) -> list[float]:
    """Over 20 seeds, of the first query, whose window of ranks 2 to 6 is the same in every batch."""
    rng = torch.Generator().manual_seed(3)
    look.query_BD, look.item_MD = torch.randn(16, 3, generator=rng), torch.randn(M, 3, generator=rng)
    mixture = ready(Uniform(n_easy, per_query=True) + hard, facts)
    assert isinstance(mixture, Mixture)
    assert mixture.density == "exact"
    (window, *_) = naive_window(batch_of([0] * 16), look.query_BD, look.item_MD, 2, 6)
    inside = torch.tensor([float(item in window) for item in range(M)], dtype=torch.float64)
    # n of 5 without repeating: the covariance of independent draws times (5 - n) / (5 - 1).
    covariance = independent(torch.full((M,), 1 / M), n_easy) + independent(inside / 5, hard.n) * (5 - hard.n) / 4
    return [p_value(mixture, look, 75, seed, covariance) for seed in range(20)]


@pytest.mark.parametrize(("n_easy", "n_hard"), [(100, 1), (1, 4)])
def test_draws_of_the_mixture_follow_its_counts(n_easy: int, n_hard: int, facts: Facts, look: RunLook) -> None:
    p_values = p_values_of(n_easy, RankWindow(n_hard, first=2, last=6), facts, look)
    assert kstest(p_values, "uniform").pvalue > 0.01, p_values


def test_a_wrong_count_is_noticed(facts: Facts, look: RunLook) -> None:
    p_values = p_values_of(1, TooMany(4, first=2, last=6), facts, look)
    assert kstest(p_values, "uniform").pvalue < 1e-3, p_values


# ---------------------------------------------------------------- in training

THREE_KINDS = """
kind = "Mixture"
parts = [
    {kind = "Uniform", n = 12, per_query = true},
    {kind = "RankWindow", n = 1, first = 2, last = 8, refresh_every = 3, after = 2},
]
"""
BESIDE_THE_BATCH = """
kind = "Mixture"
parts = [{kind = "InBatch"}, {kind = "Uniform", n = 8}, {kind = "RankWindow", n = 2, first = 3, last = 12}]
"""
MARGIN = 'kind = "Margin"\nmargin = 0.5'
SOFTMAX = 'kind = "SampledSoftmax"\ntemperature = 0.2\ncorrection = "all"'


@pytest.mark.parametrize(("negatives", "loss"), [(THREE_KINDS, MARGIN), (BESIDE_THE_BATCH, SOFTMAX)])
def test_it_trains(negatives: str, loss: str) -> None:
    assert recall_of(run_from_toml(negatives, loss)) > 0.5


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4, 5, 6, 7])
def test_it_resumes_bit_for_bit(tmp_path: Path, at: int) -> None:
    through = check_resume(run_from_toml(THREE_KINDS, MARGIN), tmp_path / "last", at, stop=8)
    state = through.model.state_dict()
    assert int(state["negatives.held.1.taken_at"]) == 6


def test_a_corrected_loss_counts_shared_columns_for_each_query(facts: Facts, seeing: RunLook) -> None:
    """The batch's columns too are counted by the mixture: 1/3 more for the queries whose window holds the item."""
    mixture = ready(InBatch() + RankWindow(first=1, last=3), facts)
    shared, _ = propose(mixture, BATCH, seeing, torch.Generator()).blocks
    assert shared.row.tolist() == [0, 3, 8]
    presence = seeing.log_presence(shared.row).exp().tolist()
    windows = naive_window(BATCH, seeing.query_BD, seeing.item_MD, 1, 3)
    for query, window in enumerate(windows):
        want = [p + (item in window) / 3 for p, item in zip(presence, (0, 3, 8), strict=True)]
        assert shared.log_count[query].exp().tolist() == pytest.approx(want)
