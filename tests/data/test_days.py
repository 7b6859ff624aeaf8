"""Epochs that go through the days, and batches of some events that know others too, against loops."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stores import make_store
from twotower.config import Training, dump_run, parse_run
from twotower.data.batches import TrainingBatches
from twotower.data.store import Store
from twotower.data.thinning import FrequentThinning, UniformThinning
from twotower.errors import ConfigError, DataError
from twotower.records import Batch, Ragged
from twotower.schema import History

DAY = 24 * 3600 * 1_000_000


def values(lists: Ragged) -> list[list[int]]:
    return [lists.slice(i, i + 1).value.tolist() for i in range(len(lists))]


# ---------------------------------------------------------------- days


def daily(count_D: list[int], **kwargs: object) -> tuple[Store, TrainingBatches]:
    """Event e is of query e, so a batch's queries name its events; days are two apart."""
    day = [2 * d for d, n in enumerate(count_D) for _ in range(n)]
    store = make_store([(e, e % 5) for e in range(len(day))], time_us=[d * DAY + e for e, d in enumerate(day)])
    chosen = {"batch_of": "pairs", "batch_size": 4, "order": "days", **kwargs}
    return store, TrainingBatches(store, np.arange(store.n_events), **chosen)  # type: ignore[arg-type]


def events_of(batch: Batch) -> list[int]:
    return batch.query_B[batch.of_P].tolist()


