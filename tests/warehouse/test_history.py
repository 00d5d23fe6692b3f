"""SQL over the history: the right rows, and nothing but reading."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import count
from typing import TYPE_CHECKING, Any

import duckdb
import msgspec
import pyarrow as pa
import pytest
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.types import LongType

from warehouse import history
from warehouse.catalog import open_catalog
from warehouse.guarded_queries import DamagedFileError
from warehouse.history import ReadOnlyError
from warehouse.tables import EVENTS, SAGA_DEFINITIONS, STATISTICS, STEP_STATS, Table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from warehouse.settings import Settings

MIDNIGHT = datetime(2026, 11, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)
NUMBERS = count()


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
    with pytest.raises(DamagedFileError, match=r"events of 2026-11-20 can.t be read"):
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


def second(number: float) -> datetime:
    """So many seconds after midnight."""
    return MIDNIGHT + timedelta(seconds=number)


def append(lake: Settings, table: Table, *rows: dict[str, Any]) -> list[Path]:
    """Commit rows, and return the files they are in."""
    stored = open_catalog(lake).load_table(table.identifier)
    before = {task.file.file_path for task in stored.scan().plan_files()}
    schema = schema_to_pyarrow(stored.schema(), include_field_ids=False)
    stored.append(pa.Table.from_pylist(list(rows), schema=schema))
    files = {task.file.file_path for task in stored.scan().plan_files()} - before
    from pathlib import Path

    return [Path(file.removeprefix("file://")) for file in files]


def step_ended(moment: datetime, saga_name: str = "order") -> dict[str, Any]:
    """A row of `events`: step `reserve` completed after 100 ms."""
    number = next(NUMBERS)
    return {
        "event_id": f"step-{number}",
        "event_type": "step_completed",
        "saga_id": "s",
        "saga_name": saga_name,
        "run_id": "r",
        "sequence": number,
        "timestamp": moment,
        "step_name": "reserve",
        "attempt": 1,
        "duration_ms": 100,
        "duration_derived": False,
        "schema_version": 1,
        "source_topic": "t",
        "source_partition": 0,
        "source_offset": number,
    }


def window(start: datetime, completed: int, saga_name: str = "order") -> dict[str, Any]:
    """A row of `step_stats` as the job stores it, of a window of ten seconds."""
    figures = dict.fromkeys(("avg_ms", "p50_ms", "p95_ms", "p99_ms"), 100.0) | {"min_ms": 100, "max_ms": 100}
    return figures | {
        "window_start": start,
        "window_end": start + timedelta(seconds=10),
        "saga_name": saga_name,
        "step_name": "reserve",
        "phase": "step",
        "completed": completed,
        "failed": 0,
        "failure_rate": 0.0,
    }


def windows(
    lake: Settings, since: datetime | None = None, until: datetime | None = None
) -> list[tuple[float, str, int, bool]]:
    """Of each row of `step_stats`: seconds from midnight to its start, saga, how many completed, and whether it is open."""
    query = 'SELECT window_start, saga_name, completed, "open" FROM step_stats ORDER BY ALL'
    with history.open(lake, since, until) as tables:
        return [((start - MIDNIGHT).total_seconds(), *rest) for start, *rest in tables.sql(query).fetchall()]


def test_a_kind_that_falls_silent_is_seen(lake: Settings) -> None:
    """No later event closes the last window of a quiet topic: readers compute it, and say that it is open."""
    append(lake, EVENTS, *(step_ended(second(at)) for at in (0, 9.999, 10)), step_ended(second(12), "refund"))
    append(lake, STEP_STATS, window(second(0), 2))
    assert windows(lake) == [(0, "order", 2, False), (10, "order", 1, True), (10, "refund", 1, True)]
    with history.open(lake) as tables:
        stored = tables.sql("SELECT * FROM stored_step_stats")
        assert stored.columns == [column.name for column in STEP_STATS.columns]
        assert len(stored.fetchall()) == 1
        recent = tables.sql("FROM recent_steps()").fetchall()
        assert [(row[0], row[2], row[-1]) for row in recent] == [("order", 3, second(20)), ("refund", 1, second(20))]
        durations = tables.sql("SELECT saga_name, executions FROM step_statistics(span := NULL) ORDER BY 1").fetchall()
        assert durations == [("order", 3), ("refund", 1)]


def test_a_clock_that_is_ahead_hides_no_other_kind(lake: Settings) -> None:
    """The live table's last minute is that of the newest window where events are old, and ends now where one is of later."""
    append(lake, EVENTS, step_ended(second(0), "old"), step_ended(second(70)))
    with history.open(lake) as tables:
        recent = tables.sql("FROM recent_steps()").fetchall()
        assert [row[0] for row in recent] == ["order"]
    now = datetime.now(UTC)
    append(lake, EVENTS, step_ended(now), step_ended(now + 4 * timedelta(minutes=1), "ahead"))
    with history.open(lake, since=now - HOUR) as tables:
        recent = tables.sql("FROM recent_steps()").fetchall()
        assert [row[0] for row in recent] == ["ahead", "order"]


