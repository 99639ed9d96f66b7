"""Transactions of a whole cluster: what one sees, what fails, and what never mixes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.errors import (
    HasEdges,
    IdempotencyKeyReused,
    InvalidRequest,
    KotobaError,
    NotFound,
    PreconditionFailed,
)
from cluster_core.graph.entities import Edge, Entity, Vertex
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    DeleteEdge,
    DeleteNode,
    Operation,
    OperationResult,
    TransactionResult,
    UpdateEdge,
    UpdateNode,
)
from cluster_core.query.plan import Get, History
from cluster_core.types import Digest
from tests.simulation.runs import run
from tests.simulation.world import World, simulate

pytestmark = pytest.mark.simulation


class Graph:
    """Three nodes without faults, asked in turn."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._asked = 0

    async def ask(self, request: Callable[[KotobaCluster], Coroutine[Any, Any, Any]]) -> Any:
        self._asked += 1
        return await self.world.nodes[self._asked % 3].ask(request)

    async def transact(
        self, *operations: Operation | BatchOperation, key: str | None = None
    ) -> TransactionResult:
        several = [
            one if isinstance(one, BatchOperation) else BatchOperation(one) for one in operations
        ]
        result: TransactionResult = await self.ask(
            lambda cluster: cluster.execute_transaction(several, idempotency_key=key)
        )
        assert len(result.results) == len(operations)
        return result

    async def fails(self, *operations: Operation | BatchOperation) -> KotobaError:
        with pytest.raises(KotobaError) as caught:
            await self.transact(*operations)
        return caught.value

    async def spread(self, count: int, **properties: Any) -> list[OperationResult]:
        """Vertices in different partitions."""
        made: dict[int, OperationResult] = {}
        number = 0
        while len(made) < count:
            operation, key = CreateNode((), properties), f"spread-{number}"
            number += 1
            result = await self.ask(
                lambda cluster, operation=operation, key=key: cluster.execute_operation(  # type: ignore[misc]
                    operation, idempotency_key=key
                )
            )
            made.setdefault(result.partition, result)
        return list(made.values())

    async def get(self, *digests: Digest) -> dict[Digest, Entity]:
        result = await self.ask(lambda cluster: cluster.execute_query(Get(cids=digests)))
        return {row.digest: row for row in result.rows}

    async def versions(self, digest: Digest) -> list[Digest | None]:
        """Newest first; None is a deletion."""
        result = await self.ask(lambda cluster: cluster.execute_query(History(digest=digest)))
        return [None if row.entity is None else row.entity.version for row in result.rows]


def in_a_cluster(scenario: Callable[[Graph], Coroutine[Any, Any, None]], seed: int = 1) -> None:
    async def live(world: World) -> None:
        world.start_all()
        await world.until_ready()
        await scenario(Graph(world))

    world = simulate(seed, live)
    assert not world.failures, "\n".join(world.failures)


def test_a_small_graph_is_created_at_once_in_one_partition() -> None:
    async def scenario(graph: Graph) -> None:
        made = await graph.transact(
            BatchOperation(CreateNode(("Person",), {"name": "A"}), "a"),
            BatchOperation(CreateNode(("Person",), {"name": "B"}), "b"),
            BatchOperation(
                CreateEdge("KNOWS", b"", b"", {"since": 1}),
                "e",
                {"source_cid": "a", "target_cid": "b"},
            ),
            BatchOperation(UpdateNode(b"", {"age": 30, "name": None}), None, {"cid": "a"}),
            BatchOperation(UpdateEdge(b"", {"since": 2}), None, {"cid": "e"}),
        )
        a, b, edge, updated, changed = made.results
        assert {one.partition for one in made.results} == {a.partition}
        assert {one.timestamp for one in made.results} == {made.timestamp}
        assert [one.created for one in made.results] == [True, True, True, False, False]
        assert (updated.digest, updated.version) == (a.digest, a.digest)
        assert (changed.digest, changed.version) == (edge.digest, edge.digest)
        found = await graph.get(a.digest, b.digest, edge.digest)
        first, link = found[a.digest], found[edge.digest]
        assert isinstance(first, Vertex)
        assert first.properties == {"age": 30}
        assert isinstance(link, Edge)
        assert (link.source, link.target) == (a.digest, b.digest)
        assert link.properties == {"since": 2}
        assert await graph.versions(a.digest) == [a.digest]

    in_a_cluster(scenario)


