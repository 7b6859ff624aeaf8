"""Presence, exact and streaming, against closed forms, naive loops and the published simulation."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from twotower.errors import ConfigError
from twotower.frequency import ExactFrequency, StreamingFrequency
from twotower.part import Changes, Facts

torch.set_num_threads(1)


def facts(count: list[int], *, batch_size: int = 8, batch_of: str = "pairs", n_queries: int = 10) -> Facts:
    return Facts(
        n_items=len(count),
        n_queries=n_queries,
        item_count_M=torch.tensor(count),
        batch_size=batch_size,
        batch_of=batch_of,
    )


def exact(count: list[int], *, batch_size: int = 8, batch_of: str = "pairs", n_queries: int = 10) -> ExactFrequency:
    frequency = ExactFrequency()
    frequency.setup(facts(count, batch_size=batch_size, batch_of=batch_of, n_queries=n_queries))
    return frequency


def started(frequency: StreamingFrequency) -> StreamingFrequency:
    frequency.setup(facts([1]))
    return frequency


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gap(frequency: StreamingFrequency, row: int) -> float:
    """The gap that a read before the next batch believes in."""
    return math.exp(-float(frequency.log_presence(torch.tensor(row))))


# Exact


def test_exact_presence_in_pairs_is_one_minus_the_chance_that_all_other_rows_miss() -> None:
    row = torch.tensor([[0, 1], [2, 0]])
    log_presence = exact([1, 3, 4], batch_size=3).log_presence(row)
    # q = 1/8, 3/8, 4/8; two other rows: 1 - (7/8)^2 = 15/64, 1 - (5/8)^2 = 39/64, 1 - (1/2)^2 = 3/4
    expected = torch.tensor([[15 / 64, 39 / 64], [3 / 4, 15 / 64]]).log()
    torch.testing.assert_close(log_presence, expected)


def test_exact_presence_in_queries_counts_the_queries_that_have_the_item() -> None:
    frequency = exact([1, 4], batch_size=3, batch_of="queries", n_queries=4)
    # 1 of 4 queries has item 0: 1 - (3/4)^2 = 7/16. All have item 1.
    torch.testing.assert_close(frequency.log_presence(torch.tensor([0, 1])), torch.tensor([math.log(7 / 16), 0.0]))


def test_exact_presence_keeps_its_digits_where_items_are_rare() -> None:
    frequency = exact([1, 10**9 - 1], batch_size=2)
    assert float(frequency.log_presence(torch.tensor(0))) == pytest.approx(math.log(1e-9), abs=1e-5)


def test_an_item_without_events_is_in_no_batch_and_no_item_is_in_the_rest_of_a_batch_of_one() -> None:
    assert exact([0, 5]).log_presence(torch.arange(2)).tolist() == [-math.inf, 0.0]
    assert exact([2, 5], batch_size=1).log_presence(torch.arange(2)).tolist() == [-math.inf, -math.inf]
    assert exact([0, 0]).log_presence(torch.arange(2)).tolist() == [-math.inf, -math.inf]


def test_exact_presence_refuses_more_queries_with_an_item_than_there_are() -> None:
    with pytest.raises(ConfigError, match="counted 11 times among 10 queries"):
        exact([1, 11], batch_of="queries", n_queries=10)


def test_exact_presence_follows_the_data_and_is_not_saved() -> None:
    frequency = exact([1, 3])
    before = frequency.log_presence(torch.arange(2))
    frequency.observe(torch.tensor([0, 0, 0]))
    assert torch.equal(frequency.log_presence(torch.arange(2)), before)
    assert frequency.state_dict() == {}


# Streaming: single updates


def test_a_bucket_moves_by_alpha_towards_the_gap_since_its_last_batch() -> None:
    frequency = started(StreamingFrequency(alpha=0.25, initial_gap=8.0, patience=math.inf, warm_up=False))
    other = torch.tensor([1])
    for batch in (torch.tensor([0]), other, other, torch.tensor([0])):  # item 0 in batches 1 and 4
        frequency.observe(batch)
    # 8 -> 0.75 * 8 + 0.25 * 1 = 6.25 -> 0.75 * 6.25 + 0.25 * 3 = 5.4375
    assert gap(frequency, 0) == pytest.approx(5.4375, rel=1e-6)


def test_warm_up_averages_the_first_gaps_alike() -> None:
    frequency = started(StreamingFrequency(alpha=0.25, initial_gap=8.0, patience=math.inf))
    found = []
    for wait in (5, 1, 3, 2, 6, 7):
        for batch in [[1]] * (wait - 1) + [[0]]:
            frequency.observe(torch.tensor(batch))
        found.append(gap(frequency, 0))
    # the wait of 5 for the first touch stands in for a gap: then 1, (1 + 3) / 2, (1 + 3 + 2) / 3, (1 + 3 + 2 + 6) / 4
    # and with alpha = 1/4 from there on 3/4 * 3 + 1/4 * 7
    assert found == pytest.approx([5, 1, 2, 2, 3, 4], rel=1e-6)


def test_in_passes_over_a_data_set_rare_items_weigh_what_they_should() -> None:
    """An item with one event comes once in each pass: after four passes its mean gap is 4 passes less the first wait,
    over 4 if that wait counted, (4 - 1/2) / 4 of a pass on average; of the whole gaps alone it is a pass."""
    n_items, batch_size, passes = 4000, 20, 4
    rng, frequency = generator(), StreamingFrequency(patience=math.inf, hashes=3)
    frequency.setup(facts([1] * n_items))
    weight = 0.0
    for number in range(passes + 1):
        for batch in torch.randperm(n_items, generator=rng).split(batch_size):
            if number == passes:
                weight += float((-frequency.log_presence(batch)).exp().sum())
            frequency.observe(batch)
    batches_in_a_pass = n_items / batch_size
    assert weight / n_items == pytest.approx(batches_in_a_pass, rel=0.01)


def test_an_item_that_comes_twice_in_a_batch_is_updated_once() -> None:
    once, twice = (started(StreamingFrequency(alpha=0.25, initial_gap=8.0, hashes=3, warm_up=False)) for _ in range(2))
    for _ in range(3):
        once.observe(torch.tensor([4, 7]))
        twice.observe(torch.tensor([4, 7, 4, 4]))
    # 8 -> 6.25 -> 4.9375 -> 3.953125; a gap of 0 for each repeat would give less
    assert gap(twice, 4) == pytest.approx(3.953125, rel=1e-6)
    assert all(torch.equal(state, twice.state_dict()[name]) for name, state in once.state_dict().items())


def test_two_items_of_a_batch_that_share_a_bucket_update_it_once() -> None:
    frequency = started(StreamingFrequency(buckets=1, alpha=0.25, initial_gap=8.0, warm_up=False))
    frequency.observe(torch.tensor([0, 1, 2]))
    assert gap(frequency, 0) == pytest.approx(6.25, rel=1e-6)


def test_of_several_hash_functions_the_largest_gap_is_believed() -> None:
    frequency = started(StreamingFrequency(buckets=50, hashes=4, initial_gap=100.0, patience=math.inf))
    for t in range(400):
        frequency.observe(torch.tensor([0] if t % 20 else [0, 1]))
    naive = [started(StreamingFrequency(buckets=50, hashes=4)) for _ in range(2)]
    for row, marks in enumerate(naive):
        marks.observe(torch.tensor([row]))
    shared = [bool(((a > 0) & (b > 0)).any()) for a, b in zip(naive[0].last_HB, naive[1].last_HB, strict=True)]
    assert not all(shared)
    own = frequency.gap_HB[naive[1].last_HB > 0]
    assert gap(frequency, 1) == pytest.approx(float(own.max()), rel=1e-6)


def test_what_was_never_seen_has_the_initial_gap_and_later_the_age_of_the_stream() -> None:
    frequency = started(StreamingFrequency(initial_gap=100.0, warm_up=False))
    assert gap(frequency, 5) == pytest.approx(100.0, rel=1e-6)
    for _ in range(149):
        frequency.observe(torch.tensor([0]))
    assert gap(frequency, 5) == pytest.approx(150.0, rel=1e-6)  # not in 149 batches, and the next is number 150


def test_what_was_never_seen_has_what_good_and_turing_give_it() -> None:
    """Of 200 items 3 came: one in every batch, two once; 197 are to come at (2 + 1) / t a batch, all together."""
    frequency = StreamingFrequency(initial_gap=10.0)
    frequency.setup(facts([1] * 200))
    for batch in ([0, 0, 7], [0], [0, 0], [0, 9], *[[0]] * 16):
        frequency.observe(torch.tensor(batch))
    assert gap(frequency, 5) == pytest.approx(197 * 21 / 3, rel=1e-6)
    frequency.observe(torch.tensor([7]))  # now one came once
    assert gap(frequency, 5) == pytest.approx(197 * 22 / 2, rel=1e-6)
    frequency.observe(torch.tensor([9]))  # none did: 197 t would be too bold
    assert gap(frequency, 5) == pytest.approx(100 * 23, rel=1e-6)


def test_items_that_never_come_are_told_from_those_that_will() -> None:
    """600 of 1000 items never come, the others by Zipf's law in three shuffled passes. With a tenth of the catalogue
    drawn uniformly beside, the weight of never seen items sums to nearly their number; 1 / t leaves half of it out."""
    rng, n_items, live = generator(), 1000, 400
    row = torch.arange(n_items)
    events = torch.multinomial(1 / torch.arange(1, live + 1).float(), 4000, replacement=True, generator=rng)
    plain, counted = (StreamingFrequency(warm_up=on) for on in (False, True))
    for frequency in (plain, counted):
        frequency.setup(facts([1] * n_items))
        for _ in range(3):
            for batch in events[torch.randperm(len(events), generator=rng)].split(20):
                frequency.observe(batch)
    never = row[~torch.isin(row, events)]
    uniform = 1 / 1000  # one item drawn uniformly
    share = [float((uniform / (f.log_presence(never).exp() + uniform)).mean()) for f in (plain, counted)]
    assert share[0] < 0.45
    assert share[1] > 0.9


def test_what_stops_coming_fades_after_the_patience() -> None:
    frequency = started(StreamingFrequency(alpha=0.5, initial_gap=1.0, patience=5.0))
    for _ in range(10):
        frequency.observe(torch.tensor([0, 1]))
    for _ in range(4):
        frequency.observe(torch.tensor([1]))
    assert gap(frequency, 0) == pytest.approx(1.0)  # age 5: one patience of gaps of 1
    for _ in range(45):
        frequency.observe(torch.tensor([1]))
    assert gap(frequency, 0) == pytest.approx(50 / 5)


def test_presence_never_exceeds_one_and_has_the_shape_of_the_rows() -> None:
    frequency = started(StreamingFrequency(hashes=3, initial_gap=1.0))
    frequency.observe(torch.arange(6))
    log_presence = frequency.log_presence(torch.arange(12).view(2, 3, 2))
    assert log_presence.shape == (2, 3, 2)
    assert log_presence.dtype == torch.float32
    assert float(log_presence.max()) <= 0
    assert frequency.log_presence(torch.tensor(3)).shape == ()


def test_hashing_spreads_consecutive_rows_like_chance() -> None:
    frequency = started(StreamingFrequency(buckets=5000, hashes=2))
    frequency.observe(torch.arange(5000))
    # each of 5000 buckets stays empty with probability exp(-1): 1839 of them, standard deviation about 23
    for empty in (frequency.last_HB == 0).sum(1).tolist():
        assert abs(empty - 5000 * math.exp(-1)) < 100


def test_all_that_must_survive_a_restart_is_in_the_state() -> None:
    assert StreamingFrequency().state_dict() == {}
    running = started(StreamingFrequency(buckets=64, hashes=2))
    batches = torch.randint(200, (40, 16), generator=generator())
    for batch in batches[:20]:
        running.observe(batch)
    resumed = started(StreamingFrequency(buckets=64, hashes=2))
    resumed.load_state_dict(copy.deepcopy(running.state_dict()))
    for batch in batches[20:]:
        running.observe(batch)
        resumed.observe(batch)
    row = torch.arange(200)
    assert torch.equal(running.log_presence(row), resumed.log_presence(row))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="alpha is 0, expected above 0"):
        StreamingFrequency(alpha=0)
    with pytest.raises(ConfigError, match="buckets is 0"):
        StreamingFrequency(buckets=0)
    with pytest.raises(ConfigError, match="hashes is 0"):
        StreamingFrequency(hashes=0)
    with pytest.raises(ConfigError, match="initial_gap is 0, expected at least 1"):
        StreamingFrequency(initial_gap=0)
    with pytest.raises(ConfigError, match="burn_in is -1, expected 0 or more epochs"):
        StreamingFrequency(burn_in=-1)
    with pytest.raises(ConfigError, match="patience is 0, expected at least 1"):
        StreamingFrequency(patience=0)


# Streaming: laws


def test_corrected_proposition_4_1() -> None:
    """Mean, variance and inverse of the estimate after t updates, for items that hit with probability p.

    With gaps D of mean d: E d_t - d = (1 - a)^t (d_0 - d), Var d_t = a / (2 - a) (1 - (1 - a)^(2t)) Var D (the bias as
    printed is off by one update), and once settled E[1 / B] = p (1 + a / 2 (1 - p)).
    """
    p, alpha, initial, n = 0.25, 0.1, 20.0, 8000
    # 8000 items in 2**23 buckets: four that share one are nothing among them
    settings = {"alpha": alpha, "initial_gap": initial, "patience": math.inf, "warm_up": False}
    frequency = started(StreamingFrequency(buckets=2**23, **settings))
    row, rng = torch.arange(n), generator()
    seen_M = torch.zeros(n, dtype=torch.int64)
    at: dict[int, list[Tensor]] = {1: [], 10: [], 100: []}
    for _ in range(640):  # 100 hits take 400 batches, standard deviation 35
        hit_M = torch.rand(n, generator=rng) < p
        frequency.observe(row[hit_M])
        seen_M += hit_M
        for updates, found in at.items():
            found.append((-frequency.log_presence(row[hit_M & (seen_M == updates)])).exp())
    true_gap, variance_of_gap = 1 / p, (1 - p) / p**2
    for updates, found in at.items():
        estimate = torch.cat(found).double()
        assert len(estimate) == n
        mean = true_gap + (1 - alpha) ** updates * (initial - true_gap)
        variance = alpha / (2 - alpha) * (1 - (1 - alpha) ** (2 * updates)) * variance_of_gap
        assert float(estimate.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
        assert float(estimate.var()) == pytest.approx(variance, rel=0.15)
        printed = true_gap + (1 - alpha) ** updates * initial - (1 - alpha) ** (updates - 1) * true_gap
        if updates < 100:
            assert abs(float(estimate.mean()) - printed) > 8 * math.sqrt(variance / n)
    settled = float((1 / torch.cat(at[100]).double()).mean())
    assert settled == pytest.approx(p * (1 + alpha / 2 * (1 - p)), rel=0.01)
    assert settled > p * 1.02


def in_batch_ratio(
    q_M: Tensor, weight_M: Tensor, frequency: StreamingFrequency, *, batch_size: int, settle: int, steps: int
) -> float:
    """Mean of the corrected in-batch sum (weight / presence over the distinct items of a batch) over the true sum.

    Presence is read before the batch is observed, as in training.
    """
    rng, total = generator(), 0.0
    batches = torch.searchsorted(
        q_M.double().cumsum(0), torch.rand(settle + steps, batch_size, generator=rng, dtype=torch.float64)
    ).clamp(max=len(q_M) - 1)
    for t, batch in enumerate(batches):
        if t >= settle:
            item = batch.unique()
            total += float((weight_M[item] / frequency.log_presence(item).exp()).sum())
        frequency.observe(batch)
    return total / steps / float(weight_M.sum())


@pytest.mark.parametrize(("alpha", "settle"), [(0.05, 2500), (0.02, 6000)])
def test_streaming_presence_gives_the_full_sum_where_items_crowd_a_batch(alpha: float, settle: int) -> None:
    """Zipf over 500 items, batch 64: the first item comes 9.4 times a batch, and is offered once."""
    rank = torch.arange(1, 501).double()
    q_M = 1 / rank / (1 / rank).sum()
    weight_M = torch.randn(500, generator=generator(1), dtype=torch.float64).exp()
    frequency = started(StreamingFrequency(alpha=alpha, initial_gap=50.0))
    ratio = in_batch_ratio(q_M, weight_M, frequency, batch_size=64, settle=settle, steps=2500)
    assert ratio == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("patience", "expected"), [(1.0, 1 + math.exp(-1)), (5.0, 1 + math.exp(-5) / 5), (math.inf, 1.0)]
)
def test_fading_without_patience_would_weigh_items_of_the_batch_too_much(patience: float, expected: float) -> None:
    """E[max(g, T / c)] = g (1 + exp(-c) / c) for a gap sample T of mean g: 1.37 g for c = 1, 1.001 g for c = 5."""
    q_M = torch.full((1000,), 1 / 1000)
    frequency = started(StreamingFrequency(initial_gap=50.5, patience=patience))  # 1 / (1 - 0.999^20)
    ratio = in_batch_ratio(q_M, torch.ones(1000), frequency, batch_size=20, settle=300, steps=1500)
    assert ratio == pytest.approx(expected, abs=0.02)


def test_the_published_simulation() -> None:
    """1000 items, q ∝ i^2, then reversed after 10,000 batches of 128 without replacement; 5000 buckets in all.

    Error = 1 / (2 B) sum of |p - B q|. Which items collide is luck: over 40 draws of the hash functions the error with
    1, 2 and 4 of them is .115, .062 and .047, and one draw is .006, .004 and .002 off. So the rows are given.

    Source: Yi et al. 2019, section 6.1; the bands are of an independent reproduction, one draw.
    """
    batch_size, item_M = 128, 10_000 + torch.arange(1000)
    weight_M = torch.arange(1000).double() ** 2
    before_M, after_M = weight_M / weight_M.sum(), weight_M.flip(0) / weight_M.sum()
    rng = generator()

    def table(alpha: float, hashes: int) -> StreamingFrequency:
        return started(StreamingFrequency(buckets=5000 // hashes, hashes=hashes, alpha=alpha, warm_up=False))

    def stream(q_M: Tensor, steps: int, *tables: StreamingFrequency) -> None:
        for _ in range(0, steps, 250):
            key = q_M.log().float() - torch.empty(250, 1000).exponential_(generator=rng).log()
            for index in key.topk(batch_size, 1).indices:  # the largest of log q plus Gumbel noise
                for frequency in tables:
                    frequency.observe(item_M[index])

    def error(frequency: StreamingFrequency, q_M: Tensor) -> float:
        p_M = frequency.log_presence(item_M).double().exp()
        return float((p_M - batch_size * q_M).abs().sum()) / (2 * batch_size)

    one, two, four = (table(0.01, hashes) for hashes in (1, 2, 4))
    quick, quicker = table(0.05, 1), table(0.1, 1)
    stream(before_M, 9000, one, two, four)
    stream(before_M, 1000, one, two, four, quick, quicker)
    assert 0.105 <= error(one, before_M) <= 0.115
    assert 0.060 <= error(two, before_M) <= 0.070
    assert 0.040 <= error(four, before_M) <= 0.052
    assert error(one, before_M) < error(quick, before_M) < error(quicker, before_M)
    stream(after_M, 250, one, quick, quicker)
    assert error(quicker, after_M) < error(quick, after_M) < error(one, after_M)


# A store that grows


def grown(old: StreamingFrequency, number: list[int], changed: list[int]) -> StreamingFrequency:
    """The estimate on a store whose rows have these numbers, ``changed`` since."""
    frequency = copy.deepcopy(old)
    frequency.setup(replace(facts([1] * len(number)), item_number_M=torch.tensor(number)))
    item_M = torch.tensor([row in changed for row in range(len(number))])
    changes = Changes(item_M=item_M, query_Q=torch.zeros(0, dtype=torch.bool), table={})
    frequency.carry({name: value.clone() for name, value in old.state_dict().items()}, changes)
    return frequency


def test_numbers_that_are_the_rows_change_nothing() -> None:
    plain, numbered = (StreamingFrequency(buckets=64) for _ in range(2))
    plain.setup(facts([1] * 20))
    numbered.setup(replace(facts([1] * 20), item_number_M=torch.arange(20)))
    rng = generator()
    for _ in range(30):
        batch = torch.randint(15, (6,), generator=rng)
        for frequency in (plain, numbered):
            frequency.observe(batch)
        assert torch.equal(plain.log_presence(torch.arange(20)), numbered.log_presence(torch.arange(20)))


def test_items_keep_their_gaps_when_the_store_grows_and_a_new_one_inherits_none() -> None:
    old = StreamingFrequency(buckets=2**16)
    old.setup(facts([1, 1, 1]))
    for step in range(40):
        old.observe(torch.tensor([0, 1] if step % 4 == 0 else [0]))
    assert gap(old, 1) == pytest.approx(4.0)
    new = grown(old, [0, 3, 2, 4], changed=[1, 3])  # row 1 is another item's, row 3 is new
    assert gap(new, 0) == gap(old, 0)
    # never seen, t = 1 batch: at least the initial gap, at most 100 t
    assert gap(new, 1) == gap(new, 3) == pytest.approx(100.0)


def test_for_a_new_item_the_wait_begins_when_it_comes() -> None:
    old = StreamingFrequency(buckets=2**16)
    old.setup(facts([1, 1]))
    for _ in range(5000):
        old.observe(torch.tensor([0]))
    assert gap(old, 1) == pytest.approx(5001.0)  # it was there all the time: 1 of 1 to come, n_1 = 0, t = 5001
    new = grown(old, [0, 1, 2], changed=[2])
    assert gap(new, 1) == pytest.approx(5001.0)
    assert gap(new, 2) == pytest.approx(100.0)  # the initial gap, and at most 100 times its wait of 1
    for _ in range(299):
        new.observe(torch.tensor([0]))
    assert gap(new, 1) == pytest.approx(5300.0)
    assert gap(new, 2) == pytest.approx(2 * 300.0)  # 2 to come, n_1 = 0, t = 300
    new.observe(torch.tensor([0, 2]))
    assert gap(new, 2) == pytest.approx(300.0)  # its first gap
    assert new.once_H.tolist() == [1, 1]


def test_what_came_once_is_counted_from_the_day_the_last_new_items_came() -> None:
    old = StreamingFrequency(buckets=2**16)
    old.setup(facts([1, 1, 1]))
    old.observe(torch.tensor([0, 1]))
    assert old.once_H.tolist() == [2, 2]
    new = grown(old, [0, 1, 2, 3], changed=[3])
    assert new.once_H.tolist() == [0, 0]
    new.observe(torch.tensor([0]))  # its second time, but the first was before
    assert new.once_H.tolist() == [0, 0]
    new.observe(torch.tensor([2, 3]))
    assert new.once_H.tolist() == [2, 2]
    new.observe(torch.tensor([2]))
    assert new.once_H.tolist() == [1, 1]
    same = grown(new, [0, 1, 2, 3], changed=[])
    assert same.once_H.tolist() == [1, 1]
    assert int(same.began) == 1


def test_items_that_went_are_no_longer_to_come() -> None:
    old = StreamingFrequency(buckets=2**16)
    old.setup(facts([1] * 6))
    for _ in range(500):
        old.observe(torch.tensor([0, 1, 2]))
    assert gap(old, 5) == pytest.approx(3 * 501.0)
    new = grown(old, [0, -1, -1, 3, -1, 5], changed=[1, 2, 4])
    # of items 0, 3 and 5 two are to come; counted by buckets touched, 3 of 3, there would be none
    assert new.n_items == 3
    assert new.touched_H.tolist() == [1, 1]
    assert gap(new, 5) == pytest.approx(2 * 501.0)


def test_the_published_form_waits_for_new_items_since_they_came() -> None:
    old = StreamingFrequency(buckets=2**16, warm_up=False)
    old.setup(facts([1]))
    for _ in range(700):
        old.observe(torch.tensor([0]))
    new = grown(old, [0, 1], changed=[1])
    assert gap(new, 1) == pytest.approx(100.0)
    for _ in range(249):
        new.observe(torch.tensor([0]))
    assert gap(new, 1) == pytest.approx(250.0)
