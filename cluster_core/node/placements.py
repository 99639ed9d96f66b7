"""Changes of the partition table: replicated state of the meta group, on top of the founding's.

What is wanted of a partition is changed by a command through the meta group's log, so its leader
gives every replica id once. Every node is a member of that group, so the table is local everywhere,
though it may be old: whoever acts on it asks first (:meth:`Placements.bring_up_to_date`). What the
nodes and the leaders of the partitions do about it is the business of ``residence.py`` and
``mover.py``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec

from cluster_core.config import ClusterConfig
from cluster_core.errors import (
    AlreadyExists,
    InvalidRequest,
    KotobaError,
    NoLeader,
    NotFound,
    OutcomeUnknown,
)
from cluster_core.hlc import HybridClock
from cluster_core.membership.forming import Founding
from cluster_core.placement.table import GroupTable, observed, with_learners, with_voters
from cluster_core.raft import Configuration, decode_configuration, encode_configuration
from cluster_core.replication.evaluation import Evaluation
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import Router, confirm
from cluster_core.storage import keys
from cluster_core.types import META_GROUP, GroupId, NodeId, ReplicaId, group_of

__all__ = ["Placements"]

_Serve = Callable[[NodeId, bytes], Any]


class _Change(msgspec.Struct, array_like=True, frozen=True):
    """``place`` voters at ``nodes``; ``move`` a replica from the first of them to the second; or
    ``prefer`` the first as leader."""

    kind: Literal["place", "move", "prefer"]
    group: GroupId
    nodes: list[NodeId]


class _Sight(msgspec.Struct, array_like=True, frozen=True):
    """What the leader of a group saw of it, while it had this version of the table."""

    group: GroupId
    version: int
    configuration: bytes
    highest: ReplicaId


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_change: Final = msgspec.msgpack.Decoder(_Change).decode
_decode_sight: Final = msgspec.msgpack.Decoder(_Sight).decode
_decode_table: Final = msgspec.msgpack.Decoder(GroupTable).decode


class Placements:
    """See the module. ``tables`` is the table as this node knows it, and kept up to date here;
    ``on_change(group, before, after)`` is told."""

    def __init__(
        self,
        router: Router,
        clock: HybridClock,
        config: ClusterConfig,
        founding: Founding,
        on_change: Callable[[GroupId, GroupTable, GroupTable], None],
    ) -> None:
        self.tables = router.tables
        self._founded = dict(router.tables)
        self._router = router
        self._clock = clock
        self._timeout_s = config.limits.timeout_ms / 1000
        self._founding = founding
        self._on_change = on_change
        self._seen = -1
        """Up to where the meta group's log is in ``tables``."""
        router.mesh.handle("placement.change", self._serve_change)
        router.mesh.handle("placement.sight", self._serve_sight)
        router.mesh.handle("placement.index", self._serve_index)

    # What this node knows.

    def refresh(self) -> None:
        """Take over what the meta group has applied here."""
        meta = self._router.host.replicas.get(META_GROUP)
        if meta is None or meta.failed is not None or meta.applied == self._seen:
            return
        self._seen = meta.applied
        for key, value in meta.table(keys.PLACEMENT):
            group, after = int.from_bytes(key, "big"), _decode_table(value)
            before = self.tables[group]
            if after == before:
                continue
            self.tables[group] = after
            replica = self._router.host.find(group)
            if replica is not None:
                replica.members = after.members
            self._on_change(group, before, after)

    async def bring_up_to_date(self, deadline: float) -> None:
        """The table here is no older than this call. Raises a KotobaError when that cannot be."""
        answer = await self._ask("placement.index", self._serve_index, b"", deadline)
        meta = self._router.host.replicas.get(META_GROUP)
        if meta is None:
            raise NoLeader("the partition table is not here at the moment; ask again")
        try:
            async with asyncio.timeout_at(deadline):
                await meta.reached(int.from_bytes(answer, "big"))
        except TimeoutError:
            raise OutcomeUnknown("the partition table did not arrive in time") from None
        self.refresh()

    # What others ask for. All of it returns once it is decided; the moving itself follows.

    async def place(self, partition: int, nodes: Sequence[NodeId], deadline: float) -> GroupTable:
        """Want the voters of ``partition`` at ``nodes``, in this order of preference to lead.

        Raises NotFound for an unknown partition or node, InvalidRequest for fewer than there are.
        """
        return await self._change(_Change("place", group_of(partition), list(nodes)), deadline)

    async def move(
        self, partition: int, source: NodeId, target: NodeId, deadline: float
    ) -> GroupTable:
        """Want a replica of ``partition`` at ``target`` in place of the one at ``source``.

        Raises NotFound where there is none at ``source``, AlreadyExists where ``target`` has one.
        """
        change = _Change("move", group_of(partition), [source, target])
        return await self._change(change, deadline)

    async def prefer(self, partition: int, node: NodeId, deadline: float) -> GroupTable:
        """Let ``node`` be the first that shall lead ``partition``. Raises InvalidRequest where it
        has no vote there."""
        return await self._change(_Change("prefer", group_of(partition), [node]), deadline)

    async def report(
        self,
        group: GroupId,
        version: int,
        configuration: Configuration,
        highest: ReplicaId,
        deadline: float,
    ) -> None:
        """Say what the confirmed leader of ``group`` saw while it had ``version`` of the table."""
        sight = _Sight(group, version, encode_configuration(configuration), highest)
        await self._ask("placement.sight", self._serve_sight, _encode(sight), deadline)

    async def _change(self, change: _Change, deadline: float) -> GroupTable:
        for node in change.nodes:
            if self._founding.member(node) is None:
                raise NotFound(f"there is no node {node}")
        if change.group not in self.tables or change.group == META_GROUP:
            raise NotFound(f"there is no partition {change.group - 1}")
        body = _encode(change)
        answer = await self._ask("placement.change", self._serve_change, body, deadline)
        return _decode_table(answer)

    async def _ask(self, method: str, serve: _Serve, body: bytes, deadline: float) -> bytes:
        """Ask the leader of the meta group."""

        async def ask(node: NodeId) -> bytes:
            if node == self._router.node_id:
                answer: bytes = await serve(node, body)
                return answer
            timeout = max(0.001, deadline - asyncio.get_running_loop().time())
            return await self._router.mesh.request(node, method, body, timeout=timeout)

        try:
            async with asyncio.timeout_at(deadline):
                return await self._router.at_leader(META_GROUP, deadline, ask)
        except TimeoutError:
            raise OutcomeUnknown("the meta group did not answer in time") from None

    # At the meta leader.

    async def _serve_index(self, peer: NodeId, body: bytes) -> bytes:
        index = await self._router.leading(META_GROUP).read_barrier()
        return index.to_bytes(8, "big")

    async def _serve_change(self, peer: NodeId, body: bytes) -> bytes:
        change = _decode_change(body)
        replica, evaluation = self._leading()
        before = self._table(evaluation, change.group)
        try:
            after = self._changed(before, change)
        except KotobaError:
            await confirm(replica)
            raise
        return _encode(await self._put(replica, change.group, before, after))

    async def _serve_sight(self, peer: NodeId, body: bytes) -> bytes:
        sight = _decode_sight(body)
        replica, evaluation = self._leading()
        before = self._table(evaluation, sight.group)
        if before.version == sight.version:
            configuration = decode_configuration(sight.configuration)
            after = observed(before, configuration, sight.highest)
            await self._put(replica, sight.group, before, after)
        return b""

    def _leading(self) -> tuple[Replica, Evaluation]:
        replica = self._router.leading(META_GROUP)
        assert replica.evaluation is not None
        return replica, replica.evaluation

    def _table(self, evaluation: Evaluation, group: GroupId) -> GroupTable:
        """The newest table of ``group``, those in flight included."""
        value = evaluation.plain(keys.placement(META_GROUP, group))
        return self._founded[group] if value is None else _decode_table(value)

    async def _put(
        self, replica: Replica, group: GroupId, before: GroupTable, after: GroupTable
    ) -> GroupTable:
        """In the turn of the loop that read ``before``."""
        if after == before:
            await confirm(replica)
            return after
        draft = replica.draft()
        draft.advance(self._clock.now())
        draft.put(keys.placement(META_GROUP, group), _encode(after))
        await replica.propose(draft, asyncio.get_running_loop().time() + self._timeout_s)
        return after

    def _changed(self, table: GroupTable, change: _Change) -> GroupTable:
        match change.kind:
            case "place":
                return self._placed(table, change.nodes)
            case "move":
                return self._moved(table, *change.nodes)
            case "prefer":
                return _preferring(table, change.nodes[0])

    def _placed(self, table: GroupTable, nodes: list[NodeId]) -> GroupTable:
        fewest = min(self._founding.replication_factor, len(table.voters))
        if len(set(nodes)) != len(nodes):
            raise _invalid("replicas", "a node can have one replica of a partition")
        if len(nodes) < fewest:
            raise _invalid("replicas", f"must be at least {fewest}")
        for node in nodes:
            self._require_may_vote(node)
        return with_voters(table, nodes)

    def _moved(self, table: GroupTable, source: NodeId, target: NodeId) -> GroupTable:
        replica = table.replica_at(source)
        if replica is None:
            raise NotFound(f"{source} has no replica of this partition")
        if table.replica_at(target) is not None:
            raise AlreadyExists(f"{target} has a replica of this partition")
        if replica in table.voters:
            self._require_may_vote(target)
            return with_voters(
                table, [target if node == source else node for node in table.voter_nodes]
            )
        learners = [table.members[one] for one in table.learners if one != replica]
        return with_learners(table, [*learners, target])

    def _require_may_vote(self, node: NodeId) -> None:
        member = self._founding.member(node)
        if member is None:
            raise NotFound(f"there is no node {node}")
        if member.role == "witness":
            raise _invalid("node_id", f"{node} is a witness, and votes nowhere")


def _preferring(table: GroupTable, node: NodeId) -> GroupTable:
    nodes = table.voter_nodes
    if node not in nodes:
        raise _invalid("node_id", f"{node} has no vote in this partition")
    return with_voters(table, [node, *(other for other in nodes if other != node)])


def _invalid(where: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{where} {why}", errors=[{"where": where, "why": why}])
