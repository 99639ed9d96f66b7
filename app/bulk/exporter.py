"""Taking the graph out: nodes and edges page by page, and their blocks, all of one snapshot.

The first page says at which time the snapshot is; cursors stay in it, and what is asked for after
(the edges after the nodes) is asked for as of that time. Memory: two pages, since the next one
comes while the last is worked on.

An archive has one root, the *manifest*, from which everything in it can be reached::

    {"kind": "kotoba-export", "format": 1, "cluster": "…", "timestamp": "…",
     "counts": {"nodes": …, "edges": …, "blocks": …}, "collected": …,
     "nodes": [links to pages], "edges": [links to pages]}

A page is a list of links to the current versions' blocks. Each version's block links its
predecessor (``prev``), an edge's the nodes at its ends. ``collected`` counts predecessors that the
cluster no longer keeps: links to them lead out of the archive.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, BinaryIO, Final, Literal, NamedTuple

import orjson

from app.bulk.api import Api, one_ahead, together
from app.bulk.progress import Meter
from app.car import CarWriter, archived_blocks
from app.commands import CommandFailed
from cluster_core.graph.blocks import decode_block, link_of, linked_digest
from cluster_core.graph.cid import cid_text, parse_cid
from cluster_core.graph.values import Link
from cluster_core.types import Digest

__all__ = ["PAGE_ROWS", "Exported", "Exporter"]

PAGE_ROWS: Final = 2_000
_INDEX_LINKS: Final = 10_000
"""Links on one page of an archive's index: 400 KB, well below the 1 MiB that IPLD tools expect."""
_BLOCKS_ASKED: Final = 500
"""In one request: those of a page are read by four nodes at the same time."""
_TIMEOUT_MS: Final = 60_000

What = Literal["nodes", "edges"]


@dataclass(slots=True)
class Exported:
    """What was taken out."""

    timestamp: str
    nodes: int = 0
    edges: int = 0
    blocks: int = 0
    """In the archive: versions, pages of the index, the manifest."""
    collected: int = 0


@dataclass(slots=True)
class _Index:
    """The links of an archive to current versions, written out a page at a time."""

    car: CarWriter
    pages: list[Link] = field(default_factory=list)
    _open: list[Link] = field(default_factory=list)

    def add(self, digest: Digest) -> None:
        self._open.append(link_of(digest))
        if len(self._open) == _INDEX_LINKS:
            self.close()

    def close(self) -> None:
        if self._open:
            self.pages.append(link_of(self.car.add_content(self._open)))
            self._open = []


class _Wanted(NamedTuple):
    """A version's block, and the node in whose partition it is."""

    digest: Digest
    place: str


