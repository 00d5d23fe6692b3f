"""The oracle: what the tables must hold, by plain Python over the topic. Slow, obvious, and no code of ours but decode."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition

from sagascope.events import EventType, InvalidEventError, SagaEvent, decode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from warehouse.history import History
    from warehouse.settings import Settings

COLUMNS = (
    "window_start, window_end, saga_name, step_name, phase, completed, failed, failure_rate, "
    "avg_ms, min_ms, max_ms, p50_ms, p95_ms, p99_ms"
)
ENDS = {
    EventType.STEP_COMPLETED: ("step", False),
    EventType.STEP_FAILED: ("step", True),
    EventType.COMPENSATION_COMPLETED: ("compensation", False),
    EventType.COMPENSATION_FAILED: ("compensation", True),
}


class Topic(NamedTuple):
    """What a topic holds."""

    events: list[SagaEvent]
    malformed: int


def read_topic(settings: Settings) -> Topic:
    """Every record of the topic, from its first to its last."""
    consumer = KafkaConsumer(bootstrap_servers=settings.bootstrap_servers, enable_auto_commit=False)
    partitions = [TopicPartition(settings.topic, p) for p in consumer.partitions_for_topic(settings.topic)]
    ends = consumer.end_offsets(partitions)
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    events, malformed = [], 0
    while any(consumer.position(partition) < ends[partition] for partition in partitions):
        for records in consumer.poll(timeout_ms=500).values():
            for record in records:
                try:
                    event = decode(record.value)
                except InvalidEventError:
                    malformed += 1
                    continue
                if event.timestamp > record.timestamp + 300_000:  # five minutes ahead of its record
                    malformed += 1
                else:
                    events.append(event)
    consumer.close()
    return Topic(events, malformed)


def step_stats(events: Iterable[SagaEvent], window_seconds: int) -> list[tuple[object, ...]]:
    """The rows of step_stats, sorted by their key."""
    width = window_seconds * 1000
    ended: dict[tuple[int, str, str, str], list[SagaEvent]] = defaultdict(list)
    for event in events:
        if event.event_type in ENDS:
            phase, _ = ENDS[event.event_type]
            ended[event.timestamp // width * width, event.saga_name, str(event.step_name), phase].append(event)
    rows = []
    for (start, saga, step, phase), members in ended.items():
        durations = sorted(event.duration_ms for event in members if event.duration_ms is not None)
        failed = sum(ENDS[event.event_type][1] for event in members)
        rows.append(
            (
                _moment(start),
                _moment(start + width),
                saga,
                step,
                phase,
                len(members) - failed,
                failed,
                failed / len(members),
                sum(durations) / len(durations) if durations else None,
                durations[0] if durations else None,
                durations[-1] if durations else None,
                *(percentile(durations, p) for p in (0.5, 0.95, 0.99)),
            )
        )
    return sorted(rows, key=lambda row: row[:5])


def window_end(event: SagaEvent, window_seconds: int) -> datetime:
    """The end of the window that an event belongs to, exclusive."""
    width = window_seconds * 1000
    return _moment(event.timestamp // width * width + width)


def percentile(ordered: Sequence[int], p: float) -> float | None:
    """Exact, linearly interpolated between the two nearest of the sorted values."""
    if not ordered:
        return None
    position = p * (len(ordered) - 1)
    low, high = math.floor(position), math.ceil(position)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def differences(tables: History, topic: Topic, window_seconds: int, until: datetime | None = None) -> list[str]:
    """How the tables differ from what the topic says they hold; empty when they are right.

    `until` compares only windows that end by then: those that the stream has closed.
    """
    fields = ", ".join(f'"{name}"' for name in SagaEvent.__struct_fields__)
    stored = Counter(map(_as_event, tables.sql(f"SELECT {fields} FROM events").fetchall()))
    expected = Counter(repr(event) for event in topic.events)
    found = [f"{n} too few: {event}" for event, n in (expected - stored).items()]
    found += [f"{n} too many: {event}" for event, n in (stored - expected).items()]
    bound = f"WHERE window_end <= TIMESTAMPTZ '{until.isoformat()}'" if until else ""
    rows = tables.sql(f"SELECT {COLUMNS} FROM step_stats {bound} ORDER BY 1, 3, 4, 5").fetchall()
    closed = [e for e in topic.events if until is None or window_end(e, window_seconds) <= until]
    right = step_stats(closed, window_seconds)
    found += [
        f"window {key}: {n} rows too many" for key, n in (Counter(map(_key, rows)) - Counter(map(_key, right))).items()
    ]
    by_key = {_key(row): row for row in rows}
    for row in right:
        got = by_key.get(_key(row))
        if got is None or not all(map(_same, got, row)):
            found.append(f"window {_key(row)}: got {got}, expected {row}")
    return found


def _as_event(row: tuple[Any, ...]) -> str:
    """A row of `events` as the event that it came from; NULL is the field's default."""
    values = dict(zip(SagaEvent.__struct_fields__, row, strict=True))
    values["event_type"] = EventType(values["event_type"])
    values["timestamp"] = round(values["timestamp"].timestamp() * 1000)
    values["context_keys"] = tuple(values["context_keys"] or ())
    values["attributes"] = dict(values["attributes"] or {})
    return repr(SagaEvent(**values))


def _key(row: tuple[object, ...]) -> tuple[object, ...]:
    return (row[0], *row[2:5])


def _same(got: object, expected: object) -> bool:
    if isinstance(got, float) and isinstance(expected, int | float):
        return math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-9)
    return got == expected


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
