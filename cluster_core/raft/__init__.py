"""The Raft core: one replica of one group as a pure state machine.

``core.py`` owns the transitions of term, role and vote, ``leadership.py`` what a leader does in its
term; both open with their rules. ``ready.py`` holds the contract between them and their host. The
others are leaves: ``log.py`` (what is in the log), ``outbox.py`` (what is to be handed out),
``membership.py`` and ``quorum.py`` (who decides), ``peers.py`` and ``progress.py`` (what a leader
knows of the others), ``read_only.py`` (rounds of reads), ``roles.py``, ``refusals.py``.
"""

from __future__ import annotations

from cluster_core.raft.core import Raft
from cluster_core.raft.log import LogReader
from cluster_core.raft.membership import Change, decode_configuration, encode_configuration
from cluster_core.raft.quorum import UNKNOWN, Configuration, VoteResult
from cluster_core.raft.read_only import ReadState
from cluster_core.raft.ready import Ready, SnapshotNeeded
from cluster_core.raft.refusals import NotLeading, ProposalRefused, Refusal
from cluster_core.raft.roles import NOBODY, Role

__all__ = [
    "NOBODY",
    "UNKNOWN",
    "Change",
    "Configuration",
    "LogReader",
    "NotLeading",
    "ProposalRefused",
    "Raft",
    "ReadState",
    "Ready",
    "Refusal",
    "Role",
    "SnapshotNeeded",
    "VoteResult",
    "decode_configuration",
    "encode_configuration",
]
