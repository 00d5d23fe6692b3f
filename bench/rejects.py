"""How records that are no valid events are found: three ways, over the same topic, in the same run.

    python bench/rejects.py [--events 1000000] [--repeat 3]

The topic, on a broker of its own, holds synthetic events (`bench/synthesise.py`), of which 1 % are damaged in turn in each
of the ways of `DAMAGE`; where each one is, is known. Warm, in one JVM, in turns after a turn to warm up:

- connector: the job's own connector, without deduplication: valid events, all columns, into a blackhole; of the rejected
  ones partition and offset into JSON files.
- raw: Flink's Kafka connector and JSON format, which drops what it can't parse, all columns into a blackhole; and a second
  pass over the topic, in the same job, with the raw format: what is no UTF-8 or no JSON object, into JSON files.
- raw fields: the same, and the second pass looks into the fields, as far as Flink SQL's JSON functions can.
- consumer: a consumer of a group in Python, kafka-python and `sagascope.events.decode`, one process; it stores no events.

Told of each: events/s, CPU seconds per million events without the broker's, and how many of the damaged records it found,
by kind where it missed some. The raw ways know a kind only as far as SQL has a function for it, and a third pass would
have to take what they find out of what the JSON format lets through, with NULL for a field of the wrong type.

What is checked: the connector and the consumer find every damaged record and no other, else exit code 1.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import msgspec
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from bench.flink_runs import Clocks, json_events, settle
from bench.synthesise import Load, partition_events
from jobs import analytics
from jobs.flink import prepare_jvm, streaming_environment
from pipelines import stack
from sagascope.events import EventType, InvalidEventError, decode
from warehouse.catalog import open_catalog
from warehouse.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

DAMAGED_SHARE = 0.01
FAR_AHEAD = 4_000_000_000_000
IN_FLIGHT = 50_000
SILENT_POLLS = 30

Places = dict[tuple[int, int], str]
"""The damaged records: partition and offset, and how they are damaged."""


def _with(field: str, value: bytes) -> Callable[[bytes], bytes]:
    """Another value in the place of a field's, as JSON."""
    pattern = re.compile(rb'"%b":("[^"]*"|-?\d+)' % field.encode())
    damaged = b'"%b":%b' % (field.encode(), value)
    return lambda event: pattern.sub(lambda _: damaged, event, count=1)


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "no value": lambda _: None,
    "empty": lambda _: b"",
    "no JSON": lambda _: b"hello",
    "cut short": lambda event: event[: len(event) // 2],
    "data behind it": lambda event: event + b" x",
    "a list": lambda event: b"[" + event + b"]",
    "no UTF-8": _with("saga_id", b'"\xff\xfe"'),
    "half a surrogate pair": _with("saga_id", rb'"\ud800"'),
    "no event_type": lambda event: event.replace(b'"event_type"', b'"type"'),
    "unknown event_type": _with("event_type", b'"saga_paused"'),
    "empty saga_name": _with("saga_name", b'""'),
    "number for saga_name": _with("saga_name", b"5"),
    "string for sequence": _with("sequence", b'"5"'),
    "fraction for sequence": _with("sequence", b"1.5"),
    "negative sequence": _with("sequence", b"-1"),
    "timestamp far ahead": _with("timestamp", str(FAR_AHEAD).encode()),
    "number in context_keys": lambda event: event[:-1] + b',"context_keys":[1]}',
}

RAW_RECORDS = """
CREATE TEMPORARY TABLE records (
    `value` BYTES,
    source_partition INT METADATA FROM 'partition' VIRTUAL,
    source_offset BIGINT METADATA FROM 'offset' VIRTUAL,
    record_time TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL
) WITH (
    'connector' = 'kafka',
    'topic' = '{topic}',
    'properties.bootstrap.servers' = '{bootstrap_servers}',
    'properties.group.id' = 'bench-raw',
    'scan.startup.mode' = 'earliest-offset',
    'scan.bounded.mode' = 'latest-offset',
    'format' = 'raw'
)
"""
TEXT = "DECODE(`value`, 'UTF-8')"
NO_JSON = f"`value` IS NULL OR ENCODE({TEXT}, 'UTF-8') <> `value` OR {TEXT} IS NOT JSON OBJECT"
"""What is no UTF-8 is not what comes out of reading and writing it again."""
MILLISECONDS = f"TRY_CAST(JSON_VALUE({TEXT}, '$.timestamp') AS BIGINT)"
WRONG_FIELDS = " OR ".join(
    (
        NO_JSON,
        *(
            f"COALESCE(JSON_VALUE({TEXT}, '$.{field}'), '') = ''"
            for field in ("event_id", "saga_id", "saga_name", "run_id")
        ),
        f"COALESCE(JSON_VALUE({TEXT}, '$.event_type'), '') NOT IN ({', '.join(map(repr, map(str, EventType)))})",
        f"COALESCE(TRY_CAST(JSON_VALUE({TEXT}, '$.sequence') AS BIGINT), -1) < 0",
        f"COALESCE(TO_TIMESTAMP_LTZ({MILLISECONDS}, 3) > record_time + INTERVAL '5' MINUTE, TRUE)",
    )
)
FOUND = """
CREATE TEMPORARY TABLE found (source_partition INT, source_offset BIGINT)
WITH ('connector' = 'filesystem', 'path' = '{folder}', 'format' = 'json')
"""


