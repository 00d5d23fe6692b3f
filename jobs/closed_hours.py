"""Which hours may be computed again: those that are closed, and of which all that the stream has begun is committed."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pyiceberg.conversions import from_bytes
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.types import TimestamptzType
from pyiceberg.utils.datetime import micros_to_timestamptz

from jobs.resume import completed_checkpoints
from warehouse.claims import jvm_pid
from warehouse.progress import read_closed
from warehouse.retention import kept_since
from warehouse.tables import EVENTS, REJECTED_EVENTS, SAGA_RUNS, STATISTICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile

    from warehouse.settings import Settings
    from warehouse.tables import Table

HOUR = timedelta(hours=1)
EPOCH = datetime.fromtimestamp(0, UTC)
COMMIT_SECONDS = 60.0
"""How long the job may take to complete a checkpoint; ten intervals, where that is longer."""


class CanNotRecomputeError(ValueError):
    """These hours can't be recomputed; names the hour, and from when on it can be."""


def closed_bounds(
    settings: Settings,
    catalog: Catalog,
    tables: Sequence[Table],
    since: datetime,
    until: datetime | None,
    *,
    clip: bool = False,
    now: datetime,
) -> dict[Table, datetime]:
    """Up to where each table can be computed again: `until`, or where there is none, or to `clip` it, as far as it is closed.

    Windows are closed up to the stream's watermark. Where no stream has ever written, because all events were imported,
    they are closed up to the last whole hour.

    Raises:
        CanNotRecomputeError: no whole hours, hours before the first event, or one that is not closed yet.
    """
    for name, moment in (("from", since), ("to", until)):
        if moment and (moment - EPOCH) % HOUR:
            msg = f"--{name} {moment.isoformat()} is no whole hour: write it as {moment:%Y-%m-%dT%H:00%z}"
            raise CanNotRecomputeError(msg)
    if until and since >= until:
        msg = f"--from {since.isoformat()} is not before --to {until.isoformat()}"
        raise CanNotRecomputeError(msg)
    if (kept := kept_since(catalog, [EVENTS])) and since < kept:
        msg = (
            f"--from {since.isoformat()}: events before {kept.isoformat()} were deleted by age (SAGASCOPE_EVENTS_KEPT_DAYS), so "
            "what was computed from them can't be computed again and stays as it is: recompute from there on"
        )
        raise CanNotRecomputeError(msg)
    progress, streamed = read_closed(settings, catalog), _has_streamed(settings, catalog)
    watermark = progress.watermark if streamed else now - (now - EPOCH) % HOUR
    if watermark is None or (since >= watermark if clip else (until or since) > watermark):
        hour = since if clip else max(since, (until or since + HOUR) - HOUR)
        behind = f"windows are closed up to {watermark.isoformat()} only" if watermark else "no window is closed yet"
        msg = f"the hour from {hour.isoformat()} on is not behind the stream's watermark: {behind}. Try again when it is over"
        raise CanNotRecomputeError(msg)
    _refuse_before_first(catalog, tables, until or watermark)
    closed = {
        table: (progress.closed_up_to(settings, table) if streamed else watermark) or since for table in STATISTICS
    }
    closed[SAGA_RUNS] = min(closed.values())
    if clip and until:
        return {table: min(until, closed[table]) for table in tables}
    return {table: until or closed[table] for table in tables}


def _has_streamed(settings: Settings, catalog: Catalog) -> bool:
    """Whether a stream has written, or may be about to: then windows of its events are its own to close."""
    return bool(
        jvm_pid(settings) is not None
        or next(iter(completed_checkpoints(settings.checkpoints)), None)
        # By the bounds of files, so that none is opened: where they hold other topics too, it may seem so.
        or any(_files(catalog, table, f"source_topic == '{settings.topic}'") for table in (EVENTS, REJECTED_EVENTS))
    )


def _refuse_before_first(catalog: Catalog, tables: Sequence[Table], until: datetime) -> None:
    """Unless rows are stored there, which are to go: the events they were computed from are gone."""
    for table in (EVENTS, *tables):
        if _files(catalog, table, f"{table.time_column} < '{until.isoformat()}'"):
            return
    column = catalog.load_table(EVENTS.identifier).schema().find_field(EVENTS.time_column).field_id
    bounds = [file.lower_bounds[column] for file in _files(catalog, EVENTS)]
    first = min((int(from_bytes(TimestamptzType(), bound)) for bound in bounds), default=None)
    there_is = f"the first is of {micros_to_timestamptz(first).isoformat()}" if first is not None else "events is empty"
    msg = f"there is no event before {until.isoformat()}, so nothing to compute: {there_is}"
    raise CanNotRecomputeError(msg)


def _files(catalog: Catalog, table: Table, where: str = "") -> list[DataFile]:
    """The files that may hold such rows; none is opened."""
    return [task.file for task in catalog.load_table(table.identifier).scan(where or AlwaysTrue()).plan_files()]


def await_commits(settings: Settings) -> None:
    """Await that the job has committed to all tables what it had committed to one.

    It commits one table after the other, and a checkpoint passes no sink that is still busy with the commit of the one
    before: so once another is completed, the commits that had begun are done. After a stop with a savepoint, and after a
    bounded run, whose checkpoints are gone, there are none; a job that was killed leaves them to the next one.

    Raises:
        CanNotRecomputeError: the job completes no checkpoint, or was killed.
    """
    before = set(completed_checkpoints(settings.checkpoints))
    seconds = max(COMMIT_SECONDS, settings.checkpoint_interval_ms / 100)
    deadline = time.monotonic() + seconds
    while (pid := jvm_pid(settings)) is not None:
        if not before.issuperset(completed_checkpoints(settings.checkpoints)):
            return
        if time.monotonic() > deadline:
            msg = (
                f"the analytics job (JVM {pid}) has completed no checkpoint for {seconds:.0f} s, so its newest windows "
                "may be on their way into the tables: its log says what it waits for; try again then"
            )
            raise CanNotRecomputeError(msg)
        time.sleep(0.1)
    newest = next(iter(completed_checkpoints(settings.checkpoints)), None)
    if newest is not None and not newest.name.startswith("savepoint-"):
        msg = (
            f"the last analytics job was not stopped but ended at {newest}, and its last commits may still be to come: "
            "start it (`sagascope analyze`), then try again"
        )
        raise CanNotRecomputeError(msg)
