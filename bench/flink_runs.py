"""The process that `bench/drain.py` starts: bounded drains in one JVM, one after the other, each measured and checked.

Apart from `bench/drain.py` so that its start costs what a job's start costs, and no more. It takes a `Task` as JSON on
its command line and writes a line of JSON, a `Run`, for each drain.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import psutil

from jobs import analytics
from jobs.flink import flink_log, interval, prepare_jvm, streaming_environment
from warehouse.catalog import open_catalog
from warehouse.settings import Settings
from warehouse.tables import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTLE_SECONDS = 2.0
ROCKSDB = {"state.backend.type": "rocksdb", "execution.checkpointing.incremental": "true"}
ONE_HOUR = {"table.exec.state.ttl": "1 h"}
OF_EVENTS = ("rows", "distinct records", "rejected")
"""What is known of a contender that writes no statistics."""

JSON_EVENTS = """
CREATE TEMPORARY TABLE saga_events (
    event_id STRING,
    event_type STRING,
    saga_id STRING,
    saga_name STRING,
    run_id STRING,
    `sequence` BIGINT,
    `timestamp` BIGINT,
    step_name STRING,
    attempt INT,
    compensable BOOLEAN,
    `pivot` BOOLEAN,
    duration_ms BIGINT,
    duration_derived BOOLEAN,
    total_duration_ms BIGINT,
    error_type STRING,
    error_message STRING,
    context_keys ARRAY<STRING>,
    attributes MAP<STRING, STRING>,
    definition_id STRING,
    parent_saga_id STRING,
    trace_id STRING,
    service STRING,
    schema_version INT,
    source_topic STRING METADATA FROM 'topic' VIRTUAL,
    source_partition INT METADATA FROM 'partition' VIRTUAL,
    source_offset BIGINT METADATA FROM 'offset' VIRTUAL,
    record_time TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
    event_time AS CASE
        WHEN `timestamp` >= 0 AND TO_TIMESTAMP_LTZ(`timestamp`, 3) <= record_time + INTERVAL '5' MINUTE
            THEN TO_TIMESTAMP_LTZ(`timestamp`, 3)
    END,
    WATERMARK FOR event_time AS event_time - INTERVAL '{delay}' DAY TO SECOND
) WITH (
    'connector' = 'kafka',
    'topic' = '{topic}',
    'properties.bootstrap.servers' = '{bootstrap_servers}',
    'properties.group.id' = 'bench',
    'scan.startup.mode' = 'earliest-offset',
    'scan.bounded.mode' = 'latest-offset',
    'format' = 'json',
    'json.ignore-parse-errors' = 'true'
)
"""
SQL_DEDUPLICATE = """
CREATE TEMPORARY VIEW saga_events AS
SELECT {columns}
FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY PROCTIME()) AS copy FROM topic_events)
WHERE copy = 1
"""


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """What is drained, by which means."""

    name: str
    what: str
    sinks: Literal["blackhole", "events", "all"] = "all"
    """`events`: that table and `rejected_events`."""
    json: bool = False
    """Read by Flink's own Kafka connector and JSON format, not by ours."""
    horizon_seconds: int = 0
    """Of our own deduplication; 0: none."""
    sql_dedup: bool = False
    """Flink SQL's Deduplicate behind the source."""
    options: dict[str, str] = {}
    """Of Flink."""
    table_properties: dict[str, str] = {}
    """Of Iceberg."""
    against: tuple[str, ...] = ("baseline",)
    """Which ratios tell something."""


HORIZON = Settings().dedup_horizon_seconds
OF_JOB = ("baseline", "job")
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(name="baseline", what="Flink's Kafka and JSON", sinks="blackhole", json=True, against=()),
        Contender(name="source", what="our connector", sinks="blackhole"),
        Contender(name="events", what="events and rejected_events", sinks="events"),
        Contender(name="job", what="the whole job without dedup"),
        Contender(name="dedup", what="the whole job", horizon_seconds=HORIZON, against=OF_JOB),
        Contender(
            name="dedup-rocksdb",
            what="the whole job, RocksDB",
            horizon_seconds=HORIZON,
            options=ROCKSDB,
            against=OF_JOB,
        ),
        Contender(name="sql-dedup", what="Flink's Deduplicate", sql_dedup=True, options=ONE_HOUR, against=OF_JOB),
        Contender(
            name="sql-dedup-rocksdb",
            what="Flink's Deduplicate, RocksDB",
            sql_dedup=True,
            options=ONE_HOUR | ROCKSDB,
            against=OF_JOB,
        ),
    )
}


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What a child process is to run, one after the other."""

    home: str
    bootstrap_servers: str
    topic: str
    expected: dict[str, int]
    """What must be found in the tables after a run of the job."""
    events: int
    broker_pid: int
    heap: str
    contenders: tuple[Contender, ...]
    spawned: float
    """When, by the monotonic clock, which all processes of a machine share."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one drain."""

    contender: str
    events: int
    run_seconds: float
    all_seconds: float
    cpu_seconds: float
    """Of the Flink process tree while the job ran."""
    all_cpu_seconds: float
    """Of it from its start on; warm: from the call on."""
    broker_cpu_seconds: float
    other_cpu_seconds: float
    """Of everything else on the machine, what the hypervisor took included, while the job ran."""
    jvm_peak_bytes: int
    state_bytes: int
    """Of the largest checkpoint."""
    facts: dict[str, int]
    """What was found in the tables, or in the log where there are none."""
    faults: list[str]
    """What of it is wrong."""


