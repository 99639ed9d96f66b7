"""The ports of a node that lives alone in its process: the system's clock, and no network."""

from __future__ import annotations

import time

from cluster_core.errors import Unreachable
from cluster_core.ports import Receiver
from cluster_core.types import NodeId

__all__ = ["NoTransport", "SystemClock"]


class SystemClock:
    """The clocks of this machine."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def steady_s(self) -> float:
        return time.monotonic()


class NoTransport:
    """Reaches nobody, and is reached by nobody."""

    async def listen(self, address: str, receiver: Receiver) -> None:
        return None

    def identify(self, *, cluster_id: str, node_id: NodeId, store_id: str) -> None:
        return None

    def set_peers(self, addresses: dict[NodeId, str]) -> None:
        assert not addresses, "a node with peers needs a transport"

    def send(self, peer: NodeId, frame: bytes) -> None:
        return None

    async def call(self, address: str, method: str, body: bytes, *, timeout: float) -> bytes:
        raise Unreachable(f"this node has no transport; it cannot reach {address}")

    async def drain(self) -> None:
        return None

    async def close(self) -> None:
        return None
