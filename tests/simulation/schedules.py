"""Schedules, step by step, in which a broken rule shows that random faults seldom or never meet.

Each plays one run from a seed, and raises an AssertionError where a promise is broken. They are
played by ``mutants/``: with the rule broken, where they have to say so, and without, where they
have to hold.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from cluster_core.cluster import KotobaCluster
from cluster_core.errors import Conflict
from cluster_core.graph.entities import Vertex
from cluster_core.graph.operations import BatchOperation, CreateNode, UpdateNode
from cluster_core.hlc import TIMESTAMP_MAX
from cluster_core.placement.table import GroupTable
from cluster_core.query.plan import Get
from cluster_core.raft import Role
from cluster_core.replication.replica import Replica
from cluster_core.storage import keys
from cluster_core.types import Digest, GroupId
from tests.simulation.director import Director, leading, one_in_each_partition, set_links
from tests.simulation.loop import ProcessDied
from tests.simulation.watch import Watch
from tests.simulation.world import SIM_CONFIG, SimNode, World

__all__ = [
    "FIVE_PARTITIONS",
    "IDLE",
    "IMPATIENT",
    "OBLIVIOUS",
    "TWO_PARTITIONS",
    "abort_what_nobody_staged",
    "at_rest",
    "change_leaders_under_a_snapshot",
    "elect_without_a_witness",
    "hand_over",
    "lose_again_and_again",
    "lose_what_was_closed",
    "named",
    "of",
    "promise_what_a_crash_forgets",
    "read_by_an_old_leader",
    "read_own_writes_elsewhere",
    "read_what_is_being_resolved",
    "stage_what_was_forgotten",
    "table",
]

FIVE_PARTITIONS: Final = replace(SIM_CONFIG, partition_count=5)
"""Of four, one of three nodes leads none."""

IMPATIENT: Final = replace(
    FIVE_PARTITIONS,
    replication=replace(SIM_CONFIG.replication, coordinator_silence_ms=20, sweep_interval_ms=20),
)
"""Others decide for a coordinator after 20 ms."""

OBLIVIOUS: Final = replace(
    IMPATIENT, replication=replace(IMPATIENT.replication, transaction_horizon_ms=500)
)
"""And what was aborted may be forgotten after half a second."""

TWO_PARTITIONS: Final = replace(SIM_CONFIG, partition_count=2)

IDLE: Final = replace(
    SIM_CONFIG, replication=replace(SIM_CONFIG.replication, full_sync_interval_ms=60_000)
)
"""Nobody writes anything but the schedule."""

SYNC_S: Final = 0.9
"""A sync that takes so long is not over in any of these schedules, and the node still leads."""

RIVALS: Final = 8
WRITES: Final = 20


async def at_home(world: World) -> dict[GroupId, Digest]:
    """Leaders are where they stay, and each partition has a vertex."""
    world.start_all()
    await world.until_ready()
    await asyncio.sleep(3)
    return await one_in_each_partition(world)


def of(node: SimNode, group: GroupId) -> Replica:
    return node.cluster.node.host.replicas[group]


def table(node: SimNode, group: GroupId) -> GroupTable:
    return node.cluster.node.tables[group]


def named(world: World, name: str) -> SimNode:
    return next(node for node in world.nodes if node.name == name)


def at_three_leaders(world: World, vertices: dict[GroupId, Digest]) -> dict[GroupId, SimNode]:
    """Groups with different leaders."""
    leaders: dict[GroupId, SimNode] = {}
    for group in vertices:
        node, _ = leading(world, group)
        if node not in leaders.values():
            leaders[group] = node
    assert len(leaders) == len(world.nodes)
    return leaders


def write(node: SimNode, *digests: Digest) -> asyncio.Task[Any]:
    """Set ``n`` to 1, by a transaction whose home is the first one's partition."""
    steps = [BatchOperation(UpdateNode(digest, {"n": 1})) for digest in digests]

    async def ask(cluster: KotobaCluster) -> object:
        if len(steps) == 1:
            return await cluster.execute_operation(steps[0].operation)
        return await cluster.execute_transaction(steps)

    return asyncio.ensure_future(node.ask(ask))


