"""Commands that mend and tidy the tables: `sagascope maintain dedup | retain | compact | expire | orphans | all`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.markup import escape

from pipelines import batch_jobs, processes
from pipelines.quality_command import parse_table
from pipelines.terminal import make_console, rows_as_table
from warehouse.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from warehouse.maintenance import Outcome

SHOWN = {
    "retain": ("table", "rows_deleted", "files_before", "files_after", "kept_since"),
    "compact": ("table", "files_before", "files_after", "bytes_before", "bytes_after", "left", "seconds"),
    "expire": ("table", "snapshots_expired", "snapshots_kept"),
    "orphans": ("table", "orphan_files", "orphan_bytes"),
}
"""Of each action, what is told of a table."""

maintain = typer.Typer(help="Mend and tidy the tables.", no_args_is_help=True)
console = make_console()

Tables = Annotated[
    list[str] | None,
    typer.Option("--table", metavar="TABLE", help="Only this table; may be given again. Default: all."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


@maintain.command()
def dedup(
    *, dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False
) -> None:
    """Keep one row of each event id in `events`: the one of the lowest partition and offset. Safe while the job runs.

    The statistics stay as they are: `sagascope parity --mend` then recomputes the hours that differ.
    """
    from contextlib import closing

    from warehouse import duplicates
    from warehouse.catalog import open_catalog

    settings = Settings.from_environment(os.environ)
    with closing(open_catalog(settings)) as catalog:
        days = duplicates.find(settings, catalog) if dry_run else duplicates.remove(settings, catalog)
    would = "would be " if dry_run else ""
    for day in days:
        hours = ", ".join(f"{hour:%H:%M}" for hour in day.hours)
        console.print(f"{day.day}: {day.rows:,} rows of {day.ids:,} ids {would}removed; hours {hours}", highlight=False)
    rows = sum(day.rows for day in days)
    console.print(f"{rows:,} rows {would}removed from events" if rows else "every event id has one row in events")
    if rows:
        console.print(
            "Statistics of these hours may count them twice: `sagascope parity --mend` recomputes those that do"
        )


@maintain.command()
def retain(tables: Tables = None, *, dry_run: DryRun = False) -> None:
    """Delete days that are older than the settings keep: SAGASCOPE_EVENTS_KEPT_DAYS and its like. By default all are kept.

    Whole days only, and never definitions. Statistics may be kept for longer than the events that they were computed from.
    """
    _run(["retain"], tables, dry_run=dry_run)


@maintain.command()
def compact(tables: Tables = None, *, dry_run: DryRun = False) -> None:
    """Make few large files of many small ones, sorted by time. Rows, and what readers have opened, stay as they are.

    Example: sagascope maintain compact --table events --dry-run
    """
    _run(["compact"], tables, dry_run=dry_run)


@maintain.command()
def expire(tables: Tables = None, *, dry_run: DryRun = False) -> None:
    """Forget old snapshots and delete the files that only they needed; the job does so each minute.

    What a reader opened within SAGASCOPE_SNAPSHOTS_KEPT_MINUTES stays, and what a job that resumes looks for.
    """
    _run(["expire"], tables, dry_run=dry_run)


@maintain.command()
def orphans(tables: Tables = None, *, dry_run: DryRun = False) -> None:
    """Delete files that no snapshot names: what a writer that was killed has left behind.

    They must be older than SAGASCOPE_ORPHANS_KEPT_HOURS; and those that a stopped job may still commit stay for as long as it is stopped.
    """
    _run(["orphans"], tables, dry_run=dry_run)


@maintain.command(name="all")
def everything(tables: Tables = None, *, dry_run: DryRun = False) -> None:
    """All of these: retain, compact, expire, orphans. Safe while the job, a recompute or readers are at work."""
    _run(list(SHOWN), tables, dry_run=dry_run)


def _run(actions: list[str], tables: list[str] | None, *, dry_run: bool) -> None:
    """Run the upkeep as a process, and tell what it did.

    Raises:
        typer.Exit: something could not be done.
        processes.ProcessFailedError: it ended by itself.
    """
    from warehouse.maintenance import Outcome

    settings = Settings.from_environment(os.environ)
    names = dict.fromkeys(parse_table(name).name for name in tables or [])
    options = [*(f"--table={name}" for name in names), *(["--dry-run"] if dry_run else [])]
    ended = batch_jobs.run(settings, console, "upkeep", [*actions, *options], status=f"maintain {' '.join(actions)}")
    outcomes = [msgspec.convert(line, Outcome) for line in ended.said if "action" in line]
    for action in actions:
        if of := [outcome for outcome in outcomes if outcome.action == action]:
            _print(action, of, dry_run=dry_run)
    reasons = [line for line in ended.said if line.get("reason")]
    for line in reasons:
        what = f"{line['action']} {line['table']}: " if "action" in line else ""
        console.print(f"[bold red]{escape(what)}[/]{escape(line['reason'])}", highlight=False)
    if ended.code and not reasons:
        msg = f"the upkeep ended with exit code {ended.code}: {processes.last_lines(ended.log)}"
        raise processes.ProcessFailedError(msg)
    if ended.code:
        raise typer.Exit(1)


def _print(action: str, outcomes: Iterable[Outcome], *, dry_run: bool) -> None:
    console.print(f"[bold]{action}[/]{', what would be done' if dry_run else ''}")
    names = SHOWN[action]
    console.print(
        rows_as_table(
            [name.replace("_", " ") for name in names],
            [tuple(_told(getattr(one, name)) for name in names) for one in outcomes if not one.reason],
        )
    )


def _told(value: object) -> object:
    return "all" if value is None else value
