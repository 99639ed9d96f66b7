"""Questions to the loaded graph that a Python programmer may have, and their answers as text."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

from app.demo.api import Api, Json
from app.demo.load import Cids

__all__ = ["Answer", "Asked", "ask_all"]

_PAGE: Final = 5_000
_TOP: Final = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """A question, its answer in a few lines, and what it took."""

    question: str
    lines: Sequence[str]
    how: str
    seconds: float


@dataclass(slots=True)
class Asked:
    """A loaded graph that can be asked."""

    api: Api
    cids: Cids
    names: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = {cid: name for name, cid in self.cids.items()}

    async def importers(self, module: str, steps: int) -> list[tuple[str, int]]:
        """The modules that import ``module`` within ``steps`` steps, with their distance."""
        answer = await self.api.query(
            {
                "kind": "traverse",
                "start": [self.cids[module]],
                "direction": "in",
                "edge_labels": ["IMPORTS"],
                "max_depth": steps,
                "limit": _PAGE,
            }
        )
        return [(row["node"]["properties"]["name"], row["depth"]) for row in answer["rows"]]

    async def import_path(self, source: str, target: str) -> list[tuple[str, bool]]:
        """The shortest chain of imports; each module with whether it is imported lazily."""
        answer = await self.api.query(
            {
                "kind": "shortest_path",
                "source": self.cids[source],
                "target": self.cids[target],
                "direction": "out",
                "edge_labels": ["IMPORTS"],
                "max_depth": 30,
            }
        )
        if not answer["rows"]:
            return []
        path = answer["rows"][0]
        names = [self.names[_cid(node)] for node in path["nodes"]]
        lazy = [False] + [bool(edge["properties"].get("lazy")) for edge in path["edges"]]
        return list(zip(names, lazy, strict=True))

    async def edges(self, label: str) -> list[tuple[str, str]]:
        """All edges of a label, page by page, as (source, target) names."""
        found: list[tuple[str, str]] = []
        query: Json = {"kind": "find_edges", "label": label, "limit": _PAGE}
        while True:
            answer = await self.api.query(query)
            found += [
                (self.names[row["source_cid"]], self.names[row["target_cid"]])
                for row in answer["rows"]
            ]
            if not answer["cursor"]:
                return found
            query["cursor"] = answer["cursor"]

    async def most(self, label: str, count: int) -> list[tuple[str, int]]:
        """The targets with most edges of a label."""
        answer = await self.api.query(
            {"kind": "count", "of": "edges", "label": label, "group_by": "name"}
        )
        counted = [(row["group"], row["count"]) for row in answer["rows"]]
        return sorted(counted, key=lambda item: (-item[1], item[0]))[:count]

    async def counts(self) -> tuple[int, int]:
        """The number of vertices and of edges that the cluster has."""
        vertices, edges = await asyncio.gather(
            self.api.query({"kind": "count", "of": "nodes"}),
            self.api.query({"kind": "count", "of": "edges"}),
        )
        return _only_count(vertices), _only_count(edges)


async def ask_all(asked: Asked) -> list[Answer]:
    """Ask everything, one question after the other."""
    return [
        await _who_imports_ssl(asked),
        await _how_json_reaches_socket(asked),
        await _longest_inheritance(asked),
        await _most(asked, "IMPORTS", "Which modules are imported by most others?"),
        await _most(asked, "CALLS", "What is called from most places?"),
    ]


async def _who_imports_ssl(asked: Asked) -> Answer:
    began = time.perf_counter()
    found = sorted(await asked.importers("ssl", 2))
    seconds = time.perf_counter() - began
    steps: dict[int, list[str]] = defaultdict(list)
    for name, depth in found:
        steps[depth].append(name)
    lines = [
        f"{depth} step{'s' * (depth > 1)}: {_some(names)}" for depth, names in sorted(steps.items())
    ]
    how = f"{len(found)} modules; traverse IMPORTS, inwards, 2 deep"
    return Answer("What imports ssl within two steps?", lines, how, seconds)


async def _how_json_reaches_socket(asked: Asked) -> Answer:
    began = time.perf_counter()
    path = await asked.import_path("json", "socket")
    seconds = time.perf_counter() - began
    text = path[0][0] if path else "not at all"
    for name, lazy in path[1:]:
        text += f" {'⇢' if lazy else '→'} {name}"
    how = "shortest_path over IMPORTS; ⇢ is an import inside a function"
    return Answer("How does json reach socket?", [text], how, seconds)


async def _longest_inheritance(asked: Asked) -> Answer:
    began = time.perf_counter()
    edges = await asked.edges("INHERITS")
    chain = longest_chain(edges)
    seconds = time.perf_counter() - began
    how = f"find_edges, {len(edges):,} INHERITS in pages; the chain is found in the client"
    line = " → ".join(name.removeprefix("builtins.") for name in chain)
    return Answer("Which is the longest chain of inheritance?", [line], how, seconds)


async def _most(asked: Asked, label: str, question: str) -> Answer:
    began = time.perf_counter()
    found = await asked.most(label, _TOP)
    seconds = time.perf_counter() - began
    line = ", ".join(f"{name.removeprefix('builtins.')} {count:,}" for name, count in found)
    return Answer(question, [line], f"count {label} by target", seconds)


def longest_chain(edges: Sequence[tuple[str, str]]) -> list[str]:
    """The longest path along the edges, the first by name of equal ones. The edges form no ring."""
    targets: dict[str, list[str]] = defaultdict(list)
    for source, target in sorted(edges):
        targets[source].append(target)

    @cache
    def below(name: str) -> tuple[str, ...]:
        return (name, *_longest([below(target) for target in targets[name]]))

    return list(_longest([below(name) for name in list(targets)]))


def _longest(chains: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return max(chains, key=len, default=())


def _some(names: list[str], most: int = 9) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _cid(node: Any) -> str:
    return node if isinstance(node, str) else str(node["cid"])


def _only_count(answer: Json) -> int:
    return int(answer["rows"][0]["count"]) if answer["rows"] else 0
