from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster_core import hlc
from cluster_core.errors import ClockCeiling, InvalidRequest, Unavailable
from cluster_core.hlc import HybridClock, format_timestamp, parse_timestamp

NOW_MS = 1_795_447_000_123


class Wall:
    """A wall clock that is set by hand."""

    def __init__(self, ms: int = NOW_MS) -> None:
        self.ms = ms

    def wall_ms(self) -> int:
        return self.ms

    def steady_s(self) -> float:
        return 0.0


def persist(clock: HybridClock) -> None:
    wanted = clock.wanted_ceiling()
    if wanted is not None:
        clock.ceiling_persisted(wanted)


def running(wall: Wall, *, ceiling: int = 0, ahead_ms: int = 3_000) -> HybridClock:
    clock = HybridClock(wall, ceiling=ceiling, ahead_ms=ahead_ms)
    persist(clock)
    return clock


def test_time_follows_the_wall() -> None:
    wall = Wall()
    clock = running(wall)
    assert clock.now() == NOW_MS << 16
    wall.ms += 1
    assert clock.now() == (NOW_MS + 1) << 16


def test_a_wall_that_stands_still_is_counted_over() -> None:
    clock = running(Wall())
    assert [clock.now() - (NOW_MS << 16) for _ in range(3)] == [0, 1, 2]


def test_a_wall_that_goes_back_is_counted_over() -> None:
    wall = Wall()
    clock = running(wall)
    before = clock.now()
    wall.ms -= 1_000_000
    assert clock.now() == before + 1


def test_a_wall_that_jumps_ahead_is_followed_once_the_ceiling_is_durable() -> None:
    wall = Wall()
    clock = running(wall)
    wall.ms += 10**9
    with pytest.raises(ClockCeiling):
        clock.now()
    persist(clock)
    assert clock.now() == wall.ms << 16


def test_the_counter_carries_into_the_milliseconds() -> None:
    clock = running(Wall())
    clock.merge(hlc.last_of_ms(NOW_MS))
    assert clock.now() == hlc.first_of_ms(NOW_MS + 1)


def test_an_empty_disk_gives_no_time_before_its_first_ceiling() -> None:
    clock = HybridClock(Wall())
    with pytest.raises(Unavailable) as caught:
        clock.now()
    assert caught.value.status == 503
    assert clock.latest == 0
    persist(clock)
    assert clock.now() == NOW_MS << 16


def test_a_ceiling_is_wanted_when_half_of_the_way_is_used() -> None:
    wall = Wall()
    clock = running(wall, ahead_ms=1_000)
    assert clock.ceiling == (NOW_MS + 1_000) << 16
    wall.ms += 500
    assert clock.wanted_ceiling() is None
    wall.ms += 1
    assert clock.wanted_ceiling() == (NOW_MS + 1_501) << 16


def test_a_lower_ceiling_that_comes_late_changes_nothing() -> None:
    clock = running(Wall())
    ceiling = clock.ceiling
    clock.ceiling_persisted(ceiling - 5)
    assert clock.ceiling == ceiling


def test_a_merge_above_the_ceiling_is_remembered_and_not_covered() -> None:
    clock = running(Wall())
    peer = clock.ceiling + 100
    clock.merge(peer)
    assert clock.latest == peer
    assert not clock.is_covered(peer)
    with pytest.raises(ClockCeiling):
        clock.now()
    persist(clock)
    assert clock.is_covered(peer)
    assert clock.now() == peer + 1


def test_the_end_of_time_is_refused_and_not_wrapped() -> None:
    clock = running(Wall())
    clock.merge(hlc.TIMESTAMP_MAX)
    persist(clock)
    assert clock.is_covered(hlc.TIMESTAMP_MAX)
    with pytest.raises(ClockCeiling):
        clock.now()
    assert clock.wanted_ceiling() is None


