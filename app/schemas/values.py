"""Values, CIDs and timestamps of the public API: their OpenAPI schemas and their texts.

What a value's JSON means is the business of :mod:`cluster_core.graph.values`, what a timestamp's
text means that of :mod:`cluster_core.hlc`.
"""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from typing_extensions import TypeAliasType

from app.problems import ERRORS_LISTED_MAX, invalid_request
from cluster_core.errors import InvalidRequest
from cluster_core.graph.operations import check_items
from cluster_core.graph.values import (
    INT_MAX,
    INT_MIN,
    Value,
    properties_to_json,
    value_from_json,
)

__all__ = [
    "CID_EXAMPLE",
    "CID_PATTERN",
    "COUNT_MAX",
    "TIMESTAMP_EXAMPLE",
    "VERSION_EXAMPLE",
    "AnswerModel",
    "CidText",
    "Items",
    "JsonValue",
    "RequestModel",
    "TimestampText",
    "properties_of",
    "written_properties",
]

CID_EXAMPLE: Final = "bafyreigdmqpykrgxyaxtlafqpqhzrb7qy2rh75nldvfd4tucqmqqme5yje"
VERSION_EXAMPLE: Final = "bafyreiccyjpxtt3wmi6wpd6dqsyo5xx5atrzqx7xhprz5o3vvihfgjhu2e"
TIMESTAMP_EXAMPLE: Final = "1795447000123.00000"

COUNT_MAX: Final = (1 << 31) - 1
"""No count or time of a request is larger; what is really allowed is the node's configuration."""


class RequestModel(BaseModel):
    """What a client sends as JSON: types are strict, and an unknown field is an error.

    The error is ours to raise: pydantic would make one for each of the million unknown fields that
    fit into a body (2 GB and 20 s), as it would for the items of a list that does not fail fast.
    """

    model_config = ConfigDict(
        strict=True, extra="allow", json_schema_extra={"additionalProperties": False}
    )

    def refuse_unknown(self, where: str = "") -> None:
        """Raise InvalidRequest where there are fields that the model does not have."""
        if self.__pydantic_extra__:
            prefix = f"{where}." if where else ""
            names = islice(self.__pydantic_extra__, ERRORS_LISTED_MAX)
            raise invalid_request(
                [{"where": prefix + name, "why": "is not known here"} for name in names]
            )


Item = TypeVar("Item")

Items = Annotated[tuple[Item, ...], Field(fail_fast=True)]
"""A list in a request; only its first mistake is reported."""


class AnswerModel(BaseModel):
    """What a client gets. Documents the answer; the JSON itself is written by hand."""

    model_config = ConfigDict(extra="forbid")


CID_PATTERN: Final = "bafyrei[a-h][a-z2-7]{50}[aeimquy4]"

CidText = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "title": "CID",
            "description": "A CID of this database: CIDv1, dag-cbor, sha2-256, base32.",
            "pattern": f"^{CID_PATTERN}$",
            "examples": [CID_EXAMPLE],
        }
    ),
]
"""Checked where it becomes a digest, so that the hot path does not check it twice."""

TimestampText = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "title": "Timestamp",
            "description": "Milliseconds since 1970, a dot, and a counter of five digits. Sorts "
            "as text.",
            "pattern": "^[0-9]{1,15}\\.[0-9]{5}$",
            "examples": [TIMESTAMP_EXAMPLE],
        }
    ),
]


def _object_of_one_key(title: str, inner: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "title": title,
        "properties": {"/": inner},
        "required": ["/"],
        "additionalProperties": False,
    }


_BASE64: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"bytes": {"type": "string", "description": "base64, no padding"}},
    "required": ["bytes"],
    "additionalProperties": False,
}
_SCALARS: Final[list[dict[str, Any]]] = [
    {"type": "null"},
    {"type": "boolean"},
    {"type": "integer", "minimum": INT_MIN, "maximum": INT_MAX},
    {"type": "number"},
    {"type": "string"},
    _object_of_one_key("Bytes", _BASE64),
    _object_of_one_key("Link", {"type": "string", "description": "any CID"}),
]

JsonValue = TypeAliasType(
    "JsonValue",
    Annotated[
        Any,
        WithJsonSchema(
            {
                "title": "Value",
                "description": "null, bool, 64-bit int, finite float, string, bytes "
                '`{"/": {"bytes": "<base64>"}}`, link `{"/": "<cid>"}`, or a list of these.',
                "anyOf": [*_SCALARS, {"type": "array", "items": {"anyOf": _SCALARS}}],
                "examples": ["Alice"],
            }
        ),
    ],
)
"""To pydantic any JSON at all; :func:`properties_of` checks what it is."""


def properties_of(document: dict[str, Any], where: str, entity_bytes_max: int) -> dict[str, Value]:
    """The properties that a JSON object spells. Raises InvalidRequest, and TooLarge where they
    cannot be those of an entity of ``entity_bytes_max``.

    Hot: an object of common scalars is its own answer after one look at each class (0.3 µs for
    three properties, against 2 µs).
    """
    for value in document.values():
        kind = type(value)
        if kind is str or kind is bool or value is None:
            continue
        if kind is int and INT_MIN <= value <= INT_MAX:
            continue
        check_items(document, entity_bytes_max)
        return _converted(document, where)
    return document


def _converted(document: dict[str, Any], where: str) -> dict[str, Value]:
    properties: dict[str, Value] = {}
    mistakes: list[dict[str, str]] = []
    for name, value in document.items():
        try:
            properties[name] = value_from_json(value, f"{where}.{name}")
        except InvalidRequest as error:
            mistakes += error.extra["errors"]
            if len(mistakes) == ERRORS_LISTED_MAX:
                break
    if mistakes:
        raise invalid_request(mistakes)
    return properties


def written_properties(properties: dict[str, Value]) -> dict[str, Any]:
    """The JSON of ``properties``; the same dict where every value is JSON already."""
    for value in properties.values():
        if value is not None and type(value) not in _JSON_ALREADY:
            return properties_to_json(properties)
    return properties


_JSON_ALREADY: Final = frozenset((str, int, bool, float))
