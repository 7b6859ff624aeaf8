"""Batches of pairs and of queries against loops over dictionaries."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stores import make_store
from twotower.data.batches import BatchOf, TrainingBatches
from twotower.data.store import Store
from twotower.errors import ConfigError, DataError
from twotower.records import Batch, Features, Ragged
from twotower.schema import History, Id, Number

EVENTS = [(0, 3), (1, 1), (0, 1), (2, 0), (1, 3), (0, 2), (2, 4), (1, 0), (0, 0), (3, 4), (1, 2)]
TIMES = [0, 0, 1, 1, 2, 2, 2, 3, 4, 4, 5]
WEIGHTS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0]


def values(lists: Ragged) -> list[list[int]]:
    return [lists.slice(i, i + 1).value.tolist() for i in range(len(lists))]


def whole(store: Store, **kwargs: object) -> TrainingBatches:
    settings_ = {"batch_of": "pairs", "batch_size": 4, **kwargs}
    return TrainingBatches(store, np.arange(store.n_events), **settings_)  # type: ignore[arg-type]


def pairs_of(batch: Batch) -> list[tuple[int, int, float]]:
    query = batch.query_B[batch.of_P].tolist()
    return list(zip(query, batch.item_P.tolist(), batch.weight_P.tolist(), strict=True))


def known_until(events: list[tuple[int, int]], times: list[int] | None, query: int, at: int) -> list[int]:
    """Items of a query's events up to a time, in a naive loop."""
    return sorted({i for e, (q, i) in enumerate(events) if q == query and (times is None or times[e] <= at)})


# ---------------------------------------------------------------- pairs


@pytest.mark.parametrize("timed", [True, False])
def test_an_epoch_of_pairs_has_every_event_once(timed: bool) -> None:
    store = make_store(EVENTS, time_us=TIMES if timed else None, weight=WEIGHTS)
    batches = whole(store)
    found = list(batches.epoch(0))
    assert [len(batch.item_P) for batch in found] == [4, 4, 3]
    assert (batches.steps_per_epoch, batches.n_batched) == (3, 11)
    all_pairs = sorted(pair for batch in found for pair in pairs_of(batch))
    assert all_pairs == sorted((q, i, w) for (q, i), w in zip(EVENTS, WEIGHTS, strict=True))
    for batch in found:
        assert (batch.of_P[1:] >= batch.of_P[:-1]).all()
        assert batch.query["user"].tolist() == batch.query_B.tolist()  # type: ignore[union-attr]
        if timed:
            assert batch.of_P.tolist() == list(range(len(batch.item_P)))
        else:  # without times a query's features are the same for all its events: one row for them all
            assert batch.query_B.tolist() == sorted(set(batch.query_B.tolist()))


def test_what_is_known_of_a_query_ends_with_the_event() -> None:
    """Events of the same moment are known, later ones are not."""
    by_weight = {w: (event, at) for w, event, at in zip(WEIGHTS, EVENTS, TIMES, strict=True)}
    seen = 0
    for batch in whole(make_store(EVENTS, time_us=TIMES, weight=WEIGHTS)).epoch(0):
        for weight, item, known in zip(
            batch.weight_P.tolist(), batch.item_P.tolist(), values(batch.known), strict=True
        ):
            (query, true_item), at = by_weight[weight]
            assert item == true_item
            assert known == known_until(EVENTS, TIMES, query, at)
            seen += 1
    assert seen == len(EVENTS)


def test_without_times_all_items_of_the_query_are_known() -> None:
    for batch in whole(make_store(EVENTS)).epoch(0):
        assert values(batch.known) == [known_until(EVENTS, None, q, 0) for q in batch.query_B.tolist()]


def test_only_the_given_events_are_trained_on_and_known() -> None:
    store = make_store(EVENTS, time_us=TIMES, weight=WEIGHTS)
    kept = [0, 2, 3, 5, 9]
    batches = TrainingBatches(store, np.array(kept), batch_of="pairs", batch_size=10)
    (batch,) = batches.epoch(0)
    assert sorted(pairs_of(batch)) == sorted((*EVENTS[e], WEIGHTS[e]) for e in kept)
    events, times = [EVENTS[e] for e in kept], [TIMES[e] for e in kept]
    at = {WEIGHTS[e]: TIMES[e] for e in kept}
    for query, weight, known in zip(batch.query_B.tolist(), batch.weight_P.tolist(), values(batch.known), strict=True):
        assert known == known_until(events, times, query, at[weight])


def test_searches_without_a_query_id_know_their_own_item() -> None:
    store = make_store(
        EVENTS,
        has_query=False,
        context={"words": Number(column="words")},
        context_columns={"words": np.arange(len(EVENTS), dtype=np.float32)},
    )
    for batch in whole(store, query_weight=0.0).epoch(0):
        assert batch.query_B.tolist() == [-1] * len(batch.item_P)
        assert values(batch.known) == [[item] for item in batch.item_P.tolist()]
        events = batch.query["words"].long().tolist()  # type: ignore[union-attr]
        assert [EVENTS[event][1] for event in events] == batch.item_P.tolist()


