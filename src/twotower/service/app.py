"""The service as an ASGI application.

What is asked for often, and what has a body, is answered by plain functions from bytes to bytes; FastAPI has the rest,
and the documentation of all of it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import orjson

from ..errors import ArtifactError, ConfigError, DataError, TwoTowerError
from ..experiment import Exposure, ExposureLog
from .access_log import AccessLog
from .asking import Limits, TooMuch, Wish, columns_of, many_of, wish_of
from .catalogue import NotKnown, text_of
from .engine import Answer, Engine
from .pages import pages
from .serving import Served, log_line
from .tokens import Headers, Tokens

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
T = TypeVar("T")
Stages = Generator[T | None, None, None]
"""A request on its way, which stops between the stages of its answer, when this is made, and ends when it is
counted."""

_JSON = (b"content-type", b"application/json")
_GUARDED = ("/metrics", "/about", "/items/search", "/queries/search")
"""What is told to those who may ask; the rest of what FastAPI has says nothing about the data."""


class _Gone(Exception):
    """The caller went away before the end of the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Route:
    name: str
    answer: Callable[[Mapping[str, Any]], bytes]
    changes: bool = False
    in_thread: bool = False
    """It takes long enough to keep others waiting."""


class Service:
    """Answers requests with what ``served`` holds at the time."""

    def __init__(
        self,
        served: Served,
        *,
        limits: Limits | None = None,
        tokens: Tokens | None = None,
        exposures: ExposureLog | None = None,
        access_log: AccessLog | None = None,
    ) -> None:
        self.served, self.metrics = served, served.metrics
        self.limits, self.tokens = limits or Limits(), tokens or Tokens()
        self._exposures, self._access_log = exposures, access_log
        self._dropped = 0
        self._pages = pages(served, self.limits)
        self._routes = {
            "/recommend": _Route(name="recommend", answer=self._recommend),
            "/recommend/batch": _Route(name="recommend_batch", answer=self._recommend_batch, in_thread=True),
            "/similar": _Route(name="similar", answer=self._similar),
            "/compare": _Route(name="compare", answer=self._compare, in_thread=True),
            "/embed": _Route(name="embed", answer=self._embed, in_thread=True),
            "/items": _Route(name="items", answer=self._upsert, changes=True, in_thread=True),
            "/items/delete": _Route(name="items_delete", answer=self._delete, changes=True, in_thread=True),
            "/reload": _Route(name="reload", answer=self._reload, changes=True, in_thread=True),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3."""
        if scope["type"] == "http":
            route = self._routes.get(scope["path"])
            await (self._page(scope, receive, send) if route is None else self._post(route, scope, receive, send))
        elif scope["type"] == "lifespan":
            await self._live(receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.served.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await asyncio.to_thread(self._end)
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _end(self) -> None:
        self.served.close()
        for log in (self._exposures, self._access_log):
            if log is not None:
                log.close()

    # ------------------------------------------------------------ HTTP

    def quickly(self, requests: Sequence[tuple[Headers, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
        """Statuses and bodies of whole requests to /recommend: what the protocol asks without ASGI. Their counting is
        what is left to do then, once they are on their way.

        Each stage is gone through by all of them before the next one, which gives the same answers in less time: the
        code and the tables of a stage stay in the processor's caches.
        """
        started, route = perf_counter(), self._routes["/recommend"]
        each = [self._stages(route, *request) for request in requests]
        answers = [(0, b"")] * len(requests)
        going = list(enumerate(each))
        while going:
            before, going = going, []
            for at, stages in before:
                made = next(stages)
                if made is None:
                    going.append((at, stages))
                else:
                    answers[at] = made
        seconds = perf_counter() - started
        yield answers
        for stages, (status, _) in zip(each, answers, strict=True):
            next(stages, None)
            self._note(route, "/recommend", status, seconds)

    def _stages(self, route: _Route, headers: Headers, body: bytes) -> Stages[tuple[int, bytes]]:
        refused = self._refused(route, headers)
        if refused is not None:
            yield refused
            return
        try:
            yield from self._recommending(self._asked(body))
        except Exception as error:
            yield _told_of(error, route)

    def _note(self, route: _Route, path: str, status: int, seconds: float) -> None:
        self.metrics.add_request(route.name, status, seconds)
        if self._access_log is not None:
            self._access_log.put(path, status, seconds)

    async def _post(self, route: _Route, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        headers = [_JSON]
        if scope["method"] != "POST":
            status, answered = 405, _told("expected the method POST")
            headers.append((b"allow", b"POST"))
        else:
            refused = self._refused(route, scope["headers"])
            try:
                body = b"" if refused else await self._body(receive)
            except _Gone:
                return
            if refused:
                status, answered = refused
            elif route.in_thread:
                status, answered = await asyncio.to_thread(self._answered, route, body)
            else:
                status, answered = self._answered(route, body)
        headers.append((b"content-length", b"%d" % len(answered)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answered})
        self._note(route, scope["path"], status, perf_counter() - started)

    def _refused(self, route: _Route, headers: Headers) -> tuple[int, bytes] | None:
        if not self.tokens.there_are_some and not route.changes:
            return None
        refused = self.tokens.refuse(headers, changes=route.changes)
        return None if refused is None else (refused.status, _told(refused.reason))

    def _answered(self, route: _Route, body: bytes) -> tuple[int, bytes]:
        try:
            return 200, route.answer(self._asked(body))
        except Exception as error:
            return _told_of(error, route)

    def _asked(self, body: bytes) -> Mapping[str, Any]:
        if len(body) > self.limits.body_bytes:
            raise TooMuch(f"the body has more than {self.limits.body_bytes:,} bytes (--max-body)")
        asked = orjson.loads(body)
        if type(asked) is not dict:
            raise DataError(f"the body is {type(asked).__name__}, expected a JSON object")
        return asked

    async def _body(self, receive: Receive) -> bytes:
        """The whole body; of one that is too long no more than tells so."""
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            whole: bytes = message.get("body", b"")
            return whole
        parts, size = [], 0
        while message["type"] == "http.request":
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.limits.body_bytes or not message.get("more_body"):
                return b"".join(parts)
            message = await receive()
        raise _Gone

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        refused = self.tokens.refuse(scope["headers"], changes=False) if scope["path"].startswith(_GUARDED) else None
        if refused is None:
            await self._pages(scope, receive, noting)
        else:
            body = _told(refused.reason)
            headers = [_JSON, (b"content-length", b"%d" % len(body))]
            await noting({"type": "http.response.start", "status": refused.status, "headers": headers})
            await noting({"type": "http.response.body", "body": body})
        seconds = perf_counter() - started
        self.metrics.add_request("other", status, seconds)
        if self._access_log is not None:
            self._access_log.put(scope["path"], status, seconds)

    # ------------------------------------------------------------ answers

    def _recommend(self, asked: Mapping[str, Any]) -> bytes:
        *_, (_, body) = filter(None, self._recommending(asked))
        return body

    def _recommending(self, asked: Mapping[str, Any]) -> Stages[tuple[int, bytes]]:
        wish, query = wish_of(asked, self.limits, "query"), columns_of(asked, "query")
        engine, arm = self._engine_of(query)
        encoded = engine.encode(query, wish)
        yield None
        answer = engine.find(encoded, wish)
        yield None
        started = perf_counter()
        body = engine.answer_bytes(answer, wish, in_experiment=arm is not None)
        json_s = perf_counter() - started
        yield 200, body
        self.metrics.add_stages(*answer.seconds, json_s)
        self.metrics.add_counts(answer.found, answer.filtered, answer.returned)
        if arm is not None:
            self._expose(engine, arm, query, wish, answer)

    def _recommend_batch(self, asked: Mapping[str, Any]) -> bytes:
        wish, queries = wish_of(asked, self.limits, "queries"), many_of(asked, "queries", self.limits)
        for at, query in enumerate(queries):
            if type(query) is not dict:
                raise DataError(f"queries: number {at} is {query!r:.80}, expected an object of columns")
        of = [self._engine_of(query) for query in queries]
        bodies: list[bytes] = [b""] * len(queries)
        for engine in {id(engine): engine for engine, _ in of}.values():
            places = [at for at, (its, _) in enumerate(of) if its is engine]
            for at, answer in zip(places, engine.recommend_many([queries[p] for p in places], wish), strict=True):
                arm = of[at][1]
                bodies[at] = engine.answer_bytes(answer, wish, in_experiment=arm is not None)
                self.metrics.add_counts(answer.found, answer.filtered, answer.returned)
                if arm is not None:
                    self._expose(engine, arm, queries[at], wish, answer)
        return b'{"answers":[%b]}' % b",".join(bodies)

    def _engine_of(self, query: Mapping[str, object]) -> tuple[Engine, str | None]:
        now = self.served.now
        if now.assignment is None:
            return now.first, None
        return now.engine_of(next((query[key] for key in now.first.bundle.raw_queries.keys if key in query), None))

    def _expose(self, engine: Engine, arm: str, query: Mapping[str, object], wish: Wish, answer: Answer) -> None:
        assignment = self.served.now.assignment
        if self._exposures is None or assignment is None:
            return
        user = next((query[key] for key in engine.bundle.raw_queries.keys if query.get(key) is not None), None)
        self._exposures.put(
            Exposure(
                time=time.time(),
                request=wish.request or secrets.token_hex(8),
                experiment=assignment.name,
                arm=arm,
                user=text_of(user, "query"),
                items=engine.catalogue.texts(answer.row_k.tolist()),
                scores=answer.score_k.tolist(),
                ranks=list(range(1, answer.returned + 1)),
                k=wish.k,
                found=answer.found,
                filtered=answer.filtered,
                returned=answer.returned,
            )
        )
        dropped = self._exposures.counts().dropped
        self.metrics.add("exposures_dropped", dropped - self._dropped)
        self._dropped = dropped

    def _similar(self, asked: Mapping[str, Any]) -> bytes:
        wish, engine = wish_of(asked, self.limits, "item"), self.served.now.first
        if "item" not in asked:
            raise DataError("item: found nothing, expected the id of an item")
        answer = engine.similar(asked["item"], wish)
        self.metrics.add_counts(answer.found, answer.filtered, answer.returned)
        return engine.answer_bytes(answer, wish)

    def _compare(self, asked: Mapping[str, Any]) -> bytes:
        """What every arm would answer. It is shown to no user, so no exposure is logged."""
        kind = "item" if "item" in asked else "query"
        wish, refused = wish_of(asked, self.limits, kind), list[DataError]()
        item, query = asked.get("item"), {} if kind == "item" else columns_of(asked, "query")
        answers = []
        for engine in self.served.now.engines.values():
            try:
                answer = engine.similar(item, wish) if kind == "item" else engine.recommend(query, wish)
                answers.append(engine.answer_bytes(answer, wish, in_experiment=True))
            except DataError as error:
                refused.append(error)
                fingerprint = orjson.dumps(engine.bundle.fingerprint)
                answers.append(
                    _told(str(error))[:-1] + b',"bundle":%b,"arm":%b}' % (fingerprint, orjson.dumps(engine.arm))
                )
        if len(refused) == len(answers):
            raise refused[0]
        return b'{"answers":[%b]}' % b",".join(answers)

    def _embed(self, asked: Mapping[str, Any]) -> bytes:
        if len(asked) != 1 or not asked.keys() <= {"query", "item"}:
            raise DataError('expected either {"query": {columns}} or {"item": {columns}}')
        (kind,) = asked
        engine = self.served.now.first
        vector = engine.embed(kind, columns_of(asked, kind))
        return orjson.dumps({"vector": vector, "bundle": engine.bundle.fingerprint})

    def _upsert(self, asked: Mapping[str, Any]) -> bytes:
        _only(asked, "items")
        return orjson.dumps({"upserted": self.served.upsert(many_of(asked, "items", self.limits))})

    def _delete(self, asked: Mapping[str, Any]) -> bytes:
        _only(asked, "items")
        return orjson.dumps({"deleted": self.served.delete(many_of(asked, "items", self.limits))})

    def _reload(self, asked: Mapping[str, Any]) -> bytes:
        _only(asked, "path", "arm")
        path, arm = asked.get("path"), asked.get("arm", "")
        if type(path) is not str or not path or "\0" in path or type(arm) is not str:
            raise DataError("expected the path of a bundle on the machine of the service, and perhaps an arm")
        return orjson.dumps({"bundle": self.served.reload(Path(path), arm)})


def _only(asked: Mapping[str, Any], *known: str) -> None:
    unknown = sorted(asked.keys() - set(known))
    if unknown:
        raise DataError(f"{unknown[0]!r} is not known here, expected {' and '.join(known)}")


def _told(reason: str) -> bytes:
    return orjson.dumps({"error": reason.encode("utf-8", "replace").decode()})


def _told_of(error: Exception, route: _Route) -> tuple[int, bytes]:
    """What callers can mend is 4xx; a disk that is full is not, nor is what nobody thought of."""
    match error:
        case orjson.JSONDecodeError():
            return 400, _told(f"the body is no JSON: {error}")
        case TwoTowerError():
            return _status_of(error, route), _told(str(error))
    log_line(
        "internal error", route=route.name, error=repr(error), traceback="".join(traceback.format_exception(error))
    )
    return 500, _told("something went wrong here; the log of the service tells what")


def _status_of(error: TwoTowerError, route: _Route) -> int:
    match error:
        case TooMuch():
            return 413
        case NotKnown():
            return 404
        case ConfigError():
            return 409
        case ArtifactError():
            return 422 if route.name == "reload" else 503
        case _:
            return 422
