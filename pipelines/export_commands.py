"""`sagascope export`: the history as files that other programs open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pipelines.history_commands import Since, Until  # noqa: TC001 - Typer reads the annotations
from pipelines.interruptible_history import open_history
from pipelines.terminal import make_console
from warehouse.settings import Settings

export = typer.Typer(help="Write the history to a file that other programs open.", no_args_is_help=True)
console = make_console()

File = Annotated[
    Path, typer.Argument(metavar="FILE", help="Where to. An older export there is replaced when the new one is whole.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file whatever it is.")]


@export.command("duckdb")
def to_duckdb(file: File, *, since: Since = None, until: Until = None, force: Force = False) -> None:
    """A DuckDB file for BI tools: events, runs, steps, statistics, definitions; table `about` says how old it is.

    Example: sagascope export duckdb sagas.duckdb --since 30d
    """
    from warehouse.exports import duckdb_file  # noqa: PLC0415 - so that --help is there at once

    settings = Settings.from_environment(os.environ)
    with open_history(settings, since, until) as tables:
        rows = duckdb_file.write(tables, settings, file, since=since, until=until, force=force)
    for table, number in rows.items():
        console.print(f"{table}: {number:,} rows", highlight=False)
    _print_size(file)


@export.command()
def ocel(file: File, *, since: Since = None, until: Until = None, force: Force = False) -> None:
    """An object-centric event log for process mining: OCEL 2.0, JSON. Objects are sagas, runs, steps and services.

    Example: sagascope export ocel sagas.jsonocel --since 7d
    """
    from warehouse.exports import ocel as ocel_file  # noqa: PLC0415

    with open_history(Settings.from_environment(os.environ), since, until) as tables:
        written = ocel_file.write(tables, file, force=force)
    console.print(f"{written.events:,} events of {written.objects:,} objects", highlight=False)
    _print_size(file)


@export.command()
def cloudevents(file: File, *, since: Since = None, until: Until = None, force: Force = False) -> None:
    """The events as CloudEvents 1.0, a JSON line each.

    Example: sagascope export cloudevents events.jsonl --since 1d
    """
    from warehouse.exports import cloudevents as cloudevents_file  # noqa: PLC0415

    with open_history(Settings.from_environment(os.environ), since, until) as tables:
        number = cloudevents_file.write(tables, file, force=force)
    console.print(f"{number:,} events", highlight=False)
    _print_size(file)


def _print_size(file: Path) -> None:
    console.print(f"{file}: {file.stat().st_size / 1e6:,.1f} MB", markup=False, highlight=False, soft_wrap=True)
