"""What ``init`` makes of small planted tables and, where they are at hand, of real files."""

from __future__ import annotations

import gzip
import json
import os
import tomllib
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from twotower.config import parse_run
from twotower.data import infer, profile
from twotower.data.infer import ColumnReport, InferredSchema, init
from twotower.data.suggest import words_of
from twotower.errors import ConfigError, DataError
from twotower.schema import Categorical, Categories, Id, Number, Text, Time, Vector

DATA = Path(os.environ.get("TWOTOWER_DATA", Path(__file__).parents[3] / "shared" / "data"))
N = 3000


def shop() -> dict[str, pa.Table]:
    """Events of 200 users and 100 items; a user's country and an item's colour go with their ids, and whether an item
    was bought decides how long it was looked at."""
    rng = np.random.default_rng(0)
    user, item, bought = rng.integers(0, 200, N), rng.integers(0, 100, N), rng.integers(0, 2, N)
    countries, kinds = np.array(["at", "be", "ch"]), np.array(["lamp", "chair", "table", "glass"])
    events = {
        "user_id": user,
        "itemId": [f"i{i}" for i in item],
        "event_time": 1_700_000_000_000 + np.sort(rng.integers(0, 10**9, N)),
        "is_click": bought,
        "seconds_shown": rng.random(N) + 10 * bought,
        "rating": rng.integers(1, 6, N),
        "page": rng.integers(0, 5, N),
        "country": countries[user % 3],
        "colour": kinds[item % 4],
        "source": ["log"] * N,
        "order_id": rng.integers(0, 2500, N),
    }
    items = {
        "itemId": [f"i{i}" for i in range(100)],
        "title": [f"a {kinds[i % 4]} of kind {i} for you" for i in range(120)][:100],
        "genres": [f"{'ab'[i % 2]}|{'cde'[i % 3]}|f" for i in range(100)],
        "price": (np.arange(100.0) ** 3).tolist(),
        "weight_kg": rng.normal(5, 1, 100),
        "sold_count": np.arange(100) * 7 % 1000,
        "added": [datetime(2020, 1, 1) + timedelta(days=i) for i in range(100)],
        "tags": [["x", "y"][: i % 3] for i in range(100)],
        "vector": [[float(i), 0.5] for i in range(100)],
        "ean": [f"{10**9 + 7 * i}" for i in range(100)],
        "release_date": [20200101 + i % 28 for i in range(100)],
        "odd": [{"a": i} for i in range(100)],
        "empty": pa.nulls(100),
        "rare": [1.5 + i * i if i < 30 else None for i in range(100)],
    }
    users = {"user_id": np.arange(200), "age": rng.integers(18, 80, 200), "seen": [[f"i{i % 100}"] for i in range(200)]}
    return {"events": pa.table(events), "items": pa.table(items), "users": pa.table(users)}


def report(found: InferredSchema, column: str, file: str = "interactions") -> ColumnReport:
    return next(r for r in found.columns if r.column == column and r.file == file)


@pytest.fixture(scope="module")
def of_events() -> InferredSchema:
    return init(shop()["events"])


@pytest.fixture(scope="module")
def of_all() -> InferredSchema:
    tables = shop()
    return init(tables["events"], queries=tables["users"], items=tables["items"])


# ---------------------------------------------------------------- roles


def test_the_interactions_get_their_roles(of_events: InferredSchema) -> None:
    interactions = of_events.schema.interactions
    assert interactions.query == "user_id"
    assert interactions.item == "itemId"
    assert interactions.time == "event_time"
    assert interactions.time_unit == "ms"
    assert interactions.taken == "is_click"
    assert interactions.split is None
    assert not interactions.query_is_item
    assert report(of_events, "itemId").role == "item id"
    assert any("moments in ms since 1970" in warning for warning in of_events.warnings)


@pytest.mark.parametrize(
    ("column", "role", "warning"),
    [
        ("seconds_shown", "left out", "all but tells is_click"),
        ("rating", "left out", "sounds like an outcome"),
        ("source", "left out", "constant: every value is log"),
        ("page", "context: Categorical?", ""),
        ("country", "query: Categorical", ""),
        ("colour", "item: Categorical", ""),
        ("order_id", "left out", "sounds like an outcome"),
    ],
)
def test_what_leaks_is_no_context(of_events: InferredSchema, column: str, role: str, warning: str) -> None:
    found = report(of_events, column)
    assert found.role == role
    assert warning in "; ".join(found.warnings)


