"""Tasks, run over the local engine.

Every task first waits until the replicas that it reads are as far as the read point says, and until
the transactions in its way are decided; from then on nothing at or below the read's timestamp can
change, so all of its reads, also those after a pause, belong to one snapshot.

The loops let the event loop run every :data:`PAUSE_AFTER` stored pairs, about 2 ms, so a query
never holds up the node's Raft groups, and it ends there when it is cancelled or its time is over.
They read the engine's batches themselves instead of through ``storage/mvcc.py``, because an
iterator that passes over many invisible versions could not pause.
"""

from __future__ import annotations

import asyncio

from cluster_core.errors import NoLeader, OutcomeUnknown
from cluster_core.query.host import QueryHost, ReadAgain, ReadPoint
from cluster_core.query.local_expand import expand
from cluster_core.query.local_lookup import history, load, locate
from cluster_core.query.local_scan import count, scan
from cluster_core.query.tasks import (
    Again,
    Budget,
    CountTask,
    ExpandTask,
    HistoryTask,
    LoadTask,
    LocateTask,
    Result,
    ScanTask,
    Task,
    decode_request,
    encode_result,
)
from cluster_core.query.work import Work

__all__ = ["run_task", "run_task_bytes"]


async def run_task_bytes(host: QueryHost, request: bytes) -> bytes:
    """The serving side of :meth:`QueryHost.run_remote`. Raises a KotobaError."""
    asked = decode_request(request)
    try:
        async with asyncio.timeout(asked.timeout_ms / 1000):
            return encode_result(await run_task(asked.task, host, asked.point, asked.budget))
    except ReadAgain as again:
        return encode_result(Again(again.timestamp))
    except TimeoutError:
        raise OutcomeUnknown("the query's timeout_ms is over", bound="timeout_ms") from None


async def run_task(task: Task, host: QueryHost, point: ReadPoint, budget: Budget) -> Result:
    """Run ``task`` here. Raises ReadAgain, and what the host raises when it cannot serve."""
    partitions = partitions_of(task)
    replicas = [host.require_history(partition, point.timestamp) for partition in partitions]
    for partition in partitions:
        index = point.applied.get(partition)
        if index is not None:
            await host.wait_applied(partition, index)
    result = await _run(task, Work(host, point, budget))
    if replicas != [host.require_history(partition, point.timestamp) for partition in partitions]:
        raise NoLeader("a replica was replaced while it was read; ask again")
    return result


async def _run(task: Task, work: Work) -> Result:
    match task:
        case LoadTask():
            return await load(task, work)
        case LocateTask():
            return await locate(task, work)
        case ScanTask():
            return await scan(task, work)
        case CountTask():
            return await count(task, work)
        case ExpandTask():
            return await expand(task, work)
        case HistoryTask():
            return await history(task, work)


def partitions_of(task: Task) -> list[int]:
    """The partitions that ``task`` reads, each once, in ascending order."""
    if isinstance(task, HistoryTask):
        return [task.partition]
    return sorted(set(task.partitions))
