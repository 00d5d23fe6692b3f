"""The alert rules that sagaz ships come alive with our metrics: each alert about sagas and dead letters can fire.

The series are those of real expositions, one a minute, of registries in which real runs were counted.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from pipelines.ports import free_port
from sagascope.delivery_metrics import DeadLetterFigures, watch_dead_letters
from sagascope.integrations.sagaz import FanOutSaga
from sagascope.listeners.metrics import MetricsSagaListener
from sagascope.scope import saga_scope
from tests.sagascope.conftest import ManualClock, fails, ok
from tests.sagascope.listeners.test_metrics import ODD
from tests.servers.prometheus import scraping

if TYPE_CHECKING:
    from tests.servers.prometheus import Prometheus


FOLDER = Path(__file__).parent / "sagaz_rules"
MINUTES = 60
BOOM = ValueError("card refused")


Scene = Callable[["World"], Awaitable[None]]
"""What happens in a minute."""


class World:
    """Sagas that run by a clock moved by hand, counted in a registry that is scraped once a minute."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.clock = ManualClock()
        self.metrics = MetricsSagaListener(self.registry, clock=lambda: self.clock.wall_seconds)
        self.minute = 0
        self._scrapes: list[dict[str, float]] = []
        self._stuck = AsyncExitStack()

    async def run(self, *, charge_fails: bool = False, undo_fails: bool = False, seconds: float = 0.05) -> None:
        """One run: reserve, then charge; where that fails, what was reserved is given back."""
        async with saga_scope(f"o-{self.minute}", "order", listeners=[self.metrics], clock=self.clock.clock) as saga:
            await saga.started({})
            await saga.step_started("reserve")
            await saga.step_completed("reserve")
            await saga.step_started("charge")
            self.clock.advance(seconds)
            if not charge_fails:
                await saga.step_completed("charge")
                await saga.completed()
                return
            await saga.step_failed("charge", BOOM)
            await saga.compensation_started("reserve")
            if undo_fails:
                await saga.compensation_failed("reserve", BOOM)
            else:
                await saga.compensation_completed("reserve")
            await saga.failed(BOOM)

    async def begin(self) -> None:
        """A run that begins and never ends: its scope is not left either."""
        scope = saga_scope("o-stuck", "order", listeners=[self.metrics], clock=self.clock.clock)
        await (await self._stuck.enter_async_context(scope)).started({})

    async def live(self, minute: Scene) -> list[dict[str, str]]:
        """Let an hour pass; the series of its scrapes, as promtool takes them."""
        for self.minute in range(MINUTES):
            began = self.clock.wall_seconds
            await minute(self)
            self.clock.advance(60 - (self.clock.wall_seconds - began))
            self._scrapes.append(samples(self.registry))
        names = sorted({name for scrape in self._scrapes for name in scrape})
        return [
            {"series": name, "values": " ".join(str(scrape.get(name, "_")) for scrape in self._scrapes)}
            for name in names
        ]


def samples(of: CollectorRegistry) -> dict[str, float]:
    """An exposition's samples, by the name and labels as the exposition writes them."""
    return {
        sample.name + "{" + ",".join(f"{key}={json.dumps(value)}" for key, value in sample.labels.items()) + "}": (
            sample.value
        )
        for family in text_string_to_metric_families(generate_latest(of).decode())
        for sample in family.samples
    }


async def healthy(world: World) -> None:
    """Three runs that succeed."""
    for _ in range(3):
        await world.run()


async def refused(world: World) -> None:
    """One run in three is rolled back: its second step fails always in the hour's second half."""
    for n in range(3):
        await world.run(charge_fails=n == 0 or world.minute > MINUTES / 2)


async def slow(world: World) -> None:
    """A step takes eight seconds."""
    await world.run(seconds=8)


async def stuck(world: World) -> None:
    """All is well, but for one run that never ends."""
    await healthy(world)
    if world.minute == 3:
        await world.begin()


async def silent(world: World) -> None:
    """After three minutes nothing begins any more."""
    if world.minute < 3:
        await healthy(world)


async def not_undone(world: World) -> None:
    """One run in the hour leaves something behind."""
    await healthy(world)
    if world.minute == 20:
        await world.run(charge_fails=True, undo_fails=True)


async def dead_letters(world: World) -> None:
    """Two dead letters a second, the oldest of yesterday's eve; the sagas are well."""
    await healthy(world)
    total = 150 + 120 * world.minute
    watch_dead_letters("saga-events-dlq", lambda: DeadLetterFigures(total, total, 0.0), world.registry)


