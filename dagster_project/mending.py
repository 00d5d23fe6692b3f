"""The sensor that has hours computed again whose statistics are not what `events` say."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg

from dagster_project.backfill import Hours, recompute
from dagster_project.lake import LakeResource, NoTablesError
from dagster_project.schedules import recompute_days
from warehouse import windows

LOOK_BACK = timedelta(days=2)
LATE_EVENTS = 10
"""So many events of an hour that its windows do not count are reason to compute it again; fewer await the night."""
SECONDS_BETWEEN_LOOKS = 300
HOUR = timedelta(hours=1)
UNDONE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


def hours_to_mend(comparison: windows.Comparison, late: int = LATE_EVENTS) -> list[datetime]:
    """The hours in which a window is wrong, or in which `late` events or more are not counted; in order."""
    return sorted(
        {
            hour
            for table in comparison.tables
            for hour, found in table.hours.items()
            if found.wrong or found.late >= late
        }
    )


def spans(hours: list[datetime]) -> list[tuple[datetime, datetime]]:
    """Neighbouring hours of one day as [since, until)."""
    found: list[tuple[datetime, datetime]] = []
    for hour in hours:
        if found and hour == found[-1][1] and hour.hour:
            found[-1] = found[-1][0], hour + HOUR
        else:
            found.append((hour, hour + HOUR))
    return found


@dg.sensor(
    job=recompute_days,
    minimum_interval_seconds=SECONDS_BETWEEN_LOOKS,
    description=f"Compares the statistics of the last {LOOK_BACK.days} days with the events, and has just those hours "
    "computed again that are wrong or lack late events.",
)
def mend(context: dg.SensorEvaluationContext, lake: LakeResource) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """One run for each span of neighbouring hours; the same hours again only where events came meanwhile."""
    if context.instance.get_runs(dg.RunsFilter(job_name=recompute_days.name, statuses=UNDONE), limit=1):
        yield dg.SkipReason("a recompute is at work")
        return
    try:
        settings = lake.settings()
    except NoTablesError as error:
        yield dg.SkipReason(str(error))
        return
    comparison = windows.compare(settings, datetime.now(UTC) - LOOK_BACK)
    hours = hours_to_mend(comparison)
    if not hours:
        late = max((table.late for table in comparison.tables), default=0)
        yield dg.SkipReason(f"nothing to mend; {late} late events await the night")
        return
    for since, until in spans(hours):
        found = [table.hours.get(since) for table in comparison.tables]
        yield dg.RunRequest(
            run_key=f"{since:%Y-%m-%dT%H} {until:%Y-%m-%dT%H} {found}",
            partition_key=f"{since:%Y-%m-%d}",
            run_config=dg.RunConfig(ops={recompute.op.name: Hours(since=_text(since), until=_text(until))}),
        )


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%MZ}"
