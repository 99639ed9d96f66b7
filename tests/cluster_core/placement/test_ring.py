"""Placement is a balanced, stable function of the set of nodes."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_core.placement.ring import Placement, Ring, place, variance

names = st.text("abcdefghij0123456789-._", min_size=1, max_size=8)
zones = st.none() | st.sampled_from(["east", "west", "north", "south"])
clusters = st.dictionaries(names, zones, min_size=1, max_size=12)
widths = st.integers(1, 5)
counts = st.integers(1, 200)


def ceil_of_bound(load: int, nodes: int) -> int:
    return (11 * load + 10 * nodes - 1) // (10 * nodes)


def moved(before: Placement, after: Placement) -> int:
    """Replicas of ``after`` that have to be copied to a node that lacks them."""
    return sum(len(set(new) - set(old)) for old, new in zip(before, after, strict=True))


@settings(deadline=None)
@given(clusters, widths, counts, st.integers(1, 100))
def test_replicas_are_distinct_and_no_node_is_above_its_bounds(
    nodes: dict[str, str | None], width: int, count: int, virtual_nodes: int
) -> None:
    placement = place(count, nodes, width, virtual_nodes)
    wide = min(width, len(nodes))
    assert len(placement) == count
    assert all(len(set(replicas)) == len(replicas) == wide for replicas in placement)
    loads = Counter(node for replicas in placement for node in replicas)
    leads = Counter(replicas[0] for replicas in placement)
    assert max(loads.values()) <= ceil_of_bound(count * wide, len(nodes))
    assert max(leads.values()) <= ceil_of_bound(count, len(nodes))
    assert set(loads) <= set(nodes)


@settings(deadline=None)
@given(clusters, st.randoms(use_true_random=False))
def test_the_order_in_which_nodes_are_given_does_not_matter(
    nodes: dict[str, str | None], random: Random
) -> None:
    shuffled = sorted(nodes.items(), key=lambda _: random.random())
    assert place(64, dict(shuffled), 3, 20) == place(64, nodes, 3, 20)


@settings(deadline=None)
@given(clusters, names, widths)
def test_the_ring_walks_every_node_once(nodes: dict[str, str | None], key: str, width: int) -> None:
    ring = Ring(nodes, 10)
    assert sorted(ring.walk(key)) == sorted(nodes)
    replicas = ring.replicas(key, width)
    assert len(set(replicas)) == len(replicas) == min(width, len(nodes))
    used = [nodes[node] or node for node in replicas]
    assert len(set(used)) == min(len(replicas), len({nodes[node] or node for node in nodes}))


@pytest.mark.parametrize("size", [3, 4, 5, 6, 8])
def test_a_node_that_joins_or_leaves_moves_little_more_than_its_share(size: int) -> None:
    moves = ideal = 0.0
    for sample in range(15):
        few = {f"node-{sample}-{number}": None for number in range(size)}
        many = {**few, f"node-{sample}-new": None}
        before, after = place(64, few, 3, 100), place(64, many, 3, 100)
        moves += moved(before, after) + moved(after, before)
        ideal += 2 * 64 * 3 / (size + 1)
    assert moves <= 1.5 * ideal


def test_replicas_stand_in_distinct_zones_where_there_are_enough() -> None:
    nodes = {f"{zone}{number}": zone for zone in ("a", "b", "c") for number in (1, 2)}
    for replicas in place(64, nodes, 3, 100):
        assert {nodes[node] for node in replicas} == {"a", "b", "c"}


def test_balance_wins_over_zones() -> None:
    nodes = {"lonely": "a", **{f"b{number}": "b" for number in range(5)}}
    loads = Counter(node for replicas in place(60, nodes, 2, 100) for node in replicas)
    assert loads["lonely"] <= 22


def test_three_nodes_hold_everything_and_share_the_leaderships() -> None:
    placement = place(64, {"node1": None, "node2": None, "node3": None}, 3, 100)
    assert all(sorted(replicas) == ["node1", "node2", "node3"] for replicas in placement)
    assert max(Counter(replicas[0] for replicas in placement).values()) <= 24
    assert variance(placement, ["node1", "node2", "node3"]) == 0.0


def test_one_node_has_everything() -> None:
    assert place(4, {"only": None}, 3, 100) == [("only",)] * 4


def test_variance_is_that_of_the_replica_counts() -> None:
    assert variance([("a", "b"), ("a", "b"), ("a",)], ["a", "b"]) == 0.25
    assert variance([("a",), ("a",)], ["b", "a"]) == 1.0
    assert variance([], []) == 0.0


def test_every_process_computes_the_same_placement() -> None:
    code = (
        "from cluster_core.placement.ring import place;"
        "print(place(16, {'n1': 'x', 'n2': 'y', 'n3': None, 'n4': 'x'}, 3, 100))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    nodes = {"n1": "x", "n2": "y", "n3": None, "n4": "x"}
    assert outputs == {f"{place(16, nodes, 3, 100)}\n"}


def test_neighbours_on_the_circle_differ_from_partition_to_partition() -> None:
    ring = Ring(dict.fromkeys("abcdefgh"), 100)
    walks = [tuple(ring.walk(f"partition-{partition}")) for partition in range(64)]
    assert sum(one != two for one, two in pairwise(walks)) > 55
