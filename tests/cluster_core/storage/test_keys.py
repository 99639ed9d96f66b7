from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster_core.storage import keys

groups = st.integers(0, 1024)
digests = st.binary(min_size=32, max_size=32)
timestamps = st.integers(0, keys.TIMESTAMP_MAX)
labels = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8
)


@given(st.binary(max_size=50), timestamps)
def test_splitting_a_version_is_the_inverse_of_building_it(user_key: bytes, timestamp: int) -> None:
    assert keys.split_version(keys.versioned(user_key, timestamp)) == (user_key, timestamp)


@given(st.binary(max_size=50), timestamps, timestamps)
def test_the_newest_version_sorts_first(user_key: bytes, one: int, two: int) -> None:
    older, newer = sorted((one, two))
    assert keys.versioned(user_key, newer) <= keys.versioned(user_key, older)


@given(groups, digests, labels, digests)
def test_splitting_adjacency_is_the_inverse_of_building_it(
    group: int, digest: bytes, label: str, edge: bytes
) -> None:
    assert keys.split_adjacency(keys.out_edge(group, digest, label, edge)) == (label, edge)
    assert keys.split_adjacency(keys.in_edge(group, digest, label, edge)) == (label, edge)


@given(groups, digests, labels, digests)
def test_an_edge_lies_below_its_vertex_and_label(
    group: int, digest: bytes, label: str, edge: bytes
) -> None:
    for key, prefix in (
        (keys.out_edge(group, digest, label, edge), keys.out_prefix),
        (keys.in_edge(group, digest, label, edge), keys.in_prefix),
    ):
        for bound in (prefix(group, digest), prefix(group, digest, label)):
            assert bound <= key < keys.after(bound)


@given(groups, digests, labels, labels, digests, digests)
def test_no_adjacency_key_is_a_prefix_of_another(
    group: int, digest: bytes, one: str, two: str, edge: bytes, other: bytes
) -> None:
    first = keys.out_edge(group, digest, one, edge)
    second = keys.out_edge(group, digest, two, other)
    assert first == second or not (first.startswith(second) or second.startswith(first))


@given(st.binary(max_size=6), st.binary(max_size=8))
def test_after_bounds_exactly_the_keys_with_the_prefix(prefix: bytes, key: bytes) -> None:
    assert (prefix <= key < keys.after(prefix)) == key.startswith(prefix)


@given(st.binary(max_size=6), st.integers(0, 6))
def test_after_bounds_every_extension(prefix: bytes, length: int) -> None:
    assert prefix + b"\xff" * length < keys.after(prefix)


@given(groups, digests, timestamps)
def test_every_key_begins_with_its_group(group: int, digest: bytes, timestamp: int) -> None:
    prefix = keys.group_prefix(group)
    for key in (
        keys.entity(group, digest),
        keys.version(group, digest),
        keys.change(group, timestamp, digest),
        keys.dedupe(group, digest),
        keys.intent(group, digest),
        keys.record(group, digest),
        keys.refusal(group, digest),
        keys.state(group, b"applied"),
        keys.log_entry(group, timestamp),
        keys.hard_state(group),
    ):
        assert prefix <= key < keys.after(prefix)
        assert key < keys.NODE_SCOPE


@given(groups, st.lists(st.integers(0, 2**63)))
def test_log_entries_sort_by_index(group: int, indexes: list[int]) -> None:
    ordered = sorted(indexes)
    assert [keys.log_entry(group, index) for index in ordered] == sorted(
        keys.log_entry(group, index) for index in indexes
    )
