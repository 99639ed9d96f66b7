"""Forming: how empty nodes that know each other's addresses found one cluster, once.

1. An empty node asks all its peers for their reports, and answers with its own: who it is, and,
   when all its peers have answered, the set of nodes that it has *seen* (itself among them).
2. When all have answered, and all report the identical set, it persists the cluster that this set
   makes as *proposed*. From then on it offers no other, through every restart.
3. When all members of that cluster have proposed it, it is founded.
4. An empty node that a founded cluster names, with its store, adopts it.

A cluster is founded only on the durable proposals of all its members, and a store proposes once: so
no store is ever in two clusters, whatever is lost, late or restarted on the way. Nodes are told
apart by name and store, never by address: a peer may be known under several.

A set is reported only when it is complete. Else a node with a shorter list of peers could agree
with the half of the set that another one has seen so far, and be bound to a cluster that nobody
wants.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from hashlib import sha256
from typing import Final

import msgspec

from cluster_core.config import ClusterConfig
from cluster_core.errors import KotobaError, Unavailable, Unreachable
from cluster_core.ports import Transport
from cluster_core.types import NodeId

__all__ = [
    "FORMING",
    "Adopt",
    "Decision",
    "Forming",
    "Found",
    "Founding",
    "Member",
    "Propose",
    "Report",
    "Wait",
    "decode_report",
    "encode_report",
    "form",
]

FORMING: Final = "forming"
"""The name of the call that carries a report."""

CALL_TIMEOUT_S: Final = 1.0

PATIENCE_S: Final = 2.0
"""Peers that do not answer are worth a word only after this: nodes seldom start at one moment."""


class Member(msgspec.Struct, array_like=True, frozen=True, order=True):
    """A founding node. The order of members is that of their names."""

    node_id: NodeId
    store_id: str
    address: str
    zone: str | None = None
    role: str = "voter"


class Founding(msgspec.Struct, array_like=True, frozen=True):
    """A cluster as it is founded: the same value on every member.

    It holds every setting from which the placement of partitions is computed.
    """

    cluster_id: str
    members: tuple[Member, ...]
    partition_count: int
    replication_factor: int
    virtual_nodes: int = 100

    @classmethod
    def of(cls, members: Iterable[Member], config: ClusterConfig) -> Founding:
        """The cluster that ``members`` make; its id tells their names and stores."""
        ordered = tuple(sorted(members, key=lambda member: member.node_id))
        text = "\n".join(f"{member.node_id} {member.store_id}" for member in ordered)
        return cls(
            cluster_id=sha256(text.encode()).hexdigest()[:32],
            members=ordered,
            partition_count=config.partition_count,
            replication_factor=config.replication_factor,
            virtual_nodes=config.virtual_nodes,
        )

    def member(self, node_id: NodeId) -> Member | None:
        """The member of that name."""
        return next((one for one in self.members if one.node_id == node_id), None)


class Report(msgspec.Struct, array_like=True, frozen=True):
    """What a node says of itself while it forms, or once it is founded."""

    member: Member
    partition_count: int
    replication_factor: int
    seen: tuple[Member, ...] = ()
    """The node and all its peers; empty as long as one of them has not answered."""
    proposed: Founding | None = None
    founded: Founding | None = None
    virtual_nodes: int = 100


encode_report = msgspec.msgpack.Encoder().encode
decode_report = msgspec.msgpack.Decoder(Report).decode


class Wait(msgspec.Struct, frozen=True):
    """Ask again later. ``problem``: what somebody has to change before there can be a cluster."""

    problem: str | None
    unheard: tuple[str, ...]
    """The addresses that have not answered."""


class Propose(msgspec.Struct, frozen=True):
    """Persist this as proposed, then tell :meth:`Forming.proposal_persisted`."""

    founding: Founding


class Found(msgspec.Struct, frozen=True):
    """This cluster is founded: all its members have proposed it."""

    founding: Founding


class Adopt(msgspec.Struct, frozen=True):
    """This cluster was founded by others, with us as a member."""

    founding: Founding


Decision = Wait | Propose | Found | Adopt


class Forming:
    """One node's part, as a pure state machine: reports in, a decision out."""

    def __init__(
        self,
        own: Member,
        peers: Sequence[str],
        config: ClusterConfig,
        proposed: Founding | None,
    ) -> None:
        self._config = config
        self._proposed = proposed
        self._given = own.address
        self._own = _as_proposed(own, proposed)
        self._peers = [peer for peer in dict.fromkeys(peers) if not self._is_own(peer)]
        self._reports: dict[str, Report] = {}
        self._refusals: dict[str, str] = {}

    @property
    def peers(self) -> list[str]:
        """The addresses to ask: those given, and those of the members of our proposal."""
        members = () if self._proposed is None else self._proposed.members
        others = [one.address for one in members if one.node_id != self._own.node_id]
        wanted = dict.fromkeys([*self._peers, *others])
        return [address for address in wanted if not self._is_own(address)]

    def report(self) -> Report:
        """What this node says now."""
        return Report(
            member=self._own,
            partition_count=self._config.partition_count,
            replication_factor=self._config.replication_factor,
            virtual_nodes=self._config.virtual_nodes,
            seen=self._complete_set(),
            proposed=self._proposed,
        )

    def on_report(self, address: str, report: Report | None, refusal: str | None = None) -> None:
        """The answer from ``address``: a report, a refusal with its reason, or none."""
        self._reports.pop(address, None)
        self._refusals.pop(address, None)
        if refusal is not None:
            self._refusals[address] = refusal
        elif report is not None and not self._is_ours(report.member):
            self._reports[address] = report
        elif report is not None and address in self._peers:
            # Our own address under another name: nobody to wait for.
            self._peers.remove(address)

    def proposal_persisted(self, founding: Founding) -> None:
        """The proposal is on the disk: from now on this node reports it, and no other."""
        assert self._proposed in (None, founding)
        self._proposed = founding

    def next(self) -> Decision:
        """What to do, from the newest answers."""
        adopted = self._adoptable()
        if adopted is not None:
            return Adopt(adopted)
        if self._proposed is not None:
            if self._all_proposed(self._proposed):
                return Found(self._proposed)
        elif not self._peers:
            return Found(Founding.of((self._own,), self._config))
        elif (agreed := self._agreed()) is not None:
            return Propose(agreed)
        unheard = tuple(peer for peer in self.peers if peer not in self._reports)
        return Wait(self._problem(), unheard)

    def _is_own(self, address: str) -> bool:
        return address in (self._given, self._own.address)

    def _is_ours(self, member: Member) -> bool:
        return _identity(member) == _identity(self._own)

    # What the answers allow

    def _complete_set(self) -> tuple[Member, ...]:
        """All founding nodes as this one sees them, sorted; empty while a peer is unheard."""
        if self._proposed is not None:
            return self._proposed.members
        if any(peer not in self._reports for peer in self._peers):
            return ()
        return tuple(sorted({self._own, *(self._reports[peer].member for peer in self._peers)}))

    def _agreed(self) -> Founding | None:
        """The cluster that everybody has seen."""
        seen = self._complete_set()
        if not seen or self._problem() is not None:
            return None
        if any(self._reports[peer].seen != seen for peer in self._peers):
            return None
        return Founding.of(seen, self._config)

    def _all_proposed(self, founding: Founding) -> bool:
        """Every member, told by name and store, says that it has persisted this very proposal."""
        agreed = {
            _identity(report.member)
            for report in self._reports.values()
            if founding in (report.proposed, report.founded)
        }
        return all(self._is_ours(one) or _identity(one) in agreed for one in founding.members)

    def _adoptable(self) -> Founding | None:
        for report in self._sorted_reports():
            if report.founded is not None:
                named = report.founded.member(self._own.node_id)
                if named is not None and self._is_ours(named):
                    return report.founded
        return None

    def _sorted_reports(self) -> list[Report]:
        return [report for _, report in sorted(self._reports.items())]

    # What is in the way

    def _problem(self) -> str | None:
        """Why there will be no cluster until somebody changes something, in one sentence."""
        for look in (
            self._founded_without_us,
            self._same_name,
            self._unequal_settings,
            self._bound_elsewhere,
            self._unequal_peers,
            self._no_voter,
            self._refused,
        ):
            problem = look()
            if problem is not None:
                return problem
        return None

    def _founded_without_us(self) -> str | None:
        own = self._own.node_id
        for report in self._sorted_reports():
            if report.founded is None:
                continue
            if report.founded.member(own) is None:
                return f"this cluster is already founded without {own}; ask for it to be added"
            return (
                f"{own} has an empty disk but the cluster knows another store for it: it has "
                f"forgotten its votes, and can only come back as a replacement; give {own} its old "
                "data folder, or remove it from the cluster first"
            )
        return None

    def _same_name(self) -> str | None:
        owners = {self._own.node_id: (self._own.store_id, self._own.address)}
        for address, report in sorted(self._reports.items()):
            member = report.member
            store_id, where = owners.setdefault(member.node_id, (member.store_id, address))
            if store_id != member.store_id:
                return f"two nodes are called {member.node_id}, at {where} and at {address}"
        return None

    def _unequal_settings(self) -> str | None:
        for report in self._sorted_reports():
            for name in ("partition_count", "replication_factor", "virtual_nodes"):
                theirs, ours = getattr(report, name), getattr(self._config, name)
                if theirs != ours:
                    other = report.member.node_id
                    return f"{other} has {name} {theirs}, {self._own.node_id} has {ours}"
        return None

    def _no_voter(self) -> str | None:
        seen = self._complete_set()
        if seen and all(member.role == "witness" for member in seen):
            return "all nodes are witnesses; at least one has to be a voter"
        return None

    def _bound_elsewhere(self) -> str | None:
        """A proposal that can never be complete: its node, or ours, is bound to another set."""
        own, again = (
            self._own.node_id,
            "empty the data folders of all founding nodes and start again",
        )
        for report in self._sorted_reports():
            other = report.member.node_id
            if self._proposed is not None:
                named = self._proposed.member(other)
                if named is not None and named.store_id != report.member.store_id:
                    return f"{other} has another disk than when {own} agreed with it; {again}"
                if named is not None and report.proposed not in (None, self._proposed):
                    return f"{other} has agreed to another cluster than {own}; {again}"
            elif report.proposed is not None:
                named = report.proposed.member(own)
                if named is None or not self._is_ours(named):
                    return f"{other} has agreed to a cluster without this disk of {own}; {again}"
        return None

    def _unequal_peers(self) -> str | None:
        seen = self._complete_set()
        for report in self._sorted_reports():
            ours, theirs = _names(seen), _names(report.seen)
            if ours and theirs and ours != theirs:
                return (
                    f"unequal lists of peers: {self._own.node_id} is to found a cluster of "
                    f"{', '.join(ours)}, and {report.member.node_id} one of {', '.join(theirs)}"
                )
        return None

    def _refused(self) -> str | None:
        for address, reason in sorted(self._refusals.items()):
            return f"{address} refuses: {reason}"
        return None


