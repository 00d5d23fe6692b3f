"""What upkeep is worth, on tables in a temporary folder.

`python bench/upkeep.py hour`: 720 commits, those of an hour at one each five seconds, of 500 events a second; then the upkeep that
runs each hour, `python -m jobs.upkeep compact`. Tells files, bytes and the median seconds of two queries, and of opening
the history, before and after. The baseline has the same rows in one file that was written at once and in order of time: fully compacted.

`python bench/upkeep.py sort`: the same day of events in one file, sorted in three ways: bytes, and the median seconds of queries
that look for a time, a run, a kind of saga. It says what `Table.sorted_by` of `events` is to be.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import schema_to_pyarrow

from bench import history as rows_of
from warehouse import history, maintenance
from warehouse.catalog import open_catalog
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from warehouse.settings import Settings

COMMITS = 720
SECONDS = 5
RATE = 500
"""Events a second."""
SORTS = {
    "timestamp": ("timestamp",),
    "run_id, sequence": ("run_id", "sequence"),
    "saga_name, timestamp": ("saga_name", "timestamp"),
}
# 200 runs at a time of ten events each, mixed as they come; the id of a run is of the moment it began.
RUNS = (
    rows_of.EVENT_ROWS.replace("to_milliseconds(number *", "to_milliseconds(place *")
    .replace("number AS source_offset", "place AS source_offset")
    .replace(
        "uuid()::VARCHAR",
        """regexp_replace(
            format('{:012x}', 1767225600000 + (place // 2000 * 2000 + place % 200) * 1000 // $rate)
            || '7' || md5(number // 10 || '')[:3] || '8' || md5(number // 10 || '')[4:18],
            '^(.{8})(.{4})(.{4})(.{4})(.{12})$', '\\1-\\2-\\3-\\4-\\5')""",
    )
    .replace(
        "SELECT range AS number",
        "SELECT range AS place, (range // 2000 * 200 + range % 200) * 10 + range % 2000 // 200 AS number",
    )
)
QUERIES = {
    "all": """
        SELECT saga_name, step_name, count(*), quantile_cont(duration_ms, [0.5, 0.95, 0.99]) FROM {table}
        GROUP BY 1, 2 ORDER BY 1, 2
    """,
    "one minute": """
        SELECT saga_name, count(*), avg(duration_ms) FROM {table}
        WHERE "timestamp" >= TIMESTAMPTZ '2026-01-01 00:30:00+00' AND "timestamp" < TIMESTAMPTZ '2026-01-01 00:31:00+00'
        GROUP BY 1 ORDER BY 1
    """,
    "one run": "SELECT sequence, event_type, \"timestamp\" FROM {table} WHERE run_id = '{run}' ORDER BY 1",
    "one kind": """
        SELECT step_name, count(*), quantile_cont(duration_ms, 0.95) FROM {table} WHERE saga_name = 'kind-3'
        GROUP BY 1 ORDER BY 1
    """,
    "by run": """
        SELECT count(*), max(length) FROM (
            SELECT run_id, max("timestamp") - min("timestamp") AS length FROM {table} GROUP BY 1
        )
    """,
}


def bench_sort(events: int, repeat: int) -> None:
    """One day of events in one file, sorted in each way."""
    with rows_of.lake("sort") as settings, duckdb.connect() as duck:
        settings.root.mkdir(parents=True)
        rate = max(1, events // 86_400)
        came = settings.root / "as-they-came.parquet"
        rows = duck.sql(RUNS, params={"first": 0, "last": events, "rate": rate}).to_arrow_reader(maintenance.ROW_GROUP)
        arrow = schema_to_pyarrow(EVENTS.schema)
        with pq.ParquetWriter(came, arrow, compression="zstd") as writer:
            for batch in rows:
                writer.write_table(pa.Table.from_batches([batch]).cast(arrow))
        group = maintenance.Group(datetime(2026, 1, 1, tzinfo=UTC), (str(came),), events, came.stat().st_size)
        files = {}
        for name, columns in SORTS.items():
            began = time.perf_counter()
            files[name] = maintenance.write_sorted(
                settings, dataclasses.replace(EVENTS, sorted_by=columns), EVENTS.schema, group
            )
            print(
                f"{name}: {files[name].stat().st_size / 1e6:.1f} MB, written in {time.perf_counter() - began:.1f} s",
                flush=True,
            )
        for name, file in files.items():
            duck.execute(f"CREATE VIEW \"{name}\" AS FROM read_parquet('{file}')")
        [(run,)] = duck.sql(f'SELECT run_id FROM "timestamp" WHERE source_offset = {events // 2}').fetchall()
        for what, query in QUERIES.items():
            taken = rows_of.measure(
                repeat, *(partial(_ask, duck, query.format(table=f'"{name}"', run=run)) for name in files)
            )
            print(
                f"{what}: " + "; ".join(f"{name} {s * 1000:.1f} ms" for name, (s, _) in zip(files, taken, strict=True)),
                flush=True,
            )


def _ask(duck: duckdb.DuckDBPyConnection | history.History, query: str) -> list[tuple[object, ...]]:
    return duck.sql(query).fetchall()


def bench_hour(commits: int, rate: int, repeat: int) -> None:
    """An hour of commits, and upkeep."""
    with rows_of.lake("hour") as settings, rows_of.lake("compact") as compacted:
        began = time.perf_counter()
        _commit(settings, commits, rate)
        print(f"{commits} commits of {rate * SECONDS:,} events: {time.perf_counter() - began:.0f} s", flush=True)
        _commit(compacted, 1, rate * commits)
        _commit(compacted, 1, rate, commits)
        _tell(settings, compacted, repeat)
        print(*map(json.dumps, _upkeep(settings)), sep="\n", flush=True)
        # The stream goes on: whoever commits next drops the manifests that have become empty.
        _commit(settings, 1, rate, commits)
        _tell(settings, compacted, repeat)


def _commit(settings: Settings, commits: int, rate: int, before: int = 0) -> None:
    """Append so many times five seconds of events, after so many."""
    with closing(open_catalog(settings)) as catalog, duckdb.connect() as duck:
        stored = catalog.load_table(EVENTS.identifier)
        schema = schema_to_pyarrow(stored.schema(), include_field_ids=False)
        for number in range(before, before + commits):
            bounds = {"first": number * rate * SECONDS, "last": (number + 1) * rate * SECONDS, "rate": RATE}
            rows = duck.sql(RUNS, params=bounds)
            stored.append(rows.order('"timestamp"').to_arrow_table().cast(schema))


def _tell(settings: Settings, compacted: Settings, repeat: int) -> None:
    """Each query on the one and on the other, histories opened anew each time as a reader does."""
    with closing(open_catalog(settings)) as catalog:
        files, size = maintenance.files_and_bytes(catalog, EVENTS)
    print(f"events: {files:,} files, {size / 1e6:.1f} MB", flush=True)
    with history.open(settings) as tables, history.open(compacted) as full_tables:
        for what in ("all", "one minute"):
            query = QUERIES[what].format(table="events", run="")
            ours, full = rows_of.measure(repeat, partial(_ask, tables, query), partial(_ask, full_tables, query))
            rows_of.tell(f"  scan, {what}", ours, full)
    ours, full = rows_of.measure(repeat, partial(_open_once, settings), partial(_open_once, compacted))
    rows_of.tell("  open", ours, full)


def _open_once(settings: Settings) -> None:
    with history.open(settings) as tables:
        tables.sql("SELECT 1").fetchall()


def _upkeep(settings: Settings) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "jobs.upkeep", "compact", "--table", "events"],
        env=os.environ | settings.environment(),
        stdout=subprocess.PIPE,
        check=False,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python bench/upkeep.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("hour", "sort"))
    parser.add_argument("--commits", type=int, default=COMMITS)
    parser.add_argument("--rate", type=int, default=RATE, help="events a second")
    parser.add_argument("--events", type=int, default=3_000_000, help="of the day that is sorted")
    parser.add_argument("--repeat", type=int, default=7, help="turns of each measurement")
    given = parser.parse_args()
    if given.what == "sort":
        bench_sort(given.events, given.repeat)
    else:
        bench_hour(given.commits, given.rate, given.repeat)


if __name__ == "__main__":
    main()
