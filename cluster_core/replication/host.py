"""All Raft groups of one node in one flush loop.

A *flush* is one turn of all replicas that have something to do: their log entries, votes and
applied mutations go into one batch, written at once; their messages leave as one frame per peer.
The write-ahead log is then synced beside the loop while the next batch gathers, and what must wait
for that sync (acknowledgements, votes, a leader's own count) follows it. So 64 operations in 64
groups cost one sync and one frame per peer.

The order that safety needs, kept here in one place:

1. entries and votes are in the engine before a message that could reveal them leaves this node;
2. what :class:`~cluster_core.raft.Ready` calls ``messages_after_persist`` leaves only when the sync
   that covers them is done; so does everything while the clock is ahead of its durable ceiling;
3. a client is answered only after the entry is applied, which needs a durable majority;
4. the first failed write or sync is final: nothing of it is ever reported as persisted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from cluster_core.config import ClusterConfig
from cluster_core.errors import KotobaError, NoLeader, StorageFailed, StorageFull, Unavailable
from cluster_core.hlc import HybridClock
from cluster_core.ports import RAFT, Batch, Engine, Random
from cluster_core.raft import Configuration, Ready, SnapshotNeeded
from cluster_core.replication.failover import Failover
from cluster_core.replication.holds import Holds
from cluster_core.replication.pace import Pace
from cluster_core.replication.replica import Replica, Room
from cluster_core.storage import keys
from cluster_core.types import GroupId, NodeId, ReplicaId
from cluster_core.wire.messages import Message, Vote

__all__ = ["CEILING_KEY", "ReplicationHost"]

log = logging.getLogger("kotoba.replication")

CEILING_KEY: Final = keys.NODE_SCOPE + b"clock-ceiling"

COMMIT_NOTICE_S: Final = 0.01
"""How long after a commitment followers are told, when no Append has told them by then. What it
delays is reads at followers and change events there; a notice at once would cost a single write as
much again as its replication."""


class _Unsynced:
    """What waits for the next sync."""

    __slots__ = ("ceiling", "messages", "persisted", "waiters")

    def __init__(self) -> None:
        self.persisted: list[tuple[Replica, int, int]] = []
        self.messages: list[tuple[Replica, Message]] = []
        self.waiters: list[asyncio.Future[None]] = []
        self.ceiling = 0

    def __bool__(self) -> bool:
        return bool(self.persisted or self.messages or self.ceiling or self.waiters)

    def abandon(self, error: Exception) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_exception(error)


class ReplicationHost:
    """See the module. ``send(peer, messages)`` hands a peer's messages to the mesh."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        engine: Engine,
        clock: HybridClock,
        config: ClusterConfig,
        random: Random,
        pace: Pace,
        send: Callable[[NodeId, list[Message]], None],
        on_leader: Callable[[Replica], None],
        on_storage_failed: Callable[[KotobaError], None],
    ) -> None:
        self.node_id = node_id
        self.replicas: dict[GroupId, Replica] = {}
        """Those that others may be served from."""
        self.joining: dict[GroupId, Replica] = {}
        """Those that were added to their group and do not have its state yet."""
        self._withdrawn: dict[GroupId, Replica] = {}
        self.holds = Holds(clock)
        self.storage_error: KotobaError | None = None
        self.on_tick: Callable[[], None] | None = None
        """Called before the groups' ticks, while the disk keeps up: the readers that begin there
        share the round of the heartbeats."""
        self._engine = engine
        self._clock = clock
        self._config = config
        self._random = random
        self._pace = pace
        self._send = send
        self._on_leader = on_leader
        self._on_storage_failed = on_storage_failed
        self._dirty: list[Replica] = []
        self._scheduled = False
        self._unsynced = _Unsynced()
        self._written = False
        """Whether anything was written since the last sync began."""
        self._sync_task: asyncio.Task[None] | None = None
        self._sync_ticks: int | None = None
        """Ticks since the sync began that is under way."""
        self._tick_task: asyncio.Task[None] | None = None
        self._failover = Failover(config.raft, random, self._campaign)
        self._leaders: dict[GroupId, tuple[ReplicaId, int]] = {}
        self._untold: dict[GroupId, Replica] = {}
        """Groups led here whose followers have not been told of the last commitments."""
        self.on_snapshot_needed: Callable[[Replica, SnapshotNeeded], None] = _ignore
        self.on_checkpoint: Callable[[Replica, int], None] = lambda replica, index: None
        """Called with a replica whose state in the engine is that right behind a checkpoint."""
        self._full: frozenset[NodeId] = frozenset()
        self._closed = False

    def add(
        self,
        group: GroupId,
        replica: ReplicaId,
        members: dict[ReplicaId, NodeId],
        founding: Configuration,
    ) -> None:
        """Bring this node's replica of ``group`` to life from what the engine holds."""
        assert self.find(group) is None, "a node has one replica of a group"
        self._take_in(self._replica(group, replica, members, founding))

    def _replica(
        self,
        group: GroupId,
        own: ReplicaId,
        members: dict[ReplicaId, NodeId],
        founding: Configuration,
        before: Replica | None = None,
    ) -> Replica:
        return Replica(
            group=group,
            replica=own,
            members=members,
            founding=founding,
            engine=self._engine,
            clock=self._clock,
            config=self._config.raft,
            random=self._random,
            mark=self.mark,
            holds=self.holds,
            before=before,
        )

    def _take_in(self, replica: Replica) -> None:
        replica.room = self._room_of(replica)
        self.joining[replica.group] = replica
        self._note_joined(replica)

    def _note_joined(self, replica: Replica) -> None:
        if replica.has_joined:
            self.replicas[replica.group] = self.joining.pop(replica.group)

    def remove(self, replica: Replica) -> None:
        """Forget a replica that its group has let go; its range is to be deleted in this turn."""
        assert not replica.is_leader
        assert self.find(replica.group) is replica
        self.replicas.pop(replica.group, None)
        self.joining.pop(replica.group, None)
        self._withdrawn.pop(replica.group, None)
        self._untold.pop(replica.group, None)
        self._retire(replica)
        replica.members = {}  # it says nothing any more
        replica.close(
            NoLeader(f"{self.node_id} has no replica of partition {replica.group - 1} any more")
        )

    def _retire(self, replica: Replica) -> None:
        """It takes part in no flush any more."""
        replica.dirty = True
        self._dirty = [other for other in self._dirty if other is not replica]

    # A replica that a snapshot replaces.

    def withdraw(self, replica: Replica) -> None:
        """Nothing is served by ``replica`` any more; its Raft goes on. :meth:`renew` follows, or
        :meth:`discard`."""
        assert self.find(replica.group) is replica
        self.replicas.pop(replica.group, None)
        self.joining.pop(replica.group, None)
        self._withdrawn[replica.group] = replica
        replica.close(NoLeader("this replica is being replaced by a snapshot; ask again"))

    def discard(self, replica: Replica) -> None:
        """Nothing comes of a withdrawn replica and its Raft any more."""
        del self._withdrawn[replica.group]
        self._retire(replica)

    def renew(self, replica: Replica, configuration: Configuration) -> None:
        """A snapshot has replaced ``replica``, durably: another one goes on with its Raft."""
        self.discard(replica)
        renewed = self._replica(
            replica.group, replica.id, replica.members, replica.founding, before=replica
        )
        renewed.raft.restore(configuration)
        assert renewed.applied == renewed.raft.applied, "as it was applied at the snapshot's index"
        self._take_in(renewed)
        self.mark(renewed)

    def _all(self) -> Iterator[Replica]:
        """All whose Raft is alive."""
        yield from self.replicas.values()
        yield from self.joining.values()
        yield from self._withdrawn.values()

    def start(self) -> None:
        self._tick_task = asyncio.get_running_loop().create_task(self._tick_forever())
        for replica in self._all():
            self.mark(replica)

    async def stop(self) -> None:
        """Stop at once; handing over what is led here comes before it."""
        self._closed = True
        self._failover.close()
        tasks = [task for task in (self._tick_task, self._sync_task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        error = Unavailable(f"{self.node_id} is stopping")
        for replica in self._all():
            replica.close(error)

    # What others may ask.

    @property
    def is_closed(self) -> bool:
        return self._closed

    def find(self, group: GroupId) -> Replica | None:
        """This node's replica of ``group``, whether it may be served from or not."""
        return self.replicas.get(group) or self.joining.get(group) or self._withdrawn.get(group)

    def mark(self, replica: Replica) -> None:
        """``replica`` has something to do: it takes part in the next flush."""
        if not replica.dirty:
            replica.dirty = True
            self._dirty.append(replica)
        self._schedule()

    def flush_soon(self) -> None:
        """A flush is due though no replica asks for it: for a ceiling of the clock."""
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._pace.soon(self._flush)

    def on_messages(self, peer: NodeId, messages: list[Message]) -> None:
        """Raft messages from ``peer``; those between replicas that are not here are dropped."""
        if self.storage_error is not None:
            return
        covered = self._clock.is_covered(self._clock.latest)
        outbox: dict[NodeId, list[Message]] = {}
        with self._fatal("a Raft message"):
            for message in messages:
                replica = self.find(message.group)
                if replica is None or replica.members.get(message.source) != peer:
                    continue
                replica.raft.step(message)
                if type(message) is Vote:
                    self._failover.on_vote(replica, message)
                if covered and not replica.dirty:
                    self._route(replica, replica.raft.take_replies(), outbox)
                if not replica.dirty and replica.raft.has_ready():
                    self.mark(replica)
                elif replica.raft.commit_untold:
                    self._tell_soon(replica)
        if self.storage_error is None:
            for node, replies in outbox.items():
                self._send(node, replies)

    def on_peer_down(self, peer: NodeId) -> None:
        """The stream broke: groups led there campaign soon, not after an election timeout."""
        if self.storage_error is not None:
            return
        for replica in self._all():
            if replica.leader == peer:
                lost = replica.raft.leader
                replica.raft.leader_lost()
                self._failover.leader_lost(replica, lost)
            elif replica.is_leader:
                for other, node in replica.members.items():
                    if node == peer:
                        replica.raft.peer_unreachable(other)
            self.mark(replica)

    def _campaign(self, replica: Replica) -> None:
        replica.raft.campaign()
        self.mark(replica)

    def set_full(self, nodes: frozenset[NodeId]) -> None:
        """The disks of ``nodes`` are full, and of no others."""
        if not nodes and not self._full:
            return
        self._full = nodes
        for replica in self.replicas.values():
            replica.room = self._room_of(replica)

    def _room_of(self, replica: Replica) -> Room:
        if not self._full:
            return "enough"
        voters = [replica.members.get(voter) for voter in replica.raft.voters]
        roomy = sum(voter not in self._full for voter in voters)
        if 2 * roomy <= len(voters):
            return "nowhere"
        return "elsewhere" if self.node_id in self._full else "enough"

    # The flush.

    def _flush(self) -> None:
        self._scheduled = False
        if self._closed:
            return
        if self.storage_error is not None:
            self._discard()
            return
        with self._fatal("a flush"):
            self._flush_dirty()

    def _discard(self) -> None:
        """Nothing leaves a node whose disk failed, and nothing piles up in it."""
        dirty, self._dirty = self._dirty, []
        for replica in dirty:
            replica.dirty = False

    def _flush_dirty(self) -> None:
        dirty, self._dirty = self._dirty, []
        self._pace.observe(len(dirty))
        batch = self._engine.batch()
        outbox: dict[NodeId, list[Message]] = {}
        unsynced = self._unsynced
        covered = self._clock.is_covered(self._clock.latest)
        turns = []
        for replica in dirty:
            replica.dirty = False
            replica.start_reads()
            ready = replica.raft.ready()
            turns.append((replica, ready))
            self._take(replica, ready, batch)
            if covered:
                self._route(replica, ready.messages, outbox)
            else:
                unsynced.messages += [(replica, message) for message in ready.messages]
            unsynced.messages += [(replica, message) for message in ready.messages_after_persist]
        ceiling = self._clock.wanted_ceiling()
        if ceiling is not None and ceiling > unsynced.ceiling:
            batch.put(RAFT, CEILING_KEY, ceiling.to_bytes(8, "big"))
            unsynced.ceiling = ceiling
        if len(batch):
            self._engine.write(batch)
            self._written = True
        for peer, messages in outbox.items():
            self._send(peer, messages)
        for replica, ready in turns:
            self._finish(replica, ready)
        if unsynced and self._sync_task is None:
            self._sync_task = asyncio.get_running_loop().create_task(self._sync_all())

    def _take(self, replica: Replica, ready: Ready, batch: Batch) -> None:
        """Put into ``batch`` what ``ready`` wants written and applied."""
        if ready.hard_state is not None:
            replica.log.save_hard_state(batch, ready.hard_state)
        if ready.entries:
            replica.log.append(batch, ready.entries)
            last = ready.entries[-1]
            self._unsynced.persisted.append((replica, last.index, last.term))
        if ready.committed:
            replica.apply(batch, ready.committed)

    def _finish(self, replica: Replica, ready: Ready) -> None:
        """After the write: whoever waited for it, and what is due next."""
        replica.written()
        if replica.checkpoint:
            self.on_checkpoint(replica, replica.checkpoint)
            replica.checkpoint = 0
        for need in ready.snapshots:
            self.on_snapshot_needed(replica, need)
        replica.finish_turn(ready)
        if self._full:
            replica.room = self._room_of(replica)  # its voters may be others now
        if self.joining and replica.group in self.joining:
            self._note_joined(replica)
        if ready.role_changed:
            self._note_leader(replica)
        if replica.raft.commit_untold:
            if replica.owes_commit():
                replica.raft.tell_commit()
            else:
                self._tell_soon(replica)
        if replica.raft.has_ready():
            self.mark(replica)

    def _tell_soon(self, replica: Replica) -> None:
        """Followers need not know at once: most learn it from the next Append for nothing."""
        if not self._untold:
            asyncio.get_running_loop().call_later(COMMIT_NOTICE_S, self._tell_commits)
        self._untold[replica.group] = replica

    def _tell_commits(self) -> None:
        untold, self._untold = self._untold, {}
        for replica in untold.values():
            self.tell_commit(replica)

    def tell_commit(self, replica: Replica) -> None:
        """Let the followers of ``replica`` know what is committed, now."""
        replica.raft.tell_commit()
        if replica.raft.has_ready():
            self.mark(replica)

    async def synced(self) -> None:
        """What is due is written, and everything that is written is durable.

        Raises what ended this host.
        """
        self._flush()
        if self.storage_error is not None:
            raise self.storage_error
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._unsynced.waiters.append(waiter)
        if self._sync_task is None:
            self._sync_task = loop.create_task(self._sync_all())
        await waiter

    def write(self, batch: Batch) -> None:
        """Write ``batch`` behind all that was written before. Raises what ended this host."""
        if self.storage_error is None:
            with self._fatal("a write"):
                self._engine.write(batch)
                self._written = True
        if self.storage_error is not None:
            raise self.storage_error

    def truncate(self, replica: Replica, keep_entries: int, entries_max: int) -> None:
        """Drop the old part of a log that has grown by more than ``keep_entries``."""
        raft = replica.raft
        length = raft.last_index - raft.first_index
        if self.storage_error is not None or length < 2 * keep_entries:
            return
        point = raft.truncation_point(keep_entries, spare_followers=length < entries_max)
        if point - raft.first_index < keep_entries // 2:
            return
        with self._fatal("a truncation"):
            batch = self._engine.batch()
            replica.log.truncate(batch, point)
            self._engine.write(batch)
            self._written = True
            raft.truncated_to(point)

    def _route(
        self,
        replica: Replica,
        messages: tuple[Message, ...],
        outbox: dict[NodeId, list[Message]],
    ) -> None:
        members = replica.members
        for message in messages:
            node = members.get(message.target)
            if node is None:
                continue
            box = outbox.get(node)
            if box is None:
                outbox[node] = [message]
            else:
                box.append(message)

    async def _sync_all(self) -> None:
        """Sync until nothing waits: one sync for all that was written before it began."""
        try:
            with self._fatal("a sync"):
                while self._unsynced and self.storage_error is None:
                    taken, self._unsynced = self._unsynced, _Unsynced()
                    if self._written:
                        self._written = False
                        self._sync_ticks = 0
                        await self._engine.sync()
                        self._sync_ticks = None
                    if self.storage_error is None:
                        self._synced(taken)
        finally:
            self._sync_ticks = None
            self._sync_task = None

    def _synced(self, taken: _Unsynced) -> None:
        if taken.ceiling:
            self._clock.ceiling_persisted(taken.ceiling)
        for waiter in taken.waiters:
            if not waiter.done():
                waiter.set_result(None)
        for replica, index, term in taken.persisted:
            replica.persisted(index, term)
            if not replica.dirty and replica.raft.has_ready():
                self.mark(replica)
        outbox: dict[NodeId, list[Message]] = {}
        for replica, message in taken.messages:
            if message.target == replica.id:
                replica.raft.step(message)
                self.mark(replica)
            else:
                self._route(replica, (message,), outbox)
        for peer, messages in outbox.items():
            self._send(peer, messages)

    # Time.

    async def _tick_forever(self) -> None:
        loop = asyncio.get_running_loop()
        interval = self._config.raft.tick_ms / 1000
        next_tick = loop.time() + interval
        while True:
            await asyncio.sleep(max(0.0, next_tick - loop.time()))
            # A loop that was held up (or a stopped process that woke up) must not tick in a burst:
            # it would call elections for time in which nobody could be heard.
            next_tick = max(next_tick + interval, loop.time())
            self._tick(loop.time())

    def _tick(self, now: float) -> None:
        for replica in self._all():
            replica.expire(now)
        if self.storage_error is not None:
            return
        with self._fatal("a tick"):
            if self._disk_stalled():
                self._give_up_leaderships()
            else:
                self._tick_groups(now)

    def _tick_groups(self, now: float) -> None:
        if self.on_tick is not None:
            self.on_tick()
        for replica in self._all():
            replica.raft.tick()
            if replica.is_leader:
                replica.note_levels(now)
            if replica.raft.has_ready():
                self.mark(replica)
        if self._clock.wanted_ceiling() is not None:
            self._schedule()

    def _disk_stalled(self) -> bool:
        """A heartbeat vouches for the disk: with a sync overdue, none is sent.

        Counted in ticks: in a loop that was held up, the sync may have ended long ago.
        """
        if self._sync_ticks is None:
            return False
        self._sync_ticks += 1
        return self._sync_ticks > self._config.raft.election_ticks

    def _give_up_leaderships(self) -> None:
        for replica in self.replicas.values():
            if replica.is_leader:
                replica.raft.step_down()
                self.mark(replica)

    # Failure.

    def _fail_storage(self, error: KotobaError) -> None:
        """Final for this host: from here on it has no replicas, so this node leads nothing and
        vouches for nothing. What clients ask of it is asked of others."""
        if self.storage_error is not None:
            return
        level = logging.WARNING if isinstance(error, StorageFull) else logging.ERROR
        log.log(level, "the disk of this node takes nothing: %s", error.detail)
        self.storage_error = error
        self._unsynced.abandon(error)
        self._unsynced = _Unsynced()
        for replica in self._all():
            if replica.is_leader:
                replica.raft.step_down()
            replica.close(Unavailable(f"the disk of {self.node_id} failed: {error.detail}"))
        self.replicas.clear()
        self.joining.clear()
        self._withdrawn.clear()
        self._discard()
        self._on_storage_failed(error)

    @contextmanager
    def _fatal(self, what: str) -> Iterator[None]:
        """Whatever goes wrong between a Ready and its write leaves it half done: nothing of it may
        ever be reported as persisted, so the process is over as a replica."""
        try:
            yield
        except (StorageFailed, StorageFull) as error:
            self._fail_storage(error)
        except Exception as error:
            log.exception("%s failed", what)
            self._fail_storage(StorageFailed(f"a bug of ours in {what}: {error!r}"))

    # Leadership.

    def _note_leader(self, replica: Replica) -> None:
        seen = (replica.raft.leader, replica.raft.term)
        if self._leaders.get(replica.group) != seen:
            self._leaders[replica.group] = seen
            if replica.raft.leader:
                self._on_leader(replica)

    def transfer(self, replica: Replica, node: NodeId) -> bool:
        """Hand the leadership of ``replica``'s group to ``node``; False when that is impossible."""
        target = replica.voter_at(node)
        if not replica.is_leader or target is None or target == replica.id:
            return False
        replica.raft.transfer_leadership(target)
        self.mark(replica)
        return True

    def retire(self) -> None:
        """This node is about to stop: none of its replicas begins to campaign any more."""
        for replica in self._all():
            replica.raft.retire()

    def abort_transfers(self, node: NodeId) -> None:
        """``node`` does not take leaderships any more: go on with those on their way to it."""
        for replica in self.replicas.values():
            target = replica.voter_at(node)
            if target is not None and replica.is_leader:
                replica.raft.abort_transfer(target)
                self.mark(replica)


def _ignore(replica: Replica, need: SnapshotNeeded) -> None:
    """A host without snapshots: the need is handed out again."""
    replica.raft.snapshot_failed(need.target)
