"""Frames between the nodes: Raft messages one way, requests and their answers both ways.

Every frame carries its sender's clock. A receiver raises its own clock to it before it looks at the
rest, so a round of heartbeats that is confirmed was also a promise of a majority never to lead with
an earlier clock (rule: a leader serves T only if a majority acknowledged a clock >= T).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from cluster_core.errors import (
    InternalError,
    KotobaError,
    NoLeader,
    OutcomeUnknown,
    error_from_fields,
)
from cluster_core.hlc import HybridClock
from cluster_core.ports import Transport
from cluster_core.replication.pace import Pace
from cluster_core.types import NodeId
from cluster_core.wire.messages import Message

__all__ = ["Mesh", "PromptHandler", "RequestHandler"]

log = logging.getLogger("kotoba.mesh")

RAFT: Final = 1
REQUEST: Final = 2
REPLY: Final = 3
ERROR: Final = 4
CANCEL: Final = 5
"""Nobody waits for the answer to the request of this id any more."""

NO_ANSWER: Final = 0
"""The id of a request that asks for no answer."""

RAFT_FRAME_BYTES: Final = 4 << 20
"""Raft messages that are more than this together travel in several frames. A node that comes back
may lack a megabyte in each group: a frame of all that is one that no stream would take."""

EXPIRE_EVERY_S: Final = 0.02
"""How much later than asked for a request may time out."""


class Frame(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """``id`` tells which request an answer belongs to; Raft messages have none."""

    kind: int
    id: int
    clock: int
    body: msgspec.Raw


class Request(msgspec.Struct, array_like=True, frozen=True, gc=False):
    method: str
    body: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode_frame = msgspec.msgpack.Decoder(Frame).decode
_decode_messages = msgspec.msgpack.Decoder(list[Message]).decode
_decode_request = msgspec.msgpack.Decoder(Request).decode
_decode_bytes = msgspec.msgpack.Decoder(bytes).decode
_decode_fields = msgspec.msgpack.Decoder(dict[str, Any]).decode

RequestHandler = Callable[[NodeId, bytes], Awaitable[bytes]]
PromptHandler = Callable[[NodeId, int, bytes], None]
"""Gets the request's id too, and answers it with ``reply`` or ``reply_error``."""


