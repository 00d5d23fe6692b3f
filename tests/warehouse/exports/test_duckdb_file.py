"""The DuckDB file: what the history says, in plain tables, and how old it is."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from tests.warehouse.planted import NOON, fill
from warehouse import history
from warehouse.catalog import open_catalog
from warehouse.exports import duckdb_file
from warehouse.exports.whole_file import ExportError
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from pathlib import Path

    from warehouse.settings import Settings

HOUR = timedelta(hours=1)


def ask(file: Path, query: str) -> list[tuple[Any, ...]]:
    """As a BI tool does: without us."""
    with closing(duckdb.connect(str(file), read_only=True)) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.execute(query).fetchall()


def test_the_file_holds_what_the_history_says(lake: Settings, tmp_path: Path) -> None:
    """Row for row and type for type, in tables, without a view that would need us; columns are described."""
    fill(lake)
    file = tmp_path / "sagas.duckdb"
    with history.open(lake) as tables:
        counts = duckdb_file.write(tables, lake, file)
        for name in duckdb_file.TABLES:
            query = f'SELECT * FROM "{name}" ORDER BY ALL'
            assert ask(file, query) == tables.sql(query).fetchall(), name
            described = [row[:2] for row in tables.sql(f"DESCRIBE {name}").fetchall()]
            assert [row[:2] for row in ask(file, f"DESCRIBE {name}")] == described
            assert counts[name] == len(ask(file, query))
    assert [*tmp_path.glob("sagas*")] == [file]
    assert ask(file, "SELECT count(*) FROM duckdb_views() WHERE NOT internal") == [(0,)]
    [(comment,)] = ask(
        file, "SELECT comment FROM duckdb_columns() WHERE table_name = 'events' AND column_name = 'pivot'"
    )
    assert comment == "once this step completed there is no way back"


def test_its_age_stands_in_it(lake: Settings, tmp_path: Path) -> None:
    """A row a table: rows, snapshot, span, when it was written and by which version."""
    fill(lake)
    file = tmp_path / "sagas.duckdb"
    snapshot = open_catalog(lake).load_table(EVENTS.identifier).current_snapshot()
    assert snapshot
    since, until = NOON + HOUR, NOON + 2 * HOUR
    before = datetime.now(UTC)
    with history.open(lake, since, until) as tables:
        duckdb_file.write(tables, lake, file, since=since, until=until)
    rows = ask(
        file, 'SELECT table_name, "rows", snapshot_id, since, until, newest_event_at FROM about ORDER BY table_name'
    )
    assert [row[0] for row in rows] == sorted(duckdb_file.TABLES)
    assert rows[0] == ("events", 4, snapshot.snapshot_id, since, until, since + timedelta(seconds=3))
    [(exported_at, versions)] = ask(file, "SELECT min(exported_at), count(DISTINCT sagascope_version) FROM about")
    assert before <= exported_at <= datetime.now(UTC)
    assert versions == 1
    assert ask(file, "SELECT \"rows\" FROM about WHERE table_name = 'saga_runs'") == [(1,)]


def test_its_format_is_one_that_older_tools_know(lake: Settings, tmp_path: Path) -> None:
    """Tools come with a DuckDB of their own, seldom the newest."""
    fill(lake)
    file = tmp_path / "sagas.duckdb"
    with history.open(lake) as tables:
        duckdb_file.write(tables, lake, file)
    [(tags,)] = ask(file, "SELECT tags['storage_version'] FROM duckdb_databases() WHERE database_name = 'sagas'")
    assert tags.startswith("v1.0.0")


def test_an_export_is_replaced_and_another_file_is_not(lake: Settings, tmp_path: Path) -> None:
    """Without --force; also not a database of somebody else's."""
    fill(lake)
    file, others = tmp_path / "sagas.duckdb", tmp_path / "others.duckdb"
    with closing(duckdb.connect(str(others))) as connection:
        connection.execute("CREATE TABLE about AS SELECT 1 AS mine")
    with history.open(lake, until=NOON + HOUR) as tables:
        duckdb_file.write(tables, lake, file)
        with pytest.raises(
            ExportError, match=f"^{others} is there and is no such export: name another file, .*--force"
        ):
            duckdb_file.write(tables, lake, others)
        duckdb_file.write(tables, lake, others, force=True)
    assert ask(file, "SELECT count(*) FROM events") == ask(others, "SELECT count(*) FROM events") == [(4,)]
    with history.open(lake) as tables:
        duckdb_file.write(tables, lake, file)
    assert ask(file, "SELECT count(*) FROM events") == [(12,)]


def test_an_empty_span_leaves_the_file_as_it_was(lake: Settings, tmp_path: Path) -> None:
    """No event is no export."""
    fill(lake)
    file = tmp_path / "sagas.duckdb"
    with history.open(lake) as tables:
        duckdb_file.write(tables, lake, file)
    with history.open(lake, until=NOON) as tables, pytest.raises(ExportError, match="no event"):
        duckdb_file.write(tables, lake, file)
    assert ask(file, "SELECT count(*) FROM events") == [(12,)]
