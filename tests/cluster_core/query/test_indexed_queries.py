"""Queries through indexes give the answers of queries without them, and read less."""

from __future__ import annotations

from random import Random
from typing import cast

import pytest
from msgspec import structs

from cluster_core.config import LimitConfig
from cluster_core.errors import TooLarge
from cluster_core.graph.values import Value
from cluster_core.query import local_index
from cluster_core.query.host import ReadPoint
from cluster_core.query.plan import (
    GROUP_BY_LABEL,
    AllOf,
    AnyOf,
    Comparison,
    Count,
    FindEdges,
    FindNodes,
    Operator,
    OrderBy,
    Where,
)
from cluster_core.query.results import CountRow, QueryResult
from tests.cluster_core.query.two_nodes import PARTITIONS, TwoNodes

LONG = "y" * 600
VALUES: list[Value] = [None, False, True, -3, 0, 2, 2.5, 7, "a", "ab", "b", LONG + "1", LONG + "2"]
OPERATORS: list[Operator] = ["eq", "ne", "lt", "le", "gt", "ge", "in", "starts_with", "exists"]


def crowd(random: Random, size: int = 40) -> TwoNodes:
    """Vertices and edges with few different values, indexed on all of them, some changed since."""
    cluster = TwoNodes()

    def some() -> dict[str, Value]:
        drawn = {name: random.choice(VALUES) for name in ("p", "q")}
        return {name: value for name, value in drawn.items() if value is not None}

    vertices = [
        cluster.add_vertex("A", *random.choice([(), ("B",)]), **some()) for _ in range(size)
    ]
    building = [cluster.begin_index(*on) for on in [("A", "p"), ("A", "q"), ("K", "p")]]
    edges = [
        cluster.add_edge("K", random.choice(vertices), random.choice(vertices), **some())
        for _ in range(size)
    ]
    for index in building:
        cluster.finish_index(index)
    for digest in random.sample(vertices + edges, size // 3):
        cluster.update(digest, **some())
    for digest in random.sample(edges, size // 10):
        cluster.delete(digest)
    return cluster


def some_condition(random: Random) -> Where | None:
    def comparison() -> Comparison:
        op, name = random.choice(OPERATORS), random.choice("ppq")
        if op == "in":
            return Comparison(name, op, cast("Value", random.sample(VALUES, 3)))
        if op == "exists":
            return Comparison(name, op, random.choice([True, False]))
        if op == "starts_with":
            return Comparison(name, op, random.choice(["a", "", LONG]))
        return Comparison(name, op, random.choice(VALUES[1:]))

    shape = random.random()
    if shape < 0.2:
        return None
    if shape < 0.6:
        return comparison()
    joined = AllOf if shape < 0.8 else AnyOf
    return joined((comparison(), comparison()))


@pytest.mark.parametrize("seed", range(6))
async def test_pages_are_the_same_with_and_without_indexes(seed: int) -> None:
    """Also when the index comes or goes between two pages of one cursor."""
    random = Random(seed)
    cluster = crowd(random)
    known = cluster.alpha.known
    for _ in range(40):
        where, limit = some_condition(random), random.choice([1, 3, 10, 100])
        orders = [OrderBy(name, random.random() < 0.5) for name in random.sample("pq", 2)]
        order_by = tuple(orders[: random.choice([0, 1, 1, 2])])
        query: FindNodes | FindEdges
        if random.random() < 0.7:
            labels = random.choice([("A",), ("A",), ("B", "A")])
            query = FindNodes(labels=labels, where=where, order_by=order_by, limit=limit)
        else:
            query = FindEdges(label="K", where=where, order_by=order_by, limit=limit)
        while True:
            cluster.alpha.known = []
            expected = await cluster.ask(query)
            cluster.alpha.known = known
            result = await cluster.ask(query)
            assert result.rows == expected.rows
            assert result.cursor == expected.cursor
            if result.cursor is None:
                break
            query = structs.replace(query, cursor=result.cursor)
        count = some_count(random, where)
        counted = await cluster.ask(count)
        cluster.alpha.known = []
        assert told(await cluster.ask(count)) == told(counted)
        cluster.alpha.known = known


def some_count(random: Random, where: Where | None) -> Count:
    group_by = random.choice([None, "p", "p", "q", GROUP_BY_LABEL])
    if random.random() < 0.5:
        labels = random.choice([(), ("A",), ("A",), ("B", "A")])
        return Count(labels=labels, where=where, group_by=group_by)
    return Count(of="edges", label=random.choice([None, "K"]), where=where, group_by=group_by)


def told(result: QueryResult) -> list[tuple[str, int]]:
    """1, 1.0 and True are not the same to a reader."""
    return [(repr(row.group), row.count) for row in cast("list[CountRow]", result.rows)]


@pytest.fixture
def people() -> TwoNodes:
    """240 people, ten of each age from 20 to 43, and as many things."""
    cluster = TwoNodes()
    for number in range(240):
        cluster.add_vertex("Person", age=20 + number % 24, name=f"n{number:04}")
        cluster.add_vertex("Thing", age=20 + number % 24)
    return cluster


def index(cluster: TwoNodes, label: str, name: str) -> None:
    cluster.finish_index(cluster.begin_index(label, name))


async def test_statistics_name_the_index(people: TwoNodes) -> None:
    where = Comparison("age", "eq", 30)
    query = FindNodes(labels=("Person",), where=where)
    assert (await people.ask(query)).statistics.index == "Person"
    index(people, "Person", "age")
    assert (await people.ask(query)).statistics.index == "Person.age"
    assert (await people.ask(FindNodes(where=where))).statistics.index is None


async def test_before_it_was_complete_an_index_is_not_used(people: TwoNodes) -> None:
    query = FindNodes(labels=("Person",), where=Comparison("age", "eq", 30))
    building = people.begin_index("Person", "age")
    before = people.now
    ready = people.finish_index(building)
    assert (await people.ask(query, at=before)).statistics.index == "Person"
    assert (await people.ask(query, at=ready.since)).statistics.index == "Person.age"
    assert len((await people.ask(query, at=before)).rows) == 10


async def test_a_label_reads_what_has_the_label(people: TwoNodes) -> None:
    scan = await people.ask(Count(where=Comparison("age", "exists")))
    by_label = await people.ask(Count(labels=("Person",), where=Comparison("age", "exists")))
    only_label = await people.ask(Count(labels=("Person",)))
    assert scan.statistics.scanned == 480
    assert by_label.statistics.scanned == 2 * 240, "an entry and a record each"
    assert only_label.statistics.scanned == 240, "an entry each"
    assert cast("CountRow", only_label.rows[0]).count == 240


async def test_a_value_reads_what_has_the_value(people: TwoNodes) -> None:
    index(people, "Person", "age")
    query = FindNodes(labels=("Person",), where=Comparison("age", "eq", 30))
    assert (await people.ask(query)).statistics.scanned == 20
    counted = await people.ask(Count(labels=("Person",), where=Comparison("age", "lt", 30)))
    assert counted.statistics.scanned == 100
    assert cast("CountRow", counted.rows[0]).count == 100


async def test_a_count_by_value_reads_the_entries_and_one_record_of_each_value(
    people: TwoNodes,
) -> None:
    index(people, "Person", "age")
    counted = await people.ask(Count(labels=("Person",), group_by="age"))
    assert told(counted) == [(str(age), 10) for age in range(20, 44)]
    assert counted.statistics.index == "Person.age"
    assert 240 < counted.statistics.scanned <= 240 + 24 * PARTITIONS
    some = Count(labels=("Person",), where=Comparison("age", "ge", 40), group_by="age")
    assert told(await people.ask(some)) == [(str(age), 10) for age in range(40, 44)]
    assert people.alpha.requests == 2, "one for each count, to the other node"


async def test_a_count_by_value_stops_at_its_bounds(people: TwoNodes) -> None:
    index(people, "Person", "age")
    query = Count(labels=("Person",), group_by="age")
    with pytest.raises(TooLarge):
        await people.ask(query, limits=LimitConfig(query_rows_max=23))
    cut = await people.ask(query, limits=LimitConfig(query_scanned_max=50))
    assert (cut.truncated, cut.bound) == (True, "scanned")


async def test_edges_are_counted_by_label_without_reading_them(people: TwoNodes) -> None:
    first, *others = list(people.graph.vertices)[:10]
    for number, other in enumerate(others):
        people.add_edge("K" if number % 3 else "L\N{LATIN SMALL LETTER E WITH ACUTE}", first, other)
    counted = await people.ask(Count(of="edges", group_by=GROUP_BY_LABEL))
    assert told(counted) == [("'K'", 6), ("'L\N{LATIN SMALL LETTER E WITH ACUTE}'", 3)]
    assert (counted.statistics.scanned, counted.statistics.index) == (9, GROUP_BY_LABEL)


@pytest.mark.parametrize("descending", [False, True])
async def test_the_first_of_an_order_are_read_and_no_others(
    people: TwoNodes, descending: bool
) -> None:
    index(people, "Person", "name")
    order = (OrderBy("name", descending),)
    query = FindNodes(labels=("Person",), order_by=order, limit=5)
    result = await people.ask(query)
    names = [row.properties["name"] for row in result.rows]  # type: ignore[union-attr]
    firsts = range(239, 234, -1) if descending else range(5)
    assert names == [f"n{number:04}" for number in firsts]
    # At most all entries (an engine hands them over 64 at a time), and of each node the records of
    # five rows and of the next one in each partition.
    assert result.statistics.scanned <= 240 + 2 * 5 + 6
    assert result.statistics.index == "Person.name"


async def test_an_index_that_is_going_sends_the_task_to_the_label_index(people: TwoNodes) -> None:
    building = people.begin_index("Person", "age")
    ready = people.finish_index(building)
    people.drop_index(ready, known=False)
    for query in (
        FindNodes(labels=("Person",), where=Comparison("age", "eq", 30)),
        FindNodes(labels=("Person",), where=Comparison("age", "in", [29, 31]), limit=20),
        FindNodes(labels=("Person",), order_by=(OrderBy("age"),), limit=10),
        FindNodes(labels=("Person",), order_by=(OrderBy("age", True),), limit=10),
    ):
        result = await people.ask(query)
        assert len(result.rows) >= 10
        assert result.statistics.index == "Person"
    counted = await people.ask(Count(labels=("Person",), where=Comparison("age", "eq", 30)))
    assert cast("CountRow", counted.rows[0]).count == 10
    assert counted.statistics.index == "Person"
    grouped = await people.ask(Count(labels=("Person",), group_by="age"))
    assert told(grouped) == [(str(age), 10) for age in range(20, 44)]
    assert grouped.statistics.index == "Person"


async def test_a_range_with_very_many_entries_is_read_by_digest(
    people: TwoNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(people, "Person", "age")
    monkeypatch.setattr(local_index, "COLLECT_MAX", 20)
    query = FindNodes(labels=("Person",), where=Comparison("age", "ge", 30), limit=3)
    result = await people.ask(query)
    assert len(result.rows) == 3
    assert result.statistics.index == "Person"


async def test_a_page_along_an_index_that_meets_the_budget_says_so(people: TwoNodes) -> None:
    index(people, "Person", "age")
    where = Comparison("name", "eq", "n0239")
    query = FindNodes(labels=("Person",), where=where, order_by=(OrderBy("age"),))
    result = await people.ask(query, limits=LimitConfig(query_scanned_max=100))
    assert result.bound == "scanned"
    assert result.truncated


async def test_an_eventual_read_passes_over_what_moved_on(people: TwoNodes) -> None:
    """The entry says one value, the record already another one: there it will be met again."""
    index(people, "Person", "age")
    (row,) = (
        await people.ask(FindNodes(labels=("Person",), where=Comparison("name", "eq", "n0007")))
    ).rows
    people.update(row.digest, name="n0007", age=1_000)  # type: ignore[union-attr]
    point = ReadPoint(people.now, skip_intents=True)
    query = FindNodes(labels=("Person",), order_by=(OrderBy("age", True),), limit=2)
    rows = (await people.ask(query, point=point)).rows
    assert [each.properties["age"] for each in rows] == [1_000, 43]  # type: ignore[union-attr]
    counted = await people.ask(Count(labels=("Person",), group_by="age"), point=point)
    assert ("1000", 1) in told(counted)
    assert sum(count for _, count in told(counted)) == 240
