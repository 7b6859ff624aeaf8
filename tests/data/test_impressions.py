"""Impressions that were not taken: read, counted, and then nothing but lists of candidates, against naive loops."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch

from tests.stores import make_store
from tests.training.checkerboard import run_of
from twotower.data.batches import TrainingBatches, passed_over
from twotower.data.held_out import held_out
from twotower.data.ingest import ingest
from twotower.data.splits import SHOWN, GivenSplit, LeaveLastOut, QuerySplit, RandomSplit, TimeSplit
from twotower.data.store import MANIFEST, Store, read_manifest, write_manifest
from twotower.errors import DataError
from twotower.negatives import Impressions, InBatch, Sampler, Uniform
from twotower.records import Ragged
from twotower.schema import History, Id, Interactions, Reward, Schema
from twotower.towers import TwoTower
from twotower.training import loop
from twotower.training.retriever import _all_seen

SCHEMA = Schema(
    interactions=Interactions(item="item", query="user", time="t", taken="click"),
    query={"user": Id(column="user")},
    item={"item": Id(column="item")},
)
YES_AND_NO: dict[str, Any] = {
    "truth values": pa.array([True, False, True, False, None]),
    "whole numbers": pa.array([1, 0, 1, 0, 2]),
    "fractions": pa.array([1.0, 0.0, 1.0, 0.0, 0.5]),
    "text": pa.array(["1", "0", " True", "FALSE", "yes"]),
    "text of fractions": pa.array(["1.0", "0.0", "true", "false", ""]),
    "categories": pa.array(["1", "0", "true", "false", "maybe"]).dictionary_encode(),
}


def log_of(click: pa.Array, **columns: Any) -> pa.Table:
    n = len(click)
    ids = {"user": ["a"] * n, "item": [f"i{k}" for k in range(n)], "t": list(range(n))}
    return pa.table({**ids, **columns, "click": click})


def ingested(folder: Path, table: Any, schema: Schema = SCHEMA, **sources: Any) -> tuple[Any, Store]:
    report = ingest(schema, interactions=table, out=folder / "store", overwrite=True, **sources)
    return report, Store.open(folder / "store", verify=True)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("form", YES_AND_NO)
@pytest.mark.parametrize("as_csv", [False, True])
def test_yes_and_no_are_read_and_anything_else_is_left_out_and_counted(form: str, as_csv: bool, tmp_path: Path) -> None:
    source: Any = log_of(YES_AND_NO[form])
    if as_csv:
        at = source.column_names.index("click")
        plain = source.set_column(at, "click", pa.array(source["click"].to_pylist()))
        pyarrow.csv.write_csv(plain, tmp_path / "log.csv")
        source = tmp_path / "log.csv"
    report, store = ingested(tmp_path, source)
    assert report.groups[0].left_out == {"taken missing, or neither yes nor no": 1}
    assert (report.n_events, report.n_shown) == (4, 2)
    assert "events       4 (2 shown and not taken)" in report.render()
    assert store.taken is not None
    assert store.taken.tolist() == [1, 0, 1, 0]
    assert store.taken_events().tolist() == [0, 2]
    assert store.weight.tolist() == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("weight", ["w", Reward(column="w", per="of")])
def test_the_weight_of_what_was_not_taken_is_not_read(weight: Any, tmp_path: Path) -> None:
    schema = replace(SCHEMA, interactions=replace(SCHEMA.interactions, weight=weight))
    click = pa.array([1, 0, 0, 1, 0])
    report, store = ingested(
        tmp_path, log_of(click, w=[0.5, None, -3.0, None, 0.9], of=[1.0, None, 0.0, 1.0, 1.0]), schema
    )
    assert report.groups[0].left_out == {"weight missing, negative or not finite": 1}
    assert store.weight.tolist() == [0.5, 0.0, 0.0, 0.0]


def test_a_click_does_not_repeat_its_impression(tmp_path: Path) -> None:
    """Without times, too: of each pair one event of either kind stays."""
    table = pa.table({"user": ["a"] * 5, "item": ["x", "x", "x", "y", "y"], "click": [0, 1, 0, 0, 1], "t": [7] * 5})
    for time in ("t", None):
        schema = replace(SCHEMA, interactions=replace(SCHEMA.interactions, time=time))
        report, store = ingested(tmp_path, table, schema)
        assert report.groups[0].left_out == {"repeats an earlier event": 1}
        assert (report.n_events, report.n_shown) == (4, 2)
        assert store.taken is not None
        assert store.taken.tolist() == [0, 1, 0, 1]


def test_without_the_column_all_is_taken_and_a_store_of_before_opens(tmp_path: Path) -> None:
    schema = replace(SCHEMA, interactions=replace(SCHEMA.interactions, taken=None))
    report, store = ingested(tmp_path, log_of(pa.array([1, 0])), schema)
    assert (store.taken, report.n_shown) == (None, 0)
    assert store.taken_events().tolist() == [0, 1]
    manifest = read_manifest(store.path)
    manifest["schema"]["interactions"].pop("taken", None)
    manifest["report"].pop("n_shown")
    (store.path / MANIFEST).unlink()
    write_manifest(store.path, {name: manifest[name] for name in ("schema", "counts", "arrays", "days", "report")})
    old = Store.open(store.path, verify=True)
    assert "taken" not in json.loads((store.path / MANIFEST).read_text())["schema"]["interactions"]
    assert old.schema == schema
    assert old.taken is None


# ---------------------------------------------------------------- splits


def split_store(
    taken: list[int], folder: Path, *, user: list[str] | None = None, part: list[str] | None = None
) -> Store:
    n = len(taken)
    columns = {"user": user or ["a"] * n, "item": [f"i{k}" for k in range(n)], "t": list(range(n)), "click": taken}
    given = {} if part is None else {"part": part}
    events = replace(SCHEMA.interactions, split=None if part is None else "part")
    return ingested(folder, pa.table({**columns, **given}), replace(SCHEMA, interactions=events))[1]


def test_time_splits_by_shares_of_what_was_taken(tmp_path: Path) -> None:
    """Five of the first six events are impressions; of the ten taken two are test and one is valid."""
    store = split_store([0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 1, 1, 0], tmp_path)
    part = TimeSplit(valid=0.1, test=0.2).assign(store).tolist()
    assert part == [SHOWN] * 5 + [0] * 7 + [SHOWN + 0, 1, SHOWN + 1, 2, 2, SHOWN + 2]
    cut = TimeSplit(test_from="1970-01-01T00:00:12Z").assign(store).tolist()
    assert cut == [SHOWN] * 5 + [0] * 7 + [SHOWN + 2, 2, SHOWN + 2, 2, 2, SHOWN + 2]


def test_leave_last_out_counts_what_was_taken(tmp_path: Path) -> None:
    user = list("aaaaaaabbc")
    store = split_store([0, 1, 0, 1, 0, 1, 0, 1, 0, 0], tmp_path, user=user)
    part = LeaveLastOut(test=1, valid=1).assign(store).tolist()
    assert part == [SHOWN, 0, SHOWN, 1, SHOWN + 1, 2, SHOWN + 2, 0, SHOWN, SHOWN]


def test_given_and_query_splits_know_impressions(tmp_path: Path) -> None:
    taken, names = [1, 0, 1, 0, 1, 0], ["train", "train", "valid", "valid", "test", "test"]
    assert GivenSplit().assign(split_store(taken, tmp_path, part=names)).tolist() == [0, 3, 1, 4, 2, 5]
    store = split_store([1, 0] * 30, tmp_path, part=["train"] * 60)
    cut = GivenSplit(valid=0.5).assign(store)
    assert Counter(cut.tolist()) == {0: 15, 1: 15, SHOWN: 30}
    users = [f"u{k // 4}" for k in range(80)]
    of_queries = QuerySplit(valid=0.3, test=0.3).assign(split_store([1, 0] * 40, tmp_path, user=users))
    assert (of_queries[1::2] == of_queries[::2] + SHOWN).all()
    assert set(of_queries[::2].tolist()) == {0, 1, 2}
    at_random = RandomSplit(valid=0.2, test=0.2).assign(store)
    assert set(at_random[::2].tolist()) == {0, 1, 2}
    assert set(at_random[1::2].tolist()) == {3, 4, 5}


@pytest.mark.parametrize("split", [TimeSplit(), LeaveLastOut(), QuerySplit(), RandomSplit()])
def test_impressions_alone_are_nothing_to_train_on(split: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no event is left for train .* 10 shown and not taken"):
        split.assign(split_store([0] * 10, tmp_path))


# ---------------------------------------------------------------- what they are for, and what not

N_QUERIES, N_ITEMS = 5, 8
ROW = {"history": History(k=3)}


def random_log(seed: int, *, timed: bool = True) -> tuple[list[tuple[int, int]], list[int], list[bool]]:
    rng = np.random.default_rng(seed)
    events = [
        (int(q), int(i)) for q, i in zip(rng.integers(0, N_QUERIES, 60), rng.integers(0, N_ITEMS, 60), strict=True)
    ]
    return events, np.sort(rng.integers(0, 20, 60)).tolist(), (rng.random(60) < 0.4).tolist()


def store_of(events: list[tuple[int, int]], time_us: list[int] | None, **kwargs: Any) -> Store:
    return make_store(events, time_us=time_us, n_queries=N_QUERIES, n_items=N_ITEMS, **kwargs)


def as_dicts(lists: Ragged) -> list[dict[int, float]]:
    assert lists.weight is not None
    parts = [lists.slice(q, q + 1) for q in range(len(lists))]
    return [dict(zip(part.value.tolist(), part.weight.tolist(), strict=True)) for part in parts]  # type: ignore[union-attr]


def naive_passed_over(events: list[tuple[int, int]], time: list[int] | None, taken: list[bool]) -> list[int]:
    found = []
    for at, (query, _) in enumerate(events):
        mine = [k for k, (q, _) in enumerate(events) if q == query]
        together = [k for k in mine if time is None or time[k] == time[at]]
        below = [k for k in (together if len(together) > 1 else mine) if k > at and taken[k]]
        if not taken[at] and below:
            found.append(at)
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("timed", [True, False])
def test_lists_of_what_was_shown_and_never_taken(seed: int, timed: bool) -> None:
    events, time, taken = random_log(seed)
    time_us = time if timed else None
    store = store_of(events, time_us, taken=taken)
    yes, no = np.flatnonzero(taken), np.flatnonzero(~np.array(taken))
    over = passed_over(store, yes, no)
    assert over.tolist() == naive_passed_over(events, time_us, taken)
    facts = TrainingBatches(store, yes, batch_of="pairs", batch_size=8, shown=no).facts()
    for lists, impressions in ((facts.shown, no.tolist()), (facts.passed_over, over.tolist())):
        times = Counter(events[at] for at in impressions)
        liked = {events[at] for at in yes.tolist()}
        for query, found in enumerate(as_dicts(lists)):
            naive = {i: n for (q, i), n in sorted(times.items()) if q == query and (q, i) not in liked}
            assert list(found.items()) == list(naive.items())  # rising


def test_a_query_is_never_shown_itself() -> None:
    store = store_of([(0, 1), (0, 2), (0, 3)], None, taken=[True, False, False], query_item_row=[2, -1, -1, -1, -1])
    facts = TrainingBatches(store, np.array([0]), batch_of="pairs", batch_size=8, shown=np.array([1, 2])).facts()
    assert as_dicts(facts.shown)[0] == {3: 1.0}


@pytest.mark.parametrize("seed", range(3))
def test_all_else_is_as_if_there_were_no_impressions(seed: int) -> None:
    """Facts, batches with known items and histories, questions with what was seen, and what is seen when serving."""
    events, time, taken = random_log(seed)
    with_all = store_of(events, time, taken=taken, context=ROW)
    kept = np.flatnonzero(taken)
    without = store_of([events[at] for at in kept], [time[at] for at in kept], context=ROW)
    split = TimeSplit(valid=0.2, test=0.2)
    part, plain = split.assign(with_all), split.assign(without)
    assert part[kept].tolist() == plain.tolist()
    ours, theirs = (
        TrainingBatches(store, np.flatnonzero(parts == 0), batch_of="pairs", batch_size=4, shown=shown)
        for store, parts, shown in ((with_all, part, np.flatnonzero(part == SHOWN)), (without, plain, None))
    )
    for name in ("n_queries", "batch_size", "steps_per_epoch"):
        assert getattr(ours.facts(), name) == getattr(theirs.facts(), name)
    for name in ("item_count_M", "query_count_Q"):
        assert torch.equal(getattr(ours.facts(), name), getattr(theirs.facts(), name))
    for batch, same in zip(ours.epoch(0), theirs.epoch(0), strict=True):
        assert torch.equal(batch.item_P, same.item_P)
        assert torch.equal(batch.known.value, same.known.value)
        assert torch.equal(batch.query["history"].value, same.query["history"].value)  # type: ignore[union-attr]
    for asked in ("valid", "test"):
        found, expected = held_out(with_all, part, asked), held_out(without, plain, asked)
        assert found.truth.value.tolist() == expected.truth.value.tolist()
        assert found.seen.value.tolist() == expected.seen.value.tolist()
        history = [q.features(0, len(q))["history"] for q in (found, expected)]
        assert torch.equal(history[0].value, history[1].value)  # type: ignore[union-attr]
    assert torch.equal(_all_seen(with_all).value, _all_seen(without).value)


# ---------------------------------------------------------------- a run


def test_the_loop_hands_over_the_impressions_of_what_it_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[int], list[int]]] = []

    class Watching(TrainingBatches):
        def __init__(self, store: Store, events: np.ndarray, **kwargs: Any) -> None:
            seen.append((events.tolist(), kwargs["shown"].tolist()))
            super().__init__(store, events, **kwargs)

    monkeypatch.setattr(loop, "TrainingBatches", Watching)
    events = [(0, 1), (0, 2), (1, 2), (1, 3), (0, 3), (0, 4), (1, 1), (1, 4)]
    store = store_of(events, None, taken=[True, False] * 4)
    part = np.array([0, 3, 0, 3, 1, 4, 2, 5], np.int8)
    run = replace(run_of(store, epochs=1), negatives=InBatch() + Impressions(2))
    fit = loop.fit_once(run, store, part)
    assert fit.steps == 1
    loop.refit(run, store, part, 1.0)
    assert seen == [([0, 2], [1, 3]), ([0, 2, 4], [1, 3, 5])]


def margin(*, beside: Sampler) -> float:
    """Even users are shown one item and odd ones another, and nobody takes those: the mean of how much lower the one
    that was shown scores than the other one."""
    rng = np.random.default_rng(0)
    taken = [(q, int(i)) for q in range(20) for i in rng.permutation(10)[:4]]
    store = make_store(taken + [(q, 10 + q % 2) for q in range(20)], taken=[True] * 80 + [False] * 20, n_items=12)
    run = replace(run_of(store, towers=TwoTower(dim=8), epochs=60), negatives=InBatch() + beside)
    towers = loop.fit_once(run, store, np.array([0] * 80 + [SHOWN] * 20, np.int8)).model.towers
    with torch.no_grad():
        query = towers.encode_query(store.query.take(torch.arange(20)))
        score = query @ towers.encode_item(store.item.take(torch.arange(10, 12))).T
    return float(((score[:, 1] - score[:, 0]) * torch.tensor([1.0, -1.0]).repeat(10)).mean())


def test_what_a_query_passed_over_ends_up_lower_for_it() -> None:
    assert margin(beside=Impressions(4)) > 0.1
    assert abs(margin(beside=Uniform(4))) < 0.1
