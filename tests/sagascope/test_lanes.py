"""Lanes: queues that fill, batches, workers, and listeners that the saga waits for."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from sagascope import FanOut, Inline, MonitoredListener, Queued, TimeoutWrappedListener, saga_scope
from sagascope.listener import EventListener, SagaListener
from tests.sagascope.conftest import MemoryListener, make_event, until
from tests.sagascope.sinks import (
    Hung,
    KeptDeadLetters,
    Scripted,
    events_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sagascope.events import SagaEvent


def test_a_full_queue_has_the_saga_wait_for_room() -> None:
    """By default nothing is lost to a sink that is slower than the sagas: these wait, first come, first served."""
    slow = MemoryListener(delay=0.001)

    async def main() -> None:
        async with FanOut([Queued(slow, size=3, batch_size=1)]) as fan_out:
            await asyncio.gather(*(fan_out.write([event]) for event in events))
            assert fan_out.counts["MemoryListener"].dropped == 0

    events = events_of("o-1", 100)
    asyncio.run(main())
    assert slow.events == events


def test_a_sink_that_takes_nothing_has_sagas_wait_once(caplog: pytest.LogCaptureFixture) -> None:
    """The time counts from when the queue last moved: the next event finds it past, and becomes a dead letter at once."""
    dead = KeptDeadLetters()

    async def main() -> float:
        fan_out = FanOut([Queued(Hung(), size=1, block_seconds=0.2)], dead_letters=dead)
        began = time.perf_counter()
        async with saga_scope("o-1", "order", listeners=[fan_out]) as saga:
            for _ in range(50):
                await saga.step_started("pay")
        seconds = time.perf_counter() - began
        assert fan_out.health().listeners["Hung"].state == "full"
        assert await fan_out.aclose(timeout=0) == {"Hung": 1}
        return seconds

    assert 0.15 <= asyncio.run(main()) < 2
    assert [event.sequence for _, event, _ in dead.buried] == [*range(1, 50), 0]
    assert dead.buried[0][2] == "its queue of 1 was full for 0.2 s or longer"


def test_a_sink_that_can_not_keep_up_has_sagas_wait_for_a_moment_in_all() -> None:
    """Its queue moves, and is full again each time: sagas wait block_seconds, then go on; it gets what it can take."""
    dead = KeptDeadLetters()
    slow = MemoryListener(delay=0.02)

    async def main() -> float:
        fan_out = FanOut([Queued(slow, size=10, batch_size=1, block_seconds=0.2)], dead_letters=dead)
        began = time.perf_counter()
        async with saga_scope("o-1", "order", listeners=[fan_out]) as saga:
            for _ in range(500):
                await saga.step_started("pay")
        seconds = time.perf_counter() - began
        assert await fan_out.aclose() == {}
        return seconds

    assert asyncio.run(main()) < 5, "500 events at 20 ms each take 10 s"
    assert len(slow.events) + len(dead.buried) == 500
    assert len(slow.events) > 10


def test_who_feeds_events_goes_at_the_slowest_sinks_speed() -> None:
    """`write` waits for room as long as the sink takes anything, however long that is in all."""
    slow = MemoryListener(delay=0.01)
    events = events_of("o-1", 100)

    async def main() -> None:
        async with FanOut([Queued(slow, size=2, batch_size=1, block_seconds=0.2)]) as fan_out:
            await fan_out.write(events)

    asyncio.run(main())
    assert slow.events == events


def test_dropping_is_a_choice_that_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """With when_full="drop" a full queue costs the saga nothing, and the events, which are counted and logged."""
    dead = KeptDeadLetters()

    async def main() -> None:
        fan_out = FanOut([Queued(Hung(), size=2, when_full="drop")], dead_letters=dead)
        await fan_out.write(events_of("o-1", 10))
        assert fan_out.counts["Hung"].dropped == 8
        await fan_out.aclose(timeout=0)
        counts = fan_out.counts["Hung"]
        assert (counts.accepted, counts.dead_lettered, counts.dropped) == (10, 2, 8)

    asyncio.run(main())
    assert "Hung: 0 events became dead letters and 1 were dropped so far; last: its queue of 2 is full" in caplog.text


def test_the_saga_waits_for_an_inline_listener() -> None:
    """When a hook returns, an inline listener has the event; a listener says itself that it is inline by nature."""

    class Outbox(MemoryListener):
        inline = True

    outbox = Outbox(delay=0.01)

    async def main() -> None:
        async with FanOut([outbox]) as fan_out, saga_scope("o-1", "order", listeners=[fan_out]) as saga:
            await saga.started({})
            assert outbox.story == [("saga_started", None)]

    asyncio.run(main())


@pytest.mark.parametrize(
    "wrap",
    [
        TimeoutWrappedListener,
        lambda inner: MonitoredListener(inner, "outbox", CollectorRegistry()),
        lambda inner: FanOut([inner]),
    ],
    ids=["timeout", "monitored", "fan-out"],
)
def test_a_listener_that_is_inline_stays_so_within_a_wrapper(wrap: Callable[[SagaListener], SagaListener]) -> None:
    """Wrapped for its figures or a time limit, an outbox is still one that the saga waits for."""

    class Outbox(MemoryListener):
        inline = True

    outbox = Outbox(delay=0.01)

    async def main() -> None:
        async with FanOut([wrap(outbox)]) as fan_out, saga_scope("o-1", "order", listeners=[fan_out]) as saga:
            await saga.started({})
            assert outbox.story == [("saga_started", None)]

    asyncio.run(main())


@pytest.mark.parametrize("stubborn", [False, True])
def test_the_saga_waits_for_an_inline_listener_no_longer_than_its_timeout(*, stubborn: bool) -> None:
    """A hung inline listener costs the saga its timeout, and the event is a dead letter; also where it can't be cancelled."""
    dead = KeptDeadLetters()
    hung = Hung(stubborn=stubborn)

    async def main() -> float:
        fan_out = FanOut([Inline(hung, timeout_ms=100)], dead_letters=dead)
        began = time.perf_counter()
        await fan_out.write(events_of("o-1", 1))
        seconds = time.perf_counter() - began
        hung.stubborn = False
        await fan_out.aclose(timeout=0.1)
        return seconds

    assert 0.1 <= asyncio.run(main()) < 1.5
    if not stubborn:
        assert [reason for _, _, reason in dead.buried] == [
            "not taken within 0.1 s: ListenerTimeoutError: Hung.write did not end within 100 ms"
        ]


