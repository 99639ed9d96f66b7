"""What an invariant may see of a replica: read-only, and straight from where the node keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from cluster_core.node.node import ClusterNode
from cluster_core.ports import DATA, RAFT, Engine
from cluster_core.raft import Configuration, decode_configuration
from cluster_core.replication.command import Command, decode_command
from cluster_core.replication.replica import Replica
from cluster_core.storage import keys
from cluster_core.types import GroupId, Timestamp
from cluster_core.wire.messages import CONFIGURATION
from tests.simulation.world import SimNode, World

__all__ = [
    "Invariant",
    "Life",
    "ReplicaView",
    "Views",
    "command_of",
    "configuration_of",
    "term_of",
]

Life = tuple[str, int, GroupId, Replica]
"""One replica of one process, until a snapshot replaces it: node, incarnation, group, replica."""

_HEAD_BYTES = 8


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica of one running process."""

    node: str
    incarnation: int
    group: GroupId
    replica: Replica
    engine: Engine
    founded: ClusterNode

    @property
    def clock(self) -> Timestamp:
        """The highest timestamp that the node gave or merged."""
        return self.founded.clock.latest

    @property
    def ceiling(self) -> Timestamp:
        """The highest timestamp that the node may have given: it survives a crash."""
        return self.founded.clock.ceiling

    @property
    def life(self) -> Life:
        return (self.node, self.incarnation, self.group, self.replica)

    @property
    def term(self) -> int:
        term: int = self.replica.raft.term
        return term

    @property
    def leads(self) -> bool:
        return self.replica.is_leader

    @property
    def applied(self) -> int:
        return self.replica.applied

    @property
    def last_written(self) -> int:
        return self.replica.log.last_index()

    @property
    def first_kept(self) -> int:
        """Index of the oldest entry that the log still has."""
        return self.replica.log.first_index()

    def entry(self, index: int) -> bytes | None:
        """The entry as it lies in the log: a byte of its kind, 7 bytes of term, then its data."""
        return self.engine.get(RAFT, keys.log_entry(self.group, index))

    def data(self) -> Iterator[tuple[bytes, bytes]]:
        """Everything that the log has built."""
        prefix = keys.group_prefix(self.group)
        return self.engine.scan(DATA, prefix, keys.after(prefix))

    def table(self, table: bytes) -> Iterator[tuple[bytes, bytes]]:
        prefix = keys.table_prefix(self.group, table)
        return self.engine.scan(DATA, prefix, keys.after(prefix))


class Invariant(Protocol):
    """Something that must hold whenever it is looked at. ``check`` asserts it."""

    def check(self, replicas: list[ReplicaView]) -> None: ...


def term_of(entry: bytes) -> int:
    return int.from_bytes(entry[1:_HEAD_BYTES], "big")


def command_of(entry: bytes) -> Command | None:
    """What the entry does to the state machine; None where that is nothing."""
    is_command = len(entry) > _HEAD_BYTES and not entry[0]
    return decode_command(entry[_HEAD_BYTES:]) if is_command else None


def configuration_of(entry: bytes) -> Configuration | None:
    """The configuration that the entry holds, if it is one."""
    return decode_configuration(entry[_HEAD_BYTES:]) if entry[0] == CONFIGURATION else None


class Views:
    """Every replica of every running node. Asked for after every turn, so it remembers."""

    def __init__(self, world: World):
        self._world = world
        self._seen: dict[str, tuple[list[Replica], list[ReplicaView]]] = {}

    def __call__(self) -> list[ReplicaView]:
        found: list[ReplicaView] = []
        for node in self._world.nodes:
            founded = node.founded
            if founded is None:
                continue
            replicas = [*founded.host.replicas.values(), *founded.host.joining.values()]
            seen = self._seen.get(node.name)
            if seen is None or seen[0] != replicas:
                seen = self._seen[node.name] = (replicas, _views_of(node, founded, replicas))
            found += seen[1]
        return found


def _views_of(node: SimNode, founded: ClusterNode, replicas: list[Replica]) -> list[ReplicaView]:
    return [
        ReplicaView(node.name, node.incarnation, one.group, one, node.engine, founded)
        for one in sorted(replicas, key=lambda one: one.group)
    ]
