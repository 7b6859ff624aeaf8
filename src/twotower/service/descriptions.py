"""The OpenAPI description of what is answered beside FastAPI, with the schema's columns as they are typed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..data.raw_queries import HISTORY, feature_columns
from ..schema import Categories, Feature, History, Number, Text, Time, Vector
from .asking import Limits
from .engine import Engine

Tree = dict[str, Any]

_ID: Tree = {"anyOf": [{"type": "string"}, {"type": "number"}]}
_ERRORS = {
    400: "The body is no JSON",
    401: "No token, or one that is not known",
    403: "Not allowed to change anything",
    404: "There is no such item",
    405: "Another method than POST",
    409: "The service was not started for that",
    413: "More than the service answers at once",
    422: "A column, an attribute or a value is not what was expected; the answer says which",
    503: "A change could not be kept",
}


def described(document: Tree, engine: Engine, limits: Limits) -> Tree:
    """FastAPI's document, completed."""
    query, item = _query_columns(engine), _item_columns(engine)
    wish = _wish(engine, limits)
    answer = {"$ref": "#/components/schemas/Answer"}
    schemas: Tree = {
        "Query": _object(query, description="Raw columns of a query; null is as if it were not there"),
        "ItemColumns": _object(item, description="Raw columns of an item"),
        "Answer": _answer(),
        "Error": _object({"error": {"type": "string"}}, ["error"]),
    }
    a_query, columns = {"$ref": "#/components/schemas/Query"}, {"$ref": "#/components/schemas/ItemColumns"}
    queries = {"type": "array", "items": a_query, "minItems": 1, "maxItems": limits.batch}
    ids = {"type": "array", "items": _ID, "minItems": 1, "maxItems": limits.batch}
    items = {
        "type": "array",
        "minItems": 1,
        "maxItems": limits.batch,
        "items": _object({"item": _ID, "columns": columns}, ["item"]),
    }
    bundle = {"bundle": {"type": "string"}}
    vector = {"vector": {"type": "array", "items": {"type": "number"}}}
    paths = {
        "/recommend": _post("The best items for a query", _object({"query": a_query, **wish}, ["query"]), answer),
        "/recommend/batch": _post(
            "The best items for several queries",
            _object({"queries": queries, **wish}, ["queries"]),
            _object({"answers": {"type": "array", "items": answer}}, ["answers"]),
        ),
        "/similar": _post("The items most like an item", _object({"item": _ID, **wish}, ["item"]), answer),
        "/compare": _post(
            "What every arm of an experiment would answer, beside one another; no exposure is logged",
            {"oneOf": [_object({key: of, **wish}, [key]) for key, of in (("query", a_query), ("item", _ID))]},
            _object({"answers": {"type": "array", "items": {"oneOf": [answer, _refused()]}}}, ["answers"]),
        ),
        "/embed": _post(
            "The vector of a query or an item",
            {"oneOf": [_object({"query": a_query}, ["query"]), _object({"item": columns}, ["item"])]},
            _object({**vector, **bundle}, ["vector", "bundle"]),
        ),
        "/items": _post(
            "Items come or change: findable at once, and kept",
            _object({"items": items}, ["items"]),
            _object({"upserted": {"type": "integer"}}, ["upserted"]),
        ),
        "/items/delete": _post(
            "Items go", _object({"items": ids}, ["items"]), _object({"deleted": {"type": "integer"}}, ["deleted"])
        ),
        "/reload": _post(
            "Serve another bundle",
            _object({"path": {"type": "string", "minLength": 1}, "arm": {"type": "string"}}, ["path"]),
            _object(bundle, ["bundle"]),
        ),
    }
    document["paths"] = {**document["paths"], **paths}
    components = document.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **schemas}
    components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return document


def _object(properties: Mapping[str, Any], required: list[str] | None = None, description: str | None = None) -> Tree:
    tree: Tree = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    if required:
        tree["required"] = required
    return tree if description is None else {**tree, "description": description}


