"""Upkeep of the tables: expires old snapshots, and deletes the files that only they needed.

    python -m jobs.upkeep

Each commit leaves a snapshot, which every later metadata file tells of again. Iceberg's own Java code expires them, because
PyIceberg's leaves their files behind. It commits as every writer does, so the stream, a recompute and readers may be at
work. Settings come from the environment (`SAGASCOPE_…`); one line of JSON a table on standard output, exit code 1 where
one could not be done.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from jobs.flink import prepare_jvm
from warehouse.catalog import BUSY_TIMEOUT_SECONDS, CATALOG_NAME, CatalogError, open_catalog
from warehouse.settings import InvalidSettingError, Settings
from warehouse.tables import TABLES

if TYPE_CHECKING:
    from pyiceberg.table.metadata import TableMetadata

    from warehouse.tables import Table

FLINK_MARK = "flink.max-committed-checkpoint-id"
"""In the summary of each snapshot that Flink committed: which checkpoint's files it holds."""


class Expired(msgspec.Struct, frozen=True, kw_only=True):
    """What was done to one table."""

    table: str
    expired: int = 0
    """Snapshots that are gone, with their files."""
    kept: int
    """Snapshots that are left."""
    reason: str = ""
    """Why it could not be done now; nothing is lost by that, and the next time does it. Empty: it was done."""


def expire(settings: Settings, now: datetime) -> list[Expired]:
    """Expire what every table no longer needs; the JVM that PyFlink has, or starts, must have Iceberg on its class path.

    A table where it fails does not keep it from the others.

    Args:
        settings: Where the tables are, and for how long what was current stays readable.
        now: The moment to count back from, aware.

    Raises:
        CatalogError: the catalog can't be opened.
    """
    cutoff = now - timedelta(minutes=settings.snapshots_kept_minutes)
    with closing(open_catalog(settings)) as catalog:
        found = {table: catalog.load_table(table.identifier).metadata for table in TABLES}
    due: dict[Table, int] = {}
    for table, metadata in found.items():
        since = needed_since(metadata, cutoff)
        if any(snapshot.timestamp_ms < since for snapshot in metadata.snapshots):
            due[table] = since
    outcomes = dict.fromkeys(found, (0, ""))
    if due:  # else not even a JVM is needed
        with closing(open_java_catalog(settings)) as java_catalog:
            outcomes |= {table: _expire(java_catalog, table, since) for table, since in due.items()}
    return [
        Expired(table=table.name, expired=expired, kept=len(found[table].snapshots) - expired, reason=reason)
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


def open_java_catalog(settings: Settings) -> Any:
    """The catalog as Iceberg's Java code has it, `org.apache.iceberg.catalog.Catalog`; close it after use.

    Raises:
        CatalogError: it can't be opened.
    """
    jvm = _jvm()
    catalog = jvm.org.apache.iceberg.jdbc.JdbcCatalog()
    catalog.setConf(jvm.org.apache.hadoop.conf.Configuration())
    options = {
        "uri": f"jdbc:sqlite:{settings.catalog_file}?busy_timeout={BUSY_TIMEOUT_SECONDS * 1000}",
        "warehouse": settings.warehouse_folder.as_uri(),
        "jdbc.schema-version": "V1",
    }
    try:
        catalog.initialize(CATALOG_NAME, options)
    except Exception as error:
        msg = f"the catalog {settings.catalog_file} can't be opened by Iceberg's Java code ({_first_line(error)})"
        raise CatalogError(msg) from error
    return catalog


def load_java_table(catalog: Any, table: Table) -> Any:
    """The table as Iceberg's Java code has it, `org.apache.iceberg.Table`."""
    return catalog.loadTable(_jvm().org.apache.iceberg.catalog.TableIdentifier.parse(".".join(table.identifier)))


def _expire(catalog: Any, table: Table, since: int) -> tuple[int, str]:
    """How many snapshots are gone, and why none could be."""
    try:
        # The time is always given: Iceberg's own default would expire what is five days old, whatever walks over it.
        expiry = load_java_table(catalog, table).expireSnapshots().expireOlderThan(since)
        expired = int(expiry.apply().size())
        expiry.commit()  # what does not win its commit deletes nothing
    except Exception as error:  # noqa: BLE001 - Py4J's, around whatever Java threw
        return 0, _first_line(error)
    return expired, ""


def _first_line(error: Exception) -> str:
    """Class and message of the Java exception that Py4J wrapped, without its stack."""
    return str(getattr(error, "java_exception", error)).split("\n", 1)[0]


def _jvm() -> Any:
    from pyflink.java_gateway import get_gateway  # noqa: PLC0415 - starts a JVM, which reads what prepare_jvm set

    return get_gateway().jvm


def main() -> None:
    """Entry point."""
    argparse.ArgumentParser(
        prog="python -m jobs.upkeep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        settings = Settings.from_environment(os.environ)
        prepare_jvm(settings, heap="512m", log="upkeep")
        outcomes = expire(settings, datetime.now(UTC))
    except (InvalidSettingError, CatalogError, OSError) as error:
        _say("refused", reason=str(error))
        sys.exit(1)
    for outcome in outcomes:
        _say("failed" if outcome.reason else "finished", **msgspec.structs.asdict(outcome))
    sys.exit(1 if any(outcome.reason for outcome in outcomes) else 0)


def _say(status: str, **facts: object) -> None:
    sys.stdout.write(json.dumps({"job": "upkeep", "status": status} | facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
