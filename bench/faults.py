"""What faults leave in the tables: each kind tried again and again on the real parts, all counted against the topic.

    python bench/faults.py [--seed 7] [--only kill,broker] [--kill 20] [--stop 10] [--drain 20] … [--markdown FILE]

A real broker with a home of its own; for each kind a topic, a home, a load of made-up events (a tenth of them twice, 1 %
malformed) and the job under it with commits every second. Kinds, and how often each is tried unless told otherwise:

- kill 20: `kill -9` of the job's JVM and of its Python process in turns, at random moments; started again at once
- broker 2: `kill -9` of the broker; started again on its data
- stop 10: stop with a savepoint, and start
- drain 20: a fixed topic read to its end, bounded, each time into a fresh home
- disk 1: the disk of the home is full for 15 s; needs root, because it is a tmpfs, else it is skipped
- lock 2: another connection holds the catalog's lock for 20 s, then for 40 s, longer than any opener waits
- second 2: a second job on the same tables, started both ways
- outage 2: the job, killed or stopped, is away for longer than the horizon, and events from before come again after it
- recompute 2: the open hour is computed again while the stream appends
- recomputes 1: twice at once
- ahead 5: a timestamp a year ahead

After each kind all events are in closed windows, and `tests/oracle.py` and `parity.audit` count: *lost* are records without
their row in `events` or `rejected_events`, and acknowledged records that the topic lacks; *doubled* are rows beyond the
first of an event or a record; *wrong* are rows of statistics, and altered ones. Recovery is from the fault (disk, lock:
from its end) to the next commit of new events. Seeded: events and moments are the same each time, up to the machine's pace.
Exit code 1 where anything is lost, doubled or wrong, or a kind could not be tried to its end.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import psutil

from bench.fault_stage import RECOVER_SECONDS, FaultsError, Stage, Verdict, judge, now_ms
from pipelines import processes, stack
from pipelines.analytics_process import AnalyticsProcess
from tests import oracle
from warehouse.progress import read_progress
from warehouse.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DISK_MIB, FULL_SECONDS = 512, 15.0
HORIZON_SECONDS, OUTAGE_SECONDS = 20, 30.0
LOCK_SECONDS = (20.0, 40.0)
DRAIN_EVENTS, DRAIN_START_MS, DRAIN_RATE = 100_000, 1_780_000_000_000, 500
YEAR_MS = 365 * 24 * 3600 * 1000


class SkippedError(RuntimeError):
    """A kind can't be tried here; says why."""


def _kill(stage: Stage, tries: int) -> Verdict:
    stage.begin()
    for number in range(tries):
        stage.moment()
        jvm, began = stage.jvm(), time.monotonic()
        (psutil.Process(stage.job.pid) if number % 2 else jvm).kill()
        while stage.job.exit_code() is None:
            time.sleep(0.02)
        stage.start()
        psutil.wait_procs([jvm], timeout=60)  # one whose Python process is gone may still commit
        stage.recover(began)
    return stage.settle()


def _broker(stage: Stage, tries: int) -> Verdict:
    stage.begin()
    for _ in range(tries):
        stage.moment()
        broker, began = stack.status(stage.broker), time.monotonic()
        assert broker  # noqa: S101 - it was started
        assert broker.process  # noqa: S101
        broker.process.kill()
        stage.moment(10.0)
        stack.up(stage.broker)
        stage.recover(began)
    return stage.settle()


def _stop(stage: Stage, tries: int) -> Verdict:
    stage.begin()
    for _ in range(tries):
        stage.moment()
        began = time.monotonic()
        if stage.job.stop() != 0 or "savepoint" in str(stage.job.status().reason):
            msg = f"stop: no savepoint: {stage.job.failure()}"
            raise FaultsError(msg)
        stage.start()
        stage.recover(began)
    return stage.settle()