class Clocks:
    """The clocks at one moment: of this process and its JVM, of the broker, of the machine."""

    def __init__(self, broker_pid: int) -> None:
        me = psutil.Process()
        tree = [me, *(child for child in me.children(recursive=True) if child.pid != broker_pid)]
        times = psutil.cpu_times()
        self.wall = time.monotonic()
        self.flink = sum(process.cpu_times().user + process.cpu_times().system for process in tree)
        broker = psutil.Process(broker_pid).cpu_times()
        self.broker = broker.user + broker.system
        self.machine = times.user + times.nice + times.system + times.irq + times.softirq + times.steal


def run_task(task: Task) -> Iterator[Run]:
    """Drain the topic once for each contender of the task, in this process."""
    settings = Settings(home=task.home, bootstrap_servers=task.bootstrap_servers, topic=task.topic)
    prepare_jvm(settings, heap=task.heap)
    log = flink_log(settings)
    for number, contender in enumerate(task.contenders):
        if number:
            settle()
        own = msgspec.structs.replace(
            settings, home=str(settings.root / f"run-{number}"), dedup_horizon_seconds=contender.horizon_seconds
        )
        began = Clocks(task.broker_pid) if number else None
        log_begins = log.stat().st_size if log.exists() else 0
        _make_tables(own, contender.table_properties)
        client = _submit(own, contender)
        accepted = Clocks(task.broker_pid)
        client.get_job_execution_result().result()
        ended = Clocks(task.broker_pid)
        peak = _jvm_peak_bytes()
        with log.open("rb") as lines:
            lines.seek(log_begins)
            said = lines.read().decode("utf-8", "replace")
        facts = _read_to(said) if contender.sinks == "blackhole" else _stored(own)
        expected = {"records read": task.events} if contender.sinks == "blackhole" else task.expected
        if contender.sinks == "events":
            expected = {name: expected[name] for name in OF_EVENTS}
        shutil.rmtree(own.root, ignore_errors=True)  # of the checkpoints the mini cluster is still deleting some
        flink = ended.flink - accepted.flink
        broker = ended.broker - accepted.broker
        yield Run(
            contender=contender.name,
            events=task.events,
            run_seconds=ended.wall - accepted.wall,
            all_seconds=ended.wall - (began.wall if began else task.spawned),
            cpu_seconds=flink,
            all_cpu_seconds=ended.flink - (began.flink if began else 0.0),
            broker_cpu_seconds=broker,
            other_cpu_seconds=max(0.0, ended.machine - accepted.machine - flink - broker),
            jvm_peak_bytes=peak,
            state_bytes=max(
                map(int, re.findall(r"Completed checkpoint \d+ for job \w+ \((\d+) bytes", said)), default=0
            ),
            facts=facts,
            faults=[
                f"{name}: {facts[name]:,}, expected {wanted:,}"
                for name, wanted in expected.items()
                if facts[name] != wanted
            ],
        )


def _make_tables(settings: Settings, properties: dict[str, str]) -> None:
    """An empty catalog with the job's tables."""
    catalog = open_catalog(settings)
    for table in TABLES if properties else ():
        with catalog.load_table(table.identifier).transaction() as change:
            change.set_properties(properties)


