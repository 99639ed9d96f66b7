"""The messages of Raft, as they travel between replicas.

All are frozen values encoded as msgpack arrays (tag first), so a message costs about a microsecond
to write and to read. ``source`` and ``target`` are replica ids, never node ids: a replica that left
and came back has another id and cannot be taken for one that remembers its votes.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cluster_core.types import GroupId, ReplicaId

CONFIGURATION: Final = 1
"""Kind of an entry whose data is a configuration of the group (``raft/membership.py``)."""

CHECKPOINT: Final = 2
"""Kind of an entry that changes nothing: replicas compare their state as it is right behind it."""


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One entry of a group's log. An empty ``data`` is the entry that a new leader begins with.

    ``kind`` says whose ``data`` is: 0 the state machine's, :data:`CONFIGURATION` Raft's own, and
    :data:`CHECKPOINT` nobody's.
    """

    term: int
    index: int
    data: bytes = b""
    kind: int = 0


class HardState(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a replica must remember through a crash (Raft, figure 2). ``vote`` 0 means none."""

    term: int = 0
    vote: ReplicaId = 0


class Append(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=1):
    """AppendEntries of Raft §5.3. ``commit`` never names an index beyond what it carries."""

    group: GroupId
    source: ReplicaId
    target: ReplicaId
    term: int
    prev_index: int
    prev_term: int
    commit: int
    entries: tuple[Entry, ...]


class AppendReply(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=2):
    """Answer to an Append.

    Accepted: ``index`` is the last index known to match. Rejected: ``index`` is the refused
    ``prev_index``; ``hint_index`` and ``hint_term`` let the leader skip a whole term at once.
    """

    group: GroupId
    source: ReplicaId
    target: ReplicaId
    term: int
    index: int
    reject: bool = False
    hint_index: int = 0
    hint_term: int = 0


class Heartbeat(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=3):
    """Keeps followers quiet; ``round`` numbers the read-index round that it confirms (§6.4).

    Up to ``level`` all who answer the leader have the log: followers keep what comes after it, as
    each of them may be the next to send it.
    """

    group: GroupId
    source: ReplicaId
    target: ReplicaId
    term: int
    commit: int
    round: int = 0
    level: int = 0


class HeartbeatReply(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=4):
    group: GroupId
    source: ReplicaId
    target: ReplicaId
    term: int
    round: int = 0


class Vote(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=5):
    """RequestVote (§5.2), or its rehearsal (dissertation §9.6) when ``pre`` is set.

    ``transfer`` marks a campaign that the leader asked for: leases do not stand in its way.
    """

    group: GroupId
    source: ReplicaId
    target: ReplicaId
    term: int
    last_index: int
    last_term: int
    pre: bool = False
    transfer: bool = False


class VoteReply(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=6):
    group: GroupId
    source: ReplicaId
    target: ReplicaId
    term: int
    granted: bool
    pre: bool = False


class TimeoutNow(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=7):
    """Leadership transfer (dissertation §3.10): campaign at once."""

    group: GroupId
    source: ReplicaId
    target: ReplicaId
    term: int


class Commit(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=8):
    """The leader's commit index, as far as ``target`` surely has the log; asks for no answer.

    An Append carries it too, but a group at rest has none to send, and an empty Append for every
    commitment would double what a single write costs.
    """

    group: GroupId
    source: ReplicaId
    target: ReplicaId
    term: int
    commit: int


class SnapshotOffer(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=9):
    """What InstallSnapshot says beside its bytes (§7): a snapshot that ends at ``index``.

    The bytes travel on requests of their own, and this with them. Answered with an AppendReply:
    at once when the target has all of it, else when it is installed.
    """

    group: GroupId
    source: ReplicaId
    target: ReplicaId
    term: int
    index: int
    last_term: int


Message = (
    Append
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | Vote
    | VoteReply
    | TimeoutNow
    | Commit
    | SnapshotOffer
)
