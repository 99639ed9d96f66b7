from __future__ import annotations

from pathlib import Path

import pytest

from app.demo.code_graph import CodeGraph, read_code_graph

SOURCES = {
    "shop/__init__.py": "from .stock import *\nfrom . import till\n",
    "shop/stock.py": """
        import json
        from abc import ABC

        class Thing(ABC):
            def price(self):
                return self.base() + len("x")

            def base(self):
                return 1

            @staticmethod
            def make(self):
                return self.base()

        class Book(Thing):
            def price(self):
                return super().price() + super().base()

        class Oddity(Exception, Missing):
            pass

        def _hidden():
            pass
    """,
    "shop/till.py": """
        import shop.stock as goods
        from shop import Thing as Item
        from .stock import Book

        def sell(count):
            import socket
            book = Book()
            goods.Book.price(book)
            count()
            print(Item(), Book())

            def inner():
                sell(1)

            inner()

        if __name__ == "__main__":
            import doctest
            def only_here(): ...
            sell(2)

        async def later():
            sell(0)

        class Shadow:
            def sell(self):
                sell(3)
    """,
    "shop/broken.py": "def (:\n",
    "shop/test/test_till.py": "import unittest\n",
    "not-a-package/x.py": "import re\n",
}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> CodeGraph:
    return read_code_graph(_write(tmp_path_factory.mktemp("sources")))


def _write(root: Path) -> Path:
    import textwrap

    for name, text in SOURCES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return root


def edges(graph: CodeGraph, label: str, source: str) -> set[str]:
    return {e.target for e in graph.edges if e.label == label and e.source == source}


def test_modules_classes_and_functions_are_vertices(graph: CodeGraph) -> None:
    found = {(vertex.label, vertex.name) for vertex in graph.vertices}
    assert {
        ("Module", "shop"),
        ("Module", "shop.stock"),
        ("Class", "shop.stock.Book"),
        ("Function", "shop.stock.Book.price"),
        ("Function", "shop.till.sell.inner"),
        ("Function", "shop.till.later"),
        ("Class", "builtins.Exception"),
    } <= found


def test_tests_and_folders_that_cannot_be_imported_are_left_out(graph: CodeGraph) -> None:
    names = {vertex.name for vertex in graph.vertices}
    assert not any("test" in name or "not-a" in name for name in names)


def test_what_is_no_python_is_skipped_and_counted(graph: CodeGraph) -> None:
    assert [path.name for path in graph.skipped] == ["broken.py"]
    assert graph.files == 3


def test_definitions_belong_to_what_contains_them(graph: CodeGraph) -> None:
    assert edges(graph, "DEFINES", "shop.till.sell") == {"shop.till.sell.inner"}
    assert edges(graph, "DEFINES", "shop.stock.Book") == {"shop.stock.Book.price"}


def test_imports_are_resolved_and_marked_when_lazy(graph: CodeGraph) -> None:
    assert edges(graph, "IMPORTS", "shop") == {"shop.stock", "shop.till"}
    assert edges(graph, "IMPORTS", "shop.till") == {"shop", "shop.stock", "socket"}
    lazy = {e.target for e in graph.edges if e.label == "IMPORTS" and e.properties["lazy"]}
    assert lazy == {"socket"}


def test_a_block_for_scripts_imports_nothing(graph: CodeGraph) -> None:
    assert "doctest" not in {vertex.name for vertex in graph.vertices}


def test_bases_are_found_and_unknown_ones_left_out(graph: CodeGraph) -> None:
    assert edges(graph, "INHERITS", "shop.stock.Book") == {"shop.stock.Thing"}
    assert edges(graph, "INHERITS", "shop.stock.Oddity") == {"builtins.Exception"}
    assert edges(graph, "INHERITS", "builtins.Exception") == {"builtins.BaseException"}


def test_methods_are_found_through_self_and_super(graph: CodeGraph) -> None:
    assert edges(graph, "CALLS", "shop.stock.Thing.price") == {
        "shop.stock.Thing.base",
        "builtins.len",
    }
    assert edges(graph, "CALLS", "shop.stock.Book.price") == {
        "shop.stock.Thing.price",
        "shop.stock.Thing.base",
        "builtins.super",
    }


def test_a_static_method_has_no_self(graph: CodeGraph) -> None:
    assert edges(graph, "CALLS", "shop.stock.Thing.make") == set()


def test_calls_go_through_imports_stars_aliases_and_enclosing_functions(graph: CodeGraph) -> None:
    assert edges(graph, "CALLS", "shop.till.sell") == {
        "shop.stock.Book",
        "shop.stock.Book.price",
        "shop.stock.Thing",
        "shop.till.sell.inner",
        "builtins.print",
    }
    assert edges(graph, "CALLS", "shop.till.sell.inner") == {"shop.till.sell"}


def test_a_method_does_not_see_the_names_of_its_class(graph: CodeGraph) -> None:
    assert edges(graph, "CALLS", "shop.till.Shadow.sell") == {"shop.till.sell"}


def test_calls_are_counted(graph: CodeGraph) -> None:
    call = next(
        e for e in graph.edges if e.source == "shop.till.sell" and e.target == "shop.stock.Book"
    )
    assert call.properties["count"] == 2


def test_every_edge_joins_two_vertices_and_none_comes_twice(graph: CodeGraph) -> None:
    names = {vertex.name for vertex in graph.vertices}
    assert len(names) == len(graph.vertices)
    assert all({edge.source, edge.target} <= names for edge in graph.edges)
    keys = [(edge.label, edge.source, edge.target) for edge in graph.edges]
    assert len(set(keys)) == len(keys)


def test_the_same_files_give_the_same_graph(graph: CodeGraph, tmp_path: Path) -> None:
    again = read_code_graph(_write(tmp_path))
    assert again.vertices == graph.vertices
    assert again.edges == graph.edges


def test_a_part_of_the_standard_library_reads_as_one_expects() -> None:
    import json

    package = Path(json.__file__).parent
    graph = read_code_graph(package)
    names = {vertex.name for vertex in graph.vertices}
    assert {"decoder", "decoder.JSONDecoder", "decoder.JSONDecoder.raw_decode"} <= names
    assert "re" in edges(graph, "IMPORTS", "decoder")
    assert "decoder.JSONDecoder.raw_decode" in edges(graph, "CALLS", "decoder.JSONDecoder.decode")
