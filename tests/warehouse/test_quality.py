"""Tables that are as they should be, and each kind of fault planted in them."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.warehouse.planted import DAY, NOON, Rows, append, copy, event, events_of, fill, paths, put, tamper
from warehouse import quality
from warehouse.rules import LONGEST, Severity, rules
from warehouse.tables import (
    EVENTS,
    REJECTED_EVENTS,
    SAGA_DEFINITIONS,
    SAGA_RUNS,
    SAGA_STATS,
    STEP_DURATIONS,
    STEP_STATS,
    TABLES,
    Table,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from warehouse.quality import Finding
    from warehouse.settings import Settings

TOO_LONG = LONGEST // timedelta(milliseconds=1) + 1


def broken(lake: Settings, table: Table, day: date = DAY) -> dict[str, Finding]:
    """The rules that do not hold, by name."""
    return {finding.rule: finding for finding in quality.check(lake, table, day) if not finding.passed}


class Fault(NamedTuple):
    """What is planted where, and what must be told of it."""

    table: Table
    change: Callable[[Rows], object]
    rule: str
    key: dict[str, str]
    what: str
    severity: Severity = Severity.ERROR
    also: frozenset[str] = frozenset()
    """Other rules that it breaks."""


RUN = {"run_id": "r0", "saga_id": "s0", "saga_name": "order"}
DIFFERS = frozenset({"equals_events"})


def at(row: int) -> dict[str, str]:
    """What the first saga's event of that sequence is shown by."""
    return {"event_id": f"e0-{row}", "timestamp": f"2026-11-20 12:00:0{row}+00"}


