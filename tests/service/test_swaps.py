"""Bundles that are replaced while requests come, and what is refused."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.bundle import shop
from tests.service.running import Client, Running, served_by
from tests.service.test_changes import NEW, everything, put
from twotower import cli
from twotower.bundle import Bundle
from twotower.training import export


def test_another_bundle_is_served_with_the_changes_upon_it(client: Client, other: Path) -> None:
    put(client, "new", "i5", year=2999)
    client.post("/items/delete", {"items": ["i6", "i7"]})
    before = everything(client)
    found = client.post("/reload", {"path": str(other)})
    assert found.status == 200, found.body
    bundle = Bundle.open(other)
    assert found.json == {"bundle": bundle.fingerprint}
    after = client.post("/recommend", {"query": {"user": "u1"}, "k": 1000, "filter_seen": False}).json
    assert after["bundle"] == bundle.fingerprint
    assert {one["item"] for one in after["items"]} == set(before)
    assert sorted(everything(client, where={"year": 2999})) == ["i5", "new"]
    want = [one.item for one in bundle.recommend({"user": "u1"}, k=400, filter_seen=False)]
    untouched = [one["item"] for one in after["items"] if one["item"] not in ("new", "i5")]
    assert untouched == [item for item in want if item not in ("i5", "i6", "i7")]


def test_the_other_workers_serve_it_too(folder: Path, other: Path, tmp_path: Path) -> None:
    with (
        served_by(folder, state=tmp_path, follow=True) as one,
        served_by(folder, state=tmp_path, follow=True) as two,
    ):
        assert one.post("/reload", {"path": str(other)}).status == 200
        fingerprint = Bundle.open(other).fingerprint
        deadline = time.monotonic() + 10
        while two.served.now.first.bundle.fingerprint != fingerprint:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        put(two, "new")
        one.served.catch_up()
        assert everything(one) == everything(two)


def damaged(folder: Path, name: str) -> None:
    """Cut a file of a bundle short."""
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("name", ["vectors.bin", "query.onnx", "items.arrow", "bundle.json", "index/index.json"])
def test_a_damaged_bundle_is_refused_and_the_old_one_goes_on(
    client: Client, other: Path, tmp_path: Path, name: str
) -> None:
    before = everything(client)
    bad = tmp_path / "bad"
    shutil.copytree(other, bad)
    damaged(bad, name)
    found = client.post("/reload", {"path": str(bad)})
    assert found.status == 422
    assert str(bad) in found.json["error"]
    assert everything(client) == before
    assert b"twotower_swaps_refused_total 1\n" in client.get("/metrics").body
    assert client.log[-1]["event"] == "bundle refused"


def test_a_new_version_that_appears_is_served_and_a_bad_one_is_not(folder: Path, other: Path, tmp_path: Path) -> None:
    versions = tmp_path / "versions"
    shutil.copytree(folder, versions / "2026-01-01")
    with served_by(versions / "2026-01-01", watch=versions, follow=True) as client:
        fingerprint = Bundle.open(other).fingerprint
        shutil.copytree(other, versions / "2026-01-03")
        damaged(versions / "2026-01-03", "vectors.bin")
        shutil.copytree(other, versions / "2025-12-31")  # older
        (versions / "2026-01-04").mkdir()  # being written
        deadline = time.monotonic() + 20
        while not any(line["event"] == "bundle refused" for line in client.log):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client.served.now.first.bundle.folder.name == "2026-01-01"
        shutil.copytree(other, versions / ".2026-01-05")
        (versions / ".2026-01-05").rename(versions / "2026-01-05")
        while client.served.now.first.bundle.fingerprint != fingerprint:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client.served.now.first.bundle.folder.name == "2026-01-05"
        assert [line["event"] for line in client.log].count("bundle refused") == 1


def test_a_version_that_an_update_exports_is_served(tmp_path: Path) -> None:
    model, versions = shop.trained(tmp_path / "shop"), tmp_path / "versions"
    export(model, versions / "000000", show=["title"])
    event = {"user": "u1", "item": "i5", "time": 1_650_000_999, "page": "i6", "device": "d1"}
    pq.write_table(pa.Table.from_pylist([event]), tmp_path / "day.parquet")
    command = ["update", str(model), "--interactions", str(tmp_path / "day.parquet"), "--set", "update.valid=0"]
    with served_by(versions / "000000", watch=versions, follow=True) as client:
        assert cli.main([*command, "--export", str(versions)]) == 0
        deadline = time.monotonic() + 20
        while client.served.now.first.bundle.folder.name != "000001":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (about,) = client.get("/about").json["bundles"]
        assert about["bundle"] == Bundle.open(versions / "000001").fingerprint
        assert client.get("/about").json["attributes"] == {"title": "string"}


def is_right(answer: dict[str, Any], want: dict[str, list[str]]) -> bool:
    """The items of the bundle it names are all there, in order, and so are their scores."""
    stable = [one["item"] for one in answer["items"] if one["item"].startswith("i")]
    scores = [one["score"] for one in answer["items"]]
    return stable == want[answer["bundle"]] and scores == sorted(scores, reverse=True)


@pytest.mark.slow
def test_twenty_swaps_and_ten_thousand_changes_under_load(
    folder: Path, other: Path, tmp_path: Path, start: Callable[..., Running]
) -> None:
    """No request fails or gets an answer that neither bundle gives: what is stable is in all of them, in order."""
    service = start(str(folder), "--workers", "2", "--state", str(tmp_path / "state"), "--max-batch", "1000")
    bundles = {bundle.fingerprint: bundle for bundle in map(Bundle.open, (folder, other))}
    want = {
        name: [one.item for one in bundle.recommend({"user": "u1"}, k=400, filter_seen=False)]
        for name, bundle in bundles.items()
    }
    wrong: list[object] = []
    asked = [0]
    ended = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=service.url, timeout=30) as client:
            while not ended.is_set():
                found = client.post("/recommend", json={"query": {"user": "u1"}, "k": 1000, "filter_seen": False})
                asked[0] += 1
                if found.status_code != 200 or not is_right(found.json(), want):
                    wrong.append(found.text[:500])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    generator, there = np.random.default_rng(0), set()
    changes = swaps = 0
    while changes < 10_000 or swaps < 20:
        names = [f"n{n}" for n in np.unique(generator.integers(0, 300, 250))]
        if generator.random() < 0.6:
            done = service.post("/items", {"items": [{"item": name, "columns": NEW} for name in names]})
            there |= set(names)
        else:
            done = service.post("/items/delete", {"items": names})
            there -= set(names)
        assert done.status_code == 200, done.text
        changes += len(names)
        if changes > swaps * 500:
            assert service.post("/reload", {"path": str((other, folder)[swaps % 2])}).status_code == 200
            swaps += 1
    time.sleep(0.5)
    ended.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
    assert asked[0] > 100
    for _ in range(6):
        found = httpx.post(
            f"{service.url}/recommend", json={"query": {"user": "u1"}, "k": 1000, "filter_seen": False, "show": []}
        ).json()
        assert {one["item"] for one in found["items"]} == there | {f"i{i}" for i in range(shop.ITEMS)}
    assert service.end() == 0


def test_the_log_is_json(folder: Path, tmp_path: Path, start: Callable[..., Running]) -> None:
    service = start(str(folder), "--access-log", str(tmp_path / "access"))
    for _ in range(3):
        assert service.post("/recommend", {"query": {"user": "u1"}}).status_code == 200
    assert service.end() == 0
    assert [line["event"] for line in service.lines()] == ["listening", "ended"]
    lines = [json.loads(line) for line in (tmp_path / "access").read_text().splitlines()]
    assert [(line["path"], line["status"]) for line in lines] == [("/recommend", 200)] * 3
