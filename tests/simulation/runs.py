"""One run of the simulated cluster from a seed: trouble first, then rest, then the verdict."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cluster_core.config import ClusterConfig
from tests.simulation.bank import Bank, Teller
from tests.simulation.chaos import Chaos
from tests.simulation.feed_reader import FeedReader
from tests.simulation.hubs import HUB_LIMITS, Hubs, Surveyor
from tests.simulation.librarian import Librarian
from tests.simulation.linearizability import check
from tests.simulation.models import EntityModel
from tests.simulation.past import compare_past
from tests.simulation.watch import Watch
from tests.simulation.workload import Client, History
from tests.simulation.world import SIM_CONFIG, World, simulate

__all__ = ["Plan", "Run", "run"]

_RECOVERY_S: Final = 30.0
"""Of virtual time, in which a cluster without faults must be whole again."""
_TRACE_LINES: Final = 60

_IMPATIENT_MS: Final = 20
"""Of a coordinator's silence, after which others decide for it: its transactions are recovered
while it is still at work on them."""

FORGETFUL: Final = replace(
    SIM_CONFIG, replication=replace(SIM_CONFIG.replication, history_retention_ms=3_000)
)
"""Old versions are collected while a run goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is made of, beside its seed: the arguments of :func:`run`."""

    nodes: int = 3
    seconds: float = 15.0
    clients: int = 6
    tellers: int = 2
    surveyors: int = 0
    chaos: bool = True
    pace: float = 1.0
    impatient: bool = False
    only: tuple[str, ...] = ()

    def command(self, seed: int) -> str:
        """What plays ``seed`` again."""
        usual = Plan()
        words = [
            f" --{name} {getattr(self, name):g}"
            for name in ("nodes", "seconds", "clients", "tellers", "surveyors", "pace")
            if getattr(self, name) != getattr(usual, name)
        ]
        words += [" --impatient"] if self.impatient else []
        only = f" --only {','.join(self.only)}" if self.only else ""
        return f"python -m tests.simulation --first {seed}{''.join(words)}{only}"


@dataclass(frozen=True, slots=True)
class Run:
    """What is left of a run that held all it promised."""

    world: World
    history: History
    bank: Bank
    configurations: int
    """Changes of the groups' configurations."""
    hubs: Hubs

    @property
    def summary(self) -> str:
        events = self.history.events
        unknown = sum(1 for event in events if event.returned is None)
        return (
            f"seed {self.world.seed}: {self.world.loop.time():.0f} s of virtual time, "
            f"{len(events)} operations, {unknown} of unknown outcome, "
            f"{len(self.history.acknowledged)} writes acknowledged, "
            f"{len(self.bank.transactions)} transactions, "
            f"{self.configurations} changes of configurations"
        )


def run(
    seed: int,
    *,
    nodes: int = 3,
    seconds: float = 15.0,
    clients: int = 6,
    tellers: int = 2,
    surveyors: int = 0,
    chaos: bool = True,
    pace: float = 1.0,
    impatient: bool = False,
    only: Collection[str] = (),
) -> Run:
    """Run ``seed``. Raises an AssertionError that begins with the seed when anything is wrong.

    With more ``nodes`` than a partition has replicas, no node has all of them. ``only`` names the
    kinds of faults that are wanted (``chaos.py``). Every third seed forgets its past soon; every
    fifth is ``impatient``, and decides for coordinators that are still at work. With ``surveyors``
    a vertex with three edges is deleted in chunks (``hubs.py``).
    """
    plan = Plan(
        nodes=nodes,
        seconds=seconds,
        clients=clients,
        tellers=tellers,
        surveyors=surveyors,
        chaos=chaos,
        pace=pace,
        impatient=impatient,
        only=tuple(only),
    )
    config = _config(seed, impatient=impatient)
    if surveyors:
        config = replace(config, limits=HUB_LIMITS)
    banks: list[Bank] = []
    worlds: list[World] = []
    watches: list[Watch] = []
    history = History()
    hubs = Hubs()

    async def scenario(world: World) -> None:
        worlds.append(world)
        trouble = Chaos(world, pace=pace, only=only) if chaos else None
        banks.append(Bank(world, history))
        watches.append(Watch(world))
        workers = [
            Surveyor(hubs, world, history, f"surveyor{number}", home=world.nodes[number % nodes])
            for number in range(1, surveyors + 1)
        ]
        await _live(
            banks[0],
            watches[0],
            trouble,
            workers,
            seconds=seconds,
            clients=clients,
            tellers=tellers,
        )

    try:
        world = simulate(seed, scenario, nodes=nodes, config=config)
        assert not world.failures, "\n".join(world.failures)
        result = check(history.with_cascades(), EntityModel())
        assert result.ok, result.report
        banks[0].check()
    except Exception as error:
        tail = "\n".join(worlds[0].trace[-_TRACE_LINES:]) if worlds else ""
        where = "".join(traceback.format_tb(error.__traceback__)[-2:])
        raise AssertionError(
            f"seed {seed}: {error!r}\n{where}"
            f"replay: {plan.command(seed)}\n"
            f"the end of its trace:\n{tail}"
        ) from error
    return Run(world, history, banks[0], watches[0].chain.changes, hubs)


