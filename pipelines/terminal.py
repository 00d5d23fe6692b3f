"""How rows look in a terminal."""

from __future__ import annotations

import csv
import json
import math
import sys
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterable

WIDTH_WITHOUT_TERMINAL = 120


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


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
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, list):
        return escape(", ".join(map(str, value)))
    if isinstance(value, float):
        return f"{value:,.4f}".rstrip("0").rstrip(".")
    return escape(str(value))


def print_rows(columns: list[str], rows: list[tuple[object, ...]], output: Format) -> None:
    """Print rows to standard output: a table for people, CSV, or JSON with an object a line. Lists and maps in CSV are JSON."""
    match output:
        case Format.TABLE:
            make_console().print(rows_as_table(columns, rows))
        case Format.CSV:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(columns)
            nested = (list, dict)
            writer.writerows([_json(v) if isinstance(v, nested) else v for v in row] for row in rows)
        case Format.JSON:
            for row in rows:
                sys.stdout.write(_json(dict(zip(columns, row, strict=True))) + "\n")


def _json(value: object) -> str:
    return json.dumps(_json_value(value), default=str)


def _json_value(value: object) -> object:
    """As JSON has it: numbers as numbers, moments in ISO 8601, no NaN."""
    if isinstance(value, dict):
        return {key: _json_value(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_json_value(inner) for inner in value]
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.isoformat() if isinstance(value, date | datetime) else value
