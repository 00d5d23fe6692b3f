"""`sagascope import`: history from elsewhere, straight into the tables."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.moments import parse_moment
from pipelines.terminal import make_console, rows_as_table
from warehouse.imports.files import EventFiles, FileFormat
from warehouse.settings import Settings

if TYPE_CHECKING:
    from warehouse.imports.days import DayImport
    from warehouse.imports.source import Loaded, Source, Span

imports = typer.Typer(
    help="Bring in history from elsewhere, straight into the tables. What is there already is not stored twice.",
    no_args_is_help=True,
)
console = make_console()

Since = Annotated[
    datetime | None,
    typer.Option(parser=parse_moment, metavar="MOMENT", help="Only days from this one on, UTC: 2026-11-16, or 7d ago."),
]
Until = Annotated[
    datetime | None, typer.Option(parser=parse_moment, metavar="MOMENT", help="Only days that begin before it.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count; store nothing.")]


@imports.command()
def sagaz(
    url_or_file: Annotated[
        str,
        typer.Argument(metavar="URL_OR_FILE", help="postgresql://user:password@host/database, or a SQLite file."),
    ],
    since: Since = None,
    until: Until = None,
    *,
    dry_run: DryRun = False,
) -> None:
    """The outbox of sagaz 1.5 and its archive: what its OutboxSagaListener wrote of each saga.

    It tells neither of starts nor of durations: a duration is the time since the row before it, and marked as derived.

    Example: sagascope import sagaz postgresql://sagaz:secret@db/orders --since 2026-10-01
    """
    from warehouse.imports.outbox import outbox_at  # noqa: PLC0415 - so that --help is there at once

    _store(outbox_at(url_or_file), since, until, dry_run=dry_run)


@imports.command()
def files(
    patterns: Annotated[
        list[str], typer.Argument(metavar="PATTERN…", help="Paths, or patterns like 'old/**/*.jsonl'.")
    ],
    file_format: Annotated[
        FileFormat | None, typer.Option("--format", help="Of all files. Default: each by its suffix.")
    ] = None,
    since: Since = None,
    until: Until = None,
    *,
    dry_run: DryRun = False,
) -> None:
    """Files of events: JSON lines as the topic has them, or Parquet with the columns of `events`.

    Exit code 1 where a file is damaged: nothing of it is imported, and the others are.

    Example: sagascope import files 'exports/**/*.parquet' old.jsonl
    """
    _store(EventFiles(patterns, file_format), since, until, dry_run=dry_run)


def _store(source: Source, since: datetime | None, until: datetime | None, *, dry_run: bool) -> None:
    from warehouse.imports.days import open_import  # noqa: PLC0415

    settings, now = Settings.from_environment(os.environ), datetime.now(UTC)
    console.print(f"reading {source}", markup=False, highlight=False)
    with open_import(settings, source, _span(since, until, now), now=now, dry_run=dry_run) as opened:
        told = []
        days = opened.days()
        with console.status("") as status:
            for number, day in enumerate(days, start=1):
                status.update(f"{day or 'rows without a time'}, {number} of {len(days)}")
                told.append(opened.store(day))
    _print_days(told, dry_run=dry_run)
    _print_rest(opened.loaded)
    if not dry_run:
        _print_recompute({one.day for one in told if one.day and one.imported}, now.date())
    if opened.loaded.damaged:
        raise typer.Exit(1)


def _span(since: datetime | None, until: datetime | None, now: datetime) -> Span:
    """The days [first, until) that hold a moment of [since, until).

    Raises:
        typer.BadParameter: since is not before until, or a day is in the future.
    """
    from warehouse.imports.source import DAY, Span  # noqa: PLC0415

    if since and since >= (until or now):
        end = f"--until {until.isoformat()}" if until else f"now, {now.isoformat(timespec='seconds')}"
        msg = f"--since {since.isoformat()} is not before {end}: give an earlier one"
        raise typer.BadParameter(msg)
    last = until and (until.astimezone(UTC) - timedelta(microseconds=1)).date()
    if last and last > now.date():
        msg = f"--until {until.isoformat() if until else ''} asks for days in the future: today is {now.date()}, UTC"
        raise typer.BadParameter(msg)
    return Span(since and since.astimezone(UTC).date(), last and last + DAY)


def _print_days(told: list[DayImport], *, dry_run: bool) -> None:
    if not told:
        console.print("no rows of these days: nothing to import")
        return
    names = ("imported", "already_there", "known_live", "unclassified", "invalid")
    heads = ("would be imported" if dry_run else "imported", "already there", "known live", "unclassified", "invalid")
    lines = [("no time" if one.day is None else str(one.day), *(getattr(one, name) for name in names)) for one in told]
    lines.append(("all", *(sum(getattr(one, name) for one in told) for name in names)))
    console.print(rows_as_table(("day", *heads), lines))
    if known := sum(one.known_live for one in told):
        sagas = sum(one.known_sagas for one in told)
        console.print(
            f"known live: {known:,} events were left out, as the topic has told of their sagas ({sagas:,}, counted each day)"
        )
    refused = sum(one.unclassified + one.invalid for one in told)
    if refused:
        kept = "would be kept" if dry_run else "are kept"
        console.print(f"{refused:,} rows are no events and {kept} in rejected_events, the first of each day:")
        for one in told:
            for reason in one.reasons:
                console.print(f"  - {reason}", markup=False, highlight=False)


def _print_rest(loaded: Loaded) -> None:
    for number, where in ((loaded.before, "before"), (loaded.after, "after")):
        if number:
            console.print(f"{number:,} rows are of days {where} those asked for, and were left out")
    for damaged in loaded.damaged:
        console.print(f"damaged, nothing of it is imported: {damaged}", style="bold red", markup=False, highlight=False)


def _print_recompute(days: set[date], today: date) -> None:
    from warehouse.imports.days import recompute_of  # noqa: PLC0415

    if days:
        console.print("Statistics that are stored of these days do not count what is imported. Compute them again:")
        for command in recompute_of(days, today):
            console.print(f"  {command}", markup=False, highlight=False)
