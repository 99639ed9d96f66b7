"""The declared property indexes of the cluster: replicated state of the meta group.

Declaring and dropping are commands through the meta group's log; every node is a member of that
group, so the table is local everywhere. What the partitions do about it, each in its own log, is
the business of ``index_building.py``; here the meta leader asks how far they are, and moves a
definition on once all of them are: BUILDING to READY, DROPPING to nothing at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from cluster_core.config import ClusterConfig, LimitConfig
from cluster_core.errors import InvalidRequest, KotobaError, NotFound, TooLarge
from cluster_core.graph.indexes import IndexDefinition, IndexState, decode_definition
from cluster_core.graph.operations import CreateNode, check_operation
from cluster_core.graph.values import Problem, invalid
from cluster_core.hlc import HybridClock
from cluster_core.replication.evaluation import Evaluation
from cluster_core.replication.replica import Replica
from cluster_core.replication.router import Router, confirm
from cluster_core.status import IndexStatus
from cluster_core.storage import keys
from cluster_core.types import META_GROUP, GroupId, NodeId, Timestamp

__all__ = ["INDEXES_MAX", "IndexTable"]

log = logging.getLogger("kotoba.indexes")

INDEXES_MAX: Final = 64
"""Each costs every write with its label a look, and every partition an entry for each entity."""

ADVANCE_EVERY_S: Final = 0.1
"""Between two questions how far the partitions are; none are asked when nothing is under way."""

ASK_TIMEOUT_S: Final = 1.0

_LAST_ID: Final = b"index-id"

_STATE_NAMES: Final[dict[IndexState, Literal["building", "ready", "dropping", "gone"]]] = {
    IndexState.BUILDING: "building",
    IndexState.READY: "ready",
    IndexState.DROPPING: "dropping",
    IndexState.GONE: "gone",
}

Progress = dict[GroupId, dict[int, tuple[int, Timestamp]]]
"""In each group, for each index, its state and since when."""


class _Change(msgspec.Struct, array_like=True, frozen=True):
    label: str
    property: str
    drop: bool = False


class _Changed(msgspec.Struct, array_like=True, frozen=True):
    """``changed`` is False where the index was declared before."""

    definition: IndexDefinition
    changed: bool


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_change: Final = msgspec.msgpack.Decoder(_Change).decode
_decode_changed: Final = msgspec.msgpack.Decoder(_Changed).decode
_decode_table: Final = msgspec.msgpack.Decoder(list[IndexDefinition]).decode
_decode_progress: Final = msgspec.msgpack.Decoder(Progress).decode


class IndexTable:
    """See the module."""

    def __init__(
        self, router: Router, clock: HybridClock, config: ClusterConfig, partition_count: int
    ) -> None:
        self._router = router
        self._clock = clock
        self._config = config
        self._groups = range(1, partition_count + 1)
        self._seen: tuple[int, tuple[IndexDefinition, ...]] = (-1, ())
        self._ready: tuple[IndexDefinition, ...] = ()
        router.mesh.handle("index.change", self._serve_change)
        router.mesh.handle("index.table", self._serve_table)
        router.mesh.handle("index.progress", self._serve_progress)

    # What this node knows.

    def known(self) -> tuple[IndexDefinition, ...]:
        """All definitions as this node's replica of the meta group has them; the same object until
        something changes there."""
        replica = self._router.host.replicas.get(META_GROUP)
        if replica is None or replica.failed is not None:
            return ()
        if self._seen[0] != replica.applied:
            found = tuple(decode_definition(value) for _, value in replica.table(keys.INDEX))
            before = self._seen[1]
            self._seen = (replica.applied, before if found == before else found)
            self._ready = tuple(one for one in found if one.state is IndexState.READY)
        return self._seen[1]

    def ready(self) -> tuple[IndexDefinition, ...]:
        """Those that queries may use, at or above ``since``."""
        self.known()
        return self._ready

    # What clients ask.

    async def declare(self, label: str, name: str, deadline: float) -> tuple[IndexStatus, bool]:
        """Declare an index; True when it was not declared before. It is built from now on.

        Raises InvalidRequest for names that no entity can have, TooLarge past INDEXES_MAX.
        """
        _check_names(label, name, self._config.limits)
        changed = await self._change(_Change(label, name), deadline)
        (status,) = await self._statuses([changed.definition])
        return status, changed.changed

    async def drop(self, label: str, name: str, deadline: float) -> IndexStatus:
        """Drop an index: no query uses it from now on, and its entries go. Raises NotFound."""
        changed = await self._change(_Change(label, name, drop=True), deadline)
        (status,) = await self._statuses([changed.definition])
        return status

    async def statuses(self, deadline: float) -> list[IndexStatus]:
        """All indexes that are declared now, by label and property."""
        answer = await self._router.at_leader(
            META_GROUP, deadline, lambda node: self._ask(node, "index.table", b"", deadline)
        )
        return await self._statuses(
            sorted(_decode_table(answer), key=lambda one: (one.label, one.property, one.id))
        )

    async def _change(self, change: _Change, deadline: float) -> _Changed:
        body = _encode(change)
        return _decode_changed(
            await self._router.at_leader(
                META_GROUP, deadline, lambda node: self._ask(node, "index.change", body, deadline)
            )
        )

    async def _ask(self, node: NodeId, method: str, body: bytes, deadline: float) -> bytes:
        if node == self._router.node_id:
            serve = self._serve_change if method == "index.change" else self._serve_table
            return await serve(node, body)
        timeout = max(0.001, deadline - asyncio.get_running_loop().time())
        return await self._router.mesh.request(node, method, body, timeout=timeout)

    async def _statuses(self, definitions: list[IndexDefinition]) -> list[IndexStatus]:
        moving = any(one.state is not IndexState.READY for one in definitions)
        progress = await self._progress() if moving else {}
        return [self._status(one, progress) for one in definitions]

    def _status(self, definition: IndexDefinition, progress: Progress) -> IndexStatus:
        goal = IndexState.GONE if definition.state is IndexState.DROPPING else IndexState.READY
        ready = definition.state is IndexState.READY
        return IndexStatus(
            label=definition.label,
            property=definition.property,
            state=_STATE_NAMES[definition.state],
            partitions_done=len(self._groups)
            if ready
            else len(self._at_goal(definition.id, goal, progress)),
            partition_count=len(self._groups),
            since=definition.since if ready else None,
        )

    def _at_goal(
        self, index: int, goal: IndexState, progress: Progress
    ) -> list[tuple[int, Timestamp]]:
        states = [progress.get(group, {}).get(index, (0, 0)) for group in self._groups]
        return [state for state in states if state[0] == goal]

    # At the meta leader.

    async def _serve_change(self, peer: NodeId, body: bytes) -> bytes:
        change = _decode_change(body)
        replica = self._router.leading(META_GROUP)
        evaluation = replica.evaluation
        assert evaluation is not None
        before = _declared(evaluation, change)
        if change.drop and before is None:
            await confirm(replica)
            raise NotFound(f"there is no index on {change.label}.{change.property}")
        if before is not None and not change.drop:
            await confirm(replica)
            return _encode(_Changed(before, False))
        if before is None and len(evaluation.definitions) >= INDEXES_MAX:
            await confirm(replica)
            raise TooLarge(f"there may be {INDEXES_MAX} indexes", limit=INDEXES_MAX)
        draft = replica.draft()
        draft.advance(self._clock.now())
        if before is None:
            index = self._next_id(evaluation)
            draft.put(keys.state(META_GROUP, _LAST_ID), index.to_bytes(4, "big"))
            definition = IndexDefinition(
                index, change.label, change.property, IndexState.BUILDING, draft.timestamp
            )
        else:
            definition = _moved(before, IndexState.DROPPING, draft.timestamp)
        draft.define(definition)
        await replica.propose(draft, self._soon())
        return _encode(_Changed(definition, True))

    def _next_id(self, evaluation: Evaluation) -> int:
        value = evaluation.plain(keys.state(META_GROUP, _LAST_ID))
        return 1 if value is None else int.from_bytes(value, "big") + 1

    def _soon(self) -> float:
        return asyncio.get_running_loop().time() + self._config.limits.timeout_ms / 1000

    async def _serve_table(self, peer: NodeId, body: bytes) -> bytes:
        replica = self._router.leading(META_GROUP)
        evaluation = replica.evaluation
        assert evaluation is not None
        definitions = list(evaluation.definitions.values())
        await confirm(replica)
        return _encode(definitions)

    async def run(self) -> None:
        """Move on what all partitions have done, where this node leads the meta group; until
        cancelled."""
        while True:
            await asyncio.sleep(ADVANCE_EVERY_S)
            try:
                await self._advance()
            except KotobaError as error:
                log.debug("the index table, next time: %s", error.detail)
            except Exception:
                # An index that is never finished harms nobody; a loop that has ended would.
                log.exception("looking after the index table failed")

    async def _advance(self) -> None:
        """What a partition has applied is so for ever, so any replica's word counts, also a deposed
        leader's."""
        replica = self._router.host.replicas.get(META_GROUP)
        if replica is None or replica.evaluation is None:
            return
        moving = [
            one
            for one in replica.evaluation.definitions.values()
            if one.state is not IndexState.READY
        ]
        if not moving:
            return
        progress = await self._progress()
        await self._move(replica, moving, progress)

    async def _move(
        self, replica: Replica, moving: list[IndexDefinition], progress: Progress
    ) -> None:
        draft = replica.draft()
        draft.advance(self._clock.now())
        assert replica.evaluation is not None
        for seen in moving:
            definition = replica.evaluation.definitions.get(seen.id)
            if definition is not seen:
                continue  # it was changed while the partitions were asked
            if definition.state is IndexState.BUILDING:
                done = self._at_goal(definition.id, IndexState.READY, progress)
                if len(done) == len(self._groups):
                    since = max(since for _, since in done)
                    draft.define(_moved(definition, IndexState.READY, since))
                    log.info("the index on %s.%s is ready", definition.label, definition.property)
            else:
                gone = self._at_goal(definition.id, IndexState.GONE, progress)
                if len(gone) == len(self._groups):
                    draft.undefine(definition.id)
        if draft:
            await replica.propose(draft, self._soon())

    # Progress.

    async def _progress(self) -> Progress:
        """What the partitions have done, as their replicas at all nodes in reach have applied."""
        peers = sorted(self._router.mesh.peers)
        answers = await asyncio.gather(
            *(
                self._router.mesh.request(peer, "index.progress", b"", timeout=ASK_TIMEOUT_S)
                for peer in peers
            ),
            return_exceptions=True,
        )
        found = [self._progress_here()]
        for answer in answers:
            if isinstance(answer, bytes):
                found.append(_decode_progress(answer))
            elif not isinstance(answer, KotobaError):
                raise answer
        return _furthest(found)

    def _progress_here(self) -> Progress:
        return {
            group: {
                one.id: (one.state, one.since)
                for _, value in replica.table(keys.INDEX)
                for one in (decode_definition(value),)
            }
            for group, replica in self._router.host.replicas.items()
            if group != META_GROUP and replica.failed is None
        }

    async def _serve_progress(self, peer: NodeId, body: bytes) -> bytes:
        return _encode(self._progress_here())


