"""Replicas with disks and a network between them, all in memory and under the test's thumb.

A :class:`Replica` is the smallest host that keeps the contract of ``Ready``. Its disk tells written
from durable, so a crash loses what it is allowed to lose; with ``slow`` set, nothing becomes
durable until the test says :meth:`Replica.persist`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from cluster_core.config import RaftConfig
from cluster_core.ports import Random
from cluster_core.raft import (
    Configuration,
    NotLeading,
    Raft,
    Ready,
    Role,
    SnapshotNeeded,
    decode_configuration,
)
from cluster_core.wire.messages import CONFIGURATION, Entry, HardState, Message, SnapshotOffer

GROUP = 7
CONFIG = RaftConfig(heartbeat_ticks=1, election_ticks=10)


class FirstTimeout:
    """A Random that makes replica *n* time out after ``election_ticks + n - 1`` ticks."""

    def __init__(self, replica: int) -> None:
        self.replica = replica

    def random(self) -> float:
        return 0.0

    def uniform(self, a: float, b: float, /) -> float:
        return a

    def randrange(self, start: int, stop: int, /) -> int:
        return min(start + self.replica - 1, stop - 1)

    def randbytes(self, n: int, /) -> bytes:
        return bytes(n)


class Snapshot(NamedTuple):
    """A state machine at an index; the state is everything that was applied."""

    offer: SnapshotOffer
    configuration: Configuration
    state: tuple[Entry, ...]


class Write(NamedTuple):
    """One atomic write."""

    entries: tuple[Entry, ...] = ()
    hard_state: HardState | None = None
    applied: int = 0
    truncated: int = 0
    snapshot: Snapshot | None = None


class Image:
    """What is on a disk: a log behind ``base`` (index and term), and a state machine."""

    def __init__(self, entries: Iterable[Entry] = (), term: int = 0) -> None:
        self.base = (0, 0)
        self.entries = list(entries)
        self.hard_state = HardState(term or max([e.term for e in self.entries], default=0))
        self.state: list[Entry] = []
        self.configuration: Configuration | None = None

    @property
    def applied(self) -> int:
        return len(self.state)

    @applied.setter
    def applied(self, index: int) -> None:
        for place in range(len(self.state) - self.base[0], index - self.base[0]):
            entry = self.entries[place]
            self.state.append(entry)
            if entry.kind == CONFIGURATION:
                self.configuration = decode_configuration(entry.data)

    @property
    def last_index(self) -> int:
        return self.base[0] + len(self.entries)

    def at(self, index: int) -> Entry | None:
        """The entry at ``index``: in the log, or applied before the log was dropped."""
        if index <= self.base[0]:
            return self.state[index - 1]
        return self.entries[index - self.base[0] - 1] if index <= self.last_index else None

    def term(self, index: int) -> int:
        assert self.base[0] <= index <= self.last_index
        return (
            self.base[1] if index == self.base[0] else self.entries[index - self.base[0] - 1].term
        )

    def copy(self) -> Image:
        other = Image(self.entries)
        other.base = self.base
        other.hard_state = self.hard_state
        other.state = list(self.state)
        other.configuration = self.configuration
        return other

    def write(self, write: Write) -> None:
        if write.snapshot is not None:
            offer, self.configuration, state = write.snapshot
            self.base = (offer.index, offer.last_term)
            self.entries = []
            self.state = list(state)
        if write.entries:
            del self.entries[write.entries[0].index - self.base[0] - 1 :]
            assert write.entries[0].index == self.last_index + 1, "never entry n+1 without n"
            self.entries += write.entries
        if write.hard_state is not None:
            self.hard_state = write.hard_state
        self.applied = write.applied
        if write.truncated:
            term = self.term(write.truncated)
            del self.entries[: write.truncated - self.base[0]]
            self.base = (write.truncated, term)


class Disk:
    """A log reader over what was written, which is more than what is durable."""

    def __init__(self, image: Image) -> None:
        self.durable = image
        self.written = image.copy()
        self.pending: deque[Write] = deque()
        self.term_reads = 0

    def write(
        self, entries: tuple[Entry, ...] = (), hard_state: HardState | None = None, applied: int = 0
    ) -> None:
        self.put(Write(entries, hard_state, applied))

    def put(self, write: Write) -> None:
        self.written.write(write)
        self.pending.append(write)

    def sync(self, writes: int) -> None:
        """The oldest ``writes`` become durable."""
        for _ in range(writes):
            self.durable.write(self.pending.popleft())

    def first_index(self) -> int:
        return self.written.base[0] + 1

    def last_index(self) -> int:
        return self.written.last_index

    def term(self, index: int) -> int:
        self.term_reads += 1
        return self.written.term(index)

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        assert low >= self.first_index()
        found: list[Entry] = []
        size = 0
        base = self.written.base[0]
        for entry in self.written.entries[low - base - 1 : high - base - 1]:
            size += len(entry.data)
            if found and size > bytes_max:
                break
            found.append(entry)
        return found


class Outstanding(NamedTuple):
    """What was written and is not durable yet, and what waits for it."""

    writes: int
    ready: Ready = Ready()
    snapshot: Snapshot | None = None


class Replica:
    """One Raft with its disk and state machine."""

    def __init__(
        self,
        replica: int,
        group: Group,
        *,
        image: Image | None = None,
        config: RaftConfig = CONFIG,
        random: Random | None = None,
    ) -> None:
        self.replica = replica
        self.group = group
        self.slow = False
        self.config = config
        self.random = random or FirstTimeout(replica)
        self.on_ready: Callable[[Replica, Ready], None] = lambda _replica, _ready: None
        self.on_restore: Callable[[Replica, Snapshot], None] = lambda _replica, _snapshot: None
        self.starts = 0
        self.start(image or Image())

    def start(self, image: Image) -> None:
        """Start with what a disk holds."""
        self.starts += 1
        self.disk = Disk(image)
        written = self.disk.written
        self.applied = list(written.state)
        """The state machine: everything applied, in order."""
        self.outstanding: deque[Outstanding] = deque()
        self.reads: dict[int, int] = {}
        self.reads_lost: list[int] = []
        founded = self.replica in (*self.group.voters, *self.group.learners)
        self.raft = Raft(
            group=GROUP,
            replica=self.replica,
            voters=self.group.voters if founded else (),
            learners=self.group.learners if founded else (),
            configuration=written.configuration,
            hard_state=written.hard_state,
            log=self.disk,
            applied=written.applied,
            config=self.config,
            random=self.random,
        )

    def crash(self, kept: int = 0) -> None:
        """Lose what is not durable, but for the ``kept`` oldest writes; and start again."""
        self.disk.sync(kept)
        self.start(self.disk.durable)

    def work(self) -> None:
        """Handle Readys until there is none, and all is durable unless the disk is slow."""
        while True:
            if self.raft.commit_untold:
                self.raft.tell_commit()
            if self.raft.has_ready():
                self.take()
            elif self.slow or not self.outstanding:
                return
            if not self.slow:
                self.persist()

    def take(self) -> Ready:
        """Take one Ready and do what need not wait for the disk."""
        ready = self.raft.ready()
        self.on_ready(self, ready)
        before = len(self.disk.pending)
        if ready.writes:
            self.disk.write(ready.entries, ready.hard_state)
        for message in ready.messages:
            self.group.send(message)
        if ready.committed:
            self.applied += ready.committed
            self.disk.write(applied=ready.committed[-1].index)
            self.raft.applied_to(ready.committed[-1].index)
        for read in ready.reads:
            self.reads[read.context] = read.index
        self.reads_lost += ready.reads_lost
        for needed in ready.snapshots:
            self.group.transfers.append(Transfer(self.replica, needed))
        self.outstanding.append(Outstanding(len(self.disk.pending) - before, ready))
        return ready

    def truncate(self, keep_entries: int = 0, *, spare_followers: bool = True) -> int:
        """Drop as much of the log as may go: the index up to which it did."""
        point = self.raft.truncation_point(keep_entries, spare_followers=spare_followers)
        if point >= self.raft.first_index:
            self.disk.put(Write(truncated=point))
            self.outstanding.append(Outstanding(1))
            self.raft.truncated_to(point)
        return point

    def make_snapshot(self, target: int) -> Snapshot:
        """What is applied now. Raises NotLeading."""
        raft = self.raft
        state = tuple(self.applied)
        return Snapshot(raft.snapshot_offer(target), raft.applied_configuration, state)

    def install(self, snapshot: Snapshot) -> bool:
        """Take in what was received, as far as need not wait for the disk."""
        if not self.raft.begin_restore(snapshot.offer):
            return False
        while self.raft.has_ready():
            self.take()
        self.replace(snapshot)
        return True

    def replace(self, snapshot: Snapshot) -> None:
        """Everything at once, and when that is durable Raft hears of it."""
        self.disk.put(Write(snapshot=snapshot))
        self.outstanding.append(Outstanding(1, snapshot=snapshot))

    def persist(self, count: int | None = None, *, together: bool = False) -> None:
        """Make the ``count`` oldest outstanding Readys durable (all of them by default).

        ``together``: by one sync, so that only the last of them is reported.
        """
        last: Entry | None = None
        done: list[Message] = []
        for _ in range(len(self.outstanding) if count is None else count):
            writes, ready, snapshot = self.outstanding.popleft()
            self.disk.sync(writes)
            last = ready.entries[-1] if ready.entries else last
            done += ready.messages_after_persist
            if not together:
                self._durable(last, done)
                last = None
                done = []
            if snapshot is not None:
                self.on_restore(self, snapshot)
                self.raft.restore(snapshot.configuration)
                self.applied = list(snapshot.state)
        self._durable(last, done)

    def _durable(self, last: Entry | None, messages: list[Message]) -> None:
        if last is not None:
            self.raft.persisted(last.index, last.term)
        for message in messages:
            if message.target == self.replica:
                self.raft.step(message)
            else:
                self.group.send(message)


class Transfer:
    """A snapshot on its way, out of band."""

    def __init__(self, source: int, needed: SnapshotNeeded) -> None:
        self.source = source
        self.needed = needed
        self.target = needed.target
        self.snapshot: Snapshot | None = None
        """Once it is made."""
        self.accepted = 0
        """Once the target has said that it wants it: which start of the target did."""
        self.installing = False


class Group:
    """All replicas of one group and the messages between them, oldest first."""

    def __init__(
        self,
        voters: Iterable[int] = (1, 2, 3),
        learners: Iterable[int] = (),
        *,
        images: dict[int, Image] | None = None,
        config: RaftConfig = CONFIG,
        randoms: dict[int, Random] | None = None,
    ) -> None:
        self.voters = tuple(voters)
        self.learners = tuple(learners)
        self.network: list[Message] = []
        self.transfers: list[Transfer] = []
        self.cut: set[tuple[int, int]] = set()
        """Links that lose everything."""
        self.replicas = {
            member: Replica(
                member,
                self,
                image=(images or {}).get(member),
                config=config,
                random=(randoms or {}).get(member),
            )
            for member in (*self.voters, *self.learners)
        }

    def __getitem__(self, replica: int) -> Replica:
        return self.replicas[replica]

    def __iter__(self) -> Iterator[Replica]:
        return iter(self.replicas.values())

    def raft(self, replica: int) -> Raft:
        return self.replicas[replica].raft

    def send(self, message: Message) -> None:
        self.network.append(message)

    def join(self, replica: int) -> Replica:
        """A new replica, with an empty disk, that knows nobody."""
        self.replicas[replica] = Replica(replica, self)
        return self.replicas[replica]

    def leave(self, replica: int) -> None:
        """It is gone, with its disk."""
        del self.replicas[replica]

    def work(self) -> None:
        for replica in self:
            replica.work()

    def take(self, source: int | None = None, target: int | None = None) -> list[Message]:
        """Take the messages on a link (any, by default) off the network."""
        taken = [
            message
            for message in self.network
            if source in (None, message.source) and target in (None, message.target)
        ]
        self.network = [message for message in self.network if message not in taken]
        return taken

    def deliver(self, source: int | None = None, target: int | None = None) -> list[Message]:
        """Deliver what is on a link now, and handle what follows at the receivers."""
        taken = self.take(source, target)
        for message in taken:
            if (message.source, message.target) not in self.cut and message.target in self.replicas:
                self[message.target].raft.step(message)
                self[message.target].work()
        return taken

    def advance(self, transfer: Transfer) -> bool:
        """Take a snapshot one step further; False while it waits for a disk."""
        source = self.replicas.get(transfer.source)
        target = self.replicas.get(transfer.target)
        if source is None or target is None or (transfer.source, transfer.target) in self.cut:
            self.end(transfer, finished=False)
        elif transfer.snapshot is None:
            self._make(transfer, source)
        elif not transfer.accepted:
            target.raft.step(transfer.snapshot.offer)
            if target.raft.wants(transfer.snapshot.offer):
                transfer.accepted = target.starts
            else:
                self.end(transfer, finished=False)
        elif transfer.accepted != target.starts:
            self.end(transfer, finished=False)
        elif not transfer.installing:
            transfer.installing = target.install(transfer.snapshot)
            if not transfer.installing:
                self.end(transfer, finished=False)
        elif any(item.snapshot is transfer.snapshot for item in target.outstanding):
            return False
        else:
            self.end(transfer, finished=True)
        return True

    def _make(self, transfer: Transfer, source: Replica) -> None:
        try:
            transfer.snapshot = source.make_snapshot(transfer.target)
        except NotLeading:
            self.end(transfer, finished=False)

    def end(self, transfer: Transfer, *, finished: bool) -> None:
        """It is over, and the source is told."""
        self.transfers.remove(transfer)
        source = self.replicas.get(transfer.source)
        if source is None:
            return
        if finished:
            assert transfer.snapshot is not None
            source.raft.snapshot_finished(transfer.target, transfer.snapshot.offer.index)
        else:
            source.raft.snapshot_failed(transfer.target)

    def stabilize(self) -> None:
        """Deliver until nothing is on its way; 1,000 rounds are surely a loop."""
        for _ in range(1_000):
            self.work()
            moved = [self.advance(transfer) for transfer in list(self.transfers)]
            self.work()
            if not self.network and not any(moved):
                return
            self.deliver()
        raise AssertionError("the group never comes to rest")

    def tick(self, ticks: int = 1, *replicas: int) -> None:
        """Let time pass, everywhere or at some replicas, and the group come to rest in between."""
        for _ in range(ticks):
            for replica in replicas or self.replicas:
                self.raft(replica).tick()
            self.stabilize()

    def elect(self, replica: int) -> Raft:
        """Make ``replica`` the leader of an idle group."""
        self.raft(replica).campaign()
        self.stabilize()
        raft = self.raft(replica)
        assert raft.role is Role.LEADER
        return raft

    def isolate(self, *replicas: int) -> None:
        """Cut every link between ``replicas`` and the others."""
        for one in replicas:
            for other in self.replicas:
                if other not in replicas:
                    self.cut |= {(one, other), (other, one)}

    def heal(self) -> None:
        self.cut.clear()


def role_of(raft: Raft) -> Role:
    """Its role as of now; a type checker takes an attribute for what it was when last asserted."""
    return raft.role


def log_of(terms: Iterable[int]) -> Image:
    """A durable log whose entries have these terms, nothing of it applied."""
    return Image([Entry(term, index, b"%d" % index) for index, term in enumerate(terms, start=1)])


def data_of(entries: Iterable[Entry]) -> list[bytes]:
    """The proposals among ``entries``: without the leaders' own."""
    return [entry.data for entry in entries if entry.data and not entry.kind]


def terms_of(replica: Replica) -> list[int]:
    """The terms of the written log."""
    return [entry.term for entry in replica.disk.written.entries]