class Run(msgspec.Struct, frozen=True):
    """What was measured of one way, once."""

    seconds: float
    cpu_seconds: float
    found: frozenset[tuple[int, int]]


def fill(settings: Settings, load: Load) -> Places:
    """Write the load to the topic, 1 % of it damaged; returns where that is.

    Raises:
        KafkaError: the broker did not take a record.
        RuntimeError: a damaged record is a valid event after all, or the topic holds more or less than was written.
    """
    producer: Any = KafkaProducer(bootstrap_servers=settings.bootstrap_servers, batch_size=256 << 10, linger_ms=100)
    rng, kinds, damaged = random.Random(load.seed), list(DAMAGE), Places()
    offsets = []
    for partition in range(load.partitions):
        offset = -1
        for offset, record in enumerate(partition_events(load, partition)):
            value: bytes | None = record.value
            if rng.random() < DAMAGED_SHARE:
                kind = kinds[len(damaged) % len(kinds)]
                damaged[partition, offset] = kind
                value = DAMAGE[kind](record.value)
                if _is_valid(value, record.timestamp):
                    msg = f"{kind}: {value!r} is a valid event"
                    raise RuntimeError(msg)
            sent = producer.send(settings.topic, value, record.key, partition=partition, timestamp_ms=record.timestamp)
            if offset % IN_FLIGHT == 0:  # kafka-python's buffer has no bound of its own
                sent.get()
        offsets.append(offset + 1)
    producer.close()
    if _ends(settings) != offsets:
        msg = f"the topic ends at {_ends(settings)}, written were {offsets}"
        raise RuntimeError(msg)
    return damaged


def _is_valid(value: bytes | None, record_time: int) -> bool:
    try:
        decode(value or b"", record_time)
    except InvalidEventError:
        return False
    return True


def _ends(settings: Settings) -> list[int]:
    consumer = KafkaConsumer(bootstrap_servers=settings.bootstrap_servers)
    partitions = [TopicPartition(settings.topic, number) for number in range(settings.partitions)]
    ends = consumer.end_offsets(partitions)
    consumer.close()
    return [ends[partition] for partition in partitions]


def with_connector(environment: Any, settings: Settings, inserts: Any) -> None:
    """One pass: the connector gives the reason with each record."""
    environment.execute_sql(analytics.statements(settings, bounded=True)[0])
    _throw_away(inserts, environment.sql_query("SELECT * FROM saga_events WHERE reason IS NULL"))
    inserts.add_insert_sql(
        "INSERT INTO found SELECT source_partition, source_offset FROM saga_events WHERE reason IS NOT NULL"
    )


def with_second_pass(wrong: str) -> Callable[[Any, Settings, Any], None]:
    """Two passes: Flink's JSON format, and the raw format with a condition in SQL."""

    def add(environment: Any, settings: Settings, inserts: Any) -> None:
        environment.execute_sql(json_events(settings))
        environment.execute_sql(RAW_RECORDS.format(topic=settings.topic, bootstrap_servers=settings.bootstrap_servers))
        _throw_away(inserts, environment.from_path("saga_events"))
        inserts.add_insert_sql(f"INSERT INTO found SELECT source_partition, source_offset FROM records WHERE {wrong}")

    return add


def _throw_away(inserts: Any, rows: Any) -> None:
    from pyflink.table import TableDescriptor  # noqa: PLC0415 - starts a JVM, which reads what prepare_jvm set

    inserts.add_insert(TableDescriptor.for_connector("blackhole").build(), rows)


FLINK_WAYS = {
    "connector": with_connector,
    "raw": with_second_pass(NO_JSON),
    "raw fields": with_second_pass(WRONG_FIELDS),
}
CONSUMER = "consumer"


