"""SRNS: hard items that the model is unsure of."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from twotower.errors import ConfigError
from twotower.negatives import DNS, SRNS, Catalogue
from twotower.part import Facts
from twotower.records import Batch, Block

from .conftest import RunLook, batch_of
from .laws import M, ready
from .scored import drawn, fits, open_batch, random_scores, see


def sampler_of(facts: Facts, **settings: float) -> SRNS:
    sampler = SRNS(**settings)  # type: ignore[arg-type]
    sampler.setup(facts)
    return sampler


def visit(sampler: SRNS, batch: Batch, look: RunLook, seed: int = 0) -> Tensor:
    """One step: draw, then learn of it. [B, n]"""
    (block,) = sampler.draw(batch, look, drawn(seed))
    sampler.observe((block,), None, look)  # type: ignore[arg-type]
    return block.row


def p_of(score: float, positive: float) -> float:
    return 1 / (1 + math.exp(positive - score))


def deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def test_without_its_parts_it_is_dns(facts: Facts, look: RunLook) -> None:
    """alpha = 0, nothing fresh, all in memory: the hardest of the catalogue, as DNS takes it."""
    sampler = sampler_of(facts, n=3, pool=50, memory=12, fresh=0, alpha=0.0)
    dns = DNS(n=3, of=ready(Catalogue(), facts))
    batch = batch_of([3, 0, 5, 11])
    for step in range(1, 8):
        look.step = step
        see(look, random_scores(4, step))
        assert torch.equal(visit(sampler, batch, look, step), dns.draw(batch, look, drawn(0))[0].row)


def test_a_pool_without_turnover_stays(facts: Facts, look: RunLook) -> None:
    """Pools are drawn at the first visit, evenly; then each visit takes the hardest of the query's own."""
    sampler = sampler_of(
        replace(facts, query_count_Q=torch.ones(3000)), pool=7, memory=7, fresh=0, turnover=0, alpha=0.0
    )
    batch = open_batch(3000)
    see(look, random_scores(3000))
    visit(sampler, batch, look)
    pool_QP = sampler.pool_QP.long()
    assert fits(
        lambda seed: pool_QP[150 * seed : 150 * seed + 150].flatten().bincount(minlength=M),
        torch.full((M,), 1 / M, dtype=torch.float64),
    )
    for step in range(1, 4):
        score = random_scores(3000, step)
        row = visit(sampler, batch, see(look, score), step)[:, 0]
        assert torch.equal(row, pool_QP.gather(1, score.gather(1, pool_QP).argmax(1, keepdim=True))[:, 0])
        assert torch.equal(sampler.pool_QP.long(), pool_QP)


def test_it_takes_the_best_by_a_loop(facts: Facts, look: RunLook) -> None:
    """Twelve visits, with memory and pool as they are in the buffers: argmax of P + alpha_t std over the last 5 visits,
    alpha_t rising over the first 10 steps, a new item's history its own."""
    sampler = sampler_of(facts, pool=9, memory=4, fresh=3, turnover=2, alpha=2.0, warm_up_epochs=1.0)
    batch = replace(batch_of([3, 0, 5]), query_B=torch.tensor([17, 4, 90]))
    history: list[list[list[float]]] = [[[] for _ in range(9)] for _ in range(3)]
    old_pool = [[-1] * 9 for _ in range(3)]
    taken = set()
    for step in range(1, 13):
        look.step = step
        score = 2 * random_scores(3, step)
        memory = sampler.memory_QS[batch.query_B].tolist()
        row = visit(sampler, batch, see(look, score), step)
        pool = sampler.pool_QP[batch.query_B].tolist()
        turned = {place % 9 for place in range((step - 1) * 2, step * 2)}
        for query in range(3):
            positive = float(score[query, batch.item_P[query]])
            for place in range(9):
                if step == 1 or place in turned:
                    history[query][place] = []
                else:
                    assert pool[query][place] == old_pool[query][place]
                p = p_of(float(score[query, pool[query][place]]), positive)
                history[query][place] = [*history[query][place], p][-5:]
            if step > 1:
                alpha = 2.0 * min(1.0, (step - 1) / 10)
                value = {
                    pool[query][place]: history[query][place][-1] + alpha * deviation(history[query][place])
                    for place in reversed(memory[query])
                    if place >= 0 and pool[query][place] != int(batch.item_P[query])
                }
                assert int(row[query, 0]) == max(value, key=lambda item: value[item])
                taken.add(int(row[query, 0]) == max(value, key=lambda item: float(score[query, item])))
        old_pool = pool
    assert taken == {True, False}  # the deviation made a difference, and not always
    assert sampler.visits_Q[batch.query_B].tolist() == [12, 12, 12]


