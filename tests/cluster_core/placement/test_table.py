"""The table of a group's replicas, and the steps by which a group comes to what it wants."""

from __future__ import annotations

import random

import pytest

from cluster_core.placement.table import (
    GroupTable,
    founding_group,
    next_change,
    observed,
    with_learners,
    with_voters,
)
from cluster_core.raft import Change, Configuration
from cluster_core.raft.membership import changed, left
from cluster_core.types import ReplicaId


def table_of(*nodes: str) -> GroupTable:
    return founding_group(nodes, len(nodes))


def test_a_founding_group_counts_from_one() -> None:
    table = founding_group(["a", "b", "c", "w"], 3)
    assert table.members == {1: "a", 2: "b", 3: "c", 4: "w"}
    assert (table.voters, table.learners, table.next_id) == ((1, 2, 3), (4,), 5)
    assert table.settled
    assert table.nodes == ["a", "b", "c", "w"]


def test_a_new_node_gets_a_new_id_and_the_others_keep_theirs() -> None:
    table = with_voters(table_of("a", "b", "c"), ["a", "d", "c"])
    assert table.members == {1: "a", 2: "b", 3: "c", 4: "d"}
    assert table.voters == (1, 4, 3)
    assert not table.settled
    assert table.replica_at("b") is None


def test_wanting_the_same_changes_nothing() -> None:
    table = table_of("a", "b", "c")
    assert with_voters(table, ["a", "b", "c"]) is table


def test_another_order_of_preference_moves_nothing() -> None:
    table = with_voters(table_of("a", "b", "c"), ["c", "a", "b"])
    assert table.voters == (3, 1, 2)
    assert table.settled
    assert table.version == 1


def test_a_move_that_is_taken_back_in_time_keeps_the_replica() -> None:
    table = with_voters(with_voters(table_of("a", "b", "c"), ["a", "b", "d"]), ["a", "b", "c"])
    assert table.voters == (1, 2, 3)
    assert not table.settled  # the group may have a learner at d by now
    settled = observed(table, Configuration.of([1, 2, 3], [4]), 4)
    assert 4 in settled.members
    assert not settled.settled
    settled = observed(settled, Configuration.of([1, 2, 3]), 4)
    assert settled.members == {1: "a", 2: "b", 3: "c"}
    assert settled.settled


def test_a_move_that_is_taken_back_too_late_gives_a_new_id() -> None:
    table = with_voters(with_voters(table_of("a", "b", "c"), ["a", "b", "d"]), ["a", "b", "c"])
    let_go = Configuration.of([1, 2, 4])  # the group was faster
    assert next_change(table, let_go, 4) is None
    again = observed(table, let_go, 4)
    assert again.members == {1: "a", 2: "b", 4: "d", 5: "c"}
    assert again.voters == (1, 2, 5)
    assert next_change(again, let_go, 4) == Change(add_learners=(5,))


def test_a_replica_is_added_and_then_replaces_the_other_in_one_change() -> None:
    table = with_voters(table_of("a", "b", "c"), ["a", "b", "d"])
    assert next_change(table, Configuration.of([1, 2, 3]), 3) == Change(add_learners=(4,))
    step = next_change(table, Configuration.of([1, 2, 3], [4]), 4)
    assert step == Change(promote=(4,), remove=(3,))
    assert next_change(table, Configuration.of([1, 2, 4]), 4) is None


def test_an_old_table_takes_no_step_against_a_newer_configuration() -> None:
    assert next_change(table_of("a", "b", "c"), Configuration.of([1, 2, 4]), 4) is None


def test_learners_move_as_well() -> None:
    table = with_learners(founding_group(["a", "b", "c", "w"], 3), ["v"])
    configuration = Configuration.of([1, 2, 3], [4])
    assert next_change(table, configuration, 4) == Change(add_learners=(5,))
    configuration = Configuration.of([1, 2, 3], [4, 5])
    assert next_change(table, configuration, 5) == Change(remove=(4,))


@pytest.mark.parametrize("seed", range(50))
def test_any_changes_end_where_they_should_and_give_no_id_twice(seed: int) -> None:
    """A group and a table that change in turn, the table also in the middle of a move; what the
    leader reports may be late. Whatever happens, ids are given once and voters are never too few.
    """
    source = random.Random(seed)
    nodes = ["a", "b", "c", "d", "e"]
    table, configuration, highest = table_of("a", "b", "c"), Configuration.of([1, 2, 3]), 3
    given: dict[ReplicaId, str] = dict(table.members)
    gone: set[ReplicaId] = set()
    for turn in range(60):
        if turn < 40 and source.random() < 0.3:
            table = with_voters(table, source.sample(nodes, 3))
        elif source.random() < 0.4:
            table = observed(table, configuration, highest)
        else:
            change = next_change(table, configuration, highest)
            if change is not None:
                before = set(configuration.members)
                configuration = changed(configuration, change)
                configuration = left(configuration) if configuration.is_joint else configuration
                assert gone.isdisjoint(configuration.members)
                gone |= before - set(configuration.members)
                highest = max(highest, *configuration.members)
        for replica, node in table.members.items():
            assert given.setdefault(replica, node) == node
        assert len(configuration.voters) == 3
        assert set(configuration.members) <= set(table.members)
    assert table.settled or observed(table, configuration, highest).settled
    assert set(configuration.voters) == set(table.voters)
