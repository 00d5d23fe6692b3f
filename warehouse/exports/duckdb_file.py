"""The history as one DuckDB file, which BI tools open: plain tables, and `about`, which says how old they are."""

from __future__ import annotations

import importlib.metadata
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import duckdb

from warehouse import guarded_queries
from warehouse.exports.whole_file import ExportError, replacing
from warehouse.tables import EVENTS, SAGA_DEFINITIONS, STATISTICS

if TYPE_CHECKING:
    from pathlib import Path

    from warehouse.history import History
    from warehouse.settings import Settings

TABLES = {
    EVENTS.name: EVENTS.doc,
    "saga_runs": "What became of each run that ended, one row each.",
    "step_runs": "Each execution of a step and of a compensation, one row each.",
    **{table.name: table.doc for table in STATISTICS},
    SAGA_DEFINITIONS.name: SAGA_DEFINITIONS.doc,
}
"""What is in the file, and what a row of each is."""
OF_RUNS = {"saga_runs", "step_runs"}
COLUMNS = [
    (table.name, column.name, column.doc)
    for table in (EVENTS, *STATISTICS, SAGA_DEFINITIONS)
    for column in table.columns
]
STORAGE = "v1.0.0"
"""The format of the file: DuckDB of every version since then opens it."""
BATCH_ROWS = 20_000

_ABOUT = """
CREATE TABLE written.about (
    table_name VARCHAR NOT NULL, "rows" BIGINT NOT NULL, snapshot_id BIGINT, snapshot_at TIMESTAMPTZ,
    since TIMESTAMPTZ, until TIMESTAMPTZ, newest_event_at TIMESTAMPTZ, exported_at TIMESTAMPTZ NOT NULL,
    sagascope_version VARCHAR NOT NULL, description VARCHAR NOT NULL
)
"""


def write(
    tables: History,
    settings: Settings,
    path: Path,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    force: bool = False,
) -> dict[str, int]:
    """Write the file; returns the rows of each table. Whole or not at all, and all tables of one moment.

    Its memory is bounded: rows stream from the one DuckDB to the other.

    Args:
        tables: The history, opened for the span.
        settings: What limits memory and disk.
        path: The file. One that is an export already is replaced.
        since: As the history was opened, for `about`.
        until: Likewise.
        force: Replace any file.

    Raises:
        ExportError: no event is in the span, or the file is none of ours.
    """
    exported_at = datetime.now(UTC)
    [(newest,)] = tables.sql('SELECT max("timestamp") FROM events').fetchall()
    if newest is None:
        msg = "no event in that span: nothing to export"
        raise ExportError(msg)
    snapshots = {name: (number, at) for name, number, at in tables.sql("FROM snapshots").fetchall()}
    version = importlib.metadata.version("sagascope")
    counts: dict[str, int] = {}
    with replacing(path, is_export, force=force) as partial, closing(duckdb.connect(":memory:")) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        guarded_queries.limit(connection, settings)
        connection.execute(
            f"ATTACH '{str(partial).replace(chr(39), chr(39) * 2)}' AS written (STORAGE_VERSION '{STORAGE}')"
        )
        connection.execute(_ABOUT)
        for name, doc in TABLES.items():
            rows = tables.sql(f'FROM "{name}"').to_arrow_reader(BATCH_ROWS)
            connection.execute(f'CREATE TABLE written."{name}" AS FROM rows')
            [(counts[name],)] = connection.execute(f'SELECT count(*) FROM written."{name}"').fetchall()  # noqa: S608 - ours
            connection.execute(f"COMMENT ON TABLE written.\"{name}\" IS '{doc.replace(chr(39), chr(39) * 2)}'")
            number, at = snapshots[EVENTS.name if name in OF_RUNS else name]
            values = [name, counts[name], number, at, since, until, newest, exported_at, version, doc]
            connection.execute("INSERT INTO written.about VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)", values)
            rows.close()
        for name, column, doc in COLUMNS:
            connection.execute(
                f'COMMENT ON COLUMN written."{name}"."{column}" IS \'{doc.replace(chr(39), chr(39) * 2)}\''
            )
        connection.execute("DETACH written")  # which writes all of it into the one file
    return counts


def is_export(path: Path) -> bool:
    """Whether a file is one that `write` wrote."""
    try:
        with closing(duckdb.connect(str(path), read_only=True)) as connection:
            columns = {name for name, *_ in connection.execute("DESCRIBE about").fetchall()}
    except duckdb.Error:
        return False
    return {"exported_at", "sagascope_version"} <= columns
