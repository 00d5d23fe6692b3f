"""Compaction on real tables: what is killed, disturbed or refused, and what readers and writers notice of it."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg
import msgspec
import pytest
from pyiceberg.expressions.parser import parse
from pyiceberg.io.pyarrow import schema_to_pyarrow

from jobs import compaction, java_iceberg
from jobs.flink import prepare_jvm
from jobs.upkeep import ACTIONS, expire, upkeep
from tests.warehouse.planted import NOON, append, events_of, fill, paths, tamper
from warehouse import history, maintenance, windows
from warehouse.catalog import open_catalog
from warehouse.replace import replace_rows
from warehouse.tables import EVENTS, STATISTICS, TABLES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from warehouse.maintenance import Outcome
    from warehouse.settings import Settings
    from warehouse.tables import Table

pytestmark = [pytest.mark.flink, pytest.mark.timeout(600)]

RUNS = 4
LATER = NOON + timedelta(days=2)
DIE = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
"""What is put in the place of a function, for the process to end there as by `kill -9`."""


@pytest.fixture
def small(local: Settings) -> Settings:
    """Four small files of one day in `events`, and two of each statistic."""
    for run in range(RUNS):
        append(local, EVENTS, events_of(run, NOON + timedelta(minutes=run)))
    for table in STATISTICS:
        with history.open(local) as tables:
            rows = tables.sql(f'SELECT * EXCLUDE "open" FROM {table.name}').to_arrow_table().to_pylist()
        for some in (rows[::2], rows[1::2]):
            append(local, table, some)
    return local


def do(
    settings: Settings, *actions: str, tables: tuple[Table, ...] = (EVENTS,), now: datetime = LATER
) -> list[Outcome]:
    """Upkeep in this process."""
    prepare_jvm(settings)
    return list(upkeep(settings, now, actions or ACTIONS, tables))


def run(settings: Settings, *actions: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Upkeep of all tables in a process of its own; `before` may change its modules."""
    code = f"import sys\nsys.argv[1:] = {list(actions)}\nimport jobs.upkeep\n{before}\njobs.upkeep.main()"
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | settings.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def rows_of(settings: Settings, table: Table = EVENTS) -> list[dict[str, object]]:
    """All rows, in order."""
    with closing(open_catalog(settings)) as catalog:
        rows = catalog.load_table(table.identifier).scan().to_arrow()
    found: list[dict[str, object]] = rows.sort_by([(name, "ascending") for name in table.key]).to_pylist()
    return found


def assert_whole(settings: Settings, before: list[dict[str, object]]) -> None:
    """Every row is read once, by PyIceberg and by DuckDB, and the statistics are equal to the events'."""
    assert rows_of(settings) == before
    with history.open(settings) as tables:
        assert tables.sql("SELECT count(*), count(DISTINCT event_id) FROM events").fetchall() == [(len(before),) * 2]
    comparison = windows.compare(settings)
    assert comparison.is_whole
    assert all(one.rows for one in comparison.tables)


def test_small_files_become_one_and_a_reader_reads_on(small: Settings) -> None:
    """The rows are the same; what a reader has opened stays for as long as snapshots are kept, and then goes."""
    before, files = rows_of(small), paths(small, EVENTS)
    with history.open(small) as reader:
        outcomes = do(small, tables=TABLES, now=datetime.now(UTC))
        assert [outcome.reason for outcome in outcomes if outcome.reason] == []
        [compacted] = [one for one in outcomes if (one.action, one.table) == ("compact", "events")]
        assert (compacted.files_before, compacted.files_after, compacted.left) == (RUNS, 1, 0)
        assert compacted.bytes_after < compacted.bytes_before
        assert reader.sql("SELECT count(*) FROM events").fetchall() == [(len(before),)]
    assert all(file.exists() for file in files)
    assert_whole(small, before)
    with closing(open_catalog(small)) as catalog:
        snapshot = catalog.load_table(EVENTS.identifier).current_snapshot()
        assert snapshot is not None
        assert snapshot.summary is not None
        assert snapshot.summary.operation.value == "replace"
        [task] = catalog.load_table(EVENTS.identifier).scan("timestamp >= '2026-11-20T12:02:00+00:00'").plan_files()
        assert task.file.record_count == len(before)
        assert (
            list(catalog.load_table(EVENTS.identifier).scan("timestamp >= '2026-11-20T12:10:00+00:00'").plan_files())
            == []
        )
    append(small, EVENTS, events_of(RUNS, NOON))  # with the snapshot that replaced them goes what it replaced
    before = rows_of(small)
    kept = timedelta(minutes=small.snapshots_kept_minutes + 1)
    assert [one.reason for one in expire(small, datetime.now(UTC) + kept)] == [""] * len(TABLES)
    assert not any(file.exists() for file in files)
    assert rows_of(small) == before
    assert [one.files_after for one in do(small, "compact", tables=TABLES)] == [1, 0, 1, 1, 1, 0, 0], (
        "nothing is left to do"
    )


