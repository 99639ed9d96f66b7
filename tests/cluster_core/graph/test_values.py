from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given

from cluster_core.errors import InvalidRequest
from cluster_core.graph.values import (
    Link,
    Value,
    check_value,
    encode_message,
    message_decoder,
    problem_of,
    properties_from_json,
    properties_to_json,
    value_from_json,
    value_to_json,
)
from tests.cluster_core.graph.strategies import exact, links, properties, values

EMPTY_MAP = "bafyreigbtj4x7ip5legnfznufuopl4sg4knzc2cof6duas4b3q2fy6swua"


class Holder(msgspec.Struct, array_like=True):
    properties: dict[str, Value]


decode_holder = message_decoder(Holder)


@given(values)
def test_every_value_passes_the_check(value: Value) -> None:
    assert problem_of(value) is None
    check_value(value)


@given(values)
def test_a_value_survives_its_json(value: Value) -> None:
    document = orjson.loads(orjson.dumps(value_to_json(value)))
    assert exact(value_from_json(document)) == exact(value)


@given(properties)
def test_values_survive_the_way_between_nodes(drawn: dict[str, Value]) -> None:
    assert exact(decode_holder(encode_message(Holder(drawn))).properties) == exact(drawn)


@given(properties)
def test_properties_survive_their_json(drawn: dict[str, Value]) -> None:
    assert exact(properties_from_json(properties_to_json(drawn))) == exact(drawn)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (1 << 63, "64 bits"),
        (-(1 << 63) - 1, "64 bits"),
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
        ("\ud800", "surrogate"),
        ([1, [2]], "item 1: a list in a list"),
        ([1, float("nan")], "item 1"),
        ([b"", "\udfff"], "item 1"),
        ([1, 1 << 63], "item 1: an int outside of 64 bits"),
        ([-(1 << 63) - 1, 1], "item 0: an int outside of 64 bits"),
        ([1.0, float("inf")], "item 1: a float that is not finite"),
        (["é", "\ud800"], "item 1: a string with half a surrogate pair"),
        ([b"", {}], "item 1: dict"),
        ({}, "dict"),
        ((1,), "tuple"),
        (bytearray(), "bytearray"),
        (Link(b"no cid"), "no CID"),
    ],
)
def test_anything_else_is_refused_with_its_place_and_reason(value: object, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        check_value(value, "properties.x")
    assert caught.value.extra["errors"][0]["where"] == "properties.x"


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"a": 1},
        {"/": 1},
        {"/": EMPTY_MAP, "more": 1},
        {"/": {"bytes": "AA", "more": 1}},
        {"/": {"bytes": 1}},
        {"/": {"bytes": "AA=="}},
        {"/": {"bytes": "AB"}},
        {"/": {"bytes": "A"}},
        {"/": {"bytes": "_-8"}},
        {"/": {"bytes": "é"}},
        {"/": {"link": "AA"}},
        {"/": "bafy"},
        [[1]],
        [{"a": 1}],
        [1, 1 << 64],
        [1.0, float("nan")],
        ["a", "\ud800"],
        1 << 64,
    ],
)
def test_json_that_spells_no_value_is_refused(document: object) -> None:
    with pytest.raises(InvalidRequest):
        value_from_json(document, "properties.x")


def test_dag_json_spells_bytes_and_links() -> None:
    assert value_from_json({"/": {"bytes": "aGVsbG8"}}) == b"hello"
    assert value_to_json(b"hello") == {"/": {"bytes": "aGVsbG8"}}
    link = value_from_json({"/": EMPTY_MAP})
    assert isinstance(link, Link)
    assert str(link) == EMPTY_MAP
    assert value_to_json([link, None]) == [{"/": EMPTY_MAP}, None]


def test_a_null_stays_in_a_list() -> None:
    assert value_from_json([None, 1]) == [None, 1]


def test_all_that_is_wrong_with_properties_is_told_at_once() -> None:
    document: dict[str, Any] = {"a": {}, "b": 1, "c": [1, [2]]}
    with pytest.raises(InvalidRequest) as caught:
        properties_from_json(document)
    places = [problem["where"] for problem in caught.value.extra["errors"]]
    assert places == ["properties.a", "properties.c.1"]
    assert "properties.a" in caught.value.detail


def test_properties_that_are_no_object_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="must be an object"):
        properties_from_json([])


@given(links)
def test_equal_links_are_one_key(link: Link) -> None:
    assert {link: 1}[Link(bytes(link))] == 1
    raw: object = link.cid
    assert link != raw


def test_what_is_no_value_does_not_travel() -> None:
    with pytest.raises(NotImplementedError):
        encode_message([object()])
    with pytest.raises(ValueError, match="extension type 7"):
        decode_holder(msgspec.msgpack.encode([{"x": msgspec.msgpack.Ext(7, b"")}]))
