"""Forming: how empty nodes that know each other's addresses found one cluster, once.

1. An empty node reports itself (name, store, address, settings) and the set of nodes that it has
   heard of, to every peer that it was given, and gets such a report back.
2. When all its peers have answered, and all report the identical set, it persists the cluster that
   this set makes as *proposed*. It never proposes another one.
3. When all have proposed the identical cluster, it is founded.
4. An empty node that a founded cluster names, with its store, adopts it.

Since a cluster needs the proposal of each of its members, and a member proposes once, no node is
ever in two founded clusters, whatever is lost, late or restarted on the way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from hashlib import sha256
from typing import Final

import msgspec

from cluster_core.config import ClusterConfig
from cluster_core.errors import KotobaError, Refused
from cluster_core.ports import Transport
from cluster_core.types import NodeId

__all__ = [
    "FORMING",
    "Forming",
    "Founding",
    "Member",
    "Report",
    "decode_report",
    "encode_report",
    "form",
]

FORMING: Final = "forming"
"""The name of the call that carries a report."""

CALL_TIMEOUT_S: Final = 1.0


class Member(msgspec.Struct, array_like=True, frozen=True, order=True):
    """A founding node. The order of members is that of their names."""

    node_id: NodeId
    store_id: str
    address: str
    zone: str | None = None
    role: str = "voter"


class Founding(msgspec.Struct, array_like=True, frozen=True):
    """A cluster as it is founded: the same value on every member."""

    cluster_id: str
    members: tuple[Member, ...]
    partition_count: int
    replication_factor: int

    @classmethod
    def of(cls, members: Iterable[Member], config: ClusterConfig) -> Founding:
        """The cluster that ``members`` make; its id tells their stores."""
        ordered = tuple(sorted(members, key=lambda member: member.node_id))
        text = "\n".join(f"{member.node_id} {member.store_id}" for member in ordered)
        cluster_id = sha256(text.encode()).hexdigest()[:32]
        return cls(cluster_id, ordered, config.partition_count, config.replication_factor)


class Report(msgspec.Struct, array_like=True, frozen=True):
    """What a node says of itself while it forms, or once it is founded."""

    member: Member
    partition_count: int
    replication_factor: int
    seen: tuple[Member, ...] = ()
    proposed: Founding | None = None
    founded: Founding | None = None


encode_report = msgspec.msgpack.Encoder().encode
decode_report = msgspec.msgpack.Decoder(Report).decode


class Forming:
    """One node's part, as a pure state machine: reports in, a decision out."""

    def __init__(
        self,
        own: Member,
        peers: Sequence[str],
        config: ClusterConfig,
        proposed: Founding | None,
    ) -> None:
        self.proposed = proposed
        self._own = own
        self._config = config
        self._peers = [peer for peer in dict.fromkeys(peers) if peer != own.address]
        self._reports: dict[str, Report] = {}

    @property
    def peers(self) -> list[str]:
        """The addresses to ask; the own one is not among them."""
        return self._peers

    def report(self) -> Report:
        """What this node says now."""
        return Report(
            member=self._own,
            partition_count=self._config.partition_count,
            replication_factor=self._config.replication_factor,
            seen=self._seen(),
            proposed=self.proposed,
        )

    def on_report(self, address: str, report: Report | None) -> None:
        """A peer's answer; None when it did not answer."""
        if report is None:
            self._reports.pop(address, None)
        elif report.member == self._own:
            # Our own address under another name: nobody to wait for.
            self._peers.remove(address)
        else:
            self._reports[address] = report

    def _seen(self) -> tuple[Member, ...]:
        members = {report.member for report in self._reports.values()} | {self._own}
        return tuple(sorted(members))

    def adoptable(self) -> Founding | None:
        """A founded cluster that names this node and its store."""
        for _, report in sorted(self._reports.items()):
            if report.founded is not None and self._named(report.founded) == self._own.store_id:
                return report.founded
        return None

    def _named(self, founding: Founding) -> str | None:
        stores = {member.node_id: member.store_id for member in founding.members}
        return stores.get(self._own.node_id)

    def to_propose(self) -> Founding | None:
        """The cluster to persist as proposed now: everybody was heard, and all have seen the same."""
        if self.proposed is not None or self.problem() is not None or not self._all_heard():
            return None
        seen = self._seen()
        if any(report.seen != seen for report in self._reports.values()):
            return None
        return Founding.of(seen, self._config)

    def founded(self) -> Founding | None:
        """The cluster, once all of its members have proposed it."""
        if self.proposed is None or not self._all_heard():
            return None
        if all(report.proposed == self.proposed for report in self._reports.values()):
            return self.proposed
        return None

    def _all_heard(self) -> bool:
        return all(peer in self._reports for peer in self._peers)

    def problem(self) -> str | None:
        """Why there will be no founding until somebody changes something, in one sentence."""
        own = self._own
        for address, report in sorted(self._reports.items()):
            other = report.member
            if report.founded is not None:
                known = self._named(report.founded)
                if known is None:
                    return (
                        f"{other.node_id} at {address} belongs to a cluster that was founded without "
                        f"{own.node_id}; ask that cluster to add it"
                    )
                if known != own.store_id:
                    return (
                        f"the cluster of {other.node_id} knows {own.node_id} with another disk: this "
                        "one was wiped or replaced, and has forgotten its votes; remove "
                        f"{own.node_id} from the cluster before it comes back empty"
                    )
            if other.node_id == own.node_id:
                return f"{address} calls itself {own.node_id} too; node ids must differ"
            for name in ("partition_count", "replication_factor"):
                theirs, ours = getattr(report, name), getattr(self._config, name)
                if theirs != ours:
                    return f"{other.node_id} has {name} {theirs}, {own.node_id} has {ours}"
        return self._unequal_lists()

    def _unequal_lists(self) -> str | None:
        if not self._all_heard():
            return None
        names = [member.node_id for member in self._seen()]
        if len(set(names)) < len(names):
            return f"two nodes have the same id: {', '.join(sorted(names))}"
        for _, report in sorted(self._reports.items()):
            theirs = {member.node_id for member in report.seen}
            if theirs - set(names):
                return (
                    f"{report.member.node_id} was given other --peers than {self._own.node_id}: it "
                    f"also knows {', '.join(sorted(theirs - set(names)))}"
                )
        return None


async def form(
    forming: Forming,
    *,
    config: ClusterConfig,
    transport: Transport,
    persist: Callable[[Founding], Awaitable[None]],
    on_problem: Callable[[str | None], None],
) -> Founding:
    """Ask the peers again and again until there is a cluster; returns it, not yet persisted.

    ``persist`` makes a proposal durable before anybody is told of it. ``on_problem`` gets what is in
    the way, in one sentence, and None when nothing is.
    """
    while True:
        await asyncio.gather(*(_ask(forming, peer, transport) for peer in list(forming.peers)))
        adopted = forming.adoptable()
        if adopted is not None:
            return adopted
        proposal = forming.to_propose()
        if proposal is not None:
            await persist(proposal)
            forming.proposed = proposal
            continue
        founded = forming.founded()
        if founded is not None:
            return founded
        on_problem(forming.problem())
        await asyncio.sleep(config.membership.forming_retry_ms / 1000)


async def _ask(forming: Forming, peer: str, transport: Transport) -> None:
    body = encode_report(forming.report())
    try:
        answer = await transport.call(peer, FORMING, body, timeout=CALL_TIMEOUT_S)
    except Refused as error:
        forming.on_report(peer, None)
        raise error
    except KotobaError:
        forming.on_report(peer, None)
        return
    forming.on_report(peer, decode_report(answer))
