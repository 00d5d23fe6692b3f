"""`sagascope quality`: whether the tables' rows are what they should be, day by day."""

from __future__ import annotations

import os
import sys
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from pipelines.moments import parse_moment
from pipelines.terminal import make_console, rows_as_table
from warehouse.settings import Settings
from warehouse.tables import TABLES

if TYPE_CHECKING:
    from warehouse.quality import Finding
    from warehouse.tables import Table

console = make_console()


class Format(StrEnum):
    """How findings are printed."""

    TABLE = "table"
    JSON = "json"


def parse_day(text: str) -> date:
    """A day, UTC: 2026-11-23, `today` or `yesterday`.

    Raises:
        typer.BadParameter: the text is none of these.
    """
    today = datetime.now(UTC).date()
    if text in {"today", "yesterday"}:
        return today if text == "today" else today - timedelta(days=1)
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        msg = f"{text!r} is no day; write it as 2026-11-23, today or yesterday"
        raise typer.BadParameter(msg) from error


def parse_table(text: str) -> Table:
    """A table by its name.

    Raises:
        typer.BadParameter: no table has it; names those there are.
    """
    named = {table.name: table for table in TABLES}
    if text not in named:
        msg = f"{text!r} is no table; the tables are {', '.join(named)}"
        raise typer.BadParameter(msg)
    return named[text]


def quality(
    day: Annotated[
        date | None,
        typer.Option(
            parser=parse_day, metavar="DAY", help="The day, UTC: 2026-11-23, yesterday, or today, the default."
        ),
    ] = None,
    since: Annotated[
        datetime | None,
        typer.Option(
            parser=parse_moment,
            metavar="MOMENT",
            help="Each day with rows, from that of this moment: 2026-11-16, or 7d ago.",
        ),
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(parser=parse_moment, metavar="MOMENT", help="Only days that begin before it.")
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(metavar="TABLE", help="Only this table; may be given again. Default: all.")
    ] = None,
    output: Annotated[
        Format, typer.Option("--format", help="json: one finding a line, passed ones too.")
    ] = Format.TABLE,
    *,
    docs: Annotated[
        bool, typer.Option("--docs", help="Write the results as a site, Great Expectations' Data Docs.")
    ] = False,
) -> None:
    """Judge the rows of each table by its rules: keys, required columns, known values, durations, runs, windows, partitions.

    Exit code 1 where a rule is broken whose severity is error. Example: sagascope quality --day yesterday --table events
    """
    from warehouse import quality as judged

    settings = Settings.from_environment(os.environ)
    now = datetime.now(UTC)
    tables = list(dict.fromkeys(map(parse_table, table or []))) or list(TABLES)
    if since is None and until is None:
        days = [asked_day(day, now)]
    elif day is not None:
        msg = f"--day {day} is one day, --since and --until are many: give the one or the other"
        raise typer.BadParameter(msg)
    else:
        first, last = asked_range(since, until, now)
        days = [one for one in judged.days_with_rows(settings, tables) if first <= one < last]
        if not days:
            typer.echo(
                f"no rows from {first} to {last - timedelta(days=1)}: nothing to judge", err=output is Format.JSON
            )
            return
    site = settings.data_docs if docs else None
    findings = judged.inspect(settings, tables, days, site)
    if output is Format.JSON:
        for finding in findings:
            sys.stdout.write(msgspec.json.encode(finding).decode() + "\n")
    else:
        print_findings(findings)
    if site:
        typer.echo(f"Data Docs: {(site / 'index.html').as_uri()}", err=output is Format.JSON)
    if any(finding.is_error for finding in findings):
        raise typer.Exit(1)


def asked_day(day: date | None, now: datetime) -> date:
    """The day that is asked for; today where none is.

    Raises:
        typer.BadParameter: it is in the future.
    """
    today = now.date()
    if day and day > today:
        msg = f"--day {day} is in the future: today is {today}, UTC; no row is of a later day"
        raise typer.BadParameter(msg)
    return day or today


def asked_range(since: datetime | None, until: datetime | None, now: datetime) -> tuple[date, date]:
    """The days [first, last) that hold a moment of [since, until).

    Raises:
        typer.BadParameter: since is not before until, or in the future.
    """
    since, until = since or datetime.min.replace(tzinfo=UTC), until or now
    if since >= until:
        msg = f"--since {since.isoformat()} is not before --until {until.isoformat()}: give an earlier one"
        raise typer.BadParameter(msg)
    if since > now:
        msg = f"--since {since.isoformat()} is in the future: it is {now.isoformat(timespec='seconds')}"
        raise typer.BadParameter(msg)
    last = until.astimezone(UTC) - timedelta(microseconds=1)
    return since.astimezone(UTC).date(), last.date() + timedelta(days=1)


def print_findings(findings: list[Finding]) -> None:
    """One line a table and day, then each rule that is broken, with some of the rows that break it."""
    lines = []
    for (table, day), group in groupby(findings, key=lambda one: (one.table, one.day)):
        of = list(group)
        errors = sum(one.is_error for one in of)
        warnings = sum(not one.passed for one in of) - errors
        verdict = "ERROR" if errors else "warning" if warnings else "passed" if of[0].rows else "no rows"
        lines.append((table, day, of[0].rows, len(of), errors, warnings, verdict))
    console.print(rows_as_table(("table", "day", "rows", "rules", "errors", "warnings", "verdict"), lines))
    for finding in findings:
        if not finding.passed:
            _print_broken(finding)


def _print_broken(finding: Finding) -> None:
    style = "bold red" if finding.is_error else "yellow"
    console.print(f"\n{finding.severity}: {finding.table} {finding.day}: {finding.rule}", style=style, highlight=False)
    console.print(f"  {finding.promise}. Not so of {finding.failing:,}:", highlight=False, markup=False)
    for row in finding.sample:
        key = ", ".join(f"{name} {value}" for name, value in row.key.items())
        console.print(f"  - {key}: {row.what}" if key else f"  - {row.what}", highlight=False, markup=False)
    if finding.failing > len(finding.sample):
        console.print(f"  … and {finding.failing - len(finding.sample):,} more", highlight=False)
