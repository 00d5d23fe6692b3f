"""What became of a run: each outcome by hand, and any events against plain Python, in any order."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st
from pyiceberg.io.pyarrow import schema_to_pyarrow

from sagascope.definitions import SagaDefinition, StepDefinition
from sagascope.events import EventType, SagaEvent
from tests.warehouse.runs_oracle import run_of
from warehouse import saga_runs
from warehouse.tables import EVENTS, SAGA_DEFINITIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MIDNIGHT = datetime(2026, 11, 20, tzinfo=UTC)
START_MS = round(MIDNIGHT.timestamp() * 1000)
SECOND = timedelta(seconds=1)
STEPS = ("check", "reserve", "charge", "ship")
DEFINITION = SagaDefinition(
    saga_name="order",
    steps=(
        StepDefinition(step_name="check"),
        StepDefinition(step_name="reserve", compensable=True),
        StepDefinition(step_name="charge", pivot=True),
    ),
)


def told(*story: str, run: str = "r", **fields: Any) -> list[SagaEvent]:
    """The events of a story like `+ reserve`, each a second after the one before and lasting 100 ms.

    `>` the saga starts, `= rolled_back` it ends so; of a step: `(` starts, `+` completed, `!` failed; of its undoing:
    `[` starts, `-` completed, `?` failed.
    """
    kinds = {"(": "step_started", "+": "step_completed", "!": "step_failed"}
    kinds |= {"[": "compensation_started", "-": "compensation_completed", "?": "compensation_failed"}
    events = []
    for number, word in enumerate(story):
        mark, _, name = word.partition(" ")
        kind = EventType({">": "saga_started", "=": f"saga_{name}"}.get(mark) or kinds[mark])
        values: dict[str, Any] = {"event_type": kind, "sequence": number, "timestamp": START_MS + number * 1_000}
        if mark in "+!-?":
            values["duration_ms"] = 100
        if mark in "!?":
            values |= {"error_type": "Oops", "error_message": f"{name} broke"}
        if mark not in ">=":
            values["step_name"] = name
        identity = {"event_id": f"{run}-{number}", "saga_id": f"s-{run}", "saga_name": "order", "run_id": run}
        events.append(SagaEvent(**(identity | values | fields)))
    return events


@contextmanager
def opened(
    events: Iterable[SagaEvent], *definitions: SagaDefinition, **bounds: datetime
) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB with the views of runs over those events, stored in their order, as of a day later unless said."""
    rows = []
    for offset, one in enumerate(events):
        moment = MIDNIGHT + timedelta(milliseconds=one.timestamp - START_MS)
        source = {"source_topic": "t", "source_partition": 0, "source_offset": offset}
        rows.append(msgspec.structs.asdict(one) | {"timestamp": moment, "event_type": str(one.event_type)} | source)
    defined = [
        {
            "definition_id": one.definition_id,
            "saga_name": one.saga_name,
            "steps": msgspec.json.encode(one.steps).decode(),
            "first_seen": MIDNIGHT,
        }
        for one in definitions
    ]
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for table, its in ((EVENTS, rows), (SAGA_DEFINITIONS, defined)):
            schema = schema_to_pyarrow(table.schema, include_field_ids=False)
            connection.register(table.name, pa.Table.from_pylist(its, schema=schema))
        until = bounds.pop("until", MIDNIGHT + timedelta(days=1))
        for statement in saga_runs.views("events", "saga_definitions", bounds.get("since"), until).values():
            connection.execute(statement)
        yield connection


def rows_of(connection: duckdb.DuckDBPyConnection, view: str) -> list[dict[str, Any]]:
    """All rows of a view, by column."""
    answer = connection.sql(f"SELECT * FROM {view} ORDER BY ALL")
    return [dict(zip(answer.columns, row, strict=True)) for row in answer.fetchall()]


