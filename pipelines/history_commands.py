"""Commands that ask the history of runs: `sagascope report`, `sagascope sagas`."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines import report_output
from pipelines.interruptible_history import open_history
from pipelines.moments import parse_moment, parse_since
from pipelines.report_output import ReportFormat
from pipelines.terminal import Format, make_console, print_rows, rows_as_table
from warehouse.settings import Settings

if TYPE_CHECKING:
    from warehouse.reports import Report
    from warehouse.targets import Target

sagas = typer.Typer(help="Find runs of sagas, and look at one.", no_args_is_help=True)
console = make_console()

Since = Annotated[
    datetime | None,
    typer.Option(parser=parse_since, metavar="MOMENT", help="Only from here: 2026-11-23T10:00, or 7d ago."),
]
Until = Annotated[datetime | None, typer.Option(parser=parse_moment, metavar="MOMENT", help="Only before this moment.")]
Saga = Annotated[str, typer.Option(metavar="PATTERN", help="Only kinds of saga of such a name: 'order*'.")]


Attributes = Annotated[
    list[str] | None,
    typer.Option("--attribute", metavar="KEY=VALUE", help="Only runs with this attribute; repeatable."),
]


class Status(StrEnum):
    """What can be asked of a run: an outcome, open, or failed for any outcome but completed."""

    OPEN = "open"
    COMPLETED = "completed"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    ROLLED_BACK_PARTIAL = "rolled_back_partial"
    COMPENSATION_FAILED = "compensation_failed"
    PARTIALLY_COMMITTED = "partially_committed"
    FAILED_NOTHING_TO_UNDO = "failed_nothing_to_undo"


class Order(StrEnum):
    """What comes first: the latest start, the latest end, or the longest."""

    STARTED = "started"
    ENDED = "ended"
    DURATION = "duration"


Statuses = Annotated[
    list[Status] | None, typer.Option(help="Only runs of this status; repeatable. failed: all that ended otherwise.")
]


def report(
    name: Annotated[str | None, typer.Argument(help="Which report; none: lists them.")] = None,
    *,
    since: Since = None,
    until: Until = None,
    saga: Saga = "*",
    attribute: Attributes = None,
    at: Annotated[
        datetime | None,
        typer.Option(parser=parse_moment, metavar="MOMENT", help="before_after: the moment, e.g. of a deployment."),
    ] = None,
    targets: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="sla_compliance: a YAML file of targets; else SAGASCOPE_TARGETS_FILE."),
    ] = None,
    output: Annotated[ReportFormat, typer.Option("--format", help="How it is written.")] = ReportFormat.TABLE,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Where; else to standard output.")] = None,
) -> None:
    """A report over sagas, by default over the span that is usual for it. Each is a macro in SQL, too.

    Example: sagascope report most_failing_steps --since 7d --saga 'order*' --attribute tenant=acme
    """
    from warehouse import reports  # noqa: PLC0415 - so that --help is there at once

    if name is None:
        listed = [reports.load(one) for one in reports.NAMES]
        console.print(rows_as_table(("report", "over", "tells"), [(r.name, str(r.span), r.title) for r in listed]))
        return
    try:
        asked = reports.load(name)
    except LookupError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from error
    if output in (ReportFormat.PARQUET, ReportFormat.HTML) and to is None and sys.stdout.isatty():
        msg = f"{output.value} is for a file: add `--to report.{output.value}`"
        raise typer.BadParameter(msg, param_hint="--format")
    settings, entries = _settings(), entries_of(attribute)
    since = since or (until or datetime.now(UTC)) - asked.span
    check_moment(asked, since, at, until)
    query, parameters = reports.ask(name, saga, entries, moment=at, targets=targets_for(asked, targets, settings))
    with open_history(settings, since, until) as tables:
        answer = tables.sql(query, parameters)
        about = {
            "from": f"{since:%Y-%m-%d %H:%M} UTC",
            "until": f"{until or datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "sagas": saga,
            **({"at": f"{at:%Y-%m-%d %H:%M:%S} UTC"} if at else {}),
            **entries,
        }
        report_output.write(answer, output, asked, about, to)


def check_moment(asked: Report, since: datetime, at: datetime | None, until: datetime | None) -> None:
    """Raises typer.BadParameter where the report needs a moment and there is none, or the other way round."""
    if (asked.takes == "moment") is not (at is not None):
        msg = f"{asked.name} {'takes no moment' if at else 'needs the moment that it compares before with after of'}"
        raise typer.BadParameter(msg, param_hint="--at")
    if at and not since < at < (until or datetime.now(UTC)):
        msg = f"{at.isoformat()} is not between --since ({since.isoformat()}) and --until; there must be sagas on both sides"
        raise typer.BadParameter(msg, param_hint="--at")


def targets_for(asked: Report, file: Path | None, settings: Settings) -> list[Target] | None:
    """The targets, where the report takes some.

    Raises:
        typer.BadParameter: there is no file of them, or no use for one.
        InvalidTargetsError: the file holds none.
    """
    from warehouse import targets  # noqa: PLC0415

    if asked.takes != "targets":
        if file:
            msg = f"{asked.name} takes no targets"
            raise typer.BadParameter(msg, param_hint="--targets")
        return None
    file = file or (Path(settings.targets_file) if settings.targets_file else None)
    if file is None:
        msg = "sla_compliance needs a YAML file of targets; see docs/reports.md, or set SAGASCOPE_TARGETS_FILE"
        raise typer.BadParameter(msg, param_hint="--targets")
    return targets.load(file)


@sagas.command("list")
def list_sagas(
    *,
    status: Statuses = None,
    saga: Saga = "*",
    since: Since = None,
    until: Until = None,
    attribute: Attributes = None,
    order: Annotated[Order, typer.Option(help="What comes first.")] = Order.STARTED,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    output: Annotated[Format, typer.Option("--format", help="How rows are printed.")] = Format.TABLE,
) -> None:
    """Runs that ended since then, and open ones of which something was heard since then."""
    from warehouse import reports  # noqa: PLC0415

    query, parameters = reports.ask_runs(outcomes(status), order.value, limit, saga, entries_of(attribute))
    with open_history(_settings(), since, until) as tables:
        answer = tables.sql(query, parameters)
        print_rows(answer.columns, answer.fetchall(), output)


@sagas.command()
def count(
    *,
    status: Statuses = None,
    saga: Saga = "*",
    since: Since = None,
    until: Until = None,
    attribute: Attributes = None,
    output: Annotated[Format, typer.Option("--format", help="How rows are printed.")] = Format.TABLE,
) -> None:
    """How many runs there are of each kind and status."""
    from warehouse import reports  # noqa: PLC0415

    query, parameters = reports.count_runs(outcomes(status), saga, entries_of(attribute))
    with open_history(_settings(), since, until) as tables:
        answer = tables.sql(query, parameters)
        print_rows(answer.columns, answer.fetchall(), output)


@sagas.command()
def show(
    identity: Annotated[str, typer.Argument(metavar="ID", help="A saga's id, or a run's.")],
    since: Since = None,
    until: Until = None,
) -> None:
    """Draw the timeline of a run: each execution of a step, each undoing. Of a saga that ran again, the newest run.

    Exit code 1 where no event has that id.
    """
    from pipelines import timeline  # noqa: PLC0415
    from warehouse import whole_runs  # noqa: PLC0415

    with open_history(_settings(), since, until) as tables:
        found = whole_runs.find(tables, identity)
    if found is None:
        console.print(f"no event of a saga or a run {identity!r} in the history asked for", markup=False)
        raise typer.Exit(1)
    console.print(timeline.draw(found.run, found.steps))
    if found.earlier:
        console.print(f"earlier runs of this saga: {', '.join(found.earlier)}", markup=False)


def entries_of(attributes: list[str] | None) -> dict[str, str]:
    """Attributes as written on the command line.

    Raises:
        typer.BadParameter: one is not written as key=value.
    """
    entries = {}
    for text in attributes or ():
        key, sign, value = text.partition("=")
        if not (key and sign):
            msg = f"{text!r} is no attribute; write key=value, like tenant=acme"
            raise typer.BadParameter(msg, param_hint="--attribute")
        entries[key] = value
    return entries


def outcomes(statuses: list[Status] | None) -> list[str]:
    """The statuses as the tables have them."""
    plain = [status.value for status in Status if status is not Status.FAILED]
    if not statuses:
        return plain
    failed = [value for value in plain if value not in (Status.OPEN, Status.COMPLETED)]
    asked = {value for status in statuses for value in (failed if status is Status.FAILED else [status.value])}
    return sorted(asked)


def _settings() -> Settings:
    return Settings.from_environment(os.environ)
