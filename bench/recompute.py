"""How long a recompute takes: `python -m jobs.recompute` over three hours of `events`, against DuckDB's own queries.

    python bench/recompute.py [--events 10000000] [--repeat 3]

`events` is filled with made-up rows by PyIceberg, in 40 commits, and one row of `step_stats` behind them says that their
hours are closed. Then in turns, `--repeat` times, once with each id once and once with 1 % of them twice:

- recompute: the command, from its start to its end, Python and JVM starting up included, and up to 10 s in which it waits
  for the newest commits to settle, as it does beside a stream that commits every 5 s; CPU seconds and the highest sum
  of resident sizes of its process tree, looked at every 0.1 s;
- baseline: `warehouse.statistics.query` for the three tables, in this process.

What is checked: before the first recompute windows differ from what DuckDB computes, after the last one none does.
A difference, or with 10 million events and more a median above 60 s: exit code 1.
"""

from __future__ import annotations

import argparse
import signal
import statistics as means
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import duckdb
import msgspec
import psutil
import pyarrow as pa
from pyiceberg.io.pyarrow import schema_to_pyarrow

from bench.history import COMMITS, EVENT_ROWS, lake
from pipelines import processes
from warehouse import history, statistics, windows
from warehouse.catalog import open_catalog
from warehouse.settings import CHECKOUT, Settings
from warehouse.tables import EVENTS, STATISTICS, STEP_STATS, Table

if TYPE_CHECKING:
    from collections.abc import Callable

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
"""Where `bench.history` begins."""
SPAN = timedelta(hours=3)
LIMIT_SECONDS, LIMIT_EVENTS = 60.0, 10_000_000
SAMPLE_SECONDS = 0.1
OTHER_OFFSETS = 1_000_000_000
"""By how much the second record of an id is behind the first one."""

ROWS = f"""
SELECT * REPLACE (
    -- log-normal around 150 ms, as wide as in the demo's sagas: how wide decides how many rows step_durations has
    CASE WHEN duration_ms IS NOT NULL
        THEN exp(5 + 0.5 * sqrt(-2 * ln(1 - random())) * cos(2 * pi() * random()))::BIGINT END AS duration_ms
) FROM ({EVENT_ROWS})
"""


class Run(msgspec.Struct, frozen=True):
    """What was measured once."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int = 0


class RecomputeFailedError(RuntimeError):
    """The command failed, or what it left is wrong."""


def fill(settings: Settings, events: int) -> int:
    """Append so many events in 40 commits, spread over the span; returns how many files hold them."""
    rate = -(-events // int(SPAN.total_seconds()))  # rounded up, so that none is behind the span
    bounds = [events * commit // COMMITS for commit in range(COMMITS + 1)]
    with duckdb.connect() as duck:
        for first, last in pairwise(bounds):
            rows = duck.sql(ROWS, params={"first": first, "last": last, "rate": rate}).to_arrow_table()
            _append(settings, rows, EVENTS)
    return len(list(open_catalog(settings).load_table(EVENTS.identifier).scan().plan_files()))


def double(settings: Settings) -> int:
    """Append about every hundredth event a second time, under another offset; returns how many."""
    with history.open(settings) as tables:
        rows = tables.sql(
            "SELECT * REPLACE (source_offset + $behind AS source_offset) FROM events WHERE source_offset % 101 = 0",
            {"behind": OTHER_OFFSETS},
        ).to_arrow_table()
    _append(settings, rows, EVENTS)
    return int(rows.num_rows)


def close_hours(settings: Settings) -> None:
    """Store a window behind the span, so that all of it is behind the stream's watermark."""
    row = {column.name: 0 for column in STEP_STATS.columns} | {
        "window_start": BEGIN + SPAN,
        "window_end": BEGIN + SPAN + timedelta(seconds=settings.window_seconds),
        "saga_name": "none",
        "step_name": "none",
        "phase": "step",
    }
    _append(settings, pa.Table.from_pylist([row]), STEP_STATS)


def forget_statistics(settings: Settings) -> None:
    """Remove what a recompute has put there, so that the next one has to do it."""
    catalog = open_catalog(settings)
    for table in STATISTICS:
        catalog.load_table(table.identifier).delete(f"window_start < '{(BEGIN + SPAN).isoformat()}'")


def _append(settings: Settings, rows: pa.Table, table: Table) -> None:
    stored = open_catalog(settings).load_table(table.identifier)
    stored.append(rows.cast(schema_to_pyarrow(stored.schema(), include_field_ids=False)))


