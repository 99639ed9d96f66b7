from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster_core.graph.parts import LockKind
from cluster_core.replication.locks import LockTable

SHARED, WRITE, EXCLUSIVE = LockKind

DIGESTS = [b"a", b"b"]
TRANSACTIONS = [b"1", b"2", b"3", b"4"]
LOCKS = st.lists(st.tuples(st.sampled_from(DIGESTS), st.sampled_from(list(LockKind))), max_size=3)


def compatible(held: LockKind, wanted: LockKind) -> bool:
    """The rule as it is written: SHARED goes with SHARED and WRITE, WRITE with SHARED only."""
    return EXCLUSIVE not in (held, wanted) and SHARED in (held, wanted)


class PlainTable:
    """The rule without anything clever."""

    def __init__(self) -> None:
        self.held: dict[tuple[bytes, bytes], LockKind] = {}

    def acquire(self, locks: list[tuple[bytes, LockKind]], transaction: bytes) -> None:
        for digest, kind in locks:
            before = self.held.get((digest, transaction), kind)
            self.held[digest, transaction] = max(before, kind)

    def release(self, locks: list[tuple[bytes, LockKind]], transaction: bytes) -> None:
        for digest, _ in locks:
            self.held.pop((digest, transaction), None)

    def conflict(
        self, locks: list[tuple[bytes, LockKind]], transaction: bytes
    ) -> tuple[bytes, tuple[int, bytes]] | None:
        for digest, wanted in locks:
            against = [
                priority_of(holder)
                for (at, holder), kind in self.held.items()
                if at == digest and holder != transaction and not compatible(kind, wanted)
            ]
            if against:
                return digest, min(against)
        return None


def priority_of(transaction: bytes) -> tuple[int, bytes]:
    return 9 - int(transaction), transaction


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(TRANSACTIONS), LOCKS), max_size=20),
    LOCKS,
    st.sampled_from(TRANSACTIONS),
)
def test_who_is_in_the_way_is_what_the_rule_says(
    steps: list[tuple[bool, bytes, list[tuple[bytes, LockKind]]]],
    wanted: list[tuple[bytes, LockKind]],
    transaction: bytes,
) -> None:
    table, plain = LockTable(), PlainTable()
    for acquires, holder, locks in steps:
        if acquires:
            table.acquire(locks, priority_of(holder))
            plain.acquire(locks, holder)
        else:
            table.release(locks, holder)
            plain.release(locks, holder)
        assert bool(table) == bool(plain.held)
    assert table.conflict(wanted, transaction) == plain.conflict(wanted, transaction)


async def test_who_waits_is_woken_by_the_release_of_either_kind() -> None:
    for kind in (SHARED, EXCLUSIVE):
        table = LockTable()
        table.acquire([(b"a", kind)], (1, b"1"))
        waiting = table.released(b"a")
        table.release([(b"a", kind)], b"2")
        assert not waiting.done()
        table.release([(b"a", kind)], b"1")
        assert waiting.done()
        assert not table
