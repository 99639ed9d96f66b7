"""What the query engine asks of the cluster node that it runs on."""

from __future__ import annotations

from collections.abc import Collection, Sequence, Set
from typing import Protocol

import msgspec

from cluster_core.graph.indexes import IndexDefinition
from cluster_core.ports import Engine
from cluster_core.types import Digest, NodeId, Timestamp

__all__ = ["QueryHost", "ReadAgain", "ReadPoint"]


class ReadPoint(msgspec.Struct, frozen=True, array_like=True):
    """The snapshot that a query reads: the same on every node that works for it.

    ``applied`` holds, for partitions that are read strongly, the log index that a replica must have
    applied before it may serve ``timestamp``. ``skip_intents`` is set by ``eventual`` reads, which
    take what is there.
    """

    timestamp: Timestamp
    applied: dict[int, int] = {}
    skip_intents: bool = False


class ReadAgain(Exception):
    """A strong read met a transaction that committed above its time: it starts again there."""

    def __init__(self, timestamp: Timestamp) -> None:
        super().__init__(f"read again at {timestamp}")
        self.timestamp = timestamp


class QueryHost(Protocol):
    """A cluster node, seen from a query. All calls come from the event loop's thread."""

    @property
    def node_id(self) -> NodeId: ...

    @property
    def partition_count(self) -> int: ...

    @property
    def engine(self) -> Engine: ...

    def steady_s(self) -> float:
        """Of the port ``Clock``."""
        ...

    def indexes(self) -> Sequence[IndexDefinition]:
        """The property indexes that are READY in every partition, as far as this node knows."""
        ...

    def serving_node(self, partition: int, point: ReadPoint) -> NodeId:
        """A node with a replica of ``partition``: this one when it has one that may serve.

        Raises NoLeader where ``point`` was made for a replica here that has moved away since.
        """
        ...

    async def run_remote(self, node: NodeId, task: bytes) -> bytes:
        """Run :func:`~cluster_core.query.local.run_task_bytes` at ``node``.

        Raises the KotobaError that it raised there, or one for a node that cannot be reached.
        """
        ...

    async def wait_applied(self, partition: int, index: int) -> None:
        """Return when the local replica of ``partition`` has applied ``index``."""
        ...

    def require_history(self, partition: int, timestamp: Timestamp) -> object:
        """Raise NoLeader where there is no local replica of ``partition``, and HistoryCollected
        where it no longer keeps what a read at ``timestamp`` sees. Asked again when all is read: a
        collection may overtake it, a snapshot may replace the replica, and one that moved away may
        have come back. Then it gives another object than before."""
        ...

    def horizon(self, partition: int) -> Timestamp:
        """Of the local replica: what only reads below it see is given up, sooner or later."""
        ...

    def detaching(self, partition: int) -> Set[Digest]:
        """Vertices, of any partition, that an undecided intent holds here with all their edges: an
        edge of one of them is there, or not, only once the vertex is settled in this partition. It
        is looked at after the edge was read; mostly there is none."""
        ...

    async def settle(
        self,
        partition: int,
        timestamp: Timestamp,
        digests: Collection[Digest] | None,
        *,
        past_holds: bool = False,
    ) -> None:
        """Return when every intent prepared at or below ``timestamp`` on ``digests`` is decided.

        An intent is *on* a digest when it locks it: it may write its record, or an adjacency entry
        of it (``source`` of OUT, ``target`` of IN). None means every intent of the partition, with
        ``past_holds`` but those of :meth:`detaching` that write nothing themselves: for who looks
        at no edge, or settles the ends of each that he meets. What
        was decided is applied to the engine by then. Raises
        :class:`ReadAgain` when one committed above ``timestamp`` and the read is strong.
        """
        ...
