from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from app.main import Gateway, create_app
from cluster_core.config import LimitConfig
from tests.app.fake_database import FakeDatabase

SMALL = LimitConfig(
    body_bytes_max=4_096,
    entity_bytes_max=1_000,
    batch_operations_max=5,
    transaction_operations_max=5,
)


@pytest.fixture
def database() -> FakeDatabase:
    return FakeDatabase(SMALL)


@pytest.fixture
def gateway(database: FakeDatabase) -> Gateway:
    return create_app(database)


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(gateway)
    async with httpx.AsyncClient(transport=transport, base_url="http://node1:8080") as client:
        yield client
