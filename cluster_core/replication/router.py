"""Who leads which group, as far as this node knows; and how to ask that node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any

import msgspec

from cluster_core.errors import NoLeader, OutcomeUnknown, RetryError, Unavailable
from cluster_core.placement.table import GroupTable
from cluster_core.replication.evaluation import Evaluation
from cluster_core.replication.host import ReplicationHost
from cluster_core.replication.mesh import Mesh
from cluster_core.replication.replica import Replica
from cluster_core.types import META_GROUP, GroupId, NodeId

__all__ = ["Router", "confirm"]

RETRY_DELAY_S = 0.02
"""Between two tries to reach a leader; an election takes tens of milliseconds."""

ANNOUNCE_AGAIN = 8
"""Every so many announcements say everything again: about every two seconds."""


class Router:
    """See the module. Groups without a replica here are known by hints of those that have one.

    ``tables`` is kept up to date by its owner.
    """

    def __init__(
        self, host: ReplicationHost, mesh: Mesh, tables: dict[GroupId, GroupTable]
    ) -> None:
        self.host = host
        self.mesh = mesh
        self.tables = tables
        self._hints: dict[GroupId, NodeId] = {}
        self._announced: dict[NodeId, frozenset[GroupId]] = {}
        self._announcements = 0
        mesh.handle("leader_of", self._serve_leader_of)
        mesh.handle("leading", self._serve_leading)

    @property
    def node_id(self) -> NodeId:
        return self.host.node_id

    def leading(self, group: GroupId) -> Replica:
        """This node's replica of ``group``, which leads and may evaluate. Raises NoLeader."""
        replica = self.host.replicas.get(group)
        if replica is None or replica.evaluation is None:
            raise NoLeader(f"{self.node_id} does not lead group {group}")
        return replica

    def led_here(self) -> list[GroupId]:
        """The groups of partitions that this node leads and may evaluate for."""
        return [
            group
            for group, replica in self.host.replicas.items()
            if replica.evaluation is not None and group != META_GROUP
        ]

    def leader(self, group: GroupId) -> NodeId | None:
        replica = self.host.replicas.get(group)
        return self._hints.get(group) if replica is None else replica.leader

    def ready_leader(self, group: GroupId) -> NodeId | None:
        """The leader of ``group`` if it is known and, when it is this node, may evaluate."""
        replica = self.host.replicas.get(group)
        if replica is None:
            return self._hints.get(group)
        if replica.is_leader:
            return self.node_id if replica.evaluation is not None else None
        return replica.leader

    async def find_leader(self, group: GroupId, deadline: float) -> NodeId:
        """The node that leads ``group`` and is ready to; waits for an election. Raises NoLeader, or
        Unavailable when this node stops."""
        loop = asyncio.get_running_loop()
        while True:
            if self.host.is_closed:
                raise Unavailable(f"{self.node_id} is stopping")
            replica = self.host.replicas.get(group)
            node = self.ready_leader(group)
            if node is not None:
                return node
            remaining = deadline - loop.time()
            if remaining <= 0:
                raise NoLeader(f"no leader is known for partition {group - 1}")
            replica = self.host.replicas.get(group)
            if replica is None:
                await self._ask_for_leader(group, remaining)
            else:
                await asyncio.wait([replica.changed_role()], timeout=remaining)

    async def leaders(
        self, groups: Sequence[GroupId], deadline: float
    ) -> dict[GroupId, NodeId | None]:
        """The leader of each of ``groups``, looked for at the same time; None where none is known
        by ``deadline``."""
        found = await asyncio.gather(*(self._leader_or_none(group, deadline) for group in groups))
        return dict(zip(groups, found, strict=True))

    async def _leader_or_none(self, group: GroupId, deadline: float) -> NodeId | None:
        try:
            return await self.find_leader(group, deadline)
        except (NoLeader, Unavailable):
            return None

    def learn(self, group: GroupId, node: NodeId) -> None:
        """``node`` leads ``group``, of which there is no replica here."""
        self._hints[group] = node

    def forget(self, group: GroupId) -> None:
        """The hint turned out wrong."""
        self._hints.pop(group, None)

    def on_peer_down(self, peer: NodeId) -> None:
        """Hints that name ``peer`` are worth nothing now."""
        self._hints = {group: node for group, node in self._hints.items() if node != peer}
        self._announced.pop(peer, None)

    async def _ask_for_leader(self, group: GroupId, remaining: float) -> None:
        for node in self.tables[group].members.values():
            try:
                body = group.to_bytes(2, "big")
                answer = await self.mesh.request(
                    node, "leader_of", body, timeout=min(1.0, remaining)
                )
            except (RetryError, OutcomeUnknown):
                continue
            if answer:
                self._hints[group] = answer.decode()
                return
        await asyncio.sleep(min(RETRY_DELAY_S, remaining))

    def announce(self) -> None:
        """Tell nodes without replicas of some groups what is led here: when that has changed, and
        now and then all the same, since what is told may be lost."""
        self._announcements += 1
        if self._announcements % ANNOUNCE_AGAIN == 0:
            self._announced.clear()
        led = frozenset(
            group for group, replica in self.host.replicas.items() if replica.evaluation is not None
        )
        for peer in sorted(self.mesh.peers):
            foreign = frozenset(group for group in led if not self._follows(peer, group))
            if self._announced.get(peer, frozenset()) != foreign:
                self._announced[peer] = foreign
                self.mesh.tell(peer, "leading", msgspec.msgpack.encode(sorted(foreign)))

    def _follows(self, peer: NodeId, group: GroupId) -> bool:
        """Whether ``peer`` surely has a replica, and so need not be told who leads."""
        table = self.tables[group]
        return table.settled and peer in table.members.values()

    async def _serve_leading(self, peer: NodeId, body: bytes) -> bytes:
        led = msgspec.msgpack.decode(body, type=list[GroupId])
        self._hints = {group: node for group, node in self._hints.items() if node != peer}
        self._hints.update(dict.fromkeys(led, peer))
        return b""

    async def _serve_leader_of(self, peer: NodeId, body: bytes) -> bytes:
        replica = self.host.replicas.get(int.from_bytes(body, "big"))
        return b"" if replica is None or replica.leader is None else replica.leader.encode()

    async def at_leader(
        self, group: GroupId, deadline: float, ask: Callable[[NodeId], Awaitable[bytes]]
    ) -> bytes:
        """``await ask(leader of group)``, again after an answer that means "not executed"."""
        loop = asyncio.get_running_loop()
        while True:
            node = await self.find_leader(group, deadline)
            try:
                return await ask(node)
            except NoLeader:
                self.forget(group)
                if loop.time() + RETRY_DELAY_S >= deadline:
                    raise
                await asyncio.sleep(RETRY_DELAY_S)
            except OutcomeUnknown:
                self.forget(group)
                raise


class confirm:  # noqa: N801
    """What was evaluated here just now holds: leadership is confirmed and all in the log applied.

    An evaluation that writes nothing (not found, a failed precondition, a repeated request) saw the
    overlay or the state of a leader that may be deposed, so its answer waits for this, as a strong
    read does. What "now" is, is taken at the call; the awaiting may come later. Raises NoLeader
    when the leadership did not last. One that is never awaited costs nothing.
    """

    __slots__ = ("_evaluation", "_index", "_replica")

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._evaluation = replica.evaluation
        self._index = replica.raft.last_index

    def __await__(self) -> Generator[Any, None, None]:
        return _confirmed(self._replica, self._evaluation, self._index).__await__()


async def _confirmed(replica: Replica, evaluation: Evaluation | None, index: int) -> None:
    await replica.read_barrier()
    await replica.reached_while_leading(index)
    await replica.holds.passed(replica.applied_timestamp)
    if evaluation is None or replica.evaluation is not evaluation:
        raise NoLeader("leadership was lost; ask again")
