"""A queue of past batches: what is in it, how often, for how long, and that nothing is learned through it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.stats import chi2, kstest
from torch import Tensor

from twotower.errors import ConfigError
from twotower.frequency import ExactFrequency
from twotower.losses import SampledSoftmax
from twotower.negatives import DNS, FirstViolation, InBatch, MixGCF, Queue, RankWindow, SoftmaxDNS, propose
from twotower.part import Facts
from twotower.records import Batch, Encoded
from twotower.scoring import encode

from .conftest import BATCH_SIZE, COUNT, RunLook, batch_of, batch_of_queries
from .laws import TOTAL, M
from .runs import check_resume, recall_of, run_from_toml

ANY = torch.Generator()


def encoded_of(batch: Batch, item_MD: Tensor) -> Encoded:
    """The batch alone, without candidates, by a model of these item vectors."""
    candidates = propose(InBatch(), batch, Nothing(), ANY)
    return encode(torch.ones(len(batch.query_B), item_MD.shape[1]), lambda row: item_MD[row], batch, candidates)


class Nothing:
    """A look at no model."""

    query_BD = torch.zeros(0, 3)
    step = 1

    def items(self, row: Tensor) -> Tensor:
        raise AssertionError("a queue asks for no vectors")

    layers = items

    def log_presence(self, row: Tensor) -> Tensor:
        return torch.zeros(row.shape)


def queue_of(facts: Facts, batches: int = 2, warm_up: int = 0) -> Queue:
    queue = Queue(batches=batches, warm_up=warm_up)
    queue.setup(facts)
    return queue


def offered(queue: Queue, step: int = 99) -> list[tuple[int, list[float]]]:
    """(item, vector) of each candidate."""
    look = Nothing()
    look.step = step
    (block,) = queue.draw(batch_of([0]), look, ANY)
    assert block.vector is not None
    assert block.log_weight.tolist() == [0.0] * len(block.row)
    return sorted(zip(block.row.tolist(), block.vector.tolist(), strict=True))


def test_it_holds_past_vectors_and_the_oldest_batch_leaves_first(facts: Facts) -> None:
    """The model of step t says t for every item but adds the item's number to the last place."""
    queue, past = queue_of(facts, batches=2), []
    for step, items in enumerate([[3, 7, 3], [7, 1], [5], [11, 0, 5, 2], [4]], start=1):
        assert offered(queue) == sorted(pair for batch in past[-2:] for pair in batch)
        item_MD = torch.full((M, 3), float(step))
        item_MD[:, 2] += torch.arange(M)
        queue.observe((), encoded_of(batch_of(items), item_MD), Nothing())
        past.append([(item, [step, step, step + item]) for item in set(items)])
    assert offered(queue) == sorted(pair for batch in past[-2:] for pair in batch)
    assert [item for item, _ in offered(queue)] == [0, 2, 4, 5, 11]


def test_items_of_several_batches_are_there_with_each_vector(facts: Facts) -> None:
    queue = queue_of(facts, batches=3)
    for step in range(1, 4):
        queue.observe((), encoded_of(batch_of([6, 6]), torch.full((M, 3), float(step))), Nothing())
    assert offered(queue) == [(6, [1.0] * 3), (6, [2.0] * 3), (6, [3.0] * 3)]


def test_it_waits_for_the_warm_up_and_fills_meanwhile(facts: Facts, look: RunLook) -> None:
    queue = queue_of(facts, warm_up=4)
    queue.observe((), encoded_of(batch_of([6, 1]), torch.ones(M, 3)), Nothing())
    assert offered(queue, step=4) == []
    assert [item for item, _ in offered(queue, step=5)] == [1, 6]
    for step, expected in ((4, -math.inf), (5, float(look.log_presence(torch.tensor(6))))):
        look.step = step
        assert float(queue.log_count(torch.tensor([6]), batch_of([0]), look)) == expected


def test_counts_add_up_over_the_batches_held(facts: Facts, look: RunLook) -> None:
    queue, row = queue_of(facts, batches=3), torch.arange(M)
    for held in (0, 1, 2, 3, 3, 3):
        presence = [1 - (1 - count / TOTAL) ** (BATCH_SIZE - 1) for count in COUNT]
        count = queue.log_count(row, batch_of([0]), look).double().exp().tolist()
        assert count == pytest.approx([held * p for p in presence], rel=1e-5)
        queue.observe((), encoded_of(batch_of([6]), torch.ones(M, 3)), Nothing())


def test_draws_follow_the_counts(facts: Facts, look: RunLook) -> None:
    """What 120 past batches left, over 20 seeds: the p-values are uniform, and a count 5% off is noticed. A past batch
    has no row that is the query's own, so the presence is that of B rows: an exact estimate leaves one out, so it is
    made for batches of B + 1."""
    held, right, wrong = 120, [], []
    look.frequency = ExactFrequency()
    look.frequency.setup(replace(facts, batch_size=BATCH_SIZE + 1))
    q = torch.tensor(COUNT, dtype=torch.float64) / TOTAL
    absent = (1 - q) ** BATCH_SIZE
    both_absent = (1 - q[:, None] - q).clamp(min=0) ** BATCH_SIZE
    covariance = held * (both_absent.where(~torch.eye(M, dtype=torch.bool), absent.diag()) - absent[:, None] * absent)
    queue, kept = queue_of(facts, batches=held), q > 0
    inverse = torch.linalg.inv(covariance[kept][:, kept])
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        for items in torch.multinomial(q, held * BATCH_SIZE, replacement=True, generator=rng).view(held, -1):
            queue.observe((), encoded_of(batch_of(items), torch.zeros(M, 3)), Nothing())
        (block,) = queue.draw(batch_of([0]), look, rng)
        found = block.row.bincount(minlength=M)
        expected = queue.log_count(torch.arange(M), batch_of([0]), look).double().exp()
        assert not found[expected == 0].any()
        for factor, p_values in ((1.0, right), (1.05, wrong)):
            difference = (found - factor * expected)[kept]
            p_values.append(float(chi2.sf(float(difference @ inverse @ difference), int(kept.sum()))))
    assert kstest(right, "uniform").pvalue > 0.01, right
    assert kstest(wrong, "uniform").pvalue < 1e-3, wrong


