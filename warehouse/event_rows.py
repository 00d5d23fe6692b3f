"""Events as rows of `events`, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.io.pyarrow import schema_to_pyarrow

from sagascope.events import EventType, SagaEvent
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

_FIELDS = SagaEvent.__struct_fields__
_TYPES = {str(one): one for one in EventType}

EVENT_COLUMNS = ", ".join(
    'epoch_ms("timestamp") AS "timestamp"' if name == "timestamp" else f'"{name}"' for name in _FIELDS
)
"""SQL for the columns that `event_of` takes, in its order."""


def event_of(row: tuple[object, ...]) -> SagaEvent:
    """The event of a row, as `sagascope.decode` had it."""
    values = dict(zip(_FIELDS, row, strict=True))
    values["event_type"] = _TYPES.get(str(values["event_type"]), values["event_type"])
    values["context_keys"] = tuple(values["context_keys"] or ())  # type: ignore[arg-type] # a list of text
    values["attributes"] = dict(values["attributes"] or ())  # type: ignore[call-overload] # pairs of text
    return SagaEvent(**values)  # type: ignore[arg-type] # as the table has them


def event_rows(events: Sequence[SagaEvent], topic: str, offsets: Sequence[int]) -> pa.Table:
    """A row an event that came through no topic, with the columns of `events`.

    Args:
        events: In any order; none are no rows.
        topic: What stands for the topic that they did not come through.
        offsets: One an event, its place in that; the partition is 0.
    """
    schema = schema_to_pyarrow(EVENTS.schema, include_field_ids=False)
    if not events:
        return schema.empty_table()
    columns = zip(*map(msgspec.structs.astuple, events), strict=True)
    values: dict[str, Any] = dict(zip(_FIELDS, columns, strict=True))
    values["attributes"] = [list(one.items()) for one in values["attributes"]]
    times = pc.multiply(pa.array(values.pop("timestamp"), pa.int64()), 1000)
    values["source_topic"] = [topic] * len(events)
    values["source_partition"] = [0] * len(events)
    values["source_offset"] = offsets
    arrays = [
        times.cast(field.type) if field.name == "timestamp" else pa.array(values[field.name], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
