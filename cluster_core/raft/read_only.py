"""ReadIndex: linearizable reads without a log entry (dissertation §6.4).

1. A read notes the commit index of a leader that has committed an entry of its own term.
2. The leader then makes sure that no newer leader had been elected at that moment: a quorum has to
   answer a heartbeat that was sent after it.
3. The read may be served from any state machine that has applied up to the noted index.

All reads that wait when a round opens share it. Rounds are numbered, a heartbeat carries the
number of the latest, and who answers round *n* was asked later than in any round before *n*: so the
quorum of a round confirms all earlier ones, and lost heartbeats need no memory.
"""

from __future__ import annotations

from collections import deque

import msgspec

__all__ = ["ReadRounds", "ReadState"]


class ReadState(msgspec.Struct, frozen=True):
    """The read ``context`` may be served once ``index`` is applied."""

    context: int
    index: int


class _Round(msgspec.Struct, frozen=True):
    number: int
    index: int
    contexts: list[int]


class ReadRounds:
    """The reads of one leader that are not confirmed yet.

    Bounded by the caller, who knows how many reads it let in.
    """

    __slots__ = ("_rounds", "_waiting", "latest")

    def __init__(self) -> None:
        self.latest = 0
        """Number of the round opened last. Never reused, so answers of old terms are harmless."""
        self._waiting: list[int] = []
        self._rounds: deque[_Round] = deque()

    @property
    def waiting(self) -> bool:
        """Whether reads wait for a round to open."""
        return bool(self._waiting)

    @property
    def unconfirmed(self) -> bool:
        """Whether a round waits for its quorum."""
        return bool(self._rounds)

    def add(self, context: int) -> None:
        self._waiting.append(context)

    def open(self, index: int) -> int:
        """Open a round for every read that waits, at the commit ``index``; its number."""
        assert self._waiting
        assert not self._rounds or self._rounds[-1].index <= index
        self.latest += 1
        self._rounds.append(_Round(self.latest, index, self._waiting))
        self._waiting = []
        return self.latest

    def confirm(self, number: int) -> list[ReadState]:
        """A quorum answered round ``number``: the reads that may be served now."""
        states: list[ReadState] = []
        while self._rounds and self._rounds[0].number <= number:
            done = self._rounds.popleft()
            states += [ReadState(context, done.index) for context in done.contexts]
        return states

    def abandon(self) -> list[int]:
        """Leadership is lost: the contexts of all reads that were not confirmed."""
        contexts = [context for pending in self._rounds for context in pending.contexts]
        contexts += self._waiting
        self._rounds.clear()
        self._waiting = []
        return contexts
