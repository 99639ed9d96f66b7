"""Moments: when a strong read of one partition may read, asked for in rounds that all reads share.

A node that reads asks all nodes in one round which groups they lead, and gives the groups that it
wants to read. A leader answers with the *moment* of each: the log index that it has applied, and
the time of that. The moment counts once the leader is confirmed (``confirmed_leaders.py``), which
takes as many answers as an election would: all that was acknowledged before the round began is in
it. Any replica that has applied the index serves the read, at the time of the moment: so nothing is
told that the leader would hold for a snapshot (``replication/holds.py``).

Readers who come while a round is under way share the next one, for leaders have to be confirmed
after a read began. So the more reads there are, the less each of them costs: one frame to each node
and one back, for all partitions and however many readers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec

from cluster_core.errors import KotobaError, NoLeader, Unavailable
from cluster_core.node.confirmed_leaders import ConfirmedLeaders, Here
from cluster_core.replication.mesh import Mesh
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import Router
from cluster_core.types import GroupId, NodeId, Timestamp

__all__ = ["Moment", "Moments"]

PATIENCE_S: Final = 1.0
"""For an answer. Who waits for a leader that stands still cannot have been told sooner."""

OVERTAKE_S: Final = 0.005
"""A round that takes longer does not hold the next one up: somebody may stand still whom most
readers do not need."""

FLOOR_PATIENCE_S: Final = 0.005
"""How long a leader's answer waits for what a snapshot was promised. Seldom at all: for what is in
flight to be committed."""


class Moment(msgspec.Struct, array_like=True, frozen=True):
    """A read of one partition: at ``timestamp``, where ``index`` is applied."""

    index: int
    timestamp: Timestamp


class _Question(msgspec.Struct, array_like=True, frozen=True):
    """``known``: the version of the peer's table that the reader has already."""

    known: int
    groups: list[GroupId]


class _Answer(msgspec.Struct, array_like=True, frozen=True):
    """``moments``: of those groups that are led here and may be read now."""

    version: int
    moments: dict[GroupId, Moment]
    table: list[Here] | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode_question = msgspec.msgpack.Decoder(_Question).decode
_decode_answer = msgspec.msgpack.Decoder(_Answer).decode

_Readers = dict[GroupId, list[asyncio.Future[Moment]]]


class _Round:
    """``readers`` are those who have no moment yet, ``asked`` the nodes that have not answered."""

    __slots__ = ("answers", "asked", "readers")

    def __init__(self, readers: _Readers) -> None:
        self.readers = readers
        self.asked: set[NodeId] = set()
        self.answers: dict[NodeId, _Answer] = {}


