"""What was committed to a table since one looked last: Iceberg's metadata is read, no data file is opened.

A look costs one row of the catalog where nothing is new. Else the table's metadata is decoded, as far as it is needed (all
of it, with an hour of commits in it, takes PyIceberg six times as long), and each new snapshot's own manifests are read.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from pyiceberg.conversions import from_bytes
from pyiceberg.manifest import ManifestContent, ManifestEntryStatus, read_manifest_list
from pyiceberg.types import TimestamptzType
from sqlalchemy import select
from sqlalchemy.orm import Session

from warehouse.catalog import reading_metadata
from warehouse.errors import WarehouseError
from warehouse.tables import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile

    from warehouse.tables import Table

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NONE = -1
"""What Iceberg's Java code writes for the snapshot of a table that has none."""
REPLACE = "replace"
"""The operation of a snapshot that puts the same rows into other files: compaction. It brings nothing new."""


class LostTrackError(WarehouseError):
    """What was seen last is no ancestor of the newest snapshot: expired meanwhile, or rolled back. Read the table anew."""


class Commit(NamedTuple):
    """A snapshot of a table."""

    snapshot_id: int
    committed_at: datetime


class Added(NamedTuple):
    """What was committed since."""

    files: list[DataFile]
    """In the order of their commits."""
    newest: Commit


class _Summary(msgspec.Struct, frozen=True):
    operation: str = ""


class _Snapshot(msgspec.Struct, rename="kebab", frozen=True):
    snapshot_id: int
    timestamp_ms: int
    manifest_list: str
    parent_snapshot_id: int | None = None
    summary: _Summary | None = None

    @property
    def commit(self) -> Commit:
        return Commit(self.snapshot_id, datetime.fromtimestamp(self.timestamp_ms / 1000, UTC))


class _Metadata(msgspec.Struct, rename="kebab", frozen=True):
    """Of a table's metadata file what is needed here."""

    current_schema_id: int = 0
    current_snapshot_id: int | None = None
    snapshots: list[_Snapshot] = []


class Snapshots:
    """The snapshots of one table, as they come."""

    def __init__(self, catalog: Catalog, table: Table) -> None:
        """No look was taken yet.

        Args:
            catalog: Open for as long as this is used.
            table: Which one.
        """
        self._catalog, self._table = catalog, table
        with reading_metadata(table):
            stored = catalog.load_table(table.identifier)
        self._io, self._schema, self._location = stored.io, stored.schema(), ""
        self._metadata = _Metadata()
        self._decoder = msgspec.json.Decoder(_Metadata)

    def newest_id(self) -> int | None:
        """Of the newest snapshot; None: nothing was ever committed.

        Raises:
            CatalogError: the metadata can't be read.
        """
        with reading_metadata(self._table):
            self._look()
        newest = self._metadata.current_snapshot_id
        return None if newest == NONE else newest

    def added_since(self, snapshot_id: int | None) -> Added | None:
        """What was committed after that snapshot; None: nothing was. Files that compaction wrote hold nothing new.

        A file that was added and replaced again meanwhile is named all the same: it is readable until its snapshot expires.
        What a commit has rewritten to remove rows is named, too, so a row may come again.

        Args:
            snapshot_id: What was seen last; None: the table was empty.

        Raises:
            LostTrackError: that snapshot is no ancestor of the newest one.
            CatalogError: a metadata file can't be read.
        """
        with reading_metadata(self._table):
            self._look()
            since = list(self._since(snapshot_id))
            if not since:
                return None
            files = [file for one in reversed(since) for file in self._files_of(one)]
        return Added(files, since[0].commit)

    def commits(self) -> list[Commit]:
        """Those that have not expired, as of the last look; the oldest first."""
        return [snapshot.commit for snapshot in self._metadata.snapshots]

    def upper_bound(self, file: DataFile, column: str) -> datetime | None:
        """No moment in that column of the file is later; None where the file does not say."""
        bound = (file.upper_bounds or {}).get(self._schema.find_field(column).field_id)
        return None if bound is None else EPOCH + timedelta(microseconds=int(from_bytes(TimestamptzType(), bound)))

    @property
    def schema_id(self) -> int:
        """Of the table's columns, as of the last look."""
        return self._metadata.current_schema_id

    def _look(self) -> None:
        location = self._newest_location()
        if location != self._location:
            with self._io.new_input(location).open() as file:
                self._metadata = self._decoder.decode(file.read())
            self._location = location

    def _newest_location(self) -> str:
        """Of the table's metadata file."""
        if not isinstance(self._catalog, SqlCatalog):
            return self._catalog.load_table(self._table.identifier).metadata_location
        with Session(self._catalog.engine) as session:
            location = session.scalar(
                select(IcebergTables.metadata_location).where(
                    IcebergTables.catalog_name == self._catalog.name,
                    IcebergTables.table_namespace == NAMESPACE,
                    IcebergTables.table_name == self._table.name,
                )
            )
        if location is None:
            msg = f"the catalog no longer knows table {self._table.name}"
            raise LostTrackError(msg)
        return location

    def _since(self, snapshot_id: int | None) -> Iterator[_Snapshot]:
        """The snapshots after that one, the newest first."""
        by_id = {snapshot.snapshot_id: snapshot for snapshot in self._metadata.snapshots}
        current = None if self._metadata.current_snapshot_id == NONE else self._metadata.current_snapshot_id
        while current != snapshot_id:
            snapshot = by_id.get(current) if current is not None else None
            if snapshot is None:
                msg = f"snapshot {snapshot_id} of {self._table.name} is none that the newest one came from"
                raise LostTrackError(msg)
            yield snapshot
            current = snapshot.parent_snapshot_id

    def _files_of(self, snapshot: _Snapshot) -> Iterator[DataFile]:
        """The files that this very snapshot has added."""
        if snapshot.summary and snapshot.summary.operation == REPLACE:
            return
        for manifest in read_manifest_list(self._io.new_input(snapshot.manifest_list)):
            if manifest.content is not ManifestContent.DATA or manifest.added_snapshot_id != snapshot.snapshot_id:
                continue
            for entry in manifest.fetch_manifest_entry(self._io):
                # A merged manifest has files of older snapshots in it, too.
                if entry.status is ManifestEntryStatus.ADDED and entry.snapshot_id in (None, snapshot.snapshot_id):
                    yield entry.data_file
