"""Clients that write and read through the REST API of real nodes, and write down what they saw.

Each is sequential, asks its nodes in turn, and retries under one Idempotency-Key; its history is
checked like those of the simulator.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from tests.simulation import models
from tests.simulation.linearizability import UNKNOWN, Operation, check

__all__ = ["Recorder"]

_ATTEMPT_S: Final = 1.5
_ATTEMPTS: Final = 6
_CROWD: Final = 8
"""Everybody works on the newest few vertices, so that operations meet."""


@dataclass(slots=True, eq=False)
class _Vertex:
    cid: str
    versions: list[str]
    gone: bool = False


class _Unsure(Exception):
    """Some attempt may have taken effect, or may yet."""


class _NotExecuted(Exception):
    """Every attempt said for certain that it did nothing."""


@dataclass(slots=True)
class Recorder:
    """All clients and their common history."""

    urls: Sequence[str]
    seed: int
    events: list[Operation] = field(default_factory=list)
    vertices: list[_Vertex] = field(default_factory=list)
    acknowledged: int = 0
    complaints: list[str] = field(default_factory=list)
    """Answers that no fault explains."""
    stopping: bool = False
    _positions: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _values: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def run(self, clients: int) -> None:
        """Until ``stopping`` is set."""
        await asyncio.gather(*(_Client(self, f"client{n}").run() for n in range(clients)))

    async def read_all(self, url: str) -> None:
        """Read every vertex once more, at one node, which must answer."""
        auditor = _Client(self, "auditor", urls=[url])
        async with auditor.http:
            for vertex in self.vertices:
                assert await auditor.read(vertex), f"{url} does not answer a strong read"

    def verdict(self) -> None:
        """Raises an AssertionError with the operations that cannot be explained."""
        assert not self.complaints, "\n".join(self.complaints)
        result = check(self.events, models.EntityModel())
        assert result.ok, f"seed {self.seed}: {result.report}"

    def begin(self) -> int:
        return next(self._positions)

    def value(self) -> int:
        return next(self._values)

    def add(self, client: str, vertex: str, action: Any, output: Any, call: int) -> None:
        returned = None if output is UNKNOWN else next(self._positions)
        self.events.append(
            Operation(
                client=client,
                key=vertex,
                action=action,
                output=output,
                call=call,
                returned=returned,
            )
        )


class _Client:
    def __init__(self, recorder: Recorder, name: str, urls: Sequence[str] | None = None) -> None:
        self.recorder = recorder
        self.name = name
        self.urls = urls or recorder.urls
        self.random = random.Random(f"{recorder.seed}/{name}")
        self.http = httpx.AsyncClient(timeout=_ATTEMPT_S, trust_env=False)
        self._requests = 0

    async def run(self) -> None:
        async with self.http:
            while not self.recorder.stopping:
                with contextlib.suppress(_NotExecuted):
                    await self._do_something()
                await asyncio.sleep(self.random.uniform(0, 0.04))

    async def _do_something(self) -> None:
        alive = [one for one in self.recorder.vertices if not one.gone][-_CROWD:]
        kind = self.random.random()
        if len(alive) < 3 or kind < 0.1:
            await self.create()
        elif kind < 0.5:
            await self.read(self.random.choice(alive + self.recorder.vertices[-_CROWD:]))
        elif kind < 0.95:
            await self.update(self.random.choice(alive))
        else:
            await self.delete(self.random.choice(alive))

    async def create(self) -> None:
        call, value = self.recorder.begin(), self.recorder.value()
        try:
            answer = await self._write(
                {"op": "create_node", "labels": ["Thing"], "properties": {"value": value}}
            )
        except _Unsure:
            return  # it has no CID that anybody could ask for
        document = answer.json()
        vertex = _Vertex(document["cid"], [document["version"]])
        self._done(vertex, models.Create(value), document["version"], call)
        self.recorder.vertices.append(vertex)

    async def update(self, vertex: _Vertex) -> None:
        call, value = self.recorder.begin(), self.recorder.value()
        expected = self.random.choice([None, None, *vertex.versions[-2:]])
        operation = {"op": "update_node", "cid": vertex.cid, "properties": {"value": value}}
        if expected is not None:
            operation["if_version"] = expected
        action = models.Update(value, None if expected is None else expected.encode())
        await self._change(vertex, action, operation, call)

    async def delete(self, vertex: _Vertex) -> None:
        call = self.recorder.begin()
        await self._change(vertex, models.Delete(), {"op": "delete_node", "cid": vertex.cid}, call)

    async def _change(
        self, vertex: _Vertex, action: Any, operation: dict[str, Any], call: int
    ) -> None:
        try:
            answer = await self._write(operation)
        except _Unsure:
            self.recorder.add(self.name, vertex.cid, action, UNKNOWN, call)
            return
        if answer.status_code == httpx.codes.NOT_FOUND:
            output: Any = models.Failed("not_found")
            self.recorder.add(self.name, vertex.cid, action, output, call)
        elif answer.status_code == httpx.codes.PRECONDITION_FAILED:
            self.recorder.add(self.name, vertex.cid, action, models.Failed("version"), call)
        else:
            self._done(vertex, action, answer.json()["version"], call)

    def _done(self, vertex: _Vertex, action: Any, version: str, call: int) -> None:
        self.recorder.acknowledged += 1
        if isinstance(action, models.Delete):
            vertex.gone = True
            self.recorder.add(self.name, vertex.cid, action, True, call)
        else:
            vertex.versions.append(version)
            self.recorder.add(self.name, vertex.cid, action, version.encode(), call)

    async def read(self, vertex: _Vertex) -> bool:
        call = self.recorder.begin()
        try:
            answer = await self._attempt("GET", f"/v1/nodes/{vertex.cid}", None, {})
        except (_Unsure, _NotExecuted):
            return False
        output = None
        if answer.status_code != httpx.codes.NOT_FOUND:
            document = answer.json()
            output = (document["properties"]["value"], document["version"].encode())
        self.recorder.add(self.name, vertex.cid, models.Read(), output, call)
        return True

    async def _write(self, operation: dict[str, Any]) -> httpx.Response:
        self._requests += 1
        key = f"{self.recorder.seed}-{self.name}-{self._requests}"
        headers = {"Idempotency-Key": key}
        return await self._attempt("POST", "/v1/operations?forward=true", operation, headers)

    async def _attempt(
        self, method: str, path: str, body: Any, headers: dict[str, str]
    ) -> httpx.Response:
        unsure = False
        for attempt in range(_ATTEMPTS):
            url = self.random.choice(self.urls)
            try:
                answer = await self.http.request(method, url + path, json=body, headers=headers)
            except httpx.ConnectError:
                pass
            except httpx.HTTPError:
                unsure = True
            else:
                if answer.status_code < 500 and answer.status_code != httpx.codes.CONFLICT:
                    if answer.is_error and unsure:
                        raise _Unsure
                    return answer
                unsure = unsure or answer.status_code == httpx.codes.GATEWAY_TIMEOUT
                if answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
                    self.recorder.complaints.append(f"{method} {path}: {answer.text}")
                    unsure = True
            await asyncio.sleep(self.random.uniform(0.01, 0.1) * (attempt + 1))
        if unsure:
            raise _Unsure
        raise _NotExecuted
