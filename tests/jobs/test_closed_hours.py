"""How far each table may be computed again, on tables that no stream has written and on some that one has."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from jobs.closed_hours import CanNotRecomputeError, closed_bounds
from tests.warehouse.planted import append, events_of
from warehouse.catalog import open_catalog
from warehouse.settings import Settings
from warehouse.tables import COMPUTED, EVENTS, SAGA_RUNS, SAGA_STATS, STEP_DURATIONS, STEP_STATS

if TYPE_CHECKING:
    from pathlib import Path

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOW = NOON + 5 * HOUR + timedelta(minutes=20)


@pytest.fixture
def imported(tmp_path: Path) -> Settings:
    """A lake whose events came through no topic."""
    settings = Settings(home=str(tmp_path / "home"))
    append(settings, EVENTS, [row | {"source_topic": "import:files"} for row in events_of(0, NOON)])
    return settings


def streamed(settings: Settings, until: datetime) -> None:
    """Have a stream write an event, and close its windows up to a moment."""
    append(settings, EVENTS, [row | {"source_topic": settings.topic} for row in events_of(1, NOON + HOUR)])
    width = timedelta(seconds=10)
    row = {"window_start": until - width, "window_end": until, "saga_name": "order", "started": 1}
    counts = dict.fromkeys(("completed", "rolled_back", "failed"), 0)
    append(settings, SAGA_STATS, [row | counts])


def bounds(settings: Settings, since: datetime, until: datetime | None, *, clip: bool = False) -> dict[str, datetime]:
    """What is allowed, by the table's name."""
    with closing(open_catalog(settings)) as catalog:
        found = closed_bounds(settings, catalog, COMPUTED, since, until, clip=clip, now=NOW)
    return {table.name: bound for table, bound in found.items()}


def test_without_a_stream_hours_that_are_over_are_closed(imported: Settings) -> None:
    """Nobody will write windows of imported events but a recompute: up to the last whole hour all of it is closed."""
    assert set(bounds(imported, NOON, NOON + 5 * HOUR).values()) == {NOON + 5 * HOUR}
    assert set(bounds(imported, NOON, None).values()) == {NOON + 5 * HOUR}
    with pytest.raises(CanNotRecomputeError, match=r"hour from 2026-03-01T17:00:00\+00:00 on.*up to 2026-03-01T17:00"):
        bounds(imported, NOON, NOON + 6 * HOUR)


def test_with_a_stream_its_watermark_decides(imported: Settings) -> None:
    """Each table as far as its own windows are closed, runs as far as all of them are."""
    closed = NOON + HOUR + timedelta(seconds=90)
    streamed(imported, closed)
    whole_minutes = NOON + HOUR + timedelta(seconds=60)
    assert bounds(imported, NOON, None) == {
        STEP_STATS.name: closed,
        SAGA_STATS.name: closed,
        STEP_DURATIONS.name: whole_minutes,
        SAGA_RUNS.name: whole_minutes,
    }
    with pytest.raises(CanNotRecomputeError, match="windows are closed up to 2026-03-01T13:01:30"):
        bounds(imported, NOON, NOON + 2 * HOUR)


def test_clipped_it_does_what_is_closed(imported: Settings) -> None:
    """To the end of a day that is not over yet, and not a moment farther; what begins behind the bound is refused."""
    streamed(imported, NOON + 2 * HOUR)
    midnight = NOON.replace(hour=0)
    assert set(bounds(imported, midnight, midnight + DAY, clip=True).values()) == {NOON + 2 * HOUR}
    assert set(bounds(imported, midnight, NOON + HOUR, clip=True).values()) == {NOON + HOUR}
    with pytest.raises(CanNotRecomputeError, match=r"hour from 2026-03-02T00:00:00\+00:00 on"):
        bounds(imported, midnight + DAY, midnight + 2 * DAY, clip=True)


@pytest.mark.parametrize(
    ("since", "until", "why"),
    [
        (NOON, NOON, "is not before --to"),
        (NOON + HOUR, NOON, "is not before --to"),
        (
            NOON + timedelta(minutes=1),
            None,
            "--from 2026-03-01T12:01:00.00:00 is no whole hour: write it as 2026-03-01T12:00",
        ),
        (NOON, NOON + timedelta(seconds=1), "--to .* is no whole hour"),
        (NOON - 9 * DAY, NOON - 8 * DAY, r"no event before 2026-02-21T12.*the first is of 2026-03-01T12:00"),
        (NOON + 9 * DAY, NOON + 10 * DAY, r"hour from 2026-03-11T11:00.* on is not behind"),
    ],
)
def test_what_is_refused(imported: Settings, since: datetime, until: datetime | None, why: str) -> None:
    """Each is named, with what is allowed."""
    with pytest.raises(CanNotRecomputeError, match=why):
        bounds(imported, since, until)


def test_an_empty_lake_has_nothing_to_compute(tmp_path: Path) -> None:
    """Without an event there is nothing, and no JVM is needed to say so."""
    with pytest.raises(CanNotRecomputeError, match="events is empty"):
        bounds(Settings(home=str(tmp_path)), NOON, NOON + HOUR)
