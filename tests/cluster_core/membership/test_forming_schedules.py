"""Forming under random schedules: lost and late answers, crashes, wiped disks, changed lists.

Whatever happens, no store is ever in two founded clusters; and once it stops happening, nodes with
equal lists found one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from cluster_core.config import ClusterConfig
from cluster_core.membership.forming import Forming, Founding, Member, Propose, Report, Wait

CONFIG = ClusterConfig()


class Disk:
    """What a node remembers."""

    def __init__(self, store_id: str) -> None:
        self.store_id = store_id
        self.proposed: Founding | None = None
        self.founded: Founding | None = None


class World:
    """A few nodes, driven by one seed."""

    def __init__(self, seed: int, size: int, *, wipes: bool) -> None:
        self.random = random.Random(seed)
        self.names = [f"n{number}" for number in range(size)]
        self.wipes = wipes
        self.stores = 0
        self.disks = {name: self.new_disk() for name in self.names}
        self.machines: dict[str, Forming] = {}
        self.late: list[tuple[str, str, Report]] = []
        self.founded: list[Founding] = []

    def new_disk(self) -> Disk:
        self.stores += 1
        return Disk(f"s{self.stores}")

    def start(self, name: str, peers: Sequence[str]) -> None:
        disk = self.disks[name]
        own = Member(name, disk.store_id, name)
        self.machines[name] = Forming(own, peers, CONFIG, disk.proposed)

    def report_of(self, name: str) -> Report | None:
        machine, disk = self.machines.get(name), self.disks[name]
        if machine is None:
            return None
        report = machine.report()
        if disk.founded is None:
            return report
        return Report(report.member, 64, 3, (), disk.proposed, disk.founded)

    def decide(self, name: str) -> None:
        """A node does what it decides; a crash may come before or after each write."""
        machine, disk = self.machines[name], self.disks[name]
        decision = machine.next()
        if isinstance(decision, Wait) or self.crashes(name):
            return
        if isinstance(decision, Propose):
            assert disk.proposed is None
            disk.proposed = decision.founding
            if not self.crashes(name):
                machine.proposal_persisted(decision.founding)
            return
        disk.founded = decision.founding
        self.founded.append(decision.founding)
        self.crashes(name)

    def crashes(self, name: str) -> bool:
        if self.random.random() < 0.1:
            del self.machines[name]
            return True
        return False

    def step(self) -> None:
        name = self.random.choice(self.names)
        disk, roll = self.disks[name], self.random.random()
        if self.wipes and roll < 0.02:
            self.disks[name] = self.new_disk()
            self.machines.pop(name, None)
        elif name not in self.machines:
            self.start(name, self.some_peers() if self.random.random() < 0.5 else self.names)
        elif roll < 0.05:
            del self.machines[name]
        elif disk.founded is None:
            self.ask_one(name)
            self.deliver_late()
            if name in self.machines and self.random.random() < 0.5:
                self.decide(name)

    def some_peers(self) -> list[str]:
        return [name for name in self.names if self.random.random() < 0.6]

    def ask_one(self, name: str) -> None:
        machine = self.machines[name]
        if not machine.peers:
            return
        address = self.random.choice(machine.peers)
        report, roll = self.report_of(address), self.random.random()
        if report is None or roll < 0.1:
            machine.on_report(address, None)
        elif roll < 0.3:
            self.late.append((name, address, report))
        else:
            machine.on_report(address, report)

    def deliver_late(self) -> None:
        if self.late and self.random.random() < 0.3:
            name, address, report = self.late.pop(self.random.randrange(len(self.late)))
            if name in self.machines:
                self.machines[name].on_report(address, report)

    def check(self) -> None:
        cluster_of: dict[tuple[str, str], Founding] = {}
        for founding in self.founded:
            for one in founding.members:
                first = cluster_of.setdefault((one.node_id, one.store_id), founding)
                assert first == founding, f"{one.node_id} is in two clusters"

    def settle(self) -> None:
        """The network heals, nobody crashes, and all lists are right."""
        for name in self.names:
            self.start(name, self.names)
        for _ in range(6):
            for name in self.names:
                machine, disk = self.machines[name], self.disks[name]
                for address in machine.peers:
                    machine.on_report(address, self.report_of(address))
                decision = machine.next()
                if disk.founded is not None or isinstance(decision, Wait):
                    continue
                if isinstance(decision, Propose):
                    disk.proposed = decision.founding
                    machine.proposal_persisted(decision.founding)
                else:
                    disk.founded = decision.founding
                    self.founded.append(decision.founding)


@pytest.mark.parametrize("wipes", [False, True])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_no_store_is_ever_in_two_clusters(size: int, wipes: bool) -> None:
    foundings = 0
    for seed in range(400):
        world = World(seed, size, wipes=wipes)
        try:
            for _ in range(150):
                world.step()
            world.check()
            world.settle()
            world.check()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        foundings += len(world.founded)
    assert foundings > 400, "the schedules found something at all"


@pytest.mark.parametrize("size", [2, 3, 5])
def test_nodes_with_equal_lists_found_one_cluster_after_any_crashes(size: int) -> None:
    for seed in range(200):
        world = World(seed, size, wipes=False)
        world.some_peers = lambda: world.names  # type: ignore[method-assign] # noqa: B023
        for _ in range(seed % 60):
            world.step()
        world.settle()
        founded = {disk.founded for disk in world.disks.values()}
        assert len(founded) == 1, f"seed {seed}"
        assert None not in founded, f"seed {seed}"
