"""A dashboard as it is served: uvicorn on a free port, over tables with known events."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest

from pipelines.dashboard.access import Access
from pipelines.dashboard.server import Dashboard, Server, address_of, listen
from tests.warehouse.live_oracle import SCRIPT, story
from tests.warehouse.planted import append, events_of
from warehouse.catalog import open_catalog
from warehouse.settings import Settings
from warehouse.tables import EVENTS, SAGA_DEFINITIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

READY_SECONDS = 30.0


class Served:
    """A dashboard that is served by a thread of this process."""

    def __init__(self, dashboard: Dashboard, address: str, said: list[str]) -> None:
        self.dashboard, self.address, self.said = dashboard, address, said

    def get(self, path: str, **given: Any) -> httpx.Response:
        """The answer."""
        return httpx.get(self.address + path, timeout=30, **given)

    def await_frame(self, wanted: Callable[[Any], bool]) -> Any:
        """The first frame that is as wanted, decoded."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            frame = self.get("/api/v1/live").json()
            if wanted(frame):
                return frame
            time.sleep(0.1)
        raise AssertionError({name: frame[name] for name in ("problem", "freshness", "active")})


@contextmanager
def serving(settings: Settings, access: Access | None = None) -> Iterator[Served]:
    """Serve it on a free port."""
    access, said = access or Access(), list[str]()
    dashboard = Dashboard(settings, access, said.append)
    with listen(access.host, 0) as endpoint:
        server = Server(dashboard)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [endpoint]})
        thread.start()
        deadline = time.monotonic() + READY_SECONDS
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield Served(dashboard, address_of(endpoint), said)
        finally:
            server.should_exit = True
            thread.join(5)
    assert not thread.is_alive()


def plant(settings: Settings) -> None:
    """Three kinds of saga that ended in the last minutes, two that run, and a definition."""
    now = datetime.now(UTC).replace(microsecond=0)
    rows = events_of(0, now - timedelta(minutes=2)) + events_of(2, now - timedelta(minutes=1))
    rows += story(3, now - timedelta(seconds=30), ["pay"], None)
    rows += story(4, now - timedelta(seconds=20), ["pay", "ship!", "-pay"], "saga_rolled_back", name=SCRIPT)
    rows += story(5, now - timedelta(seconds=20), ["pay"], None, name=SCRIPT)
    append(settings, EVENTS, [row | {"definition_id": "d"} for row in rows])
    steps = [
        {"step_name": "pay", "compensable": True},
        {"step_name": "ship", "depends_on": ["pay"], "pivot": True, "timeout_seconds": 2.5},
    ]
    define = {
        "definition_id": "d",
        "saga_name": "order",
        "steps": msgspec.json.encode(steps).decode(),
        "first_seen": now,
    }
    append(settings, SAGA_DEFINITIONS, [define])


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of tables with what `plant` puts there."""
    folder: Path = tmp_path_factory.mktemp("dashboard") / "home"
    settings = Settings(home=str(folder), topic="t")
    open_catalog(settings)
    plant(settings)
    return settings


@pytest.fixture(scope="module")
def served(planted: Settings) -> Iterator[Served]:
    """Served, with numbers to show."""
    with serving(planted) as one:
        one.await_frame(lambda frame: frame["problem"] is None)
        yield one