@pytest.mark.parametrize(
    ("story", "outcome", "residual"),
    [
        ("> |+ check|+ reserve|+ charge|= completed", "completed", {}),
        ("> |( reserve|! reserve|= rolled_back", "failed_nothing_to_undo", {}),
        ("> |+ check|! reserve|= rolled_back", "failed_nothing_to_undo", {"check": "not_compensable"}),
        ("> |+ reserve|! charge|[ reserve|- reserve|= rolled_back", "rolled_back", {}),
        (
            "> |+ check|+ reserve|! charge|[ reserve|- reserve|= rolled_back",
            "rolled_back",
            {"check": "not_compensable"},
        ),
        ("> |+ reserve|! charge|= failed", "rolled_back_partial", {"reserve": "not_compensated"}),
        (
            "> |+ reserve|! charge|[ reserve|? reserve|= failed",
            "compensation_failed",
            {"reserve": "compensation_failed"},
        ),
        ("> |+ reserve|! charge|[ reserve|= failed", "compensation_failed", {"reserve": "compensation_unfinished"}),
        ("> |+ reserve|! charge|[ reserve|? reserve|[ reserve|- reserve|= rolled_back", "rolled_back", {}),
        (
            "> |+ reserve|+ charge|! ship|= failed",
            "partially_committed",
            {"reserve": "pivot_completed", "charge": "pivot"},
        ),
        ("> |+ pack|! ship|= failed", "rolled_back_partial", {"pack": "unknown"}),
        ("> |+ pack|! ship|= rolled_back", "failed_nothing_to_undo", {"pack": "unknown"}),
        ("> |+ reserve|- reserve|+ reserve|! charge|= failed", "rolled_back_partial", {"reserve": "not_compensated"}),
    ],
)
def test_each_outcome_and_what_is_left(story: str, outcome: str, residual: dict[str, str]) -> None:
    """The outcome says what became of all that had to be undone; each effect that stands is named with its reason."""
    events = told(*story.split("|"), definition_id=DEFINITION.definition_id)
    with opened(events, DEFINITION) as duck:
        [row] = rows_of(duck, "saga_runs")
    assert row["outcome"] == outcome
    assert {one["step_name"]: one["reason"] for one in row["residual_effects"]} == residual


def test_what_an_event_says_of_its_step_goes_before_the_definition() -> None:
    """The definition fills in only what the events are silent about."""
    story = ("> ", "+ reserve", "! charge", "= failed")
    events = told(*story, definition_id=DEFINITION.definition_id, compensable=False)
    with opened(events, DEFINITION) as duck:
        [row] = rows_of(duck, "saga_runs")
    assert row["residual_effects"] == [{"step_name": "reserve", "reason": "not_compensable"}]


def test_a_row_has_all_figures_of_its_run() -> None:
    """Times, names and errors are those of the events; wasted is the work later undone plus the undoing, failed or not."""
    story = (
        "> ",
        "+ check",
        "+ reserve",
        "! charge",
        "[ reserve",
        "? reserve",
        "[ reserve",
        "- reserve",
        "= rolled_back",
    )
    events = told(*story, attributes={"tenant": "acme"})
    with opened(events) as duck:
        [row] = rows_of(duck, "saga_runs")
    assert row == {
        "run_id": "r",
        "saga_id": "s-r",
        "saga_name": "order",
        "outcome": "rolled_back",
        "started_at": MIDNIGHT,
        "ended_at": MIDNIGHT + 8 * SECOND,
        "total_ms": 8_000,
        "total_derived": True,
        "failing_step": "charge",
        "error_type": "Oops",
        "error_message": "charge broke",
        "steps_done": ["check", "reserve"],
        "steps_undone": ["reserve"],
        "residual_effects": [{"step_name": "check", "reason": "unknown"}],
        "wasted_ms": 300,
        "attributes": {"tenant": "acme"},
        "definition_id": None,
    }


def test_a_failure_that_was_overcome_is_no_failing_step() -> None:
    """A step that failed and then succeeded did not fail the saga; the one that failed first for good did."""
    with opened(told("> ", "! reserve", "+ reserve", "! charge", "! ship", "= rolled_back")) as duck:
        [row] = rows_of(duck, "saga_runs")
    assert (row["failing_step"], row["error_message"]) == ("charge", "charge broke")
    with opened(told("> ", "! reserve", "+ reserve", "= completed")) as duck:
        [row] = rows_of(duck, "saga_runs")
    assert (row["failing_step"], row["error_type"], row["error_message"]) == (None, None, None)


def test_what_is_not_known_is_null() -> None:
    """No duration is made up: neither of a run whose start is missing nor of work that nobody timed."""
    events = told("+ reserve", "- reserve", "= rolled_back", duration_ms=None)
    with opened(events) as duck:
        [row] = rows_of(duck, "saga_runs")
        steps = rows_of(duck, "step_runs")
    assert (row["total_ms"], row["total_derived"], row["wasted_ms"]) == (None, False, None)
    assert [(step["duration_ms"], step["duration_derived"]) for step in steps] == [(None, False)] * 2


