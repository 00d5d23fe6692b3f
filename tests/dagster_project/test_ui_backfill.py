"""Backfills as a person runs them in the UI, on a week of seeded history: a day that failed is seen as failed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from pipelines.seed import Seeded, seed
from tests.dagster_project.dagster_dev import REPORTS, Dagster, dagster_dev
from tests.servers.chromium import load
from tests.warehouse.planted import paths
from warehouse import windows
from warehouse.settings import Settings
from warehouse.tables import COMPUTED, EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS_OF_A_BACKFILL = 300
LAUNCH = """mutation Launch($given: LaunchBackfillParams!) {
    launchPartitionBackfill(backfillParams: $given) {
        __typename
        ... on LaunchBackfillSuccess { backfillId }
        ... on PythonError { message }
    }
}"""
BACKFILL = """query Backfill($id: String!) {
    partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } }
}"""
RUNS = """{
    runsOrError(limit: 20) { ... on Runs { results {
        runId status tags { key value }
        eventConnection(limit: 1000) { events {
            __typename ... on MessageEvent { message } ... on ExecutionStepFailureEvent { error { message } }
        } }
    } } }
}"""


class Week(NamedTuple):
    """A running Dagster over a seeded week."""

    dagster: Dagster
    settings: Settings
    seeded: Seeded

    @property
    def days(self) -> list[str]:
        """Its partitions."""
        return [f"{self.seeded.first + timedelta(days=number)}" for number in range(self.seeded.days)]

    def backfill(self, days: list[str]) -> str:
        """What became of a backfill of all computed tables."""
        given = {"assetSelection": [{"path": [table.name]} for table in COMPUTED], "partitionNames": days}
        launched = self.dagster.ask(LAUNCH, given=given)["launchPartitionBackfill"]["backfillId"]

        def status() -> str:
            now: str = self.dagster.ask(BACKFILL, id=launched)["partitionBackfillOrError"]["status"]
            return "" if now in {"REQUESTED", "COMPLETED", "FAILING"} else now

        return self.dagster.wait_for(status, SECONDS_OF_A_BACKFILL)

    def run_of(self, first: str, last: str) -> dict[str, Any]:
        """The newest run of a range of days."""
        wanted = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
        for run in self.dagster.ask(RUNS)["runsOrError"]["results"]:
            tags = {tag["key"]: tag["value"] for tag in run["tags"]}
            if wanted.items() <= tags.items():
                return dict(run)
        pytest.fail(f"no run of {first} to {last}")

    def statuses(self, table: str) -> dict[str, str]:
        """What each range of days is shown as."""
        node = self.dagster.ask(REPORTS, asset={"path": [table]})["assetNodeOrError"]
        return {
            f"{one['startKey']}..{one['endKey']}": one["status"] for one in node["assetPartitionStatuses"]["ranges"]
        }


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Week]:
    """Seven days, about 40 sagas each."""
    settings = Settings(home=str(tmp_path_factory.mktemp("seeded")))
    seeded = seed(settings, datetime.now(UTC), sagas_a_day=40)
    with dagster_dev(tmp_path_factory.mktemp("dagster"), settings) as dagster:
        yield Week(dagster, settings, seeded)


def test_a_week_is_mended_by_a_backfill(week: Week) -> None:
    """Seven days are one run, each day is reported with its rows and seconds, and the statistics equal the events."""
    assert not windows.compare(week.settings).is_whole
    assert week.backfill(week.days) == "COMPLETED_SUCCESS"
    assert windows.compare(week.settings).is_whole
    run = week.run_of(week.days[0], week.days[-1])
    assert run["status"] == "SUCCESS"
    for table in COMPUTED:
        reports = week.dagster.reports(table.name)
        assert reports.keys() == set(week.days)
        assert all(report["computed by"] == "jobs.recompute" for report in reports.values())
        assert all(report["dagster/partition_row_count"] > 0 for report in reports.values())
        assert week.statuses(table.name) == {f"{week.days[0]}..{week.days[-1]}": "MATERIALIZED"}
    checked = [one for one in run["eventConnection"]["events"] if one["__typename"] == "AssetCheckEvaluationEvent"]
    assert len(checked) >= len(COMPUTED) * len(week.days)


def test_a_day_that_failed_is_seen_as_failed(week: Week) -> None:
    """A damaged file fails its day and is named, with what to do; the day before is done."""
    first, second = week.days[-2:]
    [damaged] = [path for path in paths(week.settings, EVENTS) if second in str(path)]
    whole = damaged.read_bytes()
    damaged.write_bytes(b"no Parquet")
    try:
        week.backfill([first, second])
        run = week.run_of(first, second)
        assert run["status"] == "FAILURE"
        said = str(run["eventConnection"]["events"])
        assert damaged.name in said
        assert "bring these files back" in said
        assert week.statuses("step_stats") == {
            f"{week.days[0]}..{first}": "MATERIALIZED",
            f"{second}..{second}": "FAILED",
        }
    finally:
        damaged.write_bytes(whole)
    assert week.backfill([second]) == "COMPLETED_SUCCESS"
    assert week.statuses("step_stats") == {f"{week.days[0]}..{second}": "MATERIALIZED"}


def test_days_ahead_are_refused_by_name(week: Week) -> None:
    """A day that is before the first event has nothing to compute: the run says which and is not tried again."""
    day = f"{week.seeded.first - timedelta(days=3)}"
    week.backfill([day])
    [run] = [one for one in week.dagster.ask(RUNS)["runsOrError"]["results"] if day in str(one["tags"])]
    assert run["status"] == "FAILURE"
    assert "there is no event before" in str(run["eventConnection"]["events"])


def test_the_pages_are_shown(week: Week, tmp_path: Path) -> None:
    """In a browser the asset's page tells its words."""
    url = f"http://127.0.0.1:{week.dagster.port}/assets/saga_runs?view=overview"
    assert "What became of each run that ended" in load(url, tmp_path, seconds=20).dom
