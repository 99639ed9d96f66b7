"""Nodes and edges as clients see them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from app.schemas.values import AnswerModel, CidText, JsonValue, TimestampText

__all__ = ["Edge", "Node"]

StoredProperties = Annotated[dict[str, JsonValue], Field(examples=[{"name": "Alice", "age": 30}])]


class Node(AnswerModel):
    """A node of the graph, in one version."""

    cid: CidText
    version: CidText
    labels: Annotated[list[str], Field(examples=[["Person"]])]
    properties: StoredProperties
    created_at: TimestampText
    updated_at: TimestampText


class Edge(AnswerModel):
    """An edge of the graph, in one version."""

    cid: CidText
    version: CidText
    label: Annotated[str, Field(examples=["KNOWS"])]
    source_cid: CidText
    target_cid: CidText
    properties: StoredProperties
    created_at: TimestampText
    updated_at: TimestampText
