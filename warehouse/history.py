"""SQL over the history: DuckDB on the files that PyIceberg plans. Read-only.

with history.open(settings, since=yesterday) as saga_history:
    saga_history.sql("SELECT step_name, quantile_cont(duration_ms, 0.95) FROM events GROUP BY 1").show()

A statistic, e.g. `step_stats`, has the windows that the job has stored and, computed when asked for, those after them:
events tell of a window long before it is closed, and for ever where no later event comes to close it.
"""

from __future__ import annotations

import re
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import duckdb
from pyiceberg.conversions import from_bytes
from pyiceberg.expressions import AlwaysTrue, BooleanExpression
from pyiceberg.expressions.parser import parse
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.types import TimestamptzType

from warehouse import coverage, guarded_queries, reports, saga_runs, statistics
from warehouse.catalog import open_catalog, reading_metadata
from warehouse.named_views import NamedViews
from warehouse.tables import COMPUTED, EVENTS, SAGA_DEFINITIONS, SAGA_RUNS, STATISTICS, TABLES, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.schema import Schema
    from pyiceberg.table.snapshots import Snapshot

    from warehouse.settings import Settings

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME = TimestamptzType()  # one for all: PyIceberg takes its time to make one

READING = {duckdb.StatementType.SELECT}  # EXPLAIN would run what it explains, if asked to ANALYZE
READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
"""Of a SELECT's tree, the queries that only read. `WITH x AS (COPY … TO …) SELECT` is a SELECT, too."""
RUN_TEXT = {"query", "json_execute_serialized_sql"}
"""Functions that run a text as SQL, into which nobody has looked."""
_NODE, _FUNCTION = re.compile(r'(?<=[{,]"type":")\w+_NODE(?=")'), re.compile(r'(?<=[{,]"function_name":")[^"\\]+(?=")')


class ReadOnlyError(ValueError):
    """A statement that would change something; names it, and what is allowed."""


class History:
    """A snapshot of all tables as views of the same names, over rows of [since, until).

    Each view's files are those of the table's snapshot when it was opened: open again to see newer rows.

    A statistic has one more column, `open`: TRUE where the row was computed from the events just now, because the job
    has stored no window as late as that; the row may still change. `stored_step_stats` and its like hold what is stored.

    Views of runs (see `warehouse.saga_runs`): `saga_runs`, `open_runs`, `step_runs`, `runs`, and the macro
    `abandoned_runs(age := INTERVAL 1 DAY)`. They also see the events of the days before `since` that the setting
    `longest_run_days` says (view `run_events`), so that a run is told whole where it began before.

    `snapshots` tells which snapshot of each table that is, and when it was committed.

    Reports (see `warehouse.reports`) are macros: `FROM most_failing_steps(saga := 'order*')`.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, views: NamedViews) -> None:
        self._connection = connection
        self._views = views

    def sql(self, query: str, parameters: object = None) -> duckdb.DuckDBPyRelation:
        """The answer of one SELECT (also WITH, DESCRIBE, SUMMARIZE).

        Raises:
            ReadOnlyError: it is not one statement that only reads.
            duckdb.Error: DuckDB can't parse or run it.

        To fetch the answer, before the history is closed, may raise the errors of
        `warehouse.guarded_queries`.
        """
        statements = self._connection.extract_statements(query)
        kinds = [statement.type for statement in statements]
        written = self._written(query) if kinds == [duckdb.StatementType.SELECT] else []
        if len(kinds) != 1 or kinds[0] not in READING or written:
            named = ", ".join(written or [kind.name for kind in kinds]) or "nothing"
            msg = f"the history is read-only: got {named}; allowed: one SELECT, WITH, DESCRIBE or SUMMARIZE"
            raise ReadOnlyError(msg)
        self._views.create(query)
        return self._connection.sql(query, params=parameters)

    def interrupt(self) -> None:
        """End the query that runs, from another thread: it raises duckdb.InterruptException."""
        self._connection.interrupt()

    def _written(self, query: str) -> list[str]:
        """What the parts of a SELECT are that do not only read, by the parser's word for them; DuckDB allows them in WITH."""
        [(tree,)] = self._connection.cursor().execute("SELECT json_serialize_sql($1)", [query]).fetchall()
        if not tree.startswith('{"error":false'):
            return ["a SELECT that can't be judged"]
        # What is text in the query has its quotes escaped here.
        nodes = {node.removesuffix("_QUERY_NODE") for node in _NODE.findall(tree) if node not in READING_NODES}
        functions = {f"{name}()" for name in _FUNCTION.findall(tree) if name.lower() in RUN_TEXT}
        return sorted(nodes | functions)


