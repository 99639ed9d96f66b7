"""Which node should lead a group, and the ways in which leaderships move there without an election.

- *home*: to the first choice of the partition table, once it has been back for a while and has
  everything;
- *away*: from a node that should lead nothing, for its disk is full or its clock far ahead;
- *over*: from a node that stops, all of them;
- *on request*: to the node that somebody named, which is its home from then on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

import msgspec

from cluster_core.errors import OutcomeUnknown
from cluster_core.raft.roles import Role
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import Router
from cluster_core.types import GroupId, NodeId

__all__ = ["Leaderships"]

TRANSFERS_MAX: Final = 8
"""Leaderships sent home in one look: a node that comes back is not flooded."""

PREFER_AFTER_S: Final = 2.0
"""How long a peer must have been there before leaderships go home to it."""

HAND_OVER_LOOK_S: Final = 0.02

LEAVE_TIMEOUT_S: Final = 0.5
"""For the answer of a peer that is told that this node stops."""

TRANSFER_LOOK_S: Final = 0.05
"""Between two looks whether a requested leader leads, and two requests to hand over to it."""


class _Transfer(msgspec.Struct, array_like=True, frozen=True):
    group: GroupId
    node: NodeId


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Transfer).decode


class Leaderships:
    """See the module. ``peers_up`` says since when the stream to each peer stands, and is kept up
    to date by its owner."""

    def __init__(self, router: Router, peers_up: dict[NodeId, float]) -> None:
        self._router = router
        self._host = router.host
        self._tables = router.tables
        self._peers_up = peers_up
        self._leaving: set[NodeId] = set()
        """Peers that are up and about to stop: nothing is handed to them."""
        router.mesh.handle("leader.transfer", self._serve_transfer)
        router.mesh.handle("leader.leaving", self._serve_leaving)

    def on_peer_up(self, peer: NodeId) -> None:
        """If it was leaving, it has come back, or what it says comes after this."""
        self._leaving.discard(peer)

    def preferred(self, group: GroupId) -> NodeId:
        return self._tables[group].nodes[0]

    def send_home(self, now: float, unfit: Collection[NodeId]) -> None:
        """``unfit``: nodes that should lead nothing."""
        sent = 0
        for group, replica in self._host.replicas.items():
            home = self.preferred(group)
            since = self._peers_up.get(home)
            if sent == TRANSFERS_MAX or since is None or now - since < PREFER_AFTER_S:
                continue
            if home in unfit or home in self._leaving or home in replica.shunned:
                continue
            if replica.evaluation is not None and _is_level(replica, home):
                sent += self._host.transfer(replica, home)

    def send_away(self, unfit: Collection[NodeId], *, all_of_them: bool) -> None:
        """From this node to voters that are not ``unfit``: what its disk has no room for, where
        others have, or ``all_of_them``."""
        for replica in self._host.replicas.values():
            if all_of_them or (replica.room == "elsewhere" and replica.evaluation is not None):
                fit = [node for node in self._heirs(replica) if node not in unfit]
                if replica.is_leader:
                    self._transfer(replica, fit)

    async def lead_at(self, group: GroupId, node: NodeId, deadline: float) -> None:
        """Return when ``node``, which has a vote, leads ``group``. Raises OutcomeUnknown."""
        body = _encode(_Transfer(group, node))
        loop = asyncio.get_running_loop()
        while (leader := self._router.ready_leader(group)) != node:
            if loop.time() + TRANSFER_LOOK_S >= deadline:
                raise OutcomeUnknown(f"{node} does not lead the partition yet")
            if leader == self._router.node_id:
                await self._serve_transfer(node, body)
            elif leader is not None:
                self._router.mesh.tell(leader, "leader.transfer", body)
            else:
                await self._router.leaders([group], min(deadline, loop.time() + TRANSFER_LOOK_S))
            await asyncio.sleep(TRANSFER_LOOK_S)

    async def _serve_transfer(self, peer: NodeId, body: bytes) -> bytes:
        asked = _decode(body)
        self._host.transfer(self._router.leading(asked.group), asked.node)
        return b""

    async def hand_over(self, grace_s: float) -> None:
        """Give every leadership to somebody, and take none any more; returns when that is done and
        nothing that was proposed here is undecided, or after ``grace_s``.

        Peers are told first: one that takes this node for the home of a group would give it back,
        and the group be without a leader for an election time-out.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        self._host.retire()
        farewell = loop.create_task(self._say_leaving(min(grace_s, LEAVE_TIMEOUT_S)))
        while loop.time() < deadline and self._host.storage_error is None:
            replicas = self._host.replicas.values()
            pending = not farewell.done() or any(
                replica.queued or replica.raft.role is Role.CANDIDATE for replica in replicas
            )
            for replica in replicas:
                if replica.is_leader and self._transfer(replica, self._heirs(replica)):
                    pending = True
            if not pending:
                break
            await asyncio.sleep(HAND_OVER_LOOK_S)
        farewell.cancel()
        await asyncio.gather(farewell, return_exceptions=True)

    async def _say_leaving(self, timeout: float) -> None:
        ask = self._router.mesh.request
        peers = sorted(self._router.mesh.peers)
        asked = [ask(peer, "leader.leaving", b"", timeout=timeout) for peer in peers]
        await asyncio.gather(*asked, return_exceptions=True)

    async def _serve_leaving(self, peer: NodeId, body: bytes) -> bytes:
        self._leaving.add(peer)
        self._host.abort_transfers(peer)
        return b""

    def _heirs(self, replica: Replica) -> list[NodeId]:
        """The other voters of the group that are there."""
        nodes = [replica.members.get(voter) for voter in replica.raft.voters]
        unwilling = self._leaving | replica.shunned
        return [node for node in nodes if node in self._peers_up and node not in unwilling]

    def _transfer(self, replica: Replica, heirs: list[NodeId]) -> bool:
        """To one of ``heirs``, another one for each group, and one that has everything if there is
        one: the others have to catch up first. False when there is none."""
        if heirs:
            fit = [node for node in heirs if _is_level(replica, node)] or heirs
            self._host.transfer(replica, fit[replica.group % len(fit)])
        return bool(heirs)


def _is_level(replica: Replica, node: NodeId) -> bool:
    target = replica.voter_at(node)
    return target is not None and replica.raft.match_index(target) >= replica.raft.commit