walls = st.one_of(
    st.integers(NOW_MS - 10, NOW_MS + 10), st.integers(-5, (1 << 48) + 5), st.integers(0, 10)
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("wall"), walls),
        st.tuples(st.just("merge"), st.integers(0, hlc.TIMESTAMP_MAX - (1 << 60))),
        st.tuples(st.sampled_from(["now", "persist", "restart"]), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
@example([("wall", 0), ("now", 0)])
def test_time_only_grows_whatever_the_wall_the_peers_and_restarts_do(
    steps: list[tuple[str, int]],
) -> None:
    wall = Wall()
    clock = HybridClock(wall)
    highest = 0  # the highest timestamp that anybody may have seen from this node
    merged = 0  # in this life
    for act, number in steps:
        if act == "wall":
            wall.ms = number
        elif act == "merge":
            clock.merge(number)
            merged = max(merged, number)
            if clock.is_covered(number):
                highest = max(highest, number)
        elif act == "persist":
            persist(clock)
            if clock.is_covered(merged):
                highest = max(highest, merged)
        elif act == "restart":
            clock = HybridClock(wall, ceiling=clock.ceiling)
            merged = 0
        else:
            try:
                given_now = clock.now()
            except ClockCeiling:
                persist(clock)
                if clock.latest >= hlc.TIMESTAMP_MAX or wall.ms >= 1 << 48:
                    continue
                if clock.latest == 0 and wall.ms <= 0:
                    continue  # it knows no time yet
                given_now = clock.now()
            assert given_now > max(highest, merged)
            assert given_now <= clock.ceiling
            highest = given_now


timestamps = st.integers(0, hlc.TIMESTAMP_MAX)


@given(timestamps)
def test_a_text_stands_for_its_timestamp(timestamp: int) -> None:
    assert parse_timestamp(format_timestamp(timestamp)) == timestamp


@given(st.lists(st.integers(0, 10**13 - 1), max_size=20), st.lists(st.integers(0, 65535)))
@example([9, 10, 999_999_999_999, 1_000_000_000_000], [0, 9, 10, 65535])
def test_texts_sort_as_their_timestamps(milliseconds: list[int], counters: list[int]) -> None:
    ordered = sorted(ms << 16 | counter for ms in milliseconds for counter in counters)
    texts = [format_timestamp(timestamp) for timestamp in ordered]
    assert texts == sorted(texts)


def test_the_text_is_that_of_the_contract() -> None:
    assert format_timestamp(NOW_MS << 16) == "1795447000123.00000"
    assert format_timestamp(NOW_MS << 16 | 65535) == "1795447000123.65535"


@given(st.integers(0, 253_402_300_799_999), st.integers(0, 65535))
def test_an_rfc_3339_time_means_the_end_of_its_millisecond(wall_ms: int, counter: int) -> None:
    timestamp = wall_ms << 16 | counter
    assert parse_timestamp(hlc.rfc3339(timestamp)) == hlc.last_of_ms(wall_ms)


@pytest.mark.parametrize(
    ("text", "wall_ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1_500),
        ("1970-01-01t00:00:01.123456789z", 1_123),
        ("1970-01-01 02:00:00+02:00", 0),
        ("1969-12-31T23:00:00-01:00", 0),
    ],
)
def test_rfc_3339_times_are_understood(text: str, wall_ms: int) -> None:
    assert hlc.wall_of(parse_timestamp(text)) == wall_ms


def test_a_time_after_the_year_9999_is_shown_as_its_end() -> None:
    assert hlc.rfc3339(hlc.TIMESTAMP_MAX) == "9999-12-31T23:59:59.999Z"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1.1",
        "1.000000",
        "1.65536",
        "-1.00000",
        "+1.00000",
        " 1.00000",
        "1.00000\n",
        "١.00000",
        "281474976710656.00000",
        "9" * 400 + ".00000",
        "2026-01-01",
        "2026-01-01T00:00:00",
        "2026-13-01T00:00:00Z",
        "2026-01-01T25:00:00Z",
        "2026-01-01T00:00:00+99:00",
        "1969-12-31T23:59:59Z",
        "0001-01-01T00:00:00+23:00",
        "yesterday",
    ],
)
def test_anything_else_is_an_invalid_request(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_timestamp(text, where="as_of")
    assert caught.value.extra["errors"][0]["where"] == "as_of"
