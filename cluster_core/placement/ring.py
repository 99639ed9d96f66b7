"""Where partitions live: consistent hashing with virtual nodes, and bounded loads.

Every node stands on a ring of 2^64 points as often as it has virtual nodes. A partition starts at
the point of its own name and takes the first nodes that it meets: so a node that comes or goes moves
only what is near its own points. Loads are bounded (Mirrokni et al., "Consistent Hashing with
Bounded Loads", 2016): a node that already has its share is passed over.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from math import ceil
from typing import Final

from cluster_core.types import NodeId

__all__ = ["BOUND", "Ring", "place", "variance"]

BOUND: Final = 1.1
"""No node has more than this times the mean, rounded up."""


def _point(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")


class Ring:
    """``nodes`` maps each node to its zone, if it has one."""

    def __init__(self, nodes: Mapping[NodeId, str | None], virtual_nodes: int) -> None:
        self._zones = dict(sorted(nodes.items()))
        self._points = sorted(
            (_point(f"{node}#{number}"), node)
            for node in self._zones
            for number in range(virtual_nodes)
        )

    def walk(self, key: str) -> Iterator[NodeId]:
        """Every node once, in the order in which ``key`` meets them."""
        start = bisect_right(self._points, (_point(key), ""))
        met: set[NodeId] = set()
        for offset in range(len(self._points)):
            node = self._points[(start + offset) % len(self._points)][1]
            if node not in met:
                met.add(node)
                yield node

    def replicas(self, key: str, count: int) -> tuple[NodeId, ...]:
        """The ``count`` nodes for ``key`` (all, when there are fewer), in distinct zones where there
        are enough."""
        return self.choose(key, count, full=frozenset())

    def choose(self, key: str, count: int, full: frozenset[NodeId]) -> tuple[NodeId, ...]:
        """As :meth:`replicas`, passing over the nodes that are ``full`` while others are left."""
        order = [node for node in self.walk(key) if node not in full]
        order += [node for node in self.walk(key) if node in full]
        chosen: list[NodeId] = []
        zones: set[str] = set()
        for node in order:
            zone = self._zones[node]
            if len(chosen) < count and (zone is None or zone not in zones):
                chosen.append(node)
                zones.update(() if zone is None else (zone,))
        chosen += [node for node in order if node not in chosen][: max(0, count - len(chosen))]
        return tuple(chosen)


def place(
    partition_count: int,
    nodes: Mapping[NodeId, str | None],
    replication_factor: int,
    virtual_nodes: int,
) -> list[tuple[NodeId, ...]]:
    """The replicas of every partition; the first of each is its preferred leader.

    Both the replicas and the preferred leaderships of a node are within :data:`BOUND`.
    """
    ring = Ring(nodes, virtual_nodes)
    count = min(replication_factor, len(nodes))
    bound = ceil(BOUND * partition_count * count / len(nodes))
    leads_bound = ceil(BOUND * partition_count / len(nodes))
    replicas: dict[NodeId, int] = dict.fromkeys(sorted(nodes), 0)
    leads: dict[NodeId, int] = dict.fromkeys(sorted(nodes), 0)
    placed = []
    for partition in range(partition_count):
        full = frozenset(node for node, number in replicas.items() if number >= bound)
        chosen = ring.choose(f"partition-{partition}", count, full)
        first = next((node for node in chosen if leads[node] < leads_bound), chosen[0])
        placed.append((first, *(node for node in chosen if node != first)))
        leads[first] += 1
        for node in chosen:
            replicas[node] += 1
    return placed


def variance(placed: Sequence[Sequence[NodeId]], nodes: Sequence[NodeId]) -> float:
    """Variance of the number of replicas per node."""
    counts = [sum(node in replicas for replicas in placed) for node in nodes]
    mean = sum(counts) / len(counts)
    return sum((count - mean) ** 2 for count in counts) / len(counts)
