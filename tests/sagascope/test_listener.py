"""Listeners: every hook becomes an event, and none can hurt another or the saga."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest

from sagascope.current import NoSagaScopeError
from sagascope.listener import EventListener, SagaListener
from sagascope.scope import saga_scope
from tests.sagascope.conftest import WHOLE_LIFE, MemoryListener, a_whole_life

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sagascope.events import SagaEvent

CARD_REFUSED = ValueError("card refused")


class Raises(MemoryListener):
    """Fails on every event, with the error it was made with."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    async def write(self, events: Sequence[SagaEvent]) -> None:
        raise self._error


def test_a_listener_of_hooks_needs_none_of_them(caplog: pytest.LogCaptureFixture) -> None:
    """SagaListener has every hook, async and empty: a subclass overrides what it needs."""

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[SagaListener()]) as saga:
            await a_whole_life(saga)
            await saga.completed()

    asyncio.run(main())
    assert caplog.records == []


def test_hooks_are_given_what_the_event_says(memory: MemoryListener) -> None:
    """A hook's arguments are those of the event: the step, the live result, the error, whole milliseconds."""
    heard: list[tuple[object, ...]] = []
    result, context = object(), {"order_id": 17}

    class Hooks(SagaListener):
        async def on_saga_started(self, saga_id: str, saga_name: str, context: Mapping[str, Any]) -> None:
            heard.append((saga_id, saga_name, context))

        async def on_step_completed(self, saga_id: str, step_name: str, result: Any, duration_ms: int) -> None:
            heard.append((saga_id, step_name, result, duration_ms))

        async def on_step_failed(self, saga_id: str, step_name: str, error: BaseException, duration_ms: int) -> None:
            heard.append((saga_id, step_name, error, duration_ms))

        async def on_saga_completed(self, saga_id: str, total_duration_ms: int) -> None:
            heard.append((saga_id, total_duration_ms))

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[Hooks(), memory]) as saga:
            await saga.started(context)
            await saga.step_started("pay")
            await saga.step_failed("pay", CARD_REFUSED)
            await saga.step_started("pay")
            await saga.step_completed("pay", result)
            await saga.completed()

    asyncio.run(main())
    assert heard == [
        ("o-1", "order", context),
        ("o-1", "pay", CARD_REFUSED, memory.events[2].duration_ms),
        ("o-1", "pay", result, memory.events[4].duration_ms),
        ("o-1", memory.events[5].total_duration_ms),
    ]
    assert heard[0][2] is context


def test_async_with_opens_and_closes() -> None:
    """An EventListener is opened on entering and closed on leaving, after an error too."""
    calls: list[str] = []

    class Connected(EventListener):
        async def open(self) -> None:
            calls.append("open")

        async def write(self, events: Sequence[SagaEvent]) -> None:
            calls.append("write")

        async def close(self) -> None:
            calls.append("close")

    async def main() -> None:
        async with Connected() as listener:
            await listener.write(())
            raise CARD_REFUSED

    with pytest.raises(ValueError, match="card refused"):
        asyncio.run(main())
    assert calls == ["open", "write", "close"]


def test_a_listener_of_events_says_where_they_go() -> None:
    """EventListener without `write` cannot be made."""
    with pytest.raises(TypeError, match="write"):
        EventListener()  # type: ignore[abstract] # the mistake


@pytest.mark.parametrize("error", [CARD_REFUSED, asyncio.CancelledError("its own")], ids=lambda e: type(e).__name__)
def test_a_listener_that_raises_stops_nobody_and_is_logged(
    error: BaseException, memory: MemoryListener, caplog: pytest.LogCaptureFixture
) -> None:
    """What one listener raises, a cancellation of its own included, is logged; the others hear all."""

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[Raises(error), memory]) as saga:
            await a_whole_life(saga)

    asyncio.run(main())
    assert memory.story == WHOLE_LIFE
    assert len(caplog.records) == len(WHOLE_LIFE)
    record = caplog.records[0]
    assert (record.levelno, record.name) == (logging.ERROR, "sagascope.scope")
    what, where = record.getMessage().split("\n", 1)
    event_id = memory.events[0].event_id
    assert what.startswith(f"Raises.on_saga_started failed for event {event_id}: {type(error).__name__}: ")
    if isinstance(error, ValueError):  # of a cancellation asyncio keeps neither message nor place
        assert what.endswith(": card refused")
        assert "raise self._error" in where


def test_a_hook_that_is_not_async_stops_nobody(memory: MemoryListener, caplog: pytest.LogCaptureFixture) -> None:
    """A hook written without `async` runs, is logged as the mistake it is, and the others hear all."""
    heard: list[str] = []

    class Sync(SagaListener):
        def on_step_started(self, saga_id: str, step_name: str) -> None:  # type: ignore[override] # the mistake
            heard.append(step_name)

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[Sync(), memory]) as saga:
            await a_whole_life(saga)

    asyncio.run(main())
    assert heard == ["reserve", "notify", "charge"]
    assert memory.story == WHOLE_LIFE
    assert len(caplog.records) == 3
    assert "await" in caplog.text


def test_a_slow_listener_does_not_keep_others_waiting() -> None:
    """All listeners of a hook are told at once: ten that wait until all ten were told wait for nobody."""
    all_told = asyncio.Barrier(10)

    class Waits(MemoryListener):
        async def write(self, events: Sequence[SagaEvent]) -> None:
            await all_told.wait()
            await super().write(events)

    listeners = [Waits() for _ in range(10)]

    async def main() -> None:
        async with asyncio.timeout(10), saga_scope("o-1", "order", listeners=listeners) as saga:
            await saga.started({})

    asyncio.run(main())
    assert all(len(listener.events) == 1 for listener in listeners)


def test_a_run_that_is_cancelled_stays_cancelled(memory: MemoryListener) -> None:
    """Isolation of listeners holds no cancellation of the saga back."""

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[MemoryListener(delay=60), memory]) as saga:
            await saga.started({})

    async def hurried() -> None:
        async with asyncio.timeout(0.02):
            await main()

    with pytest.raises(TimeoutError):
        asyncio.run(hurried())


def test_a_listener_added_while_others_are_told_hears_the_next_hook(memory: MemoryListener) -> None:
    """The list of listeners may grow at any moment."""
    late = MemoryListener()
    listeners: list[SagaListener] = [memory]

    class Adds(SagaListener):
        async def on_saga_started(self, saga_id: str, saga_name: str, context: Mapping[str, Any]) -> None:
            listeners.append(late)

    async def main() -> None:
        listeners.append(Adds())
        async with saga_scope("o-1", "order", listeners=listeners) as saga:
            await saga.started({})
            await saga.completed()

    asyncio.run(main())
    assert late.story == [("saga_completed", None)]


def test_a_hook_called_by_hand_names_the_cure(memory: MemoryListener) -> None:
    """Outside a run, or for another saga or step than the one told of, there is no identity, and the error says so."""

    class Meddler(SagaListener):
        async def on_step_started(self, saga_id: str, step_name: str) -> None:
            with pytest.raises(NoSagaScopeError):
                await memory.on_step_started(saga_id, "another step")
            with pytest.raises(NoSagaScopeError):
                await memory.on_step_started("another saga", step_name)

    async def main() -> None:
        with pytest.raises(NoSagaScopeError, match=r"step_started of saga 'o-1'.*saga_scope\(saga_id, saga_name"):
            await memory.on_step_started("o-1", "reserve")
        async with saga_scope("o-1", "order", listeners=[Meddler()]) as saga:
            await saga.step_started("reserve")

    asyncio.run(main())
    assert memory.events == []
