"""Services to ask: in this process, without a socket, and as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from twotower.bundle import Bundle
from twotower.service import Limits, Served, Service, Serving, Tokens
from twotower.service.engine import Engine
from twotower.service.metrics import Metrics

JSON = {"content-type": "application/json", "host": "localhost"}


@dataclass
class Answered:
    """A status, and what came with it."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def items(self) -> list[str]:
        assert self.status == 200, self.body
        return [one["item"] for one in self.json["items"]]


class Client:
    """Asks an application in this process, as a server would."""

    def __init__(self, service: Service) -> None:
        self.service, self.served = service, service.served
        self.log: list[dict[str, object]] = []

    def post(self, path: str, asked: object, headers: Mapping[str, str] = JSON) -> Answered:
        body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
        return self.request("POST", path, body, headers)

    def get(self, path: str, headers: Mapping[str, str] = JSON) -> Answered:
        return self.request("GET", path, b"", headers)

    def request(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str] = JSON, pieces: int = 1
    ) -> Answered:
        return asyncio.run(self._request(method, path, body, headers, pieces))

    async def _request(self, method: str, path: str, body: bytes, headers: Mapping[str, str], pieces: int) -> Answered:
        size = max(1, -(-len(body) // pieces))
        parts = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
        messages = [
            {"type": "http.request", "body": part, "more_body": at < len(parts) - 1} for at, part in enumerate(parts)
        ]
        status, found = 0, b""

        async def receive() -> Any:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal status, found
            status = message.get("status", status)
            found += message.get("body", b"")

        path, _, query = path.partition("?")
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        await self.service(scope, receive, send)
        return Answered(status, found)


@contextmanager
def served_by(
    folder: Path,
    *,
    orders: Path | None = None,
    state: Path | None = None,
    watch: Path | None = None,
    limits: Limits | None = None,
    tokens: Tokens | None = None,
    follow: bool = False,
) -> Iterator[Client]:
    """A service in this process."""
    log: list[dict[str, object]] = []
    served = Served(
        Serving(engines={"": Engine(Bundle.open(folder))}),
        metrics=Metrics(),
        orders=orders,
        state=state,
        watch=watch,
        log=lambda event, **facts: log.append({"event": event, **facts}),
    )
    if follow:
        served.start()
    client = Client(Service(served, limits=limits, tokens=tokens))
    client.log = log
    try:
        yield client
    finally:
        served.close()


class Running:
    """``twotower serve`` as a process, listening at a free port."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "twotower", "serve", *arguments, "--port", "0"],
                stderr=file,
                stdout=file,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self.url = ""
        deadline = time.monotonic() + 60
        while not self.is_ready():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def is_ready(self) -> bool:
        found = re.search(r'"url": "([^"]+)"', self.log.read_text())
        self.url = found[1] if found else ""
        try:
            return bool(self.url) and httpx.get(f"{self.url}/ready").status_code == 200
        except httpx.TransportError:
            return False

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def workers(self) -> list[int]:
        """Processes that answer."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(one) for one in path.read_text().split()]

    def post(self, path: str, asked: object) -> httpx.Response:
        return self.client.post(path, json=asked)

    def end(self) -> int:
        """Ask it to end; its status."""
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """End it and all of its workers at once."""
        if self.process.poll() is None:
            workers = self.workers()
            self.process.kill()
            self.process.wait()
            for worker in workers:
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
        self.client.close()