def test_a_dry_run_changes_nothing(small: Settings) -> None:
    """It says what would be done, and leaves every file as it is; no JVM is started for it."""
    state = sorted((file, file.stat().st_mtime_ns) for file in small.warehouse_folder.rglob("*") if file.is_file())
    kept = msgspec.structs.replace(small, events_kept_days=7, longest_run_days=7)
    without_jvm = "import pyflink.java_gateway\npyflink.java_gateway.get_gateway = None"
    done = run(kept, "--dry-run", before=without_jvm)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["action"], line["table"]) for line in lines] == [
        (action, table.name) for action in ACTIONS for table in TABLES
    ]
    assert all(line["dry_run"] for line in lines)
    compacted = lines[len(TABLES)]
    assert (lines[0]["rows_deleted"], compacted["files_before"], compacted["files_after"]) == (0, RUNS, 1)
    assert state == sorted(
        (file, file.stat().st_mtime_ns) for file in small.warehouse_folder.rglob("*") if file.is_file()
    )


KILLED = {
    "planning": f"import warehouse.maintenance as m\ndef die(*a): {DIE}\nm.plan_compaction = die",
    "writing": (
        "import pyarrow.parquet as pq\nwrite = pq.ParquetWriter.write_table\n"
        f"def die(*a): write(*a); {DIE}\npq.ParquetWriter.write_table = die"
    ),
    "before the commit": f"import jobs.compaction as c\ndef die(*a): {DIE}\nc._commit = die",
    "in the commit": (
        # The JVM is killed with it, as it has written its metadata and has not swapped the catalog's pointer yet: it waits there.
        "import jobs.compaction as c, os, signal, sqlite3, threading, time, psutil\ncommit = c._commit\n"
        "def die(table, *a):\n"
        "    from warehouse.settings import Settings\n"
        "    settings = Settings.from_environment(os.environ)\n"
        "    lock = sqlite3.connect(settings.catalog_file, isolation_level=None); lock.execute('BEGIN IMMEDIATE')\n"
        "    metadata = settings.warehouse_folder / 'saga' / 'events' / 'metadata'\n"
        "    known = len(list(metadata.glob('*.metadata.json')))\n"
        "    def watch():\n"
        "        while len(list(metadata.glob('*.metadata.json'))) == known: time.sleep(0.01)\n"
        "        [child.kill() for child in psutil.Process().children(recursive=True)]\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    threading.Thread(target=watch).start()\n"
        "    commit(table, *a)\n"
        "c._commit = die"
    ),
    "after the commit": f"import jobs.compaction as c\ncommit = c._commit\ndef die(*a): commit(*a); {DIE}\nc._commit = die",
}


@pytest.mark.parametrize("point", KILLED)
def test_killed_in_the_middle_of_a_compaction(small: Settings, point: str) -> None:
    """Readable, no row lost or doubled, parity holds; the next one does the work, and what was left is an orphan at last."""
    before = rows_of(small)
    killed = run(small, "compact", "--table", "events", before=KILLED[point])
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert_whole(small, before)
    assert len(paths(small, EVENTS)) == (1 if point == "after the commit" else RUNS)

    [compacted] = do(small, "compact")
    assert (compacted.files_after, compacted.reason) == (1, "")
    now = datetime.now(UTC) + timedelta(hours=small.orphans_kept_hours, minutes=1)
    young = do(small, "orphans", now=datetime.now(UTC) + timedelta(hours=1))
    assert young[0].orphan_files == 0, "it may be on its way into a commit"
    append(
        small, EVENTS, [{**before[0], "event_id": "later"}]
    )  # with the snapshot that replaced them goes what it replaced
    [_, orphans] = do(small, "expire", "orphans", now=now)
    left = {"writing": 1, "before the commit": 1, "in the commit": 1 + RUNS + 3}  # manifests, their list, and metadata
    assert orphans.orphan_files == left.get(point, 0)
    with closing(open_catalog(small)) as catalog:
        catalog.load_table(EVENTS.identifier).delete("event_id = 'later'")
    [again] = do(small, "orphans", now=now)
    assert again.orphan_files == 0
    assert_whole(small, before)
    assert len(paths(small, EVENTS)) == 1


