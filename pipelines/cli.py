"""The command line: `sagascope --help`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import duckdb
import msgspec
import typer
from kafka.errors import KafkaError
from rich.console import Console
from rich.markup import escape

from pipelines import (
    audit_commands,
    dashboard_command,
    export_commands,
    history_commands,
    import_commands,
    load_command,
    maintain_commands,
    processes,
    quality_command,
    relay_commands,
    seed_command,
    stack,
    upkeep_commands,
)
from pipelines.analytics_process import AnalyticsProcess
from pipelines.interruptible_history import open_history
from pipelines.load_command import For, Rate, ScaleTime, Seed
from pipelines.moments import parse_moment, parse_since
from pipelines.relay.ends import RelayError
from pipelines.terminal import Format, make_console, print_rows, rows_as_table
from warehouse.errors import WarehouseError
from warehouse.settings import CHECKOUT, PREFIX, Settings

if TYPE_CHECKING:
    from pipelines.analytics_process import JobStatus

SHOWN_SETTINGS = dict(zip(Settings.__struct_fields__, Settings.__struct_defaults__, strict=True))

app = typer.Typer(
    help="Sagascope shows what sagas do, while they do it and long after.",
    epilog="Settings are environment variables: "
    + ", ".join(f"{PREFIX}{name.upper()}={value}" for name, value in SHOWN_SETTINGS.items())
    + f". What each means: {CHECKOUT / 'warehouse' / 'settings.py'}",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = make_console()
errors = Console(stderr=True)
app.command(name="workload")(load_command.workload)
app.command()(upkeep_commands.parity)
app.command()(quality_command.quality)
app.command()(seed_command.seed)
app.add_typer(maintain_commands.maintain, name="maintain")
app.add_typer(audit_commands.audit, name="audit")
app.command()(history_commands.report)
app.command()(dashboard_command.dashboard)
app.add_typer(history_commands.sagas, name="sagas")
app.add_typer(import_commands.imports, name="import")
app.add_typer(export_commands.export, name="export")
app.add_typer(relay_commands.relay, name="relay")

EXPECTED = (
    stack.StackError,
    processes.ProcessFailedError,
    WarehouseError,
    KafkaError,
    duckdb.Error,
    RelayError,
    ValueError,
    OSError,
)


@app.command()
def demo(seconds: For = None, rate: Rate = 20, seed: Seed = 7, scale_time: ScaleTime = 20) -> None:
    """Run the whole of it on this machine: broker, sagas, PyFlink job, live table.

    Ends at Ctrl-C or after --for, stops what it started, and closes with a query over the history and the count of
    events sent, stored and missing. Exit code 0 when nothing is missing.
    """
    from pipelines import demo as demo_module

    raise typer.Exit(
        demo_module.run(_settings(), console, seconds=seconds, rate=rate, seed=seed, scale_time=scale_time)
    )


@app.command()
def up() -> None:
    """Start the local Kafka broker and make the topic; nothing happens where it runs already.

    With SAGASCOPE_BOOTSTRAP_SERVERS set it only makes the topic there.
    """
    settings = _settings()
    if settings.bootstrap_servers:
        stack.make_topic(settings)
        console.print(f"topic {settings.topic} is at [bold]{settings.bootstrap_servers}[/]")
        return
    broker = stack.up(settings)
    console.print(f"Kafka runs at [bold]{broker.bootstrap_servers}[/] (pid {broker.pid})")


@app.command()
def down() -> None:
    """Stop the local Kafka broker; its data stays."""
    console.print("Kafka stopped" if stack.down(_settings()) else "Kafka was not running")


@app.command()
def status() -> None:
    """Say whether Kafka answers, and what of its topic is stored, rejected, missing or still to do.

    Exit code 1 when Kafka does not run, or a valid event is missing from the tables.
    """
    settings = _settings()
    servers = stack.bootstrap_servers(settings)
    console.print(f"Kafka at [bold]{servers}[/], topic {settings.topic}")
    if _print_balance(msgspec.structs.replace(settings, bootstrap_servers=servers)):
        raise typer.Exit(1)


def _print_balance(settings: Settings) -> int:
    """Each partition's account; returns how many rows are missing, or there twice, or of no record."""
    from warehouse import parity

    accounts = parity.balance(settings)
    names = ("partition", "end", "stored", "duplicates", "rejected", "expired", "missing", "doubled", "lag")
    console.print(rows_as_table(names, [tuple(getattr(account, name) for name in names) for account in accounts]))
    return sum(account.missing + account.doubled + account.altered for account in accounts)