def test_attributes_in_the_interactions_are_features_of_their_side(of_events: InferredSchema) -> None:
    assert of_events.schema.query == {"user_id": Id(column="user_id"), "country": Categorical(column="country")}
    assert of_events.schema.item == {"item_id": Id(column="itemId"), "colour": Categorical(column="colour")}
    assert of_events.schema.context == {}


def test_files_give_features(of_all: InferredSchema) -> None:
    assert of_all.schema.item == {
        "item_id": Id(column="itemId"),
        "colour": Categorical(column="colour"),
        "genres": Categories(column="genres", separator="|"),
        "price": Number(column="price"),
        "weight_kg": Number(column="weight_kg"),
        "added": Time(column="added", parts=("age",)),
        "tags": Categories(column="tags"),
        "vector": Vector(column="vector", dim=2),
        "rare": Number(column="rare"),
        "text": Text(columns=("title",)),
    }
    assert set(of_all.schema.query) == {"user_id", "country", "age"}
    assert of_all.schema.query["age"] == Number(column="age")
    assert of_all.schema.item_key is None


@pytest.mark.parametrize(
    ("column", "file", "role", "warning"),
    [
        ("sold_count", "items", "item: Number?", "leaks if events to be predicted are in it"),
        ("seen", "queries", "query: Categories?", "leaks if items to be predicted are in it"),
        ("ean", "items", "left out", "numbers stored as text"),
        ("release_date", "items", "left out", "a date written as a number"),
        ("odd", "items", "left out", "can't be a feature"),
        ("empty", "items", "left out", "no value is there"),
        ("rare", "items", "item: Number", "70% missing"),
    ],
)
def test_doubtful_columns_come_with_a_warning(
    of_all: InferredSchema, column: str, file: str, role: str, warning: str
) -> None:
    found = report(of_all, column, file)
    assert found.role == role
    assert warning in "; ".join(found.warnings)


def test_profiles_are_exact(of_events: InferredSchema) -> None:
    events = shop()["events"]
    for name in events.column_names:
        found = report(of_events, name)
        assert found.rows == N
        assert found.distinct == len(set(events[name].to_pylist()))
        assert found.missing == 0.0
        assert not found.distinct_is_capped


def test_missing_ids_and_capped_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "DISTINCT_CAP", 50)
    events = {"user_id": [1.0, None, float("nan"), 2.0] * 50, "item_id": list(range(200))}
    found = init(pa.table(events))
    user, item = report(found, "user_id"), report(found, "item_id")
    assert user.missing == 0.5
    assert user.distinct == 2
    assert any("50.0% missing: ingest leaves such events out" in warning for warning in user.warnings)
    assert (item.distinct, item.distinct_is_capped) == (50, True)
    assert "≥ 50" in found.render()


def test_links_between_items() -> None:
    names = [
        f"{a}-{b}-pack" for a in ("red", "blue", "tall", "wide") for b in ("lamp", "chair", "table", "glass", "door")
    ]
    rng = np.random.default_rng(0)
    links = pa.table(
        {"a": [names[i] for i in rng.integers(0, 20, 400)], "b": [names[i] for i in rng.integers(0, 20, 400)]}
    )
    pages = pa.table(
        {"page": names, "about": [f"this is the {name} and more of {i}" for i, name in enumerate(names * 10)][:20]}
    )
    found = init(links, items=pages)
    assert found.schema.interactions.query_is_item
    assert (found.schema.interactions.query, found.schema.interactions.item) == ("a", "b")
    assert (found.schema.query_key, found.schema.item_key) == ("page", "page")
    assert found.schema.query["text"] == found.schema.item["text"]
    assert isinstance(found.schema.item["text"], Text)
    assert found.schema.item["text"].name_columns == ("page",)
    assert found.schema.item["text"].table == "text"
    assert any("by its place only" in warning for warning in found.warnings)


def test_searches_are_text_without_an_id() -> None:
    texts = [
        f"cheap {a} for {b} number {i}"
        for i in range(15)
        for a in ("lamp", "chair")
        for b in ("home", "work", "fun", "you")
    ]
    found = init(pa.table({"search_query": texts, "product_id": list(range(60)) * 2}))
    assert found.schema.interactions.query is None
    assert found.schema.query == {}
    assert found.schema.context == {"search_query": Text(columns=("search_query",))}


