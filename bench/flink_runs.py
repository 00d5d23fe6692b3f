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
from jobs.flink import flink_log, prepare_jvm, streaming_environment
from warehouse.catalog import open_catalog
from warehouse.settings import Settings
from warehouse.tables import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTLE_SECONDS = 2.0

Contender = Literal["baseline", "job", "variant"]


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
    options: dict[str, str]
    """Of Flink, for the variant."""
    table_properties: dict[str, str]
    """Of Iceberg, for the variant."""
    spawned: float
    """When, by the monotonic clock, which all processes of a machine share."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one drain."""

    contender: Contender
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
    facts: dict[str, int]
    """What was found in the tables, or in the log for the baseline."""
    faults: list[str]
    """What of it is wrong."""


class _Reading:
    """The clocks at one moment."""

    def __init__(self, broker_pid: int) -> None:
        me = psutil.Process()
        tree = [me, *me.children(recursive=True)]
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
            _settle()
        own = msgspec.structs.replace(settings, home=str(settings.root / f"run-{number}"))
        began = _Reading(task.broker_pid) if number else None
        log_begins = log.stat().st_size if log.exists() else 0
        properties = task.table_properties if contender == "variant" else {}
        _make_tables(own, properties)
        client = _submit(own, contender, task.options if contender == "variant" else {})
        accepted = _Reading(task.broker_pid)
        client.get_job_execution_result().result()
        ended = _Reading(task.broker_pid)
        peak = _jvm_peak_bytes()
        with log.open("rb") as lines:
            lines.seek(log_begins)
            said = lines.read().decode("utf-8", "replace")
        facts = _read_to(said) if contender == "baseline" else _stored(own)
        shutil.rmtree(own.root, ignore_errors=True)  # of the checkpoints the mini cluster is still deleting some
        flink = ended.flink - accepted.flink
        broker = ended.broker - accepted.broker
        yield Run(
            contender=contender,
            events=task.events,
            run_seconds=ended.wall - accepted.wall,
            all_seconds=ended.wall - (began.wall if began else task.spawned),
            cpu_seconds=flink,
            all_cpu_seconds=ended.flink - (began.flink if began else 0.0),
            broker_cpu_seconds=broker,
            other_cpu_seconds=max(0.0, ended.machine - accepted.machine - flink - broker),
            jvm_peak_bytes=peak,
            facts=facts,
            faults=[
                f"{name}: {facts[name]:,}, expected {wanted:,}"
                for name, wanted in (
                    {"records read": task.events} if contender == "baseline" else task.expected
                ).items()
                if facts[name] != wanted
            ],
        )


def _make_tables(settings: Settings, properties: dict[str, str]) -> None:
    """An empty catalog with the job's tables."""
    catalog = open_catalog(settings)
    for table in TABLES if properties else ():
        with catalog.load_table(table.identifier).transaction() as change:
            change.set_properties(properties)


def _submit(settings: Settings, contender: Contender, options: dict[str, str]) -> Any:
    """`jobs.analytics.pipeline`, bounded, but for what the contender is about; returns the job's client."""
    from pyflink.table import TableDescriptor  # noqa: PLC0415 - starts a JVM, which reads what prepare_jvm set

    environment = streaming_environment(settings)
    for key, value in options.items():
        environment.get_config().set(key, value)
    for sql in analytics.statements(settings, bounded=True):
        environment.execute_sql(sql)
    inserts = environment.create_statement_set()
    if contender == "baseline":
        # The sink takes the source's columns as they are, all of them: nothing for the planner to leave out.
        inserts.add_insert(TableDescriptor.for_connector("blackhole").build(), environment.from_path("saga_events"))
    else:
        for sql in analytics.insert_statements(settings):
            inserts.add_insert_sql(sql)
    return inserts.execute().get_job_client()


def _settle() -> None:
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
    ends = dict(re.findall(r"Partition: (\S+), StartingOffset: -2, StoppingOffset: (\d+)\]", log))
    read = {
        split.strip()
        for splits in re.findall(r"Finished reading split\(s\) \[(.*?)\]", log)
        for split in splits.split(",")
    }
    return {"records read": sum(int(end) for split, end in ends.items() if split in read)}


def _stored(settings: Settings) -> dict[str, int]:
    from warehouse import history  # noqa: PLC0415 - the job does not load DuckDB

    with history.open(settings) as tables:
        rows, records = tables.sql(
            "SELECT count(*), count(DISTINCT source_partition * 1000000000000 + source_offset) FROM events"
        ).fetchall()[0]
        completed, failed, milliseconds, windows = tables.sql(
            "SELECT sum(completed), sum(failed), sum(avg_ms * (completed + failed)), count(DISTINCT window_start) FROM stored_step_stats"
        ).fetchall()[0]
    return {
        "rows": rows,
        "distinct records": records,
        "completed": int(completed or 0),
        "failed": int(failed or 0),
        "milliseconds": round(milliseconds or 0.0),  # of a sum of doubles, exact enough for whole milliseconds
        "windows": windows,
    }


def main() -> None:
    """Entry point."""
    for run in run_task(msgspec.json.decode(sys.argv[1], type=Task)):
        sys.stdout.buffer.write(msgspec.json.encode(run) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
