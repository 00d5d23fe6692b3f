"""What expiry takes and what it leaves, on real tables, with Iceberg's own Java code as the writer and as the judge."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pytest
from pyiceberg.io.pyarrow import schema_to_pyarrow

from jobs.flink import prepare_jvm
from jobs.java_iceberg import load_java_table, open_java_catalog
from jobs.upkeep import expire
from warehouse import history
from warehouse.catalog import TABLE_PROPERTIES, open_catalog
from warehouse.maintenance import FLINK_MARK, Outcome
from warehouse.tables import EVENTS, REJECTED_EVENTS, TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyiceberg.table import Table as StoredTable

    from warehouse.settings import Settings

pytestmark = [pytest.mark.flink, pytest.mark.timeout(600)]

DAY = datetime(2026, 11, 20, tzinfo=UTC)
JOB = "a" * 32
TOGETHER = 20
"""Appends in one commit of the catalog, where thousands are made: see Stream.append."""
BYTES_A_DATA_FILE = 500
"""At most so much do the manifests grow for each data file that the table gains: a commit without expiry adds 35 KB."""
TIMES = re.compile(r'(?<="timestamp-ms":)\d+|(?<="last-updated-ms":)\d+')


class Stream:
    """Commits to `events` as the job does: Iceberg's Java append, with the marks of Flink's sink.

    Flink itself is left out, because it commits once a second at most.
    """

    def __init__(self, settings: Settings) -> None:
        from pyflink.java_gateway import get_gateway

        self.settings = settings
        with open_catalog(settings) as catalog:
            stored = catalog.load_table(EVENTS.identifier)
            stored.append(one_row(stored, "first"))
        self.gateway = get_gateway()
        self.jvm = self.gateway.jvm
        self.catalog = open_java_catalog(settings)
        self.table = load_java_table(self.catalog, EVENTS)
        self.file = self.table.currentSnapshot().addedDataFiles(self.table.io()).iterator().next()
        self.row = Path(self.file.location().removeprefix("file://"))
        # What Iceberg reads in parallel it polls for every 10 ms, several times a commit: here it reads in line.
        guava = self.jvm.org.apache.iceberg.relocated.com.google.common.util.concurrent
        self.in_line = guava.MoreExecutors.newDirectExecutorService()
        self.commits = 0

    @property
    def folder(self) -> Path:
        """Where the table's files are."""
        return self.settings.warehouse_folder / "saga" / "events"

    def append(self, count: int, together: int = 1) -> None:
        """Commit `count` times one file of one row; each commit has its snapshot, manifest list and manifests.

        With `together` so many of them swap the catalog's pointer at once: that alone, a metadata file each and some
        polling, would take minutes.
        """
        for _ in range(count // together):
            transaction = self.table.newTransaction()
            for _ in range(together):
                self.commits += 1
                path = self.row.with_name(f"row-{self.commits}.parquet")
                path.hardlink_to(self.row)  # its own name: if one were deleted in error, reading it would fail
                file = self.jvm.org.apache.iceberg.DataFiles.builder(self.table.spec()).copy(self.file)
                append = transaction.newAppend().scanManifestsWith(self.in_line)
                append.appendFile(file.withPath(f"file://{path}").build())
                append.set("flink.job-id", JOB).set("flink.operator-id", "sink").set(FLINK_MARK, str(self.commits))
                append.commit()
            transaction.commitTransaction()

    def committed_checkpoint(self) -> int:
        """What a job that resumes is told by Flink's sink: the checkpoint that is committed already, or -1."""
        self.table.refresh()
        words = [self.jvm.java.lang.String] * 3
        kinds = self.gateway.new_array(self.jvm.java.lang.Class, 4)
        java_class = self.jvm.java.lang.Class
        kinds[0] = java_class.forName("org.apache.iceberg.Table")
        for number in range(1, 1 + len(words)):
            kinds[number] = java_class.forName("java.lang.String")
        method = java_class.forName("org.apache.iceberg.flink.sink.SinkUtil").getDeclaredMethod(
            "getMaxCommittedCheckpointId", kinds
        )
        method.setAccessible(True)
        arguments = self.gateway.new_array(self.jvm.java.lang.Object, 4)
        arguments[0], arguments[1], arguments[2], arguments[3] = self.table, JOB, "sink", "main"
        return int(method.invoke(None, arguments))

    def close(self) -> None:
        """End the connections to the catalog."""
        self.in_line.shutdown()
        self.catalog.close()


class Disk(msgspec.Struct, frozen=True):
    """What the table's metadata takes."""

    snapshots: int
    manifests: int
    metadata_bytes: int
    files: int
    total_bytes: int


@pytest.fixture
def stream(local: Settings) -> Iterator[Stream]:
    """A table with one row that PyIceberg wrote, and a writer to it."""
    prepare_jvm(local)
    writer = Stream(local)
    yield writer
    writer.close()


def test_four_thousand_commits_take_no_more_than_one_thousand(stream: Stream) -> None:
    """Snapshots, manifests, metadata and files stay as they are, a commit takes no longer, and every row is read.

    Without expiry the same commits add to all of them.
    """
    stream.append(200, TOGETHER)
    first = disk(stream)
    stream.append(200, TOGETHER)
    second = disk(stream)
    assert second.snapshots == first.snapshots + 200
    assert second.metadata_bytes > 1.8 * first.metadata_bytes
    assert second.files > 1.8 * first.files
    assert second.total_bytes > 1.8 * first.total_bytes

    keep_newest(stream, 100)
    seconds: list[float] = []
    samples: list[Disk] = []
    while stream.commits < 4_000:
        start = time.perf_counter()
        stream.append(100, TOGETHER)
        seconds.append(time.perf_counter() - start)
        samples.append(disk(stream))
        [outcome] = [one for one in keep_newest(stream, 100) if one.table == "events"]
        assert outcome.reason == ""
        assert outcome.snapshots_expired >= 100
    early, late = (
        {field: max(getattr(sample, field) for sample in some) for field in Disk.__struct_fields__}
        for some in (samples[4:9], samples[-5:])  # the first ones still see metadata files of before the expiry
    )
    for field in ("snapshots", "metadata_bytes", "files"):
        assert late[field] <= 1.1 * early[field], f"{field}: {early[field]} at 1,000 commits, {late[field]} at 4,000"
    # Manifests name every live data file, which is no matter of commits: that much they may grow.
    assert late["total_bytes"] <= early["total_bytes"] + 3_000 * BYTES_A_DATA_FILE, f"{early} became {late}"
    assert all(sample.manifests <= int(TABLE_PROPERTIES["commit.manifest.min-count-to-merge"]) for sample in samples)
    assert min(seconds[-10:]) < 2 * min(seconds[:10])

    with open_catalog(stream.settings) as catalog:
        assert catalog.load_table(EVENTS.identifier).scan().to_arrow().num_rows == 4_001
    with history.open(stream.settings) as tables:
        assert tables.sql("SELECT count(*) FROM events").fetchall() == [(4_001,)]


def test_what_a_resuming_job_looks_for_stays(stream: Stream) -> None:
    """However many recomputes follow it, and however old it is: without it the job would store its rows again."""
    stream.append(5)
    for number in range(3):
        overwrite(stream, f"recomputed {number}")
    assert stream.committed_checkpoint() == 5
    expire(stream.settings, datetime.now(UTC) + timedelta(days=400))
    assert stream.committed_checkpoint() == 5
    assert disk(stream).snapshots == 1 + 3 * 2  # each of them a delete and an append

    stream.append(1)
    expire(stream.settings, datetime.now(UTC) + timedelta(days=400))
    assert stream.committed_checkpoint() == 6
    assert disk(stream).snapshots == 1


def test_iceberg_alone_would_take_what_a_resuming_job_looks_for(stream: Stream) -> None:
    """Its own rule, by age, leaves the sink at a loss: the law above is not kept by itself."""
    stream.append(5)
    overwrite(stream, "recomputed")
    assert stream.committed_checkpoint() == 5
    stream.table.expireSnapshots().expireOlderThan(int(time.time() * 1000) + 1_000).commit()
    assert stream.committed_checkpoint() == -1


def test_who_reads_what_was_current_within_the_retention_reads_on(stream: Stream) -> None:
    """Files that an overwrite replaced stay as long as somebody may be reading them, and then go."""
    stream.append(3)
    opened = datetime.now(UTC)
    kept = timedelta(minutes=stream.settings.snapshots_kept_minutes)
    with open_catalog(stream.settings) as catalog:
        stored = catalog.load_table(EVENTS.identifier)
        old = stored.current_snapshot()
        assert old is not None
        files = [task.file.file_path.removeprefix("file://") for task in stored.scan().plan_files()]
        with history.open(stream.settings) as reader:
            time.sleep(0.01)
            overwrite(stream, "recomputed")
            # What the reader holds was made before it came: it is by when it was replaced that it is old.
            expire(stream.settings, opened + kept)
            assert reader.sql("SELECT count(*) FROM events").fetchall() == [(4,)]
            stored.refresh()
            assert stored.scan(snapshot_id=old.snapshot_id).to_arrow().num_rows == 4
        stream.append(1)  # of the stream, so that it need look no further back
        expire(stream.settings, datetime.now(UTC) + kept)
        assert not [file for file in files if os.path.exists(file)]  # noqa: PTH110 - as Iceberg spells them
        assert stored.refresh().scan().to_arrow().num_rows == 2


def test_where_flink_wrote_nothing_what_was_current_stays(local: Settings) -> None:
    """The snapshot that was current at the cutoff, however old it was by then; nothing before it."""
    prepare_jvm(local)
    with open_catalog(local) as catalog:
        stored = catalog.load_table(EVENTS.identifier)
        for number in range(3):
            stored.append(one_row(stored, str(number)))
        was_current = stored.current_snapshot()
        assert was_current is not None
        time.sleep(0.01)
        cutoff = datetime.now(UTC)
        time.sleep(0.01)
        stored.append(one_row(stored, "newest"))
        expire(local, cutoff + timedelta(minutes=local.snapshots_kept_minutes))
        assert len(stored.refresh().snapshots()) == 2
        assert stored.scan(snapshot_id=was_current.snapshot_id).to_arrow().num_rows == 3


def test_the_stream_and_a_recompute_commit_meanwhile(stream: Stream) -> None:
    """Neither loses a commit to the upkeep, nor the upkeep its own to them."""
    stream.append(60, TOGETHER)

    def append() -> None:
        for _ in range(30):
            stream.append(1)
            time.sleep(0.3)  # a recompute must begin anew after each: without a gap it would never end

    def recompute() -> None:
        for number in range(5):
            overwrite(stream, f"recomputed {number}", DAY + timedelta(days=1))

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(append), pool.submit(recompute)]
        outcomes: list[Outcome] = []
        while not all(writer.done() for writer in writers):
            outcomes += keep_newest(stream, 25)  # what a recompute began from must stay until it is committed
        for writer in writers:
            writer.result()
    assert [outcome.reason for outcome in outcomes if outcome.reason] == []
    assert sum(outcome.snapshots_expired for outcome in outcomes) > 50
    with open_catalog(stream.settings) as catalog:
        ids = catalog.load_table(EVENTS.identifier).scan().to_arrow()["event_id"].to_pylist()
    assert sorted(ids) == ["first"] * 91 + ["recomputed 4"]
    assert stream.committed_checkpoint() == 90


