"""What a query over the history may use and touch; and what is said where it can't go on: one line with the cure."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import duckdb

from warehouse.errors import WarehouseError
from warehouse.settings import PREFIX, byte_count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from warehouse.settings import Settings

LOOKED_INTO = (duckdb.Error, duckdb.InternalException, duckdb.FatalException)
"""What DuckDB raises at a damaged file that it does not name."""


class QueryTooLargeError(WarehouseError):
    """A query needs more memory, or more disk for what is over, than it may have: names the limit and the cure."""


class DamagedFileError(WarehouseError):
    """A file of a table can't be read, or is gone: names table, day, file, and what to do meanwhile."""


class MovedError(WarehouseError):
    """The tables' files are not below the folder that the settings name: names both, and the cure."""


class Stored(NamedTuple):
    """Where a file belongs."""

    table: str
    begin: datetime
    """Of its partition."""


def guard(connection: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """From now on the connection reads the tables' files and nothing else, within the limits; nothing changes that any more.

    No other file, no network, no extension, nothing of the environment, no secret that is kept for DuckDB elsewhere.

    Raises:
        OSError: the folder for temporary files can't be made.
    """
    limit(connection, settings)
    for name in ("autoinstall_known_extensions", "autoload_known_extensions", "allow_community_extensions"):
        connection.execute(f"SET {name} = false")
    connection.execute("SET allow_persistent_secrets = false")
    connection.execute("SET allowed_directories = [?]", [str(settings.warehouse_folder)])
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def limit(connection: duckdb.DuckDBPyConnection, settings: Settings) -> None:
    """Give the connection the settings' memory, and a folder of its own on the disk, made where it is needed.

    Never more than half of the machine's memory, or of what is free on the disk.
    """
    settings.temporary.mkdir(parents=True, exist_ok=True)
    connection.execute("SET memory_limit = '50%'")  # of what this process may have: DuckDB knows of containers
    [(half,)] = connection.execute("SELECT current_setting('memory_limit')").fetchall()
    memory = min(byte_count(settings.sql_memory), byte_count(half))
    disk = min(byte_count(settings.sql_disk), shutil.disk_usage(settings.temporary).free // 2)
    connection.execute(f"SET memory_limit = '{memory}B'")
    # Two that share a folder take each other's files for theirs.
    folder = settings.temporary / f"sql-{os.getpid()}-{id(connection):x}"
    connection.execute("SET temp_directory = ?", [str(folder)])
    connection.execute(f"SET max_temp_directory_size = '{disk}B'")


def explained(error: duckdb.Error, files: Mapping[str, Stored], settings: Settings) -> WarehouseError | None:
    """What an error of DuckDB means to who asked; None where its own words say it.

    Args:
        error: Raised by a query.
        files: What the query may have read, by path.
        settings: What limits it.
    """
    said = str(error)
    if isinstance(error, duckdb.OutOfMemoryException):
        return _too_large(said, settings)
    path = next((path for path in re.findall(r"""["']([^"']+)["']""", said) if path in files), None)
    if path is None and type(error) in LOOKED_INTO:
        path, said = next(iter(unreadable(files)), (None, said))
    if path is None:
        return None
    if isinstance(error, duckdb.PermissionException):
        msg = (
            f"the tables' files are elsewhere ({path}), not below {settings.warehouse_folder}: the folder was moved or copied, and "
            f"Iceberg keeps whole paths; move it back to where it was made, or set {PREFIX}HOME to that"
        )
        return MovedError(msg)
    table, begin = files[path]
    reason = said.partition("\n")[0].replace(path, path.rpartition("/")[2])
    day = begin.astimezone(UTC).date()
    msg = (
        f"{table} of {day} can't be read: {path} is damaged or gone ({reason}). Ask around it, --until {day} or --since "
        f"{day + timedelta(days=1)}; `sagascope quality --day {day}` judges what else that day has"
    )
    return DamagedFileError(msg)


def _too_large(said: str, settings: Settings) -> QueryTooLargeError:
    name = "sql_disk" if "max_temp_directory_size" in said else "sql_memory"
    what = "room on the disk" if name == "sql_disk" else "memory"
    reason = said.partition("\n")[0].removeprefix("Out of Memory Error: ")
    msg = (
        f"the query needs more {what} than it may have ({reason}): ask for less, as with --since, fewer columns or no cross "
        f"join, or set {PREFIX}{name.upper()}, now {getattr(settings, name)}, to more (at most half of what is there is used)"
    )
    return QueryTooLargeError(msg)


def unreadable(files: Mapping[str, Stored]) -> list[tuple[str, str]]:
    """The first of these files that can't be read to its end, and why; none where all can."""
    with closing(duckdb.connect(":memory:")) as connection:
        for path in files:
            try:
                connection.execute("SELECT bit_xor(hash(r)) FROM read_parquet([$1]) AS r", [path]).fetchall()
            except duckdb.OutOfMemoryException:
                raise
            except duckdb.Error as error:
                return [(path, str(error))]
    return []
