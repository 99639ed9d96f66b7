"""The status of the cluster as one node sees it: the shape of ``GET /v1/status``."""

from __future__ import annotations

from typing import Literal

import msgspec

from cluster_core.types import NodeId, Timestamp

__all__ = [
    "ClusterStatus",
    "HealthStatus",
    "IndexStatus",
    "MemberStatus",
    "MembershipStatus",
    "PartitionStatus",
    "PartitionsStatus",
    "ReadyStatus",
    "ReplicaStatus",
    "ReplicationStatus",
    "StorageStatus",
]


class MemberStatus(msgspec.Struct, kw_only=True):
    node_id: NodeId
    address: str
    state: str
    """active, suspected or failed."""
    role: str = "voter"
    zone: str | None = None
    leads: int = 0
    replicas: int = 0


class MembershipStatus(msgspec.Struct, kw_only=True):
    total_nodes: int
    active_nodes: int
    suspected_nodes: int
    failed_nodes: int
    has_quorum: bool
    health_score: float
    """Share of the members that are active, 0.0 to 1.0."""
    nodes: list[MemberStatus]


class PartitionsStatus(msgspec.Struct, kw_only=True):
    partition_count: int
    replication_factor: int
    without_leader: int
    under_replicated: int
    moving: int
    variance: float
    """Variance of the number of replicas per node."""


class ReplicationStatus(msgspec.Struct, kw_only=True):
    is_healthy: bool
    replication_lag_ms: dict[NodeId, float]
    """Of each peer that follows a group led here: how long ago its slowest replica was level."""
    total_queued_operations: int
    operations_processed: int
    operations_failed: int


class StorageStatus(msgspec.Struct, kw_only=True):
    state: str
    """ok, full or failed."""
    disk_bytes: int
    disk_free_bytes: int


class ClusterStatus(msgspec.Struct, kw_only=True):
    cluster_id: str | None
    node_id: NodeId
    version: str
    leader: NodeId | None
    """The leader of the meta group."""
    term: int
    membership: MembershipStatus
    partitions: PartitionsStatus
    replication: ReplicationStatus
    storage: StorageStatus


class HealthStatus(msgspec.Struct, kw_only=True):
    is_healthy: bool
    failed_nodes_count: int
    reasons: list[str]
    can_serve: bool = True
    """Whether this node itself can serve; not part of the public answer, it decides 200 or 503."""


class ReadyStatus(msgspec.Struct, kw_only=True):
    is_ready: bool
    joined: bool
    storage_ok: bool
    partitions_with_leader: int
    partition_count: int
    missing: list[str]


class ReplicaStatus(msgspec.Struct, kw_only=True):
    node_id: NodeId
    replica_id: int
    role: str
    """voter, learner or leaving: what the partition table wants of it."""
    match_index: int | None = None
    """Known at the leader only."""
    state: Literal["ok", "diverged"] = "ok"
    """diverged: it differs from the others, serves nothing, and is being made anew."""


class PartitionStatus(msgspec.Struct, kw_only=True):
    partition: int
    leader: NodeId | None
    term: int
    commit_index: int
    applied_index: int
    replicas: list[ReplicaStatus]
    preferred: list[NodeId]
    bytes: int | None = None


class IndexStatus(msgspec.Struct, kw_only=True):
    """A declared property index, and how far its building or its dropping is."""

    label: str
    property: str
    state: Literal["building", "ready", "dropping", "gone"]
    partitions_done: int
    partition_count: int
    since: Timestamp | None = None
    """When ready: queries of this time and later may use it."""