async def read(node: SimNode, *digests: Digest) -> list[object]:
    """What ``n`` is now."""
    found = await node.ask(lambda cluster: cluster.execute_query(Get(cids=digests)))
    rows = {row.digest: row.properties for row in found.rows if isinstance(row, Vertex)}
    return [rows[digest]["n"] for digest in digests]


async def hand_over(world: World, group: GroupId, node: SimNode) -> None:
    leader, replica = leading(world, group)

    async def transfer(cluster: KotobaCluster) -> None:
        assert cluster.node.host.transfer(replica, node.name)

    await leader.ask(transfer)
    await world.until(lambda: of(node, group).evaluation is not None, 5, "a leader", every=0.001)


async def at_rest(world: World, watch: Watch) -> None:
    world.network.heal_all()
    world.network.mute.clear()
    for node in world.nodes:
        node.disk.sync_delay = node.normal_sync_delay
    world.start_all()
    await world.until_ready()
    await world.until(watch.is_level, 30, "all level, no intent left")


def hang_syncs(*nodes: SimNode) -> None:
    for node in nodes:
        node.disk.sync_delay = lambda: SYNC_S


async def abort_what_nobody_staged(world: World) -> None:
    """A transaction is aborted by a participant's recovery while its coordinator still waits for
    another participant to prepare, and then has all that it needs to stage it. The participant asks
    though the coordinator is well: somebody else led its home for a moment, and knew nothing."""
    await _abort_and_go_on(world, until_forgotten=False)


async def stage_what_was_forgotten(world: World) -> None:
    """The same, but the coordinator waits for so long that its home has forgotten the abort."""
    await _abort_and_go_on(world, until_forgotten=True)


async def _abort_and_go_on(world: World, *, until_forgotten: bool) -> None:
    watch = Watch(world)
    vertices = await at_home(world)
    leaders = at_three_leaders(world, vertices)
    (group, home), (early, quick), (_, late) = leaders.items()
    written = [vertices[one] for one in leaders]
    world.network.faults.watchdog = 10.0
    world.network.cut(late.address, home.address, hold=True)
    writing = write(home, *written)
    participant, records = of(quick, early), of(home, group)
    await world.until(lambda: len(participant.intents) == 1, 1, "prepared", every=0.001)
    (intent,) = participant.intents.all()
    recovery = quick.cluster.node._sweep._recovery
    asking = asyncio.ensure_future(recovery._recover_intent(participant, intent))
    await world.until(lambda: not participant.intents, 1, "aborted", every=0.001)
    await asking
    if until_forgotten:
        await world.until(lambda: not records.table(keys.RECORD), 4, "forgotten", every=0.01)
    assert not writing.done()
    world.network.heal(late.address, home.address)
    with suppress(Conflict):
        await writing
    found = await read(quick, *written)
    assert found in ([0, 0, 0], [1, 1, 1]), "of a committed transaction a part is missing"
    await at_rest(world, watch)


async def read_what_is_being_resolved(world: World) -> None:
    """A transaction is committed and answered, and a participant learns of it a little later: who
    reads there meanwhile is given a time before its commit."""
    watch = Watch(world)
    vertices = await at_home(world)
    leaders = at_three_leaders(world, vertices)
    (_, home), (group, other), _ = leaders.items()
    written = [vertices[one] for one in leaders]
    await write(home, *written)
    world.network.cut(home.address, other.address, hold=True)
    assert of(other, group).intents, "it is not resolved yet"
    reading = asyncio.ensure_future(read(other, vertices[group]))
    await asyncio.sleep(0.1)
    world.network.heal(home.address, other.address)
    assert await reading == [1], "a read does not see what was acknowledged before it"
    await at_rest(world, watch)


async def read_by_an_old_leader(world: World) -> None:
    """A leader that was replaced does not know, takes a snapshot, and hears of nobody who leads its
    group but itself: the new leader's answers do not arrive, and the third node leads the rest."""
    watch = Watch(world)
    director = Director(world)
    vertices = await at_home(world)
    (group, vertex), (other_group, other_vertex) = vertices.items()
    old, replica = leading(world, group)
    third, _ = leading(world, other_group)
    assert third is not old
    new = next(node for node in world.nodes if node not in (old, third))
    world.network.cut(new.address, old.address, hold=True)
    electing = asyncio.ensure_future(hand_over(world, group, new))
    await director.when(
        lambda: of(new, group).raft.role is Role.CANDIDATE,
        lambda: world.network.mute.add(old.address),
    )
    await electing
    await write(new, vertex)
    assert replica.evaluation is not None, "the old leader does not know"
    reading = asyncio.ensure_future(read(old, vertex, other_vertex))
    await asyncio.sleep(0.2)
    world.network.heal(new.address, old.address)
    world.network.mute.clear()
    assert await reading == [1, 0], "a snapshot does not see what was acknowledged before it"
    await at_rest(world, watch)


