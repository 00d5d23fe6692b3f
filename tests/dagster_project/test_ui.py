"""What a person sees who opens Dagster: webserver, daemon and sensor run as `make dagster` starts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dagster_project.imports import IMPORTS
from tests.dagster_project.dagster_dev import REPORTS, Dagster, dagster_dev
from warehouse.tables import COMPUTED, EVENTS, STATISTICS, STEP_STATS, TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.dagster_project.conftest import Lake

ASSETS = """{
    assetNodes {
        assetKey { path }
        description
        dependencyKeys { path }
        freshnessStatusInfo { freshnessStatus }
        isExecutable
        kinds
        metadataEntries { ... on TableSchemaMetadataEntry { schema { columns { name } } } }
    }
}"""
OUR_CODE = 'repositoryLocationName: "dagster_project.definitions", repositoryName: "__repository__"'
LAUNCH = f"""mutation {{
    launchRun(executionParams: {{ selector: {{ {OUR_CODE}, jobName: "observe_tables" }} }}) {{
        ... on LaunchRunSuccess {{ run {{ runId }} }}
        ... on PythonError {{ message }}
    }}
}}"""
RUN = "query Run($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
SENSORS = f"""{{
    sensorsOrError(repositorySelector: {{ {OUR_CODE} }}) {{
        ... on Sensors {{ results {{ name sensorState {{ status ticks(limit: 1) {{ status skipReason }} }} }} }}
    }}
}}"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, new_lake: Callable[[Path], Lake]) -> Lake:
    """Three days of events, two of statistics."""
    lake = new_lake(tmp_path_factory.mktemp("lake"))
    lake.add(EVENTS, "2026-03-01T01:00", "2026-03-01T02:00", "2026-03-02T01:00")
    lake.add(EVENTS, "2026-03-03T01:00")
    lake.add(STEP_STATS, "2026-03-01T01:00", "2026-03-01T02:00", "2026-03-02T01:00")
    return lake


@pytest.fixture(scope="module")
def dagster(tmp_path_factory: pytest.TempPathFactory, shown: Lake) -> Iterator[Dagster]:
    """`dagster dev` over that lake."""
    with dagster_dev(tmp_path_factory.mktemp("dagster"), shown.settings) as running:
        yield running


def test_the_assets_are_shown(dagster: Dagster) -> None:
    """Every table is shown with words, columns, kinds and lineage; those that are computed can be computed again."""
    nodes = {node["assetKey"]["path"][0]: node for node in dagster.ask(ASSETS)["assetNodes"]}
    assert nodes.keys() == {table.name for table in TABLES} | {"upkeep"} | {
        asset.key.to_user_string() for asset in IMPORTS
    }
    for table in STATISTICS:
        assert nodes[table.name]["dependencyKeys"] == [{"path": ["events"]}]
    for table in TABLES:
        node = nodes[table.name]
        [columns] = [entry["schema"]["columns"] for entry in node["metadataEntries"] if entry]
        assert (node["description"], sorted(node["kinds"]), node["isExecutable"]) == (
            table.doc,
            ["flink", "iceberg"],
            table in COMPUTED,
        )
        assert [column["name"] for column in columns] == [column.name for column in table.columns]


def test_the_sensor_reports_by_itself(dagster: Dagster, shown: Lake) -> None:
    """Soon after the start, and without a click, days with rows are filled and carry rows and snapshot."""
    expected = {"2026-03-01": 2, "2026-03-02": 1}
    dagster.wait_for(lambda: dagster.reports("step_stats").keys() == expected.keys())  # they come one by one
    statistics = dagster.reports("step_stats")
    assert {day: seen["dagster/partition_row_count"] for day, seen in statistics.items()} == expected
    first, second = (str(snapshot.snapshot_id) for snapshot in shown.stored(EVENTS).metadata.snapshots[:2])
    days = dagster.reports("events")
    assert [days[f"2026-03-0{day}"]["snapshot_id"] for day in (1, 2, 3)] == [first, first, second]
    node = dagster.ask(REPORTS, asset={"path": ["step_stats"]})["assetNodeOrError"]
    assert node["assetPartitionStatuses"]["ranges"] == [
        {"startKey": "2026-03-01", "endKey": "2026-03-02", "status": "MATERIALIZED"}
    ]
    sensors = {one["name"]: one["sensorState"]["status"] for one in dagster.ask(SENSORS)["sensorsOrError"]["results"]}
    assert sensors == {"failed_runs": "RUNNING", "mend": "STOPPED", "new_rows": "RUNNING"}


def test_the_job_reports_at_once(dagster: Dagster, shown: Lake) -> None:
    """Whoever does not want to wait for the sensor launches the job: the run succeeds and the new day is there."""
    shown.add(EVENTS, "2026-03-04T01:00", "2026-03-04T02:00", "2026-03-04T03:00")
    launched = dagster.ask(LAUNCH)["launchRun"]["run"]["runId"]
    dagster.wait_for(lambda: dagster.ask(RUN, id=launched)["runOrError"]["status"] in {"SUCCESS", "FAILURE"})
    assert dagster.ask(RUN, id=launched)["runOrError"]["status"] == "SUCCESS"
    assert dagster.reports("events")["2026-03-04"]["dagster/partition_row_count"] == 3


def test_freshness_is_shown(dagster: Dagster) -> None:
    """Once a table has been reported its freshness policy passes."""

    def all_healthy() -> bool:
        nodes = {node["assetKey"]["path"][0]: node for node in dagster.ask(ASSETS)["assetNodes"]}
        shown = [nodes[name]["freshnessStatusInfo"]["freshnessStatus"] for name in ("events", "step_stats")]
        return shown == ["HEALTHY", "HEALTHY"]

    assert dagster.wait_for(all_healthy)
