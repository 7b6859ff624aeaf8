"""``twotower train`` and then updates, killed at random moments and started again: all ends as if nothing had been."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.killing import Commands, killed_at_random
from tests.training.two_groups import FIRST_DAYS, at, bytes_of, day_of, trained, without_times, write
from twotower.bundle import versions_of
from twotower.training import checkpoint, history

RUN = """
[schema.interactions]
query = "user"
item = "item"
time = "time"
[schema.query.user]
kind = "Id"
column = "user"
[schema.context.history]
kind = "History"
k = 3
[schema.item.item]
kind = "Id"
column = "item"
[data]
interactions = ["../events.parquet"]
[towers]
dim = 8
query = { widths = [16, 8], dropout = 0.1 }
[frequency]
kind = "StreamingFrequency"
buckets = 256
[negatives]
kind = "Mixture"
parts = [{ kind = "InBatch" }, { kind = "SRNS", pool = 10, memory = 4, fresh = 3, turnover = 1 }, { kind = "Queue", batches = 2 }]
[loss]
kind = "BPR"
[training]
batch_size = 32
epochs = 2
threads = 1
metric = "recall@10"
checkpoint_every_s = 0.0
[evaluation]
k = [10]
[update]
epochs = 2.0
patience = 2
valid = 0.2
evict_idle_days = 4.5
"""  # noqa: E501
N_UPDATES = 4


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Every day brings a new user and a new item; what nobody takes any more goes."""
    folder = tmp_path_factory.mktemp("killed")
    write(folder / "events.parquet", [event for day in range(FIRST_DAYS) for event in day_of(day)])
    for number in range(1, N_UPDATES + 1):
        day = FIRST_DAYS + number - 1
        news = [event for user in ("u0", "u2", f"v{day}") for event in at(day, user, f"j{day}")]
        write(folder / f"day-{number}.parquet", [*day_of(day), *news])
    with Commands(folder) as started:
        yield started


def steps(commands: Commands, name: str) -> list[tuple[str, ...]]:
    """The commands that make a model, in a folder of its own."""
    folder = commands.folder / name
    folder.mkdir()
    (folder / "run.toml").write_text(RUN, encoding="utf-8")
    model = f"{name}/model"
    days = [("update", model, "--interactions", f"day-{number}.parquet") for number in range(1, N_UPDATES + 1)]
    return [("train", f"{name}/run.toml", "--out", model), *days]


def outcome(folder: Path) -> dict[str, object]:
    """All of a model and its stores that does not tell the time."""
    left_out = {"model/metrics.jsonl", "model/train.json"}
    found = without_times(bytes_of(folder))
    return {name: content for name, content in found.items() if name not in left_out and not name.startswith("store/")}


@pytest.fixture(scope="module")
def seconds(commands: Commands) -> list[float]:
    """Of each command, without a kill."""
    found = []
    for step in steps(commands, "whole"):
        ended = commands.run(*step)
        assert ended.status == 0, ended.said
        found.append(ended.seconds)
    return found


def moment(folder: Path) -> str:
    """What a kill interrupted, by what it left behind."""
    model = folder / "model"
    work, stores = model / "update", model / "stores"
    if not (model / "train.json").exists():
        return "train"
    if list(stores.glob(".*.partial")):
        return "extend"
    if list(model.glob("best.*")):
        return "change-over"
    if list(work.glob("*.partial")) or ((work / "last.old").exists() and not (work / "last").exists()):
        return "a checkpoint"
    if work.exists():
        return "training"
    return "measuring" if len(list(stores.glob("[0-9]*"))) > _is_updated(model) else "between"


def _is_updated(model: Path) -> bool:
    return "store" in checkpoint.read_state(model / "best")


def check_kills(commands: Commands, seconds: list[float], *, kills: int, each: int, seed: int) -> Counter[str]:
    """So many kills, over as many models as that takes, at most ``each`` a command."""
    rng, fell, number = random.Random(seed), Counter[str](), 0
    while fell.total() < kills:
        name, number = f"killed {seed} {number}", number + 1
        folder = commands.folder / name
        for step, span_s in zip(steps(commands, name), seconds, strict=True):
            left = min(kills - fell.total(), each if step[0] == "update" else 1)
            fell += killed_at_random(
                commands,
                step,
                rng,
                span_s=span_s,
                kills=left,
                moment=lambda folder=folder: moment(folder),  # type: ignore[misc]
            )
        assert outcome(folder) == outcome(commands.folder / "whole")
    return fell


def test_three_kills(commands: Commands, seconds: list[float]) -> None:
    """Of one model."""
    check_kills(commands, seconds, kills=3, each=1, seed=4)
    assert [day.number for day in history(commands.folder / "whole" / "model").days] == [1, 2, 3, 4]
    assert sum(day.evicted_items for day in history(commands.folder / "whole" / "model").days) > 0


@pytest.mark.slow
def test_fifty_kills(commands: Commands, seconds: list[float]) -> None:
    fell = check_kills(commands, seconds, kills=50, each=4, seed=1)
    print(dict(fell))
    assert fell.total() == 50
    assert {"extend", "training", "a checkpoint"} <= fell.keys()


FOLLOW = """
import os, sys
from twotower import cli
os.fsync = lambda descriptor: None
model, days, versions = sys.argv[1:]
keep = ["--set", "update.min_recall_ratio=0"]
sys.exit(cli.main(["update", model, "--follow", days, "--every", "0.05", "--export", versions, "--json", *keep]))
"""


def test_follow_stops_on_sigterm(tmp_path: Path) -> None:
    """It waits for more until then, ends well, and has done and exported each day once."""
    pytest.importorskip("onnxruntime")
    model = trained(tmp_path / "at")
    (tmp_path / "days").mkdir()
    write(tmp_path / "days" / "day-6.parquet", day_of(FIRST_DAYS))
    follower = subprocess.Popen(
        [sys.executable, "-c", FOLLOW, str(model), str(tmp_path / "days"), str(tmp_path / "versions")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert follower.stdout is not None
    for day in range(2):
        while '"number"' not in follower.stdout.readline():
            assert follower.poll() is None
        if day == 0:
            write(tmp_path / "days" / "day-7.parquet.tmp", day_of(FIRST_DAYS + 1))
            (tmp_path / "days" / "day-7.parquet.tmp").rename(tmp_path / "days" / "day-7.parquet")
    time.sleep(0.2)
    follower.send_signal(signal.SIGTERM)
    follower.communicate()
    assert follower.returncode == 0
    assert [day.name for day in history(model).days] == ["day-6.parquet", "day-7.parquet"]
    assert checkpoint.read_state(model / "best")["positions"].keys() == {str(tmp_path / "days")}
    assert [path.name for path in versions_of(tmp_path / "versions")] == ["000001", "000002"]
