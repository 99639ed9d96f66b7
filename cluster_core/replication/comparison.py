"""Divergence is looked for: replicas compare what their logs have made of them.

Nobody should ever find anything here. But a disk that changes what was synced, or a bug, would make
one replica differ from the others for good, and whoever reads there would be told something else.

**A checkpoint** is an entry of the log that changes nothing. Behind it every replica has the same
state, as far as it is kept (``history.py``): each opens a scan there and reads it beside its work,
taking a small share of a core, and tells the leader the digest.

**The verdict** is the leader's. Where voters that are a quorum have the same digest, whoever has
another one differs; otherwise nobody does, for nobody can know. So a quorum of healthy replicas
always remains.

**Quarantine.** Who differs remembers it on the disk, hands its leadership over, and is withdrawn:
it serves nothing and does not campaign. It goes on to vote and to acknowledge, for both depend on
its log alone, which the comparison says nothing against, and which other rules look after; without
it a group that has lost another replica would stand still. Then it asks the leader for a snapshot,
and with it begins anew, as after a restart. Every node knows who is in quarantine, for status,
health, events, and so that no leadership is sent there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Final

import msgspec

from cluster_core.config import ReplicationConfig
from cluster_core.errors import KotobaError, NoLeader, Refused
from cluster_core.ports import DATA, RAFT, Engine, Random, Scan
from cluster_core.raft.quorum import VoteResult
from cluster_core.replication.history import KeptSieve
from cluster_core.replication.host import ReplicationHost
from cluster_core.replication.mesh import Mesh
from cluster_core.replication.replica import Replica
from cluster_core.storage import keys
from cluster_core.types import GroupId, NodeId, ReplicaId, Timestamp
from cluster_core.wire.messages import CHECKPOINT

__all__ = ["Comparison"]

log = logging.getLogger("kotoba.comparison")

PAIR_S: Final = 2e-6
BYTE_S: Final = 3e-9
"""What reading and hashing a pair and a byte of it takes: 2.1 us were measured for pairs of 120
bytes. Estimated and not timed, for event loops tell the time at which their turn began."""

STEP_S: Final = 0.000_5
"""Of work between two pauses."""

PENDING_MAX: Final = 8
"""Checkpoints that wait to be read: each holds a scan open. Beyond it one is passed over. Leaders
begin nothing while they have one to read, so there is one for each leader at most."""

LOOK_S: Final = 0.5
TELL_EVERY: Final = 10
"""Looks between two times that peers are told the same."""

ASK_TIMEOUT_S: Final = 1.0
ASK_TRIES: Final = 10


class _Report(msgspec.Struct, array_like=True, frozen=True):
    group: GroupId
    replica: ReplicaId
    index: int
    digest: bytes


class _Verdict(msgspec.Struct, array_like=True, frozen=True):
    """``replica`` differs from a quorum at the checkpoint ``index``."""

    group: GroupId
    replica: ReplicaId
    index: int


class _Reading(msgspec.Struct, frozen=True):
    """A checkpoint of a replica, to be read."""

    replica: Replica
    index: int
    horizon: Timestamp
    scan: Scan


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_report: Final = msgspec.msgpack.Decoder(_Report).decode
_decode_verdict: Final = msgspec.msgpack.Decoder(_Verdict).decode
_decode_groups: Final = msgspec.msgpack.Decoder(list[GroupId]).decode


class Comparison:
    """See the module. ``rebuild(replica, target)`` brings a snapshot from a leader;
    ``publish(type, node, group)`` reports ReplicaDiverged and ReplicaRebuilt."""

    def __init__(
        self,
        host: ReplicationHost,
        mesh: Mesh,
        engine: Engine,
        config: ReplicationConfig,
        random: Random,
        rebuild: Callable[[Replica, ReplicaId], None],
        publish: Callable[[str, NodeId, GroupId], None],
    ) -> None:
        self._host = host
        self._mesh = mesh
        self._engine = engine
        self._config = config
        self._random = random
        self._rebuild = rebuild
        self._publish = publish
        self._due: dict[GroupId, float] = {}
        """When the next comparison of a group that is led here begins."""
        self._readings: deque[_Reading] = deque()
        self._waiting: asyncio.Future[None] | None = None
        self._own: dict[GroupId, int] = {}
        """The last checkpoint that the replica here has read."""
        self._digests: dict[GroupId, tuple[int, dict[ReplicaId, bytes]]] = {}
        """What replicas of groups led here told of the newest checkpoint."""
        self._distrusted: set[GroupId] = set()
        """Groups whose replica here differed, and is not replaced yet."""
        self._known: dict[NodeId, frozenset[GroupId]] = {}
        """The same of every node."""
        self._looks = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.compared = 0
        """Checkpoints that were read here since the start."""
        host.on_checkpoint = self._open
        mesh.handle("compare.report", self._serve_report)
        mesh.handle("compare.verdict", self._serve_verdict)
        mesh.handle("compare.rebuild", self._serve_rebuild)
        mesh.handle("compare.distrusted", self._serve_distrusted)

    # Life.

    def load(self, groups: Iterable[GroupId]) -> None:
        """Before the replicas begin to work: those that differed are withdrawn at once."""
        for group in groups:
            if self._is_marked(group):
                self._distrusted.add(group)
                replica = self._host.replicas.get(group)
                if replica is not None:
                    self._withdraw(replica)

    async def run(self) -> None:
        """Compare, and see to those that differ, until cancelled."""
        reading = asyncio.get_running_loop().create_task(self._read_all())
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                try:
                    self._look()
                except KotobaError as error:
                    log.debug("comparing, next time: %s", error.detail)
                except Exception:
                    log.exception("comparing failed")
        finally:
            tasks = [reading, *sorted(self._tasks, key=lambda task: task.get_name())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def distrusted(self) -> dict[NodeId, frozenset[GroupId]]:
        """The groups of each node whose replica differs, as far as this node knows."""
        return {node: groups for node, groups in sorted(self._known.items()) if groups}

    def at(self, group: GroupId) -> frozenset[NodeId]:
        """The nodes whose replica of ``group`` differs, as far as this node knows."""
        return frozenset(node for node, groups in self._known.items() if group in groups)

    def _look(self) -> None:
        if self._host.storage_error is not None:
            return
        self._begin_comparisons(asyncio.get_running_loop().time())
        for group in sorted(self._distrusted):
            self._see_to(group)
        self._tell()

    # Beginning and reading.

    def _begin_comparisons(self, now: float) -> None:
        interval = self._config.full_sync_interval_ms / 1000
        busy = any(replica.comparing for replica in self._host.replicas.values())
        for group, replica in self._host.replicas.items():
            if replica.evaluation is None:
                self._due.pop(group, None)
                continue
            if group not in self._due:
                self._due[group] = now + interval * self._random.uniform(0.5, 1.0)
            elif now >= self._due[group] and not busy and replica.raft.refusal() is None:
                self._due[group] = now + interval
                busy = True
                replica.raft.propose(b"compare", CHECKPOINT)
                self._host.mark(replica)

    def _open(self, replica: Replica, index: int) -> None:
        """The engine has the state right behind the checkpoint ``index``: hold on to it."""
        if replica.failed is not None or replica.comparing or len(self._readings) >= PENDING_MAX:
            return
        replica.comparing = True
        prefix = keys.group_prefix(replica.group)
        scan = self._engine.scan(DATA, prefix, keys.after(prefix))
        self._readings.append(_Reading(replica, index, replica.horizon, scan))
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _read_all(self) -> None:
        """One after the other: together they take the share of one."""
        while True:
            while not self._readings:
                self._waiting = asyncio.get_running_loop().create_future()
                await self._waiting
            reading = self._readings.popleft()
            try:
                digest = await self._read(reading)
            except KotobaError as error:
                log.debug("group %d is not compared: %s", reading.replica.group, error.detail)
                continue
            except Exception:
                log.exception("group %d cannot be read", reading.replica.group)
                continue
            finally:
                reading.replica.comparing = False
            self.compared += 1
            await self._report(reading, digest)

    async def _read(self, reading: _Reading) -> bytes:
        """The digest of what is kept. Raises what ends the scan, or this replica."""
        replica, of_all = reading.replica, sha256()
        keeps = KeptSieve(self._engine, replica.group, reading.horizon)
        work = 0.0
        while pairs := reading.scan.fetch():
            for key, value in pairs:
                work += PAIR_S + BYTE_S * len(value)
                if keeps(key, value):
                    of_all.update(len(key).to_bytes(4, "big") + key)
                    of_all.update(len(value).to_bytes(4, "big") + value)
            if work >= STEP_S:
                await asyncio.sleep(work / self._config.full_sync_share)
                replica.require_intact()
                work = 0.0
        return of_all.digest()

    async def _report(self, reading: _Reading, digest: bytes) -> None:
        """To whoever leads now; in vain if nobody does for long, or the replica is gone."""
        replica = reading.replica
        self._own[replica.group] = reading.index
        report = _Report(replica.group, replica.id, reading.index, digest)
        for _ in range(ASK_TRIES):
            leader = replica.leader
            try:
                replica.require_intact()
                if leader == self._host.node_id:
                    self._note(leader, report)
                elif leader is not None:
                    body = _encode(report)
                    await self._mesh.request(leader, "compare.report", body, timeout=ASK_TIMEOUT_S)
                return
            except KotobaError:
                await asyncio.sleep(LOOK_S)

    # The leader's verdict.

    async def _serve_report(self, peer: NodeId, body: bytes) -> bytes:
        self._note(peer, _decode_report(body))
        return b""

    def _note(self, peer: NodeId, report: _Report) -> None:
        replica = self._host.replicas.get(report.group)
        if replica is None or not replica.is_leader:
            raise NoLeader("this node does not lead that group")
        if replica.members.get(report.replica) != peer:
            raise Refused(f"{peer} does not have that replica")
        index, digests = self._digests.get(report.group, (0, {}))
        if report.index < index:
            return
        if report.index > index:
            digests = {}
            self._digests[report.group] = (report.index, digests)
        digests[report.replica] = report.digest
        self._judge(replica, report.index, digests)

    def _judge(self, replica: Replica, index: int, digests: dict[ReplicaId, bytes]) -> None:
        """Only against an agreeing quorum."""
        configuration = replica.raft.configuration
        for digest in sorted(set(digests.values())):
            agree = {other: told == digest for other, told in digests.items()}
            if configuration.vote_result(agree) is VoteResult.WON:
                for other in sorted(agree):
                    if not agree[other]:
                        self._convict(replica, _Verdict(replica.group, other, index))
                return
        if all(voter in digests for voter in replica.raft.voters):
            log.error("group %d: replicas differ, and no quorum agrees", replica.group)

    def _convict(self, replica: Replica, verdict: _Verdict) -> None:
        name = f"verdict on {verdict.group}/{verdict.replica}"
        if not any(task.get_name() == name for task in self._tasks):
            task = asyncio.get_running_loop().create_task(
                self._tell_of(replica, verdict), name=name
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _tell_of(self, replica: Replica, verdict: _Verdict) -> None:
        node = replica.members.get(verdict.replica)
        for _ in range(ASK_TRIES):
            try:
                if node == self._host.node_id:
                    await self._quarantine(verdict)
                elif node is not None:
                    body = _encode(verdict)
                    await self._mesh.request(node, "compare.verdict", body, timeout=ASK_TIMEOUT_S)
                return
            except KotobaError:
                await asyncio.sleep(LOOK_S)

    async def _serve_verdict(self, peer: NodeId, body: bytes) -> bytes:
        verdict = _decode_verdict(body)
        replica = self._host.replicas.get(verdict.group)
        if replica is not None and replica.leader != peer:
            raise Refused(f"{peer} does not lead that group")
        await self._quarantine(verdict)
        return b""

    # Quarantine.

    async def _quarantine(self, verdict: _Verdict) -> None:
        """Of the replica here, if the verdict is on what it read last."""
        group = verdict.group
        replica = self._host.replicas.get(group)
        if replica is None or replica.id != verdict.replica or group in self._distrusted:
            return
        if self._own.get(group) != verdict.index:
            return
        log.error("group %d: this replica differs from the others, and is made anew", group)
        batch = self._engine.batch()
        batch.put(RAFT, keys.distrusted(group), verdict.index.to_bytes(8, "big"))
        self._host.write(batch)
        del self._own[group]
        self._distrusted.add(group)
        self._see_to(group)
        self._tell()
        await self._host.synced()

    def _see_to(self, group: GroupId) -> None:
        """The next step of a replica that differs: hand over, be withdrawn, ask for a snapshot."""
        if not self._is_marked(group):
            self._distrusted.discard(group)  # it was replaced
            return
        replica = self._host.find(group)
        if replica is None:
            return
        if replica.is_leader:
            self._hand_over(replica)
        elif not replica.raft.distrusted:
            self._withdraw(replica)
        elif replica.leader is not None:
            body = _encode((group, replica.id))
            self._mesh.tell(replica.leader, "compare.rebuild", body)

    def _hand_over(self, replica: Replica) -> None:
        """To a voter that agrees with the quorum."""
        _, digests = self._digests.get(replica.group, (0, {}))
        own = digests.get(replica.id)
        for voter in replica.raft.voters:
            node = replica.members.get(voter)
            if node in self._mesh.peers and digests.get(voter, own) != own:
                self._host.transfer(replica, node)
                return
        replica.raft.step_down()
        self._host.mark(replica)

    def _withdraw(self, replica: Replica) -> None:
        self._host.withdraw(replica)
        replica.raft.distrust()
        self._host.mark(replica)

    def _is_marked(self, group: GroupId) -> bool:
        return self._engine.get(RAFT, keys.distrusted(group)) is not None

    async def _serve_rebuild(self, peer: NodeId, body: bytes) -> bytes:
        group, target = msgspec.msgpack.decode(body, type=tuple[GroupId, ReplicaId])
        replica = self._host.replicas.get(group)
        if replica is None or not replica.is_leader or replica.members.get(target) != peer:
            raise NoLeader("this node does not lead that group")
        self._rebuild(replica, target)
        return b""

    # Who is in quarantine.

    def _tell(self) -> None:
        """Everybody, when it has changed, and now and then all the same: it may be lost."""
        own = frozenset(self._distrusted)
        self._looks += 1
        if own != self._known.get(self._host.node_id, frozenset()) or (
            self._looks % TELL_EVERY == 0
        ):
            for peer in sorted(self._mesh.peers):
                self._mesh.tell(peer, "compare.distrusted", _encode(sorted(own)))
        self._learn(self._host.node_id, own)

    async def _serve_distrusted(self, peer: NodeId, body: bytes) -> bytes:
        self._learn(peer, frozenset(_decode_groups(body)))
        return b""

    def _learn(self, node: NodeId, groups: frozenset[GroupId]) -> None:
        before = self._known.get(node, frozenset())
        self._known[node] = groups
        for group in sorted(before ^ groups):
            self._publish("ReplicaDiverged" if group in groups else "ReplicaRebuilt", node, group)
            replica = self._host.replicas.get(group)
            if replica is not None:
                replica.shunned = self.at(group)