def test_an_entity_gets_one_version_from_a_transaction() -> None:
    async def scenario(graph: Graph) -> None:
        x, y = await graph.spread(2)
        done = await graph.transact(
            UpdateNode(x.digest, {"a": 1}, if_version=x.version),
            UpdateNode(y.digest, {"a": 2}),
            UpdateNode(x.digest, {"b": 1}, if_version=x.version),
        )
        first, _, again = done.results
        assert first.version == again.version != x.version
        assert await graph.versions(x.digest) == [first.version, x.version]
        found = await graph.get(x.digest)
        assert found[x.digest].properties == {"a": 1, "b": 1}
        gone = await graph.transact(UpdateNode(x.digest, {"c": 1}), DeleteNode(x.digest))
        assert [one.version for one in gone.results] == [first.version, first.version]
        assert await graph.versions(x.digest) == [None, first.version, x.version]

    in_a_cluster(scenario)


def test_the_first_operation_that_fails_is_told_wherever_it_is() -> None:
    async def scenario(graph: Graph) -> None:
        x, y, z = await graph.spread(3, n=0)
        nobody = bytes(32)
        before = await graph.get(x.digest, y.digest, z.digest)
        for order in ([x, y, z], [y, z, x], [z, x, y]):
            a, b, c = order
            cases: list[tuple[list[Operation], int, type[KotobaError]]] = [
                ([UpdateNode(a.digest, {"n": 1}), UpdateNode(nobody, {})], 1, NotFound),
                (
                    [
                        UpdateNode(a.digest, {"n": 1}),
                        UpdateNode(b.digest, {}, if_version=nobody),
                        UpdateNode(c.digest, {}, if_version=nobody),
                        UpdateNode(a.digest, {}, if_version=nobody),
                    ],
                    1,
                    PreconditionFailed,
                ),
                (
                    [
                        UpdateNode(a.digest, {"n": 1}),
                        UpdateNode(a.digest, {}, if_version=nobody),
                        UpdateNode(c.digest, {}, if_version=nobody),
                    ],
                    1,
                    PreconditionFailed,
                ),
                ([DeleteNode(b.digest), CreateEdge("K", a.digest, b.digest)], 1, NotFound),
                ([CreateEdge("K", a.digest, b.digest), DeleteNode(b.digest)], 1, HasEdges),
                ([DeleteNode(b.digest), DeleteNode(b.digest)], 1, NotFound),
                ([UpdateNode(c.digest, {"n": 3}), DeleteEdge(nobody)], 1, NotFound),
                ([UpdateNode(c.digest, {"n": 3}), CreateNode(("",))], 1, InvalidRequest),
            ]
            for operations, index, kind in cases:
                error = await graph.fails(*operations)
                assert isinstance(error, kind), (error, operations)
                assert error.extra["index"] == index, (error, operations)
        assert await graph.get(x.digest, y.digest, z.digest) == before

    in_a_cluster(scenario)


def test_deletions_see_the_edges_of_the_same_transaction() -> None:
    async def scenario(graph: Graph) -> None:
        x, y, z = await graph.spread(3)
        made = await graph.transact(
            CreateEdge("K", x.digest, y.digest),
            CreateEdge("K", y.digest, x.digest),
            CreateEdge("K", z.digest, z.digest),
        )
        out, back, loop = (one.digest for one in made.results)
        await graph.transact(
            BatchOperation(CreateEdge("L", y.digest, z.digest), "new"),
            BatchOperation(DeleteEdge(back)),
            BatchOperation(CreateNode(), "node"),
            BatchOperation(CreateEdge("M", x.digest, b""), "m", {"target_cid": "node"}),
            BatchOperation(DeleteNode(x.digest, detach=True)),
            BatchOperation(DeleteNode(b""), None, {"cid": "node"}),
            BatchOperation(DeleteEdge(b""), None, {"cid": "new"}),
            BatchOperation(DeleteNode(y.digest)),
        )
        found = await graph.get(z.digest, loop)
        assert found.keys() == {z.digest, loop}
        assert not await graph.get(x.digest, y.digest, out, back)
        await graph.transact(DeleteNode(z.digest, detach=True))

    in_a_cluster(scenario)