def test_context_is_that_of_the_event() -> None:
    store = make_store(
        EVENTS,
        time_us=TIMES,
        weight=WEIGHTS,
        context={"n": Number(column="n")},
        context_columns={"n": np.arange(len(EVENTS), dtype=np.float32)},
    )
    for batch in whole(store).epoch(1):
        assert [WEIGHTS[int(e)] for e in batch.query["n"].tolist()] == batch.weight_P.tolist()  # type: ignore[union-attr]


# ---------------------------------------------------------------- queries

REPEATED = [*EVENTS, (0, 3), (1, 1), (0, 3)]
"""Query 0 met item 3 three times, query 1 item 1 twice."""
REPEATED_WEIGHTS = [*WEIGHTS, 0.5, 0.25, 0.125]


def merged(events: list[tuple[int, int]], weights: list[float]) -> dict[int, dict[int, float]]:
    found: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for (query, item), weight in zip(events, weights, strict=True):
        found[query][item] += weight
    return found


def test_an_epoch_of_queries_has_every_query_once_with_its_merged_items() -> None:
    """Equal pairs are one positive that weighs their sum."""
    want = merged(REPEATED, REPEATED_WEIGHTS)
    batches = whole(make_store(REPEATED, weight=REPEATED_WEIGHTS, n_queries=6), batch_of="queries", batch_size=3)
    found = list(batches.epoch(0))
    assert [len(batch.query_B) for batch in found] == [3, 1]  # queries 4 and 5 have no event
    assert sorted(q for batch in found for q in batch.query_B.tolist()) == [0, 1, 2, 3]
    for batch in found:
        by_query: dict[int, dict[int, float]] = defaultdict(dict)
        for query, item, weight in pairs_of(batch):
            by_query[query][item] = weight
        assert by_query == {query: want[query] for query in batch.query_B.tolist()}
        assert values(batch.known) == [sorted(want[q]) for q in batch.query_B.tolist()]
        assert (batch.of_P[1:] >= batch.of_P[:-1]).all()
        assert batch.query["user"].tolist() == batch.query_B.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("batch_of", ["pairs", "queries"])
def test_query_weights(batch_of: BatchOf) -> None:
    """A query of n distinct items weighs n ** -0.5 a pair."""
    distinct = {query: len(items) for query, items in merged(REPEATED, REPEATED_WEIGHTS).items()}
    store = make_store(REPEATED, weight=REPEATED_WEIGHTS)
    plain, weighted = (list(whole(store, batch_of=batch_of, query_weight=power).epoch(0)) for power in (0.0, -0.5))
    for one, two in zip(plain, weighted, strict=True):
        for (query, item, weight), (same_query, same_item, scaled) in zip(pairs_of(one), pairs_of(two), strict=True):
            assert (query, item) == (same_query, same_item)
            assert scaled == pytest.approx(weight * distinct[query] ** -0.5, rel=1e-6)


def test_queries_need_features_that_are_the_querys_own() -> None:
    store = make_store(EVENTS, time_us=TIMES, context={"history": History(k=2)})
    with pytest.raises(ConfigError, match="batch_of = 'pairs'"):
        whole(store, batch_of="queries")


@pytest.mark.parametrize("batch_of", ["pairs", "queries"])
@pytest.mark.parametrize("timed", [True, False])
def test_a_query_that_is_an_item_is_no_negative_of_its_own(batch_of: BatchOf, timed: bool) -> None:
    """Queries 0, 1, 2, 3 are the items 4, none, 0, 1."""
    own = [4, -1, 0, 1]
    store = make_store(EVENTS, time_us=TIMES if timed else None, weight=WEIGHTS, query_item_row=own)
    until = {w: at for w, at in zip(WEIGHTS, TIMES, strict=True)} if timed and batch_of == "pairs" else None
    for batch in whole(store, batch_of=batch_of).epoch(0):
        for b, (query, known) in enumerate(zip(batch.query_B.tolist(), values(batch.known), strict=True)):
            at = 0 if until is None else until[batch.weight_P[b].item()]
            want = {*known_until(EVENTS, None if until is None else TIMES, query, at), own[query]} - {-1}
            assert known == sorted(want)
        assert sorted(batch.item_P.tolist()) == sorted(i for _, i, _ in pairs_of(batch))  # no positive was added
    assert len(whole(store, batch_of=batch_of).pairs.item) == len(set(EVENTS))


# ---------------------------------------------------------------- order


def same(one: Batch, two: Batch) -> bool:
    def equal(a: object, b: object) -> bool:
        if isinstance(a, Ragged) and isinstance(b, Ragged):
            return torch.equal(a.offset, b.offset) and torch.equal(a.value, b.value)
        return torch.equal(a, b)  # type: ignore[arg-type]

    fields = ("query_B", "item_P", "of_P", "weight_P", "known")
    return all(equal(getattr(one, f), getattr(two, f)) for f in fields) and all(
        equal(one.query[name], two.query[name]) for name in one.query
    )


