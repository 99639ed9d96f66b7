"""The Raft core: one replica of one group as a pure state machine.

``core.py`` owns the transitions and opens with the rules; ``ready.py`` holds the contract between
it and its host; ``quorum.py``, ``progress.py``, ``log.py`` and ``read_only.py`` are the leaves.
"""

from __future__ import annotations

from cluster_core.raft.core import NOBODY, NotLeading, ProposalRefused, Raft, Refusal, Role
from cluster_core.raft.log import LogReader
from cluster_core.raft.quorum import Configuration, VoteResult
from cluster_core.raft.read_only import ReadState
from cluster_core.raft.ready import Ready

__all__ = [
    "NOBODY",
    "Configuration",
    "LogReader",
    "NotLeading",
    "ProposalRefused",
    "Raft",
    "ReadState",
    "Ready",
    "Refusal",
    "Role",
    "VoteResult",
]
