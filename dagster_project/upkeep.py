"""Upkeep of the tables as an asset: compaction, expiry of snapshots, orphaned files, retention."""

from collections.abc import Iterator

import dagster as dg

from dagster_project.lake import LakeResource
from dagster_project.started_jobs import follow
from warehouse.tables import NAMESPACE, TABLES


@dg.asset(
    deps=[table.name for table in TABLES],
    group_name=NAMESPACE,
    kinds={"iceberg"},
    description="What was last done to keep the tables' files few and of a good size. The stream may be at work meanwhile.",
    retry_policy=dg.RetryPolicy(max_retries=1, delay=60),
    pool="upkeep",
)
def upkeep(context: dg.AssetExecutionContext, lake: LakeResource) -> Iterator[dg.MaterializeResult[None]]:
    """One process does all of it; what it did to each table is the metadata."""
    settings = lake.settings_or_fail()
    done = list(follow(context.op_execution_context, settings, "jobs.upkeep"))
    columns = list(dict.fromkeys(key for said in done for key in said if key not in {"job", "status", "reason"}))
    records = [dg.TableRecord({key: said.get(key) for key in columns}) for said in done if "table" in said]
    yield dg.MaterializeResult(metadata={"done": dg.MetadataValue.table(records)} if records else {})
