"""The backfill: what is computed from `events`, computed again for the days that are asked for."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime

import dagster as dg
from pydantic import Field

from dagster_project.assets import asset_of
from dagster_project.day_reports import report_of
from dagster_project.lake import LakeResource, NoTablesError
from dagster_project.observations import observe
from dagster_project.partitions import DAYS
from dagster_project.started_jobs import Said, follow
from warehouse.catalog import open_catalog
from warehouse.settings import Settings
from warehouse.tables import COMPUTED

ONE_WRITER = "recompute"
"""The pool of what replaces rows: dagster.yaml lets one run in at a time."""


class Hours(dg.Config):
    """Some hours of a day, instead of all."""

    since: str = Field("", description="From this hour on, e.g. 2026-11-23T10:00Z; empty: from the first day's begin.")
    until: str = Field("", description="Before this hour; empty: to the last day's end, of today what is closed.")


@dg.multi_asset(
    name="recompute",
    specs=[asset_of(table) for table in COMPUTED],
    description="Reads `events`, computes these tables' rows of the days again, and puts them in the place of those stored.",
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    can_subset=True,
    retry_policy=dg.RetryPolicy(max_retries=2, delay=20, backoff=dg.Backoff.EXPONENTIAL),
    pool=ONE_WRITER,
)
def recompute(
    context: dg.AssetExecutionContext, config: Hours, lake: LakeResource
) -> Iterator[dg.MaterializeResult[None]]:
    """One process for all days and tables; each day of each table is reported as soon as its rows are stored."""
    try:
        settings = lake.settings()
    except NoTablesError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    span = context.partition_time_window
    tables = {table.name: table for table in COMPUTED if dg.AssetKey(table.name) in context.selected_asset_keys}
    since = config.since or _hour(span.start)
    arguments = ["--from", since, "--tables", ",".join(tables)]
    until = config.until or ("" if span.end > datetime.now(UTC) else _hour(span.end))
    if until:
        arguments += ["--to", until]
    for said in follow(context.op_execution_context, settings, "jobs.recompute", *arguments):
        if said["status"] == "stored":
            context.log_event(_report(settings, said))
        elif said["status"] == "failed" and "day" in said:
            context.log.error("%s: %s", said["day"], said["reason"])
    yield from ()  # every day has been reported; a result would report all of them once more


def _report(settings: Settings, said: Said) -> dg.AssetMaterialization:
    """Of a day that the job has just stored; the same that `new_rows` would report of it."""
    [table] = [table for table in COMPUTED if table.name == said["table"]]
    with closing(open_catalog(settings)) as catalog:
        observation = observe(catalog.load_table(table.identifier)).get(date.fromisoformat(said["day"]))
    return report_of(
        table,
        said["day"],
        observation,
        datetime.now(UTC),
        {"seconds": dg.MetadataValue.float(said["seconds"]), "computed by": dg.MetadataValue.text("jobs.recompute")},
    )


def _hour(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%MZ}"