def test_each_statistic_has_its_own_open_windows(lake: Settings) -> None:
    """What one table has closed says nothing of another; its width is its own, too."""
    start = step_ended(second(5)) | {"event_type": "saga_started", "step_name": None, "duration_ms": None}
    append(lake, EVENTS, start, step_ended(second(5)), step_ended(second(45)))
    append(lake, STEP_STATS, window(second(0), 1))
    with history.open(lake) as tables:
        steps = tables.sql('SELECT window_start, window_end, completed, "open" FROM step_stats ORDER BY 1').fetchall()
        assert steps == [(second(0), second(10), 1, False), (second(40), second(50), 1, True)]
        sagas = tables.sql('SELECT window_start, window_end, started, "open" FROM saga_stats').fetchall()
        assert sagas == [(second(0), second(10), 1, True)]
        durations = tables.sql('SELECT window_start, window_end, "count", "open" FROM step_durations').fetchall()
        assert durations == [(second(0), second(60), 2, True)]


def test_a_late_event_is_in_no_open_window(lake: Settings) -> None:
    """Its window is stored without it, and a recompute mends that: a second row of the window would count it wrongly."""
    append(lake, STEP_STATS, window(second(0), 2), window(second(20), 1))
    append(lake, EVENTS, step_ended(second(3)), step_ended(second(29.999)), step_ended(second(30)))
    assert windows(lake) == [(0, "order", 2, False), (20, "order", 1, False), (30, "order", 1, True)]


@pytest.mark.parametrize("stored", [0, 1, 2, 4])
def test_bounds_hold_for_open_windows_too(lake: Settings, stored: int) -> None:
    """A window belongs to [since, until) by its start, has all its events or none, however many of them are stored."""
    append(lake, EVENTS, *(step_ended(second(at)) for at in (0, 1, 10, 15, 19, 20, 28, 30, 39)))
    counts = {0: 2, 10: 3, 20: 2, 30: 2}
    if stored:
        append(lake, STEP_STATS, *(window(second(at), counts[at]) for at in list(counts)[:stored]))
    expected = [(at, "order", number, at >= stored * 10) for at, number in counts.items()]
    assert windows(lake) == expected
    assert windows(lake, second(10), second(20)) == expected[1:2]
    assert windows(lake, second(5), second(25)) == expected[1:3]
    assert windows(lake, second(10.001)) == expected[2:]
    assert windows(lake, None, second(10)) == expected[:1]
    assert windows(lake, None, second(0.001)) == expected[:1]
    assert windows(lake, second(31)) == windows(lake, None, second(0)) == []
    with history.open(lake, second(5), second(25)) as tables:
        assert tables.sql('SELECT count(*) FROM events WHERE "timestamp" >= $1', [second(25)]).fetchall() == [(0,)]


def test_open_windows_read_only_the_newest_events(lake: Settings) -> None:
    """A statistic is answered although the files of older events can't be read, and opening reads no file at all."""
    [old] = append(lake, EVENTS, step_ended(second(0)), step_ended(second(9)))
    [new] = append(lake, EVENTS, step_ended(second(10)))
    append(lake, STEP_STATS, window(second(0), 2))
    old.write_bytes(b"no Parquet")
    assert windows(lake) == [(0, "order", 2, False), (10, "order", 1, True)]
    new.write_bytes(b"no Parquet")
    with history.open(lake) as tables:
        assert tables.sql("SELECT completed FROM stored_step_stats").fetchall() == [(2,)]
        with pytest.raises(duckdb.Error):
            tables.sql("SELECT completed FROM step_stats").fetchall()


def test_open_windows_change_no_type(lake: Settings) -> None:
    """A statistic has the columns of its table, then `open`, be it empty, stored, computed or both."""

    def types() -> dict[str, list[tuple[str, str]]]:
        with history.open(lake) as tables:
            return {
                name: [row[:2] for row in tables.sql(f"DESCRIBE {name}").fetchall()]
                for table in STATISTICS
                for name in (table.name, f"stored_{table.name}")
            }

    empty = types()
    for table in STATISTICS:
        assert [name for name, _ in empty[table.name]] == [*(column.name for column in table.columns), "open"]
        assert empty[table.name] == [*empty[f"stored_{table.name}"], ("open", "BOOLEAN")]
    append(lake, EVENTS, step_ended(second(10)))
    assert types() == empty
    append(lake, STEP_STATS, window(second(0), 2))
    assert types() == empty