def _post(summary: str, asked: Tree, answer: Tree) -> Tree:
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    responses: Tree = {"200": {"description": "Done", "content": {"application/json": {"schema": answer}}}}
    responses |= {str(status): {"description": text, **error} for status, text in _ERRORS.items()}
    return {
        "post": {
            "summary": summary,
            "security": [{}, {"bearer": []}],
            "requestBody": {"required": True, "content": {"application/json": {"schema": asked}}},
            "responses": responses,
        }
    }


def _query_columns(engine: Engine) -> Tree:
    raw, schema = engine.bundle.raw_queries, engine.bundle.schema
    columns = {column: _or_null(_ID) for column in raw.keys}
    for side, _, feature in schema.features():
        if side != "item":
            columns |= {c: _or_null(_typed(feature, c)) for c in feature_columns(feature) if c not in columns}
    if raw.reads_histories:
        columns[HISTORY] = _or_null({"type": "array", "items": _ID, "description": "item ids, the oldest first"})
    return columns


def _item_columns(engine: Engine) -> Tree:
    columns: Tree = {}
    for side, _, feature in engine.bundle.schema.features():
        if side == "item":
            columns |= {c: _or_null(_typed(feature, c)) for c in feature_columns(feature)}
    return columns | {name: {} for name in engine.catalogue.attribute_names if name not in columns}


def _typed(feature: Feature, column: str) -> Tree:
    match feature:
        case Number():
            return {"type": "number"}
        case Time():
            return {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "number"}]}
        case Text():
            return {"type": "string"}
        case Vector(dim=dim):
            return {"type": "array", "items": {"type": "number"}, "minItems": dim, "maxItems": dim}
        case Categories(weights=weights) if column == weights:
            return {"type": "array", "items": {"type": "number", "minimum": 0}}
        case Categories() | History():
            return {"type": "array", "items": _ID}
        case _:
            return _ID


def _or_null(tree: Tree) -> Tree:
    return {"anyOf": [*tree.get("anyOf", [tree]), {"type": "null"}]}


def _wish(engine: Engine, limits: Limits) -> Tree:
    names = engine.catalogue.attribute_names
    attribute: Tree = {"type": "string", "enum": names} if names else {"type": "string"}
    value: Tree = {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]}
    ends = _object({"from": value, "to": value}, description="either end, both of them included")
    be = {"anyOf": [*value["anyOf"], {"type": "array", "items": value}, ends]}
    return {
        "k": {"type": "integer", "minimum": 1, "maximum": limits.k, "default": 10},
        "filter_seen": {"type": "boolean", "default": True},
        "exclude": {"type": "array", "items": _ID},
        "where": {
            "type": "object",
            "properties": dict.fromkeys(names, be),
            "additionalProperties": False,
            "description": "what items must be, by attribute: a value, or one of a list",
        },
        "at_most": _object(
            {"attribute": attribute, "n": {"type": "integer", "minimum": 1}},
            ["attribute", "n"],
            description="at most n items with the same value of an attribute",
        ),
        "show": {"type": "array", "items": attribute, "description": "attributes to tell of each item"},
        "request": {"type": "string", "description": "an id of the request, for the log of exposures"},
    }


def _refused() -> Tree:
    """What stands in a comparison for an arm that can't answer."""
    properties: Tree = {"error": {"type": "string"}, "bundle": {"type": "string"}, "arm": _or_null({"type": "string"})}
    return _object(properties, ["error", "bundle", "arm"])


def _answer() -> Tree:
    item = _object(
        {"item": {"type": "string"}, "score": {"type": "number"}, "attributes": {"type": "object"}}, ["item", "score"]
    )
    whole = {"type": "integer", "minimum": 0}
    counts = _object(dict.fromkeys(("found", "filtered", "returned"), whole), ["found", "filtered", "returned"])
    return _object(
        {
            "items": {"type": "array", "items": item},
            "counts": counts,
            "bundle": {"type": "string"},
            "arm": _or_null({"type": "string"}),
        },
        ["items", "counts", "bundle"],
    )
