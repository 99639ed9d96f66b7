from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_core.config import LimitConfig
from cluster_core.errors import DependencyFailed, InvalidRequest, TooLarge
from cluster_core.graph.blocks import digest_of
from cluster_core.graph.operations import (
    BatchOperation,
    CreateEdge,
    CreateNode,
    DeleteEdge,
    DeleteNode,
    Operation,
    OperationResult,
    UpdateEdge,
    UpdateNode,
    check_batch,
    check_operation,
    create,
    decode_operation,
    decode_result,
    encode_operation,
    encode_result,
    entity_nonce,
    fingerprint,
    home_partition,
    keyed_partition,
    place_creation,
    resolve_refs,
)
from cluster_core.graph.values import Link
from cluster_core.types import partition_of
from tests.cluster_core.graph.strategies import creations, exact, operations

LIMITS = LimitConfig(
    property_count_max=3, property_name_bytes_max=8, label_count_max=2, label_bytes_max=8
)
A, B = b"a" * 32, b"b" * 32
KEY = ("principal", "key", 0)


@given(operations)
def test_an_operation_survives_the_way_between_nodes(operation: Operation) -> None:
    travelled = decode_operation(encode_operation(operation))
    assert type(travelled) is type(operation)
    assert fields(travelled) == fields(operation)
    assert fingerprint(travelled) == fingerprint(operation)


def fields(operation: Operation) -> list[object]:
    return [exact(getattr(operation, name)) for name in operation.__struct_fields__]


def test_a_result_survives_the_way_between_nodes() -> None:
    result = OperationResult(A, B, 3, 1 << 63, created=True)
    assert decode_result(encode_result(result)) == result


@given(operations)
def test_what_is_drawn_passes_the_check(operation: Operation) -> None:
    check_operation(operation, LimitConfig())


