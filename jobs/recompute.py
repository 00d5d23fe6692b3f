"""The batch job: the statistics of some hours, computed again from `events` by the stream's own SQL.

    python -m jobs.recompute --from 2026-11-23T10:00Z [--to 2026-11-23T12:00Z]

Whole hours, UTC, of [from, to); without `--to` as far as each table is closed, in the hour that is still open, too. The
rows of each table are put in place of those hours by one commit; `events` is read, never written, and the stream goes on.
After a job was killed it is refused until the next one runs, which commits what that one had begun.
Settings come from the environment (`SAGASCOPE_…`). One line of JSON on standard output, exit code 1 where it was refused.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.expressions.parser import parse
from pyiceberg.io.pyarrow import schema_to_pyarrow

from jobs.flink import STATISTICS_VIEWS, batch_environment, prepare_jvm, query, root_cause, statement
from jobs.resume import completed_checkpoints
from warehouse import history
from warehouse.catalog import CATALOG_NAME, CatalogError, open_catalog
from warehouse.claims import jvm_pid
from warehouse.progress import read_progress
from warehouse.replace import replace_rows
from warehouse.retention import kept_since
from warehouse.settings import InvalidSettingError, Settings
from warehouse.tables import EVENTS, STATISTICS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyiceberg.catalog import Catalog
    from pyiceberg.expressions import BooleanExpression

    from warehouse.tables import Table

HOUR = timedelta(hours=1)
EPOCH = datetime.fromtimestamp(0, UTC)
COMMIT_SECONDS = 60.0
"""How long the job may take to complete a checkpoint; ten intervals, where that is longer."""


class CanNotRecomputeError(ValueError):
    """These hours can't be recomputed; names the hour, and from when on it can be."""


def recompute(settings: Settings, since: datetime, until: datetime | None = None) -> dict[str, int]:
    """Put the statistics of [since, until), as `events` has them now, in place of those that are stored.

    Args:
        settings: Where the tables are, and how wide a window is.
        since: A whole hour, aware.
        until: A whole hour, aware; None: as far as each table is closed.

    Returns:
        How many rows each table got.

    Raises:
        CanNotRecomputeError: no whole hours, one that the stream has not closed yet, or a job that has yet to commit.
        CatalogError: the catalog can't be opened.
    """
    with _alone(settings), closing(open_catalog(settings)) as catalog:
        closed = _closed(settings, catalog, since, until)
        _await_commits(settings)
        with _computed(settings, since, max(closed.values())) as computed:
            put = {}
            for table, until_here in closed.items():
                if since < until_here:
                    bound = pa.scalar(until_here, pa.timestamp("us", "UTC"))
                    rows = computed[table].filter(pc.field("window_end") <= bound)
                    replace_rows(settings, catalog, table, rows, _windows(since, until_here))
                    put[table.name] = rows.num_rows
            return put


def _closed(settings: Settings, catalog: Catalog, since: datetime, until: datetime | None) -> dict[Table, datetime]:
    """Up to where each table is computed again."""
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
            "their statistics can't be computed again and stay as they are: recompute from there on"
        )
        raise CanNotRecomputeError(msg)
    progress = read_progress(settings, catalog)
    watermark = progress.watermark
    if watermark is None or (until or since) > watermark:
        hour = max(since, (until or since + HOUR) - HOUR)
        behind = f"windows are closed up to {watermark.isoformat()} only" if watermark else "no window is closed yet"
        msg = f"the hour from {hour.isoformat()} on is not behind the stream's watermark: {behind}. Try again when it is over"
        raise CanNotRecomputeError(msg)
    return {table: until or progress.closed_up_to(settings, table) or since for table in STATISTICS}


def _await_commits(settings: Settings) -> None:
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


@contextmanager
def _computed(settings: Settings, since: datetime, until: datetime) -> Iterator[dict[Table, pa.Table]]:
    """The rows of every statistic over [since, until), by one Flink job that reads `events` once."""
    with history.open(settings, since, until) as tables:
        [(twice,)] = tables.sql("SELECT count(*) > count(DISTINCT event_id) FROM events").fetchall()
    settings.temporary.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="recompute-", dir=settings.temporary))
    try:
        environment = batch_environment(settings)
        bounds = {"since": _milliseconds(since), "until": _milliseconds(until)}
        environment.execute_sql(statement("stored_events_once" if twice else "stored_events", bounds))
        for name in STATISTICS_VIEWS:
            environment.execute_sql(statement(name, {}))
        inserts = environment.create_statement_set()
        for table in STATISTICS:
            # Through files: PyFlink hands rows over one by one.
            environment.execute_sql(
                f"CREATE TEMPORARY TABLE computed_{table.name} WITH ('connector' = 'filesystem', "
                f"'path' = '{(folder / table.name).as_uri()}', 'format' = 'json', 'json.timestamp-format.standard' = 'ISO-8601') "
                f"LIKE {CATALOG_NAME}.{'.'.join(table.identifier)} (EXCLUDING ALL)"
            )
            inserts.add_insert_sql(f"INSERT INTO computed_{table.name} {query(settings, table)}")
        inserts.execute().wait()
        yield {table: _read(folder / table.name, table) for table in STATISTICS}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read(folder: Path, table: Table) -> pa.Table:
    empty = schema_to_pyarrow(table.schema, include_field_ids=False).empty_table()
    if not any(file.is_file() for file in folder.rglob("*")):
        return empty
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        like = connection.from_arrow(empty)
        columns = dict(zip(like.columns, map(str, like.types), strict=True))
        return connection.read_json(str(folder / "**"), columns=columns, format="newline_delimited").to_arrow_table()


def _windows(since: datetime, closed: datetime) -> BooleanExpression:
    """The filter for the windows of [since, closed); of whole hours it is one of whole partitions, whose files go unread."""
    text = f"window_start >= '{since.isoformat()}' and window_start < '{closed.isoformat()}'"
    return parse(text if not (closed - EPOCH) % HOUR else f"{text} and window_end <= '{closed.isoformat()}'")


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """One recompute at a time, from its reading to its last commit: of two the one that read later must win."""
    settings.root.mkdir(parents=True, exist_ok=True)
    with (settings.root / "recompute.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting", reason="another recompute is at work")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _milliseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(milliseconds=1)


def _moment(text: str) -> datetime:
    """An ISO moment, UTC unless it says otherwise."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        msg = f"{text!r} is no moment: write it as 2026-11-23T10:00Z"
        raise argparse.ArgumentTypeError(msg) from None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _say(status: str, **facts: object) -> None:
    sys.stdout.write(json.dumps({"job": "recompute", "status": status} | facts) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.recompute", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="since", type=_moment, required=True, metavar="HOUR")
    parser.add_argument("--to", dest="until", type=_moment, metavar="HOUR")
    given = parser.parse_args()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that its temporary files go
    try:
        settings = Settings.from_environment(os.environ)
        prepare_jvm(settings, log="recompute-jvm")  # recompute.log is what a caller makes of the output
        rows = recompute(settings, given.since, given.until)
    except (CanNotRecomputeError, InvalidSettingError, CatalogError, OSError) as error:
        _say("refused", reason=str(error))
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - PyIceberg's, or PyFlink's around a Java exception and its stack trace
        _say("failed", reason=root_cause(str(error)))
        sys.exit(1)
    _say("finished", rows=rows, seconds=round(time.monotonic() - began, 1))


if __name__ == "__main__":
    main()
