"""HTTP with a short way for what is asked most: whole requests to /recommend are answered without ASGI, those of one
turn of the event loop together.

uvicorn makes a task, an event and a cycle of messages of each request, which takes as long as a search of a million
items. Here everything else still goes that way: other routes, other versions of HTTP, callers that read slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

QUICK = b"/recommend"
MOST = 16
"""Requests that are answered together at most: others wait for them."""
Asked = tuple[Sequence[tuple[bytes, bytes]], bytes]
"""Headers and body of a request."""
Answers = Callable[[Sequence[Asked]], Iterator[Sequence[tuple[int, bytes]]]]
"""Status and body of each of some requests, all at once, and then what is left to do when they are on their way."""

_STATUS = {status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus}


class Turn:
    """Requests that came in this turn of the event loop, of all connections."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._waiting: list[tuple[QuickProtocol, bool, Asked]] = []

    def put(self, protocol: QuickProtocol, stays: bool, asked: Asked) -> None:
        """One more. ``stays`` says that its connection does, once it is answered."""
        if not self._waiting:
            protocol.loop.call_soon(self.end)
        self._waiting.append((protocol, stays, asked))
        if len(self._waiting) == MOST:
            self.end()

    def end(self) -> None:
        """Answer them, in order."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        answering = self._answers([asked for _, _, asked in waiting])
        for (protocol, stays, _), (status, body) in zip(waiting, next(answering), strict=True):
            protocol.write(stays, status, body)
        protocols = dict.fromkeys(protocol for protocol, _, _ in waiting)
        waiting[0][0].loop.call_soon(_afterwards, protocols, answering)  # the loop sends before what was written


def _afterwards(protocols: Iterable[QuickProtocol], answering: Iterator[object]) -> None:
    """What need not keep callers waiting."""
    try:
        for _ in answering:
            pass
    finally:
        for protocol in protocols:
            protocol.rest()


class QuickProtocol(HttpToolsProtocol):
    """uvicorn's protocol, but for whole requests to POST /recommend; ``quick_protocol`` says what answers them."""

    turn: Turn
    body_bytes: int
    _waits = 0
    """Requests that are read, and not answered yet."""
    _body: bytes | None = None
    """Of a request that is answered here, as far as it came; None of one that is not."""
    _ends = False

    def on_message_begin(self) -> None:
        """httptools has come upon a request."""
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_headers_complete(self) -> None:
        """httptools has read the headers."""
        if self._is_quick():
            self._body = b""
            return
        if self._waits:  # answers leave in the order of their requests
            self.turn.end()
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # only now: the scope that it makes is not needed above
        self.headers += headers
        self.url, self.expect_100_continue = url, expects
        super().on_headers_complete()

    def _is_quick(self) -> bool:
        return (
            self.url == QUICK
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
            and not self.expect_100_continue
            and not self.parser.should_upgrade()
            and not self.flow.write_paused
            and not self._is_running()
        )

    def _is_running(self) -> bool:
        """Whether a request is on the long way."""
        running = cast("RequestResponseCycle | None", self.cycle)
        return running is not None and not running.response_complete

    def on_body(self, body: bytes) -> None:
        """httptools has read a part of the body."""
        if self._body is None:
            super().on_body(body)
        elif len(self._body) <= self.body_bytes:  # of what is too long no more is kept: its length tells
            self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        """httptools has read the whole request."""
        body, self._body = self._body, None
        if body is None:
            super().on_message_complete()
        elif not self.transport.is_closing():
            self._waits += 1
            self.turn.put(self, self.parser.should_keep_alive(), (self.headers, body))

    def write(self, stays: bool, status: int, body: bytes) -> None:
        """An answer to the first request that waits."""
        self._waits -= 1
        if self.transport.is_closing():
            return
        stays &= not self._ends or self._waits > 0 or self._body is not None
        head = [_STATUS[status], b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)]
        head += [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        self.transport.write(b"".join((*head, b"\r\n" if stays else b"connection: close\r\n\r\n", body)))
        self.server_state.total_requests += 1
        if not stays:
            self.transport.close()

    def rest(self) -> None:
        """Wait for the next request, unless it is here, but not for ever."""
        if self._waits or self._body is not None or self._is_running() or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP; what came before is answered first."""
        if self._waits:
            self.turn.end()
        super().send_400_response(msg)

    def shutdown(self) -> None:
        """The server ends."""
        if self._body is None and not self._waits:
            super().shutdown()
        else:  # a request is here, or half of one: it is answered, and then the connection ends
            self._ends = True


def quick_protocol(answers: Answers, body_bytes: int) -> type[QuickProtocol]:
    """A protocol for uvicorn that has POST /recommend answered by ``answers``, for bodies up to so many bytes."""
    return type("BoundProtocol", (QuickProtocol,), {"turn": Turn(answers), "body_bytes": body_bytes})
