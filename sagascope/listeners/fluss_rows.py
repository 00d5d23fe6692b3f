"""Saga events as rows of a Fluss table: its columns, and batches of events in Arrow's format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sagascope.events import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from sagascope.events import SagaEvent

COLUMNS = {
    "event_id": "STRING NOT NULL",
    "event_type": "STRING NOT NULL",
    "saga_id": "STRING NOT NULL",
    "saga_name": "STRING NOT NULL",
    "run_id": "STRING NOT NULL",
    "sequence": "BIGINT NOT NULL",
    "timestamp": "TIMESTAMP_LTZ(3) NOT NULL",  # as it is, a job can declare a watermark on it
    "step_name": "STRING",
    "attempt": "INT NOT NULL",
    "compensable": "BOOLEAN",
    "pivot": "BOOLEAN",
    "duration_ms": "BIGINT",
    "duration_derived": "BOOLEAN NOT NULL",
    "total_duration_ms": "BIGINT",
    "error_type": "STRING",
    "error_message": "STRING",
    "context_keys": "ARRAY<STRING>",
    "attributes": "MAP<STRING, STRING>",
    "definition_id": "STRING",
    "parent_saga_id": "STRING",
    "trace_id": "STRING",
    "service": "STRING",
    "schema_version": "INT NOT NULL",
}
"""The table's columns, in order, as SQL says them: the fields of `SagaEvent`."""
BUCKET_KEY = "saga_id"

LARGEST_EVENT = 8 << 20
"""Bytes of JSON. A server closes the connection on a request above 100 MB, which looks like any broken connection."""
_BATCH_BYTES = 1 << 20
_NO_ROW = (ValueError, TypeError, OverflowError, NotImplementedError, msgspec.MsgspecError)
"""What an event raises that has a value of a wrong type, or out of range."""
_REASON_CHARACTERS = 300


def table_schema() -> pa.Schema:
    """`COLUMNS` as Arrow has them."""
    import pyarrow as pa  # noqa: PLC0415 - a driver is imported when its listener opens

    types = {
        "STRING": pa.string(),
        "INT": pa.int32(),
        "BIGINT": pa.int64(),
        "BOOLEAN": pa.bool_(),
        "TIMESTAMP_LTZ(3)": pa.timestamp("ms", tz="UTC"),
        "ARRAY<STRING>": pa.list_(pa.string()),
        "MAP<STRING, STRING>": pa.map_(pa.string(), pa.string()),
    }
    return pa.schema(
        pa.field(name, types[sql.removesuffix(" NOT NULL")], nullable=not sql.endswith(" NOT NULL"))
        for name, sql in COLUMNS.items()
    )


def batches_of(
    events: Sequence[SagaEvent], schema: pa.Schema
) -> tuple[list[tuple[list[SagaEvent], pa.RecordBatch]], list[tuple[SagaEvent, str]]]:
    """The events as record batches of about 1 MiB, in order; and those that can't be rows, each with why.

    Args:
        events: What to write.
        schema: The table's; its columns that are not of events are NULL.
    """
    batches = []
    rejected: list[tuple[SagaEvent, str]] = []
    for chunk in _chunks(events, rejected):
        try:
            batches.append((chunk, _batch(chunk, schema)))
        except _NO_ROW:
            rows = []  # as the topic would have them: without lone surrogates, or refused
            for event in chunk:
                try:
                    row = decode(encode(event))
                    _batch([row], schema)
                except _NO_ROW as error:
                    rejected.append((event, _reason(event, error)))
                else:
                    rows.append((event, row))
            if rows:
                batches.append(([event for event, _ in rows], _batch([row for _, row in rows], schema)))
    return batches, rejected


def _chunks(events: Sequence[SagaEvent], rejected: list[tuple[SagaEvent, str]]) -> Iterator[list[SagaEvent]]:
    """Consecutive events that make up about 1 MiB of JSON, a larger one alone; too large a one is rejected."""
    chunk: list[SagaEvent] = []
    room = _BATCH_BYTES
    for event in events:
        try:
            size = len(encode(event))
        except _NO_ROW as error:
            rejected.append((event, _reason(event, error)))
            continue
        if size > LARGEST_EVENT:
            rejected.append((event, _reason(event, f"it takes {size:,} bytes; allowed: {LARGEST_EVENT:,}")))
            continue
        if chunk and size > room:
            yield chunk
            chunk, room = [], _BATCH_BYTES
        chunk.append(event)
        room -= size
    if chunk:
        yield chunk


def _batch(events: Sequence[SagaEvent], schema: pa.Schema) -> pa.RecordBatch:
    """The events as rows; raises one of `_NO_ROW` for a value that its column can't hold."""
    import pyarrow as pa  # noqa: PLC0415 - a driver is imported when its listener opens

    columns = []
    for field in schema:
        column = pa.array([_value(event, field.name) for event in events], type=field.type)
        if column.null_count and not field.nullable:
            msg = f"{field.name} is missing"
            raise ValueError(msg)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _value(event: SagaEvent, column: str) -> Any:
    if column not in COLUMNS:
        return None
    return list(event.attributes.items()) if column == "attributes" else getattr(event, column)


def _reason(event: SagaEvent, why: Exception | str) -> str:
    why = str(why) or type(why).__name__
    return f"event {event.event_id!r} can't be a row: {why}"[:_REASON_CHARACTERS]
