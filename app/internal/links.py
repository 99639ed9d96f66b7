"""The two streams between this node and one peer, and what they say about the peer.

Rules, in one place:

- The *outgoing* stream stands from the moment its request is on the wire after an accepted hello
  until its connection is lost. Whatever was queued is then dropped: frames travel at most once.
- The *incoming* stream is lost when its body ends, when a newer hello replaces it, or when nothing
  was heard on it for ``silence_s``.
- The peer is *up* while both stand: one that cannot answer would let requests wait for their
  time-outs. Every change is reported once.
- Silence also ends the outgoing stream: a stopped process accepts bytes for ever. The end of the
  incoming stream does not, for else two nodes could tear down each other's streams in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

import httpx
import msgspec

from app.internal.framing import FRAME_BYTES_MAX, KEEP_ALIVE, frame_header
from app.internal.handshake import (
    EPOCH_HEADER,
    NODE_HEADER,
    Hello,
    decode_welcome,
    encode,
    error_of,
)
from cluster_core.errors import KotobaError, Refused, Unavailable, Unreachable
from cluster_core.ports import Random, Receiver
from cluster_core.types import NodeId

__all__ = ["QUEUE_BYTES_MAX", "Inbound", "LinkContext", "Outbox", "PeerLink"]

log = logging.getLogger("kotoba.transport")

QUEUE_BYTES_MAX: Final = 32 << 20
"""What may wait for one peer; beyond it frames are dropped, the newest first."""

SMALL_BYTES: Final = 8 << 10
RESERVE_BYTES: Final = 1 << 20
"""As much more for frames up to SMALL_BYTES: a peer that is behind with what was written is still
to hear the heartbeats, and to be answered."""

BACKOFF_S_MIN: Final = 0.05
BACKOFF_S_MAX: Final = 1.0


class Outbox:
    """Frames that wait for one stream: an endless body with one chunk for each loop turn.

    A chunk for each frame would cost fourteen times as much (measured: 11,000 frames a second
    against 195,000).
    """

    __slots__ = ("_on_open", "_parts", "_wake", "bytes_queued", "dropped", "idle")

    def __init__(self, on_open: Callable[[], None]) -> None:
        self._on_open: Callable[[], None] | None = on_open
        self._parts: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self.bytes_queued = 0
        self.dropped = 0
        self.idle = True
        """Whether nothing was queued since somebody last set this."""

    def put(self, frame: bytes) -> bool:
        """Queue ``frame``; False when there is no room, and it is dropped."""
        size = len(frame)
        room = QUEUE_BYTES_MAX if size > SMALL_BYTES else QUEUE_BYTES_MAX + RESERVE_BYTES
        if self.bytes_queued + size > room and self.bytes_queued:
            self.dropped += 1
            return False
        self._parts.append(frame_header(frame))
        self._parts.append(frame)
        self.bytes_queued += size + 4
        self.idle = False
        self._wake.set()
        return True

    def put_keep_alive(self) -> None:
        self._parts.append(KEEP_ALIVE)
        self.bytes_queued += len(KEEP_ALIVE)
        self._wake.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._on_open is not None:
            on_open, self._on_open = self._on_open, None
            on_open()
        if not self._parts:
            self._wake.clear()
            await self._wake.wait()
        chunk = b"".join(self._parts)
        self._parts.clear()
        self.bytes_queued = 0
        return chunk


class Inbound:
    """One incoming stream, run by ``task``; its frames count while it is its link's inbound."""

    __slots__ = ("_task", "ended")

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task
        self.ended = False

    def end(self) -> None:
        """Have its handler return; what it has read and not delivered is dropped."""
        if not self.ended:
            self.ended = True
            self._task.cancel()


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkContext:
    """What all links of a node share."""

    receiver: Receiver
    requests: httpx.AsyncClient
    streams: httpx.AsyncClient
    hello: Callable[[int], Hello]
    """Our hello, at least of the given epoch."""
    random: Random
    silence_s: float


