"""The partition table of a founded cluster: which nodes have the replicas of which group.

It is a function of the founding alone, so every node has the same one without asking anybody.
"""

from __future__ import annotations

from typing import Final

from cluster_core.membership.forming import Founding
from cluster_core.placement.ring import place
from cluster_core.replication.router import GroupTable
from cluster_core.types import META_GROUP, GroupId, group_of

__all__ = ["META_VOTERS_MAX", "partition_table"]

META_VOTERS_MAX: Final = 5
"""More voters would make the meta group slower, not safer; every other node learns from them."""


def partition_table(founding: Founding) -> dict[GroupId, GroupTable]:
    """The groups of the cluster. Replica ids count from 1 in the order of preference to lead."""
    names = [member.node_id for member in founding.members]
    voters = tuple(range(1, min(len(names), META_VOTERS_MAX) + 1))
    tables = {META_GROUP: GroupTable(dict(enumerate(names, start=1)), voters)}
    zones = {member.node_id: member.zone for member in founding.members}
    placed = place(
        founding.partition_count, zones, founding.replication_factor, founding.virtual_nodes
    )
    for partition, nodes in enumerate(placed):
        members = dict(enumerate(nodes, start=1))
        tables[group_of(partition)] = GroupTable(members, tuple(members))
    return tables