def test_killed_while_it_deletes(small: Settings) -> None:
    """Orphans, one by one; and the files of expired snapshots, after the commit: what is left is an orphan."""
    before = rows_of(small)
    data = small.warehouse_folder / "saga" / "events" / "data"
    old = (NOON - timedelta(days=2)).timestamp()
    for number in range(3):
        (data / f"stray-{number}.parquet").write_bytes(b"x")
        os.utime(data / f"stray-{number}.parquet", (old, old))
    die = f"import pathlib\nunlink = pathlib.Path.unlink\ndef die(*a, **k): unlink(*a, **k); {DIE}\npathlib.Path.unlink = die"
    assert run(small, "orphans", before=die).returncode == -signal.SIGKILL
    assert len(list(data.glob("stray-*"))) == 2
    assert_whole(small, before)

    for path in data.glob("stray-*"):
        path.unlink()

    [compacted] = do(small, "compact")
    assert compacted.files_after == 1
    replaced = [str(path) for path in data.rglob("*.parquet") if "compacted" not in path.name]
    append(small, EVENTS, events_of(RUNS, NOON))
    before = rows_of(small)
    watch = (
        "import os, pathlib, psutil, threading, time, signal\nfrom datetime import datetime, timedelta\n"
        f"first = [pathlib.Path(p) for p in {replaced}]\n"
        "def watch():\n"
        "    while all(path.exists() for path in first): time.sleep(0.0001)\n"
        "    [child.kill() for child in psutil.Process().children(recursive=True)]\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "threading.Thread(target=watch, daemon=True).start()\n"
        "expire = jobs.upkeep.expire\n"
        "jobs.upkeep.expire = lambda s, now, *a, **k: expire(s, now + timedelta(days=1), *a, **k)\n"
    )
    killed = run(small, "expire", before=watch)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert rows_of(small) == before
    [orphans] = do(small, "orphans", now=datetime.now(UTC) + timedelta(days=2))
    assert orphans.reason == ""
    assert not any(os.path.exists(path) for path in replaced)  # noqa: PTH110 - as they were spelt
    assert rows_of(small) == before


