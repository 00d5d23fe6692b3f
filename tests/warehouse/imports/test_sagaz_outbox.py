"""What rows of sagaz's outbox are made into; any rows whatever."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagascope.events import EventType, SagaEvent, decode, encode
from warehouse.imports.sagaz_outbox import OutboxRow, Told, classify, events_of_saga
from warehouse.imports.source import Refused

if TYPE_CHECKING:
    import random

NOON = int(datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp()) * 1_000_000
CANARY = "canary-91c2-"
"""How each value of a result begins: it is to be found nowhere."""


def row(event_type: str, payload: Any, at: int | None = NOON, row_id: str = "r", saga_id: str = "s") -> OutboxRow:
    """A row of the outbox."""
    return OutboxRow(row_id, saga_id, event_type, msgspec.json.encode(payload).decode(), at)


def story(*told: tuple[str, Any], seconds: int = 1) -> list[OutboxRow]:
    """The rows of saga `s`, so many seconds apart."""
    return [row(kind, payload, NOON + n * seconds * 1_000_000, f"r{n}") for n, (kind, payload) in enumerate(told)]


def done(step: str, result: Any = None, saga: str = "order") -> tuple[str, Any]:
    """A step that succeeded."""
    return f"{saga}.{step}.success", {"step": step, "result": result or {}}


def failed(step: str, error: str = "no", kind: str = "ValueError") -> tuple[str, Any]:
    """One that did not."""
    return f"order.{step}.failed", {"step": step, "error": error, "error_type": kind}


def undone(step: str) -> tuple[str, Any]:
    """One that was undone."""
    return f"order.{step}.compensated", {"step": step, "compensated": True}


def end(error: str | None = None, saga: str = "order") -> tuple[str, Any]:
    """The saga's end, with an error or without."""
    if error is None:
        return f"{saga}.completed", {"saga_id": "s", "status": "completed"}
    return f"{saga}.failed", {"saga_id": "s", "status": "failed", "error": error}


def told(rows: list[OutboxRow]) -> list[SagaEvent]:
    """The events of rows that are all of a known shape."""
    found = events_of_saga(rows)
    assert all(isinstance(one, SagaEvent) for one in found), found
    return [one for one in found if isinstance(one, SagaEvent)]


@pytest.mark.parametrize(
    ("event_type", "payload", "saga_name", "step"),
    [
        ("shop.pay.failed", {"step": "pay", "error": "", "error_type": "TimeoutError"}, "shop", "pay"),
        ("shop.pay.failed", {"saga_id": "s", "status": "failed", "error": "x"}, "shop.pay", None),
        ("a.b.c.success", {"step": "b.c", "result": {}}, "a", "b.c"),
        ("a.b.c.success", {"step": "c", "result": {}}, "a.b", "c"),
        ("a.success.success", {"step": "success", "result": {}}, "a", "success"),
        ("a.completed.completed", {"saga_id": "s", "status": "completed"}, "a.completed", None),
        ("a.x.compensated", {"step": "x", "compensated": True}, "a", "x"),
    ],
)
def test_the_payload_says_what_the_dots_leave_open(
    event_type: str, payload: Any, saga_name: str, step: str | None
) -> None:
    """A saga's end, or one of a step; and where the saga's name ends."""
    found = classify(row(event_type, payload))
    assert isinstance(found, Told)
    assert (found.saga_name, found.step_name) == (saga_name, step)


