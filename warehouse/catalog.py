"""Opens the Iceberg catalog; creates tables and adds the columns that they lack.

Flink's DDL can't declare partition transforms, so tables are made here and Flink only writes them.
"""

from __future__ import annotations

import fcntl
import sqlite3
import zlib
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from warehouse.errors import WarehouseError
from warehouse.tables import NAMESPACE, TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyiceberg.catalog import Catalog

    from warehouse.settings import Settings
    from warehouse.tables import Table

CATALOG_NAME = "lake"
BUSY_TIMEOUT_SECONDS = 30
"""How long an opener waits for another one's lock; every opener sets it, also Flink's."""

TABLE_PROPERTIES = {
    "format-version": "2",
    "write.parquet.compression-codec": "zstd",
    # One commit adds about 1 KB to every later metadata file, and by default all of them are kept.
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "20",
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "50",
    # The stream, a recompute and the upkeep commit side by side.
    "commit.retry.num-retries": "20",
    "commit.retry.max-wait-ms": "5000",
}


class CatalogError(WarehouseError):
    """The catalog, or what it says of a table, can't be read; names file or table, the reason, and what to do."""


def open_catalog(settings: Settings) -> Catalog:
    """The catalog with all tables of this version in it; made if absent, and safe beside other openers.

    Raises:
        OSError: its folder can't be written.
        CatalogError: its file is no database, stays locked, is of another version or lacks tables that have files.
    """
    try:
        return _open(settings)
    except (sqlite3.Error, SQLAlchemyError) as error:
        reason = str(getattr(error, "orig", None) or error)
        msg = f"the catalog {settings.catalog_file} can't be opened ({reason}): {_cure(reason)}"
        raise CatalogError(msg) from error


def _cure(reason: str) -> str:
    """What to do, by SQLite's own words."""
    if "locked" in reason:
        return f"another process has held it for more than {BUSY_TIMEOUT_SECONDS} s; stop that one"
    if "no such column" in reason:
        return "it was made by another version of Iceberg's catalogs; use the version that made it, or restore a backup"
    return "where it is damaged, `sagascope doctor` says what to do"


def _open(settings: Settings) -> Catalog:
    folder = settings.catalog_file.parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "making.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two that make the same table at once: PyIceberg lets one of them fail
        with closing(sqlite3.connect(settings.catalog_file, timeout=BUSY_TIMEOUT_SECONDS)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # kept in the file
        catalog = SqlCatalog(
            CATALOG_NAME,
            uri=f"sqlite:///{settings.catalog_file}?timeout={BUSY_TIMEOUT_SECONDS}",
            warehouse=settings.warehouse_folder.as_uri(),
        )
        _ensure_tables(settings, catalog)
        return catalog


def _ensure_tables(settings: Settings, catalog: Catalog) -> None:
    """Make the namespace and the tables that are absent, and add columns that a newer version has."""
    catalog.create_namespace_if_not_exists(NAMESPACE)
    for table in TABLES:
        with reading_metadata(table):
            exists = catalog.table_exists(table.identifier)
        if not exists:
            _refuse_lost(settings, table)
            catalog.create_table(
                table.identifier,
                table.schema,
                partition_spec=table.partition_spec,
                properties=TABLE_PROPERTIES | {"comment": table.doc},
            )
            continue
        stored = catalog.load_table(table.identifier)
        if set(table.schema.column_names) - set(stored.schema().column_names):
            with stored.update_schema() as update:
                update.union_by_name(table.schema)


def _refuse_lost(settings: Settings, table: Table) -> None:
    """A table that the catalog does not know may have files: one made anew beside them would hide them, then lose them."""
    folder = settings.warehouse_folder / NAMESPACE / table.name / "data"
    if next(folder.rglob("*.parquet"), None):
        msg = (
            f"the catalog {settings.catalog_file} does not know table {table.name}, whose rows are in {folder}: the catalog was "
            f"lost or replaced; restore it from a backup, or move {settings.catalog_file.parent} away to begin anew"
        )
        raise CatalogError(msg)


@contextmanager
def reading_metadata(table: Table) -> Iterator[None]:
    """What is raised for a metadata file that is damaged, gone or of another version names its table and the cure.

    Raises:
        CatalogError: within the block, in place of PyIceberg's many.
    """
    try:
        yield
    except (OSError, EOFError, ValueError, LookupError, AssertionError, ValidationError, zlib.error) as error:
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        reason = " ".join(lines[1:2] if isinstance(error, ValidationError) else lines[:1])
        if "format_version" in reason:
            cure = "it was written by a newer version; update Sagascope and PyIceberg"
        else:
            cure = "restore the file from a backup; the other tables are as they were"
        msg = f"the metadata of table {table.name} can't be read ({reason.split(' [type=')[0]}): {cure}"
        raise CatalogError(msg) from error


def row_count(catalog: Catalog, table: Table) -> int:
    """Rows of the table's newest snapshot, by its summary: no file is read."""
    snapshot = catalog.load_table(table.identifier).current_snapshot()
    if snapshot is None or snapshot.summary is None:
        return 0
    return int(snapshot.summary["total-records"] or 0)
