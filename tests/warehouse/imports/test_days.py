"""What an import stores: once, whatever happens to it, and beside everything else in the tables."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from pyiceberg.io.pyarrow import schema_to_pyarrow

from tests.warehouse.imports.outboxes import add_rows, saga_rows
from tests.warehouse.planted import append, event, fill
from warehouse import history, quality
from warehouse.catalog import open_catalog
from warehouse.imports import days as days_module
from warehouse.imports.days import CanNotImportError, DayImport, open_import, ranges_of, recompute_of
from warehouse.imports.outbox import SQLiteOutbox
from warehouse.imports.source import Span
from warehouse.progress import read_progress
from warehouse.settings import CHECKOUT
from warehouse.tables import EVENTS, REJECTED_EVENTS

if TYPE_CHECKING:
    from pathlib import Path

    from warehouse.settings import Settings

NOW = datetime(2026, 11, 25, 9, tzinfo=UTC)
THREE = [date(2026, 11, day) for day in (20, 21, 22)]
CUSTOM = ("hook", "s-hook", "order.created", '{"order_id": 7}', "2026-11-21T12:00:00+00:00")


@pytest.fixture
def outbox(tmp_path: Path) -> SQLiteOutbox:
    """Three days of two sagas each, and one message of a hook's own."""
    file = tmp_path / "outbox.db"
    add_rows(file, [row for day in THREE for number in range(2) for row in saga_rows(number, str(day))])
    add_rows(file, [CUSTOM])
    return SQLiteOutbox(file)


def load(lake: Settings, outbox: SQLiteOutbox, span: Span = Span(), *, dry_run: bool = False) -> list[DayImport]:  # noqa: B008 - immutable
    """Import all days of the span."""
    with open_import(lake, outbox, span, now=NOW, dry_run=dry_run) as opened:
        return [opened.store(day) for day in opened.days()]


def rows(lake: Settings, *, columns: str = "*") -> list[tuple[Any, ...]]:
    """All that the two tables hold, in an order of its own."""
    with history.open(lake) as tables:
        return [
            row
            for name in ("events", "rejected_events")
            for row in tables.sql(f"SELECT {columns} FROM {name} ORDER BY ALL").fetchall()
        ]


def snapshots(lake: Settings) -> list[int]:
    """How many commits each table has had."""
    catalog = open_catalog(lake)
    return [len(catalog.load_table(table.identifier).snapshots()) for table in (EVENTS, REJECTED_EVENTS)]


def test_a_day_is_a_commit_and_a_rerun_is_none(lake: Settings, outbox: SQLiteOutbox) -> None:
    """Each row of the source is counted once; a rerun says that all is there, and commits nothing."""
    told = load(lake, outbox)
    assert [(one.day, one.rows, one.imported, one.unclassified) for one in told] == [
        (THREE[0], 6, 6, 0),
        (THREE[1], 7, 6, 1),
        (THREE[2], 6, 6, 0),
    ]
    assert snapshots(lake) == [3, 1]
    before = rows(lake)
    again = load(lake, outbox)
    assert [(one.rows, one.imported, one.already_there, one.unclassified) for one in again] == [
        (6, 0, 6, 0),
        (7, 0, 6, 1),
        (6, 0, 6, 0),
    ]
    assert snapshots(lake) == [3, 1]
    assert rows(lake) == before


def test_a_dry_run_counts_and_stores_nothing(lake: Settings, outbox: SQLiteOutbox) -> None:
    """The same numbers as the import that follows."""
    counted = load(lake, outbox, dry_run=True)
    assert rows(lake) == []
    assert load(lake, outbox) == counted


