"""The sweep: finishes what dead coordinators left, and forgets what nobody can ask for any more.

Each node sweeps the groups that it leads. Everything it removes goes through the group's log, so
replicas stay identical.
"""

from __future__ import annotations

import asyncio
import logging
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
from cluster_core.txn.transactions import Transactions
from cluster_core.types import Timestamp

__all__ = ["Sweep"]

log = logging.getLogger("kotoba.sweep")

FORGET_EVERY: Final = 60
"""Sweeps between two looks for what has expired; a look reads whole tables."""

FORGET_MAX: Final = 1_000
"""Entries forgotten by one command, so that no entry of the log becomes a giant."""


class Sweep:
    """See the module."""

    def __init__(
        self, router: Router, transactions: Transactions, clock: HybridClock, config: ClusterConfig
    ) -> None:
        self._router = router
        self._transactions = transactions
        self._clock = clock
        self._config = config.replication
        self._deadline_s = config.limits.timeout_ms / 1000

    async def run(self) -> None:
        """Sweep until cancelled."""
        rounds = 0
        while True:
            await asyncio.sleep(self._config.sweep_interval_ms / 1000)
            rounds += 1
            led = [one for one in self._router.host.replicas.values() if one.evaluation is not None]
            forget = rounds % FORGET_EVERY == 0
            await asyncio.gather(*(self._sweep(replica, forget=forget) for replica in led))

    async def _sweep(self, replica: Replica, *, forget: bool) -> None:
        silence_ms = self._config.coordinator_silence_ms
        silent_since = asyncio.get_running_loop().time() - silence_ms / 1000
        try:
            if replica.intents:
                await self._transactions.recover_intents(replica, silent_since)
            await self._transactions.recover_records(replica, self._ago(silence_ms))
            if forget:
                await self._forget(replica)
        except KotobaError as error:
            log.debug("group %d, next time: %s", replica.group, error.detail)
        except Exception:
            # The sweep is what ends the life of orphans: it must outlive any bug in its way.
            log.exception("the sweep of group %d failed", replica.group)

    def _ago(self, ms: int) -> Timestamp:
        return self._clock.latest - (ms << 16)

    async def _forget(self, replica: Replica) -> None:
        """Refusals and ABORTED records behind the horizon, which itself moves first; and dedupe
        entries older than they are promised to be kept."""
        evaluation = replica.evaluation
        if evaluation is None:
            return
        group, horizon = replica.group, self._ago(self._config.transaction_horizon_ms)
        expired = self._expired_dedupe(replica)
        behind = self._behind(replica, horizon)
        if not expired and not behind:
            return
        draft = replica.draft()
        draft.advance(self._clock.now())
        if behind and horizon > read_horizon(evaluation):
            draft.put(keys.state(group, b"horizon"), horizon.to_bytes(8, "big"))
        for key in (behind + expired)[:FORGET_MAX]:
            draft.delete(key)
        await replica.propose(draft, asyncio.get_running_loop().time() + self._deadline_s)

    def _behind(self, replica: Replica, horizon: Timestamp) -> list[bytes]:
        group = replica.group
        refusals = [
            keys.refusal(group, transaction)
            for transaction, begin in replica.table(keys.REFUSAL)
            if int.from_bytes(begin, "big") <= horizon
        ]
        records = [
            keys.record(group, transaction)
            for transaction, value in replica.table(keys.RECORD)
            if (record := decode_record(value)).state is RecordState.ABORTED
            and record.begin <= horizon
        ]
        return refusals + records

    def _expired_dedupe(self, replica: Replica) -> list[bytes]:
        """Also counts what is kept: a partition whose dedupe entries are full takes no more."""
        oldest = self._ago(self._config.dedupe_retention_ms)
        entries = replica.table(keys.DEDUPE)
        expired = [
            keys.dedupe(replica.group, nonce)
            for nonce, value in entries
            if decode_dedupe(value).timestamp < oldest
        ]
        kept = len(entries) - len(expired)
        replica.dedupe_full = kept >= self._config.dedupe_entries_max
        return expired
