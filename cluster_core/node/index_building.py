"""Builds and clears property indexes: what each partition's leader does about the index table.

Everything goes through the partition's own log, in bounded commands, and any leader can go on where
another one stopped, because each step can be repeated:

1. BUILDING is put into the log. From that entry on every evaluation maintains the index.
2. Transactions that were prepared before that entry were evaluated without the index: their intents
   are waited for.
3. The backfill enters every entity with the label that has no entry. It obeys the locks of
   transactions like any other write, so what it saw of an entity cannot change before its entry is
   in the log.
4. READY is put into the log: reads at or above its timestamp may use the index.

A dropped index is first no longer maintained (DROPPING), then what was prepared before is waited
for, the entries are deleted, and GONE remains: by it a leader that has not heard of the drop knows
better than to build the index once more.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import islice
from typing import Final

from cluster_core.config import ClusterConfig
from cluster_core.errors import Conflict, KotobaError, NoLeader, Overloaded
from cluster_core.graph.blocks import decode_block
from cluster_core.graph.indexes import (
    PRESENT,
    IndexDefinition,
    IndexState,
    content_labels,
    value_key,
)
from cluster_core.graph.parts import LockKind
from cluster_core.graph.records import EDGE, VERTEX, edge_ends, record_block, record_kind
from cluster_core.hlc import HybridClock
from cluster_core.node.index_table import IndexTable
from cluster_core.ports import DATA, Engine
from cluster_core.replication.evaluation import Evaluation
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import Router
from cluster_core.storage import keys, mvcc
from cluster_core.types import META_GROUP, Digest, GroupId, Timestamp

__all__ = ["IndexBuilder"]

log = logging.getLogger("kotoba.indexes")

LOOK_EVERY_S: Final = 0.1
"""Between two looks at the table; nothing is done when neither it nor a leadership changed."""

ENTRIES_MAX: Final = 128
"""Entities in one command of a backfill: a millisecond of evaluation, some 50 kB of log."""

CLEAR_MAX: Final = 1_000
"""Entries deleted by one command."""

GROUPS_MAX: Final = 4
"""Partitions of this node that are built at the same time; clients come first."""

LOCK_WAIT_S: Final = 0.05

INTENT_WAIT_S: Final = 5.0
"""Longer than the life of an orphan; a partition that decides nothing is left for the next look."""


class IndexBuilder:
    """See the module."""

    def __init__(
        self,
        table: IndexTable,
        router: Router,
        engine: Engine,
        clock: HybridClock,
        config: ClusterConfig,
    ) -> None:
        self._table = table
        self._router = router
        self._engine = engine
        self._clock = clock
        self._timeout_s = config.limits.timeout_ms / 1000
        self._done: dict[GroupId, tuple[Evaluation, tuple[IndexDefinition, ...]]] = {}
        """For which leadership and which table a group has nothing left to do."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self._follow_all(self._table.known())
            except Exception:
                # An index that is never finished harms nobody; a loop that has ended would.
                log.exception("building the indexes failed")

    async def _follow_all(self, wanted: tuple[IndexDefinition, ...]) -> None:
        if not wanted:
            return
        behind = [
            replica
            for group, replica in self._router.host.replicas.items()
            if group != META_GROUP and replica.evaluation is not None
            if self._done.get(group) != (replica.evaluation, wanted)
        ]
        if behind:
            turns = asyncio.Semaphore(GROUPS_MAX)
            async with asyncio.TaskGroup() as group:
                for replica in behind:
                    group.create_task(self._follow(replica, wanted, turns))

    async def _follow(
        self, replica: Replica, wanted: tuple[IndexDefinition, ...], turns: asyncio.Semaphore
    ) -> None:
        async with turns:
            evaluation = replica.evaluation
            if evaluation is None:
                return
            try:
                for definition in wanted:
                    if definition.state is IndexState.DROPPING:
                        await self._clear(replica, evaluation, definition)
                    else:
                        await self._build(replica, evaluation, definition)
                self._done[replica.group] = (evaluation, wanted)
            except KotobaError as error:
                log.debug("indexes of group %d, next time: %s", replica.group, error.detail)

    # Building.

    async def _build(
        self, replica: Replica, evaluation: Evaluation, definition: IndexDefinition
    ) -> None:
        own = evaluation.definitions.get(definition.id)
        if own is None:
            own = await self._put(replica, evaluation, definition, IndexState.BUILDING)
        if own.state is not IndexState.BUILDING:
            return
        await self._wait_for_earlier(replica, own.since)
        for kind in (VERTEX, EDGE):
            after = b""
            while digests := self._labelled(replica.group, kind, definition.label, after):
                after = digests[-1]
                await self._enter(replica, evaluation, own, kind, digests)
        await self._put(replica, evaluation, own, IndexState.READY)

    async def _put(
        self,
        replica: Replica,
        evaluation: Evaluation,
        definition: IndexDefinition,
        state: IndexState,
    ) -> IndexDefinition:
        _require_leading(replica, evaluation)
        draft = replica.draft()
        draft.advance(self._clock.now())
        moved = IndexDefinition(
            definition.id, definition.label, definition.property, state, draft.timestamp
        )
        draft.define(moved)
        await replica.propose(draft, self._deadline())
        return moved

    async def _wait_for_earlier(self, replica: Replica, since: Timestamp) -> None:
        """Until no intent is left that was evaluated before the entry at ``since``.

        That entry is applied, so all that was prepared before it is known to the replica.
        """
        assert replica.applied_timestamp >= since
        while (intent := replica.intents.undecided(since, None)) is not None:
            try:
                async with asyncio.timeout(INTENT_WAIT_S):
                    await replica.intents.decided(intent.transaction)
            except TimeoutError:
                raise Conflict("a transaction is not decided yet") from None

    def _labelled(self, group: GroupId, kind: int, label: str, after: Digest) -> list[Digest]:
        """The next entities with ``label``: a look of its own each time, since an open scan would
        keep the store from letting go of what is overwritten."""
        prefix = keys.label_prefix(group, kind, label)
        begin = prefix + after + keys.ALL_VERSIONS if after else prefix
        found = mvcc.scan_newest(self._engine, begin, keys.after(prefix))
        return [user_key[-32:] for user_key, _, _ in islice(found, ENTRIES_MAX)]

    async def _enter(
        self,
        replica: Replica,
        evaluation: Evaluation,
        definition: IndexDefinition,
        kind: int,
        digests: list[Digest],
    ) -> None:
        """Enter those of ``digests`` that have no entry; returns when that is applied."""
        while digests:
            _require_leading(replica, evaluation)
            try:
                draft = replica.draft()
            except Overloaded:
                await asyncio.sleep(LOOK_EVERY_S)  # clients come first
                continue
            draft.advance(self._clock.now())
            locked: list[Digest] = []
            for digest in digests:
                if evaluation.locks.conflict(_locks_of(evaluation, kind, digest), b""):
                    locked.append(digest)
                    continue
                key = missing_entry(evaluation, definition, kind, digest)
                if key is not None:
                    draft.write(key, PRESENT, draft.timestamp)
            waits = [evaluation.locks.released(digest) for digest in locked[:1]]
            if draft:
                await replica.propose(draft, self._deadline())
            if waits:
                await asyncio.wait(waits, timeout=LOCK_WAIT_S)
                for wait in waits:
                    _observe(wait)
            await asyncio.sleep(0)
            digests = locked

    # Clearing.

    async def _clear(
        self, replica: Replica, evaluation: Evaluation, definition: IndexDefinition
    ) -> None:
        own = evaluation.definitions.get(definition.id)
        if own is None or own.state < IndexState.DROPPING:
            own = await self._put(replica, evaluation, definition, IndexState.DROPPING)
        if own.state is IndexState.GONE:
            return
        await self._wait_for_earlier(replica, own.since)
        prefix = keys.index_prefix(replica.group, definition.id)
        while True:
            scan = self._engine.scan(DATA, prefix, keys.after(prefix))
            entries = [key for key, _ in islice(scan, CLEAR_MAX)]
            if not entries:
                break
            _require_leading(replica, evaluation)
            draft = replica.draft()
            draft.advance(self._clock.now())
            for key in entries:
                draft.delete(key)
            await replica.propose(draft, self._deadline())
        await self._put(replica, evaluation, own, IndexState.GONE)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._timeout_s