def test_a_recompute_and_the_stream_beside_it(small: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a recompute replaced since the files were read is not brought back; what was appended is there, too."""
    write = maintenance.write_sorted
    extra = events_of(RUNS, NOON + timedelta(minutes=RUNS))

    def meanwhile(settings: Settings, table: Table, schema: object, group: maintenance.Group) -> Path:
        output = write(settings, table, schema, group)  # type: ignore[arg-type]
        with closing(open_catalog(settings)) as catalog:
            nothing = schema_to_pyarrow(EVENTS.schema, include_field_ids=False).empty_table()
            replace_rows(settings, catalog, EVENTS, nothing, parse("run_id = 'r0'"))
        append(settings, EVENTS, extra)
        return output

    monkeypatch.setattr(maintenance, "write_sorted", meanwhile)
    [left] = do(small, "compact")
    assert (left.left, left.reason) == (RUNS, "")
    runs = sorted({str(row["run_id"]) for row in rows_of(small)})
    assert runs == [f"r{number}" for number in range(1, RUNS + 1)]
    assert not list(paths(small, EVENTS)[0].parent.glob("compacted-*"))
    monkeypatch.undo()

    monkeypatch.setattr(compaction, "load_java_table", appending(small, extra=events_of(RUNS + 1, NOON)))
    [compacted] = do(small, "compact")
    assert (compacted.left, compacted.files_after, compacted.reason) == (0, 2, "")
    assert sorted({str(row["run_id"]) for row in rows_of(small)}) == [*runs, f"r{RUNS + 1}"]


def appending(settings: Settings, extra: list[dict[str, object]]) -> Callable[[object, Table], object]:
    """Loads the table, and then the stream commits: what was loaded is behind."""

    def load(catalog: object, table: Table) -> object:
        loaded = java_iceberg.load_java_table(catalog, table)
        append(settings, EVENTS, extra)
        return loaded

    return load


def test_two_at_once(small: Settings) -> None:
    """One of them does it, the other leaves it; no row is lost or doubled."""
    before = rows_of(small)
    prepare_jvm(small)
    both = threading.Barrier(2)
    outcomes: list[Outcome] = []
    write = maintenance.write_sorted

    def together(*given: object) -> Path:
        output = write(*given)  # type: ignore[arg-type]
        both.wait(60)
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maintenance, "write_sorted", together)
        threads = [threading.Thread(target=lambda: outcomes.extend(do(small, "compact"))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [one.reason for one in outcomes] == ["", ""]
    assert sorted(one.left for one in outcomes) == [0, RUNS]
    assert len(paths(small, EVENTS)) == 1
    assert_whole(small, before)


def test_a_damaged_file_keeps_only_its_own_partition_back(local: Settings) -> None:
    """It is named, its files stay, the other days are compacted, and the job fails."""
    for number in range(4):
        append(local, EVENTS, events_of(number, NOON + timedelta(days=number % 2)))
    tamper(local, EVENTS, lambda rows: rows.pop())
    [outcome] = do(local, "compact", now=LATER + timedelta(days=1))
    assert (outcome.files_before, outcome.files_after) == (4, 3)
    assert "hold 7 rows, and by the table's metadata 8" in outcome.reason


def test_no_room(small: Settings) -> None:
    """A file can't be written to its end: said in a line, nothing is left of it, every row is there.

    A limit of the size of a file takes the same way as a full disk, a write that fails, and needs neither root nor a file
    system of its own.
    """
    before = rows_of(small)
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))"
    done = run(small, "compact", "--table", "events", before=limit)
    assert done.returncode == 1
    [line] = map(json.loads, done.stdout.splitlines())
    assert (line["status"], line["files_before"]) == ("failed", 0)
    assert "File too large" in line["reason"]
    assert f"make some in {small.root}" in line["reason"]
    assert_whole(small, before)
    assert not list(small.warehouse_folder.rglob("compacted-*"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_locked_catalog(small: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit gives up after its time-out and says so; the next one does it."""
    monkeypatch.setattr(java_iceberg, "BUSY_TIMEOUT_SECONDS", 1)
    before = rows_of(small)
    with closing(sqlite3.connect(small.catalog_file, isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        [outcome] = do(small, "compact")
    assert "lock" in outcome.reason
    assert_whole(small, before)
    [outcome] = do(small, "compact")
    assert (outcome.files_after, outcome.reason) == (1, "")


def test_what_it_is_asked_is_judged_before_anything_is_done(local: Settings) -> None:
    """An unknown action, an unknown table, a negative number of days: each is named, with what is allowed."""
    assert "'tidy' is no action; the actions are retain, compact, expire, orphans" in run(local, "tidy").stderr
    assert "invalid choice: 'event'" in run(local, "--table", "event").stderr
    env = os.environ | local.environment() | {"SAGASCOPE_EVENTS_KEPT_DAYS": "-1"}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.upkeep"], env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert "SAGASCOPE_EVENTS_KEPT_DAYS='-1'" in json.loads(done.stdout)["reason"]


@pytest.mark.filterwarnings(
    "ignore:AssetExecutionContext.run_id is deprecated", "ignore:.*in preview"
)  # its own Pipes client's
def test_dagster_hears_each_line(local: Settings) -> None:
    """Through Pipes, as it stands on standard output."""
    fill(local)

    @dg.asset
    def tidy(context, pipes: dg.ResourceParam[dg.PipesSubprocessClient]):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202 - Dagster reads them
        done = pipes.run(
            context=context,
            command=[sys.executable, "-m", "jobs.upkeep", "expire", "orphans", "--dry-run", "--table", "events"],
            env=local.environment(),
        )
        heard.extend(done.get_custom_messages())
        return dg.MaterializeResult()

    heard: list[dict[str, object]] = []
    assert dg.materialize([tidy], resources={"pipes": dg.PipesSubprocessClient()}).success
    assert [(line["job"], line["status"], line["action"], line["table"]) for line in heard] == [
        ("upkeep", "finished", "expire", "events"),
        ("upkeep", "finished", "orphans", "events"),
    ]
