"""A group's log on an engine: appended, cut off, truncated, replaced, and read back."""

from __future__ import annotations

import pytest

from cluster_core.replication.log_store import LogStore
from cluster_core.storage.memory import MemoryEngine
from cluster_core.wire.messages import CONFIGURATION, Entry, HardState

GROUP = 3


@pytest.fixture
def engine() -> MemoryEngine:
    return MemoryEngine()


def entries(*terms: int, first: int = 1) -> tuple[Entry, ...]:
    return tuple(
        Entry(term, index, b"%d/%d" % (term, index)) for index, term in enumerate(terms, first)
    )


def stored(engine: MemoryEngine, log: LogStore, *more: Entry) -> LogStore:
    batch = engine.batch()
    log.append(batch, more)
    engine.write(batch)
    return log


def test_a_new_log_begins_at_one_and_has_nothing(engine: MemoryEngine) -> None:
    log = LogStore(engine, GROUP)
    assert (log.first_index(), log.last_index(), log.term(0)) == (1, 0, 0)
    assert log.hard_state() == HardState()


def test_what_was_appended_is_read_back_also_by_the_next_process(engine: MemoryEngine) -> None:
    stored(engine, LogStore(engine, GROUP), *entries(1, 1, 2))
    log = LogStore(engine, GROUP)
    assert (log.first_index(), log.last_index(), log.term(3)) == (1, 3, 2)
    assert log.entries(1, 4, 1 << 20) == list(entries(1, 1, 2))


def test_the_kind_of_an_entry_survives(engine: MemoryEngine) -> None:
    entry = Entry((1 << 56) - 1, 1, b"configuration", CONFIGURATION)
    log = stored(engine, LogStore(engine, GROUP), entry)
    assert log.entries(1, 2, 100) == [entry]
    assert log.term(1) == entry.term


def test_a_conflicting_suffix_is_cut_off(engine: MemoryEngine) -> None:
    log = stored(engine, LogStore(engine, GROUP), *entries(1, 1, 1, 1))
    stored(engine, log, *entries(2, first=2))
    assert log.last_index() == 2
    assert LogStore(engine, GROUP).entries(1, 9, 1 << 20) == [*entries(1), *entries(2, first=2)]


def test_entries_are_bounded_in_bytes_but_never_none(engine: MemoryEngine) -> None:
    log = stored(engine, LogStore(engine, GROUP), *entries(1, 1, 1))
    assert len(log.entries(1, 4, 1)) == 1
    assert len(log.entries(2, 4, 1 << 20)) == 2


def test_a_truncated_log_keeps_the_term_before_its_first_entry(engine: MemoryEngine) -> None:
    log = stored(engine, LogStore(engine, GROUP), *entries(1, 1, 2, 2, 3))
    batch = engine.batch()
    log.truncate(batch, 3)
    engine.write(batch)
    for one in (log, LogStore(engine, GROUP)):
        assert (one.first_index(), one.last_index(), one.term(3), one.term(5)) == (4, 5, 2, 3)
        assert one.entries(4, 6, 1 << 20) == list(entries(2, 3, first=4))


def test_a_log_truncated_to_its_end_is_empty_and_goes_on_behind(engine: MemoryEngine) -> None:
    log = stored(engine, LogStore(engine, GROUP), *entries(1, 2))
    batch = engine.batch()
    log.truncate(batch, 2)
    engine.write(batch)
    again = LogStore(engine, GROUP)
    assert (again.first_index(), again.last_index(), again.term(2)) == (3, 2, 2)
    stored(engine, again, *entries(4, first=3))
    assert again.entries(3, 4, 100) == list(entries(4, first=3))


def test_a_snapshot_replaces_a_longer_log_and_a_shorter_one(engine: MemoryEngine) -> None:
    for last in (2, 9):
        log = stored(engine, LogStore(engine, GROUP), *entries(*[1] * last))
        batch = engine.batch()
        log.replace(batch, 5, 3)
        engine.write(batch)
        for one in (log, LogStore(engine, GROUP)):
            assert (one.first_index(), one.last_index(), one.term(5)) == (6, 5, 3)
            assert one.entries(6, 10, 100) == []
        engine = MemoryEngine()


def test_groups_share_an_engine_without_meeting(engine: MemoryEngine) -> None:
    stored(engine, LogStore(engine, GROUP), *entries(1, 1))
    stored(engine, LogStore(engine, GROUP + 1), *entries(5))
    assert LogStore(engine, GROUP).last_index() == 2
    assert LogStore(engine, GROUP + 1).term(1) == 5
    assert LogStore(engine, GROUP - 1).last_index() == 0


def test_term_and_vote_are_read_back(engine: MemoryEngine) -> None:
    batch = engine.batch()
    LogStore(engine, GROUP).save_hard_state(batch, HardState(7, 2))
    engine.write(batch)
    assert LogStore(engine, GROUP).hard_state() == HardState(7, 2)