def _check_names(label: str, name: str, limits: LimitConfig) -> None:
    """Names that an entity may have, by the rules of entities."""
    try:
        check_operation(CreateNode((label,), {name: None}), limits)
    except InvalidRequest as error:
        fields = {"labels.0": "label", "properties": "property"}
        problems: list[Problem] = [
            {"where": fields.get(problem["where"], problem["where"]), "why": problem["why"]}
            for problem in error.extra["errors"]
        ]
        raise invalid(problems) from None


def _declared(evaluation: Evaluation, change: _Change) -> IndexDefinition | None:
    """The index on this label and property, unless it is on its way out."""
    for definition in evaluation.definitions.values():
        named = (definition.label, definition.property) == (change.label, change.property)
        if named and definition.state in (IndexState.BUILDING, IndexState.READY):
            return definition
    return None


def _moved(definition: IndexDefinition, state: IndexState, since: Timestamp) -> IndexDefinition:
    return msgspec.structs.replace(definition, state=state, since=since)


def _furthest(answers: Iterable[Progress]) -> Progress:
    """States only move forward, so of several the furthest is the newest."""
    furthest: dict[GroupId, dict[int, tuple[int, Timestamp]]] = {}
    for answer in answers:
        for group, states in answer.items():
            known: dict[int, Any] = furthest.setdefault(group, {})
            for index, state in states.items():
                known[index] = max(state, known.get(index, state))
    return furthest
