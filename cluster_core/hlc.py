"""The hybrid logical clock: timestamps that follow wall time and never go back.

A timestamp is 64 bits: 48 of wall milliseconds, 16 of counter (Kulkarni et al., *Logical Physical
Clocks*, 2014, with both parts in one integer). The rules:

1. ``now()`` is above every timestamp that this clock gave or merged before. While the wall stands
   still or went back, it counts; the counter carries into the milliseconds.
2. Where the wall is ahead it is followed, however far it jumped: how far a peer's clock may be off
   is for the caller to judge before it merges.
3. Nothing above the *ceiling* is ever given, and the ceiling is durable before it is used. A
   restarted clock starts above the ceiling that it finds, so it never gives a timestamp twice and
   never one below what it promised: a promise is made only once ``is_covered`` says so.

The clock does no I/O. Its owner asks ``wanted_ceiling()`` at every flush, persists what it gets,
and says so with ``ceiling_persisted()``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

from cluster_core.errors import ClockCeiling, InvalidRequest
from cluster_core.ports import Clock
from cluster_core.types import Timestamp

__all__ = [
    "COUNTER_BITS",
    "TIMESTAMP_MAX",
    "HybridClock",
    "first_of_ms",
    "format_timestamp",
    "last_of_ms",
    "parse_timestamp",
    "rfc3339",
    "wall_of",
]

COUNTER_BITS: Final = 16
COUNTER_MAX: Final = (1 << COUNTER_BITS) - 1
WALL_MS_MAX: Final = (1 << 48) - 1
TIMESTAMP_MAX: Final = (1 << 64) - 1

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339_MS_MAX: Final = 253_402_300_799_999
"""The last millisecond of the year 9999, where RFC 3339 ends; our 48 bits go on to 10889."""

_OWN_FORM: Final = re.compile(r"([0-9]{1,15})\.([0-9]{5})")
_RFC3339_FORM: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})"
)


class HybridClock:
    """The clock of one cluster node. See the rules of this module.

    ``ceiling`` is the one that was persisted last, 0 on an empty disk: the clock then gives nothing
    until its first ceiling is durable. ``ahead_ms`` is how far ahead of its use a ceiling is set.
    """

    __slots__ = ("_ahead", "_ceiling", "_latest", "_wall_ms")

    def __init__(self, clock: Clock, *, ceiling: Timestamp = 0, ahead_ms: int = 3_000) -> None:
        assert 0 <= ceiling <= TIMESTAMP_MAX
        assert ahead_ms > 0
        self._wall_ms = clock.wall_ms
        self._ahead = ahead_ms << COUNTER_BITS
        self._ceiling = ceiling
        self._latest = ceiling  # an earlier life may have given everything up to it

    @property
    def latest(self) -> Timestamp:
        """The highest timestamp given or merged so far; ``now()`` will be above it."""
        return self._latest

    @property
    def ceiling(self) -> Timestamp:
        """The highest timestamp that may be given or promised: durable on this node's disk."""
        return self._ceiling

    def now(self) -> Timestamp:
        """A timestamp above all before it.

        Raises :class:`~cluster_core.errors.ClockCeiling`, and changes nothing, where that would
        pass the durable ceiling.
        """
        timestamp = max(self._latest + 1, self._wall())
        if timestamp > self._ceiling:
            raise ClockCeiling(
                "this node's clock waits for its ceiling to be on disk",
                ceiling=format_timestamp(self._ceiling),
            )
        self._latest = timestamp
        return timestamp

    def merge(self, timestamp: Timestamp) -> None:
        """Take note of a peer's timestamp, so that ``now()`` will be above it.

        It may lie above the ceiling: then nothing is given until a higher ceiling is durable, and
        whoever promises ``timestamp`` to others waits for :meth:`is_covered`.
        """
        assert 0 <= timestamp <= TIMESTAMP_MAX
        self._latest = max(self._latest, timestamp)

    def beyond(self, margin: int, lead: int) -> Timestamp:
        """A timestamp ``margin`` above all before it, and ``lead`` ahead of wall time: for a moment
        that others have to agree to. It is neither given nor merged."""
        return min(max(self._latest + margin, self._wall() + lead), TIMESTAMP_MAX)

    def ahead(self, timestamp: Timestamp) -> int:
        """How far ahead of wall time ``timestamp`` is; 0 when it is not."""
        return max(0, timestamp - self._wall())

    def is_covered(self, timestamp: Timestamp) -> bool:
        """Whether a restart of this node would still be above ``timestamp``."""
        return timestamp <= self._ceiling

    def wanted_ceiling(self) -> Timestamp | None:
        """The ceiling to persist next, or None while the durable one is far enough ahead.

        Wall time counts, used or not: so a node that was idle can write at once. Asking again
        while a persist is under way is harmless. A new clock whose wall knows no time yet wants
        none, and so gives nothing.
        """
        top = max(self._latest, self._wall())
        if not top:
            return None
        if top + self._ahead // 2 <= self._ceiling:
            return None
        wanted = min(top + self._ahead, TIMESTAMP_MAX)
        return wanted if wanted > self._ceiling else None

    def ceiling_persisted(self, ceiling: Timestamp) -> None:
        """``ceiling`` is on disk for good: it survives any crash from here on."""
        self._ceiling = max(self._ceiling, ceiling)

    def _wall(self) -> Timestamp:
        return min(max(self._wall_ms(), 0), WALL_MS_MAX) << COUNTER_BITS