async def change_leaders_under_a_snapshot(world: World) -> None:
    """A snapshot has the answer of a leader, but not yet that of another group's, when the first is
    replaced by a node that was not asked, and so holds nothing: it acknowledges a write, upon which
    somebody writes to the other group, at an earlier time by its leader's clock."""
    watch = Watch(world)
    (one, first), (other, second) = (await at_home(world)).items()
    old, reader, new = (named(world, name) for name in table(world.nodes[0], one).nodes)
    late, _ = leading(world, other)
    assert late not in (old, reader, new)
    late.clock.offset_ms = min(node.clock.offset_ms for node in world.nodes) - 200
    await asyncio.sleep(1)  # from now on it follows the others' clocks
    reader.cluster.node.reads.rounds.too_slow()  # so holds last long enough for all this
    reader.cluster.node.reads.rounds.too_slow()
    deaf = [(node.address, late.address) for node in world.nodes if node is not late]
    for way in ((reader.address, new.address), *deaf):
        world.network.cut(*way, hold=True)
    reading = asyncio.ensure_future(read(reader, first, second))
    holds = old.cluster.node.host.holds
    await world.until(lambda: holds.lowest < TIMESTAMP_MAX, 1, "a hold", every=0.001)
    await hand_over(world, one, new)
    await write(new, first)
    before = of(late, other).raft.last_index
    writing = write(late, second)
    await world.until(lambda: of(late, other).raft.last_index > before, 1, "begun", every=0.001)
    for way in ((reader.address, late.address), *deaf):
        world.network.heal(*way)
    found = await reading
    assert found != [0, 1], "a snapshot shows a write without the one that was acknowledged before"
    await writing
    await at_rest(world, watch)


async def lose_what_was_closed(world: World) -> None:
    """The power fails everywhere while a participant has resolved an intent and no disk has that
    yet. It is resolved once more, later in the log."""
    watch = Watch(world)
    director = Director(world)
    vertices = await at_home(world)
    leaders = at_three_leaders(world, vertices)
    (_, home), (group, other), _ = leaders.items()
    participant = of(other, group)

    def resolves() -> bool:
        """The entry is proposed, and nothing of it is written."""
        evaluation = participant.evaluation
        assert evaluation is not None
        return bool(participant.intents) and evaluation.lowest_prepared is None

    written = [vertices[one] for one in leaders]
    writing = write(home, *written)
    await director.when(resolves, lambda: hang_syncs(*world.nodes))
    await writing
    await asyncio.sleep(0.3)  # some ticks, each of which closes the present if it may
    assert participant.intents, "no disk has the entry"
    for node in world.nodes:
        await node.crash(and_all_unsynced=True)
    await at_rest(world, watch)
    assert await read(other, *written) == [1, 1, 1]


async def elect_without_a_witness(world: World) -> None:
    """A leader whose disk is slow and one follower have an entry; the leader's power fails, and it
    comes back together with the node that has nothing of it."""
    watch = Watch(world)
    vertices = await at_home(world)
    group, vertex = next(iter(vertices.items()))
    leader, _ = leading(world, group)
    witness, third = (node for node in world.nodes if node is not leader)
    two = (leader, third)
    set_links(world, leader, third, cut=True)
    hang_syncs(leader)
    writing = write(leader, vertex)
    await asyncio.sleep(0.3)
    assert of(witness, group).log.last_index() == of(leader, group).log.last_index()
    acknowledged = writing.done()
    for node in (leader, witness):
        await node.crash(and_all_unsynced=True)
    with suppress(ProcessDied):
        await writing
    world.network.heal_all()
    leader.disk.sync_delay = leader.normal_sync_delay
    leader.start()
    await world.until(lambda: leader.founded is not None, 5, "it is back")
    await world.until(lambda: any(of(one, group).evaluation for one in two), 20, "a leader")
    found = await read(third, vertex)
    assert found == [1] or not acknowledged, "an acknowledged write is lost"
    await at_rest(world, watch)


