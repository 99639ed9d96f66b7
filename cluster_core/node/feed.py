"""The change feed: every committed change of the graph, once, in the order of the timestamps.

Each partition keeps its changes by timestamp, as long as its history is kept. The feed of a node
reads them up to the lowest closed timestamp among all partitions: none at or below it can come any
more, so what it publishes is complete, and each timestamp, also that of a transaction over several
partitions, is published whole. A partition without a leader closes nothing, which holds the feed up
and is seen: no :class:`~cluster_core.events.Resolved` comes.

Whoever begins in the past gets what it missed from the same reading, at its own pace, and joins the
others when it has come to where they are. So a consumer that begins again behind the last Resolved
that it was given misses nothing, at whichever node.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
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
from cluster_core.replication.router import Router
from cluster_core.storage import keys
from cluster_core.types import META_GROUP, GroupId, NodeId, Timestamp

__all__ = ["Feed", "read_portion"]

log = logging.getLogger("kotoba.feed")

GATHER_S: Final = 0.02
"""Between the first partition that closes something and a reading: the others follow closely."""

PACE_S: Final = 0.01
"""Between two readings while there is more: subscribers read what they got meanwhile."""

UNIT_CHANGES: Final = 2_048
"""Changes in one reading, of all partitions; more where one timestamp has more."""

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


class _PortionsRequest(msgspec.Struct, array_like=True, frozen=True):
    """``groups`` names the index that has to be applied in each."""

    groups: dict[GroupId, int]
    after: Timestamp
    upto: Timestamp
    limit: int


_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(_PortionsRequest).decode
_decode_portions = msgspec.msgpack.Decoder(list[Portion]).decode


def read_portion(
    engine: Engine, group: GroupId, after: Timestamp, upto: Timestamp, limit: int
) -> Portion:
    """The changes with ``after < timestamp <= upto``; of those that are more than ``limit`` the
    first, to the end of a timestamp."""
    begin = keys.change(group, after + 1, b"")
    changes: list[_Stored] = []
    for key, value in engine.scan(DATA, begin, keys.change(group, upto + 1, b"")):
        timestamp = int.from_bytes(key[3:11], "big")
        if len(changes) >= limit and timestamp != changes[-1][0]:
            return Portion(changes, changes[-1][0])
        changes.append((timestamp, group, key[11:], value))
    return Portion(changes, upto)


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
        self._told_at = 0.0
        """When a Resolved was published last."""
        self._tasks: set[asyncio.Task[None]] = set()
        router.mesh.handle("feed", self._serve)

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
            bus.publish_changes(changes, reached)
            if changes or clock() >= self._told_at + RESOLVED_EVERY_S:
                bus.publish(Resolved(timestamp=reached))
                self._told_at = clock()
            if changes:
                await asyncio.sleep(PACE_S)

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
            await subscription.room()
            changes, reached = await self.gather(subscription.behind, published)
            subscription.catch_up(changes, reached)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Reading.

    async def gather(self, after: Timestamp, upto: Timestamp) -> tuple[list[Change], Timestamp]:
        """Changes of all partitions in order, complete up to the returned timestamp, which is above
        ``after`` and at most ``upto``. ``upto`` must be closed everywhere.

        Raises HistoryCollected where something after ``after`` is not kept any more, and NoLeader
        while a partition cannot be read.
        """
        assert after < upto
        here: list[GroupId] = []
        elsewhere: dict[NodeId, dict[GroupId, int]] = {}
        for group in self._groups:
            point = self._closed.of(group)
            if group in self._router.host.replicas and point.timestamp >= upto:
                here.append(group)
            else:
                node = self._reader_of(group)
                elsewhere.setdefault(node, {})[group] = self._closed.newest(group).last_index
        portions = self._read_here(here, after, upto, self._limit)
        portions += await self._read_elsewhere(elsewhere, after, upto)
        reached = min(portion.reached for portion in portions)
        stored = sorted(one for portion in portions for one in portion.changes if one[0] <= reached)
        return [_change(*one) for one in stored], reached

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

    def _read_here(
        self, groups: Sequence[GroupId], after: Timestamp, upto: Timestamp, limit: int
    ) -> list[Portion]:
        portions = []
        for group in groups:
            replica = self._router.host.replicas[group]
            if replica.applied_timestamp <= after:
                portions.append(Portion([], upto))  # timestamps ascend along a log
            else:
                portions.append(read_portion(self._engine, group, after, upto, limit))
        self._require_history(groups, after)
        return portions

    def _require_history(self, groups: Sequence[GroupId], after: Timestamp) -> None:
        for group in groups:
            replica = self._router.host.replicas.get(group)
            if replica is not None and after < replica.horizon:
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
            replica = self._router.host.replicas.get(group)
            if replica is None:
                raise NoLeader(f"{self._router.node_id} has no replica of partition {group - 1}")
            try:
                async with asyncio.timeout(REMOTE_TIMEOUT_S):
                    await replica.reached(index)
            except TimeoutError:
                raise NoLeader("this replica did not catch up in time; ask again") from None
        groups = list(request.groups)
        if any(group not in self._router.host.replicas for group in groups):
            raise NoLeader("a replica went away; ask again")
        return _encode(self._read_here(groups, request.after, request.upto, request.limit))


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
