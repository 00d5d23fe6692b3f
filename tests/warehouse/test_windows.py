"""Stored statistics against the events they were made from: tables written by PyIceberg, faults planted in them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pytest
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import schema_to_pyarrow

from warehouse import windows
from warehouse.catalog import open_catalog
from warehouse.replace import replace_rows
from warehouse.tables import EVENTS, SAGA_STATS, STEP_DURATIONS, STEP_STATS, Table

if TYPE_CHECKING:
    from warehouse.settings import Settings

START = datetime(2026, 11, 20, 9, 30, tzinfo=UTC)
Rows = list[dict[str, Any]]


def store(lake: Settings, table: Table, rows: Rows) -> None:
    """Make the table hold these rows."""
    values = pa.Table.from_pylist(rows, schema=schema_to_pyarrow(table.schema, include_field_ids=False))
    replace_rows(lake, open_catalog(lake), table, values, AlwaysTrue())


def steps(lake: Settings, count: int, apart: timedelta) -> list[datetime]:
    """Store completed steps of 10 ms each, so far apart from one another; returns their moments."""
    moments = [START + n * apart for n in range(count)]
    rows: Rows = [
        {
            "event_id": f"e{n}",
            "event_type": "step_completed",
            "saga_id": "s",
            "saga_name": "order",
            "run_id": "r",
            "sequence": n,
            "timestamp": moment,
            "step_name": "pay",
            "attempt": 1,
            "duration_ms": 10,
            "duration_derived": False,
            "schema_version": 1,
            "source_topic": "t",
            "source_partition": 0,
            "source_offset": n,
        }
        for n, moment in enumerate(moments)
    ]
    store(lake, EVENTS, rows)
    return moments


def starts(moments: list[datetime], width: timedelta) -> dict[datetime, int]:
    """How many of the moments are in each window, by its start."""
    counts: dict[datetime, int] = {}
    for moment in moments:
        start = moment - (moment - datetime(1970, 1, 1, tzinfo=UTC)) % width
        counts[start] = counts.get(start, 0) + 1
    return counts


def step_stats(moments: list[datetime], seconds: int) -> Rows:
    """The rows of `step_stats` for those steps."""
    width = timedelta(seconds=seconds)
    figures = {"failed": 0, "failure_rate": 0.0, "min_ms": 10, "max_ms": 10}
    figures |= dict.fromkeys(("avg_ms", "p50_ms", "p95_ms", "p99_ms"), 10.0)
    names = {"saga_name": "order", "step_name": "pay", "phase": "step"}
    return [
        {"window_start": start, "window_end": start + width, "completed": count} | names | figures
        for start, count in starts(moments, width).items()
    ]


def step_durations(moments: list[datetime]) -> Rows:
    """The rows of `step_durations` for those steps: 10 ms are in bucket 116."""
    width = timedelta(minutes=1)
    names = {"saga_name": "order", "step_name": "pay", "phase": "step", "bucket": 116}
    return [
        {"window_start": start, "window_end": start + width, "count": count} | names
        for start, count in starts(moments, width).items()
    ]


def found(lake: Settings, **bounds: Any) -> dict[str, int]:
    """How many rows differ, by table; tables without a difference are left out."""
    return {table.table: table.differing for table in windows.compare(lake, **bounds).tables if table.differing}


def test_before_the_first_window_there_is_nothing_to_compare(lake: Settings) -> None:
    """Neither without events nor with events whose windows are all open."""
    assert windows.compare(lake).closed is None
    steps(lake, 3, timedelta(seconds=1))
    assert windows.compare(lake) == windows.Comparison(
        None, [windows.TableDifferences(name, 0, 0, [], 0, {}) for name in windows.EVENTS_OF]
    )


@pytest.mark.parametrize("seconds", [10, 45, 3_600])
def test_right_windows_are_whole(lake: Settings, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their width, also across hours, also where events are compared a few at a time."""
    lake = msgspec.structs.replace(lake, window_seconds=seconds)
    moments = steps(lake, 300, timedelta(seconds=17))
    store(lake, STEP_STATS, step_stats(moments, seconds))
    store(lake, STEP_DURATIONS, step_durations(moments))
    for chunk in (windows.CHUNK_EVENTS, 100):
        monkeypatch.setattr(windows, "CHUNK_EVENTS", chunk)
        compared = windows.compare(lake)
        assert compared.is_whole, compared
        assert [table.rows for table in compared.tables] == [len(step_stats(moments, seconds)), 0, 85]


