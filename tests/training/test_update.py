"""A trained model goes on: what arrives is learnt, what is known stays, and a model that got worse does not stay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from tests.training.two_groups import (
    A_DAY,
    FIRST_DAYS,
    ITEMS,
    SCHEMA,
    USERS,
    at,
    bytes_of,
    copy_of,
    day_of,
    run_of,
    table,
    trained,
    without_times,
    write,
)
from twotower.config import Update
from twotower.data.arrivals import held_out_for_good
from twotower.data.splits import RandomSplit
from twotower.data.store import Store
from twotower.data.streams import Folder
from twotower.errors import ArtifactError, ConfigError, DataError
from twotower.negatives import InBatch
from twotower.schema import Categorical, Id, Interactions, Number, Schema
from twotower.towers import Graph, TwoTower
from twotower.training import (
    Days,
    Retriever,
    checkpoint,
    evaluate,
    forget,
    history,
    loop,
    recommend,
    save_vectors,
    train,
    update,
    update_from,
)
from twotower.training.loop import Loop
from twotower.training.matmul import Matmul
from twotower.training.retriever import open_model
from twotower.training.update import is_below


@pytest.fixture(autouse=True, scope="module")
def settled() -> Iterator[None]:
    """Power does not fail here; and which products are fast may look different from one training to the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(loop, "probe", lambda: Matmul(precision="highest", seconds={}, error={}))
        yield


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the first days, not to be changed."""
    return trained(tmp_path_factory.mktemp("first") / "at")


@pytest.fixture(scope="module")
def once(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after one more day, not to be changed."""
    model = copy_of(first, tmp_path_factory.mktemp("once"))
    updated(model, day_of(FIRST_DAYS))
    return model


