"""The ports: the only ways in which the database touches the world.

Everything in ``cluster_core`` gets its time, disk, network and randomness through these
protocols, so that the simulator can run whole nodes under virtual time with simulated disks and
networks, and the same seed gives the same run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, Protocol

from cluster_core.types import NodeId

RAFT: Final = 0
"""Column family of logs, votes and everything else that Raft must remember."""
DATA: Final = 1
"""Column family of the replicated state: entities, adjacency, locks, records."""


class Clock(Protocol):
    """Wall time, and a finer steady one. Deadlines are times of the running event loop
    (``loop.time()``), which may know no more than milliseconds."""

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch; may jump in both directions."""
        ...

    def steady_s(self) -> float:
        """Seconds since some moment, to the microsecond; never jumps. For durations."""
        ...


class Random(Protocol):
    """The part of :class:`random.Random` that the database uses."""

    def random(self) -> float: ...
    def uniform(self, a: float, b: float, /) -> float: ...
    def randrange(self, start: int, stop: int, /) -> int: ...
    def randbytes(self, n: int, /) -> bytes: ...


class Batch(Protocol):
    """Writes that reach the disk together or not at all. Used once."""

    def put(self, family: int, key: bytes, value: bytes) -> None: ...
    def delete(self, family: int, key: bytes) -> None: ...
    def delete_range(self, family: int, begin: bytes, end: bytes) -> None:
        """Delete every key in ``[begin, end)``."""
        ...

    def __len__(self) -> int: ...


class Scan(Iterator[tuple[bytes, bytes]], Protocol):
    """The pairs of a range in key order, as of the moment at which the scan was opened."""

    def fetch(self) -> list[tuple[bytes, bytes]]:
        """The next pairs, as many as are cheap to have at once; empty at the end, and only then."""
        ...

    def seek(self, key: bytes) -> None:
        """Leave out the pairs below ``key`` that were not delivered yet (above it, in reverse)."""
        ...


StorageState = Literal["ok", "full", "failed"]


class Engine(Protocol):
    """An ordered key-value store with atomic batches and one write-ahead log.

    The durability contract: writes reach the disk in the order in which they were given, and a
    crash keeps a prefix of them; ``await sync()`` returns when everything written before the call
    is in that prefix for good. The first failed write or sync is final: every later one raises the
    same error. That is :class:`~cluster_core.errors.StorageFull` for a write that found no space,
    and the store may be opened anew once there is room; else it is StorageFailed. After a failed
    sync it may not be opened again: what the system still shows of it need not be on the disk.

    The *reserve* is room on the disk that only the database's own bookkeeping may use. The engine
    keeps it occupied, gives it up in slices when the disk has nothing else left, and occupies it
    again when there is room (``storage/reserve.py``). So a disk that anybody filled to the last
    byte still takes terms, votes and decisions.
    """

    def batch(self) -> Batch: ...

    def write(self, batch: Batch) -> None:
        """Apply ``batch`` atomically, visible at once, durable after the next :meth:`sync`."""
        ...

    async def sync(self) -> None: ...

    def get(self, family: int, key: bytes) -> bytes | None: ...

    def first(self, family: int, begin: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """The first pair with ``begin <= key < end``."""
        ...

    def scan(self, family: int, begin: bytes, end: bytes, *, reverse: bool = False) -> Scan:
        """The pairs with ``begin <= key < end``, in key order, as of the moment of the call."""
        ...

    @property
    def state(self) -> StorageState:
        """``full`` without room, as of the last :meth:`has_room`, and for good after a write that
        found no space; ``failed``, for good, after any other failure."""
        ...

    @property
    def reserve_bytes(self) -> int: ...

    def has_room(self) -> bool:
        """Whether clients may write, after a look at the disk: not with less free than half of the
        reserve, and then not before all of it is held again with as much free. Cheap; asked
        often."""
        ...

    def room_bytes(self) -> int:
        """Bytes that this node can still write: those that are free, and those held in reserve."""
        ...

    def disk_bytes(self) -> int:
        """Bytes that the store takes on its disk."""
        ...

    def disk_free_bytes(self) -> int:
        """Bytes that the disk has left."""
        ...

    def close(self) -> None: ...


class Receiver(Protocol):
    """What a transport calls on its node. All calls come from the event loop's thread."""

    def on_frames(self, peer: NodeId, frames: list[bytes]) -> None:
        """Frames from ``peer``, in the order of their sending; never of an older connection."""
        ...

    def on_peer_up(self, peer: NodeId) -> None:
        """The outgoing stream to ``peer`` stands: what is sent from now on will leave."""
        ...

    def on_peer_down(self, peer: NodeId) -> None:
        """A stream to or from ``peer`` broke, or ``peer`` was silent for too long."""
        ...

    async def on_call(self, method: str, body: bytes) -> bytes:
        """A request of its own from another node. Raises a KotobaError to refuse."""
        ...


class Transport(Protocol):
    """Frames between the nodes of the mesh: ordered, at most once, lost without notice.

    ``send`` never blocks. While there is no connection, or when a peer's queue is full, frames are
    dropped: Raft repeats its messages, and requests have time-outs.
    """

    async def listen(self, address: str, receiver: Receiver) -> None:
        """Serve calls and streams of peers at ``address`` (``host:port``)."""
        ...

    def identify(self, *, cluster_id: str, node_id: NodeId, store_id: str) -> None:
        """Say who we are; before this only ``call`` works, and streams are refused."""
        ...

    def set_peers(self, addresses: dict[NodeId, str]) -> None:
        """Keep a stream to each of these nodes (never to ourselves), and to no other."""
        ...

    def send(self, peer: NodeId, frame: bytes) -> None: ...

    async def call(self, address: str, method: str, body: bytes, *, timeout: float) -> bytes:
        """One request to whoever listens at ``address``, known or not.

        Raises :class:`~cluster_core.errors.Unreachable` when nobody answers, and the error that
        the other side raised when it refuses.
        """
        ...

    async def drain(self) -> None:
        """Take no new requests of clients and of :meth:`call`; returns when those under way are
        answered, or after about a second. Streams go on."""
        ...

    async def close(self) -> None: ...
