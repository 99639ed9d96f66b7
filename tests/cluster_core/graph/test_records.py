from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster_core.graph.blocks import digest_of, first_edge_block, first_node_block
from cluster_core.graph.entities import Edge, Entity, Vertex
from cluster_core.graph.records import (
    EDGE,
    VERTEX,
    decode_record,
    encode_record,
    record_block,
    record_created_at,
    record_kind,
    record_version,
)
from cluster_core.graph.values import Value, encode_message, message_decoder
from tests.cluster_core.graph.strategies import digests, exact, labels, names, properties

timestamps = st.integers(1, (1 << 64) - 1)
NONCE = bytes(16)
decode_entity = message_decoder(Entity)


@given(digests, labels, properties, timestamps, timestamps)
def test_a_vertex_survives_its_record(
    entity: bytes,
    drawn_labels: tuple[str, ...],
    drawn: dict[str, Value],
    created_at: int,
    updated_at: int,
) -> None:
    block = first_node_block(drawn_labels, drawn, NONCE)
    record = encode_record(VERTEX, digest_of(block), created_at, block)
    vertex = decode_record(entity, updated_at, record)
    assert isinstance(vertex, Vertex)
    assert (vertex.digest, vertex.version) == (entity, digest_of(block))
    assert vertex.labels == tuple(sorted(set(drawn_labels)))
    assert (vertex.created_at, vertex.updated_at) == (created_at, updated_at)
    travelled = decode_entity(encode_message(vertex))
    assert exact(travelled.properties) == exact(vertex.properties)
    assert isinstance(travelled, Vertex)


@given(names, digests, digests, properties, timestamps)
def test_an_edge_survives_its_record(
    label: str, source: bytes, target: bytes, drawn: dict[str, Value], timestamp: int
) -> None:
    block = first_edge_block(label, source, target, drawn, NONCE)
    edge = decode_record(
        digest_of(block), timestamp, encode_record(EDGE, digest_of(block), 0, block)
    )
    assert isinstance(edge, Edge)
    assert (edge.label, edge.source, edge.target) == (label, source, target)
    assert decode_entity(encode_message(edge)) == edge


def test_a_first_version_was_created_at_the_timestamp_of_its_key() -> None:
    block = first_node_block((), {}, NONCE)
    record = encode_record(VERTEX, digest_of(block), 0, block)
    assert record_created_at(record, 77) == 77
    assert record_created_at(encode_record(VERTEX, digest_of(block), 5, block), 77) == 5
    assert decode_record(digest_of(block), 77, record).created_at == 77


def test_the_head_of_a_record_is_read_without_its_block() -> None:
    record = encode_record(EDGE, b"v" * 32, 9, b"block")
    assert record_kind(record) == EDGE
    assert record_version(record) == b"v" * 32
    assert record_block(record) == b"block"
