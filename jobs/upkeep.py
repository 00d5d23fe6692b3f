"""Upkeep of the tables: compacts small files, expires snapshots, deletes files that nobody needs and rows that are too old.

    python -m jobs.upkeep [retain|compact|expire|orphans …] [--table NAME …] [--dry-run]

All four actions in this order, of all tables, where none is named. The stream, a recompute, readers and another upkeep may
be at work; one that is killed leaves nothing but files, which a later one deletes. Rows are sorted by DuckDB; what is to be
one commit that removes files is made by Iceberg's Java code, because PyIceberg has no such commit, and its expiry leaves the
files behind. Settings come from the environment (`SAGASCOPE_…`); one line of JSON a table and action on standard output, and
to Dagster by Pipes; exit code 1 where one could not be done.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from jobs.compaction import compact
from jobs.flink import prepare_jvm
from jobs.java_iceberg import first_line, load_java_table, open_java_catalog
from jobs.reporting import reporting
from warehouse import maintenance, retention
from warehouse.catalog import CatalogError, open_catalog
from warehouse.errors import WarehouseError
from warehouse.maintenance import FLINK_MARK, Outcome
from warehouse.settings import InvalidSettingError, Settings
from warehouse.tables import TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pyiceberg.catalog import Catalog
    from pyiceberg.table.metadata import TableMetadata

    from warehouse.tables import Table

ACTIONS = ("retain", "compact", "expire", "orphans")
"""In the order in which they help one another: what is too old is not compacted, what was replaced is expired later."""


def upkeep(
    settings: Settings,
    now: datetime,
    actions: Sequence[str] = ACTIONS,
    tables: Sequence[Table] = TABLES,
    *,
    dry_run: bool = False,
) -> Iterator[Outcome]:
    """Do the actions, one after the other, on each table; yields what became of each at once.

    A table where one fails does not keep it from the others.

    Args:
        settings: Where the tables are, and what is kept for how long.
        now: The moment to count back from, aware.
        actions: Of `ACTIONS`.
        tables: Which ones.
        dry_run: Only say what would be done.

    Raises:
        CatalogError: the catalog can't be opened.
    """
    for action in ACTIONS:
        if action not in actions:
            continue
        if action == "expire":
            yield from expire(settings, now, tables, dry_run=dry_run)
            continue
        act = {"retain": _retain, "compact": compact, "orphans": _remove_orphans}[action]
        with closing(open_catalog(settings)) as catalog:
            for table in tables:
                began = time.monotonic()
                outcome = _try(action, table, lambda: act(settings, catalog, table, now, dry_run))  # noqa: B023 - called at once
                yield msgspec.structs.replace(outcome, dry_run=dry_run, seconds=round(time.monotonic() - began, 3))


def _try(action: str, table: Table, act: Callable[[], Outcome]) -> Outcome:
    try:
        return act()
    except Exception as error:  # noqa: BLE001 - PyIceberg's, DuckDB's, of the disk, or Py4J's around whatever Java threw
        reason = str(error) if isinstance(error, WarehouseError) else first_line(error)
        return Outcome(action=action, table=table.name, reason=reason)


def _retain(settings: Settings, catalog: Catalog, table: Table, now: datetime, dry_run: bool) -> Outcome:  # noqa: FBT001
    files, size = maintenance.files_and_bytes(catalog, table)
    old = retention.find(settings, catalog, table, now)
    if old is None:
        return Outcome(
            action="retain",
            table=table.name,
            files_before=files,
            files_after=files,
            bytes_before=size,
            bytes_after=size,
        )
    if not dry_run:
        retention.delete(settings, catalog, table, old)
    return Outcome(
        action="retain",
        table=table.name,
        files_before=files,
        files_after=files - old.files,
        bytes_before=size,
        bytes_after=size - old.bytes,
        rows_deleted=old.rows,
        kept_since=old.before,
    )


def _remove_orphans(settings: Settings, catalog: Catalog, table: Table, now: datetime, dry_run: bool) -> Outcome:  # noqa: FBT001
    stored = catalog.load_table(table.identifier)
    if stored.properties.get("gc.enabled", "true") == "false":
        msg = (
            f"{table.name}: its files may belong to another table, too (property gc.enabled is false): none is deleted"
        )
        raise WarehouseError(msg)
    orphans = maintenance.find_orphans(settings, stored, now)
    if not dry_run:
        for orphan in orphans:
            orphan.path.unlink(missing_ok=True)
    return Outcome(
        action="orphans",
        table=table.name,
        orphan_files=len(orphans),
        orphan_bytes=sum(orphan.bytes for orphan in orphans),
    )


def expire(
    settings: Settings, now: datetime, tables: Sequence[Table] = TABLES, *, dry_run: bool = False
) -> list[Outcome]:
    """Expire what every table no longer needs; the JVM that PyFlink has, or starts, must have Iceberg on its class path.

    A table where it fails does not keep it from the others.

    Args:
        settings: Where the tables are, and for how long what was current stays readable.
        now: The moment to count back from, aware.
        tables: Which ones.
        dry_run: Only say what would be done.

    Raises:
        CatalogError: the catalog can't be opened.
    """
    cutoff = now - timedelta(minutes=settings.snapshots_kept_minutes)
    began = time.monotonic()
    with closing(open_catalog(settings)) as catalog:
        found = {table: catalog.load_table(table.identifier).metadata for table in tables}
    due: dict[Table, int] = {}
    outcomes: dict[Table, tuple[int, str]] = {}
    for table, metadata in found.items():
        since = needed_since(metadata, cutoff)
        old = sum(snapshot.timestamp_ms < since for snapshot in metadata.snapshots)
        outcomes[table] = old if dry_run else 0, ""
        if old and not dry_run:
            due[table] = since
    if due:  # else not even a JVM is needed
        with closing(open_java_catalog(settings)) as java_catalog:
            outcomes |= {table: _expire(java_catalog, table, since) for table, since in due.items()}
    seconds = round(time.monotonic() - began, 3)
    return [
        Outcome(
            action="expire",
            table=table.name,
            dry_run=dry_run,
            snapshots_expired=expired,
            snapshots_kept=len(found[table].snapshots) - expired,
            seconds=seconds,
            reason=reason,
        )
        for table, (expired, reason) in outcomes.items()
    ]


def needed_since(metadata: TableMetadata, cutoff: datetime) -> int:
    """The commit time, in ms since the epoch, of the oldest snapshot that must stay; 0 where there is none at all.

    What must stay goes back from the current snapshot without a gap to the newest one of Flink's that was there at the
    cutoff, or where Flink had made none, to the one that was current then:

    - A reader that planned at the cutoff or later holds a snapshot that may have been made long before.
    - A job that resumes from a checkpoint walks from parent to parent to the newest snapshot that its own run marked. If it
      finds none, it commits that checkpoint's files again, and their rows count twice.
    """
    by_id = {snapshot.snapshot_id: snapshot for snapshot in metadata.snapshots}
    snapshot, oldest, was_current = metadata.current_snapshot(), 0, 0
    while snapshot is not None:
        # Clocks step back a little at times: what counts is the earliest time on the way, not the last one seen.
        oldest = min(oldest or snapshot.timestamp_ms, snapshot.timestamp_ms)
        if snapshot.timestamp_ms <= cutoff.timestamp() * 1000:
            was_current = was_current or oldest
            if snapshot.summary is not None and snapshot.summary[FLINK_MARK] is not None:
                return oldest
        snapshot = by_id.get(snapshot.parent_snapshot_id or 0)
    return was_current or oldest


def _expire(catalog: Any, table: Table, since: int) -> tuple[int, str]:
    """How many snapshots are gone, and why none could be."""
    try:
        # The time is always given: Iceberg's own default would expire what is five days old, whatever walks over it.
        expiry = load_java_table(catalog, table).expireSnapshots().expireOlderThan(since)
        expired = int(expiry.apply().size())
        expiry.commit()  # what does not win its commit deletes nothing
    except Exception as error:  # noqa: BLE001 - Py4J's, around whatever Java threw
        return 0, first_line(error)
    return expired, ""


def main() -> None:
    """Entry point."""
    named = {table.name: table for table in TABLES}
    parser = argparse.ArgumentParser(
        prog="python -m jobs.upkeep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("actions", nargs="*", metavar="ACTION", help=f"of {', '.join(ACTIONS)}; default: all")
    parser.add_argument("--table", action="append", choices=named, help="only this one; may be given again")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    given = parser.parse_args()
    if unknown := [action for action in given.actions if action not in ACTIONS]:
        parser.error(f"{unknown[0]!r} is no action; the actions are {', '.join(ACTIONS)}")
    failed = False
    with reporting("upkeep") as say:
        try:
            settings = Settings.from_environment(os.environ)
            prepare_jvm(settings, heap="512m", log="upkeep-jvm")  # upkeep.log is what a caller makes of the output
            tables = [named[name] for name in dict.fromkeys(given.table or named)]
            actions = given.actions or ACTIONS
            for outcome in upkeep(settings, datetime.now(UTC), actions, tables, dry_run=given.dry_run):
                failed |= bool(outcome.reason)
                say("failed" if outcome.reason else "finished", **msgspec.structs.asdict(outcome))
        except (InvalidSettingError, CatalogError, OSError) as error:
            say("refused", reason=str(error))
            failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
