"""How long a backfill of a week takes: `python -m jobs.recompute` over the 10 million events of `bench/week.py`.

    python bench/backfill.py [--events 10000000] [--repeat 3]

Fills a lake in a temporary folder with the events and definitions alone, so that the backfill computes all four tables of
all days from nothing; then takes turns, `--repeat` times, each on tables that hold what the turn before has put there:

- backfill: the command, from its start to its end, Python and JVM starting up included; CPU seconds and the highest sum of
  resident sizes of its process tree;
- baseline: DuckDB's own queries for the same four tables, in this process, which store nothing.

What is checked after the last turn: every window and every run is what DuckDB computes from the events; and, by the plain
Python of the tests' oracles, all windows of one hour and 1,000 runs. A difference, or with 10 million events and more a
median above 90 s: exit code 1.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections import defaultdict
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bench import week
from bench.recompute import RecomputeFailedError, Run, recompute, take_turns
from tests import oracle
from tests.warehouse.runs_oracle import run_of
from warehouse import history, saga_runs, statistics, stored_runs, windows
from warehouse.catalog import open_catalog
from warehouse.event_rows import EVENT_COLUMNS, event_of
from warehouse.settings import Settings
from warehouse.tables import STATISTICS

if TYPE_CHECKING:
    from sagascope.events import SagaEvent
    from warehouse.history import History

LIMIT_SECONDS, LIMIT_EVENTS = 90.0, 10_000_000
HOUR = timedelta(hours=1)
SAMPLED_RUNS = 1_000


def query(settings: Settings) -> Run:
    """DuckDB's answer for the four tables."""
    began, cpu = time.monotonic(), time.process_time()
    with history.open(settings, week.BEGIN, week.END) as tables:
        for table in STATISTICS:
            tables.sql(statistics.query(settings, table)).to_arrow_table()
        for number in range(week.DAYS):  # all at once they would need many times the memory
            day = week.BEGIN + timedelta(days=number), week.BEGIN + timedelta(days=number + 1)
            tables.sql(saga_runs.ended_query("run_events", "known_definitions", [day])).to_arrow_table()
    return Run(time.monotonic() - began, time.process_time() - cpu)


def differences(settings: Settings) -> list[str]:
    """How the tables differ from what DuckDB computes, and from the oracles' sample."""
    compared = windows.compare(settings, week.BEGIN, week.END)
    found = [f"{table.table}: {table.differing} windows differ" for table in compared.tables if table.differing]
    found += [f"{table.table}: nothing was compared" for table in compared.tables if not table.rows]
    with closing(open_catalog(settings)) as catalog:
        differing, shown = stored_runs.differences(settings, catalog, week.BEGIN, week.END)
    found += [f"saga_runs: {differing} runs differ, e.g. {shown}"] if differing else []
    hour = week.BEGIN + timedelta(days=3)
    with history.open(settings, hour, hour + HOUR) as tables:
        events = [event_of(row) for row in tables.sql(f"SELECT {EVENT_COLUMNS} FROM events").fetchall()]
        for name, expected in _windows(settings, events).items():
            found += oracle.differing_windows(tables, name, expected)
    print(f"oracle: all windows of the {len(events):,} events of an hour", flush=True)
    with history.open(settings, week.BEGIN, week.END) as tables:
        found += _differing_runs(tables)
    return found


def _windows(settings: Settings, events: list[SagaEvent]) -> dict[str, dict[oracle.Row, oracle.Row]]:
    return {
        "step_stats": oracle.step_stats(events, settings.window_seconds),
        "saga_stats": oracle.saga_stats(events, settings.window_seconds),
        "step_durations": oracle.step_durations(events),
    }


def _differing_runs(tables: History) -> list[str]:
    """Of a sample of the stored runs, those that the oracle tells otherwise."""
    ids = [run_id for (run_id,) in tables.sql("SELECT run_id FROM stored_saga_runs ORDER BY run_id").fetchall()]
    sample = random.Random(0).sample(ids, min(SAMPLED_RUNS, len(ids)))
    of_sample = "SEMI JOIN (SELECT unnest($sample) AS run_id) USING (run_id)"
    rows = tables.sql(f"SELECT {EVENT_COLUMNS} FROM run_events {of_sample}", {"sample": sample}).fetchall()
    by_run: dict[str, list[SagaEvent]] = defaultdict(list)
    for event in map(event_of, rows):
        by_run[event.run_id].append(event)
    stored = tables.sql(f"FROM stored_saga_runs {of_sample}", {"sample": sample})
    definitions = week.definitions()
    found = []
    for row in stored.fetchall():
        run = dict(zip(stored.columns, row, strict=True))
        right = run_of(by_run[run["run_id"]], definitions.get(run["definition_id"]))
        wrong = {name: (run[name], value) for name, value in right.items() if run[name] != value}
        found += [f"saga_runs {run['run_id']}: got and expected {wrong}"] if wrong else []
    print(f"oracle: {len(sample):,} of {len(ids):,} runs", flush=True)
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python bench/backfill.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=LIMIT_EVENTS, help="default 10,000,000")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; default 3")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is stopped then, too
    with TemporaryDirectory(prefix="sagascope-backfill-") as folder:
        settings = Settings(home=str(Path(folder) / "home"))
        week.fill(settings, given.events)
        try:
            seconds = take_turns(
                "backfill",
                given.events,
                given.repeat,
                lambda: recompute(settings, week.BEGIN, week.END),
                lambda: query(settings),
            )
        except RecomputeFailedError as error:
            sys.exit(f"backfill: {error}")
        if found := differences(settings):
            sys.exit("backfill: wrong\n" + "\n".join(found[:20]))
    print("no window and no run differs from DuckDB's, and none of the samples from the oracles'")
    if given.events >= LIMIT_EVENTS:
        held = seconds <= LIMIT_SECONDS
        print(f"{'within' if held else 'BEYOND'} the limit of {LIMIT_SECONDS:.0f} s for {LIMIT_EVENTS:,} events")
        sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
