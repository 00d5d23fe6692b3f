"""The demo: the whole path on this machine, from real sagas to a table of what they do, live in the terminal."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
from rich.console import Group
from rich.live import Live
from rich.text import Text

from pipelines import processes, stack
from pipelines.analytics_process import AnalyticsProcess
from pipelines.terminal import plain_table, rows_as_table
from warehouse import history, parity
from warehouse.catalog import open_catalog, row_count
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from pyiceberg.catalog import Catalog
    from rich.console import Console
    from rich.table import Table

    from warehouse.settings import Settings

REFRESH_SECONDS = 1.0
PRINT_EVERY_SECONDS = 20.0
"""How often the table is printed where there is no terminal to redraw it in."""
ROWS_WITHOUT_TERMINAL = 12
DRAIN_SECONDS = 90.0
WORKLOAD_GRACE_SECONDS = 30.0
RESTARTS = 3

RECENT_STATISTICS = """
    SELECT saga_name, step_name, sum(completed + failed) AS ended, sum(failed) / sum(completed + failed) AS failure_rate,
        sum(avg_ms * (completed + failed)) / sum(completed + failed) AS avg_ms,
        arg_max(p50_ms, window_end) AS p50_ms, arg_max(p95_ms, window_end) AS p95_ms,
        arg_max(p99_ms, window_end) AS p99_ms, max(window_end) AS window_end
    FROM step_stats
    WHERE phase = 'step' AND window_end > (SELECT max(window_end) FROM step_stats) - INTERVAL 1 MINUTE
    GROUP BY saga_name, step_name
    ORDER BY saga_name, step_name
"""

SLOWEST_AND_FLAKIEST = """\
SELECT saga_name, step_name, count(*) AS ended,
    round(avg((event_type = 'step_failed')::INT), 4) AS failure_rate,
    quantile_cont(duration_ms, 0.5) AS p50_ms, quantile_cont(duration_ms, 0.95) AS p95_ms,
    CASE 1
        WHEN rank() OVER (ORDER BY p50_ms DESC) THEN 'slowest'
        WHEN rank() OVER (ORDER BY failure_rate DESC) THEN 'flakiest'
    END AS finding
