"""Real servers for the tests: one Kafka broker a session, a home of its own for each test that wants one."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import msgspec
import pytest

from pipelines import stack
from warehouse.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
