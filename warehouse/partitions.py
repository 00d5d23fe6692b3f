"""A table's rows by the partition that they are stored in, not by their time: a row in a wrong partition is seen, too."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from warehouse.catalog import reading_metadata
from warehouse.history import duckdb_types, read_files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import duckdb
    from pyiceberg.catalog import Catalog
    from pyiceberg.schema import Schema

    from warehouse.tables import Table


@dataclass(frozen=True)
class PartitionedFiles:
    """The files of a table's newest snapshot, by their partition."""

    schema: Schema
    files: Mapping[datetime, list[str]]
    """By the moment that the partition begins."""

    def between(self, first: date, last: date) -> Iterator[tuple[datetime, str]]:
        """Each file in the partitions of the days [first, last), UTC, with the moment its partition begins; in order."""
        begin, end = (datetime.combine(day, time(), UTC) for day in (first, last))
        for start in sorted(self.files):
            if begin <= start < end:
                yield from ((start, path) for path in self.files[start])

    def rows(self, connection: duckdb.DuckDBPyConnection, files: list[tuple[datetime, str]]) -> str:
        """SQL for all rows of these files, with one more column, `partition_start`."""
        types = duckdb_types(connection, self.schema)
        starts = sorted({start for start, _ in files})
        parts = [
            f"SELECT *, TIMESTAMPTZ '{start.isoformat()}' AS partition_start "  # noqa: S608 - ours
            f"FROM ({read_files(self.schema, types, [path for of, path in files if of == start])})"
            for start in starts
        ]
        nothing = f"SELECT *, NULL::TIMESTAMPTZ AS partition_start FROM ({read_files(self.schema, types, [])})"  # noqa: S608 - ours
        return " UNION ALL ".join(parts) or nothing


def partitioned_files(catalog: Catalog, table: Table) -> PartitionedFiles:
    """What the table's newest snapshot holds. No data file is opened."""
    stored = catalog.load_table(table.identifier)
    files: dict[datetime, list[str]] = {}
    with reading_metadata(table):
        tasks = list(stored.scan().plan_files())
    for task in tasks:
        start = table.partition_start(task.file.partition[0])
        files.setdefault(start, []).append(unquote(urlsplit(task.file.file_path).path))
    return PartitionedFiles(stored.schema(), files)