@given(count_D=st.lists(st.integers(1, 11), min_size=1, max_size=6), seed=st.integers(0, 5))
@settings(max_examples=50)
def test_an_epoch_goes_through_the_days(count_D: list[int], seed: int) -> None:
    store, batches = daily(count_D, seed=seed)
    found = [events_of(batch) for batch in batches.epoch(0)]
    want = [[4] * (n // 4) + ([n % 4] if n % 4 else []) for n in count_D]
    assert [len(batch) for batch in found] == [size for sizes in want for size in sizes]
    assert batches.steps_per_epoch == len(found)
    assert batches.facts().batch_size == min(4, max(count_D))
    assert store.time_us is not None
    days = [{int(store.time_us[e]) // DAY for e in batch} for batch in found]
    assert all(len(day) == 1 for day in days)
    assert days == sorted(days, key=max)
    assert sorted(e for batch in found for e in batch) == list(range(sum(count_D)))


def test_a_day_is_shuffled_anew_every_epoch_by_the_seed() -> None:
    _, batches = daily([50, 50])
    one, two = ([e for batch in batches.epoch(epoch) for e in events_of(batch)] for epoch in (0, 1))
    assert one != two
    assert one != sorted(one)
    assert one == [e for batch in daily([50, 50])[1].epoch(0) for e in events_of(batch)]
    assert one != [e for batch in daily([50, 50], seed=1)[1].epoch(0) for e in events_of(batch)]


def test_an_epoch_of_days_resumes_at_any_step() -> None:
    _, batches = daily([9, 2, 5], thin=UniformThinning(keep=0.7))
    whole = [events_of(batch) for batch in batches.epoch(3)]
    assert len(whole) == batches.steps_per_epoch
    for start in range(len(whole) + 1):
        assert [events_of(batch) for batch in batches.epoch(3, start)] == whole[start:]


def test_events_of_a_part_need_not_be_in_order() -> None:
    """Days are of the events at hand: here the last and the first of three."""
    store, _ = daily([3, 3, 3])
    batches = TrainingBatches(store, np.array([8, 0, 7, 1]), batch_of="pairs", batch_size=2, order="days")
    assert [sorted(events_of(batch)) for batch in batches.epoch(0)] == [[0, 1], [7, 8]]


def test_thinned_days_have_as_many_steps_in_every_epoch() -> None:
    """10, 1, 1, 30 and 2 events, of which a third stays: 3.33, then .33 + .33 + 10 as one day, with .67 behind it."""
    _, batches = daily([10, 1, 1, 30, 2], thin=UniformThinning(keep=1 / 3))
    expected = [10 / 3, 34 / 3]
    assert batches.steps_per_epoch == sum(math.ceil(math.floor(n) / 4) for n in expected) == 4
    kept: Counter[int] = Counter()
    sizes = set()
    for epoch in range(600):
        found = [events_of(batch) for batch in batches.epoch(epoch)]
        assert len(found) == 4
        sizes.add(tuple(map(len, found)))
        assert max(found[0]) < 10 <= min(e for batch in found[1:] for e in batch)
        kept.update(e for batch in found for e in batch)
    assert sizes <= {(first, 4, 4, last) for first in (3, 4) for last in (3, 4)}
    assert sum(kept.values()) / 600 == pytest.approx(44 / 3, abs=0.1)
    assert all(kept[e] / 600 == pytest.approx(1 / 3, abs=0.1) for e in range(44))  # five standard errors


def test_items_of_thinned_days_keep_their_rates() -> None:
    """f k by the counts of all days, in each day its share of it, rounded down or up."""
    count = {0: 60, 1: 6}
    item = [i for i, n in count.items() for _ in range(n)] * 2
    store = make_store([(e, i) for e, i in enumerate(item)], time_us=[e // 66 * DAY for e in range(132)])
    thin = FrequentThinning(t=0.05, form="paper")
    batches = TrainingBatches(store, np.arange(132), batch_of="pairs", batch_size=100, thin=thin, order="days")
    of_day = 60 * math.sqrt(0.05 / (120 / 132))
    for batch in (batch for epoch in range(20) for batch in batches.epoch(epoch)):
        zeros, ones = batch.item_P.bincount(minlength=2).tolist()
        assert zeros in (math.floor(of_day), math.ceil(of_day))
        assert ones in (4, 5)  # 6 sqrt(.05 * 11) = 4.45


def test_without_days_an_epoch_is_what_it_was() -> None:
    """The order of torch.randperm by (seed, epoch)."""
    _, batches = daily([9, 9], order="shuffled", seed=2)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(2 * 1_000_003 + 7)).tolist()
    assert [e for batch in batches.epoch(7) for e in events_of(batch)] == order


def test_what_has_no_days_is_refused() -> None:
    store, _ = daily([3])
    with pytest.raises(ConfigError, match=r"training.order: found 'days', but training.batch_of = 'queries'"):
        TrainingBatches(store, np.arange(3), batch_of="queries", batch_size=2, order="days")
    timeless = make_store([(0, 0), (1, 1)])
    with pytest.raises(ConfigError, match=r"training.order: found 'days', but schema.interactions.time names no col"):
        TrainingBatches(timeless, np.arange(2), batch_of="pairs", batch_size=2, order="days")


RUN = """
[schema.interactions]
query = "user"
item = "item"
time = "at"
[schema.query.user]
kind = "Id"
column = "user"
[schema.item.item]
kind = "Id"
column = "item"
[training]
order = "days"
"""


def test_the_order_is_a_setting_checked_when_the_run_is_read() -> None:
    run = parse_run(RUN)
    assert (run.training.order, Training().order) == ("days", "shuffled")
    assert parse_run(dump_run(run)).training.order == "days"
    for set_ in ("training.batch_of=queries", "training.order=hours"):
        with pytest.raises(ConfigError, match=r"training.order"):
            parse_run(RUN, set=[set_])


# ---------------------------------------------------------------- some events, knowing more

EVENTS = [(0, 3), (1, 1), (0, 1), (2, 0), (1, 3), (0, 2), (2, 4), (1, 0), (0, 1), (3, 4), (1, 2), (0, 5)]
TODAY = [7, 8, 9, 10]
"""Of queries 1, 0, 3, 1; the last event is of tomorrow and known to nobody."""
KNOWN = list(range(11))


def today(store: Store, **kwargs: object) -> TrainingBatches:
    chosen = {"batch_of": "pairs", "batch_size": 10, "known": np.array(KNOWN), **kwargs}
    return TrainingBatches(store, np.array(TODAY), **chosen)  # type: ignore[arg-type]


def met(query: int, until: int = 10) -> list[int]:
    return sorted({item for e, (q, item) in enumerate(EVENTS) if q == query and e <= until})


def test_pairs_of_today_know_what_was_before() -> None:
    store = make_store(EVENTS, time_us=list(range(len(EVENTS))), context={"history": History(k=3)})
    batches = today(store, query_weight=1.0)
    (batch,) = batches.epoch(0)
    assert (batches.n_batched, batches.steps_per_epoch) == (4, 1)
    history = batch.query["history"]
    assert isinstance(history, Ragged)
    found = zip(
        batch.query_B.tolist(), batch.item_P.tolist(), batch.weight_P.tolist(), values(batch.known), values(history),
        strict=True,
    )  # fmt: skip
    want = [
        (q, i, float(len(met(q))), met(q, e), [j for p, j in EVENTS[:e] if p == q][-3:])
        for e, (q, i) in enumerate(EVENTS)
        if e in TODAY
    ]
    assert sorted(found) == sorted(want)


def test_queries_of_today_bring_todays_items_and_know_all() -> None:
    (batch,) = today(make_store(EVENTS), batch_of="queries").epoch(0)
    found = {
        query: ([i for i, b in zip(batch.item_P.tolist(), batch.of_P.tolist(), strict=True) if b == at], known)
        for at, (query, known) in enumerate(zip(batch.query_B.tolist(), values(batch.known), strict=True))
    }
    assert found == {0: ([1], met(0)), 1: ([0, 2], met(1)), 3: ([4], met(3))}


@pytest.mark.parametrize("batch_of", ["pairs", "queries"])
def test_counts_are_of_today_and_pairs_of_all(batch_of: str) -> None:
    facts = today(make_store(EVENTS), batch_of=batch_of).facts()
    assert facts.item_count_M.tolist() == [1, 1, 1, 0, 1, 0]
    assert facts.query_count_Q.tolist() == [1, 2, 0, 1]
    assert facts.n_queries == 3
    assert sorted(facts.events.item_E.tolist()) == [0, 1, 2, 4]
    assert values(facts.pairs) == [met(q) for q in range(4)]
    features = facts.events.features(torch.arange(4))["user"]
    assert sorted(features.tolist()) == [0, 1, 1, 3]  # type: ignore[union-attr]


def test_impressions_are_held_against_what_is_known() -> None:
    """Query 0 was shown 3 and 4 today; it had taken 3 before, and took 1 below both."""
    events = [(0, 3), (0, 3), (0, 4), (0, 1)]
    store = make_store(events, time_us=[0, 9, 9, 9], taken=[True, False, False, True])
    batches = TrainingBatches(
        store, np.array([3]), known=np.array([0, 3]), shown=np.array([1, 2]), batch_of="pairs", batch_size=2
    )
    facts = batches.facts()
    assert values(facts.shown) == values(facts.passed_over) == [[4]]


def test_known_is_the_same_as_no_known_where_it_is_all() -> None:
    store = make_store(EVENTS, time_us=list(range(len(EVENTS))))
    one, two = (today(store, known=known, batch_size=3) for known in (None, np.array(TODAY)))
    for a, b in zip(one.epoch(0), two.epoch(0), strict=True):
        assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("query_B", "item_P", "weight_P"))
        assert values(a.known) == values(b.known)


def test_an_event_that_is_not_known() -> None:
    with pytest.raises(DataError, match=r"1 of 4 events are not among the known, expected all"):
        today(make_store(EVENTS), known=np.arange(10))
