"""The sweep: finishes what dead coordinators left, and forgets what nobody can ask for any more.

Each node sweeps the groups that it leads. Everything it removes goes through the group's log, so
replicas stay identical.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
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
from cluster_core.txn.recovery import Recovery, walk, walk_records
from cluster_core.types import GroupId, Timestamp

__all__ = ["Sweep"]

log = logging.getLogger("kotoba.sweep")

FORGET_EVERY: Final = 60
"""Sweeps between two looks for what has expired; a look reads whole tables."""

FORGET_MAX: Final = 1_000
"""Entries of a kind forgotten by one command, so that no entry of the log becomes a giant."""

FORGET_PAUSE_S: Final = 0.02
"""Between two such commands, of some milliseconds each: what expires faster than that was written
faster than that."""

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
        """Each group for itself, so that none waits for what another one lacks."""
        under_way: dict[GroupId, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                await asyncio.sleep(self._config.sweep_interval_ms / 1000)
                for replica in self._led():
                    before = under_way.get(replica.group)
                    if before is None or before.done():
                        under_way[replica.group] = tasks.create_task(self._recover(replica))

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
        await asyncio.gather(
            self._guarded(self._recover_intents, replica),
            self._guarded(self._recover_records, replica),
        )

    async def _recover_intents(self, replica: Replica) -> None:
        silence_s = self._config.coordinator_silence_ms / 1000
        silent_since = asyncio.get_running_loop().time() - silence_s
        await self._recovery.recover_intents(replica, silent_since)

    async def _recover_records(self, replica: Replica) -> None:
        old = self._ago(self._config.coordinator_silence_ms)
        await self._recovery.recover_records(replica, old)

    def _ago(self, ms: int) -> Timestamp:
        return self._clock.latest - (ms << 16)

    async def _forget(self, replica: Replica) -> None:
        """Refusals and ABORTED records behind the horizon, which itself moves first; and dedupe
        entries older than they are promised to be kept."""
        horizon = self._ago(self._config.transaction_horizon_ms)
        oldest = self._ago(self._config.dedupe_retention_ms)

        def is_behind(begin: bytes) -> bool:
            return int.from_bytes(begin, "big") <= horizon

        def is_aborted_behind(value: bytes) -> bool:
            record = decode_record(value)
            return record.state is RecordState.ABORTED and record.begin <= horizon

        def has_expired(value: bytes) -> bool:
            return decode_dedupe(value).timestamp < oldest

        await self._forget_among(replica, walk(replica, keys.REFUSAL), is_behind, horizon)
        await self._forget_among(replica, walk_records(replica), is_aborted_behind, horizon)
        kept = await self._forget_among(replica, walk(replica, keys.DEDUPE), has_expired)
        # Full of what must be kept, the partition takes no more.
        replica.dedupe_full = kept >= self._config.dedupe_entries_max

    async def _forget_among(
        self,
        replica: Replica,
        pairs: AsyncGenerator[_Pair, None],
        is_gone: Callable[[bytes], bool],
        horizon: Timestamp = 0,
    ) -> int:
        """Remove those of ``pairs`` whose value says so; how many stay."""
        page: list[_Pair] = []
        kept = 0
        async with aclosing(pairs):
            async for key, value in pairs:
                if not is_gone(value):
                    kept += 1
                    continue
                page.append((key, value))
                if len(page) == FORGET_MAX:
                    await self._remove(replica, page, horizon)
                    await asyncio.sleep(FORGET_PAUSE_S)
                    page = []
        await self._remove(replica, page, horizon)
        return kept

    async def _remove(self, replica: Replica, pairs: list[_Pair], horizon: Timestamp) -> None:
        """Those that are still as they were read, some time ago and beside what is in flight."""
        if not pairs:
            return
        draft, evaluation = replica.draft(), replica.evaluation
        assert evaluation is not None
        gone = [key for key, value in pairs if evaluation.plain(key) == value]
        if not gone:
            return
        draft.advance(self._clock.now())
        if horizon > read_horizon(evaluation):
            draft.put(keys.state(replica.group, b"horizon"), horizon.to_bytes(8, "big"))
        for key in gone:
            draft.delete(key)
        await replica.propose(draft, asyncio.get_running_loop().time() + self._deadline_s)
