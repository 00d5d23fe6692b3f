"""The statistics of some hours by one Flink job in batch, with the very SQL that the stream runs."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
from pyiceberg.io.pyarrow import schema_to_pyarrow

from jobs.flink import STATISTICS_VIEWS, batch_environment, query, statement
from warehouse.catalog import CATALOG_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from warehouse.settings import Settings
    from warehouse.tables import Table

EPOCH = datetime.fromtimestamp(0, UTC)


@contextmanager
def computed(
    settings: Settings, tables: Sequence[Table], since: datetime, until: datetime, *, has_doubles: bool
) -> Iterator[dict[Table, pa.Table]]:
    """The rows of these statistics over [since, until); `events` is read once.

    Args:
        settings: Where the tables are, and how wide a window is.
        tables: Of `STATISTICS`.
        since: Aware.
        until: Aware.
        has_doubles: An event id is stored more than once, so that each has to be looked for.
    """
    settings.temporary.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="recompute-", dir=settings.temporary))
    try:
        environment = batch_environment(settings)
        bounds = {"since": _milliseconds(since), "until": _milliseconds(until)}
        environment.execute_sql(statement("stored_events_once" if has_doubles else "stored_events", bounds))
        for name in STATISTICS_VIEWS:
            environment.execute_sql(statement(name, {}))
        inserts = environment.create_statement_set()
        for table in tables:
            # Through files: PyFlink hands rows over one by one.
            environment.execute_sql(
                f"CREATE TEMPORARY TABLE computed_{table.name} WITH ('connector' = 'filesystem', "
                f"'path' = '{(folder / table.name).as_uri()}', 'format' = 'json', 'json.timestamp-format.standard' = 'ISO-8601') "
                f"LIKE {CATALOG_NAME}.{'.'.join(table.identifier)} (EXCLUDING ALL)"
            )
            inserts.add_insert_sql(f"INSERT INTO computed_{table.name} {query(settings, table)}")
        inserts.execute().wait()
        yield {table: _read(folder / table.name, table) for table in tables}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def nothing(table: Table) -> pa.Table:
    """No row of a table."""
    return schema_to_pyarrow(table.schema, include_field_ids=False).empty_table()


def _read(folder: Path, table: Table) -> pa.Table:
    empty = nothing(table)
    if not any(file.is_file() for file in folder.rglob("*")):
        return empty
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        like = connection.from_arrow(empty)
        columns = dict(zip(like.columns, map(str, like.types), strict=True))
        return connection.read_json(str(folder / "**"), columns=columns, format="newline_delimited").to_arrow_table()


def _milliseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(milliseconds=1)
