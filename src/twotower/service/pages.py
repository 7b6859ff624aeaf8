"""What is asked for seldom, by FastAPI: health, metrics, what is served, finding an item, documentation, the page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from .. import __version__
from ..data.vocabulary import one_array
from .asking import Limits
from .descriptions import described
from .engine import Engine
from .serving import Served

PAGE = Path(__file__).parent / "page"
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_TITLES = ("title", "name", "label", "headline")
_EXAMPLES = 8
_LOOKED_THROUGH = 1000
"""Ids that hold a text, of which the best are told."""


def pages(served: Served, limits: Limits) -> FastAPI:
    """The application."""
    app = FastAPI(title="twotower", version=__version__, redoc_url=None)

    @app.exception_handler(RequestValidationError)
    async def wrong(_: Request, error: RequestValidationError) -> JSONResponse:
        what = error.errors()[0]
        told = f"{'.'.join(map(str, what['loc'][1:]))}: {what['msg']}"
        return JSONResponse({"error": told}, 422)

    @app.exception_handler(HTTPException)
    async def not_there(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": f"{request.url.path}: {error.detail}"}, error.status_code, error.headers)

    @app.get("/health", summary="Whether the process lives")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Whether it can answer")
    async def ready() -> dict[str, Any]:
        return {"ready": True, "bundles": {arm: one.bundle.fingerprint for arm, one in served.now.engines.items()}}

    @app.get(
        "/metrics", summary="Counters and latencies of all workers, for Prometheus", response_class=PlainTextResponse
    )
    async def metrics() -> PlainTextResponse:
        engine = served.now.first
        gauges = {"items": float(engine.n_items), "items_changed": float(served.n_changed)}
        bundles = [{"bundle": e.bundle.fingerprint, "arm": arm} for arm, e in served.now.engines.items()]
        text = served.metrics.render(gauges, {"bundle": bundles})
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/about", summary="What is served")
    def about() -> JSONResponse:
        return JSONResponse(_about(served, limits))

    @app.get("/items/search", summary="Items whose title, or id, holds a text")
    def search(
        text: Annotated[str, Query(min_length=1, max_length=200)], k: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> JSONResponse:
        return JSONResponse({"items": _found(served.now.first, text, k)})

    @app.get("/queries/search", summary="Known queries whose id holds a text")
    def search_queries(
        text: Annotated[str, Query(min_length=1, max_length=200)], k: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> JSONResponse:
        return JSONResponse({"queries": _found_queries(served.now.first, text, k)})

    app.mount("/", _Page(directory=PAGE, html=True))
    plain = app.openapi

    def documented() -> dict[str, Any]:
        return described(plain(), served.now.first, limits)

    app.openapi = documented  # type: ignore[method-assign]
    return app


class _Page(StaticFiles):
    """The page's files: they run no script but their own, load nothing from elsewhere, and are asked for anew after an
    upgrade."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """With headers that hold a browser to that."""
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        return response


def title_of(engine: Engine) -> str | None:
    """The attribute that is an item's title, if any: one of text."""
    table = engine.bundle.attributes
    if table is None:
        return None
    names = (name for name in _TITLES if name in table.column_names)
    return next((name for name in names if _holds_text(table.schema.field(name).type)), None)


def _holds_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _about(served: Served, limits: Limits) -> dict[str, Any]:
    now = served.now
    engine = now.first
    bundle = engine.bundle
    table = bundle.attributes
    arms = [
        {
            "arm": arm or None,
            "name": one.bundle.folder.name,
            "bundle": one.bundle.fingerprint,
            "counts": one.bundle.manifest["counts"],
            "metrics": one.bundle.manifest.get("metrics"),
            "score": one.bundle.manifest.get("score"),
            "licence": one.bundle.manifest.get("licence"),
            "index": one.index.kind,
            "index_report": one.bundle.manifest.get("index_report"),
        }
        for arm, one in now.engines.items()
    ]
    return {
        "version": __version__,
        "bundles": arms,
        "experiment": None if now.assignment is None else now.assignment.name,
        "items": engine.n_items,
        "items_changed": served.n_changed,
        "title": title_of(engine),
        "attributes": {} if table is None else {field.name: str(field.type) for field in table.schema},
        "query_keys": bundle.raw_queries.keys,
        "query_columns": bundle.raw_queries.columns,
        "reads_histories": bundle.raw_queries.reads_histories,
        "item_columns": list(bundle.encoders.columns("item")),
        "examples": _examples(engine),
        "limits": {"k": limits.k, "batch": limits.batch, "body_bytes": limits.body_bytes},
    }


def _examples(engine: Engine) -> list[dict[str, str]]:
    """Some known queries, those with the longest lists of seen items among the first."""
    bundle = engine.bundle
    if bundle.queries is None:
        return []
    key = bundle.raw_queries.keys[0]
    length = bundle.seen_rows.lengths()[:10_000]
    rows = sorted((-length).argsort(kind="stable")[:_EXAMPLES].tolist())
    ids = [engine.query_id(row) for row in rows]
    return [{key: text} for text in ids if text is not None]


def _found(engine: Engine, text: str, k: int) -> list[dict[str, Any]]:
    """Up to k items whose title or id holds the text, those that begin with it first."""
    catalogue, title, wanted = engine.catalogue, title_of(engine), text.lower()
    table = engine.bundle.attributes
    columns = [engine.bundle.items.ids()]
    if title is not None and table is not None:
        columns.insert(0, one_array(table[title]))

    def words(row: int) -> list[str]:
        """Title and id as they are now."""
        told = [catalogue.given[row].get(title or "")] if row in catalogue.given else []
        told = told or [column[row].as_py() for column in columns[:-1]]
        return [one.lower() for one in (*told, *catalogue.texts([row])) if isinstance(one, str)]

    hits = (pc.indices_nonzero(pc.match_substring(column, text, ignore_case=True)).to_pylist() for column in columns)
    of_base = [row for rows in hits for row in rows if row not in catalogue.gone and row not in catalogue.given]
    changed = [row for row in list(catalogue.given) if row not in catalogue.gone and wanted in "\0".join(words(row))]
    rows = [*dict.fromkeys(of_base[:_LOOKED_THROUGH]), *changed]
    best = sorted(rows, key=lambda row: not any(one.startswith(wanted) for one in words(row)))[:k]
    shown = catalogue.shown(best, [title]) if title is not None else [{} for _ in best]
    return [
        {"item": item, "title": attributes.get(title) if title is not None else None}
        for item, attributes in zip(catalogue.texts(best), shown, strict=True)
    ]


def _found_queries(engine: Engine, text: str, k: int) -> list[str]:
    """Up to k ids of known queries: the text itself, those that begin with it, others; short ones first."""
    if engine.bundle.queries is None:
        return []
    ids, wanted = engine.bundle.queries.ids(), text.lower()
    exact = [text] if engine.bundle.queries.row_of_text(text) >= 0 else []
    found: list[str] = []
    for holds in (pc.starts_with, pc.match_substring):
        if len(found) < k:
            found += ids.filter(holds(ids, text, ignore_case=True)).slice(0, _LOOKED_THROUGH).to_pylist()
    best = sorted(found, key=lambda one: (not one.lower().startswith(wanted), len(one), one))
    return list(dict.fromkeys([*exact, *best]))[:k]