def _locks_of(evaluation: Evaluation, kind: int, digest: Digest) -> list[tuple[Digest, LockKind]]:
    """The entity, and of an edge its ends, since it may go with them."""
    locks = [(digest, LockKind.WRITE)]
    if kind == EDGE and evaluation.locks:
        found = evaluation.newest(keys.entity(evaluation.group, digest))
        ends = () if found is None else edge_ends(found[1])
        locks += [(end, LockKind.SHARED) for end in ends]
    return locks


def missing_entry(
    evaluation: Evaluation, definition: IndexDefinition, kind: int, digest: Digest
) -> bytes | None:
    """The entry that an entity should have and does not, as of all that was evaluated here."""
    found = evaluation.newest(keys.entity(evaluation.group, digest))
    if found is None or not found[1]:
        return None
    record = found[1]
    content = decode_block(record_block(record))
    if record_kind(record) != kind or definition.label not in content_labels(content):
        return None
    value = value_key(content["properties"].get(definition.property))
    key = keys.valued(evaluation.group, definition.id, kind, value, digest)
    entry = evaluation.newest(key)
    return key if entry is None or not entry[1] else None


def _require_leading(replica: Replica, evaluation: Evaluation) -> None:
    if replica.evaluation is not evaluation:
        raise NoLeader("leadership was lost; the next leader goes on")


def _observe(future: asyncio.Future[None]) -> None:
    """A wait that nobody needs any more is no error."""
    if future.done():
        if not future.cancelled():
            future.exception()
    else:
        future.cancel()
