"""Commands that look at audit logs: `sagascope audit verify`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.terminal import make_console

if TYPE_CHECKING:
    from sagascope.audit.chain import AuditLog, Verification

SQLITE_HEADER = b"SQLite format 3\0"

audit = typer.Typer(help="Look at audit logs.", no_args_is_help=True)
console = make_console()


@audit.callback()
def _group() -> None:
    """Keeps `verify` a command of its own while it is the only one."""


@audit.command()
def verify(
    log: Annotated[
        str,
        typer.Argument(
            metavar="PATH_OR_DSN",
            help="A file of JSON lines, a SQLite file, or postgresql://… (the password better from PGPASSWORD).",
        ),
    ],
    head: Annotated[
        str | None,
        typer.Option(metavar="HASH", help="The head that an earlier verification printed: the log must still have it."),
    ] = None,
    table: Annotated[str, typer.Option(help="The table, in a database.")] = "sagascope_audit",
) -> None:
    """Check every entry of an audit log against its chain of hashes; print the head, to be kept elsewhere.

    Exit code 1 where an entry was changed, removed, added or moved, which names the first; and where the log can't be read.
    Entries that were removed at the very end are found only with --head.
    """
    found = asyncio.run(_verification(log, head, table))
    if found.broken is not None:
        console.print(f"broken: {found.broken}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        console.print(
            f"{found.entries:,} entries before it are whole; the last has the hash {found.head}", soft_wrap=True
        )
        raise typer.Exit(1)
    console.print(f"whole: {found.entries:,} entries", style="bold green", highlight=False)
    console.print(f"head: {found.head}", highlight=False, soft_wrap=True)
    if head is None:
        console.print("Keep the head where nobody who writes the log can; --head then shows whether its end is missing")


async def _verification(log: str, head: str | None, table: str) -> Verification:
    from sagascope.errors import DeliveryError  # noqa: PLC0415 - so that --help is there at once

    opened = _opened(log, table)
    try:
        return await opened.verify(head)
    except (DeliveryError, ModuleNotFoundError) as error:
        raise OSError(str(error)) from error  # which the command line tells in a line
    finally:
        await opened.close()


def _opened(log: str, table: str) -> AuditLog:
    """The log, by what the path leads to."""
    from sagascope.audit import JsonLinesAuditLog, SQLAuditLog  # noqa: PLC0415 - so that --help is there at once
    from sagascope.audit.sql import is_dsn  # noqa: PLC0415

    if is_dsn(log):
        return SQLAuditLog(log, table=table, create_table=False)
    with Path(log).open("rb") as file:
        is_sqlite = file.read(len(SQLITE_HEADER)) == SQLITE_HEADER
    return SQLAuditLog(Path(log), table=table) if is_sqlite else JsonLinesAuditLog(log)
