"""Raw queries: what is stored, what is given and what is made of both, against the files they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bundle import shop
from twotower.config import ingest_run
from twotower.data.columns import Column, RaggedArray
from twotower.data.raw_queries import RawQueries, last_of_each
from twotower.data.store import Store
from twotower.errors import DataError
from twotower.training.retriever import recent_items

K = 5
"""Items of a history that the shop's schema remembers."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    ingest_run(shop.run_of(shop.write_files(folder)))
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> Store:
    return Store.open(folder / "store")


@pytest.fixture(scope="module")
def raw(store: Store) -> RawQueries:
    return RawQueries(
        store.schema,
        store.encoders,
        queries=store.query_vocabulary,
        items=store.item_vocabulary,
        stored=store.query,
        item_columns=store.item,
        recent=lambda: recent_items(store),
    )


@pytest.fixture(scope="module")
def latest(folder: Path) -> list[list[str]]:
    """By user the items of its events, oldest first, as the file has them."""
    events = pq.read_table(folder / "events.parquet").to_pydict()
    pairs = list(zip(events["user"], events["item"], strict=True))
    return [[item for user, item in pairs if user == f"u{u}"] for u in range(shop.USERS)]


def row_of(column: Column, at: int) -> list[float]:
    if isinstance(column, RaggedArray):
        inside = slice(int(column.offset[at]), int(column.offset[at + 1]))
        assert column.weight is not None
        return [*column.value[inside].tolist(), *column.weight[inside].tolist()]
    return np.atleast_1d(column[at]).tolist()


def history(store: Store, items: list[str]) -> list[float]:
    """What the tower is to read of these items: rows of the table of ids in the order they came, each an equal part."""
    row = store.encoders.vocabularies["item"].rows(pa.array(items, pa.string()))
    return [*row.tolist(), *np.full(len(items), 1 / max(len(items), 1), np.float32).tolist()]


def test_an_id_brings_what_is_stored(raw: RawQueries, store: Store, latest: list[list[str]]) -> None:
    queries = [{"user": f"u{u}"} for u in (3, 0, 41)]
    rows = np.array([raw.row(query) for query in queries])
    assert rows.tolist() == [3, 0, 41]  # as the file of users lists them
    encoded, known = raw.encode(queries, rows), raw.encode_known(rows)
    assert set(encoded) == {*store.query, "page", "device", "history"} == set(known)
    for found in (encoded, known):
        for at, row in enumerate(rows.tolist()):
            assert all(row_of(found[key], at) == row_of(column, row) for key, column in store.query.items())
            assert row_of(found["history"], at) == history(store, latest[row][-K:])
            assert (row_of(found["page"], at), row_of(found["device"], at)) == ([-1], [-1])


def test_what_is_given_replaces_what_is_stored_feature_by_feature(raw: RawQueries, store: Store) -> None:
    given = {"user": "u4", "age": 33.0, "likes": ["k2"], "how_much": [3.0], "joined": None, "device": "d1"}
    others = [{"user": "u5"}, {"age": 33.0}, {"user": "nobody", "country": "c2"}]
    encoded = raw.encode([given, *others], np.array([4, 5, -1, -1]))
    told = {"age", "likes"}
    for key, column in store.query.items():
        same = row_of(encoded[key], 0) == row_of(column, 4)
        assert same == (key not in told), key
        assert row_of(encoded[key], 1) == row_of(column, 5)
    assert row_of(encoded["likes"], 0) == [
        *store.encoders.vocabularies["query.likes"].rows(pa.array(["k2"])).tolist(),
        1.0,
    ]
    assert row_of(encoded["age"], 0) == row_of(encoded["age"], 2)
    assert row_of(encoded["user"], 2) == [-1]
    assert row_of(encoded["country"], 3) == store.encoders.vocabularies["query.country"].rows(pa.array(["c2"])).tolist()
    assert row_of(encoded["device"], 0) != [-1] == row_of(encoded["device"], 1)


def test_a_history_that_is_given_replaces_the_known_one(raw: RawQueries, store: Store, latest: list[list[str]]) -> None:
    queries = [
        {"user": "u1", "history": ["i9", "never heard of", "i8"]},
        {"user": "u2"},
        {"history": [f"i{i}" for i in range(9)]},
        {"user": "u3", "history": []},
        {"history": [None, "i7", 3]},
    ]
    found = raw.encode(queries, np.array([1, 2, -1, 3, -1]))["history"]
    assert row_of(found, 0) == history(store, ["i9", "i8"])
    assert row_of(found, 1) == history(store, latest[2][-K:])
    assert row_of(found, 2) == history(store, [f"i{i}" for i in range(4, 9)])
    assert row_of(found, 3) == []
    assert row_of(found, 4) == history(store, ["i7"])


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"cuontry": "c1"}, "query: 'cuontry' is no column of the query side, .*; did you mean 'country'?"),
        ({"user": None}, "query: it is empty, expected at least one of"),
        ({"user": "nobody"}, "query: user 'nobody' is not known, and nothing else was given .* give other columns"),
        ({"user": ["u1"]}, "query: column 'user': found "),
    ],
)
def test_queries_of_which_nothing_is_known(query: dict[str, object], says: str, raw: RawQueries) -> None:
    with pytest.raises(DataError, match=says):
        raw.row(query)


def test_the_last_of_each() -> None:
    lists = RaggedArray(offset=np.array([0, 3, 3, 5, 6]), value=np.array([1, 2, 3, 4, 5, 6]))
    found = last_of_each(lists, 2)
    assert found.offset.tolist() == [0, 2, 2, 4, 5]
    assert found.value.tolist() == [2, 3, 4, 5, 6]
    assert last_of_each(lists, 0).value.tolist() == []
