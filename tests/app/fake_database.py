"""A database that keeps what it is asked in a list, and answers from a few dictionaries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from cluster_core.config import ClusterConfig, LimitConfig
from cluster_core.errors import DependencyFailed, KotobaError, NotFound
from cluster_core.events import Event
from cluster_core.graph.entities import Edge, Vertex
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    Operation,
    OperationResult,
    TransactionResult,
)
from cluster_core.query.plan import Blocks, Get, Query
from cluster_core.query.planner import Explanation, explain
from cluster_core.query.results import BlockRow, QueryResult, Row, Statistics
from cluster_core.status import (
    ClusterStatus,
    HealthStatus,
    IndexStatus,
    MembershipStatus,
    MemberStatus,
    PartitionsStatus,
    PartitionStatus,
    ReadyStatus,
    ReplicaStatus,
    ReplicationStatus,
    StorageStatus,
)

TIMESTAMP = 1_795_447_000_123 << 16 | 7
TIMESTAMP_TEXT = "1795447000123.00007"


def digest_of(name: str) -> bytes:
    return sha256(name.encode()).digest()


def vertex(name: str, **properties: Any) -> Vertex:
    return Vertex(
        digest_of(name), digest_of(name + "'"), ("Person",), properties, TIMESTAMP, TIMESTAMP
    )


def edge(name: str, source: str, target: str, **properties: Any) -> Edge:
    return Edge(
        digest_of(name),
        digest_of(name + "'"),
        "KNOWS",
        digest_of(source),
        digest_of(target),
        properties,
        TIMESTAMP,
        TIMESTAMP,
    )


class FakeSubscription:
    """Gives the events of a list, then what is put into its queue; an exception there is raised."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await self.queue.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    def close(self) -> None:
        self.closed = True