@pytest.fixture(scope="module")
def twice(once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After two."""
    model = copy_of(once, tmp_path_factory.mktemp("twice"))
    updated(model, day_of(FIRST_DAYS + 1))
    return model


@pytest.fixture
def model(first: Path, tmp_path: Path) -> Path:
    return copy_of(first, tmp_path)


def updated(model: Path, *events: Any, **settings: Any) -> Any:
    """By the events of some days, and others."""
    return update(model, interactions=table([event for of in events for event in of]), quiet=True, **settings)


def store_of(model: Path) -> Store:
    return open_model(model)[1]


def row_of(model: Path, side: str, name: str) -> int:
    store = store_of(model)
    vocabulary = store.item_vocabulary if side == "item" else store.query_vocabulary
    assert vocabulary is not None
    return int(vocabulary.row(name, side))


def rows_by_table(model: Path) -> dict[str, dict[str, torch.Tensor]]:
    """By side, every tensor of the checkpoint that has a row an id: weights, optimiser state, what is remembered."""
    towers, store = Retriever.open(model).towers, store_of(model)
    modules, _ = checkpoint.read_tensors(model / "best")
    n = {side: store.encoders.table_sizes[name] for side, name in (("user", "query.user"), ("item", "item"))}
    assert towers.width == 8
    assert n["user"] != n["item"]
    return {side: {k: v for k, v in modules.items() if v.dim() and len(v) == size} for side, size in n.items()}


def items_of(model: Path, user: str, k: int) -> list[str]:
    return [found.item for found in recommend(model, {"user": user}, k=k)]


def events_trained_on(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Of each training that begins from here on, the events."""
    met: list[np.ndarray] = []
    run_to = Loop.run_to

    def spied(self: Loop, *args: Any, **kwargs: Any) -> Any:
        met.append(np.asarray(self.batches.events))
        return run_to(self, *args, **kwargs)

    monkeypatch.setattr(Loop, "run_to", spied)
    return met


NEW = [
    event
    for user in range(0, 12, 2)
    for event in at(FIRST_DAYS, f"u{user}", "fresh")
] + at(FIRST_DAYS, "newcomer", "i0", "i2", "i4", "i6", "fresh")  # fmt: skip
"""A new item that even users take, and a new user who takes even items."""


# ---------------------------------------------------------------- what is learnt


def test_what_is_new_is_recommended_after_one_update(model: Path) -> None:
    with pytest.raises(DataError, match=r"newcomer.*not known"):
        recommend(model, {"user": "newcomer"})
    found = updated(
        model, day_of(FIRST_DAYS), NEW, name="a day", set=["update.valid=0", "update.epochs=6", "update.rate=2"]
    )
    day = found.day
    assert (day.number, day.name, day.new_queries, day.new_items, day.kept) == (1, "a day", 1, 1, True)
    assert day.n_events == USERS * A_DAY + len(NEW)
    assert (day.first, day.last) == ("2023-12-15", "2023-12-15")
    to_even = [user for user in range(12, USERS, 2) if "fresh" in items_of(model, f"u{user}", k=20)]
    to_odd = [user for user in range(1, USERS, 2) if "fresh" in items_of(model, f"u{user}", k=20)]
    assert len(to_even) >= 5  # of 6, who may still be shown 17 even items
    assert len(to_odd) <= 1  # of 12
    top = items_of(model, "newcomer", k=20)
    assert not {"i0", "i2", "i4", "i6", "fresh"} & set(top)
    assert sum(int(item[1:]) % 2 == 0 for item in top) >= 14  # of 20; 26 of the 55 that are left are even


def test_rows_that_no_batch_touched_are_the_same_to_the_bit(tmp_path: Path) -> None:
    """With what arrived alone and nothing but its batches: weights, their optimiser's state, whether they were met."""
    model = trained(tmp_path / "at", negatives=InBatch())
    before, old = rows_by_table(model), store_of(model)
    updated(model, NEW, set=["update.replay=0", "update.valid=0"])
    store, after = store_of(model), rows_by_table(model)
    news = np.flatnonzero(store.arrived > 0)
    held_out = np.flatnonzero(
        ~np.isin(np.arange(old.n_events), np.flatnonzero(open_model(model)[0].split.assign(old) == 0))
    )
    trained_on = np.concatenate([news, held_out])  # late events lie at the end here
    assert (store.arrived[: old.n_events] == 0).all()
    for side, row_E in (("user", store.query_row), ("item", store.item_row)):
        n_old = old.n_queries if side == "user" else old.n_items
        touched = set(np.asarray(row_E)[trained_on].tolist())
        untouched = [row for row in range(n_old) if row not in touched]
        assert len(before[side]) >= 2
        assert before[side].keys() == after[side].keys()
        if side == "item":
            assert len(untouched) > 10
        for name, was in before[side].items():
            assert torch.equal(after[side][name][untouched], was[untouched]), name
        changed = [row for row in touched if row < n_old]
        moved = [not torch.equal(after[side][name][changed], was[changed]) for name, was in before[side].items()]
        assert any(moved)


def test_until_it_is_trained_on_all_that_is_old_is_the_same_to_the_bit(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What training begins with."""
    before = rows_by_table(model)
    begin, seen = Loop._begin, {}

    def spied(self: Loop, *args: Any) -> None:
        begin(self, *args)
        seen.update({name: value.clone() for name, value in self.model.state_dict().items()})

    monkeypatch.setattr(Loop, "_begin", spied)
    updated(model, day_of(FIRST_DAYS), NEW)
    for of_side in before.values():
        for name, was in of_side.items():
            assert torch.equal(seen[name][: len(was)], was), name
            assert len(seen[name]) == len(was) + 1


def test_the_first_update_trains_on_what_the_split_held_out(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the first days; replayed are as many as are asked for, of those that were trained on."""
    met, old = events_trained_on(monkeypatch), store_of(model)
    n_held_out = int((open_model(model)[0].split.assign(old) > 0).sum())
    assert n_held_out == pytest.approx(0.2 * old.n_events, abs=USERS)
    day = updated(model, day_of(FIRST_DAYS), set=["update.replay=0.5"]).day
    store = store_of(model)
    held = held_out_for_good(store, 0.2)
    n_news = n_held_out + int((~held[store.arrived == 1]).sum())
    assert day.n_trained == n_news
    assert day.n_held_out == int(held.sum())
    assert len(met[0]) == n_news + round(0.5 * n_news)
    assert len(set(met[0].tolist())) == len(met[0])
    assert not held[met[0]].any()
    second = updated(model, day_of(FIRST_DAYS + 1), set=["update.replay=0"]).day
    assert second.n_trained == len(met[1]) == second.n_events - second.n_held_out
    assert (store_of(model).arrived[met[1]] == 2).all()


def test_after_a_refit_only_the_test_part_was_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, "")
    model = trained(tmp_path / "at", training=replace(run.training, refit=True, epochs=2, validate_every=1))
    part_E = run.split.assign(store_of(model))
    day = updated(model, day_of(FIRST_DAYS)).day
    assert day.n_trained == (part_E == 2).sum() + day.n_events - day.n_held_out


# ---------------------------------------------------------------- what arrives


def test_a_day_given_twice_does_nothing(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    updated(model, day_of(FIRST_DAYS))
    before = bytes_of(model)
    again = updated(model, day_of(FIRST_DAYS))
    assert again.day is None
    assert again.report.growth is not None
    assert again.report.growth.n_repeats == USERS * A_DAY
    assert again.render() == f"nothing new arrived: the model is as it was: {model}"
    assert bytes_of(model) == before
    more = updated(model, day_of(FIRST_DAYS), day_of(FIRST_DAYS + 1)).day
    assert (more.n_events, more.n_repeats) == (USERS * A_DAY, USERS * A_DAY)


def test_values_that_wait_are_counted_once(tmp_path: Path) -> None:
    """Two events of an item are one too few for a row of its own in the table, however often they are given."""
    schema = replace(SCHEMA, item={"item": Id(column="item", min_count=3)})
    model = trained(tmp_path / "at", schema=schema)
    news = [*at(FIRST_DAYS, "u0", "fresh"), *at(FIRST_DAYS, "u2", "fresh")]
    assert updated(model, news).day is not None
    size, before = store_of(model).encoders.table_sizes["item"], bytes_of(model)
    assert updated(model, news).day is None
    assert bytes_of(model) == before
    assert updated(model, news, at(FIRST_DAYS + 1, "u4", "fresh")).day is not None
    assert store_of(model).encoders.table_sizes["item"] == size + 1


def test_late_events_go_where_their_time_puts_them(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updated(model, day_of(FIRST_DAYS + 1))
    met = events_trained_on(monkeypatch)
    day = updated(model, day_of(FIRST_DAYS), set=["update.replay=0"]).day
    store = store_of(model)
    assert (day.first, day.last, day.number) == ("2023-12-15", "2023-12-15", 2)
    assert store.time_us is not None
    assert (np.diff(store.time_us) >= 0).all()
    assert (np.flatnonzero(store.arrived == 2) < np.flatnonzero(store.arrived == 1).min()).all()
    assert (store.arrived[met[0]] == 2).all()


def test_an_empty_arrival(model: Path) -> None:
    before = bytes_of(model)
    assert update(model, quiet=True).day is None
    with pytest.raises(DataError, match="there are no rows, expected at least one"):
        updated(model, [])
    assert bytes_of(model) == before


def catalogue(n: int, size: float = 0.0) -> pa.Table:
    return pa.table({"item": [f"i{item}" for item in range(n)], "size": [item + size for item in range(n)]})


@pytest.fixture
def with_items(tmp_path: Path) -> Path:
    """Items have a file of their own."""
    folder = tmp_path / "at"
    folder.mkdir()
    pa.parquet.write_table(catalogue(ITEMS), folder / "items.parquet")
    schema = replace(SCHEMA, item={**SCHEMA.item, "size": Number(column="size")})
    data = run_of(folder, str(folder / "events.parquet")).data
    assert data is not None
    data = replace(data, items=(str(folder / "items.parquet"),))
    return trained(folder, schema=schema, data=data)


def test_items_alone(with_items: Path) -> None:
    """One more item, and another size of all."""
    updated(with_items, day_of(FIRST_DAYS))
    day = update(with_items, items=catalogue(ITEMS + 1, size=0.5), quiet=True).day
    assert day is not None
    assert (day.n_events, day.new_items, day.kept, day.n_trained, day.steps) == (0, 1, True, 0, 0)
    assert (day.served, day.after) == (None, None)
    assert f"i{ITEMS}" in items_of(with_items, "u0", k=ITEMS + 1)
    before = bytes_of(with_items)
    assert update(with_items, items=catalogue(ITEMS + 1, size=0.5), quiet=True).day is None
    assert bytes_of(with_items) == before


def test_queries_alone(tmp_path: Path) -> None:
    """One more user, of whom nothing but the country is known, and another country of one that is there."""

    def users(*countries: str) -> pa.Table:
        return pa.table({"user": [f"u{user}" for user in range(len(countries))], "country": countries})

    before = ["even" if user % 2 == 0 else "odd" for user in range(USERS)]
    folder = tmp_path / "at"
    folder.mkdir()
    pa.parquet.write_table(users(*before), folder / "users.parquet")
    schema = replace(SCHEMA, query={**SCHEMA.query, "country": Categorical(column="country")})
    data = run_of(folder, str(folder / "events.parquet")).data
    assert data is not None
    model = trained(folder, schema=schema, data=replace(data, queries=(str(folder / "users.parquet"),)))
    old = store_of(model)
    day = update(model, queries=users("odd", *before[1:], "odd"), quiet=True).day
    assert day is not None
    assert (day.n_events, day.new_queries, day.new_items) == (0, 1, 0)
    row_of_country = store_of(model).query.take(torch.arange(USERS + 1))["country"]
    odd = old.query.take(torch.tensor([1]))["country"]
    assert row_of_country[0] == row_of_country[USERS] == odd
    assert torch.equal(row_of_country[1:USERS], old.query.take(torch.arange(1, USERS))["country"])
    best = items_of(model, f"u{USERS}", k=10)
    assert sum(int(item[1:]) % 2 for item in best) >= 8


BAD: dict[str, Callable[[Path], object]] = {
    "a column is missing": lambda path: pa.parquet.write_table(table(day_of(0)).drop_columns(["item"]), path),
    "it is no Parquet": lambda path: path.write_bytes(b"PAR1 and then nothing"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("n_before", [0, 1])
def test_a_bad_file_changes_nothing(model: Path, tmp_path: Path, what: str, n_before: int) -> None:
    for day in range(n_before):
        updated(model, day_of(FIRST_DAYS + day))
    path, before = tmp_path / "bad.parquet", bytes_of(model)
    BAD[what](path)
    with pytest.raises(DataError, match=r"bad\.parquet"):
        update(model, interactions=[str(path)], quiet=True)
    assert bytes_of(model) == before


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no such folder, expected the folder of a model"):
        update(tmp_path / "no", interactions=table(day_of(0)))
    with pytest.raises(ArtifactError, match="holds no trained model"):
        update(tmp_path, interactions=table(day_of(0)))
    assert not list(tmp_path.iterdir())


def test_a_metric_without_a_value_a_query_is_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match="coverage@10 has no value a query"):
        updated(model, day_of(FIRST_DAYS), set=["training.metric=coverage@10"])


def test_impressions_are_no_events_to_train_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user is shown an item of the other group each day, and does not take it."""

    def shown(day: int) -> pa.Table:
        more = [(user, f"i{(int(item[1:]) + 1) % ITEMS}", time + 1) for user, item, time in day_of(day)[::2]]
        events = [*day_of(day), *more]
        return table(events, took=[n < USERS * A_DAY for n in range(len(events))])

    folder = tmp_path / "at"
    folder.mkdir()
    pa.parquet.write_table(pa.concat_tables(map(shown, range(FIRST_DAYS))), folder / "events.parquet")
    schema = replace(SCHEMA, interactions=replace(SCHEMA.interactions, taken="took"))
    run = run_of(folder, str(folder / "events.parquet"))
    train(replace(run, schema=schema), folder / "model", quiet=True)
    met = events_trained_on(monkeypatch)
    day = update(folder / "model", interactions=shown(FIRST_DAYS), quiet=True).day
    store = store_of(folder / "model")
    assert day is not None
    assert day.n_events == USERS * A_DAY
    assert (store.arrived == 1).sum() == USERS * A_DAY * 3 // 2
    assert store.taken is not None
    assert store.taken[met[0]].all()


def test_without_times(tmp_path: Path) -> None:
    """What is new is known by its query and item."""
    schema = Schema(interactions=Interactions(query="user", item="item"), query=SCHEMA.query, item=SCHEMA.item)
    model = trained(tmp_path / "at", schema=schema, split=RandomSplit(valid=0.1, test=0.1))
    day = updated(model, day_of(0), day_of(FIRST_DAYS)).day
    assert (day.n_events, day.n_repeats, day.first) == (USERS * A_DAY, USERS * A_DAY, None)
    assert day.before is not None


def test_queries_that_are_only_their_context(tmp_path: Path) -> None:
    """Numbers about 1 ask for even items, those about -1 for odd ones."""

    def asked(day: int) -> pa.Table:
        events = day_of(day)
        return table(events, n=[1.0 if int(item[1:]) % 2 == 0 else -1.0 for _, item, _ in events])

    folder = tmp_path / "at"
    folder.mkdir()
    pa.parquet.write_table(pa.concat_tables(map(asked, range(FIRST_DAYS))), folder / "events.parquet")
    schema = Schema(
        interactions=Interactions(item="item", time="time"), context={"n": Number(column="n")}, item=SCHEMA.item
    )
    run = run_of(folder, str(folder / "events.parquet"))
    train(replace(run, schema=schema), folder / "model", quiet=True)
    day = update(folder / "model", interactions=asked(FIRST_DAYS), quiet=True).day
    assert day is not None
    assert (day.n_events, day.new_queries) == (USERS * A_DAY, 0)
    best = recommend(folder / "model", {"n": -1.0}, k=10)
    assert sum(int(found.item[1:]) % 2 for found in best) >= 9


# ---------------------------------------------------------------- keep or not

TOO_FAST = ["update.rate=1000", "update.epochs=1"]


def test_a_model_that_got_worse_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it the model is as it was, to the bit, the store has grown, and the next update trains on all of it."""
    model = trained(tmp_path / "at", update=Update(epochs=3.0, valid=0.4, replay=0.0))
    held_out = open_model(model)[0].split.assign(store_of(model)) > 0
    met, before = events_trained_on(monkeypatch), rows_by_table(model)
    three = [event for day in range(3) for event in day_of(FIRST_DAYS + day)]
    lost = updated(model, three, NEW, set=TOO_FAST)
    day = lost.day
    assert not day.kept
    assert day.after < 0.9 * day.before
    assert "not kept, the model stays as it was" in lost.render()
    after, store = rows_by_table(model), store_of(model)
    assert (store.n_updates, store.n_events) == (1, len(held_out) + len(three) + len(NEW))
    for side, tensors in before.items():
        for name, was in tensors.items():
            assert torch.equal(after[side][name][: len(was)], was), name
    assert "fresh" in items_of(model, "u23", k=ITEMS + 1)
    assert not updated(model, day_of(FIRST_DAYS + 3), set=["update.min_recall_ratio=100"]).day.kept
    third = updated(model, day_of(FIRST_DAYS + 4)).day
    assert third.kept
    store = store_of(model)
    held = held_out_for_good(store, 0.4)
    assert third.n_trained == held_out.sum() + (~held[store.arrived > 0]).sum() == len(met[2])
    update_of = np.asarray(store.arrived)[met[2]]
    assert set(update_of.tolist()) == {0, 1, 2, 3}
    assert (update_of == 0).sum() == held_out.sum()
    assert [d.kept for d in history(model).days] == [False, False, True]
    fourth = updated(model, day_of(FIRST_DAYS + 5)).day
    assert fourth.n_trained == fourth.n_events - fourth.n_held_out


def of(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("value_Q", "other_Q", "below"),
    [
        # d = -1, -1, 0, 0: mean -0.5, sd sqrt(4 * 0.25 / 3) = 0.577, two errors 0.577: within
        (of(0, 0, 1, 1), of(1, 1, 1, 1), False),
        # d = -1, -1, -1, 0: mean -0.75, sd 0.5, two errors 0.5: below
        (of(0, 0, 0, 1), of(1, 1, 1, 1), True),
        (of(1, 1, 1, 1), of(0, 0, 0, 1), False),
        (of(0.4, 0.4), of(0.5, 0.5), True),
        (of(0.5, 0.5), of(0.5, 0.5), False),
        (of(0.0), of(1.0), False),
        (of(0, 0, 0, 1, torch.nan), of(1, 1, 1, 1, torch.nan), True),
        (of(torch.nan, torch.nan), of(torch.nan, torch.nan), False),
    ],
)
def test_below_by_more_than_chance(value_Q: torch.Tensor, other_Q: torch.Tensor, below: bool) -> None:
    assert is_below(value_Q, other_Q) is below


# ---------------------------------------------------------------- again, and cut off


def test_the_same_updates_make_the_same_model(first: Path, twice: Path, tmp_path: Path) -> None:
    """Also where one of them does not stay."""
    one, two = copy_of(twice, tmp_path / "one"), copy_of(first, tmp_path / "two")
    updated(two, day_of(FIRST_DAYS))
    updated(two, day_of(FIRST_DAYS + 1))
    for model in (one, two):
        assert not updated(model, day_of(FIRST_DAYS + 2), NEW, set=["update.min_recall_ratio=100"]).day.kept
    assert without_times(bytes_of(one)) == without_times(bytes_of(two))
    assert sorted(path.name for path in one.iterdir()) == ["best", "metrics.jsonl", "run.toml", "stores", "train.json"]
    assert [path.name for path in (one / "stores").iterdir()] == ["000003"]


class Killed(BaseException):
    """What no ``except`` of the program catches."""


def test_cut_off_in_training_it_goes_on_where_it_was(
    once: Path, twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second update, its state saved at each step: yesterday's model until the end, then the same."""
    two, settings = copy_of(once, tmp_path), ["training.checkpoint_every_s=0"]
    before, taken, step = bytes_of(two / "best"), [], Loop._step

    def stepper(self: Loop, number: int, batch: Any) -> None:
        taken.append(number)
        step(self, number, batch)
        if len(taken) in (4, 9):
            raise Killed if len(taken) == 4 else KeyboardInterrupt

    monkeypatch.setattr(Loop, "_step", stepper)
    for error in (Killed, KeyboardInterrupt):
        with pytest.raises(error):
            updated(two, day_of(FIRST_DAYS + 1), set=settings)
        assert bytes_of(two / "best") == before
        assert len(recommend(two, {"user": "u0"})) == 10
    updated(two, day_of(FIRST_DAYS + 1), set=settings)
    assert without_times(bytes_of(two)) == without_times(bytes_of(twice))
    steps = history(two).days[-1].steps
    assert len(taken) <= steps + 2  # only what was not whole is taken again


def test_another_update_does_not_go_on_with_what_was_cut_off(
    first: Path, once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, settings = copy_of(first, tmp_path), ["training.checkpoint_every_s=0"]
    with monkeypatch.context() as patch:
        save = checkpoint.save

        def dying(folder: Path, *args: Any, **kwargs: Any) -> None:
            if folder.parent == two:
                raise Killed
            save(folder, *args, **kwargs)

        patch.setattr(checkpoint, "save", dying)
        with pytest.raises(Killed):
            updated(two, day_of(FIRST_DAYS + 1), set=settings)
    assert (two / "update").exists()
    updated(two, day_of(FIRST_DAYS), set=settings)
    assert without_times(bytes_of(two)) == without_times(bytes_of(once))


@pytest.mark.parametrize("at_", ["before it", "between its renames", "before the old one goes", "after it"])
def test_cut_off_about_the_change_over(
    once: Path, twice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_: str
) -> None:
    two = copy_of(once, tmp_path)
    save, rename, sync = checkpoint.save, Path.rename, checkpoint._sync

    def dying_save(folder: Path, *args: Any, **kwargs: Any) -> None:
        if folder == two / "best" and at_ == "before it":
            raise Killed
        save(folder, *args, **kwargs)
        if folder == two / "best":
            raise Killed

    def dying_rename(self: Path, target: Path) -> Path:
        if self == two / "best.partial" and at_ == "between its renames":
            raise Killed
        return rename(self, target)

    def dying_sync(path: Path) -> None:
        if path == two and at_ == "before the old one goes":
            raise Killed
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", dying_save)
        patch.setattr(Path, "rename", dying_rename)
        patch.setattr(checkpoint, "_sync", dying_sync)
        with pytest.raises(Killed):
            updated(two, day_of(FIRST_DAYS + 1))
    assert len(recommend(two, {"user": "u0"})) == 10
    is_over = at_ in ("before the old one goes", "after it")
    assert len(history(two).days) == 1 + is_over
    assert (updated(two, day_of(FIRST_DAYS + 1)).day is None) == is_over
    assert without_times(bytes_of(two)) == without_times(bytes_of(twice))


LOCKED = """
import sys, time
from pathlib import Path
from twotower.data.lock import locked
with locked(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_at_once(model: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", LOCKED, str(model / ".lock")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        for another in (lambda: updated(model, day_of(FIRST_DAYS)), lambda: forget(model, ["u0"])):
            with pytest.raises(ArtifactError, match="another update of this model is going on: wait for it"):
                another()
    finally:
        holder.kill()
        holder.communicate()
    assert updated(model, day_of(FIRST_DAYS)).day is not None
    assert not (model / ".lock").exists()


def test_a_cut_off_training_does_not_take_the_place_of_an_updated_model(model: Path) -> None:
    """It could go on, had it not been updated."""
    (model / "train.json").unlink()
    updated(model, day_of(FIRST_DAYS))
    with pytest.raises(ArtifactError, match="already holds a trained model"):
        train(run_of(model.parent, "no matter"), model, quiet=True)


# ---------------------------------------------------------------- forget

SECRET, NUMBER = "zq7-xyzzy-plugh-0451", "907856341209"
THEIRS = [*at(2, SECRET, "i0", "i3", "i5", "i9", "i8"), *at(3, NUMBER, "i1", "i7", "i33", "i4")]


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows two more users."""
    events = [event for day in range(FIRST_DAYS) for event in [*day_of(day), *(THEIRS if day == 2 else [])]]
    return trained(tmp_path_factory.mktemp("knowing") / "at", events)


def held_bytes(model: Path, needle: bytes) -> list[str]:
    return [name for name, content in bytes_of(model).items() if needle in content]


@pytest.mark.parametrize("n_updates", [0, 2])
def test_forgotten_queries_leave_nothing(knowing: Path, tmp_path: Path, n_updates: int) -> None:
    model = copy_of(knowing, tmp_path)
    for day in range(n_updates):
        updated(model, day_of(FIRST_DAYS + day), at(FIRST_DAYS + day, SECRET, f"i{40 + day}"))
    rows = [row_of(model, "user", SECRET), row_of(model, "user", NUMBER)]
    (theirs,) = [v for k, v in checkpoint.read_tensors(model / "best")[0].items() if k.endswith("query/user.weight")]
    assert theirs.shape[1] == 8
    vectors = [theirs[row].numpy().tobytes() for row in rows]
    places = [model.parent / "store", model]
    assert any(held_bytes(place, SECRET.encode()) for place in places)
    assert all(held_bytes(model, vector) for vector in vectors)
    others = {user: recommend(model, {"user": user}, k=5) for user in ("u0", "u1", "u7")}
    before = rows_by_table(model)

    done = forget(model, [SECRET, NUMBER])
    assert (done.n_queries, done.n_events) == (2, len(THEIRS) + n_updates)
    assert str(model.parent / "store") in " ".join(str(Path(model, place).resolve()) for place in done.elsewhere)
    for text in (SECRET, NUMBER):
        assert held_bytes(model, text.encode()) == []
        assert held_bytes(model, text.encode("utf-16-le")) == []
    for width in (8, 4):
        if int(NUMBER) < 2 ** (8 * width):
            assert held_bytes(model, int(NUMBER).to_bytes(width, "little")) == []
    assert [held_bytes(model, vector) for vector in vectors] == [[], []]
    for name in (SECRET, NUMBER):
        with pytest.raises(DataError, match="not known"):
            recommend(model, {"user": name})
    store = store_of(model)
    assert not np.isin(store.query_row, rows).any()
    assert {user: recommend(model, {"user": user}, k=5) for user in others} == others
    for side, tensors in before.items():
        stays = [row for row in range(len(next(iter(tensors.values())))) if side == "item" or row not in rows]
        for name, was in rows_by_table(model)[side].items():
            assert torch.equal(was[stays], tensors[name][stays]), name
    after = {name.rpartition(".")[2]: tensor for name, tensor in rows_by_table(model)["user"].items()}
    met = after["weight"][after["met_R"]]
    assert after.keys() == {"weight", "met_R", "accumulator_R"}
    assert not after["met_R"][rows].any()
    assert (after["accumulator_R"][rows] == 0).all()
    assert torch.allclose(after["weight"][rows], met.mean(0).expand(2, -1), atol=1e-6)


@pytest.mark.parametrize("n_updates", [0, 1])
def test_a_graph_without_them_knows_no_more_than_before(tmp_path: Path, n_updates: int) -> None:
    """Its edges are the pairs that were known to the model, held-out ones not among them, without theirs."""
    events = [event for day in range(FIRST_DAYS) for event in day_of(day)]
    model = trained(
        tmp_path / "at", [*events, *at(2, SECRET, "i0", "i3")], towers=TwoTower(dim=8, graph=Graph(layers=1))
    )
    for day in range(n_updates):
        updated(model, day_of(FIRST_DAYS + day))
    store = store_of(model)
    unknown = held_out_for_good(store, 0.2) if n_updates else open_model(model)[0].split.assign(store) > 0
    unknown |= np.asarray(store.query_row) == row_of(model, "user", SECRET)
    known = {(q, i) for q, i in zip(store.query_row[~unknown].tolist(), store.item_row[~unknown].tolist(), strict=True)}
    forget(model, [SECRET])
    edge_2E = checkpoint.read_tensors(model / "best")[0]["towers.graph.edge_2E"]
    assert len(known) > 200
    assert set(zip(*edge_2E.tolist(), strict=True)) == known


def test_who_comes_next_has_the_row_and_nothing_else(knowing: Path, tmp_path: Path) -> None:
    model = copy_of(knowing, tmp_path)
    row = row_of(model, "user", SECRET)
    forget(model, [SECRET])
    day = updated(model, day_of(FIRST_DAYS), at(FIRST_DAYS, "newcomer", "i0", "i2", "i4")).day
    assert day is not None
    assert day.new_queries == 1
    assert row_of(model, "user", "newcomer") == row
    everything = items_of(model, "newcomer", k=ITEMS)
    assert sorted(everything) == sorted({f"i{item}" for item in range(ITEMS)} - {"i0", "i2", "i4"})
    with pytest.raises(DataError, match="not known"):
        recommend(model, {"user": SECRET})
    assert held_bytes(model, SECRET.encode()) == []


def test_the_first_update_after_it_trains_on_what_the_split_held_out(knowing: Path, tmp_path: Path) -> None:
    """On those that are left: the split of a store that lost events would be another one."""
    model = copy_of(knowing, tmp_path)
    store = store_of(model)
    held_out = open_model(model)[0].split.assign(store) > 0
    row = row_of(model, "user", "u4")
    left = held_out[np.asarray(store.query_row) != row]
    forget(model, ["u4"])
    day = updated(model, day_of(FIRST_DAYS)).day
    assert day is not None
    assert day.n_trained == left.sum() + day.n_events - day.n_held_out


def test_an_id_that_is_not_known_is_not_forgotten(model: Path) -> None:
    before = bytes_of(model)
    with pytest.raises(DataError, match=r"1 of 2 ids are no queries of .*such as 'nobody'"):
        forget(model, ["u1", "nobody"])
    assert bytes_of(model) == before


def test_cut_off_in_forgetting(knowing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the model is changed over, the next command clears away what is left."""
    model = copy_of(knowing, tmp_path)
    row = row_of(model, "user", SECRET)
    (theirs,) = [v for k, v in checkpoint.read_tensors(model / "best")[0].items() if k.endswith("query/user.weight")]
    save = checkpoint.save

    def dying(folder: Path, *args: Any, **kwargs: Any) -> None:
        save(folder, *args, **kwargs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", dying)
        with pytest.raises(Killed):
            forget(model, [SECRET])
    with pytest.raises(DataError, match="no queries of"):
        forget(model, [SECRET])
    assert held_bytes(model, theirs[row].numpy().tobytes()) == []
    assert held_bytes(model, SECRET.encode()) == []


# ---------------------------------------------------------------- evict


def test_idle_items_go_and_their_row_is_anothers(tmp_path: Path) -> None:
    """An item that was taken on the first day alone goes; the next new item has its row, as if it had always been."""
    old = [event for user in range(0, USERS, 2) for event in at(0, f"u{user}", "old")]
    events = [event for day in range(FIRST_DAYS) for event in [*day_of(day), *(old if day == 0 else [])]]
    model = trained(tmp_path / "at", events)
    row, number = row_of(model, "item", "old"), int(store_of(model).item_number[row_of(model, "item", "old")])
    assert "old" in {found.item for found in recommend(model, {"user": "u0"}, k=200, filter_seen=False)}
    settings = ["update.evict_idle_days=4.9"]
    day = updated(model, day_of(FIRST_DAYS), set=settings).day
    assert day is not None
    assert day.evicted_items >= 1
    everything = {found.item for found in recommend(model, {"user": "u0"}, k=200, filter_seen=False)}
    assert "old" not in everything
    assert None not in everything
    store = store_of(model)
    assert store.item_number[row] == -1
    n_free = int(store.item_vocabulary.free.sum())
    assert n_free == day.evicted_items
    assert row == np.flatnonzero(store.item_vocabulary.free)[0] or n_free > 1
    before = {name: tensor[row] for name, tensor in rows_by_table(model)["item"].items()}
    names = [f"next{n}" for n in range(n_free)]
    odd = [event for user in range(1, USERS, 2) for event in at(FIRST_DAYS + 1, f"u{user}", *names)]
    updated(model, day_of(FIRST_DAYS + 1), odd)
    (successor,) = [name for name in names if row_of(model, "item", name) == row]
    assert int(store_of(model).item_number[row]) > number
    assert successor in items_of(model, "u23", k=ITEMS) or successor in {
        found.item for found in recommend(model, {"user": "u23"}, k=ITEMS // 2, filter_seen=False)
    }
    fresh = [name for name, tensor in rows_by_table(model)["item"].items() if torch.equal(tensor[row], before[name])]
    assert "towers.weights./item.weight" not in fresh


# ---------------------------------------------------------------- from a source


def days_in(folder: Path, *days: int) -> str:
    folder.mkdir(exist_ok=True)
    for day in days:
        write(folder / f"day-{day}.parquet", day_of(day))
    return str(folder)


def test_a_source_is_gone_through_once(model: Path, tmp_path: Path) -> None:
    stream = Folder(days_in(tmp_path / "days", FIRST_DAYS, FIRST_DAYS + 1))
    done = list(update_from(model, stream, source="days", quiet=True))
    assert [found.day.name for found in done if found.day] == [
        f"day-{FIRST_DAYS}.parquet",
        f"day-{FIRST_DAYS + 1}.parquet",
    ]
    assert list(update_from(model, stream, source="days", quiet=True)) == []
    days_in(tmp_path / "days", FIRST_DAYS + 2)
    (third,) = update_from(model, stream, source="days", quiet=True)
    assert third.day is not None
    assert (third.day.number, third.day.n_events, third.day.n_repeats) == (3, USERS * A_DAY, 0)


def test_a_day_without_rows_is_passed(model: Path, tmp_path: Path) -> None:
    stream = Folder(days_in(tmp_path / "days", FIRST_DAYS + 1))
    write(tmp_path / "days" / f"day-{FIRST_DAYS}.parquet", [])
    nothing, something = update_from(model, stream, source="days", quiet=True)
    assert nothing.day is None
    assert something.day is not None
    assert something.day.number == 1
    assert list(update_from(model, stream, source="days", quiet=True)) == []


def test_what_brings_nothing_is_not_read_again(model: Path, tmp_path: Path) -> None:
    """Its position is remembered all the same, and the model is not touched."""
    stream = Folder(days_in(tmp_path / "days", FIRST_DAYS - 1))
    before = bytes_of(model)
    (found,) = update_from(model, stream, source="days", quiet=True)
    assert found.day is None
    after = bytes_of(model)
    changed = [name for name in {*before, *after} if before.get(name) != after.get(name)]
    assert changed == ["best/state.json"]
    assert list(update_from(model, stream, source="days", quiet=True)) == []
    assert len(recommend(model, {"user": "u0"})) == 10


def test_stops_between_two_updates(model: Path, tmp_path: Path) -> None:
    stream = Folder(days_in(tmp_path / "days", FIRST_DAYS, FIRST_DAYS + 1))
    stopped: list[bool] = []
    for _ in update_from(model, stream, source="days", every_s=1000, stop=lambda: bool(stopped), quiet=True):
        stopped.append(True)
    assert len(history(model).days) == 1


def test_killed_between_and_within_updates_each_day_comes_once(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = copy_of(first, tmp_path / "one"), copy_of(first, tmp_path / "two")
    stream = Folder(days_in(tmp_path / "days", FIRST_DAYS, FIRST_DAYS + 1, FIRST_DAYS + 2))
    list(update_from(one, stream, source="days", quiet=True))
    updates = update_from(two, stream, source="days", quiet=True)
    next(updates)
    updates.close()
    step = Loop._step

    def stepper(self: Loop, number: int, batch: Any) -> None:
        if number == self.first_step + 7:
            raise Killed
        step(self, number, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", stepper)
        with pytest.raises(Killed):
            list(update_from(two, stream, source="days", quiet=True))
    assert len(list(update_from(two, stream, source="days", quiet=True))) == 2
    assert without_times(bytes_of(two)) == without_times(bytes_of(one))


# ---------------------------------------------------------------- what else one does with a model


def test_an_updated_model_is_measured_and_its_vectors_saved(model: Path, tmp_path: Path) -> None:
    updated(model, day_of(FIRST_DAYS), NEW)
    found = history(model)
    evaluation = evaluate(model)
    assert found.days[0].after is not None
    assert evaluation.metric("recall@10") == pytest.approx(found.days[0].after)
    assert evaluation.n_pairs == found.days[0].n_held_out
    assert evaluation.metric("recall@10") > 1.5 * evaluation.rows["random"]["recall@10"]
    save_vectors(model, tmp_path / "vectors.parquet")
    vectors = pa.parquet.read_table(tmp_path / "vectors.parquet")
    retriever = Retriever.open(model)
    assert vectors["item"].to_pylist() == retriever.store.item_vocabulary.ids().to_pylist()
    assert len(vectors) == ITEMS + 1
    assert torch.equal(torch.tensor(vectors["vector"].to_pylist()), retriever.item_MD)


def test_a_model_that_only_forgot_has_nothing_held_out(model: Path) -> None:
    forget(model, ["u0"])
    with pytest.raises(DataError, match="no update held anything out"):
        evaluate(model)


def test_a_run_without_a_section_of_updates(model: Path) -> None:
    text = (model / "run.toml").read_text(encoding="utf-8")
    head, _, rest = text.partition("[update]")
    _, between, after = rest.partition("\n[")
    (model / "run.toml").write_text(head + between.lstrip("\n") + after, encoding="utf-8")
    assert open_model(model)[0].update == Update()
    assert updated(model, day_of(FIRST_DAYS)).day is not None


def test_before_any_update_there_is_no_history(model: Path) -> None:
    assert history(model) == Days(metric="recall@10", days=())
    assert history(model).render() == "no update yet: twotower update MODEL --interactions NEW"


def test_products_stay_those_the_model_was_trained_with(once: Path, tmp_path: Path) -> None:
    """Unless they are not sound on this machine: bits depend on them, not on how busy it is."""
    faster = Matmul(precision="medium", seconds={}, error={"medium": 1e-7})
    rounding = Matmul(precision="highest", seconds={}, error={"medium": 3e-3})
    model, found = copy_of(once, tmp_path), []
    assert checkpoint.read_state(model / "best")["products"] == "highest"
    for number, probed in enumerate((faster, rounding)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "probe", lambda probed=probed: probed)
            updated(model, day_of(FIRST_DAYS + 1 + number))
        state = checkpoint.read_state(model / "best")
        found.append(state["products"])
        checkpoint.write_state(model / "best", {**state, "products": "medium"})
    assert found == ["highest", "highest"]
