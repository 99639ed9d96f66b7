"""``python -m app``: the same as ``kotoba-cluster``."""

from __future__ import annotations

from app.cli import server

server()
