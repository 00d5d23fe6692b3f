"""How long a day of `events` takes to be judged, and how much memory: `warehouse.quality`.

Fills a lake in a temporary folder with made-up events of one day, as `bench/history.py` does, each ten of them one run; then judges
them in a process of its own for each turn, so that its resident peak is that of the judging alone. Prints seconds, with and without
the import of Great Expectations, CPU seconds and MiB; then those of `step_stats`, whose windows are computed anew from the events.
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

from bench import history
from warehouse import quality
from warehouse.settings import Settings
from warehouse.tables import EVENTS, STEP_STATS, TABLES

DAY = date(2026, 1, 1)
"""That of the events of `bench/history.py`: 10 million of them are 34 minutes."""
LIMITS = "60 s, 2,048 MiB"


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


def tell(settings: Settings, name: str, repeat: int, limits: str = "") -> None:
    """The median of so many turns, and the highest peak of them."""
    turns = []
    for _ in range(repeat):
        command = [sys.executable, __file__, "--judge", name, "--home", settings.home]
        turns.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    seconds, judging, cpu = (means.median(turn[what] for turn in turns) for what in ("seconds", "judging", "cpu"))
    print(
        f"{name}, {turns[0]['rows']:,} rows: {seconds:.1f} s ({judging:.1f} s without the import), {cpu:.1f} CPU s, "
        f"{max(turn['mebibytes'] for turn in turns):,.0f} MiB" + (f" (limits {limits})" if limits else ""),
        flush=True,
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python bench/quality.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--judge", metavar="TABLE", help="one turn, of a lake that is there: what this script starts")
    parser.add_argument("--home", help="of that lake")
    given = parser.parse_args()
    if given.judge:
        print(json.dumps(judge(Settings(home=given.home), given.judge)))
        return
    with history.lake("quality") as settings:
        fill(settings, given.events)
        tell(settings, EVENTS.name, given.repeat, LIMITS)
        tell(settings, STEP_STATS.name, given.repeat)


if __name__ == "__main__":
    main()
