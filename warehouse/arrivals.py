"""Where new events come from: Iceberg's newest snapshots, row by row only what was added since.

A `Source` knows how to read; what is made of the rows is the business of `warehouse.live`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

import duckdb
import pyarrow as pa

from sagascope.events import SAGA_ENDS
from warehouse import guarded_queries, history, saga_runs, statistics
from warehouse.maintenance import path_of
from warehouse.snapshots import Commit, Snapshots
from warehouse.tables import EVENTS, SAGA_DEFINITIONS, STEP_STATS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime

    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile

    from warehouse.settings import Settings

COLUMNS = (
    "event_id",
    "event_type",
    "saga_id",
    "saga_name",
    "run_id",
    "sequence",
    "timestamp",
    "step_name",
    "attempt",
    "compensable",
    "pivot",
    "duration_ms",
    "total_duration_ms",
    "error_type",
    "error_message",
    "attributes",
    "definition_id",
    "source_topic",
    "source_partition",
    "source_offset",
)
"""Of `events`: what is needed of a new row."""
_SELECTED = ", ".join(f'"{name}"' for name in COLUMNS)
_ENDS = ", ".join(f"'{end}'" for end in SAGA_ENDS)
BATCH_ROWS = 122_880
"""So many rows at a time: what a first reading holds in memory."""


class Arrivals(NamedTuple):
    """What is new. Every batch has the columns `COLUMNS`."""

    batches: Iterator[pa.Table]
    newest: Commit | None
    """The newest commit; None: nothing was ever committed."""


class Beginning(NamedTuple):
    """What there is when one begins to look; to be read one after the other."""

    counted: Iterator[pa.Table]
    """All events from a moment on."""
    open_events: Iterator[pa.Table]
    """All events of runs of which no end is known, from an earlier moment on."""
    durations: pa.Table
    """How long completed runs have taken: saga_name, bucket, runs."""
    offsets: pa.Table
    """The last offset that is stored, and the newest timestamp: topic, partition, last, newest."""
    newest: Commit | None
    closed_until: datetime | None
    """The end of the newest window that the job has closed."""


class Source(Protocol):
    """Tells of new events, each once as a rule; a row may come again."""

    def begin(self, counted_since: datetime, runs_since: datetime) -> AbstractContextManager[Beginning]:
        """What there is now; from there on `newer` tells."""

    def newer(self) -> Arrivals | None:
        """What came since `begin` or the last `accept`; None: nothing did."""

    def accept(self, arrivals: Arrivals) -> None:
        """It was taken in: don't tell it again."""

    def closed_until(self) -> datetime | None:
        """The end of the newest window that the job has closed."""

    def definitions(self) -> pa.Table | None:
        """The sagas' definitions, columns as in `saga_definitions`; None where they are as they were when asked before."""

    def ended_among(self, run_ids: Sequence[str], since: datetime) -> list[str]:
        """Those runs of which an end of that moment or later is stored."""


