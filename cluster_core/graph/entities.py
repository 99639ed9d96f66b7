"""Vertices and edges as readers see them: one version each, with its times."""

from __future__ import annotations

import msgspec

from cluster_core.graph.values import Value
from cluster_core.types import Digest, Timestamp

__all__ = ["Edge", "Entity", "Vertex"]


class Vertex(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """A node of the graph. ``digest`` names the vertex, ``version`` this state of it."""

    digest: Digest
    version: Digest
    labels: tuple[str, ...]
    properties: dict[str, Value]
    created_at: Timestamp
    updated_at: Timestamp


class Edge(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """A directed edge from vertex ``source`` to vertex ``target``."""

    digest: Digest
    version: Digest
    label: str
    source: Digest
    target: Digest
    properties: dict[str, Value]
    created_at: Timestamp
    updated_at: Timestamp


Entity = Vertex | Edge
