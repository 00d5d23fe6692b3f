"""Test doubles: a clock moved by hand, and a listener that remembers."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import settings

from sagascope.events import EventType, SagaEvent, new_id
from sagascope.listener import EventListener
from sagascope.scope import Clock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sagascope.integrations.sagaz import SagazBridge
    from sagascope.scope import SagaScope

settings.register_profile("sagascope", deadline=None)  # a busy machine is no bug
settings.load_profile("sagascope")


class ManualClock:
    """Both clocks of a scope, moved by hand; the wall clock can be set apart from the monotonic one."""

    def __init__(self) -> None:
        self.wall_seconds = 1_700_000_000.0
        self.monotonic_seconds = 50.0
        self.clock = Clock(wall=lambda: self.wall_seconds, monotonic=lambda: self.monotonic_seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self.wall_seconds += seconds
        self.monotonic_seconds += seconds


class MemoryListener(EventListener):
    """Keeps every event it is told of, after `delay` seconds."""

    def __init__(self, delay: float = 0.0) -> None:
        self.events: list[SagaEvent] = []
        self._delay = delay

    async def write(self, events: Sequence[SagaEvent]) -> None:
        if self._delay:
            await asyncio.sleep(self._delay)
        self.events.extend(events)

    @property
    def story(self) -> list[tuple[str, str | None]]:
        """What happened, in order: (event_type, step_name)."""
        return [(event.event_type.value, event.step_name) for event in self.events]

    def of(self, event_type: EventType, step_name: str | None = None) -> SagaEvent:
        """The one event of that type and step."""
        (event,) = [e for e in self.events if (e.event_type, e.step_name) == (event_type, step_name)]
        return event


def make_event(**fields: Any) -> SagaEvent:
    """A small valid event, with these fields set."""
    plain: dict[str, Any] = {
        "event_id": new_id(),
        "event_type": EventType.SAGA_STARTED,
        "saga_id": "order-17",
        "saga_name": "order",
        "run_id": new_id(),
        "sequence": 0,
        "timestamp": 1_700_000_000_123,
    }
    return SagaEvent(**plain | fields)


async def a_whole_life(saga: SagaScope) -> None:
    """Every hook once: a step that succeeds and is undone, one that fails, one that cannot be undone."""
    boom = ValueError("card refused")
    await saga.started({"order_id": 17})
    for step in ("reserve", "notify"):
        await saga.step_started(step)
        await saga.step_completed(step, {"done": True})
    await saga.step_started("charge")
    await saga.step_failed("charge", boom)
    await saga.compensation_started("reserve")
    await saga.compensation_completed("reserve")
    await saga.compensation_started("notify")
    await saga.compensation_failed("notify", boom)
    await saga.failed(boom)


WHOLE_LIFE = [
    ("saga_started", None),
    ("step_started", "reserve"),
    ("step_completed", "reserve"),
    ("step_started", "notify"),
    ("step_completed", "notify"),
    ("step_started", "charge"),
    ("step_failed", "charge"),
    ("compensation_started", "reserve"),
    ("compensation_completed", "reserve"),
    ("compensation_started", "notify"),
    ("compensation_failed", "notify"),
    ("saga_failed", None),
]


async def ok(ctx: dict[str, Any]) -> None:
    """A step, or a compensation, that succeeds."""


def fails(error: Exception) -> Callable[[dict[str, Any]], Awaitable[None]]:
    """A step, or a compensation, that raises."""

    async def step(ctx: dict[str, Any]) -> None:
        raise error

    return step


def sleeps(seconds: float) -> Callable[[dict[str, Any]], Awaitable[None]]:
    """A step, or a compensation, that takes its time."""

    async def step(ctx: dict[str, Any]) -> None:
        await asyncio.sleep(seconds)

    return step


_of_others: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def remember_threads() -> None:
    """kafka-python leaves threads behind where it found no broker: those of earlier tests are not this one's."""
    _of_others.clear()
    _of_others.update(threading.enumerate())


def threads() -> set[str]:
    """The names of the listener's and kafka-python's threads that this test has started."""
    return {t.name for t in threading.enumerate() if t not in _of_others and t.name.startswith(("sagascope", "kafka"))}


async def until(true: Callable[[], bool]) -> None:
    """Wait for what another thread or task does; a busy machine may take its time."""
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 - of a thread there is no asyncio.Event
            await asyncio.sleep(0.01)


async def run_and_cancel(bridge: SagazBridge) -> None:
    """Run a plain saga of sagaz in the caller's task, cancelled from within its one step."""
    import sagaz

    runner = asyncio.current_task()
    assert runner is not None

    async def cancel(ctx: dict[str, Any]) -> None:
        runner.cancel()
        await asyncio.sleep(60)

    class LostSaga(sagaz.Saga):  # type: ignore[misc] # sagaz has no types
        listeners: ClassVar[list[Any]] = [bridge]

    with pytest.raises(asyncio.CancelledError):
        await LostSaga("lost").add_step("pay", cancel).run({}, "lost")
    runner.uncancel()


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still until it is moved."""
    return ManualClock()


@pytest.fixture
def memory() -> MemoryListener:
    """A listener that remembers."""
    return MemoryListener()
