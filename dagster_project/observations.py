"""What Iceberg's own metadata says of each day of a table: manifests are read, data files are never opened."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from pyiceberg.conversions import from_bytes
from pyiceberg.manifest import ManifestContent
from pyiceberg.transforms import DayTransform, HourTransform
from pyiceberg.types import TimestamptzType
from pyiceberg.utils.datetime import micros_to_timestamptz

if TYPE_CHECKING:
    from pyiceberg.io import FileIO
    from pyiceberg.manifest import DataFile, ManifestFile
    from pyiceberg.partitioning import PartitionSpec
    from pyiceberg.table import Table

EPOCH = date(1970, 1, 1)
MANIFESTS_KEPT = 10_000


@dataclass(frozen=True)
class DayObservation:
    """One day (UTC) of one table, as of the table's current snapshot."""

    rows: int
    files: int
    bytes: int
    newest: datetime | None
    """The largest value of the time column, by the files' upper bounds."""
    snapshot_id: int
    """The newest snapshot that brought a file of this day."""
    committed_at: datetime | None
    """When it was committed; None where it has expired."""


def observe(table: Table) -> dict[date, DayObservation]:
    """Each day of which the table has rows, in order.

    The cost grows with the manifests that are new since this process last asked, not with the rows.

    Raises:
        ValueError: the table is not partitioned by one day or hour.
    """
    snapshot = table.current_snapshot()
    sums: dict[date, _Sum] = {}
    for manifest in snapshot.manifests(table.io) if snapshot else ():
        if manifest.content is ManifestContent.DATA:
            spec = table.specs()[manifest.partition_spec_id]
            for day, part in _sums_of(_Manifest(manifest, spec, table.io)).items():
                sums[day] = sums[day] + part if day in sums else part
    commits = {snapshot.snapshot_id: snapshot.timestamp_ms for snapshot in table.snapshots()}
    return {
        day: DayObservation(
            rows=total.rows,
            files=total.files,
            bytes=total.bytes,
            newest=None if total.newest is None else micros_to_timestamptz(total.newest),
            snapshot_id=total.snapshot_id,
            committed_at=_moment(commits.get(total.snapshot_id)),
        )
        for day, total in sorted(sums.items())
    }


@dataclass(frozen=True)
class _Sum:
    rows: int
    files: int
    bytes: int
    newest: int | None
    sequence: int
    snapshot_id: int

    def __add__(self, other: _Sum) -> _Sum:
        later = max(self, other, key=lambda each: each.sequence)
        return _Sum(
            self.rows + other.rows,
            self.files + other.files,
            self.bytes + other.bytes,
            max((newest for newest in (self.newest, other.newest) if newest is not None), default=None),
            later.sequence,
            later.snapshot_id,
        )


@dataclass(frozen=True)
class _Manifest:
    """A manifest never changes and no two have one path, so its sums are kept by its path (which is its hash)."""

    file: ManifestFile
    spec: PartitionSpec = field(compare=False)
    io: FileIO = field(compare=False)


@lru_cache(maxsize=MANIFESTS_KEPT)
def _sums_of(manifest: _Manifest) -> dict[date, _Sum]:
    sums: dict[date, _Sum] = {}
    for entry in manifest.file.fetch_manifest_entry(manifest.io):
        data = entry.data_file
        day = _day(data, manifest.spec)
        part = _Sum(
            rows=data.record_count,
            files=1,
            bytes=data.file_size_in_bytes,
            newest=_upper_bound(data, manifest.spec.fields[0].source_id),
            sequence=entry.sequence_number or 0,
            snapshot_id=entry.snapshot_id or 0,
        )
        sums[day] = sums[day] + part if day in sums else part
    return sums


def _day(data: DataFile, spec: PartitionSpec) -> date:
    match [partition.transform for partition in spec.fields]:
        case [DayTransform()]:
            return EPOCH + timedelta(days=data.partition[0])
        case [HourTransform()]:
            return EPOCH + timedelta(hours=data.partition[0])
        case _:
            msg = f"can't tell the day of a file that is partitioned by {spec}: allowed are one day, or one hour"
            raise ValueError(msg)


def _upper_bound(data: DataFile, field_id: int) -> int | None:
    bound = (data.upper_bounds or {}).get(field_id)
    return None if bound is None else int(from_bytes(TimestamptzType(), bound))


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