def test_a_split_column_is_used() -> None:
    events = {"user": [1, 2, 3, 4], "item": [5, 6, 5, 6], "part": ["train", "test", "train", "test"]}
    found = init(pa.table(events))
    assert found.schema.interactions.split == "part"
    assert tomllib.loads(found.toml)["split"] == {"kind": "GivenSplit", "valid": 0.1}
    given = init(pa.table({**events, "part": ["train", "test", "valid", "test"]}))
    assert tomllib.loads(given.toml)["split"] == {"kind": "GivenSplit"}


def test_a_query_of_every_event_is_a_warning() -> None:
    found = init(pa.table({"session_id": list(range(100)), "item_id": [i % 7 for i in range(100)]}))
    assert any("almost every event has a query of its own" in warning for warning in found.warnings)


def test_tables_too_large_for_memory_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "_memory_bytes", lambda: 100 * 64 * 4 * 3)  # the 100 items take a third of it
    found = init(shop()["events"])
    assert any(w.startswith("item.item_id: 100 values take") and "set hash_buckets" in w for w in found.warnings)
    monkeypatch.setattr(infer, "_memory_bytes", lambda: None)
    assert not any("hash_buckets" in w for w in init(shop()["events"]).warnings)


def test_without_an_item_there_is_nothing_to_do() -> None:
    with pytest.raises(DataError, match=r"no column that could be the item's id.*the columns are at"):
        init(pa.table({"at": pa.array([datetime(2024, 1, 1)] * 3)}))
    with pytest.raises(DataError, match="no column that could be the query's id or text"):
        init(pa.table({"item_id": [1, 2, 3]}))


def test_a_file_without_a_key_is_refused() -> None:
    with pytest.raises(DataError, match="items: no column has a value of its own in every row"):
        init(pa.table({"user": [1, 2], "item": [1, 2]}), items=pa.table({"item": [1, 1], "kind": ["a", "a"]}))


# ---------------------------------------------------------------- what is written


def test_the_run_reads_back_as_the_schema(of_events: InferredSchema, of_all: InferredSchema) -> None:
    for found in (of_events, of_all):
        run = parse_run(found.toml)
        assert run.schema == found.schema
        assert run.data is None  # frames have no path


def test_the_run_names_files_relative_to_itself(tmp_path: Path) -> None:
    tables = shop()
    (tmp_path / "data").mkdir()
    (tmp_path / "runs").mkdir()
    for name, table in tables.items():
        pa.parquet.write_table(
            table.drop_columns(["odd"]) if name == "items" else table, tmp_path / "data" / f"{name}.parquet"
        )
    out = tmp_path / "runs" / "run.toml"
    data = tmp_path / "data"
    found = init([data / "events.parquet"], queries=data / "users.parquet", items=str(data / "items.parquet"), out=out)
    tree = tomllib.loads(out.read_text())
    assert out.read_text() == found.toml
    assert tree["data"] == {
        "interactions": ["../data/events.parquet"],
        "queries": ["../data/users.parquet"],
        "items": ["../data/items.parquet"],
        "store": "store",
    }
    assert tree["split"]["kind"] == "TimeSplit"
    assert parse_run(found.toml).schema == found.schema
    with pytest.raises(ConfigError, match=r"run\.toml: there is a file already"):
        init(data / "events.parquet", out=out)
    with pytest.raises(ConfigError, match="there is no folder"):
        init(data / "events.parquet", out=tmp_path / "elsewhere" / "run.toml")


def test_offered_features_are_comments_that_hold_when_uncommented(of_all: InferredSchema) -> None:
    lines = of_all.toml.splitlines()
    offered = [line for line in lines if line.startswith("# ") and "{ kind = " in line and "=" in line.split("{")[0]]
    assert any(line.startswith("# page = ") for line in offered)
    assert any(line.startswith("# history = ") for line in offered)
    run = parse_run("\n".join(line.removeprefix("# ") if line in offered else line for line in lines))
    assert {"page", "when", "history"} <= set(run.schema.context)


def test_odd_names_are_quoted_and_made_distinct() -> None:
    odd = 'a "quoted"\tname\x7f'
    events = {"user id": [1, 2, 1, 2] * 50, "item-id": [3, 4, 5, 3] * 50, odd: ["x", "y", "z", "x"] * 50}
    events |= {"größe": [0.5, 1.5, 2.5, 3.5] * 50, "user_id ": ["p", "q", "p", "q"] * 50}
    found = init(pa.table(events))
    assert parse_run(found.toml).schema == found.schema
    assert set(found.schema.query) == {"user_id", "user_id_2"}
    assert any(getattr(feature, "column", None) == odd for feature in found.schema.item.values())


