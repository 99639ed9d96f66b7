"""One group under everything that may happen to it, and an oracle that watches.

A :class:`Chaos` takes random small steps: a message delivered, lost, repeated or overtaken; a tick;
a Ready taken; a write made durable; a crash that keeps a prefix of the writes; proposals, reads,
transfers, broken streams, cut links; logs truncated, snapshots carried a step further or lost;
members added, promoted, demoted, removed, and the disks of those removed thrown away. After each
the :class:`Oracle` compares what is with what Raft promises. Everything comes from one seed.
"""

from __future__ import annotations

from random import Random

from cluster_core.config import RaftConfig
from cluster_core.raft import (
    Change,
    Configuration,
    ProposalRefused,
    Ready,
    Role,
    decode_configuration,
)
from cluster_core.wire.messages import CONFIGURATION, AppendReply, Entry, Message, VoteReply
from tests.cluster_core.raft.replicas import Group, Replica, Snapshot, Transfer

MEMBERS_MAX = 6


class Oracle:
    """What has been seen so far, and the promises that must hold over it."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.leaders: dict[int, int] = {}
        """Who led each term."""
        self.votes: dict[tuple[int, int], int] = {}
        """Whom a replica told, in a term, that it has its vote."""
        self.committed: list[tuple[Entry, int]] = []
        """Every committed entry, with the term in which it was committed."""
        self.terms: dict[int, int] = {}
        """The highest term that each replica made durable."""
        self.floors: dict[int, int] = {}
        """For each read, what was committed when it was asked for."""
        self.reads_served = 0
        self.persisted: dict[int, int] = {}
        """What each replica took for durable when that was last looked at."""
        self.acknowledged: dict[int, tuple[int, int]] = {}
        """Term and index of what each replica acknowledged last."""
        self.founding = Configuration.of(group.voters, group.learners)
        self.configurations: list[tuple[int, Configuration]] = [(0, self.founding)]
        """The committed ones, with their indexes."""
        self.restored = 0

    def watch(self, replica: Replica) -> None:
        replica.slow = True
        replica.on_ready = self.on_ready
        replica.on_restore = self.on_restore

    def on_send(self, message: Message) -> None:
        if isinstance(message, VoteReply) and message.granted and not message.pre:
            self.one_vote_a_term(message)
        if isinstance(message, AppendReply) and not message.reject:
            self.acknowledged_is_durable(message)
            self.acknowledged_is_the_leader_s(message)
            self.acknowledged[message.source] = (message.term, message.index)

    def on_ready(self, replica: Replica, ready: Ready) -> None:
        """Taken, not yet handled."""
        for read in ready.reads:
            self.reads_served += 1
            assert read.index >= self.floors[read.context], "a read misses what was committed"
        if replica.raft.role is Role.LEADER:
            self.committed_is_durable_on_a_majority(replica)
        for entry in ready.entries:
            if entry.kind == CONFIGURATION and replica.raft.role is Role.LEADER:
                self.one_change_at_a_time(replica, entry)
        for place, entry in enumerate(ready.committed, start=len(replica.applied) + 1):
            assert entry.index == place, "applied in order, each once"
            self.state_machine_safety(replica, entry)

    def on_step(self) -> None:
        """After anything happened."""
        for replica in self.group:
            if replica.raft.role is Role.LEADER:
                self.committed_is_durable_on_a_majority(replica)
                self.election_safety(replica)
            if replica.raft._log.persisted != self.persisted.get(replica.replica):
                self.persisted[replica.replica] = replica.raft._log.persisted
                self.durability(replica)

    def on_some_steps(self) -> None:
        """What stays wrong once it is."""
        self.log_matching()
        for replica in self.group:
            self.durability(replica)
            self.the_latest_configuration_counts(replica)

    def one_vote_a_term(self, vote: VoteReply) -> None:
        """§5.2: each server votes for at most one candidate in a term, through crashes too."""
        given = self.votes.setdefault((vote.source, vote.term), vote.target)
        assert given == vote.target, f"{vote.source} voted twice in term {vote.term}"

    def acknowledged_is_durable(self, reply: AppendReply) -> None:
        """D §3.8: entries count once they are on the disk. (Or were: an answer of an older term
        may leave after a newer leader, who cannot lack them if they were decided, replaced them.)
        """
        durable = self.group[reply.source].disk.durable
        assert durable.hard_state.term >= reply.term
        if durable.hard_state.term == reply.term:
            assert durable.last_index >= reply.index

    def acknowledged_is_the_leader_s(self, reply: AppendReply) -> None:
        """§5.3: what a leader counts as its entry is its entry."""
        leader = self.group.replicas.get(reply.target)
        if leader is None or leader.raft.role is not Role.LEADER:
            return
        log = leader.raft._log
        if leader.raft.term == reply.term and reply.index >= log.first_index:
            entry = self.group[reply.source].disk.durable.at(reply.index)
            assert entry is not None
            assert entry.term == log.term(reply.index), "acknowledged what the leader has not"

    def election_safety(self, replica: Replica) -> None:
        """§5.2: at most one leader can be elected in a given term."""
        term = replica.raft.term
        first = term not in self.leaders
        leader = self.leaders.setdefault(term, replica.replica)
        assert leader == replica.replica, f"two leaders in term {term}"
        assert replica.disk.durable.hard_state.term == term, "it leads a term it could forget"
        if first:
            self.leader_completeness(replica)

    def leader_completeness(self, leader: Replica) -> None:
        """§5.4: what was committed in a term is in the logs of the leaders of all higher terms."""
        for entry, term in self.committed:
            if term < leader.raft.term:
                has = leader.disk.written.at(entry.index)
                assert has == entry, f"{leader.replica} lacks {entry}"

    def committed_is_durable_on_a_majority(self, leader: Replica) -> None:
        """§5.3: what a leader calls committed is on the disks of a majority (of both halves, §6).

        By the configuration that holds at an entry, or one that is in the leader's log behind it.
        """
        raft = leader.raft
        while len(self.committed) < raft.commit:
            index = len(self.committed) + 1
            entry = raft._log.entries(index, index + 1, 1)[0]
            if entry.kind == CONFIGURATION:
                self.configurations.append((index, decode_configuration(entry.data)))
            counts = [self.configurations[-1][1]]
            if entry.kind != CONFIGURATION:
                counts += [later.configuration for later in raft._configurations._later]
            have = {
                replica.replica for replica in self.group if replica.disk.durable.at(index) == entry
            }
            assert any(is_quorum(have, each) for each in counts), f"{entry} is only on {have}"
            self.committed.append((entry, raft.term))

    def one_change_at_a_time(self, leader: Replica, entry: Entry) -> None:
        """§6: a change begins behind a committed one, and its majorities meet those of that one."""
        before = [
            later.index for later in leader.raft._configurations._later if later.index < entry.index
        ]
        assert all(index <= leader.raft.commit for index in before), "two changes at a time"
        assert leader.raft.committed_in_term, "a change before anything of its term is committed"
        old, new = self.configurations[-1][1], decode_configuration(entry.data)
        if old.is_joint:
            assert new == Configuration(old.voters, (), old.learners), "not what it leads to"
        elif new.is_joint:
            assert new.outgoing == old.voters
        else:
            assert len(set(old.voters) ^ set(new.voters)) <= 1, "majorities may not meet"

    def the_latest_configuration_counts(self, replica: Replica) -> None:
        """§6: a server always uses the latest configuration in its log, committed or not."""
        if replica.raft._log.has_unwritten or replica.raft._restoring:
            return
        image = replica.disk.written
        known = [entry for entry in image.entries if entry.kind == CONFIGURATION]
        if known:
            assert replica.raft.configuration == decode_configuration(known[-1].data)
        elif image.configuration is not None:
            assert replica.raft.configuration == image.configuration
        if image.configuration is not None:
            assert replica.raft.applied_configuration == image.configuration

    def on_restore(self, replica: Replica, snapshot: Snapshot) -> None:
        """§7: a snapshot is a prefix of what was committed, and newer than what it replaces."""
        self.restored += 1
        term, index = self.acknowledged.get(replica.replica, (0, 0))
        kept = term < replica.raft.term or index <= snapshot.offer.index
        assert kept, "a snapshot in place of acknowledged entries"
        state = snapshot.state
        assert len(state) == snapshot.offer.index > len(replica.applied), "a snapshot goes back"
        assert [entry for entry, _ in self.committed[: len(state)]] == list(state)
        said = [c for index, c in self.configurations if index <= len(state)][-1]
        assert snapshot.configuration == said, "a snapshot of one index, a configuration of another"

    def on_finished(self, transfer: Transfer, leader: Replica) -> None:
        """§7: what follows a snapshot is still there when it has arrived."""
        assert transfer.snapshot is not None
        peer = leader.raft._peers.find(transfer.target)
        if leader.raft.role is Role.LEADER and peer is not None and peer.state.value == "snapshot":
            index = max(peer.pending, transfer.snapshot.offer.index)
            assert leader.raft.first_index <= index + 1, "truncated above a snapshot in flight"

    def state_machine_safety(self, replica: Replica, entry: Entry) -> None:
        """§5.4.3: no two replicas apply different entries at one index."""
        assert entry.index <= len(self.committed), f"{replica.replica} applies what is not decided"
        assert self.committed[entry.index - 1][0] == entry

    def log_matching(self) -> None:
        """§5.3: logs that agree on index and term of an entry agree on everything before it."""
        images = [replica.disk.written for replica in self.group]
        for number, one in enumerate(images):
            for other in images[:number]:
                start = max(one.base[0], other.base[0])
                shared = min(one.last_index, other.last_index)
                while shared > start and one.term(shared) != other.term(shared):
                    shared -= 1
                assert (
                    one.entries[start - one.base[0] : max(0, shared - one.base[0])]
                    == other.entries[start - other.base[0] : max(0, shared - other.base[0])]
                )

    def durability(self, replica: Replica) -> None:
        """What the core takes for durable is, and a durable term never goes back."""
        log = replica.raft._log
        durable = replica.disk.durable
        if replica.raft._restoring is None:
            assert log.persisted <= durable.last_index
            if log.persisted >= max(log.first_index, durable.base[0]):
                assert log.term(log.persisted) == durable.term(log.persisted)
        term = durable.hard_state.term
        assert term >= self.terms.get(replica.replica, 0)
        self.terms[replica.replica] = term


def is_quorum(have: set[int], configuration: Configuration) -> bool:
    """More than half, of both halves of a joint configuration."""
    halves = [half for half in (configuration.voters, configuration.outgoing) if half]
    return all(2 * len(have.intersection(half)) > len(half) for half in halves)


class _Watched(Group):
    oracle: Oracle

    def join(self, replica: int) -> Replica:
        self.replicas[replica] = joined = Replica(
            replica, self, config=next(iter(self)).config, random=Random(replica)
        )
        self.oracle.watch(joined)
        return joined

    def end(self, transfer: Transfer, *, finished: bool) -> None:
        if finished and transfer.source in self.replicas:
            self.oracle.on_finished(transfer, self[transfer.source])
        super().end(transfer, finished=finished)

    def send(self, message: Message) -> None:
        self.oracle.on_send(message)
        super().send(message)


class Chaos:
    """One run: random steps, then peace, in which the group has to recover.

    ``unrest`` makes changes of leadership so much more frequent, and splits every Append.
    """

    def __init__(self, seed: int, *, unrest: int = 1) -> None:
        self.random = random = Random(seed)
        size = random.choice([1, 2, 3, 3, 3, 3, 4, 5, 5])
        calm = random.random() < 0.6
        learners = random.choice([0, 1, 2] if calm else [0, 0, 1])
        members = range(1, size + learners + 1)
        self.group = _Watched(
            members[:size],
            members[size:],
            config=RaftConfig(
                heartbeat_ticks=1,
                election_ticks=6 if calm else random.choice([3, 6]),
                append_bytes_max=random.choice([1, 200, 1 << 20] if unrest == 1 else [1]),
                inflight_messages_max=random.choice([1, 3, 100]),
                inflight_bytes_max=random.choice([100, 1 << 20]),
                apply_bytes_max=random.choice([1, 200, 1 << 20]),
                log_cache_bytes_max=random.choice([0, 300, 1 << 20]),
            ),
            randoms={member: Random(seed * 100 + member) for member in members},
        )
        self.oracle = self.group.oracle = Oracle(self.group)
        for replica in self.group:
            self.oracle.watch(replica)
        self.newest = size + learners
        """The highest id given; none is given twice."""
        self.proposals = 0
        self.reads = 0
        self.unrest = unrest
        self.crash_rate = random.choice([0, 1, 3])
        self.loss_rate = random.choice([0, 2, 10])
        self.disk_rate = random.choice([20, 40, 80])
        self.tick_rate = random.choice([5, 10, 20])
        self.truncation_rate = random.choice([0, 3, 10])
        self.take_rate = 80
        self.deliver_rate = 120
        self.change_rate = 0
        if calm:
            # A change takes a leader that stays for a while.
            self.change_rate = random.choice([10, 20])
            self.tick_rate = random.choice([15, 25])
            self.take_rate = self.disk_rate = 160
            self.deliver_rate = 300

    def run(self, steps: int) -> None:
        actions = {
            self.deliver: self.deliver_rate,
            self.take: self.take_rate,
            self.persist: self.disk_rate,
            self.tick: self.tick_rate,
            self.propose: 10,
            self.lose: self.loss_rate,
            self.repeat: self.loss_rate,
            self.read: 10,
            self.crash: self.crash_rate,
            self.break_stream: 3 * self.unrest,
            self.transfer: 1,
            self.step_down: self.unrest,
            self.cut: 1,
            self.isolate: self.unrest,
            self.heal: 2 * self.unrest,
            self.truncate: self.truncation_rate,
            self.advance: 3 * self.truncation_rate,
            self.lose_snapshot: self.truncation_rate / 5,
            self.crash_in_restore: self.truncation_rate / 5,
            self.change: self.change_rate,
            self.throw_away: self.change_rate,
        }
        plan = self.random.choices(list(actions), list(actions.values()), k=steps)
        for step, action in enumerate(plan):
            action()
            self.oracle.on_step()
            if step % 12 == 0:
                self.oracle.on_some_steps()
        self.recover()

    def recover(self) -> None:
        """Liveness: in peace one leads, and whatever is proposed is applied everywhere."""
        self.group.heal()
        for replica in self.group:
            replica.slow = False
            replica.persist()
        for _ in range(100):
            self.tick_all()
            leaders = [r for r in self.group if r.raft.role is Role.LEADER]
            if len(leaders) == 1 and leaders[0].raft.refusal() is None:
                leaders[0].raft.propose(b"peace")
                self.tick_all()
                self.tick_all()
                members = [
                    replica
                    for replica in self.group
                    if replica.replica in leaders[0].raft.configuration.members
                ]
                if all(r.applied and r.applied[-1].data == b"peace" for r in members):
                    break
        else:
            raise AssertionError("the group does not recover")
        assert len({tuple(r.applied) for r in members}) == 1
        assert not leaders[0].raft.change_pending
        assert {r.raft.configuration for r in members} == {leaders[0].raft.configuration}
        self.oracle.on_some_steps()

    def tick_all(self) -> None:
        for replica in self.group:
            replica.raft.tick()
        for _ in range(1_000):
            self.group.work()
            self.oracle.on_step()
            moved = [self.group.advance(transfer) for transfer in list(self.group.transfers)]
            if not self.group.network and not any(moved):
                return
            for message in self.group.take():
                if message.target in self.group.replicas:
                    self.group.raft(message.target).step(message)
                    self.group[message.target].work()
                    self.oracle.on_step()
        raise AssertionError("the group never comes to rest")

    # -- Steps -----------------------------------------------------------------------------------

    def any(self) -> Replica:
        return self.group[self.random.choice(list(self.group.replicas))]

    def leader(self) -> Replica | None:
        """One that believes so; of several, any."""
        leaders = [r for r in self.group if r.raft.role is Role.LEADER]
        return self.random.choice(leaders) if leaders else None

    def pick(self) -> int | None:
        """The place of a message on the network: mostly the oldest, at times any."""
        waiting = len(self.group.network)
        if not waiting:
            return None
        return self.random.randrange(waiting) if self.random.random() < 0.2 else 0

    def deliver(self) -> None:
        place = self.pick()
        if place is not None:
            message = self.group.network.pop(place)
            known = message.target in self.group.replicas
            if known and (message.source, message.target) not in self.group.cut:
                self.group.raft(message.target).step(message)

    def lose(self) -> None:
        place = self.pick()
        if place is not None:
            del self.group.network[place]

    def repeat(self) -> None:
        place = self.pick()
        if place is not None:
            self.group.network.append(self.group.network[place])

    def tick(self) -> None:
        self.any().raft.tick()

    def take(self) -> None:
        replica = self.any()
        if replica.raft.commit_untold and self.random.random() < 0.5:
            replica.raft.tell_commit()
        if replica.raft.has_ready():
            replica.take()

    def persist(self) -> None:
        replica = self.any()
        if replica.outstanding:
            count = self.random.randrange(1, len(replica.outstanding) + 1)
            replica.persist(count, together=self.random.random() < 0.5)

    def propose(self) -> None:
        replica = self.leader()
        if replica is not None:
            self.proposals += 1
            try:
                replica.raft.propose(b"%d" % self.proposals)
            except ProposalRefused:
                return

    def read(self) -> None:
        replica = self.leader()
        if replica is not None:
            self.reads += 1
            self.oracle.floors[self.reads] = len(self.oracle.committed)
            replica.raft.read_index(self.reads)

    def crash(self) -> None:
        replica = self.any()
        replica.crash(kept=self.random.randrange(len(replica.disk.pending) + 1))

    def break_stream(self) -> None:
        one, other = self.any(), self.any()
        one.raft.peer_unreachable(other.replica)
        other.raft.leader_lost()
        other.raft.campaign()

    def transfer(self) -> None:
        replica = self.leader()
        if replica is not None:
            replica.raft.transfer_leadership(self.any().replica)

    def step_down(self) -> None:
        replica = self.leader()
        if replica is not None:
            replica.raft.step_down()

    def cut(self) -> None:
        one, other = self.any().replica, self.any().replica
        self.group.cut.add((one, other))
        if self.random.random() < 0.5:
            self.group.cut.add((other, one))

    def isolate(self) -> None:
        """Cut a replica off, a leader if there is one: it learns of nothing that happens."""
        self.group.isolate((self.leader() or self.any()).replica)

    def heal(self) -> None:
        self.group.heal()

    def truncate(self) -> None:
        """By size: what a follower lacks may go as well."""
        spare = self.random.random() < 0.5
        self.any().truncate(self.random.choice([0, 0, 3]), spare_followers=spare)

    def advance(self) -> None:
        if self.group.transfers:
            self.group.advance(self.random.choice(self.group.transfers))

    def lose_snapshot(self) -> None:
        """The source hears nothing good of it; half of them arrive all the same, late."""
        if self.group.transfers:
            transfer = self.random.choice(self.group.transfers)
            if self.random.random() < 0.5:
                self.group.end(transfer, finished=False)
            elif transfer.snapshot is not None and transfer.source in self.group.replicas:
                self.group.raft(transfer.source).snapshot_failed(transfer.target)

    def crash_in_restore(self) -> None:
        """While a snapshot is on its way to the disk."""
        for replica in self.group:
            if any(item.snapshot for item in replica.outstanding):
                replica.crash(kept=self.random.randrange(len(replica.disk.pending) + 1))
                return

    def change(self) -> None:
        replica = self.leader()
        if replica is None:
            return
        change = self.any_change(replica.raft.configuration)
        for joining in change.add_learners:
            self.group.join(joining)
        try:
            replica.raft.propose_configuration(change)
        except ProposalRefused:
            for joining in change.add_learners:
                self.group.leave(joining)

    def any_change(self, configuration: Configuration) -> Change:
        """One or two members change, or one comes; possible or not."""
        pick = self.random.choice
        fate: dict[str, set[int]] = {"promote": set(), "demote": set(), "remove": set()}
        if len(configuration.members) < MEMBERS_MAX and self.random.random() < 0.4:
            self.newest += 1
            return Change(add_learners=(self.newest,))
        if configuration.learners and self.random.random() < 0.7:
            fate["promote"].add(pick(configuration.learners))
        for _ in range(pick([1, 1, 2]) if not fate["promote"] else pick([0, 1, 1])):
            fate[pick(["demote", "remove"])].add(pick(configuration.members))
        return Change(**{what: tuple(who) for what, who in fate.items()})

    def throw_away(self) -> None:
        """The disk of a replica whose removal is committed, or whose joining came to nothing."""
        decided = self.oracle.configurations[-1][1].members
        counted = [
            self.group.raft(member).configuration.members
            for member in decided
            if member in self.group.replicas
        ]
        for replica in list(self.group):
            name = replica.replica
            if name not in decided and not any(name in members for members in counted):
                self.group.leave(name)
                return
