"""Upkeep of the tables' files, as far as it needs no JVM: which small files are worth one large one, which files nobody needs.

`python -m jobs.upkeep` puts it to work: there Iceberg's Java code commits what is written here, and expires snapshots.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import schema_to_pyarrow

from warehouse.errors import WarehouseError
from warehouse.history import duckdb_types, read_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile, ManifestFile
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table as StoredTable
    from pyiceberg.table.metadata import TableMetadata

    from warehouse.settings import Settings
    from warehouse.tables import Table

FLINK_MARK = "flink.max-committed-checkpoint-id"
"""In the summary of each snapshot that Flink committed: which checkpoint's files it holds."""

WIDTHS = {"day": timedelta(days=1), "hour": timedelta(hours=1)}
SETTLED = timedelta(hours=1)
"""After how long a partition that is over gets no more files but now and then."""
SMALL_FILES = 8
"""In a partition that still grows so many are worth a rewrite; in one that is settled, two."""
FULL_ENOUGH = 0.75
"""A file of at least this share of the target's size stays as it is."""
ROW_GROUP = 122_880
"""Rows a row group: what DuckDB reads, or leaves out by its bounds, at a time."""
MEMORY = "1GB"
"""DuckDB's, to sort one file's rows; more goes to the disk for that time."""
PREFIX = "compacted-"
"""How the names of files begin that compaction writes, and of the folders where it sorts."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one action did to one table, or with `dry_run` would do; what it does not touch is 0."""

    action: str
    table: str
    dry_run: bool = False
    files_before: int = 0
    """Data files of the newest snapshot."""
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    """A dry run can't tell how much smaller they would be."""
    left: int = 0
    """Small files that were left for the next time, because somebody else replaced some of their rows meanwhile."""
    snapshots_expired: int = 0
    """Gone, with the files that only they needed."""
    snapshots_kept: int = 0
    orphan_files: int = 0
    """Files that no snapshot names, old enough to be nobody's that is still to commit: deleted."""
    orphan_bytes: int = 0
    rows_deleted: int = 0
    """By age."""
    kept_since: datetime | None = None
    """What is older was deleted by age."""
    seconds: float = 0.0
    reason: str = ""
    """Why it could not be done, or not all of it; nothing is lost by that, and the next time does it. Empty: it was done."""


class Group(NamedTuple):
    """Small files of one partition that are worth one large one."""

    partition: datetime
    """The moment that it begins."""
    files: tuple[str, ...]
    """As the table's metadata spells them; in order of time."""
    rows: int
    bytes: int


class Orphan(NamedTuple):
    """A file that no snapshot names."""

    path: Path
    bytes: int


class CanNotCompactError(WarehouseError):
    """Small files can't be made one; names the table, the partition and the reason. They stay as they are."""


def files_and_bytes(catalog: Catalog, table: Table) -> tuple[int, int]:
    """How many data files the table's newest snapshot has, and how large they are together."""
    files = [task.file for task in catalog.load_table(table.identifier).scan().plan_files()]
    return len(files), sum(file.file_size_in_bytes for file in files)


def plan_compaction(settings: Settings, table: Table, stored: StoredTable, now: datetime) -> list[Group]:
    """The files that are worth a rewrite, in order of time. No file is opened.

    Args:
        settings: How large a file should be.
        table: Which one.
        stored: The same, as it was just loaded.
        now: By which partitions are settled; aware.
    """
    target = settings.target_file_mb << 20
    of_time = stored.schema().find_field(table.time_column).field_id
    small: dict[datetime, list[DataFile]] = {}
    for task in stored.scan().plan_files():
        file = task.file
        ours = not task.delete_files and file.spec_id == stored.spec().spec_id
        if ours and file.file_size_in_bytes < FULL_ENOUGH * target:
            small.setdefault(table.partition_start(file.partition[0]), []).append(file)
    groups = []
    for start in sorted(small):
        settled = start + WIDTHS[table.granularity] + SETTLED <= now
        files = small[start]
        if len(files) >= (2 if settled else SMALL_FILES):
            files.sort(key=lambda file: (int.from_bytes(file.lower_bounds[of_time], "little"), file.file_path))
            groups += [_group(start, some) for some in _packed(files, target) if len(some) > 1]
    return groups


def _packed(files: list[DataFile], target: int) -> Iterator[list[DataFile]]:
    """The files, in order, as lists of not more than `target` bytes each."""
    taken: list[DataFile] = []
    for file in files:
        if taken and sum(one.file_size_in_bytes for one in taken) + file.file_size_in_bytes > target:
            yield taken
            taken = []
        taken.append(file)
    if taken:
        yield taken


def _group(start: datetime, files: list[DataFile]) -> Group:
    return Group(
        start,
        tuple(file.file_path for file in files),
        sum(file.record_count for file in files),
        sum(file.file_size_in_bytes for file in files),
    )


