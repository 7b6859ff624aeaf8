"""What a run says: lines of JSON, averages over steps, text for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twotower.training.recorder import Recorder
from twotower.training.step import StepReport


def report(loss: float, *, n_pairs: int = 10, excluded: float = 0.5, alone: int = 1) -> StepReport:
    return StepReport(loss=loss, n_pairs=n_pairs, n_columns=20, excluded=excluded, alone=alone)


def lines(folder: Path) -> list[dict[str, object]]:
    def refuse(constant: str) -> object:
        raise ValueError(f"{constant} is not JSON")

    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr("twotower.training.recorder.time.perf_counter", lambda: now[0])
    return now


def test_steps_are_averaged_over_a_second(tmp_path: Path, clock: list[float]) -> None:
    with Recorder(tmp_path, quiet=True) as recorder:
        recorder.begin("train", 5)
        for step, (at, loss) in enumerate([(100.4, 1.0), (100.8, 2.0), (101.25, 6.0), (101.5, 7.0)], start=1):
            clock[0] = at
            recorder.step(step, step / 4, 1 - step / 10, report(loss), None)
        assert len(lines(tmp_path)) == 1
    first, rest = lines(tmp_path)
    assert first == {
        "what": "train", "step": 3, "epoch": 0.75, "loss": 3.0, "examples_per_s": 30 / 1.25, "excluded": 0.5,
        "alone": 3.0, "columns": 20.0, "rate": 0.7,
    }  # fmt: skip
    assert (rest["step"], rest["loss"], rest["examples_per_s"]) == (4, 7.0, 10 / 0.25)


def test_a_validation_is_no_part_of_the_time_of_steps(tmp_path: Path, clock: list[float]) -> None:
    with Recorder(tmp_path, quiet=True) as recorder:
        recorder.begin("train", 5)
        clock[0] += 0.5
        recorder.step(1, 0.5, 1.0, report(1.0), 0.07)
        with recorder.paused():
            clock[0] += 60.0
            recorder.write("valid", 1, 0.5, {"recall@10": 0.25})
        clock[0] += 0.5
        recorder.step(2, 1.0, 1.0, report(3.0), 0.08)
    one, valid, two = lines(tmp_path)
    assert valid == {"what": "valid", "step": 1, "epoch": 0.5, "recall@10": 0.25}
    assert (one["loss"], one["temperature"], one["examples_per_s"]) == (1.0, 0.07, 20.0)
    assert (two["loss"], two["temperature"], two["examples_per_s"]) == (3.0, 0.08, 20.0)


def test_stretches_do_not_mix(tmp_path: Path, clock: list[float]) -> None:
    with Recorder(tmp_path, quiet=True) as recorder:
        for name, loss in (("train", 1.0), ("train on all", 5.0)):
            recorder.begin(name, 1)
            clock[0] += 0.1
            recorder.step(1, 1.0, 1.0, report(loss), None)
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 5.0]


def test_json_has_no_nan(tmp_path: Path) -> None:
    with Recorder(tmp_path, quiet=True) as recorder:
        recorder.write("valid", 1, 1.0, {"recall@10": float("nan"), "ndcg@10": float("inf"), "mrr@10": 0.5})
    assert lines(tmp_path) == [
        {"what": "valid", "step": 1, "epoch": 1.0, "recall@10": None, "ndcg@10": None, "mrr@10": 0.5}
    ]


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither are brackets markup, nor are long lines broken where the output is no terminal."""
    text = "[data] of /tmp/[run]/x: " + "words " * 40 + "end"
    with Recorder(None) as recorder:
        recorder.say(text)
    assert capsys.readouterr().out == text + "\n"
    with Recorder(None, quiet=True) as recorder:
        recorder.say(text)
    assert capsys.readouterr().out == ""


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Recorder(None, quiet=True) as recorder:
        recorder.begin("train", 1)
        recorder.step(1, 1.0, 1.0, report(1.0), None)
        recorder.write("valid", 1, 1.0, {"recall@10": 0.5})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("alone", "is_said"), [(5, False), (6, True), (10, True)])
def test_positives_without_candidates_are_spoken_of_once(
    alone: int, is_said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with Recorder(None) as recorder:
        recorder.begin("train", 250)
        for step in range(1, 251):
            recorder.step(step, 0.1, 1.0, report(1.0, n_pairs=10, alone=alone), None)
        recorder.say_alone()
    said = [line for line in capsys.readouterr().out.splitlines() if "had no candidate" in line]
    assert (
        said
        == [
            f"{alone}0% of the positives had no candidate and taught nothing: twotower audit tells why; take "
            "more or other negatives, or mix with InBatch or Uniform"
        ]
        * is_said
    )
