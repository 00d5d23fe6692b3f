"""SQL from anybody: it reads the tables and nothing else, within its limits; what is damaged is named with the cure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import duckdb
import msgspec
import pyarrow as pa
import pytest

from tests.warehouse.planted import DAY, NOON, append, events_of, fill, paths
from warehouse import history
from warehouse.guarded_queries import DamagedFileError, MovedError, QueryTooLargeError
from warehouse.history import ReadOnlyError
from warehouse.tables import EVENTS, STEP_STATS

if TYPE_CHECKING:
    from pathlib import Path

    from warehouse.settings import Settings

REFUSED = [
    "WITH x AS (COPY (SELECT 1) TO '{lake}/evil.parquet') SELECT 1",
    "WITH x AS (COPY (SELECT 1) TO '{lake}/evil.parquet') SELECT * FROM x",
    "WITH a AS (SELECT 1), x AS (COPY (SELECT 1) TO '{lake}/evil') SELECT 1 UNION ALL SELECT 2",
    "WITH x AS (INSERT INTO t VALUES (1) RETURNING *) SELECT * FROM x",
    "WITH x AS (UPDATE t SET a = 1 RETURNING *) SELECT * FROM x",
    "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x",
    "SELECT (WITH x AS (COPY (SELECT 1) TO '{lake}/evil.parquet') SELECT 1)",
    "FROM query('SELECT 1')",
    "SELECT * FROM (SELECT 1) AS a, LATERAL (FROM system.main.\"Query\"('SELECT 1')) AS b",
    "FROM json_execute_serialized_sql(json_serialize_sql('WITH x AS (COPY (SELECT 1) TO ''{lake}/evil'') SELECT 1'))",
    "WITH x AS (SELECT 1) INSERT INTO events SELECT * FROM x",
    "MERGE INTO events USING events AS e ON FALSE WHEN NOT MATCHED THEN INSERT",
    "COPY events TO '{lake}/evil.parquet'",
    "EXPORT DATABASE '{lake}/evil'",
    "IMPORT DATABASE '{lake}'",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{lake}/evil.parquet'",
    "CALL enable_logging(storage := 'file', storage_path := '{lake}/evil')",
    "ATTACH '{lake}/evil.db'",
    "CREATE MACRO f() AS 1",
    "CREATE OR REPLACE VIEW events AS SELECT 1",
    "CREATE SECRET s (TYPE s3)",
    "PRAGMA database_list",
    "SET memory_limit = '1TiB'",
    "RESET temp_directory",
    "INSTALL httpfs",
    "LOAD httpfs",
    "PREPARE p AS SELECT 1",
    "VACUUM",
    "DETACH memory",
    "UPDATE events SET saga_id = ''",
    "SELECT 1; DROP VIEW events",
]
OUT_OF_REACH = [
    "FROM read_csv('{secret}')",
    "FROM '{secret}'",
    "FROM read_text('{secret}')",
    "FROM read_blob('{secret}')",
    "FROM read_json('{secret}')",
    "FROM sniff_csv('{secret}')",
    "FROM parquet_metadata('{secret}')",
    "FROM read_text('{lake}/../catalog.db')",
    "FROM read_text('{lake}/saga/../../catalog.db')",
    "FROM glob('/*')",
    "FROM read_csv('https://127.0.0.1:9/x.csv')",
    "FROM read_parquet('s3://bucket/x.parquet')",
    "SELECT getenv('HOME')",
    "FROM query_table('{secret}')",
    "FROM enable_logging('QueryLog', storage := 'file', storage_path := '{lake}/evil')",
    "FROM enable_profiling()",
    "FROM sql_auto_complete('SEL')",
    "FROM saved_rows",
]


def tree(folder: Path) -> dict[str, bytes]:
    """All that is below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_writes_is_refused_and_writes_nothing(lake: Settings) -> None:
    """Also where DuckDB calls it a SELECT: a COPY in a WITH could write over the tables' own files."""
    fill(lake)
    before = tree(lake.warehouse_folder)
    with history.open(lake) as tables:
        for query in REFUSED:
            with pytest.raises((ReadOnlyError, duckdb.ParserException)) as refused:
                tables.sql(query.format(lake=lake.warehouse_folder)).fetchall()
            if isinstance(refused.value, ReadOnlyError):
                assert "allowed: one SELECT" in str(refused.value)
    assert tree(lake.warehouse_folder) == before


def test_nothing_but_the_tables_is_in_reach(lake: Settings, tmp_path: Path) -> None:
    """No file, no folder, no network, no variable, no secret, no extension, no variable of the program."""
    fill(lake)
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    saved_rows = pa.table({"a": [1]})  # a name of the program, which DuckDB would take for a table elsewhere
    assert saved_rows
    before = tree(lake.warehouse_folder)
    with history.open(lake) as tables:
        for query in OUT_OF_REACH:
            asked = query.format(lake=lake.warehouse_folder, secret=secret)
            try:
                answer = tables.sql(asked).fetchall()
            except duckdb.Error:
                continue
            pytest.fail(f"{asked} was answered: {answer}")
        assert tables.sql("FROM duckdb_secrets()").fetchall() == []  # those that are kept elsewhere were not loaded
    assert tree(lake.warehouse_folder) == before


