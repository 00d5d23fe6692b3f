"""The history as an object-centric event log: OCEL 2.0, JSON, which tools of process mining read.

Its objects are the sagas (their type is the kind of saga), `run`s, `step`s of runs and `service`s; its events those of the
history, each id once, tied to the objects that they are about.
"""

from __future__ import annotations

from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from sagascope.events import EventType
from warehouse import saga_runs
from warehouse.exports.whole_file import ExportError, replacing

if TYPE_CHECKING:
    from typing import BinaryIO

    from warehouse.history import History

BATCH_ROWS = 10_000
_SQL = Path(__file__).parents[1] / "sql" / "exports"

EVENT_ATTRIBUTES = {
    "sequence": "integer",
    "attempt": "integer",
    "duration_ms": "integer",
    "total_duration_ms": "integer",
    "error_type": "string",
    "error_message": "string",
    "trace_id": "string",
}
OBJECT_ATTRIBUTES = {
    "run": {"outcome": "string", "failing_step": "string", "total_ms": "integer", "wasted_ms": "integer"},
    "step": {"step_name": "string", "compensable": "boolean", "pivot": "boolean"},
    "service": {},
}
"""By type; a type for each kind of saga comes after them."""


def _id(kind: str, *names: str) -> str:
    """SQL for an object's id, which no other object has: the names are apart, whatever is in them."""
    first = [f"replace(replace({name}, '%', '%25'), '/', '%2F')" for name in names[:-1]]
    return f"'{kind}:' || " + " || '/' || ".join([*first, names[-1]])


_NAMES = {
    "saga": _id("saga", "saga_name", "saga_id"),
    "parent": _id("saga", "parent_name", "parent_saga_id"),
    "run": _id("run", "run_id"),
    "step": _id("step", "run_id", "step_name"),
    "service": _id("service", "service"),
    "saga_type": "CASE WHEN saga_name IN ('run', 'step', 'service') THEN 'saga ' || saga_name ELSE saga_name END",
}


class Written(NamedTuple):
    """How many there are in the file."""

    events: int
    objects: int


def write(tables: History, path: Path, *, force: bool = False) -> Written:
    """Write the events of the history and their objects. Its memory is bounded: rows stream to the file.

    Args:
        tables: The history, opened for the span.
        path: The file. One that is an export already is replaced.
        force: Replace any file.

    Raises:
        ExportError: there is no event, or the file is none of ours.
    """
    kinds = [kind for (kind,) in tables.sql(f"SELECT DISTINCT {_NAMES['saga_type']} FROM events ORDER BY 1").fetchall()]  # noqa: S608 - ours
    if not kinds:
        msg = "no event in that span: nothing to export"
        raise ExportError(msg)
    keys = tables.sql("SELECT DISTINCT unnest(map_keys(attributes)) FROM events ORDER BY 1").fetchall()
    event_attributes = _declared(EVENT_ATTRIBUTES | {f"attributes.{key}": "string" for (key,) in keys})
    object_types = [{"name": kind, "attributes": []} for kind in kinds]
    event_types = [{"name": str(one), "attributes": event_attributes} for one in EventType]
    with replacing(path, is_export, force=force) as partial, partial.open("wb") as file:
        file.write(b",".join([_HEAD, *map(msgspec.json.encode, object_types)]))
        file.write(b'],\n"eventTypes":' + msgspec.json.encode(event_types))
        file.write(b',\n"objects":[')
        objects = _write_rows(file, tables, _statement("ocel_objects"))
        file.write(b'],\n"events":[')
        events = _write_rows(file, tables, _statement("ocel_events"))
        file.write(b"]}\n")
    return Written(events, objects)


def _declared(attributes: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "type": kind} for name, kind in attributes.items()]


_HEAD = b'{"objectTypes":[' + b",".join(
    msgspec.json.encode({"name": name, "attributes": _declared(of)}) for name, of in OBJECT_ATTRIBUTES.items()
)
"""What each of our files begins with."""


def _statement(name: str) -> str:
    text = (_SQL / f"{name}.sql").read_text(encoding="utf-8")
    return Template(text).substitute(_NAMES, single_events=saga_runs.single_events_query())


def _write_rows(file: BinaryIO, tables: History, query: str) -> int:
    """Write the JSON of each row, with commas between; returns how many."""
    number = 0
    for batch in tables.sql(query).to_arrow_reader(BATCH_ROWS):
        if batch.num_rows:
            file.write((",\n" if number else "\n").encode() + ",\n".join(batch.column(0).to_pylist()).encode())
        number += batch.num_rows
    return number


def is_export(path: Path) -> bool:
    """Whether a file is one that `write` wrote, by its beginning."""
    with path.open("rb") as file:
        return file.read(len(_HEAD)) == _HEAD
