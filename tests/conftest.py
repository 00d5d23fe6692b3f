"""Real servers for the tests: one Kafka broker a session, a home of its own for each test that wants one."""

from __future__ import annotations

import uuid
from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec
import pytest

from pipelines import stack
from tests.servers.server import ABSENT
from warehouse.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytest_plugins = [
    "tests.servers.elasticsearch",
    "tests.servers.fluss",
    "tests.servers.pm4py",
    "tests.servers.postgresql",
    "tests.servers.prometheus",
    "tests.servers.rabbitmq",
    "tests.servers.redis",
    "tests.servers.webhook_receiver",
]


def home_settings(folder: Path) -> Settings:
    """Settings with all state below `folder`."""
    return Settings(home=str(folder), checkpoint_interval_ms=1_000, idle_timeout_ms=10_000)


@pytest.fixture(scope="session")
def broker_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A real Kafka broker; yields the settings that it was started with."""
    settings = home_settings(tmp_path_factory.mktemp("broker") / "home")
    stack.up(settings)
    yield settings
    stack.down(settings)


@pytest.fixture(scope="session")
def broker(broker_home: Settings) -> str:
    """Its bootstrap servers."""
    return stack.bootstrap_servers(broker_home)


@pytest.fixture
def local(tmp_path: Path) -> Settings:
    """Settings with a home of their own and no Kafka."""
    return home_settings(tmp_path / "home")


@pytest.fixture
def settings(tmp_path: Path, broker: str) -> Settings:
    """Settings with a home and a topic of their own at the session's broker."""
    own = msgspec.structs.replace(
        home_settings(tmp_path / "home"), bootstrap_servers=broker, topic=f"events-{uuid.uuid4().hex[:8]}"
    )
    stack.make_topic(own)
    return own


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that could not run for want of a server, and the command that brings it."""
    tests: dict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
        if ABSENT in reason:
            tests[reason].append(report.nodeid)
    for reason, names in tests.items():
        terminalreporter.section(f"{len(names)} tests could not run", yellow=True)
        terminalreporter.line(reason)
        for name in names:
            terminalreporter.line(f"  {name}")