@pytest.mark.parametrize("alpha", [0.0, 5.0])
def test_false_negatives_are_avoided(alpha: float, facts: Facts, look: RunLook) -> None:
    """Items 1 and 2 always score high, as positives nobody recorded do; 3, 4 and 5 are lower, and go up and down."""
    sampler = sampler_of(facts, memory=8, fresh=4, alpha=alpha, warm_up_epochs=1.0, temperature=0.5)
    batch, rng = batch_of([0] * 50), drawn(0)
    false = []
    for step in range(1, 40):
        look.step = step
        score = torch.full((50, M), -3.0)
        score[:, 0], score[:, 1:3] = 1.0, 2.0
        score[:, 3:6] = 0.8 + 0.8 * torch.randn(50, 3, generator=rng).clamp(-1, 1)
        row = visit(sampler, batch, see(look, score), step)
        assert not bool((row == 0).any())
        if step > 20:
            false.append(float(((row == 1) | (row == 2)).float().mean()))
    share = sum(false) / len(false)
    assert share > 0.95 if alpha == 0 else share < 0.05


def test_the_memory_is_renewed_by_the_softmax(facts: Facts, look: RunLook) -> None:
    """Of one old place, 0, and one fresh one, even among 11: P(j) = 1/11 e^(s_j/T) / (e^(s_0/T) + e^(s_j/T))."""
    score = random_scores(1)[0]
    weight = (score.double() / 2.5).exp()
    law = weight / (weight + weight[0]) / 11
    law[0] = 1 - law[1:].sum()
    many = replace(facts, query_count_Q=torch.ones(3000))
    sampler = sampler_of(many, memory=1, fresh=1, temperature=2.5)
    see(look, score.expand(3000, M))

    def count(seed: int) -> Tensor:
        sampler.memory_QS.zero_()
        sampler.visits_Q.fill_(1)
        sampler.pool_QP.copy_(torch.arange(M))
        visit(sampler, open_batch(3000), look, seed)
        return sampler.memory_QS[:, 0].long().bincount(minlength=M)

    assert fits(count, law)
    off = law.clone()
    off[0] *= 1.05
    off[1:] *= (1 - off[0]) / off[1:].sum()
    assert not fits(count, off)


def test_a_memory_is_drawn_without_replacement(facts: Facts, look: RunLook) -> None:
    """Of the whole pool, 2 places: P(i, j) = p_i p_j / (1 - p_i), whichever comes first."""
    score = random_scores(1)[0]
    p = score.double().softmax(0)
    pair = p[:, None] * p / (1 - p)[:, None]
    pair.fill_diagonal_(0)
    law = pair.sum(0) + pair.sum(1)
    sampler = sampler_of(replace(facts, query_count_Q=torch.ones(3000)), memory=2, fresh=10)
    see(look, score.expand(3000, M))
    found = torch.zeros(M, dtype=torch.float64)
    for seed in range(5):
        visit(sampler, open_batch(3000), look, seed)
        memory = sampler.memory_QS.long()
        assert bool((memory[:, 0] != memory[:, 1]).all())
        found += memory.flatten().bincount(minlength=M)
    assert (found / 15000).tolist() == pytest.approx(law.tolist(), abs=0.015)


def test_known_items_are_neither_chosen_nor_remembered(facts: Facts, look: RunLook) -> None:
    sampler = sampler_of(facts, n=2, memory=4, fresh=8)
    score = random_scores(2)
    score[:, 3] = 9.0
    for step in range(1, 20):
        look.step = step
        row = visit(sampler, batch_of([3, 3]), see(look, score), step)
        assert not bool((row == 3).any())
        assert not bool((sampler.memory_QS[:2] == 3).any())
        assert bool((row[:, 0] != row[:, 1]).all())


