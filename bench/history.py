"""The history's speed: DuckDB on PyIceberg's files against DuckDB on a bare list of the same files.

Fills two lakes in a temporary folder with made-up events: one with many rows in few files, one with few rows in many.
Prints, each as a median over `--repeat` turns taken in alternation, seconds and CPU seconds of this process:

- *group-by*: three quantiles by saga and step over all rows of `events`; the baseline is `read_parquet` on the list.
- *open*: `history.open` until the first row of `SELECT 1`, with many files in `events` and in `step_stats`.
- *open windows*: all rows of `step_stats` where the job has stored all windows but those of the last minute, which are
  computed from 300,000 events. Opening is not counted.
- *computed statistics*: `step_stats` from all events, each id once; the baseline numbers all rows by their id.
"""

from __future__ import annotations

import argparse
import statistics as means
import tempfile
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
from pyiceberg.io.pyarrow import schema_to_pyarrow

from warehouse import history, statistics
from warehouse.catalog import open_catalog
from warehouse.settings import Settings
from warehouse.tables import EVENTS, STEP_STATS, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COMMITS = 40
EVENTS_PER_SECOND = 5_000
"""Of event time; a fiftieth of it where there are many files, so that they hold many windows."""
SMALL_FILES = 1_000
SMALL_FILE_EVENTS = 400
SMALL_FILE_BYTES, SMALL_WINDOWS_BYTES = 131_000, 2_400
"""Of Arrow data: PyIceberg then writes what one of the 40 commits brings as 25 files."""

EVENT_ROWS = """
SELECT
    uuidv7()::VARCHAR AS event_id,
    ['saga_started', 'step_started', 'step_completed', 'step_started', 'step_completed', 'step_started', 'step_failed',
        'compensation_started', 'compensation_completed', 'saga_rolled_back'][number % 10 + 1] AS event_type,
    'saga-' || number // 10 AS saga_id,
    'kind-' || number // 10 % 12 AS saga_name,
    uuid()::VARCHAR AS run_id,
    number % 10 AS sequence,
    TIMESTAMPTZ '2026-01-01 00:00:00+00' + to_milliseconds(number * 1000 // $rate) AS "timestamp",
    CASE WHEN event_type NOT LIKE 'saga_%' THEN 'step-' || number % 10 // 2 END AS step_name,
    1 AS attempt,
    NULL AS compensable,
    NULL AS "pivot",
    -- log-normal around 55 ms
    CASE WHEN event_type LIKE '%_completed' OR event_type LIKE '%_failed'
        THEN exp(4 + 2 * sqrt(-2 * ln(1 - random())) * cos(2 * pi() * random()))::BIGINT END AS duration_ms,
    FALSE AS duration_derived,
    CASE WHEN event_type = 'saga_rolled_back' THEN (random() * 100_000)::BIGINT END AS total_duration_ms,
    CASE WHEN event_type = 'step_failed' THEN 'TimeoutError' END AS error_type,
    CASE WHEN event_type = 'step_failed' THEN 'no answer' END AS error_message,
    CASE WHEN event_type = 'saga_started' THEN ['amount_cents', 'customer_id', 'region'] ELSE [] END AS context_keys,
    MAP {'region': 'eu'} AS attributes,
    NULL AS definition_id,
    NULL AS parent_saga_id,
    NULL AS trace_id,
    'orders' AS service,
    1 AS schema_version,
    'saga-events' AS source_topic,
    number // 10 % 2 AS source_partition,
    number AS source_offset
FROM (SELECT range AS number FROM range($first, $last))
"""
QUANTILES = """
SELECT saga_name, step_name, quantile_cont(duration_ms, 0.5), quantile_cont(duration_ms, 0.95), quantile_cont(duration_ms, 0.99)
FROM {} GROUP BY saga_name, step_name ORDER BY saga_name, step_name
"""
NUMBERED = """
SELECT * FROM events QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY source_partition, source_offset) = 1
"""


