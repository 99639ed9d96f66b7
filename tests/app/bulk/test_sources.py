from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from app.bulk.sources import (
    ROW_BYTES_MAX,
    BadRow,
    BadSource,
    EdgeRow,
    NodeRow,
    Row,
    Source,
    guess_format,
)


def rows(tmp_path: Path, content: str | bytes, name: str = "a.csv", **options: Any) -> list[Row]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    found = guess_format(path)
    assert found is not None
    given: dict[str, Any] = {"kind": "nodes", "format": found[0], "delimiter": found[1] or ","}
    source = Source(path=path, **(given | options))
    reading = source.rows()
    try:
        return list(reading)
    finally:
        reading.close()


def test_nodes_of_csv(tmp_path: Path) -> None:
    text = "id:ID(p),name,age:int,tags:string[],:LABEL\np1,Alice,30,a;b,Admin;Owner\np2,Bob,,,\n"
    assert rows(tmp_path, text, labels=("Person",)) == [
        NodeRow(
            2,
            ("p", "p1"),
            ["Person", "Admin", "Owner"],
            {"id": "p1", "name": "Alice", "age": 30, "tags": ["a", "b"]},
        ),
        NodeRow(3, ("p", "p2"), ["Person"], {"id": "p2", "name": "Bob"}),
    ]


def test_edges_of_csv(tmp_path: Path) -> None:
    text = ":START_ID(p),:END_ID(c),since:int,:TYPE\np1,c1,2020,WORKS_AT\np2,c1,,\n"
    assert rows(tmp_path, text, kind="edges", labels=("KNOWS",)) == [
        EdgeRow(2, ("p", "p1"), ("c", "c1"), "WORKS_AT", {"since": 2020}),
        EdgeRow(3, ("p", "p2"), ("c", "c1"), "KNOWS", {}),
    ]


def test_a_row_that_spans_lines_is_named_by_its_first(tmp_path: Path) -> None:
    text = 'name,age:int\n"a\nb",1\nc,x\n\n"d",2\n'
    found = rows(tmp_path, text)
    assert found[0] == NodeRow(2, None, [], {"name": "a\nb", "age": 1})
    assert found[1] == BadRow(4, "age: 'x' is no 64-bit int")
    assert found[2] == NodeRow(6, None, [], {"name": "d", "age": 2})


def test_what_is_wrong_with_a_row_ends_with_it(tmp_path: Path) -> None:
    content = b'name,age:int\nonly\n\xff\xfe,1\n"a"b,2\ngood,3\n'
    found = rows(tmp_path, content)
    assert [type(row) for row in found] == [BadRow, BadRow, BadRow, NodeRow]
    whys = [row.why for row in found if isinstance(row, BadRow)]
    assert whys[0] == "has 1 fields, the header has 2"
    assert whys[1] == "not UTF-8"
    assert whys[2].startswith("no CSV: ")
    assert found[-1] == NodeRow(5, None, [], {"name": "good", "age": 3})


def test_a_quote_that_never_ends_is_one_bad_row(tmp_path: Path) -> None:
    found = rows(tmp_path, 'name\nok\n"never\nends\n')
    assert found[0] == NodeRow(2, None, [], {"name": "ok"})
    assert isinstance(found[1], BadRow)
    assert found[1].line == 3
    assert len(found) == 2


def test_a_byte_order_mark_packing_and_tabs_are_understood(tmp_path: Path) -> None:
    packed = gzip.compress("\ufeffname\tage:int\nZoë\t1\n".encode())
    assert rows(tmp_path, packed, "a.tsv.gz") == [NodeRow(2, None, [], {"name": "Zoë", "age": 1})]


def test_a_packed_file_that_breaks_off_is_said(tmp_path: Path) -> None:
    packed = gzip.compress(b"name\n" + b"x\n" * 10_000)
    with pytest.raises(BadSource, match="cannot read on after line"):
        rows(tmp_path, packed[: len(packed) // 2], "a.csv.gz")


def test_a_line_beyond_all_bounds_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadSource, match="line 2 is longer than"):
        rows(tmp_path, b"name\n" + b"x" * (ROW_BYTES_MAX + 1))


def test_columns_are_mapped_by_the_name_or_the_whole_header(tmp_path: Path) -> None:
    columns = {"no": ":ID", "Age (years)": "age:int", "junk:int": ":IGNORE"}
    text = "no,Age (years),junk:int,:LABEL\n7,30,x,P\n"
    assert rows(tmp_path, text, columns=columns) == [NodeRow(2, ("", "7"), ["P"], {"age": 30})]


def test_a_file_without_a_header_gets_one(tmp_path: Path) -> None:
    assert rows(tmp_path, "1;x\n", header=":ID;name", delimiter=";") == [
        NodeRow(1, ("", "1"), [], {"name": "x"})
    ]


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("", "nodes", "has no header"),
        ("a,a\n", "nodes", "two columns are the property 'a'"),
        (":ID,x:ID\n", "nodes", ":ID stands more than once"),
        (":START_ID\n", "nodes", ":START_ID does not belong into a file of nodes"),
        (":ID\n", "edges", ":ID does not belong into a file of edges"),
        (":START_ID,:TYPE\n", "edges", "no :END_ID"),
        (":START_ID,:END_ID\n", "edges", "no :TYPE"),
        ("a:date\n", "nodes", "is no type"),
    ],
)
def test_a_header_that_makes_no_rows_is_refused(
    tmp_path: Path, text: str, kind: str, said: str
) -> None:
    with pytest.raises(BadSource, match=said):
        rows(tmp_path, text, kind=kind)


