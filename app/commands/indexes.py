"""``kotoba indexes``: which property indexes there are, one more, one less."""

from __future__ import annotations

import time
from typing import Any, Final
from urllib.parse import quote

from rich.table import Table

from app.commands import CommandFailed
from app.commands.client import console, print_json, request

__all__ = ["add", "drop", "show"]

_POLL_S: Final = 0.2


def show(url: str, *, as_json: bool) -> None:
    """All that are declared, and how far they are."""
    answer = request(url, "GET", "/v1/indexes")
    if as_json:
        print_json(answer)
        return
    if not answer["indexes"]:
        console().print("no property index is declared; labels are always indexed")
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("label", "property", "state"):
        table.add_column(name)
    table.add_column("partitions", justify="right")
    for index in answer["indexes"]:
        done = f"{index['partitions_done']} of {index['partition_count']}"
        table.add_row(index["label"], index["property"], index["state"], done)
    console().print(table)


def add(url: str, label: str, name: str, *, wait_s: float) -> None:
    """Declare one; with ``wait_s`` until queries use it, or CommandFailed."""
    body = {"label": label, "property": name}
    index = request(url, "POST", "/v1/indexes", body=body, accept=(200, 201))
    deadline = time.monotonic() + wait_s
    while wait_s and index["state"] != "ready":
        if time.monotonic() >= deadline:
            raise CommandFailed(f"{label}.{name} is still {index['state']} after {wait_s:g} s")
        time.sleep(_POLL_S)
        index = _find(url, label, name)
    console().print(f"{label}.{name}: {index['state']}")


def _find(url: str, label: str, name: str) -> dict[str, Any]:
    for index in request(url, "GET", "/v1/indexes")["indexes"]:
        if (index["label"], index["property"]) == (label, name):
            found: dict[str, Any] = index
            return found
    raise CommandFailed(f"{label}.{name} was dropped meanwhile")


def drop(url: str, label: str, name: str) -> None:
    """Queries stop using it at once; what it takes on the disk goes in the background."""
    path = f"/v1/indexes/{quote(label, safe='')}/{quote(name, safe='')}"
    index = request(url, "DELETE", path)
    console().print(f"{label}.{name}: {index['state']}")