class Exporter:
    """See the module. ``as_of``: the time of the snapshot, else now."""

    def __init__(
        self, api: Api, meter: Meter, *, connections: int, as_of: str | None = None
    ) -> None:
        self._api = api
        self._meter = meter
        self._connections = connections
        self._as_of = as_of

    async def export(
        self, *, nodes: BinaryIO | None, edges: BinaryIO | None, car: BinaryIO | None
    ) -> Exported:
        """Write what is wanted: NDJSON of nodes, of edges, an archive of both."""
        done = Exported(timestamp="")
        archive = None if car is None else CarWriter(car)
        node_pages: list[Link] = []
        edge_pages: list[Link] = []
        if nodes is not None or archive is not None:
            done.nodes, node_pages = await self._take("nodes", nodes, archive, done)
        if edges is not None or archive is not None:
            done.edges, edge_pages = await self._take("edges", edges, archive, done)
        done.timestamp = self._as_of or ""
        if archive is not None:
            archive.finish(self._manifest(archive, done, node_pages, edge_pages))
            done.blocks = archive.blocks
        return done

    async def _take(
        self, what: What, stream: BinaryIO | None, archive: CarWriter | None, done: Exported
    ) -> tuple[int, list[Link]]:
        """How many there were, and the index pages that link to them in the archive."""
        index = None if archive is None else _Index(archive)
        count = 0
        self._meter.begin(what, await self._count(what))
        async for rows in one_ahead(self._pages(what)):
            if stream is not None:
                stream.write(_lines(rows))
            if index is not None:
                await self._archive(index, rows, done)
            count += len(rows)
            self._meter.advance(count, len(rows))
        if index is None:
            return count, []
        index.close()
        return count, index.pages

    async def _count(self, what: What) -> int | None:
        """How many will come, for the progress only; None where the cluster will not say."""
        body = {"query": {"kind": "count", "of": what}, "as_of": self._as_of}
        try:
            answer = await self._api.request("POST", "/v1/query", body=body, patience_s=0.0)
        except CommandFailed:
            return None
        document = answer.json()
        return None if document["truncated"] else int(document["rows"][0]["count"])

    async def _pages(self, what: What) -> AsyncIterator[list[dict[str, Any]]]:
        query: dict[str, Any] = {"kind": f"find_{what}", "limit": PAGE_ROWS}
        while True:
            request: dict[str, Any] = {"query": query, "timeout_ms": _TIMEOUT_MS}
            if self._as_of is not None and "cursor" not in query:
                request["as_of"] = self._as_of
            document = (await self._api.request("POST", "/v1/query", body=request)).json()
            if self._as_of is None or "cursor" not in query:
                self._as_of = document["timestamp"]
            if document["rows"]:
                yield document["rows"]
            if document["cursor"] is None:
                if document["truncated"]:
                    why = f"the cluster cut an answer short ({document['bound']})"
                    raise CommandFailed(f"{why}: not everything can be exported")
                return
            query["cursor"] = document["cursor"]

    # Blocks

    async def _archive(self, index: _Index, rows: Sequence[dict[str, Any]], done: Exported) -> None:
        """Add every version of the entities in ``rows``, newest first."""
        wanted = [_Wanted(parse_cid(row["version"]), _place_of(row)) for row in rows]
        for one in wanted:
            index.add(one.digest)
        blocks = await self._blocks(wanted)
        gone = next((one.digest for one in wanted if one.digest not in blocks), None)
        if gone is not None:
            raise CommandFailed(f"the cluster has no block of the version {cid_text(gone)}")
        while wanted:
            before: list[_Wanted] = []
            for one in wanted:
                block = blocks.get(one.digest)
                if block is None:
                    done.collected += 1
                    continue
                index.car.add(one.digest, block)
                prev = decode_block(block).get("prev")
                if isinstance(prev, Link):
                    before.append(_Wanted(linked_digest(prev), one.place))
            wanted = before
            blocks = await self._blocks(wanted)

    async def _blocks(self, wanted: Sequence[_Wanted]) -> dict[Digest, bytes]:
        """The blocks that are there, not verified; asked for over all connections."""
        blocks: dict[Digest, bytes] = {}
        starts = iter(range(0, len(wanted), _BLOCKS_ASKED))

        async def fetch() -> None:
            for start in starts:
                rest = wanted[start : start + _BLOCKS_ASKED]
                while rest:
                    found, rest = await self._some_blocks(rest)
                    blocks.update(found)

        await together(fetch() for _ in range(self._connections))
        return blocks

    async def _some_blocks(
        self, wanted: Sequence[_Wanted]
    ) -> tuple[dict[Digest, bytes], Sequence[_Wanted]]:
        """What one request gives, and what is to be asked for by another."""
        body = {
            "cids": [cid_text(one.digest) for one in wanted],
            "source_cids": [one.place for one in wanted],
            "timeout_ms": _TIMEOUT_MS,
        }
        answer = await self._api.request("POST", "/v1/blocks", body=body, accept=(200, 404))
        if answer.status == HTTPStatus.NOT_FOUND:
            return {}, ()
        found = dict(archived_blocks(answer.content))
        if "kotoba-truncated" not in answer.headers:
            return found, ()
        places = (place for place, one in enumerate(wanted) if one.digest in found)
        last = max(places, default=len(wanted))
        return found, wanted[last + 1 :]

    def _manifest(
        self,
        archive: CarWriter,
        done: Exported,
        node_pages: list[Link],
        edge_pages: list[Link],
    ) -> Digest:
        return archive.add_content(
            {
                "kind": "kotoba-export",
                "format": 1,
                "cluster": self._api.cluster_id,
                "timestamp": done.timestamp,
                "counts": {
                    "nodes": done.nodes,
                    "edges": done.edges,
                    "blocks": archive.blocks + 1,
                },
                "collected": done.collected,
                "nodes": node_pages,
                "edges": edge_pages,
            }
        )


def _place_of(row: dict[str, Any]) -> str:
    """The node in whose partition the entity lives."""
    place: str = row.get("source_cid") or row["cid"]
    return place


def _lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
