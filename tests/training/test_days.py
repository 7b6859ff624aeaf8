"""The history of a model's updates: what is printed, written and drawn."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from twotower.errors import ArtifactError
from twotower.training import Day, Days
from twotower.training.days import days_of

FIRST = Day(
    number=1,
    name="day-1.parquet",
    first="2024-05-01",
    last="2024-05-01",
    n_events=1234,
    n_repeats=2,
    n_held_out=120,
    n_trained=1114,
    new_queries=17,
    new_items=5,
    evicted_items=0,
    served=0.25,
    before=0.3,
    after=0.31256,
    kept=True,
    epochs=2.0,
    steps=40,
    seconds=12.34,
    shifted=(),
    frequency_error=None,
)
SECOND = replace(
    FIRST, number=2, first=None, last=None, served=None, after=0.1, kept=False, shifted=("items new", "scores mean")
)
DAYS = Days(metric="recall@10", days=(FIRST, SECOND))


def test_a_line_an_update() -> None:
    head, first, second, _, what, shifted = DAYS.render().splitlines()
    assert " ".join(head.split()) == "update days events new queries new items served before after kept seconds"
    assert first.split() == ["1", "2024-05-01", "1,234", "17", "5", "0.2500", "0.3000", "0.3126", "yes", "12.3"]
    assert second.split() == ["2", "day-1.parquet", "1,234", "17", "5", "0.3000", "0.1000", "no", "12.3"]
    assert len(head) == len(first) == len(second)
    assert what.startswith("recall@10: served = what arrived")
    assert shifted == "shifted in update 2: items new, scores mean"


def test_several_days_of_one_update() -> None:
    both = replace(FIRST, last="2024-05-03")
    assert "2024-05-01 to 2024-05-03" in Days(metric="recall@10", days=(both,)).render()


def test_what_is_saved_comes_back() -> None:
    saved = json.loads(json.dumps([asdict(day) for day in DAYS.days]))
    assert days_of(saved, "recall@10") == DAYS
    tree = json.loads(DAYS.to_json())
    assert tree["metric"] == "recall@10"
    assert days_of(tree["days"], "recall@10") == DAYS


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert DAYS.plot(tmp_path / "days.png")
    assert (tmp_path / "days.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ArtifactError, match="the picture can't be written"):
        DAYS.plot(tmp_path / "no" / "days.png")
