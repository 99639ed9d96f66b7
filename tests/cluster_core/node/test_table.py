"""The partition table of a founded cluster."""

from __future__ import annotations

from cluster_core.config import ClusterConfig
from cluster_core.membership.forming import Founding, Member
from cluster_core.node.table import META_VOTERS_MAX, partition_table
from cluster_core.types import META_GROUP


def founding(voters: int, witnesses: int = 0, replication_factor: int = 3) -> Founding:
    members = [Member(f"node{n}", f"store{n}", f"127.0.0.1:{n}") for n in range(1, voters + 1)]
    members += [
        Member(f"witness{n}", f"storew{n}", f"127.0.0.1:9{n}", role="witness")
        for n in range(1, witnesses + 1)
    ]
    return Founding.of(members, ClusterConfig(replication_factor=replication_factor))


def test_every_group_has_its_replicas_and_they_are_numbered_by_preference() -> None:
    tables = partition_table(founding(5))
    assert len(tables) == 65
    for group, table in tables.items():
        if group != META_GROUP:
            assert sorted(table.members) == [1, 2, 3]
            assert table.voters == (1, 2, 3)
            assert len(set(table.members.values())) == 3


def test_a_small_cluster_has_as_many_replicas_as_nodes() -> None:
    assert all(len(table.voters) == 2 for table in partition_table(founding(2)).values())


def test_the_meta_group_is_everywhere_and_has_at_most_five_voters() -> None:
    meta = partition_table(founding(7))[META_GROUP]
    assert len(meta.members) == 7
    assert len(meta.voters) == META_VOTERS_MAX


def test_a_witness_learns_from_every_group_and_votes_in_none() -> None:
    for table in partition_table(founding(3, witnesses=1)).values():
        learners = [node for replica, node in table.members.items() if replica not in table.voters]
        assert learners == ["witness1"]
        assert table.members[1] != "witness1"


def test_all_nodes_compute_the_same_table() -> None:
    members = founding(5, witnesses=1).members
    again = Founding.of(reversed(members), ClusterConfig())
    assert partition_table(again) == partition_table(founding(5, witnesses=1))
