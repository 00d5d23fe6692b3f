"""How fresh the tables are: from the moment an event happens to the moment when DuckDB shows it.

    python bench/freshness.py [--rate 1000] [--seconds 120] [--every 0.1] [--beside-backfill 10000000]

A broker and a home of their own; a process writes `--rate` events a second, each stamped when it is written; the job
commits every second; and a reader opens the history every `--every` seconds, with the catalog kept open, and asks for the
events that it has not seen. An event's freshness is the time from its timestamp to the end of the poll that first shows
it, so the reader's own work counts. The first 20 s are left out (start), all events after them count.

With `--beside-backfill` a week of so many made-up events (`bench/week.py`) is in the tables before, and while it counts,
`jobs.recompute` computes all days of that week, again and again.

Prints the median, p95, p99 and worst over all events against the limit, p99 at most 3 s; the polls' own length; and the CPU
seconds of each part over the time that counts. Exit code 1 beyond the limit, or where an event was never seen.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import psutil
from kafka import KafkaProducer

from bench import week
from pipelines import processes, stack
from pipelines.analytics_process import AnalyticsProcess
from sagascope.events import EventType, SagaEvent, encode, new_id
from warehouse import history
from warehouse.catalog import open_catalog
from warehouse.parity import read_ends
from warehouse.settings import CHECKOUT, Settings

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from pyiceberg.catalog import Catalog

LIMIT_SECONDS = 3.0
START_SECONDS = 20.0
LAST_SECONDS = 30.0
"""How long the last events may take."""
JOB_SECONDS = 180.0
SPREAD = timedelta(seconds=60)
"""Files whose newest event is older than the newest one seen by so much hold none that is new."""


class Poll(NamedTuple):
    """What one look at the tables showed for the first time."""

    visible: float
    """When it was there, seconds since the epoch."""
    took: float
    times: np.ndarray[Any, np.dtype[np.float64]]
    """The events' own timestamps, seconds since the epoch."""


def produce(settings: Settings, rate: float, until: float) -> None:
    """Write events at an even pace until a moment, seconds since the epoch; runs in a process of its own."""
    logging.getLogger("kafka").setLevel(logging.ERROR)
    producer: Any = KafkaProducer(bootstrap_servers=settings.bootstrap_servers, linger_ms=5)
    began, number = time.time(), 0
    while (now := time.time()) < until:
        while number < (now - began) * rate:
            producer.send(settings.topic, _event(number), partition=number % settings.partitions)
            number += 1
        time.sleep(0.001)
    producer.close()


def _event(number: int) -> bytes:
    return encode(
        SagaEvent(
            event_id=new_id(),
            event_type=EventType.STEP_COMPLETED,
            saga_id=f"saga-{number // 10}",
            saga_name=f"kind-{number // 10 % 6}",
            run_id=f"run-{number // 10}",
            sequence=number % 10,
            timestamp=time.time_ns() // 1_000_000,
            step_name=f"step-{number % 5}",
            duration_ms=number % 997,
            attributes={"region": "eu"},
        )
    )


