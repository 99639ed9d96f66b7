"""Transactions over partitions under faults: a bank, and doctors on call.

Accounts lie in all partitions. *Transfers* read two or three accounts in one snapshot and move
money between them, all or nothing, each update on the condition that the version is still the one
that was read. Some accounts are only *guarded*: read by an update that changes nothing, so that the
transaction depends on them. Pairs of vertices are *doctors*, of whom one must stay on call: whoever
goes off duty guards the other. *Auditors* read everything in one snapshot, of now or of the past.

What must hold: the sum of all accounts in every snapshot; a doctor of each pair on call in every
snapshot (write skew would end that); and the history of all transactions is serializable, with all
versions told apart by who wrote them.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any, Final

from cluster_core.errors import HistoryCollected, InvalidRequest, PreconditionFailed
from cluster_core.graph.entities import Vertex
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    DeleteNode,
    TransactionResult,
    UpdateNode,
)
from cluster_core.query.plan import Get
from cluster_core.query.results import QueryResult
from cluster_core.types import Digest, Timestamp
from tests.simulation.serializability import INITIAL, Transaction, check
from tests.simulation.workload import Client, History, NotExecuted, Unsure
from tests.simulation.world import SimNode, World

__all__ = ["Bank", "Teller"]

ACCOUNTS: Final = 6
DOCTORS: Final = 4
BALANCE: Final = 100
_TIMESTAMPS_KEPT: Final = 20


@dataclass
class Bank:
    """What all tellers know together, and what they saw."""

    world: World
    history: History
    accounts: list[Digest] = field(default_factory=list)
    doctors: list[Digest] = field(default_factory=list)
    transactions: list[Transaction] = field(default_factory=list)
    moments: list[Timestamp] = field(default_factory=list)
    """Of the past, for reads as of then."""
    begun: int = 0

    @property
    def everybody(self) -> list[Digest]:
        return self.accounts + self.doctors

    def name(self) -> str:
        self.begun += 1
        return f"txn{self.begun}"

    def note(self, moment: Timestamp) -> None:
        self.moments = [*self.moments[-_TIMESTAMPS_KEPT:], moment]

    def look(self, rows: list[Vertex], when: str) -> None:
        """What holds in every snapshot."""
        by_digest = {row.digest: row.properties for row in rows}
        assert by_digest.keys() == set(self.everybody), f"{when}: a vertex is missing"
        balances = [by_digest[account]["balance"] for account in self.accounts]
        total = sum(balance for balance in balances if isinstance(balance, int))
        assert total == ACCOUNTS * BALANCE, f"{when}: the sum is {total}: {balances}"
        for pair in self.pairs():
            duty = [by_digest[doctor]["on_call"] for doctor in pair]
            assert any(duty), f"{when}: nobody of {[one[:3].hex() for one in pair]} is on call"

    def pairs(self) -> list[list[Digest]]:
        return [self.doctors[at : at + 2] for at in range(0, DOCTORS, 2)]

    def check(self) -> None:
        """The whole history, when the run is over: strictly serializable, but for reads as of the
        past, which see the order of timestamps."""
        present = [one for one in self.transactions if not one.past]
        verdict = check(present)
        assert verdict.ok, verdict.report
        verdict = check(self.transactions, in_real_time=_have_met)
        assert verdict.ok, verdict.report


def _have_met(first: Transaction, then: Transaction) -> bool:
    """Two writers without a key in common have timestamps of different leaders' clocks."""
    return bool(first.reads.keys() & then.reads.keys())