@pytest.mark.parametrize(
    "query",
    [
        'SELECT \'COPY_QUERY_NODE\' AS "{""type"":""COPY_QUERY_NODE""}", \'{"type":"COPY_QUERY_NODE"}\'',
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3) FROM n",
        "WITH a AS MATERIALIZED (SELECT 1) FROM a UNION ALL VALUES (2)",
        "(SELECT 1);",
        "-- why\nFROM events",
        "PIVOT events ON event_type IN ('saga_started') USING count(*) GROUP BY saga_name",
        "SHOW TABLES",
        "FROM (DESCRIBE events)",
        "SUMMARIZE events",
        "FROM query_table('events')",
        "FROM variants(saga := 'ord*')",
    ],
)
def test_what_reads_is_answered(lake: Settings, query: str) -> None:
    """Whatever it is written like, and whatever its texts look like."""
    fill(lake)
    with history.open(lake) as tables:
        assert tables.sql(query).fetchall()


@pytest.mark.parametrize(
    ("limits", "query", "said"),
    [
        (
            {"sql_memory": "64MiB"},
            "SELECT list(hash(range)) FROM range(100000000)",
            "needs more memory than it may have .* or set SAGASCOPE_SQL_MEMORY, now 64MiB",
        ),
        (
            {"sql_memory": "64MiB", "sql_disk": "32MiB"},
            "SELECT count(*) FROM (SELECT DISTINCT a.range * 100000 + b.range FROM range(100000) a, range(100000) b)",
            "needs more room on the disk than it may have .* or set SAGASCOPE_SQL_DISK, now 32MiB",
        ),
    ],
)
def test_what_eats_memory_or_disk_is_ended(lake: Settings, limits: dict[str, str], query: str, said: str) -> None:
    """In one line with the cure; the disk is as it was, and the next query is answered."""
    settings = msgspec.structs.replace(lake, **limits)
    with pytest.raises(QueryTooLargeError, match=f"^the query {said}.*$"), history.open(settings) as tables:
        tables.sql(query).fetchall()
    assert [*settings.temporary.iterdir()] == []
    with history.open(settings) as tables:
        assert tables.sql("SELECT 1").fetchall() == [(1,)]


def test_what_does_not_fit_into_memory_is_put_on_the_disk(lake: Settings) -> None:
    """The limit of memory alone fails no sort; its files are below the home, and gone afterwards."""
    settings = msgspec.structs.replace(lake, sql_memory="128MiB")
    with history.open(settings) as tables:
        query = "SELECT count(h) FROM (SELECT hash(range) AS h FROM range(20_000_000) ORDER BY h OFFSET 1)"
        assert tables.sql(query).fetchall() == [(19_999_999,)]
    assert [*settings.temporary.iterdir()] == []


def damage(path: Path, how: str) -> None:
    """Spoil a file of a table."""
    raw = path.read_bytes()
    match how:
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(raw[: len(raw) // 2])
        case "head":  # DuckDB does not say in which file
            path.write_bytes(raw[:4] + b"\xff" * 40 + raw[44:])
        case "foot":
            path.write_bytes(raw[:-300] + b"\xaa" * 280 + raw[-20:])


@pytest.mark.parametrize("how", ["gone", "empty", "cut", "head", "foot"])
def test_a_damaged_file_is_named_and_other_days_are_answered(lake: Settings, how: str) -> None:
    """Its table, its day, its path and the way around it; the way around it works."""
    fill(lake)
    append(lake, EVENTS, events_of(4, NOON + timedelta(days=1)))
    [path] = [one for one in paths(lake, EVENTS) if f"={DAY}" in str(one)]
    damage(path, how)
    said = (
        f"^events of {DAY} can't be read: {path} is damaged or gone .*--until {DAY} or --since 2026-11-21.*--day {DAY}"
    )
    with pytest.raises(DamagedFileError, match=said), history.open(lake) as tables:
        tables.sql("SELECT max(event_id), max(error_message) FROM events").fetchall()
    if how != "gone":  # DuckDB looks for each file when a view is made
        with history.open(lake) as tables:
            assert tables.sql("SELECT count(*) FROM stored_saga_stats").fetchall()
    with history.open(lake, since=datetime(2026, 11, 21, tzinfo=UTC)) as tables:
        assert tables.sql("SELECT count(DISTINCT event_id) FROM events").fetchall() == [(4,)]


def test_a_damaged_statistic_is_of_an_hour(lake: Settings) -> None:
    """Its day is told, by which quality is asked."""
    fill(lake)
    damage(paths(lake, STEP_STATS)[0], "cut")
    with pytest.raises(DamagedFileError, match=f"^step_stats of {DAY} can't"), history.open(lake) as tables:
        tables.sql("FROM step_stats").fetchall()


def test_a_lake_that_was_moved_is_named_with_its_cure(lake: Settings) -> None:
    """Iceberg keeps whole paths: the files of a copied catalog are those of the original, which are out of reach."""
    fill(lake)
    other = msgspec.structs.replace(lake, home=f"{lake.home}-moved")
    other.catalog_file.parent.mkdir(parents=True)
    for file in lake.catalog_file.parent.glob("catalog.db*"):
        (other.catalog_file.parent / file.name).write_bytes(file.read_bytes())
    said = f"^the tables' files are elsewhere .*, not below {other.warehouse_folder}: .*; move it back"
    with pytest.raises(MovedError, match=said), history.open(other) as tables:
        tables.sql("FROM events").fetchall()


def test_the_words_of_a_mistake_are_left_alone(lake: Settings) -> None:
    """What DuckDB says of a query that is wrong is about the query."""
    fill(lake)
    with pytest.raises(duckdb.BinderException, match="no_such_column"), history.open(lake) as tables:
        tables.sql("SELECT no_such_column FROM events")
    with pytest.raises(duckdb.ConversionException), history.open(lake) as tables:
        tables.sql("SELECT saga_id::INTEGER FROM events").fetchall()
