"""Opens the Iceberg catalog; creates tables and adds the columns that they lack.

Flink's DDL can't declare partition transforms, so tables are made here and Flink only writes them.
"""

from __future__ import annotations

import fcntl
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from pyiceberg.catalog.sql import SqlCatalog
from sqlalchemy.exc import SQLAlchemyError

from warehouse.errors import WarehouseError
from warehouse.tables import NAMESPACE, TABLES

if TYPE_CHECKING:
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
    """The catalog can't be opened; names its file, the reason, and what to do."""


def open_catalog(settings: Settings) -> Catalog:
    """The catalog with all tables of this version in it; made if absent, and safe beside other openers.

    Raises:
        OSError: its folder can't be written.
        CatalogError: its file is no database, or stays locked.
    """
    try:
        return _open(settings)
    except (sqlite3.Error, SQLAlchemyError) as error:
        reason = getattr(error, "orig", None) or error
        msg = (
            f"the catalog {settings.catalog_file} can't be opened ({reason}): where it is locked, stop what holds it; "
            "where it is damaged, `sagascope doctor` says what to do"
        )
        raise CatalogError(msg) from error


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
        _ensure_tables(catalog)
        return catalog


def _ensure_tables(catalog: Catalog) -> None:
    """Make the namespace and the tables that are absent, and add columns that a newer version has."""
    catalog.create_namespace_if_not_exists(NAMESPACE)
    for table in TABLES:
        if not catalog.table_exists(table.identifier):
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


def row_count(catalog: Catalog, table: Table) -> int:
    """Rows of the table's newest snapshot, by its summary: no file is read."""
    snapshot = catalog.load_table(table.identifier).current_snapshot()
    if snapshot is None or snapshot.summary is None:
        return 0
    return int(snapshot.summary["total-records"] or 0)
