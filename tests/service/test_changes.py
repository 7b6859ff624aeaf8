"""Items that come, change and go while the service answers: the journal, and all workers."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.bundle import shop
from tests.service.running import Client, Running, served_by
from twotower import cli
from twotower.bundle import Bundle
from twotower.errors import ArtifactError
from twotower.index import Index
from twotower.service.asking import Wish
from twotower.service.engine import Engine, NewItem
from twotower.service.journal import JOURNAL, Journal
from twotower.service.serving import compact

NEW = {"kind": "k1", "title": "red wool shoe", "price": 12.5, "year": 2024}


def put(client: Client | Running, *items: str, **columns: object) -> None:
    found = client.post("/items", {"items": [{"item": item, "columns": NEW | columns} for item in items]})
    assert found.status == 200 if isinstance(client, Client) else found.status_code == 200  # type: ignore[union-attr]


def everything(client: Client, **wish: object) -> list[str]:
    """All items that there are for one query, best first."""
    return client.post("/recommend", {"query": {"user": "u1"}, "k": 1000, "filter_seen": False, **wish}).items


# ---------------------------------------------------------------- items


def test_a_new_item_is_found_at_once_by_its_vector(client: Client, bundle: Bundle) -> None:
    put(client, "new")
    found = everything(client)
    assert len(found) == shop.ITEMS + 1
    query_D, item_D = bundle.encode_queries([{"user": "u1"}])[0], bundle.encode_items([NEW_ENCODED])[0]
    scores = np.append(bundle.vectors @ query_D, item_D @ query_D)
    order = np.argsort(-scores, kind="stable")
    assert found.index("new") == list(order).index(shop.ITEMS)


NEW_ENCODED = {"item": "new", **{name: value for name, value in NEW.items() if name != "year"}}


def test_it_is_found_by_what_is_typed(client: Client) -> None:
    """By its id and by its title, also where other items only hold the text; what changed no more by its old title."""
    put(client, "brandnew", "i5", title="red shoes of 2031")
    found = [one["item"] for one in client.get("/items/search?text=red%20shoes%20of").json["items"]]
    assert sorted(found) == ["brandnew", "i5"]
    assert [one["item"] for one in client.get("/items/search?text=brandn").json["items"]] == ["brandnew"]
    assert client.get("/items/search?text=I7").json["items"][0]["item"] == "i7"


def test_its_columns_say_no_other_id(client: Client) -> None:
    found = client.post("/items", {"items": [{"item": "new", "columns": NEW | {"item": "i7"}}]})
    assert (found.status, found.json["error"]) == (422, "item 0: 'item' is 'i7', but its id is 'new': leave one out")
    put(client, "new", item="new")


def test_its_attributes_count_and_are_shown(client: Client) -> None:
    put(client, "new", year=2999)
    assert everything(client, where={"year": 2999}) == ["new"]
    assert "new" in everything(client, where={"kind": "k1"})
    assert "new" not in everything(client, where={"kind": "k2"})
    (one,) = client.post("/recommend", {"query": {"user": "u1"}, "where": {"year": 2999}, "show": ["title"]}).json[
        "items"
    ]
    assert one["attributes"] == {"title": "red wool shoe"}
    spread = everything(client, at_most={"attribute": "year", "n": 1})
    assert "new" in spread
    found = client.get("/items/search?text=red%20wool%20shoe").json["items"]
    assert {"item": "new", "title": "red wool shoe"} in found


def test_an_item_changes_goes_and_comes_back(client: Client) -> None:
    before = everything(client)
    put(client, "i7", kind="k3", year=2999)
    assert sorted(everything(client)) == sorted(before)
    assert everything(client, where={"year": 2999}) == ["i7"]
    assert client.post("/items/delete", {"items": ["i7", "i8", "never"]}).json == {"deleted": 2}
    assert sorted(everything(client)) == sorted(set(before) - {"i7", "i8"})
    assert client.post("/similar", {"item": "i7"}).status == 404
    assert client.post("/items/delete", {"items": ["i7"]}).json == {"deleted": 0}
    put(client, "i7")
    assert sorted(everything(client)) == sorted(set(before) - {"i8"})
    assert client.post("/similar", {"item": "i7", "k": 3}).status == 200


def test_an_item_that_is_there_as_it_is_stays(client: Client, folder: Path) -> None:
    """Only what differs from what is served now is put: not the bundle's own, but the way back to it, and from gone."""
    engine, before = client.served.now.first, everything(client)
    own = pq.read_table(folder.parent / "items.parquet").to_pylist()[5]
    own = {name: own[name] for name in ("kind", "price", "title", "year")}
    put(client, "i5", **own)
    assert (engine.index.stale_share, engine.n_changed) == (0, 0)
    put(client, "new", "i5", **own | {"year": 2999})
    content = engine.index.stale_share
    assert (content, engine.n_changed) == (3 / shop.ITEMS, 2)
    put(client, "new", "i5", **own | {"year": 2999})
    assert (engine.index.stale_share, engine.n_changed) == (content, 2)
    put(client, "i5", **own)
    assert everything(client, where={"year": 2999}) == ["new"]
    client.post("/items/delete", {"items": ["i5", "new"]})
    assert engine.n_changed == 1
    put(client, "i5", **own)
    assert everything(client) == before


