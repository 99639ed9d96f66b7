"""Rules of what requests say, each broken on purpose: keys and nonces of creations, names of
edges."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from cluster_core.graph.decompose import decompose
from cluster_core.graph.operations import (
    CreateEdge,
    CreateNode,
    Creation,
    Operation,
    create,
    entity_nonce,
    home_partition,
    keyed_partition,
    place_creation,
)
from cluster_core.graph.parts import PutVertex
from cluster_core.node import writes
from cluster_core.node.node import ClusterNode
from cluster_core.node.writes import Writes
from cluster_core.ports import DATA
from cluster_core.query.gather import Gather
from cluster_core.replication.replica import Replica
from cluster_core.txn import executor
from cluster_core.txn.items import DedupeEntry, Item, decode_dedupe
from cluster_core.txn.sweep import Sweep
from cluster_core.types import Digest, Timestamp, partition_of
from tests.simulation.mutants.hunt import Everywhere, Mutant, Whole
from tests.simulation.request_schedules import (
    SHORT_OF_MEMORY,
    create_again_at_other_leaders,
    create_again_with_another_body,
    create_again_with_its_nonce,
    forget_old_keys,
    write_edges_without_their_source,
)
from tests.simulation.runs import Plan

__all__ = ["MUTANTS"]

AREA = "Writing"


def forgets_the_nonce_of_a_redirect(patch: pytest.MonkeyPatch) -> None:
    """The node that was redirected to draws another one."""
    item = Writes._item

    def anew(
        self: Writes, operation: Operation, key: str | None, principal: str, index: int, _: object
    ) -> Item | None:
        return item(self, operation, key, principal, index, None)

    patch.setattr(Writes, "_item", anew)


def creates_again_what_was_deleted(patch: pytest.MonkeyPatch) -> None:
    """A creation does not look whether its CID was ever used."""

    def blindly(*args: Any, check: bool) -> Any:
        return decompose(*args, check=False)

    def unseen(digest: Digest, labels: tuple[str, ...], block: bytes, _: bool) -> PutVertex:
        return PutVertex(digest, labels, block, False)

    patch.setattr(executor, "decompose", blindly)
    patch.setattr(executor, "PutVertex", unseen)


def names_each_try_anew(patch: pytest.MonkeyPatch) -> None:
    """The key says where a creation lives, and no longer what it is called."""
    tries = count()

    def place(
        operation: CreateNode | CreateEdge, principal: str, key: str, index: int, partitions: int
    ) -> Creation:
        home = keyed_partition(principal, key, index, partitions)
        key = f"{key}, try {next(tries)}"
        return place_creation(operation, principal, key, index, partitions, partition=home)

    patch.setattr(writes, "place_creation", place)


def places_creations_by_their_body(patch: pytest.MonkeyPatch) -> None:
    """A vertex lives where its CID falls with the first nonce of its key."""

    def place(
        operation: CreateNode | CreateEdge, principal: str, key: str, index: int, partitions: int
    ) -> Creation:
        return create(operation, entity_nonce(principal, key, index, 0), partitions)

    patch.setattr(writes, "place_creation", place)


def answers_whatever_is_asked(patch: pytest.MonkeyPatch) -> None:
    """A key that was used gives its first answer to other requests, too."""

    def first_answer(value: bytes | None, fingerprint: bytes) -> DedupeEntry | None:
        return None if value is None else decode_dedupe(value)

    patch.setattr(executor, "remembered", first_answer)


def forgets_keys_by_itself(patch: pytest.MonkeyPatch) -> None:
    """What has expired goes from the leader's disk, not through the log."""
    remove = Sweep._remove

    async def here(
        self: Sweep, replica: Replica, pairs: list[tuple[bytes, bytes]], horizon: Timestamp
    ) -> None:
        if horizon:
            await remove(self, replica, pairs, horizon)
            return
        batch = replica._engine.batch()
        for key, _ in pairs:
            batch.delete(DATA, key)
        replica._engine.write(batch)

    patch.setattr(Sweep, "_remove", here)


def looks_where_a_name_points(patch: pytest.MonkeyPatch) -> None:
    """A CID that its own partition does not know is looked for in no other one."""
    locate = Gather._locate_chunk

    async def nearby(self: Gather, digests: Any, exact: bool) -> Any:
        found = await locate(self, digests, exact)
        return [one for one in found if one.partition == self.home(one.asked)]

    patch.setattr(Gather, "_locate_chunk", nearby)


def places_edges_by_their_own_name(patch: pytest.MonkeyPatch) -> None:
    """A write of an edge without its source goes to the partition of the edge's CID."""

    def guess(operation: Operation, nonce: bytes | None, partitions: int) -> int | None:
        placed = home_partition(operation, nonce, partitions)
        return partition_of(writes._edge_of(operation), partitions) if placed is None else placed

    patch.setattr(writes, "home_partition", guess)


def finds_no_deleted_edge(patch: pytest.MonkeyPatch) -> None:
    """A look-up for a write passes over tombstones, so a retry does not find its first answer."""

    async def nowhere(self: ClusterNode, edge: Digest, deadline: float) -> dict[Digest, Digest]:
        return {}

    patch.setattr(ClusterNode, "_locate_deleted", nowhere)


MUTANTS = [
    Mutant(
        broken=forgets_the_nonce_of_a_redirect,
        area=AREA,
        rule="a creation keeps its nonce over redirects and retries",
        scenario=Everywhere(create_again_with_its_nonce),
        within=3,
    ),
    Mutant(
        broken=creates_again_what_was_deleted,
        area=AREA,
        rule="a creation whose name was ever used writes nothing",
        scenario=Everywhere(create_again_with_its_nonce),
        within=3,
    ),
    Mutant(
        broken=names_each_try_anew,
        area=AREA,
        rule="the name of a creation follows from its key",
        scenario=Everywhere(create_again_at_other_leaders),
        within=3,
    ),
    Mutant(
        broken=places_creations_by_their_body,
        area=AREA,
        rule="the partition of a creation follows from its key alone",
        scenario=Everywhere(create_again_with_another_body),
        within=3,
    ),
    Mutant(
        broken=answers_whatever_is_asked,
        area=AREA,
        rule="a key stands for one request",
        scenario=Everywhere(create_again_with_another_body),
        within=3,
    ),
    Mutant(
        broken=forgets_keys_by_itself,
        area=AREA,
        rule="a dedupe entry goes through the log",
        scenario=Everywhere(forget_old_keys, SHORT_OF_MEMORY),
        within=3,
    ),
    Mutant(
        broken=looks_where_a_name_points,
        area=AREA,
        rule="the CID of an edge is looked for in all partitions",
        scenario=Whole(Plan(seconds=1, tellers=0, chaos=False)),
    ),
    Mutant(
        broken=places_edges_by_their_own_name,
        area=AREA,
        rule="a write of an edge goes to the partition of its source",
        scenario=Everywhere(write_edges_without_their_source),
        within=3,
    ),
    Mutant(
        broken=finds_no_deleted_edge,
        area=AREA,
        rule="a look-up for a write knows what was deleted",
        scenario=Everywhere(write_edges_without_their_source),
        within=3,
    ),
]
