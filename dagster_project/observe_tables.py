"""Reports each day of each table that has changed since it was last reported: a job by hand, a sensor by itself."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

import dagster as dg

from dagster_project.day_reports import VERSION, report_of, version_of
from dagster_project.lake import LakeResource, NoTablesError
from dagster_project.observations import observe
from dagster_project.partitions import DAYS, START
from warehouse.tables import TABLES

SECONDS_BETWEEN_LOOKS = 30


@dataclass
class News:
    """What changed since the last report."""

    reports: list[dg.AssetMaterialization] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Days with rows that no partition stands for."""

    def __str__(self) -> str:
        """One sentence for a log."""
        counts = Counter(report.asset_key.to_user_string() for report in self.reports)
        words = [f"{count} day(s) of {name} reported" for name, count in counts.items()] or ["nothing new"]
        if self.left_out:
            words.append(f"left out, being before {START} or after today: {', '.join(self.left_out)}")
        return "; ".join(words)


def gather_news(instance: dg.DagsterInstance, lake: LakeResource, now: datetime) -> News:
    """A report of each day whose rows or newest snapshot differ from those last reported; a table's days in order.

    A day that lost all its rows is reported once, with 0 rows.

    Raises:
        NoTablesError: there is no catalog.
    """
    news = News()
    with lake.open() as catalog:
        for table in TABLES:
            stored = catalog.load_table(table.identifier)
            days = {day.isoformat(): observation for day, observation in observe(stored).items()}
            about: dict[str, dg.MetadataValue] = {
                "dagster/row_count": dg.MetadataValue.int(sum(day.rows for day in days.values())),
                "location": dg.MetadataValue.path(stored.location()),
            }
            reported = _reported_versions(instance, dg.AssetKey(table.name))
            for day in sorted(days.keys() | reported.keys()):
                observation = days.get(day)
                if reported.get(day) == version_of(observation):
                    continue
                if not DAYS.has_partition_key(day):
                    news.left_out.append(f"{day} of {table.name}")
                    continue
                news.reports.append(report_of(table, day, observation, now, about))
    return news


@dg.op(description="Reports each day that has new rows since it was last reported.")
def report_new_rows(context: dg.OpExecutionContext, lake: LakeResource) -> None:
    """A materialization event for each changed day."""
    try:
        news = gather_news(context.instance, lake, datetime.now(UTC))
    except NoTablesError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    for report in news.reports:
        context.log_event(report)
    context.log.info(str(news))


@dg.job(
    description="Looks at all tables now. The sensor new_rows does the same by itself.",
    executor_def=dg.in_process_executor,
)
def observe_tables() -> None:
    """One look, as a run of its own."""
    report_new_rows()


@dg.sensor(
    minimum_interval_seconds=SECONDS_BETWEEN_LOOKS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks at all tables and reports each day that has new rows; starts no run.",
)
def new_rows(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SensorResult:
    """The same events without a run, so that a look every half minute does not fill the list of runs."""
    try:
        news = gather_news(context.instance, lake, datetime.now(UTC))
    except NoTablesError as error:
        return dg.SensorResult(skip_reason=str(error))
    return dg.SensorResult(asset_events=news.reports, skip_reason=str(news))


def _reported_versions(instance: dg.DagsterInstance, asset: dg.AssetKey) -> dict[str, str]:
    """The version last reported of each day, in one query: DagsterInstance's own methods take one a day."""
    latest = instance.event_log_storage.get_latest_tags_by_partition(
        asset, dg.DagsterEventType.ASSET_MATERIALIZATION, [VERSION]
    )
    return {day: tags[VERSION] for day, tags in latest.items()}
