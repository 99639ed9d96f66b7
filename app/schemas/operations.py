"""The six operations as clients write them, and how they become those of the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from app.schemas.problems import Problem
from app.schemas.values import (
    CID_EXAMPLE,
    COUNT_MAX,
    VERSION_EXAMPLE,
    AnswerModel,
    CidText,
    Items,
    JsonValue,
    RequestModel,
    TimestampText,
    properties_of,
)
from cluster_core.graph import operations as core
from cluster_core.graph.cid import parse_cid
from cluster_core.types import Digest

__all__ = [
    "BATCH",
    "BATCH_OPERATION",
    "EXAMPLES",
    "OPERATION",
    "TRANSACTION_EXAMPLES",
    "BatchAnswer",
    "BatchOperation",
    "BatchParameters",
    "BatchRequest",
    "Operation",
    "OperationAnswer",
    "TransactionAnswer",
    "TransactionParameters",
    "TransactionRequest",
    "WriteParameters",
]

ParseCid = Callable[[str, str], Digest]
"""From the text of a CID and the name of its field to a digest."""

Properties = Annotated[
    dict[str, JsonValue],
    Field(
        default_factory=dict,
        description="A property that is null is absent.",
        examples=[{"name": "Alice", "age": 30}],
    ),
]
ChangedProperties = Annotated[
    dict[str, JsonValue],
    Field(
        default_factory=dict,
        description="Merged with what is there; null removes.",
        examples=[{"age": 31, "nick": None}],
    ),
]
Labels = Annotated[Items[str], Field(examples=[["Person"]])]
IfVersion = Annotated[
    CidText | None,
    Field(description="Execute only if the entity has this version."),
]
SourceHint = Annotated[
    CidText | None,
    Field(description="The node where the edge begins: saves asking every partition."),
]


class CreateNode(RequestModel):
    """A new node."""

    op: Literal["create_node"]
    labels: Labels = ()
    properties: Properties

    def to_core(self, entity_bytes_max: int, _parse: ParseCid = parse_cid) -> core.Operation:
        return core.CreateNode(
            labels=self.labels,
            properties=properties_of(self.properties, "properties", entity_bytes_max),
        )


class UpdateNode(RequestModel):
    """Merge properties of a node, and replace its labels where they are given."""

    op: Literal["update_node"]
    cid: CidText
    properties: ChangedProperties
    labels: Labels | None = None
    if_version: IfVersion = None

    def to_core(self, entity_bytes_max: int, parse: ParseCid = parse_cid) -> core.Operation:
        return core.UpdateNode(
            digest=parse(self.cid, "cid"),
            properties=properties_of(self.properties, "properties", entity_bytes_max),
            labels=self.labels,
            if_version=_version(self.if_version),
        )


class DeleteNode(RequestModel):
    """Delete a node; with ``detach`` its edges as well, else it must have none."""

    op: Literal["delete_node"]
    cid: CidText
    detach: bool = False
    if_version: IfVersion = None

    def to_core(self, _entity_bytes_max: int, parse: ParseCid = parse_cid) -> core.Operation:
        return core.DeleteNode(
            digest=parse(self.cid, "cid"),
            detach=self.detach,
            if_version=_version(self.if_version),
        )


class CreateEdge(RequestModel):
    """A new edge between two nodes, which may live in different partitions."""

    op: Literal["create_edge"]
    label: Annotated[str, Field(examples=["KNOWS"])]
    source_cid: CidText
    target_cid: CidText
    properties: Properties

    def to_core(self, entity_bytes_max: int, parse: ParseCid = parse_cid) -> core.Operation:
        return core.CreateEdge(
            label=self.label,
            source=parse(self.source_cid, "source_cid"),
            target=parse(self.target_cid, "target_cid"),
            properties=properties_of(self.properties, "properties", entity_bytes_max),
        )


class UpdateEdge(RequestModel):
    """Merge properties of an edge."""

    op: Literal["update_edge"]
    cid: CidText
    source_cid: SourceHint = None
    properties: ChangedProperties
    if_version: IfVersion = None

    def to_core(self, entity_bytes_max: int, parse: ParseCid = parse_cid) -> core.Operation:
        return core.UpdateEdge(
            digest=parse(self.cid, "cid"),
            source=_hint(self.source_cid, parse),
            properties=properties_of(self.properties, "properties", entity_bytes_max),
            if_version=_version(self.if_version),
        )


class DeleteEdge(RequestModel):
    """Delete an edge."""

    op: Literal["delete_edge"]
    cid: CidText
    source_cid: SourceHint = None
    if_version: IfVersion = None

    def to_core(self, _entity_bytes_max: int, parse: ParseCid = parse_cid) -> core.Operation:
        return core.DeleteEdge(
            digest=parse(self.cid, "cid"),
            source=_hint(self.source_cid, parse),
            if_version=_version(self.if_version),
        )


def _version(text: str | None) -> Digest | None:
    return None if text is None else parse_cid(text, "if_version")


def _hint(text: str | None, parse: ParseCid) -> Digest | None:
    return None if text is None else parse(text, "source_cid")


Operation = Annotated[
    CreateNode | UpdateNode | DeleteNode | CreateEdge | UpdateEdge | DeleteEdge,
    Field(discriminator="op"),
]

OPERATION: TypeAdapter[Operation] = TypeAdapter(Operation)


class Referable(BaseModel):
    """An operation of a batch may name itself, and later ones may say ``$name`` for its CID."""

    ref: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=256,
            description='A name for what this operation creates: later ones may say `"$name"` '
            "where a CID is meant.",
            examples=["a"],
        ),
    ] = None


class BatchCreateNode(CreateNode, Referable):
    pass


class BatchUpdateNode(UpdateNode, Referable):
    pass


class BatchDeleteNode(DeleteNode, Referable):
    pass


class BatchCreateEdge(CreateEdge, Referable):
    pass


class BatchUpdateEdge(UpdateEdge, Referable):
    pass


class BatchDeleteEdge(DeleteEdge, Referable):
    pass


BatchOperation = Annotated[
    BatchCreateNode
    | BatchUpdateNode
    | BatchDeleteNode
    | BatchCreateEdge
    | BatchUpdateEdge
    | BatchDeleteEdge,
    Field(discriminator="op"),
]


class BatchRequest(RequestModel):
    """Operations that succeed or fail each for itself."""

    operations: Annotated[list[BatchOperation], Field(fail_fast=True)]


class TransactionRequest(BatchRequest):
    """Operations that are executed together or not at all."""


BATCH: TypeAdapter[BatchRequest] = TypeAdapter(BatchRequest)
BATCH_OPERATION: TypeAdapter[BatchOperation] = TypeAdapter(BatchOperation)


TimeoutMs = Annotated[
    int | None,
    Field(
        ge=1,
        le=COUNT_MAX,
        description="After this time the answer is `timeout`; at most 60,000 by default.",
    ),
]


class TransactionParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    timeout_ms: TimeoutMs = None


class BatchParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    consistency: Annotated[
        Literal["strong", "eventual"],
        Field(description="`eventual`: durable on the leader only; the answer is 202."),
    ] = "strong"
    timeout_ms: TimeoutMs = None


class WriteParameters(BatchParameters):
    forward: Annotated[
        bool | None,
        Field(
            description="Let this node pass the operation on to the leader, instead of "
            "redirecting the client."
        ),
    ] = None
    nonce: Annotated[
        str | None,
        Field(
            pattern="^[0-9a-fA-F]{32}$",
            description="Part of a redirect: makes the leader give a creation the same CID.",
        ),
    ] = None


class OperationAnswer(AnswerModel):
    """What an operation did."""

    model_config = ConfigDict(json_schema_extra={"title": "OperationAnswer"})

    cid: CidText
    version: CidText
    partition: int
    timestamp: TimestampText


class FailedOperation(AnswerModel):
    """Why one operation of a batch failed; the others are not affected."""

    error: Problem


class BatchAnswer(AnswerModel):
    """One result for each operation, in order."""

    results: list[OperationAnswer | FailedOperation]
    succeeded: int
    failed: int


class TransactionAnswer(AnswerModel):
    """One result for each operation, in order; all were written at ``timestamp``."""

    results: list[OperationAnswer]
    timestamp: TimestampText


TRANSACTION_EXAMPLES: dict[str, Any] = {
    "create": {
        "summary": "Two nodes and an edge",
        "value": {
            "operations": [
                {"op": "create_node", "ref": "a", "labels": ["Person"]},
                {"op": "create_node", "ref": "b", "labels": ["Person"]},
                {"op": "create_edge", "label": "KNOWS", "source_cid": "$a", "target_cid": "$b"},
            ]
        },
    },
    "guarded": {
        "summary": "Change one node if another is still what was read",
        "value": {
            "operations": [
                {"op": "update_node", "cid": CID_EXAMPLE, "if_version": VERSION_EXAMPLE},
                {
                    "op": "update_node",
                    "cid": VERSION_EXAMPLE,
                    "properties": {"balance": 70},
                    "if_version": VERSION_EXAMPLE,
                },
            ]
        },
    },
}

EXAMPLES: dict[str, Any] = {
    "create_node": {
        "summary": "Create a node",
        "value": {
            "op": "create_node",
            "labels": ["Person"],
            "properties": {"name": "Alice", "age": 30},
        },
    },
    "update_node": {
        "summary": "Change a node",
        "value": {
            "op": "update_node",
            "cid": CID_EXAMPLE,
            "properties": {"age": 31, "nick": None},
            "labels": ["Person", "Admin"],
        },
    },
    "delete_node": {
        "summary": "Delete a node",
        "value": {"op": "delete_node", "cid": CID_EXAMPLE, "detach": False},
    },
    "create_edge": {
        "summary": "Create an edge",
        "value": {
            "op": "create_edge",
            "label": "KNOWS",
            "source_cid": CID_EXAMPLE,
            "target_cid": VERSION_EXAMPLE,
            "properties": {"since": 2020},
        },
    },
    "update_edge": {
        "summary": "Change an edge",
        "value": {"op": "update_edge", "cid": CID_EXAMPLE, "properties": {"since": 2021}},
    },
    "delete_edge": {
        "summary": "Delete an edge",
        "value": {"op": "delete_edge", "cid": CID_EXAMPLE},
    },
}
