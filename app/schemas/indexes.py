"""Property indexes as clients declare and see them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter

from app.schemas.values import AnswerModel, RequestModel, TimestampText

__all__ = ["EXAMPLES", "INDEX_REQUEST", "Index", "IndexRequest", "Indexes"]


class IndexRequest(RequestModel):
    """Which entities, nodes and edges alike, and which of their properties."""

    label: Annotated[str, Field(examples=["Person"])]
    property: Annotated[str, Field(examples=["name"])]


INDEX_REQUEST: Final[TypeAdapter[IndexRequest]] = TypeAdapter(IndexRequest)


class Index(AnswerModel):
    """A declared index, and how far it is."""

    label: str
    property: str
    state: Annotated[
        Literal["building", "ready", "dropping", "gone"],
        Field(description="Queries use it when it is `ready`. A dropped one goes on its own."),
    ]
    partitions_done: Annotated[
        int, Field(description="Partitions that have built it, or have dropped it.")
    ]
    partition_count: int
    since: Annotated[
        TimestampText | None,
        Field(description="When `ready`: queries `as_of` this time or later use it."),
    ]


class Indexes(AnswerModel):
    indexes: list[Index]


EXAMPLES: Final[dict[str, Any]] = {
    "people by name": {"value": {"label": "Person", "property": "name"}}
}
