"""The sweep: finishes what dead coordinators left, and forgets what nobody can ask for any more.

Each node sweeps the groups that it leads. Everything it removes goes through the group's log, so
replicas stay identical.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from cluster_core.config import ClusterConfig
from cluster_core.errors import KotobaError
from cluster_core.hlc import HybridClock
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import Router
from cluster_core.storage import keys
from cluster_core.txn.items import decode_dedupe
from cluster_core.txn.participant import read_horizon
from cluster_core.txn.records import RecordState, decode_record
from cluster_core.txn.recovery import Recovery
from cluster_core.types import Timestamp

__all__ = ["Sweep"]

log = logging.getLogger("kotoba.sweep")

FORGET_EVERY: Final = 60
"""Sweeps between two looks for what has expired; a look reads whole tables."""

PAUSE_AFTER: Final = 256
"""Pairs that a look reads between two pauses: a millisecond or two. A partition may remember a
hundred thousand requests; read at one go they would hold up all heartbeats for half a second."""

FORGET_MAX: Final = 1_000
"""Entries of a kind forgotten by one command, so that no entry of the log becomes a giant."""

_Pair = tuple[bytes, bytes]


class Sweep:
    """See the module."""

    def __init__(
        self, router: Router, recovery: Recovery, clock: HybridClock, config: ClusterConfig
    ) -> None:
        self._router = router
        self._recovery = recovery
        self._clock = clock
        self._config = config.replication
        self._deadline_s = config.limits.timeout_ms / 1000

    async def run(self) -> None:
        """Sweep until cancelled."""
        await asyncio.gather(self._recover_forever(), self._forget_forever())

    def _led(self) -> list[Replica]:
        return [one for one in self._router.host.replicas.values() if one.evaluation is not None]

    async def _recover_forever(self) -> None:
        while True:
            await asyncio.sleep(self._config.sweep_interval_ms / 1000)
            await asyncio.gather(*(self._guarded(self._recover, one) for one in self._led()))

    async def _forget_forever(self) -> None:
        """One group after the other: together they take the share of one."""
        while True:
            await asyncio.sleep(FORGET_EVERY * self._config.sweep_interval_ms / 1000)
            for replica in self._led():
                await self._guarded(self._forget, replica)

    async def _guarded(self, work: Callable[[Replica], Awaitable[None]], replica: Replica) -> None:
        try:
            await work(replica)
        except KotobaError as error:
            log.debug("group %d, next time: %s", replica.group, error.detail)
        except Exception:
            # The sweep is what ends the life of orphans: it must outlive any bug in its way.
            log.exception("the sweep of group %d failed", replica.group)

    async def _recover(self, replica: Replica) -> None:
        silence_ms = self._config.coordinator_silence_ms
        silent_since = asyncio.get_running_loop().time() - silence_ms / 1000
        if replica.intents:
            await self._recovery.recover_intents(replica, silent_since)
        await self._recovery.recover_records(replica, self._ago(silence_ms))

    def _ago(self, ms: int) -> Timestamp:
        return self._clock.latest - (ms << 16)

    async def _forget(self, replica: Replica) -> None:
        """Refusals and ABORTED records behind the horizon, which itself moves first; and dedupe
        entries older than they are promised to be kept."""
        evaluation = replica.evaluation
        if evaluation is None:
            return
        horizon = self._ago(self._config.transaction_horizon_ms)
        behind = await self._behind(replica, horizon)
        expired = await self._expired_dedupe(replica)
        if replica.evaluation is not evaluation:
            return
        # It was read some time ago, and beside what is in flight.
        gone = [key for key, value in behind + expired if evaluation.plain(key) == value]
        if not gone:
            return
        draft = replica.draft()
        draft.advance(self._clock.now())
        if behind and horizon > read_horizon(evaluation):
            draft.put(keys.state(replica.group, b"horizon"), horizon.to_bytes(8, "big"))
        for key in gone:
            draft.delete(key)
        await replica.propose(draft, asyncio.get_running_loop().time() + self._deadline_s)

    async def _behind(self, replica: Replica, horizon: Timestamp) -> list[_Pair]:
        """The first of those behind the horizon."""
        behind: list[_Pair] = []
        async for key, begin in _read(replica, keys.REFUSAL):
            if int.from_bytes(begin, "big") <= horizon and len(behind) < FORGET_MAX:
                behind.append((key, begin))
        async for key, value in _read(replica, keys.RECORD):
            record = decode_record(value)
            aborted = record.state is RecordState.ABORTED and record.begin <= horizon
            if aborted and len(behind) < FORGET_MAX:
                behind.append((key, value))
        return behind

    async def _expired_dedupe(self, replica: Replica) -> list[_Pair]:
        """Also counts what is kept: a partition whose dedupe entries are full takes no more."""
        oldest = self._ago(self._config.dedupe_retention_ms)
        expired: list[_Pair] = []
        kept = 0
        async for key, value in _read(replica, keys.DEDUPE):
            if decode_dedupe(value).timestamp >= oldest:
                kept += 1
            elif len(expired) < FORGET_MAX:
                expired.append((key, value))
        replica.dedupe_full = kept >= self._config.dedupe_entries_max
        return expired


async def _read(replica: Replica, table: bytes) -> AsyncIterator[_Pair]:
    """The applied pairs of a table, as of now, with pauses."""
    scan = replica.scan(table)
    unpaused = 0
    while pairs := scan.fetch():
        for pair in pairs:
            yield pair
        unpaused += len(pairs)
        if unpaused >= PAUSE_AFTER:
            unpaused = 0
            await asyncio.sleep(0)
