"""At rest every group has the members that the table wants, each is at its node, and of those that
left nothing is on any disk.
"""

from __future__ import annotations

from cluster_core.node.residence import read_resident
from cluster_core.ports import DATA, RAFT
from cluster_core.storage import keys
from cluster_core.types import META_GROUP, GroupId
from tests.simulation.invariants.view import ReplicaView

__all__ = ["SettledPlacement"]


class SettledPlacement:
    """Looked at when a run has come to rest."""

    def check(self, replicas: list[ReplicaView]) -> None:
        here = {(view.node, view.group): view for view in replicas}
        for node in replicas:
            if node.group != META_GROUP:
                continue
            for group, table in node.founded.tables.items():
                assert table.settled, f"{node.node}, group {group}: {table} is not settled"
                view = here.get((node.node, group))
                wanted = table.replica_at(node.node)
                if view is None:
                    assert wanted is None, f"{node.node}, group {group}: {wanted} is missing"
                    self._check_gone(node, group)
                else:
                    assert view.replica.id == wanted, f"{node.node}, group {group}: not {wanted}"
                    configuration = view.replica.raft.applied_configuration
                    assert sorted(configuration.voters) == sorted(table.voters), (view, table)
                    assert sorted(configuration.learners) == sorted(table.learners), (view, table)

    def _check_gone(self, node: ReplicaView, group: GroupId) -> None:
        prefix = keys.group_prefix(group)
        for family in (DATA, RAFT):
            left = [key for key, _ in node.engine.scan(family, prefix, keys.after(prefix))]
            if family == RAFT and read_resident(node.engine, group) is not None:
                left.remove(keys.resident(group))
            assert not left, f"{node.node}, group {group}: {len(left)} keys are left, {left[0]!r}"
