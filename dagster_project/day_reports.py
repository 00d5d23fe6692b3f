"""What Dagster is told of one day of one table: a materialization, with rows, files and the newest snapshot.

It is no observation, because Dagster shows a day as filled by materializations alone
(https://github.com/dagster-io/dagster/issues/15764).
"""

from collections.abc import Mapping
from datetime import datetime

import dagster as dg

from dagster_project.observations import DayObservation
from warehouse.tables import Table

VERSION = "dagster/data_version"
"""The tag by which Dagster keeps what was last reported of a day."""
EMPTIED = "empty"


def version_of(observation: DayObservation | None) -> str:
    """What tells two states of a day apart; None: it has no rows."""
    return f"{observation.snapshot_id}-{observation.rows}" if observation else EMPTIED


def report_of(
    table: Table,
    day: str,
    observation: DayObservation | None,
    now: datetime,
    about: Mapping[str, dg.MetadataValue] | None = None,
) -> dg.AssetMaterialization:
    """The report of a day, e.g. 2026-03-01; without an observation it has no rows. `about` is put to its metadata."""
    return dg.AssetMaterialization(
        table.name,
        partition=day,
        metadata=_metadata_of(table, observation, now) | dict(about or {}),
        tags={VERSION: version_of(observation)},
    )


def _metadata_of(table: Table, observation: DayObservation | None, now: datetime) -> dict[str, dg.MetadataValue]:
    """What the UI shows of a day."""
    if observation is None:
        return {"dagster/partition_row_count": dg.MetadataValue.int(0), "files": dg.MetadataValue.int(0)}
    metadata: dict[str, dg.MetadataValue] = {
        "dagster/partition_row_count": dg.MetadataValue.int(observation.rows),
        "files": dg.MetadataValue.int(observation.files),
        "bytes": dg.MetadataValue.int(observation.bytes),
        "snapshot_id": dg.MetadataValue.text(str(observation.snapshot_id)),  # a browser's numbers can't hold it
    }
    if observation.committed_at:
        metadata["committed_at"] = dg.MetadataValue.timestamp(observation.committed_at)
        metadata["commit_age_seconds"] = dg.MetadataValue.float(
            round((now - observation.committed_at).total_seconds(), 1)
        )
    if observation.newest:
        metadata[f"newest_{table.time_column}"] = dg.MetadataValue.timestamp(observation.newest)
    return metadata
