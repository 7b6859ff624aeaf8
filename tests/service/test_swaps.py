"""Bundles that are replaced while requests come, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
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
from tests.service.test_changes import NEW, NEW_ENCODED, everything, put
from twotower import cli
from twotower.bundle import Bundle
from twotower.errors import ConfigError
from twotower.service import running
from twotower.service.engine import Engine, NewItem
from twotower.service.metrics import Metrics
from twotower.service.serving import WATCH_S, Served, Serving
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


@pytest.fixture(scope="module")
def fewer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a shop without the last ten items."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shop, "ITEMS", shop.ITEMS - 10)
        model = shop.trained(tmp_path_factory.mktemp("fewer"))
    return export(model, model.parent / "bundle").folder


def columns_of(folder: Path, item: int) -> dict[str, object]:
    """What the item file of a bundle says of an item, but for the list."""
    row: dict[str, object] = pq.read_table(folder.parent / "items.parquet").to_pylist()[item]
    return {name: row[name] for name in ("kind", "price", "title", "year")}


def n_upon_the_bundle(client: Client) -> tuple[float, int]:
    """What the index compares or leaves out one by one, as a share, and the items that are said to be changed."""
    assert b"twotower_items_changed " in client.get("/metrics").body
    return client.served.now.first.index.stale_share, client.get("/about").json["items_changed"]


def test_what_a_bundle_has_already_is_not_put_upon_it(fewer: Path, folder: Path, tmp_path: Path) -> None:
    with served_by(fewer, state=tmp_path) as client:
        for item in (295, 297):
            put(client, f"i{item}", **columns_of(folder, item))
        assert n_upon_the_bundle(client) == (2 / (shop.ITEMS - 10), 2)
        assert client.post("/reload", {"path": str(folder)}).status == 200
        assert n_upon_the_bundle(client) == (0, 0)
        bundle = Bundle.open(folder)
        asked = {"query": {"user": "u1"}, "k": 400, "filter_seen": False}
        found = client.post("/recommend", asked).json["items"]
        want = bundle.recommend({"user": "u1"}, k=400, filter_seen=False)
        assert [(one["item"], one["score"]) for one in found] == [(one.item, pytest.approx(one.score)) for one in want]
        assert client.post("/reload", {"path": str(fewer)}).status == 200  # the older one needs them again
        assert {"i295", "i297"} <= set(everything(client))
    with served_by(folder, state=tmp_path) as client:
        assert n_upon_the_bundle(client) == (0, 0)


@pytest.mark.parametrize("other_columns", [{"year": 1999}, {"price": 2.0}, {"year": None}])
def test_what_a_bundle_has_otherwise_is_put_upon_it(
    other_columns: dict[str, object], fewer: Path, folder: Path, tmp_path: Path
) -> None:
    """The attribute alone, or the vector too."""
    with served_by(fewer, state=tmp_path) as client:
        columns = columns_of(folder, 295) | other_columns
        put(client, "i295", **columns)
        assert client.post("/reload", {"path": str(folder)}).status == 200
        assert n_upon_the_bundle(client) == (2 / shop.ITEMS, 1)  # the bundle's row is gone, another has come
        shown = client.post("/similar", {"item": "i1", "k": 400, "show": ["price", "year"]}).json["items"]
        (one,) = (one for one in shown if one["item"] == "i295")
        assert one["attributes"] == {"price": columns["price"], "year": columns["year"]}


def test_what_went_is_not_taken_from_a_bundle_that_never_had_it(fewer: Path, folder: Path, tmp_path: Path) -> None:
    with served_by(folder, state=tmp_path) as client:
        assert client.post("/items/delete", {"items": ["i295", "never"]}).json == {"deleted": 1}
        assert n_upon_the_bundle(client) == (1 / shop.ITEMS, 1)
        assert client.post("/reload", {"path": str(fewer)}).status == 200
        assert n_upon_the_bundle(client) == (0, 0)
        assert client.post("/reload", {"path": str(folder)}).status == 200
        assert "i295" not in everything(client)
        assert n_upon_the_bundle(client) == (1 / shop.ITEMS, 1)


def test_the_other_workers_serve_it_too(folder: Path, other: Path, tmp_path: Path) -> None:
    with (
        served_by(folder, orders=tmp_path, state=tmp_path, follow=True) as one,
        served_by(folder, orders=tmp_path, state=tmp_path, follow=True) as two,
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


def test_two_orders_at_once_are_both_obeyed(folder: Path, other: Path, tmp_path: Path) -> None:
    """By two workers, each for another arm."""
    fingerprint = Bundle.open(other).fingerprint
    workers = [
        Served(
            Serving(engines={arm: Engine(Bundle.open(folder), arm) for arm in ("x", "y")}),
            metrics=Metrics(),
            orders=tmp_path,
            log=lambda event, **facts: None,
        )
        for _ in range(2)
    ]
    for arm, worker in zip(("x", "y"), workers, strict=True):
        worker.reload(other, arm)  # neither has heard of the other's order yet
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 20
    while any(one.bundle.fingerprint != fingerprint for worker in workers for one in worker.now.engines.values()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for worker in workers:
        worker.close()


def test_services_share_changes_of_items_but_no_orders(folder: Path, other: Path, tmp_path: Path) -> None:
    with (
        served_by(folder, orders=tmp_path / "a", state=tmp_path / "state", follow=True) as one,
        served_by(folder, orders=tmp_path / "b", state=tmp_path / "state", follow=True) as two,
    ):
        for place in ("a", "b"):
            (tmp_path / place).mkdir()
        assert one.post("/reload", {"path": str(other)}).status == 200
        put(one, "new")
        deadline = time.monotonic() + 10
        while "new" not in everything(two):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert two.served.now.first.bundle.fingerprint == Bundle.open(folder).fingerprint


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_where_workers_only_fail_the_service_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    class Job:
        settings = running.Settings(bundle=Path("b"), workers=2)

        def work(self, number: int) -> None:
            raise ValueError(f"worker {number} can't work")

    monkeypatch.setattr(running, "_RESTART_S", 0.0)
    with pytest.raises(ConfigError, match="workers failed 6 times in a row"):
        running._Workers(Job()).run()  # type: ignore[arg-type]


def replaced_by(folder: Path, other: Path) -> None:
    """Another bundle in place of one."""
    folder.rename(folder.with_name("before"))
    shutil.copytree(other, folder)
    shutil.rmtree(folder.with_name("before"))


def test_an_opened_bundle_makes_vectors_of_items_with_its_own_tower(folder: Path, other: Path, tmp_path: Path) -> None:
    place = tmp_path / "bundle"
    shutil.copytree(folder, place)
    engine, item = Engine(Bundle.open(place)), NewItem(item="new", columns=NEW)
    replaced_by(place, other)
    assert not engine.bundle.is_there()
    (vector,), _ = engine.encode_items([item])
    (want,) = Bundle.open(folder).encode_items([NEW_ENCODED])
    np.testing.assert_array_equal(vector, want)


def test_a_worker_that_is_started_anew_mixes_no_bundles(
    folder: Path, other: Path, tmp_path: Path, start: Callable[..., Running]
) -> None:
    """Its parent's bundle has gone: it serves what lies there now, whole."""
    place = tmp_path / "bundle"
    shutil.copytree(folder, place)
    service = start(str(place), "--workers", "2")
    replaced_by(place, other)
    for worker in service.workers():
        os.kill(worker, signal.SIGKILL)
    new = Bundle.open(other)
    want = [(one.item, pytest.approx(one.score, rel=1e-5)) for one in new.recommend({"user": "u1"}, k=5)]
    deadline, found = time.monotonic() + 30, {}
    while found.get("bundle") != new.fingerprint:
        assert time.monotonic() < deadline, service.log.read_text()
        with contextlib.suppress(httpx.TransportError):
            found = httpx.post(f"{service.url}/recommend", json={"query": {"user": "u1"}, "k": 5}, timeout=2).json()
    assert [(one["item"], one["score"]) for one in found["items"]] == want
    assert service.end() == 0


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