@pytest.mark.parametrize(
    ("event_type", "payload"),
    [
        ("order.created", {"order_id": 7}),
        ("order.pay.failed", {"step": "pay", "saga_id": "s", "error": "x", "error_type": "E"}),  # publish_on_failure
        ("order.pay.compensated", {"step": "pay", "saga_id": "s", "compensated": True}),  # publish_on_compensate
        ("order.pay.success", {"step": "charge", "result": {}}),
        ("pay.success", {"step": "pay", "result": {}}),
        ("order.pay.success", {"step": "pay", "result": [1]}),
        ("order.pay.success", {"step": "", "result": {}}),
        ("order.pay.success", {"step": 7, "result": {}}),
        ("order.pay.compensated", {"step": "pay", "compensated": 1}),
        ("order.completed", {"saga_id": "another", "status": "completed"}),
        ("order.completed", {"saga_id": "s", "status": "failed"}),
        ("completed", {"saga_id": "s", "status": "completed"}),
        (".completed", {"saga_id": "s", "status": "completed"}),
        ("order.failed", {"saga_id": "s", "status": "failed", "error": None}),
        ("order.created", {}),
        ("order.created", [1, 2]),
        ("order.created", "text"),
    ],
)
def test_another_shape_is_unclassified(event_type: str, payload: Any) -> None:
    """Kept with the names of its keys, and without a value."""
    found = classify(row(event_type, payload))
    assert isinstance(found, Refused)
    assert found.is_unclassified
    assert found.reason.startswith("unclassified: ")
    kept = msgspec.json.decode(found.value)
    assert kept["event_type"] == event_type
    assert kept["payload_keys"] == (sorted(payload) if isinstance(payload, dict) else [])


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (OutboxRow("r", "s", "order.completed", "{", NOON), "payload: no JSON"),
        (OutboxRow("r", "s", "order.completed", None, NOON), "payload: no JSON"),
        (OutboxRow("r", "", "order.completed", "{}", NOON), "saga_id: got nothing"),
        (OutboxRow("r", "s", "order.completed", "{}", None), "created_at: got no moment"),
        (OutboxRow("r", "s", "order.completed", "[" * 100_000, NOON), "payload: no JSON"),
    ],
)
def test_a_row_that_is_wrong_is_invalid(wrong: OutboxRow, reason: str) -> None:
    """It is told what of it."""
    found = classify(wrong)
    assert isinstance(found, Refused)
    assert not found.is_unclassified
    assert found.reason.startswith(reason)


def test_a_saga_id_that_sagaz_did_not_know() -> None:
    """All such rows are of many sagas: none of them is made a run of."""
    [found] = events_of_saga([row(*done("pay"), saga_id="unknown")])
    assert isinstance(found, Refused)
    assert found.is_unclassified


def test_a_run_and_its_durations() -> None:
    """Each duration is the time since the row before, and marked; of the first step, and of the whole, nobody knows it."""
    events = told(
        story(done("reserve", {"card": "x", "__own": 1}), failed("charge"), undone("reserve"), end("no"), seconds=2)
    )
    assert [(e.event_type.value, e.step_name, e.sequence, e.duration_ms, e.duration_derived) for e in events] == [
        ("step_completed", "reserve", 0, None, False),
        ("step_failed", "charge", 1, 2000, True),
        ("compensation_completed", "reserve", 2, 2000, True),
        ("saga_rolled_back", None, 3, None, False),
    ]
    assert len({e.run_id for e in events}) == 1
    assert events[0].context_keys == ("card",)
    assert events[2].compensable is True
    assert [(e.error_type, e.error_message) for e in events[1::2]] == [("ValueError", "no")] * 2
    assert all(e.total_duration_ms is None for e in events)


def test_what_stands_is_left() -> None:
    """A saga that failed with a step done and not undone has something left, whether or not that had to be undone."""
    kinds = [told(rows)[-1].event_type for rows in (
        story(done("a"), failed("b"), end("no")),
        story(done("a"), undone("a"), failed("b"), end("no")),
        story(failed("b"), end("no")),
        story(done("a"), undone("a"), done("a"), failed("b"), end("no")),
    )]  # fmt: skip
    assert kinds == [
        EventType.SAGA_FAILED,
        EventType.SAGA_ROLLED_BACK,
        EventType.SAGA_ROLLED_BACK,
        EventType.SAGA_FAILED,
    ]


def test_a_saga_that_runs_again() -> None:
    """After its end begins another run; what is done twice before that is a second attempt."""
    events = told(story(done("a"), done("a"), end(), done("a"), end()))
    runs = [e.run_id for e in events]
    assert (len(set(runs[:3])), len(set(runs[3:])), len(set(runs))) == (1, 1, 2)
    assert [e.attempt for e in events] == [1, 2, 1, 1, 1]
    assert [e.sequence for e in events] == [0, 1, 2, 0, 1]
    assert events[3].duration_ms is None


def test_two_sagas_of_one_id_are_two_runs() -> None:
    """A saga that runs another one with its own context shares its id with that."""
    events = told(story(done("a"), done("x", saga="inner"), end(saga="inner"), end()))
    assert [e.sequence for e in events] == [0, 0, 1, 1]