def _submit(settings: Settings, contender: Contender) -> Any:
    """`jobs.analytics.pipeline`, bounded, but for what the contender is about; returns the job's client."""
    from pyflink.java_gateway import get_gateway  # noqa: PLC0415 - starts a JVM, which reads what prepare_jvm set
    from pyflink.table import TableDescriptor  # noqa: PLC0415

    environment = streaming_environment(settings)
    log4j = get_gateway().jvm.org.apache.logging.log4j
    log4j.core.config.Configurator.setLevel(  # how large checkpoints are stands in the log, and nowhere else afterwards
        "org.apache.flink.runtime.checkpoint.CheckpointCoordinator", log4j.Level.INFO
    )
    # A job that restarts is no measurement; left to itself it would try for ever.
    for key, value in ({"restart-strategy.type": "none"} | contender.options).items():
        environment.get_config().set(key, value)
    topic, *views = analytics.statements(settings, bounded=True)
    if contender.json:
        topic, views = json_events(settings), []
    elif contender.sql_dedup:
        environment.execute_sql(topic.replace("TABLE saga_events (", "TABLE topic_events (", 1))
        # The ids of rejected records are NULL, hence one; the load has none.
        columns = ", ".join(
            f"`{name}`" for name in environment.from_path("topic_events").get_schema().get_field_names()
        )
        topic = SQL_DEDUPLICATE.format(columns=columns)
    for sql in (topic, *views):
        environment.execute_sql(sql)
    inserts = environment.create_statement_set()
    if contender.sinks == "blackhole":
        # The sink takes the source's columns as they are, all of them: nothing for the planner to leave out.
        inserts.add_insert(TableDescriptor.for_connector("blackhole").build(), environment.from_path("saga_events"))
    else:
        of_events = ("INSERT INTO lake.saga.events\n", "INSERT INTO lake.saga.rejected_events\n")
        for sql in analytics.insert_statements(settings):
            if contender.sinks == "all" or sql.startswith(of_events):
                inserts.add_insert_sql(sql)
    return inserts.execute().get_job_client()


def json_events(settings: Settings) -> str:
    """The DDL of the topic by Flink's own Kafka connector and JSON format: all fields, event time, watermark; bounded."""
    return JSON_EVENTS.format(
        delay=interval(settings.watermark_delay_ms),
        topic=settings.topic,
        bootstrap_servers=settings.bootstrap_servers,
    )


def settle() -> None:
    """Let the last run's mini cluster go, and its garbage, so that the next one does not pay for them."""
    from pyflink.java_gateway import get_gateway  # noqa: PLC0415 - see _submit

    time.sleep(SETTLE_SECONDS)
    get_gateway().jvm.System.gc()


def _jvm_peak_bytes() -> int:
    """The kernel's own high-water mark of this process's JVM: no sampling, nothing missed."""
    java = next(child for child in psutil.Process().children(recursive=True) if child.name() == "java")
    match = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{java.pid}/status").read_text(), re.MULTILINE)
    return int(match[1]) << 10 if match else 0


def _read_to(log: str) -> dict[str, int]:
    """A blackhole counts nothing; but the log says which split has which end, and which of them were read to it."""
    ends = dict(re.findall(r"Partition: (\S+), StartingOffset: -?\d+, StoppingOffset: (\d+)\]", log))
    read = {
        split.strip()
        for splits in re.findall(r"Finished reading split\(s\) \[(.*?)\]", log)
        for split in splits.split(",")
    }
    return {"records read": sum(int(end) for split, end in ends.items() if split in read)}


def _stored(settings: Settings) -> dict[str, int]:
    from warehouse import history  # noqa: PLC0415 - the job does not load DuckDB

    queries = {
        ("rows", "distinct records"): """
            SELECT count(*), count(DISTINCT source_partition * 1000000000000 + source_offset) FROM events""",
        ("rejected",): "SELECT count(*) FROM rejected_events",
        # Of a sum of doubles, exact enough for whole milliseconds.
        ("completed", "failed", "milliseconds", "windows"): """
            SELECT sum(completed), sum(failed), round(sum(avg_ms * (completed + failed))), count(DISTINCT window_start)
            FROM stored_step_stats""",
        ("sagas started", "sagas ended", "sagas' milliseconds"): """
            SELECT sum(started), sum(completed + rolled_back + failed),
                round(sum(avg_ms * (completed + rolled_back + failed)))
            FROM stored_saga_stats""",
        ("durations",): """SELECT sum("count") FROM stored_step_durations""",
    }
    with history.open(settings) as tables:
        rows = {names: tables.sql(sql).fetchall()[0] for names, sql in queries.items()}
    return {name: int(value or 0) for names, values in rows.items() for name, value in zip(names, values, strict=True)}


def main() -> None:
    """Entry point."""
    for run in run_task(msgspec.json.decode(sys.argv[1], type=Task)):
        sys.stdout.buffer.write(msgspec.json.encode(run) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