@pytest.mark.parametrize(
    ("operation", "where"),
    [
        (CreateNode(("",)), "labels.0"),
        (CreateNode(("a", "b\0")), "labels.1"),
        (CreateNode(("123456789",)), "labels.0"),
        (CreateNode(("ééééé",)), "labels.0"),
        (CreateNode(("\ud800",)), "labels.0"),
        (CreateNode(("a", "b", "c")), "labels"),
        (CreateNode((), {"": 1}), "properties"),
        (CreateNode((), {"\0": 1}), "properties"),
        (CreateNode((), {"123456789": 1}), "properties"),
        (CreateNode((), {"a": 1, "b": 1, "c": 1, "d": 1}), "properties"),
        (CreateNode((), {"x": float("nan")}), "properties.x"),
        (CreateNode((), {"x": Link(b"")}), "properties.x"),
        (UpdateNode(b"short"), "cid"),
        (UpdateNode(A, {}, ("",)), "labels.0"),
        (UpdateNode(A, {}, None, b"short"), "if_version"),
        (UpdateNode(A, {"x": 1 << 64}), "properties.x"),
        (DeleteNode(b""), "cid"),
        (CreateEdge("", A, B), "label"),
        (CreateEdge("L", b"", B), "source_cid"),
        (CreateEdge("L", A, b""), "target_cid"),
        (UpdateEdge(A, {}, b"short"), "source_cid"),
        (DeleteEdge(A, None, b"short"), "if_version"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(operation: Operation, where: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_operation(operation, LIMITS, "operations.4")
    assert [p["where"] for p in caught.value.extra["errors"]] == [f"operations.4.{where}"]


def test_all_that_is_wrong_is_told_at_once() -> None:
    bad: dict[str, Any] = {"x": object(), "": 1}
    with pytest.raises(InvalidRequest) as caught:
        check_operation(CreateEdge("", b"", B, bad), LIMITS)
    places = sorted(p["where"] for p in caught.value.extra["errors"])
    assert places == ["label", "properties", "properties.x", "source_cid"]


def test_a_field_whose_ref_is_not_known_yet_may_be_empty() -> None:
    check_operation(CreateEdge("L", b"", B), LIMITS, refs={"source_cid"})
    with pytest.raises(InvalidRequest):
        check_operation(CreateEdge("L", b"", b""), LIMITS, refs={"source_cid"})


# Batches


def test_refs_are_replaced_by_what_they_name() -> None:
    item = BatchOperation(CreateEdge("L", b"", b""), refs={"source_cid": "a", "target_cid": "b"})
    assert resolve_refs(item, {"a": A, "b": B}) == CreateEdge("L", A, B)
    plain = BatchOperation(DeleteNode(A))
    assert resolve_refs(plain, {}) is plain.operation
    update = BatchOperation(UpdateNode(b"", {"x": 1}), refs={"cid": "a"})
    assert resolve_refs(update, {"a": A}) == UpdateNode(A, {"x": 1})


def test_what_names_a_failed_operation_fails_with_it() -> None:
    item = BatchOperation(DeleteNode(b""), refs={"cid": "a"})
    with pytest.raises(DependencyFailed) as caught:
        resolve_refs(item, {"a": None})
    assert caught.value.extra == {"ref": "a"}


def test_a_ref_must_name_an_earlier_operation_and_only_one() -> None:
    node = CreateNode()
    check_batch(
        [BatchOperation(node, "a"), BatchOperation(DeleteNode(b""), refs={"cid": "a"})], LIMITS
    )
    for batch, where in (
        ([BatchOperation(DeleteNode(b""), "a", {"cid": "a"})], "operations.0.cid"),
        ([BatchOperation(node, "a"), BatchOperation(node, "a")], "operations.1.ref"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            check_batch(batch, LIMITS)
        assert [p["where"] for p in caught.value.extra["errors"]] == [where]


def test_a_batch_has_a_bound() -> None:
    with pytest.raises(TooLarge) as caught:
        check_batch([BatchOperation(CreateNode())] * 3, LimitConfig(batch_operations_max=2))
    assert caught.value.extra == {"limit": 2, "name": "batch_operations_max"}


# Fingerprints


def test_a_fingerprint_ignores_order_and_hints_and_nothing_else() -> None:
    base = CreateNode(("A", "B"), {"x": 1, "y": 2})
    assert fingerprint(base) == fingerprint(CreateNode(("B", "A"), {"y": 2, "x": 1, "z": None}))
    assert fingerprint(UpdateEdge(A, {}, B)) == fingerprint(UpdateEdge(A, {}))
    assert fingerprint(DeleteEdge(A, B)) == fingerprint(DeleteEdge(A))
    different: list[Operation] = [
        base,
        CreateNode(("A", "B"), {"x": 1.0, "y": 2}),
        CreateNode(("A", "B"), {"x": True, "y": 2}),
        CreateNode(("A",), {"x": 1, "y": 2}),
        UpdateNode(A),
        UpdateNode(A, {"x": None}),
        UpdateNode(A, {}, ()),
        UpdateNode(A, {}, None, B),
        UpdateNode(B),
        UpdateEdge(A),
        UpdateEdge(A, {}, None, B),
        DeleteNode(A),
        DeleteNode(A, True),
        DeleteNode(A, False, B),
        DeleteEdge(A),
        CreateEdge("L", A, B),
        CreateEdge("L", B, A),
        CreateEdge("M", A, B),
    ]
    assert len({fingerprint(operation) for operation in different}) == len(different)


# Placing


@given(creations, st.integers(1, 32), st.text(max_size=5), st.integers(0, 9))
def test_every_retry_under_a_key_makes_the_same_entity(
    operation: CreateNode | CreateEdge, partition_count: int, key: str, index: int
) -> None:
    made = place_creation(operation, "p", key, index, partition_count)
    assert made == place_creation(operation, "p", key, index, partition_count)
    assert made == create(operation, made.nonce, partition_count)
    assert made.digest == digest_of(made.block)
    assert made.partition == home_partition(operation, made.nonce, partition_count)


@given(st.integers(1, 64), st.text(max_size=5))
def test_a_keyed_vertex_lands_in_the_partition_of_its_key_whatever_its_body(
    partition_count: int, key: str
) -> None:
    wanted = keyed_partition("p", key, 0, partition_count)
    for body in range(3):
        made = place_creation(CreateNode((), {"body": body}), "p", key, 0, partition_count)
        assert made.partition == wanted == partition_of(made.digest, partition_count)


def test_keys_are_spread_over_the_partitions() -> None:
    used = {keyed_partition("p", str(key), 0, 16) for key in range(400)}
    assert used == set(range(16))


def test_the_nonce_depends_on_each_of_its_parts_and_their_borders() -> None:
    nonces = [
        entity_nonce(*KEY, 0),
        entity_nonce(*KEY, 1),
        entity_nonce("principal", "key", 1, 0),
        entity_nonce("principalk", "ey", 0, 0),
        entity_nonce("principa", "lkey", 0, 0),
        entity_nonce("", "principalkey", 0, 0),
    ]
    assert len(set(nonces)) == len(nonces)
    assert all(len(nonce) == 16 for nonce in nonces)


def test_the_nonce_of_a_placed_creation_is_one_of_its_keys_sequence() -> None:
    made = place_creation(CreateNode(), *KEY, 8)
    assert made.nonce in [entity_nonce(*KEY, attempt) for attempt in range(1_000)]


def test_an_edge_belongs_to_its_source_and_without_a_hint_nobody_knows_where() -> None:
    home = partition_of(A, 7)
    assert home_partition(CreateEdge("L", A, B), bytes(16), 7) == home
    assert home_partition(UpdateEdge(B, {}, A), None, 7) == home
    assert home_partition(DeleteEdge(B, A), None, 7) == home
    assert home_partition(DeleteEdge(B), None, 7) is None
    assert home_partition(UpdateEdge(B), None, 7) is None
    assert home_partition(UpdateNode(A), None, 7) == home
    assert home_partition(DeleteNode(A), None, 7) == home