def test_there_is_room_for_all_that_queries_bring(facts: Facts) -> None:
    """Two queries of at most 3 and 2 pairs bring 5 items; of a catalogue of 12, six a query, never more than 12."""
    few = replace(facts, batch_of="queries", batch_size=2, query_count_Q=torch.tensor([1, 3, 0, 2]))
    queue = queue_of(few)
    assert queue.row_HC.shape == (2, 5)
    queue.observe((), encoded_of(batch_of_queries([[0, 4, 9], [2, 7]]), torch.ones(M, 3)), Nothing())
    assert [item for item, _ in offered(queue)] == [0, 2, 4, 7, 9]
    assert queue_of(replace(few, query_count_Q=facts.query_count_Q)).row_HC.shape == (2, 12)
    assert queue_of(replace(facts, batch_size=500)).row_HC.shape == (2, 12)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="Queue: batches is 0"):
        Queue(batches=0)
    with pytest.raises(ConfigError, match="Queue: warm_up is -1"):
        Queue(warm_up=-1)


@pytest.mark.parametrize("pooled", [DNS, FirstViolation, MixGCF, SoftmaxDNS])
def test_vectors_without_a_row_are_no_pool(pooled: type[DNS | FirstViolation | MixGCF | SoftmaxDNS]) -> None:
    with pytest.raises(ConfigError, match=f"{pooled.__name__}: of is Queue, which offers vectors that are no items"):
        pooled(of=Queue())


def test_vectors_in_a_mixture_or_made_are_no_pool() -> None:
    with pytest.raises(ConfigError, match="of is Mixture, which offers vectors"):
        DNS(of=InBatch() + Queue())
    with pytest.raises(ConfigError, match="of is MixGCF, which offers vectors"):
        DNS(of=MixGCF())


def test_given_vectors_alone_may_be_counted_for_each_query(facts: Facts, look: RunLook) -> None:
    """Beside a law of each query's own, without a shared candidate that is looked up."""
    rng = torch.Generator().manual_seed(0)
    look.query_BD, look.item_MD = torch.randn(2, 3, generator=rng), torch.randn(M, 3, generator=rng)
    mixture = queue_of(facts) + RankWindow(first=1, last=4)
    mixture.setup(facts)
    batch = batch_of([1, 5])
    mixture.parts[0].observe((), encoded_of(batch_of([5, 8, 9, 0]), look.item_MD), look)
    encoded = encode(look.query_BD, look.items, batch, propose(mixture, batch, look, rng))
    assert encoded.shared.row.tolist() == [0, 5, 8, 9]
    assert torch.equal(encoded.shared.log_count, mixture.log_count(encoded.shared.row, batch, look))
    assert encoded.shared.log_count.shape == (2, 4)
    assert torch.equal(encoded.column_ND, look.item_MD[encoded.shared.row])


# ---------------------------------------------------------------- in training

PAST = """
kind = "Mixture"
parts = [{kind = "InBatch"}, {kind = "Queue", batches = 3, warm_up = 2}]
"""
SOFTMAX = 'kind = "SampledSoftmax"\ntemperature = 0.2'


def test_it_trains() -> None:
    assert recall_of(run_from_toml(PAST, SOFTMAX)) > 0.8


@pytest.mark.parametrize("at", [0, 1, 3, 5])
def test_it_resumes_bit_for_bit(tmp_path: Path, at: int) -> None:
    check_resume(run_from_toml(PAST, SOFTMAX), tmp_path / "last", at, stop=6)


def test_nothing_is_learned_through_the_queue(facts: Facts, look: RunLook) -> None:
    """Items of past batches alone: the gradient reaches the query and its positive, and no vector held."""
    queue = queue_of(facts)
    with_grad = torch.randn(M, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    queue.observe((), encoded_of(batch_of([5, 8, 9]), with_grad), Nothing())
    assert not queue.vector_HCD.requires_grad
    batch, query_BD = batch_of([1, 5]), torch.ones(2, 3, requires_grad=True)
    encoded = encode(query_BD, lambda row: with_grad[row], batch, propose(queue, batch, look, ANY))
    assert encoded.shared.row.tolist() == [5, 8, 9]
    loss, notes = SampledSoftmax(temperature=1.0, correction="none")(encoded)
    loss.backward()
    assert with_grad.grad is not None
    assert with_grad.grad.abs().sum(1).nonzero()[:, 0].tolist() == [1, 5]  # 5 as a positive
    s = with_grad.detach().sum(1)  # scores with a query of ones
    first = torch.logsumexp(torch.stack([s[1], s[5], s[8], s[9]]), 0) - s[1]
    second = torch.logsumexp(torch.stack([s[5], s[8], s[9]]), 0) - s[5]  # its own 5 in the queue is left out
    assert loss.item() == pytest.approx(float(first + second) / 2, rel=1e-5)
    assert notes["alive"].all()
