"""The catalog: made once, evolved in place, shared with Flink."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from pyiceberg.transforms import DayTransform, HourTransform

from warehouse.catalog import CatalogError, open_catalog, row_count
from warehouse.settings import Settings
from warehouse.tables import EVENTS, REJECTED_EVENTS, STEP_STATS, TABLES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

import msgspec

from sagascope.events import SagaEvent


def test_tables_are_made_once_and_partitioned(lake: Settings) -> None:
    """Both tables exist with their partitioning, and making them again changes nothing."""
    catalog = open_catalog(lake)
    before = [catalog.load_table(table.identifier).metadata_location for table in TABLES]
    open_catalog(lake)
    assert before == [catalog.load_table(table.identifier).metadata_location for table in TABLES]
    [events] = catalog.load_table(EVENTS.identifier).spec().fields
    [stats] = catalog.load_table(STEP_STATS.identifier).spec().fields
    assert (events.name, events.transform) == ("timestamp_day", DayTransform())
    assert (stats.name, stats.transform) == ("window_start_hour", HourTransform())


def test_a_column_that_a_newer_version_has_is_added(lake: Settings, monkeypatch: object) -> None:
    """A table from before gets the missing column, and keeps its rows and its other columns' ids."""
    catalog = open_catalog(lake)
    table = catalog.load_table(EVENTS.identifier)
    with table.update_schema() as update:
        update.delete_column("trace_id")
    open_catalog(lake)
    assert "trace_id" in catalog.load_table(EVENTS.identifier).schema().column_names
    assert catalog.load_table(EVENTS.identifier).schema().find_field("service").field_id == 22


def test_every_field_of_the_event_is_a_column() -> None:
    """The table of events holds all of an event, in its order, and then where it came from."""
    columns = [column.name for column in EVENTS.columns]
    fields = list(SagaEvent.__struct_fields__)
    assert [name for name in columns if not name.startswith("source_")] == fields
    assert columns[len(fields) :] == ["source_topic", "source_partition", "source_offset"]
    required = {f.encode_name for f in msgspec.structs.fields(SagaEvent) if f.required}
    assert required <= {column.name for column in EVENTS.columns if column.required}


def test_openers_share_the_catalog(tmp_path: Path) -> None:
    """Eight threads that open and make the same new catalog at once all succeed; the file is in WAL mode."""
    settings = Settings(home=str(tmp_path / "home"))
    failures: list[BaseException] = []

    def opening() -> None:
        try:
            open_catalog(settings)
        except BaseException as error:  # noqa: BLE001 - seen by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=opening) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with closing(sqlite3.connect(settings.catalog_file)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_row_count_is_that_of_the_newest_snapshot(lake: Settings, add_events: Callable[..., None]) -> None:
    """Nothing before the first commit, then what was appended."""
    from datetime import UTC, datetime

    catalog = open_catalog(lake)
    assert row_count(catalog, EVENTS) == 0
    add_events(datetime(2026, 11, 20, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC))
    assert row_count(catalog, EVENTS) == 2


def test_a_damaged_catalog_is_named_with_its_cure(lake: Settings) -> None:
    """One error with the file and what to do, not SQLite's own."""
    for file in lake.catalog_file.parent.glob("catalog.db*"):  # the log of writes, too, from which SQLite would mend it
        file.unlink()
    lake.catalog_file.write_bytes(b"no database" * 1_000)
    with pytest.raises(CatalogError, match=r"catalog.db can't be opened \(file is not a database\)"):
        open_catalog(lake)


def test_a_catalog_that_stays_locked_is_named_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By somebody else, for longer than anybody waits."""
    settings = Settings(home=str(tmp_path / "home"))
    open_catalog(settings).close()
    monkeypatch.setattr("warehouse.catalog.BUSY_TIMEOUT_SECONDS", 1)
    with closing(sqlite3.connect(settings.catalog_file)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CatalogError, match=r"catalog.db can't be opened \(database is locked\): .* than 1 s; stop"):
            open_catalog(settings)


def test_a_reader_does_not_wait_for_a_writer(lake: Settings) -> None:
    """A commit that takes its time, or hangs, keeps nobody from asking."""
    with closing(sqlite3.connect(lake.catalog_file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        open_catalog(lake).close()


def test_a_catalog_of_another_version_is_named_with_its_cure(lake: Settings) -> None:
    """Its tables have other columns."""
    with closing(sqlite3.connect(lake.catalog_file)) as other, other:
        other.execute("ALTER TABLE iceberg_tables RENAME COLUMN metadata_location TO location")
    with pytest.raises(CatalogError, match=r"no such column.* made by another version"):
        open_catalog(lake)


@pytest.mark.parametrize("lost", ["file", "row"])
def test_a_lost_catalog_is_no_empty_history(lake: Settings, add_events: Callable[..., None], lost: str) -> None:
    """Tables made anew beside the old ones' files would hide them, until the upkeep deletes what no table knows."""
    from datetime import UTC, datetime

    add_events(datetime(2026, 11, 20, tzinfo=UTC))
    if lost == "file":
        for file in lake.catalog_file.parent.glob("catalog.db*"):
            file.unlink()
    else:
        with closing(sqlite3.connect(lake.catalog_file)) as connection, connection:
            connection.execute("DELETE FROM iceberg_tables WHERE table_name = 'events'")
    said = r"catalog.db does not know table events, whose rows are in .*/saga/events/data: .*; restore it from a backup, or move"
    for _ in range(2):
        with pytest.raises(CatalogError, match=said):
            open_catalog(lake)


def metadata_file(lake: Settings) -> Path:
    """What the catalog says of `events` is in there."""
    from pathlib import Path

    return Path(open_catalog(lake).load_table(EVENTS.identifier).metadata_location.removeprefix("file://"))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (None, r"\(.*Failed to open local file .*metadata.json.*\): restore the file"),
        (b"{", r"\(Invalid JSON: EOF while parsing an object at line 1 column 1\): restore the file"),
        ("format-version", r"\(Input tag '4' .*\): it was written by a newer version; update"),
    ],
)
def test_metadata_that_can_t_be_read_is_named_with_its_cure(
    lake: Settings, written: bytes | str | None, said: str
) -> None:
    """Gone, damaged, or of a format that is newer than this program."""
    file = metadata_file(lake)
    if written is None:
        file.unlink()
    elif isinstance(written, bytes):
        file.write_bytes(written)
    else:
        file.write_bytes(msgspec.json.encode(msgspec.json.decode(file.read_bytes()) | {written: 4}))
    with pytest.raises(CatalogError, match=f"^the metadata of table events can't be read {said}"):
        open_catalog(lake)


@pytest.mark.parametrize("kept", [None, 1, 500])
def test_a_damaged_list_of_files_is_named_with_its_cure(
    lake: Settings, add_events: Callable[..., None], kept: int | None
) -> None:
    """Of the table alone whose it is; also by quality."""
    from datetime import UTC, date, datetime
    from pathlib import Path

    from warehouse import history, quality

    add_events(datetime(2026, 11, 20, tzinfo=UTC))
    snapshot = open_catalog(lake).load_table(EVENTS.identifier).current_snapshot()
    assert snapshot
    assert snapshot.manifest_list
    file = Path(snapshot.manifest_list.removeprefix("file://"))
    if kept is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CatalogError, match=r"^the metadata of table events can.t be read"), history.open(lake):
        pytest.fail("it can't be opened")
    with pytest.raises(CatalogError, match=r"^the metadata of table events can.t be read"):
        quality.check(lake, EVENTS, date(2026, 11, 20))
    assert quality.check(lake, REJECTED_EVENTS, date(2026, 11, 20))