@contextmanager
def open(  # noqa: A001 - read as history.open
    settings: Settings, since: datetime | None = None, until: datetime | None = None, *, catalog: Catalog | None = None
) -> Iterator[History]:
    """Open the history between two aware moments of event time; None is unbounded.

    Args:
        settings: Where the tables are.
        since: Inclusive.
        until: Exclusive.
        catalog: One that is open already, for a caller that opens histories over and over.

    Raises:
        ValueError: a moment without a time zone, or since after until.
        DamagedFileError: also within the block: a file that a query reads is damaged or gone.
        QueryTooLargeError: within the block: a query needs more memory or disk than the settings give it.
    """
    for name, moment in (("since", since), ("until", until)):
        if moment is not None and moment.tzinfo is None:
            msg = f"{name}={moment.isoformat()} has no time zone: write it as {moment.isoformat()}+00:00"
            raise ValueError(msg)
    if since and until and since > until:
        msg = f"since={since.isoformat()} is after until={until.isoformat()}"
        raise ValueError(msg)
    if catalog is None:
        with closing(open_catalog(settings)) as own, open(settings, since, until, catalog=own) as tables:
            yield tables
        return
    connection = duckdb.connect(":memory:")
    planned: dict[Table, _Planned] = {}
    try:
        connection.execute("SET TimeZone = 'UTC'")
        views = _create_views(connection, catalog, settings, since, until, planned=planned)
        guarded_queries.guard(connection, settings)
        yield History(connection, views)
    except duckdb.Error as error:
        files = {path: stored for table, plan in planned.items() for path, stored in plan.stored(table)}
        told = guarded_queries.explained(error, files, settings)
        if told is None:
            raise
        raise told from error
    finally:
        connection.close()


def _create_views(
    connection: duckdb.DuckDBPyConnection,
    catalog: Catalog,
    settings: Settings,
    since: datetime | None,
    until: datetime | None,
    *,
    planned: dict[Table, _Planned],
) -> NamedViews:
    """Create the tables' views, fill `planned` with what they read; returns those of runs and reports."""
    seconds = {table: statistics.window_seconds(settings, table) for table in STATISTICS}
    tail_ends = {table: until and _next_window(until, seconds[table]) for table in STATISTICS}
    plan = partial(_plan, connection, catalog, since=since)
    runs_since = since and _before(since, timedelta(days=settings.longest_run_days))
    # Without `until`, so that the newest window that is stored is among the files. The statistics before the events: what
    # is committed between the two is then computed from the tail, where the other way round a window closed and stored
    # meanwhile would be told without its events.
    planned |= {table: plan(table, until=None) for table in STATISTICS}
    planned[SAGA_RUNS] = plan(SAGA_RUNS, until=until)
    planned[EVENTS] = plan(EVENTS, since=runs_since, until=max(filter(None, tail_ends.values()), default=None))
    definitions = plan(SAGA_DEFINITIONS, since=None, until=None)  # of a saga that runs since long ago, too
    planned |= {table: plan(table, until=until) for table in TABLES if table not in planned}
    for table, stored in planned.items():
        name = f"stored_{table.name}" if table in COMPUTED else table.name
        connection.execute(f'CREATE VIEW "{name}" AS {stored.select(since, until)}')
    for table in STATISTICS:
        rows = f'SELECT *, FALSE AS "open" FROM "stored_{table.name}"'  # noqa: S608 - ours
        # A window belongs to [since, until) by its start, and has all its events or none.
        closed = planned[table].newest("window_end") or (since and _next_window(since, seconds[table]))
        if planned[EVENTS].paths(closed, tail_ends[table]):
            tail = planned[EVENTS].select(closed, tail_ends[table])
            computed = statistics.query(settings, table, f"({tail})")
            rows += f' UNION ALL BY NAME SELECT *, TRUE AS "open" FROM ({computed})'  # noqa: S608 - ours
        connection.execute(f'CREATE VIEW "{table.name}" AS {rows}')

    _create_view_of_snapshots(connection, planned)
    return NamedViews(
        connection,
        {
            "run_events": f"CREATE VIEW run_events AS {planned[EVENTS].select(runs_since, until)}",
            "known_definitions": f"CREATE VIEW known_definitions AS {definitions.select(None, None)}",
            **saga_runs.views(
                "run_events",
                "known_definitions",
                since,
                until,
                stored=f"stored_{SAGA_RUNS.name}",
                spans=coverage.covered(planned[SAGA_RUNS].properties),
            ),
            **reports.macros(settings, since),
        },
    )


def _create_view_of_snapshots(connection: duckdb.DuckDBPyConnection, planned: dict[Table, _Planned]) -> None:
    rows = [
        f"({_quoted(table.name)}, {one.snapshot.snapshot_id}, make_timestamptz({one.snapshot.timestamp_ms * 1000}))"
        if one.snapshot
        else f"({_quoted(table.name)}, NULL::BIGINT, NULL::TIMESTAMPTZ)"
        for table, one in planned.items()
    ]
    columns = "snapshots(table_name, snapshot_id, committed_at)"
    connection.execute(f"CREATE VIEW snapshots AS SELECT * FROM (VALUES {', '.join(rows)}) AS {columns}")  # noqa: S608 - ours


