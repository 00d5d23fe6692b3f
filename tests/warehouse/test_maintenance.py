"""Which files are worth a rewrite, what the rewritten ones hold, and which files nobody needs."""

from __future__ import annotations

import json
import os
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
import pyarrow.parquet as pq
import pytest

from tests.warehouse.planted import NOON, append, event, events_of, fill, paths, tamper
from warehouse import maintenance
from warehouse.catalog import open_catalog
from warehouse.maintenance import CanNotCompactError, find_orphans, plan_compaction, write_sorted
from warehouse.tables import EVENTS, STEP_STATS, TABLES

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from warehouse.maintenance import Group
    from warehouse.settings import Settings
    from warehouse.tables import Table

LATER = NOON + timedelta(days=2)
DAY = NOON.replace(hour=0)


def plan(settings: Settings, now: datetime, table: Table = EVENTS) -> list[Group]:
    """What would be rewritten."""
    with closing(open_catalog(settings)) as catalog:
        return plan_compaction(settings, table, catalog.load_table(table.identifier), now)


def orphans(settings: Settings, now: datetime, table: Table = EVENTS) -> list[str]:
    """The names of those of a table."""
    with closing(open_catalog(settings)) as catalog:
        return [orphan.path.name for orphan in find_orphans(settings, catalog.load_table(table.identifier), now)]


def test_a_growing_partition_waits_for_more_files_than_a_settled_one(lake: Settings) -> None:
    """Eight while it grows; two once it has been over for an hour; a file that is alone stays."""
    for run in range(8):
        assert plan(lake, NOON) == []
        append(lake, EVENTS, events_of(run, NOON + timedelta(seconds=run)))
        if run in {0, 1}:
            midnight = DAY + timedelta(days=1)
            assert plan(lake, midnight + timedelta(minutes=59)) == []
            assert len(plan(lake, midnight + timedelta(hours=1))) == run
    [group] = plan(lake, NOON)
    assert (group.partition, len(group.files), group.rows) == (DAY, 8, 32)
    assert group.bytes == sum(file.stat().st_size for file in paths(lake, EVENTS))


