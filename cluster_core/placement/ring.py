"""Consistent hashing with virtual nodes, and bounded loads on top of it.

A ring alone (Karger et al., 1997) leaves the loads of 100 virtual nodes about a tenth apart, and
some node always well above. *Bounded loads* (Mirrokni, Thorup, Zadimoghaddam, 2018) cap every node
at 1.1 times the mean and let what does not fit walk on along the ring: balance is guaranteed, and a
node that joins or leaves still moves little more than its share.

Everything here is a function of its arguments: every node of a cluster computes the same placement.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b

from cluster_core.types import NodeId

__all__ = ["Placement", "Ring", "place", "variance"]

Zone = str | None

Placement = list[tuple[NodeId, ...]]
"""For each partition its replicas; the first one is the preferred leader."""


def _point(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


class Ring:
    """Nodes at ``virtual_nodes`` points each of a circle of 64-bit hashes."""

    def __init__(self, nodes: Mapping[NodeId, Zone], virtual_nodes: int) -> None:
        assert virtual_nodes >= 1
        self.nodes: dict[NodeId, Zone] = dict(sorted(nodes.items()))
        points = sorted(
            (_point(f"{node}/{number}"), node)
            for node in self.nodes
            for number in range(virtual_nodes)
        )
        self._points = [point for point, _ in points]
        self._owners = [node for _, node in points]

    def walk(self, key: str) -> Iterator[NodeId]:
        """All nodes, each once, in the order in which the circle meets them from ``key`` on."""
        start = bisect_right(self._points, _point(key))
        left = len(self.nodes)
        seen: set[NodeId] = set()
        for owner in _rotated(self._owners, start):
            if owner not in seen:
                seen.add(owner)
                yield owner
                left -= 1
                if not left:
                    return

    def replicas(self, key: str, n: int) -> tuple[NodeId, ...]:
        """The first ``n`` distinct nodes from ``key`` on, in distinct zones while there are any."""
        return self.choose(list(self.walk(key)), n)

    def choose(self, candidates: Sequence[NodeId], n: int) -> tuple[NodeId, ...]:
        """``n`` of the ``candidates`` (all, if there are fewer), in their order.

        A candidate in a zone that is not yet used goes before one in a zone that is; a node without
        a zone is a zone of its own.
        """
        chosen: list[NodeId] = []
        zones: set[str] = set()
        for node in candidates:
            if len(chosen) < n and (zone := self._zone(node)) not in zones:
                zones.add(zone)
                chosen.append(node)
        for node in candidates:
            if len(chosen) < n and node not in chosen:
                chosen.append(node)
        return tuple(chosen)

    def _zone(self, node: NodeId) -> str:
        zone = self.nodes[node]
        return f"node {node}" if zone is None else f"zone {zone}"


def place(
    partition_count: int,
    nodes: Mapping[NodeId, Zone],
    replication_factor: int,
    virtual_nodes: int,
) -> Placement:
    """Replicas of every partition; with fewer nodes than ``replication_factor``, all of them.

    No node has more than ``ceil(1.1 * mean)`` replicas, and none is the preferred leader of more
    than ``ceil(1.1 * mean)`` partitions. Distinct zones are preferred within these bounds.
    """
    assert nodes
    ring = Ring(nodes, virtual_nodes)
    width = min(replication_factor, len(ring.nodes))
    walks = [list(ring.walk(f"partition-{partition}")) for partition in range(partition_count)]
    replicas = _bounded_replicas(ring, walks, width)
    leaders = _bounded_leaders(replicas, _bound(partition_count, len(ring.nodes)))
    return [
        (leader, *(node for node in chosen if node != leader))
        for leader, chosen in zip(leaders, replicas, strict=True)
    ]


def variance(placement: Placement, nodes: Iterable[NodeId]) -> float:
    """Variance of the number of replicas that each of ``nodes`` holds."""
    counts = dict.fromkeys(sorted(nodes), 0)
    for replicas in placement:
        for node in replicas:
            if node in counts:
                counts[node] += 1
    if not counts:
        return 0.0
    mean = sum(counts.values()) / len(counts)
    return sum((count - mean) ** 2 for count in counts.values()) / len(counts)


def _rotated(items: Sequence[NodeId], start: int) -> Iterator[NodeId]:
    for index in range(len(items)):
        yield items[(start + index) % len(items)]


def _bound(load: int, nodes: int) -> int:
    """``ceil(1.1 * load / nodes)``, in whole numbers so that no rounding depends on a machine."""
    return -(-11 * load // (10 * nodes))


def _bounded_replicas(
    ring: Ring, walks: list[list[NodeId]], width: int
) -> list[tuple[NodeId, ...]]:
    """Each partition takes the first nodes of its walk that have room.

    With ``left`` partitions to go, a node can still take ``min(room, left)`` replicas. The rest can
    be placed as long as these sum up to ``left * width``; what they exceed it by is the slack. A
    node with ``room >= left`` that is passed over loses one for ever, so it must be taken as soon
    as the slack does not pay for it.
    """
    room = dict.fromkeys(ring.nodes, _bound(len(walks) * width, len(ring.nodes)))
    out: list[tuple[NodeId, ...]] = []
    for done, walk in enumerate(walks):
        left = len(walks) - done
        urgent = [node for node in walk if room[node] >= left]
        slack = sum(min(free, left) for free in room.values()) - left * width
        assert slack >= 0
        others_max = max(0, slack + width - len(urgent))
        chosen = ring.choose([node for node in walk if room[node]], width)
        others = [node for node in chosen if room[node] < left]
        if len(others) > others_max:
            kept = set(others[:others_max]) | set(urgent)
            chosen = ring.choose([node for node in walk if node in kept], width)
        assert len(chosen) == width
        for node in chosen:
            room[node] -= 1
        out.append(chosen)
    return out


def _bounded_leaders(replicas: list[tuple[NodeId, ...]], bound: int) -> list[NodeId]:
    """A leader for each partition among its replicas, at most ``bound`` for a node.

    The first replica with room, or room is made by handing leaderships on along a shortest chain of
    partitions. There always is one: an even split of every leadership over its replicas obeys the
    bound, and so does (the flow being integral) a whole one.
    """
    leaders: list[NodeId] = []
    led: dict[NodeId, list[int]] = {}
    for partition, candidates in enumerate(replicas):
        leader = next((n for n in candidates if len(led.get(n, ())) < bound), None)
        if leader is None:
            leader = _make_room(candidates, replicas, leaders, led, bound)
        leaders.append(leader)
        led.setdefault(leader, []).append(partition)
    return leaders


def _make_room(
    candidates: tuple[NodeId, ...],
    replicas: list[tuple[NodeId, ...]],
    leaders: list[NodeId],
    led: dict[NodeId, list[int]],
    bound: int,
) -> NodeId:
    """Hand on leaderships so that one of ``candidates`` has room for another; returns it."""
    came_by: dict[NodeId, int | None] = dict.fromkeys(candidates)
    queue = deque(candidates)
    while queue:
        node = queue.popleft()
        for partition in led[node]:
            for heir in replicas[partition]:
                if heir in came_by:
                    continue
                came_by[heir] = partition
                if len(led.get(heir, ())) < bound:
                    return _hand_on(heir, leaders, led, came_by)
                queue.append(heir)
    raise AssertionError("the bound leaves room for every leadership")


def _hand_on(
    heir: NodeId,
    leaders: list[NodeId],
    led: dict[NodeId, list[int]],
    came_by: dict[NodeId, int | None],
) -> NodeId:
    while (partition := came_by[heir]) is not None:
        giver = leaders[partition]
        led[giver].remove(partition)
        led.setdefault(heir, []).append(partition)
        leaders[partition] = heir
        heir = giver
    return heir
