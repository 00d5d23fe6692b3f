"""What sagas do now: counts of the last hour and the runs that are open, kept up from the newest rows of `events`.

    with closing(open_catalog(settings)) as catalog, closing(IcebergSource(settings, catalog)) as source:
        live = LiveTables(settings, source)
        while live.refresh() or True:
            print(live.frame(datetime.now(UTC)).windows[0].all_steps.p95_ms)

See docs/decisions/0017-live-numbers-come-from-the-tail-of-events.md.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from warehouse import guarded_queries, statistics
from warehouse.freshness import Freshness, JobWatch, judge
from warehouse.live_figures import SPANS, SUMS, WINDOW, Figures, window_of
from warehouse.live_frame import Active, Frame
from warehouse.live_running import RunningPage, RunningRuns
from warehouse.live_runs import OpenRuns
from warehouse.snapshots import LostTrackError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from warehouse.arrivals import Source
    from warehouse.settings import Settings
    from warehouse.snapshots import Commit

SQL = Path(__file__).parent / "sql" / "live"

HORIZON = max(SPANS.values())
"""What happened before that is in no sliding window."""
TRIMMED_EVERY = timedelta(minutes=1)

_TABLES = """
CREATE TABLE keys (key INTEGER, saga_name VARCHAR, step_name VARCHAR, phase VARCHAR);
CREATE TABLE step_windows (window_start TIMESTAMPTZ, key INTEGER, bucket INTEGER,
    completed BIGINT, failed BIGINT, timed BIGINT, sum_ms DOUBLE);
CREATE TABLE saga_windows (window_start TIMESTAMPTZ, key INTEGER, bucket INTEGER,
    started BIGINT, completed BIGINT, rolled_back BIGINT, failed BIGINT, timed BIGINT, sum_ms DOUBLE);