class Moments:
    """Both sides of the rounds at one node. See the module."""

    def __init__(self, router: Router, leaders: ConfirmedLeaders) -> None:
        self._router = router
        self._host = router.host
        self._mesh: Mesh = router.mesh
        self._leaders = leaders
        self._waiting: _Readers = {}
        """For the next round."""
        self._latest: _Round | None = None
        """The round under way that holds the next one up."""
        self._due = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._mesh.handle_at_once("moments", self._serve)

    async def of(self, group: GroupId) -> Moment:
        """The present of ``group``. Raises NoLeader, or Unavailable when this node stops."""
        if self._host.is_closed:
            raise Unavailable(f"{self._router.node_id} is stopping")
        moment: asyncio.Future[Moment] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(group, []).append(moment)
        if self._latest is None and not self._due:
            self._due = True
            self._mesh.pace.soon(self._begin)
        return await moment

    async def close(self) -> None:
        _fail(self._waiting, Unavailable(f"{self._router.node_id} is stopping"))
        for task in sorted(self._tasks, key=lambda task: task.get_name()):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # The reader.

    def _begin(self) -> None:
        self._due = False
        readers, self._waiting = self._waiting, {}
        round_ = self._latest = _Round(readers)
        groups = sorted(readers)
        for peer in sorted(self._mesh.peers):
            question = _Question(self._leaders.known_version(peer), groups)
            answer = self._mesh.ask(peer, "moments", _encode(question), timeout=PATIENCE_S)
            round_.asked.add(peer)
            answer.add_done_callback(partial(self._answered, round_, peer))
        round_.asked.add(self._router.node_id)
        asyncio.get_running_loop().call_later(OVERTAKE_S, self._next, round_)
        self._answer(groups, partial(self._take, round_, self._router.node_id))

    def _answered(self, round_: _Round, peer: NodeId, answer: asyncio.Future[bytes]) -> None:
        failed = answer.cancelled() or answer.exception() is not None
        self._take(round_, peer, None if failed else _decode_answer(answer.result()))

    def _take(self, round_: _Round, node: NodeId, answer: _Answer | None) -> None:
        """``node`` has answered, or has failed to."""
        round_.asked.discard(node)
        if answer is not None:
            self._leaders.learn(node, answer.version, answer.table)
            round_.answers[node] = answer
        self._settle(round_)

    def _settle(self, round_: _Round) -> None:
        """Give readers their moments, as far as the answers allow."""
        if not round_.readers:
            return
        versions = {node: answer.version for node, answer in round_.answers.items()}
        confirmed = self._leaders.confirmed(versions)
        for group in list(round_.readers):
            leader = confirmed.get(group)
            if leader is None:
                continue
            moment = round_.answers[leader.node].moments.get(group)
            if moment is None:
                continue
            if group not in self._host.replicas:
                self._router.learn(group, leader.node)
            for reader in round_.readers.pop(group):
                if not reader.done():
                    reader.set_result(moment)
        if not round_.asked:
            _fail(round_.readers, NoLeader("not every partition's leader has answered"))
        if not round_.readers:
            self._next(round_)

    def _next(self, round_: _Round) -> None:
        """``round_`` does not hold up the next one any more."""
        if self._latest is not round_:
            return
        self._latest = None
        if self._waiting:
            self._due = True
            self._mesh.pace.soon(self._begin)

    # Whoever is asked.

    def _serve(self, peer: NodeId, request_id: int, body: bytes) -> None:
        question = _decode_question(body)

        def reply(answer: _Answer) -> None:
            table = self._leaders.table_unless(question.known)
            if table is not None:
                answer = msgspec.structs.replace(answer, table=table)
            self._mesh.reply_at_once(peer, request_id, _encode(answer))
            for group in answer.moments:
                replica = self._host.replicas.get(group)
                if replica is not None and replica.raft.commit_untold:
                    # The reader's own replica may wait to hear of it.
                    self._host.tell_commit(replica)

        self._answer(question.groups, reply)

    def _answer(self, groups: list[GroupId], give: Callable[[_Answer], None]) -> None:
        """``give`` the answer, at once where nothing has to be waited for."""
        led = self._led(groups)
        if all(replica.has_reached_read_floor for replica in led):
            answer = self._answer_of(led)
            if self._host.holds.lowest >= _newest(answer):
                give(answer)
                return
        task = asyncio.get_running_loop().create_task(self._answer_later(groups, give))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_later(self, groups: list[GroupId], give: Callable[[_Answer], None]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(FLOOR_PATIENCE_S):
                floors = [replica.read_floor_reached() for replica in self._led(groups)]
                await asyncio.gather(*floors, return_exceptions=True)
        answer = self._answer_of(
            [replica for replica in self._led(groups) if replica.has_reached_read_floor]
        )
        await self._host.holds.passed(_newest(answer))
        give(answer)

    def _led(self, groups: list[GroupId]) -> list[Replica]:
        """The replicas of ``groups`` that lead here and may evaluate."""
        known = [self._host.replicas.get(group) for group in groups]
        return [
            replica
            for replica in known
            if replica is not None
            and replica.is_leader
            and replica.evaluation is not None
            and replica.failed is None
        ]

    def _answer_of(self, led: list[Replica]) -> _Answer:
        """In one turn."""
        moments = {
            replica.group: Moment(replica.applied, replica.applied_timestamp) for replica in led
        }
        return _Answer(self._leaders.look(), moments)


def _fail(readers: _Readers, error: KotobaError) -> None:
    for waiting in readers.values():
        for reader in waiting:
            if not reader.done():
                reader.set_exception(error)
    readers.clear()


def _newest(answer: _Answer) -> Timestamp:
    return max((moment.timestamp for moment in answer.moments.values()), default=0)
