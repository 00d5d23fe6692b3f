"""What is done at its hour: the last closed days recomputed, tables tidied, quality judged. Off until turned on in the UI."""

import dagster as dg

from dagster_project.backfill import recompute
from dagster_project.partitions import day_before
from dagster_project.upkeep import upkeep

NIGHTLY_DAYS = 2
"""How many closed days a night computes again: what came late for them is then counted."""
PARTITION, FIRST, LAST = (
    "dagster/partition",
    "dagster/asset_partition_range_start",
    "dagster/asset_partition_range_end",
)
"""The tags by which a run is one of a partition, or of a range of them."""

recompute_days = dg.define_asset_job(
    "recompute_days",
    selection=[recompute],
    description="Computes the days again; in the launchpad also some hours of one.",
)
tidy_tables = dg.define_asset_job(
    "tidy_tables", selection=[upkeep], description="Compaction, expiry, orphans, retention."
)
judge_quality = dg.define_asset_job(
    "judge_quality",
    selection=dg.AssetSelection.all_asset_checks(),
    executor_def=dg.in_process_executor,  # each process would import for seconds what judges
    description="All asset checks on one day.",
)


@dg.schedule(job=recompute_days, cron_schedule="15 2 * * *", execution_timezone="UTC")
def nightly_recompute(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """The last closed days, so that late events are counted; soon after midnight a day may not be closed yet."""
    now = context.scheduled_execution_time
    return dg.RunRequest(
        run_key=f"{now:%Y-%m-%d}",
        tags={
            FIRST: day_before(now, NIGHTLY_DAYS),
            LAST: day_before(now, 1),
        },
    )


@dg.schedule(job=tidy_tables, cron_schedule="40 * * * *", execution_timezone="UTC")
def hourly_upkeep() -> dg.RunRequest:
    """Once an hour."""
    return dg.RunRequest()


@dg.schedule(job=judge_quality, cron_schedule="0 4 * * *", execution_timezone="UTC")
def daily_quality(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Yesterday, after the nightly recompute."""
    day = day_before(context.scheduled_execution_time, 1)
    return dg.RunRequest(run_key=day, tags={PARTITION: day})
