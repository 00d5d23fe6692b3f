"""What is read of a table's days out of Iceberg's metadata."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import IdentityTransform

from dagster_project.observations import observe
from warehouse.tables import EVENTS, NAMESPACE, STEP_STATS

if TYPE_CHECKING:
    from tests.dagster_project.conftest import Lake

DAY = date(2026, 3, 1)
NEXT = date(2026, 3, 2)


def test_rows_files_and_bytes_are_those_of_the_day(lake: Lake) -> None:
    """Each day has the rows, files and bytes of its own files, over all commits, and days without rows are absent."""
    lake.add(EVENTS, "2026-03-01T00:00", "2026-03-01T23:59:59.999", "2026-03-02T00:00")
    lake.add(EVENTS, "2026-03-01T12:00", "2026-03-04T12:00")
    days = observe(lake.stored(EVENTS))
    assert {day: (seen.rows, seen.files) for day, seen in days.items()} == {
        DAY: (3, 2),
        NEXT: (1, 1),
        date(2026, 3, 4): (1, 1),
    }
    files = lake.stored(EVENTS).inspect.files().column("file_size_in_bytes").to_pylist()
    assert sum(seen.bytes for seen in days.values()) == sum(files)


def test_a_day_sums_its_hours(lake: Lake) -> None:
    """A table partitioned by hour is cut into days at midnight UTC."""
    lake.add(STEP_STATS, "2026-03-01T00:00", "2026-03-01T07:10", "2026-03-01T23:59:50", "2026-03-02T00:00")
    assert {day: (seen.rows, seen.files) for day, seen in observe(lake.stored(STEP_STATS)).items()} == {
        DAY: (3, 3),
        NEXT: (1, 1),
    }


def test_days_before_1970_are_days_too(lake: Lake) -> None:
    """Hours before the epoch belong to the day they are in, not to the one after it."""
    lake.add(STEP_STATS, "1969-12-31T23:00")
    assert list(observe(lake.stored(STEP_STATS))) == [date(1969, 12, 31)]


def test_newest_is_the_largest_time_of_the_day(lake: Lake) -> None:
    """The newest time is that of the day's latest row, whichever commit brought it."""
    lake.add(EVENTS, "2026-03-01T05:00", "2026-03-01T21:30:15.123")
    lake.add(EVENTS, "2026-03-01T06:00")
    assert observe(lake.stored(EVENTS))[DAY].newest == datetime(2026, 3, 1, 21, 30, 15, 123_000, tzinfo=UTC)


def test_the_snapshot_is_the_newest_that_brought_rows_of_the_day(lake: Lake) -> None:
    """A commit changes the snapshot of the days whose files it brings, and of no other day."""
    first = lake.add(EVENTS, "2026-03-01T05:00", "2026-03-02T05:00")
    second = lake.add(EVENTS, "2026-03-02T06:00")
    days = observe(lake.stored(EVENTS))
    assert (days[DAY].snapshot_id, days[NEXT].snapshot_id) == (first, second)
    snapshot = lake.stored(EVENTS).snapshot_by_id(first)
    assert snapshot is not None
    assert days[DAY].committed_at == datetime.fromtimestamp(snapshot.timestamp_ms / 1000, UTC)


def test_an_expired_snapshot_has_no_time(lake: Lake) -> None:
    """After its snapshot has expired a day keeps its numbers and loses only the time of the commit."""
    first = lake.add(EVENTS, "2026-03-01T05:00")
    lake.add(EVENTS, "2026-03-02T05:00")
    before = observe(lake.stored(EVENTS))[DAY]
    lake.stored(EVENTS).maintenance.expire_snapshots().by_id(first).commit()
    after = observe(lake.stored(EVENTS))[DAY]
    assert (after.rows, after.snapshot_id, after.committed_at) == (before.rows, first, None)


def test_an_empty_table_has_no_days(lake: Lake) -> None:
    """A table without a snapshot has no days."""
    assert observe(lake.stored(EVENTS)) == {}


def test_a_day_that_was_deleted_is_absent(lake: Lake) -> None:
    """Files that the current snapshot no longer has count nowhere."""
    lake.add(EVENTS, "2026-03-01T05:00", "2026-03-02T05:00")
    lake.stored(EVENTS).delete("timestamp < '2026-03-02T00:00:00+00:00'")
    assert list(observe(lake.stored(EVENTS))) == [NEXT]


def test_no_data_file_is_opened(lake: Lake) -> None:
    """Days are observed from metadata alone: the data files may be gone."""
    lake.add(EVENTS, "2026-03-01T05:00")
    for path in lake.stored(EVENTS).inspect.files().column("file_path").to_pylist():
        Path(urlsplit(path).path).unlink()
    assert observe(lake.stored(EVENTS))[DAY].rows == 1


def test_a_table_without_days_is_refused(lake: Lake) -> None:
    """A table partitioned by anything but a day or an hour is refused by name of its partitioning."""
    spec = PartitionSpec(PartitionField(1, 1000, IdentityTransform(), "same"))
    stored = lake.catalog.create_table((NAMESPACE, "other"), Schema(EVENTS.schema.fields[0]), partition_spec=spec)
    stored.append(pa.Table.from_pylist([{"event_id": "a"}], schema=stored.schema().as_arrow()))
    with pytest.raises(ValueError, match="allowed are one day, or one hour"):
        observe(stored)
