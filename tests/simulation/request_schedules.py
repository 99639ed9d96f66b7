"""Schedules of single requests: what their keys, nonces and names mean, whoever is asked, and when.

Each plays one run from a seed, and raises an AssertionError where a promise is broken. They are
played by ``mutants/``: with the rule broken, where they have to say so, and without, where they
have to hold.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

from cluster_core.errors import IdempotencyKeyReused, NotFound, NotLeader
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    DeleteEdge,
    Operation,
    OperationResult,
    UpdateEdge,
)
from cluster_core.query.plan import Get
from cluster_core.storage import keys
from cluster_core.types import Digest, partition_of
from tests.simulation.director import leading
from tests.simulation.schedules import at_home, at_rest, hand_over
from tests.simulation.watch import Watch
from tests.simulation.workload import History
from tests.simulation.world import SIM_CONFIG, SimNode, World

__all__ = [
    "SHORT_OF_MEMORY",
    "create_again_at_other_leaders",
    "create_again_with_another_body",
    "create_again_with_its_nonce",
    "forget_old_keys",
    "write_edges_without_their_source",
]

SHORT_OF_MEMORY: Final = replace(
    SIM_CONFIG,
    replication=replace(SIM_CONFIG.replication, dedupe_retention_ms=500, sweep_interval_ms=20),
)
"""What a key stood for may be forgotten after half a second."""

CREATIONS: Final = 8


async def execute(node: SimNode, operation: Operation, **how: Any) -> OperationResult:
    return await node.ask(lambda cluster: cluster.execute_operation(operation, **how))


async def are_there(node: SimNode, *digests: Digest) -> bool:
    found = await node.ask(lambda cluster: cluster.execute_query(Get(cids=digests)))
    return len(found.rows) == len(digests)


async def deposed(world: World, digest: Digest) -> SimNode:
    """Another node leads the partition of the vertex ``digest`` now; returns it."""
    group = partition_of(digest, world.config.partition_count) + 1
    old, _ = leading(world, group)
    new = next(node for node in world.nodes if node is not old)
    await hand_over(world, group, new)
    return new


async def create_again_with_its_nonce(world: World) -> None:
    """A client is sent to the leader with the nonce of its creation, hears nothing, and asks
    again: another leader, and once more when somebody has deleted what it made."""
    watch = Watch(world)
    source, target, *_ = (await at_home(world)).values()
    leader, _ = leading(world, partition_of(source, world.config.partition_count) + 1)
    other = next(node for node in world.nodes if node is not leader)
    creation = CreateEdge("KNOWS", source, target)
    nonce = b""
    try:
        await execute(other, creation, forward=False)
    except NotLeader as redirect:
        nonce = bytes.fromhex(redirect.extra["nonce"])
    assert nonce, "who does not lead says who does, and what the creation is called"
    first = await execute(leader, creation, nonce=nonce, forward=False)
    await deposed(world, source)
    for node in world.nodes:
        again = await execute(node, creation, nonce=nonce)
        assert again.digest == first.digest, "one creation is called by two names"
    await execute(other, DeleteEdge(first.digest, source))
    again = await execute(leader, creation, nonce=nonce)
    assert again.digest == first.digest
    assert not await are_there(other, first.digest), "what was deleted is made again by a retry"
    await at_rest(world, watch)


async def create_again_at_other_leaders(world: World) -> None:
    """A batch under a key is asked for again at each node, and of other leaders."""
    watch = Watch(world)
    source, target, *_ = (await at_home(world)).values()
    steps = [BatchOperation(CreateNode(("Thing",), {"n": n})) for n in range(CREATIONS)]
    steps.append(BatchOperation(CreateEdge("KNOWS", source, target)))
    made: set[tuple[Digest, ...]] = set()
    for node in world.nodes:
        results = await node.ask(
            lambda cluster: cluster.execute_batch(steps, idempotency_key="import")
        )
        made.add(tuple(one.digest for one in results if isinstance(one, OperationResult)))
        await deposed(world, source)
    assert len(made) == 1, "one creation is called by two names"
    assert await are_there(world.nodes[0], *made.pop())
    await at_rest(world, watch)


async def create_again_with_another_body(world: World) -> None:
    """A key that was used for one creation is used for another one, at any node."""
    watch = Watch(world)
    await at_home(world)
    for n in range(CREATIONS):
        key = f"key{n}"
        await execute(
            world.random.choice(world.nodes), CreateNode((), {"n": n}), idempotency_key=key
        )
        reused = False
        try:
            other = CreateNode((), {"n": -1})
            await execute(world.random.choice(world.nodes), other, idempotency_key=key)
        except IdempotencyKeyReused:
            reused = True
        assert reused, "a key stands for two creations"
    await at_rest(world, watch)


async def forget_old_keys(world: World) -> None:
    """Keys are forgotten, and their partition is led by somebody else then."""
    watch = Watch(world)
    await at_home(world)
    made = await execute(world.nodes[0], CreateNode(), idempotency_key="key")
    assert await execute(world.nodes[1], CreateNode(), idempotency_key="key") == made
    _, replica = leading(world, made.partition + 1)
    assert replica.table(keys.DEDUPE)
    await world.until(lambda: not replica.table(keys.DEDUPE), 5, "the key is forgotten")
    await deposed(world, made.digest)
    await at_rest(world, watch)
    watch.at_rest(History())


async def write_edges_without_their_source(world: World) -> None:
    """Of an edge its CID alone is known, which does not say where it lives; its deletion is asked
    for again, as if the answer had been lost."""
    watch = Watch(world)
    vertices = list((await at_home(world)).values())
    for number, (source, target) in enumerate(pairwise(vertices)):
        node = world.nodes[number % len(world.nodes)]
        edge = (await execute(node, CreateEdge("KNOWS", source, target))).digest
        deletion, key = DeleteEdge(edge), f"deletion{number}"
        answers: list[OperationResult] = []
        try:
            await execute(node, UpdateEdge(edge, {"n": number}), forward=False)
            answers = [
                await execute(one, deletion, idempotency_key=key, forward=False)
                for one in world.nodes
            ]
        except (NotFound, NotLeader) as error:
            raise AssertionError(f"an edge is not found by its CID: {error.detail}") from None
        assert answers == [answers[0]] * len(answers), "a deletion was repeated"
        assert not await are_there(node, edge), "what was deleted is there"
    await at_rest(world, watch)
