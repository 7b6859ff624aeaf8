"""The Containerfile holds: it copies what is there and what the wheel needs, and starts what the command line knows."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from twotower.cli import app, main

ROOT = Path(__file__).parent.parent
LINES = re.sub(r"^#.*\n", "", (ROOT / "Containerfile").read_text(encoding="utf-8"), flags=re.MULTILINE).splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def after(word: str) -> list[str]:
    """What follows an instruction, of each."""
    return [line.partition(" ")[2] for line in LINES if line.split(" ")[0] == word]


COPIED = [path for line in after("COPY") if not line.startswith("--from") for path in line.split()[:-1]]
STARTED = [word for name in ("ENTRYPOINT", "CMD") for line in after(name) for word in json.loads(line)]


def test_what_it_copies_is_there_and_not_ignored() -> None:
    assert {"pyproject.toml", "src", "constraints.txt"} <= set(COPIED)
    assert [path for path in COPIED if not (ROOT / path).exists()] == []
    ignore = (ROOT / ".containerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignore
    assert sorted(line[1:] for line in ignore if line.startswith("!")) == sorted(COPIED)


def test_it_copies_what_the_wheel_is_built_of() -> None:
    assert {PROJECT["readme"], *PROJECT["license-files"]} <= set(COPIED)
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", "\n".join(LINES))
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()


def test_what_it_starts_parses(capsys: pytest.CaptureFixture[str]) -> None:
    assert STARTED[0] in PROJECT["scripts"]
    function, bound, ignored = app.parse_args(STARTED[1:], exit_on_error=False, print_error=False)
    assert (function.__name__, ignored) == ("serve", {})
    assert bound.arguments == {
        "bundle": Path("/bundles"), "host": "0.0.0.0", "state": Path("/state"),
        "token_file": Path("/run/secrets/tokens"), "workers": 2, "watch": True,
    }  # fmt: skip
    assert main(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    assert [word for word in STARTED if word.startswith("--") and word not in shown] == []


def test_it_is_asked_where_it_listens() -> None:
    (port,) = after("EXPOSE")
    assert f"127.0.0.1:{port}/ready" in after("HEALTHCHECK")[0]
    _, bound, _ = app.parse_args(["serve", "b"], exit_on_error=False, print_error=False)
    bound.apply_defaults()
    assert bound.arguments["port"] == int(port)


def test_it_names_no_registry() -> None:
    assert re.findall(r"https?://([\w.]+)", "\n".join(LINES)) == ["127.0.0.1"]