class IcebergSource:
    """Reads the tables. Not safe for threads."""

    def __init__(self, settings: Settings, catalog: Catalog) -> None:
        """Nothing is read yet but the columns.

        Args:
            settings: Where the tables are.
            catalog: Opened from the same settings, for as long as this is used.
        """
        self._settings, self._catalog = settings, catalog
        self._events = Snapshots(catalog, EVENTS)
        self._closed = Snapshots(catalog, STEP_STATS)
        self._defined = Snapshots(catalog, SAGA_DEFINITIONS)
        self._at: int | None = None
        self._closed_at: int | None = None
        self._defined_at: int | None = None
        self._closed_until: datetime | None = None
        self._connection = duckdb.connect(":memory:")
        self._connection.execute("SET TimeZone = 'UTC'")
        self._connection.execute("SET threads = 1")  # a second's rows are few
        guarded_queries.guard(self._connection, settings)
        self._load_schema()

    def close(self) -> None:
        """Give up what is held; the catalog stays open."""
        self._connection.close()

    @contextmanager
    def begin(self, counted_since: datetime, runs_since: datetime) -> Iterator[Beginning]:
        """See `Source`.

        Raises:
            DamagedFileError: a file of that span can't be read.
            QueryTooLargeError: the open runs of that span need more memory than the settings give.
        """
        bucket = statistics.bucket_of("total_duration_ms")
        with history.open(self._settings, runs_since, catalog=self._catalog) as tables:
            self._load_schema()
            [newest, closed] = [self._commit_of(tables, table.name) for table in (EVENTS, STEP_STATS)]
            [(closed_until,)] = tables.sql(f"SELECT max(window_end) FROM stored_{STEP_STATS.name}").fetchall()  # noqa: S608
            durations = f"""
                SELECT saga_name, {bucket} AS bucket, count(*) AS runs FROM events
                WHERE event_type = 'saga_completed' AND total_duration_ms IS NOT NULL GROUP BY ALL
            """  # noqa: S608 - ours
            offsets = """
                SELECT coalesce(source_topic, '') AS topic, coalesce(source_partition, 0) AS partition,
                    max(source_offset) AS "last", max("timestamp") AS newest
                FROM events GROUP BY ALL
            """
            counted = f'SELECT {_SELECTED} FROM events WHERE "timestamp" >= $since'  # noqa: S608 - ours
            self._defined_at = None
            self._at, self._closed_at = newest and newest.snapshot_id, closed and closed.snapshot_id
            self._closed_until = closed_until
            yield Beginning(
                _batches(tables.sql(counted, {"since": counted_since})),
                _batches(tables.sql(saga_runs.open_events_query("events", _SELECTED))),
                tables.sql(durations).to_arrow_table(),
                tables.sql(offsets).to_arrow_table(),
                newest,
                closed_until,
            )

    def newer(self) -> Arrivals | None:
        """See `Source`.

        Raises:
            LostTrackError: begin again.
            DamagedFileError: a new file can't be read.
            CatalogError: the catalog, or a metadata file, can't be read.
        """
        if self._events.newest_id() == self._at:
            return None
        added = self._events.added_since(self._at)
        if self._events.schema_id != self._schema.schema_id:
            self._load_schema()
        if added is None:
            return None
        return Arrivals(self._read(added.files), added.newest)

    def accept(self, arrivals: Arrivals) -> None:
        """See `Source`."""
        if arrivals.newest:
            self._at = arrivals.newest.snapshot_id

    def closed_until(self) -> datetime | None:
        """See `Source`. By the bounds of the files that were added."""
        if self._closed.newest_id() != self._closed_at:
            added = self._closed.added_since(self._closed_at)
            if added:
                ends = [self._closed.upper_bound(file, "window_end") for file in added.files]
                self._closed_until = max(filter(None, [*ends, self._closed_until]), default=None)
                self._closed_at = added.newest.snapshot_id
        return self._closed_until

    def definitions(self) -> pa.Table | None:
        """See `Source`."""
        newest = self._defined.newest_id()
        if newest == self._defined_at:
            return None
        found = self._catalog.load_table(SAGA_DEFINITIONS.identifier).scan().to_arrow()
        self._defined_at = newest
        return found

    def ended_among(self, run_ids: Sequence[str], since: datetime) -> list[str]:
        """See `Source`."""
        query = f"""
            SELECT DISTINCT run_id FROM events WHERE event_type IN ({_ENDS}) AND list_contains($ids::VARCHAR[], run_id)
        """  # noqa: S608 - ours
        with history.open(self._settings, since, catalog=self._catalog) as tables:
            return [run_id for (run_id,) in tables.sql(query, {"ids": list(run_ids)}).fetchall()]

    def commits_since(self, moment: datetime) -> int:
        """How many commits to `events` there were since then, of those that have not expired."""
        return sum(commit.committed_at >= moment for commit in self._events.commits())

    def _load_schema(self) -> None:
        self._schema = self._catalog.load_table(EVENTS.identifier).schema()
        self._types = history.duckdb_types(self._connection, self._schema)

    def _commit_of(self, tables: history.History, table: str) -> Commit | None:
        query = "SELECT snapshot_id, committed_at FROM snapshots WHERE table_name = $table"
        [(snapshot_id, committed_at)] = tables.sql(query, {"table": table}).fetchall()
        return None if snapshot_id is None else Commit(snapshot_id, committed_at)

    def _read(self, files: list[DataFile]) -> Iterator[pa.Table]:
        if not files:
            return
        stored = {str(path_of(file.file_path)): file for file in files}
        rows = history.read_files(self._schema, self._types, list(stored))
        try:
            yield from _batches(self._connection.sql(f"SELECT {_SELECTED} FROM ({rows})"))  # noqa: S608 - ours
        except duckdb.Error as error:
            days = {
                path: guarded_queries.Stored(EVENTS.name, EVENTS.partition_start(file.partition[0]))
                for path, file in stored.items()
            }
            told = guarded_queries.explained(error, days, self._settings)
            if told is None:
                raise
            raise told from error


def _batches(rows: duckdb.DuckDBPyRelation) -> Iterator[pa.Table]:
    for batch in rows.to_arrow_reader(BATCH_ROWS):
        yield pa.Table.from_batches([batch])
