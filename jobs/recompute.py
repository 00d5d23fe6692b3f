"""The batch job: what is computed from `events`, computed again for some hours: the statistics by the stream's own SQL.

    python -m jobs.recompute --from 2026-11-21T00:00Z [--to 2026-11-23T12:00Z [--clip]] [--tables step_stats,saga_runs]

Whole hours, UTC, of [from, to); without `--to` as far as each table is closed, in the hour that is still open, too, and
with `--clip` no farther than `--to`. Day by day, the rows of each table are put in place of those hours by one commit;
`events` is read, never written, and the stream goes on. A day that fails does not keep the others from being done. After a
job was killed it is refused until the next one runs, which commits what that one had begun.

Settings come from the environment (`SAGASCOPE_…`). A line of JSON for each table of each day, `stored`, or for a day that
`failed`; the last one says how all of it ended. Exit code 1 where it was refused, or a day failed.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.expressions.parser import parse

from jobs.closed_hours import EPOCH, HOUR, CanNotRecomputeError, await_commits, closed_bounds
from jobs.flink import prepare_jvm, root_cause
from jobs.reporting import reporting
from jobs.statistics_batch import computed, nothing
from warehouse import history, quality, stored_runs
from warehouse.catalog import CatalogError, open_catalog
from warehouse.replace import replace_rows
from warehouse.settings import InvalidSettingError, Settings
from warehouse.tables import COMPUTED, EVENTS, SAGA_RUNS, STATISTICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pyiceberg.catalog import Catalog
    from pyiceberg.expressions import BooleanExpression

    from warehouse.tables import Table

    Say = Callable[..., None]

DAY = timedelta(days=1)


class DaysFailedError(RuntimeError):
    """Some days could not be computed, each of which has been told of; the others are stored."""


def recompute(
    settings: Settings,
    since: datetime,
    until: datetime | None = None,
    *,
    clip: bool = False,
    tables: Sequence[Table] = COMPUTED,
    now: datetime | None = None,
    say: Say = lambda *_, **__: None,
) -> dict[str, int]:
    """Put what follows from `events`, as they are now, in place of what is stored of [since, until).

    Args:
        settings: Where the tables are, and how wide a window is.
        since: A whole hour, aware.
        until: A whole hour, aware; None: as far as each table is closed.
        clip: Where `until` is not closed yet, do what is, and do not refuse.
        tables: Of `COMPUTED`.
        now: By which hours are over where no stream says so; None: by the clock.
        say: Called with `stored` for each table of each day, once its rows are there, and with `failed` for each day that
            could not be done.

    Returns:
        How many rows each table got.

    Raises:
        CanNotRecomputeError: no whole hours, one that the stream has not closed yet, or a job that has yet to commit.
        CatalogError: the catalog can't be opened.
        DaysFailedError: at the end, where a day failed.
    """
    with _alone(settings, say), closing(open_catalog(settings)) as catalog:
        closed = closed_bounds(settings, catalog, tables, since, until, clip=clip, now=now or datetime.now(UTC))
        await_commits(settings)
        put: Counter[str] = Counter()
        failed = []
        for first, last in _days(since, max(closed.values())):
            try:
                put.update(_recompute_day(settings, catalog, first, last, closed=closed, say=say))
            except Exception as error:  # noqa: BLE001 - DuckDB's, PyIceberg's, or PyFlink's around a Java exception
                failed.append(f"{first:%Y-%m-%d}")
                say("failed", day=failed[-1], reason=_reason(settings, error, first))
    if failed:
        msg = f"{len(failed)} day(s) failed, all others are stored: {', '.join(failed)}"
        raise DaysFailedError(msg)
    return dict(put)


def _days(since: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The span, cut at each midnight, UTC."""
    while since < until:
        midnight = since - (since - EPOCH) % DAY + DAY
        yield since, min(midnight, until)
        since = midnight


