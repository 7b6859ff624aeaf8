"""The README holds: its Python runs as it stands, its commands do what they say, its names are there."""

from __future__ import annotations

import random
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

import twotower
from twotower.cli import app, main
from twotower.config import dump_run, parse_run
from twotower.losses import AdaptiveTemperature, Losses
from twotower.negatives import Negatives
from twotower.schema import History, Text

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
LINES = [line for language, text in BLOCKS if language != "python" for line in text.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("twotower ")]
USERS, ITEMS, EVENTS_A_USER = 30, 40, 12


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the files the README speaks of: even users like even items, odd ones odd ones."""
    draw = random.Random(7)
    events = [(user, 2 * draw.randrange(ITEMS // 2) + user % 2) for user in range(USERS) for _ in range(EVENTS_A_USER)]
    draw.shuffle(events)
    rows = [f"u{user},i{item},{1_700_000_000 + 3_600 * at}\n" for at, (user, item) in enumerate(events)]
    (tmp_path / "events.csv").write_text("user,item,time\n" + "".join(rows), encoding="utf-8")
    kinds = [f"i{item},{'odd' if item % 2 else 'even'}\n" for item in range(ITEMS)]
    (tmp_path / "items.csv").write_text("item,parity\n" + "".join(kinds), encoding="utf-8")
    (tmp_path / "days").mkdir()
    day = [f"u{user},i{(7 * user) % ITEMS},{1_702_000_000 + user}\n" for user in range(USERS)]
    (tmp_path / "days" / "2023-12-08.csv").write_text("user,item,time\n" + "".join(day), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_sampler_and_loss_has_its_line() -> None:
    for page, members in (("choose-negatives", Negatives), ("choose-loss", Losses)):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        missing = [kind.__name__ for kind in get_args(members) if f"`{kind.__name__}`" not in text]
        assert not missing, f"docs/{page}.md: found no {missing}"


def words(command: str) -> list[str]:
    """The arguments of a command line, its comment left out."""
    return shlex.split(command, comments=True)[1:]


@pytest.mark.parametrize("text", PYTHON, ids=range(len(PYTHON)))
def test_the_python_runs(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(text, "README.md", "exec"), {"__name__": "__main__"})
    shown = capsys.readouterr().out
    assert "trained " in shown
    assert "popularity" in shown
    assert shown.count("Recommendation(item='i") == 5
    assert (folder / "model" / "run.toml").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command: str) -> None:
    function, bound, ignored = app.parse_args(words(command), exit_on_error=False, print_error=False)
    assert function.__name__ == words(command)[0]
    assert bound.arguments
    assert not ignored


@pytest.mark.usefixtures("folder")
def test_the_commands_run_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    shown: dict[str, str] = {}
    for command in COMMANDS:
        if words(command)[0] == "serve":  # it goes on until it is ended: tests/service
            continue
        settings = re.findall(r"--set \S+", command.partition("#")[2])
        short = ["--set", "training.epochs=2"] if re.match("twotower (train|tune)", command) else []
        short += ["--batches", "6"] if command.startswith("twotower audit") else []
        assert main([*words(command), *short, *" ".join(settings).split()]) == 0, capsys.readouterr().err
        shown[words(command)[0]] = capsys.readouterr().out
    verbs = ["init", "train", "audit", "evaluate", "recommend", "export", "similar", "tune", "update", "days", "forget"]
    assert list(shown) == verbs
    assert "wrote run.toml" in shown["init"]
    assert "events       360" in shown["train"]  # it ingests first
    assert "Verdict" in shown["audit"]
    assert "popularity" in shown["evaluate"]
    assert len(shown["recommend"].splitlines()) == 10
    assert "attributes of items: parity" in shown["export"]
    assert [line.split()[-1] for line in shown["similar"].splitlines()] == ["odd"] * 10
    assert "best.toml" in shown["tune"]
    assert "update 1: 30 events" in shown["update"]
    assert "2023-12-08" in shown["days"]
    assert f"1 queries with {EVENTS_A_USER + 1} events are gone" in shown["forget"]
    assert "temperature = 0.07" in Path("model/run.toml").read_text(encoding="utf-8")


def test_the_run_of_choose_loss_is_jd_s() -> None:
    text = (ROOT / "docs" / "choose-loss.md").read_text(encoding="utf-8")
    (block,) = [
        block for block in re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if "data" in block
    ]
    run = parse_run(block)
    assert dump_run(run) == dump_run(replace(run, loss=AdaptiveTemperature.jd2023()))
    text_feature, history = run.schema.context["text"], run.schema.context["history"]
    assert isinstance(text_feature, Text)
    assert isinstance(history, History)
    assert (run.towers.dim, run.training.batch_size, text_feature.length, history.k) == (128, 350, 30, 100)


def test_the_files_it_lists_are_there() -> None:
    (tree,) = [text for _, text in BLOCKS if text.startswith("src/twotower/")]
    names = re.findall(r"[a-z_]+\.py|(?<!/)\b[a-z]+/", tree.partition("benchmarks/")[0].partition("\n")[2])
    assert len(names) > 10
    assert [name for name in names if not (ROOT / "src" / "twotower" / name).exists()] == []
    assert all((ROOT / name).exists() for name in ("benchmarks", "tests", "docs/decisions.md"))


def test_the_make_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", README, re.MULTILINE)
    assert targets
    assert [name for pair in targets for name in pair if name and f"\n{name}:" not in makefile] == []


def test_the_names_are_public() -> None:
    names = set(re.findall(r"`([A-Z]\w+)`", README.partition("## What it does")[2]))
    assert names
    assert names <= set(twotower.__all__)
