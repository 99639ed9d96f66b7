"""Writes ``openapi/openapi.json`` from the code: ``python -m app.openapi_export``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import orjson

from app.main import create_api

__all__ = ["PATH", "openapi_text"]

PATH: Final = Path(__file__).parent.parent / "openapi" / "openapi.json"


def openapi_text() -> bytes:
    """The OpenAPI document, as the file has it."""
    return orjson.dumps(create_api().openapi(), option=orjson.OPT_INDENT_2) + b"\n"


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_bytes(openapi_text())