async def lose_again_and_again(world: World) -> None:
    """A transaction wants a vertex that others hold, one a moment after the other. All but the
    first began after it."""
    watch = Watch(world)
    vertices = await at_home(world)
    leaders = at_three_leaders(world, vertices)
    (group, own), (wanted, holder), (_, others) = leaders.items()
    way = (others.address, holder.address)
    made = [
        await others.ask(lambda cluster: cluster.execute_operation(CreateNode((), {"n": 0})))
        for _ in range(RIVALS)
    ]
    waiting: asyncio.Task[Any] | None = None
    for rival in made:
        world.network.heal(*way)  # the one before is resolved: the vertex is free
        await asyncio.sleep(0.001)
        await write(others, rival.digest, vertices[wanted])
        world.network.cut(*way, hold=True)
        waiting = waiting or write(own, vertices[group], vertices[wanted])
        await asyncio.sleep(0.1)
    assert waiting is not None
    assert waiting.done(), "a transaction that is older than all others never has its turn"
    await at_rest(world, watch)


async def promise_what_a_crash_forgets(world: World) -> None:
    """A follower whose disk hangs hears of times above its durable ceiling. It comes back from a
    crash below them, and helps to elect who has not heard of them either."""
    watch = Watch(world)
    vertices = await at_home(world)
    group, vertex = next(iter(vertices.items()))
    leader, _ = leading(world, group)
    follower, third = two = [node for node in world.nodes if node is not leader]
    third.clock.offset_ms = -10_000  # its time is that of the others, while it hears them
    await asyncio.sleep(2)
    for node in (leader, follower):
        set_links(world, node, third, cut=True)
    follower.disk.sync_delay = lambda: 60.0
    clock = follower.cluster.node.clock
    await world.until(lambda: clock.latest > clock.ceiling, 10, "above the ceiling", every=0.01)
    await asyncio.sleep(0.5)  # some ticks, each of which closes the present if it may
    for node in (leader, follower):
        await node.crash(and_all_unsynced=True)
    world.network.heal_all()
    follower.disk.sync_delay = follower.normal_sync_delay
    follower.start()
    await world.until(lambda: follower.founded is not None, 5, "it is back")
    await world.until(lambda: any(of(one, group).evaluation for one in two), 20, "a leader")
    await write(third, vertex)
    third.clock.offset_ms = 0
    await at_rest(world, watch)


async def read_own_writes_elsewhere(world: World) -> None:
    """Raft messages come late, and what is closed does not: a follower hears that a time is closed
    before it has applied all of it, and is asked by somebody whose own write was at that time."""
    watch = Watch(world)
    vertices = await at_home(world)
    group, vertex = next(iter(vertices.items()))
    leader, _ = leading(world, group)
    followers = [node for node in world.nodes if node is not leader]
    for value in range(1, WRITES + 1):
        world.network.faults.stray_rate = 0.5
        await _write_and_read_elsewhere(world, group, vertex, value, leader, followers)
        world.network.faults.stray_rate = 0.0
    await at_rest(world, watch)


async def _write_and_read_elsewhere(
    world: World,
    group: GroupId,
    vertex: Digest,
    value: int,
    leader: SimNode,
    followers: list[SimNode],
) -> None:
    update, get = UpdateNode(vertex, {"n": value}), Get(cids=(vertex,))
    session = (await leader.ask(lambda cluster: cluster.execute_operation(update))).timestamp

    def heard() -> bool:
        closed = [node.cluster.node.closed.newest(group).timestamp for node in followers]
        return max(closed) >= session

    await world.until(heard, 5, "a follower hears that it is closed", every=0.001)
    for node in followers:
        found = await node.ask(
            lambda cluster: cluster.execute_query(
                get, consistency="read_your_writes", session=session
            )
        )
        (row,) = (row for row in found.rows if isinstance(row, Vertex))
        assert row.properties["n"] == value, "a session does not see its own write"