def test_windows_that_are_not_closed_yet_are_not_compared(lake: Settings) -> None:
    """Closed is what ends by the newest end that any table has stored, or by the moment given."""
    moments = steps(lake, 60, timedelta(seconds=10))
    rows = step_stats(moments, 10)
    store(lake, STEP_STATS, rows[:30])
    store(lake, STEP_DURATIONS, step_durations(moments)[:5])
    compared = windows.compare(lake)
    assert compared.is_whole
    assert compared.closed == START + timedelta(minutes=5)
    assert found(lake, closed=START + timedelta(minutes=6)) == {"step_stats": 6, "step_durations": 1}


def test_a_table_that_lacks_its_newest_rows_is_found_by_the_others(lake: Settings) -> None:
    """Also where it lacks all of them."""
    moments = steps(lake, 60, timedelta(seconds=10))
    store(lake, STEP_STATS, step_stats(moments, 10)[:57])
    store(lake, STEP_DURATIONS, step_durations(moments))
    assert found(lake) == {"step_stats": 3}
    store(lake, STEP_STATS, [])
    assert found(lake) == {"step_stats": 60}


def test_a_float_may_differ_in_its_last_digits(lake: Settings) -> None:
    """Sums depend on their order; but not in the ninth, and NULL is no number."""
    rows = step_stats(steps(lake, 2, timedelta(seconds=10)), 10)
    for value, differs in ((10.0 * (1 + 1e-10), {}), (10.0 * (1 + 1e-8), {"step_stats": 1}), (None, {"step_stats": 1})):
        store(lake, STEP_STATS, [rows[0] | {"avg_ms": value}, rows[1]])
        assert found(lake).get("step_stats", 0) == differs.get("step_stats", 0), value


def test_what_is_wrong_is_said(lake: Settings) -> None:
    """One difference a key: no row, a row of no events, more than one row, other figures, events not counted."""
    rows = step_stats(steps(lake, 50, timedelta(seconds=2)), 10)
    stored = [
        rows[1] | {"step_name": "other"},
        *[rows[2], rows[2]],
        rows[3] | {"p50_ms": 11.0, "max_ms": 12},
        rows[4] | {"completed": 3},
        *rows[5:],
    ]
    store(lake, STEP_STATS, stored)
    table = windows.compare(lake).tables[0]
    assert [(one.names, one.what, one.events, one.counted) for one in table.shown] == [
        ("order pay step", "no row", 5, 0),
        ("order other step", "a row, and no such events", 0, 5),
        ("order pay step", "no row", 5, 0),
        ("order pay step", "2 rows", 5, 10),
        ("order pay step", "differs in max_ms, p50_ms", 5, 5),
        ("order pay step", "differs in completed", 5, 3),
    ]
    assert table.late == 12
    assert table.hours.keys() == {START.replace(minute=0)}


def test_only_windows_between_two_moments_are_compared(lake: Settings) -> None:
    """By their start: since is inclusive, until exclusive."""
    steps(lake, 600, timedelta(seconds=10))
    names = {"saga_name": "order", "started": 1, "completed": 0, "rolled_back": 0, "failed": 0}
    ends = [START + n * timedelta(minutes=10) for n in range(10)]
    rows = [{"window_start": end, "window_end": end + timedelta(seconds=10)} | names for end in ends]
    store(lake, SAGA_STATS, rows)
    compared = windows.compare(lake, since=ends[2], until=ends[5])
    assert [(one.window_start, one.what) for one in compared.tables[1].shown] == [
        (end, "a row, and no such events") for end in ends[2:5]
    ]
    assert compared.tables[0].differing == 3 * 60
    assert len(compared.tables[0].shown) == windows.SHOWN
    assert compared.hours == [START.replace(minute=0), START.replace(hour=10, minute=0)][:2]
    assert windows.compare(lake, until=START - timedelta(hours=1)).is_whole
