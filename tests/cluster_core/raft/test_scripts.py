"""The golden scripts: every trace is what the core does now.

After a change that is meant, write them anew and read the difference::

    RAFT_SCRIPTS_REWRITE=1 pytest tests/cluster_core/raft/test_scripts.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cluster_core.raft.script import run

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_script_plays_as_written(path: Path) -> None:
    written = path.read_text()
    played = run(written)
    if os.environ.get("RAFT_SCRIPTS_REWRITE"):
        path.write_text(played)
    else:
        assert played == written


def test_there_are_scripts() -> None:
    assert SCRIPTS
