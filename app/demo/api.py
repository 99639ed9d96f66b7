"""The demo's client: the public HTTP API of all nodes, and what to do when one of them is gone."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

import httpx
import orjson

__all__ = ["RETRIED_CODES", "Api", "DemoFailed", "Json"]

Json = dict[str, Any]

RETRIED_CODES: Final = frozenset(
    {"not_leader", "no_leader", "unavailable", "overloaded", "conflict", "timeout"}
)
"""Problems after which the same request, with the same Idempotency-Key, is worth another try."""
_RETRY_S: Final = 0.02
_CONNECT_S: Final = 0.5


class DemoFailed(Exception):
    """Something that the demo promises did not happen."""


class Api:
    """Requests to the nodes at ``urls``; a node that does not answer is passed over.

    For a few requests at a time: httpx looks at all of its connections for each one.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = list(urls)
        # There is no TLS here, so no certificates of authorities need be loaded.
        self._http = httpx.AsyncClient(trust_env=False, follow_redirects=True, verify=False)

    async def __aenter__(self) -> Api:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def get(self, url: str, path: str) -> Json:
        """What one node answers; DemoFailed when it does not."""
        try:
            answer = await self._http.get(url + path, timeout=5.0)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise DemoFailed(f"GET {url}{path}: {error or type(error).__name__}") from None
        return _json(answer)

    async def query(
        self, query: Json, *, url: str | None = None, consistency: str = "strong"
    ) -> Json:
        """The answer to one query; asked again, elsewhere too, while a leader is missing."""
        body = {"query": query, "consistency": consistency, "timeout_ms": 20_000}
        urls = self.urls if url is None else [url]
        return await self.post("/v1/query", body, urls=urls, deadline_s=40.0, timeout_s=21.0)

    async def post(
        self,
        path: str,
        body: Any,
        *,
        urls: Sequence[str],
        key: str | None = None,
        deadline_s: float = 60.0,
        timeout_s: float = 10.0,
        attempts: list[str] | None = None,
    ) -> Json:
        """POST to the first of ``urls`` that answers, round and round until the deadline.

        With ``key`` every try carries the same Idempotency-Key. ``attempts`` gets the URL of each.
        """
        content = orjson.dumps(body)
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["Idempotency-Key"] = key
        give_up = time.monotonic() + deadline_s
        last = "no answer"
        for url in itertools.cycle(urls):
            if attempts is not None:
                attempts.append(url)
            try:
                timeout = httpx.Timeout(timeout_s, connect=_CONNECT_S)
                answer = await self._http.post(
                    url + path, content=content, headers=headers, timeout=timeout
                )
            except httpx.HTTPError as error:
                last = str(error) or type(error).__name__
            else:
                if answer.is_success:
                    result = _json(answer)
                    if not _retried_results(result):
                        return result
                    last = "operations that must be tried again"
                elif _problem_code(answer) not in RETRIED_CODES:
                    raise DemoFailed(f"POST {path}: {answer.status_code} {answer.text[:300]}")
                else:
                    last = answer.text[:300]
            if time.monotonic() >= give_up:
                raise DemoFailed(f"POST {path}: gave up after {deadline_s:.0f} s: {last}")
            await asyncio.sleep(_RETRY_S)
        raise AssertionError("the round never ends")


def _json(answer: httpx.Response) -> Json:
    result: Json = orjson.loads(answer.content)
    return result


def _problem_code(answer: httpx.Response) -> str:
    try:
        return str(orjson.loads(answer.content).get("code", ""))
    except (orjson.JSONDecodeError, AttributeError):
        return ""


def _retried_results(result: Json) -> bool:
    """Whether a batch has operations that failed only for now."""
    if not result.get("failed"):
        return False
    codes = {item["error"]["code"] for item in result["results"] if "error" in item}
    if not codes <= RETRIED_CODES:
        problems = [item["error"] for item in result["results"] if "error" in item]
        lasting = next(error for error in problems if error["code"] not in RETRIED_CODES)
        raise DemoFailed(f"an operation failed: {lasting['code']}: {lasting.get('detail')}")
    return True