FROM events
WHERE event_type IN ('step_completed', 'step_failed')
GROUP BY saga_name, step_name
ORDER BY finding IS NULL, p95_ms DESC
LIMIT 8
"""
"""One statement that finds the slow and the flaky step of the workload."""


class _StopRequestedError(Exception):
    """Ctrl-C or SIGTERM."""


def run(
    settings: Settings, console: Console, *, seconds: float | None, rate: float, seed: int, scale_time: float
) -> int:
    """Run it to Ctrl-C, or for `seconds` of load; returns 0 when every event sent is stored.

    Raises:
        StackError: the broker can't start or has ended.
        ProcessFailedError: the job or the load has ended.
    """
    with ExitStack() as cleanup, _stoppable():
        demo = _Demo(settings, console, cleanup)
        try:
            demo.set_up(["--rate", f"{rate:g}", "--seed", str(seed), "--scale-time", f"{scale_time:g}"])
            demo.show(seconds)
        except _StopRequestedError:
            console.print("\nStopping (what was sent is still stored; Ctrl-C again does not hurry it) …", style="dim")
        return demo.close()


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM raise once; while it closes they are ignored."""

    def stop(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _StopRequestedError

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Demo:
    """One run of it. Whatever it starts is stopped by `cleanup`, in reverse order."""

    def __init__(self, settings: Settings, console: Console, cleanup: ExitStack) -> None:
        self._settings = settings
        self._console = console
        self._cleanup = cleanup
        self._catalog: Catalog | None = None
        self._job: AnalyticsProcess | None = None
        self._load: subprocess.Popen[bytes] | None = None
        self._report = settings.root / "workload.json"
        self._begins: dict[int, int] = {}
        self._stored_before = 0
        self._restarts = 0
        self._began = time.monotonic()
        self._started_at = datetime.now(UTC)
        self._first_seen: float | None = None

    def set_up(self, load: list[str]) -> None:
        """Broker, tables, job, load; says each as it is done."""
        with self._step("Kafka broker"):
            broker_ran = (broker := stack.status(self._settings)) is not None and broker.process is not None
            if not self._settings.bootstrap_servers:
                if not broker_ran:
                    self._cleanup.callback(stack.down, self._settings)
                servers = stack.up(self._settings).bootstrap_servers
                self._settings = msgspec.structs.replace(self._settings, bootstrap_servers=servers)
            self._begins = parity.read_ends(self._settings)
        with self._step("Iceberg tables"):
            self._catalog = open_catalog(self._settings)
            self._stored_before = row_count(self._catalog, EVENTS)
        with self._step("real sagas, executed by sagaz"):
            self._report.unlink(missing_ok=True)
            command = [sys.executable, "-m", "pipelines", "workload", "--with-parent", "--report", str(self._report)]
            log = self._settings.logs / "workload.log"
            log.unlink(missing_ok=True)
            self._load = processes.start([*command, *load], log, environment=self._settings.environment())
            self._cleanup.callback(self._stop_load)
        with self._step("PyFlink job"):  # the sagas run meanwhile: their first window is over when the job is there
            self._job = AnalyticsProcess(self._settings)
            self._cleanup.callback(self._job.stop)
            self._job.start()
            while self._job.status().status != "running":
                if self._job.exit_code() is not None:
                    msg = f"the job did not start: {self._job.failure()}"
                    raise processes.ProcessFailedError(msg)
                time.sleep(0.1)

    def show(self, seconds: float | None) -> None:
        """The live table, until the time is over or a signal comes."""
        end = time.monotonic() + seconds if seconds else None
        if self._console.is_terminal:
            with Live(console=self._console, refresh_per_second=2, vertical_overflow="ellipsis") as live:
                while end is None or time.monotonic() < end:
                    self._watch()
                    live.update(self._screen())
                    time.sleep(REFRESH_SECONDS)
            return
        printed = float("-inf")
        while end is None or time.monotonic() < end:
            self._watch()
            first = self._first_seen
            screen = self._screen()
            if time.monotonic() - printed >= PRINT_EVERY_SECONDS or first != self._first_seen:
                printed = time.monotonic()
                self._console.print(screen)
            time.sleep(REFRESH_SECONDS)

    def close(self) -> int:
        """Let all that was sent be stored; say what is in the history and whether anything is missing."""
        if self._load is None or self._job is None or self._catalog is None:
            self._cleanup.close()
            return 130
        with self._step("sagas under way end"):
            self._stop_load()
        with self._step("the job stores what was sent"):
            accounts = self._drain()
        with self._step("everything that was started is stopped"):
            self._cleanup.close()
        self._print_history()
        return self._print_counts(accounts)

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        with self._console.status(what):
            yield
        self._console.print(f"[green]✓[/] {what} [dim]{time.monotonic() - began:.1f} s")

    def _watch(self) -> None:
        """Notice what ended by itself: the job is started again, anything else ends the demo."""
        assert self._job  # noqa: S101 - set_up made it
        assert self._load  # noqa: S101 - and this
        if report := self._broker_report():
            raise stack.StackError(report)
        if self._load.poll() is not None:
            log = self._settings.logs / "workload.log"
            msg = f"the load ended by itself; its log {log} ends:\n{processes.last_lines(log)}"
            raise processes.ProcessFailedError(msg)
        if self._job.exit_code() is not None:
            if self._restarts == RESTARTS:
                msg = f"the job ended {RESTARTS + 1} times: {self._job.failure()}"
                raise processes.ProcessFailedError(msg)
            self._restarts += 1
            reason = f"[yellow]The job ended, and resumes from its newest checkpoint:[/] {self._job.failure()}"
            self._console.print(reason)
            self._job.start()

    def _broker_report(self) -> str | None:
        ours = stack.status(self._settings)
        if ours is None or ours.bootstrap_servers != self._settings.bootstrap_servers:
            return None  # the user's own Kafka
        return stack.crash_report(self._settings)

    def _screen(self) -> Group:
        assert self._job  # noqa: S101 - set_up made it
        assert self._catalog  # noqa: S101 - and this
        with history.open(self._settings, since=self._started_at, catalog=self._catalog) as tables:
            rows = tables.sql(RECENT_STATISTICS).fetchall()
        stored = row_count(self._catalog, EVENTS) - self._stored_before
        elapsed = time.monotonic() - self._began
        status = self._job.status()
        head = Text.assemble(
            ("sagascope demo", "bold"),
            f"  {elapsed:,.0f} s   {stored:,} events stored   job {status.status}",
            (f"   {status.reason}" if status.reason else "", "yellow"),
            ("   Ctrl-C ends it" if self._console.is_terminal else "", "dim"),
        )
        if not rows:
            return Group(head, Text("The first window of statistics is still open …", style="dim"))
        if self._first_seen is None:
            self._first_seen = elapsed
        newest = rows[0][-1]
        foot = Text(
            f"Count, failures and mean: the last minute; percentiles: each step's newest {self._settings.window_seconds} s"
            f" window, to {newest:%H:%M:%S} UTC. First statistics after {self._first_seen:.0f} s.",
            style="dim",
        )
        room = self._console.height - 8 if self._console.is_terminal else ROWS_WITHOUT_TERMINAL
        return Group(head, statistics_table(rows, room), foot)

    def _stop_load(self) -> None:
        if self._load is not None and self._load.poll() is None:
            processes.stop(psutil.Process(self._load.pid), WORKLOAD_GRACE_SECONDS)
            self._load.wait()

    def _drain(self) -> list[parity.PartitionBalance]:
        deadline = time.monotonic() + DRAIN_SECONDS
        while True:
            accounts = parity.balance(self._settings, self._begins)
            behind = sum(account.lag + account.missing for account in accounts)
            ended = self._job is None or self._job.exit_code() is not None
            if not behind or ended or time.monotonic() > deadline:
                return accounts
            time.sleep(0.5)

    def _print_history(self) -> None:
        self._console.print(
            "\n[bold]DuckDB over the Iceberg history[/] — the slowest and the flakiest step, and the next:"
        )
        self._console.print(SLOWEST_AND_FLAKIEST, style="dim", highlight=False)
        with history.open(self._settings) as tables:
            answer = tables.sql(SLOWEST_AND_FLAKIEST)
            self._console.print(rows_as_table(answer.columns, answer.fetchall()))

    def _print_counts(self, accounts: list[parity.PartitionBalance]) -> int:
        sent, failed = _sent(self._report)
        stored = sum(account.stored for account in accounts)
        malformed = sum(account.malformed for account in accounts)
        missing = sum(account.missing + account.lag for account in accounts)
        doubled = sum(account.doubled for account in accounts)
        shown = "unknown (the load wrote no report)" if sent is None else f"{sent:,}"
        self._console.print(
            f"Events of this run: sent {shown}, stored {stored:,}, missing {missing:,}"
            + (f", stored twice {doubled:,}" if doubled else "")
            + (f", malformed {malformed:,}" if malformed else "")
            + (f", never accepted by the broker {failed:,}" if failed else ""),
            style="bold green" if not missing and not doubled and not failed else "bold red",
        )
        whole = sent is not None and not failed and not missing and not doubled
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
            saga if saga != last else "",
            step,
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


def _sent(report: Any) -> tuple[int | None, int]:
    try:
        facts = msgspec.json.decode(report.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None, 0
    return facts["sent"], facts["failed"]
