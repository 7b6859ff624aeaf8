"""The page: its files, what it asks the service for, and what a browser makes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest

from tests.bundle import shop
from tests.service.running import Client, Running, served_by
from twotower.bundle import Bundle
from twotower.experiment import Assignment
from twotower.index import HNSW, IndexReport
from twotower.index.report import Filtered, Latency, Line
from twotower.service import Served, Service, Serving
from twotower.service.engine import Engine
from twotower.service.metrics import Metrics
from twotower.service.pages import PAGE
from twotower.training import export

FILES = sorted(PAGE.iterdir())
NASTY = '<img src=x onerror="document.title=\'run\'"><script>document.title="run"</script>'
SIZES = [(1280, 800), (390, 844)]


# ------------------------------------------------------------ without a browser


def test_nothing_is_loaded_from_elsewhere_and_no_value_becomes_markup() -> None:
    assert {path.suffix for path in FILES} == {".html", ".css", ".js", ".svg"}
    for path in FILES:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w+\.|@import|url\(", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            path
        )
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bon\w+=|\bstyle=", page)


def test_browsers_are_told_to_run_nothing_else(asking_running: Running) -> None:
    for path in ("/", *(f"/{file.name}" for file in FILES)):
        answer = asking_running.client.get(path)
        policy = answer.headers["content-security-policy"]
        assert answer.status_code == 200
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "content-security-policy" not in asking_running.client.get("/health").headers


def test_known_queries_are_completed(asking: Client) -> None:
    found = asking.get("/queries/search?text=U1&k=100").json["queries"]
    ids = [f"u{u}" for u in range(60)]
    assert found == sorted((one for one in ids if "u1" in one), key=lambda one: (len(one), one))
    assert asking.get("/queries/search?text=u59").json["queries"] == ["u59"]
    assert asking.get("/queries/search?text=5&k=3").json["queries"] == ["u5", "u15", "u25"]
    assert asking.get("/queries/search?text=nobody").json["queries"] == []
    assert asking.get("/queries/search").status == 422


@pytest.fixture(scope="module")
def two_arms(folder: Path, other: Path) -> Iterator[Client]:
    engines = {"old": Engine(Bundle.open(folder), "old"), "new": Engine(Bundle.open(other), "new")}
    assignment = Assignment(name="test", arms={"old": 0.5, "new": 0.5})
    served = Served(Serving(engines=engines, assignment=assignment), metrics=Metrics())
    yield Client(Service(served))
    served.close()


def test_arms_are_compared_by_what_each_answers_alone(two_arms: Client, folder: Path, other: Path) -> None:
    for path, asked in (("/recommend", {"query": {"user": "u7"}}), ("/similar", {"item": "i3"})):
        wish = {**asked, "k": 7, "show": ["title"], "where": {"kind": "k1"}}
        compared = two_arms.post("/compare", wish).json["answers"]
        assert [one["arm"] for one in compared] == ["old", "new"]
        for one, its in zip(compared, (folder, other), strict=True):
            with served_by(its) as alone:
                assert {**alone.post(path, wish).json, "arm": one["arm"]} == one
        assert compared[0]["items"] != compared[1]["items"]


def test_an_arm_that_can_not_answer_says_why(folder: Path, tmp_path: Path) -> None:
    """An item that one arm has and the other does not; what none can answer is refused."""
    engines = {"old": Engine(Bundle.open(folder), "old"), "new": Engine(Bundle.open(folder), "new")}
    engines["old"].delete(["i3"])
    served = Served(Serving(engines=engines), metrics=Metrics())
    client = Client(Service(served))
    old, new = client.post("/compare", {"item": "i3"}).json["answers"]
    assert old["error"].startswith("item: 'i3' is not known")
    assert (old["arm"], new["arm"]) == ("old", "new")
    assert len(new["items"]) == 10
    assert client.post("/compare", {"item": "i999"}).status == 404
    assert client.post("/compare", {"query": {"users": 1}}).status == 422
    assert client.post("/compare", {"query": {"user": "u1"}, "item": "i1"}).status == 422
    served.close()


def test_one_bundle_is_compared_with_nothing(asking: Client) -> None:
    (only,) = asking.post("/compare", {"query": {"user": "u1"}}).json["answers"]
    assert only == {**asking.post("/recommend", {"query": {"user": "u1"}}).json, "arm": None}


def test_what_a_report_of_the_export_says_is_what_the_page_reads(folder: Path, tmp_path: Path) -> None:
    """Every kind, with the facts that ``page/bundle.js`` names; a bundle without a report says so."""
    pytest.importorskip("faiss")
    done = export(folder.parent / "model", tmp_path / "bundle", report=True, target_recall=0.5, k=5)
    assert done.report is not None
    with served_by(tmp_path / "bundle") as client:
        (about,) = client.get("/about").json["bundles"]
    report = about["index_report"]
    assert (report["n_items"], report["k"], report["target_recall"]) == (shop.ITEMS, 5, 0.5)
    assert [line["settings"]["kind"] for line in report["lines"]] == ["Exact", "IVFSQ8", "IVFPQ", "HNSW", "LSH"]
    exact = report["lines"][0]
    assert (exact["met"], exact["recall"], exact["low"]) == (True, 1.0, 1.0)
    script = (PAGE / "bundle.js").read_text(encoding="utf-8")
    for read in re.findall(r"\bline\.([a-z_0-9.]+[a-z_0-9])", script):
        found = exact
        for name in read.split("."):
            found = found[name]
    assert set(re.findall(r"\bfound\.([a-z_]+)", script)) <= set(report)
    assert done.report.render() in done.render()
    with served_by(folder) as client:
        assert client.get("/about").json["bundles"][0]["index_report"] is None


def test_colours_can_be_told_apart() -> None:
    """WCAG 2.1, 1.4.3 and 1.4.11: 4.5 for text, 3 for the edges of fields."""
    css = (PAGE / "page.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    )
    assert light.keys() == dark.keys()
    grounds = ("ground", "card", "soft")
    pairs = [*product(("text", "quiet", "accent"), grounds), *product(("up", "down", "only"), ("card", "soft"))]
    pairs += [("on-accent", "accent"), ("bad", "bad-soft")]
    for colours in (light, dark):
        low = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in pairs}
        assert not {pair: ratio for pair, ratio in low.items() if ratio < 4.5}
        assert contrast(colours["edge"], colours["card"]) >= 3


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        s_3 = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
        linear_3 = np.where(s_3 <= 0.04045, s_3 / 12.92, ((s_3 + 0.055) / 1.055) ** 2.4)
        return float(linear_3 @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# ------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def asking_running(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One bundle, whose items can be changed."""
    place = tmp_path_factory.mktemp("one")
    running = Running([str(folder), "--state", str(place / "state")], place / "log")
    yield running
    running.kill()


