"""Which nodes have room on their disks, and what follows from it.

Every node looks at its own disk and tells the others what it saw, often enough that a lost word
does not matter. A write of a client needs room on a majority of its partition's voters; so it is
refused while the disks still take what keeps the cluster alive: terms, votes, decisions, clocks.
A node that has no replicas any more, since its disk failed or was filled to the last byte, says so,
and the groups that it led elect another leader at once.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cluster_core.errors import StorageFull
from cluster_core.ports import Engine, StorageState
from cluster_core.replication.host import ReplicationHost
from cluster_core.replication.mesh import Mesh
from cluster_core.types import NodeId

__all__ = ["StorageWatch"]


class _Told(msgspec.Struct, array_like=True, frozen=True):
    state: StorageState
    has_replicas: bool


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Told).decode


class StorageWatch:
    """See the module. ``publish(type, node, detail)`` reports StorageFull and StorageRecovered;
    ``was_full`` is what was reported last of this node, before its store was opened again."""

    def __init__(
        self,
        engine: Engine,
        host: ReplicationHost,
        mesh: Mesh,
        publish: Callable[[str, NodeId, str], None],
        *,
        was_full: bool,
    ) -> None:
        self._engine = engine
        self._host = host
        self._mesh = mesh
        self._publish = publish
        self._peers: dict[NodeId, _Told] = {}
        self._reported = {host.node_id} if was_full else set()
        """The nodes whose disks are full as far as was published."""
        mesh.handle("storage", self._serve)

    @property
    def state(self) -> StorageState:
        """Of this node."""
        error = self._host.storage_error
        if error is None:
            return self._engine.state
        return "full" if isinstance(error, StorageFull) else "failed"

    def states(self) -> dict[NodeId, StorageState]:
        """Of this node and of the peers that told theirs."""
        told = {peer: self._peers[peer].state for peer in sorted(self._peers)}
        return {self._host.node_id: self.state, **told}

    @property
    def without_room(self) -> frozenset[NodeId]:
        return frozenset(node for node, state in self.states().items() if state != "ok")

    def look(self) -> None:
        """Look at this node's disk, and tell the others."""
        if self._host.storage_error is None:
            self._engine.has_room()
        word = _encode(_Told(self.state, self._host.storage_error is None))
        for peer in sorted(self._mesh.peers):
            self._mesh.tell(peer, "storage", word)
        self._note(self._host.node_id, self.state)
        self._host.set_full(self.without_room)

    def on_peer_down(self, peer: NodeId) -> None:
        """What it told is of no use any more: it is not there to take anything."""
        self._peers.pop(peer, None)

    async def _serve(self, peer: NodeId, body: bytes) -> bytes:
        told, before = _decode(body), self._peers.get(peer)
        self._peers[peer] = told
        if not told.has_replicas and (before is None or before.has_replicas):
            self._host.on_peer_down(peer)
        if before is None or before.state != told.state:
            self._note(peer, told.state)
            self._host.set_full(self.without_room)
        return b""

    def _note(self, node: NodeId, state: StorageState) -> None:
        is_full, was_full = state == "full", node in self._reported
        if is_full and not was_full:
            self._reported.add(node)
            self._publish("StorageFull", node, f"the disk of {node} is full")
        elif was_full and state == "ok":
            self._reported.discard(node)
            self._publish("StorageRecovered", node, f"the disk of {node} has room again")