class Mesh:
    """This node's side of the peer mesh, above a :class:`~cluster_core.ports.Transport`.

    ``on_messages(peer, messages)`` gets the Raft messages. A request is answered by the handler
    registered for its method; what the handler raises travels back as that error. A request whose
    peer is lost, or whose answer is late, fails as *unknown*: it may have been executed.
    ``first_request``: no lower number is given to a request, for an answer to it may be under way.
    """

    def __init__(
        self,
        node_id: NodeId,
        clock: HybridClock,
        transport: Transport,
        pace: Pace,
        on_messages: Callable[[NodeId, list[Message]], None],
        first_request: int = 0,
    ) -> None:
        self.node_id = node_id
        self._clock = clock
        self._transport = transport
        self.pace = pace
        self._gathered: dict[NodeId, list[bytes]] = {}
        """Requests and answers that wait for others to leave with them."""
        self._on_messages = on_messages
        self._handlers: dict[str, RequestHandler] = {}
        self._cancellable: set[str] = set()
        self._serving: dict[tuple[NodeId, int], asyncio.Task[None]] = {}
        """Requests under way here that may be cancelled."""
        self._prompt: dict[str, PromptHandler] = {}
        self.last_request = first_request
        self._pending: dict[int, tuple[NodeId, asyncio.Future[bytes], float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._up: set[NodeId] = set()

    def handle(self, method: str, handler: RequestHandler, *, cancellable: bool = False) -> None:
        """``cancellable``: the handler may be given up half-way, when nobody waits for it."""
        assert method not in self._handlers, method
        self._handlers[method] = handler
        if cancellable:
            self._cancellable.add(method)

    def handle_at_once(self, method: str, handler: PromptHandler) -> None:
        """``handler`` is called before any later frame is looked at, and without a task."""
        assert method not in self._prompt, method
        self._prompt[method] = handler

    def send_messages(self, peer: NodeId, messages: list[Message]) -> None:
        """Raft messages leave at once, and with them all that was gathered for ``peer``."""
        frame = _encode((RAFT, 0, self._clock.latest, messages))
        if len(frame) > RAFT_FRAME_BYTES and len(messages) > 1:
            half = len(messages) // 2
            self.send_messages(peer, messages[:half])
            self.send_messages(peer, messages[half:])
            return
        self._send_now(peer, frame)

    async def request(self, peer: NodeId, method: str, body: bytes, *, timeout: float) -> bytes:
        """Ask ``peer``. Raises the error it answers with, NoLeader when there is no connection (so
        nothing was sent), or OutcomeUnknown."""
        if peer not in self._up:
            raise NoLeader(f"there is no connection to {peer}")
        request_id, answer = self.expect(peer, timeout=timeout)
        self._send(peer, REQUEST, request_id, Request(method, body))
        try:
            return await answer
        except asyncio.CancelledError:
            if method in self._cancellable and peer in self._up:
                self._send(peer, CANCEL, request_id, None)
            raise
        finally:
            self._pending.pop(request_id, None)

    def ask(
        self, peer: NodeId, method: str, body: bytes, *, timeout: float
    ) -> asyncio.Future[bytes]:
        """As :meth:`request`, without a coroutine, and without waiting for others to leave with."""
        request_id, answer = self.expect(peer, timeout=timeout)
        if peer in self._up:
            clock = self._clock.latest
            self._send_now(peer, _encode((REQUEST, request_id, clock, Request(method, body))))
        else:
            self.forget(request_id)
            answer.set_exception(NoLeader(f"there is no connection to {peer}"))
        return answer

    def tell(self, peer: NodeId, method: str, body: bytes) -> None:
        """A request that asks for no answer, and may be lost."""
        if peer in self._up:
            self._send(peer, REQUEST, NO_ANSWER, Request(method, body))

    def expect(self, peer: NodeId, *, timeout: float) -> tuple[int, asyncio.Future[bytes]]:
        """A number that ``peer`` may answer once, and the future of that answer."""
        self.last_request += 1
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        self._pending[self.last_request] = (peer, future, loop.time() + timeout)
        return self.last_request, future

    async def expire(self) -> None:
        """Give up on late answers, until cancelled. One timer for all requests: one each would cost
        a tenth of what a forwarded write costs in all."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(EXPIRE_EVERY_S)
            now = loop.time()
            late = [key for key, (_, _, deadline) in self._pending.items() if deadline <= now]
            for key in late:
                _, future, _ = self._pending.pop(key)
                if not future.done():
                    future.set_exception(OutcomeUnknown("no answer in time"))

    def forget(self, request_id: int) -> None:
        """Nobody waits for this answer any more."""
        self._pending.pop(request_id, None)

    def reply(self, peer: NodeId, request_id: int, body: bytes) -> None:
        if request_id == NO_ANSWER:
            return
        self._send(peer, REPLY, request_id, body)

    def reply_at_once(self, peer: NodeId, request_id: int, body: bytes) -> None:
        """As :meth:`reply`, without waiting for others to leave with."""
        if request_id != NO_ANSWER:
            self._send_now(peer, _encode((REPLY, request_id, self._clock.latest, body)))

    def reply_error(self, peer: NodeId, request_id: int, error: KotobaError) -> None:
        if request_id == NO_ANSWER:
            return
        self._send(peer, ERROR, request_id, error.fields())

    def on_frames(self, peer: NodeId, frames: list[bytes]) -> None:
        """Raft messages of a peer that is down are dropped: what is left of a broken stream would
        make a leader of one whose groups have just begun to elect another."""
        merge = self._clock.merge
        for data in frames:
            frame = _decode_frame(data)
            merge(frame.clock)
            if frame.kind == RAFT:
                if peer in self._up:
                    self._on_messages(peer, _decode_messages(frame.body))
            elif frame.kind == REQUEST:
                self._start(peer, frame.id, _decode_request(frame.body))
            elif frame.kind == CANCEL:
                self._cancel(peer, frame.id)
            else:
                self._settle(peer, frame)

    @property
    def peers(self) -> frozenset[NodeId]:
        """The nodes to which there is a connection."""
        return frozenset(self._up)

    def on_peer_up(self, peer: NodeId) -> None:
        self._up.add(peer)

    def on_peer_down(self, peer: NodeId) -> None:
        """Requests to ``peer`` will not be answered any more, nor can those of ``peer`` be."""
        self._up.discard(peer)
        for node, request_id in sorted(self._serving):
            if node == peer:
                self._cancel(node, request_id)
        lost = [key for key, (node, _, _) in self._pending.items() if node == peer]
        for key in lost:
            _, future, _ = self._pending.pop(key)
            if not future.done():
                future.set_exception(OutcomeUnknown(f"the connection to {peer} broke"))

    async def close(self) -> None:
        tasks = sorted(self._tasks, key=lambda task: task.get_name())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _, future, _ in self._pending.values():
            if not future.done():
                future.set_exception(OutcomeUnknown("this node is stopping"))
        self._pending.clear()
        self._up.clear()  # whoever still wants to ask through a closed mesh gets NoLeader

    def _send(self, peer: NodeId, kind: int, request_id: int, body: object) -> None:
        frame = _encode((kind, request_id, self._clock.latest, body))
        if not self._gathered:
            self.pace.soon(self._send_gathered)
        self._gathered.setdefault(peer, []).append(frame)

    def _send_now(self, peer: NodeId, frame: bytes) -> None:
        for gathered in self._gathered.pop(peer, ()):
            self._transport.send(peer, gathered)
        self._transport.send(peer, frame)

    def _send_gathered(self) -> None:
        gathered, self._gathered = self._gathered, {}
        for peer, frames in gathered.items():
            for frame in frames:
                self._transport.send(peer, frame)

    def _settle(self, peer: NodeId, frame: Frame) -> None:
        pending = self._pending.get(frame.id)
        if pending is None or pending[0] != peer:
            return
        del self._pending[frame.id]
        if pending[1].done():
            return
        if frame.kind == REPLY:
            pending[1].set_result(_decode_bytes(frame.body))
        else:
            pending[1].set_exception(error_from_fields(_decode_fields(frame.body)))

    def _start(self, peer: NodeId, request_id: int, request: Request) -> None:
        prompt = self._prompt.get(request.method)
        if prompt is not None:
            prompt(peer, request_id, request.body)
            return
        task = asyncio.get_running_loop().create_task(self._serve(peer, request_id, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if request.method in self._cancellable:
            self._serving[peer, request_id] = task
            task.add_done_callback(lambda _: self._serving.pop((peer, request_id), None))

    def _cancel(self, peer: NodeId, request_id: int) -> None:
        task = self._serving.get((peer, request_id))
        if task is not None:
            task.cancel()

    async def _serve(self, peer: NodeId, request_id: int, request: Request) -> None:
        handler = self._handlers.get(request.method)
        try:
            if handler is None:
                raise InternalError(f"{self.node_id} knows no request {request.method!r}")
            self.reply(peer, request_id, await handler(peer, request.body))
        except KotobaError as error:
            self.reply_error(peer, request_id, error)
        except Exception:
            log.exception("the request %s of %s failed", request.method, peer)
            self.reply_error(peer, request_id, InternalError(f"{request.method} failed"))
