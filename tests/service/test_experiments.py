"""Two bundles behind one service: who gets which, and what is logged of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bundle import shop
from tests.service.running import Running
from twotower import cli
from twotower.bundle import Bundle
from twotower.experiment import Assignment


def test_arms_are_answered_by_their_bundles_and_logged(
    folder: Path, other: Path, tmp_path: Path, start: Callable[..., Running]
) -> None:
    service = start(
        "--arm", f"old={folder}:0.5", "--arm", f"new={other}:0.5", "--experiment", "towers", "--exposures",
        str(tmp_path / "exposures"),
    )  # fmt: skip
    assignment = Assignment(name="towers", arms={"old": 0.5, "new": 0.5})
    bundles = {"old": Bundle.open(folder), "new": Bundle.open(other)}
    arms = {}
    for number in range(shop.USERS):
        user = f"u{number}"
        found = service.post("/recommend", {"query": {"user": user}, "k": 5, "request": f"r{number}"}).json()
        arm = arms[user] = assignment.arm_of(user)
        assert arm is not None
        assert (found["arm"], found["bundle"]) == (arm, bundles[arm].fingerprint)
        want = bundles[arm].recommend({"user": user}, k=5)
        assert [one["item"] for one in found["items"]] == [one.item for one in want]
    assert set(arms.values()) == {"old", "new"}
    batch = service.post("/recommend/batch", {"queries": [{"user": user} for user in arms], "k": 1}).json()
    assert [one["arm"] for one in batch["answers"]] == list(arms.values())
    unknown = service.post("/recommend", {"query": {"country": "c1"}}).json()  # nobody: outside of the experiment
    assert "arm" not in unknown
    assert unknown["bundle"] == bundles["old"].fingerprint
    assert service.end() == 0
    lines = [
        json.loads(line)
        for file in sorted((tmp_path / "exposures").glob("*.ndjson"))
        for line in file.read_text().splitlines()
    ]
    assert len(lines) == 2 * shop.USERS
    for line in lines[: shop.USERS]:
        assert line["arm"] == arms[line["user"]]
        assert line["request"] == f"r{line['user'][1:]}"
        assert line["experiment"] == "towers"
        assert line["returned"] == len(line["items"]) == len(line["scores"]) == line["k"] == 5
        assert line["ranks"] == [1, 2, 3, 4, 5]
        assert line["found"] >= line["filtered"] >= line["returned"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_shares_that_make_no_whole_are_refused_before_anybody_listens(
    folder: Path, tmp_path: Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ["--arm", f"old={folder}:0.5", "--arm", f"new={folder}:0.7"]
    command = ["serve", *arms, "--exposures", str(tmp_path / "log"), "--workers", workers, "--port", "0"]
    assert cli.main(command) == 2
    found = capsys.readouterr().err
    assert "listening" not in found
    assert "expected shares from 0 to 1 that sum to 1" in found


def test_an_exposure_is_logged_under_the_id_that_was_assigned(
    folder: Path, tmp_path: Path, start: Callable[..., Running]
) -> None:
    """7, 7.0 and "7" are one user, and numbers may be as large as hashes."""
    exposures = tmp_path / "exposures"
    service = start("--arm", f"a={folder}:0.5", "--arm", f"b={folder}:0.5", "--exposures", str(exposures))
    users: list[object] = [7, 7.0, "7", True, 2**63, 2**64 - 1]
    arms = []
    for user in users:
        found = service.post("/recommend", {"query": {"user": user, "country": "c1"}, "k": 1})
        assert found.status_code == 200, found.text
        arms.append(found.json()["arm"])
    assert arms[0] == arms[1] == arms[2]
    assert service.end() == 0
    logged = [json.loads(line)["user"] for file in exposures.glob("*.ndjson") for line in file.read_text().splitlines()]
    assert logged == ["7", "7", "7", "true", str(2**63), str(2**64 - 1)]


def test_an_arm_is_replaced(folder: Path, other: Path, tmp_path: Path, start: Callable[..., Running]) -> None:
    service = start(
        "--arm", f"old={folder}:0.5", "--arm", f"new={folder}:0.5", "--exposures", str(tmp_path / "exposures")
    )  # fmt: skip
    assert service.post("/reload", {"path": str(other), "arm": "nothing"}).status_code == 409
    assert service.post("/reload", {"path": str(other), "arm": "new"}).status_code == 200
    fingerprints = {service.post("/recommend", {"query": {"user": f"u{n}"}}).json()["bundle"] for n in range(30)}
    assert fingerprints == {Bundle.open(folder).fingerprint, Bundle.open(other).fingerprint}
