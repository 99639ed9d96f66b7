from __future__ import annotations

from base64 import b32encode
from contextlib import suppress
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_core.errors import InvalidRequest
from cluster_core.graph.cid import (
    any_cid_text,
    cid_bytes,
    cid_text,
    is_cid,
    parse_any_cid,
    parse_cid,
)
from tests.cluster_core.graph.strategies import digests, links

DIGEST = sha256(b"\xa0").digest()
EMPTY_MAP = "bafyreigbtj4x7ip5legnfznufuopl4sg4knzc2cof6duas4b3q2fy6swua"
"""The well-known CID of an empty map in DAG-CBOR."""


def test_the_text_is_what_other_ipld_tools_write() -> None:
    assert cid_text(DIGEST) == EMPTY_MAP
    assert parse_cid(EMPTY_MAP) == DIGEST


@given(digests)
def test_a_digest_survives_its_text(digest: bytes) -> None:
    text = cid_text(digest)
    assert text == "b" + b32encode(cid_bytes(digest)).decode().lower().rstrip("=")
    assert parse_cid(text) == digest
    assert parse_any_cid(text) == cid_bytes(digest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "bafy",
        EMPTY_MAP.upper(),
        "b" + EMPTY_MAP[1:].upper(),
        EMPTY_MAP + "=",
        EMPTY_MAP + "a",
        EMPTY_MAP[:-1],
        EMPTY_MAP[:-1] + "b",
        EMPTY_MAP[:-1] + "1",
        EMPTY_MAP[:-1] + "é",
        " " + EMPTY_MAP,
        EMPTY_MAP + "\n",
        "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKPbdG",
        "bafkreigbtj4x7ip5legnfznufuopl4sg4knzc2cof6duas4b3q2fy6swua",
        "x" * 100_000,
    ],
)
def test_any_other_text_is_refused_and_the_field_named(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_cid(text, "operations.0.cid")
    (problem,) = caught.value.extra["errors"]
    assert problem["where"] == "operations.0.cid"
    assert len(problem["why"]) < 200


@given(st.text(max_size=70))
def test_no_text_breaks_the_parsers(text: str) -> None:
    for parse in (parse_cid, parse_any_cid):
        with suppress(InvalidRequest):
            parse(text)


@given(links.map(bytes))
def test_any_cid_survives_its_text(raw: bytes) -> None:
    assert is_cid(raw)
    assert parse_any_cid(any_cid_text(raw)) == raw


def test_cids_of_version_0_and_in_other_bases_are_read_as_links() -> None:
    text = "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKPbdG"
    raw = parse_any_cid(text)
    assert raw[:2] == b"\x12\x20"
    assert any_cid_text(raw) == text
    assert parse_any_cid("f01711220" + DIGEST.hex()) == cid_bytes(DIGEST)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x01",
        b"\x01\x71",
        b"\x01\x71\x12",
        b"\x01\x71\x12\x20" + bytes(31),
        b"\x01\x71\x12\x20" + bytes(33),
        b"\x02\x71\x12\x20" + bytes(32),
        b"\x00\x71\x12\x20" + bytes(32),
        b"\x81\x00\x71\x12\x20" + bytes(32),
        b"\x12\x20" + bytes(31),
        b"\x01" + b"\xff" * 12,
    ],
)
def test_bytes_that_are_not_exactly_one_cid_are_none(raw: bytes) -> None:
    assert not is_cid(raw)
