"""How far this node's wall clock may be believed.

Timestamps follow wall clocks, and every node merges its peers'. So one clock that is far ahead
would take the timestamps of the whole cluster along, for good. Against that each node compares its
wall clock with those of its peers, and believes it only while it is no more than
``clock_offset_ms_max`` ahead of their median:

- Measured is a lower bound: a peer reads its clock after it was asked, so ours was ahead of it by
  at least our reading at asking minus its reading, however long the answer took. A slow network
  makes nobody look wrong.
- All peers are asked in one round, with one reading of our clock, and judged when they have
  answered or are late. Of an even number the lower median counts: with one of two peers to agree,
  we do.
- A round in which no majority of the nodes was heard, this one included, changes nothing: until the
  first that does a clock gives no wall time at all (:class:`BelievedWall`).
- What was believed goes on with the time of the event loop, which does not jump, until the next
  comparison; so a clock that is set an hour ahead is not followed, not even until then.

A node whose clock is too far ahead leads nothing: it hands over what it leads, peers send it no
leaderships, and it is not ready. It votes and replicates as any other, for its part of a majority
may be needed; its timestamps follow those of the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from cluster_core.errors import KotobaError
from cluster_core.ports import Clock
from cluster_core.replication.mesh import Mesh
from cluster_core.types import NodeId

__all__ = ["BelievedWall", "ClockWatch"]

log = logging.getLogger("kotoba.clock")

ROUND_EVERY_S: Final = 1.0
ANSWER_TIMEOUT_S: Final = 1.0


class _Asked(msgspec.Struct, array_like=True, frozen=True):
    """``ahead_ms``: how far the one who asks is too far ahead; 0 when it is not."""

    ahead_ms: int


class _Told(msgspec.Struct, array_like=True, frozen=True):
    wall_ms: int


_encode = msgspec.msgpack.Encoder().encode
_decode_asked = msgspec.msgpack.Decoder(_Asked).decode
_decode_told = msgspec.msgpack.Decoder(_Told).decode


class Reading(NamedTuple):
    """A wall clock and a steady one, read together."""

    wall_ms: int
    steady_s: float


class BelievedWall:
    """The port ``Clock`` of a node's timestamps: a wall clock as far as it is believed.

    0 until :meth:`believe`.
    """

    def __init__(self, wall: Clock) -> None:
        self._wall = wall
        self.steady_s = wall.steady_s
        self._believed: Reading | None = None

    def read(self) -> Reading:
        """What the clocks say, believed or not."""
        return Reading(self._wall.wall_ms(), self.steady_s())

    @property
    def is_believed(self) -> bool:
        return self._believed is not None

    def believe(self, reading: Reading) -> None:
        """The wall clock was right then."""
        self._believed = reading

    def wall_ms(self) -> int:
        if self._believed is None:
            return 0
        return int(self._believed.wall_ms + (self.steady_s() - self._believed.steady_s) * 1000)


class ClockWatch:
    """See the module. ``size`` is the number of nodes of the cluster; ``on_believed`` is called
    when the clock gives wall time for the first time."""

    def __init__(
        self,
        wall: BelievedWall,
        mesh: Mesh,
        *,
        size: int,
        offset_ms_max: int,
        on_believed: Callable[[], None],
    ) -> None:
        self._wall = wall
        self._mesh = mesh
        self._size = size
        self._offset_ms_max = offset_ms_max
        self._on_believed = on_believed
        self._peers: dict[NodeId, int] = {}
        """Peers whose clocks are too far ahead, and by how much, as they say."""
        self._own_ahead_ms = 0
        self._next_round = 0.0
        self._rounds: set[asyncio.Task[None]] = set()
        self._judged = 0.0
        """When the round began by which the clock was judged last, in the steady clock's time."""
        mesh.handle("clock", self._serve)
        self._judge(wall.read(), [])  # a node without peers has nobody to ask

    async def close(self) -> None:
        for round_ in self._rounds:
            round_.cancel()
        await asyncio.gather(*self._rounds, return_exceptions=True)

    @property
    def own_ahead_ms(self) -> int:
        """How far this node's clock is too far ahead; 0 when it is not."""
        return self._own_ahead_ms

    def ahead_ms(self) -> dict[NodeId, int]:
        """The nodes that should lead nothing, and how far their clocks are ahead."""
        own = {self._mesh.node_id: self._own_ahead_ms} if self._own_ahead_ms else {}
        return own | {peer: self._peers[peer] for peer in sorted(self._peers)}

    def look(self, now: float) -> None:
        """Ask the peers, now and then, and at every look until the clock is believed; ``now`` is
        the event loop's time."""
        if now >= self._next_round or not self._wall.is_believed:
            self._next_round = now + ROUND_EVERY_S
            self._begin_round()

    def on_peer_up(self, peer: NodeId) -> None:
        """Until the clock is believed, each peer that comes may be the one that was missing."""
        if not self._wall.is_believed:
            self._begin_round()

    def on_peer_down(self, peer: NodeId) -> None:
        """What it said is of no use any more."""
        self._peers.pop(peer, None)

    def _begin_round(self) -> None:
        """Also while another is under way: its answers may be lost."""
        round_ = asyncio.get_running_loop().create_task(self._ask_all())
        self._rounds.add(round_)
        round_.add_done_callback(self._rounds.discard)

    async def _ask_all(self) -> None:
        reading = self._wall.read()
        asked = [self._ask(peer, reading) for peer in sorted(self._mesh.peers)]
        offsets = await asyncio.gather(*asked)
        self._judge(reading, [offset for offset in offsets if offset is not None])

    async def _ask(self, peer: NodeId, reading: Reading) -> int | None:
        """By how much, at least, our clock is ahead of that of ``peer``."""
        body = _encode(_Asked(self._own_ahead_ms))
        try:
            answer = await self._mesh.request(peer, "clock", body, timeout=ANSWER_TIMEOUT_S)
        except KotobaError:
            return None
        return reading.wall_ms - _decode_told(answer).wall_ms

    async def _serve(self, peer: NodeId, body: bytes) -> bytes:
        ahead_ms = _decode_asked(body).ahead_ms
        if ahead_ms:
            self._peers[peer] = ahead_ms
        else:
            self._peers.pop(peer, None)
        return _encode(_Told(self._wall.read().wall_ms))

    def _judge(self, reading: Reading, offsets: list[int]) -> None:
        """Believe what the clock said, or not, by what the peers have said."""
        if 2 * (len(offsets) + 1) <= self._size or reading.steady_s < self._judged:
            return
        self._judged = reading.steady_s
        ahead_ms = sorted(offsets)[(len(offsets) - 1) // 2] if offsets else 0
        if ahead_ms > self._offset_ms_max:
            self._note(ahead_ms)
            return
        self._note(0)
        first = not self._wall.is_believed
        self._wall.believe(reading)
        if first:
            self._on_believed()

    def _note(self, ahead_ms: int) -> None:
        before, self._own_ahead_ms = self._own_ahead_ms, ahead_ms
        if bool(before) == bool(ahead_ms):
            return
        if ahead_ms:
            log.warning(
                "the clock of this node is %.1f s ahead of its peers': it leads nothing until it "
                "is set right",
                ahead_ms / 1000,
            )
        else:
            log.info("the clock of this node agrees with its peers' again")
        for peer in sorted(self._mesh.peers):
            self._mesh.tell(peer, "clock", _encode(_Asked(ahead_ms)))
