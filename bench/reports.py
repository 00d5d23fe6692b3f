"""The reports' speed over a week of 10 million events, each against a plain group-by of DuckDB over the same files.

Fills a lake in a temporary folder with the events of `bench/week.py`, the statistics of all closed windows, computed by
`warehouse.statistics`, and the runs of all whole days. Prints of each report the median seconds and CPU seconds (of this
process, on all cores) of `--repeat` turns, each in a history that was opened for it, from the question to the last row,
and its ratio to the baseline: `count(*)` by saga, step and type over a bare list of the files of `events`, taken in turns
with it. Opening is told apart. Reports that read the statistics alone have a limit of their own. `--stored`: asks only
for the days whose runs are stored, which the newest hours of a live lake never are.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import duckdb

from bench import week
from warehouse import history, reports, statistics, stored_runs
from warehouse.catalog import open_catalog
from warehouse.settings import Settings
from warehouse.tables import EVENTS, STATISTICS
from warehouse.targets import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT, STATISTICS_LIMIT = 2.0, 0.2
FROM_STATISTICS = {
    "failure_rate",
    "step_statistics",
    "recent_steps",
    "daily_trend",
    "weekly_trend",
    "duration_heatmap",
    "unexercised_compensations",
}
BASELINE = "SELECT saga_name, step_name, event_type, count(*) FROM {} GROUP BY ALL"


def fill(settings: Settings, events: int) -> None:
    """Append the events, the statistics of all windows that are over, and the runs of all whole days."""
    week.fill(settings, events)
    end = week.END - timedelta(minutes=5)
    with history.open(settings) as tables:
        for table in STATISTICS:
            of_tail = (
                f"SELECT * FROM ({statistics.query(settings, table)}) WHERE window_end <= $end ORDER BY window_start"
            )
            week.append(settings, table, tables.sql(of_tail, {"end": end}).to_arrow_table())
    day = week.BEGIN.replace(hour=0)
    with closing(open_catalog(settings)) as catalog:
        while day + timedelta(days=1) < end:
            stored_runs.store(settings, catalog, day, day + timedelta(days=1))
            day += timedelta(days=1)


@contextmanager
def lake(folder: str | None, events: int) -> Iterator[Settings]:
    """Settings with a filled home: gone afterwards, or in a folder that stays for the next run."""
    with TemporaryDirectory(prefix="sagascope-reports-") as temporary:
        settings = Settings(home=str(Path(folder or temporary) / "home"))
        if not settings.catalog_file.exists():
            fill(settings, events)
        yield settings


def ask(settings: Settings, name: str, attributes: dict[str, str], until: datetime) -> tuple[float, float, float]:
    """Seconds of a report over the span, its CPU seconds, and the seconds that opening the history took before."""
    query, parameters = reports.ask(name, attributes=attributes, **_more(name))
    opened = time.perf_counter()
    with history.open(settings, week.BEGIN, until) as tables:
        began, cpu = time.perf_counter(), time.process_time()
        tables.sql(query, parameters).fetchall()
        return time.perf_counter() - began, time.process_time() - cpu, began - opened


def _more(name: str) -> dict[str, Any]:
    """What the report takes beside: the middle of the week, a target of each kind of saga and of each step."""
    match reports.load(name).takes:
        case "moment":
            return {"moment": week.BEGIN + timedelta(days=week.DAYS / 2)}
        case "targets":
            return {"targets": [Target(max_ms=10_000.0), Target(step="*", percentile=95.0, max_ms=2_000.0)]}
    return {}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python bench/reports.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--lake", metavar="FOLDER", help="where the filled tables stay, for a second run")
    parser.add_argument("--attribute", metavar="KEY=VALUE", action="append", default=[], help="a slice of the sagas")
    parser.add_argument("--stored", action="store_true", help="only the days whose runs are stored")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these reports")
    given = parser.parse_args()
    attributes = dict(text.split("=", 1) for text in given.attribute)
    until = week.END.replace(hour=0) if given.stored else week.END
    with lake(given.lake, given.events) as settings:
        tasks = open_catalog(settings).load_table(EVENTS.identifier).scan().plan_files()
        listed = [task.file.file_path.removeprefix("file://") for task in tasks]
        bare = duckdb.connect()
        for name in given.names or reports.NAMES:
            turns, baseline = [], []
            for _ in range(given.repeat):
                began = time.perf_counter()
                bare.sql(BASELINE.format(f"read_parquet({listed!r})")).fetchall()
                baseline.append(time.perf_counter() - began)
                turns.append(ask(settings, name, attributes, until))
            took, cpu, opening = (median(figures) for figures in zip(*turns, strict=True))
            limit = STATISTICS_LIMIT if name in FROM_STATISTICS and not attributes else LIMIT
            print(
                f"{name}: {took:.3f} s, {cpu:.3f} CPU s, {took / median(baseline):.1f} of the baseline's"
                f" {median(baseline):.3f} s; opened in {opening:.3f} s; limit {limit} s{'' if took <= limit else ', ABOVE'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
