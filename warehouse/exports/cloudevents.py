"""The events as CloudEvents 1.0: a JSON line each, structured mode, as `sagascope.cloudevents` has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sagascope.cloudevents import structured
from warehouse import saga_runs
from warehouse.event_rows import EVENT_COLUMNS, event_of
from warehouse.exports.whole_file import ExportError, replacing

if TYPE_CHECKING:
    from pathlib import Path

    from warehouse.history import History

BATCH_ROWS = 10_000
_LINE_LIMIT = 1 << 20


def write(tables: History, path: Path, *, force: bool = False) -> int:
    """Write the events of the history, each id once, in order of their time; returns how many.

    Args:
        tables: The history, opened for the span.
        path: The file. One that is an export already is replaced.
        force: Replace any file.

    Raises:
        ExportError: there is no event, or the file is none of ours.
    """
    query = f'SELECT {EVENT_COLUMNS} FROM ({saga_runs.single_events_query()}) ORDER BY "timestamp", run_id, "sequence", event_id'  # noqa: S608 - ours
    number = 0
    with replacing(path, is_export, force=force) as partial, partial.open("wb") as file:
        for batch in tables.sql(query).to_arrow_reader(BATCH_ROWS):
            rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            file.writelines(structured(event_of(row)) + b"\n" for row in rows)
            number += batch.num_rows
        if not number:
            msg = "no event in that span: nothing to export"
            raise ExportError(msg)
    return number


def is_export(path: Path) -> bool:
    """Whether a file is one that `write` wrote, by its first line."""
    with path.open("rb") as file:
        line = file.readline(_LINE_LIMIT)
    try:
        first = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(first, dict) and str(first.get("type")).startswith("sagascope.") and "specversion" in first
