"""Names for the plain values that travel through the whole system.

A cluster *node* is a process; a graph node is always called a *vertex* inside the code.
"""

from __future__ import annotations

from typing import Final, Literal

NodeId = str
"""Name of a cluster node, chosen by its operator: 1 to 64 of ``[A-Za-z0-9._-]``."""

GroupId = int
"""Number of a Raft group: 0 is the meta group, partition ``p`` is group ``p + 1``."""

ReplicaId = int
"""Identity of one replica of one group; given once and never used again."""

Timestamp = int
"""Hybrid logical clock reading: 48 bits of wall milliseconds, 16 bits of counter."""

Digest = bytes
"""The 32 bytes of a sha2-256 digest: all that tells one of our CIDs from another."""

Consistency = Literal["strong", "read_your_writes", "eventual"]

META_GROUP: Final = 0
"""The Raft group that holds membership and the partition table."""


def group_of(partition: int) -> GroupId:
    """The Raft group that replicates ``partition``."""
    return partition + 1


def partition_of_group(group: GroupId) -> int:
    """The partition that ``group`` replicates; the meta group has none."""
    assert group != META_GROUP
    return group - 1


def partition_of(digest: Digest, partition_count: int) -> int:
    """The partition of the entity whose first digest this is: 8 of its bytes, modulo the count."""
    return int.from_bytes(digest[:8], "big") % partition_count
