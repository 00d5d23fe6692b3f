"""How rows look in a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable

WIDTH_WITHOUT_TERMINAL = 120


def make_console() -> Console:
    """Standard output; as wide as the terminal, or 120 columns where there is none."""
    return Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)


def plain_table() -> Table:
    """A table with no more lines than it needs."""
    return Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)


def rows_as_table(columns: Iterable[str], rows: Iterable[tuple[Any, ...]]) -> Table:
    """Rows of a query; numbers to the right, NULL dimmed."""
    table, rows = plain_table(), list(rows)
    for number, column in enumerate(columns):
        numeric = any(isinstance(row[number], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value: object) -> str:
    if value is None:
        return "[dim]NULL[/]"
    if isinstance(value, float):
        return f"{value:,.4f}".rstrip("0").rstrip(".")
    return escape(str(value))
