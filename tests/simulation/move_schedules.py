"""Schedules of replicas that move while somebody has an old partition table, step by step; see
``schedules.py``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass

from cluster_core.types import META_GROUP, GroupId, NodeId
from tests.simulation.director import Director, leading, set_links
from tests.simulation.schedules import at_rest, hand_over, named, of, table
from tests.simulation.watch import Watch
from tests.simulation.world import SimNode, World

__all__ = ["move_by_an_old_table", "report_by_an_old_table"]


@dataclass(frozen=True, slots=True)
class _Cast:
    """``group`` is at ``first``, which leads it, at ``second`` and at ``third``; neither at
    ``outsider`` nor at ``meta``, which leads the meta group."""

    meta: SimNode
    group: GroupId
    first: SimNode
    second: SimNode
    third: SimNode
    outsider: SimNode

    def place(self, *nodes: SimNode) -> Awaitable[object]:
        names: list[NodeId] = [node.name for node in nodes]
        return self.meta.ask(lambda cluster: cluster.change_replicas(self.group - 1, names))

    async def want_and_take_back(self) -> None:
        """The outsider is to take the place of the third, and then is not; the second shall lead,
        and then shall not."""
        await self.place(self.second, self.first, self.outsider)
        await self.place(self.first, self.second, self.third)


async def _cast(world: World) -> _Cast:
    world.start_all()
    await world.until_ready()
    await asyncio.sleep(3)
    meta, _ = leading(world, META_GROUP)
    group = next(one for one in world.groups if meta.name not in table(meta, one).nodes)
    first, second, third = (named(world, name) for name in table(meta, group).nodes)
    others = (node for node in world.nodes if node not in (meta, first, second, third))
    return _Cast(meta, group, first, second, third, next(others))


async def move_by_an_old_table(world: World) -> None:
    """A move is wanted and taken back; the new node and the next leader of the group have heard of
    the first only. Had they gone on by it, the group would count on a replica that the table does
    not have any more, and that its node removes."""
    watch = Watch(world)
    director = Director(world)
    cast = await _cast(world)
    group, deaf = cast.group, (cast.second, cast.outsider)
    before = table(cast.meta, group)

    def cut_off() -> None:
        for node in deaf:
            set_links(world, cast.meta, node, cut=True)

    index = of(cast.meta, META_GROUP).raft.last_index + 1
    wanted = asyncio.ensure_future(cast.want_and_take_back())
    await director.when(
        lambda: all(of(node, META_GROUP).applied == index for node in deaf), cut_off
    )
    await wanted
    await world.until(
        lambda: table(cast.first, group).settled and table(cast.first, group) != before,
        5,
        "the leader has reported that nothing has moved",
    )
    assert table(cast.first, group).members == before.members
    assert table(cast.second, group).replica_at(cast.outsider.name), "it has the old table"
    await hand_over(world, group, cast.second)
    await asyncio.sleep(1)
    await at_rest(world, watch)
    await world.until(watch.moves_are_settled, 30, "settled")


async def report_by_an_old_table(world: World) -> None:
    """A leader says that nothing has moved, and its frame is long on its way: meanwhile the replica
    moves, and is to move back. Had the report counted then, the table would drop a replica that the
    group counts on, and its node would remove it."""
    watch = Watch(world)
    cast = await _cast(world)
    group, mesh = cast.group, cast.first.cluster.node.mesh
    way = (cast.first.address, cast.meta.address)
    reported: asyncio.Future[None] = world.loop.create_future()
    request = mesh.request

    async def delayed(peer: NodeId, method: str, body: bytes, *, timeout: float) -> bytes:
        if method == "placement.sight" and not reported.done():
            world.network.cut(*way, hold=True)
            reported.set_result(None)
        return await request(peer, method, body, timeout=timeout)

    mesh.request = delayed  # type: ignore[method-assign]
    await cast.want_and_take_back()
    await reported
    await hand_over(world, group, cast.second)
    await cast.place(cast.second, cast.first, cast.outsider)
    await world.until(
        lambda: table(cast.meta, group).settled, 1, "the outsider has a vote", every=0.001
    )
    await cast.place(cast.second, cast.first, cast.third)
    world.network.heal(*way)
    await at_rest(world, watch)
    await world.until(watch.moves_are_settled, 30, "settled")
