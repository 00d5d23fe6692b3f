"""How long a day of `events` takes to be judged, and how much memory: `warehouse.quality`.

Fills a lake in a temporary folder with made-up events of one day, as `bench/history.py` does, each ten of them one run; then judges
them in a process of its own for each turn, so that its resident peak is that of the judging alone. Prints seconds, with and without
the import of Great Expectations, CPU seconds and MiB, as medians and the highest peak:

- *events*: all its rules; the baseline reads and hashes each value of the same files once, in DuckDB;
- *step_stats*: all its rules; its windows are computed anew from the events.

Beyond 60 s or 2,048 MiB for `events`: exit code 1.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics as means
import subprocess
import sys
import time
from datetime import date

import duckdb

from bench import history
from warehouse import quality
from warehouse.settings import Settings
from warehouse.tables import EVENTS, STEP_STATS, TABLES

BASELINE = "baseline"
DAY = date(2026, 1, 1)
"""That of the events of `bench/history.py`: 10 million of them are 34 minutes."""
LIMIT_SECONDS, LIMIT_MEBIBYTES = 60, 2_048
"""For `events`, of 10 million rows."""


def fill(settings: Settings, events: int) -> None:
    """Store so many events, of sound runs, and the windows of `step_stats`."""
    history.EVENT_ROWS = history.EVENT_ROWS.replace(
        "uuid()::VARCHAR AS run_id", "md5((number // 10)::VARCHAR) AS run_id"
    )
    history.fill(settings, events)
    history.store_windows(settings, 1)


def judge(settings: Settings, name: str) -> dict[str, float]:
    """One turn, in this process.

    Raises:
        RuntimeError: a rule is broken, of events that are sound.
    """
    table = next(table for table in TABLES if table.name == name)
    began, cpu = time.perf_counter(), time.process_time()
    import warehouse.expectations  # noqa: F401, PLC0415 - timed apart

    imported = time.perf_counter()
    findings = quality.check(settings, table, DAY)
    if broken := [finding for finding in findings if not finding.passed]:
        msg = f"of sound rows, broken: {broken}"
        raise RuntimeError(msg)
    return {
        "rows": findings[0].rows,
        "seconds": time.perf_counter() - began,
        "judging": time.perf_counter() - imported,
        "cpu": time.process_time() - cpu,
        "mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def read(settings: Settings) -> dict[str, float]:
    """The baseline, in this process: each value of `events` is read and hashed."""
    listed = f"read_parquet({history.paths(settings, EVENTS)!r})"
    began, cpu = time.perf_counter(), time.process_time()
    [(rows, _)] = duckdb.execute(f"SELECT count(*), bit_xor(hash(e)) FROM {listed} AS e").fetchall()
    return {"rows": rows, "judging": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def turns(settings: Settings, repeat: int, *names: str) -> list[list[dict[str, float]]]:
    """So many turns of each, in alternation, each in a process of its own."""
    taken: list[list[dict[str, float]]] = [[] for _ in names]
    for _ in range(repeat):
        for name, of in zip(names, taken, strict=True):
            command = [sys.executable, __file__, "--turn", name, "--home", settings.home]
            of.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    return taken


def median(taken: list[dict[str, float]], what: str) -> float:
    """Of one figure."""
    return means.median(turn[what] for turn in taken)


def tell(name: str, taken: list[dict[str, float]]) -> bool:
    """One line; says whether the limits were kept."""
    seconds, peak = median(taken, "seconds"), max(turn["mebibytes"] for turn in taken)
    print(
        f"{name}, {taken[0]['rows']:,} rows: {seconds:.1f} s, {median(taken, 'judging'):.1f} s of them without the import, "
        f"{median(taken, 'cpu'):.1f} CPU s, {peak:,.0f} MiB",
        flush=True,
    )
    return seconds <= LIMIT_SECONDS and peak <= LIMIT_MEBIBYTES


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python bench/quality.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--turn", metavar="NAME", help="one turn, of a lake that is there: what this script starts")
    parser.add_argument("--home", help="of that lake")
    given = parser.parse_args()
    if given.turn:
        there = Settings(home=given.home)
        print(json.dumps(read(there) if given.turn == BASELINE else judge(there, given.turn)))
        return
    with history.lake("quality") as settings:
        fill(settings, given.events)
        judged, bare, windows = turns(settings, given.repeat, EVENTS.name, BASELINE, STEP_STATS.name)
        kept = tell(EVENTS.name, judged)
        print(
            f"baseline: {median(bare, 'judging'):.1f} s, {median(bare, 'cpu'):.1f} CPU s; without the import, ratio "
            f"{median(judged, 'judging') / median(bare, 'judging'):.2f} (limits {LIMIT_SECONDS} s, {LIMIT_MEBIBYTES:,} MiB)"
        )
        tell(STEP_STATS.name, windows)
    if not kept:
        sys.exit(1)


if __name__ == "__main__":
    main()
