"""The events as CloudEvents 1.0: a JSON line each, structured mode, as `sagascope.cloudevents` has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sagascope.cloudevents import structured
from sagascope.events import EventType, SagaEvent
from warehouse import saga_runs
from warehouse.exports.whole_file import ExportError, replacing

if TYPE_CHECKING:
    from pathlib import Path

    from warehouse.history import History

BATCH_ROWS = 10_000
_LINE_LIMIT = 1 << 20
_FIELDS = SagaEvent.__struct_fields__
_TYPES = {str(one): one for one in EventType}


def write(tables: History, path: Path, *, force: bool = False) -> int:
    """Write the events of the history, each id once, in order of their time; returns how many.

    Args:
        tables: The history, opened for the span.
        path: The file. One that is an export already is replaced.
        force: Replace any file.

    Raises:
        ExportError: there is no event, or the file is none of ours.
    """
    columns = ", ".join(_column(name) for name in _FIELDS)
    query = (
        f'SELECT {columns} FROM ({saga_runs.single_events_query()}) ORDER BY "timestamp", run_id, "sequence", event_id'  # noqa: S608 - ours
    )
    number = 0
    with replacing(path, is_export, force=force) as partial, partial.open("wb") as file:
        for batch in tables.sql(query).to_arrow_reader(BATCH_ROWS):
            rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            file.writelines(structured(_event(row)) + b"\n" for row in rows)
            number += batch.num_rows
        if not number:
            msg = "no event in that span: nothing to export"
            raise ExportError(msg)
    return number


def _column(name: str) -> str:
    return 'epoch_ms("timestamp") AS "timestamp"' if name == "timestamp" else f'"{name}"'


def _event(row: tuple[object, ...]) -> SagaEvent:
    """As `sagascope.decode` had it."""
    values = dict(zip(_FIELDS, row, strict=True))
    values["event_type"] = _TYPES.get(str(values["event_type"]), values["event_type"])
    values["context_keys"] = tuple(values["context_keys"] or ())  # type: ignore[arg-type] # a list of text
    values["attributes"] = dict(values["attributes"] or ())  # type: ignore[call-overload] # pairs of text
    return SagaEvent(**values)  # type: ignore[arg-type] # as the table has them


def is_export(path: Path) -> bool:
    """Whether a file is one that `write` wrote, by its first line."""
    with path.open("rb") as file:
        line = file.readline(_LINE_LIMIT)
    try:
        first = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(first, dict) and str(first.get("type")).startswith("sagascope.") and "specversion" in first
