"""What docs/http-api.md shows happens as it is written, and it leaves out no endpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from app.dev_cluster import LocalCluster
from app.problems import ERRORS_BY_CODE
from tests.documents import ROOT, Command, Shell, blocks_of, commands_of, comparable

DOCUMENT: Final = ROOT / "docs" / "http-api.md"
SHOWN_PORTS: Final = (8080, 8081, 8082)
START_S: Final = 30.0

_OF_THE_CLUSTER: Final = re.compile(r"/v1/(status|health|partitions)")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    with LocalCluster(len(SHOWN_PORTS), folder=tmp_path / "cluster") as three:
        three.wait_ready(START_S)
        yield three


@pytest.mark.process
def test_the_session_gives_what_is_shown(cluster: LocalCluster, tmp_path: Path) -> None:
    ports = [int(node.address.rpartition(":")[2]) for node in cluster.nodes.values()]
    with Shell(tmp_path, dict(zip(SHOWN_PORTS, ports, strict=True))) as shell:
        for block in blocks_of(DOCUMENT, "console"):
            for command in commands_of(block):
                check(command, shell)


def check(command: Command, shell: Shell) -> None:
    """The state of a cluster comes to what is shown; all else is so at once."""
    if _OF_THE_CLUSTER.search(command.text):
        output = shell.run_until(command.text, command.shown)
    else:
        output = shell.run(command.text)
    assert comparable(output) == comparable(command.shown), f"{command.text}\n{output}"


def test_every_endpoint_and_every_parameter_is_there() -> None:
    text = DOCUMENT.read_text()
    document: dict[str, Any] = json.loads((ROOT / "openapi" / "openapi.json").read_text())
    for path, operations in document["paths"].items():
        assert path.replace("{partition}", "{number}") in text, path
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                assert parameter["name"] in text, (path, parameter["name"])


def test_every_code_of_an_error_is_there() -> None:
    text = DOCUMENT.read_text()
    assert not [code for code in ERRORS_BY_CODE if f"`{code}`" not in text]


def test_every_kind_of_operation_and_of_query_is_there() -> None:
    text = DOCUMENT.read_text()
    schemas: dict[str, Any] = json.loads((ROOT / "openapi" / "openapi.json").read_text())[
        "components"
    ]["schemas"]
    for schema in schemas.values():
        for name in ("op", "kind"):
            constant = schema.get("properties", {}).get(name, {}).get("const")
            assert constant is None or constant in text, constant
