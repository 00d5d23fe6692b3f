"""The demo: the whole path on this machine, from real sagas to a table of what they do, live in the terminal."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from pipelines import processes, stack
from pipelines.analytics_process import AnalyticsProcess
from pipelines.fan_out_view import FanOutView, print_sinks
from pipelines.ports import free_port, free_ports
from pipelines.terminal import plain_table, rows_as_table
from warehouse import history, parity
from warehouse.catalog import open_catalog, row_count
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from pyiceberg.catalog import Catalog
    from rich.console import Console
    from rich.table import Table

    from warehouse.settings import Settings

REFRESH_SECONDS = 1.0
PRINT_EVERY_SECONDS = 20.0
"""How often the table is printed where there is no terminal to redraw it in."""
ROWS_WITHOUT_TERMINAL = 12
JOB_START_SECONDS = 120.0
DRAIN_SECONDS = 90.0
WORKLOAD_GRACE_SECONDS = 30.0
DASHBOARD_PORT, DASHBOARD_GRACE_SECONDS = 8050, 5.0
SHOWN = timedelta(minutes=10)
"""The live table's last minute is looked for in so much event time, however long the demo runs: fewer files to read."""
RESTARTS = 3
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _StopRequestedError(Exception):
    """Ctrl-C, SIGTERM, or a terminal that was closed."""


def run(
    settings: Settings, console: Console, *, seconds: float | None, rate: float, seed: int, scale_time: float
) -> int:
    """Run it to Ctrl-C, or for `seconds` of load; returns 0 when every event sent is stored.

    Raises:
        StackError: the broker can't start or has ended, or another demo runs here.
        ProcessFailedError: the job or the load has ended.
    """
    load = ["--rate", f"{rate:g}", "--seed", str(seed), "--scale-time", f"{scale_time:g}"]
    with _signals(signal.SIG_IGN), _only_one(settings), ExitStack() as cleanup:  # nothing interrupts the cleaning up
        demo = None
        try:
            with _signals(_request_stop):
                demo = set_up(settings, console, cleanup, load)
                demo.show(seconds)
        except _StopRequestedError:
            console.print("\nStopping: what was sent is still stored …", style="dim")
        return demo.close() if demo else 130


@contextmanager
def _signals(handler: Any) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, one_before in before.items():
            signal.signal(number, one_before)


