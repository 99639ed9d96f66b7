"""One replica: a Raft group's member on this node, with the state that its log builds.

The replica owns what is particular to its group: the Raft core, the log, the applied index, the
intents, and, while it leads, the evaluation of new commands. The :class:`ReplicationHost` owns what
all groups of a node share: the flush, the sync, the frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from struct import Struct
from typing import Final, Literal

from cluster_core.config import RaftConfig
from cluster_core.errors import KotobaError, NoLeader, OutcomeUnknown, Overloaded, StorageFull
from cluster_core.hlc import HybridClock
from cluster_core.ports import DATA, Batch, Engine, Random, Scan
from cluster_core.raft import (
    Change,
    Configuration,
    Raft,
    Ready,
    Refusal,
    Role,
    decode_configuration,
)
from cluster_core.replication.command import Command, decode_command
from cluster_core.replication.evaluation import HISTORY, Draft, Evaluation
from cluster_core.replication.holds import Holds
from cluster_core.replication.intents import IntentIndex, decode_intent
from cluster_core.replication.log_store import LogStore
from cluster_core.replication.waiters import Waiters
from cluster_core.storage import keys
from cluster_core.types import GroupId, NodeId, ReplicaId, Timestamp
from cluster_core.wire.messages import CHECKPOINT, CONFIGURATION, Entry

__all__ = ["Replica", "Room"]

Room = Literal["enough", "elsewhere", "nowhere"]
"""Whether the disks of a group may take what clients write: yes; yes, but not this node's; no, for
a majority of the voters' disks are full."""

_RECORD: Final = keys.RECORD[0]

_APPLIED: Final = Struct(">QQ")
"""Applied index and the timestamp of the last command."""


