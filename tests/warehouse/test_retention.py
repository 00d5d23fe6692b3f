"""Rows that are older than they are kept: whole days go, and nobody calls them lost."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.warehouse.planted import NOON, append, event, fill
from warehouse import history, retention, windows
from warehouse.catalog import open_catalog
from warehouse.retention import delete, find, kept_since
from warehouse.settings import InvalidSettingError, Settings
from warehouse.tables import EVENTS, REJECTED_EVENTS, SAGA_DEFINITIONS, STATISTICS, STEP_STATS, TABLES

if TYPE_CHECKING:
    from warehouse.tables import Table

NOW = NOON + timedelta(days=20)
MIDNIGHT = datetime(2026, 12, 3, tzinfo=UTC)
"""The first moment that is kept, of seven days before today."""


def keep(settings: Settings, **days: int) -> Settings:
    """The settings with so many days."""
    return msgspec.structs.replace(settings, **days)


def apply(settings: Settings, *tables: Table) -> None:
    """Delete what is too old."""
    with closing(open_catalog(settings)) as catalog:
        for table in tables or TABLES:
            if old := find(settings, catalog, table, NOW):
                delete(settings, catalog, table, old)


def count(settings: Settings, table: Table) -> int:
    """Rows of a table."""
    with history.open(settings) as tables:
        [(rows,)] = tables.sql(f"SELECT count(*) FROM {table.name}").fetchall()
        return int(rows)


def test_days_that_are_too_old_go_whole(lake: Settings) -> None:
    """The day that is just old enough to be kept stays from its first moment on; one commit, and no file is written anew."""
    settings = keep(lake, events_kept_days=7)
    times = (NOON, NOON + timedelta(hours=1), MIDNIGHT - timedelta(milliseconds=1), MIDNIGHT, NOW)
    append(settings, EVENTS, [event(run, 0, "saga_started", at) for run, at in enumerate(times)])
    with closing(open_catalog(settings)) as catalog:
        old = find(settings, catalog, EVENTS, NOW)
        assert old is not None
        assert (old.before, old.rows, old.files) == (MIDNIGHT, 3, 2)
        assert count(settings, EVENTS) == 5
        delete(settings, catalog, EVENTS, old)
        [snapshot] = catalog.load_table(EVENTS.identifier).snapshots()[1:]
        assert snapshot.summary is not None
        assert snapshot.summary["added-data-files"] is None
        assert kept_since(catalog, [EVENTS]) == MIDNIGHT
        assert kept_since(catalog, [STEP_STATS]) is None
    with history.open(settings) as tables:
        left = tables.sql('SELECT epoch_ms("timestamp") FROM events ORDER BY 1').fetchall()
    assert left == [(round(at.timestamp() * 1000),) for at in (MIDNIGHT, NOW)]


def test_by_default_all_is_kept(lake: Settings) -> None:
    """0 is all; and definitions are kept whatever the settings say."""
    fill(lake)
    apply(lake)
    settings = keep(lake, events_kept_days=7, rejected_events_kept_days=1, statistics_kept_days=1)
    before = {table: count(settings, table) for table in TABLES}
    assert all(before.values())
    apply(settings)
    assert {table: count(settings, table) for table in TABLES} == dict.fromkeys(TABLES, 0) | {SAGA_DEFINITIONS: 1}


def test_statistics_may_outlive_their_events(lake: Settings) -> None:
    """They stay as they are, and nobody calls them wrong for want of events; nor events without their statistics."""
    fill(lake)
    settings = keep(lake, events_kept_days=7)
    apply(settings)
    assert count(settings, EVENTS) == 0
    assert all(count(settings, table) for table in STATISTICS)
    assert windows.compare(settings).is_whole
    assert windows.compare(settings, NOON, NOON + timedelta(hours=1)).is_whole


def test_events_may_outlive_their_statistics(lake: Settings) -> None:
    """The other way round; while what is kept of both is compared as ever."""
    fill(lake)
    append(lake, EVENTS, [event(9, 0, "saga_started", NOW - timedelta(hours=3)), event(9, 1, "saga_completed", NOW)])
    with history.open(lake) as tables:
        rows: list[dict[str, Any]] = (
            tables.sql('SELECT * EXCLUDE "open" FROM saga_stats WHERE "open"').to_arrow_table().to_pylist()
        )
    [saga_stats] = [table for table in STATISTICS if table.name == "saga_stats"]
    append(lake, saga_stats, rows)
    assert windows.compare(lake).is_whole
    settings = keep(lake, statistics_kept_days=7)
    apply(settings)
    assert count(settings, EVENTS) == 14
    assert windows.compare(settings).is_whole
    with closing(open_catalog(lake)) as catalog:
        catalog.load_table(saga_stats.identifier).delete(f"window_start < '{(NOW - timedelta(hours=1)).isoformat()}'")
    assert not windows.compare(settings).is_whole


def test_one_that_was_stopped_between_note_and_deletion(lake: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is rows that nobody compares; the next time deletes them."""
    fill(lake)
    settings = keep(lake, events_kept_days=7)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(retention, "replace_rows", stopped)
        with pytest.raises(KeyboardInterrupt):
            apply(settings, EVENTS)
    assert count(settings, EVENTS) == 12
    assert windows.compare(settings).is_whole
    apply(settings, EVENTS)
    assert count(settings, EVENTS) == 0


def test_a_note_never_goes_back(lake: Settings) -> None:
    """Where more days are to be kept than before, what is gone stays known as gone."""
    fill(lake)
    apply(keep(lake, rejected_events_kept_days=3), REJECTED_EVENTS)
    append(
        lake,
        REJECTED_EVENTS,
        [{"source_topic": "t", "source_partition": 0, "source_offset": 8, "record_time": NOON, "reason": "late"}],
    )
    apply(keep(lake, rejected_events_kept_days=7), REJECTED_EVENTS)
    with closing(open_catalog(lake)) as catalog:
        assert kept_since(catalog, [REJECTED_EVENTS]) == MIDNIGHT + timedelta(days=4)
    assert count(lake, REJECTED_EVENTS) == 0


def test_fewer_days_than_a_run_may_last_are_refused() -> None:
    """A run that is still open would lose its beginning: the error names both settings; they are judged together."""
    with pytest.raises(InvalidSettingError, match=r"EVENTS_KEPT_DAYS=6.*SAGASCOPE_LONGEST_RUN_DAYS"):
        Settings.from_environment({"SAGASCOPE_EVENTS_KEPT_DAYS": "6"})
    settings = Settings.from_environment({"SAGASCOPE_EVENTS_KEPT_DAYS": "3", "SAGASCOPE_LONGEST_RUN_DAYS": "3"})
    assert settings.events_kept_days == 3
