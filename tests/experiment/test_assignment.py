"""Arms against shares, a hash that never changes, and who moves when shares do."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import chi2_contingency, chisquare

from twotower.errors import ConfigError
from twotower.experiment import Assignment

N = 1_000_000
IDS = pa.array([f"u{i}" for i in range(N)], pa.large_string())
HALVES = {"control": 0.5, "new": 0.5}
NOT_BY_CHANCE = 1e-4


def test_arms_never_change() -> None:
    drawn = Assignment(name="ranker", arms={"control": 0.5, "a": 0.3, "b": 0.2})
    golden = {  # of the hash written out in plain Python: .836, .648, .494, .166, .945, .344 and .116
        "u1": "b",
        "u2": "a",
        "u3": "control",
        "7": "control",
        "Ümläut": "b",
        "a-long-identifier-0123456789": "control",
        "🦊": "control",
    }
    assert {unit: drawn.arm_of(unit) for unit in golden} == golden


def test_shares_are_met_within_chance() -> None:
    arms = {"control": 0.5, "a": 0.3, "b": 0.199, "c": 0.001}
    count_A = np.bincount(Assignment(name="shares", arms=arms).arms_of(IDS))
    assert chisquare(count_A, [N * share for share in arms.values()]).pvalue > NOT_BY_CHANCE


@pytest.mark.parametrize("other", [Assignment(name="y", arms=HALVES), Assignment(name="x", arms=HALVES, salt="2")])
def test_experiments_are_independent(other: Assignment) -> None:
    ours, theirs = Assignment(name="x", arms=HALVES).arms_of(IDS), other.arms_of(IDS)
    table = np.bincount(2 * ours + theirs, minlength=4).reshape(2, 2)
    assert chi2_contingency(table).pvalue > NOT_BY_CHANCE


def test_enrolment_is_independent_of_the_arm_and_grows_without_moving_anybody() -> None:
    small, large = (Assignment(name="x", arms=HALVES, enrolled=enrolled).arms_of(IDS) for enrolled in (0.1, 0.6))
    everybody = Assignment(name="x", arms=HALVES).arms_of(IDS)
    for arm, enrolled in ((small, 0.1), (large, 0.6)):
        taking_part = arm >= 0
        assert chisquare(np.bincount(taking_part), [N * (1 - enrolled), N * enrolled]).pvalue > NOT_BY_CHANCE
        assert chisquare(np.bincount(arm[taking_part])).pvalue > NOT_BY_CHANCE
        assert (arm[taking_part] == everybody[taking_part]).all()
    assert (large[small >= 0] >= 0).all()
    assert (Assignment(name="x", arms=HALVES, enrolled=0).arms_of(IDS[:100]) == -1).all()


def test_only_those_move_who_must() -> None:
    before = Assignment(name="x", arms=HALVES).arms_of(IDS)
    after = Assignment(name="x", arms={"control": 0.6, "new": 0.4}).arms_of(IDS)
    moved = before != after
    assert (after[moved] == 0).all()
    assert abs(moved.mean() - 0.1) < 5 * math.sqrt(0.1 * 0.9 / N)


def test_one_unit_is_as_many() -> None:
    drawn = Assignment(name="x", arms={"a": 0.2, "b": 0.3, "c": 0.5}, enrolled=0.7)
    arms = [*drawn.arms, None]
    assert [drawn.arm_of(f"u{i}") for i in range(300)] == [arms[at] for at in drawn.arms_of(IDS[:300])]


def test_an_id_is_its_text_and_without_one_there_is_no_arm() -> None:
    drawn = Assignment(name="x", arms={f"arm{i}": 1 / 64 for i in range(64)})
    assert drawn.arm_of(7) == drawn.arm_of(7.0) == drawn.arm_of("7") == drawn.arm_of(np.int64(7))
    assert drawn.arm_of(None) is drawn.arm_of("") is drawn.arm_of(math.nan) is None
    assert drawn.arms_of(pa.array(["", None])).tolist() == [-1, -1]


def test_an_arm_without_share_gets_nobody() -> None:
    arm = Assignment(name="x", arms={"none": 0.0, "all": 1.0, "last": 0.0}).arms_of(IDS[:10_000])
    assert (arm == 1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "", "arms": HALVES}, "expected a name"),
        ({"name": "x", "arms": {}}, "expected a name and arms"),
        ({"name": "x", "arms": {"a": 0.5, "b": 0.4}}, "sum to 1"),
        ({"name": "x", "arms": {"a": 1.5, "b": -0.5}}, "shares from 0 to 1"),
        ({"name": "x", "arms": {"a": math.nan, "b": 1}}, "shares from 0 to 1"),
        ({"name": "x", "arms": HALVES, "enrolled": 1.1}, "found enrolled 1.1"),
    ],
)
def test_settings_that_are_none(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Assignment(**settings)  # type: ignore[arg-type]
