"""What hypothesis draws: values, properties, operations."""

from __future__ import annotations

from hypothesis import strategies as st

from cluster_core.graph.operations import (
    CreateEdge,
    CreateNode,
    DeleteEdge,
    DeleteNode,
    Operation,
    UpdateEdge,
    UpdateNode,
)
from cluster_core.graph.values import INT_MAX, INT_MIN, Link, Scalar, Value

digests = st.binary(min_size=32, max_size=32)

links = st.one_of(
    digests.map(lambda digest: Link(b"\x01\x71\x12\x20" + digest)),
    digests.map(lambda digest: Link(b"\x12\x20" + digest)),
    st.binary(max_size=20).map(lambda data: Link(bytes((1, 0x55, 0, len(data))) + data)),
)

texts = st.text(st.characters(codec="utf-8"), max_size=20)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=10)

scalars: st.SearchStrategy[Scalar] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(INT_MIN, INT_MAX),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
    st.binary(max_size=40),
    links.map(bytes),  # bytes that parse as a CID, and must stay bytes
    links,
)

values: st.SearchStrategy[Value] = st.one_of(scalars, st.lists(scalars, max_size=5))

properties = st.dictionaries(names, values, max_size=6)
labels = st.lists(names, max_size=4).map(tuple)
maybe_digests = st.one_of(st.none(), digests)

creations: st.SearchStrategy[CreateNode | CreateEdge] = st.one_of(
    st.builds(CreateNode, labels, properties),
    st.builds(CreateEdge, names, digests, digests, properties),
)

operations: st.SearchStrategy[Operation] = st.one_of(
    creations,
    st.builds(UpdateNode, digests, properties, st.one_of(st.none(), labels), maybe_digests),
    st.builds(DeleteNode, digests, st.booleans(), maybe_digests),
    st.builds(UpdateEdge, digests, properties, maybe_digests, maybe_digests),
    st.builds(DeleteEdge, digests, maybe_digests, maybe_digests),
)


def exact(value: object) -> object:
    """``value`` in a form in which 1, 1.0 and True, or 0.0 and -0.0, are not equal."""
    if isinstance(value, dict):
        return {name: exact(item) for name, item in value.items()}
    if isinstance(value, list):
        return [exact(item) for item in value]
    return type(value), repr(value)
