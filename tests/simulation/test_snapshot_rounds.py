"""Between the two halves of a snapshot's round: what waits, and what makes it start again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import pytest

from cluster_core.cluster import KotobaCluster
from cluster_core.errors import OutcomeUnknown
from cluster_core.graph.operations import CreateNode, UpdateNode
from cluster_core.hlc import wall_of
from cluster_core.node.snapshot_rounds import SnapshotRounds
from cluster_core.query.plan import Get
from cluster_core.raft import Configuration
from cluster_core.replication.holds import Reader
from cluster_core.wire.messages import Heartbeat
from tests.simulation.director import leading
from tests.simulation.world import World, simulate

pytestmark = pytest.mark.simulation

AHEAD = 1 << 20
"""Sixteen milliseconds: above all clocks here."""


def in_a_cluster(scenario: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def live(world: World) -> None:
        world.start_all()
        await world.until_ready()
        await asyncio.sleep(3)  # leaderships are at home
        await scenario(world)

    world = simulate(1, live)
    assert not world.failures, "\n".join(world.failures)


def reading(
    meanwhile: Callable[[], Awaitable[None]],
) -> Callable[[KotobaCluster], Coroutine[Any, Any, bool]]:
    """A round whose second half waits for something to happen; whether the snapshot stands."""

    async def read(cluster: KotobaCluster) -> bool:
        rounds = cluster.node.reads.rounds
        round_, _ = await rounds._ask(cluster.node.clock.beyond(AHEAD, AHEAD), 1.0)
        await meanwhile()
        return await rounds._release(round_)

    return read


def test_a_write_above_a_snapshot_is_answered_behind_it() -> None:
    async def scenario(world: World) -> None:
        writes: list[asyncio.Task[Any]] = []

        async def write() -> None:
            for node in world.nodes:
                request = node.ask(lambda cluster: cluster.execute_operation(CreateNode()))
                writes.append(asyncio.ensure_future(request))
            await asyncio.sleep(0.2)
            assert not any(task.done() for task in writes)
            applied = [leading(world, group)[1] for group in range(1, 5)]
            assert all(replica.applied == replica.raft.last_index for replica in applied)

        assert await world.nodes[0].ask(reading(write))
        made = [(await task).digest for task in writes]
        found = await world.nodes[1].ask(
            lambda cluster: cluster.execute_query(Get(cids=tuple(made)))
        )
        assert len(found.rows) == 3

    in_a_cluster(scenario)


def test_a_read_that_sees_what_is_above_a_snapshot_is_answered_behind_it() -> None:
    """Whoever is told of a write may act on it, acknowledged or not."""

    async def scenario(world: World) -> None:
        made = await world.nodes[0].ask(lambda cluster: cluster.execute_operation(CreateNode()))
        update = UpdateNode(made.digest, {"seen": True})
        asked: list[asyncio.Task[Any]] = []

        async def read_it() -> None:
            node, replica = leading(world, made.partition + 1)
            before = replica.applied
            write = node.ask(lambda cluster: cluster.execute_operation(update))
            asked.append(asyncio.ensure_future(write))
            await world.until(lambda: replica.applied > before, 1, "applied", every=0.01)
            for one in world.nodes:
                read = one.ask(lambda cluster: cluster.execute_query(Get(cids=(made.digest,))))
                asked.append(asyncio.ensure_future(read))
            await asyncio.sleep(0.2)
            assert not any(task.done() for task in asked)

        assert await world.nodes[0].ask(reading(read_it))
        _, *reads = [await task for task in asked]
        assert [read.rows[0].properties for read in reads] == [{"seen": True}] * 3

    in_a_cluster(scenario)


def test_a_snapshot_whose_leader_changed_meanwhile_does_not_stand() -> None:
    async def scenario(world: World) -> None:
        async def transfer() -> None:
            node, replica = leading(world, 1)
            other = next(one for one in world.nodes if one is not node)

            async def hand_over(cluster: KotobaCluster) -> None:
                assert cluster.node.host.transfer(replica, other.name)

            await node.ask(hand_over)
            taking = other.cluster.node.host.replicas[1]
            await world.until(lambda: taking.evaluation is not None, 5, "taken over", every=0.01)

        async def nothing() -> None:
            pass

        assert await world.nodes[0].ask(reading(nothing))
        assert not await world.nodes[0].ask(reading(transfer))

    in_a_cluster(scenario)


def test_a_snapshot_whose_holds_ended_by_themselves_does_not_stand() -> None:
    async def scenario(world: World) -> None:
        async def dawdle() -> None:
            await asyncio.sleep(1.1)

        assert not await world.nodes[0].ask(reading(dawdle))

    in_a_cluster(scenario)


def test_a_snapshot_of_a_leader_that_restarted_meanwhile_does_not_stand() -> None:
    async def scenario(world: World) -> None:
        leader, _ = leading(world, 1)
        reader = next(node for node in world.nodes if node is not leader)

        async def restart() -> None:
            await leader.crash()
            leader.start()
            await world.until_ready()

        assert not await reader.ask(reading(restart))

    in_a_cluster(scenario)


def test_readers_of_one_moment_share_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[SnapshotRounds] = []
    ask = SnapshotRounds._ask

    async def counted(self: SnapshotRounds, timestamp: int, hold_s: float) -> Any:
        rounds.append(self)
        return await ask(self, timestamp, hold_s)

    async def scenario(world: World) -> None:
        async def look(cluster: KotobaCluster) -> int:
            deadline = asyncio.get_running_loop().time() + 5
            found = await asyncio.gather(*(cluster.node.reads.snapshot(deadline) for _ in range(9)))
            return len({snapshot.point.timestamp for snapshot in found})

        monkeypatch.setattr(SnapshotRounds, "_ask", counted)
        assert await world.nodes[0].ask(look) == 1
        assert len(rounds) == 1

    in_a_cluster(scenario)


def test_a_reader_that_is_refused_for_ever_leaves_the_clocks_near_wall_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of its questions raises the clocks above which the next one goes."""
    answer_here = SnapshotRounds._answer_here

    async def scenario(world: World) -> None:
        reader = world.nodes[0]

        def refuse(rounds: SnapshotRounds, asker: Reader, timestamp: int, hold_s: float) -> Any:
            answer = answer_here(rounds, asker, timestamp, hold_s)
            if rounds is not reader.cluster.node.reads.rounds and answer is not None:
                return msgspec.structs.replace(answer, clock=timestamp + 1)
            return answer

        async def look(cluster: KotobaCluster) -> None:
            deadline = asyncio.get_running_loop().time() + 2
            with pytest.raises(OutcomeUnknown):
                await cluster.node.reads.rounds.now(deadline)

        monkeypatch.setattr(SnapshotRounds, "_answer_here", refuse)
        await reader.ask(look)
        for node in world.nodes:
            assert wall_of(node.cluster.node.clock.latest) - node.clock.wall_ms() < 1_000

    in_a_cluster(scenario)


def test_a_leader_that_was_just_deposed_does_not_say_that_it_leads_in_the_new_term() -> None:
    """Its evaluation lasts until the next flush, and a question may come before that."""

    async def scenario(world: World) -> None:
        node, replica = leading(world, 1)
        other = next(one for one in world.nodes if one is not node)

        async def depose(cluster: KotobaCluster) -> list[Configuration | None]:
            leaders, raft = cluster.node.reads.leaders, replica.raft
            rival = replica.voter_at(other.name)
            assert rival is not None
            heard = Heartbeat(1, rival, raft.replica, raft.term + 1, 0, 0)
            cluster.node.host.on_messages(other.name, [heard])
            assert replica.evaluation is not None
            leaders.look()
            return [here.leads for here in leaders.table if here.group == 1]

        assert await node.ask(depose) == [None]

    in_a_cluster(scenario)
