"""The balance between the topic and the tables: per partition, offsets = stored + malformed + missing + lag.

It reads the topic itself, so that it trusts nobody's counters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kafka import KafkaConsumer, TopicPartition

from sagascope.events import InvalidEventError, decode
from warehouse import history

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    """Offsets without a row whose record is no valid event."""
    missing: int
    """Offsets without a row, before the last stored one, whose record is a valid event: they are lost."""
    lag: int
    """Offsets after the last stored one that are not known to be malformed: the job has them still to do."""


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
        bad = _count_malformed(consumer, topic, first, until)
        malformed += bad
        if first > last:
            lag += until - first - bad
        else:
            missing += until - first - bad
    return PartitionBalance(topic.partition, begin, end, stored, rows - stored, malformed, missing, lag)


def _count_malformed(consumer: KafkaConsumer, topic: TopicPartition, first: int, until: int) -> int:
    """How many records at offsets in [first, until) are no valid events."""
    consumer.assign([topic])
    consumer.seek(topic, first)
    malformed, position, silent = 0, first, 0
    while position < until and silent < SILENT_POLLS:
        records = consumer.poll(timeout_ms=POLL_MS).get(topic, [])
        silent = 0 if records else silent + 1
        for record in records:
            if record.offset < until:
                malformed += _is_malformed(record.value)
        position = consumer.position(topic)
    return malformed


def _is_malformed(value: bytes | None) -> bool:
    try:
        decode(value or b"")
    except InvalidEventError:
        return True
    return False


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
        msg = f"no topic {settings.topic!r} at {settings.bootstrap_servers}: `sagascope up` makes it"
        raise ValueError(msg)
    return [TopicPartition(settings.topic, number) for number in sorted(partitions)]
