"""A lake of three sagas, all as it should be, and the means to plant a fault in one of its files."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import _dataframe_to_data_files, schema_to_pyarrow

from warehouse import history, stored_runs
from warehouse.catalog import open_catalog
from warehouse.tables import EVENTS, REJECTED_EVENTS, SAGA_DEFINITIONS, STATISTICS, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from warehouse.settings import Settings

Rows = list[dict[str, Any]]

DAY = date(2026, 11, 20)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
FAILING = 2
"""Which of the three sagas fails, and is rolled back."""


def append(lake: Settings, table: Table, rows: Rows) -> None:
    """Add rows in one commit."""
    stored = open_catalog(lake).load_table(table.identifier)
    stored.append(pa.Table.from_pylist(rows, schema=schema_to_pyarrow(stored.schema(), include_field_ids=False)))


def event(run: int, sequence: int, event_type: str, at: datetime, **fields: object) -> dict[str, Any]:
    """One row of `events`: of run r<run>, with the id e<run>-<sequence>."""
    return {
        "event_id": f"e{run}-{sequence}",
        "event_type": event_type,
        "saga_id": f"s{run}",
        "saga_name": "order",
        "run_id": f"r{run}",
        "sequence": sequence,
        "timestamp": at,
        "attempt": 1,
        "duration_derived": False,
        "schema_version": 1,
        "source_topic": "t",
        "source_partition": 0,
        "source_offset": run * 100 + sequence,
        **fields,
    }


def events_of(run: int, begin: datetime) -> Rows:
    """A saga of one step, a second an event."""
    failed = run == FAILING
    error = {"error_type": "TimeoutError", "error_message": "no answer"} if failed else {}
    end = "saga_rolled_back" if failed else "saga_completed"
    return [
        event(run, 0, "saga_started", begin),
        event(run, 1, "step_started", begin + timedelta(seconds=1), step_name="pay"),
        event(
            run,
            2,
            "step_failed" if failed else "step_completed",
            begin + timedelta(seconds=2),
            step_name="pay",
            duration_ms=1_000,
            **error,
        ),
        event(run, 3, end, begin + timedelta(seconds=3), total_duration_ms=3_000, **error),
    ]


def fill(lake: Settings) -> None:
    """Store the three sagas, an hour apart from one another, their statistics, a definition and a rejected record."""
    append(lake, EVENTS, [row for run in range(3) for row in events_of(run, NOON + run * timedelta(hours=1))])
    for table in STATISTICS:
        with history.open(lake) as tables:
            rows = tables.sql(f'SELECT * EXCLUDE "open" FROM {table.name}').to_arrow_table().to_pylist()
        append(lake, table, rows)
    definition = {"definition_id": "d", "saga_name": "order", "steps": '[{"step_name": "pay"}]', "first_seen": NOON}
    append(lake, SAGA_DEFINITIONS, [definition])
    rejected = {
        "source_topic": "t",
        "source_partition": 0,
        "source_offset": 7,
        "record_time": NOON,
        "reason": "no JSON",
    }
    append(lake, REJECTED_EVENTS, [rejected])
    with closing(open_catalog(lake)) as catalog:
        stored_runs.store(lake, catalog, NOON, NOON + timedelta(hours=6))


def paths(lake: Settings, table: Table) -> list[Path]:
    """The table's files, in order of their names."""
    tasks = open_catalog(lake).load_table(table.identifier).scan().plan_files()
    return sorted(Path(task.file.file_path.removeprefix("file://")) for task in tasks)


def compact(lake: Settings, table: Table) -> None:
    """Put all rows of the table into one file, as a `replace` snapshot: what `jobs.upkeep compact` commits by Java."""
    stored = open_catalog(lake).load_table(table.identifier)
    scan = stored.scan()
    with stored.transaction() as change, change.update_snapshot().overwrite() as replacing:
        for task in scan.plan_files():
            replacing.delete_data_file(task.file)
        for file in _dataframe_to_data_files(change.table_metadata, scan.to_arrow(), stored.io):
            replacing.append_data_file(file)
    # PyIceberg writes all else of such a snapshot, but has no name for it.
    written = Path(open_catalog(lake).load_table(table.identifier).metadata_location.removeprefix("file://"))
    metadata = json.loads(written.read_text(encoding="utf-8"))
    [newest] = [one for one in metadata["snapshots"] if one["snapshot-id"] == metadata["current-snapshot-id"]]
    newest["summary"]["operation"] = "replace"
    written.write_text(json.dumps(metadata), encoding="utf-8")


def tamper(lake: Settings, table: Table, change: Callable[[Rows], object], file: int = 0) -> None:
    """Change rows in a file of the table behind Iceberg's back: what no writer of ours would let through."""
    path = paths(lake, table)[file]
    stored = pq.read_table(path, partitioning=None)
    schema = pa.schema([field.with_nullable(nullable=True) for field in stored.schema])
    rows = stored.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def put(row: int, **values: object) -> Callable[[Rows], object]:
    """Change a row."""
    return lambda rows: rows[row].update(values)


def copy(row: int, **values: object) -> Callable[[Rows], object]:
    """Add a row that is another one but for these values."""
    return lambda rows: rows.append(rows[row] | values)
