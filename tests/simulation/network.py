"""A simulated network, and the ``Transport`` port over it.

What it keeps: the frames of one stream arrive in order and at most once, and never after those of
a newer stream in the same direction. What it does not keep is up to :class:`NetworkFaults`, the
partitions and the crashes of a run:

- every chunk and every call takes a random time;
- a frame may vanish without notice, as from a full send queue;
- a frame with Raft messages may stray: it arrives late, behind what was sent after it, and half of
  them in time as well, so twice. TCP does neither; Raft has to bear both. Requests are spared, for
  the port promises that they arrive in order and at most once;
- a stream may break: a suffix of what is under way is lost, both ends hear ``on_peer_down``, the
  sender connects anew;
- a direction may be cut (:meth:`SimNetwork.cut`): nothing is refused, nothing arrives. What was
  sent is lost, or with ``hold`` arrives late if the cut ends in time, as TCP would have it. After
  ``watchdog`` seconds of a cut in either direction both ends give the streams up (frames of one
  direction are acknowledged on the other), and cannot connect before it ends.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from cluster_core.errors import KotobaError, Unreachable, error_from_fields
from cluster_core.ports import Receiver
from cluster_core.replication.mesh import RAFT
from tests.simulation.loop import Process, ProcessDied, SimLoop

__all__ = ["NetworkFaults", "SimNetwork", "SimTransport"]

_FRAME_GAP: Final = 1e-6
"""Seconds between two chunks of one stream: keeps their order where times would be equal."""


_RAFT_KIND: Final = bytes((RAFT,))
"""Second byte of a frame that carries Raft messages: frames are arrays, the kind comes first."""


@dataclass(slots=True, kw_only=True)
class NetworkFaults:
    """Knobs; times in seconds, rates as probabilities. May be turned while a run is going on."""

    latency_min: float = 0.000_2
    latency_max: float = 0.002
    slow_rate: float = 0.0
    """Share of the chunks and calls that take ``slow`` times as long."""
    slow: float = 50.0
    frame_loss_rate: float = 0.0
    stray_rate: float = 0.0
    stray_max: float = 1.0
    break_rate: float = 0.0
    """Chance that a stream breaks, per chunk."""
    call_loss_rate: float = 0.0
    """Chance that a call, or its answer, is lost."""
    watchdog: float = 1.5
    reconnect_min: float = 0.01
    reconnect_max: float = 0.5

    def calm(self) -> None:
        """No more faults: what is left is the latency."""
        self.slow_rate = self.frame_loss_rate = self.break_rate = self.call_loss_rate = 0.0
        self.stray_rate = 0.0


class _Cut:
    """One direction between two hosts that is silently dead."""

    def __init__(self, *, hold: bool):
        self.hold = hold
        self.held: list[tuple[Process, Callable[[], None]]] = []


class SimNetwork:
    """All hosts and the wires between them. ``trace`` is told of everything that happens."""

    def __init__(
        self,
        loop: SimLoop,
        source: random.Random,
        faults: NetworkFaults | None = None,
        trace: Callable[[str], None] = lambda _: None,
    ):
        self.loop = loop
        self.random = source
        self.faults = faults or NetworkFaults()
        self.trace = trace
        self._hosts: dict[str, SimTransport] = {}
        self._cuts: dict[tuple[str, str], _Cut] = {}
        self.mute: set[str] = set()
        """Addresses of hosts whose Raft messages vanish, and nothing else: a send queue that is
        full drops them first."""

    # Hosts

    def attach(self, transport: SimTransport) -> None:
        assert transport.address not in self._hosts, "the address is in use"
        self._hosts[transport.address] = transport

    def detach(self, transport: SimTransport) -> None:
        if self._hosts.get(transport.address) is transport:
            del self._hosts[transport.address]

    def host(self, address: str) -> SimTransport | None:
        return self._hosts.get(address)

    # Partitions

    def cut(self, source: str, target: str, *, hold: bool = False) -> None:
        """Let nothing pass from ``source`` to ``target`` (addresses) until :meth:`heal`."""
        if (source, target) in self._cuts:
            return
        self.trace(f"cut {source} -> {target}{' holding' if hold else ''}")
        cut = self._cuts[source, target] = _Cut(hold=hold)
        delay = self.faults.watchdog * self.random.uniform(1.0, 1.2)
        self.loop.call_later(delay, self._give_up, source, target, cut)

    def heal(self, source: str, target: str) -> None:
        cut = self._cuts.pop((source, target), None)
        if cut is None:
            return
        self.trace(f"heal {source} -> {target}")
        for receiver, deliver in cut.held:
            if receiver.alive:
                receiver.call(deliver)

    def heal_all(self) -> None:
        for source, target in sorted(self._cuts):
            self.heal(source, target)

    def give_up_on(self, address: str) -> None:
        """A host that says nothing, for it is stopped: its peers end their streams with it."""
        host = self._hosts.get(address)
        for other in [*self._hosts.values()]:
            for sender, receiver in ((other, address), (host, other.address)):
                stream = sender and sender.stream_to(receiver)
                if stream:
                    stream.break_off("watchdog")

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cuts

    def _give_up(self, source: str, target: str, cut: _Cut) -> None:
        if self._cuts.get((source, target)) is not cut:
            return
        cut.held.clear()
        for here, there in ((source, target), (target, source)):
            sender = self._hosts.get(here)
            stream = sender and sender.stream_to(there)
            if stream:
                stream.break_off("watchdog")

    # What travels

    def latency(self) -> float:
        faults = self.faults
        delay = self.random.uniform(faults.latency_min, faults.latency_max)
        return delay * faults.slow if self._happens(faults.slow_rate) else delay

    def loses_frame(self, source: str, frame: bytes) -> bool:
        muted = source in self.mute and frame[1:2] == _RAFT_KIND
        return muted or self._happens(self.faults.frame_loss_rate)

    def strays(self, frame: bytes) -> bool:
        return frame[1:2] == _RAFT_KIND and self._happens(self.faults.stray_rate)

    def breaks_stream(self) -> bool:
        return self._happens(self.faults.break_rate)

    def loses_call(self) -> bool:
        return self._happens(self.faults.call_loss_rate)

    def _happens(self, rate: float) -> bool:
        return rate > 0 and self.random.random() < rate

    def pass_through(
        self, source: str, target: str, receiver: Process, deliver: Callable[[], None]
    ) -> None:
        """Call ``deliver`` in ``receiver`` now, or when the cut in its way ends, or never."""
        cut = self._cuts.get((source, target))
        if cut is None:
            deliver()
        elif cut.hold:
            cut.held.append((receiver, deliver))


class _Stream:
    """One connection, frames in one direction: from its sender's process to its receiver's."""

    def __init__(self, sender: SimTransport, peer: str, receiver: SimTransport):
        self.sender = sender
        self.peer = peer
        self.receiver = receiver
        self.network = sender.network
        self.open = True
        self._outbox: list[bytes] = []
        self._arrival = 0.0  # of the chunk sent last

    def send(self, frame: bytes) -> None:
        if not self._outbox:
            self.network.loop.call_soon(self._flush, context=self.sender.process.context)
        self._outbox.append(frame)

    def _flush(self) -> None:
        """Everything that one turn of the loop gave leaves as one chunk."""
        frames, self._outbox = self._outbox, []
        if not self.open:
            return
        if self.network.breaks_stream():
            self.break_off("broken")
            return
        source = self.sender.address
        frames = [frame for frame in frames if not self.network.loses_frame(source, frame)]
        frames = [frame for frame in frames if not self._strays(frame)]
        if frames:
            self._at_arrival(lambda: self._pass(frames))

    def _strays(self, frame: bytes) -> bool:
        """Whether ``frame`` arrives late instead of in its place; some arrive in both."""
        network = self.network
        if not network.strays(frame):
            return False
        late = network.random.uniform(0, network.faults.stray_max)
        network.loop.call_later(late, self._pass, [frame], context=self.receiver.process.context)
        return network.random.random() < 0.5

    def _at_arrival(self, action: Callable[[], None]) -> None:
        loop = self.network.loop
        earliest = loop.time() + self.network.latency()
        self._arrival = max(earliest, self._arrival + _FRAME_GAP)
        loop.call_at(self._arrival, action, context=self.receiver.process.context)

    def _pass(self, frames: list[bytes]) -> None:
        source, target = self.sender.address, self.receiver.address
        receiver = self.receiver
        self.network.pass_through(source, target, receiver.process, lambda: self._deliver(frames))

    def _deliver(self, frames: list[bytes]) -> None:
        receiver, loop = self.receiver, self.network.loop
        if loop.time() < receiver.deaf_until:
            # Later than all that waits already.
            receiver.deaf_until += _FRAME_GAP
            loop.call_at(receiver.deaf_until, receiver.receive, self, frames)
        else:
            receiver.receive(self, frames)

    def break_off(self, why: str) -> None:
        """Both ends notice, each in its own time; what has not arrived by then is lost."""
        if not self.open:
            return
        self.open = False
        self.network.trace(f"stream {self.sender.address} -> {self.receiver.address}: {why}")
        sender, receiver, network = self.sender, self.receiver, self.network
        network.loop.call_later(
            network.latency(), sender.outgoing_broke, self, context=sender.process.context
        )
        network.loop.call_later(
            network.latency(), receiver.incoming_broke, self, context=receiver.process.context
        )


class _Link:
    """One peer as a transport sees it, by the rules of the shipped transport: it is *up* while the
    outgoing stream stands and the incoming one is not lost; a new stream, either way, clears that;
    every change is reported once."""

    __slots__ = ("connecting", "incoming", "incoming_lost", "outgoing", "up")

    def __init__(self) -> None:
        self.outgoing: _Stream | None = None
        self.incoming: _Stream | None = None
        self.incoming_lost = False
        self.connecting = False
        self.up = False


class SimTransport:
    """The ``Transport`` of one simulated process. ``address`` is where its host stands."""

    def __init__(self, network: SimNetwork, process: Process, address: str):
        self.network = network
        self.process = process
        self.address = address
        self._receiver: Receiver | None = None
        self._identity: tuple[str, str, str] | None = None
        self._peers: dict[str, str] = {}
        self._links: dict[str, _Link] = {}
        self._closed = False
        self.deaf_until = 0.0
        """A process that stood still looks at its sockets in any order: clients' before these."""

    # The port

    async def listen(self, address: str, receiver: Receiver) -> None:
        assert address == self.address, "a host has one address"
        self._receiver = receiver
        self.network.attach(self)

    def identify(self, *, cluster_id: str, node_id: str, store_id: str) -> None:
        if not self._closed:
            self._identity = (cluster_id, node_id, store_id)
            self._connect_all()

    def set_peers(self, addresses: dict[str, str]) -> None:
        if self._closed:
            return
        for peer, link in self._links.items():
            if link.outgoing is not None and addresses.get(peer) != self._peers.get(peer):
                link.outgoing.break_off("no longer a peer")
        self._peers = {
            peer: addresses[peer] for peer in sorted(addresses) if addresses[peer] != self.address
        }
        self._connect_all()

    def send(self, peer: str, frame: bytes) -> None:
        assert isinstance(frame, bytes)
        link = self._links.get(peer)
        if link is not None and link.outgoing is not None and not self._closed:
            link.outgoing.send(frame)

    async def call(self, address: str, method: str, body: bytes, *, timeout: float) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await self._call(address, method, body)
        except TimeoutError:
            raise Unreachable(f"no answer from {address} within {timeout} s") from None

    async def drain(self) -> None:
        """Requests of clients do not pass here."""

    async def close(self) -> None:
        self.vanish()

    # Crash and close

    def vanish(self) -> None:
        """The process is gone or leaves: its kernel closes what was open, so peers hear of it."""
        self._closed = True
        self.network.detach(self)
        for link in self._links.values():
            for stream in (link.outgoing, link.incoming):
                if stream is not None:
                    stream.break_off("closed")

    # Streams

    def stream_to(self, address: str) -> _Stream | None:
        for link in self._links.values():
            if link.outgoing is not None and link.outgoing.receiver.address == address:
                return link.outgoing
        return None

    def _connect_all(self) -> None:
        if self._identity is None or self._receiver is None:
            return
        for peer in self._peers:
            self._connect(peer, self.network.faults.reconnect_min)

    def _link(self, peer: str) -> _Link:
        return self._links.setdefault(peer, _Link())

    def _judge(self, peer: str, link: _Link) -> None:
        up = link.outgoing is not None and not link.incoming_lost
        if up == link.up or self._closed:
            return
        link.up = up
        assert self._receiver is not None
        (self._receiver.on_peer_up if up else self._receiver.on_peer_down)(peer)

    def _connect(self, peer: str, backoff: float) -> None:
        link = self._link(peer)
        if link.connecting or link.outgoing is not None:
            return
        link.connecting = True
        delay = 2 * self.network.latency()  # there and back
        self._later(delay, self._connected, peer, backoff)

    def _later(self, delay: float, action: Callable[..., None], *args: Any) -> None:
        self.network.loop.call_later(delay, action, *args, context=self.process.context)

    def _connected(self, peer: str, backoff: float) -> None:
        link = self._link(peer)
        link.connecting = False
        if self._closed or peer not in self._peers:
            return
        receiver = self._accepting(peer)
        if receiver is None:
            backoff = min(2 * backoff, self.network.faults.reconnect_max)
            self._later(
                backoff * self.network.random.uniform(0.5, 1.0), self._connect, peer, backoff
            )
            return
        assert self._identity is not None
        stream = link.outgoing = _Stream(self, peer, receiver)
        if link.incoming is None:
            link.incoming_lost = False
        receiver.process.call(receiver.accept, self._identity[1], stream)
        self._judge(peer, link)

    def _accepting(self, peer: str) -> SimTransport | None:
        """The host of ``peer``, if a stream to it can be opened now."""
        address = self._peers[peer]
        host = self.network.host(address)
        if host is None or host.process.frozen is not None:
            return None
        if not host.admits(self._identity, peer):
            return None
        ways = ((self.address, address), (address, self.address))
        return None if any(self.network.is_cut(*way) for way in ways) else host

    def admits(self, caller: tuple[str, str, str] | None, called: str) -> bool:
        """Streams are refused before we know who we are, and between different clusters."""
        if self._identity is None or caller is None:
            return False
        return caller[0] == self._identity[0] and called == self._identity[1]

    def accept(self, peer: str, stream: _Stream) -> None:
        """A new incoming stream; an older one is over, and what was under way on it is lost."""
        link = self._link(peer)
        if link.incoming is not None:
            link.incoming_lost = True
            self._judge(peer, link)
        link.incoming, link.incoming_lost = stream, False
        self._judge(peer, link)

    def receive(self, stream: _Stream, frames: list[bytes]) -> None:
        peer = stream.sender.name
        if not self._closed and self._link(peer).incoming is stream:
            assert self._receiver is not None
            self._receiver.on_frames(peer, frames)

    def outgoing_broke(self, stream: _Stream) -> None:
        peer = stream.peer
        link = self._link(peer)
        if self._closed or link.outgoing is not stream:
            return
        link.outgoing = None
        self._judge(peer, link)
        if peer in self._peers:
            self._connect(peer, self.network.faults.reconnect_min)

    def incoming_broke(self, stream: _Stream) -> None:
        peer = stream.sender.name
        link = self._link(peer)
        if self._closed or link.incoming is not stream:
            return
        link.incoming, link.incoming_lost = None, True
        self._judge(peer, link)

    @property
    def name(self) -> str:
        assert self._identity is not None
        return self._identity[1]

    # Calls

    async def _call(self, address: str, method: str, body: bytes) -> bytes:
        await self._travel(self.address, address)
        host = self.network.host(address)
        if host is None:
            raise Unreachable(f"nobody listens at {address}")
        answer = await self._answered(host.answer(method, body))
        await self._travel(address, self.address)
        if isinstance(answer, KotobaError):
            raise answer
        return answer

    async def _travel(self, source: str, target: str) -> None:
        if self._closed:
            raise Unreachable("this node is closed")
        await asyncio.sleep(self.network.latency())
        if self.network.loses_call() or self.network.is_cut(source, target):
            await asyncio.sleep(3600)  # whoever calls has a shorter time-out

    async def _answered(self, answer: asyncio.Future[Any]) -> bytes | KotobaError:
        done, _ = await asyncio.wait([answer])
        assert done
        error = answer.exception()
        if error is None:
            result = answer.result()
            assert isinstance(result, bytes)
            return result
        if isinstance(error, KotobaError):
            return error_from_fields(error.fields())
        raise Unreachable(f"the other side broke off: {error}")

    def answer(self, method: str, body: bytes) -> asyncio.Future[bytes]:
        assert self._receiver is not None
        answer = self.process.run(self._receiver.on_call(method, body))
        answer.add_done_callback(self._note_bug)
        return answer

    def _note_bug(self, answer: asyncio.Future[bytes]) -> None:
        error = None if answer.cancelled() else answer.exception()
        if error is not None and not isinstance(error, KotobaError | ProcessDied):
            self.network.loop.failures.append(f"{self.address}: a call raised {error!r}")
