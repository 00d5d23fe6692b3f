"""Load and jobs for the integration tests."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest
from kafka import KafkaProducer

from pipelines.analytics_process import AnalyticsProcess
from pipelines.workload import run_workload
from sagascope import EventType, KafkaListener, SagaEvent, encode
from sagascope.events import new_id

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Iterator

    from warehouse.settings import Settings

JOB_SECONDS = 120.0


@pytest.fixture
def sagas() -> Callable[..., int]:
    """Run real sagas that report to the topic, for `seconds` or until `enough` is set.

    Returns how many events the broker has acknowledged.
    """

    def run(
        settings: Settings, *, rate: float, seconds: float | None = None, enough: threading.Event | None = None
    ) -> int:
        async def load() -> int:
            listener = KafkaListener(
                settings.bootstrap_servers, settings.topic, definitions_topic=settings.definitions_topic
            )
            stop = asyncio.Event()
            if enough:
                loop = asyncio.get_running_loop()
                threading.Thread(target=lambda: enough.wait() and loop.call_soon_threadsafe(stop.set)).start()
            async with listener:
                await run_workload([listener], rate=rate, seconds=seconds, seed=7, scale_time=50, stop=stop)
            assert listener.counts.failed == 0
            return listener.counts.sent

        return asyncio.run(load())

    return run


@pytest.fixture
def drain() -> Iterator[Callable[[Settings], None]]:
    """Run the job over what the topic holds, to its end."""
    started: list[AnalyticsProcess] = []

    def run(settings: Settings) -> None:
        job = AnalyticsProcess(settings, bounded=True)
        started.append(job)
        job.start()
        deadline = time.monotonic() + JOB_SECONDS
        while job.exit_code() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert job.exit_code() == 0, job.failure()

    yield run
    for job in started:
        job.stop()


def produce(settings: Settings, records: Iterable[tuple[int, bytes]]) -> None:
    """Write records, each to its partition."""
    producer = KafkaProducer(bootstrap_servers=settings.bootstrap_servers, linger_ms=20, batch_size=1 << 18)
    for partition, value in records:
        producer.send(settings.topic, value, partition=partition)
    producer.flush()
    producer.close()


def synthetic(number: int, timestamp: int, rng: random.Random, padding: int = 0) -> bytes:
    """One ended step at a moment; heavier by `padding` bytes."""
    failed = rng.random() < 0.05
    return encode(
        SagaEvent(
            event_id=new_id(),
            event_type=EventType.STEP_FAILED if failed else EventType.STEP_COMPLETED,
            saga_id=f"saga-{number}",
            saga_name=f"kind-{number % 3}",
            run_id=new_id(),
            sequence=1,
            timestamp=timestamp,
            step_name=f"step-{number % 5}",
            duration_ms=int(rng.lognormvariate(4, 1)),
            error_type="Planned" if failed else None,
            trace_id="x" * padding or None,
        )
    )
