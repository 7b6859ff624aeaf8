"""The benchmark of watch time: its arms differ in what they learn from alone, and are asked the same."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.data import SETTINGS, data_folder
from benchmarks.watch import ARMS, ASKED, NAME, WATCH, answers, run_of, shares_of_all
from tests.stores import make_store

from twotower.config import dump_run
from twotower.data.held_out import held_out
from twotower.data.splits import TEST, TRAIN
from twotower.schema import Interactions
from twotower.settings import Codec
from twotower.training.loop import open_or_ingest

PAGE = (SETTINGS.parents[1] / "docs" / "watch-time.md").read_text(encoding="utf-8")


@pytest.fixture
def data() -> Path:
    folder = data_folder() / "kuairand-pure"
    if not folder.exists():
        pytest.skip(f"{folder} is absent: set TWOTOWER_DATA to the folder of the data sets")
    return folder


def test_arms_differ_in_their_labels_alone(data: Path, tmp_path: Path) -> None:
    common, *others = (run_of(labels, "common", tmp_path) for labels in ARMS.values())
    for run in others:
        assert run.schema.interactions != common.schema.interactions
        assert dump_run(replace(run, schema=common.schema)) == dump_run(common)
        assert replace(run.schema, interactions=common.schema.interactions) == common.schema


def test_every_arm_has_chosen_settings_of_the_same_trials() -> None:
    comparison, chosen = WATCH.comparison(NAME), WATCH.chosen(NAME)
    assert list(chosen) == sorted(ARMS)
    for settings in chosen.values():
        assert {name: value for name, value in settings.items() if name != "training.epochs"} in comparison["trials"]


@pytest.mark.slow
def test_a_row_is_the_same_user_and_video_in_every_store(data: Path, tmp_path: Path) -> None:
    stores = [
        open_or_ingest(run_of(labels, str(at), tmp_path), quiet=True)
        for at, labels in enumerate([*ARMS.values(), *ASKED.values()])
    ]
    for store in stores[1:]:
        assert store.item_vocabulary.ids().equals(stores[0].item_vocabulary.ids())
        assert store.query_vocabulary is not None
        assert stores[0].query_vocabulary is not None
        assert store.query_vocabulary.ids().equals(stores[0].query_vocabulary.ids())


def test_time_is_asked_as_a_share_of_each_users_and_of_all() -> None:
    """User 0 watched item 1 for 1 s and 2 for 3 s, user 1 item 2 for 12 s; user 0 clicked on 1 alone, user 1 on 2.

    Item 1 is listed to user 0, item 2 to user 1: 1/4 and all of the time, so 5/8 a user, and 13 of 16 seconds.
    """
    events = [(0, 0), (1, 0), (0, 1), (0, 2), (1, 2)]
    part = np.array([TRAIN] * 2 + [TEST] * 3)
    time = held_out(make_store(events, weight=[1.0, 1.0, 1000.0, 3000.0, 12000.0]), part, "test")
    clicks = held_out(make_store(events, taken=[True, True, True, False, True]), np.array([0, 0, 2, 5, 2]), "test")
    query_QD, item_MD = torch.eye(2), torch.tensor([[3.0, 3.0], [2.0, 1.0], [1.0, 2.0]])
    questions = {"time": time, "clicks": clicks}
    found = answers({name: query_QD for name in questions}, item_MD, questions, (1, 2))
    assert {name: float(value_Q.mean()) for name, value_Q in found.items()} == pytest.approx(
        {"time@1": 5 / 8, "time@2": 1.0, "all time@1": 13 / 16, "all time@2": 1.0, "clicks@1": 1.0, "clicks@2": 1.0}
    )
    assert shares_of_all(time.truth).tolist() == pytest.approx([4 / 8, 12 / 8])


def test_the_page_tells_what_was_measured() -> None:
    """Every number of the table is in the kept results."""
    kept = json.loads((SETTINGS.parent / "results" / "watch" / f"{NAME}.json").read_text(encoding="utf-8"))
    for row in (*ARMS, "popularity"):
        (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{row}` |") and line.count("|") > 4]
        cells = [cell.split(" ± ")[0].strip(" *") for cell in line.split("|")[3:-1]]
        expected = kept["metrics"][row]
        assert cells == [f"{value:.4f}".removeprefix("0") for value in expected.values()]


def test_the_schema_of_the_page_is_an_arm() -> None:
    (toml,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    shown = Codec().decode(Interactions, tomllib.loads(toml)["schema"]["interactions"], "schema.interactions")
    assert shown == ARMS["clicks-watched"]