def fill(settings: Settings, events: int, rate: int = EVENTS_PER_SECOND, file_bytes: int = 1 << 29) -> int:
    """Append so many events in 40 commits; returns how many files hold them."""
    table = _table(settings, EVENTS, file_bytes)
    bounds = [events * commit // COMMITS for commit in range(COMMITS + 1)]
    with duckdb.connect() as duck:
        for first, last in pairwise(bounds):
            _append(table, duck.sql(EVENT_ROWS, params={"first": first, "last": last, "rate": rate}))
    return len(list(table.scan().plan_files()))


def store_windows(settings: Settings, commits: int, file_bytes: int = 1 << 29) -> int:
    """Store the windows of `step_stats`, all but those of the last minute; returns how many files hold them."""
    with history.open(settings) as tables:
        query = """
            SELECT * EXCLUDE "open" FROM step_stats
            WHERE window_end <= (SELECT max("timestamp") - INTERVAL 1 MINUTE FROM events) ORDER BY window_start
        """
        rows = tables.sql(query).to_arrow_table()
    table = _table(settings, STEP_STATS, file_bytes)
    bounds = [rows.num_rows * commit // commits for commit in range(commits + 1)]
    for first, last in pairwise(bounds):
        _append(table, rows.slice(first, last - first))
    return len(list(table.scan().plan_files()))


def _table(settings: Settings, table: Table, file_bytes: int) -> Any:
    stored = open_catalog(settings).load_table(table.identifier)
    with stored.transaction() as transaction:
        transaction.set_properties({"write.target-file-size-bytes": str(file_bytes)})
    return stored


def _append(table: Any, rows: Any) -> None:
    arrow = rows.to_arrow_table() if isinstance(rows, duckdb.DuckDBPyRelation) else rows
    table.append(arrow.cast(schema_to_pyarrow(table.schema(), include_field_ids=False)))


def measure(repeat: int, *runs: Callable[[], object]) -> list[tuple[float, float]]:
    """The median seconds and CPU seconds of each, taken in turns after a turn to warm up."""
    taken: list[list[tuple[float, float]]] = [[] for _ in runs]
    for turn in range(repeat + 1):
        for number, run in enumerate(runs):
            began, cpu = time.perf_counter(), time.process_time()
            run()
            if turn:
                taken[number].append((time.perf_counter() - began, time.process_time() - cpu))
    return [(means.median(t for t, _ in turns), means.median(cpu for _, cpu in turns)) for turns in taken]


def tell(what: str, ours: tuple[float, float], baseline: tuple[float, float] | None = None, limit: str = "") -> None:
    """One line of the result."""
    line = f"{what}: {ours[0]:.3f} s, {ours[1]:.3f} CPU s"
    if baseline:
        line += f"; baseline {baseline[0]:.3f} s, {baseline[1]:.3f} CPU s"
        line += f"; ratio {ours[0] / baseline[0]:.2f}, of CPU {ours[1] / baseline[1]:.2f}"
    print(line + (f" (limit {limit})" if limit else ""), flush=True)


def paths(settings: Settings, table: Table) -> list[str]:
    """The table's files."""
    tasks = open_catalog(settings).load_table(table.identifier).scan().plan_files()
    return [task.file.file_path.removeprefix("file://") for task in tasks]


def bench_rows(settings: Settings, events: int, repeat: int) -> None:
    """All that grows with the number of rows."""
    files = fill(settings, events)
    print(f"{events:,} events in {files} files", flush=True)
    bare = duckdb.connect()
    listed = f"read_parquet({paths(settings, EVENTS)!r})"
    with history.open(settings) as tables:
        if tables.sql(QUANTILES.format("events")).fetchall() != bare.sql(QUANTILES.format(listed)).fetchall():
            msg = "the two answers differ"
            raise RuntimeError(msg)
        ours, baseline = measure(
            repeat,
            lambda: tables.sql(QUANTILES.format("events")).fetchall(),
            lambda: bare.sql(QUANTILES.format(listed)).fetchall(),
        )
        tell("group-by", ours, baseline, "ratio 1.2")
        ours, baseline = measure(
            min(repeat, 3),
            lambda: tables.sql(f"SELECT sum(hash(s)) FROM ({statistics.query(settings, STEP_STATS)}) AS s").fetchall(),
            lambda: tables.sql(f"WITH numbered AS ({NUMBERED}) {_over_numbered(settings)}").fetchall(),
        )
        tell("computed statistics", ours, baseline)
    store_windows(settings, 1)
    with history.open(settings) as tables:
        [ours] = measure(repeat, lambda: tables.sql("SELECT * FROM step_stats").fetchall())
        tell("open windows", ours)


def _over_numbered(settings: Settings) -> str:
    """The statistic over rows numbered by their id, without the query's own search for ids that came twice."""
    query = statistics.query(settings, STEP_STATS, "numbered")
    before, _, after = query.partition("), doubled AS")
    ended = after[after.index("), ended_steps AS") :].replace("FROM single_events", "FROM given")
    return f"SELECT sum(hash(s)) FROM ({before}{ended}) AS s"


def bench_files(settings: Settings, repeat: int) -> None:
    """All that grows with the number of files."""

    def open_once() -> None:
        with history.open(settings) as tables:
            tables.sql("SELECT 1").fetchall()

    files = fill(settings, SMALL_FILES * SMALL_FILE_EVENTS, EVENTS_PER_SECOND // 50, SMALL_FILE_BYTES)
    [alone] = measure(repeat, open_once)
    tell(f"open, {files:,} files in events, no window stored", alone, limit="1 s")
    windows = store_windows(settings, COMMITS, SMALL_WINDOWS_BYTES)
    [both] = measure(repeat, open_once)
    tell(f"open, {files:,} files in events and {windows:,} in step_stats", both, limit="1 s")


@contextmanager
def lake(name: str) -> Iterator[Settings]:
    """Settings with a home of their own, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"sagascope-{name}-") as folder:
        yield Settings(home=str(Path(folder) / "home"))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python bench/history.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--repeat", type=int, default=7, help="turns of each measurement; the slowest takes 3 at most")
    given = parser.parse_args()
    with lake("files") as settings:
        bench_files(settings, given.repeat)
    with lake("rows") as settings:
        bench_rows(settings, given.events, given.repeat)


if __name__ == "__main__":
    main()