class Teller(Client):
    """A client of the bank."""

    def __init__(self, bank: Bank, name: str, *, home: SimNode | None = None, attempts: int = 5):
        super().__init__(bank.world, bank.history, name, home=home, attempts=attempts)
        self.bank = bank

    async def open_accounts(self) -> None:
        """Before anything goes wrong. Each by itself, so that they lie in many partitions."""
        for number in range(ACCOUNTS):
            operation = CreateNode(("Account",), {"balance": BALANCE, "by": INITIAL})
            self.bank.accounts.append(await self._found(operation, number))
        for number in range(DOCTORS):
            operation = CreateNode(("Doctor",), {"on_call": True, "by": INITIAL})
            self.bank.doctors.append(await self._found(operation, number))

    async def _found(self, operation: CreateNode, number: int) -> Digest:
        result, _ = await self._write(operation)
        return result.digest

    async def run(self, until: float, think: float = 0.03) -> None:
        while self.world.loop.time() < until:
            with contextlib.suppress(NotExecuted, Unsure):
                kind = self.random.random()
                if kind < 0.5:
                    await self.transfer()
                elif kind < 0.7:
                    await self.change_duty()
                elif kind < 0.8:
                    await self.build_and_tear_down()
                else:
                    await self.audit(past=kind > 0.93)
            await asyncio.sleep(self.random.uniform(0, 2 * think))

    # Transactions.

    async def transfer(self) -> None:
        accounts = self.random.sample(self.bank.accounts, self.random.choice([2, 2, 3]))
        rows = await self._snapshot(accounts)
        name, amount = self.bank.name(), self.random.randint(1, 20)
        source, target = rows[:2]  # the third is only guarded
        changes = {
            source.digest: {"balance": _balance(source) - amount, "by": name},
            target.digest: {"balance": _balance(target) + amount, "by": name},
        }
        await self._transact(name, rows, changes)

    async def change_duty(self) -> None:
        pair = list(self.random.choice(self.bank.pairs()))
        self.random.shuffle(pair)
        rows = await self._snapshot(pair)
        first, other = rows
        if first.properties["on_call"] and not other.properties["on_call"]:
            return
        name = self.bank.name()
        changes = {first.digest: {"on_call": not first.properties["on_call"], "by": name}}
        await self._transact(name, rows, changes)

    async def _transact(
        self, name: str, rows: list[Vertex], changes: dict[Digest, dict[str, Any]]
    ) -> None:
        """Write ``changes`` if all of ``rows`` are still as they were read."""
        operations = [
            BatchOperation(
                UpdateNode(row.digest, changes.get(row.digest, {}), if_version=row.version)
            )
            for row in rows
        ]
        self.random.shuffle(operations)
        call, failed, returned = self.history.position(), False, True
        try:
            result, note = await self._send(operations, name)
        except (NotExecuted, PreconditionFailed) as error:
            failed, note = True, repr(error)
        except Unsure:
            returned, note = False, "unsure"
        else:
            assert len(result.results) == len(operations)
            self.bank.note(result.timestamp)
            self.history.acknowledged += [(None, one) for one in result.results]
        self.bank.transactions.append(
            Transaction(
                name=name,
                reads={row.digest: _writer(row) for row in rows},
                writes=frozenset(changes),
                call=call,
                returned=self.history.position() if returned else None,
                failed=failed,
            )
        )
        self.world.note(f"{self.name} {name} on {[row.digest[:3].hex() for row in rows]}: {note}")

    async def build_and_tear_down(self) -> None:
        """Vertices and an edge that appear together, and one of them takes the edge with it."""
        account = self.random.choice(self.bank.accounts)
        operations = [
            BatchOperation(CreateNode(("Note",), {"text": "hello"}), "note"),
            BatchOperation(CreateEdge("ABOUT", b"", account), "about", {"source_cid": "note"}),
            BatchOperation(CreateEdge("OF", account, b""), None, {"target_cid": "note"}),
            BatchOperation(UpdateNode(b"", {"text": "bye"}), None, {"cid": "note"}),
        ]
        made, _ = await self._send(operations, self.bank.name())
        note, updated = made.results[0], made.results[3]
        assert updated.digest == updated.version == note.digest
        if self.random.random() < 0.3:
            torn = [
                BatchOperation(DeleteNode(note.digest, detach=True)),
                BatchOperation(UpdateNode(account)),
            ]
            await self._send(torn, self.bank.name())

    async def _send(
        self, operations: list[BatchOperation], name: str
    ) -> tuple[TransactionResult, str]:
        return await self._attempt(
            lambda cluster, timeout_ms: cluster.execute_transaction(
                operations, idempotency_key=name, timeout_ms=timeout_ms
            )
        )

    # Snapshots.

    async def audit(self, *, past: bool = False, node: SimNode | None = None) -> None:
        as_of = self.random.choice(self.bank.moments) if past and self.bank.moments else None
        call = self.history.position()
        try:
            rows = await self._snapshot(self.bank.everybody, as_of, node)
        except (HistoryCollected, InvalidRequest):
            # Gone, or in the future of a node whose clock jumped back while it heard of nobody.
            assert past, "the present is never out of reach"
            return
        when = f"t={self.world.loop.time():.3f}" + (f" as of {as_of}" if as_of else "")
        self.bank.look(rows, when)
        self.bank.transactions.append(
            Transaction(
                name=self.bank.name(),
                reads={row.digest: _writer(row) for row in rows},
                call=call,
                returned=self.history.position(),
                past=as_of is not None,
            )
        )

    async def _snapshot(
        self, digests: list[Digest], as_of: Timestamp | None = None, node: SimNode | None = None
    ) -> list[Vertex]:
        query = Get(cids=tuple(digests))

        async def ask(cluster: Any, timeout_ms: int) -> QueryResult:
            result: QueryResult = await cluster.execute_query(
                query, consistency="strong", as_of=as_of, timeout_ms=timeout_ms
            )
            return result

        result, _ = await self._attempt(ask, node)
        self.bank.note(result.timestamp)
        found = {row.digest: row for row in result.rows if isinstance(row, Vertex)}
        assert found.keys() == set(digests), "accounts do not go away"
        return [found[digest] for digest in digests]


def _balance(row: Vertex) -> int:
    balance = row.properties["balance"]
    assert isinstance(balance, int)
    return balance


def _writer(row: Vertex) -> str:
    writer = row.properties["by"]
    assert isinstance(writer, str)
    return writer