def test_as_a_process_it_prints_a_line_a_table(local: Settings) -> None:
    """What is older than the retention by the clock goes; a table where that fails does not keep it from the others."""
    with open_catalog(local) as catalog:
        for table in (EVENTS, REJECTED_EVENTS):
            stored = catalog.load_table(table.identifier)
            for number in range(3):
                stored.append(one_row(stored, str(number)) if table is EVENTS else one_rejected(stored))
            if table is REJECTED_EVENTS:
                with stored.transaction() as transaction:
                    transaction.set_properties({"gc.enabled": "false"})
            metadata = Path(stored.metadata_location.removeprefix("file://"))
            metadata.write_text(TIMES.sub(an_hour_earlier, metadata.read_text(encoding="utf-8")), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.upkeep", "expire"],
        env=os.environ | msgspec.structs.replace(local, snapshots_kept_minutes=50).environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    lines = {line["table"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert list(lines) == [table.name for table in TABLES], done.stderr
    told = lines.pop("events")
    assert (told["job"], told["status"], told["action"], told["reason"]) == ("upkeep", "finished", "expire", "")
    assert (told["snapshots_expired"], told["snapshots_kept"]) == (2, 1)
    failed = lines.pop("rejected_events")
    assert (failed["status"], failed["snapshots_expired"], failed["snapshots_kept"]) == ("failed", 0, 3)
    assert "GC is disabled" in failed["reason"]
    others = {(line["status"], line["snapshots_expired"], line["snapshots_kept"]) for line in lines.values()}
    assert others == {("finished", 0, 0)}
    assert done.returncode == 1


def keep_newest(stream: Stream, snapshots: int) -> list[Outcome]:
    """Expire as if the retention were just over for all but the newest snapshots."""
    with open_catalog(stream.settings) as catalog:
        times = [one.timestamp_ms for one in catalog.load_table(EVENTS.identifier).snapshots()]
    oldest = datetime.fromtimestamp(sorted(times)[-min(snapshots, len(times))] / 1000, UTC)
    return expire(stream.settings, oldest + timedelta(minutes=stream.settings.snapshots_kept_minutes))


def disk(stream: Stream) -> Disk:
    """Measure."""
    with open_catalog(stream.settings) as catalog:
        stored = catalog.load_table(EVENTS.identifier)
    snapshot = stored.current_snapshot()
    assert snapshot is not None
    files = [file.stat().st_size for file in (stream.folder / "metadata").iterdir()]
    current = stored.io.new_input(stored.metadata_location)
    return Disk(len(stored.snapshots()), len(snapshot.manifests(stored.io)), len(current), len(files), sum(files))


def overwrite(stream: Stream, event_id: str, day: datetime = DAY) -> None:
    """As a recompute does: PyIceberg puts one event in the place of all from a day on."""
    with open_catalog(stream.settings) as catalog:
        stored = catalog.load_table(EVENTS.identifier)
        rows = one_row(stored, event_id, day)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Delete operation did not match any records")
            stored.overwrite(rows, f"timestamp >= '{day.isoformat()}'")


def one_row(stored: StoredTable, event_id: str, day: datetime = DAY) -> pa.Table:
    """An event, as Arrow has it."""
    row: dict[str, Any] = {
        "event_id": event_id,
        "event_type": "saga_started",
        "saga_id": "s",
        "saga_name": "order",
        "run_id": "r",
        "sequence": 0,
        "timestamp": day,
        "attempt": 1,
        "duration_derived": False,
        "schema_version": 1,
    }
    return pa.Table.from_pylist([row], schema=schema_to_pyarrow(stored.schema(), include_field_ids=False))


def one_rejected(stored: StoredTable) -> pa.Table:
    """A record that is no event, as Arrow has it."""
    row = {"source_topic": "t", "source_partition": 0, "source_offset": 0, "record_time": DAY, "reason": "empty"}
    return pa.Table.from_pylist([row], schema=schema_to_pyarrow(stored.schema(), include_field_ids=False))


def an_hour_earlier(milliseconds: re.Match[str]) -> str:
    """In the table's metadata: as if all had been committed an hour ago."""
    return str(int(milliseconds[0]) - 3_600_000)
