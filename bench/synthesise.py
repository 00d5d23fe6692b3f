"""Fills a topic with synthetic events, fast, and counts what a right answer must find in them.

    python bench/synthesise.py --bootstrap-servers 127.0.0.1:9092 --topic bench --events 3000000

The sagas are those of `pipelines.workload` (six types, four to seven steps, log-normal durations, failures,
timeouts, compensations), drawn from the seed and lived through on paper, not executed: a step takes what its plan says,
in modelled time. Each event is a template made by `sagascope.events.encode` with its values put in, so that a record's
value is byte for byte what `encode` would have written; a sample of each partition is decoded and encoded to prove it.

One process a partition: saga n is in partition n modulo their number, and within a partition events are in the order
of their time, which is also the record's. Event time advances `--events-per-second` a second over all partitions: at
1,000 of them 10 million events span 2.8 hours, and the 3.6 million ids of an hour are what deduplication must remember.
Records are about 330 bytes, as in the figures this bench is compared with: half of the saga types name their service,
the other half the region as an attribute, none the definition. CloudEvents headers are left out for the same reason.
"""

from __future__ import annotations

import argparse
import heapq
import logging
import multiprocessing
import random
import sys
import time
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError

from pipelines.workload import SAGAS, draw_plan
from sagascope.events import EventType, InvalidEventError, SagaEvent, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipelines.workload.plan import Fate, Plan

BEGIN_MS = int(datetime(2026, 1, 1, 6, tzinfo=UTC).timestamp() * 1000)
"""Fixed, so that the same seed is the same topic; in the past, as brokers refuse records from the future."""
EVENTS_PER_SAGA = 12.9
"""Their mean: what sagas a second make how many events a second."""
SAMPLE_EVERY = 5_003
"""Every so manieth event is decoded: a prime, so that no rhythm of the sagas hides a kind of event."""
MARK_EVERY, MARKS_UNDER_WAY = 1_000, 50
"""So many thousand records may wait in a producer."""
COMPLETED = frozenset({EventType.STEP_COMPLETED, EventType.COMPENSATION_COMPLETED})
FAILED = frozenset({EventType.STEP_FAILED, EventType.COMPENSATION_FAILED})
ENDED = COMPLETED | FAILED
SAGA_ENDED = frozenset({EventType.SAGA_COMPLETED, EventType.SAGA_ROLLED_BACK, EventType.SAGA_FAILED})

_INT = 4_000_000_000_000
"""Stands in a template for a number that is put in later; `_TEXT` for a text."""
_TEXT = "\x01"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to synthesise."""

    events: int
    seed: int = 7
    partitions: int = 2
    events_per_second: float = 1_000.0
    """Of event time."""


class Record(NamedTuple):
    """One event on its way to the topic."""

    timestamp: int
    event_type: EventType
    duration_ms: int
    """0: it has none."""
    key: bytes
    value: bytes


class Truth(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the topic, and so what the tables must hold."""

    events: int = 0
    value_bytes: int = 0
    completed: int = 0
    """Steps and compensations that succeeded."""
    failed: int = 0
    """Steps and compensations that failed or timed out."""
    duration_ms: int = 0
    """The sum over both."""
    sagas_started: int = 0
    sagas_ended: int = 0
    total_duration_ms: int = 0
    """The sum over the sagas that ended."""
    first_ms: int = 1 << 62
    """Of the earliest event, since the epoch."""
    last_ms: int = 0

    @property
    def hours(self) -> float:
        """Of event time."""
        return max(0, self.last_ms - self.first_ms) / 3_600_000

    def __add__(self, other: Truth) -> Truth:
        both = {name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__}
        both |= {"first_ms": min(self.first_ms, other.first_ms), "last_ms": max(self.last_ms, other.last_ms)}
        return Truth(**both)


def fill_topic(bootstrap_servers: str, topic: str, load: Load) -> Truth:
    """Write the load to the topic, which must exist, with one process a partition; returns once all is acknowledged.

    Raises:
        KafkaError: the broker did not take a record.
        InvalidEventError: a sample was no event.
    """
    # spawned, not forked: the caller may have threads and sockets
    with ProcessPoolExecutor(load.partitions, multiprocessing.get_context("spawn")) as pool:
        writers = [
            pool.submit(_fill_partition, bootstrap_servers, topic, load, number) for number in range(load.partitions)
        ]
        return sum((writer.result() for writer in writers), start=Truth())