def test_an_item_whose_life_ended_comes_back_by_what_it_was(bundle: Bundle, folder: Path) -> None:
    """It is in the catalogue with this vector, but not live: it has to be put."""
    live_M = np.arange(shop.ITEMS) != 5
    engine = Engine(replace(bundle, index=Index.build(bundle.vectors, live_M=live_M)))
    row = pq.read_table(folder.parent / "items.parquet").to_pylist()[5]
    item = NewItem(item="i5", columns={name: row[name] for name in ("kind", "price", "title", "year")})
    assert engine.n_items == shop.ITEMS - 1
    engine.upsert([item], *engine.encode_items([item]))
    assert engine.n_items == shop.ITEMS
    answer = engine.recommend({"user": "u1"}, Wish(k=400, filter_seen=False))
    assert "i5" in engine.catalogue.texts(answer.row_k.tolist())


def test_ids_may_be_numbers_and_need_escapes(client: Client) -> None:
    put(client, 'say "hi"\n')
    found = client.post("/items", {"items": [{"item": 77, "columns": NEW}, {"item": 78.0, "columns": NEW}]})
    assert found.json == {"upserted": 2}
    assert {'say "hi"\n', "77", "78"} <= set(everything(client))
    assert {"77", "78"} <= set(client.post("/similar", {"item": 'say "hi"\n', "k": 300}).items)


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([{"item": "a", "columns": {"colour": "red"}}], "colour"),
        ([{"item": "a", "columns": {"price": "dear"}}], "price"),
        ([{"item": "a", "columns": {"year": "late"}}], "year"),
        ([{"item": "a", "columns": []}], "expected an object"),
        ([{"columns": {}}], "number 0"),
        ([{"item": "", "columns": {}}], "found the id ''"),
        ([{"item": ["a"]}], "expected an item's id"),
        (["a"], "number 0"),
        ("a", "expected a list"),
    ],
)
def test_of_a_request_with_a_mistake_nothing_is_done(client: Client, items: object, text: str) -> None:
    before = everything(client)
    if isinstance(items, list):
        items = [{"item": "fine", "columns": NEW}, *items]
        text = text.replace("number 0", "number 1")
    found = client.post("/items", {"items": items})
    assert found.status == 422, found.body
    assert text in found.json["error"]
    assert everything(client) == before


def test_random_changes_are_those_of_a_dictionary(client: Client, bundle: Bundle) -> None:
    """Against a dict of vectors that is searched naively."""
    generator = np.random.default_rng(0)
    vectors = {f"i{row}": vector for row, vector in enumerate(bundle.vectors)}
    query_D = bundle.encode_queries([{"user": "u1"}])[0]
    for step in range(60):
        names = [f"i{n}" for n in generator.integers(0, shop.ITEMS + 40, generator.integers(1, 6))]
        if generator.random() < 0.5:
            price = float(generator.integers(1, 1000))
            put(client, *names, price=price)
            for name in names:
                vectors[name] = bundle.encode_items([NEW_ENCODED | {"item": name, "price": price}])[0]
        else:
            client.post("/items/delete", {"items": names})
            for name in names:
                vectors.pop(name, None)
        if step % 10 == 9:
            scores = {name: float(vector @ query_D) for name, vector in vectors.items()}
            answer = client.post("/recommend", {"query": {"user": "u1"}, "k": 1000, "filter_seen": False}).json
            assert {one["item"] for one in answer["items"]} == scores.keys()
            found = [one["score"] for one in answer["items"]]
            np.testing.assert_allclose(found, sorted(scores.values(), reverse=True), atol=1e-5)


# ---------------------------------------------------------------- the journal


def test_changes_survive_a_restart(folder: Path, tmp_path: Path) -> None:
    with served_by(folder, state=tmp_path) as client:
        put(client, "a", "b", "i5", year=2999)
        client.post("/items/delete", {"items": ["b", "i6"]})
        before = everything(client)
    with served_by(folder, state=tmp_path) as client:
        assert everything(client) == before
        assert sorted(everything(client, where={"year": 2999})) == ["a", "i5"]


def test_two_workers_agree(folder: Path, tmp_path: Path) -> None:
    with served_by(folder, state=tmp_path) as one, served_by(folder, state=tmp_path) as two:
        put(one, "a")
        put(two, "b")  # who writes takes up what others wrote first
        assert {"a", "b"} <= set(everything(two))
        assert "b" not in everything(one)
        one.served.catch_up()
        assert everything(one) == everything(two)
        two.post("/items/delete", {"items": ["a", "i3"]})
        one.served.catch_up()
        assert everything(one) == everything(two)


