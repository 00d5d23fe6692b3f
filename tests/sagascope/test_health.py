"""Health over HTTP, asked by a real client of a real server."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import httpx
import uvicorn
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from pipelines.ports import free_port
from sagascope import FanOut, Inline, health_app
from sagascope.errors import TransientError
from tests.sagascope.conftest import MemoryListener, make_event, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import pytest

    from sagascope.events import SagaEvent


class Down(MemoryListener):
    """Takes nothing."""

    async def write(self, events: Sequence[SagaEvent]) -> None:
        msg = "down"
        raise TransientError(msg)


@asynccontextmanager
async def served(fan_out: FanOut, registry: CollectorRegistry | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app, served by uvicorn."""
    port = free_port()
    config = uvicorn.Config(health_app(fan_out, registry=registry), host="127.0.0.1", port=port, log_level="warning")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        yield client
    server.should_exit = True
    await serving


def test_alive_ready_and_what_became_of_the_events() -> None:
    """/healthz is 200 with each listener's state; /readyz is 503 once sagas are held up, or it is closed."""

    async def main() -> None:
        outbox = Inline(Down(), timeout_ms=50, breaker_failures=1)
        fan_out = FanOut([MemoryListener(), outbox])
        async with served(fan_out) as client:
            assert (await client.get("/readyz")).json()["ready"] is True
            await fan_out.write([make_event()])
            ready = await client.get("/readyz")
            assert ready.status_code == 503
            assert ready.json()["listeners"]["Down"] | {"accepted": 1} == {
                "state": "open",
                "queued": 0,
                "size": None,
                "last_error": "TransientError: down",
                "accepted": 1,
                "delivered": 0,
                "dead_lettered": 0,
                "dropped": 1,
                "retries": 0,
            }
            alive = await client.get("/healthz")
            assert (alive.status_code, alive.json()["listeners"]["MemoryListener"]["delivered"]) == (200, 1)
            assert (await client.head("/healthz")).content == b""
            assert (await client.post("/healthz")).status_code == 405
            assert (await client.get("/nothing")).status_code == 404
            await fan_out.aclose()
            assert (await client.get("/healthz")).status_code == 200

    asyncio.run(main())


def test_metrics_are_the_registry_and_the_counts() -> None:
    """Prometheus finds the service's own metrics and what became of the events on each listener."""
    registry = CollectorRegistry()
    Counter("own", "Of the service", registry=registry).inc()

    async def main() -> None:
        async with FanOut([MemoryListener()]) as fan_out, served(fan_out, registry) as client:
            await fan_out.write([make_event()] * 3)
            await until(lambda: not fan_out.counts["MemoryListener"].under_way)
            answer = await client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        samples = {
            (sample.name, sample.labels.get("fate")): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }
        assert samples["own_total", None] == 1
        assert samples["sagascope_listener_events_total", "accepted"] == 3
        assert samples["sagascope_listener_events_total", "delivered"] == 3
        assert samples["sagascope_listener_queued_events", None] == 0
        assert samples["sagascope_listener_up", None] == 1

    asyncio.run(main())


def test_without_the_client_library_only_metrics_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """/metrics says what to install; the rest works."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    async def main() -> None:
        async with FanOut([MemoryListener()]) as fan_out, served(fan_out) as client:
            answer = await client.get("/metrics")
            assert answer.status_code == 501
            assert "pip install 'sagascope[prometheus]'" in json.loads(answer.content)["error"]
            assert (await client.get("/readyz")).status_code == 200

    asyncio.run(main())
