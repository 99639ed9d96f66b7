"""``kotoba``: the client's commands, over the public API of any node."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import orjson
from rich.console import Console

from app.commands import CommandFailed
from app.commands.json_input import BadJson, read_json
from app.commands.tables import print_events_line, print_members, print_result, print_status

__all__ = [
    "console",
    "events",
    "members",
    "op",
    "print_json",
    "problem_line",
    "query",
    "read_argument",
    "request",
    "status",
]

_PIPE_WIDTH: Final = 1_000_000
_TIMEOUT_S: Final = 65.0
"""Longer than the longest that a request may ask for, so the node's own answer is seen."""


def status(url: str, *, as_json: bool) -> None:
    """Show members, leaders, partitions and health."""
    answer = request(url, "GET", "/v1/status")
    health = request(url, "GET", "/v1/health", accept=(200, 503))
    if as_json:
        print_json({**answer, "health": health})
    else:
        print_status(console(), answer, health)


def members(url: str, *, as_json: bool) -> None:
    """List the nodes."""
    answer = request(url, "GET", "/v1/status")
    if as_json:
        print_json({"nodes": answer["membership"]["nodes"]})
    else:
        print_members(console(), answer)


def query(
    url: str,
    text: str,
    *,
    as_json: bool,
    consistency: str | None,
    as_of: str | None,
    timeout_ms: int | None,
) -> None:
    """Ask a question: a query object, or a whole request with one in it."""
    asked = _object(text)
    body = asked if "query" in asked else {"query": asked}
    given = {"consistency": consistency, "as_of": as_of, "timeout_ms": timeout_ms}
    body |= {name: value for name, value in given.items() if value is not None}
    answer = request(url, "POST", "/v1/query", body=body)
    if as_json:
        print_json(answer)
    else:
        print_result(console(), answer)


def op(url: str, text: str, *, idempotency_key: str | None, consistency: str | None) -> None:
    """Write: one operation, or a list of them as a batch."""
    operation = _parse(text)
    headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
    parameters = {} if consistency is None else {"consistency": consistency}
    if isinstance(operation, list):
        path, body = "/v1/operations/batch", {"operations": operation}
    else:
        path, body = "/v1/operations", _require_object(operation)
    answer = request(
        url, "POST", path, body=body, headers=headers, parameters=parameters, accept=(200, 201, 202)
    )
    print_json(answer)
    if answer.get("failed"):
        raise CommandFailed(f"{answer['failed']} of {len(answer['results'])} operations failed")


def events(url: str, *, types: str | None, since: str | None, as_json: bool) -> None:
    """Print what happens, as it happens, until Ctrl-C."""
    asyncio.run(_follow(url, types, since, as_json))


async def _follow(url: str, types: str | None, since: str | None, as_json: bool) -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed, InvalidHandshake

    parameters = {"types": types, "since": since}
    given = httpx.QueryParams({k: v for k, v in parameters.items() if v is not None})
    address = f"{url.replace('http', 'ws', 1)}/v1/events" + (f"?{given}" if given else "")
    output = console()
    try:
        async with connect(address, max_size=None, proxy=None) as stream:
            async for message in stream:
                if as_json:
                    print(message, flush=True)
                    continue
                event = orjson.loads(message)
                if event.get("type") != "Resolved" or "Resolved" in (types or ""):
                    print_events_line(output, event)
    except InvalidHandshake as error:
        raise CommandFailed(f"{url} refuses the stream: {error}") from None
    except ConnectionClosed as error:
        received = error.rcvd
        why = f"{received.code} {received.reason}".strip() if received else "connection lost"
        raise CommandFailed(f"the stream ended: {why}") from None
    except OSError as error:
        raise CommandFailed(_unreachable(url, error)) from None
    raise CommandFailed("the stream ended: the node is stopping")


def read_argument(text: str) -> str:
    """The argument itself, the file that ``@name`` names, or stdin for ``-``."""
    if text == "-":
        return sys.stdin.read()
    if text.startswith("@"):
        try:
            return Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise CommandFailed(f"cannot read {text[1:]}: {why.lower()}", exit_code=2) from None
    return text


def _parse(text: str) -> Any:
    try:
        return read_json(read_argument(text))
    except BadJson as error:
        raise CommandFailed(f"this cannot be sent: {error}", exit_code=2) from None


def _require_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CommandFailed("a JSON object is needed, like {…}", exit_code=2)
    return value


def _object(text: str) -> dict[str, Any]:
    return _require_object(_parse(text))


def request(
    url: str,
    method: str,
    path: str,
    *,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    parameters: Mapping[str, str] | None = None,
    accept: tuple[int, ...] = (200,),
) -> dict[str, Any]:
    """The answer, from the leader where it redirects there. Raises CommandFailed with a problem."""
    try:
        content = None if body is None else orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise CommandFailed(f"this cannot be sent: {error}", exit_code=2) from None
    kind = {} if body is None else {"Content-Type": "application/json"}
    try:
        with httpx.Client(timeout=_TIMEOUT_S, follow_redirects=True, trust_env=False) as http:
            answer = http.request(
                method,
                url + path,
                content=content,
                headers={**kind, **(headers or {})},
                params=parameters,
            )
    except httpx.HTTPError as error:
        raise CommandFailed(_unreachable(url, error)) from None
    if answer.status_code not in accept:
        raise CommandFailed(problem_line(answer))
    result: dict[str, Any] = orjson.loads(answer.content)
    return result


def problem_line(answer: httpx.Response) -> str:
    """An RFC 9457 problem in one line: its code, its detail, where, and whether to retry."""
    try:
        problem = orjson.loads(answer.content)
        code, detail = problem["code"], problem["detail"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return f"{answer.url} answered {answer.status_code} {answer.reason_phrase}"
    where = "; ".join(
        f"{error.get('where')}: {error.get('why')}" for error in problem.get("errors", [])[:3]
    )
    retry = answer.headers.get("Retry-After")
    return (
        f"{code}: {detail}"
        + (f" ({where})" if where and where not in detail else "")
        + (f" (retry in {retry} s)" if retry else "")
    )


def _unreachable(url: str, error: Exception) -> str:
    why = re.sub(r"^\[Errno \d+\] ", "", str(error)) or type(error).__name__
    hint = "" if isinstance(error, httpx.TimeoutException) else "; does a node run there?"
    return f"cannot reach {url}: {why.lower()}{hint}"


def console() -> Console:
    """Where tables go. Nothing is wrapped for a reader that is a program."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def print_json(value: Any) -> None:
    """For ``--json``."""
    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