@pytest.mark.parametrize("cut", [1, 5, 8, 9, 20])
def test_half_a_record_is_left_and_then_cut_off(folder: Path, tmp_path: Path, cut: int) -> None:
    with served_by(folder, state=tmp_path) as client:
        put(client, "a")
        whole = (tmp_path / JOURNAL).stat().st_size
        put(client, "b")
    os.truncate(tmp_path / JOURNAL, whole + cut)
    with served_by(folder, state=tmp_path) as client:
        assert "a" in everything(client)
        assert "b" not in everything(client)
        put(client, "c")
    with served_by(folder, state=tmp_path) as client:
        assert {"a", "c"} <= set(everything(client))
        assert "b" not in everything(client)


def test_damage_before_whole_records_is_refused(folder: Path, tmp_path: Path) -> None:
    with served_by(folder, state=tmp_path) as client:
        put(client, "a")
        put(client, "b")
    data = bytearray((tmp_path / JOURNAL).read_bytes())
    data[30] ^= 1
    (tmp_path / JOURNAL).write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="damaged at byte 8"), served_by(folder, state=tmp_path):
        pass


def test_another_file_is_no_journal(folder: Path, tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b"something else")
    with pytest.raises(ArtifactError, match="no journal"), served_by(folder, state=tmp_path):
        pass


def test_a_journal_is_written_anew_under_those_who_read_it(folder: Path, tmp_path: Path) -> None:
    with served_by(folder, state=tmp_path) as client:
        for price in range(30):
            put(client, "a", "b", price=float(price), title="long " * 1000)
        client.post("/items/delete", {"items": ["b", "i1"]})
        before, size = everything(client), (tmp_path / JOURNAL).stat().st_size
        with served_by(folder, state=tmp_path) as other:
            journal = Journal(tmp_path)
            _fill(journal, 2 << 20)
            compact(journal)
            journal.close()
            assert (tmp_path / JOURNAL).stat().st_size < size
            put(other, "c")
            client.served.catch_up()
            assert everything(client) == everything(other)
            assert set(everything(client)) == {*before, "c"}


def _fill(journal: Journal, n_bytes: int) -> None:
    """Records that change nothing in the end, until it pays to write it anew."""
    with journal.locked():
        journal.read()
        while journal.n_bytes < n_bytes:
            journal.append([{"delete": ["nothing" * 10_000]}])


# ---------------------------------------------------------------- processes


def test_workers_follow_one_another(folder: Path, tmp_path: Path, start: Callable[..., Running]) -> None:
    """An upsert is found by all within half a second, and what one deleted is gone."""
    service = start(str(folder), "--workers", "2", "--state", str(tmp_path / "state"))
    assert len(service.workers()) == 2
    for number in range(2):
        put(service, f"new{number}")
        time.sleep(0.5)
        statuses = {_fresh(service, f"new{number}") for _ in range(12)}
        assert statuses == {200}
    assert service.end() == 0
    assert service.lines()[-1]["event"] == "ended"


def _fresh(service: Running, item: str) -> int:
    """Asked over a new connection, which any worker may take."""
    import httpx

    return httpx.post(f"{service.url}/similar", json={"item": item}).status_code


@pytest.mark.slow
def test_a_killed_worker_is_started_anew_and_nothing_acknowledged_is_lost(
    folder: Path, tmp_path: Path, start: Callable[..., Running]
) -> None:
    state = str(tmp_path / "state")
    service = start(str(folder), "--workers", "2", "--state", state)
    acknowledged: list[str] = []
    ended = threading.Event()

    def write() -> None:
        import httpx

        number = 0
        while not ended.is_set():
            number += 1
            try:
                asked = {"items": [{"item": f"new{number}", "columns": NEW}]}
                if httpx.post(f"{service.url}/items", json=asked, timeout=10).status_code == 200:
                    acknowledged.append(f"new{number}")
            except httpx.TransportError:
                pass

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(3):
        time.sleep(0.4)
        os.kill(service.workers()[0], signal.SIGKILL)
        time.sleep(1.6)
    service.kill()  # all of them, in the middle of it
    ended.set()
    thread.join()
    assert len(acknowledged) > 20
    again = start(str(folder), "--state", state, "--max-k", "100000")
    asked = {"query": {"user": "u1"}, "k": 100_000, "filter_seen": False, "where": {"year": 2024}}
    found = {one["item"] for one in again.post("/recommend", asked).json()["items"]}
    assert set(acknowledged) <= found


def test_a_state_folder_that_is_gone_is_no_mistake_of_the_caller(folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with served_by(folder, state=state) as client:
        shutil.rmtree(state)
        found = client.post("/items", {"items": [{"item": "new", "columns": NEW}]})
        assert found.status == 503
        assert "items.journal: is gone" in found.json["error"]
    (tmp_path / "file").write_text("")
    assert cli.main(["serve", str(folder), "--port", "0", "--state", str(tmp_path / "file")]) == 2
    assert cli.main(["serve", str(folder), "--port", "0", "--exposures", str(tmp_path / "exposures")]) == 2