def test_the_report_is_plain_text(of_all: InferredSchema) -> None:
    text = of_all.render()
    first = text.splitlines()[0].split()
    assert first == ["file", "column", "type", "distinct", "missing", "role", "examples"]
    assert "items.sold_count: looks like a count or rate of events" in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_words_of_names() -> None:
    assert words_of("CustomerID") == ["customer", "id"]
    assert words_of("item_id2") == ["item", "id2"]
    assert words_of("größe (cm)") == ["größe", "cm"]


# ---------------------------------------------------------------- real files


def real(*parts: str) -> Path:
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is absent: set TWOTOWER_DATA to the folder of the data sets")
    return path


def test_online_retail() -> None:
    found = init(real("online-retail", "online_retail_2009_2011.parquet"))
    interactions = found.schema.interactions
    assert (interactions.query, interactions.item, interactions.time) == ("CustomerID", "StockCode", "InvoiceDate")
    assert interactions.taken is None
    assert found.schema.item["description"] == Text(columns=("Description",))
    assert found.schema.query["country"] == Categorical(column="Country")
    for leak in ("InvoiceNo", "Quantity", "UnitPrice", "__index_level_0__"):
        assert report(found, leak).role == "left out"
    assert any(warning.startswith("interactions.Quantity: some are negative") for warning in found.warnings)
    assert parse_run(found.toml).schema == found.schema


def test_kuairand() -> None:
    folder = real("kuairand-pure")
    found = init(
        folder / "impressions_2022-04-25_30.parquet",
        queries=folder / "user_features_pure.csv",
        items=folder / "item_features.parquet",
    )
    interactions = found.schema.interactions
    assert (interactions.query, interactions.item, interactions.time) == ("user_id", "video_id", "time_ms")
    assert (interactions.time_unit, interactions.taken) == ("ms", "is_positive")
    for leak in ("watch_ratio", "play_time_ms", "long_view", "is_click", "finish"):
        assert report(found, leak).role == "left out"
    assert found.schema.item["tag"] == Categories(column="tag", separator=",")
    assert found.schema.item["author_id"] == Categorical(column="author_id")
    for count in ("show_cnt", "play_duration", "comment_stay_duration"):
        assert report(found, count, "items").role == "item: Number?"
    assert parse_run(found.toml).schema == found.schema


def test_movielens(tmp_path: Path) -> None:
    lines = real("ml-100k", "u.data").read_text()
    (tmp_path / "ratings.tsv").write_text("user_id\titem_id\trating\ttimestamp\n" + lines)
    found = init(tmp_path / "ratings.tsv")
    interactions = found.schema.interactions
    assert (interactions.query, interactions.item, interactions.time) == ("user_id", "item_id", "timestamp")
    assert interactions.time_unit == "s"
    assert report(found, "rating").role == "left out"
    (tmp_path / "bare.tsv").write_text(lines)
    with pytest.raises(DataError, match="looks like a first row of values, expected a first line of names"):
        init(tmp_path / "bare.tsv")


def test_debian_packages(tmp_path: Path) -> None:
    folder = real("debian-packages")
    with gzip.open(folder / "links.tsv.gz", "rt") as file:
        (tmp_path / "links.tsv").write_text("package\ttarget\trelation\n" + file.read())
    found = init(tmp_path / "links.tsv", items=folder / "packages.jsonl.gz")
    interactions = found.schema.interactions
    assert (interactions.query, interactions.item) == ("package", "target")
    assert interactions.query_is_item
    assert (found.schema.query_key, found.schema.item_key) == ("package", "package")
    assert found.schema.item["text"] == Text(columns=("description",), name_columns=("package",), table="text")
    assert found.schema.item["tags"] == Categories(column="tags", table="tags")
    assert parse_run(found.toml).schema == found.schema


def test_lists_of_items(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text(
        "".join(f"{user} " + " ".join(str((user * 7 + i) % 40) for i in range(8)) + "\n" for user in range(30))
    )
    found = init(path, out=tmp_path / "run.toml")
    assert (found.schema.interactions.query, found.schema.interactions.item) == ("user", "item")
    tree = tomllib.loads(found.toml)
    assert tree["split"]["kind"] == "RandomSplit"
    assert json.loads(json.dumps(tree["data"]["interactions"])) == ["train.txt"]
