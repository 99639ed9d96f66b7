"""Whose transactions are recovered, and when: those of the dead soon, those of the busy never."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster_core.storage import keys
from cluster_core.txn.recovery import Recovery
from cluster_core.txn.settlement import Settlement
from tests.held import hold_back
from tests.simulation.schedules import FIVE_PARTITIONS, at_home, at_three_leaders, of, read, write
from tests.simulation.world import SimNode, World, simulate

pytestmark = pytest.mark.simulation

BUSY_S = 4.0


def settle_when_told(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """What follows a decision waits, wherever that is, as where there is a lot to do."""
    return hold_back(monkeypatch, Settlement, "_finish")


def count_recoveries(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    recovered: list[bytes] = []
    recover = Recovery._recover_intent

    async def noted(self: Recovery, replica: Any, intent: Any) -> None:
        recovered.append(intent.transaction)
        await recover(self, replica, intent)

    monkeypatch.setattr(Recovery, "_recover_intent", noted)
    return recovered


def left(nodes: list[SimNode], table: bytes) -> int:
    replicas = [one for node in nodes for one in node.cluster.node.host.replicas.values()]
    return sum(len(replica.table(table)) for replica in replicas)


def test_what_its_home_has_in_hand_is_not_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decided anew by each participant, it would be done twice, and leave an ABORTED record where
    the question comes after the end."""

    async def scenario(world: World) -> None:
        vertices = await at_home(world)
        (_, home), (group, other), _ = at_three_leaders(world, vertices).items()
        written = list(vertices.values())
        recovered = count_recoveries(monkeypatch)
        told = settle_when_told(monkeypatch)
        await write(home, *written)
        await asyncio.sleep(BUSY_S)
        assert of(other, group).intents, "nobody has resolved it"
        assert not recovered
        told.set()
        await world.until(lambda: not left(world.nodes, keys.INTENT), 1, "resolved")
        assert await read(other, *written) == [1] * len(written)
        await world.until(lambda: not left(world.nodes, keys.RECORD), 1, "no record is left")

    world = simulate(1, scenario, config=FIVE_PARTITIONS)
    assert not world.failures, "\n".join(world.failures)


def test_what_the_dead_left_is_recovered_within_two_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(world: World) -> None:
        vertices = await at_home(world)
        (_, home), (_, other), _ = at_three_leaders(world, vertices).items()
        written = list(vertices.values())
        told = settle_when_told(monkeypatch)
        await write(home, *written)
        await home.crash()
        told.set()
        rest = [node for node in world.nodes if node is not home]
        await world.until(lambda: not left(rest, keys.INTENT), 2, "resolved")
        assert await read(other, *written) == [1] * len(written)

    world = simulate(1, scenario, config=FIVE_PARTITIONS)
    assert not world.failures, "\n".join(world.failures)
