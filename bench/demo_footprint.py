"""What a first look costs: `sagascope demo --for 60s` in an empty home, its time to first statistics and its memory.

    python bench/demo_footprint.py [--repeat 3] [--for 60s]

Measured from outside: seconds from the start of the process until the demo's output holds "First statistics after",
the jars and the environment being there already, and every 0.5 s the memory of all processes of the demo together
(command line, load, job, its JVM, the broker's JVM). RSS counts a page once for each process that maps it, PSS shares
it out among them, so that the sum of PSS is what the demo really takes; the limit is held against the larger one, RSS.

Limits: first statistics within 60 s, at most 3 GiB. Beyond one of them, or where the demo itself fails: exit code 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipelines import processes
from warehouse.settings import CHECKOUT, Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

HOME = CHECKOUT / ".sagascope" / "bench" / "demo"
SAMPLE_SECONDS = 0.5
FIRST_STATISTICS = "First statistics after"
LIMIT_SECONDS = 60.0
LIMIT_BYTES = 3 << 30


class Footprint(msgspec.Struct, kw_only=True):
    """What was measured of one demo."""

    first_statistics_seconds: float | None = None
    """From outside; None: there were none."""
    peak_rss: int = 0
    """The highest sum over all processes at one moment."""
    peak_pss: int = 0
    of_pss: dict[str, int] = {}
    """What each kind of process had of `peak_pss`."""
    exit_code: int = -1


def measure(seconds: str) -> Footprint:
    """Run the demo once, in a home of its own that is deleted afterwards."""
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    found, began = Footprint(), time.monotonic()
    demo = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "demo", "--for", seconds],
        cwd=CHECKOUT,
        env=os.environ | Settings(home=str(HOME)).environment() | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches us, and we stop it
    )
    root = psutil.Process(demo.pid)
    sampler = threading.Thread(target=_sample, args=(root, found))
    sampler.start()
    said = []
    try:
        assert demo.stdout  # noqa: S101 - a pipe was asked for
        for line in demo.stdout:
            said.append(line.decode("utf-8", "replace"))  # the sentence may be broken over two lines
            if found.first_statistics_seconds is None and FIRST_STATISTICS in " ".join("".join(said[-2:]).split()):
                found.first_statistics_seconds = time.monotonic() - began
        found.exit_code = demo.wait()
    finally:
        with suppress(psutil.NoSuchProcess):
            processes.stop(root, 60.0)
        demo.wait()
        sampler.join()
    if found.exit_code:
        print("".join(said[-20:]), file=sys.stderr)
    shutil.rmtree(HOME)
    with suppress(OSError):  # a topic was kept
        HOME.parent.rmdir()
    return found


def _sample(root: psutil.Process, found: Footprint) -> None:
    """Note the highest sums until the demo has ended."""
    while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
        began = time.monotonic()
        rss = 0
        pss: dict[str, int] = {}
        with suppress(psutil.NoSuchProcess):
            for process in [root, *root.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    kind, memory = _kind(process.cmdline()), process.memory_full_info()
                    rss += memory.rss
                    pss[kind] = pss.get(kind, 0) + memory.pss
        found.peak_rss = max(found.peak_rss, rss)
        if sum(pss.values()) > found.peak_pss:
            found.peak_pss, found.of_pss = sum(pss.values()), pss
        time.sleep(max(0.0, SAMPLE_SECONDS - (time.monotonic() - began)))


def _kind(command: list[str]) -> str:
    """Which part of the demo a process is."""
    text = " ".join(command)
    for part, name in (
        ("kafka.Kafka", "broker JVM"),
        ("kafka.tools", "broker JVM"),
        ("java", "Flink JVM"),
        ("jobs.analytics", "job, Python"),
        (" workload ", "load"),
        (" demo ", "demo"),
    ):
        if part in text:
            return name
    return "other"


def table(found: Iterable[Footprint]) -> Table:
    """A row each."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("first statistics s", "RSS MiB", "PSS MiB", "of which", "exit code"):
        shown.add_column(heading, justify="left" if heading == "of which" else "right")
    for one in found:
        first = one.first_statistics_seconds
        of_pss = sorted(one.of_pss.items(), key=lambda part: part[1], reverse=True)
        shown.add_row(
            "none" if first is None else f"{first:.1f}",
            f"{one.peak_rss / 2**20:,.0f}",
            f"{one.peak_pss / 2**20:,.0f}",
            ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in of_pss),
            str(one.exit_code),
        )
    return shown


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python bench/demo_footprint.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--for", dest="seconds", default="60s", metavar="DURATION", help="of load; default 60s")
    given = parser.parse_args()
    found = [measure(given.seconds) for _ in range(given.repeat)]
    console = Console(width=100)
    console.print(table(found))
    first = [one.first_statistics_seconds or float("inf") for one in found]
    held = (
        max(first) <= LIMIT_SECONDS
        and max(one.peak_rss for one in found) <= LIMIT_BYTES
        and not any(one.exit_code for one in found)
    )
    console.print(
        f"first statistics: median {statistics.median(first):.1f} s, at most {max(first):.1f} s (limit {LIMIT_SECONDS:.0f}); "
        f"memory: at most {max(one.peak_rss for one in found) / 2**20:,.0f} MiB (limit {LIMIT_BYTES / 2**20:,.0f})",
        style="green" if held else "bold red",
        highlight=False,
    )
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
