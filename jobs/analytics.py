"""The streaming job: topic -> events, rejected_events and all statistics, one pass, no Python on the hot path.

    python -m jobs.analytics [--bounded | --rebase]

Settings come from the environment (`SAGASCOPE_…`, see `warehouse.settings`). Each status change is one line of JSON on
standard output. SIGTERM or SIGINT stop the job with a savepoint, from which the next start resumes.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from kafka.errors import KafkaError

from jobs.chores import Chores, owe
from jobs.claim import SecondJobError, claim_jvm, claim_tables
from jobs.flink import (
    STATISTICS_VIEWS,
    interval,
    prepare_jvm,
    query,
    root_cause,
    statement,
    streaming_environment,
)
from jobs.resume import (
    CanNotResumeError,
    check_topic,
    checkpoints_for,
    completed_checkpoints,
    made_for,
    noted,
    start_of_rebase,
)
from jobs.watching import (
    CanNotRestoreError,
    StalledError,
    UnreadDeletedError,
    Watch,
    is_of_restoring,
    say,
)
from warehouse.catalog import CATALOG_NAME, CatalogError, open_catalog, row_count
from warehouse.progress import NOTHING, Progress, read_progress
from warehouse.settings import InvalidSettingError, Settings
from warehouse.tables import EVENTS, REJECTED_EVENTS, SAGA_STATS, STATISTICS, STEP_DURATIONS, STEP_STATS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

COUNTS = {STEP_STATS: "completed", SAGA_STATS: "started", STEP_DURATIONS: "count"}
EPOCH = datetime.fromtimestamp(0, UTC)


def pipeline(
    settings: Settings,
    *,
    bounded: bool = False,
    checkpoint: Path | None = None,
    starts: Mapping[int, int] | None = None,
    progress: Progress = NOTHING,
) -> Any:
    """The whole job as one PyFlink StatementSet, to execute or to explain.

    Args:
        settings: Where from and where to.
        bounded: End at what the topic holds when it starts, and close all windows: for a topic that is read once.
        checkpoint: What to resume from.
        starts: Without a checkpoint, the offset of each partition to begin at; else its first.
        progress: What the tables hold: it is not written again, where it is read again.
    """
    environment = streaming_environment(settings, checkpoint)
    for sql in statements(settings, bounded=bounded, starts=starts, progress=progress):
        environment.execute_sql(sql)
    inserts = environment.create_statement_set()
    for sql in insert_statements(settings, progress):
        inserts.add_insert_sql(sql)
    return inserts


def statements(
    settings: Settings,
    *,
    bounded: bool = False,
    starts: Mapping[int, int] | None = None,
    progress: Progress = NOTHING,
) -> list[str]:
    """The DDL: the topic as a table, and the views over it."""
    parameters = {
        "topic": settings.topic,
        "bootstrap_servers": settings.bootstrap_servers,
        "bounded": str(bounded).lower(),
        "watermark_delay": interval(settings.watermark_delay_ms),
        "dedup_horizon": f"{settings.dedup_horizon_seconds} s",
        "start_offsets": _pairs(starts or {}),
        "stored_events": _pairs(progress.events),
        "stored_rejected": _pairs(progress.rejected),
    }
    return [statement(name, parameters) for name in ("saga_events", "valid_events", *STATISTICS_VIEWS)]


def insert_statements(settings: Settings, progress: Progress = NOTHING) -> list[str]:
    """One INSERT a table; of a statistic, only windows that the table does not hold."""
    selects = {table: query(settings, table) for table in (EVENTS, REJECTED_EVENTS)}
    for table in STATISTICS:
        closed = round(progress.closed.get(table.name, EPOCH).timestamp() * 1000)
        # Always there, so that a checkpoint fits whatever is closed; and with a count that is never negative, because Flink
        # would else look at each event's window before it counts, to leave out what in all but a few runs is nothing.
        fresh = f"window_end > TO_TIMESTAMP_LTZ({closed}, 3) OR `{COUNTS[table]}` < 0"
        selects[table] = f"SELECT * FROM (\n{query(settings, table)})\nWHERE {fresh}"  # noqa: S608 - ours
    return [f"INSERT INTO {CATALOG_NAME}.{'.'.join(table.identifier)}\n{sql}" for table, sql in selects.items()]


def _pairs(offsets: Mapping[int, int]) -> str:
    return ",".join(f"{partition}:{offset}" for partition, offset in sorted(offsets.items()))


def run(settings: Settings, *, bounded: bool = False, rebase: bool = False) -> int:
    """Run the job until it ends or a signal stops it; returns the process's exit code.

    Args:
        settings: Where from and where to.
        bounded: End at what the topic holds now.
        rebase: Go on from what the tables hold, whatever the checkpoints are of.

    Raises:
        InvalidSettingError: no Kafka is named.
        SecondJobError: another job writes the same tables.
        CanNotResumeError: the checkpoints are of another job, damaged, or lost.
        kafka.errors.KafkaError: the broker does not answer.
    """
    if not settings.bootstrap_servers:
        msg = "no Kafka to read from: set SAGASCOPE_BOOTSTRAP_SERVERS=host:port, or use `sagascope analyze`"
        raise InvalidSettingError(msg)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    claim_tables(settings)
    with closing(open_catalog(settings)) as catalog:  # makes the tables, whose partitioning Flink's DDL can't declare
        progress = read_progress(settings, catalog)
        rows = row_count(catalog, EVENTS) if progress.events else 0  # what is imported came from no topic
    job = made_for(settings, statements(settings) + insert_statements(settings))
    bounds = check_topic(settings, progress)
    starts: dict[int, int] = {}
    checkpoints: list[Path | None] = [None]
    if rebase:
        starts = start_of_rebase(settings, job, progress, bounds)
        for partition, offsets in progress.deleted(bounds).items():
            what = (
                f"partition {partition} of {settings.topic} begins at offset {offsets.stop}: the {len(offsets):,} records from "
                f"{offsets.start} on are deleted from the topic and in no table. Keep it longer (retention.bytes)"
            )
            say("gap", reason=what)
        if progress.watermark:
            owe(settings, min(progress.closed.values()), progress.watermark)
    else:
        checkpoints = [*checkpoints_for(settings.checkpoints, job, rows)] or [None]
    prepare_jvm(settings)
    from pyflink.java_gateway import get_gateway  # noqa: PLC0415 - starts a JVM, which reads what prepare_jvm set

    with closing(claim_jvm(settings, get_gateway().jvm)), Chores(settings):
        for checkpoint in checkpoints:
            say("starting", resumes_from=str(checkpoint) if checkpoint else None, starts=starts or None)
            whole = pipeline(settings, bounded=bounded, checkpoint=checkpoint, starts=starts, progress=progress)
            try:
                return _run(whole, settings, stop, checkpoint)
            except CanNotRestoreError as error:
                say("damaged", reason=f"{checkpoint} can't be restored ({error}): falling back to the one before")
                if (
                    checkpoint
                ):  # else it would stay the newest: for this watch, for the next fallback, for the next start
                    checkpoint.rename(checkpoint.with_name(f"damaged-{checkpoint.name}"))
    msg = f"no checkpoint in {settings.checkpoints} can be restored; `sagascope analyze --rebase` goes on from what the tables hold"
    raise CanNotResumeError(msg)


def _run(whole: Any, settings: Settings, stop: threading.Event, checkpoint: Path | None) -> int:
    """Run it from one checkpoint; the process's exit code.

    Raises:
        CanNotRestoreError: the checkpoint is damaged.
    """
    try:
        Watch(whole.execute().get_job_client(), settings, checkpoint).until(stop)
    except CanNotRestoreError:
        raise
    except StalledError as error:
        say("failed", reason=f"{error}; the next start goes on from the newest checkpoint")
        return 1
    except UnreadDeletedError as error:
        say("failed", reason=str(error))
        return 1
    except Exception as error:  # PyFlink's, or Py4J's, around a Java exception and its stack trace
        reason = root_cause(str(error))
        if checkpoint and is_of_restoring(settings, checkpoint, str(error)):
            raise CanNotRestoreError(reason) from error
        say("failed", reason=reason)
        return 1
    return 0


def _stop_at_end_of_input() -> None:
    while os.read(0, 4096):  # not sys.stdin, whose lock would be held when the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _say_fingerprint(settings: Settings) -> None:
    """What a job started now would be, and what its checkpoints were made for; changes nothing, and starts no JVM."""
    now, before = made_for(settings, statements(settings) + insert_statements(settings)), noted(settings.checkpoints)
    found = completed_checkpoints(settings.checkpoints)
    say(
        "fingerprint",
        now=msgspec.to_builtins(now),
        noted=msgspec.to_builtins(before),
        checkpoints=len(found),
        newest=str(found[0]) if found else None,
        differing=[name for name in now.__struct_fields__ if before and getattr(before, name) != getattr(now, name)],
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.analytics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--bounded", action="store_true", help="end at what the topic holds now, closing all windows")
    ways.add_argument("--rebase", action="store_true", help="forget the checkpoints: go on from what the tables hold")
    parser.add_argument(
        "--with-parent", action="store_true", help="stop when standard input ends, as it does when the parent is gone"
    )
    ways.add_argument("--fingerprint", action="store_true", help=argparse.SUPPRESS)  # `sagascope doctor` asks so
    arguments = parser.parse_args()
    if arguments.with_parent:
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    try:
        if arguments.fingerprint:
            _say_fingerprint(Settings.from_environment(os.environ))
            sys.exit(0)
        sys.exit(run(Settings.from_environment(os.environ), bounded=arguments.bounded, rebase=arguments.rebase))
    except (ValueError, SecondJobError, CanNotResumeError, CatalogError, KafkaError, OSError) as error:
        say("refused", reason=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
