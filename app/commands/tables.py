"""What the client prints: JSON of the public API as tables and lines for people."""

from __future__ import annotations

from typing import Any, Final

import orjson
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["print_events_line", "print_members", "print_result", "print_status"]

_STATE_STYLE: Final = {"active": "green", "suspected": "yellow", "failed": "red"}
_GAP: Final = 2
_VALUE_WIDTH: Final = 60
"""A longer value is cut in a table; --json shows all of it."""


def print_status(console: Console, status: dict[str, Any], health: dict[str, Any]) -> None:
    """Members, leaders, partitions and health of a cluster, as one node sees it."""
    partitions, membership = status["partitions"], status["membership"]
    healthy = health.get("is_healthy", False)
    console.print(
        Text.assemble(
            ("healthy" if healthy else "not healthy", "bold green" if healthy else "bold red"),
            f"  cluster {_short(status['cluster_id'] or 'not formed')}",
            f"  leader {status['leader'] or 'none'} (term {status['term']})",
            f"  seen by {status['node_id']} {status['version']}",
        )
    )
    for reason in health.get("reasons", []):
        console.print(Text(f"  {reason}", "red"))
    console.print()
    console.print(_members_table(membership["nodes"], status["replication"]))
    console.print(
        f"\n{partitions['partition_count']} partitions of "
        f"{partitions['replication_factor']} replicas: "
        f"{partitions['without_leader']} without leader, "
        f"{partitions['under_replicated']} under-replicated, {partitions['moving']} moving"
    )
    replication, storage = status["replication"], status["storage"]
    console.print(
        f"{status['node_id']}: {replication['operations_processed']:,} operations, "
        f"{replication['operations_failed']:,} failed, "
        f"{replication['total_queued_operations']:,} in flight"
    )
    console.print(
        f"{status['node_id']}: storage {storage['state']}, {_size(storage['disk_bytes'])} used, "
        f"{_size(storage['disk_free_bytes'])} free"
    )


def print_members(console: Console, status: dict[str, Any]) -> None:
    """The nodes of a cluster, as one of them sees it."""
    console.print(_members_table(status["membership"]["nodes"], status["replication"]))


def _members_table(nodes: list[dict[str, Any]], replication: dict[str, Any]) -> Table:
    lag = replication["replication_lag_ms"]
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("node", "address", "state", "role", "zone"):
        table.add_column(name)
    for name in ("leads", "replicas", "lag ms"):
        table.add_column(name, justify="right")
    for node in nodes:
        behind = lag.get(node["node_id"])
        table.add_row(
            node["node_id"],
            node["address"],
            Text(node["state"], _STATE_STYLE.get(node["state"], "")),
            node["role"],
            node["zone"] or "",
            str(node["leads"]),
            str(node["replicas"]),
            "" if behind is None else f"{behind:.1f}",
        )
    return table


def print_result(console: Console, answer: dict[str, Any]) -> None:
    """The rows of a query's answer as a table, and how it came about."""
    rows = [_flat(row) for row in answer["rows"]]
    if rows:
        _print_rows(console, rows)
        console.print()
    statistics = answer.get("statistics", {})
    parts = [f"{len(rows)} row{'s' * (len(rows) != 1)}"]
    if answer.get("truncated"):
        parts.append("more exist (a limit was reached)")
    if answer.get("cursor"):
        parts.append(f"cursor {answer['cursor']}")
    if "elapsed_ms" in statistics:
        parts.append(f"{statistics['elapsed_ms']:.1f} ms")
    if "scanned" in statistics:
        parts.append(f"{statistics['scanned']:,} scanned")
    if "partitions" in statistics:
        parts.append(f"{_count(statistics['partitions'])} partitions")
    console.print(Text(", ".join(parts), "dim"), soft_wrap=True)


def _count(value: Any) -> str:
    return str(len(value)) if isinstance(value, list) else str(value)


def _print_rows(console: Console, rows: list[dict[str, str]]) -> None:
    """As a table where it fits, else one block of lines a row, so that nothing is broken up."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    widths = {
        name: max(cell_len(row.get(name, "")) for row in [*rows, {name: name}]) for name in names
    }
    if sum(widths.values()) + _GAP * len(names) <= console.width:
        table = Table(box=None, header_style="bold", padding=(0, _GAP, 0, 0))
        for name in names:
            table.add_column(name, no_wrap=True)
        for row in rows:
            table.add_row(*(Text(row.get(name, "")) for name in names))
        console.print(table)
        return
    longest = max(cell_len(name) for name in names)
    for number, row in enumerate(rows):
        if number:
            console.print()
        for name, value in row.items():
            if value:
                line = Text.assemble((f"{name:<{longest + _GAP}}", "bold"), value)
                console.print(line, soft_wrap=True)


_HIDDEN: Final = frozenset({"version", "created_at", "updated_at"})


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """A row as columns: properties become columns of their own, what no one reads is left out."""
    columns: dict[str, str] = {}
    for name, value in row.items():
        if name in _HIDDEN:
            continue
        if name == "properties":
            columns |= {prefix + key: _cell(item) for key, item in value.items()}
        elif isinstance(value, dict) and "/" not in value:
            columns |= _flat(value, f"{prefix}{name}.")
        else:
            columns[prefix + name] = _cell(value)
    return columns


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        text = value
    elif isinstance(value, list):
        text = ", ".join(_entity_name(item) for item in value)
    elif isinstance(value, dict) and isinstance(value.get("/"), str):
        return str(value["/"])
    else:
        text = orjson.dumps(value).decode()
    return text if len(text) <= _VALUE_WIDTH or text.startswith("bafy") else _cut(text)


def _entity_name(item: Any) -> str:
    """An entity inside a list (of a path) by what tells it apart for a reader."""
    if not isinstance(item, dict):
        return item if isinstance(item, str) else orjson.dumps(item).decode()
    properties = item.get("properties", {})
    return str(properties.get("name") or item.get("label") or item.get("cid") or item)


def _cut(text: str) -> str:
    return text[: _VALUE_WIDTH - 1] + "…"


def _short(text: str) -> str:
    return text if len(text) <= 12 else text[:12]


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


_EVENT_STYLE: Final = {
    "NodeJoined": "green",
    "NodeRecovered": "green",
    "NodeSuspected": "yellow",
    "NodeFailed": "red",
    "NodeLeft": "yellow",
    "LeaderElected": "cyan",
    "StorageFull": "red",
    "ReplicaDiverged": "red",
    "ReplicaRebuilt": "green",
}


def print_events_line(console: Console, event: dict[str, Any]) -> None:
    """One event as one line: when, what, and its fields."""
    kind = event.get("type", "")
    when = event.get("at") or event.get("timestamp") or ""
    hidden = {"type", "at", "id", "timestamp"}
    if event.get("version") == event.get("cid"):
        hidden.add("version")
    rest = {k: v for k, v in event.items() if k not in hidden and v not in (None, [], "")}
    fields = "  ".join(f"{name}={_cell(value)}" for name, value in rest.items())
    line = Text.assemble(f"{when}  ", (f"{kind:<16}", _EVENT_STYLE.get(kind, "")), fields)
    console.print(line, soft_wrap=True)
