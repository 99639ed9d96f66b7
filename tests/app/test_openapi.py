from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.openapi_export import PATH, openapi_text
from app.problems import ERRORS_BY_CODE

METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    from app.main import create_api

    return create_api().openapi()


def test_the_exported_file_is_fresh() -> None:
    assert PATH.read_bytes() == openapi_text(), "run: python -m app.openapi_export"


def test_every_operation_has_an_id_a_summary_and_a_tag(document: dict[str, Any]) -> None:
    operations = [o for path in document["paths"].values() for o in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    for operation in operations:
        assert operation["summary"]
        assert operation["tags"]
        assert operation["operationId"].isidentifier()


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    def check(value: Any) -> None:
        if isinstance(value, dict):
            reference = value.get("$ref")
            if isinstance(reference, str):
                assert reference.removeprefix("#/components/schemas/") in schemas
            for inner in value.values():
                check(inner)
        elif isinstance(value, list):
            for inner in value:
                check(inner)

    check(document)


def test_operations_are_a_union_told_apart_by_op(document: dict[str, Any]) -> None:
    body = document["paths"]["/v1/operations"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert len(schema["oneOf"]) == 6
    assert schema["discriminator"]["propertyName"] == "op"
    assert set(schema["discriminator"]["mapping"]) == set(
        body["content"]["application/json"]["examples"]
    )


def test_every_error_answer_is_a_problem(document: dict[str, Any]) -> None:
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if int(status) >= 300 and path not in ("/v1/health", "/readyz"):
                    assert response["content"] == {"application/problem+json": problem}


def test_the_codes_of_the_contract_have_their_statuses() -> None:
    statuses = {code: error.status for code, error in ERRORS_BY_CODE.items()}
    assert statuses == {
        "invalid_request": 422,
        "not_found": 404,
        "already_exists": 409,
        "precondition_failed": 412,
        "conflict": 409,
        "has_edges": 409,
        "idempotency_key_reused": 422,
        "dependency_failed": 424,
        "unauthorized": 401,
        "forbidden": 403,
        "too_large": 413,
        "not_leader": 307,
        "no_leader": 503,
        "unavailable": 503,
        "overloaded": 503,
        "timeout": 504,
        "storage_full": 507,
        "history_collected": 410,
        "method_not_allowed": 405,
        "unsupported_media_type": 415,
        "rate_limited": 429,
        "internal": 500,
    }


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_the_pages_load_nothing_from_elsewhere(client: httpx.AsyncClient, path: str) -> None:
    page = await client.get(path)
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "https://" not in page.text
    sources = [part.split('"')[0] for part in page.text.split('src="')[1:]]
    assert sources
    for source in sources:
        script = await client.get(source)
        assert script.status_code == 200
        assert "javascript" in script.headers["content-type"]


async def test_the_document_is_served(client: httpx.AsyncClient, document: dict[str, Any]) -> None:
    answer = await client.get("/openapi.json")
    assert answer.json() == document
    assert answer.headers["cache-control"] == "no-store"
