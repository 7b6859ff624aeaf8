"""Who may call, and what nobody can break."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import pytest

from tests.service.running import JSON, Client, served_by
from twotower.errors import ConfigError
from twotower.service import Limits, Settings, Tokens
from twotower.service.running import Arm

ALL, READ = "a" * 20, "r" * 20


@pytest.fixture(scope="module")
def guarded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(f"# who may call\n\n{ALL}\nread {READ}\n")
    with served_by(folder, state=path.parent / "state", tokens=Tokens.read(path, "0.0.0.0")) as client:
        yield client


def bearing(token: str) -> dict[str, str]:
    return JSON | {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("token", "statuses"),
    [
        (ALL, (200, 200, 200, 200)),
        (READ, (200, 200, 403, 403)),
        ("x" * 20, (401, 401, 401, 401)),
        ("", (401, 401, 401, 401)),
    ],
)
def test_tokens(guarded: Client, token: str, statuses: tuple[int, ...], folder: Path) -> None:
    headers = bearing(token) if token else JSON
    found = (
        guarded.post("/recommend", {"query": {"user": "u1"}}, headers).status,
        guarded.get("/metrics", headers).status,
        guarded.post("/items/delete", {"items": ["nothing"]}, headers).status,
        guarded.post("/reload", {"path": str(folder)}, headers).status,
    )
    assert found == statuses
    assert guarded.get("/health").status == 200


@pytest.mark.parametrize(
    ("host", "headers", "status"),
    [
        ("127.0.0.1", JSON, 200),
        ("::1", JSON | {"host": "[::1]:8000"}, 200),
        ("0.0.0.0", JSON, 403),
        ("127.0.0.1", JSON | {"host": "evil.example"}, 403),
        ("127.0.0.1", {"host": "localhost", "content-type": "text/plain"}, 403),
    ],
)
def test_without_tokens_only_this_machine_changes_things(
    folder: Path, tmp_path: Path, host: str, headers: dict[str, str], status: int
) -> None:
    with served_by(folder, state=tmp_path, tokens=Tokens.read(None, host)) as client:
        assert client.post("/items/delete", {"items": ["nothing"]}, headers).status == status
        assert client.post("/recommend", {"query": {"user": "u1"}}, headers).status == 200


@pytest.mark.parametrize("text", ["", "# none\n", "short\n", f"write {ALL}\n", f"{ALL} {ALL} {ALL}\n"])
def test_token_files_with_mistakes(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokens").write_text(text)
    with pytest.raises(ConfigError, match="--token-file"):
        Tokens.read(tmp_path / "tokens", "127.0.0.1")


def test_limits(folder: Path) -> None:
    with served_by(folder, limits=Limits(k=5, batch=2, body_bytes=200)) as client:
        assert client.post("/recommend", {"query": {"user": "u1"}, "k": 5}).status == 200
        assert client.post("/recommend", {"query": {"user": "u1"}, "k": 6}).status == 413
        assert client.post("/recommend/batch", {"queries": [{"user": "u1"}] * 3}).status == 413
        assert client.post("/recommend", {"query": {"user": "u" * 200}}).status == 413


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "either a bundle, or arms"),
        ({"bundle": Path("b"), "workers": 0}, "--workers 0"),
        ({"bundle": Path("b"), "port": 70_000}, "--port 70000"),
        ({"arms": [Arm(name="a", bundle=Path("b"), share=1.0)]}, "--exposures"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Settings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["a", "a=b", "=b:1", "a=b:much"])
def test_arms_with_mistakes(text: str) -> None:
    with pytest.raises(ConfigError, match="NAME=BUNDLE:SHARE"):
        Arm.parse(text)
    assert Arm.parse("a=b:c:0.5") == Arm(name="a", bundle=Path("b:c"), share=0.5)


# ---------------------------------------------------------------- anything at all

WISH = ["k", "where", "at_most", "exclude", "show"]
KEYS = {
    "/recommend": ["query", *WISH],
    "/recommend/batch": ["queries", *WISH],
    "/similar": ["item", *WISH],
    "/embed": ["query"],
    "/items": ["items"],
    "/items/delete": ["items"],
    "/reload": ["path", "arm"],
}
PATHS = list(KEYS)
FINE = {
    "query": {"user": "u1", "age": 3, "country": "c1", "history": ["i1"]},
    "queries": [{"user": "u1"}],
    "item": "i1",
    "items": [{"item": "x", "columns": {"kind": "k1", "price": 1.5, "year": 2001}}],
    "k": 3,
    "where": {"kind": "k1", "year": {"from": 2000}},
    "at_most": {"attribute": "kind", "n": 1},
    "exclude": ["i1"],
    "show": ["title"],
    "path": "nowhere",
    "arm": "",
}  # fmt: skip


def mangled(generator: np.random.Generator, tree: object) -> object:
    """The tree with one place of it replaced by something else."""
    odd = [None, True, -1, 0, 2**63, 1e308, "", "\x00", "ü" * 50, [], {}, [[]], {"": None}, ["a", 1, None], {"from": 1}]
    if generator.random() < 0.25 or not isinstance(tree, dict | list) or not tree:
        return odd[generator.integers(len(odd))]
    if isinstance(tree, list):
        at = int(generator.integers(len(tree)))
        return [mangled(generator, one) if place == at else one for place, one in enumerate(tree)]
    name = list(tree)[generator.integers(len(tree))]
    return {key: mangled(generator, one) if key == name else one for key, one in tree.items()}


def some_bytes(generator: np.random.Generator, path: str) -> bytes:
    """A body that means nothing, or nearly something."""
    names = [name for at, name in enumerate(KEYS[path]) if at == 0 or generator.random() < 0.5]
    tree = {name: FINE[name] for name in names}
    body = json.dumps(mangled(generator, tree) if generator.random() < 0.9 else tree).encode()
    kind = generator.random()
    if kind < 0.6:
        return body
    if kind < 0.8:
        return body[: generator.integers(len(body) + 1)]
    if kind < 0.9:
        return bytes(generator.integers(0, 256, generator.integers(200), dtype=np.uint8))
    return b"[" * 5_000


@pytest.mark.parametrize("n", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_malformed_bodies_crash_nothing_and_leave_nothing(client: Client, n: int) -> None:
    generator = np.random.default_rng(n)
    reached: set[int] = set()
    for at in range(n):
        path = PATHS[at % len(PATHS)]
        body = some_bytes(generator, path)
        found = client.post(path, body)
        assert found.status < 500, (path, body, found.body)
        reached.add(found.status)
        if at == n // 5:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert {200, 400, 422} <= reached
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    assert client.post("/recommend", {"query": {"user": "u1"}, "k": 3}).status == 200
