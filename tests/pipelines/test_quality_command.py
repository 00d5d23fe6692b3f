"""`sagascope quality`, as people and scripts use it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from tests.warehouse.planted import DAY, NOON, append, events_of, fill, put, tamper
from warehouse.tables import EVENTS, TABLES

if TYPE_CHECKING:
    from typer.testing import Result

    from warehouse.settings import Settings


def ask(settings: Settings, *arguments: str) -> Result:
    """What the command says, and its exit code."""
    return CliRunner().invoke(app, ["quality", *arguments], env=settings.environment())


def words(text: str) -> str:
    """The text without the lines and frames that the terminal puts into it."""
    return " ".join(text.replace("│", " ").split())


def test_sound_tables(local: Settings) -> None:
    """Exit code 0, and a line for each table with its rows."""
    fill(local)
    done = ask(local, "--day", str(DAY))
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines() if str(DAY) in line]
    assert [line[0] for line in lines] == [table.name for table in TABLES]
    assert {line[-1] for line in lines} == {"passed"}
    assert lines[0] == ["events", str(DAY), "12", "22", "0", "0", "passed"]


def test_an_error_is_told_with_its_row(local: Settings) -> None:
    """Exit code 1, the rule, what it promises, and the row that breaks it."""
    fill(local)
    tamper(local, EVENTS, put(2, duration_ms=-5))
    done = ask(local, "--day", str(DAY), "--table", "events")
    assert done.exit_code == 1
    said = words(done.stdout)
    assert "error: events 2026-11-20: durations_not_negative" in said
    assert "Not so of 1: - event_id e0-2, timestamp 2026-11-20 12:00:02+00: duration_ms is -5" in said


def test_a_warning_alone_is_no_failure(local: Settings) -> None:
    """A rule of severity warn is told, and the exit code stays 0."""
    fill(local)
    tamper(local, EVENTS, lambda rows: rows.pop(0))
    done = ask(local, "--day", str(DAY), "--table", "events")
    assert done.exit_code == 0, done.output
    assert "warn: events 2026-11-20: run_has_start" in done.stdout


def test_json_has_every_finding(local: Settings) -> None:
    """One object a line, passed ones too; nothing else on standard output, also where a site is built."""
    fill(local)
    tamper(local, EVENTS, put(1, saga_name=None))
    done = ask(local, "--day", str(DAY), "--table", "events", "--format", "json", "--docs")
    assert done.exit_code == 1
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(findings) == 22
    [broken] = [one for one in findings if not one["passed"]]
    assert (broken["rule"], broken["severity"], broken["day"]) == ("saga_name_not_null", "error", str(DAY))
    assert broken["sample"] == [
        {"key": {"event_id": "e0-1", "timestamp": "2026-11-20 12:00:01+00"}, "what": "saga_name is NULL"}
    ]
    assert (local.data_docs / "index.html").as_uri() in done.stderr
    assert (local.data_docs / "index.html").is_file()


def test_a_range_is_its_days_that_have_rows(local: Settings) -> None:
    """Of [since, until) each day that any of the tables has rows of; a day that begins at `until` is not of it."""
    for days in (0, 2, 4):
        append(local, EVENTS, events_of(days, NOON + timedelta(days=days)))
    span = ("--since", "2026-11-20T13:00", "--until", "2026-11-24", "--table", "events")
    done = ask(local, *span)
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("events ")] == [
        "2026-11-20",
        "2026-11-22",
    ]
    nothing = ask(local, "--since", "2026-11-01", "--until", "2026-11-20", "--table", "events")
    assert (nothing.exit_code, nothing.stdout) == (
        0,
        "no rows from 2026-11-01 to 2026-11-19: nothing to judge\n",
    )


TOMORROW = datetime.now(UTC).date() + timedelta(days=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--day", "soon"], "'soon' is no day; write it as 2026-11-23, today or yesterday"),
        (["--day", str(TOMORROW)], f"--day {TOMORROW} is in the future: today is"),
        (["--since", str(TOMORROW), "--until", "2200-01-01"], "is in the future"),
        (["--since", "2026-11-21", "--until", "2026-11-20"], "is not before --until 2026-11-20T00:00:00+00:00"),
        (["--day", "today", "--since", "1h"], "give the one or the other"),
        (["--table", "sagas"], "'sagas' is no table; the tables are events, rejected_events, step_stats"),
    ],
)
def test_bad_input_is_named(local: Settings, arguments: list[str], told: str) -> None:
    """Exit code 2, the value, and what to write instead."""
    done = ask(local, *arguments)
    assert done.exit_code == 2
    assert told in words(done.stderr)


def test_no_table_yet(local: Settings) -> None:
    """A home in which nothing was ever stored is no error: each table has no rows."""
    done = ask(local)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("no rows") == len(TABLES)
