"""Replicas with disks and a network between them, all in memory and under the test's thumb.

A :class:`Replica` is the smallest host that keeps the contract of ``Ready``. Its disk tells written
from durable, so a crash loses what it is allowed to lose; with ``slow`` set, nothing becomes
durable until the test says :meth:`Replica.persist`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from cluster_core.config import RaftConfig
from cluster_core.ports import Random
from cluster_core.raft import Raft, Ready, Role
from cluster_core.wire.messages import Entry, HardState, Message

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


class Image:
    """What is on a disk."""

    def __init__(self, entries: Iterable[Entry] = (), term: int = 0) -> None:
        self.entries = list(entries)
        self.hard_state = HardState(term or max([e.term for e in self.entries], default=0))
        self.applied = 0

    def copy(self) -> Image:
        other = Image(self.entries)
        other.hard_state = self.hard_state
        other.applied = self.applied
        return other

    def write(self, entries: tuple[Entry, ...], hard_state: HardState | None, applied: int) -> None:
        if entries:
            del self.entries[entries[0].index - 1 :]
            self.entries += entries
        if hard_state is not None:
            self.hard_state = hard_state
        self.applied = max(self.applied, applied)
        assert [entry.index for entry in self.entries[-3:]] == list(
            range(len(self.entries) + 1)[-len(self.entries[-3:]) :] if self.entries else []
        )


class Disk:
    """A log reader over what was written, which is more than what is durable."""

    def __init__(self, image: Image) -> None:
        self.durable = image
        self.written = image.copy()
        self.pending: deque[tuple[tuple[Entry, ...], HardState | None, int]] = deque()
        self.term_reads = 0

    def write(
        self, entries: tuple[Entry, ...] = (), hard_state: HardState | None = None, applied: int = 0
    ) -> None:
        self.written.write(entries, hard_state, applied)
        self.pending.append((entries, hard_state, applied))

    def sync(self, writes: int) -> None:
        """The oldest ``writes`` become durable."""
        for _ in range(writes):
            self.durable.write(*self.pending.popleft())

    def first_index(self) -> int:
        return 1

    def last_index(self) -> int:
        return len(self.written.entries)

    def term(self, index: int) -> int:
        self.term_reads += 1
        return self.written.entries[index - 1].term

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        found: list[Entry] = []
        size = 0
        for entry in self.written.entries[low - 1 : high - 1]:
            size += len(entry.data)
            if found and size > bytes_max:
                break
            found.append(entry)
        return found


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
        self.start(image or Image())

    def start(self, image: Image) -> None:
        """Start with what a disk holds."""
        self.disk = Disk(image)
        written = self.disk.written
        self.applied = list(written.entries[: written.applied])
        """The state machine: everything applied, in order."""
        self.outstanding: deque[tuple[Ready, int]] = deque()
        """Readys that are not durable yet, each with the number of its writes."""
        self.reads: dict[int, int] = {}
        self.reads_lost: list[int] = []
        self.raft = Raft(
            group=GROUP,
            replica=self.replica,
            voters=self.group.voters,
            learners=self.group.learners,
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
        """Handle Readys until there is none."""
        while self.raft.has_ready() or self.raft.commit_untold:
            if self.raft.commit_untold:
                self.raft.tell_commit()
            self.take()
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
        self.outstanding.append((ready, len(self.disk.pending) - before))
        return ready

    def persist(self, count: int | None = None, *, together: bool = False) -> None:
        """Make the ``count`` oldest outstanding Readys durable (all of them by default).

        ``together``: by one sync, so that only the last of them is reported.
        """
        last: Entry | None = None
        done: list[Message] = []
        for _ in range(len(self.outstanding) if count is None else count):
            ready, writes = self.outstanding.popleft()
            self.disk.sync(writes)
            last = ready.entries[-1] if ready.entries else last
            done += ready.messages_after_persist
            if not together:
                self._durable(last, done)
                last = None
                done = []
        self._durable(last, done)

    def _durable(self, last: Entry | None, messages: list[Message]) -> None:
        if last is not None:
            self.raft.persisted(last.index, last.term)
        for message in messages:
            if message.target == self.replica:
                self.raft.step(message)
            else:
                self.group.send(message)


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
            if (message.source, message.target) not in self.cut:
                self[message.target].raft.step(message)
                self[message.target].work()
        return taken

    def stabilize(self) -> None:
        """Deliver until nothing is on its way; 1,000 rounds are surely a loop."""
        for _ in range(1_000):
            self.work()
            if not self.network:
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
    """The proposals among ``entries``: without the leaders' empty ones."""
    return [entry.data for entry in entries if entry.data]


def terms_of(replica: Replica) -> list[int]:
    """The terms of the written log."""
    return [entry.term for entry in replica.disk.written.entries]
