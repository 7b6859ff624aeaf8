"""The OpenAPI description says what there is, and nothing that it allows makes the service fail."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.specs.openapi import checks

from tests.service.running import Client, served_by
from twotower.bundle import Bundle


def test_columns_are_those_of_the_schema(asking: Client, bundle: Bundle) -> None:
    document = asking.get("/openapi.json").json
    query = document["components"]["schemas"]["Query"]
    assert set(query["properties"]) == {*bundle.raw_queries.columns, "history"}
    assert query["additionalProperties"] is False
    assert query["properties"]["age"] == {"anyOf": [{"type": "number"}, {"type": "null"}]}
    photo = {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}
    assert query["properties"]["photo"] == {"anyOf": [photo, {"type": "null"}]}
    item = document["components"]["schemas"]["ItemColumns"]
    assert set(item["properties"]) == {"item", "kind", "price", "title", "year"}
    assert {"/recommend", "/recommend/batch", "/similar", "/embed", "/items", "/items/delete", "/reload"} <= set(
        document["paths"]
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_schemathesis_finds_no_failure(folder: Path, tmp_path: Path) -> None:
    """Requests that the description allows, and such that it does not: the answers are described, and none is 5xx."""
    with served_by(folder, state=tmp_path) as client:
        schema = schemathesis.openapi.from_asgi("/openapi.json", client.service)

        for operation in schema.get_all_operations():
            for mode in schemathesis.GenerationMode:
                cases = operation.ok().as_strategy(generation_mode=mode)
                ask = given(case=cases)(_check)
                with suppress(Unsatisfiable):  # nothing can be wrong about a request that says nothing
                    settings(max_examples=20, suppress_health_check=list(HealthCheck), derandomize=True)(ask)()


def _check(case: schemathesis.Case) -> None:
    response = case.call(headers={"host": "localhost"})
    assert response.status_code < 500, response.text
    case.validate_response(
        response,
        checks=[
            schemathesis.checks.not_a_server_error,
            checks.status_code_conformance,
            checks.response_schema_conformance,
        ],
    )
