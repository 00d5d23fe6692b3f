"""How fast the history is exported, and in how much memory: `sagascope export`.

Fills a lake in a temporary folder with made-up events, as `bench/quality.py` does, each ten of them one run; then exports them in a
process of its own for each turn, so that its resident peak is that of the export alone. Prints seconds, events a second and MiB, as
medians and the highest peak; the baseline reads and hashes each value of the same files once, in DuckDB.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics as means
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import history as lakes
from bench import quality
from warehouse import history
from warehouse.exports import cloudevents, duckdb_file, ocel
from warehouse.settings import Settings

NAMES = ("baseline", "duckdb", "ocel", "cloudevents")


def turn(settings: Settings, name: str, folder: Path) -> dict[str, float]:
    """One turn, in this process."""
    if name == "baseline":
        return quality.read(settings) | {"mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    began, file = time.perf_counter(), folder / name
    with history.open(settings) as tables:
        if name == "duckdb":
            duckdb_file.write(tables, settings, file)
        else:
            (ocel if name == "ocel" else cloudevents).write(tables, file)
    return {
        "judging": time.perf_counter() - began,
        "mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "size": file.stat().st_size / 1e6,
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python bench/export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--memory", default="512MiB", help="SAGASCOPE_SQL_MEMORY: of each DuckDB that takes part")
    parser.add_argument("--turn", metavar="NAME", help="one turn, of a lake that is there: what this script starts")
    parser.add_argument("--home", help="of that lake")
    given = parser.parse_args()
    if given.turn:
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(home=given.home, sql_memory=given.memory)
            print(json.dumps(turn(settings, given.turn, Path(folder))))
        return
    with lakes.lake("export") as settings:
        quality.fill(settings, given.events)
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
        for _ in range(given.repeat):
            for name, of in taken.items():
                command = [sys.executable, __file__, "--turn", name, "--home", settings.home, "--memory", given.memory]
                of.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        bare = means.median(one["judging"] for one in taken["baseline"])
        for name, of in taken.items():
            seconds, peak = means.median(one["judging"] for one in of), max(one["mebibytes"] for one in of)
            size = f", {of[0]['size']:,.0f} MB" if "size" in of[0] else ""
            print(
                f"{name}, {given.events:,} events: {seconds:.1f} s, {given.events / seconds:,.0f}/s, {peak:,.0f} MiB{size}; "
                f"ratio to the baseline {seconds / bare:.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
