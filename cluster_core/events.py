"""What happens in the cluster, as values; and the bus that carries them to subscribers."""

from __future__ import annotations

from typing import Final

import msgspec

from cluster_core.types import NodeId, Timestamp

__all__ = ["CLUSTER_EVENT_TYPES", "Change", "ClusterEvent", "Event", "Resolved", "SlowReader"]

CLUSTER_EVENT_TYPES: Final = (
    "NodeJoined",
    "NodeLeft",
    "NodeSuspected",
    "NodeFailed",
    "NodeRecovered",
    "LeaderElected",
    "PartitionMoved",
    "ConfigChanged",
    "StorageFull",
    "StorageRecovered",
    "ReplicaDiverged",
    "ReplicaRebuilt",
)


class ClusterEvent(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Something that this node saw happen in the cluster.

    ``partition`` and ``term`` go with LeaderElected, ``partition`` with ReplicaDiverged and
    ReplicaRebuilt, where ``node_id`` has the replica; without a partition it is the meta group's.
    """

    type: str
    node_id: NodeId
    at: str
    """RFC 3339, by this node's clock."""
    id: str
    partition: int | None = None
    term: int | None = None
    detail: str | None = None


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One committed change of the graph, in the order of its partition's log."""

    op: str
    cid: str
    version: str | None
    partition: int
    timestamp: Timestamp
    label: str | None = None
    """Of an edge; labels of a node are in ``labels``."""
    labels: tuple[str, ...] = ()


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing with a timestamp up to ``timestamp`` will come any more."""

    timestamp: Timestamp


Event = ClusterEvent | Change | Resolved


class SlowReader(Exception):
    """A subscriber's queue overflowed and its subscription is over: it missed events.

    ``last_resolved`` is the last :class:`Resolved` that it was given, where there was one.
    """

    def __init__(self, last_resolved: Timestamp | None) -> None:
        super().__init__(f"the reader was too slow; it has everything up to {last_resolved}")
        self.last_resolved = last_resolved