CREATE TABLE counted_ids (window_start TIMESTAMPTZ, id_hash UBIGINT);
CREATE TABLE offsets (topic VARCHAR, partition INTEGER, "last" BIGINT, newest TIMESTAMPTZ);
CREATE TABLE definitions (definition_id VARCHAR, saga_name VARCHAR, steps VARCHAR, first_seen TIMESTAMPTZ);
"""
_MADE = ("keys", "step_windows", "saga_windows", "counted_ids", "offsets")


class LiveTables:
    """Small tables over the newest events. Safe for threads: one of them refreshes, others may ask.

    An event belongs to the 10 s window of its own timestamp, and counts once within the last hour: where its id came
    again, what was read first counts. A run is open from its first event that is known to its end; runs of which nothing
    was heard for `longest_run_days` are dropped.
    """

    def __init__(
        self, settings: Settings, source: Source, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Nothing is read before the first `refresh`.

        Args:
            settings: How long a run may last, and how much memory there is.
            source: Where the events come from.
            clock: Says what time it is; aware.
        """
        self._settings, self._source, self._clock = settings, source, clock
        self._lock = threading.RLock()
        self._filled = False
        self._newest: Commit | None = None
        self._closed_until: datetime | None = None
        self._trimmed_at = datetime.fromtimestamp(0, UTC)
        self._watch = JobWatch(settings)
        self._connection = duckdb.connect(":memory:")
        self._connection.execute("SET TimeZone = 'UTC'")
        self._connection.execute("SET threads = 1")  # what is asked is small; the machine is for others
        guarded_queries.limit(self._connection, settings)
        self._connection.execute(_TABLES)
        self._figures = Figures(self._connection)
        self._runs = OpenRuns(self._connection, source, timedelta(days=settings.longest_run_days))
        self._running = RunningRuns(self._connection)
        self._counting = {
            name: statistics.over_events(
                (SQL / f"{name}.sql").read_text(encoding="utf-8"), int(WINDOW.total_seconds()), "counted"
            )
            for name in ("step_windows", "saga_windows")
        }

    def close(self) -> None:
        """Forget all. The source stays open."""
        with self._lock:
            self._connection.close()

    def refresh(self) -> bool:
        """Take in what was committed since the last time; says whether anything was.

        The first time, and where the source has lost track, all is read anew. What fails changes nothing.

        Raises:
            WarehouseError: the tables can't be read: why, and what to do.
        """
        with self._lock:
            now = self._clock()
            if not self._filled:
                self._fill(now)
                return True
            try:
                changed = self._take_in(now)
                closed_until = self._source.closed_until()
            except LostTrackError:
                self._filled = False
                self._fill(now)
                return True
            changed = self._load_definitions() or changed or closed_until != self._closed_until
            self._closed_until = closed_until
            if now - self._trimmed_at >= TRIMMED_EVERY:
                self._trim(now)
            return changed

    def frame(self, now: datetime) -> Frame:
        """All that a viewer sees at once, as of `now`; no more is read for it."""
        with self._lock:
            rows = self._runs.by_kind(now)
            return Frame(
                made_at=now,
                snapshot_id=str(self._newest.snapshot_id) if self._newest else None,
                active=sum(row[1] for row in rows),
                active_sagas=[Active(*row) for row in rows],
                windows=self._figures.windows(now),
                series=self._figures.series(now, self._closed_until),
                freshness=self._freshness(now),
            )

    def running(
        self,
        search: str = "",
        sort: str = "age",
        *,
        saga: str = "",
        descending: bool = True,
        limit: int = 50,
        offset: int = 0,
    ) -> RunningPage:
        """Sagas that run now.

        Args:
            search: Only where the id of saga or run, the saga's name or the current step has it, in any case.
            sort: One of `warehouse.live_running.SORTS`.
            saga: Only this kind; empty: all.
            descending: The largest first.
            limit: At most so many.
            offset: After so many.

        Raises:
            LookupError: no such sort; names those there are.
        """
        with self._lock:
            return self._running.page(
                self._clock(), search, sort, saga=saga, descending=descending, limit=limit, offset=offset
            )

    def definition(self, saga_name: str) -> tuple[str, str] | None:
        """The id and the steps (JSON) of the newest definition of that kind of saga; None where none is known."""
        with self._lock:
            query = """
                SELECT definition_id, steps FROM definitions WHERE saga_name = $1
                ORDER BY first_seen DESC, definition_id LIMIT 1
            """
            return self._connection.execute(query, [saga_name]).fetchone()

    def offsets(self) -> dict[tuple[str, int], int]:
        """The last offset of each topic and partition of which a row is known."""
        with self._lock:
            rows = self._connection.execute('SELECT topic, partition, "last" FROM offsets').fetchall()
            return {(topic, partition): last for topic, partition, last in rows}

    def _fill(self, now: datetime) -> None:
        runs_since = now - timedelta(days=self._settings.longest_run_days)
        with self._source.begin(window_of(now - HORIZON), runs_since) as beginning, self._transaction():
            for table in _MADE:
                self._connection.execute(f"DELETE FROM {table}")  # noqa: S608 - ours
            self._runs.forget()
            self._figures.forget()
            self._runs.know(beginning.durations)
            self._insert("offsets", beginning.offsets)
            for rows in beginning.counted:
                with self._arrived(rows):
                    self._count(now)
                    self._runs.remember_ends(now)
            for rows in beginning.open_events:
                with self._arrived(rows):
                    self._runs.join(now)
        self._newest, self._closed_until = beginning.newest, beginning.closed_until
        self._load_definitions()
        self._trim(now)
        self._filled = True

    def _take_in(self, now: datetime) -> bool:
        arrivals = self._source.newer()
        if arrivals is None:
            return False
        with self._transaction():
            for rows in arrivals.batches:
                with self._arrived(rows):
                    self._note_offsets()
                    self._count(now)
                    self._runs.take_in(now)
        self._source.accept(arrivals)
        self._newest = arrivals.newest
        return True

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.begin()
        try:
            yield
        except BaseException:
            self._connection.rollback()
            raise
        self._connection.commit()

    @contextmanager
    def _arrived(self, rows: pa.Table) -> Iterator[None]:
        """As the table `arrived`, with hashes of ids: 8 bytes each, and compared in no time."""
        self._connection.register("given", rows)
        self._connection.execute(
            """
            CREATE OR REPLACE TEMP TABLE arrived AS
            SELECT *, hash(event_id) AS id_hash, hash(run_id) AS run_hash FROM given
            """
        )
        try:
            yield
        finally:
            self._connection.unregister("given")

    def _count(self, now: datetime) -> None:
        """Add what is not counted yet to the windows. A record that came again has the timestamp that it had."""
        [(first,)] = self._connection.execute('SELECT coalesce(min("timestamp"), $1) FROM arrived', [now]).fetchall()
        since = window_of(now - HORIZON)
        self._connection.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE counted AS
            SELECT * FROM (
                SELECT *, time_bucket(INTERVAL '{WINDOW.total_seconds():.0f} seconds', "timestamp",
                    TIMESTAMPTZ '1970-01-01 00:00:00+00') AS window_start
                FROM arrived WHERE "timestamp" >= $1
            ) ANTI JOIN (FROM counted_ids WHERE window_start >= $2) USING (window_start, id_hash)
            """,  # noqa: S608 - ours
            [since, max(window_of(first), since)],
        )
        self._connection.execute("INSERT INTO counted_ids SELECT DISTINCT window_start, id_hash FROM counted")
        for table, query in self._counting.items():
            # Names are kept once: to put rows together by numbers takes a quarter of the time.
            self._connection.execute(f"CREATE OR REPLACE TEMP TABLE added AS {query}")
            self._connection.execute(
                """
                INSERT INTO keys
                SELECT (SELECT coalesce(max(key), 0) FROM keys) + row_number() OVER (), *
                FROM (SELECT DISTINCT saga_name, step_name, phase FROM added) ANTI JOIN keys USING (saga_name, step_name, phase)
                """
            )
            self._connection.execute(
                f"""
                INSERT INTO {table} BY NAME
                SELECT key, added.* EXCLUDE (saga_name, step_name, phase)
                FROM added JOIN keys USING (saga_name, step_name, phase)
                """  # noqa: S608 - ours
            )
        starts = self._connection.execute("SELECT DISTINCT window_start FROM counted").fetchall()
        self._figures.mark_changed([start for (start,) in starts])

    def _note_offsets(self) -> None:
        self._connection.execute(
            """
            MERGE INTO offsets AS known USING (
                SELECT coalesce(source_topic, '') AS topic, coalesce(source_partition, 0) AS partition,
                    max(source_offset) AS "last", max("timestamp") AS newest
                FROM arrived GROUP BY ALL
            ) AS new ON known.topic = new.topic AND known.partition = new.partition
            WHEN MATCHED THEN UPDATE SET "last" = greatest(known."last", new."last"), newest = greatest(known.newest, new.newest)
            WHEN NOT MATCHED THEN INSERT VALUES (new.topic, new.partition, new."last", new.newest)
            """
        )

    def _load_definitions(self) -> bool:
        found = self._source.definitions()
        if found is None:
            return False
        with self._transaction():
            self._connection.execute("DELETE FROM definitions")
            self._insert("definitions", found.select(["definition_id", "saga_name", "steps", "first_seen"]))
            self._connection.execute("UPDATE open_runs SET is_judged = FALSE")
        return True

    def _insert(self, table: str, rows: pa.Table) -> None:
        self._connection.register("given", rows)
        self._connection.execute(f"INSERT INTO {table} BY NAME SELECT * FROM given")  # noqa: S608 - ours
        self._connection.unregister("given")

    def _trim(self, now: datetime) -> None:
        """Drop what is too old, and put rows of one window and bucket together."""
        since = window_of(now - HORIZON)
        with self._transaction():
            for table, names in SUMS.items():
                sums = ", ".join(f"sum({name}) AS {name}" for name in names)
                self._connection.execute(
                    f"""
                    CREATE OR REPLACE TEMP TABLE kept AS SELECT window_start, key, bucket, {sums} FROM {table}
                    WHERE window_start >= $1 GROUP BY ALL ORDER BY window_start
                    """,  # noqa: S608 - ours
                    [since],
                )
                self._connection.execute(f"DELETE FROM {table}")  # noqa: S608 - ours
                self._connection.execute(f"INSERT INTO {table} BY NAME FROM kept")
            self._connection.execute("DROP TABLE kept")
            self._connection.execute(
                "DELETE FROM keys WHERE key NOT IN (SELECT key FROM step_windows UNION ALL SELECT key FROM saga_windows)"
            )
            self._connection.execute("DELETE FROM counted_ids WHERE window_start < $1", [since])
            self._runs.trim(now)
        self._figures.trim(since)
        self._trimmed_at = now

    def _freshness(self, now: datetime) -> Freshness:
        [(newest_event_at,)] = self._connection.execute("SELECT max(newest) FROM offsets").fetchall()
        return judge(
            self._settings, self._watch.look(), now, self._newest and self._newest.committed_at, newest_event_at
        )
