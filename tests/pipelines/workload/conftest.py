"""Short workloads, and what they told."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from pipelines.workload import WorkloadReport, WorkloadSettings, run_workload
from sagascope.events import EventType
from sagascope.listener import EventListener

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sagascope.events import SagaEvent

ENDS = {EventType.SAGA_COMPLETED, EventType.SAGA_ROLLED_BACK, EventType.SAGA_FAILED}
STEP_ENDS = {EventType.STEP_COMPLETED, EventType.STEP_FAILED}
SCALE = 100.0
"""How many times faster the modest run passes."""


class Recorder(EventListener):
    """Keeps every event, and how many sagas run and ran at most; sets `enough` when so many sagas have started."""

    def __init__(self, sagas: int | None = None) -> None:
        self.events: list[SagaEvent] = []
        self.started = self.running = self.most_running = 0
        self.enough = asyncio.Event()
        self._sagas = sagas

    async def write(self, events: Sequence[SagaEvent]) -> None:
        self.events += events
        for event in events:
            self.started += event.event_type is EventType.SAGA_STARTED
            self.running += (event.event_type is EventType.SAGA_STARTED) - (event.event_type in ENDS)
            self.most_running = max(self.most_running, self.running)
        if self.started == self._sagas:
            self.enough.set()

    def by_saga(self) -> dict[str, list[SagaEvent]]:
        """The events of each saga_id."""
        sagas = defaultdict(list)
        for event in self.events:
            sagas[event.saga_id].append(event)
        return sagas


def run(
    *,
    sagas: int | None = None,
    seconds: float | None = None,
    rate: float = 300,
    seed: int = 7,
    scale_time: float = 1000.0,
    on_progress: Callable[[WorkloadReport], None] | None = None,
    **settings: Any,
) -> tuple[WorkloadReport, Recorder]:
    """A workload of so many sagas, however long a busy machine takes, or of so many seconds; and what it told."""

    async def main() -> tuple[WorkloadReport, Recorder]:
        recorder = Recorder(sagas)
        report = await run_workload(
            [recorder],
            rate=rate,
            seconds=seconds,
            seed=seed,
            scale_time=scale_time,
            stop=recorder.enough,
            on_progress=on_progress,
            settings=WorkloadSettings(**{"grace_seconds": 60.0} | settings),
        )
        return report, recorder

    return asyncio.run(main())


@pytest.fixture(scope="session")
def modest() -> tuple[WorkloadReport, Recorder]:
    """A modest run, long enough that all that can happen does."""
    return run(sagas=1200, scale_time=SCALE, max_running=100)
