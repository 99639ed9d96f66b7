"""The state of the cluster as clients see it: documents :mod:`cluster_core.status`."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import Field, TypeAdapter

from app.schemas.values import AnswerModel, CidText, RequestModel

__all__ = [
    "LEADER_REQUEST",
    "PARTITION_NUMBER",
    "ClusterStatus",
    "Health",
    "LeaderRequest",
    "Live",
    "Partition",
    "PartitionOfKey",
    "Partitions",
    "Ready",
    "Root",
]


class Member(AnswerModel):
    node_id: Annotated[str, Field(examples=["node1"])]
    address: Annotated[str, Field(examples=["127.0.0.1:8080"])]
    state: Annotated[str, Field(description="active, suspected or failed", examples=["active"])]
    role: Annotated[str, Field(description="voter or witness", examples=["voter"])]
    zone: str | None
    leads: Annotated[int, Field(description="Partitions led there.")]
    replicas: int


class Membership(AnswerModel):
    total_nodes: int
    active_nodes: int
    suspected_nodes: int
    failed_nodes: int
    has_quorum: bool
    health_score: Annotated[float, Field(description="Share of the members that are active.")]
    nodes: list[Member]


class PartitionCounts(AnswerModel):
    partition_count: int
    replication_factor: int
    without_leader: int
    under_replicated: int
    moving: int
    variance: Annotated[float, Field(description="Of the number of replicas per node.")]


class Replication(AnswerModel):
    is_healthy: bool
    replication_lag_ms: dict[str, float]
    total_queued_operations: int
    operations_processed: int
    operations_failed: int


class Storage(AnswerModel):
    state: Annotated[str, Field(description="ok, full or failed", examples=["ok"])]
    disk_bytes: int
    disk_free_bytes: int


class ClusterStatus(AnswerModel):
    """The cluster as this node sees it."""

    cluster_id: str | None
    node_id: str
    version: str
    leader: Annotated[str | None, Field(description="The leader of the meta group.")]
    term: int
    membership: Membership
    partitions: PartitionCounts
    replication: Replication
    storage: Storage


class Health(AnswerModel):
    """The health of the cluster; the status code is this node's own."""

    is_healthy: bool
    failed_nodes_count: int
    reasons: list[str]


class Live(AnswerModel):
    is_live: bool


class Ready(AnswerModel):
    """Whether this node can serve, and what is missing if not."""

    is_ready: bool
    joined: bool
    storage_ok: bool
    partitions_with_leader: int
    partition_count: int
    missing: list[str]


class Replica(AnswerModel):
    node_id: str
    replica_id: int
    role: Annotated[
        str,
        Field(description="voter, learner, or leaving while the partition moves away from there"),
    ]
    match_index: Annotated[int | None, Field(description="Known at the leader only.")]
    state: Annotated[
        str,
        Field(
            description="ok, or diverged: it differs from the others, serves nothing, and is "
            "being made anew",
            examples=["ok"],
        ),
    ]


class Partition(AnswerModel):
    """One partition as this node sees it."""

    partition: int
    leader: str | None
    term: int
    commit_index: int
    applied_index: int
    replicas: list[Replica]
    preferred: Annotated[list[str], Field(description="The nodes that the ring prefers.")]
    bytes: Annotated[int | None, Field(description="Size here, where it is known.")]


class LeaderRequest(RequestModel):
    """Who is to lead."""

    node_id: Annotated[str, Field(examples=["node2"])]


LEADER_REQUEST: Final[TypeAdapter[LeaderRequest]] = TypeAdapter(LeaderRequest)

PARTITION_NUMBER: Final = re.compile("[0-9]{1,4}")


class Partitions(AnswerModel):
    partitions: list[Partition]


class PartitionOfKey(Partition):
    """The partition that a CID belongs to."""

    key: CidText
    nodes: Annotated[list[str], Field(description="The nodes that have a replica.")]


class Root(AnswerModel):
    name: str
    version: str
    node_id: str
    links: dict[str, str]
