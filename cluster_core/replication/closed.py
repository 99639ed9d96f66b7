"""Closed timestamps: up to when the past of a partition is complete.

A pair (T, i) is *closed* for a group when no entry of its log beyond i writes a version at or below
T, whoever leads it from now on. A replica that has applied i may then serve reads at T and below
without asking anybody, and a feed may deliver all changes up to T. A pair that is closed stays so,
so it may be lost, late or repeated on its way.

The leader closes in two steps:

1. In one turn it takes its clock N, the last index i of its log, and the lowest timestamp P at
   which an undecided intent is prepared, those in flight included. T = min(N, P - 1).
2. It waits until a majority has acknowledged a round of its term that carried a clock >= N, and
   until i is applied here while it still evaluates in that term.

Why that is enough, for an entry beyond i and each version at C that it writes:

- It is of the same term: C is a reading of the clock after N, or the commit timestamp of an intent
  that was undecided at step 1 or prepared later, which is not below P, or above N.
- It is of a later term: i is committed, so its leader has all entries up to i, and with them the
  intents of step 1 and no other ones that old. It was elected by a majority, one of which had
  acknowledged N before it voted and sent its clock along; so all timestamps that it gives are above
  N, and what it commits of the intents is as above.

All groups that a node leads are closed together, with the heartbeats of a tick: that costs no
message of its own, and then one frame for each peer, idle or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final, NamedTuple

import msgspec

from cluster_core.errors import ClockCeiling
from cluster_core.hlc import HybridClock
from cluster_core.replication.evaluation import Evaluation
from cluster_core.replication.host import ReplicationHost
from cluster_core.replication.mesh import Mesh
from cluster_core.replication.replica import Replica
from cluster_core.types import META_GROUP, GroupId, NodeId, Timestamp

__all__ = ["NOTHING_CLOSED", "ClosedTimestamps", "Point"]

GATHER_S: Final = 0.002
"""What is confirmed within this time leaves in one frame: the answers of one peer come together."""

PENDING_MAX: Final = 8
"""Closed timestamps of a group whose index this replica has not applied yet."""


class Point(NamedTuple):
    """``timestamp`` is closed, and ``last_index`` has to be applied for it."""

    timestamp: Timestamp
    last_index: int


NOTHING_CLOSED: Final = Point(0, 0)


class _Promise(NamedTuple):
    """What a leader will have closed once it is acknowledged."""

    replica: Replica
    evaluation: Evaluation
    point: Point

    @property
    def stands(self) -> bool:
        """Whether the leadership that made it has lasted: an evaluation lives for one term."""
        return self.replica.evaluation is self.evaluation


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[tuple[GroupId, Timestamp, int]]).decode


class ClosedTimestamps:
    """What is closed in each partition, as far as this node knows. See the module."""

    def __init__(self, host: ReplicationHost, mesh: Mesh, clock: HybridClock) -> None:
        self._host = host
        self._mesh = mesh
        self._clock = clock
        self._applied: dict[GroupId, Point] = {}
        """The newest whose index is applied here; of a group without a replica here the newest."""
        self._pending: dict[GroupId, list[Point]] = {}
        """In ascending order: what this replica has not applied yet."""
        self._outgoing: dict[GroupId, Point] = {}
        self._waiting: list[asyncio.Future[None]] = []
        mesh.handle("closed", self._serve_closed)
        host.on_tick = self.close_led

    # Asking.

    def of(self, group: GroupId) -> Point:
        """The newest closed timestamp that the replica here covers: all of it is applied.

        Of a group without a replica here, the newest that is known; whoever reads at it elsewhere
        waits for its index there.
        """
        replica = self._host.replicas.get(group)
        pending = self._pending.get(group)
        while pending and (replica is None or replica.applied >= pending[0].last_index):
            self._applied[group] = pending.pop(0)
        point = self._applied.get(group, NOTHING_CLOSED)
        if replica is not None and replica.applied < point.last_index:
            return NOTHING_CLOSED  # it came here after we had learned that
        return point

    def newest(self, group: GroupId) -> Point:
        """The newest closed timestamp that this node has heard of, applied here or not."""
        pending = self._pending.get(group)
        return pending[-1] if pending else self._applied.get(group, NOTHING_CLOSED)

    def among(self, groups: Sequence[GroupId]) -> Timestamp:
        """The lowest closed timestamp among ``groups``; 0 while that of one is not known."""
        return min((self.of(group).timestamp for group in groups), default=0)

    def advanced(self) -> asyncio.Future[None]:
        """Done when something more is closed."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future

    # Closing what is led here.

    def close_led(self) -> None:
        """Begin to close the present in each partition that is led here."""
        led = [
            (replica, replica.evaluation)
            for replica in self._host.replicas.values()
            if replica.evaluation is not None and replica.group != META_GROUP
        ]
        if not led:
            return
        try:
            now = self._clock.now()
        except ClockCeiling:
            return
        for replica, evaluation in led:
            lowest = evaluation.lowest_prepared
            timestamp = now if lowest is None else min(now, lowest - 1)
            promise = _Promise(replica, evaluation, Point(timestamp, replica.raft.last_index))
            replica.read_barrier().add_done_callback(partial(self._acknowledged, promise))

    def _acknowledged(self, promise: _Promise, confirmed: asyncio.Future[int]) -> None:
        if confirmed.cancelled() or confirmed.exception() or not promise.stands:
            return
        if promise.replica.applied >= promise.point.last_index:
            self._complete(promise)
            return
        reached = promise.replica.reached_while_leading(promise.point.last_index)
        reached.add_done_callback(partial(self._reached, promise))

    def _reached(self, promise: _Promise, reached: asyncio.Future[int]) -> None:
        if not reached.cancelled() and not reached.exception() and promise.stands:
            self._complete(promise)

    def _complete(self, promise: _Promise) -> None:
        group = promise.replica.group
        self.learn(group, promise.point)
        if not self._outgoing:
            asyncio.get_running_loop().call_later(GATHER_S, self._tell)
        self._outgoing[group] = promise.point

    def _tell(self) -> None:
        """Every peer is told, also one without a replica: it may read elsewhere, or follow."""
        outgoing, self._outgoing = self._outgoing, {}
        body = _encode([(group, *point) for group, point in outgoing.items()])
        for peer in sorted(self._mesh.peers):
            self._mesh.tell(peer, "closed", body)

    async def _serve_closed(self, peer: NodeId, body: bytes) -> bytes:
        for group, timestamp, index in _decode(body):
            self.learn(group, Point(timestamp, index))
        return b""

    def learn(self, group: GroupId, point: Point) -> None:
        """``point`` is closed in ``group``."""
        if point.timestamp <= self.newest(group).timestamp:
            return
        pending = self._pending.setdefault(group, [])
        if len(pending) == PENDING_MAX:
            pending.pop()  # the first stays, so a replica that lags comes to it some time
        pending.append(point)
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
