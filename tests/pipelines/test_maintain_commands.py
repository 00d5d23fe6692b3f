"""`sagascope maintain`, as people use it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from tests.warehouse.planted import NOON, append, events_of, paths
from warehouse.tables import EVENTS, TABLES

if TYPE_CHECKING:
    from typer.testing import Result

    from warehouse.settings import Settings


def ask(settings: Settings, *arguments: str, **variables: str) -> Result:
    """What the command says, and its exit code."""
    return CliRunner().invoke(app, ["maintain", *arguments], env=settings.environment() | variables)


def words(text: str) -> str:
    """The text without the lines and frames that the terminal puts into it."""
    return " ".join(text.replace("│", " ").split())


@pytest.mark.flink
def test_compact(local: Settings) -> None:
    """A dry run says what would be done; then it is done, and a table says so."""
    for run in range(3):
        append(local, EVENTS, events_of(run, NOON + timedelta(minutes=run)))
    would = ask(local, "compact", "--table", "events", "--dry-run")
    assert would.exit_code == 0, would.output
    assert "compact, what would be done" in would.stdout
    assert len(paths(local, EVENTS)) == 3
    done = ask(local, "compact", "--table", "events")
    assert done.exit_code == 0, done.output
    [row] = [line.split() for line in done.stdout.splitlines() if line.startswith("events")]
    assert row[:3] == ["events", "3", "1"]
    assert len(paths(local, EVENTS)) == 1


def test_all_names_each_action_and_table(local: Settings) -> None:
    """And where nothing is to be done needs no JVM; days that are kept are said."""
    append(local, EVENTS, events_of(0, NOON))
    done = ask(local, "all", SAGASCOPE_EVENTS_KEPT_DAYS="36500")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines() if line]
    assert [line[0] for line in lines if len(line) == 1 and line[0].isalpha()] == [
        "retain",
        "compact",
        "expire",
        "orphans",
    ]
    for table in TABLES:
        assert len([line for line in lines if line[0] == table.name]) == 4
    [kept] = [line for line in lines if line[0] == "events"][:1]
    assert kept[:4] == ["events", "0", "1", "1"]
    assert len(kept) == 6, "a moment from which on it is kept"


def test_what_can_not_be_done_is_said(local: Settings) -> None:
    """Exit code 1, the table and the reason."""
    for run in range(2):
        append(local, EVENTS, events_of(run, NOON))
    paths(local, EVENTS)[0].write_bytes(b"rubbish")
    done = ask(local, "compact")
    assert done.exit_code == 1
    assert "compact events: events: files of 2026-11-20T00:00:00+00:00 can't be made one: " in words(done.stdout)


def test_bad_input(local: Settings) -> None:
    """An unknown table is named with those there are; a setting that can't be meant is refused before anything is started."""
    done = ask(local, "orphans", "--table", "event")
    assert done.exit_code == 2
    assert "'event' is no table; the tables are events, rejected_events" in words(done.output)
    refused = ask(local, "retain", SAGASCOPE_EVENTS_KEPT_DAYS="2")
    assert "SAGASCOPE_EVENTS_KEPT_DAYS=2: a run that is still open may have begun 7 days ago" in str(refused.exception)
    assert not (local.logs / "upkeep.log").exists()
