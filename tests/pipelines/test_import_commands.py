"""`sagascope import`, as people use it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from sagascope.events import encode
from tests.warehouse.imports.outboxes import add_rows, saga_rows
from tests.warehouse.imports.test_files import event
from tests.warehouse.planted import append
from tests.warehouse.planted import event as live_event
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

    from warehouse.settings import Settings


def call(settings: Settings, *arguments: str) -> Result:
    """What the command says, and its exit code."""
    return CliRunner().invoke(app, ["import", *arguments], env=settings.environment())


def words(text: str) -> str:
    """The text without the lines and frames that the terminal puts into it."""
    return " ".join(text.replace("│", " ").split())


def test_an_outbox(local: Settings, tmp_path: Path) -> None:
    """A line a day, what was left out and why, what is no event, and what to compute again; a second time nothing is to be."""
    file = tmp_path / "outbox.db"
    for day in ("2026-11-19", "2026-11-20", "2026-11-21"):
        add_rows(file, saga_rows(1, day))
    add_rows(file, [("h", "x", "order.created", '{"id": 1}', "2026-11-21T13:00:00+00:00")])
    append(local, EVENTS, [live_event(1, 0, "saga_started", datetime.now(UTC), saga_id="s1-2026-11-20")])
    done = call(local, "sagaz", str(file), "--since", "2026-11-20", "--until", "2026-11-22")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["2026-11-20", "0", "0", "3", "0", "0"] in lines
    assert ["2026-11-21", "3", "0", "0", "1", "0"] in lines
    assert ["all", "3", "0", "3", "1", "0"] in lines
    said = words(done.stdout)
    assert "known live: 3 events were left out, as the topic has told of their sagas (1, counted each day)" in said
    assert (
        "1 rows are no events and are kept in rejected_events, the first of each day: - unclassified: no event of"
        in said
    )
    assert "3 rows are of days before those asked for, and were left out" in said
    assert "python -m jobs.recompute --from 2026-11-21T00:00Z --to 2026-11-22T00:00Z" in said
    again = call(local, "sagaz", str(file), "--since", "2026-11-20")
    assert ["all", "0", "3", "3", "1", "0"] in [line.split() for line in again.stdout.splitlines()]
    assert "recompute" not in again.stdout


def test_a_dry_run(local: Settings, tmp_path: Path) -> None:
    """It says what would be, and a run after it finds nothing there."""
    path = tmp_path / "events.log"
    path.write_bytes(encode(event(1)) + b"\nnonsense\n")
    dry = call(local, "files", str(path), "--format", "jsonl", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "would be imported" in dry.stdout
    assert "1 rows are no events and would be kept in rejected_events" in words(dry.stdout)
    assert "recompute" not in dry.stdout
    real = call(local, "files", str(path), "--format", "jsonl")
    assert ["all", "1", "0", "0", "0", "1"] in [line.split() for line in real.stdout.splitlines()]


def test_a_damaged_file_is_named(local: Settings, tmp_path: Path) -> None:
    """Exit code 1, and the others are imported."""
    (tmp_path / "bad.parquet").write_bytes(b"nothing of the kind")
    (tmp_path / "good.jsonl").write_bytes(encode(event(1)))
    done = call(local, "files", str(tmp_path / "*"))
    assert done.exit_code == 1
    assert f"damaged, nothing of it is imported: {tmp_path / 'bad.parquet'}: Parquet magic bytes" in words(done.stdout)
    assert ["all", "1", "0", "0", "0", "0"] in [line.split() for line in done.stdout.splitlines()]


def test_nothing_to_import(local: Settings, tmp_path: Path) -> None:
    """An outbox without rows of these days is no error."""
    file = tmp_path / "outbox.db"
    add_rows(file, saga_rows(1, "2026-11-20"))
    done = call(local, "sagaz", str(file), "--until", "2026-11-01")
    assert done.exit_code == 0, done.output
    assert "no rows of these days: nothing to import 3 rows are of days after those asked for" in words(done.stdout)


AHEAD = datetime.now(UTC).date() + timedelta(days=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--since", str(AHEAD)], f"--since {AHEAD}T00:00:00+00:00 is not before now"),
        (["--until", str(AHEAD + timedelta(days=1))], "asks for days in the future: today is"),
        (["--since", "2026-11-21", "--until", "2026-11-20"], "is not before --until 2026-11-20T00:00:00+00:00"),
        (["--since", "soon"], "'soon' is neither a moment (2026-11-23T10:00) nor a time ago (15m, 2h, 7d)"),
    ],
)
def test_bad_days_are_named(local: Settings, arguments: list[str], told: str) -> None:
    """Exit code 2, the value, and what to write instead."""
    done = call(local, "sagaz", "outbox.db", *arguments)
    assert done.exit_code == 2
    assert told in words(done.stderr)
