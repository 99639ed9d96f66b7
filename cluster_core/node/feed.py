"""The change feed: every committed change of the graph, once, in the order of the timestamps.

Each partition keeps its changes by timestamp, as long as its history is kept. The feed of a node
reads them up to the lowest closed timestamp among all partitions: none at or below it can come any
more, so what it publishes is complete, and each timestamp, also that of a transaction over several
partitions, is published whole. A partition without a leader closes nothing, which holds the feed up
and is seen: no :class:`~cluster_core.events.Resolved` comes.

Whoever begins in the past gets what it missed from the same reading, at its own pace, and joins the
others when it has come to where they are. So a consumer that begins again behind the last Resolved
that it was given misses nothing, at whichever node.

A timestamp may have any number of changes: a vertex is deleted with all its edges at one. What
would fill half of a subscriber's queue at once is not published: all subscribers fall behind, and
each takes it at its own pace, piece by piece. No step of this holds up the event loop for long, and
none has all changes of such a timestamp in memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from heapq import merge
from itertools import islice, takewhile
from typing import Final

import msgspec

from cluster_core.config import ClusterConfig
from cluster_core.errors import (
    ClockCeiling,
    HistoryCollected,
    InvalidRequest,
    KotobaError,
    NoLeader,
    RetryError,
)
from cluster_core.events import Change, Resolved
from cluster_core.graph.cid import cid_text
from cluster_core.graph.parts import decode_change
from cluster_core.hlc import HybridClock, format_timestamp, wall_of
from cluster_core.node.bus import EventBus, Subscription
from cluster_core.ports import DATA, Engine
from cluster_core.replication.closed import ClosedTimestamps
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import Router
from cluster_core.storage import keys
from cluster_core.types import META_GROUP, GroupId, NodeId, Timestamp

__all__ = ["Feed", "read_piece", "read_portion"]

log = logging.getLogger("kotoba.feed")

GATHER_S: Final = 0.02
"""Between the first partition that closes something and a reading: the others follow closely."""

PACE_S: Final = 0.01
"""Between two readings while there is more: subscribers read what they got meanwhile."""

UNIT_CHANGES: Final = 2_048
"""Changes in one reading, of all partitions; a few more where one timestamp has more."""

TIMESTAMP_CHANGES: Final = 256
"""So many more of a partition, where it takes them to end a timestamp; one that has yet more is
read by itself, in pieces."""

SLICE_CHANGES: Final = 500
"""Changes decoded or handed over between two pauses: some 3 ms."""

RESOLVED_EVERY_S: Final = 1.0
"""Between two Resolved where nothing changes."""

RETRY_S: Final = 0.2
REMOTE_TIMEOUT_S: Final = 5.0

_Stored = tuple[Timestamp, GroupId, bytes, bytes]
"""Timestamp, group, entity digest, description: tuples of it sort as they are published."""


class Portion(msgspec.Struct, array_like=True, frozen=True):
    """Changes of one partition in their order: all there are up to ``reached``."""

    changes: list[_Stored]
    reached: Timestamp


class _PieceRequest(msgspec.Struct, array_like=True, frozen=True):
    """The changes of ``group`` at ``timestamp``, those of entities behind ``after``."""

    group: GroupId
    index: int
    timestamp: Timestamp
    after: bytes
    limit: int


class _PortionsRequest(msgspec.Struct, array_like=True, frozen=True):
    """``groups`` names the index that has to be applied in each."""

    groups: dict[GroupId, int]
    after: Timestamp
    upto: Timestamp
    limit: int


_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(_PortionsRequest).decode
_decode_portions = msgspec.msgpack.Decoder(list[Portion]).decode
_decode_piece_request = msgspec.msgpack.Decoder(_PieceRequest).decode
_decode_piece = msgspec.msgpack.Decoder(list[_Stored]).decode


def read_portion(
    engine: Engine, group: GroupId, after: Timestamp, upto: Timestamp, limit: int
) -> Portion:
    """The changes with ``after < timestamp <= upto``; of those that are more than ``limit`` the
    first, to the end of a timestamp, or to its beginning where it has too many."""
    begin = keys.change(group, after + 1, b"")
    changes: list[_Stored] = []
    for key, value in engine.scan(DATA, begin, keys.change(group, upto + 1, b"")):
        timestamp = int.from_bytes(key[3:11], "big")
        if len(changes) >= limit and timestamp != changes[-1][0]:
            return Portion(changes, changes[-1][0])
        if len(changes) >= limit + TIMESTAMP_CHANGES:
            return Portion([one for one in changes if one[0] < timestamp], timestamp - 1)
        changes.append((timestamp, group, key[11:], value))
    return Portion(changes, upto)


def read_piece(
    engine: Engine, group: GroupId, timestamp: Timestamp, after: bytes, limit: int
) -> list[_Stored]:
    """The first ``limit`` changes at ``timestamp``, of entities with a digest above ``after``."""
    begin = keys.change(group, timestamp, after + b"\0" if after else b"")
    scan = engine.scan(DATA, begin, keys.change(group, timestamp + 1, b""))
    return [(timestamp, group, key[11:], value) for key, value in islice(scan, limit)]


class Feed:
    """See the module."""

    def __init__(
        self,
        router: Router,
        closed: ClosedTimestamps,
        engine: Engine,
        clock: HybridClock,
        config: ClusterConfig,
        bus: EventBus,
    ) -> None:
        self._router = router
        self._closed = closed
        self._engine = engine
        self._clock = clock
        self._offset_ms_max = config.replication.clock_offset_ms_max
        self._bus = bus
        self._groups = sorted(group for group in router.tables if group != META_GROUP)
        self._limit = max(16, UNIT_CHANGES // len(self._groups))
        self._publish_max = config.limits.event_queue_max // 2
        self._told_at = 0.0
        """When a Resolved was published last."""
        self._tasks: set[asyncio.Task[None]] = set()
        router.mesh.handle("feed", self._serve)
        router.mesh.handle("feed.piece", self._serve_piece)

    # Publishing.

    async def run(self) -> None:
        """Publish changes as long as anybody wants them, until cancelled."""
        for subscription in self._bus.behind:
            self._start_catching_up(subscription)
        while True:
            await asyncio.wait([self._closed.advanced()], timeout=RESOLVED_EVERY_S)
            await asyncio.sleep(GATHER_S)
            if not self._bus.change_listeners:
                continue
            try:
                await self._publish()
            except HistoryCollected as error:
                self._bus.fail_changes(error)
            except KotobaError as error:
                log.debug("the feed waits: %s", error.detail)
                await asyncio.sleep(RETRY_S)
            except Exception:
                log.exception("the feed failed")
                await asyncio.sleep(RETRY_S)

    async def _publish(self) -> None:
        """All up to what is closed."""
        bus, clock = self._bus, asyncio.get_running_loop().time
        if bus.resolved is None:
            self._begin()
        while bus.resolved is not None and bus.resolved < (upto := self._closed_everywhere()):
            changes, reached = await self.gather(bus.resolved, upto)
            if bus.resolved is None:
                break  # the last listener left meanwhile
            if reached == bus.resolved or len(changes) > self._publish_max:
                self._fall_behind(max(reached, bus.resolved + 1))
                continue
            bus.publish_changes(changes, reached)
            if changes or clock() >= self._told_at + RESOLVED_EVERY_S:
                bus.publish(Resolved(timestamp=reached))
                self._told_at = clock()
            if changes:
                await asyncio.sleep(PACE_S)

    def _fall_behind(self, upto: Timestamp) -> None:
        """There is too much before ``upto`` to be published: everybody takes it for himself."""
        for subscription in self._bus.fall_behind(upto):
            self._start_catching_up(subscription)

    def _begin(self) -> None:
        """Begin at what is closed: whatever is written from now on is above it."""
        now = self._closed_everywhere()
        if now:
            self._bus.resolved = now
            self._bus.publish(Resolved(timestamp=now))

    def _closed_everywhere(self) -> Timestamp:
        return self._closed.among(self._groups)

    # Catching up.

    def resume(self, subscription: Subscription) -> None:
        """Give ``subscription`` what lies behind its beginning. Raises InvalidRequest where that is
        in the future."""
        since = subscription.behind
        if since is None:
            return
        now = self._clock.latest
        with suppress(ClockCeiling):
            now = self._clock.now()  # the latest alone stands still while nothing is written
        if wall_of(since) - wall_of(now) > self._offset_ms_max:
            why = "is in the future"
            raise InvalidRequest(f"since {why}", errors=[{"where": "since", "why": why}])
        self._start_catching_up(subscription)

    def _start_catching_up(self, subscription: Subscription) -> None:
        task = asyncio.get_running_loop().create_task(self._catch_up(subscription))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _catch_up(self, subscription: Subscription) -> None:
        try:
            while subscription.open and subscription.behind is not None:
                try:
                    await self._catch_up_some(subscription)
                except RetryError as error:
                    log.debug("a subscriber waits: %s", error.detail)
                    await asyncio.sleep(RETRY_S)
        except KotobaError as error:
            subscription.fail(error)
        except Exception as error:
            log.exception("catching up failed")
            subscription.fail(error)

    async def _catch_up_some(self, subscription: Subscription) -> None:
        assert subscription.behind is not None
        published = self._bus.resolved
        if published is None:  # the feed has not begun yet
            await asyncio.sleep(GATHER_S)
        elif subscription.behind >= published:
            subscription.join()  # in the turn of the loop that compared
        else:
            await self._hand_over(subscription, subscription.behind, published)

    async def _hand_over(
        self, subscription: Subscription, behind: Timestamp, upto: Timestamp
    ) -> None:
        """Give ``subscription`` the next of the changes after ``behind``."""
        await subscription.room()
        changes, reached = await self.gather(behind, upto)
        if reached == behind:
            await self._hand_over_timestamp(subscription, behind + 1)
            return
        for begin in range(0, len(changes), SLICE_CHANGES):
            await subscription.room()
            subscription.catch_up(changes[begin : begin + SLICE_CHANGES])
            await asyncio.sleep(0)
        subscription.catch_up([], reached)

    async def _hand_over_timestamp(self, subscription: Subscription, timestamp: Timestamp) -> None:
        """All changes of one timestamp, partition by partition."""
        for group in self._groups:
            after = b""
            while subscription.open:
                await subscription.room()
                try:
                    piece = await self._read_piece(group, timestamp, after)
                except RetryError as error:  # it must not begin anew: some of them were given
                    log.debug("a subscriber waits: %s", error.detail)
                    await asyncio.sleep(RETRY_S)
                    continue
                subscription.catch_up([_change(*one) for one in piece])
                if len(piece) < SLICE_CHANGES:
                    break
                after = piece[-1][2]
        if subscription.open:  # else it was given some of them only
            subscription.catch_up([], timestamp)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Reading.

    async def gather(self, after: Timestamp, upto: Timestamp) -> tuple[list[Change], Timestamp]:
        """Changes of all partitions in order, complete up to the returned timestamp, which is above
        ``after`` and at most ``upto``. ``upto`` must be closed everywhere.

        Returns ``after`` where the next timestamp, the one that follows it, has too many changes
        for one reading. Raises HistoryCollected where something after ``after`` is not kept any
        more, and NoLeader while a partition cannot be read.
        """
        assert after < upto
        here: dict[GroupId, int] = {}
        elsewhere: dict[NodeId, dict[GroupId, int]] = {}
        for group in self._groups:
            if self._is_here(group, upto):
                here[group] = self._closed.of(group).last_index
            else:
                node = self._reader_of(group)
                elsewhere.setdefault(node, {})[group] = self._closed.newest(group).last_index
        portions = await self._read_here(here, after, upto, self._limit)
        portions += await self._read_elsewhere(elsewhere, after, upto)
        reached = min(portion.reached for portion in portions)
        stored = merge(*(portion.changes for portion in portions))
        complete = takewhile(lambda one: one[0] <= reached, stored)
        changes: list[Change] = []
        while some := [_change(*one) for one in islice(complete, SLICE_CHANGES)]:
            changes += some
            await asyncio.sleep(0)
        return changes, reached

    def _is_here(self, group: GroupId, upto: Timestamp) -> bool:
        """Whether the replica here has all changes up to ``upto``."""
        return group in self._router.host.replicas and self._closed.of(group).timestamp >= upto

    def _reader_of(self, group: GroupId) -> NodeId:
        """Another node that has the partition, its leader if there is one."""
        peers = self._router.mesh.peers
        leader = self._router.leader(group)
        if leader in peers:
            return leader
        for node in self._router.tables[group].nodes:
            if node in peers:
                return node
        raise NoLeader(f"no node with partition {group - 1} is in reach")

    async def _read_here(
        self, groups: Mapping[GroupId, int], after: Timestamp, upto: Timestamp, limit: int
    ) -> list[Portion]:
        """``groups`` says what each has applied: in a pause a replica may be replaced."""
        portions = []
        unpaused = 0
        for group, index in groups.items():
            replica = self._replica(group)
            if replica.applied < index:
                raise NoLeader("a replica was replaced while it was read; ask again")
            if replica.applied_timestamp <= after:
                portions.append(Portion([], upto))  # timestamps ascend along a log
                continue
            portions.append(read_portion(self._engine, group, after, upto, limit))
            self._require_history(replica, after)
            unpaused += len(portions[-1].changes)
            if unpaused >= SLICE_CHANGES:
                unpaused = 0
                await asyncio.sleep(0)
        return portions

    def _replica(self, group: GroupId) -> Replica:
        replica = self._router.host.replicas.get(group)
        if replica is None:
            raise NoLeader(f"{self._router.node_id} has no replica of partition {group - 1}")
        return replica

    def _require_history(self, replica: Replica, after: Timestamp) -> None:
        """After reading: a collection may have been faster."""
        if after < replica.horizon:
            raise HistoryCollected(
                f"changes are kept since {format_timestamp(replica.horizon)}",
                kept_since=format_timestamp(replica.horizon),
            )

    async def _read_elsewhere(
        self, nodes: dict[NodeId, dict[GroupId, int]], after: Timestamp, upto: Timestamp
    ) -> list[Portion]:
        requests = {
            node: _encode(_PortionsRequest(groups, after, upto, self._limit))
            for node, groups in nodes.items()
        }
        answers = await asyncio.gather(
            *(
                self._router.mesh.request(node, "feed", body, timeout=REMOTE_TIMEOUT_S)
                for node, body in requests.items()
            ),
            return_exceptions=True,
        )
        portions: list[Portion] = []
        for answer in answers:
            if isinstance(answer, HistoryCollected):
                raise answer
            if isinstance(answer, KotobaError):
                raise NoLeader(answer.detail)  # a reading can always be tried again
            if isinstance(answer, BaseException):
                raise answer
            portions += _decode_portions(answer)
        return portions

    async def _serve(self, peer: NodeId, body: bytes) -> bytes:
        request = _decode_request(body)
        for group, index in request.groups.items():
            await self._wait_for(group, index)
        return _encode(
            await self._read_here(request.groups, request.after, request.upto, request.limit)
        )

    async def _wait_for(self, group: GroupId, index: int) -> None:
        """Until the replica here has applied ``index``. Raises NoLeader."""
        try:
            async with asyncio.timeout(REMOTE_TIMEOUT_S):
                await self._replica(group).reached(index)
        except TimeoutError:
            raise NoLeader("this replica did not catch up in time; ask again") from None

    # One timestamp that has very many.

    async def _read_piece(
        self, group: GroupId, timestamp: Timestamp, after: bytes
    ) -> list[_Stored]:
        if self._is_here(group, timestamp):
            return self._piece_here(group, timestamp, after, SLICE_CHANGES)
        index = self._closed.newest(group).last_index
        body = _encode(_PieceRequest(group, index, timestamp, after, SLICE_CHANGES))
        node = self._reader_of(group)
        try:
            answer = await self._router.mesh.request(
                node, "feed.piece", body, timeout=REMOTE_TIMEOUT_S
            )
        except HistoryCollected:
            raise
        except KotobaError as error:
            raise NoLeader(error.detail) from None  # a reading can always be tried again
        return _decode_piece(answer)

    def _piece_here(
        self, group: GroupId, timestamp: Timestamp, after: bytes, limit: int
    ) -> list[_Stored]:
        replica = self._replica(group)
        piece = read_piece(self._engine, group, timestamp, after, limit)
        self._require_history(replica, timestamp - 1)
        return piece

    async def _serve_piece(self, peer: NodeId, body: bytes) -> bytes:
        request = _decode_piece_request(body)
        await self._wait_for(request.group, request.index)
        return _encode(
            self._piece_here(request.group, request.timestamp, request.after, request.limit)
        )


def _change(timestamp: Timestamp, group: GroupId, digest: bytes, description: bytes) -> Change:
    stored = decode_change(digest, description)
    is_edge = stored.op.endswith("edge")
    return Change(
        op=stored.op,
        cid=cid_text(stored.entity),
        version=None if stored.version is None else cid_text(stored.version),
        partition=group - 1,
        timestamp=timestamp,
        label=stored.labels[0] if is_edge else None,
        labels=() if is_edge else stored.labels,
    )