@pytest.mark.parametrize("batch_of", ["pairs", "queries"])
def test_seed_and_epoch_make_the_order(batch_of: BatchOf) -> None:
    store = make_store([(q, i) for q in range(12) for i in range(q % 3 + 1)])
    one, two = (list(whole(store, batch_of=batch_of, seed=5).epoch(2)) for _ in range(2))
    assert all(same(a, b) for a, b in zip(one, two, strict=True))
    for other in (whole(store, batch_of=batch_of, seed=6).epoch(2), whole(store, batch_of=batch_of, seed=5).epoch(3)):
        assert not all(same(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("batch_of", ["pairs", "queries"])
def test_an_epoch_resumes_at_any_step(batch_of: BatchOf) -> None:
    batches = whole(make_store(EVENTS, time_us=TIMES), batch_of=batch_of, batch_size=2)
    all_of_it = list(batches.epoch(1))
    for start in range(batches.steps_per_epoch + 1):
        rest = list(batches.epoch(1, start))
        assert len(rest) == len(all_of_it) - start
        assert all(same(a, b) for a, b in zip(rest, all_of_it[start:], strict=True))


def test_facts() -> None:
    """Batches of pairs draw events, batches of queries distinct pairs."""
    store = make_store(REPEATED, n_queries=6, n_items=7)
    facts = whole(store).facts()
    counts = [sum(item == i for _, item in REPEATED) for i in range(7)]
    assert facts.item_count_M.tolist() == counts
    assert (facts.n_items, facts.n_queries, facts.batch_size, facts.batch_of) == (7, 4, 4, "pairs")

    facts = whole(store, batch_of="queries", batch_size=100).facts()
    assert facts.item_count_M.tolist() == [sum(item == i for _, item in set(REPEATED)) for i in range(7)]
    assert (facts.n_queries, facts.batch_size, facts.batch_of) == (4, 4, "queries")


def test_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match="no event is left to train on"):
        TrainingBatches(make_store(EVENTS), np.array([], np.int64), batch_of="pairs", batch_size=2)


# ---------------------------------------------------------------- histories


def history_of(features: Features, name: str = "history") -> tuple[list[list[int]], list[list[float]]]:
    lists = features[name]
    assert isinstance(lists, Ragged)
    assert lists.weight is not None
    split = [lists.slice(i, i + 1).weight for i in range(len(lists))]
    return values(lists), [w.tolist() for w in split if w is not None]


TIMED_EVENTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=25
).map(lambda events: sorted(events, key=lambda event: event[2]))


@given(events=TIMED_EVENTS, k=st.integers(1, 4))
@settings(max_examples=60)
def test_a_history_is_the_last_k_items_strictly_before(events: list[tuple[int, int, int]], k: int) -> None:
    """Events of equal time are no history of one another; in a history, order is that of the store."""
    n = len(events)
    store = make_store(
        [(q, i) for q, i, _ in events],
        time_us=[t for *_, t in events],
        weight=[float(e + 1) for e in range(n)],
        context={"history": History(k=k)},
        item_columns={"item": np.arange(max(i for _, i, _ in events) + 1)[::-1].copy()},  # rows of the table differ
    )
    top = store.n_items - 1
    (batch,) = whole(store, batch_size=n).epoch(0)
    found, weights = history_of(batch.query)
    for weight, history, of_history in zip(batch.weight_P.tolist(), found, weights, strict=True):
        query, _, at = events[int(weight) - 1]
        before = [top - i for q, i, t in events if q == query and t < at][-k:]
        assert history == before
        assert of_history == pytest.approx([1 / len(before)] * len(before) if before else [])


def test_items_without_an_id_are_left_out_of_histories() -> None:
    """Item 3 has no value in the id column that histories look up."""
    store = make_store(
        [(0, 3), (0, 1), (0, 3), (0, 2), (1, 3), (1, 0)],
        time_us=[0, 1, 2, 3, 4, 5],
        context={"history": History(k=3)},
        item={"maker": Id(column="maker")},
        item_columns={"maker": np.array([10, 11, 12, -1])},
        table_sizes={"item": 13},
    )
    batches = whole(store, batch_size=10)
    found, weights = history_of(batches.histories.before(torch.tensor([0, 1, 0]), np.array([10, 5, 2])))
    assert found == [[11, 12], [], [11]]  # of query 0 the last three are 1, 3, 2; at time 2 they are 3, 1
    assert weights == [[0.5, 0.5], [], [1.0]]


def test_histories_need_times_and_ids() -> None:
    with pytest.raises(ConfigError, match=r"interactions.time is not set"):
        whole(make_store(EVENTS, context={"history": History(k=2)}))