def _fill_partition(bootstrap_servers: str, topic: str, load: Load, partition: int) -> Truth:
    logging.getLogger("kafka").setLevel(logging.ERROR)  # importing sagaz has configured logging, at INFO
    producer: Any = KafkaProducer(bootstrap_servers=bootstrap_servers, batch_size=256 << 10, linger_ms=100)
    under_way: deque[Any] = deque()
    events = value_bytes = 0
    first, last = 1 << 62, 0
    number: Counter[EventType] = Counter()
    took: Counter[EventType] = Counter()
    for moment, event_type, duration, key, value in partition_events(load, partition):
        sent = producer.send(topic, value, key, partition=partition, timestamp_ms=moment)
        if events % MARK_EVERY == 0:  # kafka-python's buffer has no bound of its own
            under_way.append(sent)
            if len(under_way) > MARKS_UNDER_WAY:
                under_way.popleft().get()
        if events % SAMPLE_EVERY == 0:
            _check(value)
        events += 1
        value_bytes += len(value)
        first, last = min(first, moment), moment
        number[event_type] += 1
        took[event_type] += duration
    producer.close()  # sends the rest; a record that was refused is missed by the caller's count of the topic
    return Truth(
        events=events,
        value_bytes=value_bytes,
        completed=sum(number[kind] for kind in COMPLETED),
        failed=sum(number[kind] for kind in FAILED),
        duration_ms=sum(took[kind] for kind in ENDED),
        sagas_started=number[EventType.SAGA_STARTED],
        sagas_ended=sum(number[kind] for kind in SAGA_ENDED),
        total_duration_ms=sum(took[kind] for kind in SAGA_ENDED),
        first_ms=first,
        last_ms=last,
    )


def _check(value: bytes) -> None:
    event = decode(value)
    if encode(event) != value:
        field = "record"
        raise InvalidEventError(field, value, f"what encode writes: {encode(event)!r}")


def partition_events(load: Load, partition: int) -> Iterator[Record]:
    """The partition's events in order of their time, as many as fall to it: sagas at the end may be cut short."""
    left = load.events // load.partitions + (partition < load.events % load.partitions)
    gap_ms = 1000.0 * EVENTS_PER_SAGA / load.events_per_second  # between two sagas, over all partitions
    ids = random.Random(f"{load.seed}:{partition}:ids")
    ahead: list[tuple[int, int, Record]] = []
    number, made = partition, 0
    while left:
        now = BEGIN_MS + int(number * gap_ms)
        while left and ahead and ahead[0][0] < now:
            yield heapq.heappop(ahead)[2]
            left -= 1
        for record in _live(draw_plan(load.seed, number), now, ids):
            heapq.heappush(ahead, (record.timestamp, made, record))  # `made` keeps those of one moment in their order
            made += 1
        number += load.partitions


def _live(plan: Plan, begin_ms: int, ids: random.Random) -> Iterator[Record]:
    """One saga's events as its plan has them, in their order."""
    name, key = plan.model.name, plan.saga_id.encode()
    text = b'"%b"' % key
    run_id = _uuid7(begin_ms, ids)
    details = (msgspec.json.encode(plan.context["region"]),) if _has_region(name) else ()
    for sequence, (moment, event_type, step, duration, fate) in enumerate(_story(plan, begin_ms)):
        measured = () if duration is None else (duration,)
        error = _error(fate) if fate and fate.error_type else ()
        head = (_uuid7(moment, ids), text, run_id, sequence, moment)
        value = _template(name, event_type, step, bool(error)) % (*head, *measured, *error, *details)
        yield Record(moment, event_type, duration or 0, key, value)


