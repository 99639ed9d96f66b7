"""One group under everything that may happen to it, and an oracle that watches.

A :class:`Chaos` takes random small steps: a message delivered, lost, repeated or overtaken; a tick;
a Ready taken; a write made durable; a crash that keeps a prefix of the writes; proposals, reads,
transfers, broken streams, cut links. After each the :class:`Oracle` compares what is with what Raft
promises. Everything comes from one seed.
"""

from __future__ import annotations

from random import Random

from cluster_core.config import RaftConfig
from cluster_core.raft import ProposalRefused, Ready, Role
from cluster_core.wire.messages import AppendReply, Entry, Message, VoteReply
from tests.cluster_core.raft.replicas import Group, Replica


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

    def on_send(self, message: Message) -> None:
        if isinstance(message, VoteReply) and message.granted and not message.pre:
            self.one_vote_a_term(message)
        if isinstance(message, AppendReply) and not message.reject:
            self.acknowledged_is_durable(message)

    def on_ready(self, replica: Replica, ready: Ready) -> None:
        """Taken, not yet handled."""
        for read in ready.reads:
            self.reads_served += 1
            assert read.index >= self.floors[read.context], "a read misses what was committed"
        if replica.raft.role is Role.LEADER:
            self.committed_is_durable_on_a_majority(replica)
        for place, entry in enumerate(ready.committed, start=len(replica.applied) + 1):
            assert entry.index == place, "applied in order, each once"
            self.state_machine_safety(replica, entry)

    def on_step(self) -> None:
        """After anything happened."""
        for replica in self.group:
            if replica.raft.role is Role.LEADER:
                self.committed_is_durable_on_a_majority(replica)
                self.election_safety(replica)
            self.durability(replica)

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
            assert len(durable.entries) >= reply.index

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
        log = leader.disk.written.entries
        for entry, term in self.committed:
            if term < leader.raft.term:
                assert len(log) >= entry.index, f"{leader.replica} lacks {entry}"
                assert log[entry.index - 1] == entry

    def committed_is_durable_on_a_majority(self, leader: Replica) -> None:
        """§5.3: what a leader calls committed is on the disks of a majority."""
        raft = leader.raft
        while len(self.committed) < raft.commit:
            index = len(self.committed) + 1
            entry = raft._log.entries(index, index + 1, 1)[0]
            have = [
                voter
                for voter in raft.voters
                if self.group[voter].disk.durable.entries[index - 1 : index] == [entry]
            ]
            assert 2 * len(have) > len(raft.voters), f"{entry} is only on {have}"
            self.committed.append((entry, raft.term))

    def state_machine_safety(self, replica: Replica, entry: Entry) -> None:
        """§5.4.3: no two replicas apply different entries at one index."""
        assert entry.index <= len(self.committed), f"{replica.replica} applies what is not decided"
        assert self.committed[entry.index - 1][0] == entry

    def log_matching(self) -> None:
        """§5.3: logs that agree on index and term of an entry agree on everything before it."""
        logs = [replica.disk.written.entries for replica in self.group]
        for number, one in enumerate(logs):
            for other in logs[:number]:
                shared = min(len(one), len(other))
                while shared and one[shared - 1].term != other[shared - 1].term:
                    shared -= 1
                assert one[:shared] == other[:shared]

    def durability(self, replica: Replica) -> None:
        """What the core takes for durable is, and a durable term never goes back."""
        log = replica.raft._log
        durable = replica.disk.durable
        assert log.persisted <= len(durable.entries)
        if log.persisted:
            assert log.term(log.persisted) == durable.entries[log.persisted - 1].term
        term = durable.hard_state.term
        assert term >= self.terms.get(replica.replica, 0)
        self.terms[replica.replica] = term


class _Watched(Group):
    oracle: Oracle

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
        learners = random.choice([0, 0, 1])
        members = range(1, size + learners + 1)
        self.group = _Watched(
            members[:size],
            members[size:],
            config=RaftConfig(
                heartbeat_ticks=1,
                election_ticks=random.choice([3, 6]),
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
            replica.slow = True
            replica.on_ready = self.oracle.on_ready
        self.proposals = 0
        self.reads = 0
        self.unrest = unrest
        self.crash_rate = random.choice([0, 1, 3])
        self.loss_rate = random.choice([0, 2, 10])
        self.disk_rate = random.choice([20, 40, 80])
        self.tick_rate = random.choice([5, 10, 20])

    def run(self, steps: int) -> None:
        actions = {
            self.deliver: 120,
            self.take: 80,
            self.persist: self.disk_rate,
            self.tick: self.tick_rate,
            self.propose: 10,
            self.lose: self.loss_rate,
            self.repeat: self.loss_rate,
            self.read: 5,
            self.crash: self.crash_rate,
            self.break_stream: 3 * self.unrest,
            self.transfer: 1,
            self.step_down: self.unrest,
            self.cut: 1,
            self.isolate: self.unrest,
            self.heal: 2 * self.unrest,
        }
        plan = self.random.choices(list(actions), list(actions.values()), k=steps)
        for step, action in enumerate(plan):
            action()
            self.oracle.on_step()
            if step % 16 == 0:
                self.oracle.log_matching()
        self.recover()

    def recover(self) -> None:
        """Liveness: in peace one leads, and whatever is proposed is applied everywhere."""
        self.group.heal()
        for replica in self.group:
            replica.slow = False
            replica.persist()
        for _ in range(60):
            self.tick_all()
            leaders = [r for r in self.group if r.raft.role is Role.LEADER]
            if len(leaders) == 1 and leaders[0].raft.refusal() is None:
                leaders[0].raft.propose(b"peace")
                self.tick_all()
                self.tick_all()
                if all(r.applied and r.applied[-1].data == b"peace" for r in self.group):
                    break
        else:
            raise AssertionError("the group does not recover")
        assert len({tuple(r.applied) for r in self.group}) == 1
        self.oracle.log_matching()

    def tick_all(self) -> None:
        for replica in self.group:
            replica.raft.tick()
        for _ in range(1_000):
            self.group.work()
            self.oracle.on_step()
            if not self.group.network:
                return
            for message in self.group.take():
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
            if (message.source, message.target) not in self.group.cut:
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
