"""A small shop with every kind of feature, its model, and queries of all sorts to ask it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twotower.config import Data, Evaluation, Run, Training
from twotower.data.splits import TimeSplit
from twotower.negatives import Uniform
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
from twotower.towers import Tower, TwoTower
from twotower.training import train

USERS, ITEMS, EVENTS = 60, 300, 900
WORDS = ["red", "blue", "shirt", "shoe", "warm", "light", "wool", "silk"]

SCHEMA = Schema(
    interactions=Interactions(query="user", item="item", time="time"),
    query={
        "user": Id(column="user"),
        "country": Categorical(column="country"),
        "likes": Categories(column="likes", weights="how_much"),
        "age": Number(column="age"),
        "income": Number(column="income", transform="quantile", buckets=4),
        "joined": Time(column="joined"),
        "about": Text(columns=("about",), buckets=64),
        "photo": Vector(column="photo", dim=3),
    },
    context={"page": Seed(column="page"), "history": History(k=5), "device": Categorical(column="device")},
    item={
        "item": Id(column="item"),
        "kind": Categorical(column="kind"),
        "price": Number(column="price", transform="log"),
        "title": Text(columns=("title",), chars=(3, 4), buckets=128),
    },
)

LAYERED = TwoTower(
    dim=8,
    query=Tower(combine="concat", widths=(16, 12), projection=True, dropout=0.1),
    item=Tower(widths=(12,), id_dropout=0.1),
)


def words(generator: np.random.Generator) -> str:
    return " ".join(generator.choice(WORDS, 3))


def write_files(folder: Path, seed: int = 0) -> Data:
    generator = np.random.default_rng(seed)
    users = {
        "user": [f"u{u}" for u in range(USERS)],
        "country": [f"c{u % 5}" if u % 7 else None for u in range(USERS)],
        "likes": [[f"k{(u + j) % 4}" for j in range(u % 3)] for u in range(USERS)],
        "how_much": [[1.0 + j for j in range(u % 3)] for u in range(USERS)],
        "age": [float(20 + u) if u % 6 else None for u in range(USERS)],
        "income": generator.normal(size=USERS).tolist(),
        "joined": [f"2020-01-{1 + u % 28:02d}T{u % 24:02d}:00:00" for u in range(USERS)],
        "about": [words(generator) for _ in range(USERS)],
        "photo": generator.normal(size=(USERS, 3)).tolist(),
    }
    items = {
        "item": [f"i{i}" for i in range(ITEMS)],
        "kind": [f"k{i % 4}" for i in range(ITEMS)],
        "price": [float(1 + i) for i in range(ITEMS)],
        "title": [f"{words(generator)} no {i}" for i in range(ITEMS)],
        "year": [2000 + i % 20 if i % 9 else None for i in range(ITEMS)],
        "tags": [["x"] * (i % 3) for i in range(ITEMS)],
    }
    events = {
        "user": [f"u{u}" for u in generator.integers(0, USERS, EVENTS)],
        "item": [f"i{i}" for i in generator.integers(0, ITEMS, EVENTS)],
        "time": np.sort(generator.integers(1_600_000_000, 1_650_000_000, EVENTS)).tolist(),
        "page": [f"i{i}" for i in generator.integers(0, ITEMS, EVENTS)],
        "device": [f"d{d}" for d in generator.integers(0, 3, EVENTS)],
    }
    for name, columns in (("users", users), ("items", items), ("events", events)):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return Data(
        interactions=(str(folder / "events.parquet"),),
        queries=(str(folder / "users.parquet"),),
        items=(str(folder / "items.parquet"),),
        store=str(folder / "store"),
    )


def run_of(data: Data, **parts: Any) -> Run:
    if parts.get("schema", SCHEMA).interactions.query is None:
        data = replace(data, queries=())
    run = Run(
        schema=SCHEMA,
        data=data,
        split=TimeSplit(),
        towers=LAYERED,
        negatives=Uniform(n=16),
        training=Training(batch_size=128, epochs=2, metric="recall@10", validate_every=1),
        evaluation=Evaluation(k=(10,)),
    )
    return replace(run, **parts)


def trained(folder: Path, **parts: Any) -> Path:
    folder.mkdir(exist_ok=True)
    train(run_of(write_files(folder), **parts), folder / "model", quiet=True)
    return folder / "model"


def some_query(generator: np.random.Generator) -> dict[str, object]:
    """Known and unknown ids, with and without columns, histories and context."""
    given: dict[str, object] = {}
    if generator.random() < 0.8:
        given["user"] = f"u{generator.integers(USERS)}"
    choices: dict[str, object] = {
        "country": f"c{generator.integers(7)}",
        "age": float(generator.normal() * 50),
        "income": int(generator.integers(-2, 3)),
        "joined": int(generator.integers(0, 2_000_000_000)),
        "about": words(generator) + " unheard",
        "photo": generator.normal(size=3).tolist(),
        "page": f"i{generator.integers(ITEMS + 5)}",
        "device": f"d{generator.integers(4)}",
        "history": [f"i{i}" for i in generator.integers(0, ITEMS + 5, generator.integers(0, 9))],
    }
    given |= {column: value for column, value in choices.items() if generator.random() < 0.25}
    if generator.random() < 0.2:
        given |= {"likes": ["k1", "k9"], "how_much": [2.0, 1.0]}
    if "user" not in given and not given:
        given["country"] = None if generator.random() < 0.2 else "c1"
        given["device"] = "d1"
    return given