def test_items_of_a_pool_with_repeats_are_chosen_once(facts: Facts, look: RunLook) -> None:
    sampler = sampler_of(facts, n=3, pool=6, memory=6, fresh=0, turnover=0)
    sampler.visits_Q.fill_(1)
    sampler.pool_QP.copy_(torch.tensor([4, 4, 7, 4, 7, 9]))
    sampler.memory_QS.copy_(torch.arange(6))
    score = torch.zeros(1, M)
    score[0, [4, 7]] = torch.tensor([2.0, 1.0])
    assert visit(sampler, batch_of([0]), see(look, score)).tolist() == [[4, 7, 9]]
    assert visit(sampler, batch_of([4]), see(look, score)).tolist() == [[7, 9, -1]]


def test_a_query_that_comes_twice_is_visited_once(facts: Facts, look: RunLook) -> None:
    """Both lines choose from one memory, of one pool; the first renews it. Lines without a row leave nothing."""
    sampler = sampler_of(facts, pool=8, memory=3, fresh=2, turnover=0)
    batch = replace(batch_of([3, 0, 3, 5, 1]), query_B=torch.tensor([40, -1, 40, -1, 7]))
    score = random_scores(5)
    score[2] = -score[0]
    row = visit(sampler, batch, see(look, score))
    assert bool((row >= 0).all())
    pool = sampler.pool_QP[40].tolist()
    assert {int(row[0]), int(row[2])} <= set(pool)
    assert sampler.visits_Q.nonzero()[:, 0].tolist() == [7, 40]
    assert sampler.visits_Q[[7, 40]].tolist() == [1, 1]
    recorded = sampler.history_QPT[40, :, 0].float().tolist()
    expected = [p_of(float(score[0, item]), float(score[0, 3])) for item in pool]
    assert recorded == pytest.approx(expected, abs=1e-3)
    untouched = torch.ones(100, dtype=torch.bool).index_fill(0, torch.tensor([7, 40]), False)
    assert bool((sampler.pool_QP[untouched] == -1).all())
    assert bool(sampler.history_QPT[untouched].isnan().all())


def test_drawing_alone_changes_nothing(facts: Facts, look: RunLook) -> None:
    sampler = sampler_of(facts, pool=8, memory=3, fresh=2)
    before = copy.deepcopy(sampler.state_dict())
    see(look, random_scores(2))
    first, again = (sampler.draw(batch_of([3, 0]), look, drawn(1))[0].row for _ in range(2))
    assert torch.equal(first, again)
    for name, value in sampler.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num())
    assert sampler.observe((Block.chosen(first),), None, look) is None  # type: ignore[arg-type]
    assert sampler.visits_Q[:3].tolist() == [1, 1, 0]
    sampler.observe((), None, look)  # type: ignore[arg-type]
    assert sampler.visits_Q[:3].tolist() == [1, 1, 0]


def test_it_goes_on_from_its_state(facts: Facts, look: RunLook) -> None:
    """A run that is resumed after 6 of 12 visits draws what the other does."""
    settings = {"n": 2, "pool": 9, "memory": 4, "fresh": 3, "turnover": 2}
    sampler, resumed = sampler_of(facts, **settings), sampler_of(facts, **settings)
    batch = batch_of([3, 0, 5])
    for step in range(1, 13):
        look.step = step
        see(look, random_scores(3, step))
        row = visit(sampler, batch, look, step)
        if step > 6:
            assert torch.equal(row, visit(resumed, batch, look, step))
        if step == 6:
            resumed.load_state_dict(copy.deepcopy(sampler.state_dict()))


def test_its_state_is_as_large_as_it_says(facts: Facts) -> None:
    """128 places of 14 bytes, 8 of 4, and a count of visits."""
    sampler = sampler_of(replace(facts, n_items=1000))
    assert sum(value.nbytes for value in sampler.state_dict().values()) == 100 * (128 * 14 + 8 * 4 + 4)


def test_settings_of_srns_that_make_no_sense_are_refused(facts: Facts) -> None:
    for settings, message in (
        ({"n": 0}, "n is 0"),
        ({"n": 9}, "memory is 8, expected at least 9"),
        ({"pool": 4}, "pool is 4, expected at least 8"),
        ({"fresh": -1}, "fresh is -1"),
        ({"fresh": 121}, "expected at most pool - memory, 120"),
        ({"turnover": 129}, "turnover is 129"),
        ({"alpha": -1.0}, "alpha is -1"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"warm_up_epochs": 0.0}, "warm_up_epochs is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            SRNS(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="queries have no id"):
        SRNS().setup(replace(facts, query_count_Q=torch.zeros(0)))