def polls(settings: Settings, catalog: Catalog, every: float) -> Iterator[Poll]:
    """Look every so often, for ever; each event is told once, by its offset."""
    seen = dict.fromkeys(range(settings.partitions), -1)
    newest = datetime.now(UTC)  # what was there before is no news
    due = time.monotonic()
    while True:
        began = time.monotonic()
        fresh = " OR ".join(f"source_partition = {p} AND source_offset > {offset}" for p, offset in seen.items())
        with history.open(settings, since=newest - SPREAD, catalog=catalog) as tables:
            rows = tables.sql(
                f"""SELECT source_partition, source_offset, epoch("timestamp") AS at FROM events WHERE source_topic = $topic AND ({fresh})""",
                {"topic": settings.topic},
            ).fetchnumpy()
        visible = time.time()
        for partition in seen:
            offsets = rows["source_offset"][rows["source_partition"] == partition]
            seen[partition] = int(offsets.max(initial=seen[partition]))
        if len(rows["at"]):
            newest = datetime.fromtimestamp(float(rows["at"].max()), UTC)
        yield Poll(visible, time.monotonic() - began, np.asarray(rows["at"], np.float64))
        due = max(due + every, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def cpu_seconds(pid: int | None) -> float:
    """Of a process and its children, so far."""
    process = psutil.Process(pid)
    return sum(t.user + t.system for t in (p.cpu_times() for p in (process, *process.children(recursive=True))))


class Backfills:
    """One recompute of the week after the other."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0

    def go_on(self) -> None:
        """Start the next one, if none runs.

        Raises:
            RuntimeError: the last one failed.
        """
        if self._process and self._process.poll() is None:
            return
        if self._process:
            self._told()
        bounds = ["--from", week.BEGIN.isoformat(), "--to", week.END.isoformat()]
        self._began = time.monotonic()
        self._process = processes.start(
            [sys.executable, "-m", "jobs.recompute", *bounds],
            self._settings.logs / "recompute.out",
            temporary=self._settings.temporary,
            environment=self._settings.environment() | {"PYTHONPATH": str(CHECKOUT)},
        )

    def stop(self) -> None:
        """End the one that runs."""
        if self._process and self._process.poll() is None:
            print(f"a backfill was at work for {time.monotonic() - self._began:.0f} s, and was stopped", flush=True)
            processes.stop_child(self._process, 10.0)
        elif self._process:
            self._told()

    def _told(self) -> None:
        if self._process and self._process.returncode:
            msg = f"the backfill failed: {processes.last_lines(self._settings.logs / 'recompute.out')}"
            raise RuntimeError(msg)
        print(f"a backfill of the week took {time.monotonic() - self._began:.0f} s", flush=True)


def watch(settings: Settings, job_pid: int, broker_pid: int, given: argparse.Namespace) -> tuple[int, str]:
    """Produce and look; the exit code, and what was found."""
    with closing(open_catalog(settings)) as catalog:
        begin = time.time() + START_SECONDS
        end = begin + given.seconds
        load = multiprocessing.get_context("spawn").Process(target=produce, args=(settings, given.rate, end))
        load.start()
        pids = {"job": job_pid, "broker": broker_pid, "reader": os.getpid()}
        before: dict[str, float] = {}
        spent: dict[str, float] = {}
        looks: list[Poll] = []
        seen = 0
        backfills = Backfills(settings) if given.beside_backfill else None
        for look in polls(settings, catalog, given.every):
            looks.append(look)
            seen += len(look.times)
            if backfills and begin <= look.visible < end:
                backfills.go_on()
            if look.visible >= begin and not before:
                before = {name: _own_cpu(name, pid) for name, pid in pids.items()}
            if look.visible >= end and not spent:
                spent = {name: _own_cpu(name, pid) - before[name] for name, pid in pids.items()}
            if not load.is_alive() and (seen >= _written(settings) or look.visible > end + LAST_SECONDS):
                break
        if backfills:
            backfills.stop()
    return _told(looks, begin, spent, given, _written(settings) - seen)


def _own_cpu(name: str, pid: int) -> float:
    return time.process_time() if name == "reader" else cpu_seconds(pid)


def _written(settings: Settings) -> int:
    return sum(read_ends(settings).values())


def _told(
    looks: list[Poll], begin: float, spent: dict[str, float], given: argparse.Namespace, unseen: int
) -> tuple[int, str]:
    ages = np.concatenate([look.visible - look.times[look.times >= begin] for look in looks])
    took = np.array([look.took for look in looks if look.visible >= begin])
    if not len(ages) or _fell_short(len(ages), given):
        return 1, f"{len(ages):,} events in {given.seconds:.0f} s, not {given.rate:,.0f} a second: nothing was measured"
    p50, p95, p99 = (float(p) for p in np.quantile(ages, (0.5, 0.95, 0.99)))
    right = p99 <= LIMIT_SECONDS and not unseen
    cpu = ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items())
    found = (
        f"{len(ages):,} events at {given.rate:,.0f} a second, event time -> visible in DuckDB: p50 {p50:.2f} s, "
        f"p95 {p95:.2f} s, p99 {p99:.2f} s, worst {ages.max():.2f} s\n"
        f"limit p99 {LIMIT_SECONDS:.0f} s: {'kept' if p99 <= LIMIT_SECONDS else 'MISSED'}, {p99 / LIMIT_SECONDS:.2f} of it; "
        f"{unseen:,} events never seen\n"
        f"polls: {len(took):,}, median {np.median(took) * 1000:.0f} ms, p99 {np.quantile(took, 0.99) * 1000:.0f} ms\n"
        f"CPU seconds in {given.seconds:.0f} s: {cpu}; load of the machine {os.getloadavg()[0]:.1f}"
    )
    return 0 if right else 1, found


def _fell_short(events: int, given: argparse.Namespace) -> bool:
    """The load could not keep its pace, so that another rate was measured."""
    return bool(events < 0.95 * given.rate * given.seconds)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python bench/freshness.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=1_000, help="events a second; default 1,000")
    parser.add_argument("--seconds", type=float, default=120, help="that count, after the first 20; default 120")
    parser.add_argument("--every", type=float, default=0.1, help="seconds between two polls; default 0.1")
    parser.add_argument("--beside-backfill", type=int, metavar="EVENTS", help="of a week, computed again meanwhile")
    given = parser.parse_args()
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all is stopped then too
    folder = Path(tempfile.mkdtemp(prefix="sagascope-freshness-"))
    settings = Settings(home=str(folder), checkpoint_interval_ms=1_000)
    job: AnalyticsProcess | None = None
    try:
        if given.beside_backfill:
            week.fill(settings, given.beside_backfill)
        broker = stack.up(settings)
        settings = msgspec.structs.replace(settings, bootstrap_servers=broker.bootstrap_servers)
        job = AnalyticsProcess(settings)
        job.start()
        deadline = time.monotonic() + JOB_SECONDS
        while job.status().status != "running":
            if job.exit_code() is not None or time.monotonic() > deadline:
                sys.exit(f"freshness: the job does not run: {job.failure()}")
            time.sleep(0.1)
        assert job.pid  # noqa: S101 - it runs
        code, found = watch(settings, job.pid, broker.pid, given)
        print(found, flush=True)
    finally:
        if job:
            job.stop()
        stack.down(settings)
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
