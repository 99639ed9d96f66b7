"""Real nodes in network namespaces of their own, and a network between them that is cut."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from app.dev_cluster import LocalCluster
from tests.process.recorded import Recorder

pytestmark = pytest.mark.process

SECONDS: Final = float(os.environ.get("KOTOBA_SOAK_SECONDS", "10"))
START_S: Final = 40.0
PORT: Final = 8080


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Network:
    """A bridge here, and one namespace for each node, connected to it."""

    def __init__(self, nodes: int) -> None:
        self.subnet = f"10.213.{os.getpid() % 250 + 1}"
        self.bridge = f"kt{os.getpid() % 100_000}"
        self.namespaces = [f"{self.bridge}-{number}" for number in range(1, nodes + 1)]

    def up(self) -> None:
        ip("link", "add", self.bridge, "type", "bridge")
        ip("address", "add", f"{self.subnet}.254/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        for number, name in enumerate(self.namespaces, start=1):
            inside = ("-n", name)
            ip("netns", "add", name)
            ip(
                "link",
                "add",
                f"{self.bridge}v{number}",
                "type",
                "veth",
                "peer",
                "eth0",
                "netns",
                name,
            )
            ip("link", "set", f"{self.bridge}v{number}", "master", self.bridge, "up")
            ip(*inside, "address", "add", f"{self.host(number)}/24", "dev", "eth0")
            ip(*inside, "link", "set", "eth0", "up")
            ip(*inside, "link", "set", "lo", "up")

    def down(self) -> None:
        for command in (
            *(["link", "delete", f"{self.bridge}v{n + 1}"] for n in range(len(self.namespaces))),
            *(["netns", "delete", name] for name in self.namespaces),
            ["link", "delete", self.bridge],
        ):
            subprocess.run(["ip", *command], check=False, capture_output=True)

    def host(self, number: int) -> str:
        return f"{self.subnet}.{number}"

    def cut(self, source: int, target: int) -> None:
        """Nothing leaves ``source`` for ``target`` any more; nobody is told."""
        self._route("add", source, target)

    def heal(self, source: int, target: int) -> None:
        self._route("delete", source, target)

    def _route(self, act: str, source: int, target: int) -> None:
        name = self.namespaces[source - 1]
        ip("-n", name, "route", act, "blackhole", f"{self.host(target)}/32")


class NamespaceCluster(LocalCluster):
    """A cluster whose nodes live in the namespaces of ``network``."""

    def __init__(self, network: Network, folder: Path) -> None:
        super().__init__(0, folder=folder)
        addresses = [f"{network.host(n)}:{PORT}" for n in range(1, len(network.namespaces) + 1)]
        for number, address in enumerate(addresses, start=1):
            self._add(f"node{number}", address, addresses)
        for node, name in zip(self.nodes.values(), network.namespaces, strict=True):
            node.command = ["ip", "netns", "exec", name, *node.command]


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network(3)
    if shutil.which("ip") is None:
        pytest.skip("there is no ip command here to make network namespaces with")
    try:
        try:
            made.up()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")
        yield made
    finally:
        made.down()


@pytest.fixture
def cluster(network: Network, tmp_path: Path) -> Iterator[LocalCluster]:
    with NamespaceCluster(network, tmp_path) as three:
        three.wait_ready(START_S)
        yield three


@pytest.mark.timeout(SECONDS + 180)
async def test_histories_are_linearizable_while_the_network_is_cut(
    network: Network, cluster: LocalCluster
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    source = random.Random(seed)
    recorder = Recorder(cluster.urls, seed)
    clients = asyncio.create_task(recorder.run(8))
    done = await _cut_and_heal(network, source, SECONDS)
    recorder.stopping = True
    await clients
    await asyncio.to_thread(cluster.wait_ready, START_S)
    for url in cluster.urls:
        await recorder.read_all(url)
    recorder.verdict()
    assert recorder.acknowledged > SECONDS, f"seed {seed}: hardly a write went through"
    print(f"seed {seed}: {len(recorder.events)} operations through {', '.join(done)}")


async def _cut_and_heal(network: Network, source: random.Random, seconds: float) -> list[str]:
    """One cut after the other: a pair, one way or both, or one node from all others."""
    loop = asyncio.get_running_loop()
    until, done = loop.time() + seconds, []
    while loop.time() < until:
        await asyncio.sleep(source.uniform(0.2, 1.5))
        one, other, third = source.sample([1, 2, 3], 3)
        ways = source.choice(
            [
                [(one, other)],
                [(one, other), (other, one)],
                [(one, other), (other, one), (one, third), (third, one)],
            ]
        )
        done.append(" and ".join(f"{a}->{b}" for a, b in ways))
        for way in ways:
            network.cut(*way)
        await asyncio.sleep(source.choice([0.3, 1.0, 3.0]))
        for way in ways:
            network.heal(*way)
    return done