def recompute(settings: Settings, since: datetime, until: datetime) -> Run:
    """Run the command over [since, until).

    Raises:
        RecomputeFailedError: it failed; with what it said.
    """
    bounds = ["--from", since.isoformat(), "--to", until.isoformat()]
    log = settings.logs / "recompute.out"
    began = time.monotonic()
    child = processes.start(
        [sys.executable, "-m", "jobs.recompute", *bounds],
        log,
        temporary=settings.temporary,
        environment=settings.environment() | {"PYTHONPATH": str(CHECKOUT)},
    )
    cpu: dict[int, float] = {}
    peak = 0
    try:
        while child.poll() is None:
            peak = max(peak, _sample(child, cpu))
            with suppress(subprocess.TimeoutExpired):
                child.wait(SAMPLE_SECONDS)
    finally:
        processes.stop_child(child, 10.0)
    if child.returncode:
        msg = f"jobs.recompute ended with exit code {child.returncode}; {log} ends:\n{processes.last_lines(log)}"
        raise RecomputeFailedError(msg)
    return Run(time.monotonic() - began, sum(cpu.values()), peak)


def _sample(child: subprocess.Popen[bytes], cpu: dict[int, float]) -> int:
    """Note the CPU seconds of each process of the tree; returns the sum of their resident sizes."""
    size = 0
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(child.pid)
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                cpu[process.pid] = times.user + times.system
                size += process.memory_info().rss
    return size


def query(settings: Settings) -> Run:
    """DuckDB's answer for the three tables."""
    began, cpu = time.monotonic(), time.process_time()
    with history.open(settings) as tables:
        for table in STATISTICS:
            tables.sql(statistics.query(settings, table)).to_arrow_table()
    return Run(time.monotonic() - began, time.process_time() - cpu)


def differing(settings: Settings) -> int:
    """How many rows of the three tables are not what DuckDB computes."""
    found = windows.compare(settings, BEGIN, BEGIN + SPAN)
    if not all(table.rows for table in found.tables):
        msg = "there is nothing to compare: DuckDB computes no window"
        raise RecomputeFailedError(msg)
    return sum(table.differing for table in found.tables)


def measure(what: str, settings: Settings, events: int, repeat: int) -> float:
    """Take turns and tell; returns the median seconds of the recompute."""
    if not (before := differing(settings)):
        msg = "no window differs before the recompute: it would prove nothing"
        raise RecomputeFailedError(msg)
    seconds = take_turns(
        what, events, repeat, lambda: recompute(settings, BEGIN, BEGIN + SPAN), lambda: query(settings)
    )
    if left := differing(settings):
        msg = f"{what}: {left:,} rows differ from what DuckDB computes"
        raise RecomputeFailedError(msg)
    print(f"{what}: {before:,} rows differed before, none after", flush=True)
    return seconds


def take_turns(what: str, events: int, repeat: int, ours: Callable[[], Run], baseline: Callable[[], Run]) -> float:
    """Both in turns, told with their ratio; returns our median seconds."""
    ran: tuple[list[Run], list[Run]] = [], []
    for _ in range(repeat):
        ran[0].append(ours())
        ran[1].append(baseline())
        print(f"{what}: {_told(ran[0][-1])}; DuckDB {_told(ran[1][-1])}", flush=True)
    seconds, other = (means.median(run.seconds for run in runs) for runs in ran)
    cpu, other_cpu = (means.median(run.cpu_seconds for run in runs) for runs in ran)
    million = events / 1e6
    print(
        f"{what}: median {seconds:.1f} s, {cpu / million:.2f} CPU s per M; DuckDB {other:.1f} s, "
        f"{other_cpu / million:.2f} CPU s per M; ratio {seconds / other:.1f}, of CPU {cpu / other_cpu:.1f}",
        flush=True,
    )
    return seconds


def _told(run: Run) -> str:
    size = f", {run.peak_bytes / 2**20:,.0f} MiB" if run.peak_bytes else ""
    return f"{run.seconds:.1f} s, {run.cpu_seconds:.1f} CPU s{size}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python bench/recompute.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=LIMIT_EVENTS, help="default 10,000,000")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; default 3")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is stopped then, too
    try:
        with lake("recompute") as settings:
            print(f"{given.events:,} events in {fill(settings, given.events)} files", flush=True)
            close_hours(settings)
            seconds = [measure("each id once", settings, given.events, given.repeat)]
            forget_statistics(settings)
            twice = double(settings)
            seconds.append(measure(f"{twice:,} ids twice", settings, given.events + twice, given.repeat))
    except RecomputeFailedError as error:
        sys.exit(f"recompute: {error}")
    if given.events >= LIMIT_EVENTS:
        held = max(seconds) <= LIMIT_SECONDS
        print(f"{'within' if held else 'BEYOND'} the limit of {LIMIT_SECONDS:.0f} s for {LIMIT_EVENTS:,} events")
        sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
