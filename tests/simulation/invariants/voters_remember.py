"""A voter remembers: nobody votes before it has caught up, nobody removes a replica that its group
counts on, an id lives at one node, and a replica that was removed does not come to life again.
"""

from __future__ import annotations

from cluster_core.node.residence import Resident, read_resident
from cluster_core.types import META_GROUP, GroupId, ReplicaId
from tests.simulation.invariants.configuration_chain import ConfigurationChain
from tests.simulation.invariants.view import ReplicaView

__all__ = ["VotersRemember"]


class VotersRemember:
    """``chain`` knows whom each group counts on; looked at before this one."""

    def __init__(self, chain: ConfigurationChain) -> None:
        self._chain = chain
        self._homes: dict[tuple[GroupId, ReplicaId], str] = {}

    def check(self, replicas: list[ReplicaView]) -> None:
        for view in replicas:
            home = self._homes.setdefault((view.group, view.replica.id), view.node)
            assert home == view.node, (
                f"group {view.group}: replica {view.replica.id} is at {home} and at {view.node}"
            )
            self._look_for_log(view)
        for node in replicas:
            if node.group == META_GROUP:
                self._look_at(node)

    def _look_for_log(self, view: ReplicaView) -> None:
        """Nobody votes before it has caught up, and what it had then no crash takes away."""
        configuration = self._chain.current.get(view.group)
        if configuration is not None and view.last_written == 0:
            votes = configuration.is_voter(view.replica.id) and self._chain.changed(view.group)
            assert not votes, f"group {view.group}: {view.node} votes, and has nothing"

    def _look_at(self, node: ReplicaView) -> None:
        for group, configuration in self._chain.current.items():
            resident = read_resident(node.engine, group) or Resident()
            for voter in (*configuration.voters, *configuration.outgoing):
                if self._homes.get((group, voter)) == node.node:
                    assert voter > resident.removed, (
                        f"group {group}: {node.node} removed replica {voter}, which votes"
                    )
            assert not resident.here or resident.here > resident.removed, (
                f"group {group}: {node.node} has replica {resident.here}, which it had removed"
            )
