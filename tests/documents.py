"""Documents as tests: their console sessions are typed into a shell, and what comes is compared.

A session is all ``console`` blocks of a document, in order. A line that begins with ``$`` is a
command, indented lines after it belong to it, and the rest is the output that the document shows.
What differs from run to run (CIDs, times, counts) is made equal on both sides first.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

__all__ = [
    "ROOT",
    "Command",
    "Shell",
    "blocks_of",
    "commands_of",
    "comparable",
    "programs_of",
    "run_program",
]

ROOT: Final = Path(__file__).parents[1]
COMMAND_S: Final = 30.0
"""A machine that does much else beside this test may need it."""

DEFAULT_URL: Final = "http://127.0.0.1:8080"

_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_DONE: Final = "the command before this line is done"

_EQUAL_EVERYWHERE: Final = (
    (re.compile(r"bafyrei[a-z2-7]{52}"), "<CID>"),
    (re.compile(r"\b[0-9]{13}\.[0-9]{5}\b"), "<TIMESTAMP>"),
    (re.compile(r"\b[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z"), "<TIME>"),
    (re.compile(r"cluster [0-9a-f]{12}\b"), "cluster <ID>"),
    (re.compile(r'"(cluster_)?id":"[^"]+"'), '"<ID>"'),
    (re.compile(r'"cursor":"[^"]+"'), '"<CURSOR>"'),
    (re.compile(r"\bpartition [0-9]+"), "partition <N>"),
    (re.compile(r"\b[0-9.]+ [KMG]iB"), "<SIZE>"),
)
_COUNTED: Final = re.compile(
    r'("(?:partition|partitions|cluster_nodes|scanned|elapsed_ms|term|leads|replicas|disk_bytes'
    r"|disk_free_bytes|operations_processed|operations_failed|commit_index|applied_index"
    r'|match_index|node[0-9])":)[0-9.]+'
)
_NUMBER: Final = re.compile(r"[0-9]+([.,][0-9]+)*")
_STYLE: Final = re.compile(r"\x1b\[[0-9;]*m|\x1b\].*?\x1b\\")
"""Bold headers and links, which curl writes to a terminal."""
_KILLED: Final = re.compile(r"^\S*bash: line [0-9]+: +[0-9]+ Killed .*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a session, and the output that the document shows for it."""

    text: str
    shown: str


def blocks_of(document: Path, language: str) -> list[str]:
    """The code blocks of ``language``, in order."""
    return [text for name, text in _BLOCK.findall(document.read_text()) if name == language]


def commands_of(block: str) -> list[Command]:
    """The commands of one console block."""
    commands: list[Command] = []
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        length = 1
        while length < len(lines) and lines[length].startswith("    "):
            length += 1
        commands.append(Command("\n".join(lines[:length]), "\n".join(lines[length:])))
    return commands


def comparable(output: str) -> str:
    """``output`` without what is another in every run, and with single blanks."""
    output = _KILLED.sub("", output)
    for pattern, replacement in _EQUAL_EVERYWHERE:
        output = pattern.sub(replacement, output)
    lines = [" ".join(line.split()) for line in output.strip().splitlines()]
    return "\n".join(map(_comparable_line, lines))


def _comparable_line(line: str) -> str:
    """In JSON only the counts are made equal; in a table every number is, and how long ago a node
    was heard."""
    if line.startswith("{"):
        return _COUNTED.sub(r"\1<N>", line)
    return _NUMBER.sub("<N>", line).replace("failed", "suspected")


class Shell:
    """bash on a terminal of 80 columns; ``ports`` replaces those that the document names."""

    def __init__(self, folder: Path, ports: Mapping[int, int]) -> None:
        self._folder = folder
        self._ports = dict(ports)
        own, terminal = pty.openpty()
        self._output = own
        self._process = subprocess.Popen(
            ["bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=terminal,
            stderr=terminal,
            cwd=folder,
            env={**_environment(), "KOTOBA_URL": _with_ports(DEFAULT_URL, ports)},
            start_new_session=True,
        )
        os.close(terminal)

    def __enter__(self) -> Shell:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the shell and all that it started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        os.close(self._output)

    def run(self, command: str) -> str:
        """What ``command`` prints; in the background it prints into ``background.log``."""
        command = _with_ports(command, self._ports)
        if command.endswith("&"):
            command = f"{command[:-1]} >>background.log 2>&1 &"
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\necho; echo {_DONE}\n".encode())
        self._process.stdin.flush()
        output = self._read_until_done(command).removesuffix("\n")
        return _with_ports(output, {theirs: shown for shown, theirs in self._ports.items()})

    def run_until(self, command: str, expected: str, timeout_s: float = 15.0) -> str:
        """As :meth:`run`, again and again until that is the output: the cluster is on its way."""
        deadline = time.monotonic() + timeout_s
        while True:
            output = self.run(command)
            if comparable(output) == comparable(expected) or time.monotonic() > deadline:
                return output
            time.sleep(0.2)

    def _read_until_done(self, command: str) -> str:
        seen = b""
        deadline = time.monotonic() + COMMAND_S
        while not seen.endswith(f"\n{_DONE}\n".encode()):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._output], [], [], left)[0]:
                raise AssertionError(f"no end of {command!r}: {seen.decode()}")
            seen += os.read(self._output, 1 << 16).replace(b"\r", b"")
        return _STYLE.sub("", seen.decode().removesuffix(f"\n{_DONE}\n"))


def _with_ports(text: str, ports: Mapping[int, int]) -> str:
    found = "|".join(map(str, ports))
    return re.sub(rf"\b({found})\b", lambda match: str(ports[int(match[1])]), text)


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KOTOBA_")}
    commands = str(Path(sys.executable).parent)
    return {
        **kept,
        "PATH": f"{commands}{os.pathsep}{kept.get('PATH', os.defpath)}",
        "PYTHONPATH": str(ROOT),
        "TERM": "dumb",
        "COLUMNS": "80",
    }


def programs_of(document: Path) -> list[tuple[str, str]]:
    """Each python block with the text block after it, which shows what it prints."""
    return list(zip(blocks_of(document, "python"), blocks_of(document, "text"), strict=True))


def run_program(program: str, folder: Path, ports: Mapping[int, int]) -> str:
    """What ``program`` prints, run in ``folder`` as a reader would; warnings are errors."""
    path = folder / "example.py"
    path.write_text(_with_ports(program, ports))
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    return ended.stdout
