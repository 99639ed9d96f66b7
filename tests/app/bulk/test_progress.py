from __future__ import annotations

import pytest

from app.bulk.progress import Meter


def test_what_is_waited_for_is_not_said_with_every_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    meter = Meter(None)
    for _ in range(3):
        meter.waiting("storage_full: no room")
    assert capsys.readouterr().err == "waiting for the cluster: storage_full: no room\n"
