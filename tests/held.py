"""Methods that wait until a test lets them go on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

__all__ = ["hold_back"]


def hold_back(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> asyncio.Event:
    """Each call of ``owner.name``, a coroutine function, begins when the event is set."""
    go_on = asyncio.Event()
    held = getattr(owner, name)

    async def wait(*args: Any) -> Any:
        await go_on.wait()
        return await held(*args)

    monkeypatch.setattr(owner, name, wait)
    return go_on
