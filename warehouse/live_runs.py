"""Which runs are open, and all of their events."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sagascope.events import SAGA_ENDS
from warehouse import history, statistics
from warehouse.arrivals import COLUMNS
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from warehouse.arrivals import Source

ENDS_KEPT = timedelta(hours=2)
"""For so long after it was read the end of a run is remembered, so that a late event does not open the run again; after
that, the tables are asked."""
LATE = timedelta(hours=1)
"""Of an event that is so old when it comes, the run may have ended long ago."""
SKEW = timedelta(days=1)
"""So long before an event of it the end of its run is looked for: clocks of services differ."""
SILENT = timedelta(hours=1)
"""An open run of which nothing was heard for so long is most likely abandoned."""

_ENDS = ", ".join(f"'{end}'" for end in SAGA_ENDS)
_TABLES = """
CREATE TABLE ended (run_hash UBIGINT, known_since TIMESTAMPTZ);
CREATE TABLE open_runs (run_hash UBIGINT, saga_name VARCHAR, last_event_at TIMESTAMPTZ, is_judged BOOLEAN);
CREATE TABLE run_durations (saga_name VARCHAR, bucket INTEGER, runs BIGINT);
"""
_MADE = ("ended", "open_runs", "open_events", "run_durations")


class OpenRuns:
    """The tables `open_runs` (a row each) and `open_events`, and of ended runs how long those took that completed.

    Of a run whose end is known nothing is kept but a number. What arrives is in the table `arrived`.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, source: Source, longest_run: timedelta) -> None:
        """No run is open yet.

        Args:
            connection: Where the tables are made.
            source: Is asked whether a run has ended, where that can't be known here.
            longest_run: Of what is older nothing is kept.
        """
        self._connection, self._source, self._longest_run = connection, source, longest_run
        types = history.duckdb_types(connection, EVENTS.schema)
        columns = ", ".join(f'"{name}" {types[name]}' for name in COLUMNS)
        connection.execute(f"{_TABLES}; CREATE TABLE open_events ({columns}, run_hash UBIGINT, id_hash UBIGINT)")

    def forget(self) -> None:
        """Begin anew."""
        for table in _MADE:
            self._connection.execute(f"DELETE FROM {table}")  # noqa: S608 - ours

    def know(self, durations: pa.Table) -> None:
        """How long runs took that completed before."""
        self._connection.register("given", durations)
        self._connection.execute("INSERT INTO run_durations BY NAME SELECT * FROM given")
        self._connection.unregister("given")

    def take_in(self, now: datetime) -> None:
        """Open the runs that are new in `arrived`, add to those that are open, and drop those that ended."""
        self._add_durations()
        self.remember_ends(now)
        self._remember_strangers(now)
        self.join(now)
        gone = f"SELECT run_hash FROM arrived WHERE event_type IN ({_ENDS})"  # noqa: S608 - ours
        for table in ("open_runs", "open_events"):
            self._connection.execute(f"DELETE FROM {table} WHERE run_hash IN ({gone})")  # noqa: S608 - ours

    def remember_ends(self, now: datetime) -> None:
        """Note which runs have ended."""
        self._connection.execute(
            f"""
            INSERT INTO ended
            SELECT DISTINCT run_hash, $1::TIMESTAMPTZ FROM arrived ANTI JOIN ended USING (run_hash)
            WHERE event_type IN ({_ENDS})
            """,  # noqa: S608 - ours
            [now],
        )

    def join(self, now: datetime) -> None:
        """Add the events of runs without an end, each once."""
        self._connection.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE joining AS
            SELECT {", ".join(f'"{name}"' for name in COLUMNS)}, run_hash, id_hash
            FROM arrived ANTI JOIN ended USING (run_hash) WHERE "timestamp" >= $1
            """,  # noqa: S608 - ours
            [now - self._longest_run],
        )
        self._connection.execute(
            """
            INSERT INTO open_events BY NAME
            SELECT * FROM joining ANTI JOIN (
                SELECT id_hash FROM open_events WHERE run_hash IN (SELECT run_hash FROM joining)
            ) AS known USING (id_hash)
            QUALIFY row_number() OVER (PARTITION BY id_hash ORDER BY source_partition, source_offset) = 1
            """
        )
        self._connection.execute(
            """
            MERGE INTO open_runs AS known USING (
                SELECT run_hash, min(saga_name) AS saga_name, max("timestamp") AS last_event_at FROM joining GROUP BY run_hash
            ) AS new ON known.run_hash = new.run_hash
            WHEN MATCHED THEN UPDATE SET last_event_at = greatest(known.last_event_at, new.last_event_at), is_judged = FALSE
            WHEN NOT MATCHED THEN INSERT VALUES (new.run_hash, new.saga_name, new.last_event_at, FALSE)
            """
        )

    def trim(self, now: datetime) -> None:
        """Drop the runs of which nothing was heard for longer than the longest run lasts."""
        self._connection.execute("DELETE FROM ended WHERE known_since < $1", [now - ENDS_KEPT])
        self._connection.execute("DELETE FROM open_runs WHERE last_event_at < $1", [now - self._longest_run])
        self._connection.execute("DELETE FROM open_events WHERE run_hash NOT IN (SELECT run_hash FROM open_runs)")

    def by_kind(self, now: datetime) -> list[tuple[str, int, int]]:
        """Of each kind of saga how many are open, and of how many of these nothing was heard for an hour."""
        return self._connection.execute(
            "SELECT saga_name, count(*), count_if(last_event_at < $1) FROM open_runs GROUP BY saga_name ORDER BY ALL",
            [now - SILENT],
        ).fetchall()

    def _add_durations(self) -> None:
        bucket = statistics.bucket_of("total_duration_ms")
        self._connection.execute(
            f"""
            MERGE INTO run_durations AS known USING (
                SELECT saga_name, {bucket} AS bucket, count(*) AS runs FROM arrived
                WHERE event_type = 'saga_completed' AND total_duration_ms IS NOT NULL GROUP BY ALL
            ) AS new ON known.saga_name = new.saga_name AND known.bucket = new.bucket
            WHEN MATCHED THEN UPDATE SET runs = known.runs + new.runs
            WHEN NOT MATCHED THEN INSERT VALUES (new.saga_name, new.bucket, new.runs)
            """  # noqa: S608 - ours
        )

    def _remember_strangers(self, now: datetime) -> None:
        """Of a run that is told of for the first time, but not with its start or long after it, the end may be stored."""
        strangers = self._connection.execute(
            """
            SELECT run_id, min("timestamp") AS first FROM arrived
            ANTI JOIN open_runs USING (run_hash) ANTI JOIN ended USING (run_hash)
            WHERE "timestamp" >= $1
            GROUP BY run_id HAVING first < $2 OR NOT bool_or(event_type = 'saga_started')
            """,
            [now - self._longest_run, now - LATE],
        ).fetchall()
        if not strangers:
            return
        ended = self._source.ended_among([run_id for run_id, _ in strangers], min(at for _, at in strangers) - SKEW)
        self._connection.execute(
            "INSERT INTO ended SELECT hash(run_id), $2 FROM (SELECT unnest($1::VARCHAR[]) AS run_id)", [ended, now]
        )
