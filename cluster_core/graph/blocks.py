"""Blocks: every version of every entity as canonical DAG-CBOR, named by its sha2-256.

The first block of an entity, whose CID is the entity's own::

    {"kind": "node", "nonce": 16 bytes, "labels": [sorted], "properties": {…}}
    {"kind": "edge", "nonce": 16 bytes, "label": "…", "source": link, "target": link,
     "properties": {…}}

Each later one has no nonce but ``entity``, the link to the first block, and ``prev``, the link to
its predecessor: the history is a hash chain. A deletion has no block. Blocks hold no clock, so that
every node makes the same CID of the same request.

cbrrr writes and reads them, in about 1 µs each, since its links are a type of their own: bytes of a
user that happen to parse as a CID stay bytes, and nobody can forge a link.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Final

from cbrrr import decode_dag_cbor, encode_dag_cbor

from cluster_core.graph.cid import PREFIX
from cluster_core.graph.values import Link, Value
from cluster_core.types import Digest

__all__ = [
    "NODE_NONCE",
    "NONCE_BYTES",
    "decode_block",
    "digest_of",
    "encode_content",
    "first_edge_block",
    "first_node_block",
    "link_of",
    "linked_digest",
    "next_block",
]

NONCE_BYTES: Final = 16

NODE_NONCE: Final = slice(18, 18 + NONCE_BYTES)
"""Where the nonce lies in a first block of a vertex. Canonical maps put shorter names first, so
only the map's head (1), ``kind`` with its value (10), the name (6) and a length (1) precede it."""


def digest_of(block: bytes) -> Digest:
    """What names ``block``: its sha2-256."""
    return sha256(block).digest()


def link_of(digest: Digest) -> Link:
    """The link to our block with ``digest``."""
    return Link(PREFIX + digest)


def linked_digest(link: Link) -> Digest:
    """The digest in a link to one of our blocks."""
    assert link.cid[:4] == PREFIX
    return link.cid[4:]


def present(properties: dict[str, Value]) -> dict[str, Value]:
    """``properties`` without those that are null: at the top level null means absent."""
    return {name: value for name, value in properties.items() if value is not None}


def first_node_block(labels: Iterable[str], properties: dict[str, Value], nonce: bytes) -> bytes:
    """The block that creates a vertex."""
    assert len(nonce) == NONCE_BYTES
    return encode_content(
        {
            "kind": "node",
            "labels": sorted(set(labels)),
            "properties": present(properties),
            "nonce": nonce,
        }
    )


def first_edge_block(
    label: str, source: Digest, target: Digest, properties: dict[str, Value], nonce: bytes
) -> bytes:
    """The block that creates an edge."""
    assert len(nonce) == NONCE_BYTES
    return encode_content(
        {
            "kind": "edge",
            "label": label,
            "source": link_of(source),
            "target": link_of(target),
            "properties": present(properties),
            "nonce": nonce,
        }
    )


def next_block(content: dict[str, Any], entity: Digest, prev: Digest) -> bytes:
    """The block of a later version: ``content`` is its predecessor's, with the changes made."""
    version = {name: item for name, item in content.items() if name != "nonce"}
    version["entity"] = link_of(entity)
    version["prev"] = link_of(prev)
    return encode_content(version)


def encode_content(content: Any) -> bytes:
    """Canonical DAG-CBOR: equal bytes mean equal contents, types included."""
    return encode_dag_cbor(content, cid_type=Link)


def decode_block(block: bytes) -> dict[str, Any]:
    """The content of a block that this module wrote; links are :class:`Link`."""
    content: Any = decode_dag_cbor(block, cid_ctor=Link)
    return content  # type: ignore[no-any-return]  # every block is a map with text keys
