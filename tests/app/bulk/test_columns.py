from __future__ import annotations

from typing import Any

import pytest

from app.bulk.columns import BadColumn, BadValue, Column, parse_column, value_of

CID = "bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("name", Column("property", "name")),
        (" name ", Column("property", "name")),
        ("age:int", Column("property", "age", "int")),
        ("age:LONG", Column("property", "age", "int")),
        ("tags:string[]", Column("property", "tags", "string", is_list=True)),
        ("a:b:float", Column("property", "a:b", "float")),
        (":ID", Column("id")),
        ("personId:ID(person)", Column("id", "personId", space="person")),
        (":START_ID(person)", Column("start", space="person")),
        (":END_ID", Column("end")),
        (":TYPE", Column("type")),
        (":LABEL", Column("label")),
        ("junk:IGNORE", Column("ignore", "junk")),
    ],
)
def test_a_header_says_what_a_column_is(text: str, column: Column) -> None:
    assert parse_column(text) == column


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no name"),
        ("born:date", "'date' is no type"),
        (":int", "no name"),
        (":LABEL(x)", "have a space"),
        ("x:ID[]", "is no type"),
        ("x:int(y)", "is no type"),
    ],
)
def test_a_header_that_says_nothing_is_refused(text: str, said: str) -> None:
    with pytest.raises(BadColumn, match=said):
        parse_column(text)


@pytest.mark.parametrize(
    ("column", "field", "value"),
    [
        ("a:int", " -7 ", -7),
        ("a:int", "9223372036854775807", (1 << 63) - 1),
        ("a:float", "1e3", 1000.0),
        ("a:bool", "TRUE", True),
        ("a:bool", "0", False),
        ("a:string", " x ", " x "),
        ("a:string", "", None),
        ("a:int[]", "1;2", [1, 2]),
        ("a:string[]", "x", ["x"]),
        ("a:bytes", "aGk=", {"/": {"bytes": "aGk"}}),
        ("a:link", CID, {"/": CID}),
        # What JSON has typed already
        ("a", "", ""),
        ("a", 1.5, 1.5),
        ("a", [1, "x"], [1, "x"]),
        ("a:int", 5, 5),
        ("a:int[]", ["1", 2], [1, 2]),
        ("a:int", None, None),
    ],
)
def test_fields_become_values(column: str, field: Any, value: Any) -> None:
    found = value_of(parse_column(column), field, ";")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("column", "field"),
    [
        ("a:int", "1.5"),
        ("a:int", "1_000"),
        ("a:int", "9223372036854775808"),
        ("a:float", "nan"),
        ("a:float", "1_0.5"),
        ("a:float", "x"),
        ("a:bool", "yes"),
        ("a:bytes", "a"),
        ("a:link", "bafy"),
        ("a:int[]", "1;x"),
        ("a:int[]", 5),
    ],
)
def test_a_field_of_another_type_is_refused(column: str, field: Any) -> None:
    with pytest.raises(BadValue):
        value_of(parse_column(column), field, ";")
