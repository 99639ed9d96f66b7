"""What the gateway asks of the database that it serves: ``KotobaCluster``, or a fake in a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Literal, Protocol

from cluster_core.config import ClusterConfig
from cluster_core.errors import KotobaError
from cluster_core.events import Event
from cluster_core.graph.operations import (
    BatchOperation,
    Operation,
    OperationResult,
    TransactionResult,
)
from cluster_core.query.plan import Query
from cluster_core.query.planner import Explanation
from cluster_core.query.results import QueryResult
from cluster_core.status import (
    ClusterStatus,
    HealthStatus,
    IndexStatus,
    PartitionStatus,
    ReadyStatus,
)
from cluster_core.types import Consistency, Digest, NodeId, Timestamp

__all__ = ["Database", "EventSubscription", "WriteConsistency"]

WriteConsistency = Literal["strong", "eventual"]


class EventSubscription(Protocol):
    """Events in order; raises :class:`~cluster_core.events.SlowReader` once some were missed."""

    def __aiter__(self) -> AsyncIterator[Event]: ...
    def close(self) -> None: ...


class Database(Protocol):
    """One node of the cluster. Every method may raise a KotobaError."""

    @property
    def node_id(self) -> NodeId: ...
    @property
    def config(self) -> ClusterConfig: ...

    async def execute_operation(
        self,
        operation: Operation,
        *,
        consistency: WriteConsistency = "strong",
        idempotency_key: str | None = None,
        principal: str = "",
        nonce: bytes | None = None,
        forward: bool = True,
        timeout_ms: int | None = None,
    ) -> OperationResult:
        """``forward=False``: raises NotLeader (``leader``, and ``nonce`` for a creation)."""
        ...

    async def execute_batch(
        self,
        operations: Sequence[BatchOperation],
        *,
        consistency: WriteConsistency = "strong",
        idempotency_key: str | None = None,
        principal: str = "",
        timeout_ms: int | None = None,
    ) -> list[OperationResult | KotobaError]: ...

    async def execute_transaction(
        self,
        operations: Sequence[BatchOperation],
        *,
        idempotency_key: str | None = None,
        principal: str = "",
        timeout_ms: int | None = None,
    ) -> TransactionResult:
        """Raises the error of the first operation that failed, with its ``index``."""
        ...

    async def execute_query(
        self,
        query: Query,
        *,
        consistency: Consistency = "strong",
        as_of: Timestamp | None = None,
        session: Timestamp | None = None,
        max_staleness_ms: int | None = None,
        timeout_ms: int | None = None,
    ) -> QueryResult: ...

    async def explain_query(
        self, query: Query, *, as_of: Timestamp | None = None
    ) -> Explanation: ...

    async def declare_index(
        self, label: str, name: str, *, timeout_ms: int | None = None
    ) -> tuple[IndexStatus, bool]:
        """The second value says whether it is new."""
        ...

    async def drop_index(
        self, label: str, name: str, *, timeout_ms: int | None = None
    ) -> IndexStatus: ...
    async def indexes(self, *, timeout_ms: int | None = None) -> list[IndexStatus]: ...

    async def get_status(self) -> ClusterStatus: ...
    async def check_health(self) -> HealthStatus: ...
    async def readiness(self) -> ReadyStatus: ...
    async def partitions(self) -> list[PartitionStatus]: ...
    async def partition(self, partition: int) -> PartitionStatus: ...
    async def transfer_leadership(self, partition: int, node_id: NodeId) -> PartitionStatus: ...
    async def partition_of(self, digest: Digest) -> PartitionStatus: ...

    def subscribe_events(
        self,
        types: Collection[str] | None = None,
        *,
        labels: Collection[str] | None = None,
        partitions: Collection[int] | None = None,
        changes: bool = True,
        since: Timestamp | None = None,
    ) -> EventSubscription: ...
