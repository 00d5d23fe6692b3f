"""A real Prometheus, and its promtool."""

from __future__ import annotations

import json
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import pytest

from pipelines.ports import free_port
from tests.servers.server import require_debian, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INTERVAL = "500ms"
"""Of scrapes, and of evaluations of rules."""


@pytest.fixture(scope="session")
def promtool() -> str:
    """The path of promtool."""
    return require_debian("promtool", "prometheus")


class Prometheus(NamedTuple):
    """A server that scrapes one target."""

    port: int

    def ask(self, path: str) -> Any:
        """The `data` of an answer of its HTTP API, version 1."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}", timeout=5) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Any]:
        """The series that an expression gives now."""
        found: list[Any] = self.ask(f"query?query={quote(expression)}")["result"]
        return found

    def firing(self) -> dict[str, dict[str, str]]:
        """The labels of the alerts that fire, by name."""
        alerts = self.ask("alerts")["alerts"]
        return {alert["labels"]["alertname"]: alert["labels"] for alert in alerts if alert["state"] == "firing"}


@contextmanager
def scraping(target: int, *rules: Path, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the port `target` of the loopback interface and evaluates rules, twice a second."""
    command = require_debian("prometheus", "prometheus")
    port = free_port()
    config = {
        "global": {"scrape_interval": INTERVAL, "scrape_timeout": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": [{"job_name": "sagas", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    arguments = [
        command,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]

    def ready() -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=1) as answer:
            return bool(answer.status == 200)

    with running(arguments, folder=folder, ready=ready):
        yield Prometheus(port)