def _story(plan: Plan, begin_ms: int) -> list[tuple[int, EventType, str | None, int | None, Fate | None]]:
    """What happens when: time, type, step, duration, and the fate of what failed.

    Steps start when those before them completed. A failure lets the running ones end, then what has a compensation is
    undone in reverse, unless a pivot completed.
    """
    ends: dict[str, int] = {}
    story: list[tuple[int, EventType, str | None, int | None, Fate | None]] = []
    broken: tuple[int, Fate] | None = None
    for step in plan.model.steps:
        fate = plan.steps[step.name]
        start = max((ends.get(before, -1) for before in step.after), default=begin_ms)
        if any(before not in ends for before in step.after) or (broken and start >= broken[0]):
            continue
        end = start + int(fate.seconds * 1000)
        story.append((start, EventType.STEP_STARTED, step.name, None, None))
        if fate.error_type is None:
            ends[step.name] = end
            story.append((end, EventType.STEP_COMPLETED, step.name, end - start, None))
        else:
            broken = min(broken or (end, fate), (end, fate), key=lambda failure: failure[0])
            story.append((end, EventType.STEP_FAILED, step.name, end - start, fate))
    story.sort(key=lambda event: event[0])  # stable: a start stays before an end of the same millisecond
    now = story[-1][0]
    end_type = EventType.SAGA_ROLLED_BACK if broken else EventType.SAGA_COMPLETED
    if broken and any(step.pivot and step.name in ends for step in plan.model.steps):
        end_type = EventType.SAGA_FAILED
    elif broken:
        for step_name in (name for name in reversed(ends) if name in plan.compensations):
            fate = plan.compensations[step_name]
            took = int(fate.seconds * 1000)
            story.append((now, EventType.COMPENSATION_STARTED, step_name, None, None))
            now += took
            if fate.error_type is None:
                story.append((now, EventType.COMPENSATION_COMPLETED, step_name, took, None))
            else:
                story.append((now, EventType.COMPENSATION_FAILED, step_name, took, fate))
                end_type = EventType.SAGA_FAILED
    story.insert(0, (begin_ms, EventType.SAGA_STARTED, None, None, None))
    story.append((now, end_type, None, now - begin_ms, broken[1] if broken else None))
    return story


@cache
def _template(saga_name: str, event_type: EventType, step_name: str | None, with_error: bool) -> bytes:  # noqa: FBT001 - a key
    """The value of such an event for the % operator; arguments in the order of the fields of SagaEvent."""
    model = next(model for model in SAGAS if model.name == saga_name)
    keys = ("amount_cents", "customer_id", f"{model.entity}_id", "region", "saga_id")
    event = SagaEvent(
        event_id=_TEXT,
        event_type=event_type,
        saga_id=_TEXT,
        saga_name=saga_name,
        run_id=_TEXT,
        sequence=_INT,
        timestamp=_INT,
        step_name=step_name,
        duration_ms=_INT if event_type in ENDED else None,
        total_duration_ms=_INT if event_type in SAGA_ENDED else None,
        error_type=_TEXT if with_error else None,
        error_message=_TEXT if with_error else None,
        context_keys=tuple(sorted(keys)) if event_type is EventType.SAGA_STARTED else (),
        attributes={"region": _TEXT} if _has_region(saga_name) else {},
        service=None if _has_region(saga_name) else model.service,
    )
    value = encode(event).replace(b"%", b"%%")
    return value.replace(msgspec.json.encode(_TEXT), b"%b").replace(msgspec.json.encode(_INT), b"%d")


@cache
def _has_region(saga_name: str) -> bool:
    return [model.name for model in SAGAS].index(saga_name) % 2 == 0


def _error(fate: Fate) -> tuple[bytes, bytes]:
    error_type = fate.error_type.__name__ if fate.error_type else ""
    return msgspec.json.encode(error_type), msgspec.json.encode(fate.message or error_type)


def _uuid7(milliseconds: int, ids: random.Random) -> bytes:
    """A UUIDv7 of that moment as a JSON string: `sagascope.events.new_id`, but from the seed."""
    bits = ids.getrandbits(74)
    return b'"%08x-%04x-7%03x-%04x-%012x"' % (
        milliseconds >> 16,
        milliseconds & 0xFFFF,
        bits & 0xFFF,
        0x8000 | bits >> 12 & 0x3FFF,
        bits >> 26,
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python bench/synthesise.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bootstrap-servers", required=True, metavar="HOST:PORT")
    parser.add_argument("--topic", required=True, help="must exist")
    parser.add_argument("--events", type=int, default=3_000_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--partitions", type=int, default=2, help="of the topic")
    parser.add_argument("--events-per-second", type=float, default=1_000.0, help="of event time")
    given = parser.parse_args()
    load = Load(
        events=given.events,
        seed=given.seed,
        partitions=given.partitions,
        events_per_second=given.events_per_second,
    )
    began = time.monotonic()
    try:
        truth = fill_topic(given.bootstrap_servers, given.topic, load)
    except (KafkaError, InvalidEventError) as error:
        sys.exit(f"synthesise: {error}")
    took = time.monotonic() - began
    print(
        f"{truth.events:,} events, {truth.value_bytes / truth.events:.0f} bytes each, in {took:.1f} s "
        f"({truth.events / took:,.0f} a second), over {truth.hours:.2f} hours of event time; "
        f"{truth.completed:,} steps and compensations completed, {truth.failed:,} failed"
    )


if __name__ == "__main__":
    main()
