"""Loads a code graph through the public API: batches, several connections to every node."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from app.demo.api import Api, Json
from app.demo.code_graph import CodeGraph

__all__ = ["Cids", "load_edges", "load_vertices"]

Cids = dict[str, str]
"""The CID of each vertex, by its name."""

BATCH_OPERATIONS: Final = 250
_CONNECTIONS_PER_NODE: Final = 2

Progress = Callable[[int], None]
"""Called with the number of operations that were just acknowledged."""


async def load_vertices(api: Api, graph: CodeGraph, progress: Progress) -> Cids:
    """Create all vertices; their CIDs."""
    operations: list[Json] = [
        {"op": "create_node", "labels": [vertex.label], "properties": vertex.properties}
        for vertex in graph.vertices
    ]
    cids = await _load(api, operations, progress)
    return {vertex.name: cid for vertex, cid in zip(graph.vertices, cids, strict=True)}


async def load_edges(api: Api, graph: CodeGraph, cids: Cids, progress: Progress) -> list[str]:
    """Create all edges; their CIDs. Most join two partitions: each such edge is a transaction."""
    operations: list[Json] = [
        {
            "op": "create_edge",
            "label": edge.label,
            "source_cid": cids[edge.source],
            "target_cid": cids[edge.target],
            "properties": edge.properties,
        }
        for edge in graph.edges
    ]
    return await _load(api, operations, progress)


async def _load(api: Api, operations: list[Json], progress: Progress) -> list[str]:
    run = secrets.token_hex(8)
    found: list[str] = [""] * len(operations)
    starts = iter(range(0, len(operations), BATCH_OPERATIONS))

    async def work(urls: Sequence[str]) -> None:
        for start in starts:
            batch = operations[start : start + BATCH_OPERATIONS]
            answer = await api.post(
                "/v1/operations/batch",
                {"operations": batch},
                urls=urls,
                key=f"{run}-{start}",
                timeout_s=30.0,
            )
            found[start : start + len(batch)] = [item["cid"] for item in answer["results"]]
            progress(len(batch))

    workers = [
        asyncio.create_task(work(urls))
        for urls in _own_node_first(api.urls)
        for _ in range(_CONNECTIONS_PER_NODE)
    ]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    return found


def _own_node_first(urls: list[str]) -> Iterator[list[str]]:
    for position in range(len(urls)):
        yield urls[position:] + urls[:position]
