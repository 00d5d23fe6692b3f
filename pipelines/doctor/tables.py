"""The catalog and the tables as they are: nothing is made, mended or waited for longer than a few seconds."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import psutil
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import NoSuchTableError, ValidationError

from pipelines.doctor.findings import Finding, counted, fault, ok, size, warning
from warehouse.catalog import CATALOG_NAME
from warehouse.tables import TABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyiceberg.catalog import Catalog
    from pyiceberg.schema import Schema

    from warehouse.settings import Settings
    from warehouse.tables import Table

LOCK_SECONDS = 5
"""A commit holds the catalog for milliseconds."""
SNAPSHOTS_KEPT = 5_000
"""More than two hours' commits at the fastest setting: upkeep, which runs each minute, can't have run."""
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def catalog(settings: Settings) -> list[Finding]:
    """The catalog's SQLite file: opens, is whole, is in WAL mode, and is not locked for good."""
    file = settings.catalog_file
    if not file.exists():
        return [ok("catalog", f"{file} is not made yet", "the first `sagascope analyze` or `sagascope demo` makes it")]
    try:
        mode, damage = _sqlite(file)
    except sqlite3.DatabaseError as error:
        return [_refused(settings, error)]
    if damage != "ok":
        return [_damaged(settings, damage)]
    if mode != "wal":
        what = f"{file} is in mode {mode}, not WAL: who reads it holds up who commits"
        return [warning("catalog", what, "the next `sagascope analyze` or `sagascope sql` sets it")]
    return [ok("catalog", f"{file} opens, is whole (quick_check), in WAL mode, not locked")]


def tables(settings: Settings) -> list[Finding]:
    """Each declared table: its columns, how many snapshots it has, and how much they take."""
    if not settings.catalog_file.exists():
        return []
    with reading(settings) as opened:
        return [finding for table in TABLES for finding in _table(opened, table, settings)]


@contextmanager
def reading(settings: Settings) -> Iterator[Catalog]:
    """The catalog as it is, read-only: unlike `warehouse.catalog.open_catalog`, it makes no tables and adds no columns.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: it can't be read, or is locked.
    """
    opened = SqlCatalog(
        CATALOG_NAME,
        uri=f"sqlite:///file:{settings.catalog_file}?mode=ro&uri=true&timeout={LOCK_SECONDS}",
        warehouse=settings.warehouse_folder.as_uri(),
        init_catalog_tables="false",
    )
    with closing(opened):
        yield opened


def _types(schema: Schema) -> dict[str, str]:
    """Of each column, without the ids of what is nested in it: a catalog gives its own."""
    return {field.name: re.sub(r"\b\d+: ", "", str(field.field_type)) for field in schema.fields}


def _table(opened: Catalog, table: Table, settings: Settings) -> list[Finding]:
    area = "tables"
    try:
        stored = opened.load_table(table.identifier)
    except NoSuchTableError:
        return [warning(area, f"{table.name} is not there", "the next `sagascope analyze` makes it, empty")]
    except (OSError, ValueError, ValidationError) as error:
        cure = f"bring its metadata files back from a copy, or start afresh: {afresh(settings)}"
        return [fault(area, f"{table.name} is in the catalog, but can't be read: {error}", cure)]
    findings = []
    types, declared = (_types(schema) for schema in (stored.schema(), table.schema))
    if lacking := sorted(set(declared) - set(types)):
        cure = "the next `sagascope analyze` adds them, NULL in older rows"
        findings.append(warning(area, f"{table.name} lacks columns {', '.join(lacking)}", cure))
    if other := [name for name in declared if types.get(name, declared[name]) != declared[name]]:
        said = ", ".join(f"{name} is {types[name]}, not {declared[name]}" for name in other)
        cure = f"use the version of Sagascope that made it, or start afresh: {afresh(settings)}"
        findings.append(fault(area, f"{table.name}: {said}", cure))
    if unknown := sorted(set(types) - set(declared)):
        what = f"{table.name} has columns that this version does not know: {', '.join(unknown)}"
        findings.append(warning(area, what, "use the version of Sagascope that made them"))
    snapshots = len(stored.metadata.snapshots)
    metadata = Path(unquote(urlsplit(stored.metadata_location).path)).parent
    taken = f"{counted(snapshots, 'snapshot')}, {size(_taken(metadata))} of metadata"
    if snapshots > SNAPSHOTS_KEPT:
        cure = f"`sagascope maintain expire`; the job does so each minute: why it did not stands in {settings.logs}/analytics.log"
        findings.append(warning(area, f"{table.name}: {taken}: upkeep does not run", cure))
    return findings or [ok(area, f"{table.name}: {len(types)} columns, {taken}")]


def _taken(folder: Path) -> int:
    """Bytes of its files; the job may delete some meanwhile."""
    total = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _sqlite(file: Path) -> tuple[str, str]:
    """Its journal mode, and what quick_check says; takes the lock of a writer for a blink, and writes nothing.

    Raises:
        sqlite3.DatabaseError: it can't be opened, is no database, or stays locked.
    """
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=LOCK_SECONDS)) as connection:
        connection.isolation_level = None
        [(mode,)] = connection.execute("PRAGMA journal_mode").fetchall()
        [(damage,)] = connection.execute("PRAGMA quick_check(1)").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    return mode, damage


def _refused(settings: Settings, error: sqlite3.DatabaseError) -> Finding:
    file = settings.catalog_file
    if error.sqlite_errorcode & 0xFF in BUSY:
        holders = _holders(file)
        cure = f"stop what holds it (open in {holders})" if holders else f"stop what holds it: `fuser {file}` names it"
        return fault("catalog", f"{file} has been locked for {LOCK_SECONDS} s: nothing can be committed", cure)
    if isinstance(error, sqlite3.OperationalError):
        cure = "give the user of this process the right to read and write it and its folder"
        return fault("catalog", f"{file} can't be opened: {error}", cure)
    return _damaged(settings, str(error))


def _damaged(settings: Settings, said: str) -> Finding:
    cure = f"bring back a copy, or start afresh: {afresh(settings)}"
    return fault("catalog", f"{settings.catalog_file} is damaged: {said.strip()}", cure)


def afresh(settings: Settings) -> str:
    """The topic outlives the tables: not `make clean`, which deletes both."""
    return (
        f"stop the job, move {settings.catalog_file.parent} and {settings.checkpoints.parent} away; the next `sagascope "
        "analyze` reads the topic from its start"
    )


def _holders(file: Path) -> str:
    """The processes that have the file open, as far as this user may see."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(Path(opened.path) == file for opened in process.open_files()):
                found.append(f"{process.name()}, pid {process.pid}")
        except psutil.Error:
            continue
    return "; ".join(found)