def test_a_retry_under_a_key_gives_the_first_answer() -> None:
    async def scenario(graph: Graph) -> None:
        x, y = await graph.spread(2)
        operations = [
            BatchOperation(CreateNode(("Log",)), "log"),
            BatchOperation(CreateEdge("OF", b"", x.digest), None, {"source_cid": "log"}),
            BatchOperation(UpdateNode(y.digest, {"n": 1})),
        ]
        first = await graph.transact(*operations, key="k")
        await graph.transact(UpdateNode(y.digest, {"n": 2}))
        for _ in range(3):
            assert await graph.transact(*operations, key="k") == first
        with pytest.raises(IdempotencyKeyReused):
            await graph.transact(*operations[:2], key="k")
        with pytest.raises(IdempotencyKeyReused):
            await graph.transact(CreateNode(("Log",)), key="k")
        edges = [BatchOperation(DeleteEdge(first.results[1].digest)), operations[2]]
        deleted = await graph.transact(*edges, key="d")
        assert await graph.transact(*edges, key="d") == deleted

    in_a_cluster(scenario)


def test_write_skew_is_impossible() -> None:
    """Both read both, each writes one: at most one of them may succeed."""

    async def scenario(graph: Graph) -> None:
        x, y = await graph.spread(2, on=True)
        for _ in range(20):
            found = await graph.get(x.digest, y.digest)
            versions = {digest: entity.version for digest, entity in found.items()}

            def off(own: Digest, other: Digest, seen: dict[Digest, Digest]) -> list[Operation]:
                return [
                    UpdateNode(other, if_version=seen[other]),
                    UpdateNode(own, {"on": False}, if_version=seen[own]),
                ]

            outcomes = await asyncio.gather(
                graph.transact(*off(x.digest, y.digest, versions)),
                graph.transact(*off(y.digest, x.digest, versions)),
                return_exceptions=True,
            )
            done = [one for one in outcomes if isinstance(one, TransactionResult)]
            lost = [one for one in outcomes if isinstance(one, PreconditionFailed)]
            assert (len(done), len(lost)) == (1, 1), outcomes
            found = await graph.get(x.digest, y.digest)
            assert any(entity.properties["on"] for entity in found.values())
            await graph.transact(
                UpdateNode(x.digest, {"on": True}), UpdateNode(y.digest, {"on": True})
            )

    in_a_cluster(scenario)


def hammer_in_every_order(seed: int) -> None:
    """Transactions write the same vertices in all orders; all have to succeed, in good time."""

    async def scenario(graph: Graph) -> None:
        ends = await graph.spread(4, n=0)

        async def hammer(number: int) -> None:
            for turn in range(8):
                order = ends[(number + turn) % 4 :] + ends[: (number + turn) % 4]
                await graph.transact(*(UpdateNode(one.digest, {"n": number}) for one in order))

        async with asyncio.timeout(60):
            await asyncio.gather(*(hammer(number) for number in range(6)))
        found = await graph.get(*(one.digest for one in ends))
        assert len({entity.properties["n"] for entity in found.values()}) == 1

    in_a_cluster(scenario, seed)


def test_transactions_in_every_order_of_their_operations_do_not_block_each_other() -> None:
    hammer_in_every_order(1)


def test_the_bank_without_faults() -> None:
    made = run(3, seconds=5, clients=0, tellers=4, chaos=False)
    transactions = made.bank.transactions
    assert sum(1 for one in transactions if one.writes and not one.failed) > 50
    assert all(one.returned is not None for one in transactions)


@pytest.mark.parametrize("seed", range(200, 204))
def test_the_bank_through_faults(seed: int) -> None:
    run(seed, seconds=8, clients=0, tellers=5)
