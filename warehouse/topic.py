"""Reads the topic itself: its partitions, its offsets, its records in batches."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaTimeoutError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from kafka.consumer.fetcher import ConsumerRecord

    from warehouse.settings import Settings

POLL_MS = 1_000
SILENT_POLLS = 15
BATCH_RECORDS = 50_000


@contextmanager
def consuming(settings: Settings) -> Iterator[KafkaConsumer]:
    """A consumer of no group that commits nothing.

    Raises:
        kafka.errors.KafkaError: the broker does not answer.
    """
    consumer = KafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        enable_auto_commit=False,
        auto_offset_reset="none",  # what retention deletes meanwhile is an error, no silent jump
        bootstrap_timeout_ms=5_000,
        max_partition_fetch_bytes=8 << 20,
        max_poll_records=10_000,
    )
    try:
        yield consumer
    finally:
        consumer.close()


def partitions_of(consumer: KafkaConsumer, settings: Settings) -> list[TopicPartition]:
    """The topic's partitions, in order.

    Raises:
        ValueError: there is no such topic.
    """
    partitions = consumer.partitions_for_topic(settings.topic)
    if not partitions:
        msg = f"no topic {settings.topic!r} at {settings.bootstrap_servers}: make it, or let `sagascope up` or `sagascope demo` do so"
        raise ValueError(msg)
    return [TopicPartition(settings.topic, number) for number in sorted(partitions)]


def offsets_at(settings: Settings, moment: datetime) -> dict[int, int]:
    """The first offset of each partition whose record is not older than an aware moment; the end where none is.

    Raises:
        kafka.errors.KafkaError: the broker does not answer.
        ValueError: there is no such topic.
    """
    with consuming(settings) as consumer:
        partitions = partitions_of(consumer, settings)
        ends = consumer.end_offsets(partitions)
        found = consumer.offsets_for_times(dict.fromkeys(partitions, round(moment.timestamp() * 1000)))
        return {
            partition.partition: at.offset if (at := found[partition]) else ends[partition] for partition in partitions
        }


def read(
    consumer: KafkaConsumer, partition: TopicPartition, first: int, until: int
) -> Iterator[tuple[int, int, list[ConsumerRecord]]]:
    """The records at offsets in [first, until), in batches: each with the range of offsets that it covers.

    Not every offset has a record: transactions leave marks in between.

    Raises:
        kafka.errors.KafkaTimeoutError: no record for 15 s.
        kafka.errors.OffsetOutOfRangeError: retention has deleted them meanwhile.
    """
    consumer.assign([partition])
    consumer.seek(partition, first)
    position, silent, batch = first, 0, []
    while position < until:
        records = consumer.poll(timeout_ms=POLL_MS).get(partition, [])
        moved, position = position, min(consumer.position(partition), until)
        silent = 0 if records or position > moved else silent + 1
        if silent == SILENT_POLLS:
            msg = f"{partition.topic}-{partition.partition} gave no record from offset {position} on: is the broker up?"
            raise KafkaTimeoutError(msg)
        batch += records
        if len(batch) >= BATCH_RECORDS or position >= until:
            yield first, position, [record for record in batch if record.offset < until]
            first, batch = position, []


def bounds_of(settings: Settings) -> dict[int, tuple[int, int]]:
    """The first offset of each partition, and the one after its last.

    Raises:
        kafka.errors.KafkaError: the broker does not answer.
        ValueError: there is no such topic.
    """
    with consuming(settings) as consumer:
        partitions = partitions_of(consumer, settings)
        begins, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        return {topic.partition: (begins[topic], ends[topic]) for topic in partitions}
