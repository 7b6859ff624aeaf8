"""The short way of HTTP is the long way of HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from tests.service.running import Running, served_by
from twotower.service.protocol import MOST, Asked, quick_protocol

BODY = b'{"query":{"user":"u1"},"k":3}'


def request(body: bytes, *headers: str, path: str = "/recommend", version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "host: localhost", "content-type: application/json", *headers]
    return "\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body


class Connection:
    """One connection, of which answers are read one after the other."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.file = self.socket.makefile("rb")

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        status = int(self.file.readline().split()[1])
        headers = {}
        while line := self.file.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers, self.file.read(int(headers["content-length"]))

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture(scope="module")
def service(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running([str(folder), "--max-body", "300"], tmp_path_factory.mktemp("log") / "log")
    yield running
    running.kill()


@pytest.fixture
def connect(service: Running) -> Iterator[Callable[[], Connection]]:
    made: list[Connection] = []

    def begin() -> Connection:
        made.append(Connection(service.url))
        return made[-1]

    yield begin
    for one in made:
        one.close()


def test_in_one_piece_in_many_and_several_at_once(connect: Callable[[], Connection]) -> None:
    one = connect()
    one.socket.sendall(request(BODY))
    status, headers, want = one.answer()
    assert (status, headers["content-type"]) == (200, "application/json")
    assert len(json.loads(want)["items"]) == 3
    for byte in request(BODY):  # the same connection goes on
        one.socket.sendall(bytes([byte]))
    assert one.answer()[2] == want
    similar = request(b'{"item":"i1"}', path="/similar")
    one.socket.sendall(similar + request(BODY) * 2 + similar + request(BODY))
    bodies = [one.answer()[2] for _ in range(5)]
    assert bodies[1] == bodies[2] == bodies[4] == want
    assert bodies[0] == bodies[3] != want


def test_answers_leave_in_the_order_of_their_requests(connect: Callable[[], Connection]) -> None:
    """More than are answered together, right ones and wrong ones, and others between that take the long way."""
    one = connect()
    asked = [(200, n) for n in range(1, 3 * MOST)]
    asked[5], asked[MOST + 2], asked[2 * MOST] = (422, 0), (404, -1), (422, 0)
    pieces = [
        request(b'{"item":"nothing"}', path="/similar")
        if status == 404
        else request(b'{"query":{"user":"u1"},"k":%d}' % k)
        for status, k in asked
    ]
    one.socket.sendall(b"".join(pieces))
    for want, k in asked:
        status, _, body = one.answer()
        assert status == want
        assert status != 200 or len(json.loads(body)["items"]) == k


def test_callers_that_go_away_keep_nobody_from_an_answer(connect: Callable[[], Connection]) -> None:
    many = [connect() for _ in range(2 * MOST)]
    for one in many:
        one.socket.sendall(request(BODY))
    for one in many[::2]:
        one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # at once, with a reset
        one.close()
    assert {one.answer()[0] for one in many[1::2]} == {200}


@dataclass
class Counting:
    """A server whose connections may rest for .5 s, and which counts its answers when it may."""

    port: int = 0
    may: threading.Event = field(default_factory=threading.Event)
    answered: int = 0

    def answers(self, requests: Sequence[Asked]) -> Iterator[list[tuple[int, bytes]]]:
        yield [(200, body) for _, body in requests]
        self.may.wait(5)
        self.answered += len(requests)


@pytest.fixture
def counting() -> Iterator[Counting]:
    async def long_way(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(1.0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    counting, listening = Counting(), socket.create_server(("127.0.0.1", 0))
    counting.port = listening.getsockname()[1]
    config = uvicorn.Config(
        long_way, http=quick_protocol(counting.answers, 1_000), loop="uvloop", lifespan="off", log_config=None
    )
    config.timeout_keep_alive = 0.5  # type: ignore[assignment] # any time that a loop can wait
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield counting
    counting.may.set()
    server.should_exit = True
    thread.join()
    listening.close()


def test_callers_wait_for_nothing_but_their_answer(counting: Counting) -> None:
    one = Connection(f"http://127.0.0.1:{counting.port}")
    one.socket.sendall(request(BODY))
    assert one.answer()[2] == BODY
    assert counting.answered == 0  # the server waits
    counting.may.set()
    one.socket.sendall(request(BODY) * 3)
    assert [one.answer()[2] for _ in range(3)] == [BODY] * 3
    one.close()
    deadline = time.monotonic() + 5
    while counting.answered < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert counting.answered == 4


def test_a_connection_may_rest_for_so_long_and_is_not_cut_off_while_it_is_answered(
    counting: Counting,
) -> None:
    counting.may.set()
    one = Connection(f"http://127.0.0.1:{counting.port}")
    one.socket.sendall(request(BODY) + request(b"", path="/other"))  # the second takes longer than a connection rests
    assert one.answer()[2] == BODY
    assert one.answer()[0] == 200
    one.socket.sendall(request(BODY))
    assert one.answer()[2] == BODY
    answered = time.monotonic()
    assert one.file.read() == b""  # the other side ends it
    assert 0.5 < time.monotonic() - answered < 3
    one.close()


def test_together_is_one_by_one(folder: Path) -> None:
    """Bit by bit, whoever else asks in the same turn."""
    with served_by(folder) as client:
        bodies = [b'{"query":{"user":"u%d"},"k":%d}' % (n % 7, n) for n in range(12)]
        bodies += [b"{", b'{"query":{"nothing":1}}', b'{"query":{"user":"u2"},"k":5,"exclude":["i1"]}']
        alone = [next(client.service.quickly([([], body)]))[0] for body in bodies]
        assert next(client.service.quickly([([], body) for body in bodies])) == alone
        assert [status for status, _ in alone] == [422, *[200] * 11, 400, 422, 200]
        assert [client.post("/recommend", body).body for body in bodies] == [body for _, body in alone]


def test_chunks_old_http_and_the_end_of_a_connection(connect: Callable[[], Connection]) -> None:
    one = connect()
    one.socket.sendall(request(BODY))
    want = one.answer()[2]
    head = b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    one.socket.sendall(head + b"5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:]))
    assert one.answer()[2] == want
    one.socket.sendall(request(BODY, "connection: close"))
    status, headers, body = one.answer()
    assert (status, headers["connection"], body) == (200, "close", want)
    assert one.file.read() == b""
    old = connect()
    old.socket.sendall(request(BODY, version="1.0"))
    assert old.answer()[2] == want
    assert old.file.read() == b""


def test_what_is_wrong_is_told(connect: Callable[[], Connection]) -> None:
    one = connect()
    for body, want in ((b"{", 400), (b"{}", 422), (b" " * 10_000 + BODY, 413), (BODY, 200)):
        one.socket.sendall(request(body))
        assert one.answer()[0] == want
    one.socket.sendall(request(BODY) + b"nonsense\r\n\r\n")
    assert one.answer()[0] == 200
    assert one.file.readline().split()[1] == b"400"


def test_half_a_request_is_answered_at_the_end(folder: Path, start: Callable[..., Running]) -> None:
    service = start(str(folder))
    one = Connection(service.url)
    whole = request(BODY)
    one.socket.sendall(whole[:-5])
    time.sleep(0.2)
    service.process.terminate()
    time.sleep(0.5)
    one.socket.sendall(whole[-5:])
    status, headers, _ = one.answer()
    assert (status, headers["connection"]) == (200, "close")
    one.close()
    assert service.process.wait(20) == 0