@app.command()
def analyze(
    *,
    rebase: Annotated[
        bool,
        typer.Option(
            "--rebase",
            help="Forget the checkpoints and go on from what the tables hold: after a change of the window, of the SQL or of "
            "Flink or its connectors, or where the checkpoints are lost or records were deleted before they were read.",
        ),
    ] = False,
) -> None:
    """Run the PyFlink job: topic to tables. Resumes from where it was stopped or killed; Ctrl-C stops it with a savepoint.

    Says at its end what it stored, and how many records it rejected. Exit code 1 when the job failed.
    """
    settings = _settings()
    settings = msgspec.structs.replace(settings, bootstrap_servers=stack.bootstrap_servers(settings))
    job = AnalyticsProcess(settings, rebase=rebase)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    told = 0
    try:
        job.start()
        while (code := job.exit_code()) is None:
            told += _tell(job.said()[told:])
            time.sleep(0.25)
        _tell(job.said()[told:])
    except KeyboardInterrupt:
        console.print("stopping with a savepoint, from which the next start resumes")
        code = job.stop()
    if code:
        msg = f"the job failed: {job.failure()}"
        raise processes.ProcessFailedError(msg)
    _print_balance(settings)


def _tell(lines: list[JobStatus]) -> int:
    for line in lines:
        resumed = f" from {line.resumes_from}" if line.resumes_from else ""
        what = f"beside the stream, {line.chore}" if line.chore else f"job {line.status}{resumed}"
        console.print(what + (f": {line.reason}" if line.reason else ""), markup=False)
    return len(lines)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One SELECT over the tables, e.g. events, step_stats.")],
    since: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_since, metavar="MOMENT", help="Only event time from here: 2026-11-23T10:00, or 15m ago."
        ),
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(parser=parse_moment, metavar="MOMENT", help="Only event time before this moment.")
    ] = None,
    output: Annotated[Format, typer.Option("--format", help="How rows are printed.")] = Format.TABLE,
) -> None:
    """Ask the history. Times are UTC; `DESCRIBE events` lists the columns.

    A statistic has its open windows, too, computed from `events` just now: `open` is true, and the row may still change.

    Example: sagascope sql "SELECT saga_name, count(*) FROM events GROUP BY 1" --since 1h
    """
    with open_history(_settings(), since, until) as tables:
        answer = tables.sql(query)
        columns, rows = answer.columns, answer.fetchall()
    print_rows(columns, rows, output)


@app.command()
def doctor(
    output: Annotated[Format, typer.Option("--format", help="How findings are printed.")] = Format.TABLE,
) -> None:
    """Look at versions, Java, jars, home, Kafka, topic, catalog, checkpoints, clocks; say what is wrong, and its cure.

    Changes nothing. Exit code 1 where there is a fault.
    """
    from pipelines import doctor as doctor_module

    if output is Format.TABLE:
        raise typer.Exit(doctor_module.run(os.environ, console))
    findings = doctor_module.diagnose(os.environ)
    print_rows(list(findings[0].__struct_fields__), [msgspec.structs.astuple(one) for one in findings], output)
    raise typer.Exit(doctor_module.exit_code(findings))


def _settings() -> Settings:
    return Settings.from_environment(os.environ)


def main() -> None:
    """Entry point: an expected error is one line on standard error, and exit code 1."""
    # force: importing sagaz has configured the root logger, at INFO
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # what matters of it is said by who uses it
    try:
        app(prog_name="sagascope")
    except EXPECTED as error:
        errors.print(f"[bold red]sagascope:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
