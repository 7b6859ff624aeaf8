"""docs/experiments.md: its example gives what it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from twotower.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text(encoding="utf-8").partition("## An example")[2]
BLOCKS = [text for _, text in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    program, command, expected = BLOCKS
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "experiments.md", "exec"), {})
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out == expected