@pytest.fixture(scope="module")
def arms_running(folder: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = tmp_path_factory.mktemp("arms")
    arms = ["--arm", f"old={folder}:0.5", "--arm", f"new={other}:0.5", "--exposures", str(place / "exposures")]
    running = Running(arms, place / "log")
    yield running
    running.kill()


class Browser:
    """Chromium, and what a person does with it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def size(self, width: int, height: int) -> None:
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)

    def go(self, running: Running, path: str = "/", wait: str = "#keys input") -> None:
        self.driver.get(running.url + path)
        self.wait(lambda: self.all(wait))

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        text: str = self.one(selector).text
        return text

    def names(self, list_: str = "#lists .items") -> list[str]:
        """Ids of a list's items, read at once: it may be replaced at any moment."""
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.dataset.item)"
        found: list[str] = self.driver.execute_script(script, f"{list_} .item")
        return found

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def run(self, script: str, *arguments: object) -> Any:
        called = f"(async () => {{ {script} }})().then(done, (error) => done(String(error)));"
        return self.driver.execute_async_script(
            f"const given = [...arguments], done = given.pop(); {called}", *arguments
        )

    def focused(self) -> str:
        found: str = self.driver.execute_script(
            "return document.activeElement.dataset.item ?? document.activeElement.id"
        )
        return found

    def wait(self, until: Callable[[], object]) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 20, poll_frequency=0.05).until(lambda _: until())

    def check(self) -> None:
        """No error was logged, and nothing is wider than the screen."""
        severe = [line["message"] for line in self.driver.get_log("browser") if line["level"] == "SEVERE"]
        assert not [line for line in severe if "status of 4" not in line]
        wide, screen = self.driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide <= screen


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # it refuses to start as root with one
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driven = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    driven.set_script_timeout(20)
    yield Browser(driven)
    driven.quit()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_query_is_typed_answered_and_walked_through_by_keys(
    chromium: Browser, asking_running: Running, width: int, height: int
) -> None:
    from selenium.webdriver.common.keys import Keys

    chromium.size(width, height)
    chromium.go(asking_running)
    assert chromium.focused() == "column-user"
    chromium.press("u1")
    chromium.wait(lambda: len(chromium.all("[role=option]")) == 11)
    chromium.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ENTER)
    chromium.wait(chromium.names)
    want = asking_running.post("/recommend", {"query": {"user": "u10"}}).json()["items"]
    assert chromium.one("#column-user").get_attribute("value") == "u10"
    assert chromium.names() == [one["item"] for one in want]
    assert [one.text for one in chromium.all("#lists .score")] == [f"{one['score']:.4f}" for one in want]
    chromium.driver.execute_script("document.querySelector('#lists .item').focus()")
    chromium.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert chromium.focused() == want[2]["item"]
    chromium.press(Keys.ENTER)
    near = asking_running.post("/similar", {"item": want[2]["item"]}).json()["items"]
    chromium.wait(lambda: chromium.names("#neighbour-lists .items"))
    assert chromium.names("#neighbour-lists .items") == [one["item"] for one in near]
    chromium.check()
    chromium.press(Keys.ESCAPE)
    assert not chromium.one("#neighbours").is_displayed()
    assert chromium.focused() == want[2]["item"]
    chromium.driver.refresh()
    chromium.wait(chromium.names)
    assert chromium.names() == [one["item"] for one in want]
    chromium.check()


