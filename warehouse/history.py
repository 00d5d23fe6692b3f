"""SQL over the history: DuckDB on the files that PyIceberg plans. Read-only.

with history.open(settings, since=yesterday) as saga_history:
    saga_history.sql("SELECT step_name, quantile_cont(duration_ms, 0.95) FROM events GROUP BY 1").show()
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import duckdb
from pyiceberg.expressions import AlwaysTrue, BooleanExpression
from pyiceberg.expressions.parser import parse
from pyiceberg.io.pyarrow import schema_to_pyarrow

from warehouse.catalog import open_catalog
from warehouse.tables import TABLES, Table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from pyiceberg.catalog import Catalog

    from warehouse.settings import Settings

READING = {duckdb.StatementType.SELECT}  # EXPLAIN would run what it explains, if asked to ANALYZE


REPORTS = Path(__file__).parent / "sql"


def report(name: str) -> str:
    """The SQL of a named report, one of `warehouse/sql/*.sql`: for `History.sql`, or to be read.

    Raises:
        LookupError: no report has that name; names those there are.
    """
    try:
        return (REPORTS / f"{name}.sql").read_text(encoding="utf-8")
    except FileNotFoundError:
        msg = f"no report {name!r}; there are {', '.join(sorted(file.stem for file in REPORTS.glob('*.sql')))}"
        raise LookupError(msg) from None


class ReadOnlyError(ValueError):
    """A statement that would change something; names it, and what is allowed."""


class History:
    """A snapshot of all tables as views of the same names, over rows of [since, until).

    Each view's files are those of the table's snapshot when it was opened: open again to see newer rows.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def sql(self, query: str, parameters: object = None) -> duckdb.DuckDBPyRelation:
        """The answer of one SELECT (also WITH, DESCRIBE, SUMMARIZE).

        Raises:
            ReadOnlyError: it is not one statement that only reads.
            duckdb.Error: DuckDB can't parse or run it.
        """
        statements = self._connection.extract_statements(query)
        kinds = [statement.type for statement in statements]
        if len(kinds) != 1 or kinds[0] not in READING:
            named = ", ".join(kind.name for kind in kinds) or "nothing"
            msg = f"the history is read-only: got {named}; allowed: one SELECT, WITH, DESCRIBE or SUMMARIZE"
            raise ReadOnlyError(msg)
        return self._connection.sql(query, params=parameters)


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
    try:
        connection.execute("SET TimeZone = 'UTC'")
        for table in TABLES:
            _create_view(connection, catalog, table, since, until)
        connection.execute("SET allowed_directories = [?]", [str(settings.warehouse_folder)])
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        yield History(connection)
    finally:
        connection.close()


def _create_view(
    connection: duckdb.DuckDBPyConnection,
    catalog: Catalog,
    table: Table,
    since: datetime | None,
    until: datetime | None,
) -> None:
    stored = catalog.load_table(table.identifier)
    scan = stored.scan(row_filter=_between(table.time_column, since, until))
    files = [unquote(urlsplit(task.file.file_path).path) for task in scan.plan_files()]
    connection.register(f"no_{table.name}", schema_to_pyarrow(stored.schema()).empty_table())
    source = f"no_{table.name}"
    if files:
        # By field id, as Iceberg has it: a file from before a column was added answers NULL, and no footer is opened.
        types = dict(connection.sql(f"SELECT column_name, column_type FROM (DESCRIBE {source})").fetchall())  # noqa: S608
        columns = ", ".join(
            f"{field.field_id}: {{name: {_quoted(field.name)}, type: {_quoted(types[field.name])}, default_value: NULL}}"
            for field in stored.schema().fields
        )
        source = f"read_parquet([{', '.join(map(_quoted, files))}], schema = MAP {{{columns}}})"
    bounds = [
        f'"{table.time_column}" {sign} TIMESTAMPTZ {_quoted(moment.isoformat())}'
        for sign, moment in ((">=", since), ("<", until))
        if moment is not None
    ]
    where = f" WHERE {' AND '.join(bounds)}" if bounds else ""
    connection.execute(f'CREATE VIEW "{table.name}" AS SELECT * FROM {source}{where}')  # noqa: S608 - ours


def _between(column: str, since: datetime | None, until: datetime | None) -> BooleanExpression:
    """PyIceberg's filter that keeps the files which may hold such rows."""
    bounds = [f"{column} {sign} '{moment.isoformat()}'" for sign, moment in ((">=", since), ("<", until)) if moment]
    return parse(" and ".join(bounds)) if bounds else AlwaysTrue()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