def test_a_day_of_many_chunks_is_one_commit(
    lake: Settings, outbox: SQLiteOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit into memory at once is written file by file, and is there all at once."""
    monkeypatch.setattr(days_module, "CHUNK_EVENTS", 4)
    seen: list[int] = []
    original = days_module.OpenedImport._commit

    def look(self: Any, table: Any, transaction: Any) -> None:
        with history.open(lake) as tables:
            [(number,)] = tables.sql("SELECT count(*) FROM events").fetchall()
        seen.append(number)
        original(self, table, transaction)

    monkeypatch.setattr(days_module.OpenedImport, "_commit", look)
    load(lake, outbox)
    assert seen == [0, 6, 6, 12, 12, 18]  # before each commit, of events and of what is refused
    assert [one.already_there for one in load(lake, outbox)] == [6, 6, 6]


def test_sagas_of_the_topic_are_left_out(lake: Settings, outbox: SQLiteOutbox) -> None:
    """Of a saga that the topic has told of, at whatever time, nothing is imported; how many is said."""
    append(lake, EVENTS, [event(1, 0, "saga_started", NOW, saga_id=f"s0-{THREE[1]}")])
    told = load(lake, outbox)
    assert [(one.imported, one.known_live, one.known_sagas) for one in told] == [(6, 0, 0), (3, 3, 1), (6, 0, 0)]
    again = load(lake, outbox)
    assert [(one.already_there, one.known_live, one.known_sagas) for one in again] == [(6, 0, 0), (3, 3, 1), (6, 0, 0)]


def test_what_was_imported_before_is_there_when_the_topic_tells_of_its_saga(
    lake: Settings, outbox: SQLiteOutbox
) -> None:
    """A saga whose service began to send is known from the topic from then on; what is there counts as there."""
    load(lake, outbox, Span(THREE[0], THREE[1]))
    append(lake, EVENTS, [event(1, 0, "saga_started", NOW, saga_id=f"s0-{THREE[0]}")])
    [told] = load(lake, outbox, Span(THREE[0], THREE[1]))
    assert (told.already_there, told.known_live) == (6, 0)


def test_the_topic_is_none_the_wiser(lake: Settings, outbox: SQLiteOutbox) -> None:
    """Neither the progress on the topic nor the windows that are closed move, and no rule is broken by what is imported."""
    fill(lake)
    before = read_progress(lake)
    load(lake, outbox, Span(THREE[1]))
    assert read_progress(lake) == before
    for table in (EVENTS, REJECTED_EVENTS):
        for day in THREE:
            assert [one for one in quality.check(lake, table, day) if not one.passed] == []


def test_quality_still_misses_the_start_of_others(lake: Settings, outbox: SQLiteOutbox) -> None:
    """An outbox of sagaz tells of no start, which is no fault; a run of the topic without one is."""
    load(lake, outbox)
    append(lake, EVENTS, [event(9, 1, "saga_completed", datetime(2026, 11, 20, 13, tzinfo=UTC))])
    broken = [one for one in quality.check(lake, EVENTS, THREE[0]) if not one.passed]
    assert [(one.rule, one.failing, one.sample[0].key["run_id"]) for one in broken] == [("run_has_start", 1, "r9")]


def test_readers_count_what_is_imported(lake: Settings, outbox: SQLiteOutbox) -> None:
    """Runs and statistics are computed from it at once, where none are stored."""
    load(lake, outbox)
    with history.open(lake) as tables:
        assert tables.sql("SELECT outcome, count(*) FROM saga_runs GROUP BY 1").fetchall() == [("completed", 6)]
        assert tables.sql("SELECT sum(completed), sum(started) FROM saga_stats").fetchall() == [(6, 0)]
        assert tables.sql("SELECT step_name, sum(completed) FROM step_stats GROUP BY 1 ORDER BY 1").fetchall() == [
            ("charge", 6),
            ("reserve", 6),
        ]


KILLED = """
import os, signal, sys
from datetime import datetime
from pathlib import Path
from pyiceberg.table import Transaction
from warehouse.imports.days import open_import
from warehouse.imports.outbox import SQLiteOutbox
from warehouse.imports.source import Span
from warehouse.settings import Settings

at, when, commit, done = int(sys.argv[1]), sys.argv[2], Transaction.commit_transaction, 0

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def commit_or_die(self):
    global done
    done += 1
    if done == at and when == "before":
        kill()
    answer = commit(self)
    if done == at:
        kill()
    return answer

Transaction.commit_transaction = commit_or_die
settings = Settings.from_environment(os.environ)
with open_import(settings, SQLiteOutbox(Path(sys.argv[3])), Span(), now=datetime.fromisoformat(sys.argv[4])) as opened:
    for day in opened.days():
        opened.store(day)
"""


@pytest.mark.parametrize(("at", "when"), [(1, "before"), (3, "after"), (4, "before"), (5, "before")])
def test_killed_in_the_middle_it_goes_on(lake: Settings, outbox: SQLiteOutbox, at: int, when: str) -> None:
    """`kill -9` before or after any of its commits: the next import does the rest, nothing is there twice, and no spool is left."""
    command = [sys.executable, "-c", KILLED, str(at), when, str(outbox), NOW.isoformat()]
    environment = lake.environment() | {"PYTHONPATH": str(CHECKOUT)}
    killed = subprocess.run(command, env=environment, cwd=CHECKOUT, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list(lake.temporary.glob("import-*"))) == 1
    told = load(lake, outbox)
    assert [one.imported + one.already_there for one in told] == [6, 6, 6]
    assert list(lake.temporary.glob("import-*")) == []
    whole = lake.__class__(home=f"{lake.home}-whole", topic="t")
    load(whole, outbox)
    assert rows(lake) == rows(whole)


def test_two_at_once(lake: Settings, outbox: SQLiteOutbox) -> None:
    """The second one waits for the first, then finds all there; both say so."""
    begun, told = threading.Event(), []

    def second() -> None:
        begun.set()
        told.append(load(lake, outbox))

    with open_import(lake, outbox, Span(), now=NOW) as opened:
        thread = threading.Thread(target=second)
        thread.start()
        begun.wait()
        first = [opened.store(day) for day in opened.days()]
        assert told == []
    thread.join()
    assert [one.imported for one in first] == [6, 6, 6]
    assert [(one.imported, one.already_there) for one in told[0]] == [(0, 6)] * 3
    assert len(rows(lake, columns="source_topic, source_offset")) == 19


def test_beside_the_stream(lake: Settings, outbox: SQLiteOutbox) -> None:
    """While others append to the same table all the time, each of theirs and each of its own is there once."""
    stop = threading.Event()
    appended: list[int] = []
    failed: list[Exception] = []

    def stream() -> None:
        schema = schema_to_pyarrow(EVENTS.schema, include_field_ids=False)
        try:
            while not stop.is_set():
                number = len(appended)
                live = event(number, 0, "saga_started", NOW, source_offset=number)
                open_catalog(lake).load_table(EVENTS.identifier).append(pa.Table.from_pylist([live], schema=schema))
                appended.append(number)
        except Exception as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        told = load(lake, outbox)
        while len(appended) < 3 and not failed:
            told += load(lake, outbox)
    finally:
        stop.set()
        thread.join()
    assert not failed
    assert sum(one.imported for one in told) == 18
    with history.open(lake) as tables:
        assert tables.sql("SELECT count(*), count(DISTINCT event_id) FROM events").fetchall() == [
            (18 + len(appended),) * 2
        ]


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        (Span(NOW.date() + timedelta(days=1)), "2026-11-26 is in the future: today is 2026-11-25, UTC"),
        (Span(THREE[0], NOW.date() + timedelta(days=9)), "2026-12-03 is in the future"),
        (Span(THREE[1], THREE[0]), "no day lies between 2026-11-21 and 2026-11-20"),
    ],
)
def test_days_that_are_none(lake: Settings, outbox: SQLiteOutbox, span: Span, reason: str) -> None:
    """Named, and nothing is stored."""
    with pytest.raises(CanNotImportError, match=reason):
        load(lake, outbox, span)
    assert rows(lake) == []


def test_what_is_to_be_recomputed() -> None:
    """Neighbouring days are one command; of today, what is closed."""
    days = [THREE[2], THREE[0], THREE[1], NOW.date()]
    assert ranges_of(days) == [(THREE[0], date(2026, 11, 23)), (NOW.date(), date(2026, 11, 26))]
    assert recompute_of(days, NOW.date()) == [
        "python -m jobs.recompute --from 2026-11-20T00:00Z --to 2026-11-23T00:00Z",
        "python -m jobs.recompute --from 2026-11-25T00:00Z",
    ]
