"""Exposures joined to outcomes: by arithmetic on tiny tables, by a naive loop on random ones, by the command line."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from twotower.cli import main
from twotower.errors import ConfigError, DataError
from twotower.experiment import (
    AnyOf,
    Assignment,
    ExperimentReport,
    OutcomeColumns,
    Ratio,
    Total,
    analyse,
    metric_of,
)

EXPOSURES = """time,request,experiment,arm,user,found,filtered,returned
10,r1,x,a,u1,100,50,5
20,r2,x,a,u1,100,40,5
12,r3,x,a,u2,100,60,5
15,r4,x,b,u3,80,70,5
11,r5,x,b,u4,80,70,5
30,r6,x,b,u4,80,10,5
10,r7,x,a,u5,100,50,5
11,r8,x,b,u5,80,50,5
10,r9,x,b,,80,50,5
10,s1,other,b,u1,1,1,1
"""
# u1: 4 before, 1 at the moment of its exposure and 2 after; u5 saw both arms; u9 saw none
OUTCOMES = """user,time,revenue,shown,clicked
u1,9.9,4,5,1
u1,10,1,5,1
u1,99,2,3,
u3,16,8,4,2
u3,16,,1,0
u4,40,0,5,1
u5,40,100,1,1
u9,40,100,1,1
u2,,50,1,1
"""
METRICS = (Total("revenue"), AnyOf("revenue"), Ratio("clicked", "shown"), Ratio("clicked", "exposures"))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "exposures.csv").write_text(EXPOSURES)
    (tmp_path / "outcomes.csv").write_text(OUTCOMES)
    return tmp_path / "exposures.csv", tmp_path / "outcomes.csv"


def values(report: ExperimentReport) -> dict[str, tuple[float, float]]:
    return {one.metric: (one.control_value, one.value) for one in report.compared}


def test_by_user(files: tuple[Path, Path]) -> None:
    report = analyse(*files, control="a", experiment="x", metrics=METRICS)
    assert [(arm.name, arm.units, arm.exposures, arm.share) for arm in report.arms] == [
        ("a", 2, 3, 0.5),
        ("b", 2, 3, 0.5),
    ]
    # a: u1 has revenue 3, u2 none; 1 click of 8 shown, 3 exposures. b: u3 8, u4 0; 3 clicks of 10, 3 exposures
    assert values(report) == {
        "revenue": (1.5, 4.0),
        "any(revenue)": (0.5, 0.5),
        "clicked/shown": (1 / 8, 3 / 10),
        "clicked/exposures": (1 / 3, 1.0),
    }
    # var of {3, 0} is 4.5, of {8, 0} 32, each by 2 users
    error = math.sqrt(4.5 / 2 + 32 / 2)
    first = report.compared[0]
    assert first.uplift.high - first.uplift.low == pytest.approx(2 * 1.959963984540054 * error)
    assert report.outcomes == 5
    left = report.left_out
    assert (left.exposures_without_id, left.units_in_several_arms, left.outcomes_before) == (1, 1, 1)
    assert (left.outcomes_unexposed, left.outcomes_without_time) == (2, 1)
    assert report.mismatch_p == 1.0


def test_stages(files: tuple[Path, Path]) -> None:
    report = analyse(*files, control="a", experiment="x")
    assert [(one.arm, one.name, one.items) for one in report.stages] == [
        ("a", "found", 300),
        ("a", "filtered", 150),
        ("a", "returned", 15),
        ("a", "shown", 8),
        ("a", "clicked", 1),
        ("b", "found", 240),
        ("b", "filtered", 150),
        ("b", "returned", 15),
        ("b", "shown", 10),
        ("b", "clicked", 3),
    ]
    assert [one.of_previous for one in report.stages[1:5]] == [0.5, 0.1, 8 / 15, 1 / 8]
    assert math.isnan(report.stages[0].of_previous)


def test_the_primary_metric_decides_by_itself(files: tuple[Path, Path]) -> None:
    report = analyse(*files, control="a", experiment="x", metrics=METRICS)
    assert [one.primary for one in report.compared] == [True, False, False, False]
    assert report.compared[0].p_holm == report.compared[0].uplift.p
    p = sorted(one.uplift.p for one in report.compared[1:])
    assert min(one.p_holm for one in report.compared[1:]) == pytest.approx(min(1, 3 * p[0]))


def test_by_request(tmp_path: Path, files: tuple[Path, Path]) -> None:
    outcomes = pd.DataFrame({"request": ["r1", "r2", "r2", "r4", "r7", "r9", "no"], "clicked": [1, 1, 1, 1, 1, 1, 1]})
    of_requests = analyse(
        files[0], outcomes, control="a", experiment="x", unit="request", metrics=[Total("clicked"), AnyOf("clicked")]
    )
    # a: r1, r2, r3, r7 with 1, 2, 0 and 1 clicks; b: r4, r5, r6, r8, r9 with 1, 0, 0, 0, 1
    assert [(arm.units, arm.exposures) for arm in of_requests.arms] == [(4, 4), (5, 5)]
    assert values(of_requests) == {"clicked": (1.0, 2 / 5), "any(clicked)": (3 / 4, 2 / 5)}
    assert (of_requests.outcomes, of_requests.left_out.outcomes_unexposed) == (6, 1)
    of_users = analyse(
        files[0], outcomes, control="a", experiment="x", join_by="request", metrics=[Ratio("clicked", "exposures")]
    )
    # users are units: u1 has 3 clicks of 2 requests, u2 0 of 1; u3 1 of 1, u4 0 of 2; r7 is u5's and r9 nobody's
    assert values(of_users) == {"clicked/exposures": (1.0, 1 / 3)}
    assert (of_users.outcomes, of_users.left_out.outcomes_unexposed) == (4, 3)
    (one,) = of_users.compared
    # a: off by 3 - 2 and 0 - 1; b: off by 1 - 1/3 and 0 - 2/3; three exposures in each
    variance = (2 / 1 * 2 / 9) + (2 * (2 / 3) ** 2 / 1 * 2 / 9)
    assert one.uplift.high - one.uplift.low == pytest.approx(2 * 1.959963984540054 * math.sqrt(variance))


def test_random_tables_against_a_naive_loop(tmp_path: Path) -> None:
    draw = np.random.default_rng(4)
    shown = pd.DataFrame(
        {
            "time": draw.integers(0, 100, 800),
            "request": [f"r{i}" for i in range(800)],
            "experiment": "x",
            "arm": draw.choice(["new", "old", "third"], 800),
            "user": draw.integers(0, 300, 800),
        }
    )
    shown.to_parquet(tmp_path / "exposures.parquet")
    happened = pd.DataFrame(
        {"user": draw.integers(0, 400, 3000), "time": draw.integers(0, 120, 3000), "clicks": draw.integers(0, 5, 3000)}
    )
    report = analyse(tmp_path / "exposures.parquet", happened, control="old", metrics=[Total("clicks")])
    arms, first = defaultdict[int, set[str]](set), dict[int, int]()
    for row in shown.itertuples():
        arms[row.user].add(row.arm)
        first[row.user] = min(row.time, first.get(row.user, 1000))
    total = dict.fromkeys([user for user in arms if len(arms[user]) == 1], 0)
    for row in happened.itertuples():
        if row.user in total and row.time >= first[row.user]:
            total[row.user] += row.clicks
    of_arm = {arm: [total[user] for user in total if arms[user] == {arm}] for arm in ("old", "new", "third")}
    assert {arm.name: arm.units for arm in report.arms} == {arm: len(found) for arm, found in of_arm.items()}
    assert report.left_out.units_in_several_arms == sum(len(seen) > 1 for seen in arms.values())
    for one in report.compared:
        assert one.value == pytest.approx(np.mean(of_arm[one.arm]))
        assert one.control_value == pytest.approx(np.mean(of_arm["old"]))
        errors = [np.var(of_arm[arm], ddof=1) / len(of_arm[arm]) for arm in ("old", one.arm)]
        assert one.uplift.p == pytest.approx(
            math.erfc(abs(one.value - one.control_value) / math.sqrt(2 * sum(errors))), rel=1e-6
        )


def test_rows_may_come_in_any_order_and_any_files(tmp_path: Path, files: tuple[Path, Path]) -> None:
    expected = analyse(*files, control="a", experiment="x", metrics=METRICS)
    folder = tmp_path / "parts"
    folder.mkdir()
    head, *rows = OUTCOMES.splitlines()
    for at, row in enumerate(reversed(rows)):
        (folder / f"{at}.csv").write_text(f"{head}\n{row}\n")
    head, *rows = EXPOSURES.splitlines()
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join([head, *reversed(rows)]) + "\n")
    assert analyse(turned, folder, control="a", experiment="x", metrics=METRICS) == expected


def planted(tmp_path: Path, *, lost: float = 0.0, n: int = 4000) -> tuple[Path, pa.Table]:
    """Half of the users see a new index and click 1.3 times as much there. ``lost`` of them is never logged."""
    draw = np.random.default_rng(9)
    arm = Assignment(name="index", arms={"flat": 0.5, "hnsw": 0.5}).arms_of(pa.array([f"u{i}" for i in range(n)]))
    logged = (arm == 0) | (draw.random(n) >= lost)
    user = np.array([f"u{i}" for i in range(n)])
    taste = draw.gamma(2.0, 1.0, n)
    table = pa.table(
        {
            "time": np.full(n, 1000.0)[logged],
            "experiment": np.full(n, "index")[logged],
            "arm": np.array(["flat", "hnsw"])[arm][logged],
            "user": user[logged],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "exposures.parquet")
    rows = np.repeat(np.arange(n), 2)
    is_after = np.tile([True, False], n)
    factor = np.where(is_after & (arm[rows] == 1), 1.3, 1.0)
    outcomes = {"user": user[rows], "time": np.where(is_after, 2000, 500), "clicks": draw.poisson(taste[rows] * factor)}
    return tmp_path / "exposures.parquet", pa.table(outcomes)


def test_a_planted_uplift_is_found_and_what_came_before_makes_it_clearer(tmp_path: Path) -> None:
    exposures, outcomes = planted(tmp_path)
    plain, less = (analyse(exposures, outcomes, control="flat", before=before) for before in (False, True))
    widths = []
    for report in (plain, less):
        (one,) = report.compared
        assert one.uplift.relative_low < 0.3 < one.uplift.relative_high
        assert one.uplift.p < 1e-6
        widths.append(one.uplift.high - one.uplift.low)
    # clicks of a user: variance 2 of taste and 2 of the draw, so the squared correlation is about 1/4
    assert widths[1] / widths[0] == pytest.approx(math.sqrt(3 / 4), rel=0.06)
    assert plain.left_out.outcomes_before == 4000
    assert "CUPED" in less.render()
    assert "CUPED" not in plain.render()


def run(*arguments: object) -> int:
    return main(["experiment", *map(str, arguments)])


def test_the_command(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    exposures, outcomes = files
    picture = exposures.parent / "uplift.png"
    named = ("--exposures", exposures, "--outcomes", outcomes, "--control", "a", "--name", "x")
    metrics = ("--metric", "revenue", "--metric", "clicked/shown", "--share", "a=0.5", "--share", "b=0.5")
    assert run(*named, *metrics, "--plot", picture) == 0
    shown = capsys.readouterr().out
    assert "experiment x: arms by user, 5 outcomes joined by user" in shown
    assert "revenue *" in shown
    assert "+166.67%" in shown  # 4 by 1.5
    assert "left out: 1 exposures without a user, 1 users shown several arms, 1 outcomes before the first" in shown
    assert picture.stat().st_size > 1000
    assert run(*named, *metrics, "--json") == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["trusted"], tree["compared"][1]["value"], tree["stages"][0]["of_previous"]) == (True, 0.3, None)


def test_lost_exposures_make_numbers_that_are_not_trusted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exposures, outcomes = planted(tmp_path, lost=0.15)
    pyarrow.parquet.write_table(outcomes, tmp_path / "outcomes.parquet")
    files = ("--exposures", exposures, "--outcomes", tmp_path / "outcomes.parquet", "--control", "flat")
    assert run(*files) == 2
    shown = capsys.readouterr()
    assert "DO NOT TRUST" in shown.out
    assert "clicks *" in shown.out  # the numbers all the same
    assert shown.err.startswith("error: DO NOT TRUST these numbers: sample ratio mismatch, p = ")
    assert run(*files, "--json") == 2
    assert json.loads(capsys.readouterr().out)["trusted"] is False
    assert run(*files, "--share", "flat=0.54", "--share", "hnsw=0.46") == 0  # as if they had been assigned so


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"control": "c"}, DataError, "no exposure of the arm 'c'; found 'a', 'b'"),
        ({"experiment": "y"}, DataError, "no experiment 'y'; found 'other', 'x'"),
        ({"experiment": None}, DataError, "found the experiments 'other', 'x', expected one"),
        ({"experiment": "other", "control": "b"}, DataError, "of the arm 'b' only, expected another"),
        ({"metrics": [Total("revenu")]}, DataError, "no column 'revenu'.*did you mean 'revenue'"),
        ({"stages": ["bougt"]}, DataError, "no column 'bougt'"),
        ({"shares": {"a": 1.0}}, ConfigError, "one of 0 or more for each of the arms 'a', 'b'"),
        ({"unit": "request", "join_by": "user"}, ConfigError, "arms by request can't be joined by user"),
        ({"join_by": "request", "before": True}, ConfigError, "where outcomes are joined by user only"),
        ({"join_by": "request"}, DataError, "no column 'request'"),
        ({"columns": OutcomeColumns(user="user_id")}, DataError, "no column 'user_id'"),
    ],
)
def test_mistakes(settings: dict[str, object], error: type[Exception], message: str, files: tuple[Path, Path]) -> None:
    with pytest.raises(error, match=message):
        analyse(*files, **{"control": "a", "experiment": "x", "metrics": METRICS, **settings})  # type: ignore[arg-type]


def test_damaged_outcomes_name_the_place(tmp_path: Path, files: tuple[Path, Path]) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("user,time,revenue\nu1,20,1\nu1,20,much\n")
    with pytest.raises(DataError, match=r"bad\.csv, line 3, column 'revenue': found 'much', expected a number"):
        analyse(files[0], bad, control="a", experiment="x")
    bad.write_text("user,time,returned\nu1,20,1\n")
    with pytest.raises(DataError, match="'returned' is a count of the exposures, too"):
        analyse(files[0], bad, control="a", experiment="x")
    bad.write_text("user,time,revenue\nsomebody,20,1\nu1,-5,1\n")
    with pytest.raises(
        DataError, match=r"no row is of a user of the experiment, .*: 1 are of others, 1 of the time before"
    ):
        analyse(files[0], bad, control="a", experiment="x")
    bad.write_text("user,time\nu1,20\n")
    with pytest.raises(DataError, match="expected columns of numbers beside id and time"):
        analyse(files[0], bad, control="a", experiment="x")


def test_metrics_are_read_as_they_are_written() -> None:
    for metric in METRICS:
        assert metric_of(str(metric)) == metric
    assert metric_of(" clicked / shown ") == Ratio("clicked", "shown")
    for wrong in ("", "a/b/c", "/b", "a/"):
        with pytest.raises(ConfigError, match="expected a column"):
            metric_of(wrong)


def test_a_share_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("a", "a=x", "=1"):
        assert run("--exposures", "e", "--outcomes", "o", "--control", "a", "--share", wrong) == 2
        assert f"--share: found '{wrong}'" in capsys.readouterr().err
