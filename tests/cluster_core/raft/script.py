"""A small language for scenes of Raft that a human can follow, and their golden traces.

A script is a text file. Lines that start with ``>`` are commands, what follows up to a blank line
is the trace that they leave, lines that start with ``#`` are prose. Replicas act as soon as they
can, and by default their disks are instant::

    nodes 1 2 3 learners 4 inflight=1   the group, with settings (see ``SETTINGS``)
    log 1 1 1 2 term=3    before anything else: the entries on the disk of replica 1, by term
    campaign 1            leader-lost 2, step-down 1, unreachable 1 2, transfer 1 3
    propose 1 x           as large as 100 bytes with ``x*100``
    read 1 7              asks replica 1 for a read point, under the name 7
    tick 1 10             ten ticks at replica 1
    deliver 1->2          steps what is on its way; ``deliver`` alone: on every link
    drop 1->2             loses it; ``drop`` alone: on every link
    cut 1-2               both directions lose everything from now on; ``heal`` ends it
    stabilize             delivers until nothing is on its way
    slow 1                the disk of 1 keeps everything undurable until ``persist 1`` (or
                          ``persist 1 2``: the two oldest writes); ``fast 1`` ends it
    crash 1               loses what is not durable, starts again
    truncate 1            drops the log as far as it may go; ``truncate 1 3 by-force``: but for the
                          newest 3, and not waiting for followers
    join 4                a replica with an empty disk that knows nobody
    change 1 promote=4 remove=2,3    ``learn``, ``promote``, ``demote``, ``remove``
    snapshot 1->2         carries a snapshot one step further: made and offered, received, taken in,
                          reported; ``lose-snapshot 1->2`` ends it
    status                one line a replica
    log? 1                the terms of a log
    members 1 2           the configuration that counts there

Any command leaves no trace with ``quietly`` at its end. Replica *n* times out after 9 + n ticks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from cluster_core.config import RaftConfig
from cluster_core.raft import (
    Change,
    Configuration,
    NotLeading,
    ProposalRefused,
    Ready,
    decode_configuration,
)
from cluster_core.wire.messages import (
    CONFIGURATION,
    Append,
    AppendReply,
    Commit,
    Entry,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Message,
    SnapshotOffer,
    TimeoutNow,
    Vote,
    VoteReply,
)
from tests.cluster_core.raft.replicas import Group, Image, Replica, Transfer, log_of, terms_of

SETTINGS: Final = {
    "inflight": "inflight_messages_max",
    "append-bytes": "append_bytes_max",
    "uncommitted": "uncommitted_bytes_max",
}

CHANGES: Final = {
    "learn": "add_learners",
    "promote": "promote",
    "demote": "demote",
    "remove": "remove",
}


def run(script: str) -> str:
    """The script with the traces that it leaves now."""
    return "\n".join(_Stage().perform(script.splitlines())) + "\n"


class _Stage:
    """The group of one script and what it has to say."""

    def __init__(self) -> None:
        self.group = Group(())
        self.images: dict[int, Image] = {}
        self.trace: list[str] = []
        self.lost = 0
        self.opening: Callable[[], Group] = lambda: self.group
        self.opened = False

    def perform(self, lines: list[str]) -> Iterator[str]:
        """Every line that is no trace, and behind each command its trace."""
        in_trace = False
        for line in lines:
            if line.startswith(">"):
                in_trace = True
                yield line
                yield from self.command(line[1:].split())
            elif not line or line.startswith("#"):
                in_trace = False
                yield line
            else:
                assert in_trace, f"neither prose, command nor trace: {line}"

    def command(self, words: list[str]) -> list[str]:
        self.trace = []
        quietly = words[-1] == "quietly"
        words = words[:-1] if quietly else words
        name = words[0].replace("-", "_").replace("?", "_of")
        handler = getattr(self, f"do_{name}", None)
        assert handler is not None, f"no such command: {words[0]}"
        if name not in ("nodes", "log") and not self.opened:
            self.opened = True
            self.group = self.opening()
            for replica in self.group:
                replica.on_ready = self.tell
        handler(*words[1:])
        if name not in ("nodes", "log"):
            self.group.work()
        return [] if quietly else self.trace

    # -- Commands --------------------------------------------------------------------------------

    def do_nodes(self, *words: str) -> None:
        settings = {}
        members: list[list[int]] = [[], []]
        learning = False
        for word in words:
            key, _, value = word.partition("=")
            if value:
                settings[SETTINGS[key]] = int(value)
            elif word == "learners":
                learning = True
            else:
                members[learning].append(int(word))
        config = RaftConfig(heartbeat_ticks=1, election_ticks=10, **settings)
        voters, learners = members
        self.opening = lambda: Group(voters, learners, images=self.images, config=config)

    def do_log(self, replica: str, *words: str) -> None:
        terms = [int(word) for word in words if word.isdigit()]
        image = log_of(terms)
        for word in words:
            if word.startswith("term="):
                image.hard_state = HardState(int(word[5:]))
        self.images[int(replica)] = image

    def do_campaign(self, replica: str) -> None:
        self.group.raft(int(replica)).campaign()

    def do_leader_lost(self, replica: str) -> None:
        self.group.raft(int(replica)).leader_lost()

    def do_step_down(self, replica: str) -> None:
        self.group.raft(int(replica)).step_down()

    def do_unreachable(self, replica: str, peer: str) -> None:
        self.group.raft(int(replica)).peer_unreachable(int(peer))

    def do_transfer(self, replica: str, target: str) -> None:
        self.group.raft(int(replica)).transfer_leadership(int(target))

    def do_propose(self, replica: str, *words: str) -> None:
        for word in words:
            data, _, times = word.partition("*")
            try:
                self.group.raft(int(replica)).propose(data.encode() * int(times or 1))
            except ProposalRefused as refused:
                self.trace.append(f"refused: {refused}")

    def do_read(self, replica: str, *contexts: str) -> None:
        for context in contexts:
            try:
                self.group.raft(int(replica)).read_index(int(context))
            except NotLeading:
                self.trace.append("refused: not the leader")

    def do_tick(self, replica: str, ticks: str = "1") -> None:
        for _ in range(int(ticks)):
            self.group.raft(int(replica)).tick()
            self.group[int(replica)].work()

    def do_deliver(self, link: str = "") -> None:
        source, target = _link(link)
        self.losses(self.group.deliver(source, target))

    def do_drop(self, link: str = "") -> None:
        for message in self.group.take(*_link(link)):
            self.trace.append(f"lost {describe(message)}")

    def do_cut(self, *links: str) -> None:
        for link in links:
            one, other = link.split("-")
            self.group.cut |= {(int(one), int(other)), (int(other), int(one))}

    def do_heal(self) -> None:
        self.group.heal()

    def do_stabilize(self) -> None:
        self.group.work()
        moved = True
        while self.group.network or moved:
            moves = [self.carry(transfer) for transfer in list(self.group.transfers)]
            moved = any(moves)
            self.group.work()
            self.losses(self.group.deliver())

    def do_slow(self, replica: str) -> None:
        self.group[int(replica)].slow = True

    def do_fast(self, replica: str) -> None:
        self.group[int(replica)].slow = False
        self.group[int(replica)].persist()

    def do_persist(self, replica: str, count: str = "") -> None:
        self.group[int(replica)].persist(int(count) if count else None)

    def do_crash(self, replica: str) -> None:
        self.group[int(replica)].crash()

    def do_truncate(self, replica: str, keep: str = "0", force: str = "") -> None:
        point = self.group[int(replica)].truncate(int(keep), spare_followers=not force)
        self.trace.append(f"{replica} has dropped its log up to {point}")

    def do_join(self, replica: str) -> None:
        self.group.join(int(replica)).on_ready = self.tell

    def do_change(self, replica: str, *words: str) -> None:
        parts = {
            CHANGES[key]: tuple(map(int, ids.split(",")))
            for key, _, ids in (word.partition("=") for word in words)
        }
        try:
            self.group.raft(int(replica)).propose_configuration(Change(**parts))
        except ProposalRefused as refused:
            self.trace.append(f"refused: {refused}")

    def do_snapshot(self, link: str) -> None:
        self.carry(self.transfer(link))

    def do_lose_snapshot(self, link: str) -> None:
        self.group.end(self.transfer(link), finished=False)

    def transfer(self, link: str) -> Transfer:
        for transfer in self.group.transfers:
            if (transfer.source, transfer.target) == _link(link):
                return transfer
        raise AssertionError(f"no snapshot on its way: {link}")

    def carry(self, transfer: Transfer) -> bool:
        """One step of a snapshot, and what it was."""
        way = f"{transfer.source}->{transfer.target} snapshot"
        made, accepted, installing = transfer.snapshot, transfer.accepted, transfer.installing
        moved = self.group.advance(transfer)
        target = self.group[transfer.target]
        if transfer.snapshot is not None and made is None:
            self.trace.append(f"{way}: made, up to {_end_of(transfer.snapshot.offer)}")
        elif transfer.accepted and not accepted:
            self.trace.append(f"{way}: wanted")
        elif transfer.installing and not installing:
            configuration = describe_configuration(target.raft.configuration)
            self.trace.append(f"{way}: {transfer.target} takes it in, instead of {configuration}")
        elif moved:
            state = "installed" if installing and accepted == target.starts else "failed"
            self.trace.append(f"{way}: {state}")
        return moved

    def do_status(self) -> None:
        for replica in self.group:
            raft = replica.raft
            leader = f"leader {raft.leader}" if raft.leader else "no leader"
            self.trace.append(
                f"{replica.replica} is {raft.role.value}, term {raft.term}, {leader},"
                f" log to {raft.last_index}, committed to {raft.commit}"
            )

    def do_log_of(self, *replicas: str) -> None:
        for replica in replicas:
            terms = "".join(f" {term}" for term in terms_of(self.group[int(replica)]))
            base = self.group[int(replica)].disk.written.base[0]
            behind = f" behind {base}:" if base else ""
            self.trace.append(f"{replica} holds{behind}{terms}")

    def do_members(self, *replicas: str) -> None:
        for replica in replicas:
            configuration = self.group.raft(int(replica)).configuration
            self.trace.append(f"{replica} counts {describe_configuration(configuration)}")

    # -- Traces ----------------------------------------------------------------------------------

    def losses(self, taken: list[Message]) -> None:
        lost = [m for m in taken if (m.source, m.target) in self.group.cut]
        self.trace += [f"lost {describe(message)}" for message in lost]

    def tell(self, replica: Replica, ready: Ready) -> None:
        name = replica.replica
        if ready.role_changed:
            raft = replica.raft
            of = f" of {raft.leader}" if raft.leader not in (0, name) else ""
            self.trace.append(f"{name} is {raft.role.value}{of} in term {raft.term}")
        if ready.hard_state is not None:
            vote = f", vote {ready.hard_state.vote}" if ready.hard_state.vote else ""
            self.trace.append(f"{name} writes term {ready.hard_state.term}{vote}")
        if ready.entries:
            self.trace.append(f"{name} writes {describe_entries(ready.entries)}")
        self.trace += map(describe, ready.messages)
        if ready.committed:
            self.trace.append(f"{name} applies {describe_entries(ready.committed)}")
        self.trace += [
            f"{name} is to bring {needed.target} a snapshot up to {needed.index}"
            for needed in ready.snapshots
        ]
        self.trace += [f"{name} serves read {read.context} at {read.index}" for read in ready.reads]
        self.trace += [f"{name} has lost read {context}" for context in ready.reads_lost]
        self.trace += [
            f"{describe(message)} (once durable)"
            for message in ready.messages_after_persist
            if message.target != name
        ]


def _link(link: str) -> tuple[int | None, int | None]:
    """``1->2``, ``1->``, ``->2`` or nothing."""
    found = re.fullmatch(r"(\d*)->(\d*)|", link)
    assert found is not None, f"no link: {link}"
    source, target = found[1], found[2]
    return (int(source) if source else None, int(target) if target else None)


def describe_entries(entries: tuple[Entry, ...]) -> str:
    """Each entry as index/term and what it holds."""
    return " ".join(map(_entry, entries))


def _entry(entry: Entry) -> str:
    name = f"{entry.index}/{entry.term}"
    if entry.kind == CONFIGURATION:
        return f"{name}:{describe_configuration(decode_configuration(entry.data))}"
    return f"{name}:{_data(entry.data)}" if entry.data else name


def describe_configuration(configuration: Configuration) -> str:
    """``[1,2,4 and 1,2,3; learners 5]``: the new half first."""
    halves = [",".join(map(str, half)) for half in (configuration.voters, configuration.outgoing)]
    learners = ",".join(map(str, configuration.learners))
    text = " and ".join(half for half in halves if half) or "nobody"
    return f"[{text}; learners {learners}]" if learners else f"[{text}]"


def _end_of(offer: SnapshotOffer) -> str:
    return f"{offer.index}/{offer.last_term}"


def _data(data: bytes) -> str:
    text = data.decode()
    return text if len(text) <= 10 else f"{text[0]}*{len(text)}"


def describe(message: Message) -> str:
    """One message in one line."""
    way = f"{message.source}->{message.target} {_name(message)} in term {message.term}"
    match message:
        case Append():
            entries = f" {describe_entries(message.entries)}" if message.entries else " nothing"
            return (
                f"{way}:{entries} behind {message.prev_index}/{message.prev_term},"
                f" commit {message.commit}"
            )
        case AppendReply(reject=True):
            return (
                f"{way}: not behind {message.index}, try {message.hint_index}/{message.hint_term}"
            )
        case AppendReply():
            return f"{way}: has {message.index}"
        case Heartbeat():
            return f"{way}: commit {message.commit}, round {message.round}"
        case HeartbeatReply():
            return f"{way}: round {message.round}"
        case Vote():
            return f"{way}: log to {message.last_index}/{message.last_term}"
        case VoteReply():
            return f"{way}: {'yes' if message.granted else 'no'}"
        case TimeoutNow():
            return way
        case Commit():
            return f"{way}: up to {message.commit}"
        case SnapshotOffer():
            return f"{way}: up to {_end_of(message)}"


def _name(message: Message) -> str:
    name = type(message).__name__
    if isinstance(message, Vote | VoteReply) and message.pre:
        return f"Pre{name}"
    return name