def test_an_inline_listener_is_tried_again_within_its_timeout() -> None:
    """An outbox whose transaction met a deadlock gets the event on the second try, while the saga waits."""
    flaky = Scripted(["transient"], random.Random(7))

    async def main() -> None:
        async with FanOut([Inline(flaky, timeout_ms=5_000)]) as fan_out:
            await fan_out.write(events_of("o-1", 1))
            counts = fan_out.counts["Scripted"]
            assert (counts.delivered, counts.retries) == (1, 1)

    asyncio.run(main())


def test_batches_grow_while_a_sink_is_slow_and_linger_fills_them() -> None:
    """A batch is what has come meanwhile, at most batch_size; with linger_ms it waits to be filled, but not at the end."""
    sizes: list[int] = []

    class Sized(EventListener):
        async def write(self, events: Sequence[SagaEvent]) -> None:
            sizes.append(len(events))
            await asyncio.sleep(0.01)

    async def main() -> None:
        async with FanOut([Queued(Sized(), batch_size=4)]) as fan_out:
            await fan_out.write(events_of("o-1", 10))
        assert sizes == [4, 4, 2]
        sizes.clear()
        async with FanOut([Queued(Sized(), batch_size=4, linger_ms=60_000)]) as fan_out:
            for event in events_of("o-1", 6):
                await fan_out.write([event])
                await asyncio.sleep(0)
            await until(lambda: bool(sizes))
        assert sizes == [4, 2]

    asyncio.run(main())


def test_workers_keep_the_order_of_each_saga() -> None:
    """With several workers batches are under way at once, and no saga's events overtake one another."""
    rng, busy, most = random.Random(7), 0, 0
    taken: list[SagaEvent] = []

    class Jittery(EventListener):
        async def write(self, events: Sequence[SagaEvent]) -> None:
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            await asyncio.sleep(rng.random() / 200)
            taken.extend(events)
            busy -= 1

    async def main() -> None:
        async with FanOut([Queued(Jittery(), workers=8, batch_size=1)]) as fan_out:
            for number in range(20):
                for saga in range(20):
                    await fan_out.write([make_event(saga_id=f"o-{saga}", sequence=number)])

    asyncio.run(main())
    assert most > 1
    for saga in range(20):
        assert [e.sequence for e in taken if e.saga_id == f"o-{saga}"] == list(range(20))
