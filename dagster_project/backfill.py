"""The backfill: what is computed from `events`, computed again for the days that are asked for."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime

import dagster as dg
from pydantic import Field

from dagster_project.assets import asset_of
from dagster_project.day_reports import report_of
from dagster_project.lake import LakeResource
from dagster_project.observations import observe
from dagster_project.partitions import DAYS
from dagster_project.quality import days_of, judge, specs_of
from dagster_project.started_jobs import Said, follow
from warehouse.catalog import open_catalog
from warehouse.settings import Settings
from warehouse.tables import COMPUTED, Table

ONE_WRITER = "recompute"
"""The pool of what replaces rows: dagster.yaml lets one run in at a time."""


class Hours(dg.Config):
    """Some hours of a day, instead of all."""

    since: str = Field("", description="From this hour on, e.g. 2026-11-23T10:00Z; empty: from the first day's begin.")
    until: str = Field("", description="Before this hour; empty: to the last day's end, of today what is closed.")


@dg.multi_asset(
    name="recompute",
    specs=[asset_of(table) for table in COMPUTED],
    check_specs=[spec for table in COMPUTED for spec in specs_of(table)],
    description="Reads `events`, computes these tables' rows of the days again, puts them in the place of those stored, and "
    "judges them. Where only checks are chosen, judges what is stored.",
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    can_subset=True,
    retry_policy=dg.RetryPolicy(max_retries=2, delay=20, backoff=dg.Backoff.EXPONENTIAL),
    pool=ONE_WRITER,
)
def recompute(
    context: dg.AssetExecutionContext, config: Hours, lake: LakeResource
) -> Iterator[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
    """One process for all days and tables; each day of each table is reported as soon as its rows are stored."""
    settings = lake.settings_or_fail()
    days = days_of(context.op_execution_context)
    tables = {table.name: table for table in COMPUTED if dg.AssetKey(table.name) in context.selected_asset_keys}
    checks = context.selected_asset_check_keys
    if not tables:
        for day in days:
            for table in COMPUTED:
                yield from judge(settings, table, day, checks)
        return
    span = context.partition_time_window
    # Of the day that the stream is in, what is closed.
    hours = ["--from", config.since or _hour(span.start), "--to", config.until or _hour(span.end), "--clip"]
    done: dict[str, set[str]] = {}
    for said in follow(context.op_execution_context, settings, "jobs.recompute", *hours, "--tables", ",".join(tables)):
        if said["status"] == "stored":
            done.setdefault(said["day"], set()).add(said["table"])
            yield _report(settings, tables[said["table"]], said)
            yield from judge(settings, tables[said["table"]], said["day"], checks)
        elif said["status"] == "failed" and "day" in said:
            context.log.error("%s: %s", said["day"], said["reason"])
    if lacking := [day for day in days if not tables.keys() <= done.get(day, set())]:
        msg = f"not closed yet, so not computed: {', '.join(lacking)}. Try again when the stream is past them"
        raise dg.Failure(msg, allow_retries=False)


def _report(settings: Settings, table: Table, said: Said) -> dg.AssetMaterialization:
    """Of a day that the job has just stored; the same that `new_rows` would report of it."""
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