def write_sorted(settings: Settings, table: Table, schema: Schema, group: Group) -> Path:
    """Write the rows of a group's files, sorted, to a new file beside them; no snapshot names it yet.

    Args:
        settings: Where there is room to sort.
        table: How its rows are sorted.
        schema: The table's, as it is stored.
        group: The files.

    Raises:
        CanNotCompactError: a file can't be read, or does not hold the rows that the table's metadata says.
        OSError: there is no room. In both cases nothing is left behind.
    """
    output = path_of(group.files[0]).with_name(f"{PREFIX}{uuid.uuid4()}.parquet")
    settings.temporary.mkdir(parents=True, exist_ok=True)
    try:
        with (
            tempfile.TemporaryDirectory(prefix=PREFIX, dir=settings.temporary) as folder,
            duckdb.connect() as connection,
        ):
            connection.execute("SET temp_directory = ?", [folder])
            rows = _write(connection, table, schema, group, output)
    except BaseException as error:
        output.unlink(missing_ok=True)
        if isinstance(error, duckdb.Error):
            msg = f"{table.name}: files of {group.partition.isoformat()} can't be made one: {str(error).partition(chr(10))[0]}"
            raise CanNotCompactError(msg) from error
        raise
    if rows != group.rows:
        output.unlink()
        msg = (
            f"{table.name}: {len(group.files)} files of {group.partition.isoformat()} hold {rows:,} rows, and by the table's "
            f"metadata {group.rows:,}: they stay as they are; `sagascope parity` says what is lost"
        )
        raise CanNotCompactError(msg)
    return output


def _write(connection: duckdb.DuckDBPyConnection, table: Table, schema: Schema, group: Group, output: Path) -> int:
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET memory_limit = ?", [MEMORY])
    files = read_files(schema, duckdb_types(connection, schema), [str(path_of(file)) for file in group.files])
    order = ", ".join(f'"{name}"' for name in table.sorted_by or table.key)
    arrow = schema_to_pyarrow(schema)  # with Iceberg's field ids, by which every reader finds a column
    rows = 0
    with pq.ParquetWriter(output, arrow, compression="zstd") as writer:
        for batch in connection.sql(f"{files} ORDER BY {order}").to_arrow_reader(ROW_GROUP):
            writer.write_table(pa.Table.from_batches([batch]).cast(arrow), ROW_GROUP)
            rows += batch.num_rows
    return rows


def find_orphans(settings: Settings, stored: StoredTable, now: datetime) -> list[Orphan]:
    """The files below the table's folder that no snapshot names, and that are too old to be on their way into one.

    Args:
        settings: How old that is, and where the job's checkpoints are.
        stored: The table; it is loaded anew, after the look at its folder.
        now: The moment to count back from, aware.

    Raises:
        OSError: the folder or metadata can't be read. Nothing is an orphan then.
    """
    limit = orphans_before(settings, stored.metadata, now).timestamp()
    old = [
        Orphan(file, status.st_size) for file, status in _files(path_of(stored.location())) if status.st_mtime < limit
    ]
    if not old:
        return []
    named = named_files(stored.refresh())  # after the look at the folder: what was committed meanwhile is named
    return [orphan for orphan in sorted(old) if str(_checked_by(orphan.path)) not in named]


def orphans_before(settings: Settings, metadata: TableMetadata, now: datetime) -> datetime:
    """Up to which moment a file that no snapshot names was written by somebody who will not commit it any more.

    A job that resumes commits the files that its checkpoint names, however long it was stopped. They were written after
    those of the checkpoint that it committed last; so that much is counted back from there, not from now.
    """
    kept = timedelta(hours=settings.orphans_kept_hours)
    if any(settings.checkpoints.glob("**/_metadata")):
        marked = [
            snapshot.timestamp_ms
            for snapshot in metadata.snapshots
            if snapshot.summary is not None and snapshot.summary[FLINK_MARK] is not None
        ]
        now = min(now, datetime.fromtimestamp(max(marked, default=0) / 1000, now.tzinfo))
    return now - kept


def named_files(stored: StoredTable) -> set[str]:
    """The paths of all files that any snapshot of the table needs, and of its metadata."""
    metadata = stored.metadata
    named = {stored.metadata_location, *(entry.metadata_file for entry in metadata.metadata_log)}
    named |= {statistics.statistics_path for statistics in (*metadata.statistics, *metadata.partition_statistics)}
    manifests: dict[str, ManifestFile] = {}
    for snapshot in metadata.snapshots:
        named.add(snapshot.manifest_list)
        manifests |= {manifest.manifest_path: manifest for manifest in snapshot.manifests(stored.io)}
    named |= manifests.keys()
    for manifest in manifests.values():
        named |= {entry.data_file.file_path for entry in manifest.fetch_manifest_entry(stored.io, discard_deleted=True)}
    # Both as it is spelt and as a URI has it: better one too many than one too few.
    return {str(path_of(file)) for file in named} | {urlsplit(file).path for file in named}


def forget_sorting(settings: Settings, now: datetime) -> None:
    """Remove the folders in which a compaction that was killed had sorted."""
    limit = (now - timedelta(hours=settings.orphans_kept_hours)).timestamp()
    for folder in settings.temporary.glob(f"{PREFIX}*/"):
        if folder.stat().st_mtime < limit:
            shutil.rmtree(folder, ignore_errors=True)


def path_of(location: str) -> Path:
    """The path of a file or folder as Iceberg names it: a URI, or a bare path."""
    return Path(unquote(urlsplit(location).path))


def _checked_by(file: Path) -> Path:
    """The file of which this one is Hadoop's checksum; else itself."""
    is_checksum = file.name.startswith(".") and file.suffix == ".crc"
    return file.with_name(file.name[1:].removesuffix(".crc")) if is_checksum else file


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(Path(entry.path))
                    continue
                with suppress(FileNotFoundError):  # expiry deletes, too
                    yield Path(entry.path), entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # of a table without a row
        return
