"""A small shop's bundle, and services over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bundle import shop

pytest.importorskip("onnxruntime")
pytest.importorskip("fastapi")

from tests.service.running import Client, Running, served_by
from twotower.bundle import Bundle
from twotower.training import export, train


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle."""
    model = shop.trained(tmp_path_factory.mktemp("shop"))
    return export(model, model.parent / "bundle").folder


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the same shop with other vectors: another name and fingerprint."""
    folder = tmp_path_factory.mktemp("other")
    train(shop.run_of(shop.write_files(folder, seed=1)), folder / "model", quiet=True)
    return export(folder / "model", folder / "bundle").folder


@pytest.fixture(scope="session")
def bundle(folder: Path) -> Bundle:
    """The first, opened."""
    return Bundle.open(folder)


@pytest.fixture
def client(folder: Path, tmp_path: Path) -> Iterator[Client]:
    """A service in this process, with a state folder."""
    with served_by(folder, state=tmp_path / "state") as client:
        yield client


@pytest.fixture(scope="module")
def asking(folder: Path) -> Iterator[Client]:
    """A service in this process that nothing is changed in."""
    with served_by(folder) as client:
        yield client


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts services as processes, and ends those that still run."""
    started: list[Running] = []

    def begin(*arguments: str) -> Running:
        started.append(Running(arguments, tmp_path / f"log-{len(started)}"))
        return started[-1]

    yield begin
    for one in started:
        one.kill()