def test_columns_and_conditions_are_sent_as_what_they_are(chromium: Browser, asking_running: Running) -> None:
    chromium.size(1280, 800)
    lists = {"likes": ["k1", "k2"], "how_much": [1, 2], "history": ["i1", "i2"], "photo": [1, 0, 0]}
    asked = {
        "query": {"country": "c1", "age": 31, "joined": "2020-01-02T03:00:00", **lists},
        "k": 5,
        "filter_seen": False,
        "where": {"kind": ["k1", "k2"], "year": {"from": 2003, "to": 2012}},
    }
    chromium.go(asking_running, f"/?ask={quote(json.dumps(asked))}", wait="#lists .item")
    want = asking_running.post("/recommend", asked).json()["items"]
    assert chromium.names() == [one["item"] for one in want]
    chromium.go(asking_running, "/")
    script = "const form = await import('./query_form.js'); form.fill(given[0]); return form.asked(given[1]);"
    columns = asking_running.client.get("/openapi.json").json()["components"]["schemas"]["Query"]["properties"]
    assert chromium.run(script, asked, columns) == asked


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_two_arms_are_shown_with_how_ranks_differ(
    chromium: Browser, arms_running: Running, width: int, height: int
) -> None:
    chromium.size(width, height)
    asked = {"query": {"user": "u3"}, "k": 40}
    chromium.go(arms_running, f"/?ask={quote(json.dumps(asked))}", wait="#lists .item")
    old, new = ([one["item"] for one in a["items"]] for a in arms_running.post("/compare", asked).json()["answers"])
    assert chromium.names() == [*old, *new]
    told = [one.get_attribute("title") for one in chromium.all("#lists .moved")]
    assert told == [*(words(one, old, new, "new") for one in old), *(words(one, new, old, "old") for one in new)]
    assert {re.sub(r"\d+ ", "", one) for one in told} >= {"higher than in new", "lower than in new", "not in new"}
    assert chromium.text("#told").startswith(f"{len({*old} & {*new})} of 40 items in both")
    chromium.check()
    chromium.one("#arm option[value=new]").click()
    chromium.wait(lambda: chromium.names() == new)
    assert not chromium.all("#lists .moved")
    told = arms_running.client.get("/metrics").text
    assert (
        'twotower_requests_total{route="recommend",status="2xx"} 0' in told
    )  # its answers are logged as shown to users


def words(item: str, own: list[str], other: list[str], name: str) -> str:
    if item not in other:
        return f"not in {name}"
    by = other.index(item) - own.index(item)
    return f"same rank in {name}" if by == 0 else f"{abs(by)} {'higher' if by > 0 else 'lower'} than in {name}"


def test_values_are_text_whatever_they_hold(chromium: Browser, asking_running: Running) -> None:
    chromium.size(390, 844)
    columns = {"title": NASTY, "kind": "<b>k1</b>", "price": 3.0}
    assert asking_running.post("/items", {"items": [{"item": "<i>id</i>", "columns": columns}]}).status_code == 200
    asked = {"query": {"user": "u1"}, "where": {"title": [NASTY]}}
    chromium.go(asking_running, f"/?ask={quote(json.dumps(asked))}", wait="#lists .item")
    chromium.one("#lists .item").click()
    chromium.wait(lambda: chromium.names("#neighbour-lists .items"))
    assert chromium.text("#lists .name") == NASTY
    assert chromium.text("#neighbours-title") == f"Near {NASTY}"
    assert "<i>id</i>" in chromium.text("#facts")
    assert not chromium.all("main img, main script, main b, main i:not(.short i)")
    assert chromium.driver.title == "twotower"
    chromium.check()
    asking_running.post("/items/delete", {"items": ["<i>id</i>"]})


