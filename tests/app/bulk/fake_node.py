"""A node over real HTTP that keeps what it is given: entities by nonce, as the real one does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from app.car import archive
from cluster_core.graph.cid import cid_text, parse_cid

RETRY_AFTER_S = "0.01"

Problem = tuple[int, str]
"""Status and code."""
Reply = tuple[int, bytes, dict[str, str]]
"""Status, body, and headers of its own."""


def cid_of(name: str) -> str:
    return cid_text(hashlib.sha256(name.encode()).digest())


class FakeNode:
    """``trouble`` is answered, one after the other, before anything works. ``failing`` says of an
    operation which code it fails with."""

    def __init__(self) -> None:
        self.cluster_id = "c1"
        self.trouble: list[Problem | None] = []
        self.executed_before_trouble = False
        """Whether what ends in trouble was done all the same."""
        self.failing: Callable[[dict[str, Any]], str | None] = lambda operation: None
        self.body_bytes_max: int | None = None
        self.entities: dict[str, dict[str, Any]] = {}
        self.keys: list[str] = []
        self.queries: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []
        """Of queries, in order."""
        self.blocks: dict[str, bytes] = {}
        self.blocks_max: int | None = None
        """In an archive."""
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def __enter__(self) -> FakeNode:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        with self._lock:
            if path == "/v1/status":
                return 200, json.dumps(self._status()).encode(), {}
            if self.body_bytes_max is not None and len(body) > self.body_bytes_max:
                return _problem(413, "too_large")
            trouble = self.trouble.pop(0) if self.trouble else None
            if trouble is not None and not self.executed_before_trouble:
                return _problem(*trouble)
            answer = self._work(path, headers, body)
            return answer if trouble is None else _problem(*trouble)

    def _work(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        if path.startswith("/v1/operations/batch"):
            document = self._batch(json.loads(body)["operations"], headers["idempotency-key"])
            return 200, json.dumps(document).encode(), {}
        if path == "/v1/query":
            self.queries.append(json.loads(body))
            if self.queries[-1]["query"]["kind"] == "count":
                return _problem(504, "timeout")
            return 200, json.dumps(self.answers.pop(0)).encode(), {}
        assert path == "/v1/blocks"
        return self._archive(json.loads(body)["cids"])

    def _archive(self, cids: list[str]) -> Reply:
        found = [(parse_cid(cid), self.blocks[cid]) for cid in cids if cid in self.blocks]
        if not found:
            return _problem(404, "not_found")
        is_cut = self.blocks_max is not None and len(found) > self.blocks_max
        headers = {"kotoba-truncated": "bytes"} if is_cut else {}
        return 200, archive(found[: self.blocks_max]), headers

    def _batch(self, operations: list[dict[str, Any]], key: str) -> dict[str, Any]:
        self.keys.append(key)
        results: list[dict[str, Any]] = []
        for place, operation in enumerate(operations):
            code = self.failing(operation)
            if code is not None:
                results.append({"error": {"code": code, "detail": f"it is {code}"}})
                continue
            cid = cid_of(f"{key} {place}")
            assert self.entities.setdefault(cid, operation) == operation
            results.append({"cid": cid, "version": cid, "partition": 1, "timestamp": "1.00000"})
        failed = sum("error" in result for result in results)
        return {"results": results, "succeeded": len(results) - failed, "failed": failed}

    def _status(self) -> dict[str, Any]:
        nodes = [
            {"node_id": "node1", "address": self.address, "state": "active"},
            {"node_id": "node2", "address": "127.0.0.1:1", "state": "active"},
        ]
        return {"cluster_id": self.cluster_id, "membership": {"nodes": nodes}}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, content, more = fake.answer(self.command, self.path, headers, body)
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = _serve  # noqa: N815

            def log_message(self, format: str, *_: object) -> None:
                pass

        return Handler


def _problem(status: int, code: str) -> Reply:
    content = json.dumps({"code": code, "detail": f"it is {code}"}).encode()
    return status, content, {"retry-after": RETRY_AFTER_S} if status == 503 else {}
