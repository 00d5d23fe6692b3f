"""How long rows are kept: whole days that are older than a table's setting are deleted, and from when on it is kept is noted.

What a table no longer has is no loss, once it is known: the note, a property of the table, has parity, the comparison of
windows and the recompute leave out what is before it. Definitions of sagas are never deleted: there is no setting for them.
"""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, NamedTuple

from pyiceberg.expressions.parser import parse
from pyiceberg.io.pyarrow import schema_to_pyarrow

from warehouse.replace import only_writer, replace_rows
from warehouse.tables import COMPUTED, EVENTS, REJECTED_EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyiceberg.catalog import Catalog

    from warehouse.settings import Settings
    from warehouse.tables import Table

KEPT_SINCE = "sagascope.kept-since"
"""The table's property: the moment before which its rows were deleted."""


class Old(NamedTuple):
    """What of a table is older than it is kept."""

    before: datetime
    """The first moment that is kept; a midnight, UTC."""
    rows: int
    files: int
    bytes: int


def kept_days(settings: Settings, table: Table) -> int:
    """So many whole days of the table, besides today, are kept; 0: all of them."""
    if table is EVENTS:
        return settings.events_kept_days
    if table is REJECTED_EVENTS:
        return settings.rejected_events_kept_days
    return settings.statistics_kept_days if table in COMPUTED else 0


def find(settings: Settings, catalog: Catalog, table: Table, now: datetime) -> Old | None:
    """What of the table is in partitions of days before those that are kept; None where all days are. No file is opened.

    Args:
        settings: For how many days each table is kept.
        catalog: Opened from the same settings.
        table: Which one.
        now: The moment whose day, UTC, is today; aware.
    """
    days = kept_days(settings, table)
    if not days:
        return None
    before = datetime.combine(now.astimezone(UTC).date() - timedelta(days=days), time(), UTC)
    files = [
        task.file
        for task in catalog.load_table(table.identifier)
        .scan(f"{table.time_column} < '{before.isoformat()}'")
        .plan_files()
    ]
    old = [file for file in files if table.partition_start(file.partition[0]) < before]
    return Old(before, sum(file.record_count for file in old), len(old), sum(file.file_size_in_bytes for file in old))


def delete(settings: Settings, catalog: Catalog, table: Table, old: Old) -> None:
    """Note from when on the table is kept, then delete the rows before, in one commit that opens no file.

    In this order, so that whoever is stopped between the two leaves rows that nobody compares, and the next time deletes.
    The files go when the snapshots that name them expire.

    Raises:
        ReplacedMeanwhileError: others commit all the time.
    """
    if not old.files:
        return
    with only_writer(settings, table):
        stored = catalog.load_table(table.identifier)
        noted = _noted(stored.properties.get(KEPT_SINCE))
        if noted is None or noted < old.before:
            with stored.transaction() as transaction:
                transaction.set_properties({KEPT_SINCE: old.before.isoformat()})
    nothing = schema_to_pyarrow(table.schema, include_field_ids=False).empty_table()
    replace_rows(settings, catalog, table, nothing, parse(f"{table.time_column} < '{old.before.isoformat()}'"))


def kept_since(catalog: Catalog, tables: Iterable[Table]) -> datetime | None:
    """From when on all of these tables are kept; None where nothing of any was ever deleted by age."""
    noted = [_noted(catalog.load_table(table.identifier).properties.get(KEPT_SINCE)) for table in tables]
    return max(filter(None, noted), default=None)


def _noted(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
