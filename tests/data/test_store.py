"""The store: what is written is what is read, and what is damaged does not open."""

from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from twotower.data.column_files import ColumnsWriter, open_column
from twotower.data.columns import RaggedArray
from twotower.data.ingest import ingest
from twotower.data.staging import Staging
from twotower.data.store import MANIFEST, Store, decode_schema, encode_schema
from twotower.errors import ArtifactError
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

SCHEMA = Schema(
    interactions=Interactions(item="item", query="user", time="t"),
    query={"user": Id(column="user")},
    item={"item": Id(column="item"), "title": Text(columns=("title",))},
)
EVENTS = pa.table({"user": ["a", "b", "a"], "item": ["x", "x", "y"], "t": [30, 86_400, 10]})
ITEMS = pa.table({"item": ["y", "x", "z"], "title": ["red shoe", None, "blue shoe"]})

EVERYTHING = Schema(
    interactions=Interactions(item="i", query="q", time="t", time_unit="ms", weight="w", query_is_item=True),
    query={
        "q/1": Id(column="q", min_count=2, oov_buckets=3),
        "age": Number(column="age", transform="quantile", buckets=4),
    },
    context={
        "seed": Seed(column="s"),
        "history": History(k=7),
        "device": Categorical(column="d", hash_buckets=8, table="shared"),
        "when": Time(column="t", parts=("hour", "age"), unit="ms"),
    },
    item={
        "i": Id(column="i"),
        "tags": Categories(column="tags", weights="tw", separator=None),
        "text": Text(columns=("a", "b"), name_columns=("c",), chars=(3, 5)),
        "vector": Vector(column="v", dim=4),
    },
    item_key="sku",
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    ingest(SCHEMA, interactions=EVENTS, items=ITEMS, out=tmp_path / "store")
    return tmp_path / "store"


def test_a_store_holds_what_was_ingested(store: Path) -> None:
    found = Store.open(store, verify=True)
    assert (found.n_queries, found.n_items, found.n_events) == (2, 3, 3)
    assert found.schema == SCHEMA
    assert found.item_vocabulary.ids().to_pylist() == ["y", "x", "z"]  # the order of the item file
    assert found.query_vocabulary is not None
    users = found.query_vocabulary.ids().to_pylist()
    assert users == ["a", "b"]  # the most events first
    assert found.time_us is not None
    assert found.time_us.tolist() == [10_000_000, 30_000_000, 86_400_000_000]
    assert found.item_row.tolist() == [0, 1, 1]
    assert found.query_row.tolist() == [0, 0, 1]
    assert found.weight.tolist() == [1.0, 1.0, 1.0]
    assert found.days == ((date(1970, 1, 1), 0, 2), (date(1970, 1, 2), 2, 3))
    assert (found.split, found.query_item_row) == (None, None)
    assert [len(found.query), len(found.item), len(found.context)] == [1, 2, 0]
    assert [found.query.n, found.item.n, found.context.n] == [2, 3, 3]
    title = found.item["title"]
    assert isinstance(title, RaggedArray)
    assert title.lengths().tolist() == [2, 0, 2]
    assert found.report["n_events"] == 3
    assert not found.item_row.flags.writeable


@pytest.mark.parametrize("schema", [SCHEMA, EVERYTHING], ids=["small", "everything"])
def test_schema_round_trip_through_json(schema: Schema, tmp_path: Path) -> None:
    assert decode_schema(json.loads(json.dumps(encode_schema(schema))), tmp_path) == schema


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("item", "item", "kind"), "Idd", "schema.item.item.kind"),
        (("item", "item", "colour"), "red", "schema.item.item.colour is not a setting of Id"),
        (("interactions", "item"), 3, "schema.interactions.item"),
        (("item", "item", "min_count"), 0, "min_count is 0"),
    ],
)
def test_schema_is_decoded_strictly(tmp_path: Path, path: tuple[str, ...], value: object, message: str) -> None:
    tree = json.loads(json.dumps(encode_schema(SCHEMA)))
    place = tree
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ArtifactError, match=f"the store's schema can't be read .*{message}"):
        decode_schema(tree, tmp_path)


# ---------------------------------------------------------------- damage


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no store here \(no store.json\)"):
        Store.open(tmp_path)


def test_every_missing_file_is_noticed(store: Path, tmp_path: Path) -> None:
    files = [path for path in store.rglob("*") if path.is_file() and path.name != MANIFEST]
    assert len(files) > 8
    for file in files:
        file.rename(tmp_path / "away")
        with pytest.raises(ArtifactError, match=f"incomplete, .*{file.name} is missing: run the ingest again"):
            Store.open(store)
        (tmp_path / "away").rename(file)
    Store.open(store)


def test_every_truncated_or_changed_file_is_noticed(store: Path) -> None:
    for file in [path for path in store.rglob("*") if path.is_file() and path.name != MANIFEST]:
        content = file.read_bytes()
        file.write_bytes(content[:-1])
        with pytest.raises(ArtifactError, match=f"{file.name} has {len(content) - 1} bytes, expected {len(content)}"):
            Store.open(store)
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        with pytest.raises(ArtifactError, match=f"the checksum of .*{file.name} differs"):
            Store.open(store, verify=True)
        file.write_bytes(content)
    Store.open(store, verify=True)


