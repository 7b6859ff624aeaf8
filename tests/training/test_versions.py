"""Versions of a bundle, one for each update that was kept: named so that a service takes them up, none lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training.two_groups import FIRST_DAYS, bytes_of, copy_of, day_of, table, trained, write
from twotower import cli
from twotower.bundle import Bundle, versions_of
from twotower.errors import ArtifactError
from twotower.training import Retriever, export, export_version, forget, history, loop, update, versions
from twotower.training.matmul import Matmul

pytest.importorskip("onnxruntime")


class Killed(BaseException):
    """No error of ours: the end of a process."""


@pytest.fixture(autouse=True, scope="module")
def settled() -> Iterator[None]:
    """Power does not fail here; and which products are fast may look different from one training to the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(loop, "probe", lambda: Matmul(precision="highest", seconds={}, error={}))
        yield


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the first days, not to be changed."""
    return trained(tmp_path_factory.mktemp("first") / "at")


@pytest.fixture
def model(first: Path, tmp_path: Path) -> Path:
    return copy_of(first, tmp_path)


def updated(model: Path, day: int, *, kept: bool = True) -> None:
    ratio = 0 if kept else 100
    done = update(model, interactions=table(day_of(day)), set=[f"update.min_recall_ratio={ratio}"], quiet=True)
    assert done.day is not None
    assert done.day.kept == kept


def names(folder: Path) -> list[str]:
    return [path.name for path in versions_of(folder)]


def answers_as(model: Path, version: Path) -> None:
    bundle, retriever = Bundle.open(version, verify=True), Retriever.open(model)
    for user in ("u0", "u5"):
        found, want = bundle.recommend({"user": user}, k=5), retriever.recommend({"user": user}, k=5)
        assert [one.score for one in found] == pytest.approx([one.score for one in want], abs=1e-5)


def test_an_update_that_was_kept_is_a_version(model: Path, tmp_path: Path) -> None:
    """One that was not is none, and neither is a model that was only trained."""
    folder = tmp_path / "versions"
    assert export_version(model, folder) is None
    for day, kept, there in ((0, True, ["000001"]), (1, False, ["000001"]), (2, True, ["000001", "000003"])):
        updated(model, FIRST_DAYS + day, kept=kept)
        done = export_version(model, folder)
        assert (done is not None) == kept
        assert names(folder) == there
        assert export_version(model, folder) is None
    answers_as(model, folder / "000003")
    assert Bundle.open(folder / "000003").manifest["model"]["updates"] == 3


def test_versions_follow_one_another_whatever_becomes_of_the_model(first: Path, tmp_path: Path) -> None:
    """Trained anew it counts from 1; one that forgot is another model."""
    one, two, folder = copy_of(first, tmp_path / "one"), copy_of(first, tmp_path / "two"), tmp_path / "versions"
    export(one, folder / "000000")
    for day in range(3):
        updated(one, FIRST_DAYS + day)
    export_version(one, folder)
    assert names(folder) == ["000000", "000003"]
    forget(one, ["u3"])
    export_version(one, folder)
    assert Bundle.open(folder / "000004").seen("u3") == []
    updated(two, FIRST_DAYS + 1)
    export_version(two, folder)
    assert names(folder) == ["000000", "000003", "000004", "000005"]
    answers_as(two, folder / "000005")


def test_a_name_that_would_hide_the_next_is_refused_before_the_update(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(model, tmp_path / "versions" / "2026-01-01")
    before = bytes_of(model)
    day = write(tmp_path / "day.parquet", day_of(FIRST_DAYS))
    assert cli.main(["update", str(model), "--interactions", day, "--export", str(tmp_path / "versions")]) == 2
    assert "the newest version is '2026-01-01', and '000000' would not come after it" in capsys.readouterr().err
    assert bytes_of(model) == before


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def export(*arguments: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(versions, "export", export)


def test_a_failed_export_leaves_the_update_and_is_made_up_for(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    day, folder = write(tmp_path / "day.parquet", day_of(FIRST_DAYS)), tmp_path / "versions"
    command = ["update", str(model), "--interactions", day, "--export", str(folder)]
    with monkeypatch.context() as patch:
        failing(patch, ArtifactError("no space left"))
        assert cli.main(command) == 2
    assert (
        f"error: {folder}/000001: update 1 of {model} is kept, but was not exported: no space left. Then run the same "
        f"command again, or export by hand: twotower export {model} --out {folder}/000001\n"
    ) == capsys.readouterr().err
    assert [one.kept for one in history(model).days] == [True]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "nothing new arrived" in shown
    assert f"known queries to {folder}/000001" in shown
    answers_as(model, folder / "000001")
    updated(model, FIRST_DAYS + 1)
    assert [one.number for one in history(model).days] == [1, 2]


@pytest.mark.parametrize("of", ["--interactions", "--source"])
def test_killed_between_an_update_and_its_export_no_version_is_lost(
    of: str, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The versions end as those of a command that nothing happened to."""
    (tmp_path / "days").mkdir()
    days = [write(tmp_path / "days" / f"day-{day}.parquet", day_of(FIRST_DAYS + day)) for day in range(2)]
    found: list[dict[str, Any]] = []
    for name in ("whole", "killed"):
        model, folder = copy_of(first, tmp_path / name), tmp_path / name / "versions"
        if of == "--source":
            commands = [["update", str(model), "--source", str(tmp_path / "days"), "--export", str(folder)]]
        else:
            commands = [["update", str(model), "--interactions", day, "--export", str(folder)] for day in days]
        for command in commands:
            if name == "killed":
                with monkeypatch.context() as patch:
                    failing(patch, Killed())
                    with pytest.raises(Killed):
                        cli.main(command)
            assert cli.main(command) == 0
        assert names(folder) == ["000001", "000002"]
        found.append(bytes_of(folder))
    assert found[0] == found[1]