def flipped(folder: Path, name: str) -> None:
    """Other bytes in the middle of a file, of which there are as many as before."""
    data = bytearray((folder / name).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(byte ^ 0xFF for byte in data[middle : middle + 40])
    (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    "name", ["vectors.bin", "item.onnx", "items.arrow", "index/index.json", "encoders/encoders.json"]
)
def test_damage_that_sizes_do_not_tell_is_found_before_a_bundle_is_served(
    client: Client, other: Path, tmp_path: Path, name: str
) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(other, bad)
    flipped(bad, name)
    found = client.post("/reload", {"path": str(bad)})
    assert found.status == 422
    assert name in found.json["error"]
    assert cli.main(["serve", str(bad)]) == 2


def test_what_nobody_thought_of_does_not_end_following(
    folder: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = tmp_path / "versions"
    shutil.copytree(folder, versions / "1")
    with served_by(versions / "1", watch=versions, follow=True) as client:
        swap, failed = client.served._swap, list[Path]()

        def fails_once(path: Path, arm: str) -> str:
            if not failed:
                failed.append(path)
                raise ValueError("repeats may not contain negative values")
            return swap(path, arm)

        monkeypatch.setattr(client.served, "_swap", fails_once)
        for name in ("2", "3"):
            shutil.copytree(other, versions / f".{name}")
            (versions / f".{name}").rename(versions / name)
            deadline = time.monotonic() + 20
            while not failed:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        while client.served.now.first.bundle.folder.name != "3":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert any("repeats" in str(line.get("reason")) for line in client.log)


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


def test_an_older_version_that_was_ordered_stays_until_a_newer_one_appears(
    folder: Path, other: Path, tmp_path: Path
) -> None:
    old, new = (Bundle.open(one).fingerprint for one in (folder, other))
    versions = tmp_path / "versions"
    shutil.copytree(folder, versions / "1")
    shutil.copytree(other, versions / "2")
    at_work = {"orders": tmp_path / "orders", "watch": versions, "follow": True}
    (tmp_path / "orders").mkdir()

    def wait_for(client: Client, fingerprint: str) -> None:
        deadline = time.monotonic() + 20
        while client.served.now.first.bundle.fingerprint != fingerprint:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    with served_by(versions / "2", **at_work) as client, served_by(versions / "1", **at_work) as second:
        wait_for(second, new)  # which appeared after it started
        assert client.post("/reload", {"path": str(versions / "1")}).status == 200
        wait_for(second, old)
        with served_by(versions / "1", **at_work) as restarted:
            time.sleep(2.5 * WATCH_S)
            assert [one.served.now.first.bundle.fingerprint for one in (client, second, restarted)] == [old] * 3
        shutil.copytree(other, versions / ".3")
        (versions / ".3").rename(versions / "3")
        for one in (client, second):
            wait_for(one, new)


def test_a_version_that_was_seen_too_early_is_tried_again(folder: Path, other: Path, tmp_path: Path) -> None:
    versions = tmp_path / "versions"
    shutil.copytree(folder, versions / "1")
    with served_by(versions / "1", watch=versions, follow=True) as client:
        shutil.copytree(other, versions / ".2")
        whole = (versions / ".2" / "vectors.bin").read_bytes()
        damaged(versions / ".2", "vectors.bin")
        (versions / ".2").rename(versions / "2")
        deadline = time.monotonic() + 20
        while not any(line["event"] == "bundle refused" for line in client.log):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (versions / "2" / "vectors.bin").write_bytes(whole)
        while client.served.now.first.bundle.fingerprint != Bundle.open(other).fingerprint:
            assert time.monotonic() < deadline
            time.sleep(0.05)


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
    assert [(line["path"], line["status"]) for line in lines if line["path"] != "/ready"] == [("/recommend", 200)] * 3
