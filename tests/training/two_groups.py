"""A truth to be found day by day: even users take even items and odd users odd ones, each item once, two a day."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twotower.config import Data, Evaluation, Run, Training, Update
from twotower.data.splits import TimeSplit
from twotower.frequency import StreamingFrequency
from twotower.losses import SampledSoftmax
from twotower.negatives import InBatch, Uniform
from twotower.optimisers import RowwiseAdagrad
from twotower.schema import Id, Interactions, Schema
from twotower.towers import TwoTower
from twotower.training import train

USERS, ITEMS, FIRST_DAYS, A_DAY = 24, 60, 6, 2
DAY_US = 86_400_000_000
START_US = 19_700 * DAY_US
SCHEMA = Schema(
    interactions=Interactions(query="user", item="item", time="time"),
    query={"user": Id(column="user")},
    item={"item": Id(column="item")},
)
_ORDER = {user: np.random.default_rng(user).permutation(np.arange(user % 2, ITEMS, 2)) for user in range(USERS)}
Event = tuple[str, str, int]


def day_of(day: int) -> list[Event]:
    """What all users take that day, two items each; user, item, time in microseconds."""
    return [
        (f"u{user}", f"i{_ORDER[user][A_DAY * day + at]}", START_US + day * DAY_US + 1_000_000 * (A_DAY * user + at))
        for user in range(USERS)
        for at in range(A_DAY)
    ]


def at(day: int, user: str, *items: str) -> list[Event]:
    """What else one takes, in the last hour of a day, a minute apart."""
    first_us = START_US + (day + 1) * DAY_US - DAY_US // 24
    return [(user, item, first_us + 60_000_000 * n) for n, item in enumerate(items)]


def table(events: Sequence[Event], **columns: Any) -> pa.Table:
    names = {"user": pa.string(), "item": pa.string(), "time": pa.int64()}
    values = {name: pa.array([event[n] for event in events], kind) for n, (name, kind) in enumerate(names.items())}
    return pa.table({**values, "time": values["time"].cast(pa.timestamp("us")), **columns})


def write(path: Path, events: Sequence[Event], **columns: Any) -> str:
    """A Parquet file; its path."""
    pq.write_table(table(events, **columns), path)
    return str(path)


def run_of(folder: Path, interactions: str, **update: Any) -> Run:
    """Ids alone, towers of 8 numbers; nothing but its batch is touched by a step of ``InBatch``."""
    return Run(
        schema=SCHEMA,
        data=Data(interactions=(interactions,), store=str(folder / "store")),
        split=TimeSplit(valid=0.1, test=0.1),
        towers=TwoTower(dim=8),
        frequency=StreamingFrequency(buckets=256),
        negatives=InBatch() + Uniform(16),
        loss=SampledSoftmax(temperature=0.2),
        training=Training(
            batch_size=32, epochs=5, metric="recall@10", tables=RowwiseAdagrad(lr=0.3), validate_every=5, threads=1
        ),
        evaluation=Evaluation(k=(10,)),
        update=Update(**{"epochs": 3.0, "valid": 0.2, **update}),
    )


def trained(folder: Path, events: Sequence[Event] | None = None, **run: Any) -> Path:
    """A model of the first days in ``folder``, beside its store; its folder."""
    folder.mkdir(exist_ok=True)
    events = [event for day in range(FIRST_DAYS) for event in day_of(day)] if events is None else events
    made = replace(run_of(folder, write(folder / "events.parquet", events)), **run)
    train(made, folder / "model", quiet=True)
    return folder / "model"


def copy_of(model: Path, folder: Path) -> Path:
    """The model with its store, elsewhere."""
    shutil.copytree(model.parent, folder / "copy")  # which makes the folders above it
    return folder / "copy" / "model"


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; empty folders, too."""
    return {
        str(path.relative_to(folder)): b"" if path.is_dir() else path.read_bytes() for path in sorted(folder.rglob("*"))
    }


def without_times(content: dict[str, bytes]) -> dict[str, object]:
    """All of it but seconds and where the store was written."""
    found: dict[str, object] = dict(content)
    for name in found:
        if name.endswith("store.json"):
            tree = json.loads(content[name])
            found[name] = {**tree, "report": {**tree["report"], "seconds": None, "store": None}, "crc32": None}
        if name.endswith("state.json"):
            tree = json.loads(content[name])
            days = [{**day, "seconds": None} for day in tree["days"]]
            found[name] = {**tree, "days": days, "crc32": None}
    return found
