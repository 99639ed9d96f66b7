"""Who leads which group, as the nodes say of themselves, and which of them a quorum still follows.

This is ReadIndex (dissertation §6.4) for all groups at once, with the reader as the one who
counts. A reader asks every node once. A node answers, in one turn, what replicas it has, in which
terms, and which of them lead and may evaluate, by what configuration. (That table is sent when it
has changed since the reader saw it last, else its version.) A group's leader L of term t is
*confirmed* when L answered, and with it a quorum of its voters by L's configuration, each in a term
up to t.

Terms only grow, so when the reader asked, no quorum had gone to a later term: nobody else had led
the group after L and acknowledged anything. So what L has applied when it answers holds all that
was acknowledged before the reader asked. No clock is trusted for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from cluster_core.raft.quorum import Configuration, VoteResult
from cluster_core.replication.evaluation import Evaluation
from cluster_core.replication.host import ReplicationHost
from cluster_core.replication.replica import Replica
from cluster_core.types import META_GROUP, GroupId, NodeId, ReplicaId

__all__ = ["ConfirmedLeaders", "Here", "Leader"]

VERDICTS_MAX: Final = 32


class Here(NamedTuple):
    """A replica: its term, and the configuration of its group if it leads it."""

    group: GroupId
    replica: ReplicaId
    term: int
    leads: Configuration | None


class Leader(NamedTuple):
    """``place``: of the group among those that ``node`` leads, in the order of its table."""

    node: NodeId
    place: int


class ConfirmedLeaders:
    """What this node says of itself, and what it knows of the others.

    A verdict is a matter of the versions of those who answered, so it is computed once for many
    questions. ``first_version`` is above all that an earlier life of this node gave.
    """

    def __init__(self, host: ReplicationHost, first_version: int) -> None:
        self.version = first_version
        self.table: list[Here] = []
        self.led: list[Replica] = []
        """The replicas that lead, in the order of the table."""
        self._host = host
        self._seen: list[tuple[Replica, int, Evaluation | None, Configuration]] = []
        self._known: dict[NodeId, tuple[int, list[Here]]] = {}
        """What each node has, in its last version."""
        self._verdicts: dict[tuple[tuple[NodeId, int], ...], Mapping[GroupId, Leader]] = {}

    def look(self) -> int:
        """This node's version: a new one if a replica, term, leader or configuration has changed.

        Several times in each round of anybody: 15 us with 64 groups, for nothing is made but
        tuples.
        """
        # Who has just been deposed has a new term already, and an evaluation until its next flush.
        seen = [
            (replica, raft.term, replica.evaluation if raft.is_leader else None, raft.configuration)
            for replica in self._host.replicas.values()
            for raft in (replica.raft,)
        ]
        if seen == self._seen:
            return self.version
        self._seen = seen
        self.version += 1
        data = [one for one in seen if one[0].group != META_GROUP]
        self.led = [replica for replica, _, evaluation, _ in data if evaluation is not None]
        self.table = [
            Here(replica.group, replica.id, term, None if evaluation is None else configuration)
            for replica, term, evaluation, configuration in data
        ]
        self._known[self._host.node_id] = (self.version, self.table)
        return self.version

    def table_unless(self, known: int) -> list[Here] | None:
        """The table, for a reader that knows version ``known``."""
        return None if known == self.version else self.table

    def known_version(self, node: NodeId) -> int:
        """The version of ``node``'s table that is known here; 0: none."""
        return self._known.get(node, (0,))[0]

    def learn(self, node: NodeId, version: int, table: list[Here] | None) -> None:
        """What ``node`` answered."""
        if table is not None:
            self._known[node] = (version, table)

    def forget(self, node: NodeId) -> None:
        self._known.pop(node, None)

    def confirmed(self, versions: Mapping[NodeId, int]) -> Mapping[GroupId, Leader]:
        """The leaders of the groups for which the answers suffice, given the version of each."""
        key = tuple((node, versions[node]) for node in sorted(versions))
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._judge(versions)
            if verdict is None:
                return {}
            if len(self._verdicts) == VERDICTS_MAX:
                self._verdicts.clear()
            self._verdicts[key] = verdict
        return verdict

    def _judge(self, versions: Mapping[NodeId, int]) -> Mapping[GroupId, Leader] | None:
        """None where a table is not known any more."""
        leaders: dict[GroupId, tuple[Here, Leader]] = {}
        terms: dict[GroupId, dict[ReplicaId, int]] = {}
        for node in sorted(versions):
            version, table = self._known.get(node, (0, []))
            if version != versions[node]:
                return None
            place = 0
            for here in table:
                terms.setdefault(here.group, {})[here.replica] = here.term
                if here.leads is None:
                    continue
                known = leaders.get(here.group)
                if known is None or known[0].term < here.term:
                    leaders[here.group] = (here, Leader(node, place))
                place += 1
        return {
            group: leader
            for group, (here, leader) in sorted(leaders.items())
            if _is_followed(here, terms[group])
        }


def _is_followed(leader: Here, terms: Mapping[ReplicaId, int]) -> bool:
    """Whether a quorum has not gone beyond the leader's term."""
    assert leader.leads is not None
    votes = {replica: True for replica, term in terms.items() if term <= leader.term}
    return leader.leads.vote_result(votes) is VoteResult.WON