def wall_of(timestamp: Timestamp) -> int:
    """The wall milliseconds of ``timestamp``."""
    return timestamp >> COUNTER_BITS


def first_of_ms(wall_ms: int) -> Timestamp:
    """The lowest timestamp of a millisecond."""
    return wall_ms << COUNTER_BITS


def last_of_ms(wall_ms: int) -> Timestamp:
    """The highest timestamp of a millisecond."""
    return wall_ms << COUNTER_BITS | COUNTER_MAX


def format_timestamp(timestamp: Timestamp) -> str:
    """``"<milliseconds, at least 13 digits>.<counter, 5 digits>"``.

    Until the year 2286, when milliseconds take a 14th digit, these texts sort as the numbers do.
    """
    return f"{timestamp >> COUNTER_BITS:013d}.{timestamp & COUNTER_MAX:05d}"


def rfc3339(timestamp: Timestamp) -> str:
    """The wall time of ``timestamp``, in UTC with milliseconds: ``2026-11-23T14:36:40.123Z``."""
    wall = _EPOCH + timedelta(milliseconds=min(wall_of(timestamp), _RFC3339_MS_MAX))
    return wall.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_timestamp(text: str, *, where: str = "timestamp") -> Timestamp:
    """The timestamp that ``text`` stands for: our own form, or an RFC 3339 time with an offset.

    An RFC 3339 time means the end of its millisecond, so a read as of it sees all that happened
    then. Raises :class:`~cluster_core.errors.InvalidRequest`, which names ``where``.
    """
    if own := _OWN_FORM.fullmatch(text):
        wall_ms, counter = int(own[1]), int(own[2])
        if wall_ms <= WALL_MS_MAX and counter <= COUNTER_MAX:
            return wall_ms << COUNTER_BITS | counter
    elif _RFC3339_FORM.fullmatch(text):
        wall_ms = _wall_ms_of_rfc3339(text)
        if 0 <= wall_ms <= WALL_MS_MAX:
            return last_of_ms(wall_ms)
    why = 'must be "<milliseconds>.<counter, 5 digits>" or an RFC 3339 time with an offset'
    raise InvalidRequest(f"{where} {why}", errors=[{"where": where, "why": why}])


def _wall_ms_of_rfc3339(text: str) -> int:
    """Milliseconds since the epoch, rounded down; -1 for a time that no calendar has."""
    try:
        return (datetime.fromisoformat(text.upper()) - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        return -1
