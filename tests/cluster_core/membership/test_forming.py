"""Founding nodes found one cluster, or say what is in the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from cluster_core.config import ClusterConfig, MembershipConfig
from cluster_core.errors import KotobaError, Refused, Unavailable, Unreachable
from cluster_core.membership.forming import (
    Adopt,
    Decision,
    Forming,
    Found,
    Founding,
    Member,
    Propose,
    Report,
    Wait,
    decode_report,
    encode_report,
    form,
)

CONFIG = ClusterConfig(membership=MembershipConfig(forming_retry_ms=1))


def member(name: str, store: str | None = None) -> Member:
    return Member(name, store or f"store of {name}", f"{name}:1")


class Nodes:
    """Empty nodes that reach each other by their addresses."""

    def __init__(self, lists: dict[str, str], configs: dict[str, ClusterConfig] | None = None):
        self.machines = {
            name: Forming(
                member(name),
                [f"{peer}:1" for peer in peers],
                (configs or {}).get(name, CONFIG),
                None,
            )
            for name, peers in lists.items()
        }
        self.founded: dict[str, Founding] = {}

    def report_of(self, name: str) -> Report:
        report = self.machines[name].report()
        founded = self.founded.get(name)
        if founded is None:
            return report
        return Report(report.member, 64, 3, founded.members, founded, founded)

    def ask(self, name: str) -> Decision:
        machine = self.machines[name]
        for address in machine.peers:
            other = address.removesuffix(":1")
            known = other in self.machines
            machine.on_report(address, self.report_of(other) if known else None)
        return machine.next()

    def turn(self, name: str) -> Decision:
        """One round of a node, and what it decides done."""
        decision = self.ask(name)
        if isinstance(decision, Propose):
            self.machines[name].proposal_persisted(decision.founding)
        elif not isinstance(decision, Wait):
            self.founded[name] = decision.founding
        return decision

    def problems(self, rounds: int = 4) -> dict[str, str | None]:
        """What each node says after some rounds; none may have founded or proposed anything."""
        found: dict[str, str | None] = {}
        for _ in range(rounds):
            for name in self.machines:
                if name not in self.founded:
                    decision = self.turn(name)
                    assert isinstance(decision, Wait), decision
                    found[name] = decision.problem
        return found


def test_three_nodes_propose_when_all_have_seen_the_same_and_found_when_all_have_proposed() -> None:
    nodes = Nodes({"a": "bc", "b": "ac", "c": "ab"})
    assert nodes.turn("a") == Wait(None, ())  # The others have seen nobody yet.
    assert nodes.turn("b") == Wait(None, ())  # c has not seen anybody yet.
    assert all(isinstance(nodes.turn(name), Propose) for name in "cab")
    assert isinstance(nodes.turn("c"), Found)
    assert all(isinstance(nodes.turn(name), Adopt) for name in "ab")
    assert len(set(nodes.founded.values())) == 1
    founding = nodes.founded["a"]
    assert founding.members == (member("a"), member("b"), member("c"))
    assert (founding.partition_count, founding.replication_factor) == (64, 3)
    assert len(founding.cluster_id) == 32


def test_nobody_founds_while_one_has_not_proposed() -> None:
    nodes = Nodes({"a": "bc", "b": "ac", "c": "ab"})
    for _ in range(3):
        nodes.turn("a")
        nodes.turn("b")
        nodes.ask("c")
    assert nodes.founded == {}
    assert isinstance(nodes.turn("c"), Propose)
    assert isinstance(nodes.turn("a"), Found)


def test_one_node_founds_alone_at_once() -> None:
    nodes = Nodes({"a": ""})
    assert nodes.turn("a") == Found(Founding.of([member("a")], CONFIG))


def test_the_own_address_among_the_peers_is_ignored_also_under_another_name() -> None:
    machine = Forming(member("a"), ["a:1", "localhost:1"], CONFIG, None)
    assert machine.peers == ["localhost:1"]
    assert isinstance(machine.next(), Wait)
    machine.on_report("localhost:1", machine.report())
    assert isinstance(machine.next(), Found)


def test_a_peer_may_be_known_under_several_addresses() -> None:
    a = Forming(member("a"), ["b:1", "other-name-of-b:1"], CONFIG, None)
    b = Forming(member("b"), ["other-name-of-a:1"], CONFIG, None)
    for _ in range(2):
        b.on_report("other-name-of-a:1", a.report())
        a.on_report("b:1", b.report())
        a.on_report("other-name-of-b:1", b.report())
    decision = a.next()
    assert isinstance(decision, Propose)
    assert decision == b.next()


def test_a_late_node_adopts_the_cluster_that_names_it() -> None:
    nodes = Nodes({"a": "b", "b": "a"})
    for name in "abab":
        nodes.turn(name)
    assert list(nodes.founded) == ["b"]
    assert nodes.turn("a") == Adopt(nodes.founded["b"])


def test_a_proposal_survives_a_restart_with_other_peers_and_another_address() -> None:
    nodes = Nodes({"a": "bc", "b": "ac", "c": "ab"})
    for name in "abcab":
        nodes.turn(name)
    assert nodes.founded == {}
    proposal = nodes.machines["a"].report().proposed
    assert proposal is not None
    moved = replace_address(member("a"), "elsewhere:9")
    for peers in ([], ["b:1"], ["d:1"]):
        machine = Forming(moved, peers, CONFIG, proposal)
        assert isinstance(machine.next(), Wait)
        assert machine.report().proposed == proposal
        assert machine.report().member == member("a")
        assert {"b:1", "c:1"} <= set(machine.peers)
        machine.on_report("b:1", nodes.report_of("b"))
        assert isinstance(machine.next(), Wait)
        machine.on_report("c:1", nodes.report_of("c"))
        assert machine.next() == Found(proposal)


def replace_address(one: Member, address: str) -> Member:
    return Member(one.node_id, one.store_id, address, one.zone, one.role)


def test_a_shorter_list_of_peers_cannot_bind_itself_to_half_a_set() -> None:
    nodes = Nodes({"a": "bc", "b": "a"})  # c is not started yet.
    assert nodes.problems() == {"a": None, "b": None}
    assert nodes.machines["b"].report().proposed is None


def test_unequal_lists_are_named() -> None:
    nodes = Nodes({"a": "bc", "b": "a", "c": "ab"})
    problems = nodes.problems()
    assert problems["b"] == (
        "unequal lists of peers: b is to found a cluster of a, b, and a one of a, b, c"
    )
    assert problems["a"] is not None
    assert problems["a"].startswith("unequal lists of peers")


def test_two_nodes_of_one_name_are_named() -> None:
    machine = Forming(member("a"), ["x:1", "y:1"], CONFIG, None)
    other = Forming(member("a", "another store"), [], CONFIG, None)
    machine.on_report("x:1", other.report())
    assert problem_of(machine) == "two nodes are called a, at a:1 and at x:1"
    machine.on_report("x:1", Forming(member("b"), [], CONFIG, None).report())
    machine.on_report("y:1", Forming(member("b", "another store"), [], CONFIG, None).report())
    assert problem_of(machine) == "two nodes are called b, at x:1 and at y:1"


def problem_of(machine: Forming) -> str | None:
    decision = machine.next()
    assert isinstance(decision, Wait)
    return decision.problem


@pytest.mark.parametrize(
    ("name", "value"),
    [("partition_count", 8), ("replication_factor", 5), ("virtual_nodes", 7)],
)
def test_unequal_settings_are_named(name: str, value: int) -> None:
    other = replace(CONFIG, **{name: value})  # type: ignore[arg-type]
    nodes = Nodes({"a": "b", "b": "a"}, {"b": other})
    ours = getattr(CONFIG, name)
    assert nodes.problems()["a"] == f"b has {name} {value}, a has {ours}"


def test_a_cluster_founded_without_us_is_not_entered() -> None:
    nodes = Nodes({"a": "b", "b": "a"})
    for name in "ababab":
        nodes.turn(name)
    nodes.machines["d"] = Forming(member("d"), ["a:1", "b:1"], CONFIG, None)
    assert nodes.problems() == {
        "d": "this cluster is already founded without d; ask for it to be added"
    }


def test_a_wiped_disk_is_not_taken_for_the_one_the_cluster_knows() -> None:
    nodes = Nodes({"a": "b", "b": "a"})
    for name in "ababab":
        nodes.turn(name)
    wiped = Forming(member("b", "empty store"), ["a:1"], CONFIG, None)
    wiped.on_report("a:1", nodes.report_of("a"))
    problem = problem_of(wiped)
    assert problem is not None
    assert problem.startswith("b has an empty disk but the cluster knows another store for it")


def test_a_disk_that_was_wiped_after_its_proposal_stops_the_founding_and_is_named() -> None:
    nodes = Nodes({"a": "b", "b": "a"})
    for name in "aba":
        nodes.turn(name)
    assert nodes.machines["a"].report().proposed is not None
    nodes.machines["b"] = Forming(member("b", "empty store"), ["a:1"], CONFIG, None)
    problems = nodes.problems()
    assert problems["a"] is not None
    assert "b has another disk than when a agreed with it" in problems["a"]
    assert problems["b"] is not None
    assert "a has agreed to a cluster without this disk of b" in problems["b"]


def test_a_node_without_an_answer_is_waited_for() -> None:
    nodes = Nodes({"a": "bc", "b": "ac"})
    nodes.turn("b")
    assert nodes.turn("a") == Wait(None, ("c:1",))


def test_a_report_travels_as_it_is() -> None:
    nodes = Nodes({"a": "b", "b": "a"})
    for name in "abab":
        nodes.turn(name)
    report = nodes.report_of("a")
    assert decode_report(encode_report(report)) == report


class Wire:
    """The transport of one node: calls the machines of the others."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[], bytes]] = {}

    async def call(self, address: str, method: str, body: bytes, *, timeout: float) -> bytes:
        await asyncio.sleep(0)
        if address not in self.answers:
            raise Unreachable(f"no answer from {address}")
        return self.answers[address]()