def _config(seed: int, *, impatient: bool) -> ClusterConfig:
    config = FORGETFUL if seed % 3 == 2 else SIM_CONFIG
    if not impatient and seed % 5 != 4:
        return config
    replication = replace(
        config.replication, coordinator_silence_ms=_IMPATIENT_MS, sweep_interval_ms=_IMPATIENT_MS
    )
    return replace(config, replication=replication)


async def _live(
    bank: Bank,
    watch: Watch,
    trouble: Chaos | None,
    surveyors: Sequence[Client],
    *,
    seconds: float,
    clients: int,
    tellers: int,
) -> None:
    world, history = bank.world, bank.history
    world.start_all()
    await world.until_ready()
    if tellers:
        await Teller(bank, "founder", attempts=20).open_accounts()
    until = world.loop.time() + seconds
    workers = [
        Client(world, history, f"client{number}", home=world.nodes[number % len(world.nodes)])
        for number in range(1, clients + 1)
    ]
    workers += [
        Teller(bank, f"teller{number}", home=world.nodes[number % len(world.nodes)])
        for number in range(1, tellers + 1)
    ]
    workers += surveyors
    workers.append(Librarian(world, history, "librarian", home=world.random.choice(world.nodes)))
    reader = FeedReader(world, "reader")
    following = asyncio.ensure_future(reader.run())
    tasks: list[Coroutine[Any, Any, None]] = [worker.run(until) for worker in workers]
    if trouble is not None:
        tasks.append(trouble.run(until))
    await asyncio.gather(*tasks)
    if trouble is not None:
        await trouble.end()
    await _recover(bank, watch)
    await compare_past(world, history)
    await reader.finish(following, watch.closed.changes)
    watch.at_rest(history)


async def _recover(bank: Bank, watch: Watch) -> None:
    """Liveness: without faults, every node is ready and serves reads of everything, and writes."""
    world, history = bank.world, bank.history
    await world.until_ready(_RECOVERY_S)
    client = Client(world, history, "auditor", attempts=30)
    deadline = world.loop.time() + _RECOVERY_S
    for entity in list(history.entities):
        for node in world.nodes:
            assert await client.read(entity, node), f"{node.name} does not answer a strong read"
    if bank.accounts:
        for node in world.nodes:
            await Teller(bank, "supervisor", attempts=30).audit(node=node)
    for _ in world.nodes:
        assert await client.create_vertex() is not None, "no write is acknowledged"
    assert world.loop.time() < deadline, "the cluster is slow without any fault"
    await world.until(watch.indexes_are_settled, _RECOVERY_S, "indexes ready, or gone")
    await world.until(watch.is_level, _RECOVERY_S, "replicas level, no intent left")
    await world.until(
        lambda: watch.moves_are_settled() and watch.is_level(), _RECOVERY_S, "moves ended"
    )
