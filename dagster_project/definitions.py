"""What Dagster loads: `dagster dev -m dagster_project.definitions`."""

import dagster as dg

from dagster_project.alerts import failed_runs
from dagster_project.assets import WATCHED
from dagster_project.backfill import recompute
from dagster_project.imports import IMPORTS
from dagster_project.lake import LakeResource
from dagster_project.mending import mend
from dagster_project.observe_tables import new_rows, observe_tables
from dagster_project.quality import CHECKS
from dagster_project.schedules import (
    daily_quality,
    hourly_upkeep,
    judge_quality,
    nightly_recompute,
    recompute_days,
    tidy_tables,
)
from dagster_project.upkeep import upkeep

defs = dg.Definitions(
    assets=[*WATCHED, recompute, upkeep, *IMPORTS],
    asset_checks=CHECKS,
    jobs=[observe_tables, recompute_days, tidy_tables, judge_quality],
    schedules=[nightly_recompute, hourly_upkeep, daily_quality],
    sensors=[new_rows, mend, failed_runs],
    resources={"lake": LakeResource()},
)
