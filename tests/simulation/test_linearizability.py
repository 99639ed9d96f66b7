"""The checker itself: histories that must pass, histories that must fail, and properties."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.linearizability import REJECTED, UNKNOWN, Model, Operation, check
from tests.simulation.models import (
    CompareAndSet,
    Create,
    Delete,
    EntityModel,
    Failed,
    Read,
    RegisterModel,
    Update,
    Write,
)

V1, V2, V3 = b"version-one", b"version-two", b"version-three"


def history(text: str, **actions: tuple[Any, Any]) -> list[Operation]:
    """Lines of ``name |---|`` as in papers: a column is a moment, ``>`` an outcome never known."""
    operations = []
    for line in filter(str.strip, text.splitlines()):
        name, _, lane = line.partition(":")
        action, output = actions[name.strip()]
        start = lane.index("|")
        end = None if ">" in lane else lane.index("|", start + 1)
        operations.append((start, end, name.strip(), action, UNKNOWN if end is None else output))
    # Columns become unique positions; calls come before returns of the same column.
    moments = sorted(
        [(start, 0, name) for start, _, name, _, _ in operations]
        + [(end, 1, name) for _, end, name, _, _ in operations if end is not None]
    )
    position = {(kind, name): place for place, (_, kind, name) in enumerate(moments)}
    return [
        Operation(
            client=name,
            key="k",
            action=action,
            output=output,
            call=position[0, name],
            returned=None if end is None else position[1, name],
        )
        for _, end, name, action, output in operations
    ]


def judge(text: str, model: Model[Any] | None = None, **actions: tuple[Any, Any]) -> str:
    return check(history(text, **actions), model or RegisterModel()).outcome


def test_an_empty_history_is_linearizable() -> None:
    assert check([], RegisterModel()).ok


def test_a_read_during_a_write_may_see_either_value() -> None:
    for seen in ((None, 0), (1, 1)):
        assert (
            judge(
                """
                w: |-------|
                r:    |--|
                """,
                w=(Write(1), 1),
                r=(Read(), seen),
            )
            == "linearizable"
        )


def test_a_stale_read_is_found() -> None:
    assert (
        judge(
            """
            w: |---|
            r:       |---|
            """,
            w=(Write(1), 1),
            r=(Read(), (None, 0)),
        )
        == "violation"
    )


def test_a_lost_acknowledged_write_is_found() -> None:
    assert (
        judge(
            """
            a: |--|
            b:      |--|
            r:           |--|
            """,
            a=(Write(1), 1),
            b=(Write(2), 2),
            r=(Read(), (1, 1)),
        )
        == "violation"
    )


def test_reads_that_go_back_are_found() -> None:
    lanes = """
        w: |--------------|
        a:    |--|
        b:         |--|
        """
    new, old = (1, 1), (None, 0)
    assert judge(lanes, w=(Write(1), 1), a=(Read(), old), b=(Read(), new)) == "linearizable"
    assert judge(lanes, w=(Write(1), 1), a=(Read(), new), b=(Read(), old)) == "violation"


def test_concurrent_reads_may_disagree_on_the_order_of_the_clock() -> None:
    assert (
        judge(
            """
            w: |------------|
            a:    |-----|
            b:     |-----|
            """,
            w=(Write(1), 1),
            a=(Read(), (1, 1)),
            b=(Read(), (None, 0)),
        )
        == "linearizable"
    )


def test_an_unknown_write_may_be_seen_late_or_never() -> None:
    lanes = """
        w: |-->
        a:      |--|
        b:           |--|
        """
    new, old = (1, 1), (None, 0)
    for first, second in ((old, old), (old, new), (new, new)):
        seen = judge(lanes, w=(Write(1), 1), a=(Read(), first), b=(Read(), second))
        assert seen == "linearizable"


def test_an_unknown_write_that_was_seen_and_is_gone_is_found() -> None:
    assert (
        judge(
            """
            w: |-->
            a:      |--|
            b:           |--|
            """,
            w=(Write(1), 1),
            a=(Read(), (1, 1)),
            b=(Read(), (None, 0)),
        )
        == "violation"
    )


def test_an_unknown_write_never_takes_effect_before_its_call() -> None:
    assert (
        judge(
            """
            r: |--|
            w:      |-->
            """,
            w=(Write(1), 1),
            r=(Read(), (1, 1)),
        )
        == "violation"
    )


def test_an_unknown_write_takes_effect_only_once() -> None:
    assert (
        judge(
            """
            u: |-->
            a:       |--|
            w:            |--|
            b:                 |--|
            """,
            u=(Write(1), 1),
            a=(Read(), (1, 1)),
            w=(Write(2), 2),
            b=(Read(), (1, 3)),
        )
        == "violation"
    )


def test_two_conditional_writes_on_one_version_cannot_both_succeed() -> None:
    lanes = """
        a: |------|
        b:   |------|
        """
    won, lost = (CompareAndSet(0, "x"), 1), (CompareAndSet(0, "y"), None)
    assert judge(lanes, a=won, b=lost) == "linearizable"
    assert judge(lanes, a=won, b=(CompareAndSet(0, "y"), 1)) == "violation"
    assert judge(lanes, a=lost, b=lost) == "violation"


def test_keys_are_independent() -> None:
    fine = history("w: |--|", w=(Write(1), 1))
    bad = [
        Operation(client="c", key="other", action=Read(), output=(7, 1), call=10, returned=11),
    ]
    result = check(fine + bad, RegisterModel())
    assert result.outcome == "violation"
    assert result.key == "other"


def test_an_entity_lives_once() -> None:
    lanes = """
        c: |--|
        u:      |--|
        d:           |--|
        r:                |--|
        """
    gone = {"c": (Create(1), V1), "u": (Update(2, V1), V2), "d": (Delete(), True)}
    assert judge(lanes, EntityModel(), **gone, r=(Read(), None)) == "linearizable"
    assert judge(lanes, EntityModel(), **gone, r=(Read(), (2, V2))) == "violation"
    assert judge(lanes, EntityModel(), **gone, r=(Update(3), Failed("not_found"))) == "linearizable"
    assert judge(lanes, EntityModel(), **gone, r=(Update(3), V3)) == "violation"


def test_a_lost_update_is_found() -> None:
    assert (
        judge(
            """
            c: |--|
            a:      |--------|
            b:       |--------|
            """,
            EntityModel(),
            c=(Create(1), V1),
            a=(Update(2, V1), V2),
            b=(Update(3, V1), V3),
        )
        == "violation"
    )


def test_a_refused_precondition_must_have_had_a_reason() -> None:
    lanes = """
        c: |--|
        u:      |--|
        """
    refused = (Update(2, V1), Failed("version"))
    assert judge(lanes, EntityModel(), c=(Create(1), V1), u=refused) == "violation"
    assert judge(lanes, EntityModel(), c=(Create(1), V2), u=refused) == "linearizable"


def test_the_version_of_an_unknown_update_is_learnt_from_a_read() -> None:
    lanes = """
        c: |--|
        u:      |-->
        a:           |--|
        b:                |--|
        """
    known = {"c": (Create(1), V1), "u": (Update(2), V2), "a": (Read(), (2, V2))}
    assert judge(lanes, EntityModel(), **known, b=(Read(), (2, V2))) == "linearizable"
    assert judge(lanes, EntityModel(), **known, b=(Read(), (2, V3))) == "violation"
    assert judge(lanes, EntityModel(), **known, b=(Update(3, V1), V3)) == "violation"


def test_an_unknown_delete_may_come_late() -> None:
    lanes = """
        c: |--|
        d:      |-->
        a:           |--|
        b:                |--|
        """
    known = {"c": (Create(1), V1), "d": (Delete(), True)}
    seen, gone = (Read(), (1, V1)), (Read(), None)
    assert judge(lanes, EntityModel(), **known, a=seen, b=gone) == "linearizable"
    assert judge(lanes, EntityModel(), **known, a=gone, b=seen) == "violation"


def test_a_report_shows_what_can_be_explained_and_what_cannot() -> None:
    bad = history(
        """
        writer: |--|
        reader:      |--|
        """,
        writer=(Write("blue"), 1),
        reader=(Read(), (None, 0)),
    )
    report = check(bad, RegisterModel()).report
    assert "violation at key k: 2 operations" in report
    assert "writer   write blue -> 1   => (blue, 1)" in report
    assert report.splitlines()[-1].endswith("reader   read -> (None, 0)")


def test_a_search_beyond_its_bound_is_undecided() -> None:
    operations = [
        Operation(client=f"c{n}", key=0, action=Write(n), output=UNKNOWN, call=n, returned=None)
        for n in range(30)
    ]
    impossible = Operation(client="r", key=0, action=Read(), output=("?", 9), call=90, returned=91)
    result = check([*operations, impossible], RegisterModel(), steps_max=20_000)
    assert result.outcome == "undecided"
    assert not result.ok
    assert result.steps > 20_000


def test_reads_of_unknown_outcome_do_not_widen_the_search() -> None:
    write = Operation(client="w", key=0, action=Write(1), output=UNKNOWN, call=0, returned=None)
    lost = [
        Operation(client=f"c{n}", key=0, action=Read(), output=UNKNOWN, call=n, returned=None)
        for n in range(1, 30)
    ]
    last = Operation(client="r", key=0, action=Read(), output=(None, 0), call=90, returned=91)
    result = check([write, *lost, last], RegisterModel(), steps_max=1_000)
    assert result.ok, result.report


class AtomicRegister:
    """A real register; an operation on it takes effect the moment it is applied."""

    def __init__(self) -> None:
        self.value: Any = None
        self.version = 0

    def apply(self, action: Any) -> Any:
        if isinstance(action, Read):
            return (self.value, self.version)
        if isinstance(action, CompareAndSet) and action.version != self.version:
            return None
        self.value, self.version = action.value, self.version + 1
        return self.version


def real_history(
    source: random.Random, *, clients: int, operations: int, keys: int, lost: float
) -> list[Operation]:
    """What concurrent clients see of real registers: call, effect and return interleave freely."""
    registers = {key: AtomicRegister() for key in range(keys)}
    running: dict[int, dict[str, Any]] = {}
    done: list[Operation] = []
    clock = itertools.count()
    started = 0

    def finish(client: int, returned: int | None) -> None:
        call = running.pop(client)
        output = UNKNOWN if returned is None else call["output"]
        done.append(
            Operation(
                client=f"c{client}",
                key=call["key"],
                action=call["action"],
                output=output,
                call=call["call"],
                returned=returned,
            )
        )

    while started < operations or running:
        client = source.randrange(clients)
        if client not in running:
            if started == operations:
                client = source.choice(sorted(running))
            else:
                started += 1
                running[client] = {
                    "key": source.randrange(keys),
                    "action": _any_action(source, started),
                    "call": next(clock),
                }
                continue
        call = running[client]
        if source.random() < lost / 2:
            finish(client, None)
        elif "output" not in call:
            call["output"] = registers[call["key"]].apply(call["action"])
        elif source.random() < lost / 2:
            finish(client, None)
        else:
            finish(client, next(clock))
    return done


def _any_action(source: random.Random, value: int) -> Any:
    kind = source.randrange(3)
    if kind == 0:
        return Read()
    return Write(value) if kind == 1 else CompareAndSet(source.randrange(4), value)


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 5), st.integers(0, 30))
def test_what_a_real_register_does_is_always_linearizable(
    source: random.Random, clients: int, operations: int
) -> None:
    made = real_history(source, clients=clients, operations=operations, keys=2, lost=0.1)
    result = check(made, RegisterModel())
    assert result.ok, result.report


def brute_force(operations: list[Operation], model: Model[Any]) -> bool:
    """Every order of every choice of the unknown operations, straight from the definition."""
    known = [operation for operation in operations if operation.returned is not None]
    unknown = [operation for operation in operations if operation.returned is None]
    return any(
        _explains(order, model)
        for count in range(len(unknown) + 1)
        for chosen in itertools.combinations(unknown, count)
        for order in itertools.permutations([*known, *chosen])
    )


def _explains(order: tuple[Operation, ...], model: Model[Any]) -> bool:
    state = model.initial()
    for place, operation in enumerate(order):
        if any(
            later.returned is not None and later.returned < operation.call
            for later in order[place:]
        ):
            return False
        state = model.step(state, operation.action, operation.output)
        if state is REJECTED:
            return False
    return True


def _corrupt(source: random.Random, operations: list[Operation]) -> list[Operation]:
    """The same history with one answer replaced by another that is possible somewhere."""
    answered = [place for place, each in enumerate(operations) if each.returned is not None]
    if not answered:
        return operations
    place = source.choice(answered)
    victim = operations[place]
    output: Any = source.randrange(1, 4)
    if isinstance(victim.action, Read):
        output = (source.choice([None, 1, 2, 3]), source.randrange(4))
    elif isinstance(victim.action, CompareAndSet):
        output = source.choice([None, 1, 2, 3])
    changed = list(operations)
    changed[place] = Operation(
        client=victim.client,
        key=victim.key,
        action=victim.action,
        output=output,
        call=victim.call,
        returned=victim.returned,
    )
    return changed


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 4), st.integers(1, 5))
def test_the_search_agrees_with_trying_everything(
    source: random.Random, clients: int, operations: int
) -> None:
    made = real_history(source, clients=clients, operations=operations, keys=1, lost=0.3)
    changed = _corrupt(source, made)
    assert check(changed, RegisterModel()).ok == brute_force(changed, RegisterModel())


def test_two_thousand_operations_are_checked_in_a_second() -> None:
    made = real_history(random.Random(7), clients=12, operations=2_000, keys=50, lost=0.02)
    started = time.perf_counter()
    result = check(made, RegisterModel())
    assert result.ok, result.report
    assert time.perf_counter() - started < 2.0


@pytest.mark.parametrize("seed", range(5))
def test_one_wrong_read_among_two_thousand_operations_is_found(seed: int) -> None:
    source = random.Random(seed)
    made = real_history(source, clients=12, operations=2_000, keys=50, lost=0.02)
    reads = [
        place
        for place, each in enumerate(made)
        if isinstance(each.action, Read) and each.returned is not None
    ]
    place = source.choice(reads)
    victim = made[place]
    made[place] = Operation(
        client=victim.client,
        key=victim.key,
        action=victim.action,
        output=("never written", 1),
        call=victim.call,
        returned=victim.returned,
    )
    result = check(made, RegisterModel())
    assert result.outcome == "violation"
    assert result.key == victim.key
