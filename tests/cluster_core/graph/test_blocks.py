from __future__ import annotations

from hashlib import sha256

import libipld
import pytest
from cbrrr import decode_dag_cbor
from hypothesis import given
from hypothesis import strategies as st

from cluster_core.graph.blocks import (
    NODE_NONCE,
    decode_block,
    digest_of,
    encode_content,
    first_edge_block,
    first_node_block,
    link_of,
    linked_digest,
    next_block,
)
from cluster_core.graph.cid import cid_bytes
from cluster_core.graph.values import Link, Value
from tests.cluster_core.graph.strategies import digests, exact, labels, names, properties

NONCE = bytes(range(16))
nonces = st.binary(min_size=16, max_size=16)


def without_nulls(drawn: dict[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in drawn.items() if value is not None}


@given(labels, properties, nonces)
def test_a_vertex_survives_its_block(
    drawn_labels: tuple[str, ...], drawn: dict[str, Value], nonce: bytes
) -> None:
    block = first_node_block(drawn_labels, drawn, nonce)
    content = decode_block(block)
    assert content["kind"] == "node"
    assert content["labels"] == sorted(set(drawn_labels))
    assert exact(content["properties"]) == exact(without_nulls(drawn))
    assert content["nonce"] == nonce == block[NODE_NONCE]


@given(names, digests, digests, properties, nonces)
def test_an_edge_survives_its_block(
    label: str, source: bytes, target: bytes, drawn: dict[str, Value], nonce: bytes
) -> None:
    content = decode_block(first_edge_block(label, source, target, drawn, nonce))
    assert (content["kind"], content["label"]) == ("edge", label)
    assert linked_digest(content["source"]) == source
    assert linked_digest(content["target"]) == target
    assert exact(content["properties"]) == exact(without_nulls(drawn))


@given(labels, properties, st.randoms(use_true_random=False))
def test_the_order_of_the_request_makes_no_difference(
    drawn_labels: tuple[str, ...], drawn: dict[str, Value], random: object
) -> None:
    shuffled = list(drawn.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    other = first_node_block(tuple(reversed(drawn_labels)), dict(shuffled), NONCE)
    assert other == first_node_block(drawn_labels, drawn, NONCE)


@given(labels, properties)
def test_another_ipld_library_reads_the_same_block(
    drawn_labels: tuple[str, ...], drawn: dict[str, Value]
) -> None:
    content = libipld.decode_dag_cbor(first_node_block(drawn_labels, drawn, NONCE))
    assert content["labels"] == sorted(set(drawn_labels))
    assert content["properties"].keys() == without_nulls(drawn).keys()


def test_a_block_is_named_by_its_sha2_256() -> None:
    block = first_node_block(("A",), {}, NONCE)
    assert digest_of(block) == sha256(block).digest()
    assert block == (
        b"\xa4\x64kind\x64node\x65nonce\x50" + NONCE + b"\x66labels\x81\x61A\x6aproperties\xa0"
    )


def test_bytes_that_parse_as_a_cid_stay_bytes_and_forge_no_link() -> None:
    raw = cid_bytes(digest_of(b""))
    block = first_node_block((), {"bytes": raw, "link": Link(raw), "list": [raw, Link(raw)]}, NONCE)
    assert decode_block(block)["properties"] == {
        "bytes": raw,
        "link": Link(raw),
        "list": [raw, Link(raw)],
    }
    stock = decode_dag_cbor(block)
    assert isinstance(stock, dict)
    assert block.count(b"\xd8\x2a\x58\x25\x00" + raw) == 2, "CBOR tag 42 only where a link is"


def test_a_later_version_names_the_first_and_its_predecessor() -> None:
    first = first_edge_block("L", bytes(32), bytes(32), {"a": 1}, NONCE)
    entity, prev = digest_of(first), digest_of(b"prev")
    content = decode_block(next_block(decode_block(first) | {"properties": {}}, entity, prev))
    assert content == {
        "kind": "edge",
        "label": "L",
        "source": link_of(bytes(32)),
        "target": link_of(bytes(32)),
        "properties": {},
        "entity": link_of(entity),
        "prev": link_of(prev),
    }


def test_a_nonce_makes_equal_vertices_two() -> None:
    one = first_node_block(("A",), {"x": 1}, NONCE)
    assert one != first_node_block(("A",), {"x": 1}, bytes(16))


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, True), (0.0, -0.0), ("a", b"a")])
def test_contents_that_differ_in_type_differ_in_bytes(one: Value, other: Value) -> None:
    assert encode_content(one) != encode_content(other)