@dataclass(frozen=True)
class _Planned:
    """A table's newest snapshot: its columns, and those of its files that were asked for."""

    schema: Schema
    snapshot: Snapshot | None
    time_column: str
    types: dict[str, str]
    """DuckDB's type of each column."""
    files: dict[str, DataFile]
    """By path."""
    properties: Mapping[str, str]
    """Of the table."""

    def stored(self, table: Table) -> Iterator[tuple[str, guarded_queries.Stored]]:
        """Where each file belongs."""
        for path, file in self.files.items():
            yield path, guarded_queries.Stored(table.name, table.partition_start(file.partition[0]))

    def newest(self, column: str) -> datetime | None:
        """The latest moment in a column of the files; None where there are none. No file is opened."""
        number = self.schema.find_field(column).field_id
        return max((_moment(file.upper_bounds[number]) for file in self.files.values()), default=None)

    def paths(self, since: datetime | None, until: datetime | None) -> list[str]:
        """The files that hold rows of [since, until)."""
        number = self.schema.find_field(self.time_column).field_id
        return [
            path
            for path, file in self.files.items()
            if (since is None or _moment(file.upper_bounds[number]) >= since)
            and (until is None or _moment(file.lower_bounds[number]) < until)
        ]

    def select(self, since: datetime | None, until: datetime | None) -> str:
        """SQL for the rows of [since, until)."""
        paths = self.paths(since, until)
        bounds = [
            f"{_name(self.time_column)} {sign} TIMESTAMPTZ {_quoted(moment.isoformat())}"
            for sign, moment in ((">=", since), ("<", until))
            if moment is not None and paths
        ]
        where = f" WHERE {' AND '.join(bounds)}" if bounds else ""
        return read_files(self.schema, self.types, paths) + where


def read_files(schema: Schema, types: dict[str, str], paths: list[str]) -> str:
    """SQL for all rows of a table's files; of no file, no row.

    Args:
        schema: The table's, as Iceberg has it.
        types: DuckDB's type of each column, see `duckdb_types`.
        paths: The files.
    """
    if not paths:
        nothing = ", ".join(f"NULL::{kind} AS {_name(name)}" for name, kind in types.items())
        return f"SELECT {nothing} WHERE FALSE"
    # By field id, as Iceberg has it: a file from before a column was added answers NULL, and no footer is opened.
    columns = ", ".join(
        f"{field.field_id}: {{name: {_quoted(field.name)}, type: {_quoted(types[field.name])}, default_value: NULL}}"
        for field in schema.fields
    )
    return f"SELECT * FROM read_parquet([{', '.join(map(_quoted, paths))}], schema = MAP {{{columns}}})"  # noqa: S608 - ours


def duckdb_types(connection: duckdb.DuckDBPyConnection, schema: Schema) -> dict[str, str]:
    """DuckDB's type of each column of a table."""
    columns = connection.from_arrow(schema_to_pyarrow(schema).empty_table())
    return dict(zip(columns.columns, map(str, columns.types), strict=True))


def _plan(
    connection: duckdb.DuckDBPyConnection,
    catalog: Catalog,
    table: Table,
    *,
    since: datetime | None,
    until: datetime | None,
) -> _Planned:
    stored = catalog.load_table(table.identifier)
    types = duckdb_types(connection, stored.schema())
    with reading_metadata(table):
        tasks = stored.scan(row_filter=_between(table.time_column, since, until)).plan_files()
        files = {unquote(urlsplit(task.file.file_path).path): task.file for task in tasks}
    return _Planned(stored.schema(), stored.current_snapshot(), table.time_column, types, files, stored.properties)


def _between(column: str, since: datetime | None, until: datetime | None) -> BooleanExpression:
    """PyIceberg's filter that keeps the files which may hold such rows."""
    bounds = [f"{column} {sign} '{moment.isoformat()}'" for sign, moment in ((">=", since), ("<", until)) if moment]
    return parse(" and ".join(bounds)) if bounds else AlwaysTrue()


def _before(moment: datetime, span: timedelta) -> datetime:
    """So long before the moment, or the first moment there is."""
    return moment - span if moment - EPOCH > span else EPOCH


def _next_window(moment: datetime, seconds: int) -> datetime:
    """The start of the first window that does not start before the moment."""
    width = timedelta(seconds=seconds)
    return moment + (EPOCH - moment) % width


def _moment(bound: bytes) -> datetime:
    microseconds: Any = from_bytes(TIME, bound)  # typed as text, but a number
    return EPOCH + timedelta(microseconds=microseconds)


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