class Replica:
    """See the module. ``members`` names the node of each replica id of the group, and is replaced
    as the partition table changes. ``founding`` is the configuration with which the group began, or
    UNKNOWN for a replica that was added since.

    ``before`` is what this replica was until a snapshot replaced it: the state is read anew, and
    its Raft goes on.
    """

    def __init__(
        self,
        *,
        group: GroupId,
        replica: ReplicaId,
        members: dict[ReplicaId, NodeId],
        founding: Configuration,
        engine: Engine,
        clock: HybridClock,
        config: RaftConfig,
        random: Random,
        mark: Callable[[Replica], None],
        holds: Holds,
        before: Replica | None = None,
    ) -> None:
        self.group = group
        self.id = replica
        self.members = members
        self.dirty = False
        self.log: LogStore = LogStore(engine, group) if before is None else before.log
        self.intents = IntentIndex()
        self.records: dict[bytes, bytes] = {}
        """The applied transaction records, by key. There are few, but thousands a second come and
        go: to look for them in the store is to read over all that were deleted."""
        self.evaluation: Evaluation | None = None
        self.holds = holds
        self.commands_applied = 0
        self.dedupe_full = False
        """Whether the last sweep found as many dedupe entries as a partition may keep."""
        self._engine = engine
        self._clock = clock
        self._mark = mark
        self._applied_key = keys.state(group, b"applied")
        self._configuration_key = keys.state(group, b"configuration")
        self._highest_key = keys.state(group, b"highest-replica")
        self.founding = founding
        self.applied = 0
        self.applied_timestamp: Timestamp = 0
        self.horizon: Timestamp = 0
        """Below it the past is not kept any more (``history.py``)."""
        self.highest_id: ReplicaId = 0
        """The highest replica id that the group ever had, as far as it is applied here."""
        self._read_state()
        self.raft: Raft = before.raft if before else self._start_raft(config, random)
        self._proposals: dict[int, tuple[int, asyncio.Future[Timestamp], float]] = {}
        self._outcomes: list[tuple[asyncio.Future[Timestamp], Timestamp]] = []
        self._readers: list[asyncio.Future[int]] = []
        self._reading: dict[int, list[asyncio.Future[int]]] = {}
        self._read_context = 0
        self._applied_waiters: Waiters[int] = Waiters()
        self._leading_waiters: Waiters[int] = Waiters()
        """As those, and to be told when the leadership is lost."""
        self.failed: KotobaError | None = None
        """Set once the node's disk failed, it stops, or a snapshot takes this replica's place."""
        self.room: Room = "enough"
        self.checkpoint = 0
        """Of an entry of that kind that is the last one in the batch of this flush, else 0."""
        self.comparing = False
        """Its state at a checkpoint is being read: nothing below it is collected."""
        self.shunned: frozenset[NodeId] = frozenset()
        """The nodes whose replica of this group differed, and may not lead."""
        self._role_waiters: Waiters[None] = Waiters()
        self._durable_waiters: Waiters[None] = Waiters()
        self._level_since: dict[ReplicaId, float] = {}
        self._load_intents()
        self.records.update(self.scan(keys.RECORD))

    def _read_state(self) -> None:
        """What the state machine was when it was last written."""
        value = self._engine.get(DATA, self._applied_key)
        self.applied, self.applied_timestamp = (0, 0) if value is None else _APPLIED.unpack(value)
        value = self._engine.get(DATA, keys.state(self.group, HISTORY))
        self.horizon = 0 if value is None else int.from_bytes(value, "big")
        value = self._engine.get(DATA, self._highest_key)
        founding = max(self.founding.members, default=0)
        self.highest_id = founding if value is None else int.from_bytes(value, "big")

    def _start_raft(self, config: RaftConfig, random: Random) -> Raft:
        stored = self._engine.get(DATA, self._configuration_key)
        return Raft(
            group=self.group,
            replica=self.id,
            voters=self.founding.voters,
            learners=self.founding.learners,
            configuration=None if stored is None else decode_configuration(stored),
            hard_state=self.log.hard_state(),
            log=self.log,
            applied=self.applied,
            config=config,
            random=random,
        )

    def _load_intents(self) -> None:
        prefix = keys.table_prefix(self.group, keys.INTENT)
        now = asyncio.get_running_loop().time()
        for _, value in self._engine.scan(DATA, prefix, keys.after(prefix)):
            self.intents.add(decode_intent(value), now)

    # Members.

    @property
    def has_joined(self) -> bool:
        """Whether it has applied that it is a member: from then on it is a replica like any other.
        Before, it is empty or far behind, and nobody may be served from it."""
        return self.id in self.raft.applied_configuration.members

    def voter_at(self, node: NodeId) -> ReplicaId | None:
        """The voter of the group that is at ``node``."""
        voters = self.raft.voters
        return next((voter for voter in voters if self.members.get(voter) == node), None)

    def propose_configuration(self, change: Change) -> None:
        """Begin to change the members. Raises ProposalRefused."""
        self.raft.propose_configuration(change)
        self._mark(self)

    # Leadership.

    @property
    def leader(self) -> NodeId | None:
        """The node that leads the group, as far as this replica knows."""
        return self.members.get(self.raft.leader)

    @property
    def is_leader(self) -> bool:
        return self.raft.role is Role.LEADER

    def changed_role(self) -> asyncio.Future[None]:
        """Done at the next change of role, leader or readiness to evaluate."""
        return self._role_waiters.wait()

    def _update_evaluation(self) -> None:
        """Evaluate only while leading, and only once the first entry of the term is applied."""
        raft = self.raft
        if raft.role is not Role.LEADER:
            if self.evaluation is not None:
                lost = NoLeader("leadership was lost; ask again")
                self.evaluation.locks.abandon(lost)
                self.evaluation = None
                self._fail_durable_waiters()
                self._leading_waiters.fail(lost)
        elif self.evaluation is None and raft.committed_in_term and self.applied == raft.last_index:
            self._bury_proposals()
            self.evaluation = Evaluation(self._engine, self.group, self.intents.all())
            self._role_waiters.tell(None)

    def _bury_proposals(self) -> None:
        """All that is in the log is applied and of a leader's earlier term at most: what was
        proposed here and is not among it never will be."""
        for _, future, _ in self._proposals.values():
            if not future.done():
                future.set_exception(NoLeader("the leader changed; the write was not executed"))
        self._proposals.clear()

    # Writing.

    def draft(self) -> Draft:
        """Begin a command; it must be proposed, or found empty, in this turn of the loop.

        Raises NoLeader or Overloaded before anything was done.
        """
        evaluation = self.evaluation
        if evaluation is None:
            raise NoLeader(f"this node does not lead group {self.group}")
        refusal = self.raft.refusal()
        if refusal is Refusal.TOO_MANY_UNCOMMITTED:
            raise Overloaded("too many writes of this partition are in flight")
        if refusal is not None:
            raise NoLeader("the leadership of this partition is moving")
        return evaluation.begin(self.raft.last_index + 1)

    def require_room(self) -> None:
        """What clients write asks here first; what ends a transaction or keeps a promise does not.

        Raises StorageFull, or NoLeader while the leadership moves to a node with room.
        """
        if self.room == "nowhere":
            raise StorageFull("the disks of this partition's nodes are full")
        if self.room == "elsewhere":
            raise NoLeader("the leadership of this partition moves to a node with room")

    def propose(self, draft: Draft, deadline: float) -> asyncio.Future[Timestamp]:
        """Propose what :meth:`draft` began.

        The future gets the draft's timestamp once the entry is applied. It fails with NoLeader when
        another entry was committed in its place (certainly not executed), and with OutcomeUnknown
        at ``deadline``, in the time of the event loop.
        """
        index, term = self.raft.propose(draft.encode())
        assert index == draft.index, "a draft is proposed in the turn that began it"
        future: asyncio.Future[Timestamp] = asyncio.get_running_loop().create_future()
        self._proposals[index] = (term, future, deadline)
        self._mark(self)
        return future

    def expire(self, now: float) -> None:
        """Give up waiting for proposals whose deadline has passed: their outcome is unknown."""
        if not self._proposals:
            return
        late = [index for index, (_, _, deadline) in self._proposals.items() if deadline <= now]
        for index in late:
            _, future, _ = self._proposals.pop(index)
            if not future.done():
                future.set_exception(
                    OutcomeUnknown("not decided in time; retry with the same Idempotency-Key")
                )

    @property
    def queued(self) -> int:
        return len(self._proposals)

    # Reading.

    def read_barrier(self) -> asyncio.Future[int]:
        """The index that a linearizable read must have applied (ReadIndex, dissertation §6.4).

        Done when leadership was confirmed by a majority after this call, and that index is applied
        here. All readers of a turn share one round. Fails with NoLeader.
        """
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self.failed is not None or not self.is_leader:
            future.set_exception(
                self.failed or NoLeader(f"this node does not lead group {self.group}")
            )
            return future
        self._readers.append(future)
        self._mark(self)
        return future

    def reached(self, index: int) -> asyncio.Future[int]:
        """Done when ``index``, which is committed, is applied here."""
        return self._when_applied(index, self._applied_waiters)

    def reached_while_leading(self, index: int) -> asyncio.Future[int]:
        """Done when ``index``, which need not be committed, is applied here. Fails with NoLeader
        when the leadership is lost: then ``index`` may never be applied."""
        if self.evaluation is None:
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            future.set_exception(NoLeader("leadership was lost; ask again"))
            return future
        return self._when_applied(index, self._leading_waiters)

    def _when_applied(self, index: int, waiters: Waiters[int]) -> asyncio.Future[int]:
        if self.failed is None and self.applied < index:
            return waiters.wait(index)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self.failed is not None:
            future.set_exception(self.failed)
        else:
            future.set_result(self.applied)
        return future

    def owes_commit(self) -> bool:
        """Whether a reader elsewhere waits to hear of what is committed now."""
        evaluation = self.evaluation
        if evaluation is None or not evaluation.awaited or self.applied < evaluation.read_floor:
            return False
        evaluation.awaited = False
        return True

    @property
    def has_reached_read_floor(self) -> bool:
        """Whether it leads, and has applied what a snapshot was promised."""
        return self.evaluation is not None and self.applied >= self.evaluation.read_floor

    def read_floor_reached(self) -> asyncio.Future[int]:
        """Done when this leader has applied what a snapshot was promised (``read_floor``): any read
        of the present must see what a snapshot before it saw. Fails with NoLeader."""
        evaluation = self.evaluation
        return self.reached_while_leading(0 if evaluation is None else evaluation.read_floor)

    def require_intact(self) -> None:
        """Raise what ended this replica: what it calls applied may not be in the store."""
        if self.failed is not None:
            raise self.failed

    def scan(self, table: bytes) -> Scan:
        """The applied pairs of a table, as of now."""
        prefix = keys.table_prefix(self.group, table)
        return self._engine.scan(DATA, prefix, keys.after(prefix))

    def table(self, table: bytes) -> list[tuple[bytes, bytes]]:
        """All applied pairs of a small table without versions, keys without their prefix."""
        prefix = keys.table_prefix(self.group, table)
        return [(key[len(prefix) :], value) for key, value in self.scan(table)]

    def durable(self, index: int) -> asyncio.Future[None]:
        """Done when this node's own disk has the entry at ``index``, whatever others have."""
        return self._durable_waiters.wait(index)

    def persisted(self, index: int, term: int) -> None:
        """The sync that covers the entries up to ``index`` is done."""
        self.raft.persisted(index, term)
        if self._durable_waiters:
            self._durable_waiters.tell(None, up_to=index)

    def note_levels(self, now: float) -> None:
        """Remember which followers have all of the log; called every tick while leading."""
        last = self.raft.last_index
        for other in self.raft.configuration.members:
            if other == self.id:
                continue
            if self.raft.match_index(other) >= last:
                self._level_since[other] = now
            else:
                self._level_since.setdefault(other, now)

    def level_since(self, other: ReplicaId, now: float) -> float:
        """When ``other`` was last seen with all of the log; ``now`` while it is."""
        if self.raft.match_index(other) >= self.raft.last_index:
            return now
        return self._level_since.setdefault(other, now)

    # The turn of this replica in a flush.

    def start_reads(self) -> None:
        """Hand the readers that gathered to Raft, before :meth:`Raft.ready` is taken."""
        if not self._readers:
            return
        readers, self._readers = self._readers, []
        if not self.is_leader:
            self._fail_readers(readers)
            return
        self._read_context += 1
        self._reading[self._read_context] = readers
        self.raft.read_index(self._read_context)

    def apply(self, batch: Batch, entries: tuple[Entry, ...]) -> None:
        """Put the mutations of committed ``entries`` into ``batch``, byte for byte."""
        for entry in entries:
            assert entry.index == self.applied + 1, "applied in order, each once"
            self.applied = entry.index
            if entry.kind == CONFIGURATION:
                self._apply_configuration(batch, entry.data)
            elif entry.kind == CHECKPOINT:
                self.checkpoint = entry.index
            elif entry.data:
                command = decode_command(entry.data)
                self._apply_command(batch, command)
                self.applied_timestamp = max(self.applied_timestamp, command.timestamp)
            self._settle_proposal(entry)
        batch.put(DATA, self._applied_key, _APPLIED.pack(self.applied, self.applied_timestamp))

    def _apply_configuration(self, batch: Batch, data: bytes) -> None:
        batch.put(DATA, self._configuration_key, data)
        self.highest_id = max(self.highest_id, *decode_configuration(data).members)
        batch.put(DATA, self._highest_key, self.highest_id.to_bytes(8, "big"))

    def _apply_command(self, batch: Batch, command: Command) -> None:
        put = batch.put
        pairs = iter(command.puts)
        for key, value in zip(pairs, pairs, strict=True):
            put(DATA, key, value)
            if key[2] == _RECORD:
                self.records[key] = value
        for key in command.deletes:
            batch.delete(DATA, key)
            if key[2] == _RECORD:
                self.records.pop(key, None)
        if command.prepared:
            self._index_intents(command)
        for transaction, commit in command.resolved:
            self.intents.remove(transaction, commit)
        if command.horizon:
            assert command.horizon > self.horizon
            self.horizon = command.horizon
        self.commands_applied += 1

    def _index_intents(self, command: Command) -> None:
        now = asyncio.get_running_loop().time()
        added = dict(zip(command.puts[::2], command.puts[1::2], strict=True))
        for transaction in command.prepared:
            self.intents.add(decode_intent(added[keys.intent(self.group, transaction)]), now)

    def _settle_proposal(self, entry: Entry) -> None:
        proposal = self._proposals.pop(entry.index, None)
        if proposal is None or proposal[1].done():
            return
        term, future, _ = proposal
        if term == entry.term:
            self._outcomes.append((future, self.applied_timestamp))
        else:
            future.set_exception(NoLeader("the leader changed; the write was not executed"))

    def written(self) -> None:
        """The batch of this flush is in the engine: whoever waited for it may look now."""
        self.raft.applied_to(self.applied)
        if self.evaluation is not None:
            self.evaluation.applied(self.applied)
        for future, timestamp in self._outcomes:
            self.holds.answer(future, timestamp)
        self._outcomes.clear()
        for waiters in (self._applied_waiters, self._leading_waiters):
            if waiters:
                waiters.tell(self.applied, up_to=self.applied)

    def finish_turn(self, ready: Ready) -> None:
        """After :meth:`written`: reads that were confirmed, and what a new role changes."""
        for state in ready.reads:
            for future in self._reading.pop(state.context, ()):
                if state.index <= self.applied:
                    if not future.done():
                        future.set_result(state.index)
                else:
                    self._applied_waiters.add(state.index, future)
        for context in ready.reads_lost:
            self._fail_readers(self._reading.pop(context, []))
        self._update_evaluation()
        if ready.role_changed:
            self._role_waiters.tell(None)

    def _fail_readers(self, readers: list[asyncio.Future[int]]) -> None:
        for future in readers:
            if not future.done():
                future.set_exception(NoLeader("leadership was lost; ask again"))

    def _fail_durable_waiters(self) -> None:
        lost = OutcomeUnknown("leadership was lost before the write was safe")
        self._durable_waiters.fail(lost)

    def close(self, error: KotobaError) -> None:
        """Nothing more will be decided here. What was proposed may be executed all the same."""
        self.failed = error
        unknown = OutcomeUnknown(f"{error.detail}; the write may have been executed")
        proposed = [future for _, future, _ in self._proposals.values()]
        for future in proposed + [future for future, _ in self._outcomes]:
            if not future.done():
                future.set_exception(unknown)
        self._proposals.clear()
        self._outcomes.clear()
        self._fail_durable_waiters()
        self._leading_waiters.fail(error)
        self._applied_waiters.fail(error)
        for readers in [self._readers, *self._reading.values()]:
            for reader in readers:
                if not reader.done():
                    reader.set_exception(error)
        self.intents.abandon(error)
        self._role_waiters.tell(None)
        if self.evaluation is not None:
            self.evaluation.locks.abandon(error)
            self.evaluation = None
