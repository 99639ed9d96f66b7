"""Why a replica does not do what its host asks of it."""

from __future__ import annotations

from enum import Enum

__all__ = ["NotLeading", "ProposalRefused", "Refusal"]


class Refusal(Enum):
    """Why a proposal was refused."""

    NOT_LEADER = "not the leader"
    TRANSFERRING = "leadership is being transferred"
    TOO_MANY_UNCOMMITTED = "too many bytes wait to be committed"

    # Of changes of the configuration only:
    TERM_TOO_YOUNG = "nothing of this term is committed yet"
    CHANGE_PENDING = "another change is under way"
    IMPOSSIBLE = "the change does not fit the configuration"
    NOT_CAUGHT_UP = "a learner that is to be promoted lacks too much of the log"
    QUORUM_LOST = "those that are left and answer are no quorum"


class ProposalRefused(Exception):
    """The proposal left nothing behind; it was certainly not and will not be executed."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason.value)
        self.reason = reason


class NotLeading(Exception):
    """Only a leader can start a read, or offer a snapshot."""
