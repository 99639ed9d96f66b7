"""Writing while a node is killed: what was acknowledged when, and whether all of it is there."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from app.demo.api import Api, Json

__all__ = ["Acknowledged", "Outage", "Writers", "measure_outage", "missing_cids", "partitions_led"]

_WRITERS: Final = 48
"""More than the partitions that one node leads, for each may hold one writer back."""
_ATTEMPT_S: Final = 0.5
"""How long one try may take before the next node is asked under the same Idempotency-Key."""
_READ_CIDS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One write that a node said is done."""

    cid: str
    partition: int
    sent: float
    done: float
    url: str


@dataclass(slots=True)
class Writers:
    """Clients that create vertices without a pause, each at the nodes in turn."""

    urls: Sequence[str]
    acknowledged: list[Acknowledged] = field(default_factory=list)
    retries: int = 0
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _stopping: bool = False

    def start(self) -> None:
        run = secrets.token_hex(8)
        for number in range(_WRITERS):
            self._tasks.append(asyncio.create_task(self._write(f"{run}-{number}", number)))

    async def stop(self) -> None:
        """Let every write in flight come to its end."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _write(self, name: str, number: int) -> None:
        async with Api(self.urls) as api:
            count = 0
            while not self._stopping:
                await self._write_once(api, name, number, count)
                count += 1

    async def _write_once(self, api: Api, name: str, number: int, count: int) -> None:
        turn = (number + count) % len(api.urls)
        body: Json = {
            "op": "create_node",
            "labels": ["Written"],
            "properties": {"writer": number, "count": count},
        }
        attempts: list[str] = []
        sent = time.monotonic()
        answer = await api.post(
            "/v1/operations?forward=true",
            body,
            urls=api.urls[turn:] + api.urls[:turn],
            key=f"{name}-{count}",
            timeout_s=_ATTEMPT_S,
            attempts=attempts,
        )
        self.acknowledged.append(
            Acknowledged(answer["cid"], answer["partition"], sent, time.monotonic(), attempts[-1])
        )
        self.retries += len(attempts) - 1


@dataclass(frozen=True, slots=True)
class Outage:
    """What the writers noticed of a kill, in seconds after it; None: never.

    Only writes sent after the kill count: what was acknowledged just before it may arrive later.
    """

    first: float | None
    """The first acknowledgement."""
    first_orphaned: float | None
    """The first in a partition that the dead node led."""
    all_orphaned: float | None
    """When every one of those partitions had acknowledged a write again."""
    longest_gap: float
    """The longest time without any acknowledgement, from the kill on."""


def measure_outage(
    acknowledged: Sequence[Acknowledged], killed_at: float, orphaned: Collection[int]
) -> Outage:
    """Derive an outage from what was acknowledged after ``killed_at``."""
    firsts: dict[int, float] = {}
    for item in acknowledged:
        if item.sent >= killed_at:
            after = item.done - killed_at
            firsts[item.partition] = min(firsts.get(item.partition, after), after)
    back = [firsts[partition] for partition in orphaned if partition in firsts]
    times = sorted([killed_at, *(item.done for item in acknowledged if item.done > killed_at)])
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return Outage(
        first=min(firsts.values(), default=None),
        first_orphaned=min(back, default=None),
        all_orphaned=max(back) if back and len(back) == len(orphaned) else None,
        longest_gap=max(gaps, default=0.0),
    )


async def partitions_led(api: Api, url: str, node_id: str) -> list[int]:
    """The partitions that a node leads, as another one sees it."""
    answer = await api.get(url, "/v1/partitions")
    rows = answer["partitions"] if isinstance(answer, dict) else answer
    return [row["partition"] for row in rows if row["leader"] == node_id]


async def missing_cids(
    api: Api, cids: Sequence[str], *, url: str, consistency: str = "strong"
) -> list[str]:
    """Those of ``cids`` that a read at a node does not find."""
    missing: list[str] = []
    for start in range(0, len(cids), _READ_CIDS):
        asked = cids[start : start + _READ_CIDS]
        answer = await api.query(
            {"kind": "get", "cids": list(asked)}, url=url, consistency=consistency
        )
        found = {row["cid"] for row in answer["rows"]}
        missing += [cid for cid in asked if cid not in found]
    return missing
