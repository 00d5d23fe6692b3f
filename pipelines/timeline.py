"""A run as a timeline in the terminal: a bar for each execution of a step and for each undoing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.markup import escape
from rich.text import Text

from pipelines.terminal import plain_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from rich.table import Table

BAR_WIDTH = 40
COLOURS = {
    ("step", "completed"): "green",
    ("step", "failed"): "red",
    ("step", "started"): "cyan",
    ("compensation", "completed"): "yellow",
    ("compensation", "failed"): "bold red",
    ("compensation", "started"): "cyan",
}
MARKS = {"completed": "█", "failed": "▓", "started": "░"}

Row = dict[str, Any]


def draw(run: Row, steps: Sequence[Row]) -> Group:
    """A row of `runs` and its rows of `step_runs`, in order, as something that rich prints."""
    return Group(*_facts(run), "", _bars(run, steps))


def _facts(run: Row) -> list[Text]:
    status = run["outcome"] or "open"
    colour = {"completed": "green", "open": "cyan", "rolled_back": "yellow"}.get(status, "red")
    took = "" if run["total_ms"] is None else f" in {_ms(run['total_ms'])}"
    lines = [
        Text.assemble((run["saga_name"], "bold"), f" {run['saga_id']}  ", (f"{status}{took}", f"bold {colour}")),
        Text(f"run {run['run_id']}, started {run['started_at']:%Y-%m-%d %H:%M:%S} UTC"),
    ]
    if run["error_type"] or run["failing_step"]:
        where = f"{run['failing_step']} failed: " if run["failing_step"] else ""
        lines.append(Text(f"{where}{run['error_type'] or ''} {run['error_message'] or ''}".rstrip(), "red"))
    if run["residual_effects"]:
        effects = ", ".join(f"{effect['step_name']} ({effect['reason']})" for effect in run["residual_effects"])
        lines.append(Text(f"left standing: {effects}"))
    if run["wasted_ms"]:
        lines.append(Text(f"wasted: {_ms(run['wasted_ms'])} of work undone and of undoing"))
    if run["attributes"]:
        lines.append(Text(", ".join(f"{key}={value}" for key, value in sorted(run["attributes"].items())), "dim"))
    return lines


def _bars(run: Row, steps: Sequence[Row]) -> Table:
    table = plain_table()
    for column in ("step", "timeline"):
        table.add_column(column, no_wrap=True)
    for column in ("at", "took"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("status")
    begin = min([run["started_at"], *(_start(step) for step in steps)])
    ends = [run["ended_at"] or run["last_event_at"], *(step["ended_at"] for step in steps if step["ended_at"])]
    end = max(ends)
    for step in steps:
        undo = "undo " if step["phase"] == "compensation" else ""
        attempt = f" (attempt {step['attempt']})" if step["attempt"] > 1 else ""
        error = f": {step['error_type']}" if step["error_type"] else ""
        table.add_row(
            escape(f"{undo}{step['step_name']}{attempt}"),
            Text(_bar(step, begin, end), COLOURS[step["phase"], step["status"]]),
            f"+{_ms(round((_start(step) - begin).total_seconds() * 1000))}",
            "" if step["duration_ms"] is None else _ms(step["duration_ms"]),
            escape(f"{step['status']}{error}"),
        )
    return table


def _bar(step: Row, begin: datetime, end: datetime) -> str:
    """At least one mark wide, within the width."""
    whole = (end - begin).total_seconds() or 1.0
    first = min(int((_start(step) - begin).total_seconds() / whole * BAR_WIDTH), BAR_WIDTH - 1)
    stop = step["ended_at"] or end
    last = max(first + 1, min(round((stop - begin).total_seconds() / whole * BAR_WIDTH), BAR_WIDTH))
    return (" " * first + MARKS[step["status"]] * (last - first)).ljust(BAR_WIDTH)


def _start(step: Row) -> datetime:
    start: datetime = step["started_at"] or step["ended_at"]
    return start


def _ms(number: int) -> str:
    return f"{number:,} ms" if number < 10_000 else f"{number / 1000:,.1f} s"
