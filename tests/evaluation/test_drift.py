"""Drift: silent where nothing changed, and naming what did."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.stores import make_store
from twotower.data.batches import Histories
from twotower.data.columns import Column, Columns, RaggedArray
from twotower.data.ingest import ingest
from twotower.data.store import Store
from twotower.errors import DataError
from twotower.evaluation import Drift, DriftLine, drift
from twotower.evaluation.drift import positive_scores
from twotower.evaluation.two_samples import Values, compare_means, compare_rows, compare_shares, compare_vectors
from twotower.schema import (
    Categorical,
    Categories,
    History,
    Id,
    Interactions,
    Number,
    Schema,
    Seed,
    Text,
    Time,
    Vector,
)
from twotower.towers import TwoTower

torch.set_num_threads(1)

DAY_S = 86_400
SCHEMA = Schema(
    interactions=Interactions(query="user", item="item", time="t", weight="w", taken="taken"),
    query={"user": Id(column="user"), "country": Categorical(column="country", min_count=3)},
    context={
        "at": Time(column="t"),
        "price": Number(column="price"),
        "tags": Categories(column="tags"),
        "title": Text(columns=("title",), buckets=64),
        "from": Seed(column="from"),
        "seen": History(k=3),
    },
    item={
        "item": Id(column="item"),
        "size": Number(column="size", transform="quantile", buckets=4),
        "picture": Vector(column="picture", dim=3),
    },
)
N_EVENTS, N_QUERIES, N_ITEMS, N_DAYS, FIRST_ARRIVED = 6000, 500, 60, 20, 15
START_S = 1_700_006_400
"""A midnight."""
Frame = dict[str, Any]


def frames(seed: int = 0) -> dict[str, Frame]:
    """Events of one law over 20 days, with files of queries and items."""
    rng = np.random.default_rng(seed)
    words = np.array(["red", "blue", "large", "small", "old"])
    bags = [list(words[:n]) for n in rng.integers(4, size=N_EVENTS)]
    countries = np.array(["at", "be", "ch", "dk"])
    return {
        "interactions": {
            "user": rng.integers(N_QUERIES, size=N_EVENTS),
            "item": rng.integers(N_ITEMS, size=N_EVENTS),
            "t": START_S + np.sort(rng.integers(N_DAYS * DAY_S, size=N_EVENTS)),
            "w": rng.random(N_EVENTS),
            "taken": rng.random(N_EVENTS) < 0.8,
            "price": np.where(rng.random(N_EVENTS) < 0.1, np.nan, rng.normal(5, 2, N_EVENTS)),
            "tags": bags,
            "title": [" ".join(bag) for bag in bags[::-1]],
            "from": rng.integers(N_ITEMS, size=N_EVENTS),
        },
        "queries": {"user": np.arange(N_QUERIES), "country": countries[rng.integers(4, size=N_QUERIES)]},
        "items": {
            "item": np.arange(N_ITEMS),
            "size": rng.normal(size=N_ITEMS),
            "picture": list(rng.normal(size=(N_ITEMS, 3))),
        },
    }


def ingested(folder: Path, tables: Mapping[str, Frame]) -> Store:
    sources = {name: pa.table(table) for name, table in tables.items()}
    ingest(SCHEMA, **sources, out=folder / "store")
    return Store.open(folder / "store")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return ingested(tmp_path_factory.mktemp("drift"), frames())


def in_time(store: Store) -> tuple[np.ndarray, np.ndarray]:
    """Events of the days before, and of those that arrived."""
    start = store.days[FIRST_ARRIVED].start
    return np.arange(start), np.arange(start, store.n_events)


def in_memory(events: np.ndarray, **sizes: int) -> Store:
    """A store of ids alone, whose (query row, item row) are given."""
    made = make_store([(query, item) for query, item in events.tolist()], **sizes)
    return replace(made, encoders=cast(Any, SimpleNamespace(**vars(made.encoders), vocabularies={})))


def shifted(found: Drift) -> set[str]:
    return {f"{line.of} {line.what}" for line in found.shifted}


def line_of(found: Drift, name: str) -> DriftLine:
    (line,) = [line for line in found.lines if f"{line.of} {line.what}" == name]
    return line


def test_every_feature_has_its_lines_and_in_a_log_of_one_law_none_shifts(store: Store) -> None:
    found = drift(store, *in_time(store))
    assert [f"{line.of} {line.what}" for line in found.lines] == [
        "queries new",
        "items new",
        "items distribution",
        "events weight",
        "events taken",
        "events a day",
        "query.country distribution",
        "context.at.hour distribution",
        "context.price missing",
        "context.price mean",
        "context.tags empty",
        "context.tags length",
        "context.title empty",
        "context.title length",
        "item.size distribution",
        "item.picture mean vector",
    ]
    assert not found.shifted


@pytest.mark.parametrize("by", ["events", "queries"])
def test_random_halves_are_alike_split_by_events_or_by_queries(store: Store, by: str) -> None:
    """Queries have a dozen events each: told apart by queries, the twelve of one are one draw."""
    by_nature = {"events a day", "queries new"}
    flagged, n_lines = [], 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        late_Q, late_E = rng.random(store.n_queries) < 0.4, rng.random(store.n_events) < 0.4
        late_E = late_Q[store.query_row] if by == "queries" else late_E
        found = drift(store, np.flatnonzero(~late_E), np.flatnonzero(late_E))
        n_lines += len(found.lines)
        flagged += sorted(shifted(found) - by_nature)
    assert len(flagged) <= 0.01 * n_lines, flagged


# ---------------------------------------------------------------- what did shift


def with_context(store: Store, name: str, column: Column) -> Store:
    return replace(store, context=Columns({**store.context, name: column}, store.n_events))


def dearer(store: Store, late_E: np.ndarray) -> Store:
    price = np.array(store.context["price"])  # encoded: deviations from the mean, 0 where missing
    return with_context(store, "price", np.where(late_E & (price != 0), price + np.float32(0.3), price))


def without_price(store: Store, late_E: np.ndarray) -> Store:
    gone = late_E & (np.arange(store.n_events) % 10 == 0)
    return with_context(store, "price", np.where(gone, np.float32(0), store.context["price"]))


def without_tags(store: Store, late_E: np.ndarray) -> Store:
    tags = store.context["tags"]
    assert isinstance(tags, RaggedArray)
    emptied = late_E & (np.arange(store.n_events) % 5 == 0)
    kept = np.repeat(~emptied, tags.lengths())
    return with_context(
        store, "tags", RaggedArray.of_lengths(np.where(emptied, 0, tags.lengths()), np.asarray(tags.value)[kept])
    )


def in_the_morning(store: Store, late_E: np.ndarray) -> Store:
    hour = np.array(store.context["at.hour"])
    return with_context(store, "at.hour", np.where(late_E, hour // 2, hour))


def from_unknown_items(store: Store, late_E: np.ndarray) -> Store:
    bucket = store.encoders.vocabularies["item"].size - 1
    return with_context(
        store, "from", np.where(late_E & (np.arange(store.n_events) % 10 == 0), bucket, store.context["from"])
    )


def liked_more(store: Store, late_E: np.ndarray) -> Store:
    return replace(store, weight=np.where(late_E, np.sqrt(store.weight), store.weight))


def taken_less(store: Store, late_E: np.ndarray) -> Store:
    assert store.taken is not None
    return replace(store, taken=np.where(late_E & (np.arange(store.n_events) % 5 == 0), np.uint8(0), store.taken))


def other_items(store: Store, late_E: np.ndarray) -> Store:
    """The first third of the items thrice as often, with equal features, so that nothing but items shifts."""
    item = Columns({"item": store.item["item"], "size": np.zeros(N_ITEMS, np.int32)}, N_ITEMS)
    return replace(store, item=item, item_row=np.where(late_E, store.item_row // 3, store.item_row))


def other_countries(store: Store, late_E: np.ndarray) -> Store:
    """What arrived is of the same queries, those of the first country twice as often."""
    country = np.asarray(store.query["country"])
    first_E = country[store.query_row] == 0
    return replace(store, query_row=np.where(late_E & ~first_E, np.roll(store.query_row, 1), store.query_row))


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (dearer, {"context.price mean"}),
        (without_price, {"context.price missing"}),
        (without_tags, {"context.tags empty", "context.tags length"}),
        (in_the_morning, {"context.at.hour distribution"}),
        (from_unknown_items, {"context.from unknown"}),
        (liked_more, {"events weight"}),
        (taken_less, {"events taken", "events a day"}),
        (other_items, {"items distribution"}),
        (other_countries, {"query.country distribution"}),
    ],
)
def test_what_was_planted_is_named_and_nothing_else(
    store: Store, plant: Callable[[Store, np.ndarray], Store], expected: set[str]
) -> None:
    before, arrived = in_time(store)
    planted = plant(store, np.isin(np.arange(store.n_events), arrived))
    assert shifted(drift(planted, before, arrived)) == expected


def test_ids_that_no_event_before_had(store: Store) -> None:
    before, arrived = in_time(store)
    known = before[store.query_row[before] >= 50]  # 50 of 500 queries, all with as many events in the mean
    line = line_of(drift(store, known, arrived), "queries new")
    there = np.asarray(store.taken) == 1
    assert line.arrived == pytest.approx((store.query_row[arrived[there[arrived]]] < 50).mean())
    once = (np.bincount(store.query_row[known[there[known]]]) == 1).sum()
    assert line.before == pytest.approx(once / there[known].sum())
    assert line.shifted
    old = before[store.item_row[before] >= 6]
    assert shifted(drift(store, old, arrived)) >= {"items new", "items distribution"}


def test_new_ids_are_expected_where_there_always_were_some() -> None:
    """Half of all events are of somebody who came never before and never after: so it goes on."""
    rng = np.random.default_rng(0)
    query = np.where(rng.random(4000) < 0.5, 100 + np.arange(4000), rng.integers(100, size=4000))
    store = in_memory(np.stack([query, np.zeros_like(query)], 1), n_items=2)
    line = line_of(drift(store, np.arange(3000), np.arange(3000, 4000)), "queries new")
    assert line.before == pytest.approx(0.5, abs=0.03)
    assert line.arrived == pytest.approx(0.5, abs=0.05)
    assert not line.shifted


def test_fewer_events_a_day(store: Store) -> None:
    before, arrived = in_time(store)
    found = drift(store, before, arrived[::2])
    assert shifted(found) == {"events a day"}
    line = line_of(found, "events a day")
    assert line.before == pytest.approx(np.asarray(store.taken)[before].sum() / FIRST_ARRIVED)
    assert line.arrived == pytest.approx(np.asarray(store.taken)[arrived[::2]].sum() / (N_DAYS - FIRST_ARRIVED))


def test_less_than_a_week_tells_nothing_of_the_events_a_day(store: Store) -> None:
    start, stop = store.days[5].start, store.days[6].stop
    line = line_of(drift(store, np.arange(start), np.arange(start, stop)), "events a day")
    assert math.isnan(line.standard_errors)
    assert not line.shifted


def test_a_single_query_tells_nothing(store: Store) -> None:
    before, arrived = in_time(store)
    one = arrived[store.query_row[arrived] == store.query_row[arrived[0]]]
    assert shifted(drift(store, before, one)) <= {"events a day", "queries new", "items new"}


@pytest.mark.parametrize("events", [(np.arange(0), np.arange(5)), (np.arange(5), np.arange(0))])
def test_no_events_are_refused(store: Store, events: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(DataError, match="holds no event that was taken, expected at least one"):
        drift(store, *events)


def test_the_table_has_what_shifted_first_and_json_has_everything(store: Store) -> None:
    before, arrived = in_time(store)
    found = drift(dearer(store, np.isin(np.arange(store.n_events), arrived)), before, arrived)
    head, _, columns, first, *rest = found.render().splitlines()
    assert head.endswith(f"1 of {len(found.lines)} lines shifted")
    assert columns.split() == ["of", "what", "before", "arrived", "shift", "standard", "errors"]
    assert first.split()[:3] == ["shifted", "context.price", "mean"]
    assert not any(line.startswith("shifted") for line in rest)
    tree = json.loads(found.to_json())
    assert [line["of"] for line in tree["lines"] if line["shifted"]] == ["context.price"]
    assert tree["n_before"] + tree["n_arrived"] == int(np.asarray(store.taken).sum())


def test_of_many_events_some_are_looked_at_and_all_count_for_what_is_new(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, arrived = in_time(store)
    planted = dearer(store, np.isin(np.arange(store.n_events), arrived))
    whole = drift(planted, before, arrived)
    monkeypatch.setattr(sys.modules["twotower.evaluation.drift"], "MOST_EVENTS", 1000)
    found = drift(planted, before, arrived)
    assert (found.n_before, found.n_arrived) == (whole.n_before, whole.n_arrived)
    assert line_of(found, "queries new").before == line_of(whole, "queries new").before
    price, all_prices = (line_of(one, "context.price mean") for one in (found, whole))
    assert price.shifted
    # 1000 of 3,630 and 1000 of 1,190 events
    ratio = math.sqrt((1 / 1000 + 1 / 1000) / (1 / 3630 + 1 / 1190))
    assert all_prices.standard_errors / price.standard_errors == pytest.approx(ratio, rel=0.3)


# ---------------------------------------------------------------- scores


def test_scores_are_of_each_event_s_own_item_and_their_fall_is_named() -> None:
    """Before, each query took what it scores highest; what arrived is drawn at random."""
    rng = np.random.default_rng(0)
    towers = TwoTower(dim=8)
    made = in_memory(np.zeros((1, 2), np.int64), n_queries=50, n_items=30)
    torch.manual_seed(0)
    towers.build(made.schema, made.encoders.table_sizes)
    with torch.no_grad():
        query_QD = towers.eval().encode_query(made.query.take(torch.arange(50)), served=True)
        item_MD = towers.encode_item(made.item.take(torch.arange(30)), served=True)
    best_Q = (query_QD @ item_MD.T).argsort(1, descending=True)[:, :10].numpy()
    query = rng.integers(50, size=2000)
    item = np.where(np.arange(2000) < 1500, best_Q[query, rng.integers(10, size=2000)], rng.integers(30, size=2000))
    store = in_memory(np.stack([query, item], 1), n_queries=50, n_items=30)
    event = np.arange(0, 2000, 7)
    found = positive_scores(towers, store, event, Histories(store, event))
    naive = [float(sum(a * b for a, b in zip(query_QD[query[e]], item_MD[item[e]], strict=True))) for e in event]
    assert found == pytest.approx(naive, abs=1e-5)
    assert "scores mean" in shifted(drift(store, np.arange(1500), np.arange(1500, 2000), towers=towers))
    same = drift(store, np.arange(0, 1500, 2), np.arange(1, 1500, 2), towers=towers)
    assert not same.shifted
    assert line_of(same, "scores mean").before == pytest.approx(
        float((query_QD[query[:1500:2]] * item_MD[item[:1500:2]]).sum(1).mean()), abs=1e-5
    )


# ---------------------------------------------------------------- two samples


def alone(value: Any) -> Values:
    return Values(value=np.asarray(value), group=np.arange(len(value)))


def test_a_mean_s_standard_error_is_that_around_the_mean_of_both() -> None:
    line = compare_means("x", "mean", alone([0.0, 0.0, 2.0, 2.0]), alone([1.0, 3.0]))
    assert line is not None
    assert (line.before, line.arrived, line.shift) == (1.0, 2.0, 1.0)
    # around 4/3: (2 (4/3)^2 + 2 (2/3)^2) / 4^2 * 4/3 = 10/27 and ((1/3)^2 + (5/3)^2) / 2^2 * 2 = 39/27
    assert line.standard_errors == pytest.approx(math.sqrt(27) / 7)


def test_events_of_a_group_are_one_draw() -> None:
    before = Values(value=np.array([0.0, 0.0, 2.0, 2.0]), group=np.array([7, 7, 3, 3]))
    line = compare_means("x", "mean", before, alone([1.0, 3.0]))
    assert line is not None
    # sums -8/3 and 4/3: (64/9 + 16/9) / 4^2 * 2 = 10/9, beside 13/9
    assert line.standard_errors == pytest.approx(3 / math.sqrt(23))


def test_two_events_of_a_thing_that_never_was_are_no_shift() -> None:
    line = compare_shares("x", "missing", alone([False] * 1000), alone([True, True]))
    assert line is not None
    assert line.shift == 1.0
    assert not line.shifted
    assert compare_shares("x", "missing", alone([False] * 10), alone([False])) is None


def test_distributions_against_a_naive_loop() -> None:
    rng = np.random.default_rng(0)
    row, group = rng.integers(3, size=300), rng.integers(40, size=300)
    ours, theirs = (Values(value=row[part], group=group[part]) for part in (slice(0, 200), slice(200, 300)))
    distance, chance, square = 0.0, 0.0, 0.0
    for r in range(3):
        squared_error = 0.0
        for sample in (ours, theirs):
            sums: dict[int, float] = {}
            for one, g in zip(sample.value.tolist(), sample.group.tolist(), strict=True):
                sums[g] = sums.get(g, 0.0) + (one == r) - (row == r).sum() / 300
            factor = len(sums) / (len(sums) - 1) / len(sample) ** 2
            squared_error += sum(total**2 for total in sums.values()) * factor
        distance += abs((ours.value == r).mean() - (theirs.value == r).mean()) / 2
        chance += math.sqrt(squared_error) / math.sqrt(2 * math.pi)
        square += squared_error
    line = compare_rows("x", ours, theirs)
    assert line is not None
    assert line.shift == pytest.approx(distance - chance)
    assert line.standard_errors == pytest.approx(max(distance - chance, 0) / math.sqrt((0.5 - 1 / math.pi) * square))


def test_rare_rows_are_one() -> None:
    """A thousand rows of one event each differ altogether, and tell nothing; beside a common one they are one row."""
    assert compare_rows("x", alone(np.arange(1000)), alone(1000 + np.arange(1000))) is None
    common = np.zeros(500, np.int64)
    line = compare_rows(
        "x", alone(np.append(common, 1 + np.arange(500))), alone(np.append(common, 9000 + np.arange(500)))
    )
    assert line is not None
    assert line.shift < 0
    assert not line.shifted


def test_mean_vectors_against_arithmetic() -> None:
    before = alone([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # mean 0, all at distance 1
    line = compare_vectors("x", before, alone([[0.3, 0.4], [0.3, 0.4]]))
    assert line is not None
    assert line.shift == pytest.approx(0.5)
    # around (0.1, 0.4/3), of squared length 1/36: 4 (1 + 1/36) / 4^2 * 4/3 = 37/108, and 2 (1/3)^2 / 2^2 * 2 = 1/9
    assert line.standard_errors == pytest.approx(0.5 / math.sqrt(37 / 108 + 1 / 9))


def test_a_single_group_and_groups_that_are_all_alike_are_no_trouble() -> None:
    one = Values(value=np.arange(40) % 2, group=np.zeros(40, np.int64))
    line = compare_rows("x", one, alone(np.arange(40) % 2))
    assert line is not None
    assert math.isnan(line.standard_errors)
    pairs = Values(value=np.arange(40) % 2, group=np.arange(40) // 2)  # each group has one of both
    line = compare_rows("x", pairs, pairs)
    assert line is not None
    assert (line.shift, line.standard_errors) == (0.0, 0.0)


def test_a_line_in_words() -> None:
    share = DriftLine(of="items", what="new", before=0.1, arrived=0.4, shift=0.3, least=0.02, standard_errors=9.0)
    assert share.in_words() == "items new from 0.1 to 0.4"
    law = replace(share, of="item.price", what="distribution", before=None, arrived=None)
    assert law.in_words() == "item.price distribution by 0.3"
