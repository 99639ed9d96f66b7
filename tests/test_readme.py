"""What the README shows happens as it is written."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import httpx
import pytest

from app.dev_cluster import HOST, free_ports
from tests.documents import (
    ROOT,
    Command,
    Shell,
    blocks_of,
    commands_of,
    comparable,
    programs_of,
    run_program,
)

pytestmark = pytest.mark.process

README: Final = ROOT / "README.md"
SHOWN_PORTS: Final = (8080, 8081, 8082)
NODE: Final = "kotoba-cluster --node-id"
NOT_TYPED: Final = ("make ", ". .venv", ".venv/", "kotoba-cluster dev")
"""What sets up, takes minutes, or runs until Ctrl-C: tests of its own look at it."""
READY_S: Final = 30.0


@pytest.fixture
def ports() -> dict[int, int]:
    """A free port for each of those that the README names."""
    return dict(zip(SHOWN_PORTS, free_ports(len(SHOWN_PORTS)), strict=True))


def test_the_session_gives_what_is_shown(tmp_path: Path, ports: dict[int, int]) -> None:
    started: set[int] = set()
    with Shell(tmp_path, ports) as shell:
        for command in session():
            if command.text.startswith(NODE):
                started.add(ports[port_of(command)])
                shell.run(command.text)
                continue
            wait_until_ready(started)
            check(command, shell)
            if command.text == "kill -9 %1":
                started.remove(ports[SHOWN_PORTS[0]])
        log = (tmp_path / "background.log").read_text()
    assert log.count("ready in ") == 4, log


@pytest.mark.parametrize(("program", "printed"), programs_of(README))
def test_a_program_prints_what_is_shown(
    program: str, printed: str, tmp_path: Path, ports: dict[int, int]
) -> None:
    assert run_program(program, tmp_path, ports) == printed


def session() -> list[Command]:
    commands = [command for block in blocks_of(README, "console") for command in commands_of(block)]
    typed = [command for command in commands if not command.text.startswith(NOT_TYPED)]
    assert sum(command.text.startswith(NODE) for command in typed) == 4
    assert sum("curl" in command.text for command in typed) >= 5
    return typed


def port_of(command: Command) -> int:
    return next(port for port in SHOWN_PORTS if f"--address={HOST}:{port}" in command.text)


def check(command: Command, shell: Shell) -> None:
    """The status of a cluster comes to what is shown; all else is so at once."""
    if command.text.endswith(" status"):
        output = shell.run_until(command.text, command.shown)
    else:
        output = shell.run(command.text)
    assert comparable(output) == comparable(command.shown), f"{command.text}\n{output}"


def wait_until_ready(ports: Iterable[int]) -> None:
    deadline = time.monotonic() + READY_S
    with httpx.Client(trust_env=False) as http:
        for port in ports:
            while not is_ready(http, port):
                assert time.monotonic() < deadline, f"the node at port {port} is not ready"
                time.sleep(0.05)


def is_ready(http: httpx.Client, port: int) -> bool:
    try:
        return http.get(f"http://{HOST}:{port}/readyz").is_success
    except httpx.TransportError:
        return False
