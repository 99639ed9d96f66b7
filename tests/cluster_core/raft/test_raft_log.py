"""The log window over a store."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_core.raft.log import RaftLog, entry_bytes
from cluster_core.wire.messages import Entry
from tests.cluster_core.raft.replicas import Disk, Write, log_of


def entries(first: int, *terms: int) -> tuple[Entry, ...]:
    return tuple(Entry(term, first + n, b"%d" % (first + n)) for n, term in enumerate(terms))


def log_with(*terms: int, applied: int = 0, cache_bytes_max: int = 1 << 20) -> tuple[RaftLog, Disk]:
    disk = Disk(log_of(terms))
    return RaftLog(disk, applied, cache_bytes_max), disk


def write(log: RaftLog, disk: Disk) -> tuple[Entry, ...]:
    taken = log.take_unwritten()
    if taken:
        disk.write(taken)
    return taken


def all_of(log: RaftLog) -> list[int]:
    return [log.term(index) for index in range(1, log.last_index + 1)]


class TestTheConsistencyCheck:
    """§5.3, figure 2: AppendEntries rules 2 to 4."""

    def test_an_append_behind_the_end_of_the_log_is_refused(self) -> None:
        log, _ = log_with(1, 1)
        assert not log.try_append(3, 1, entries(4, 1))

    def test_an_append_behind_another_term_is_refused(self) -> None:
        log, _ = log_with(1, 2)
        assert not log.try_append(2, 1, entries(3, 2))

    def test_an_append_at_the_end_extends_the_log(self) -> None:
        log, _ = log_with(1, 2)
        assert log.try_append(2, 2, entries(3, 2, 3))
        assert all_of(log) == [1, 2, 2, 3]
        assert log.last_term == 3

    def test_a_conflicting_entry_goes_with_all_that_follow(self) -> None:
        log, _ = log_with(1, 2, 2, 2)
        assert log.try_append(1, 1, entries(2, 2, 3))
        assert all_of(log) == [1, 2, 3]

    def test_an_old_append_leaves_what_follows_it(self) -> None:
        log, _ = log_with(1, 2, 2, 2)
        assert log.try_append(0, 0, entries(1, 1, 2))
        assert all_of(log) == [1, 2, 2, 2]
        assert not log.has_unwritten

    def test_a_committed_entry_is_never_replaced(self) -> None:
        log, _ = log_with(1, 2, 2)
        log.commit_to(2)
        with pytest.raises(AssertionError, match="never replaced"):
            log.try_append(1, 1, entries(2, 3))

    def test_a_commit_beyond_the_log_is_refused(self) -> None:
        log, _ = log_with(1)
        with pytest.raises(AssertionError, match="entries were lost"):
            log.commit_to(2)

    def test_the_commit_index_never_goes_back(self) -> None:
        log, _ = log_with(1, 1, 1)
        log.commit_to(3)
        log.commit_to(1)
        assert log.committed == 3


class TestHandingOut:
    def test_entries_are_handed_out_once(self) -> None:
        log, _ = log_with(1)
        log.append(Entry(2, 2, b"a"))
        assert [e.index for e in log.take_unwritten()] == [2]
        assert log.take_unwritten() == ()
        log.append(Entry(2, 3, b"b"))
        assert [e.index for e in log.take_unwritten()] == [3]

    def test_replaced_entries_are_handed_out_again_from_the_conflict_on(self) -> None:
        log, disk = log_with(1)
        log.try_append(1, 1, entries(2, 2, 2, 2))
        write(log, disk)
        log.try_append(2, 2, entries(3, 3))
        assert [(e.index, e.term) for e in log.take_unwritten()] == [(3, 3)]

    def test_committed_entries_are_handed_out_once_and_in_portions(self) -> None:
        log, _ = log_with(*[1] * 5)
        log.commit_to(5)
        taken = []
        while log.has_unapplied:
            taken.append([e.index for e in log.take_committed(bytes_max=2)])
        assert taken == [[1, 2], [3, 4], [5]]

    def test_what_was_applied_before_the_start_is_not_handed_out_again(self) -> None:
        log, _ = log_with(1, 1, 1, applied=2)
        assert log.committed == 2
        log.commit_to(3)
        assert [e.index for e in log.take_committed(100)] == [3]


class TestDurability:
    """What counts as persisted while several writes are on their way."""

    def test_a_report_moves_persisted_to_the_end_of_its_write(self) -> None:
        log, disk = log_with(1)
        log.append(Entry(2, 2, b"a"))
        write(log, disk)
        log.append(Entry(2, 3, b"b"))
        write(log, disk)
        assert log.persisted == 1
        assert log.persisted_to(2, 2)
        assert log.persisted == 2

    def test_the_last_report_of_a_sync_stands_for_all_before_it(self) -> None:
        log, disk = log_with(1)
        for index in (2, 3, 4):
            log.append(Entry(2, index, b"a"))
            write(log, disk)
        assert log.persisted_to(4, 2)
        assert log.persisted == 4

    def test_a_report_of_what_was_never_handed_out_changes_nothing(self) -> None:
        log, _ = log_with(1)
        log.append(Entry(2, 2, b"a"))
        assert not log.persisted_to(2, 2)
        assert log.persisted == 1

    def test_entries_replaced_since_do_not_count(self) -> None:
        log, disk = log_with(1)
        log.try_append(1, 1, entries(2, 2, 2, 2))
        write(log, disk)
        log.try_append(2, 2, entries(3, 3))
        write(log, disk)
        assert log.persisted_to(4, 2)
        assert log.persisted == 2
        assert log.persisted_to(3, 3)
        assert log.persisted == 3

    def test_an_entry_that_came_back_counts_only_with_its_second_write(self) -> None:
        """Of three writes under way the first and the third end with entry 5 of term 2."""
        log, disk = log_with(1, 1, 1, 1)
        for term in (2, 3, 2):
            assert log.try_append(4, 1, entries(5, term))
            assert [entry.term for entry in write(log, disk)] == [term]
        assert not log.persisted_to(5, 2)
        assert log.persisted == 4, "the disk may hold term 3 there"
        assert log.persisted_to(5, 2)
        assert log.persisted == 5

    def test_a_truncation_takes_persisted_back(self) -> None:
        log, _ = log_with(1, 1, 1, 1)
        log.try_append(2, 1, entries(3, 2))
        assert log.persisted == 2


class TestTheWindow:
    def test_old_entries_leave_memory_once_they_are_durable_and_applied(self) -> None:
        log, disk = log_with(cache_bytes_max=1_000)
        for index in range(1, 101):
            log.append(Entry(1, index, bytes(100)))
        write(log, disk)
        log.commit_to(100)
        log.take_committed(1 << 20)
        log.applied_to(100)
        assert len(log._window) == 100, "nothing is durable yet"
        log.persisted_to(100, 1)
        assert 0 < len(log._window) <= 1_000 // entry_bytes(Entry(1, 1, bytes(100)))
        assert log.term(1) == 1
        assert [e.index for e in log.entries(1, 101, 1 << 20)][:2] == [1, 2]
        assert log.term(log._first - 1) == 1

    def test_what_is_not_applied_stays(self) -> None:
        log, disk = log_with(cache_bytes_max=0)
        for index in range(1, 11):
            log.append(Entry(1, index, b"x"))
        write(log, disk)
        log.persisted_to(10, 1)
        log.commit_to(10)
        log.take_committed(1 << 20)
        log.applied_to(4)
        assert log._first == 5

    def test_the_log_is_read_across_the_edge_of_the_window(self) -> None:
        log, _ = log_with(1, 1, 1)
        log.append(Entry(2, 4, b"d"))
        assert [e.index for e in log.entries(2, 5, 1 << 20)] == [2, 3]
        assert [e.index for e in log.entries(4, 5, 1 << 20)] == [4]

    def test_a_conflict_below_the_window_moves_the_window(self) -> None:
        log, disk = log_with(1, 1, 2, 2)
        log.try_append(4, 2, entries(5, 2))
        write(log, disk)
        assert log.try_append(2, 1, entries(3, 3, 3))
        assert all_of(log) == [1, 1, 3, 3]
        assert [e.index for e in log.take_unwritten()] == [3, 4]

    def test_entries_are_split_by_bytes_and_never_none(self) -> None:
        log, _ = log_with()
        for index in range(1, 6):
            log.append(Entry(1, index, bytes(1_000)))
        each = entry_bytes(Entry(1, 1, bytes(1_000)))
        assert len(log.entries(1, 6, 1)) == 1
        assert len(log.entries(1, 6, 2 * each)) == 2
        assert len(log.entries(1, 6, 3 * each - 1)) == 2
        assert len(log.entries(2, 6, 1 << 20)) == 4


TERMS = st.lists(st.integers(1, 5), max_size=12).map(sorted)


@given(TERMS, st.integers(0, 15), st.integers(0, 6))
def test_the_last_entry_of_at_most_a_term_is_found_by_bisection(
    terms: list[int], index: int, term: int
) -> None:
    log, _ = log_with(*terms)
    expected = max([i for i, t in enumerate(terms, start=1) if i <= index and t <= term], default=0)
    assert log.last_at_most(index, term) == expected


@given(st.data())
def test_the_window_and_the_store_never_disagree_with_a_plain_list(data: st.DataObject) -> None:
    """Random appends, conflicts, reports and applies, against a list as the model."""
    log, disk = log_with(cache_bytes_max=data.draw(st.sampled_from([0, 200, 1 << 20])))
    model: list[Entry] = []
    reports: list[tuple[int, int]] = []
    term = 1
    for _ in range(data.draw(st.integers(1, 25))):
        match data.draw(st.sampled_from(["append", "conflict", "write", "persist", "apply"])):
            case "append":
                entry = Entry(term, len(model) + 1, b"%d" % term)
                log.append(entry)
                model.append(entry)
            case "conflict":
                term += 1
                keep = data.draw(st.integers(log.committed, len(model)))
                new = entries(keep + 1, *[term] * data.draw(st.integers(1, 3)))
                assert log.try_append(keep, model[keep - 1].term if keep else 0, new)
                model[keep:] = new
            case "write":
                taken = write(log, disk)
                if taken:
                    reports.append((taken[-1].index, taken[-1].term))
            case "persist" if reports:
                disk.sync(1)
                log.persisted_to(*reports.pop(0))
                durable = disk.durable.entries[: log.persisted]
                assert durable == model[: log.persisted], "persisted means durable"
            case "apply":
                log.commit_to(data.draw(st.integers(log.committed, len(model))))
                if log.has_unapplied:
                    log.applied_to(log.take_committed(1 << 20)[-1].index)
        assert [log.term(i) for i in range(1, log.last_index + 1)] == [e.term for e in model]
        assert log.matches(log.last_index, log.last_term)
        if model:
            low = data.draw(st.integers(1, len(model)))
            got = log.entries(low, len(model) + 1, 1 << 20)
            assert list(got) == model[low - 1 : low - 1 + len(got)]


class TestATruncatedLog:
    """§7"""

    def truncated(self, *terms: int, applied: int, to: int) -> tuple[RaftLog, Disk]:
        log, disk = log_with(*terms, applied=applied)
        disk.put(Write(applied=applied, truncated=to))
        log.truncated_to(to)
        return log, disk

    def test_the_term_before_the_first_entry_is_still_known(self) -> None:
        log, _ = self.truncated(1, 2, 2, 3, applied=3, to=2)
        assert (log.first_index, log.term(2), log.matches(2, 2)) == (3, 2, True)

    def test_it_can_be_empty(self) -> None:
        log, disk = self.truncated(1, 2, applied=2, to=2)
        again = RaftLog(disk, 2, 0)
        assert (again.first_index, again.last_index, again.last_term) == (3, 2, 2)
        assert again.try_append(2, 2, entries(3, 4))
        log.append(Entry(4, 3, b"x"))
        assert log.term(3) == again.term(3) == 4

    @pytest.mark.parametrize("index", [3, 5])
    def test_what_is_not_applied_or_not_there_stays(self, index: int) -> None:
        log, _ = log_with(1, 1, 1, applied=2)
        with pytest.raises(AssertionError):
            log.truncated_to(index)

    def test_a_search_ends_before_the_first_entry(self) -> None:
        log, _ = self.truncated(1, 1, 4, 4, 5, applied=3, to=3)
        assert log.last_at_most(5, 4) == 4
        assert log.last_at_most(5, 2) == 3
        assert log.last_at_most(2, 2) == 2, "it is dropped, and cannot be told apart"


class TestRestoring:
    """§7"""

    def test_nothing_of_the_old_log_is_left(self) -> None:
        log, disk = log_with(1, 1, 2, 2)
        disk.written.base = (6, 3)
        disk.written.entries = []
        log.restore(6, 3)
        assert (log.first_index, log.last_index, log.last_term) == (7, 6, 3)
        assert (log.persisted, log.committed, log.applied) == (6, 6, 6)
        assert not log.has_unwritten
        assert not log.has_unapplied
        assert log.matches(6, 3)

    def test_it_never_goes_back(self) -> None:
        log, _ = log_with(1, 1, 1)
        log.commit_to(2)
        log.take_committed(1 << 20)
        with pytest.raises(AssertionError, match="never goes back"):
            log.restore(2, 1)

    def test_what_was_not_handed_out_must_be_first(self) -> None:
        log, _ = log_with(1)
        log.append(Entry(2, 2, b"x"))
        with pytest.raises(AssertionError, match="handed out before"):
            log.restore(5, 3)
