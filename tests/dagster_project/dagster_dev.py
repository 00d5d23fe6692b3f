"""Dagster as `make dagster` starts it: webserver, daemon and code, on a free port, with a home of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil
import pytest

from pipelines.ports import free_port
from warehouse.settings import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from warehouse.settings import Settings

Answer = TypeVar("Answer")

SECONDS_TO_ANSWER = 60
SECONDS_TO_STOP = 10

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
        """What was told of each day, of each label the newest: the sensor may tell once more what a run has told."""
        node = self.ask(REPORTS, asset={"path": [asset]})["assetNodeOrError"]
        told: dict[str, dict[str, Any]] = {}
        for report in reversed(node["assetMaterializations"]):
            told.setdefault(report["partition"], {}).update(
                {entry["label"]: entry.get("intValue", entry.get("text")) for entry in report["metadataEntries"]}
            )
        return told

    def wait_for(self, look: Callable[[], Answer], seconds: float = SECONDS_TO_ANSWER) -> Answer:
        """What `look` returns, once it is truthy; fails with the end of the log."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if answer := look():
                    return answer
            except (URLError, ConnectionError):
                pass  # not up yet
            time.sleep(0.3)
        pytest.fail(f"no answer in {seconds:.0f} s; the log ends with\n{self.log.read_text()[-3000:]}")


@contextmanager
def dagster_dev(home: Path, settings: Settings) -> Iterator[Dagster]:
    """Run `dagster dev` over the lake of the settings; afterwards it and all its children are gone."""
    shutil.copy(CHECKOUT / "dagster_project" / "dagster.yaml", home)
    port = free_port()
    quick = {"DAGSTER_HOME": str(home), "FRESHNESS_DAEMON_INTERVAL_SECONDS": "2"}
    command = [sys.executable, "-m", "dagster", "dev", "-m", "dagster_project.definitions", "-h", "127.0.0.1"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-p", str(port)],
            cwd=CHECKOUT,
            env=os.environ | settings.environment() | quick,
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