def test_damaged_manifest(store: Path) -> None:
    manifest = store / MANIFEST
    text = manifest.read_text()
    manifest.write_text(text[: len(text) // 2])
    with pytest.raises(ArtifactError, match="can't be read"):
        Store.open(store)
    manifest.write_text(text.replace('"events": 3', '"events": 4'))
    with pytest.raises(ArtifactError, match="the manifest is damaged"):
        Store.open(store)
    manifest.write_text(text.replace('"version": 2', '"version": 99'))
    with pytest.raises(ArtifactError, match="the store has version 99, this program reads version 2"):
        Store.open(store)
    manifest.write_text("[]")
    with pytest.raises(ArtifactError, match="this is not the manifest of a store"):
        Store.open(store)


# ---------------------------------------------------------------- columns


def test_columns_written_in_pieces_are_one(tmp_path: Path) -> None:
    writer = ColumnsWriter(tmp_path, "item")
    ragged = RaggedArray.of_lengths(np.array([2, 0]), np.array([4, 5], np.int32), np.array([0.5, 0.5], np.float32))
    more = RaggedArray.of_lengths(np.array([1]), np.array([6], np.int32), np.array([1.0], np.float32))
    writer.append({"a/b": np.array([1, 2], np.int32), "list": ragged, "v": np.ones((2, 3), np.float32)})
    writer.append({"a/b": np.array([3], np.int32), "list": more, "v": np.zeros((1, 3), np.float32)})
    found = {name: open_column(tmp_path, leaf) for name, leaf in writer.close().items()}
    assert isinstance(found["list"], RaggedArray)
    assert np.asarray(found["a/b"]).tolist() == [1, 2, 3]
    assert found["list"].offset.tolist() == [0, 2, 2, 3]
    assert found["list"].value.tolist() == [4, 5, 6]
    assert found["list"].weight is not None
    assert found["list"].weight.tolist() == [0.5, 0.5, 1.0]
    assert np.asarray(found["v"]).tolist() == [[1.0] * 3, [1.0] * 3, [0.0] * 3]


def test_empty_lists_only(tmp_path: Path) -> None:
    writer = ColumnsWriter(tmp_path, "item")
    writer.append({"list": RaggedArray.of_lengths(np.zeros(2, np.int64), np.zeros(0, np.int32))})
    (leaf,) = writer.close().values()
    found = open_column(tmp_path, leaf)
    assert isinstance(found, RaggedArray)
    assert found.offset.tolist() == [0, 0, 0]


# ---------------------------------------------------------------- taking a place


def test_a_place_that_is_taken(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is a store already: choose another place, or replace it"):
        ingest(SCHEMA, interactions=EVENTS, items=ITEMS, out=store)
    ingest(SCHEMA, interactions=EVENTS.slice(0, 2), items=ITEMS, out=store, overwrite=True)
    assert Store.open(store, verify=True).n_events == 2
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ArtifactError, match="there is a file, expected a free place"):
        ingest(SCHEMA, interactions=EVENTS, items=ITEMS, out=file, overwrite=True)
    with pytest.raises(ArtifactError, match="the store can't be written"):
        ingest(SCHEMA, interactions=EVENTS, items=ITEMS, out=file / "store")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("kind", ["folder", "store and notes", "damaged store", "empty folders"])
def test_foreign_files_are_never_deleted(store: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "foreign"
    if kind in ("store and notes", "damaged store"):
        shutil.copytree(store, out)
    out.mkdir(exist_ok=True)
    if kind == "damaged store":
        (out / MANIFEST).write_text("{")
    elif kind == "empty folders":
        (out / "mine").mkdir()
    else:
        (out / "notes.md").write_text("mine")
    before = sorted(out.rglob("*"))
    with pytest.raises(ArtifactError, match=r"the folder holds what is no part of a store .*remove it yourself"):
        ingest(SCHEMA, interactions=EVENTS, items=ITEMS, out=out, overwrite=True)
    assert sorted(out.rglob("*")) == before


def test_an_empty_folder_may_be_taken(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    ingest(SCHEMA, interactions=EVENTS, items=ITEMS, out=tmp_path / "store")
    assert Store.open(tmp_path / "store").n_events == 3
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_one_ingest_at_a_time(tmp_path: Path) -> None:
    with Staging(tmp_path / "store", False), pytest.raises(ArtifactError, match="another ingest is writing this store"):
        ingest(SCHEMA, interactions=EVENTS, items=ITEMS, out=tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_was_being_replaced_comes_back(store: Path, tmp_path: Path) -> None:
    store.rename(tmp_path / ".store.replaced")  # killed between the two renames
    with pytest.raises(ArtifactError, match="there is a store already"):
        ingest(SCHEMA, interactions=EVENTS, items=ITEMS, out=store)
    assert Store.open(store, verify=True).n_events == 3
