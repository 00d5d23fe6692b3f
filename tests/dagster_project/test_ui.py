"""What a person sees who opens Dagster: webserver, daemon and sensor run as `make dagster` starts them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil
import pytest

from dagster_project.imports import IMPORTS
from warehouse.settings import CHECKOUT
from warehouse.tables import COMPUTED, EVENTS, STATISTICS, STEP_STATS, TABLES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.dagster_project.conftest import Lake

Answer = TypeVar("Answer")

SECONDS_TO_ANSWER = 60
SECONDS_TO_STOP = 10

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
REPORTS = """query Reports($asset: AssetKeyInput!) {
    assetNodeOrError(assetKey: $asset) {
        ... on AssetNode {
            assetMaterializations {
                partition
                metadataEntries { label ... on IntMetadataEntry { intValue } ... on TextMetadataEntry { text } }
            }
            assetPartitionStatuses {
                ... on TimePartitionStatuses { ranges { startKey endKey status } }
            }
        }
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


@dataclass(frozen=True)
class Dagster:
    """A running `dagster dev`, asked through the GraphQL API that its pages use."""

    port: int
    log: Path

    def ask(self, query: str, **variables: object) -> Any:
        """The answer's data."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        url = f"http://127.0.0.1:{self.port}/graphql"
        request = Request(url, body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=10) as response:  # noqa: S310 - http on this machine
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def reports(self, asset: str) -> dict[str, dict[str, Any]]:
        """The metadata of the newest report of each day."""
        node = self.ask(REPORTS, asset={"path": [asset]})["assetNodeOrError"]
        return {
            report["partition"]: {
                entry["label"]: entry.get("intValue", entry.get("text")) for entry in report["metadataEntries"]
            }
            for report in reversed(node["assetMaterializations"])
        }

    def wait_for(self, look: Callable[[], Answer]) -> Answer:
        """What `look` returns, once it is truthy; fails with the end of the log."""
        deadline = time.monotonic() + SECONDS_TO_ANSWER
        while time.monotonic() < deadline:
            try:
                if answer := look():
                    return answer
            except (URLError, ConnectionError):
                pass  # not up yet
            time.sleep(0.3)
        pytest.fail(f"no answer in {SECONDS_TO_ANSWER} s; the log ends with\n{self.log.read_text()[-3000:]}")


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
    """`dagster dev` on a free port, with a home of its own; afterwards it and all its children are gone."""
    home = tmp_path_factory.mktemp("dagster")
    shutil.copy(CHECKOUT / "dagster_project" / "dagster.yaml", home)
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quick = {"DAGSTER_HOME": str(home), "FRESHNESS_DAEMON_INTERVAL_SECONDS": "2"}
    command = [sys.executable, "-m", "dagster", "dev", "-m", "dagster_project.definitions", "-h", "127.0.0.1"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-p", str(port)],
            cwd=CHECKOUT,
            env=os.environ | shown.settings.environment() | quick,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    running = Dagster(port, home / "log")
    try:
        running.wait_for(lambda: running.ask("{ version }"))
        yield running
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:  # where we were started with SIGINT ignored, so is it
            process.kill()
            process.wait()
        for straggler in psutil.wait_procs(family, timeout=1)[1]:
            straggler.kill()
        assert not psutil.wait_procs(family, timeout=5)[1]


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
