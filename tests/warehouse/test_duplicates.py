"""Event ids that `events` holds more than once: only the first row of each stays."""

from __future__ import annotations

import threading
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyiceberg.io.pyarrow import schema_to_pyarrow

from warehouse import duplicates
from warehouse.catalog import open_catalog
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from warehouse.settings import Settings

MIDNIGHT = datetime(2026, 11, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)


def add(lake: Settings, *rows: tuple[str, int, int, datetime], **fields: Any) -> None:
    """Append rows of (event_id, partition, offset, timestamp) in one commit."""
    values = [
        {
            "event_id": event_id,
            "event_type": "saga_started",
            "saga_id": "s",
            "saga_name": "order",
            "run_id": "r",
            "sequence": 0,
            "timestamp": moment,
            "attempt": 1,
            "duration_derived": False,
            "schema_version": 1,
            "source_topic": "t",
            "source_partition": partition,
            "source_offset": offset,
        }
        | fields
        for event_id, partition, offset, moment in rows
    ]
    schema = schema_to_pyarrow(EVENTS.schema, include_field_ids=False)
    open_catalog(lake).load_table(EVENTS.identifier).append(pa.Table.from_pylist(values, schema=schema))


def held(lake: Settings) -> list[tuple[str, int, int]]:
    """What is stored: (event_id, partition, offset)."""
    rows = open_catalog(lake).load_table(EVENTS.identifier).scan().to_arrow().to_pylist()
    return sorted((row["event_id"], row["source_partition"], row["source_offset"]) for row in rows)


def remove(lake: Settings) -> list[duplicates.DayOfDuplicates]:
    """Open a catalog, remove what is there twice."""
    with closing(open_catalog(lake)) as catalog:
        return duplicates.remove(lake, catalog)


def files(lake: Settings) -> set[str]:
    """The data files of the table."""
    return {task.file.file_path for task in open_catalog(lake).load_table(EVENTS.identifier).scan().plan_files()}


def test_the_row_of_the_lowest_partition_and_offset_stays(lake: Settings) -> None:
    """However far apart they came, in other partitions and on other days; the days and hours are told."""
    add(lake, ("a", 1, 4, MIDNIGHT), ("b", 0, 9, MIDNIGHT), ("c", 1, 5, MIDNIGHT))
    add(lake, ("a", 0, 8, MIDNIGHT + 30 * HOUR), ("b", 0, 3, MIDNIGHT + HOUR), ("c", 1, 6, MIDNIGHT + 30 * HOUR))
    assert duplicates.find(lake) == [
        duplicates.DayOfDuplicates(date(2026, 11, 20), 2, 2, (MIDNIGHT,)),
        duplicates.DayOfDuplicates(date(2026, 11, 21), 1, 1, (MIDNIGHT + 30 * HOUR,)),
    ]
    assert len(held(lake)) == 6, "finding changes nothing"
    assert remove(lake) != []
    assert held(lake) == [("a", 0, 8), ("b", 0, 3), ("c", 1, 5)]
    assert remove(lake) == []


def test_rows_of_one_offset_are_one(lake: Settings) -> None:
    """A row that was doubled leaves one; a row of another id at the same offset is no duplicate, and stays."""
    add(lake, ("a", 0, 1, MIDNIGHT), ("a", 0, 1, MIDNIGHT), ("other", 0, 1, MIDNIGHT), ("b", 0, 2, MIDNIGHT))
    add(lake, ("a", 0, 1, MIDNIGHT), ("a", 0, 7, MIDNIGHT))
    [day] = remove(lake)
    assert (day.rows, day.ids) == (3, 1)
    assert held(lake) == [("a", 0, 1), ("b", 0, 2), ("other", 0, 1)]


def test_what_is_at_the_same_offset_of_another_day_stays_as_it_is(lake: Settings) -> None:
    """Neither lost nor written back twice."""
    add(lake, ("a", 0, 1, MIDNIGHT), ("a", 0, 1, MIDNIGHT + 24 * HOUR), ("a", 0, 2, MIDNIGHT + 24 * HOUR))
    add(lake, ("b", 0, 1, MIDNIGHT + 24 * HOUR), ("a", 0, 2, MIDNIGHT))
    remove(lake)
    assert held(lake) == [("a", 0, 1), ("b", 0, 1)]


def test_files_without_duplicates_are_not_written_anew(lake: Settings) -> None:
    """Also those of the same day."""
    add(lake, *((f"x{n}", 0, n, MIDNIGHT) for n in range(5)))
    before = files(lake)
    add(lake, ("x3", 0, 10, MIDNIGHT), ("y", 0, 11, MIDNIGHT))
    remove(lake)
    assert before < files(lake)
    assert ("y", 0, 11) in held(lake)


def test_rows_keep_all_their_fields(lake: Settings) -> None:
    """What is written back is what was there."""
    fields = {"context_keys": ["a"], "attributes": [("k", "v")], "error_message": "it's"}
    add(lake, ("a", 0, 1, MIDNIGHT), ("a", 0, 1, MIDNIGHT), **fields)
    remove(lake)
    [row] = open_catalog(lake).load_table(EVENTS.identifier).scan().to_arrow().to_pylist()
    assert {name: row[name] for name in fields} == fields


def test_the_stream_may_append_meanwhile(lake: Settings) -> None:
    """Of the same day and with offsets that go on: none of its rows is lost, none is there twice."""
    add(lake, *((f"x{n % 50}", 0, n, MIDNIGHT + n * timedelta(seconds=1)) for n in range(200)))
    stop = threading.Event()
    appended: list[tuple[str, int, int]] = []
    failed: list[Exception] = []

    def stream() -> None:
        try:
            while not stop.is_set():
                offset = 1_000 + len(appended)
                add(lake, (f"s{offset}", 0, offset, MIDNIGHT + HOUR))
                appended.append((f"s{offset}", 0, offset))
                stop.wait(0.2)
        except Exception as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        while len(appended) < 3:
            stop.wait(0.05)
            assert not failed
        [day] = remove(lake)
        while len(appended) < 6:
            stop.wait(0.05)
            assert not failed
    finally:
        stop.set()
        thread.join()
    assert not failed
    assert day.rows == 150
    assert held(lake) == sorted([*appended, *((f"x{n}", 0, n) for n in range(50))])


def test_rows_without_a_source_are_left_alone(lake: Settings) -> None:
    """No filter could name them."""
    add(lake, ("a", 0, 1, MIDNIGHT), ("a", 0, 2, MIDNIGHT), source_offset=None)
    assert remove(lake) == []


def test_topics_are_told_apart(lake: Settings) -> None:
    """An offset is one of its own topic."""
    add(lake, ("a", 0, 5, MIDNIGHT))
    add(lake, ("b", 0, 5, MIDNIGHT), ("c", 0, 6, MIDNIGHT), source_topic="another")
    add(lake, ("b", 0, 9, MIDNIGHT), ("a", 0, 6, MIDNIGHT))
    remove(lake)
    assert held(lake) == [("a", 0, 5), ("b", 0, 5), ("c", 0, 6)]