def _request_stop(_number: int, _frame: object) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise _StopRequestedError


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    settings.root.mkdir(parents=True, exist_ok=True)
    with (settings.root / "demo.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            msg = f"a demo (pid {lock.read()}) runs in {settings.root} already: end it, or set SAGASCOPE_HOME"
            raise stack.StackError(msg) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def _step(console: Console, what: str) -> Iterator[None]:
    began = time.monotonic()
    with console.status(what):
        yield
    console.print(f"[green]✓[/] {what} [dim]{time.monotonic() - began:.1f} s")


def set_up(settings: Settings, console: Console, cleanup: ExitStack, load: list[str]) -> Demo:
    """Broker, tables, load, job, each said as it is done; whatever is started, `cleanup` stops, in reverse order."""
    began, started_at = time.monotonic(), datetime.now(UTC)
    with _step(console, "Kafka broker"):
        if settings.bootstrap_servers:
            stack.make_topic(settings)
        else:
            broker = stack.status(settings)
            if broker is None or broker.process is None:
                cleanup.callback(stack.down, settings)
            servers = stack.up(settings).bootstrap_servers
            settings = msgspec.structs.replace(settings, bootstrap_servers=servers)
        begins = parity.read_ends(settings)
    with _step(console, "Iceberg tables"):
        catalog = open_catalog(settings)
        cleanup.callback(catalog.close)
        stored_before = row_count(catalog, EVENTS)
    job = AnalyticsProcess(settings)
    with _step(console, "real sagas, executed by sagaz"):
        report = settings.root / "workload.json"
        report.unlink(missing_ok=True)
        port = free_port()
        options = ["--with-parent", "--fan-out", str(port), "--report", str(report)]
        command = [sys.executable, "-P", "-m", "pipelines", "workload", *options, *load]
        child = processes.start(
            command, settings.logs / "workload.log", temporary=settings.temporary, environment=settings.environment()
        )
        cleanup.callback(processes.stop_child, child, WORKLOAD_GRACE_SECONDS)
    address = _start_dashboard(settings, cleanup)
    console.print(f"  Dashboard: [bold]{address}[/], live in some seconds", highlight=False)
    demo = Demo(
        settings, console, catalog, job, child, report, FanOutView(port), begins, stored_before, began, started_at
    )
    with _step(console, "PyFlink job"):  # the sagas run meanwhile: their first window is over when the job is there
        cleanup.callback(job.stop)
        job.start()
        while job.status().status != "running":
            if job.exit_code() is not None:
                msg = f"the job did not start: {job.failure()}"
                raise processes.ProcessFailedError(msg)
            if time.monotonic() > began + JOB_START_SECONDS:
                msg = f"the job does not run after {JOB_START_SECONDS:.0f} s, it is {job.status().status}: {job.failure()}"
                raise processes.ProcessFailedError(msg)
            demo.watch_load_and_broker()
            time.sleep(0.2)
    return demo


def _start_dashboard(settings: Settings, cleanup: ExitStack) -> str:
    """Its address; it waits for events by itself, and what becomes of it does not hold up the demo."""
    [port] = free_ports(DASHBOARD_PORT)
    child = processes.start(
        [sys.executable, "-P", "-m", "pipelines", "dashboard", "--with-parent", "--port", str(port)],
        settings.logs / "dashboard.log",
        temporary=settings.temporary,
        environment=settings.environment(),
    )
    cleanup.callback(processes.stop_child, child, DASHBOARD_GRACE_SECONDS)
    return f"http://127.0.0.1:{port}"


@dataclass
class Demo:
    """A demo that runs: what it shows, and how it ends."""

    settings: Settings
    console: Console
    catalog: Catalog
    job: AnalyticsProcess
    load: subprocess.Popen[bytes]
    report: Path
    fan_out: FanOutView
    begins: dict[int, int]
    stored_before: int
    began: float
    started_at: datetime
    restarts: int = 0
    first_seen: float | None = field(default=None)

    def show(self, seconds: float | None) -> None:
        """The live table, until the time is over or a signal comes."""
        end = time.monotonic() + seconds if seconds else float("inf")
        if self.console.is_terminal:
            with Live(console=self.console, refresh_per_second=2, vertical_overflow="ellipsis") as live:
                while time.monotonic() < end:
                    self._watch()
                    live.update(self._screen())
                    time.sleep(REFRESH_SECONDS)
            return
        printed = float("-inf")
        while time.monotonic() < end:
            self._watch()
            seen, screen = self.first_seen, self._screen()
            if time.monotonic() - printed >= PRINT_EVERY_SECONDS or seen != self.first_seen:
                printed = time.monotonic()
                self.console.print(screen)
            time.sleep(REFRESH_SECONDS)

    def close(self) -> int:
        """Let all that was sent be stored; say what is in the history and whether anything is missing."""
        with _step(self.console, "sagas under way end"):
            processes.stop_child(self.load, WORKLOAD_GRACE_SECONDS)
        with _step(self.console, "the job stores what was sent"):
            accounts = self._drain()
        with _step(self.console, "the job stops"):
            self.job.stop()
        self.console.print(
            "\n[bold]DuckDB over the Iceberg history[/]: the slowest and the flakiest step, and the next"
        )
        query = "FROM step_statistics(span := NULL) WHERE phase = 'step' LIMIT 8"
        self.console.print(f'sagascope sql "{query}"', style="dim", highlight=False, markup=False)
        with history.open(self.settings, catalog=self.catalog) as tables:
            answer = tables.sql(query)
            self.console.print(rows_as_table(answer.columns, answer.fetchall()))
        print_sinks(self.console, self.report)
        return self._print_counts(accounts)

    def watch_load_and_broker(self) -> None:
        """Notice what ended by itself.

        Raises:
            StackError: the broker.
            ProcessFailedError: the load.
        """
        ours = stack.status(self.settings)
        if ours and ours.bootstrap_servers == self.settings.bootstrap_servers:  # else it is the user's own Kafka
            crash = stack.crash_report(self.settings)
            if crash:
                raise stack.StackError(crash)
        if self.load.poll() is not None:
            log = self.settings.logs / "workload.log"
            msg = f"the load ended by itself; its log {log} ends:\n{processes.last_lines(log)}"
            raise processes.ProcessFailedError(msg)

    def _watch(self) -> None:
        """The same; and a job that ended is started again, some times."""
        self.watch_load_and_broker()
        if self.job.exit_code() is None:
            return
        failure = self.job.failure()
        if self.restarts == RESTARTS:
            msg = f"the job ended {RESTARTS + 1} times: {failure}"
            raise processes.ProcessFailedError(msg)
        self.restarts += 1
        self.console.print(f"[yellow]The job ended, and resumes from its newest checkpoint:[/] {escape(failure)}")
        self.job.start()

    def _screen(self) -> Group:
        since = max(self.started_at, datetime.now(UTC) - SHOWN) - timedelta(seconds=self.settings.window_seconds)
        with history.open(self.settings, since=since, catalog=self.catalog) as tables:
            rows = tables.sql("FROM recent_steps()").fetchall()
        stored = row_count(self.catalog, EVENTS) - self.stored_before
        elapsed, status, terminal = time.monotonic() - self.began, self.job.status(), self.console.is_terminal
        head = Text.assemble(
            ("sagascope demo", "bold"),
            f"  {elapsed:,.0f} s   {stored:,} events stored   job {status.status}",
            (f"   {status.reason}" if status.reason else "", "yellow"),
            ("   Ctrl-C ends it" if terminal else "", "dim"),
        )
        sinks = self.fan_out.line()
        if not rows:
            return Group(head, sinks, Text("No event is stored yet …", style="dim"))
        if self.first_seen is None:
            self.first_seen = elapsed
        foot = Text(
            f"Counts, failures and mean: the last minute; percentiles: each step's newest {self.settings.window_seconds} s"
            f" window, the open one included, to {max(row[-1] for row in rows):%H:%M:%S} UTC. First statistics after"
            f" {self.first_seen:.0f} s.",
            style="dim",
        )
        room = self.console.height - 10 if terminal else ROWS_WITHOUT_TERMINAL
        return Group(head, statistics_table(rows, room), foot, sinks)

    def _drain(self) -> list[parity.PartitionBalance]:
        deadline = time.monotonic() + DRAIN_SECONDS
        while True:
            accounts = parity.balance(self.settings, self.begins)
            behind = sum(account.lag + account.missing for account in accounts)
            if not behind or self.job.exit_code() is not None or time.monotonic() > deadline:
                return accounts
            time.sleep(1.0)

    def _print_counts(self, accounts: list[parity.PartitionBalance]) -> int:
        sent, failed = _sent(self.report)
        stored, rejected, doubled = (
            sum(getattr(account, name) for account in accounts) for name in ("stored", "rejected", "doubled")
        )
        missing = max(sum(account.missing + account.lag for account in accounts), (sent or 0) - stored)
        shown = "unknown (the load wrote no report)" if sent is None else f"{sent:,}"
        whole = sent is not None and not failed and not missing and not doubled
        self.console.print(
            f"Events of this run: sent {shown}, stored {stored:,}, missing {missing:,}"
            + (f", stored twice {doubled:,}" if doubled else "")
            + (f", rejected {rejected:,}" if rejected else "")
            + (f", never accepted by the broker {failed:,}" if failed else "")
            + (f" ({stored - sent:,} are of another sender)" if sent is not None and stored > sent else ""),
            style="bold green" if whole else "bold red",
        )
        return 0 if whole else 1


def statistics_table(rows: list[tuple[Any, ...]], room: int) -> Table:
    """The statistics as a table of at most `room` rows: where they don't fit, the worst ones, in their usual order."""
    worst = sorted(rows, key=lambda row: (row[3] > 0.1, row[6] or 0), reverse=True)[: max(room, 3)]
    kept = {(row[0], row[1]) for row in worst}
    slowest = max(row[5] or 0 for row in rows)
    flakiest = max(row[3] for row in rows)
    table = plain_table()
    for name in ("saga", "step"):
        table.add_column(name, no_wrap=True, max_width=22)
    for name in ("ended", "failed", "avg ms", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(name, justify="right", no_wrap=True)
    last = None
    for saga, step, ended, rate, avg, p50, p95, p99, _ in (row for row in rows if (row[0], row[1]) in kept):
        table.add_row(
            Text(saga if saga != last else ""),
            Text(step),
            f"{ended:,.0f}",
            Text(f"{rate:.1%}", style="bold red" if rate == flakiest and rate > 0 else "red" if rate > 0.1 else ""),
            _milliseconds(avg),
            Text(_milliseconds(p50), style="bold yellow" if p50 == slowest else ""),
            _milliseconds(p95),
            _milliseconds(p99),
        )
        last = saga
    if len(rows) > len(worst):
        table.caption = f"{len(rows) - len(worst)} calmer steps are not shown here"
    return table


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _sent(report: Path) -> tuple[int | None, int]:
    try:
        facts = msgspec.json.decode(report.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None, 0
    return facts["sent"], facts["failed"]
