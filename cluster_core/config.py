"""Every number that an operator or a test may turn, with its default and its reason."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cluster_core.errors import InvalidRequest

__all__ = [
    "ClusterConfig",
    "LimitConfig",
    "MembershipConfig",
    "RaftConfig",
    "ReplicationConfig",
    "StorageConfig",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftConfig:
    """Timing and flow control of every Raft group. Times count in ticks of ``tick_ms``."""

    tick_ms: int = 100
    heartbeat_ticks: int = 1
    election_ticks: int = 10
    """A follower campaigns after 10 to 20 ticks of silence: 1 to 2 s, as etcd's do."""
    failover_delay_ms: int = 60
    """What a campaign takes on a busy machine: after a broken stream the second candidate of a
    group waits twice as long for the first."""
    append_bytes_max: int = 1 << 20
    inflight_messages_max: int = 256
    inflight_bytes_max: int = 8 << 20
    uncommitted_bytes_max: int = 16 << 20
    """Proposals of one group beyond this are refused as overloaded."""
    apply_bytes_max: int = 4 << 20
    """Committed entries handed out at a time: a restart does not read a whole log at once."""
    log_keep_entries: int = 5_000
    """Entries of a log that are kept for followers a little behind; twice as many are truncated."""
    log_entries_max: int = 100_000
    """A log longer than this is truncated although a follower that answers still needs it: that
    one gets a snapshot."""
    log_cache_bytes_max: int = 1 << 20
    """Persisted and applied entries of one group kept in memory for followers a little behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipConfig:
    """Failure detection. It informs status and events; it never moves data by itself."""

    heartbeat_interval_ms: int = 250
    suspect_after_ms: int = 1_000
    """Silence after which a node is suspected."""
    fail_after_ms: int = 5_000
    """Silence after which a node is called failed."""
    forming_retry_ms: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationConfig:
    """Transactions and replicas."""

    coordinator_silence_ms: int = 1_000
    """How long an intent's coordinator may be silent before somebody else decides for it."""
    sweep_interval_ms: int = 500
    dedupe_retention_ms: int = 3_600_000
    history_retention_ms: int = 86_400_000
    """How long old versions, deletions and the changes of feeds are kept: a day."""
    dedupe_entries_max: int = 100_000
    """Per partition; beyond it a request with an Idempotency-Key is refused as overloaded."""
    transaction_horizon_ms: int = 600_000
    """A prepare or staging that began longer ago is refused, so refusals can be forgotten."""
    clock_ceiling_ahead_ms: int = 3_000
    """The clock's ceiling is persisted this far ahead, so that it seldom costs a sync."""
    clock_offset_ms_max: int = 500
    snapshot_chunk_bytes: int = 256 << 10
    """What either side of a snapshot has in memory: a chunk takes each two milliseconds."""
    snapshot_bytes_per_s: int = 64 << 20
    """What a node takes in of snapshots, all together: about half of what a core could."""
    full_sync_interval_ms: int = 300_000
    """Between two comparisons of the replicas of a partition."""
    full_sync_share: float = 0.01
    """Of a core: what reading for comparisons may take, about 5,000 pairs/s."""
    snapshots_incoming_max: int = 2
    """Snapshots that a node takes in at a time; other senders come again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """The disk of this node."""

    reserve_bytes: int = 256 << 20
    """Room kept free for the database's own bookkeeping, on a small disk at most a sixteenth of it;
    when it is touched, writes of clients are refused. Four times a memtable: the flush of what is
    in memory must not fail for want of room, and nor must opening the store."""
    reopen_after_ms: int = 500
    """Between two tries to open the store again after its disk was full; grows to ten times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitConfig:
    """Bounds on what one request may ask; each has its own clear error."""

    body_bytes_max: int = 16 << 20
    entity_bytes_max: int = 1 << 20
    property_count_max: int = 1_000
    property_name_bytes_max: int = 256
    label_count_max: int = 100
    label_bytes_max: int = 256
    batch_operations_max: int = 10_000
    transaction_operations_max: int = 1_000
    transaction_bytes_max: int = 8 << 20
    """What a transaction may write in one partition: it is one entry of its log."""
    detach_edges_max: int = 1_000_000
    """Edges that a vertex may have to be deleted with them."""
    detach_step_edges_max: int = 1_000
    """With at most so many, all goes in one step; with more, the edges follow in chunks."""
    detach_chunk_keys_max: int = 1_000
    """Keys in one log entry of such a chunk."""
    transaction_detach_edges_max: int = 10_000
    """As an operation among others: the edges are part of what the transaction writes at once."""
    inflight_requests_max: int = 4_096
    """Writes of this node that wait for their outcome; beyond it 503 overloaded."""
    timeout_ms: int = 5_000
    timeout_ms_max: int = 60_000
    query_rows_max: int = 10_000
    query_depth_max: int = 50
    query_visited_max: int = 1_000_000
    """Vertices; of a traversal whose rows are edges, edges as well."""
    query_scanned_max: int = 5_000_000
    query_held_max: int = 1_000_000
    """Edges and ways that a path with weights holds in memory, at 0.3 kB each."""
    query_bytes_max: int = 32 << 20
    event_queue_max: int = 10_000
    """Messages that wait for one WebSocket reader; beyond it the reader is closed with 1013."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """The configuration of one node. ``partition_count`` and ``replication_factor`` found a cluster
    and are remembered by it; a node that joins takes them from the cluster."""

    replication_factor: int = 3
    partition_count: int = 64
    virtual_nodes: int = 100
    zone: str | None = None
    role: Literal["voter", "witness"] = "voter"
    """A witness is a learner of every partition: it serves reads, and never votes or leads."""
    raft: RaftConfig = field(default_factory=RaftConfig)
    membership: MembershipConfig = field(default_factory=MembershipConfig)
    replication: ReplicationConfig = field(default_factory=ReplicationConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    limits: LimitConfig = field(default_factory=LimitConfig)

    def __post_init__(self) -> None:
        problems = [
            {"where": name, "why": why}
            for name, why, bad in (
                ("replication_factor", "must be 1 to 7", not 1 <= self.replication_factor <= 7),
                ("partition_count", "must be 1 to 1024", not 1 <= self.partition_count <= 1024),
                ("virtual_nodes", "must be 1 to 1000", not 1 <= self.virtual_nodes <= 1000),
            )
            if bad
        ]
        if problems:
            detail = "; ".join(f"{p['where']} {p['why']}" for p in problems)
            raise InvalidRequest(detail, errors=problems)
