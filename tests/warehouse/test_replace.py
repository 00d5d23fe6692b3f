"""Replacing rows in one commit, beside a stream that appends."""

from __future__ import annotations

import fcntl
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.expressions.parser import parse
from pyiceberg.io.pyarrow import schema_to_pyarrow

from warehouse.catalog import CATALOG_NAME, open_catalog
from warehouse.replace import ReplacedMeanwhileError, replace_rows
from warehouse.tables import STEP_DURATIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from warehouse.settings import Settings

HOUR = datetime(2026, 11, 20, 10, tzinfo=UTC)
OF_HOUR = parse(f"window_start >= '{HOUR.isoformat()}' and window_start < '{(HOUR + timedelta(hours=1)).isoformat()}'")
FLINK = "flink.max-committed-checkpoint-id"


def rows(start: datetime, *counts: int) -> pa.Table:
    """One row a count, a minute after the other."""
    schema = schema_to_pyarrow(STEP_DURATIONS.schema, include_field_ids=False)
    values = [
        {
            "window_start": start + timedelta(minutes=n),
            "window_end": start + timedelta(minutes=n + 1),
            "saga_name": "order",
            "step_name": "pay",
            "phase": "step",
            "bucket": 1,
            "count": count,
        }
        for n, count in enumerate(counts)
    ]
    return pa.Table.from_pylist(values, schema=schema)


def append(lake: Settings, added: pa.Table, **properties: str) -> None:
    """As the stream does: one append, from a catalog of its own."""
    open_catalog(lake).load_table(STEP_DURATIONS.identifier).append(added, snapshot_properties=properties)


def counts(lake: Settings) -> Counter[int]:
    """How often each count is in the table."""
    return Counter(open_catalog(lake).load_table(STEP_DURATIONS.identifier).scan().to_arrow()["count"].to_pylist())


def replace(lake: Settings, new: pa.Table) -> None:
    """Replace the rows of the hour."""
    replace_rows(lake, open_catalog(lake), STEP_DURATIONS, new, OF_HOUR)


def test_rows_that_match_are_replaced_and_no_others(lake: Settings) -> None:
    """Also where the file holds both kinds, and where the partition is left without a row."""
    append(lake, rows(HOUR - timedelta(minutes=2), 1, 2, 3, 4))
    replace(lake, rows(HOUR, 30))
    assert counts(lake) == Counter([1, 2, 30])
    replace(lake, rows(HOUR))
    assert counts(lake) == Counter([1, 2])
    replace(lake, rows(HOUR, 31))
    assert counts(lake) == Counter([1, 2, 31])


def test_nothing_in_the_place_of_nothing_commits_nothing(lake: Settings) -> None:
    """No snapshot for an hour without rows, before and after."""
    append(lake, rows(HOUR - timedelta(hours=1), 1))
    replace(lake, rows(HOUR))
    assert len(open_catalog(lake).load_table(STEP_DURATIONS.identifier).snapshots()) == 1


def test_appends_meanwhile_are_all_kept_and_counted_once(lake: Settings) -> None:
    """While the stream commits three times a second, ten replacements and more: each of its rows is there once, and the last replacement's."""
    append(lake, rows(HOUR, 1, 2))
    stop, appended, failed = threading.Event(), [], []

    def stream() -> None:
        number = 1000
        try:
            while not stop.is_set():
                append(lake, rows(HOUR + timedelta(hours=1, minutes=number - 1000), number))
                appended.append(number)
                number += 1
                stop.wait(0.3)
        except Exception as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        replaced = 0
        while replaced < 10 or (len(appended) < 5 and not failed):
            replaced += 1
            replace(lake, rows(HOUR, replaced, -replaced))
    finally:
        stop.set()
        thread.join()
    assert not failed
    assert counts(lake) == Counter([replaced, -replaced, *appended])


class OvertakenCatalog(SqlCatalog):
    """A catalog before or after whose first commits something happens."""

    before: Callable[[], None] | None = None
    answers_lost = 0
    refusals = 0

    def commit_table(self, table: Any, requirements: Any, updates: Any) -> Any:
        if self.refusals:
            self.refusals -= 1
            msg = "somebody was first"
            raise CommitFailedException(msg)
        if self.before:
            before, self.before = self.before, None
            before()
        done = super().commit_table(table, requirements, updates)
        if self.answers_lost:
            self.answers_lost -= 1
            msg = "the answer was lost"
            raise CommitFailedException(msg)
        return done