def test_rows_of_one_moment() -> None:
    """A coarse clock gives a saga's rows one time: steps come before their undoing, and that before the end."""
    rows = [each._replace(at=NOON) for each in story(end("no"), undone("a"), failed("b"), done("a"))]
    assert [e.event_type for e in told(rows)] == [
        EventType.STEP_COMPLETED, EventType.STEP_FAILED, EventType.COMPENSATION_COMPLETED, EventType.SAGA_ROLLED_BACK,
    ]  # fmt: skip


def test_a_gap_of_weeks_is_no_duration() -> None:
    """A saga that was left for eight days and went on: no step took so long."""
    assert [e.duration_ms for e in told(story(done("a"), done("b"), seconds=8 * 86_400))] == [None, None]


names = st.sampled_from(["a", "b", "a.b", "pay", "success", "failed", "completed"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5).map(lambda text: CANARY + text),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "y", "email"]), inner, max_size=3)
    ),
    max_leaves=5,
)
results = st.dictionaries(st.sampled_from(["card", "x", "__own"]), values, max_size=3)
shaped = st.one_of(
    st.builds(lambda saga, step, result: done(step, result, saga), names, names, results),
    st.builds(failed, names, st.text(max_size=5), st.sampled_from(["ValueError", "KeyError"])),
    st.builds(undone, names),
    st.builds(lambda saga, error: end(error, saga), names, st.none() | st.text(max_size=5)),
)
strange = st.tuples(
    st.text(max_size=8) | st.builds("{}.{}.failed".format, names, names),
    values
    | st.dictionaries(st.sampled_from(["step", "result", "saga_id", "status", "error", "x"]), values, max_size=4),
)


@st.composite
def outboxes(draw: st.DrawFn) -> list[OutboxRow]:
    """Rows of one saga_id, also two of one moment, and any that a hook could write."""
    told = draw(st.lists(shaped | shaped | strange, max_size=12))
    rows = [
        row(kind, payload, draw(st.none() | st.integers(NOON, NOON + 5_000)), f"r{n}")
        for n, (kind, payload) in enumerate(told)
    ]
    broken = draw(st.lists(st.text(max_size=6), max_size=2))
    return [*rows, *(OutboxRow(f"b{n}", "s", "order.completed", text, NOON) for n, text in enumerate(broken))]


@given(outboxes(), st.randoms(use_true_random=False))
def test_any_rows(rows: list[OutboxRow], shuffle: random.Random) -> None:
    """Each row is one event or refused, whatever their order, rows that are read twice included; and all holds that must."""
    found = events_of_saga(rows)
    assert len(found) == len(rows)
    again = [*rows, *rows[:3]]
    shuffle.shuffle(again)
    assert sorted(map(repr, events_of_saga(again))) == sorted(map(repr, found))
    events = [one for one in found if isinstance(one, SagaEvent)]
    assert len({one.event_id for one in events}) == len(events)
    runs: dict[str, list[SagaEvent]] = {}
    for one in events:
        assert decode(encode(one)) == one
        assert {UUID(one.event_id).version, UUID(one.run_id).version} == {7}
        assert UUID(one.event_id).int >> 80 == one.timestamp
        assert one.duration_derived == (one.duration_ms is not None)
        runs.setdefault(one.run_id, []).append(one)
    for run in runs.values():
        assert [one.sequence for one in run] == list(range(len(run)))
        assert len({one.saga_name for one in run}) == 1
        assert all(not one.event_type.startswith("saga_") for one in run[:-1])
        assert sorted(one.timestamp for one in run) == [one.timestamp for one in run]


@given(outboxes())
def test_no_value_of_a_result_leaves(rows: list[OutboxRow]) -> None:
    """Neither into an event nor into what is kept of a row."""
    for one in events_of_saga(rows):
        kept = one.value if isinstance(one, Refused) else encode(one)
        assert CANARY.encode() not in kept


def test_a_value_is_taken_out_of_messages() -> None:
    """Of what the run's steps before it returned, and what looks like a credential."""
    secret = CANARY + "ada"
    events = told(story(done("a", {"user": secret}), failed("b", f"{secret} has password=hunter2"), end(f"{secret}!")))
    assert [e.error_message for e in events] == [None, "[redacted] has password=[redacted]", "[redacted]!"]
