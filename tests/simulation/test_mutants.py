"""The simulation is worth what it finds: each rule of safety is broken on purpose, and a run must
say so within a bounded number of seeds. What takes long is left to ``make sim-mutants``."""

from __future__ import annotations

import pytest

from tests.simulation.broken import BROKEN_RUNS
from tests.simulation.mutants.catalogue import CATALOGUE
from tests.simulation.mutants.hunt import ROOT, Mutant, hunt

pytestmark = [*BROKEN_RUNS, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    "mutant", [one for one in CATALOGUE if one.quick], ids=lambda mutant: mutant.name
)
def test_a_broken_rule_is_noticed(mutant: Mutant) -> None:
    found = hunt(mutant, print)
    assert found.sighting is not None, f"no run of {found.runs} noticed"


def test_each_mutant_has_a_name_and_a_rule_of_its_own() -> None:
    assert len({mutant.name for mutant in CATALOGUE}) == len(CATALOGUE)
    assert len({mutant.rule for mutant in CATALOGUE}) == len(CATALOGUE)
    assert all(mutant.broken.__doc__ for mutant in CATALOGUE)


def test_the_table_of_the_document_has_each_mutant() -> None:
    table = (ROOT / "docs/correctness.md").read_text()
    for mutant in CATALOGUE:
        assert f"| `{mutant.name}` | {mutant.rule} |" in table
