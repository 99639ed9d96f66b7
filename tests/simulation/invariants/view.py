"""What an invariant may see of a replica: read-only, and straight from where the node keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from cluster_core.node.node import ClusterNode
from cluster_core.ports import DATA, RAFT, Engine
from cluster_core.replication.replica import Replica
from cluster_core.storage import keys
from cluster_core.types import GroupId, Timestamp
from tests.simulation.world import SimNode, World

__all__ = ["Invariant", "ReplicaView", "Views"]


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
    def life(self) -> tuple[str, int, GroupId]:
        return (self.node, self.incarnation, self.group)

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
        """The entry as it lies in the log: 8 bytes of term, then the command."""
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


class Views:
    """Every replica of every running node. Asked for after every turn, so it remembers."""

    def __init__(self, world: World):
        self._world = world
        self._seen: dict[str, tuple[ClusterNode, list[ReplicaView]]] = {}

    def __call__(self) -> list[ReplicaView]:
        found: list[ReplicaView] = []
        for node in self._world.nodes:
            founded = node.founded
            if founded is None:
                continue
            seen = self._seen.get(node.name)
            if seen is None or seen[0] is not founded or _is_other(founded, seen[1]):
                seen = self._seen[node.name] = (founded, _replicas_of(node, founded))
            found += seen[1]
        return found


def _is_other(founded: ClusterNode, views: list[ReplicaView]) -> bool:
    """Replicas came, went, or were replaced by snapshots."""
    replicas = founded.host.replicas
    return len(replicas) != len(views) or any(
        replicas.get(view.group) is not view.replica for view in views
    )


def _replicas_of(node: SimNode, founded: ClusterNode) -> list[ReplicaView]:
    replicas = founded.host.replicas
    return [
        ReplicaView(node.name, node.incarnation, group, replicas[group], node.engine, founded)
        for group in sorted(replicas)
    ]
