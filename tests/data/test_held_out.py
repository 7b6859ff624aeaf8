"""Questions of held-out events against loops over dictionaries."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stores import make_store
from twotower.data.held_out import held_out
from twotower.data.store import Store
from twotower.errors import DataError
from twotower.records import Ragged
from twotower.schema import History, Number

TRAIN, VALID, TEST = 0, 1, 2
EVENTS = [
    (0, 1),
    (0, 2),
    (1, 1),
    (2, 0),
    (0, 3),
    (0, 1),
    (1, 2),
    (2, 0),
    (0, 4),
    (0, 3),
    (1, 0),
    (0, 1),
    (3, 2),
    (3, 2),
]
PART = [TRAIN] * 4 + [VALID] * 4 + [TEST] * 6
TIMES = list(range(len(EVENTS)))


def values(lists: Ragged) -> list[list[int]]:
    return [lists.slice(i, i + 1).value.tolist() for i in range(len(lists))]


def asked(store: Store, part: str, *, filter_seen: bool = True) -> dict[int, tuple[list[int], list[int]]]:
    """query -> (truth, seen)"""
    found = held_out(store, np.array(PART), part, filter_seen=filter_seen)
    rows = zip(found.query_Q.tolist(), values(found.truth), values(found.seen), strict=True)
    return {query: (truth, seen) for query, truth, seen in rows}


def test_validation_sees_training_events_only() -> None:
    """Query 0 had met 1 and 2, so of 3 and 1 only 3 is asked; query 2 had met all it is asked for."""
    store = make_store(EVENTS)
    assert asked(store, "valid") == {0: ([3], [1, 2]), 1: ([2], [1])}
    assert held_out(store, np.array(PART), "valid").n_repeats == 2  # (0, 1) and (2, 0)


def test_the_test_sees_training_and_validation_events() -> None:
    store = make_store(EVENTS)
    assert asked(store, "test") == {0: ([4], [1, 2, 3]), 1: ([0], [1, 2]), 3: ([2], [])}
    assert held_out(store, np.array(PART), "test").n_repeats == 2  # (0, 3) and (0, 1)


def test_without_the_filter_every_distinct_pair_is_asked() -> None:
    store = make_store(EVENTS)
    assert asked(store, "valid", filter_seen=False) == {0: ([1, 3], []), 1: ([2], []), 2: ([0], [])}
    assert held_out(store, np.array(PART), "valid", filter_seen=False).n_repeats == 0


def test_a_query_that_is_an_item_has_seen_itself() -> None:
    """Query 0 is item 4, query 1 none, query 2 item 3, query 3 item 1."""
    store = make_store(EVENTS, query_item_row=[4, -1, 3, 1])
    assert asked(store, "test") == {1: ([0], [1, 2]), 3: ([2], [1])}  # (0, 4) is query 0 itself


def context_store(**more: object) -> Store:
    return make_store(
        EVENTS,
        time_us=TIMES,
        context={"n": Number(column="n"), **more.pop("context", {})},  # type: ignore[dict-item]
        context_columns={"n": np.arange(len(EVENTS), dtype=np.float32)},
        **more,  # type: ignore[arg-type]
    )


def test_with_context_every_event_is_a_question() -> None:
    store = context_store()
    found = held_out(store, np.array(PART), "test")
    assert found.event_Q is not None
    assert found.event_Q.tolist() == [8, 10, 12, 13]  # 9 and 11 are repeats
    assert found.n_repeats == 2
    assert found.query_Q.tolist() == [0, 1, 3, 3]
    assert values(found.truth) == [[4], [0], [2], [2]]
    assert values(found.seen) == [[1, 2, 3], [1, 2], [], []]
    features = found.features(1, 3)
    assert features["n"].tolist() == [10.0, 12.0]  # type: ignore[union-attr]
    assert features["user"].tolist() == [1, 3]  # type: ignore[union-attr]

    everything = held_out(store, np.array(PART), "test", filter_seen=False)
    assert everything.event_Q is not None
    assert everything.event_Q.tolist() == [8, 9, 10, 11, 12, 13]
    assert everything.n_repeats == 0
    assert values(everything.seen) == [[]] * 6


def test_what_is_asked_weighs_what_its_events_weigh() -> None:
    """Event e weighs e / 2: item 2 of query 3 is events 12 and 13. A question of one event weighs that event."""
    weight = [at / 2 for at in range(len(EVENTS))]
    by_query = held_out(make_store(EVENTS, weight=weight), np.array(PART), "test")
    assert values(by_query.truth) == [[4], [0], [2]]
    assert by_query.truth.weight is not None
    assert by_query.truth.weight.tolist() == [4.0, 5.0, 6.0 + 6.5]
    by_event = held_out(context_store(weight=weight), np.array(PART), "test")
    assert by_event.truth.weight is not None
    assert by_event.truth.weight.tolist() == [4.0, 5.0, 6.0, 6.5]
    assert held_out(make_store(EVENTS), np.array(PART), "test").truth.weight is None
    assert held_out(context_store(), np.array(PART), "test").truth.weight is None


def test_searches_without_a_query_have_seen_nothing() -> None:
    store = make_store(
        EVENTS,
        has_query=False,
        context={"n": Number(column="n")},
        context_columns={"n": np.arange(len(EVENTS), dtype=np.float32)},
    )
    found = held_out(store, np.array(PART), "valid")
    assert values(found.truth) == [[3], [1], [2], [0]]
    assert values(found.seen) == [[]] * 4
    assert found.features(0, 4)["n"].tolist() == [4.0, 5.0, 6.0, 7.0]  # type: ignore[union-attr]


def test_histories_hold_what_came_before_the_part() -> None:
    """Validation remembers training events, the test validation events too; a question without event all of them."""
    store = make_store(EVENTS, time_us=TIMES, context={"history": History(k=3)})
    valid, test = (held_out(store, np.array(PART), part).features(0, 2)["history"] for part in ("valid", "test"))
    assert isinstance(valid, Ragged)
    assert isinstance(test, Ragged)
    assert values(valid) == [[1, 2], [1]]
    assert values(test) == [[2, 3, 1], [1, 2]]  # of 1, 2, 3, 1 the last three


def test_histories_of_events_end_before_the_event() -> None:
    store = context_store(context={"history": History(k=3)})
    part = np.array([TRAIN] * 4 + [VALID] * 4 + [TRAIN] * 6)  # some training events come later
    found = held_out(store, part, "valid", filter_seen=False)
    history = found.features(0, len(found))["history"]
    assert isinstance(history, Ragged)
    assert values(history) == [[1, 2], [1, 2], [1], [0]]


def test_a_part_that_is_not_there() -> None:
    store = make_store(EVENTS)
    with pytest.raises(DataError, match="the split has no test events"):
        held_out(store, np.zeros(len(EVENTS), np.int8), "test")
    with pytest.raises(DataError, match="no part 'tset'"):
        held_out(store, np.array(PART), "tset")
    with pytest.raises(DataError, match="all 1 valid pairs were met before"):
        held_out(make_store([(0, 1), (0, 1)]), np.array([TRAIN, VALID]), "valid")


PARTED = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=30)


@given(events=PARTED, part=st.sampled_from(["valid", "test"]), filter_seen=st.booleans())
@settings(max_examples=80)
def test_questions_are_a_naive_loop(events: list[tuple[int, int, int]], part: str, filter_seen: bool) -> None:
    number = {"valid": VALID, "test": TEST}[part]
    seen, truth = defaultdict(set), defaultdict(set)
    for query, item, of_part in events:
        if of_part < number:
            seen[query].add(item)
    repeats = set()
    for query, item, of_part in events:
        if of_part == number:
            if filter_seen and item in seen[query]:
                repeats.add((query, item))
            else:
                truth[query].add(item)
    want = {q: (sorted(items), sorted(seen[q]) if filter_seen else []) for q, items in sorted(truth.items())}
    store, parts = make_store([(q, i) for q, i, _ in events]), np.array([p for *_, p in events])
    if not want:
        with pytest.raises(DataError):
            held_out(store, parts, part, filter_seen=filter_seen)
        return
    found = held_out(store, parts, part, filter_seen=filter_seen)
    assert found.n_repeats == len(repeats)
    assert torch.equal(found.query_Q, torch.tensor(list(want)))
    assert list(zip(values(found.truth), values(found.seen), strict=True)) == list(want.values())
