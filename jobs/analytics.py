"""The streaming job: topic -> events and step_stats, one pass, no Python on the hot path.

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
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from jobs.flink import flink_log, interval, newest_checkpoint, prepare_jvm, statement, streaming_environment
from warehouse.catalog import open_catalog
from warehouse.settings import InvalidSettingError, Settings

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

POLL_SECONDS = 0.25


class StopRequestedError(Exception):
    """SIGTERM or SIGINT arrived."""


class SecondJobError(RuntimeError):
    """Another job writes the same tables; two of them would store every event twice."""


def submit(settings: Settings, *, bounded: bool = False) -> Any:
    """Submit the job; returns PyFlink's TableResult. With `bounded` it ends at what the topic held when it started."""
    environment = streaming_environment(settings)
    for sql in statements(settings, bounded=bounded):
        environment.execute_sql(sql)
    inserts = environment.create_statement_set()
    for sql in insert_statements(settings):
        inserts.add_insert_sql(sql)
    return inserts.execute()


def statements(settings: Settings, *, bounded: bool = False) -> list[str]:
    """The DDL: the topic as a table, and the views over it."""
    parameters = {
        "topic": settings.topic,
        "bootstrap_servers": settings.bootstrap_servers,
        "bounded_mode": "latest-offset" if bounded else "unbounded",
        "watermark_delay": interval(settings.watermark_delay_ms),
    }
    return [statement(name, parameters) for name in ("saga_events", "valid_events", "ended_steps")]


def insert_statements(settings: Settings) -> list[str]:
    """One INSERT a table."""
    parameters = {"window": interval(settings.window_seconds * 1000)}
    return [statement(name, parameters) for name in ("insert_events", "insert_step_stats")]


def run(settings: Settings, *, bounded: bool = False) -> int:
    """Run the job until it ends or a signal stops it; returns the process's exit code."""
    if not settings.bootstrap_servers:
        msg = "no Kafka to read from: set SAGASCOPE_BOOTSTRAP_SERVERS=host:port, or use `sagascope analyze`"
        raise InvalidSettingError(msg)
    signal.signal(signal.SIGTERM, _request_stop)
    signal.signal(signal.SIGINT, _request_stop)
    client = None
    try:
        open_catalog(settings)  # makes the tables, whose partitioning Flink's DDL can't declare
        _claim_tables(settings)
        prepare_jvm(settings)
        checkpoint = newest_checkpoint(settings.checkpoints)
        _say("starting", resumes_from=str(checkpoint) if checkpoint else None)
        client = submit(settings, bounded=bounded).get_job_client()
        return _watch(client, settings)
    except StopRequestedError:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if client is not None:
            with suppress(Exception):  # the JVM may have got the signal too
                client.cancel().result()
        _say("stopped")
        return 0


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


def _watch(client: Any, settings: Settings) -> int:
    """Say each change of the job's status until it ends; 0 when it finished, 1 when it failed."""
    log, outcome, status = flink_log(settings), client.get_job_execution_result(), ""
    while not outcome.done():
        with suppress(Exception):  # the mini cluster goes away with its job, perhaps between these two lines
            now = client.get_job_status().result().name.lower()
            if now != status:
                status = now
                _say(status, **({"reason": last_cause(log)} if status in ("restarting", "failing") else {}))
        time.sleep(POLL_SECONDS)
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


def _request_stop(_signal: int, _frame: FrameType | None) -> None:
    raise StopRequestedError


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
    except (InvalidSettingError, SecondJobError, FileNotFoundError) as error:
        sys.exit(f"sagascope: {error}")


if __name__ == "__main__":
    main()