def _drain(stage: Stage, tries: int) -> Verdict:
    for number in range(DRAIN_EVENTS):
        stage.load.write(DRAIN_START_MS + number * 1000 // DRAIN_RATE)
    acknowledged, topic, verdict = stage.load.finish(), oracle.read_topic(stage.settings), Verdict()
    for number in range(tries):
        home = stage.settings.root / f"drain-{number}"
        settings = msgspec.structs.replace(stage.settings, home=str(home))
        stage.job = AnalyticsProcess(settings, bounded=True)
        stage.job.start()
        deadline = time.monotonic() + RECOVER_SECONDS
        while stage.job.exit_code() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if stage.job.exit_code() != 0:
            msg = f"drain {number}: {stage.job.failure()}"
            raise FaultsError(msg)
        verdict = verdict.plus(judge(settings, topic, closed_only=False, acknowledged=acknowledged))
        shutil.rmtree(home)
    return verdict


def _disk(stage: Stage, tries: int) -> Verdict:
    stage.begin()
    filler = stage.settings.root / "filler"
    for _ in range(tries):
        stage.moment()
        full_until = time.monotonic() + FULL_SECONDS
        while time.monotonic() < full_until:  # what the job deletes meanwhile makes room
            with suppress(OSError), filler.open("ab", buffering=0) as file:
                while file.write(bytes(1 << 16)):
                    pass
            time.sleep(0.1)
        filler.unlink()
        stage.recover(time.monotonic())
    return stage.settle()


def _lock(stage: Stage, tries: int) -> Verdict:
    stage.begin()
    for number in range(tries):
        stage.moment()
        with closing(sqlite3.connect(stage.settings.catalog_file, timeout=30, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            time.sleep(LOCK_SECONDS[number % len(LOCK_SECONDS)])
        stage.recover(time.monotonic())
    return stage.settle()


def _second(stage: Stage, tries: int) -> Verdict:
    stage.begin()
    command, environment = [sys.executable, "-P", "-m", "jobs.analytics"], os.environ | stage.settings.environment()
    for _ in range(tries):
        stage.moment()
        try:
            AnalyticsProcess(stage.settings).start()
        except processes.ProcessFailedError as refused:
            stage.note(f"refused: {refused}")
        else:
            msg = "second: a second job was started"
            raise FaultsError(msg)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 1 or "another analytics job" not in done.stdout:
            msg = f"second: not refused, exit code {done.returncode}: {done.stdout[-300:]}"
            raise FaultsError(msg)
    return stage.settle()


def _outage(stage: Stage, tries: int) -> Verdict:
    stage.begin()
    for number in range(tries):
        time.sleep(5.0)
        stage.load.paused.set()
        time.sleep(5.0)  # all of them are stored
        if number % 2:
            stage.job.stop()
        else:
            stage.jvm().kill()
        time.sleep(OUTAGE_SECONDS)
        for value in tuple(stage.load.recent):
            stage.load.put(value)
        stage.load.recent.clear()  # later they would come beyond the horizon
        began = time.monotonic()
        stage.start()
        stage.load.paused.clear()
        stage.recover(began)
    return stage.settle()


def _recompute(stage: Stage, tries: int, at_once: int = 1) -> Verdict:
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    stage.begin()
    stage.wait(lambda: read_progress(stage.settings).watermark is not None, 120, "no window was closed")
    command = [sys.executable, "-P", "-m", "jobs.recompute", "--from", hour.isoformat()]
    environment = os.environ | stage.settings.environment()
    for _ in range(tries):
        stage.moment()
        running = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(at_once)
        ]
        for child in running:
            said, _ = child.communicate(timeout=300)
            if child.returncode:
                msg = f"recompute: exit code {child.returncode}: {said[-500:]}"
                raise FaultsError(msg)
    return stage.settle()


def _ahead(stage: Stage, tries: int) -> Verdict:
    stage.begin()
    for _ in range(tries):
        stage.moment()
        stage.load.put(stage.load.event(now_ms() + YEAR_MS))
    time.sleep(15.0)  # honest events after them still make windows
    return stage.settle()


class Kind(NamedTuple):
    """A kind of fault."""

    what: str
    tries: int
    run: Callable[[Stage, int], Verdict]
    settings: dict[str, int] = {}  # noqa: RUF012 - read only


KINDS = {
    "kill": Kind("`kill -9` of the job's JVM or Python under load", 20, _kill),
    "broker": Kind("`kill -9` of the broker under load", 2, _broker),
    "stop": Kind("stop with a savepoint, and start", 10, _stop),
    "drain": Kind("bounded drain into a fresh home", 20, _drain),
    "disk": Kind("disk full for 15 s", 1, _disk),
    "lock": Kind("catalog locked for 20 s and 40 s", 2, _lock),
    "second": Kind("a second job on the same tables", 2, _second),
    "outage": Kind("outage longer than the horizon", 2, _outage, {"dedup_horizon_seconds": HORIZON_SECONDS}),
    "recompute": Kind("recompute while the stream appends", 2, _recompute),
    "recomputes": Kind("two recomputes of one hour at once", 1, lambda stage, tries: _recompute(stage, tries, 2)),
    "ahead": Kind("a timestamp a year ahead", 5, _ahead),
}


class Row(NamedTuple):
    """One line of the fault table."""

    kind: Kind
    tries: int
    verdict: Verdict
    recovered: list[float]
    said: dict[str, int]
    failure: str = ""

    @property
    def is_right(self) -> bool:
        """Nothing lost, doubled or wrong."""
        return not (self.failure or self.verdict.lost or self.verdict.doubled or self.verdict.wrong)


@contextmanager
def home_for(name: str, folder: Path) -> Iterator[Path]:
    """The home of a kind, gone afterwards; that of `disk` is a small file system of its own."""
    home = folder / name
    home.mkdir()
    mounted = name == "disk"
    if mounted:
        _as_root("mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "sagascope", str(home))
    try:
        yield home
    finally:
        if mounted:
            _as_root("umount", "--lazy", str(home))
        shutil.rmtree(home)


def _as_root(command: str, *arguments: str) -> None:
    path = shutil.which(command)
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=False) if path else None
    if done is None or done.returncode:
        msg = f"a disk of its own can't be mounted here ({done.stderr.strip() if done else 'no ' + command})"
        raise SkippedError(msg)


def try_kind(name: str, tries: int, broker: Settings, folder: Path, *, seed: int, rate: float) -> Row:
    """Try one kind so many times, under a load of `rate` events a second, and count.

    Args:
        name: Of the kind.
        tries: How often.
        broker: The settings that the broker was started with.
        folder: Where to make the home of tables and job.
        seed: Of events and moments.
        rate: Events a second.

    Raises:
        SkippedError: it can't be tried here.
    """
    kind = KINDS[name]
    with (
        home_for(name, folder) as home,
        closing(Stage(broker, home, name, seed=seed, rate=rate, changes=kind.settings)) as stage,
    ):
        try:
            return Row(kind, tries, kind.run(stage, tries), stage.recovered, stage.said)
        except Exception as error:  # noqa: BLE001 - told in its row; the other kinds are still tried
            return Row(kind, tries, Verdict(), stage.recovered, stage.said, f"{type(error).__name__}: {error}")


def markdown(rows: list[Row]) -> str:
    """The fault table."""
    lines = [
        "| fault | tries | events | lost | doubled | wrong windows | seconds to recover, median (worst) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        took = f"{statistics.median(row.recovered):.1f} ({max(row.recovered):.1f})" if row.recovered else ""
        counts = [f"{number:,}" for number in row.verdict[:4]] if not row.failure else ["not tried to its end", *"???"]
        lines.append(f"| {' | '.join([row.kind.what, str(row.tries), *counts, took])} |")
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python bench/faults.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rate", type=float, default=200.0, help="events a second of the load; default 200")
    parser.add_argument("--only", default=",".join(KINDS), metavar="KIND,KIND", help="these kinds alone")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    for name, kind in KINDS.items():
        parser.add_argument(f"--{name}", type=int, default=kind.tries, metavar="TRIES", help=f"default {kind.tries}")
    given = parser.parse_args()
    given.only = given.only.split(",")
    if unknown := set(given.only) - set(KINDS):
        parser.error(f"--only {','.join(sorted(unknown))}: no such kind; there are {', '.join(KINDS)}")
    return given


def main() -> None:
    """Entry point."""
    given = _arguments()
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # it tells of each refused connection
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all is stopped then too
    folder, rows = Path(tempfile.mkdtemp(prefix="sagascope-faults-")), list[Row]()
    broker = Settings(home=str(folder / "kafka"))
    try:
        stack.up(broker)
        for name in given.only:
            if not getattr(given, name):
                continue
            began = time.monotonic()
            try:
                row = try_kind(name, getattr(given, name), broker, folder, seed=given.seed, rate=given.rate)
            except SkippedError as reason:
                print(f"{name}: skipped: {reason}", flush=True)
                continue
            rows.append(row)
            print(
                f"{name}: {'right' if row.is_right else 'WRONG'}, {time.monotonic() - began:.0f} s; {row.verdict[:4]}"
            )
            for line in (row.failure, *row.verdict.examples, *(f"{n} x {what}" for what, n in row.said.items())):
                print(f"  {line}" if line else "", end="\n" if line else "", flush=True)
            if given.markdown:
                given.markdown.write_text(markdown(rows), encoding="utf-8")
    finally:
        stack.down(broker)
        shutil.rmtree(folder, ignore_errors=True)
    print(markdown(rows), flush=True)
    sys.exit(0 if all(row.is_right for row in rows) else 1)


if __name__ == "__main__":
    main()
