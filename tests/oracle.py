"""The oracle: what the tables must hold, by plain Python over the topic. Slow, obvious, and no code of ours but decode."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from kafka import KafkaConsumer, TopicPartition

from sagascope.events import EventType, InvalidEventError, SagaEvent, decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from warehouse.history import History
    from warehouse.settings import Settings

    Row = tuple[Any, ...]

ENDS = {
    EventType.STEP_COMPLETED: ("step", False),
    EventType.STEP_FAILED: ("step", True),
    EventType.COMPENSATION_COMPLETED: ("compensation", False),
    EventType.COMPENSATION_FAILED: ("compensation", True),
}
TURNS = (EventType.SAGA_STARTED, EventType.SAGA_COMPLETED, EventType.SAGA_ROLLED_BACK, EventType.SAGA_FAILED)
KEYS = {
    "step_stats": ("saga_name", "step_name", "phase"),
    "saga_stats": ("saga_name",),
    "step_durations": ("saga_name", "step_name", "phase", "bucket"),
}
FIGURES = {
    "step_stats": "completed, failed, failure_rate, avg_ms, min_ms, max_ms, p50_ms, p95_ms, p99_ms",
    "saga_stats": "started, completed, rolled_back, failed, failure_rate, avg_ms, min_ms, max_ms, p50_ms, p95_ms, p99_ms",
    "step_durations": '"count"',
}
MINUTE_SECONDS = 60


class Rejected(NamedTuple):
    """A record that is no valid event."""

    partition: int
    offset: int
    value: bytes | None


class Topic(NamedTuple):
    """What a topic holds: each event once, however often it stands there."""

    events: list[SagaEvent]
    rejected: list[Rejected]
    duplicates: int


def read_topic(settings: Settings) -> Topic:
    """Every record of the topic, from its first to its last."""
    consumer = KafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, enable_auto_commit=False, max_partition_fetch_bytes=8 << 20
    )
    partitions = [TopicPartition(settings.topic, p) for p in consumer.partitions_for_topic(settings.topic)]
    ends = consumer.end_offsets(partitions)
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    events: dict[str, SagaEvent] = {}
    rejected, duplicates = [], 0
    while any(consumer.position(partition) < ends[partition] for partition in partitions):
        for records in consumer.poll(timeout_ms=500).values():
            for record in records:
                try:
                    event = decode(record.value or b"", record.timestamp)
                except InvalidEventError:
                    rejected.append(Rejected(record.partition, record.offset, record.value))
                    continue
                duplicates += event.event_id in events
                events.setdefault(event.event_id, event)
    consumer.close()
    return Topic(list(events.values()), rejected, duplicates)


def step_stats(events: Iterable[SagaEvent], window_seconds: int) -> dict[Row, Row]:
    """The rows of step_stats, by their key."""
    rows = {}
    for key, members in _grouped(events, window_seconds, _step_of).items():
        failed = sum(ENDS[event.event_type][1] for event in members)
        rows[key] = (
            len(members) - failed,
            failed,
            failed / len(members),
            *_figures([event.duration_ms for event in members]),
        )
    return rows


def saga_stats(events: Iterable[SagaEvent], window_seconds: int) -> dict[Row, Row]:
    """The rows of saga_stats, by their key."""
    rows = {}
    for key, members in _grouped(
        events, window_seconds, lambda event: (event.saga_name,) if event.event_type in TURNS else None
    ).items():
        started, completed, rolled_back, failed = (sum(event.event_type == t for event in members) for t in TURNS)
        ended = completed + rolled_back + failed
        rate = (rolled_back + failed) / ended if ended else None
        rows[key] = (
            started,
            completed,
            rolled_back,
            failed,
            rate,
            *_figures([event.total_duration_ms for event in members]),
        )
    return rows


def step_durations(events: Iterable[SagaEvent]) -> dict[Row, Row]:
    """The rows of step_durations, by their key."""

    def bucket_of(event: SagaEvent) -> Row | None:
        step = _step_of(event)
        return (*step, bucket(event.duration_ms)) if step and event.duration_ms is not None else None

    return {key: (len(members),) for key, members in _grouped(events, MINUTE_SECONDS, bucket_of).items()}


def bucket(duration_ms: int) -> int:
    """0 for 0 ms; else the b for which r^(b-1) <= duration < r^b, r = 1.01 / 0.99."""
    return 1 + math.floor(math.log(duration_ms) / math.log(1.01 / 0.99)) if duration_ms else 0


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
    found = _surplus(stored, Counter(repr(event) for event in topic.events))
    columns = "source_partition, source_offset, value"
    rejected = Counter(repr(Rejected(*row)) for row in tables.sql(f"SELECT {columns} FROM rejected_events").fetchall())
    found += _surplus(rejected, Counter(map(repr, topic.rejected)))
    right = {
        "step_stats": step_stats(topic.events, window_seconds),
        "saga_stats": saga_stats(topic.events, window_seconds),
        "step_durations": step_durations(topic.events),
    }
    for name, expected in right.items():
        found += differing_windows(tables, name, expected, until)
    return found


def differing_windows(tables: History, name: str, expected: dict[Row, Row], until: datetime | None = None) -> list[str]:
    """How the stored rows of a statistic table differ from those expected, each with its key."""
    key = ("window_start", "window_end", *KEYS[name])
    bound = f"WHERE window_end <= TIMESTAMPTZ '{until.isoformat()}'" if until else ""
    rows = tables.sql(f"SELECT {', '.join(key)}, {FIGURES[name]} FROM stored_{name} {bound}").fetchall()
    keys = Counter(row[: len(key)] for row in rows)
    stored = {row[: len(key)]: row[len(key) :] for row in rows}
    right = {k: row for k, row in expected.items() if until is None or k[1] <= until}
    found = [f"{name} {k}: {n - 1} rows too many" for k, n in keys.items() if n > 1]
    found += [f"{name} {k}: got {stored[k]}, expected nothing" for k in stored.keys() - right.keys()]
    for k, row in right.items():
        got = stored.get(k)
        if got is None or not all(map(_same, got, row)):
            found.append(f"{name} {k}: got {got}, expected {row}")
    return found


def _grouped(
    events: Iterable[SagaEvent], window_seconds: int, names_of: Callable[[SagaEvent], Row | None]
) -> dict[Row, list[SagaEvent]]:
    """Events by start and end of their window, and their names; those without names are left out."""
    width = window_seconds * 1000
    groups = defaultdict(list)
    for event in events:
        names = names_of(event)
        if names is not None:
            start = event.timestamp // width * width
            groups[_moment(start), _moment(start + width), *names].append(event)
    return groups


def _step_of(event: SagaEvent) -> Row | None:
    if event.event_type not in ENDS:
        return None
    return event.saga_name, event.step_name, ENDS[event.event_type][0]


def _figures(durations: Iterable[int | None]) -> Row:
    known = sorted(duration for duration in durations if duration is not None)
    if not known:
        return (None,) * 6
    return (sum(known) / len(known), known[0], known[-1], *(percentile(known, p) for p in (0.5, 0.95, 0.99)))


def _surplus(stored: Counter[str], expected: Counter[str]) -> list[str]:
    found = [f"{n} too few: {row}" for row, n in (expected - stored).items()]
    return found + [f"{n} too many: {row}" for row, n in (stored - expected).items()]


def _as_event(row: Row) -> str:
    """A row of `events` as the event that it came from; NULL is the field's default."""
    values = dict(zip(SagaEvent.__struct_fields__, row, strict=True))
    values["event_type"] = EventType(values["event_type"])
    values["timestamp"] = round(values["timestamp"].timestamp() * 1000)
    values["context_keys"] = tuple(values["context_keys"] or ())
    values["attributes"] = dict(values["attributes"] or {})
    return repr(SagaEvent(**values))


def _same(got: object, expected: object) -> bool:
    if isinstance(got, float) and isinstance(expected, int | float):
        return math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-9)
    return got == expected


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