FAULTS = {
    "a doubled event": Fault(EVENTS, copy(0), "key_unique", {"event_id": "e0-0"}, "2 rows"),
    "a null": Fault(EVENTS, put(1, saga_name=None), "saga_name_not_null", at(1), "saga_name is NULL"),
    "a null key": Fault(
        EVENTS,
        put(1, event_id=None),
        "event_id_not_null",
        at(1) | {"event_id": "NULL"},
        "event_id is NULL",
    ),
    "an unknown event type": Fault(
        EVENTS, put(1, event_type="step_lost"), "event_type_known", at(1), "event_type is step_lost"
    ),
    "a negative duration": Fault(EVENTS, put(2, duration_ms=-5), "durations_not_negative", at(2), "duration_ms is -5"),
    "a negative total": Fault(
        EVENTS, put(3, total_duration_ms=-1), "durations_not_negative", at(3), "total_duration_ms is -1"
    ),
    "a duration of more than a week": Fault(
        EVENTS,
        put(2, duration_ms=TOO_LONG),
        "durations_below_bound",
        at(2),
        f"duration_ms is {TOO_LONG}",
        Severity.WARN,
    ),
    "a negative sequence": Fault(EVENTS, put(1, sequence=-1), "counts_not_negative", at(1), "sequence is -1"),
    "two starts": Fault(EVENTS, copy(0, event_id="other"), "run_starts_once", RUN, "2 starts"),
    "two ends": Fault(EVENTS, copy(3, event_id="other", event_type="saga_failed"), "run_ends_once", RUN, "2 ends"),
    "no start": Fault(EVENTS, lambda rows: rows.pop(0), "run_has_start", RUN, "no start", Severity.WARN),
    "an event of the next day": Fault(
        EVENTS,
        put(1, timestamp=NOON + timedelta(days=1)),
        "timestamp_in_partition",
        {"event_id": "e0-1", "timestamp": "2026-11-21 12:00:00+00"},
        "timestamp is 2026-11-21 12:00:00+00, the partition is 2026-11-20 00:00:00+00",
    ),
    "a step without a name": Fault(
        EVENTS, put(2, step_name=""), "step_named", at(2), "step_completed without step_name"
    ),
    "an error without a message": Fault(
        EVENTS,
        put(2, error_type="OSError", error_message=" "),
        "error_told",
        at(2),
        "OSError without error_message",
        Severity.WARN,
    ),
    "a count that differs": Fault(
        SAGA_STATS,
        put(0, started=2),
        "equals_events",
        {"window_start": "2026-11-20 12:00:00+00:00", "names": "order"},
        "differs in started; counts 3 of 2 events",
    ),
    "a window that is lost": Fault(
        STEP_STATS,
        lambda rows: rows.clear(),
        "equals_events",
        {"window_start": "2026-11-20 12:00:00+00:00", "names": "order pay step"},
        "no row; counts 0 of 1 events",
    ),
    "a phase that is none": Fault(
        STEP_STATS,
        put(0, phase="undo"),
        "phase_known",
        {
            "window_start": "2026-11-20 12:00:00+00",
            "saga_name": "order",
            "step_name": "pay",
            "phase": "undo",
        },
        "phase is undo",
        also=DIFFERS,
    ),
    "a window in the partition of another hour": Fault(
        STEP_DURATIONS,
        put(0, window_start=NOON + timedelta(hours=5)),
        "window_start_in_partition",
        {
            "window_start": "2026-11-20 17:00:00+00",
            "saga_name": "order",
            "step_name": "pay",
            "phase": "step",
            "bucket": "346",
        },
        "window_start is 2026-11-20 17:00:00+00, the partition is 2026-11-20 12:00:00+00",
        also=DIFFERS,
    ),
    "a rejected record that is stored twice": Fault(
        REJECTED_EVENTS,
        copy(0),
        "key_unique",
        {"source_topic": "t", "source_partition": "0", "source_offset": "7"},
        "2 rows",
    ),
    "a run that is not as its events say": Fault(
        SAGA_RUNS,
        put(0, wasted_ms=77),
        "equals_events",
        {"run_id": "r0"},
        "differs in wasted_ms",
    ),
    "a run that is lost": Fault(SAGA_RUNS, lambda rows: rows.pop(0), "equals_events", {"run_id": "r0"}, "no row"),
    "an outcome that is none": Fault(
        SAGA_RUNS,
        put(0, outcome="won"),
        "outcome_known",
        {"run_id": "r0", "ended_at": "2026-11-20 12:00:03+00"},
        "outcome is won",
        also=DIFFERS,
    ),
    "steps that are no list": Fault(
        SAGA_DEFINITIONS,
        put(0, steps="pay"),
        "steps_are_json",
        {"definition_id": "d", "first_seen": "2026-11-20 12:00:00+00"},
        "steps is pay",
    ),
}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_what_is_as_it_should_be_breaks_no_rule(lake: Settings, table: Table) -> None:
    """A sound table passes each of its rules, and each is told of once, in order."""
    fill(lake)
    findings = quality.check(lake, table, DAY)
    assert [one.rule for one in findings] == [rule.name for rule in rules(table)]
    assert len({one.rule for one in findings}) == len(findings)
    assert {(one.rule, one.failing, one.sample) for one in findings if not one.passed} == set()
    assert all(one.rows for one in findings)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_each_fault_is_found(lake: Settings, fault: Fault) -> None:
    """A planted fault breaks its rule, with its severity, is shown with the row's key, and breaks no other rule."""
    fill(lake)
    first_of_day = next(
        number
        for number, path in enumerate(paths(lake, fault.table))
        if "2026-11-20-12" in str(path) or fault.table.granularity == "day"
    )
    tamper(lake, fault.table, fault.change, first_of_day)
    found = broken(lake, fault.table)
    assert found.keys() == {fault.rule} | fault.also
    finding = found[fault.rule]
    assert (finding.failing, finding.severity) == (1, fault.severity)
    assert [(row.key, row.what) for row in finding.sample] == [(fault.key, fault.what)]
    assert finding.is_error is (fault.severity is Severity.ERROR)


def test_a_day_without_rows_breaks_no_rule(lake: Settings) -> None:
    """Nothing is wrong with nothing: all pass, and the number of rows says that there are none."""
    fill(lake)
    for table in TABLES:
        findings = quality.check(lake, table, DAY + timedelta(days=1))
        assert {(one.passed, one.rows) for one in findings} == {(True, 0)}, table.name


def test_a_run_over_midnight_has_its_start_the_day_before(lake: Settings) -> None:
    """A run is judged with its events of the days before: its start counts, and so does a second one."""
    midnight = datetime.combine(DAY, datetime.min.time(), NOON.tzinfo)
    append(lake, EVENTS, events_of(0, midnight - timedelta(seconds=1)))
    assert broken(lake, EVENTS) == {}
    append(lake, EVENTS, [event(0, 9, "saga_started", midnight + timedelta(seconds=9))])
    assert broken(lake, EVENTS).keys() == {"run_starts_once"}
    assert broken(lake, EVENTS, DAY - timedelta(days=1)) == {}