def test_a_column_added_to_a_statistic_is_null_in_open_windows(lake: Settings) -> None:
    """A newer version's column breaks no older reader: it can't compute what it does not know."""
    append(lake, STEP_STATS, window(second(0), 2))
    append(lake, EVENTS, step_ended(second(10)))
    with open_catalog(lake).load_table(STEP_STATS.identifier).update_schema() as update:
        update.add_column("retries", LongType())
    append(lake, STEP_STATS, window(second(0), 1, "refund") | {"retries": 4})
    with history.open(lake) as tables:
        rows = tables.sql(
            'SELECT completed, retries, "open" FROM step_stats ORDER BY window_start, completed'
        ).fetchall()
    assert rows == [(1, 4, False), (2, None, False), (1, None, True)]


def test_a_window_stored_while_it_opens_is_told_once_and_with_its_events(lake: Settings) -> None:
    """The job may commit between the reading of one table and of the next, first to any of them."""
    append(lake, STEP_STATS, window(second(0), 1))
    append(lake, EVENTS, step_ended(second(0)))

    class Racing:
        """The catalog, and a job that commits as soon as one of the two tables has been read."""

        committed = False

        def load_table(self, identifier: Any) -> Any:
            loaded = open_catalog(lake).load_table(identifier)
            if identifier in {EVENTS.identifier, STEP_STATS.identifier} and not self.committed:
                self.committed = True
                append(lake, EVENTS, step_ended(second(10)), step_ended(second(11)))
                append(lake, STEP_STATS, window(second(10), 2))
            return loaded

    racing: Any = Racing()
    with history.open(lake, catalog=racing) as tables:
        told = tables.sql("SELECT sum(completed), count(*) FROM step_stats").fetchall()
        assert told == [(3, 2)]
        assert tables.sql("SELECT count(*) FROM events").fetchall() == [(3,)]


def test_a_run_that_began_before_since_is_told_whole(lake: Settings) -> None:
    """Its events of as many days as the setting says are read, too, and its definition however old; not one day more."""
    steps = '[{"step_name": "reserve", "compensable": true, "pivot": false, "later_field": 1}]'
    definition = {"definition_id": "d", "saga_name": "order", "steps": steps, "first_seen": MIDNIGHT - 90 * 24 * HOUR}
    append(lake, SAGA_DEFINITIONS, definition)
    begun = MIDNIGHT - 6.5 * 24 * HOUR
    ended = {"event_type": "saga_failed", "step_name": None, "sequence": 10_000, "definition_id": "d"}
    append(lake, EVENTS, step_ended(begun) | {"definition_id": "d"}, step_ended(second(5)) | ended)
    query = "SELECT outcome, steps_done FROM saga_runs"
    with history.open(lake, MIDNIGHT) as tables:
        assert tables.sql("SELECT count(*) FROM events").fetchall() == [(1,)]
        assert tables.sql(query).fetchall() == [("rolled_back_partial", ["reserve"])]
    with history.open(lake, MIDNIGHT + 24 * HOUR) as tables:
        assert tables.sql(query).fetchall() == []
    with history.open(msgspec.structs.replace(lake, longest_run_days=6), MIDNIGHT) as tables:
        assert tables.sql(query).fetchall() == [("failed_nothing_to_undo", [])]


def test_views_of_runs_are_among_the_tables(lake: Settings) -> None:
    """Who looks for them finds them, although they are made only when a query may name them."""
    with history.open(lake) as tables:
        names = {row[0] for row in tables.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()}
        assert {"saga_runs", "open_runs", "step_runs", "events", "step_stats"} <= names
        for view in ("saga_runs", "OPEN_RUNS", '"step_runs"', "abandoned_runs()"):
            assert tables.sql(f"FROM {view}").fetchall() == []


def test_a_history_says_of_which_snapshots_it_is(lake: Settings, add_events: Callable[..., None]) -> None:
    """A row a table: its snapshot and when that was committed; none before the first commit."""
    add_events(MIDNIGHT)
    stored = open_catalog(lake).load_table(EVENTS.identifier).current_snapshot()
    assert stored
    with history.open(lake) as tables:
        rows = {name: (number, at) for name, number, at in tables.sql("FROM snapshots").fetchall()}
    assert rows["events"][0] == stored.snapshot_id
    assert rows["events"][1] == datetime.fromtimestamp(stored.timestamp_ms / 1000, UTC)
    assert rows["step_stats"] == (None, None)
