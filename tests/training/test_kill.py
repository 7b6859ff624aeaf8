"""``twotower train`` killed at random moments and started again: it ends as if nothing had been."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.killing import Commands, Ended, killed_at_random
from tests.training.test_resume import outcome
from twotower.errors import ArtifactError
from twotower.training import checkpoint

RUN = """
[schema.interactions]
query = "user"
item = "item"
time = "at"
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
interactions = ["../events.csv"]
[towers]
dim = 8
query = { widths = [16, 8], dropout = 0.1 }
[frequency]
kind = "StreamingFrequency"
buckets = 256
burn_in = 1.0
[negatives]
kind = "Mixture"
parts = [{ kind = "InBatch" }, { kind = "SRNS", pool = 10, memory = 4, fresh = 3, turnover = 1 }, { kind = "Queue", batches = 2 }]
[loss]
kind = "BPR"
[training]
batch_size = 64
epochs = 4
validate_every = 0.5
threads = 1
metric = "recall@10"
refit = true
checkpoint_every_s = 0.0
[evaluation]
k = [10]
"""  # noqa: E501


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    folder = tmp_path_factory.mktemp("killed")
    rng = random.Random(0)
    rows = [f"u{e % 40},i{rng.randrange(30)},2024-01-{1 + e // 20:02}T00:00:{e % 20:02}" for e in range(600)]
    (folder / "events.csv").write_text("\n".join(["user,item,at", *rows]) + "\n", encoding="utf-8")
    with Commands(folder) as started:
        yield started


def arguments(commands: Commands, name: str) -> tuple[str, ...]:
    """Of a run of its own, with a store of its own."""
    folder = commands.folder / name
    folder.mkdir()
    (folder / "run.toml").write_text(RUN, encoding="utf-8")
    return ("train", f"{name}/run.toml", "--out", f"{name}/model")


@pytest.fixture(scope="module")
def whole(commands: Commands) -> Ended:
    """Without a kill; the second of two, as what is new takes its time."""
    for name in ("first", "whole"):
        ended = commands.run(*arguments(commands, name))
        assert ended.status == 0, ended.said
    assert outcome(commands.folder / "first" / "model") == outcome(commands.folder / "whole" / "model")
    return ended


def moment(folder: Path) -> str | None:
    """What a kill interrupted, by what it left behind."""
    model = folder / "model"
    if (model / "train.json").exists():
        return None
    if not (folder / "store").exists():
        return "ingest"
    if list(model.glob("*.partial")) or ((model / "last.old").exists() and not (model / "last").exists()):
        return "a checkpoint"
    try:
        state = checkpoint.read_state(model / "last")
    except ArtifactError:
        return "before the first checkpoint"
    return "refit" if "first" in state else "fit"


def check_kills(commands: Commands, whole: Ended, *, kills: int, seed: int) -> Counter[str]:
    """So many kills, over as many trainings as that takes; each ends as the one that was not killed."""
    rng, fell, number = random.Random(seed), Counter[str](), 0
    while fell.total() < kills:
        name, number = f"killed {seed} {number}", number + 1
        command, folder = arguments(commands, name), commands.folder / name
        fell += killed_at_random(
            commands,
            command,
            rng,
            span_s=whole.seconds,
            kills=min(kills - fell.total(), 5),
            moment=lambda folder=folder: moment(folder),  # type: ignore[misc]
        )
        assert outcome(folder / "model") == outcome(commands.folder / "whole" / "model")
    return fell


def test_three_kills(commands: Commands, whole: Ended) -> None:
    assert check_kills(commands, whole, kills=3, seed=1).total() == 3


@pytest.mark.slow
def test_fifty_kills(commands: Commands, whole: Ended) -> None:
    fell = check_kills(commands, whole, kills=50, seed=2)
    print(dict(fell))
    assert fell.total() == 50
    assert {"fit", "a checkpoint"} <= fell.keys()


def test_a_disk_that_is_full_for_a_while(commands: Commands, whole: Ended) -> None:
    """No file may have more than a third of what the tensors have."""
    command = arguments(commands, "full")
    model = commands.folder / "full" / "model"
    commands.run(*command, kill_after_s=0.0, since=model / "last")
    before = checkpoint.recover(model / "last")[0]
    assert before is not None
    ended = commands.run(*command, most_bytes=(model / "last" / "model.safetensors").stat().st_size // 3)
    assert (ended.killed, ended.status) == (False, 2), ended.said
    assert "could not be written" in ended.said
    assert "run the same command again" in ended.said
    assert "Traceback" not in ended.said
    assert checkpoint.read_state(model / "last") == before
    assert commands.run(*command).status == 0
    assert outcome(model) == outcome(commands.folder / "whole" / "model")
