"""HTTP answers are those of Python, and the quick ways are the slow ones."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.bundle import shop
from tests.service.running import JSON, Client, served_by
from twotower.bundle import Bundle
from twotower.errors import DataError
from twotower.service.asking import AtMost, Wish
from twotower.service.engine import Engine
from twotower.service.single_query import SingleQuery

ODD = [
    {"user": "nobody"},
    {"user": None, "country": None},
    {},
    {"users": 3},
    {"user": ["u1"]},
    {"user": True},
    {"user": 1.5},
    {"user": "u1", "age": "old"},
    {"user": "u1", "age": "3"},
    {"user": "u1", "age": True},
    {"user": "u1", "age": 2**60},
    {"user": "u1", "income": float("inf")},
    {"user": "u1", "country": 7},
    {"user": "u1", "country": 7.0},
    {"user": "u1", "country": {"a": 1}},
    {"user": "u1", "history": "i1"},
    {"user": "u1", "history": ["i1", 2, None]},
    {"user": "u1", "history": [["i1"]]},
    {"user": "u1", "history": [f"i{i}" for i in range(60)]},
    {"user": "", "country": ""},
    {"user": "u1", "photo": [1.0]},
    {"user": "nobody", "device": "d1"},
    {"user": "u" * 1000, "device": "d1"},
    {"user": "ü\u0000", "device": "d\U0001f600"},
]


def test_a_single_query_is_encoded_as_many_are(bundle: Bundle) -> None:
    single, generator = SingleQuery(bundle), np.random.default_rng(0)
    for query in [*ODD, *(shop.some_query(generator) for _ in range(1000))]:
        try:
            row_B = np.array([bundle.raw_queries.row(query)], np.int64)
            want = bundle.query_tower.inputs_of(bundle.raw_queries.encode([query], row_B))
        except DataError as error:
            with pytest.raises(DataError, match=re.escape(str(error))):
                single.inputs(query, single.row(query))
            continue
        row = single.row(query)
        assert row == row_B[0]
        found = single.inputs(query, row)
        assert found.keys() == want.keys()
        for name in want:
            assert found[name].dtype == want[name].dtype
            np.testing.assert_array_equal(found[name], want[name], err_msg=f"{name} of {query}")


def test_what_http_answers_is_what_python_answers(asking: Client, bundle: Bundle) -> None:
    generator = np.random.default_rng(1)
    for at in range(1000):
        query = shop.some_query(generator)
        wish = {
            "k": int(generator.integers(1, 30)),
            "filter_seen": bool(generator.random() < 0.7),
            "exclude": [f"i{i}" for i in generator.integers(0, shop.ITEMS + 5, generator.integers(0, 4))],
        }
        if generator.random() < 0.3:
            wish["where"] = {"kind": ["k1", "k2"], "year": {"from": 2003}}
        found = asking.post("/recommend", {"query": query, **wish})
        assert found.status == 200, found.body
        want = bundle.recommend(query, **wish)  # type: ignore[arg-type]
        assert found.items == [one.item for one in want], at
        scores = [one["score"] for one in found.json["items"]]
        np.testing.assert_allclose(scores, [one.score for one in want], atol=1e-5)
        counts = found.json["counts"]
        assert counts["found"] >= counts["filtered"] >= counts["returned"] == len(want)


def test_similar_is_what_python_answers(asking: Client, bundle: Bundle) -> None:
    for item in range(0, shop.ITEMS, 7):
        found = asking.post("/similar", {"item": f"i{item}", "k": 5, "where": {"kind": "k1"}})
        assert found.items == [one.item for one in bundle.similar(f"i{item}", k=5, where={"kind": "k1"})]


def test_a_batch_is_its_queries_one_by_one(asking: Client) -> None:
    generator = np.random.default_rng(2)
    queries = [shop.some_query(generator) for _ in range(40)]
    batch = asking.post("/recommend/batch", {"queries": queries, "k": 7, "exclude": ["i5"]})
    assert batch.status == 200, batch.body
    for query, answer in zip(queries, batch.json["answers"], strict=True):
        alone = asking.post("/recommend", {"query": query, "k": 7, "exclude": ["i5"]}).json
        assert [one["item"] for one in answer["items"]] == [one["item"] for one in alone["items"]]
        assert answer["counts"] == alone["counts"]


def test_vectors(asking: Client, bundle: Bundle) -> None:
    query = {"user": "u3", "device": "d1"}
    found = asking.post("/embed", {"query": query}).json["vector"]
    np.testing.assert_allclose(found, bundle.encode_queries([query])[0], atol=1e-6)
    item = {"kind": "k1", "title": "red shoe", "price": 3.5}
    found = asking.post("/embed", {"item": item}).json["vector"]
    np.testing.assert_allclose(found, bundle.encode_items([item])[0], atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_at_most_n_of_a_kind_are_the_best_of_each(asking: Client, bundle: Bundle, n: int) -> None:
    everything = bundle.recommend({"user": "u4"}, k=shop.ITEMS, exclude=["i3"])
    kind = dict(zip([f"i{i}" for i in range(shop.ITEMS)], [f"k{i % 4}" for i in range(shop.ITEMS)], strict=True))
    count: Counter[str] = Counter()
    want = []
    for one in everything:
        count[kind[one.item]] += 1
        if count[kind[one.item]] <= n:
            want.append(one.item)
    asked = {"query": {"user": "u4"}, "k": 12, "exclude": ["i3"], "at_most": {"attribute": "kind", "n": n}}
    assert asking.post("/recommend", asked).items == want[:12]


def test_at_most_looks_until_there_are_no_more(bundle: Bundle) -> None:
    """Years are 2000 to 2019 and missing for each ninth item, which nothing limits."""
    engine = Engine(bundle)
    wish = Wish(k=shop.ITEMS, filter_seen=False, at_most=AtMost(attribute="year", n=1))
    answer = engine.recommend({"user": "u4"}, wish)
    without_year = sum(i % 9 == 0 for i in range(shop.ITEMS))
    years = {2000 + i % 20 for i in range(shop.ITEMS) if i % 9}
    assert answer.returned == without_year + len(years)


def test_attributes_are_shown(asking: Client) -> None:
    found = asking.post("/recommend", {"query": {"user": "u4"}, "k": 5, "show": ["kind", "year"]}).json["items"]
    for one in found:
        number = int(one["item"][1:])
        assert one["attributes"] == {"kind": f"k{number % 4}", "year": 2000 + number % 20 if number % 9 else None}


@pytest.mark.parametrize(
    ("path", "asked", "status", "text"),
    [
        ("/recommend", b"{", 400, "no JSON"),
        ("/recommend", b"\xff", 400, "no JSON"),
        ("/recommend", [], 422, "expected a JSON object"),
        ("/recommend", {}, 422, "query: found nothing"),
        ("/recommend", {"query": {"usr": "u1"}}, 422, "did you mean 'user'"),
        ("/recommend", {"query": {"user": "nobody"}}, 422, "'nobody' is not known"),
        ("/recommend", {"query": {"user": "u1", "age": "old"}}, 422, "age"),
        ("/recommend", {"query": {"user": "u1"}, "kk": 3}, 422, "did you mean 'k'"),
        ("/recommend", {"query": {"user": "u1"}, "k": 0}, 422, "k: found 0"),
        ("/recommend", {"query": {"user": "u1"}, "k": True}, 422, "k: found True"),
        ("/recommend", {"query": {"user": "u1"}, "k": 10**6}, 413, "--max-k"),
        ("/recommend", {"query": {"user": "u1"}, "filter_seen": 1}, 422, "filter_seen"),
        ("/recommend", {"query": {"user": "u1"}, "exclude": "i1"}, 422, "exclude"),
        ("/recommend", {"query": {"user": "u1"}, "where": {"colour": "red"}}, 422, "no attribute 'colour'"),
        ("/recommend", {"query": {"user": "u1"}, "where": {"year": "new"}}, 422, "year"),
        ("/recommend", {"query": {"user": "u1"}, "at_most": {"attribute": "kind"}}, 422, "at_most"),
        ("/recommend", {"query": {"user": "u1"}, "at_most": {"attribute": "colour", "n": 1}}, 422, "colour"),
        ("/recommend", {"query": {"user": "u1"}, "show": ["colour"]}, 422, "colour"),
        ("/recommend/batch", {"queries": []}, 422, "at least one"),
        ("/recommend/batch", {"queries": [{"user": "u1"}] * 257}, 413, "--max-batch"),
        ("/recommend/batch", {"queries": [3]}, 422, "number 0"),
        ("/similar", {"k": 3}, 422, "item: found nothing"),
        ("/similar", {"item": "nothing"}, 404, "'nothing' is not known"),
        ("/similar", {"item": {"a": 1}}, 422, "expected an item's id"),
        ("/embed", {"query": {"user": "u1"}, "item": {}}, 422, "either"),
        ("/embed", {"item": {"colour": "red"}}, 422, "colour"),
        ("/items", {"items": [{"item": "new"}]}, 409, "--state"),
        ("/items/delete", {"items": ["i1"]}, 409, "--state"),
        ("/reload", {"path": "/nowhere"}, 422, "there is no bundle here"),
        ("/reload", {"path": 3}, 422, "path of a bundle"),
    ],
)  # fmt: skip
def test_mistakes_are_told(asking: Client, path: str, asked: object, status: int, text: str) -> None:
    found = asking.post(path, asked)
    assert found.status == status, found.body
    assert text in found.json["error"]


def test_what_is_not_there_is_told_like_other_mistakes(asking: Client) -> None:
    missing, wrong = asking.get("/nope"), asking.get("/items/search")
    assert (missing.status, missing.json) == (404, {"error": "/nope: Not Found"})
    assert (wrong.status, wrong.json) == (422, {"error": "text: Field required"})


def test_another_method(asking: Client) -> None:
    assert asking.get("/recommend").status == 405


def test_a_body_in_pieces_and_one_that_is_too_large(asking: Client) -> None:
    body = b'{"query":{"user":"u1"},"k":3}'
    assert asking.request("POST", "/recommend", body, pieces=5).json == asking.post("/recommend", body).json
    for pieces in (1, 7):
        found = asking.request("POST", "/recommend", b" " * (1 << 20) + body, pieces=pieces)
        assert found.status == 413


def test_what_is_served_is_told(asking: Client, bundle: Bundle) -> None:
    assert asking.get("/health").json == {"status": "ok"}
    assert asking.get("/ready").json == {"ready": True, "bundles": {"": bundle.fingerprint}}
    about = asking.get("/about").json
    assert about["items"] == shop.ITEMS
    assert about["title"] == "title"
    assert about["attributes"] == {"kind": "string", "price": "double", "title": "string", "year": "int64"}
    for query in about["examples"]:
        assert asking.post("/recommend", {"query": query}).status == 200
    found = asking.get("/items/search?text=NO%2010").json["items"]
    assert sorted(one["item"] for one in found) == sorted(f"i{i}" for i in range(shop.ITEMS) if str(i).startswith("10"))


def test_counts_are_metrics(bundle: Bundle, folder: Path) -> None:
    with served_by(folder) as client:
        total: Counter[str] = Counter()
        for user in range(20):
            total.update(client.post("/recommend", {"query": {"user": f"u{user}"}}).json["counts"])
        client.post("/recommend", b"{")
        fresh = {**JSON, "if-modified-since": "Fri, 01 Jan 2100 00:00:00 GMT"}  # a browser that has the page already
        assert client.get("/live.js", fresh).status == 304
        text = client.get("/metrics").body.decode()
    for stage, n in total.items():
        assert f'twotower_items_total{{stage="{stage}"}} {n}\n' in text
    assert 'twotower_requests_total{route="recommend",status="2xx"} 20\n' in text
    assert 'twotower_requests_total{route="recommend",status="4xx"} 1\n' in text
    assert 'twotower_requests_total{route="other",status="3xx"} 1\n' in text
    assert 'twotower_stage_seconds_count{stage="tower"} 20\n' in text
    assert f'twotower_bundle{{bundle="{bundle.fingerprint}",arm=""}} 1\n' in text
    assert f"twotower_items {shop.ITEMS}\n" in text
