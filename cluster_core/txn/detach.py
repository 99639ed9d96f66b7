"""Deleting a vertex that has very many edges: one transaction, whose edges follow in chunks.

The transaction itself is small. Its home deletes the vertex, and every other partition holds the
vertex EXCLUSIVE (``HoldEdges``), which stands for all its edges there: nothing that depends on one
of them can be prepared, and a read that meets one waits. From prepare on, the edges are those that
the vertex's adjacency lists in its home partition, and no others.

Once the record is COMMITTED, and not before, the vertex is deleted, and what is left of its home's
intent holds the edges there as well. The home's leader walks that adjacency page by page:

1. The halves of the page's edges in other partitions are deleted, at the commit timestamp.
2. When all of that is applied, so are the halves at home. What the adjacency still lists is what
   remains to be done: any later leader goes on from there.
3. When nothing is left, the intents go, and the record (``settlement.py``).

A chunk may come twice, or late: it is evaluated only while the intent of its partition is there,
and of edges that are still there. No entry of a log has more than ``detach_chunk_keys_max`` keys
(and those of one edge), and nobody holds more in memory than a page.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from itertools import islice
from typing import Final

import msgspec

from cluster_core.config import ClusterConfig
from cluster_core.errors import Conflict, KotobaError
from cluster_core.graph.decompose import too_many_edges
from cluster_core.graph.evaluate import evaluate
from cluster_core.graph.parts import DropEdge, DropEdgeIn, Part, encode_change
from cluster_core.graph.values import encode_message, message_decoder
from cluster_core.hlc import HybridClock
from cluster_core.ports import Engine
from cluster_core.replication.evaluation import Draft, Evaluation
from cluster_core.replication.router import Router, confirm
from cluster_core.storage import keys, mvcc
from cluster_core.types import Digest, GroupId, NodeId, Timestamp, group_of, partition_of

__all__ = ["EdgeDeletion"]

log = logging.getLogger("kotoba.detach")

PAGE_CHUNKS: Final = 4
"""Edges of a page, in multiples of the keys of a chunk: with 64 partitions each gets some 60 edges
of a page by default, which are one entry of its log."""

PARTITIONS_AT_ONCE: Final = 8
"""Partitions that delete their part of a page at the same time: 60 edges each are a millisecond or
two of evaluation, and all of it may be at one node, in one turn of the event loop."""

LOOK_ENTRIES: Final = 1_000
"""Entries of an adjacency read between two pauses: a millisecond or two. Of deleted edges, too: a
vertex may have had a million, whose tombstones stay as long as history is kept."""

REMEMBERED_MAX: Final = 64
"""Deletions of which this node remembers how far it came."""


class EdgesRequest(msgspec.Struct, array_like=True, frozen=True):
    """Delete these halves of edges in ``group``, as ``transaction`` did at ``commit``."""

    group: GroupId
    transaction: bytes
    commit: Timestamp
    parts: list[Part]


_decode_request = message_decoder(EdgesRequest)


class EdgeDeletion:
    """See the module."""

    def __init__(
        self,
        router: Router,
        engine: Engine,
        clock: HybridClock,
        config: ClusterConfig,
        partition_count: int,
    ) -> None:
        self._router = router
        self._engine = engine
        self._clock = clock
        self._limits = config.limits
        self._partition_count = partition_count
        self._running: set[bytes] = set()
        self._reached: dict[tuple[bytes, bytes], bytes] = {}
        """By transaction and table: up to here nothing is left, so who tries again begins here."""
        router.mesh.handle("txn.edges", self._serve_edges)

    async def require_countable(self, home: GroupId, vertex: Digest) -> None:
        """Raise TooLarge for a vertex with more edges than may be deleted with it, as of some
        moment of this call."""
        await confirm(self._router.leading(home))
        bound, count = self._limits.detach_edges_max, 0
        for prefix in (keys.out_prefix(home, vertex), keys.in_prefix(home, vertex)):
            after = b""
            while page := await self._page(prefix, after, LOOK_ENTRIES):
                after = page[-1][0]
                count += len(page)
                if count > bound:
                    raise too_many_edges("detach_edges_max", bound)
                await asyncio.sleep(0)

    async def delete_edges(
        self, home: GroupId, transaction: bytes, vertex: Digest, commit: Timestamp
    ) -> bool:
        """Delete all edges of ``vertex``, whose deletion is COMMITTED; True when none is left.

        What fails on the way is left to the next sweep, here or at the next leader.
        """
        if transaction in self._running:
            return False
        self._running.add(transaction)
        try:
            for prefix in (keys.out_prefix(home, vertex), keys.in_prefix(home, vertex)):
                await self._delete_listed(home, transaction, vertex, commit, prefix)
        except KotobaError as error:
            log.debug("the edges of a vertex, next time: %s", error.detail)
            return False
        finally:
            self._running.discard(transaction)
        return True

    async def _delete_listed(
        self,
        home: GroupId,
        transaction: bytes,
        vertex: Digest,
        commit: Timestamp,
        prefix: bytes,
    ) -> None:
        table = prefix[2:3]
        outward = table == keys.OUT
        after = self._reached.get((transaction, table), b"")
        page_edges = PAGE_CHUNKS * self._limits.detach_chunk_keys_max
        turns = asyncio.Semaphore(PARTITIONS_AT_ONCE)
        while True:
            self._router.leading(home)
            page = await self._page(prefix, after, page_edges)
            if not page:
                self._reached.pop((transaction, table), None)
                return
            after = page[-1][0]
            here, elsewhere = self._halves(home, vertex, page, outward=outward)
            await asyncio.gather(
                *(
                    self._delete_at(EdgesRequest(group, transaction, commit, parts), turns)
                    for group, parts in sorted(elsewhere.items())
                )
            )
            await self._delete_here(EdgesRequest(home, transaction, commit, here))
            self._remember(transaction, table, after)

    def _remember(self, transaction: bytes, table: bytes, after: bytes) -> None:
        self._reached[transaction, table] = after
        if len(self._reached) > REMEMBERED_MAX:
            del self._reached[next(iter(self._reached))]

    async def _page(self, prefix: bytes, after: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """The next live entries of an adjacency, as many as ``count``; none when it is at its end.

        Each look is one of its own, since an open scan would keep the store from letting go of what
        is overwritten.
        """
        page: list[tuple[bytes, bytes]] = []
        end = keys.after(prefix)
        while True:
            begin = after + keys.ALL_VERSIONS if after else prefix
            found = mvcc.scan_newest(self._engine, begin, end, dead=True)
            looked = 0
            for user_key, _, far in islice(found, LOOK_ENTRIES):
                looked += 1
                after = user_key
                if far:
                    page.append((user_key, far))
                    if len(page) == count:
                        return page
            if looked < LOOK_ENTRIES:
                return page
            await asyncio.sleep(0)

    def _halves(
        self, home: GroupId, vertex: Digest, page: list[tuple[bytes, bytes]], *, outward: bool
    ) -> tuple[list[Part], dict[GroupId, list[Part]]]:
        """What is to be deleted at home, and in other partitions. The half that is listed comes
        last, also where both are at home: until it goes, whoever goes on finds the other one."""
        here: list[Part] = []
        elsewhere: dict[GroupId, list[Part]] = {}
        for key, far in page:
            label, edge = keys.split_adjacency(key)
            source, target = (vertex, far) if outward else (far, vertex)
            record = DropEdge(edge, label, source, target, detached=True)
            entry = DropEdgeIn(edge, label, target)
            own, other = (record, entry) if outward else (entry, record)
            group = group_of(partition_of(far, self._partition_count))
            (here if group == home else elsewhere.setdefault(group, [])).append(other)
            here.append(own)
        return here, elsewhere

    # A chunk.

    async def _delete_at(self, request: EdgesRequest, turns: asyncio.Semaphore) -> None:
        """At the leader of the request's group, wherever that is, when it has its turn."""

        async def ask(node: NodeId) -> bytes:
            if node == self._router.node_id:
                await self._delete_here(request)
                return b""
            body = encode_message(request)
            timeout = self._limits.timeout_ms / 1000
            return await self._router.mesh.request(node, "txn.edges", body, timeout=timeout)

        async with turns:
            await self._router.at_leader(request.group, self._deadline(), ask)

    async def _serve_edges(self, peer: NodeId, body: bytes) -> bytes:
        await self._delete_here(_decode_request(body))
        return b""

    async def _delete_here(self, request: EdgesRequest) -> None:
        """Returns when it is applied, or was before. Raises NoLeader, StorageFull and the like."""
        parts = iter(request.parts)
        more = bool(request.parts)
        while more:
            replica = self._router.leading(request.group)
            evaluation = replica.evaluation
            assert evaluation is not None
            if evaluation.intent(request.transaction) is None:
                await confirm(replica)  # all of it was done, and the intent is gone
                return
            replica.require_room()
            draft = replica.draft()
            draft.advance(self._clock.now())
            more = self._fill(draft, evaluation, request.commit, parts)
            if draft:
                await replica.propose(draft, self._deadline())
            else:
                await confirm(replica)

    def _fill(
        self,
        draft: Draft,
        evaluation: Evaluation,
        commit: Timestamp,
        parts: Iterator[Part],
    ) -> bool:
        """Put the next of ``parts`` into ``draft``; False when they are at an end."""
        written = 0
        for part in parts:
            written += self._delete(draft, evaluation, commit, part)
            if written >= self._limits.detach_chunk_keys_max:
                return True
        return False

    def _delete(self, draft: Draft, evaluation: Evaluation, commit: Timestamp, part: Part) -> int:
        """How many keys it took: none, where the edge went with an earlier try."""
        try:
            outcome = evaluate(part, evaluation, self._limits)
        except Conflict:
            return 0
        live = [
            (key, value)
            for key, value in outcome.writes
            if (found := evaluation.newest(key)) is not None and found[1]
        ]
        for key, value in live:
            draft.write(key, value, commit)
        if outcome.change is not None:
            draft.change(outcome.change.entity, encode_change(outcome.change), commit)
        return len(live) + (outcome.change is not None)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._limits.timeout_ms / 1000