def test_all_that_fail_are_counted_and_few_are_shown(lake: Settings) -> None:
    """The count is whole; the rows shown are the first by their key."""
    fill(lake)

    def change(rows: Rows) -> None:
        for row in rows:
            row["attempt"] = -1

    tamper(lake, EVENTS, change)
    finding = broken(lake, EVENTS)["counts_not_negative"]
    assert (finding.failing, finding.rows) == (12, 12)
    assert [row.key["event_id"] for row in finding.sample] == ["e0-0", "e0-1", "e0-2", "e0-3", "e1-0"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\x1b[2Jb\nc\u202e", "a\\x1b[2Jb\\nc\\u202e"),
        ("x" * 1_000_000, "x" * 186 + "… (1,000,014 characters)"),  # with "event_type is " before it
    ],
    ids=["what a terminal obeys", "a megabyte"],
)
def test_values_of_rows_are_printed_harmlessly(lake: Settings, value: str, shown: str) -> None:
    """What a terminal would obey is written out, and a long value is cut: anybody may send events."""
    fill(lake)
    tamper(lake, EVENTS, put(1, event_type=value))
    [row] = broken(lake, EVENTS)["event_type_known"].sample
    assert row.what == f"event_type is {shown}"


@pytest.mark.parametrize("damage", ["cut", "gone", "overwritten"])
def test_a_damaged_file_is_named_and_the_rest_is_judged(lake: Settings, damage: str) -> None:
    """A file that can't be read breaks a rule of its own; a fault in the day's other file is found all the same."""
    append(lake, EVENTS, events_of(0, NOON))
    first = set(paths(lake, EVENTS))
    append(lake, EVENTS, events_of(1, NOON))
    [damaged] = first
    other = paths(lake, EVENTS).index(next(iter(set(paths(lake, EVENTS)) - first)))
    tamper(lake, EVENTS, put(2, duration_ms=-5), other)
    match damage:
        case "cut":
            damaged.write_bytes(damaged.read_bytes()[:-100])
        case "gone":
            damaged.unlink()
        case _:
            whole = damaged.read_bytes()
            damaged.write_bytes(whole[:4] + b"\xff" * (len(whole) // 2) + whole[4 + len(whole) // 2 :])
    found = broken(lake, EVENTS)
    assert found.keys() == {"files_readable", "durations_not_negative"}
    assert [row.key for row in found["files_readable"].sample] == [{"file": str(damaged)}]
    assert found["files_readable"].rows == 4


def test_a_damaged_file_of_another_day_is_no_matter_of_this_one(lake: Settings) -> None:
    """A day whose own files are sound is judged by them: also its statistics, against its own events."""
    fill(lake)
    append(lake, EVENTS, events_of(7, NOON - timedelta(days=3)))
    damaged = next(path for path in paths(lake, EVENTS) if "2026-11-17" in str(path))
    damaged.write_bytes(b"no Parquet")
    for table in TABLES:
        if table is not SAGA_RUNS:
            assert broken(lake, table) == {}, table.name
    assert broken(lake, EVENTS, DAY - timedelta(days=3)).keys() == {"files_readable"}
    runs = broken(lake, SAGA_RUNS)
    assert runs.keys() == DIFFERS  # a run that ended on the day may have begun on the other one
    assert damaged.name in runs["equals_events"].sample[0].what


def test_damaged_events_leave_the_statistics_undecided(lake: Settings) -> None:
    """A statistic whose events can't be read is not said to equal them: the rule is broken, and the file is named."""
    fill(lake)
    [damaged] = paths(lake, EVENTS)
    damaged.write_bytes(b"no Parquet")
    found = broken(lake, STEP_STATS)
    assert found.keys() == {"equals_events"}
    [row] = found["equals_events"].sample
    assert "can't be compared" in row.what
    assert str(damaged) in row.what


def test_the_days_that_have_rows(lake: Settings) -> None:
    """Each day with a partition in one of the tables is named once, in order."""
    assert quality.days_with_rows(lake) == []
    fill(lake)
    append(lake, EVENTS, events_of(7, NOON + timedelta(days=2)))
    assert quality.days_with_rows(lake) == [DAY, DAY + timedelta(days=2)]
    assert quality.days_with_rows(lake, [SAGA_STATS]) == [DAY]
