"""Two bundles behind one service: who gets which, and what is logged of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.bundle import shop
from tests.service.running import Running
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


def test_an_arm_is_replaced(folder: Path, other: Path, tmp_path: Path, start: Callable[..., Running]) -> None:
    service = start(
        "--arm", f"old={folder}:0.5", "--arm", f"new={folder}:0.5", "--exposures", str(tmp_path / "exposures")
    )  # fmt: skip
    assert service.post("/reload", {"path": str(other), "arm": "nothing"}).status_code == 409
    assert service.post("/reload", {"path": str(other), "arm": "new"}).status_code == 200
    fingerprints = {service.post("/recommend", {"query": {"user": f"u{n}"}}).json()["bundle"] for n in range(30)}
    assert fingerprints == {Bundle.open(folder).fingerprint, Bundle.open(other).fingerprint}
