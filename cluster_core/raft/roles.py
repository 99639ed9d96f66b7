"""What a replica can be, and the id that is none."""

from __future__ import annotations

from enum import Enum
from typing import Final

from cluster_core.types import ReplicaId

__all__ = ["NOBODY", "Role"]

NOBODY: Final[ReplicaId] = 0
"""No leader known, no vote given, no transfer under way."""


class Role(Enum):
    """§5.1, and the rehearsal of D §9.6."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"
