"""SQL over the history: the right rows, and nothing but reading."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import duckdb
import pytest

from warehouse import history
from warehouse.catalog import open_catalog
from warehouse.history import ReadOnlyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from warehouse.settings import Settings

MIDNIGHT = datetime(2026, 11, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)


def ids(lake: Settings, since: datetime | None = None, until: datetime | None = None) -> list[str]:
    """The events between two moments."""
    with history.open(lake, since, until) as tables:
        return [row[0] for row in tables.sql("SELECT event_id FROM events ORDER BY 1").fetchall()]


def test_bounds_are_inclusive_and_exclusive(lake: Settings, add_events: Callable[..., None]) -> None:
    """[since, until) on event time, also within a file and across days and time zones."""
    add_events(*(MIDNIGHT + n * HOUR for n in (-25, -1, 0, 1)))
    assert ids(lake) == ["e0", "e1", "e2", "e3"]
    assert ids(lake, MIDNIGHT) == ["e2", "e3"]
    assert ids(lake, MIDNIGHT - HOUR, MIDNIGHT) == ["e1"]
    assert ids(lake, None, MIDNIGHT + HOUR) == ["e0", "e1", "e2"]
    assert ids(lake, datetime(2026, 11, 20, 1, tzinfo=timezone(HOUR))) == ["e2", "e3"]
    assert ids(lake, MIDNIGHT + 24 * HOUR) == []


def test_empty_tables_have_their_columns(lake: Settings) -> None:
    """Before the first event a query answers no rows, not an error."""
    with history.open(lake) as tables:
        assert tables.sql("SELECT * FROM events").fetchall() == []
        answer = tables.sql("SELECT window_start, p95_ms FROM step_stats")
        assert answer.columns == ["window_start", "p95_ms"]
        assert answer.fetchall() == []


def test_a_history_is_one_snapshot(lake: Settings, add_events: Callable[..., None]) -> None:
    """Rows committed after it was opened are seen when it is opened again."""
    add_events(MIDNIGHT)
    with history.open(lake) as tables:
        add_events(MIDNIGHT, offset=1)
        assert tables.sql("SELECT count(*) FROM events").fetchall() == [(1,)]
    assert ids(lake) == ["e0", "e1"]


def test_files_outside_the_bounds_are_not_read(lake: Settings, add_events: Callable[..., None]) -> None:
    """A bounded history works although a file of another day is gone."""
    add_events(MIDNIGHT)
    add_events(MIDNIGHT + 48 * HOUR, offset=1)
    [lost] = (
        open_catalog(lake).load_table(("saga", "events")).scan("timestamp < '2026-11-21T00:00:00+00:00'").plan_files()
    )
    from urllib.parse import urlsplit

    path = urlsplit(lost.file.file_path).path
    __import__("pathlib").Path(path).unlink()
    assert ids(lake, MIDNIGHT + 24 * HOUR) == ["e1"]
    with pytest.raises(duckdb.IOException):
        ids(lake)


def test_a_column_added_later_is_null_in_older_files(lake: Settings, add_events: Callable[..., None]) -> None:
    """Schema evolution: old files answer NULL for the new column."""
    add_events(MIDNIGHT)
    from pyiceberg.types import StringType

    with open_catalog(lake).load_table(("saga", "events")).update_schema() as update:
        update.add_column("region", StringType())
    with history.open(lake) as tables:
        assert tables.sql("SELECT event_id, region FROM events").fetchall() == [("e0", None)]


@pytest.mark.parametrize(
    "query",
    [
        "DROP VIEW events",
        "CREATE TABLE t AS SELECT 1",
        "INSERT INTO events SELECT * FROM events",
        "COPY (SELECT 1) TO 'x.csv'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO 'x.csv'",
        "SET threads = 1",
        "ATTACH 'x.db'",
        "INSTALL httpfs",
        "SELECT 1; SELECT 2",
        "",
    ],
)
def test_anything_but_one_select_is_refused(lake: Settings, query: str) -> None:
    """The error says what came and what is allowed."""
    with history.open(lake) as tables, pytest.raises(ReadOnlyError, match="allowed: one SELECT"):
        tables.sql(query)


def test_a_select_reads_no_other_file(lake: Settings, tmp_path: Path) -> None:
    """Neither a file outside the warehouse nor the network can be reached from SQL."""
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    with history.open(lake) as tables:
        for source in (f"read_csv('{secret}')", f"'{secret}'", f"read_text('{secret}')", "glob('/*')"):
            with pytest.raises(duckdb.PermissionException):
                tables.sql(f"SELECT * FROM {source}").fetchall()


@pytest.mark.parametrize("query", ["DESCRIBE events", "SUMMARIZE events", "WITH a AS (SELECT 1 AS x) SELECT x FROM a"])
def test_what_only_reads_is_allowed(lake: Settings, query: str) -> None:
    """A question about the tables is a question."""
    with history.open(lake) as tables:
        assert tables.sql(query).fetchall()


def test_a_moment_without_a_zone_is_refused(lake: Settings) -> None:
    """The error shows how to write it."""
    with (
        pytest.raises(ValueError, match=r"2026-11-20T00:00:00 has no time zone.*\+00:00"),
        history.open(
            lake,
            datetime(2026, 11, 20),  # noqa: DTZ001 - the law
        ),
    ):
        pass


def test_since_after_until_is_refused(lake: Settings) -> None:
    """Bounds the wrong way round are a mistake, not an empty answer."""
    with pytest.raises(ValueError, match="is after until"), history.open(lake, MIDNIGHT + HOUR, MIDNIGHT):
        pass
