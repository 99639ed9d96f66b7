"""The problem document, and how endpoints declare the problems that they answer with."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from app.problems import ERRORS_BY_CODE

__all__ = ["Mistake", "Problem", "problems"]


class Mistake(BaseModel):
    """One thing that is wrong with a request."""

    where: Annotated[str, Field(examples=["properties.age"])]
    why: Annotated[str, Field(examples=["a float that is not finite"])]


class Problem(BaseModel):
    """Every error of the API (RFC 9457). More fields, by ``code``, may be there."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(examples=["/problems/not_found"])]
    title: str
    status: int
    detail: str
    code: Annotated[str, Field(json_schema_extra={"examples": sorted(ERRORS_BY_CODE)})]
    errors: Annotated[
        list[Mistake] | None, Field(description="With `invalid_request`: where and why.")
    ] = None


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of an endpoint that may answer with the problems ``codes``."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(ERRORS_BY_CODE[code].status, []).append(code)
    return {status: _response(status, named) for status, named in sorted(by_status.items())}


def _response(status: int, codes: list[str]) -> dict[str, Any]:
    titles = "; ".join(f"`{code}`: {ERRORS_BY_CODE[code].title}" for code in codes)
    response: dict[str, Any] = {
        "description": titles,
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        },
    }
    if status in (429, 503):
        response["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return response
