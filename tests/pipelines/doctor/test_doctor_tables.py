"""A catalog that is damaged or locked, tables that are not as declared: found and told with their cure."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from pyiceberg.types import StringType

from pipelines.doctor import tables
from pipelines.doctor.findings import Level
from tests.pipelines.doctor.conftest import found, look, make_tables, store
from warehouse.catalog import open_catalog
from warehouse.tables import REJECTED_EVENTS, SAGA_STATS, STEP_STATS

if TYPE_CHECKING:
    from warehouse.settings import Settings


@pytest.mark.parametrize(("begin", "end"), [(0, 100), (4096, None)])
def test_a_damaged_catalog(local: Settings, begin: int, end: int | None) -> None:
    """The head overwritten, or the pages behind it; the tables are then left alone."""
    make_tables(local)
    data = bytearray(local.catalog_file.read_bytes())
    end = end or len(data)
    data[begin:end] = b"\xa5" * (end - begin)
    local.catalog_file.write_bytes(data)
    one = found(local, "catalog", Level.FAULT, "is damaged: ", "bring back a copy, or start afresh: stop the job, move")
    assert str(local.catalog_file) in one.what
    assert local.catalog_file.read_bytes() == data


def test_a_locked_catalog(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locked by another connection for good: says for how long it was waited, and who has it open."""
    make_tables(local)
    monkeypatch.setattr(tables, "LOCK_SECONDS", 1)
    with closing(sqlite3.connect(local.catalog_file)) as other:
        other.execute("BEGIN IMMEDIATE")
        what = "has been locked for 1 s: nothing can be committed"
        one = found(local, "catalog", Level.FAULT, what, "stop what holds it")
        assert f"pid {os.getpid()}" in one.cure
    assert look(local)[0] == 0


def test_a_catalog_that_is_not_in_wal_mode(local: Settings) -> None:
    """A reader would hold up the job."""
    make_tables(local)
    with closing(sqlite3.connect(local.catalog_file)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    found(local, "catalog", Level.WARNING, "is in mode delete, not WAL", "sagascope analyze")


def test_tables_that_are_not_as_declared(local: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absent, without a column, with a column of another type, without its metadata, never tidied: each by name."""
    store(local, 0)
    store(local, 1)
    with closing(open_catalog(local)) as catalog:
        catalog.drop_table(REJECTED_EVENTS.identifier)
        with catalog.load_table(STEP_STATS.identifier).update_schema() as change:
            change.delete_column("p99_ms")
        with catalog.load_table(SAGA_STATS.identifier).update_schema(allow_incompatible_changes=True) as change:
            change.delete_column("max_ms")
        with catalog.load_table(SAGA_STATS.identifier).update_schema() as change:
            change.add_column("max_ms", StringType())
        durations = catalog.load_table(("saga", "step_durations")).metadata_location
    os.unlink(durations.removeprefix("file://"))  # noqa: PTH108 - a URI's path
    monkeypatch.setattr(tables, "SNAPSHOTS_KEPT", 1)
    found(local, "tables", Level.WARNING, "rejected_events is not there", "makes it")
    found(local, "tables", Level.WARNING, "step_stats lacks columns p99_ms$", "adds them")
    found(local, "tables", Level.FAULT, "saga_stats: max_ms is string, not long$", "start afresh")
    found(local, "tables", Level.FAULT, "step_durations is in the catalog, but can't be read", "from a copy")
    found(local, "tables", Level.WARNING, "events: 2 snapshots, .* upkeep does not run", "sagascope maintain expire")
