"""The balance between the topic and the tables: per partition, records = stored + malformed + missing + lag.

It reads the topic itself, so that it trusts nobody's counters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaTimeoutError

from sagascope.events import FARTHEST_AHEAD_MS, InvalidEventError, decode
from warehouse import history

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kafka.consumer.fetcher import ConsumerRecord

    from warehouse.settings import Settings

POLL_MS = 1_000
SILENT_POLLS = 15


class PartitionBalance(NamedTuple):
    """One partition's account of the offsets in [begin, end)."""

    partition: int
    begin: int
    end: int
    stored: int
    """Offsets that have a row in `events`."""
    doubled: int
    """Rows in `events` beyond the first of their offset."""
    malformed: int
    """Records without a row that are no valid event, or whose timestamp is too far ahead of the record's own."""
    missing: int
    """Valid events without a row, before the last stored one: they are lost."""
    lag: int
    """Valid events after the last stored one: the job has them still to do."""


def read_ends(settings: Settings) -> dict[int, int]:
    """The end offset of each partition of the topic.

    Raises:
        kafka.errors.KafkaError: the broker does not answer.
        ValueError: there is no such topic.
    """
    consumer = _consumer(settings)
    try:
        return {p.partition: offset for p, offset in consumer.end_offsets(_partitions(consumer, settings)).items()}
    finally:
        consumer.close()


def balance(settings: Settings, begins: Mapping[int, int] | None = None) -> list[PartitionBalance]:
    """The account of every partition, from `begins` (else from the topic's first offset) to its end now.

    The records at offsets without a row are read again, each one once, so the cost grows with them alone.

    Raises:
        kafka.errors.KafkaError: the broker does not answer.
        ValueError: there is no such topic.
    """
    consumer = _consumer(settings)
    try:
        partitions = _partitions(consumer, settings)
        ends = consumer.end_offsets(partitions)
        starts = consumer.beginning_offsets(partitions)
        with history.open(settings) as tables:
            return [
                _balance_of(
                    consumer, tables, topic, max(starts[topic], (begins or {}).get(topic.partition, 0)), ends[topic]
                )
                for topic in partitions
            ]
    finally:
        consumer.close()


def _balance_of(
    consumer: KafkaConsumer, tables: history.History, topic: TopicPartition, begin: int, end: int
) -> PartitionBalance:
    of_partition = "source_topic = $topic AND source_partition = $partition AND source_offset BETWEEN $begin AND $last"
    named = {"topic": topic.topic, "partition": topic.partition, "begin": begin, "last": end - 1}
    [(rows, stored, last)] = tables.sql(
        f"SELECT count(*), count(DISTINCT source_offset), max(source_offset) FROM events WHERE {of_partition}",  # noqa: S608
        named,
    ).fetchall()
    last = begin - 1 if last is None else last
    gaps = tables.sql(
        f"""
        WITH bounds AS (
            SELECT DISTINCT source_offset AS held FROM events WHERE {of_partition}
            UNION SELECT $begin - 1 UNION SELECT $last + 1
        )
        SELECT held + 1, following
        FROM (SELECT held, lead(held) OVER (ORDER BY held) AS following FROM bounds)
        WHERE following > held + 1
        """,  # noqa: S608 - the text above
        named,
    ).fetchall()
    malformed = missing = lag = 0
    for first, until in gaps:
        valid, bad = _read(consumer, topic, first, until)
        malformed += bad
        if first > last:
            lag += valid
        else:
            missing += valid
    return PartitionBalance(topic.partition, begin, end, stored, rows - stored, malformed, missing, lag)


def _read(consumer: KafkaConsumer, topic: TopicPartition, first: int, until: int) -> tuple[int, int]:
    """How many records at offsets in [first, until) are valid events, and how many are not."""
    consumer.assign([topic])
    consumer.seek(topic, first)
    counts, position, silent = [0, 0], first, 0
    while position < until:
        records = consumer.poll(timeout_ms=POLL_MS).get(topic, [])
        silent = 0 if records else silent + 1
        if silent == SILENT_POLLS:
            msg = f"{topic.topic}-{topic.partition} gave no record from offset {position} on: is the broker up?"
            raise KafkaTimeoutError(msg)
        for record in records:
            if record.offset < until:
                counts[_is_malformed(record)] += 1
        position = consumer.position(topic)
    return counts[0], counts[1]


def _is_malformed(record: ConsumerRecord) -> bool:
    try:
        event = decode(record.value or b"")
    except InvalidEventError:
        return True
    return bool(event.timestamp > record.timestamp + FARTHEST_AHEAD_MS)


def _consumer(settings: Settings) -> KafkaConsumer:
    return KafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        enable_auto_commit=False,
        bootstrap_timeout_ms=5_000,
        max_partition_fetch_bytes=8 << 20,
    )


def _partitions(consumer: KafkaConsumer, settings: Settings) -> list[TopicPartition]:
    partitions = consumer.partitions_for_topic(settings.topic)
    if not partitions:
        msg = f"no topic {settings.topic!r} at {settings.bootstrap_servers}: make it, or let `sagascope up` or `sagascope demo` do so"
        raise ValueError(msg)
    return [TopicPartition(settings.topic, number) for number in sorted(partitions)]