def run_flink(way: str, settings: Settings, broker_pid: int) -> Run:
    """One job, bounded."""
    settle()
    folder = Path(tempfile.mkdtemp(prefix="found-", dir=settings.root))
    environment = streaming_environment(settings)
    environment.get_config().set("restart-strategy.type", "none")  # a job that restarts is no measurement
    environment.execute_sql(FOUND.format(folder=folder.as_uri()))
    inserts = environment.create_statement_set()
    FLINK_WAYS[way](environment, settings, inserts)
    client = inserts.execute().get_job_client()
    began = Clocks(broker_pid)
    client.get_job_execution_result().result()
    ended = Clocks(broker_pid)
    lines = [line for file in folder.rglob("part-*") for line in file.read_bytes().splitlines()]
    shutil.rmtree(folder)
    places = [msgspec.json.decode(line, type=dict[str, int]) for line in lines]
    found = frozenset((place["source_partition"], place["source_offset"]) for place in places)
    return Run(ended.wall - began.wall, ended.flink - began.flink, found)


def run_consumer(settings: Settings, group: str) -> Run:
    """A group with one member, from its joining to the ends of the partitions.

    Raises:
        RuntimeError: no record came for 30 s.
    """
    left, silent, found = sum(_ends(settings)), 0, set()
    began, cpu = time.monotonic(), time.process_time()
    consumer = KafkaConsumer(
        settings.topic,
        bootstrap_servers=settings.bootstrap_servers,
        group_id=group,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8 << 20,
        max_poll_records=10_000,
    )
    while left > 0:
        batches = consumer.poll(timeout_ms=1_000)
        silent = 0 if batches else silent + 1
        if silent == SILENT_POLLS:
            msg = f"no record for {SILENT_POLLS} s, {left:,} are left"
            raise RuntimeError(msg)
        for partition, records in batches.items():
            left -= len(records)
            found |= {
                (partition.partition, record.offset)
                for record in records
                if not _is_valid(record.value, record.timestamp)
            }
    consumer.close()
    return Run(time.monotonic() - began, time.process_time() - cpu, frozenset(found))


def tell(way: str, events: int, runs: list[Run], damaged: Places) -> bool:
    """Print what a way costs and finds; says whether it found what it should, and nothing else."""
    found = runs[-1].found
    missed = Counter(kind for place, kind in damaged.items() if place not in found)
    wrongly = len(found - set(damaged))
    print(
        f"{way}: {median(events / run.seconds for run in runs) / 1000:.0f} K events/s, "
        f"{median(run.cpu_seconds for run in runs) / events * 1e6:.1f} CPU s per M; "
        f"found {len(found & set(damaged)):,} of {len(damaged):,}, wrongly {wrongly:,}",
        flush=True,
    )
    for kind, number in missed.items():
        print(f"    missed {number} of {list(damaged.values()).count(kind)}: {kind}")
    return not missed and not wrongly


def measure(settings: Settings, load: Load, repeat: int, broker_pid: int) -> bool:
    """Fill the topic, take turns, tell; says whether connector and consumer found all."""
    damaged = fill(settings, load)
    print(f"{load.events:,} records, {len(damaged):,} damaged in {len(DAMAGE)} ways", flush=True)
    prepare_jvm(settings)
    open_catalog(settings).close()  # makes its folder
    runs: dict[str, list[Run]] = {way: [] for way in (*FLINK_WAYS, CONSUMER)}
    for turn in range(repeat + 1):
        for way, taken in runs.items():
            run = run_consumer(settings, f"bench-{turn}") if way == CONSUMER else run_flink(way, settings, broker_pid)
            print(f"  {way}: {run.seconds:.1f} s{'' if turn else ', to warm up'}", flush=True)
            if turn:
                taken.append(run)
    right = {way: tell(way, load.events, taken, damaged) for way, taken in runs.items()}
    return right["connector"] and right[CONSUMER]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python bench/rejects.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=1_000_000, help="default 1,000,000")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each; default 3")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is stopped then, too
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # importing sagaz has configured logging, at INFO
    load = Load(events=given.events)
    with tempfile.TemporaryDirectory(prefix="sagascope-rejects-", ignore_cleanup_errors=True) as folder:
        settings = Settings(home=folder, partitions=load.partitions, dedup_horizon_seconds=0)
        try:
            broker = stack.up(settings)
            settings = msgspec.structs.replace(settings, bootstrap_servers=broker.bootstrap_servers)
            right = measure(settings, load, given.repeat, broker.pid)
        finally:
            stack.down(settings)
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
