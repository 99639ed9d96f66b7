"""The partition table: where the replicas of each group are, and where they are to be.

A :class:`GroupTable` says what is *wanted* of one group. What *is*, the group's own log says: its
configuration. The two come together step by step, in a loop that anybody may leave and another one
enter (``node/mover.py``), since each step follows from the two alone:

1. what is wanted and missing is added, as learners (:func:`next_change`);
2. when all that shall vote have caught up, one change makes them voters and lets go of whatever is
   not wanted: through a joint configuration (Raft §6), so there are never fewer voters than wanted;
3. what the committed configuration has let go is dropped from the table (:func:`observed`), and
   only then removed from its node.

A replica's id is given once, and never again after it left: its node forgets its votes when it
removes it. So a table may want a replica back only as long as the group has not let it go; if it
had by then, it gets a new id.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cluster_core.raft import Change, Configuration
from cluster_core.types import NodeId, ReplicaId

__all__ = [
    "GroupTable",
    "founding_group",
    "next_change",
    "observed",
    "with_learners",
    "with_voters",
]


class GroupTable(msgspec.Struct, frozen=True, kw_only=True):
    """One group. ``members`` names the node of every replica that its configuration may have: those
    that are wanted, as voters or as learners, and those that are on their way out."""

    members: dict[ReplicaId, NodeId]
    voters: tuple[ReplicaId, ...]
    """Wanted as voters, in the order of preference to lead."""
    learners: tuple[ReplicaId, ...] = ()
    """Wanted as learners."""
    next_id: ReplicaId
    """All below it were given."""
    version: int = 0
    """Grows with every change of this table."""
    settled: bool = True
    """Whether the group was seen to have exactly what is wanted, in this version or since."""

    @property
    def wanted(self) -> tuple[ReplicaId, ...]:
        return (*self.voters, *self.learners)

    @property
    def nodes(self) -> list[NodeId]:
        """Those that have, or shall have, a replica; the preferred leader first."""
        return [self.members[replica] for replica in self.wanted]

    @property
    def voter_nodes(self) -> list[NodeId]:
        return [self.members[replica] for replica in self.voters]

    def replica_at(self, node: NodeId) -> ReplicaId | None:
        """The replica that is wanted at ``node``."""
        return next((one for one in self.wanted if self.members[one] == node), None)


def founding_group(nodes: Sequence[NodeId], voters: int) -> GroupTable:
    """A group of ``nodes``, the first of which vote. Ids count from 1 in that order."""
    return GroupTable(
        members=dict(enumerate(nodes, start=1)),
        voters=tuple(range(1, voters + 1)),
        learners=tuple(range(voters + 1, len(nodes) + 1)),
        next_id=len(nodes) + 1,
    )


def with_voters(table: GroupTable, nodes: Sequence[NodeId]) -> GroupTable:
    """Want voters at ``nodes``, in that order of preference, and nowhere else."""
    return _wanting(table, nodes, [table.members[one] for one in table.learners])


def with_learners(table: GroupTable, nodes: Sequence[NodeId]) -> GroupTable:
    """Want learners at ``nodes``, and nowhere else."""
    return _wanting(table, table.voter_nodes, nodes)


def _wanting(table: GroupTable, voters: Sequence[NodeId], learners: Sequence[NodeId]) -> GroupTable:
    """A node that has a replica keeps it, also one on its way out; others get a new one."""
    wanted = [*voters, *(node for node in learners if node not in voters)]
    assert len(set(wanted)) == len(wanted), "a node has one replica"
    # Of a node with an old and a new one the new one: the old one left for good.
    at = {node: replica for replica, node in sorted(table.members.items())}
    members, next_id = dict(table.members), table.next_id
    for node in wanted:
        if node not in at:
            at[node] = next_id
            members[next_id] = node
            next_id += 1
    ids = tuple(at[node] for node in wanted)
    after = msgspec.structs.replace(
        table,
        members=members,
        voters=ids[: len(voters)],
        learners=ids[len(voters) :],
        next_id=next_id,
    )
    same = set(after.voters) == set(table.voters) and set(after.learners) == set(table.learners)
    return _next_version(table, msgspec.structs.replace(after, settled=table.settled and same))


def observed(table: GroupTable, configuration: Configuration, highest: ReplicaId) -> GroupTable:
    """What ``table`` becomes when the group is seen to have ``configuration``, committed, at its
    present leader; ``highest`` is the highest id that the group ever had.

    What is on its way out and not there any more is dropped. A wanted one that the group had and
    let go gets a new id.
    """
    assert not configuration.is_joint
    present = set(configuration.members)
    new_ids: dict[ReplicaId, ReplicaId] = {}
    next_id = table.next_id
    for replica in table.wanted:
        if replica not in present and replica <= highest:
            new_ids[replica] = next_id
            next_id += 1
    members = {
        new_ids.get(replica, replica): node
        for replica, node in table.members.items()
        if replica in present or replica in table.wanted
    }
    after = msgspec.structs.replace(
        table,
        members=members,
        voters=tuple(new_ids.get(one, one) for one in table.voters),
        learners=tuple(new_ids.get(one, one) for one in table.learners),
        next_id=next_id,
        settled=_agrees(table, configuration),
    )
    return _next_version(table, after)


def _next_version(before: GroupTable, after: GroupTable) -> GroupTable:
    """``after`` as the next version, where it is another one."""
    if after == before:
        return before
    return msgspec.structs.replace(after, version=before.version + 1)


def _agrees(table: GroupTable, configuration: Configuration) -> bool:
    same_voters = set(table.voters) == set(configuration.voters)
    return same_voters and set(table.learners) == set(configuration.learners)


def next_change(
    table: GroupTable, configuration: Configuration, highest: ReplicaId
) -> Change | None:
    """The next step of the group towards ``table``; None when it is there, or when the table must
    move first: it knows less than the configuration, or wants what the group let go.

    ``configuration`` is committed, ``highest`` the highest id that the group ever had.
    """
    assert not configuration.is_joint
    present, wanted = set(configuration.members), set(table.wanted)
    missing = sorted(wanted - present)
    if any(member >= table.next_id for member in present):
        return None
    if any(replica <= highest for replica in missing):
        return None
    if missing:
        return Change(add_learners=tuple(missing))
    change = Change(
        promote=tuple(sorted(set(table.voters) & set(configuration.learners))),
        demote=tuple(sorted(set(table.learners) & set(configuration.voters))),
        remove=tuple(sorted(present - wanted)),
    )
    return change if change != Change() else None