async def run(name: str, peers: str, wire: Wire, problems: list[str | None]) -> Founding:
    machine = Forming(member(name), [f"{peer}:1" for peer in peers], CONFIG, None)
    founded: list[Founding] = []

    def answer() -> bytes:
        report = machine.report()
        if founded:
            report = Report(report.member, 64, 3, (), founded[0], founded[0])
        return encode_report(report)

    async def persist(founding: Founding) -> None:
        await asyncio.sleep(0.001)

    wire.answers[f"{name}:1"] = answer
    founded.append(
        await form(
            machine,
            config=CONFIG,
            transport=wire,  # type: ignore[arg-type]
            persist=persist,
            on_problem=problems.append,
        )
    )
    return founded[0]


async def test_the_driver_forms_a_cluster_of_nodes_that_start_one_after_the_other() -> None:
    wire = Wire()
    runs = []
    for name, peers in (("a", "bc"), ("b", "ac"), ("c", "ab")):
        runs.append(asyncio.ensure_future(run(name, peers, wire, [])))
        await asyncio.sleep(0.01)
    founded = await asyncio.wait_for(asyncio.gather(*runs), 5)
    assert founded[0] == founded[1] == founded[2]


async def reported(problems: list[str | None], count: int) -> None:
    """``count`` rounds have said what is in the way."""
    while len(problems) < count:  # noqa: ASYNC110 (a list has no event)
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Refused("it has another cluster secret"), "b:1 refuses: it has another cluster secret"),
        (Unavailable("it is starting"), None),
    ],
)
async def test_the_driver_goes_on_after_a_refusal_and_says_why(
    error: KotobaError, said: str | None
) -> None:
    wire = Wire()
    problems: list[str | None] = []

    def refuse() -> bytes:
        raise error

    wire.answers["b:1"] = refuse
    forming = asyncio.ensure_future(run("a", "b", wire, problems))
    async with asyncio.timeout(5):
        await reported(problems, 1)
        assert problems[-1] == said
        # It answers now, and has not heard of anybody: nothing is in the way, and nothing founded.
        wire.answers["b:1"] = lambda: encode_report(Report(member("b"), 64, 3))
        await reported(problems, len(problems) + 2)
        assert problems[-1] is None
        await run("b", "a", wire, [])
        await forming


async def test_the_driver_bears_an_answer_that_it_cannot_read() -> None:
    wire = Wire()
    problems: list[str | None] = []
    wire.answers["b:1"] = lambda: b"\xc1"
    forming = asyncio.ensure_future(run("a", "b", wire, problems))
    await asyncio.sleep(0.02)
    assert problems[-1] == "b:1 refuses: it answers in another version's terms"
    forming.cancel()
    await asyncio.gather(forming, return_exceptions=True)