SCENES: dict[Scene, set[str]] = {
    healthy: set(),
    refused: {
        "SagaHighFailureRate",
        "SagaCriticalFailureRate",
        "StepConsistentlyFailing",
        "HighCompensationRate",
        "SagazCompensationRateHigh",
        "SagazSagaFailureRateHigh",
    },
    slow: {"StepLatencySLABreach", "SagazExecutionLatencyHigh"},
    stuck: {"SagaStuckExecution"},
    silent: {"SagaNoActivity"},
    not_undone: {"CompensationFailure"},
    dead_letters: {"DLQMessagesPresent", "DLQGrowingRapidly", "DLQStaleMessages", "SagazDLQDepthHigh"},
}
"""Of each hour the alerts that must have fired in it, and no other may have."""
OF_OTHERS = {
    *("OutboxBacklogGrowing", "OutboxWorkerStalled", "OutboxHighLag", "SagazOutboxLagHigh"),
    *("CDCConnectorDown", "CDCReplicationLag", "DatabasePoolExhausted", "BrokerConnectionIssues"),
}
"""About an outbox, change data capture, a database and a broker: no saga's events tell of these."""


def rules(folder: Path) -> list[Path]:
    """The rule files as Prometheus takes them: without the part that is Alertmanager's."""
    copies = []
    for path in sorted(FOLDER.glob("*.yml")):
        copy = folder / path.name
        copy.write_text(path.read_text().split("\ninhibit_rules:")[0] + "\n")
        copies.append(copy)
    return copies


def test_prometheus_loads_the_rules(tmp_path: Path, promtool: str) -> None:
    """Both files load; the one of the deployment only without its part for Alertmanager."""
    subprocess.run([promtool, "check", "rules", *rules(tmp_path)], check=True, capture_output=True)
    whole = subprocess.run(
        [promtool, "check", "rules", FOLDER / "deployment.yml"], check=False, capture_output=True, text=True
    )
    assert whole.returncode != 0
    assert "field inhibit_rules not found" in whole.stdout + whole.stderr


def test_every_alert_is_accounted_for() -> None:
    """Each alert of the files fires in one of the hours, or is about something else than sagas and dead letters."""
    named = {name for path in FOLDER.glob("*.yml") for name in re.findall(r"- alert: (\w+)", path.read_text())}
    assert named == set().union(*SCENES.values()) | OF_OTHERS
    assert not set().union(*SCENES.values()) & OF_OTHERS


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_the_alerts_fire_when_they_should(scene: Scene, tmp_path: Path, promtool: str) -> None:
    """Of an hour's series, as they were exposed, exactly the alerts fire that tell what happened in it."""
    firing = (
        f'group by (alertname) (last_over_time(ALERTS{{alertstate="firing",alertname!~"{"|".join(OF_OTHERS)}"}}[2h]))'
    )
    expected = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(SCENES[scene])]
    test = {
        "interval": "1m",
        "input_series": asyncio.run(World().live(scene)),
        "promql_expr_test": [{"expr": firing, "eval_time": f"{MINUTES}m", "exp_samples": expected}],
    }
    unit = {"rule_files": [path.name for path in rules(tmp_path)], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "test.yml").write_text(json.dumps(unit))
    ran = subprocess.run(
        [promtool, "test", "rules", tmp_path / "test.yml"], check=False, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_real_prometheus_raises_the_alarm(tmp_path: Path) -> None:
    """Scraped over HTTP, a saga that leaves something behind fires CompensationFailure, naming the saga and the step."""
    registry = CollectorRegistry()
    metrics = MetricsSagaListener(registry)
    target = free_port()
    server, thread = start_http_server(target, "127.0.0.1", registry)

    async def shop(undo: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        saga = FanOutSaga("shop", listeners=[metrics])
        saga.add_step("reserve", ok, undo).add_step("charge", fails(BOOM), depends_on=["reserve"])
        with pytest.raises(ValueError, match="card refused"):
            await saga.run({})

    async def main(prometheus: Prometheus) -> None:
        stuck = AsyncExitStack()
        for n, odd in enumerate(ODD):  # begin and never end: shown by their ids
            saga = await stuck.enter_async_context(saga_scope(f"{n}{odd}", f"{n}{odd}", listeners=[metrics]))
            await saga.started({})
        await shop(ok)
        await seen(lambda: prometheus.query('sagaz_compensation_total{saga_name="shop",status="failed"} == 0'))
        await shop(fails(BOOM))
        await seen(lambda: "CompensationFailure" in prometheus.firing())
        alert = prometheus.firing()["CompensationFailure"]
        assert (alert["saga_name"], alert["step_name"]) == ("shop", "reserve")
        running = prometheus.query("count(sagaz_saga_running_duration_seconds)")
        assert running[0]["value"][1] == "10"

    try:
        with scraping(target, *rules(tmp_path), folder=tmp_path) as prometheus:
            asyncio.run(main(prometheus))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def seen(true: Callable[[], Any]) -> None:
    """Wait for what another process does."""
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(true):  # noqa: ASYNC110 - of another process there is no asyncio.Event
            await asyncio.sleep(0.1)
