"""Graded rewards: the rule by hand, through every kind of file, and what can't be graded counted by cause."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from twotower.config import Run, dump_run, parse_run
from twotower.data.events import rewards
from twotower.data.infer import init
from twotower.data.ingest import ingest
from twotower.data.splits import RandomSplit
from twotower.data.store import Store, decode_schema, encode_schema
from twotower.errors import ConfigError, DataError, SchemaError
from twotower.schema import Id, Interactions, Number, Reward, Schema

DATA = Path(os.environ.get("TWOTOWER_DATA", Path(__file__).parents[3] / "shared" / "data"))

WATCHED = Reward(column="played_ms", per="duration_ms", zero_below=0.2, one_from=0.8)


def schema_of(weight: str | Reward | None, **settings: Any) -> Schema:
    return Schema(
        interactions=Interactions(item="item", query="user", time="t", weight=weight, **settings),
        query={"user": Id(column="user")},
        item={"item": Id(column="item")},
    )


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("rule", "amount", "expected"),
    [
        (Reward(column="x"), [0.0, 0.25, 1.0, 3.0], [0.0, 0.25, 1.0, 1.0]),
        (Reward(column="x", zero_below=0.25), [0.0, 0.125, 0.25, 0.5, 2.0], [0.0, 0.0, 0.25, 0.5, 1.0]),
        (Reward(column="x", zero_below=30.0, one_from=120.0), [29.0, 30.0, 60.0, 120.0], [0.0, 0.25, 0.5, 1.0]),
        (Reward(column="x", zero_below=4.0, one_from=4.0), [3.0, 4.0, 5.0], [0.0, 1.0, 1.0]),  # yes or no
    ],
)
def test_the_rule(rule: Reward, amount: list[float], expected: list[float]) -> None:
    assert rewards(rule, np.array(amount)).tolist() == expected


def test_the_rule_of_a_ratio() -> None:
    """Shares .1 and .2 of a view, .4 of it, .8 and more: (0, .2/.8, .4/.8, 1, 1)."""
    found = rewards(WATCHED, np.array([1.0, 2.0, 40.0, 8.0, 90.0]), np.array([10.0, 10.0, 100.0, 10.0, 30.0]))
    assert found.tolist() == pytest.approx([0.0, 0.25, 0.5, 1.0, 1.0], rel=1e-15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"zero_below": 1.5},
            r"Reward\(column='x'\): zero_below is 1.5, expected a number from 0 to one_from, which is 1",
        ),
        ({"zero_below": -0.1}, "zero_below is -0.1"),
        ({"zero_below": math.nan}, "zero_below is nan"),
        ({"one_from": 0.0}, "one_from is 0.0, expected a positive, finite number"),
        ({"one_from": -1.0}, "one_from is -1.0"),
        ({"one_from": math.inf}, "one_from is inf"),
        ({"per": "x"}, "per names the same column"),
    ],
)
def test_rules_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        Reward(column="x", **settings)


# ---------------------------------------------------------------- through ingest

ROWS = {
    "user": ["a", "a", "a", "b", "b", "b", "b", "b", "c", "c"],
    "item": ["x", "y", "z", "x", "y", "z", "u", "v", "x", "y"],
    "t": list(range(10, 20)),
    "played_ms": [1000, 2000, 4000, 8000, 9000, None, -5, 500, 500, None],
    "duration_ms": [10_000, 10_000, 10_000, 10_000, 3000, 10_000, 10_000, 0, None, None],
}
"""Shares .1, .2, .4, .8 and 3; then no time, a negative one; a duration of zero, none, and neither of the two."""

SUFFIXES = ("csv", "parquet", "ndjson", "frame")


def source(rows: dict[str, list[Any]], suffix: str, folder: Path) -> Any:
    table, path = pa.table(rows), folder / f"events.{suffix}"
    if suffix == "frame":
        return table
    if suffix == "csv":
        pyarrow.csv.write_csv(table, path)
    elif suffix == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        table.to_pandas().to_json(path, orient="records", lines=True)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_graded_events_of_any_file(tmp_path: Path, suffix: str) -> None:
    report = ingest(schema_of(WATCHED), interactions=source(ROWS, suffix, tmp_path), out=tmp_path / "store")
    (group,) = report.groups
    assert (group.read, group.kept) == (10, 5)
    assert group.left_out == {
        "weight.per missing, not positive or not finite": 3,
        "weight missing, negative or not finite": 2,
    }
    if suffix == "frame":
        assert group.examples["weight.per missing, not positive or not finite"][0] == (
            "interactions (pyarrow frame) row 8: item = 'v', user = 'b', t = 17, played_ms = 500, duration_ms = 0"
        )
    assert "weight.per missing, not positive or not finite" in report.render()
    store = Store.open(tmp_path / "store", verify=True)
    assert store.weight.tolist() == pytest.approx([0.0, 0.25, 0.5, 1.0, 1.0], rel=1e-7)
    assert store.schema.interactions.weight == WATCHED
    assert store.item_vocabulary.ids().to_pylist() == ["x", "y", "z"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_one_column_is_graded_as_it_is(tmp_path: Path, suffix: str) -> None:
    rule = Reward(column="seen", zero_below=0.1)
    rows = {name: ROWS[name][:6] for name in ("user", "item", "t")}
    rows["seen"] = [0.05, 0.1, 0.6, 7.5, None, -1.0]
    report = ingest(schema_of(rule), interactions=source(rows, suffix, tmp_path), out=tmp_path / "store")
    assert report.groups[0].left_out == {"weight missing, negative or not finite": 2}
    assert Store.open(tmp_path / "store").weight.tolist() == pytest.approx([0.0, 0.1, 0.6, 1.0], rel=1e-7)


def test_graded_columns_may_be_features_too(tmp_path: Path) -> None:
    schema = replace(schema_of(WATCHED), context={"duration": Number(column="duration_ms")})
    ingest(schema, interactions=source(ROWS, "csv", tmp_path), out=tmp_path / "store")
    assert Store.open(tmp_path / "store").weight.tolist() == pytest.approx([0.0, 0.25, 0.5, 1.0, 1.0], rel=1e-7)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Reward(column="played"), "column 'played'"),
        (Reward(column="played_ms", per="durations_ms"), "'durations_ms'.*did you mean 'duration_ms'"),
        (Reward(column="played_ms", per="user"), "column 'user': found .*string, expected numbers"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path: Path, rule: Reward, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ingest(schema_of(rule), interactions=pa.table(ROWS), out=tmp_path / "store")


# ---------------------------------------------------------------- as settings

TOML = """
[schema.interactions]
item = "item"
query = "user"
weight = {weight}
[schema.query.user]
kind = "Id"
column = "user"
[schema.item.item]
kind = "Id"
column = "item"
[split]
kind = "RandomSplit"
"""


def run_with(weight: str, *changes: str) -> Run:
    return parse_run(TOML.replace("{weight}", weight), set=changes)


def test_a_column_or_a_rule_in_toml() -> None:
    assert run_with('"seen"').schema.interactions.weight == "seen"
    rule = run_with('{ column = "played_ms", per = "duration_ms", zero_below = 0.2, one_from = 0.8 }')
    assert rule.schema.interactions.weight == WATCHED
    changed = run_with('{ column = "seen" }', "schema.interactions.weight.zero_below=0.3")
    assert changed.schema.interactions.weight == Reward(column="seen", zero_below=0.3)
    replaced = run_with('"seen"', 'schema.interactions.weight={column="seen", one_from=5}')
    assert replaced.schema.interactions.weight == Reward(column="seen", one_from=5.0)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (
            '{ column = "x", zero_belw = 0.1 }',
            r"schema\.interactions\.weight\.zero_belw is not a setting of Reward: did you mean 'zero_below'\?",
        ),
        ("{ zero_below = 0.1 }", r"schema\.interactions\.weight\.column is missing, Reward needs it"),
        ('{ column = "x", zero_below = "a" }', r"weight\.zero_below: found 'a' \(text\), expected a number"),
        ("5", r"schema\.interactions\.weight: found 5 .*expected text or .*a table of the settings of Reward"),
        ('{ column = "x", zero_below = 2 }', r"schema\.interactions\.weight: Reward\(column='x'\): zero_below is 2"),
    ],
)
def test_a_rule_is_read_strictly(weight: str, message: str) -> None:
    with pytest.raises((ConfigError, SchemaError), match=message):
        run_with(weight)


@pytest.mark.parametrize("weight", [None, "seen", Reward(column="seen"), WATCHED])
def test_a_rule_survives_files(weight: str | Reward | None, tmp_path: Path) -> None:
    schema = schema_of(weight)
    run = Run(schema=schema, split=RandomSplit())
    assert parse_run(dump_run(run)).schema == schema
    assert decode_schema(encode_schema(schema), tmp_path) == schema


# ---------------------------------------------------------------- as init suggests it

N = 400


def suggested(**columns: Any) -> str:
    rng = np.random.default_rng(0)
    ids = {"user_id": rng.integers(0, 50, N), "video_id": rng.integers(0, 40, N)}
    lines = init(pa.table({**ids, **columns})).toml.splitlines()
    return next((line for line in lines if line.startswith("# weight = ")), "")


def test_init_offers_a_share_or_a_time_and_a_duration() -> None:
    rng = np.random.default_rng(1)
    ratio, time, duration = rng.random(N) * 1.5, rng.integers(0, 90_000, N), rng.integers(5_000, 90_000, N)
    assert suggested(watch_ratio=ratio).startswith('# weight = { column = "watch_ratio", zero_below = 0.1 }  # graded')
    pair = '# weight = { column = "play_time_ms", per = "duration_ms", zero_below = 0.1 }  # graded'
    assert suggested(play_time_ms=time, duration_ms=duration).startswith(pair)
    assert suggested(watch_ratio=100 * ratio) == ""  # a percentage
    assert suggested(play_time_ms=time, duration_s=duration) == ""  # other units
    assert suggested(play_time_ms=time) == ""


def test_what_init_offers_can_be_used() -> None:
    ratio = np.random.default_rng(1).random(N)
    ids = {"user_id": np.arange(N) % 50, "video_id": np.arange(N) % 41}
    found = init(pa.table({**ids, "watch_ratio": ratio, "is_click": np.arange(N) % 2}))
    assert found.schema.interactions.taken == "is_click"
    lines = found.toml.splitlines()
    used = parse_run("\n".join(line.removeprefix("# ") if "# weight" in line else line for line in lines))
    assert used.schema.interactions.taken == "is_click"
    assert used.schema.interactions.weight == Reward(column="watch_ratio", zero_below=0.1)


# ---------------------------------------------------------------- real data


def test_kuairand(tmp_path: Path) -> None:
    """Its watch_ratio is play time over duration, at most 5, so both rules grade alike; but where the duration is 0 it
    says 0, as if nothing had been watched, and the pair of columns shows that nobody knows."""
    path = DATA / "kuairand-pure" / "impressions_2022-04-25_30.parquet"
    if not path.exists():
        pytest.skip(f"{path} is absent: set TWOTOWER_DATA to the folder of the data sets")
    ratio = Reward(column="watch_ratio", zero_below=0.1)
    pair = Reward(column="play_time_ms", per="duration_ms", zero_below=0.1)
    weight: dict[str, dict[tuple[int, int, int], float]] = {}
    for name, rule in (("ratio", ratio), ("pair", pair)):
        schema = Schema(
            interactions=Interactions(item="video_id", query="user_id", time="time_ms", time_unit="ms", weight=rule),
            query={"user": Id(column="user_id")},
            item={"video": Id(column="video_id")},
        )
        report = ingest(schema, interactions=path, out=tmp_path / name)
        no_duration = {"weight.per missing, not positive or not finite": 1_665} if name == "pair" else {}
        assert report.groups[0].left_out == {"repeats an earlier event": 2_979} | no_duration
        store = Store.open(tmp_path / name)
        assert store.query_vocabulary is not None
        assert store.time_us is not None
        user, video = (
            np.array(vocabulary.ids().to_pylist(), np.int64)[row]
            for vocabulary, row in (
                (store.query_vocabulary, store.query_row),
                (store.item_vocabulary, store.item_row),
            )
        )
        events = zip(user.tolist(), video.tolist(), (store.time_us // 1000).tolist(), strict=True)
        weight[name] = dict(zip(events, store.weight.tolist(), strict=True))
    columns = ["user_id", "video_id", "time_ms", "play_time_ms", "duration_ms"]
    table = pyarrow.parquet.read_table(path, columns=columns).to_pydict()
    naive: dict[tuple[int, int, int], float] = {}
    for user, video, time, played, duration in zip(*(table[column] for column in columns), strict=True):
        if duration > 0:
            naive.setdefault((user, video, time), 0.0 if played / duration < 0.1 else min(played / duration, 1.0))
    assert weight["pair"] == pytest.approx(naive, rel=1e-6)
    assert {event: weight["ratio"][event] for event in naive} == pytest.approx(naive, rel=1e-6)
    assert {weight["ratio"][event] for event in weight["ratio"].keys() - naive.keys()} == {0.0}