def test_groups_are_of_one_partition_in_order_of_time_and_no_larger_than_the_target(
    lake: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that each new file covers a time of its own, whatever the order in which they came."""
    for run in (3, 1, 2, 0):
        append(lake, EVENTS, events_of(run, NOON + timedelta(hours=run)))
        append(lake, EVENTS, events_of(run + 10, NOON + timedelta(hours=run, days=1)))
    [today, tomorrow] = plan(lake, LATER + timedelta(days=1))
    assert (today.partition, tomorrow.partition) == (DAY, DAY + timedelta(days=1))
    firsts = [
        pq.read_table(maintenance.path_of(file), columns=["timestamp"], partitioning=None)[0][0].as_py()
        for file in today.files
    ]
    assert firsts == [NOON + timedelta(hours=run) for run in range(4)]
    size = max(file.stat().st_size for file in paths(lake, EVENTS))
    with closing(open_catalog(lake)) as catalog:
        files = [task.file for task in catalog.load_table(EVENTS.identifier).scan().plan_files()]
        assert [len(some) for some in maintenance._packed(files, 3 * size)] == [3, 3, 2]
        monkeypatch.setattr(maintenance, "FULL_ENOUGH", size / (lake.target_file_mb << 20))
    assert sum(len(group.files) for group in plan(lake, LATER)) < 8, "a file that is large enough stays"


def test_what_is_rewritten_holds_the_same_rows_sorted(lake: Settings) -> None:
    """Field by field, with Iceberg's field ids and required columns, and bounds by which readers leave files out."""
    for run in (2, 0, 1):
        append(lake, EVENTS, events_of(run, NOON + timedelta(seconds=run)))
    append(lake, EVENTS, [event(4, 0, "saga_started", NOON, context_keys=["b", "a"], attributes=[("k", "v")])])
    [group] = plan(lake, LATER)
    with closing(open_catalog(lake)) as catalog:
        stored = catalog.load_table(EVENTS.identifier)
        before = stored.scan().to_arrow()
        output = write_sorted(lake, EVENTS, stored.schema(), group)
        first = pq.read_schema(paths(lake, EVENTS)[0])
    after = pq.read_table(output, partitioning=None)
    order = [("timestamp", "ascending"), ("run_id", "ascending"), ("sequence", "ascending")]
    assert after.to_pylist() == before.sort_by(order).to_pylist()
    assert after.schema.equals(first, check_metadata=False)
    ids = [field.metadata[b"PARQUET:field_id"] for field in after.schema]
    assert ids == [str(number).encode() for number in range(1, len(EVENTS.columns) + 1)]
    statistics = pq.read_metadata(output).row_group(0).column(0).statistics
    assert statistics.has_min_max
    assert output.parent == paths(lake, EVENTS)[0].parent
    assert list(lake.temporary.iterdir()) == []


def test_files_of_before_a_column_was_added(lake: Settings) -> None:
    """They say NULL in it, as ever."""
    append(lake, EVENTS, events_of(0, NOON))
    tamper(lake, EVENTS, lambda rows: [row.pop("service", None) for row in rows])
    append(lake, EVENTS, [event(1, 0, "saga_started", NOON, service="orders")])
    [group] = plan(lake, LATER)
    with closing(open_catalog(lake)) as catalog:
        output = write_sorted(lake, EVENTS, catalog.load_table(EVENTS.identifier).schema(), group)
    assert sorted(map(str, pq.read_table(output, partitioning=None)["service"].to_pylist())) == ["None"] * 4 + [
        "orders"
    ]


def rubbish(lake: Settings) -> None:
    """A file that is no Parquet file."""
    paths(lake, EVENTS)[0].write_bytes(b"rubbish")


def short(lake: Settings) -> None:
    """A file that has lost a row."""
    tamper(lake, EVENTS, lambda rows: rows.pop())


@pytest.mark.parametrize(
    ("damage", "said"), [(rubbish, "can't be made one"), (short, "hold 7 rows, and by the table's metadata 8")]
)
def test_damaged_files_stay_as_they_are(lake: Settings, damage: object, said: str) -> None:
    """The error names table and partition; a rewrite that would lose a row in silence is none; nothing is left behind."""
    for run in range(2):
        append(lake, EVENTS, events_of(run, NOON))
    assert callable(damage)
    damage(lake)
    [group] = plan(lake, LATER)
    before = sorted(paths(lake, EVENTS)[0].parent.iterdir())
    with (
        closing(open_catalog(lake)) as catalog,
        pytest.raises(CanNotCompactError, match=f"events: .*2026-11-20.*{said}"),
    ):
        write_sorted(lake, EVENTS, catalog.load_table(EVENTS.identifier).schema(), group)
    assert sorted(paths(lake, EVENTS)[0].parent.iterdir()) == before


def aged(file: Path, moment: datetime) -> Path:
    """The file, as if it had been written at the moment."""
    os.utime(file, (moment.timestamp(), moment.timestamp()))
    return file


def stray(settings: Settings, name: str, moment: datetime, folder: str = "data") -> None:
    """A file that no snapshot names, of that moment."""
    path = settings.warehouse_folder / "saga" / "events" / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    aged(path, moment)


def test_a_file_that_no_snapshot_names_is_an_orphan_once_it_is_old(lake: Settings) -> None:
    """Data files, manifests and metadata alike; those of every snapshot that is left are none, however old."""
    fill(lake)
    append(lake, EVENTS, events_of(9, NOON))
    with closing(open_catalog(lake)) as catalog:
        catalog.load_table(EVENTS.identifier).delete("run_id = 'r9'")  # an older snapshot still names the file
    root = lake.warehouse_folder / "saga"
    for file in root.rglob("*.*"):
        aged(file, NOON)
    stray(lake, "timestamp_day=2026-11-20/compacted-1.parquet", NOON)
    stray(lake, "timestamp_day=2026-11-20/.compacted-1.parquet.crc", NOON)
    stray(
        lake,
        f".{paths(lake, EVENTS)[0].name}.crc",
        NOON,
        str(paths(lake, EVENTS)[0].parent.relative_to(root / "events")),
    )
    stray(lake, "m0.avro", NOON, "metadata")
    stray(lake, "young.parquet", NOON + timedelta(minutes=1))
    now = NOON + timedelta(hours=lake.orphans_kept_hours, seconds=30)
    assert orphans(lake, NOON + timedelta(hours=1)) == []
    assert orphans(lake, now) == [".compacted-1.parquet.crc", "compacted-1.parquet", "m0.avro"]
    assert all(orphans(lake, now, table) == [] for table in TABLES[1:])


def test_what_a_job_that_resumes_will_commit_is_no_orphan(lake: Settings) -> None:
    """However long it was stopped: counted back from its last commit; and from the beginning, where it made none."""
    checkpoint = lake.checkpoints / "run" / "chk-7" / "_metadata"
    append(lake, EVENTS, events_of(0, NOON))
    with closing(open_catalog(lake)) as catalog:
        committed = catalog.load_table(EVENTS.identifier).metadata.last_updated_ms / 1000
    now = LATER + timedelta(days=1_000)
    last = NOON.fromtimestamp(committed, NOON.tzinfo)
    stray(lake, "pending.parquet", last - timedelta(hours=1))
    stray(lake, "dead.parquet", last - timedelta(hours=lake.orphans_kept_hours + 1))
    assert orphans(lake, now) == ["dead.parquet", "pending.parquet"], "nobody will resume"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"")
    assert orphans(lake, now) == [], "of a first checkpoint"
    with closing(open_catalog(lake)) as catalog:
        stored = catalog.load_table(EVENTS.identifier)
        with stored.transaction() as transaction:
            rows = stored.scan().to_arrow().slice(0, 0)
            transaction.append(rows, snapshot_properties={maintenance.FLINK_MARK: "6"})
    assert orphans(lake, now) == ["dead.parquet"]


def test_metadata_that_can_not_be_read_makes_nothing_an_orphan(lake: Settings) -> None:
    """A manifest that is gone says nothing of the files that it named."""
    fill(lake)
    stray(lake, "dead.parquet", NOON)
    manifest = next((lake.warehouse_folder / "saga" / "events" / "metadata").glob("*-m0.avro"))
    manifest.rename(manifest.with_suffix(".away"))
    with pytest.raises(FileNotFoundError):
        orphans(lake, LATER + timedelta(days=1_000))


def test_an_outcome_is_json(lake: Settings) -> None:
    """As the job says it."""
    outcome = maintenance.Outcome(action="compact", table=STEP_STATS.name, kept_since=NOON)
    assert json.loads(msgspec.json.encode(outcome))["kept_since"] == "2026-11-20T12:00:00Z"