def test_refusals_are_told_as_they_are(chromium: Browser, asking_running: Running) -> None:
    from selenium.webdriver.common.keys import Keys

    chromium.size(1280, 800)
    chromium.go(asking_running)
    chromium.press(Keys.ENTER)
    chromium.wait(lambda: chromium.one("#ask-error").is_displayed())
    refused = asking_running.post("/recommend", {"query": {}})
    assert chromium.text("#ask-error") == f"{refused.status_code}: {refused.json()['error']}"
    chromium.press("u1", Keys.ENTER)
    chromium.wait(chromium.names)
    assert not chromium.one("#ask-error").is_displayed()
    asked = {"query": {"user": "u1"}, "where": {"kind": ["none"]}}
    chromium.go(asking_running, f"/?ask={quote(json.dumps(asked))}", wait="#lists .empty")
    assert chromium.text("#lists .empty") == "No item is what items must be. Ask with fewer conditions."
    chromium.check()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_live_numbers_are_those_of_the_service(
    chromium: Browser, asking_running: Running, width: int, height: int
) -> None:
    chromium.size(width, height)
    asking_running.post("/recommend", {"query": {"user": "u1"}})
    chromium.go(asking_running, "/?view=live", wait="#live-numbers table")
    text = asking_running.client.get("/metrics").text
    ok, moved, refused, failed = map(int, re.findall(r'requests_total\{route="recommend",status="..."} (\d+)', text))
    cells = "return [...document.querySelectorAll('#live-numbers tr')].map((r) => [...r.cells].map((c) => c.innerText))"
    rows = {name: others for name, *others in chromium.driver.execute_script(cells)}
    recommend = dict(zip(rows["route"], rows["recommend"], strict=True))
    assert [recommend[name] for name in ("all", "4xx", "5xx")] == [str(ok + moved + refused), str(refused), str(failed)]
    assert {"encode", "tower", "search", "json"} <= rows.keys()
    chromium.check()
    chromium.go(asking_running, "/?view=bundle", wait="#bundle-facts table")
    assert asking_running.client.get("/about").json()["bundles"][0]["bundle"] in chromium.text("#bundle-facts")
    chromium.check()


def test_quantiles_are_linear_within_a_bucket(chromium: Browser, asking_running: Running) -> None:
    """4 of 10 up to 1 s, 4 more up to 3 s, 2 beyond: the median is a quarter of the way from 1 to 3."""
    chromium.go(asking_running)
    text = "".join(f'x_bucket{{of="a \\"b\\"",le="{le}"}} {n}\n' for le, n in (("1.0", 4), ("3.0", 8), ("+Inf", 10)))
    script = """
        const live = await import('./live.js'), samples = live.parsed(given[0]);
        const found = live.buckets(samples, 'x', {of: 'a "b"'});
        return [.2, .5, .8, .99].map((q) => live.quantile(q, found)).concat([Number.isNaN(live.quantile(.5, []))]);
    """
    assert chromium.run(script, "# TYPE x histogram\n" + text) == [0.5, 1.5, 3, 3, True]


def test_an_index_report_is_shown(chromium: Browser, asking_running: Running) -> None:
    latency = Latency(p50_ms=0.25, p99_ms=1.5)
    line = Line(
        settings=HNSW(), met=False, recall=0.9375, low=0.921, recall_by_decile=(1.0, None), latency=latency,
        filtered={"random": Filtered(recall=0.875, latency=latency)}, build_s=12.5, memory_bytes=3 << 20, curve=(),
    )  # fmt: skip
    report = IndexReport(
        n_items=12345, width=8, k=100, target_recall=0.95, n_queries=500, filter_share=0.1, lines=(line,)
    )
    about = asking_running.client.get("/about").json()
    about["bundles"][0] |= {"index_report": json.loads(report.to_json()), "metrics": {"recall@10": 0.125}}
    chromium.go(asking_running, "/?view=bundle", wait="#bundle-facts table")
    script = "(await import('./bundle.js')).show(given[0]); return document.getElementById('bundle-facts').innerText"
    text = " ".join(chromium.run(script, about).split())
    assert "12,345 items, 500 queries" in text
    assert "random filter p50 ms" in text
    assert "HNSW missed 0.938 0.921 0.875 0.250 1.50 12.5 3" in text
    assert "recall@10 0.125" in text


def test_a_token_is_asked_for(chromium: Browser, folder: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    (tmp_path / "tokens").write_text("read a-token-for-the-page\n")
    running = Running([str(folder), "--token-file", str(tmp_path / "tokens")], tmp_path / "log")
    try:
        assert httpx.get(f"{running.url}/queries/search?text=u").status_code == 401
        chromium.go(running, wait="#token-text")
        chromium.wait(lambda: chromium.focused() == "token-text")
        chromium.press("wrong", Keys.ENTER)
        chromium.wait(lambda: chromium.one("#token-refused").is_displayed())
        chromium.press("a-token-for-the-page", Keys.ENTER)
        chromium.wait(lambda: chromium.all("#keys input"))
        chromium.press("u1", Keys.ENTER)
        chromium.wait(chromium.names)
        assert not chromium.one("#token").is_displayed()
    finally:
        running.kill()