@pytest.fixture
def overtaken(lake: Settings) -> OvertakenCatalog:
    """Over the same tables."""
    return OvertakenCatalog(
        CATALOG_NAME, uri=f"sqlite:///{lake.catalog_file}?timeout=30", warehouse=lake.warehouse_folder.as_uri()
    )


def test_an_append_between_reading_and_committing_is_kept(lake: Settings, overtaken: OvertakenCatalog) -> None:
    """The commit is tried again on top of it."""
    append(lake, rows(HOUR - timedelta(minutes=1), 1, 2))
    overtaken.before = lambda: append(lake, rows(HOUR + timedelta(hours=1), 7))
    replace_rows(lake, overtaken, STEP_DURATIONS, rows(HOUR, 20), OF_HOUR)
    assert counts(lake) == Counter([1, 20, 7])


def test_rows_added_meanwhile_to_what_is_replaced_are_not_lost(lake: Settings, overtaken: OvertakenCatalog) -> None:
    """They were unknown to whoever computed the new rows: nothing is replaced, and it is said."""
    append(lake, rows(HOUR, 1))
    overtaken.before = lambda: append(lake, rows(HOUR + timedelta(minutes=5), 2))
    with pytest.raises(ReplacedMeanwhileError, match="step_durations: rows that were to be replaced have changed"):
        replace_rows(lake, overtaken, STEP_DURATIONS, rows(HOUR, 10), OF_HOUR)
    assert counts(lake) == Counter([1, 2])


def test_a_commit_whose_answer_was_lost_is_not_repeated(lake: Settings, overtaken: OvertakenCatalog) -> None:
    """It is found among the snapshots when it is tried again."""
    append(lake, rows(HOUR, 1))
    overtaken.answers_lost = 1
    replace_rows(lake, overtaken, STEP_DURATIONS, rows(HOUR, 10, 11), OF_HOUR)
    assert counts(lake) == Counter([10, 11])


def test_it_goes_on_from_a_fresh_load_and_gives_up_at_last(lake: Settings, overtaken: OvertakenCatalog) -> None:
    """Where PyIceberg's own tries are spent; in the end the table is as it was, and the error is the caller's."""
    append(lake, rows(HOUR, 1))
    with overtaken.load_table(STEP_DURATIONS.identifier).transaction() as change:
        change.set_properties({"commit.retry.num-retries": "0"})
    overtaken.refusals = 4
    replace_rows(lake, overtaken, STEP_DURATIONS, rows(HOUR, 10), OF_HOUR)
    assert counts(lake) == Counter([10])
    overtaken.refusals = 5
    with pytest.raises(ReplacedMeanwhileError):
        replace_rows(lake, overtaken, STEP_DURATIONS, rows(HOUR, 11), OF_HOUR)
    assert counts(lake) == Counter([10])


def test_a_second_writer_waits_and_says_so(lake: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """One writer a table at a time."""
    append(lake, rows(HOUR, 1))
    with (lake.catalog_file.parent / "step_durations.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=replace, args=(lake, rows(HOUR, 10)))
        thread.start()
        deadline = time.monotonic() + 30
        while "waiting for it" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert counts(lake) == Counter([1])
    thread.join()
    assert counts(lake) == Counter([10])


def test_what_flinks_sink_noted_is_still_among_the_ancestors(lake: Settings) -> None:
    """A restored sink walks from the current snapshot to its parents until one names the last checkpoint it committed."""
    append(lake, rows(HOUR - timedelta(minutes=1), 1, 2), **{FLINK: "41"})
    append(lake, rows(HOUR, 3), **{FLINK: "42"})
    replace(lake, rows(HOUR, 20))
    table = open_catalog(lake).load_table(STEP_DURATIONS.identifier)
    noted, snapshot = [], table.current_snapshot()
    while snapshot:
        noted.append(snapshot.summary[FLINK] if snapshot.summary else None)
        snapshot = table.snapshot_by_id(snapshot.parent_snapshot_id) if snapshot.parent_snapshot_id else None
    assert [note for note in noted if note] == ["42", "41"]
    assert noted[0] is None
