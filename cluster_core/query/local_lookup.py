"""Tasks that name entities: load, locate, history."""

from __future__ import annotations

from typing import Final

from cluster_core.graph.records import record_version
from cluster_core.ports import DATA
from cluster_core.query.tasks import (
    HistoryResult,
    HistoryTask,
    LoadResult,
    LoadTask,
    Located,
    LocateResult,
    LocateTask,
    Stored,
    as_weight,
)
from cluster_core.query.work import Work, fitting, properties_of
from cluster_core.storage import keys
from cluster_core.storage.mvcc import versions
from cluster_core.types import Digest, group_of

__all__ = ["history", "load", "locate"]

_BURST: Final = 64
"""Look-ups between two looks at whether it is time to pause."""


async def load(task: LoadTask, work: Work) -> LoadResult:
    """Entities by first CID, at about 6 us each, or versions, at 15."""
    if task.exact:
        # The CID of a version that an undecided transaction wrote is on nobody's list of locks.
        for partition in sorted(set(task.partitions)):
            await work.settle_all(partition, past_holds=True)
    else:
        await work.settle_each(task.partitions, task.digests)
    fits = fitting(task.kind, [], task.where)
    result = LoadResult(0)
    size = read = weight = 0
    for partition, digest in zip(task.partitions, task.digests, strict=True):
        stored = (
            await _named(partition, digest, True, work)
            if task.exact
            else await work.read_settled(partition, digest)
        )
        if stored is not None and stored.record:
            weight += len(stored.record)
            if not fits(stored.record):
                stored = None
        size += _add_wanted(task, result, stored)
        read += 1
        if size >= work.budget.bytes:
            break
        if read >= _BURST:
            await work.spend(read, weight)
            read = weight = 0
    await work.spend(read, weight)
    result.scanned = work.scanned
    return result


def _add_wanted(task: LoadTask, result: LoadResult, stored: Stored | None) -> int:
    """Returns how many bytes the result grew by."""
    if task.want == "records":
        result.records.append(stored)
        return 0 if stored is None else len(stored.record)
    there = stored is not None and bool(stored.record)
    if task.want == "marks":
        result.marks.append(there)
        return 0
    assert task.weight is not None
    found = properties_of(stored.record).get(task.weight) if stored is not None and there else None
    result.weights.append(as_weight(found))
    return 0


async def locate(task: LocateTask, work: Work) -> LocateResult:
    """An entity lives in one partition, so what one of them knows is not looked for in the next."""
    found: list[Located] = []
    missing = list(dict.fromkeys(task.digests))
    for partition in sorted(set(task.partitions)):
        if task.thorough:
            await work.settle_all(partition, past_holds=True)
        else:
            await work.settle(partition, missing)
        missing = await _locate_in(partition, missing, task.exact, work, found)
    return LocateResult(work.scanned, found)


async def _locate_in(
    partition: int, digests: list[Digest], exact: bool, work: Work, found: list[Located]
) -> list[Digest]:
    """Appends to ``found``; returns what this partition does not know."""
    missing = []
    for digest in digests:
        stored = await _named(partition, digest, exact, work)
        await work.spend(1)
        if stored is None:
            missing.append(digest)
        else:
            found.append(Located(digest, partition, stored))
    return missing


async def _named(partition: int, digest: Digest, exact: bool, work: Work) -> Stored | None:
    """The entity, or the version, that ``digest`` names here; see :class:`LocateTask`."""
    stored = await work.read_settled(partition, digest)
    if stored is None:
        entity = work.engine.get(DATA, keys.version(group_of(partition), digest))
        await work.spend(1)
        return None if entity is None else await _version(partition, entity, digest, work)
    if not exact or (stored.record and record_version(stored.record) == digest):
        return stored
    return await _version(partition, digest, digest, work)


async def _version(partition: int, entity: Digest, version: Digest, work: Work) -> Stored | None:
    """The version ``version`` of ``entity``, unless it is newer than the read or collected."""
    for timestamp, record in versions(work.engine, keys.entity(group_of(partition), entity)):
        await work.spend(1)
        if record and record_version(record) == version:
            return Stored(entity, timestamp, record) if timestamp <= work.timestamp else None
    return None


async def history(task: HistoryTask, work: Work) -> HistoryResult:
    """The versions, newest first; bound ``history`` where the older ones are not kept any more.

    Kept are those above the horizon and the newest below it, however far this replica's collection
    has come: so every replica gives the same answer.
    """
    await work.settle(task.partition, [task.digest])
    await work.read_settled(task.partition, task.digest)
    result = HistoryResult(0, [])
    size = 0
    key = keys.entity(group_of(task.partition), task.digest)
    for timestamp, record in versions(work.engine, key):
        await work.spend(1, len(record))
        if timestamp > work.timestamp:
            continue
        if len(result.versions) >= task.limit:
            result.bound = "limit"
            break
        size += len(record)
        if size > work.budget.bytes and result.versions:
            result.bound = "bytes"
            break
        result.versions.append(Stored(task.digest, timestamp, record))
        if timestamp <= work.host.horizon(task.partition):
            break
    if result.bound is None and not _ends_with_the_first(result.versions):
        result.bound = "history"
    result.scanned = work.scanned
    return result


def _ends_with_the_first(versions: list[Stored]) -> bool:
    """An entity is called after its first version, and a deletion always has one below it."""
    return not versions or record_version(versions[-1].record) == versions[-1].digest