class PeerLink:
    """Keeps a stream to one peer, and judges whether the peer is up."""

    def __init__(self, peer: NodeId, address: str, context: LinkContext) -> None:
        self.peer = peer
        self.address = address
        self.store_id: str | None = None
        """As the first accepted hello gave it."""
        self.epoch = 0
        """Of the newest hello that was accepted from the peer."""
        self.outbox: Outbox | None = None
        """Of the stream that stands."""
        self.inbound: Inbound | None = None
        self.dropped = 0
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._epoch_out = 0
        self._heard = self._loop.time()
        self._proven = False
        self._up = False
        self._closed = False
        self._noted: str | None = None
        self._kick = asyncio.Event()
        self._scope: asyncio.Timeout | None = None
        self._task = self._loop.create_task(self._run(), name=f"stream to {peer}")

    # What the owner calls

    def send(self, frame: bytes) -> bool:
        """Whether ``frame`` was queued; it may be lost all the same."""
        if self.outbox is not None and len(frame) <= FRAME_BYTES_MAX and self.outbox.put(frame):
            return True
        self.dropped += 1
        return False

    def tick(self, now: float, late_s: float) -> None:
        """Keep the stream from being silent, and notice that the peer is.

        ``late_s``: how much later than planned this call comes. If this process stood still, what
        its peers sent waits unread in the sockets: that is no silence of theirs.
        """
        self._heard += late_s
        if self.outbox is not None:
            if self.outbox.idle:
                self.outbox.put_keep_alive()
            self.outbox.idle = True
        if now - self._heard > self._context.silence_s and (
            self.outbox is not None or self.inbound is not None
        ):
            self._note(f"{self.peer} at {self.address} is silent", logging.WARNING)
            self._lose_inbound()
            self._break_stream()

    def greeted(self, epoch: int) -> None:
        """A hello of the peer was accepted: older streams of it are over."""
        assert epoch > self.epoch
        self.epoch = epoch
        if self.inbound is not None:
            self._lose_inbound()
        self._kick.set()

    def open_inbound(self, task: asyncio.Task[None]) -> Inbound:
        """The stream that the newest hello announced has come."""
        if self.inbound is not None:
            self._lose_inbound()
        self.inbound = Inbound(task)
        self.heard()
        self._judge()
        return self.inbound

    def heard(self) -> None:
        """Something came on the incoming stream."""
        self._heard = self._loop.time()
        self._proven = True

    def inbound_ended(self, inbound: Inbound) -> None:
        inbound.ended = True
        if inbound is self.inbound:
            self._lose_inbound()

    def move(self, address: str) -> None:
        """The peer is to be reached elsewhere from now on."""
        if address != self.address:
            self._note(f"{self.peer} moves from {self.address} to {address}", logging.INFO)
            self.address = address
            self._break_stream()
            self._kick.set()

    def lose(self) -> None:
        """The peer is none any more: whoever counted on it hears that it is down."""
        self._lose_inbound()

    def close(self) -> asyncio.Task[None]:
        """End both streams and report nothing more; the task ends soon."""
        self._closed = True
        if self.inbound is not None:
            self._lose_inbound()
        self._task.cancel()
        return self._task

    # The state of the peer

    def _lose_inbound(self) -> None:
        inbound, self.inbound = self.inbound, None
        if inbound is not None:
            inbound.end()
        self._judge()

    def _judge(self) -> None:
        up = self.outbox is not None and self.inbound is not None
        if up == self._up:
            return
        self._up = up
        if self._closed:
            return
        receiver = self._context.receiver
        try:
            (receiver.on_peer_up if up else receiver.on_peer_down)(self.peer)
        except Exception:
            log.exception("the node failed to take note of %s", self.peer)

    # The outgoing stream

    async def _run(self) -> None:
        delay = BACKOFF_S_MIN
        while True:
            self._kick.clear()
            await self._attempt()
            if self._proven:
                delay, self._proven = BACKOFF_S_MIN, False
            await self._pause(delay * self._context.random.uniform(0.5, 1.0))
            delay = min(2 * delay, BACKOFF_S_MAX)

    async def _attempt(self) -> None:
        """One connection, from its hello to its end, whatever the end is."""
        outbox = Outbox(lambda: self._stand(outbox))
        try:
            hello = await self._greet()
            async with asyncio.timeout(None) as self._scope:
                raise await self._stream(hello, outbox)
        except TimeoutError:
            pass  # Somebody broke the stream on purpose, and has said why.
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            self._note(f"no stream to {self.peer} at {self.address}: {reason}", logging.INFO)
        except (Unavailable, Unreachable) as error:
            self._note(f"{self.peer} at {self.address}: {error.detail}", logging.INFO)
        except KotobaError as error:
            self._epoch_out = max(self._epoch_out, int(error.extra.get("epoch", 0)))
            self._note(f"{self.peer} at {self.address} refuses us: {error.detail}", logging.WARNING)
        except Exception:
            # The next attempt is the only way back to this peer.
            log.exception("the stream to %s at %s failed", self.peer, self.address)
        finally:
            self._scope = None
            self.dropped += outbox.dropped
            self.outbox = None
            self._judge()

    async def _greet(self) -> Hello:
        """Say hello; returns the one that was accepted."""
        hello = self._context.hello(self._epoch_out + 1)
        self._epoch_out = hello.epoch
        response = await self._context.requests.post(
            f"http://{self.address}/internal/v1/hello", content=encode(hello)
        )
        if response.status_code != httpx.codes.OK:
            raise error_of(response)
        try:
            welcome = decode_welcome(response.content)
        except msgspec.MsgspecError:
            raise Unreachable("what answers there is no node of a cluster") from None
        if welcome.node_id != self.peer:
            raise Refused(f"it says that it is {welcome.node_id}")
        return hello

    async def _stream(self, hello: Hello, outbox: Outbox) -> KotobaError:
        """Returns only when the peer ends it, with what it says."""
        response = await self._context.streams.post(
            f"http://{self.address}/internal/v1/stream",
            content=outbox,
            headers={EPOCH_HEADER: str(hello.epoch), NODE_HEADER: hello.node_id},
        )
        if response.status_code == httpx.codes.OK:
            return Unavailable("it closed the stream")
        return error_of(response)

    def _stand(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self._noted = None
        log.info("connected to %s at %s", self.peer, self.address)
        self._heard = self._loop.time()
        self._judge()

    async def _pause(self, seconds: float) -> None:
        """Wait; past the shortest wait, not longer than until the peer says hello by itself."""
        await asyncio.sleep(min(seconds, BACKOFF_S_MIN))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds - BACKOFF_S_MIN):
                await self._kick.wait()

    def _break_stream(self) -> None:
        scope, self._scope = self._scope, None
        if scope is not None:
            scope.reschedule(self._loop.time())

    def _note(self, reason: str, level: int) -> None:
        """Say why there is no stream, once for each reason."""
        if reason != self._noted:
            self._noted = reason
            log.log(level, "%s", reason)
