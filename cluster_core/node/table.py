"""The partition table with which a cluster begins: which nodes have the replicas of which group.

It is a function of the founding alone, so every node has the same one without asking anybody; what
changed since is state of the meta group (``placements.py``). Partitions are placed on the voters; a
witness is a learner of every group.
"""

from __future__ import annotations

from typing import Final

from cluster_core.membership.forming import Founding
from cluster_core.placement.ring import place
from cluster_core.placement.table import GroupTable, founding_group
from cluster_core.types import META_GROUP, GroupId, group_of

__all__ = ["META_VOTERS_MAX", "partition_table"]

META_VOTERS_MAX: Final = 5
"""More voters would make the meta group slower, not safer; every other node learns from them."""


def partition_table(founding: Founding) -> dict[GroupId, GroupTable]:
    """The groups of the cluster. Replica ids count from 1 in the order of preference to lead."""
    voters = [member.node_id for member in founding.members if member.role != "witness"]
    witnesses = [member.node_id for member in founding.members if member.role == "witness"]
    assert voters, "forming refuses a cluster of witnesses"
    tables = {META_GROUP: founding_group([*voters, *witnesses], min(len(voters), META_VOTERS_MAX))}
    zones = {member.node_id: member.zone for member in founding.members if member.node_id in voters}
    placed = place(
        founding.partition_count, zones, founding.replication_factor, founding.virtual_nodes
    )
    for partition, nodes in enumerate(placed):
        tables[group_of(partition)] = founding_group([*nodes, *witnesses], len(nodes))
    return tables
