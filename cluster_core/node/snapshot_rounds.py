"""Snapshots of all partitions at one moment of the present, in one round of frames.

The reader chooses a timestamp T ahead of all clocks. Round 1 asks every node, itself too, to raise
its clock to T, to *hold* all answers that depend on anything above T (``replication/holds.py``),
and to say what it leads (``confirmed_leaders.py``), with the last indexes of these logs. A node
whose clock is above T already refuses, and the reader takes a higher T. Round 2 ends the holds;
each node answers whether its hold was on until then and nothing that it had said has changed. The
query runs meanwhile, and its answer waits for round 2: if one node says no, the whole begins anew.
No clock and no timer is trusted for any of it.

**Complete.** The leader L of each group is confirmed, by a quorum whose clocks are at T for good.
A leader of a later term needs a vote of that quorum, with which it takes T over; it writes above T.
L itself does from its answer on, and what it had proposed before ends at the index that it named.
So a replica that has applied that index has everything at or below T. And all that was acknowledged
before the question is below T: the leader that did so had its clock above it, and is L or one
before it.

**In real time.** Let p be the moment of the last answer of round 1 that counts.

1. *Whatever depends on a timestamp above T is answered after p.* Leaders give all strong answers;
   a read point that one gives says at which time to read. When it answered the reader, its clock
   was at most T, so all above T came later and is held until round 2. No other node can have led
   one of the groups before p, for after p a quorum was still in the same terms.
2. *Whatever is called after p sees all up to T, and writes above T.* Every leader's clock is past
   T, and each read point that it gives covers what was in its log when it answered
   (``Evaluation.read_floor``). Transactions too: one that commits at or below T has all its
   prepares and its staged record in these logs.

Suppose a cycle of dependencies and real time through this snapshot R. It leaves R to something
above T. From what is above T, or was called after p, a dependency leads to the like again
(timestamps grow along dependencies), and so does real time, by 1 and 2: it never comes back to R.
A snapshot above T needs no hold to return after p, for it raised every leader after R did. And
without snapshots there are no cycles: an operation of one partition, and a transaction, which locks
all that it reads, happen at a moment in real time, which is when they are committed.

Reads as of a past time see the order of timestamps, which is not that of real time for writers that
have no entity in common; they take the same round without holds.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from functools import partial
from typing import Final, NamedTuple

import msgspec

from cluster_core.errors import KotobaError, NoLeader, OutcomeUnknown, Unavailable
from cluster_core.hlc import COUNTER_BITS, HybridClock
from cluster_core.node.confirmed_leaders import ConfirmedLeaders, Here, Leader
from cluster_core.query.host import ReadPoint
from cluster_core.replication.holds import HOLD_S_MAX, Reader
from cluster_core.replication.mesh import Mesh
from cluster_core.replication.router import RETRY_DELAY_S, Router
from cluster_core.types import META_GROUP, GroupId, NodeId, Timestamp

__all__ = ["Snapshot", "SnapshotRounds"]

HOLD_S: Final = 0.05
"""How long nodes hold answers at first, at most; where that is too short it is doubled."""

PATIENCE_S: Final = 1.0
"""For an answer, and for a round that holds nothing."""

MARGIN: Final = 1 << COUNTER_BITS - 4
"""T is so much above what this node has seen: the timestamps that others give until they are
asked, at some thousands in a millisecond. A small part of one, so that many reads never drive the
cluster's clock away from wall time. Doubled by each refusal, but only up to ``LEAD_MAX`` ahead of
wall time: every question raises the clocks that the next one has to pass."""

LEAD_STEP: Final = 1 << COUNTER_BITS - 2
LEAD_MAX: Final = 500 << COUNTER_BITS
"""How far ahead of this node's wall time T may lie to be ahead of somebody's who is fast."""


class _Question(msgspec.Struct, array_like=True, frozen=True):
    """``hold_ms`` 0: a moment of the past, hold nothing. ``known``: the version of the peer's table
    that the reader has already."""

    number: int
    timestamp: Timestamp
    hold_ms: int
    known: int


class _Answer(msgspec.Struct, array_like=True, frozen=True):
    """``clock`` is above the question's timestamp when it was refused. ``indexes`` are the last of
    the logs led here, in the order of the table."""

    clock: Timestamp
    version: int = 0
    indexes: list[int] = []
    table: list[Here] | None = None


class _Release(msgspec.Struct, array_like=True, frozen=True):
    number: int
    version: int


_encode = msgspec.msgpack.Encoder().encode
_decode_question = msgspec.msgpack.Decoder(_Question).decode
_decode_answer = msgspec.msgpack.Decoder(_Answer).decode
_decode_release = msgspec.msgpack.Decoder(_Release).decode
_CEILING: Final = "the clock waits for its ceiling to be on disk"

YES: Final = b"\x01"
NO: Final = b"\x00"

_Verdict = Mapping[GroupId, Leader]
"""Of all groups."""


class Snapshot(NamedTuple):
    """``point`` may be read at once; what was read may be told only if ``verified`` gets True.
    None: there is nothing to verify."""

    point: ReadPoint
    verified: asyncio.Future[bool] | None = None


class _Round:
    """Round 1, until it is ``done``."""

    __slots__ = ("answers", "asked", "done", "late", "number", "timestamp")

    def __init__(self, number: int, timestamp: Timestamp) -> None:
        self.number = number
        self.timestamp = timestamp
        self.asked: set[NodeId] = set()
        """Who has not answered yet."""
        self.answers: dict[NodeId, _Answer] = {}
        self.late = False
        """It was given up, for its holds end about now."""
        self.done: asyncio.Future[_Verdict] = asyncio.get_running_loop().create_future()


class _Refused(Exception):
    """A clock is above T."""

    def __init__(self, clock: Timestamp) -> None:
        super().__init__(f"a clock is at {clock}")
        self.clock = clock


class _Reader(NamedTuple):
    snapshot: asyncio.Future[Snapshot]
    deadline: float


class SnapshotRounds:
    """Both sides of the rounds at one node. See the module."""

    def __init__(
        self, router: Router, leaders: ConfirmedLeaders, clock: HybridClock, partition_count: int
    ) -> None:
        self._router = router
        self._leaders = leaders
        self._mesh: Mesh = router.mesh
        self._host = router.host
        self._clock = clock
        self._groups = range(META_GROUP + 1, META_GROUP + 1 + partition_count)
        self._numbers = 0
        self._readers: list[_Reader] = []
        self._reading: asyncio.Task[None] | None = None
        self._refusals = 0
        """In a row."""
        self._lead = 0
        self._hold_s = HOLD_S
        self._mesh.handle_at_once("snapshot", self._serve_question)
        self._mesh.handle_at_once("release", self._serve_release)

    def on_peer_down(self, peer: NodeId) -> None:
        self._host.holds.end_all_of(peer)

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    # The reader.

    async def now(self, deadline: float) -> Snapshot:
        """A snapshot of the present, shared with all who wait for one when its round begins.

        One round at a time: those who come meanwhile share the next.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Snapshot] = loop.create_future()
        self._readers.append(_Reader(future, deadline))
        if self._reading is None:
            self._reading = loop.create_task(self._read())
        try:
            async with asyncio.timeout_at(deadline):
                return await future
        except TimeoutError:
            raise OutcomeUnknown("leadership was not confirmed in time") from None

    async def at(self, timestamp: Timestamp, deadline: float) -> ReadPoint:
        """A moment that the caller chose."""
        try:
            async with asyncio.timeout_at(deadline):
                return self._point(*await self._ask(timestamp, 0.0))
        except TimeoutError:
            raise OutcomeUnknown("leadership was not confirmed in time") from None

    def too_slow(self) -> None:
        """Holds ended too early."""
        self._hold_s = min(2 * self._hold_s, HOLD_S_MAX)

    async def _read(self) -> None:
        """Rounds, while there are readers."""
        try:
            while self._readers:
                await self._serve_readers(len(self._readers))
        finally:
            self._reading = None
            self._fail(Unavailable(f"{self._router.node_id} is stopping"), math.inf)

    async def _serve_readers(self, count: int) -> None:
        """One round for the first ``count`` readers. Where it fails, they go on waiting."""
        try:
            snapshot = await self._snapshot()
        except _Refused as refused:
            self._take_higher(refused.clock)
            self._readers = [one for one in self._readers if not one.snapshot.done()]
        except NoLeader as error:
            self._fail(error, asyncio.get_running_loop().time() + RETRY_DELAY_S)
            await asyncio.sleep(RETRY_DELAY_S)
        except KotobaError as error:
            self._fail(error, math.inf)
        else:
            served, self._readers = self._readers[:count], self._readers[count:]
            for reader in served:
                if not reader.snapshot.done():
                    reader.snapshot.set_result(snapshot)

    def _fail(self, error: KotobaError, until: float) -> None:
        """Readers that cannot wait longer than ``until`` get ``error``."""
        waiting = [one for one in self._readers if not one.snapshot.done()]
        self._readers = [one for one in waiting if one.deadline > until]
        for reader in waiting:
            if reader.deadline <= until:
                reader.snapshot.set_exception(error)

    async def _snapshot(self) -> Snapshot:
        timestamp = self._clock.beyond(self._margin(), self._lead)
        round_, verdict = await self._ask(timestamp, self._hold_s)
        self._refusals = 0
        self._lead -= self._lead >> 3
        self._hold_s = max(HOLD_S, 0.9 * self._hold_s)
        return Snapshot(self._point(round_, verdict), self._release(round_))

    def _margin(self) -> int:
        room = LEAD_MAX - self._clock.ahead(self._clock.latest)
        return max(MARGIN, min(MARGIN << min(self._refusals, COUNTER_BITS), room))

    def _take_higher(self, clock: Timestamp) -> None:
        self._refusals += 1
        ahead = self._clock.ahead(clock)
        self._lead = min(ahead + (LEAD_STEP << min(self._refusals, 10)), LEAD_MAX)
        self._clock.merge(clock)

    # Round 1.

    async def _ask(self, timestamp: Timestamp, hold_s: float) -> tuple[_Round, _Verdict]:
        """Raises NoLeader or _Refused; then nothing is held any more."""
        if self._host.is_closed:
            raise Unavailable(f"{self._router.node_id} is stopping")
        self._numbers += 1
        round_ = _Round(self._numbers, timestamp)
        # The frames are made before our own clock is raised: one that carries T to a node ahead of
        # the question would let it write above T before it holds anything.
        for peer in sorted(self._mesh.peers):
            known = self._leaders.known_version(peer)
            question = _Question(round_.number, timestamp, int(hold_s * 1000), known)
            answer = self._mesh.ask(peer, "snapshot", _encode(question), timeout=PATIENCE_S)
            round_.asked.add(peer)
            answer.add_done_callback(partial(self._answered, round_, peer))
        own = self._answer_here((self._router.node_id, round_.number), timestamp, hold_s)
        self._take(round_, self._router.node_id, own)
        patience = asyncio.get_running_loop().call_later(hold_s or PATIENCE_S, _give_up, round_)
        try:
            return round_, await round_.done
        except BaseException:
            self._end(round_)
            raise
        finally:
            patience.cancel()

    def _answered(self, round_: _Round, peer: NodeId, answer: asyncio.Future[bytes]) -> None:
        failed = answer.cancelled() or answer.exception() is not None
        if round_.done.done():
            if round_.late and not failed:
                self.too_slow()
            return
        round_.asked.discard(peer)
        if failed:
            self._take(round_, peer, None)
            return
        found = _decode_answer(answer.result())
        self._leaders.learn(peer, found.version, found.table)
        self._take(round_, peer, found)

    def _take(self, round_: _Round, node: NodeId, answer: _Answer | None) -> None:
        """``node`` has answered, or has failed to."""
        if answer is not None:
            if answer.clock > round_.timestamp:
                round_.done.set_exception(_Refused(answer.clock))
                return
            round_.answers[node] = answer
        verdict = self._verdict(round_.answers)
        if verdict is not None:
            round_.done.set_result(verdict)
        elif not round_.asked:
            round_.done.set_exception(NoLeader("not every partition has a leader"))

    def _verdict(self, answers: Mapping[NodeId, _Answer]) -> _Verdict | None:
        """Who leads each group, if those who answered suffice to say so."""
        versions = {node: answer.version for node, answer in answers.items()}
        confirmed = self._leaders.confirmed(versions)
        return confirmed if len(confirmed) == len(self._groups) else None

    def _point(self, round_: _Round, verdict: _Verdict) -> ReadPoint:
        """With the indexes of all: also a replica that has applied its own by now may be replaced
        by one that has not, before the query comes to it."""
        replicas = self._host.replicas
        answers = {node: answer.indexes for node, answer in round_.answers.items()}
        applied: dict[int, int] = {}
        for group, (node, place) in verdict.items():
            index = answers[node][place]
            if group not in replicas:
                self._router.learn(group, node)
            applied[group - 1] = index
        return ReadPoint(round_.timestamp, applied)

    # Round 2.

    def _release(self, round_: _Round) -> asyncio.Future[bool]:
        """Gets whether all held until now, and all is as they said."""
        verified: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiting = set(round_.answers) - {self._router.node_id}

        def answered(peer: NodeId, answer: asyncio.Future[bytes]) -> None:
            waiting.discard(peer)
            failed = answer.cancelled() or answer.exception() is not None
            if verified.done():
                return
            if failed or answer.result() != YES:
                verified.set_result(False)
            elif not waiting:
                verified.set_result(True)

        for peer in sorted(waiting):
            body = _encode(_Release(round_.number, round_.answers[peer].version))
            answer = self._mesh.ask(peer, "release", body, timeout=PATIENCE_S)
            answer.add_done_callback(partial(answered, peer))
        for peer in sorted(round_.asked):
            self._mesh.tell(peer, "release", _encode(_Release(round_.number, 0)))
        node = self._router.node_id
        own = round_.answers.get(node)
        stood = own is None or self._release_here((node, round_.number), own.version)
        if not verified.done() and (not stood or not waiting):
            verified.set_result(stood)
        return verified

    def _end(self, round_: _Round) -> None:
        """Of a round that failed."""
        self._host.holds.end((self._router.node_id, round_.number))
        for peer in sorted({*round_.answers, *round_.asked} - {self._router.node_id}):
            self._mesh.tell(peer, "release", _encode(_Release(round_.number, 0)))

    # Whoever is asked.

    def _serve_question(self, peer: NodeId, request_id: int, body: bytes) -> None:
        question = _decode_question(body)
        answer = self._answer_here(
            (peer, question.number), question.timestamp, question.hold_ms / 1000
        )
        if answer is None:
            self._mesh.reply_error(peer, request_id, NoLeader(_CEILING))
            return
        table = self._leaders.table_unless(question.known)
        if table is not None and answer.clock == question.timestamp:
            answer = msgspec.structs.replace(answer, table=table)
        self._mesh.reply_at_once(peer, request_id, _encode(answer))

    def _serve_release(self, peer: NodeId, request_id: int, body: bytes) -> None:
        release = _decode_release(body)
        stood = self._release_here((peer, release.number), release.version)
        self._mesh.reply_at_once(peer, request_id, YES if stood else NO)

    def _answer_here(self, reader: Reader, timestamp: Timestamp, hold_s: float) -> _Answer | None:
        """In one turn. None when a restart of this node would forget the promise."""
        holds = self._host.holds
        if not hold_s:
            self._clock.merge(timestamp)
        elif not holds.begin(reader, timestamp, hold_s):
            return _Answer(self._clock.latest)
        if not self._clock.is_covered(timestamp):
            holds.end(reader)
            return None
        version = self._leaders.look()
        indexes = []
        for replica in self._leaders.led:
            evaluation, index = replica.evaluation, replica.raft.last_index
            assert evaluation is not None, "its end is seen at the look"
            indexes.append(index)
            evaluation.read_floor = index
            evaluation.awaited = replica.applied < index
            if replica.raft.commit_untold:
                # Readers elsewhere wait to hear of it.
                self._host.tell_commit(replica)
        return _Answer(timestamp, version, indexes)

    def _release_here(self, reader: Reader, version: int) -> bool:
        stood = self._host.holds.end(reader)
        return stood and version == self._leaders.look()


def _give_up(round_: _Round) -> None:
    if not round_.done.done():
        round_.late = True
        round_.done.set_exception(NoLeader("not every partition's leader has answered"))