def _recompute_day(
    settings: Settings,
    catalog: Catalog,
    first: datetime,
    last: datetime,
    *,
    closed: dict[Table, datetime],
    say: Say,
) -> Counter[str]:
    """Each table's rows of [first, last), or of as much of it as is closed; a commit each."""
    put: Counter[str] = Counter()
    began = time.monotonic()

    def tell(table: Table, rows: int) -> None:
        nonlocal began
        put[table.name] = rows
        snapshot = catalog.load_table(table.identifier).current_snapshot()
        say(
            "stored",
            table=table.name,
            day=f"{first:%Y-%m-%d}",
            rows=rows,
            snapshot_id=str(snapshot.snapshot_id) if snapshot else None,
            seconds=round(time.monotonic() - began, 1),
        )
        began = time.monotonic()

    wanted = [table for table in STATISTICS if table in closed and first < closed[table]]
    if wanted:
        with _statistics(settings, catalog, wanted, first, last) as computed_rows:
            for table in wanted:
                until = min(closed[table], last)
                rows = computed_rows[table].filter(
                    pc.field("window_end") <= pa.scalar(until, pa.timestamp("us", "UTC"))
                )
                replace_rows(settings, catalog, table, rows, _windows(first, until))
                tell(table, rows.num_rows)
    if SAGA_RUNS in closed and first < (until := min(closed[SAGA_RUNS], last)):
        tell(SAGA_RUNS, stored_runs.store(settings, catalog, first, until))
    return put


@contextmanager
def _statistics(
    settings: Settings, catalog: Catalog, tables: Sequence[Table], since: datetime, until: datetime
) -> Iterator[dict[Table, pa.Table]]:
    with history.open(settings, since, until, catalog=catalog) as stored:
        [(events, ids)] = stored.sql("SELECT count(*), count(DISTINCT hash(event_id)) FROM events").fetchall()
    if not events:
        yield {table: nothing(table) for table in tables}
        return
    with computed(settings, tables, since, until, has_doubles=ids < events) as rows:
        yield rows


def _windows(since: datetime, closed: datetime) -> BooleanExpression:
    """The filter for the windows of [since, closed); of whole hours it is one of whole partitions, whose files go unread."""
    text = f"window_start >= '{since.isoformat()}' and window_start < '{closed.isoformat()}'"
    return parse(text if not (closed - EPOCH) % HOUR else f"{text} and window_end <= '{closed.isoformat()}'")


def _reason(settings: Settings, error: Exception, day: datetime) -> str:
    """Why a day failed, and whether a file of it, or of the days before whose runs end on it, can't be read."""
    said = root_cause(str(error))
    damaged = quality.unreadable(settings, EVENTS, day - timedelta(days=settings.longest_run_days), day + DAY)
    files = "; ".join(f"{path} can't be read ({why})" for path, why in damaged.items())
    return f"{said}; {files}: bring these files back, then do this day again" if damaged else said


@contextmanager
def _alone(settings: Settings, say: Say) -> Iterator[None]:
    """One recompute at a time, from its reading to its last commit: of two the one that read later must win."""
    settings.root.mkdir(parents=True, exist_ok=True)
    with (settings.root / "recompute.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting", reason="another recompute is at work")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _moment(text: str) -> datetime:
    """An ISO moment, UTC unless it says otherwise."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        msg = f"{text!r} is no moment: write it as 2026-11-23T10:00Z"
        raise argparse.ArgumentTypeError(msg) from None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _tables(text: str) -> list[Table]:
    """Tables by name, comma-separated."""
    named = {table.name: table for table in COMPUTED}
    names = text.split(",")
    if unknown := [name for name in names if name not in named]:
        msg = f"{unknown[0]!r} is not computed from events; what is: {', '.join(named)}"
        raise argparse.ArgumentTypeError(msg)
    return [named[name] for name in dict.fromkeys(names)]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.recompute", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", dest="since", type=_moment, required=True, metavar="HOUR")
    parser.add_argument("--to", dest="until", type=_moment, metavar="HOUR")
    parser.add_argument(
        "--clip", action="store_true", help="of hours up to --to that are not closed yet do what is closed"
    )
    parser.add_argument("--tables", type=_tables, default=COMPUTED, metavar="NAMES")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that its temporary files go
    with reporting("recompute") as say:
        code = _run(given, say)
    sys.exit(code)


def _run(given: argparse.Namespace, say: Say) -> int:
    """The exit code."""
    began = time.monotonic()
    try:
        settings = Settings.from_environment(os.environ)
        prepare_jvm(settings, log="recompute-jvm")  # recompute.log is what a caller makes of the output
        rows = recompute(settings, given.since, given.until, clip=given.clip, tables=given.tables, say=say)
    except (CanNotRecomputeError, InvalidSettingError, CatalogError, OSError) as error:
        say("refused", reason=str(error))
        return 1
    except Exception as error:  # noqa: BLE001 - PyIceberg's, or PyFlink's around a Java exception and its stack trace
        say("failed", reason=root_cause(str(error)))
        return 1
    say("finished", rows=rows, seconds=round(time.monotonic() - began, 1))
    return 0


if __name__ == "__main__":
    main()
