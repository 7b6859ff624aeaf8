"""Samplers by rank: AOBPR, and the first violation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from twotower.errors import ConfigError
from twotower.losses import Warp
from twotower.negatives import AOBPR, Catalogue, FirstViolation, Sampler, Uniform, propose
from twotower.part import Facts
from twotower.records import Batch, Ragged
from twotower.scoring import encode

from .conftest import RunLook, batch_of, batch_of_queries
from .laws import M, ready
from .scored import drawn, fits, open_batch, random_scores, see

# AOBPR


@pytest.fixture
def seeing(look: RunLook) -> RunLook:
    """Three factors, of unlike spread; two items tie in one of them."""
    look.item_MD = torch.randn(M, 3, generator=drawn(1)) * torch.tensor([1.0, 0.3, 2.0])
    look.item_MD[4, 1] = look.item_MD[9, 1]
    look.query_BD = torch.tensor([[1.0, -2.0, 0.5], [-0.2, 0.0, -0.7], [0.0, 0.0, 0.0]])
    return look


def by_hand(look: RunLook, query: int, scale: float) -> list[float]:
    """P(item | query), by sorting the items for each factor."""
    share = []
    for f in range(3):
        column = look.item_MD[:, f].tolist()
        mean = sum(column) / M
        sigma = math.sqrt(sum((v - mean) ** 2 for v in column) / M)
        share.append(abs(float(look.query_BD[query, f])) * sigma)
    if sum(share) == 0:
        share = [1.0, 1.0, 1.0]
    total = sum(math.exp(-r / scale) for r in range(M))
    p = [0.0] * M
    for f in range(3):
        order = sorted(range(M), key=lambda item: (-float(look.item_MD[item, f]), item))
        if look.query_BD[query, f] < 0:
            order.reverse()
        for r, item in enumerate(order):
            p[item] += share[f] / sum(share) * math.exp(-r / scale) / total
    return p


@pytest.mark.parametrize("scale", [1.5, 4.0, 500.0])
def test_aobpr_counts_by_hand(scale: float, facts: Facts, seeing: RunLook) -> None:
    """The law of each query, summing to n; of rows shared, in any shape, and of a query that is zero."""
    sampler, batch = ready(AOBPR(8, scale=scale), facts), batch_of([0, 1, 2])
    count_BM = sampler.log_count(torch.arange(M), batch, seeing).double().exp()
    for query in range(3):
        assert count_BM[query].tolist() == pytest.approx([8 * p for p in by_hand(seeing, query, scale)], rel=1e-5)
    assert count_BM.sum(1).tolist() == pytest.approx([8.0] * 3, rel=1e-6)
    row = torch.tensor([[4, 9], [0, 0], [11, 3]])
    assert sampler.log_count(row, batch, seeing).exp().tolist() == [
        pytest.approx(own.tolist(), rel=1e-5) for own in count_BM.gather(1, row)
    ]


@pytest.mark.parametrize("query", [0, 1, 2])
def test_aobpr_draws_by_its_law(query: int, facts: Facts, seeing: RunLook) -> None:
    sampler = ready(AOBPR(4, scale=4.0), facts)
    law = torch.tensor(by_hand(seeing, query, 4.0), dtype=torch.float64)
    seeing.query_BD = seeing.query_BD[query].expand(6000, 3)

    def count(seed: int) -> Tensor:
        (block,) = sampler.draw(open_batch(6000), seeing, drawn(seed))
        return block.row.flatten().bincount(minlength=M)

    assert fits(count, law)
    off = law.clone()
    off[off > off.median()] *= 1.05
    assert not fits(count, off)


def test_aobpr_ranks_as_if_the_catalogue_ended(facts: Facts, seeing: RunLook) -> None:
    """Of a scale far beyond the catalogue all ranks are alike; of one far below, the top of a factor is all."""
    seeing.query_BD = torch.tensor([[0.0, 0.0, 1.0]]).expand(500, 3)
    (block,) = ready(AOBPR(scale=0.05), facts).draw(open_batch(500), seeing, drawn(0))
    assert block.row.unique().tolist() == [int(seeing.item_MD[:, 2].argmax())]
    even = ready(AOBPR(9, scale=1e6), facts)

    def count(seed: int) -> Tensor:
        return even.draw(open_batch(500), seeing, drawn(seed))[0].row.flatten().bincount(minlength=M)

    assert fits(count, torch.full((M,), 1 / M, dtype=torch.float64))


def test_aobpr_makes_its_orders_anew_in_time(facts: Facts, seeing: RunLook) -> None:
    """At the first draw, and once they are old; in between the model may move."""
    sampler, batch = ready(AOBPR(2, scale=4.0, refresh_every=5), facts), batch_of([0, 1, 2])
    old = [by_hand(seeing, query, 4.0) for query in range(3)]

    def found() -> list[list[float]]:
        sampler.draw(batch, seeing, drawn(0))
        return (sampler.log_count(torch.arange(M), batch, seeing).exp() / 2).tolist()

    seeing.step = 3
    assert found()[0] == pytest.approx(old[0], rel=1e-5)
    seeing.item_MD = seeing.item_MD.flip(0)
    new = [by_hand(seeing, query, 4.0) for query in range(3)]
    seeing.step = 7
    assert found()[0] == pytest.approx(old[0], rel=1e-5)
    seeing.step = 8
    assert found()[0] == pytest.approx(new[0], rel=1e-5)
    assert new[0] != pytest.approx(old[0], rel=1e-2)


def test_aobpr_refreshes_after_m_log_m_draws(facts: Facts) -> None:
    """12 log 12 = 29.8 draws; batches of 16 pairs."""
    for n, period in ((1, 2), (2, 1), (100, 1)):
        assert ready(AOBPR(n), facts).period == period
    assert ready(AOBPR(1), replace(facts, n_items=10_000, batch_size=10)).period == 9210
    assert ready(AOBPR(1, refresh_every=7), facts).period == 7


def test_aobpr_goes_on_from_its_state(facts: Facts, seeing: RunLook) -> None:
    """Orders and spread are saved: a resumed run draws what the other would have, though the model has moved."""
    sampler, batch = ready(AOBPR(6, scale=4.0, refresh_every=9), facts), batch_of([0, 1, 2])
    sampler.draw(batch, seeing, drawn(0))
    resumed = ready(AOBPR(6, scale=4.0, refresh_every=9), facts)
    resumed.load_state_dict(sampler.state_dict())
    seeing.item_MD = seeing.item_MD.flip(0)
    seeing.step = 4
    rows = [s.draw(batch, seeing, drawn(1))[0].row for s in (sampler, resumed)]
    assert torch.equal(*rows)
    counts = [s.log_count(torch.arange(M), batch, seeing) for s in (sampler, resumed)]
    assert torch.equal(*counts)


# The first violation


def weights(sampler: Sampler, batch: Batch, look: RunLook, seed: int) -> tuple[Tensor, Tensor]:
    (block,) = sampler.draw(batch, look, drawn(seed))
    return block.row[:, 0], block.log_weight[:, 0].exp()


def test_trials_are_geometric(facts: Facts, look: RunLook) -> None:
    """A third of all items violate, in pools of 14 draws: P(t) = 1/3 (2/3)^(t - 1), told by the rank 11 // t."""
    score = torch.zeros(M)
    score[[1, 6, 8, 9]] = 5.0
    sampler = ready(FirstViolation(of=Uniform(14, per_query=True), margin=0.0), facts)
    see(look, score.expand(8000, M))
    law = torch.zeros(M, dtype=torch.float64)
    for t in range(1, 15):
        law[11 // t] += (2 / 3) ** (t - 1) / 3
    law[0] += (2 / 3) ** 14

    def count(seed: int) -> Tensor:
        row, weight = weights(sampler, open_batch(8000), look, seed)
        assert not set(row.tolist()) - {1, 6, 8, 9, -1}
        return weight.round().long().bincount(minlength=M)

    assert fits(count, law)
    off = law.clone()
    off[11] *= 1.05
    assert not fits(count, off)
    violating = torch.zeros(M, dtype=torch.float64)
    violating[[1, 6, 8, 9]] = 0.25

    def rows(seed: int) -> Tensor:
        row, _ = weights(sampler, open_batch(8000), look, seed)
        return row[row >= 0].bincount(minlength=M)

    assert fits(rows, violating)


def test_warp_by_a_loop(facts: Facts, look: RunLook) -> None:
    """The loop as it is written in the paper, over the catalogue in random order, has the same law of (item, rank)."""
    score = torch.tensor([0.0, 0.3, -0.2, 0.95, 1.2, 0.85, -1.0, 0.1, 2.0, 0.5, 0.4, 0.6])
    positive, margin, known = 1.0, 0.1, {3, 8}
    score[3] = positive
    law: dict[tuple[int, int], float] = {}
    for at in range(20000):
        order = [item for item in torch.randperm(M, generator=drawn(at)).tolist() if item not in known]
        trials = next((n for n, item in enumerate(order, 1) if float(score[item]) > positive - margin), 0)
        pair = (order[trials - 1], 11 // trials) if trials else (-1, 0)
        law[pair] = law.get(pair, 0) + 1 / 20000
    n = 4000
    batch = batch_of([3] * n)
    batch = replace(batch, known=Ragged(offset=2 * torch.arange(n + 1), value=torch.tensor([3, 8]).repeat(n)))
    sampler = ready(FirstViolation(of=ready(Catalogue(), facts), margin=margin), facts)
    row, weight = weights(sampler, batch, see(look, score.expand(n, M)), 0)
    found = {pair: 0 for pair in law}
    for pair in zip(row.tolist(), weight.round().long().tolist(), strict=True):
        found[pair] += 1
    assert found.keys() == law.keys()
    for pair, share in law.items():
        assert found[pair] / n == pytest.approx(share, abs=4 * math.sqrt(share / n))


def test_no_violation_is_no_candidate(facts: Facts, look: RunLook) -> None:
    score = torch.full((2, M), -1.0)
    score[:, 0] = 0.5
    score[1, 7] = 0.2
    sampler = ready(FirstViolation(of=ready(Catalogue(), facts), margin=0.4), facts)
    (block,) = sampler.draw(batch_of([0, 0]), see(look, score), drawn(0))
    assert block.row.tolist() == [[-1], [7]]
    assert float(block.log_weight[0, 0]) == -math.inf


def test_lightfm_weighs_by_the_log_of_the_rank(facts: Facts, look: RunLook) -> None:
    """max(0, log floor(11 / t)); one that stands for a single item weighs nothing, and is no candidate."""
    score = torch.zeros(1, M)
    score[0, 5] = 1.0
    see(look, score)
    of = ready(Catalogue(), facts)
    lightfm = ready(FirstViolation(of=of, margin=0.0, weight="log_rank"), facts)
    plain = ready(FirstViolation(of=of, margin=0.0), facts)
    found = set()
    for seed in range(60):
        row, by_log = weights(lightfm, batch_of([0]), look, seed)
        _, by_rank = weights(plain, batch_of([0]), look, seed)
        rank = round(float(by_rank[0]))
        assert float(by_log[0]) == pytest.approx(math.log(max(rank, 1)), abs=1e-6)
        assert row.tolist() == ([5] if rank > 1 else [-1])
        found.add(rank)
    assert found == {1, 2, 3, 5, 11}


def test_a_query_with_several_positives_is_tried_against_their_mean(facts: Facts, look: RunLook) -> None:
    score = torch.zeros(1, M)
    score[0, [1, 2]] = torch.tensor([1.0, 3.0])
    score[0, [6, 7]] = torch.tensor([1.5, 2.5])
    sampler = ready(FirstViolation(of=ready(Catalogue(), facts), margin=0.1), facts)
    row, _ = weights(sampler, batch_of_queries([[1, 2]]), see(look, score), 0)
    assert row.tolist() == [7]


def test_with_the_loss_warp_it_is_wsabie(facts: Facts, look: RunLook) -> None:
    """Phi(floor(11 / t)) (margin - s_y + s_j), Phi(r) = 1 + 1/2 + ... + 1/r, of the one item that was found."""
    score = random_scores(4, 3)
    batch = batch_of([3, 0, 5, 7])
    see(look, score)
    sampler = ready(FirstViolation(of=ready(Catalogue(), facts), margin=0.2), facts)
    candidates = propose(sampler, batch, look, drawn(2))
    expected = 0.0
    for query in range(4):
        row, log_weight = int(candidates.blocks[0].row[query, 0]), float(candidates.blocks[0].log_weight[query, 0])
        if row >= 0:
            phi = sum(1 / r for r in range(1, round(math.exp(log_weight)) + 1))
            expected += phi * float(0.2 - score[query, batch.item_P[query]] + score[query, row]) / 4
    assert expected > 0
    encoded = encode(look.query_BD, look.items, batch, candidates)
    loss, _ = Warp(margin=0.2, correction="none")(encoded)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_settings_of_ranks_that_make_no_sense_are_refused() -> None:
    for make, message in (
        (lambda: AOBPR(0), "AOBPR: n is 0"),
        (lambda: AOBPR(scale=0.0), "scale is 0"),
        (lambda: AOBPR(refresh_every=0), "refresh_every is 0"),
        (lambda: FirstViolation(margin=-1.0), "margin is -1"),
        (lambda: FirstViolation(weight="trials"), "weight is 'trials'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=message):
            make()