@st.composite
def runs(draw: st.DrawFn) -> list[SagaEvent]:
    """Any events of one run, likely and unlikely ones, also with places claimed twice."""
    number = draw(st.integers(1, 14))
    events = []
    for place in range(number):
        kind = draw(st.sampled_from(list(EventType)))
        about_step = not kind.startswith("saga_")
        failed = kind.endswith("_failed") and draw(st.booleans())
        events.append(
            SagaEvent(
                event_id=f"e{place}",
                event_type=kind,
                saga_id="s",
                saga_name="order",
                run_id="r",
                sequence=draw(st.integers(0, number)),
                timestamp=START_MS + draw(st.integers(0, 5_000)),
                step_name=draw(st.sampled_from(STEPS)) if about_step else draw(st.sampled_from([None, "check"])),
                compensable=draw(st.sampled_from([None, None, True, False])),
                pivot=draw(st.sampled_from([None, None, None, True, False])),
                duration_ms=draw(st.none() | st.integers(0, 500)) if about_step else None,
                total_duration_ms=draw(st.none() | st.integers(0, 5_000)),
                error_type="Oops" if failed else None,
                error_message=f"failed at {place}" if failed else None,
                attributes=draw(st.sampled_from([{}, {"tenant": "a"}, {"tenant": "b"}])),
                definition_id=DEFINITION.definition_id,
            )
        )
    return events


@tried(deadline=None, max_examples=50)
@given(events=runs(), data=st.data())
def test_any_order_and_any_duplicates_give_the_row_of_plain_python(
    events: list[SagaEvent], data: st.DataObject
) -> None:
    """A run's row is a pure function of the set of its events and its definition."""
    again = data.draw(st.lists(st.sampled_from(events), max_size=5))
    shuffled = data.draw(st.permutations(events + again))
    with opened(events, DEFINITION) as duck:
        [row] = rows_of(duck, "runs")
    with opened(shuffled, DEFINITION) as duck:
        assert rows_of(duck, "runs") == [row]
    expected = run_of(shuffled, DEFINITION)
    assert {name: row[name] for name in expected} == expected


def test_runs_are_told_apart() -> None:
    """A saga that ran twice has two rows, and an ended run is in `saga_runs` as an open one is in `open_runs`."""
    events = told("> ", "+ reserve", run="a", saga_id="s") + told("> ", "= completed", run="b", saga_id="s")
    with opened(events) as duck:
        assert [row["run_id"] for row in rows_of(duck, "saga_runs")] == ["b"]
        [row] = rows_of(duck, "open_runs")
    assert (row["run_id"], row["last_event_type"], row["last_step"]) == ("a", "step_completed", "reserve")
    assert (row["age_ms"], row["silent_ms"]) == (86_400_000, 86_399_000)


def test_a_run_is_abandoned_by_age() -> None:
    """The age counts from the newest event to the end of what was asked for; it is the reader's to choose."""
    events = told("> ", run="old") + told("> ", run="new", timestamp=START_MS + 3_600_000)
    with opened(events, until=MIDNIGHT + timedelta(hours=2)) as duck:
        assert [row["run_id"] for row in rows_of(duck, "abandoned_runs(age := INTERVAL 90 MINUTE)")] == ["old"]
        assert len(rows_of(duck, "abandoned_runs(age := INTERVAL 30 MINUTE)")) == 2
        assert rows_of(duck, "abandoned_runs()") == []


def test_bounds_are_of_a_runs_end() -> None:
    """A run that ended within them is told whole although it began before; one that ended before them is not."""
    events = told("> ", "+ reserve", "= completed", run="a") + told("> ", "= completed", run="b")
    with opened(events, since=MIDNIGHT + 2 * SECOND) as duck:
        [row] = rows_of(duck, "saga_runs")
    assert (row["run_id"], row["started_at"], row["steps_done"]) == ("a", MIDNIGHT, ["reserve"])


def test_each_execution_has_a_row() -> None:
    """Each attempt of a step and its undoing apart, with status, times and error; a duration is derived where none is told."""
    story = told("> ", "( reserve", "! reserve", "( reserve", "+ reserve", "[ reserve", "- reserve")
    events = story[:3] + [msgspec.structs.replace(one, attempt=2, duration_ms=None) for one in story[3:]]
    with opened(events) as duck:
        rows = rows_of(duck, "step_runs")
    got = sorted(
        (row["sequence"], row["phase"], row["attempt"], row["status"], row["duration_ms"], row["duration_derived"])
        for row in rows
    )
    assert got == [
        (1, "step", 1, "failed", 100, False),
        (3, "step", 2, "completed", 1_000, True),
        (5, "compensation", 2, "completed", 1_000, True),
    ]
    failed = next(row for row in rows if row["status"] == "failed")
    assert (failed["started_at"], failed["ended_at"]) == (MIDNIGHT + SECOND, MIDNIGHT + 2 * SECOND)
    assert failed["error_message"] == "reserve broke"
