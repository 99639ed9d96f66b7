"""``kotoba export``: the files are whole or not there, since they are renamed in the end."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import orjson

from app.bulk.api import Api
from app.bulk.exporter import Exported, Exporter
from app.bulk.progress import duration_text, metered
from app.car import BadBlock
from app.commands import CommandFailed

__all__ = ["export_files"]

_STDOUT: Final = "-"


def export_files(
    url: str,
    *,
    nodes: str | None,
    edges: str | None,
    car: str | None,
    as_of: str | None,
    connections: int,
    patience_s: float,
    as_json: bool,
) -> None:
    """Export what is named; at least one thing."""
    targets = [target for target in (nodes, edges, car) if target is not None]
    if not targets:
        raise CommandFailed("nothing to export: say --nodes, --edges or --car FILE", exit_code=2)
    if car == _STDOUT:
        raise CommandFailed("--car needs a file: its root is written last, in front", exit_code=2)
    if len(set(targets)) < len(targets):
        raise CommandFailed("two exports into one file", exit_code=2)
    began = time.monotonic()
    try:
        with contextlib.ExitStack() as files:
            streams = [
                None if target is None else files.enter_context(_written(target))
                for target in (nodes, edges, car)
            ]
            done = asyncio.run(_export(url, streams, as_of, connections, patience_s, as_json))
    except BadBlock as error:
        raise CommandFailed(str(error)) from None
    except KeyboardInterrupt:
        raise CommandFailed("interrupted; nothing was written", exit_code=130) from None
    _tell(done, time.monotonic() - began, with_car=car is not None, as_json=as_json)


async def _export(
    url: str,
    streams: list[BinaryIO | None],
    as_of: str | None,
    connections: int,
    patience_s: float,
    quiet: bool,
) -> Exported:
    nodes, edges, car = streams
    with metered(quiet=quiet) as meter:
        async with Api(
            url, connections=connections, patience_s=patience_s, waiting=meter.waiting
        ) as api:
            exporter = Exporter(api, meter, connections=connections, as_of=as_of)
            return await exporter.export(nodes=nodes, edges=edges, car=car)


@contextlib.contextmanager
def _written(target: str) -> Iterator[BinaryIO]:
    """A stream whose content stands at ``target`` when the block has ended well, and else not."""
    if target == _STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream:
            yield stream
        part.replace(path)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise CommandFailed(f"cannot write {path}: {why}") from None
    finally:
        part.unlink(missing_ok=True)


def _tell(done: Exported, seconds: float, *, with_car: bool, as_json: bool) -> None:
    if as_json:
        document = {
            "timestamp": done.timestamp,
            "nodes": done.nodes,
            "edges": done.edges,
            "blocks": done.blocks,
            "versions_collected": done.collected,
            "seconds": round(seconds, 3),
        }
        print(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode(), file=sys.stderr)
        return
    parts = [f"{done.nodes:,} nodes", f"{done.edges:,} edges"]
    if with_car:
        parts.append(f"{done.blocks:,} blocks")
    line = f"{', '.join(parts)} as of {done.timestamp}, {duration_text(seconds)}"
    print(line, file=sys.stderr)
    if done.collected:
        print(f"{done.collected:,} older versions are no longer kept", file=sys.stderr)