class FakeDatabase:
    """``failure`` is raised by every call, ``entities`` are what Get finds, ``rows`` all else."""

    node_id = "node1"

    def __init__(self, limits: LimitConfig | None = None) -> None:
        self.config = ClusterConfig(limits=limits or LimitConfig())
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.failure: BaseException | None = None
        self.failing: dict[int, KotobaError] = {}
        self.entities: dict[bytes, Vertex | Edge] = {}
        self.rows: list[Row] = []
        self.cursor: str | None = None
        self.blocks: dict[bytes, bytes] = {}
        self.blocks_here: dict[bytes, bytes] = {}
        """Those that an eventual read finds."""
        self.rows_max: int | None = None
        self.health = HealthStatus(is_healthy=True, failed_nodes_count=0, reasons=[])
        self.ready = ReadyStatus(
            is_ready=True,
            joined=True,
            storage_ok=True,
            partitions_with_leader=64,
            partition_count=64,
            missing=[],
        )
        self.subscription = FakeSubscription()
        self.declared: dict[tuple[str, str], IndexStatus] = {}

    @property
    def call(self) -> tuple[Any, dict[str, Any]]:
        """The only call there was: what was asked, and how."""
        assert len(self.calls) == 1
        return self.calls[0]

    def _note(self, what: Any, **how: Any) -> None:
        self.calls.append((what, how))
        if self.failure is not None:
            raise self.failure

    async def execute_operation(self, operation: Operation, **how: Any) -> OperationResult:
        self._note(operation, **how)
        return self._result(operation)

    async def execute_batch(
        self, operations: Sequence[BatchOperation], **how: Any
    ) -> list[OperationResult | KotobaError]:
        self._note(list(operations), **how)
        results: list[OperationResult | KotobaError] = []
        failed: set[str] = set()
        for index, item in enumerate(operations):
            missing = sorted(failed & set(item.refs.values()))
            if missing:
                results.append(DependencyFailed("it failed", ref=missing[0]))
            else:
                results.append(self.failing.get(index) or self._result(item.operation))
            if isinstance(results[-1], KotobaError) and item.ref is not None:
                failed.add(item.ref)
        return results

    async def execute_transaction(
        self, operations: Sequence[BatchOperation], **how: Any
    ) -> TransactionResult:
        self._note(list(operations), **how)
        for index, error in sorted(self.failing.items()):
            error.extra["index"] = index
            raise error
        return TransactionResult([self._result(one.operation) for one in operations], TIMESTAMP)

    def _result(self, operation: Operation) -> OperationResult:
        if isinstance(operation, CreateNode | CreateEdge):
            return OperationResult(digest_of("new"), digest_of("version"), 17, TIMESTAMP, True)
        return OperationResult(operation.digest, digest_of("version"), 17, TIMESTAMP, False)

    async def execute_query(self, query: Query, **how: Any) -> QueryResult:
        self._note(query, **how)
        rows = self.rows
        if isinstance(query, Get):
            rows = [self.entities[d] for d in query.cids if d in self.entities]
        if isinstance(query, Blocks):
            known = self.blocks if how["consistency"] == "strong" else self.blocks_here
            rows = [BlockRow(digest=d, block=known[d]) for d in query.cids if d in known]
        return QueryResult(
            rows=rows[: self.rows_max],
            truncated=self.rows_max is not None and len(rows) > self.rows_max,
            timestamp=TIMESTAMP,
            statistics=Statistics(partitions=64, cluster_nodes=3, scanned=9, elapsed_ms=1.23456),
            cursor=self.cursor,
        )

    async def explain_query(self, query: Query, **how: Any) -> Explanation:
        self._note(query, **how)
        return explain(query, [], 64)

    async def declare_index(self, label: str, name: str, **how: Any) -> tuple[IndexStatus, bool]:
        self._note(("declare", label, name), **how)
        is_new = (label, name) not in self.declared
        self.declared[label, name] = IndexStatus(
            label=label, property=name, state="building", partitions_done=3, partition_count=64
        )
        return self.declared[label, name], is_new

    async def drop_index(self, label: str, name: str, **how: Any) -> IndexStatus:
        self._note(("drop", label, name), **how)
        if (label, name) not in self.declared:
            raise NotFound(f"there is no index on {label}.{name}")
        return self.declared.pop((label, name))

    async def indexes(self, **how: Any) -> list[IndexStatus]:
        self._note("indexes", **how)
        return list(self.declared.values())

    async def get_status(self) -> ClusterStatus:
        self._note("status")
        return ClusterStatus(
            cluster_id="c1",
            node_id="node1",
            version="0.1.0",
            leader="node1",
            term=3,
            membership=MembershipStatus(
                total_nodes=1,
                active_nodes=1,
                suspected_nodes=0,
                failed_nodes=0,
                has_quorum=True,
                health_score=1.0,
                nodes=[
                    MemberStatus(
                        node_id="node1",
                        address="127.0.0.1:8080",
                        state="active",
                        leads=21,
                        replicas=64,
                    )
                ],
            ),
            partitions=PartitionsStatus(
                partition_count=64,
                replication_factor=3,
                without_leader=0,
                under_replicated=0,
                moving=0,
                variance=0.2,
            ),
            replication=ReplicationStatus(
                is_healthy=True,
                replication_lag_ms={"node2": 3.1},
                total_queued_operations=0,
                operations_processed=10452,
                operations_failed=2,
            ),
            storage=StorageStatus(state="ok", disk_bytes=123, disk_free_bytes=456),
        )

    async def check_health(self) -> HealthStatus:
        self._note("health")
        return self.health

    async def readiness(self) -> ReadyStatus:
        self._note("ready")
        return self.ready

    async def partitions(self) -> list[PartitionStatus]:
        self._note("partitions")
        return [_partition(0), _partition(1)]

    async def partition(self, partition: int) -> PartitionStatus:
        self._note(partition)
        if partition >= self.config.partition_count:
            raise NotFound(f"there is no partition {partition}")
        return _partition(partition)

    async def transfer_leadership(self, partition: int, node_id: str) -> PartitionStatus:
        self._note(partition, node_id=node_id)
        if partition >= self.config.partition_count:
            raise NotFound(f"there is no partition {partition}")
        return msgspec.structs.replace(_partition(partition), leader=node_id)

    async def partition_of(self, digest: bytes) -> PartitionStatus:
        self._note(digest)
        return _partition(5)

    def subscribe_events(
        self, types: Collection[str] | None = None, **how: Any
    ) -> FakeSubscription:
        self._note(types, **how)
        return self.subscription


def _partition(number: int) -> PartitionStatus:
    return PartitionStatus(
        partition=number,
        leader="node1",
        term=2,
        commit_index=10,
        applied_index=9,
        replicas=[ReplicaStatus(node_id="node1", replica_id=4, role="voter", match_index=10)],
        preferred=["node1"],
    )
