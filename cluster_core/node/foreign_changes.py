"""Changes of partitions that have no replica here, for this node's subscribers.

A node sees the changes of its own replicas as it applies them. While it has subscribers, it asks
its peers to send it those of the partitions that they lead and it does not hold. What is in flight
while such a leadership moves can be missed: these are live events, not a log.
"""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from cluster_core.events import Change
from cluster_core.node.bus import EventBus
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import Router
from cluster_core.types import NodeId

__all__ = ["ForeignChanges"]

WATCH_S: Final = 2.0
"""How long a peer goes on sending after it was last asked."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Change]).decode


class ForeignChanges:
    """See the module."""

    def __init__(self, router: Router, bus: EventBus) -> None:
        self._router = router
        self._bus = bus
        self._watchers: dict[NodeId, float] = {}
        self._outgoing: dict[NodeId, list[Change]] = {}
        router.mesh.handle("watch", self._serve_watch)
        router.mesh.handle("changes", self._serve_changes)
        self._has_foreign = any(
            router.node_id not in table.members.values() for table in router.tables.values()
        )

    @property
    def wanted(self) -> bool:
        """Whether any peer wants to be told of changes."""
        return bool(self._watchers)

    def keep_asking(self, now: float) -> None:
        """Called now and then, more often than every :data:`WATCH_S`."""
        self._watchers = {peer: until for peer, until in self._watchers.items() if until > now}
        if self._has_foreign and self._bus.change_listeners:
            for peer in sorted(self._router.mesh.peers):
                self._router.mesh.tell(peer, "watch", b"")

    def relay(self, replica: Replica, change: Change) -> None:
        """Send a change of a group that is led here to those who wait for it and do not hold it."""
        if not replica.is_leader:
            return
        for peer in self._watchers:
            if peer not in replica.members.values():
                if not self._outgoing:
                    asyncio.get_running_loop().call_soon(self._send)
                self._outgoing.setdefault(peer, []).append(change)

    def _send(self) -> None:
        outgoing, self._outgoing = self._outgoing, {}
        for peer, changes in outgoing.items():
            self._router.mesh.tell(peer, "changes", _encode(changes))

    async def _serve_watch(self, peer: NodeId, body: bytes) -> bytes:
        self._watchers[peer] = asyncio.get_running_loop().time() + WATCH_S
        return b""

    async def _serve_changes(self, peer: NodeId, body: bytes) -> bytes:
        for change in _decode(body):
            self._bus.publish(change)
        return b""
