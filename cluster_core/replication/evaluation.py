"""What a leader knows beyond the applied state: the overlay of the mutations in flight in its term.

An operation is evaluated against the database plus what earlier operations of this term will write
once they commit. That is safe because entry n+1 of a term can only commit if entry n does. The
overlay starts empty with the term and is thrown away with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

import msgspec

from cluster_core.graph.indexes import (
    IndexDefinition,
    Indexes,
    decode_definition,
    encode_definition,
    maintained,
)
from cluster_core.ports import DATA, Engine
from cluster_core.replication.command import Command, encode_command
from cluster_core.replication.intents import Intent, encode_intent
from cluster_core.replication.locks import LockTable
from cluster_core.storage import keys, mvcc
from cluster_core.types import Digest, GroupId, Timestamp

__all__ = ["HISTORY", "Draft", "Evaluation"]

HISTORY: Final = b"history"
"""Name of the state that holds a partition's horizon (``history.py``)."""

_ADJACENCY: Final = keys.OUT + keys.IN

PASSED_MAX: Final = 1_000
"""Vertices of which it is remembered how many dead edges a scan need not see again."""


class Evaluation:
    """The view of one partition's leader, for one term. Implements ``graph.evaluate.View``."""

    def __init__(self, engine: Engine, group: GroupId, intents: list[Intent]) -> None:
        self.group = group
        self.indexes: Indexes = {}
        self.definitions = _definitions(engine, group)
        """Of property indexes by id, as this group's log has them; those in flight included."""
        self.locks = LockTable()
        self.read_floor = 0
        """What a snapshot has been promised: who reads the present here has applied up to it."""
        self.awaited = False
        """Readers elsewhere wait to hear that it is committed."""
        self._engine = engine
        self._versions: dict[bytes, tuple[Timestamp, bytes, int]] = {}
        self._adjacent: dict[bytes, dict[bytes, None]] = {}
        """Keys of ``_versions`` that are adjacency, by what those of a vertex begin with: a turn
        may delete a thousand vertices, and each looks for its own."""
        self._passed: dict[bytes, bytes] = {}
        """Where a scan of a vertex's edges begins: below it the store has no live one, nor will it
        get one of what is in flight."""
        self._plain: dict[bytes, tuple[bytes | None, int]] = {}
        self._intents: dict[bytes, Intent] = {}
        self._flight: deque[Draft] = deque()
        for intent in intents:
            self._take(intent)
        self._maintain()

    def newest(self, user_key: bytes) -> tuple[Timestamp, bytes] | None:
        """The newest version of ``user_key``, with an empty value for a tombstone."""
        ahead = self._versions.get(user_key)
        if ahead is not None:
            return ahead[0], ahead[1]
        return mvcc.newest(self._engine, user_key)

    def scan_newest(self, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to ``limit`` live edges of a vertex, whose OUT or IN keys begin with ``prefix``."""
        assert len(prefix) == keys.ADJACENCY_PREFIX
        versions = self._versions
        ahead = {user_key: versions[user_key][1] for user_key in self._adjacent.get(prefix, ())}
        live = [(user_key, value) for user_key, value in sorted(ahead.items()) if value]
        for user_key, _, value in self._scan_engine(prefix):
            if len(live) >= limit:
                break
            if user_key not in ahead:
                live.append((user_key, value))
        return live[:limit]

    def _scan_engine(self, prefix: bytes) -> Iterator[tuple[bytes, Timestamp, bytes]]:
        begin = self._passed.get(prefix, prefix)
        return mvcc.scan_newest(self._engine, begin, keys.after(prefix))

    def pass_dead(self, prefix: bytes, most: int) -> bool:
        """Pass over edges of a vertex that were deleted, ``most`` of them at a time, so that
        evaluations need not: True when there is nothing more to pass over."""
        begin = reached = self._passed.get(prefix, prefix)
        passed = 0
        entries = mvcc.scan_newest(self._engine, begin, keys.after(prefix), dead=True)
        for user_key, _, value in entries:
            if value or passed == most:
                break
            reached = user_key + keys.ALL_VERSIONS
            passed += 1
        ahead = [key for key in self._adjacent.get(prefix, ()) if self._versions[key][1]]
        if passed:
            self._passed[prefix] = min([reached, *ahead])
            if len(self._passed) > PASSED_MAX:
                del self._passed[next(iter(self._passed))]
        return passed < most or bool(ahead)

    def plain(self, key: bytes) -> bytes | None:
        """The value of a key without versions: a dedupe entry, a transaction record, a refusal."""
        ahead = self._plain.get(key)
        return self._engine.get(DATA, key) if ahead is None else ahead[0]

    def intent(self, transaction: bytes) -> Intent | None:
        """The undecided intent of ``transaction`` in this partition."""
        return self._intents.get(transaction)

    @property
    def lowest_prepared(self) -> Timestamp | None:
        """The lowest timestamp at which an undecided intent is prepared, in flight or applied: what
        is committed of them later is not below it."""
        return min((intent.prepared for intent in self._intents.values()), default=None)

    @property
    def horizon(self) -> Timestamp:
        """Below it the past is not kept, once all that is in flight is applied."""
        value = self.plain(keys.state(self.group, HISTORY))
        return 0 if value is None else int.from_bytes(value, "big")

    def begin(self, index: int) -> Draft:
        """A draft of the entry that will be proposed at ``index``, in this turn of the loop.

        What is written to it is seen by the evaluations after it, also of the same draft.
        """
        if self._flight and self._flight[-1].index == index:
            abandoned = self._flight.pop()
            assert not abandoned, "only a draft to which nothing was written is not proposed"
        draft = Draft(self, index)
        self._flight.append(draft)
        return draft

    def applied(self, index: int) -> None:
        """Entries up to ``index`` are in the database now: forget their overlay."""
        flight = self._flight
        while flight and flight[0].index <= index:
            draft = flight.popleft()
            at = draft.index
            for user_key in draft.versions:
                ahead = self._versions.get(user_key)
                if ahead is not None and ahead[2] == at:
                    self._remove_version(user_key)
            for key in draft.plain:
                entry = self._plain.get(key)
                if entry is not None and entry[1] == at:
                    del self._plain[key]

    def _add_version(self, user_key: bytes, timestamp: Timestamp, value: bytes, at: int) -> None:
        self._versions[user_key] = (timestamp, value, at)
        if user_key[2] in _ADJACENCY:
            prefix = user_key[: keys.ADJACENCY_PREFIX]
            self._adjacent.setdefault(prefix, {})[user_key] = None
            if value and user_key < self._passed.get(prefix, b""):
                self._passed[prefix] = user_key

    def _remove_version(self, user_key: bytes) -> None:
        del self._versions[user_key]
        if user_key[2] in _ADJACENCY:
            prefix = user_key[: keys.ADJACENCY_PREFIX]
            of_vertex = self._adjacent[prefix]
            del of_vertex[user_key]
            if not of_vertex:
                del self._adjacent[prefix]

    def _define(self, definition: IndexDefinition) -> None:
        self.definitions[definition.id] = definition
        self._maintain()

    def _undefine(self, index: int) -> None:
        self.definitions.pop(index, None)
        self._maintain()

    def _maintain(self) -> None:
        self.indexes = maintained(self.definitions.values())

    def _take(self, intent: Intent) -> None:
        self._intents[intent.transaction] = intent
        self.locks.acquire(intent.locks, (intent.begin, intent.transaction))

    def _drop(self, intent: Intent) -> None:
        self._intents.pop(intent.transaction, None)
        self.locks.release(intent.locks, intent.transaction)


class Draft:
    """A command in the making. Begun, filled and proposed in one turn of the loop.

    Each operation in it has a timestamp of its own; the command's is the last of them.
    """

    __slots__ = (
        "_deletes",
        "_evaluation",
        "_horizon",
        "_prepared",
        "_puts",
        "_resolved",
        "index",
        "plain",
        "timestamp",
        "versions",
    )

    def __init__(self, evaluation: Evaluation, index: int) -> None:
        self.index = index
        self.timestamp: Timestamp = 0
        self.versions: list[bytes] = []
        self.plain: list[bytes] = []
        self._evaluation = evaluation
        self._puts: list[bytes] = []
        self._deletes: list[bytes] = []
        self._prepared: list[bytes] = []
        self._resolved: list[tuple[bytes, Timestamp]] = []
        self._horizon: Timestamp = 0

    def __bool__(self) -> bool:
        return bool(self._puts or self._deletes)

    def advance(self, timestamp: Timestamp) -> None:
        """What is written next happens at ``timestamp``."""
        assert timestamp > self.timestamp
        self.timestamp = timestamp

    def write(self, user_key: bytes, value: bytes, timestamp: Timestamp) -> None:
        """A version of ``user_key``; an empty value is a tombstone."""
        self._evaluation._add_version(user_key, timestamp, value, self.index)
        self.versions.append(user_key)
        self._puts += (keys.versioned(user_key, timestamp), value)

    def put(self, key: bytes, value: bytes) -> None:
        """A value without versions."""
        self._evaluation._plain[key] = (value, self.index)
        self.plain.append(key)
        self._puts += (key, value)

    def put_once(self, key: bytes, value: bytes) -> None:
        """A value without versions, unless the key has one."""
        if self._evaluation.plain(key) is None:
            self.put(key, value)

    def delete(self, key: bytes) -> None:
        self._evaluation._plain[key] = (None, self.index)
        self.plain.append(key)
        self._deletes.append(key)

    def change(self, digest: Digest, description: bytes, timestamp: Timestamp) -> None:
        """An entry of the change feed."""
        self._puts += (keys.change(self._evaluation.group, timestamp, digest), description)

    def define(self, definition: IndexDefinition) -> None:
        """The state of an index from here on: what is evaluated next obeys it."""
        before = self._evaluation.definitions.get(definition.id)
        assert before is None or before.state < definition.state, "a state only moves forward"
        key = keys.index_definition(self._evaluation.group, definition.id)
        self.put(key, encode_definition(definition))
        self._evaluation._define(definition)

    def undefine(self, index: int) -> None:
        """Forget an index: in the meta group, once it is GONE in every partition."""
        self.delete(keys.index_definition(self._evaluation.group, index))
        self._evaluation._undefine(index)

    def prepare(self, intent: Intent) -> None:
        """Add ``intent``, and hold its locks from now on."""
        key = keys.intent(self._evaluation.group, intent.transaction)
        self._puts += (key, encode_intent(intent))
        self._prepared.append(intent.transaction)
        self._evaluation._take(intent)

    def resolve(self, intent: Intent, commit: Timestamp) -> None:
        """Turn an intent into versions at ``commit``, or into nothing when that is 0."""
        assert not commit or commit >= intent.prepared
        self._deletes.append(keys.intent(self._evaluation.group, intent.transaction))
        self._resolved.append((intent.transaction, commit))
        self._evaluation._drop(intent)
        if commit:
            self._carry_out(intent, commit)

    def resolve_writes(self, intent: Intent, commit: Timestamp) -> None:
        """Turn what ``intent`` writes into versions at ``commit``. The rest of it stays, and holds
        the edges of a vertex that are still to go."""
        assert commit >= intent.prepared
        self._carry_out(intent, commit)
        self.prepare(msgspec.structs.replace(intent, writes=[], pointers=[], changes=[]))

    def _carry_out(self, intent: Intent, commit: Timestamp) -> None:
        for user_key, value in intent.writes:
            self.write(user_key, value, commit)
        for key, value in intent.pointers:
            self.put(key, value)
        for digest, description in intent.changes:
            self.change(digest, description, commit)

    def move_horizon(self, horizon: Timestamp) -> None:
        """Nothing that only reads below ``horizon`` can see is kept any more."""
        assert self._evaluation.horizon < horizon < self.timestamp
        self.put(keys.state(self._evaluation.group, HISTORY), horizon.to_bytes(8, "big"))
        self._horizon = horizon

    def encode(self) -> bytes:
        return encode_command(
            Command(
                self.timestamp,
                self._puts,
                self._deletes,
                self._prepared,
                self._resolved,
                self._horizon,
            )
        )


def _definitions(engine: Engine, group: GroupId) -> dict[int, IndexDefinition]:
    prefix = keys.table_prefix(group, keys.INDEX)
    found = [decode_definition(value) for _, value in engine.scan(DATA, prefix, keys.after(prefix))]
    return {definition.id: definition for definition in found}
