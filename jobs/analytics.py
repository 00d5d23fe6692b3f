"""The streaming job: topic -> events, rejected_events and all statistics, one pass, no Python on the hot path.

    python -m jobs.analytics [--bounded]

Settings come from the environment (`SAGASCOPE_…`, see `warehouse.settings`). Each status change is one line of JSON on
standard output. SIGTERM or SIGINT cancel the job and keep its newest checkpoint, from which the next start resumes.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

from kafka.errors import KafkaError

from jobs.flink import (
    STATISTICS_VIEWS,
    flink_log,
    interval,
    prepare_jvm,
    query,
    statement,
    streaming_environment,
)
from jobs.resume import CanNotResumeError, made_for, prepare
from warehouse.catalog import CATALOG_NAME, CatalogError, open_catalog, row_count
from warehouse.settings import InvalidSettingError, Settings
from warehouse.tables import EVENTS, REJECTED_EVENTS, STATISTICS

if TYPE_CHECKING:
    from pathlib import Path

POLL_SECONDS = 0.25


class SecondJobError(RuntimeError):
    """Another job writes the same tables; two of them would store every event twice."""


def pipeline(settings: Settings, *, bounded: bool = False, checkpoint: Path | None = None) -> Any:
    """The whole job as one PyFlink StatementSet, to execute or to explain.

    With `bounded` it ends at what the topic held when it started, and closes all windows: for a topic that is read once.
    """
    environment = streaming_environment(settings, checkpoint)
    for sql in statements(settings, bounded=bounded):
        environment.execute_sql(sql)
    inserts = environment.create_statement_set()
    for sql in insert_statements(settings):
        inserts.add_insert_sql(sql)
    return inserts


def statements(settings: Settings, *, bounded: bool = False) -> list[str]:
    """The DDL: the topic as a table, and the views over it."""
    parameters = {
        "topic": settings.topic,
        "bootstrap_servers": settings.bootstrap_servers,
        "bounded": str(bounded).lower(),
        "watermark_delay": interval(settings.watermark_delay_ms),
        "dedup_horizon": f"{settings.dedup_horizon_seconds} s",
        "start_offsets": "",
        "stored_up_to": "",
        "stored_except": "",
    }
    return [statement(name, parameters) for name in ("saga_events", "valid_events", *STATISTICS_VIEWS)]


def insert_statements(settings: Settings) -> list[str]:
    """One INSERT a table."""
    return [
        f"INSERT INTO {CATALOG_NAME}.{'.'.join(table.identifier)}\n{query(settings, table)}"
        for table in (EVENTS, REJECTED_EVENTS, *STATISTICS)
    ]


def run(settings: Settings, *, bounded: bool = False) -> int:
    """Run the job until it ends or a signal stops it; returns the process's exit code.

    Raises:
        InvalidSettingError: no Kafka is named.
        SecondJobError: another job writes the same tables.
        CanNotResumeError: the checkpoints are of another job, or lost.
        kafka.errors.KafkaError: the broker does not answer.
    """
    if not settings.bootstrap_servers:
        msg = "no Kafka to read from: set SAGASCOPE_BOOTSTRAP_SERVERS=host:port, or use `sagascope analyze`"
        raise InvalidSettingError(msg)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with closing(open_catalog(settings)) as catalog:  # makes the tables, whose partitioning Flink's DDL can't declare
        rows = row_count(catalog, EVENTS)
    _claim_tables(settings)
    job = made_for(settings, statements(settings) + insert_statements(settings))
    checkpoint = prepare(settings.checkpoints, job, rows)
    prepare_jvm(settings)
    _say("starting", resumes_from=str(checkpoint) if checkpoint else None)
    client = pipeline(settings, bounded=bounded, checkpoint=checkpoint).execute().get_job_client()
    return _watch(client, settings, stop)


def _claim_tables(settings: Settings) -> None:
    """Be the only analytics job on these tables, until this process ends."""
    settings.checkpoints.mkdir(parents=True, exist_ok=True)
    lock = os.open(settings.checkpoints / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(lock, 32).decode().strip()
        msg = f"another analytics job (pid {pid}) writes the tables of {settings.root}: stop it first (kill {pid})"
        raise SecondJobError(msg) from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())


def _watch(client: Any, settings: Settings, stop: threading.Event) -> int:
    """Say each change of the job's status until it ends or is stopped; 0 unless it failed."""
    log, outcome, told = flink_log(settings), client.get_job_execution_result(), ""
    while not outcome.done() and not stop.wait(POLL_SECONDS):
        with suppress(Exception):  # the mini cluster goes away with its job, perhaps between these two lines
            status = client.get_job_status().result().name.lower()
            if status != told:
                _say(status, **({"reason": last_cause(log)} if status in ("restarting", "failing") else {}))
                told = status
    if stop.is_set():
        with suppress(Exception):  # it may have ended meanwhile
            client.cancel().result()
        _say("stopped")
        return 0
    try:
        outcome.result()
    except Exception as error:  # noqa: BLE001 - Py4J's error, whose text is the Java stack trace
        _say("failed", reason=root_cause(str(error)))
        return 1
    _say("finished")
    return 0


def root_cause(trace: str) -> str:
    """The innermost `Caused by` of a Java stack trace, on one line."""
    causes = [line.removeprefix("Caused by: ") for line in trace.splitlines() if line.startswith("Caused by: ")]
    return causes[-1] if causes else trace.strip().splitlines()[0] if trace.strip() else "unknown"


def last_cause(log: Path) -> str:
    """The last root cause that the JVM's log tells of: of a restart Flink's client says nothing."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 64 * 1024))
        return root_cause(file.read().decode("utf-8", "replace"))


def _stop_at_end_of_input() -> None:
    while os.read(0, 4096):  # not sys.stdin, whose lock would be held when the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _say(status: str, **facts: object) -> None:
    sys.stdout.write(json.dumps({"job": "analytics", "status": status} | facts) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m jobs.analytics", description=__doc__)
    parser.add_argument("--bounded", action="store_true", help="end at what the topic holds now, closing all windows")
    parser.add_argument(
        "--with-parent", action="store_true", help="stop when standard input ends, as it does when the parent is gone"
    )
    arguments = parser.parse_args()
    if arguments.with_parent:
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    try:
        sys.exit(run(Settings.from_environment(os.environ), bounded=arguments.bounded))
    except (InvalidSettingError, SecondJobError, CanNotResumeError, CatalogError, KafkaError, OSError) as error:
        _say("refused", reason=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
