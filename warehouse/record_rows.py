"""A topic's records as rows, to compare with those of `events` and `rejected_events`: hashed first, then by value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.types import BooleanType, IntegerType, ListType, LongType, MapType, StringType, TimestamptzType

from sagascope.events import EventType, InvalidEventError, SagaEvent, decode
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kafka.consumer.fetcher import ConsumerRecord

    from warehouse.history import History
    from warehouse.tables import Column

FIELDS = SagaEvent.__struct_fields__
_COLUMNS = {column.name: column for column in EVENTS.columns}
_TYPES = {
    StringType: pa.string(),
    LongType: pa.int64(),
    IntegerType: pa.int64(),
    BooleanType: pa.bool_(),
    TimestamptzType: pa.int64(),
    ListType: pa.list_(pa.string()),
    MapType: pa.map_(pa.string(), pa.string()),
}
_MICROSECONDS = pa.timestamp("us", "UTC")


def _comparable(column: Column) -> str:
    """A column in SQL, the same for a row of Iceberg and one of `as_rows`: no matter how wide, or in which order."""
    match column.type:
        case TimestamptzType():
            return f'epoch_us("{column.name}")'
        case LongType() | IntegerType():
            return f'"{column.name}"::BIGINT'
        case ListType():
            return f'coalesce("{column.name}", [])'
        case MapType():
            return f'list_sort(map_entries(coalesce("{column.name}", MAP {{}})))'
        case _:
            return f'"{column.name}"'


ROW_HASH = f"hash({', '.join(_comparable(_COLUMNS[name]) for name in FIELDS)})"
"""64 bits over all that a row of `events` says of its event, in SQL."""
REFUSED_HASH = "hash(value, epoch_us(record_time))"
"""The same of a row of `rejected_events`; its reason may be worded in more than one way."""


def as_rows(records: Sequence[ConsumerRecord]) -> pa.Table:
    """One row a record: `o` its offset, whether it `is_event`, then the event's fields, or else `value` and `record_time`."""
    nothing = (None,) * len(FIELDS)
    fields: list[tuple[Any, ...]] = []
    refused: list[bytes | None] = []
    for record in records:
        try:
            fields.append(msgspec.structs.astuple(decode(record.value or b"", record.timestamp)))
            refused.append(None)
        except InvalidEventError:
            fields.append(nothing)
            refused.append(record.value)
    columns = dict(zip(FIELDS, zip(*fields, strict=True) if fields else [()] * len(FIELDS), strict=True))
    times = pa.array([record.timestamp for record in records], pa.int64())
    return pa.table(
        {
            "o": pa.array([record.offset for record in records], pa.int64()),
            "is_event": pa.array([event is not nothing for event in fields], pa.bool_()),
            "value": pa.array(refused, pa.binary()),
            "record_time": _moments(times),
        }
        | {name: _column(name, values) for name, values in columns.items()}
    )


def _column(name: str, values: tuple[Any, ...]) -> pa.Array:
    kind = type(_COLUMNS[name].type)
    if kind is MapType:
        values = tuple(list(value.items()) if value else None for value in values)
    array = pa.array(values, _TYPES[kind])
    return _moments(array) if kind is TimestamptzType else array


def _moments(milliseconds: pa.Array) -> pa.Array:
    return pc.multiply(milliseconds, 1000).cast(_MICROSECONDS)  # wraps around: a clock gone mad is no reason to end


class Judge:
    """Compares rows of `events` with their records by value, where the hashes differ.

    A hash differs also where the same event is written in two ways: an error message that `SagaEvent` would complete
    or cut.
    """

    def __init__(self, tables: History, topic: str) -> None:
        self._tables = tables
        self._topic = topic

    def without_equal(self, found: pa.Table, records: Sequence[ConsumerRecord]) -> pa.Table:
        """What was `found`, columns `o` and `kind`, without the rows that are equal to their records after all."""
        suspects = found.filter(pc.equal(found["kind"], "altered"))["o"].to_pylist()
        if not suspects:
            return found
        events = {record.offset: decode(record.value or b"") for record in records if record.offset in set(suspects)}
        return found.filter(pc.invert(pc.is_in(found["o"], pa.array(self._equal(records[0].partition, events)))))

    def _equal(self, partition: int, events: dict[int, SagaEvent]) -> list[int]:
        names = ", ".join(f'"{name}"' for name in FIELDS)
        rows = self._tables.sql(
            f"""
            SELECT source_offset, {names} FROM events
            WHERE source_topic = $topic AND source_partition = $partition AND source_offset BETWEEN $first AND $last
            """,  # noqa: S608 - ours
            {"topic": self._topic, "partition": partition, "first": min(events), "last": max(events)},
        ).fetchall()
        same: dict[int, bool] = {}
        for offset, *values in rows:
            if offset in events:
                same[offset] = same.get(offset, True) and _as_event(values) == events[offset]
        return [offset for offset, equal in same.items() if equal]


def _as_event(values: Sequence[Any]) -> SagaEvent | None:
    fields = dict(zip(FIELDS, values, strict=True))
    moment = fields["timestamp"]
    try:
        return SagaEvent(
            **fields
            | {
                "event_type": EventType(fields["event_type"]),
                "timestamp": round(moment.timestamp() * 1000) if moment.microsecond % 1000 == 0 else -1,
                "context_keys": tuple(fields["context_keys"] or ()),
                "attributes": dict(fields["attributes"] or {}),
            }
        )
    except ValueError:  # no such event_type, or a step event without its step
        return None