def test_flat_objects_have_columns_for_keys(tmp_path: Path) -> None:
    text = '{"id:ID": 1, "name": "", "age": 30, "tags": ["a"], ":LABEL": ["P", "Q"]}\n\n[]\n{\n'
    found = rows(tmp_path, text, "a.ndjson")
    assert found[0] == NodeRow(
        1, ("", "1"), ["P", "Q"], {"id": 1, "name": "", "age": 30, "tags": ["a"]}
    )
    assert found[1] == BadRow(3, "not an object")
    assert isinstance(found[2], BadRow)
    assert found[2].why.startswith("no JSON")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 9223372036854775808}', "9223372036854775808 is an int outside of 64 bits"),
        ('{"a": [-100000000000000000000]}', "-100000000000000000000 is an int outside of 64 bits"),
        ('{"id:ID": 100000000000000000001}', "100000000000000000001 is an int outside of 64 bits"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice in one object"),
        ('{"properties": {"a": 1, "a": 2}}', "the key 'a' stands twice in one object"),
        ('{"a": 1, "a:int": 2}', "a: two columns are this property"),
        ('{":ID": 1, "id:ID": 2}', "id: another column is :ID too"),
        ('{"id:ID": "a", ":LABEL": 5}', ":LABEL: neither a string nor a list of strings"),
        ('{":LABEL": ["P", 5]}', ":LABEL: neither a string nor a list of strings"),
        ('{":LABEL": {"a": 1}}', ":LABEL: neither a string nor a list of strings"),
        ('{"id:ID": [1]}', "id: neither a string nor a number"),
        ('{"id:ID": true}', "id: neither a string nor a number"),
        ('{"a": NaN}', "no JSON: "),
        ('{"a": 1e400}', "no JSON: "),
        ('{"a": "\\ud800"}', "no JSON: "),
        ('{"a": ' + "[" * 1010 + "]" * 1010 + "}", "lists or objects in one another, too many"),
    ],
)
def test_an_object_that_would_lose_something_or_names_nothing_is_one_bad_row(
    tmp_path: Path, text: str, why: str
) -> None:
    bad, good = rows(tmp_path, text + '\n{":ID": 7}\n', "a.ndjson")
    assert isinstance(bad, BadRow)
    assert bad.line == 1
    assert bad.why.startswith(why)
    assert good == NodeRow(2, ("", "7"), [], {})


def test_numbers_of_64_bits_are_kept(tmp_path: Path) -> None:
    text = '{"a": 9223372036854775807, "b": -9223372036854775808, "c": 1e20, "d": "1e400"}\n'
    assert rows(tmp_path, text, "a.ndjson") == [
        NodeRow(1, None, [], {"a": 2**63 - 1, "b": -(2**63), "c": 1e20, "d": "1e400"})
    ]


def test_the_label_of_an_edge_is_a_text(tmp_path: Path) -> None:
    text = '{":START_ID": 1, ":END_ID": 2, ":TYPE": ["A"]}\n{":START_ID": 1, ":END_ID": 2}\n'
    assert rows(tmp_path, text, "a.ndjson", kind="edges", labels=("K",)) == [
        BadRow(1, ":TYPE: neither a string nor a number"),
        EdgeRow(2, ("", "1"), ("", "2"), "K", {}),
    ]


def test_what_export_writes_is_read(tmp_path: Path) -> None:
    node = '{"cid":"c1","version":"v","labels":["P"],"properties":{"a":{"/":{"bytes":"AA"}}}}\n'
    assert rows(tmp_path, node, "n.ndjson") == [
        NodeRow(1, ("", "c1"), ["P"], {"a": {"/": {"bytes": "AA"}}})
    ]
    edge = '{"cid":"e","label":"K","source_cid":"c1","target_cid":"c2","properties":{}}\n'
    assert rows(tmp_path, edge, "e.jsonl", kind="edges") == [
        EdgeRow(1, ("", "c1"), ("", "c2"), "K", {})
    ]
    assert rows(tmp_path, '{"properties":{}}\n', "e.ndjson", kind="edges") == [
        BadRow(1, "an edge needs label, source_cid and target_cid")
    ]


def test_an_identity_is_of_content_and_options(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"x" * 3_000_000)
    source = Source(path=path, kind="nodes", format="csv")
    other = Source(path=path, kind="nodes", format="csv", labels=("A",))
    first = source.identity()
    assert first == source.identity()
    assert first != other.identity()
    path.write_bytes(b"x" * 2_999_999 + b"y")
    assert source.identity() != first
