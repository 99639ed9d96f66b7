from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.app.bulk.fake_node import FakeNode


@pytest.fixture
def node() -> Iterator[FakeNode]:
    with FakeNode() as one:
        yield one