def _as_proposed(own: Member, proposed: Founding | None) -> Member:
    """The node as its proposal names it: the proposal stays, also when an address has changed."""
    named = None if proposed is None else proposed.member(own.node_id)
    assert named is None or named.store_id == own.store_id
    return named or own


def _identity(member: Member) -> tuple[NodeId, str]:
    return member.node_id, member.store_id


def _names(members: Iterable[Member]) -> list[NodeId]:
    return sorted({member.node_id for member in members})


async def form(
    forming: Forming,
    *,
    config: ClusterConfig,
    transport: Transport,
    persist: Callable[[Founding], Awaitable[None]],
    on_problem: Callable[[str | None], None],
) -> Founding:
    """Ask the peers again and again until there is a cluster; returns it, not yet persisted.

    ``persist`` makes a proposal durable before anybody is told of it. ``on_problem`` gets, after
    each round, what is in the way in one sentence, and None when nothing is.
    """
    loop = asyncio.get_running_loop()
    patient_until = loop.time() + PATIENCE_S
    while True:
        await asyncio.gather(*(_ask(forming, peer, transport) for peer in forming.peers))
        decision = forming.next()
        if isinstance(decision, Propose):
            await persist(decision.founding)
            forming.proposal_persisted(decision.founding)
            continue
        if not isinstance(decision, Wait):
            return decision.founding
        problem = decision.problem
        if problem is None and decision.unheard and loop.time() >= patient_until:
            problem = f"no answer yet from {', '.join(decision.unheard)}"
        on_problem(problem)
        await asyncio.sleep(config.membership.forming_retry_ms / 1000)


async def _ask(forming: Forming, peer: str, transport: Transport) -> None:
    body = encode_report(forming.report())
    try:
        answer = await transport.call(peer, FORMING, body, timeout=CALL_TIMEOUT_S)
        forming.on_report(peer, decode_report(answer))
    except (Unreachable, Unavailable):
        forming.on_report(peer, None)
    except KotobaError as error:
        forming.on_report(peer, None, refusal=error.detail)
    except msgspec.DecodeError:
        forming.on_report(peer, None, refusal="it answers in another version's terms")
