"""FanOut under harm: cancellation at any moment, sinks and dead letters that misbehave, loops that end."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sagascope import DeadLetterFile, FanOut, Inline, Queued, ResilientListener, Retry, saga_scope
from sagascope import lanes as lanes_module
from sagascope.current import telling
from sagascope.errors import PermanentError, TransientError
from sagascope.listener import EventListener, SagaListener
from tests.sagascope.conftest import MemoryListener, make_event
from tests.sagascope.sinks import (
    SECRET,
    Grave,
    Hooks,
    Hung,
    KeptDeadLetters,
    Misbehaving,
    events_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sagascope.accounting import Counts
    from sagascope.events import SagaEvent


QUICK = Retry(seconds=0.05, first_wait_seconds=0, breaker_seconds=0)


CALLS = st.sampled_from(
    [
        *("take", "take", "take", "transient", "permanent", "partial", "partial of others", "partial twice"),
        *("own cancellation", "hang", "odd retry_after"),
    ]
)


LANE = st.tuples(
    st.sampled_from(["queued", "inline", "hooks", "inline hooks"]),
    st.lists(CALLS, max_size=8),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(["block", "drop"]),
)


def lane_of(kind: str, script: Sequence[str], size: int, workers: int, when_full: Any) -> Queued | Inline:
    """One listener in its policy."""
    listener = Hooks(script) if "hooks" in kind else Misbehaving(script)
    if "inline" in kind:
        return Inline(listener, timeout_ms=20, breaker_seconds=0)
    return Queued(
        listener, size, when_full, block_seconds=0.01, batch_size=2, workers=workers, timeout_ms=10, retry=QUICK
    )


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(LANE, min_size=1, max_size=4),
    st.sampled_from(["quick", "slow", "hung", "refuses"]),
    st.lists(st.tuples(st.integers(1, 6), st.none() | st.integers(0, 8)), min_size=1, max_size=5),
    st.integers(0, 30),
    st.sampled_from([0.0, 0.05]),
)
def test_whatever_is_cancelled_each_event_is_settled_once(
    lanes: list[tuple[Any, ...]], grave_kind: str, tellers: list[tuple[int, int | None]], ticks: int, timeout: float
) -> None:
    """Sagas cancelled at any moment, a close at any moment, bad sinks and bad dead letters: the balance holds on each lane."""
    grave, told = Grave(grave_kind), 0

    async def tell(fan_out: FanOut, saga_id: str, number: int) -> None:
        nonlocal told
        for event in events_of(saga_id, number):
            with telling(event, None):
                waiting = fan_out.tell("on_saga_started", saga_id, "order", {})
            told += 1
            if waiting:
                await waiting

    async def main() -> dict[str, Counts]:
        fan_out = FanOut([lane_of(*lane) for lane in lanes], dead_letters=grave)
        running = [asyncio.create_task(tell(fan_out, f"o-{n}", number)) for n, (number, _) in enumerate(tellers)]
        for tick in range(ticks):
            for task, (_, cancelled) in zip(running, tellers, strict=True):
                if cancelled == tick:
                    task.cancel()
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            left = await fan_out.aclose(timeout)
            await asyncio.gather(*running, return_exceptions=True)
            assert await fan_out.aclose(timeout) == left
        return fan_out.counts

    logging.disable(logging.CRITICAL)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(lanes_module, "_KEEP_SECONDS", 0.05)
            counts = asyncio.run(main())
    finally:
        logging.disable(logging.NOTSET)
    for name, each in counts.items():
        assert (each.accepted, each.under_way) == (told, 0), each
        assert min(each.delivered, each.dead_lettered, each.dropped) >= 0
        assert sum(n for (listener, _), n in grave.buried.items() if listener == name) == each.dead_lettered
    assert set(grave.buried.values()) <= {1}


def started(fan_out: FanOut, event: SagaEvent) -> Any:
    """Tell of one event as a saga does; what is to be waited for."""
    with telling(event, None):
        return fan_out.tell("on_saga_started", event.saga_id, event.saga_name, {})


def test_a_sinks_own_cancellation_is_a_failure_like_another() -> None:
    """It ends neither the worker nor the saga: the event is tried again, and what is queued behind it comes through."""
    queued, inline = Misbehaving(["own cancellation"]), Misbehaving(["own cancellation"])

    async def main() -> None:
        fan_out = FanOut([Queued(queued, batch_size=1), Inline(inline)])
        await fan_out.write(events_of("o-1", 4))
        assert await fan_out.aclose() == {}
        assert [counts.delivered for counts in fan_out.counts.values()] == [4, 4]

    asyncio.run(main())


def test_a_close_leaves_nobody_in_the_line() -> None:
    """Who waits for room when the deadline comes is given up, and nothing is written to the sink after its close."""
    heard: list[str] = []

    class Slow(EventListener):
        async def write(self, events: Sequence[SagaEvent]) -> None:
            await asyncio.sleep(0.05)
            heard.append("write")

        async def close(self) -> None:
            heard.append("close")

    async def main() -> None:
        fan_out = FanOut([Queued(Slow(), size=1, batch_size=1)])
        feeding = asyncio.create_task(fan_out.write(events_of("o-1", 5)))
        await asyncio.sleep(0.01)
        assert await fan_out.aclose(timeout=0.0) == {"Slow": 2}
        await feeding
        await asyncio.sleep(0.2)
        assert fan_out.counts["Slow"].under_way == 0

    asyncio.run(main())
    assert heard[-1] == "close"


def test_a_hung_inline_sink_costs_sagas_a_few_timeouts_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """Its time-outs open the breaker like any failure: then events are given up at once, and health says so."""
    dead = KeptDeadLetters()

    async def main() -> float:
        fan_out = FanOut([Inline(Hung(), timeout_ms=50)], dead_letters=dead)
        began = time.perf_counter()
        await fan_out.write(events_of("o-1", 100))
        seconds = time.perf_counter() - began
        health = fan_out.health()
        assert (health.ready, health.listeners["Hung"].state) == (False, "open")
        assert "did not end within 50 ms" in (health.listeners["Hung"].last_error or "")
        await fan_out.aclose()
        return seconds

    assert asyncio.run(main()) < 100 * 0.05 / 2
    assert len(dead.buried) == 100
    assert dead.buried[-1][2].startswith(
        "not taken within 0.05 s: the circuit is open: ListenerTimeoutError: Hung.write"
    )


def test_a_saga_cancelled_at_the_moment_it_tells_has_told() -> None:
    """What is told is queued, and accepted by inline listeners, before anything can be cancelled: no event is nowhere."""
    memory = MemoryListener()

    async def main() -> None:
        dead = KeptDeadLetters()
        fan_out = FanOut([memory, Inline(MemoryListener()), Inline(MemoryListener())], dead_letters=dead)

        async def run() -> None:
            async with saga_scope("o-1", "order", listeners=[fan_out]) as saga:
                task = asyncio.current_task()
                assert task
                asyncio.get_running_loop().call_soon(task.cancel)
                await saga.started({})

        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(run())
        await fan_out.aclose()
        assert {counts.accepted for counts in fan_out.counts.values()} == {1}
        assert all(counts.under_way == 0 for counts in fan_out.counts.values())

    asyncio.run(main())
    assert memory.story == [("saga_started", None)]


@pytest.mark.parametrize("seed", range(10))
def test_parallel_steps_keep_their_order_in_a_full_queue_beside_an_inline_listener(seed: int) -> None:
    """Who waits for room has his place at once: nobody overtakes him in the moment before his task begins."""
    slow, rng = MemoryListener(delay=0.001), random.Random(seed)

    async def main() -> None:
        fan_out = FanOut([Queued(slow, size=2, batch_size=1, block_seconds=60), Inline(MemoryListener())])

        async def step(saga: Any, name: str) -> None:
            await asyncio.sleep(rng.random() / 500)
            await saga.step_started(name)
            await saga.step_completed(name)

        async with fan_out, saga_scope("o-1", "order", listeners=[fan_out]) as saga:
            await saga.started({})
            await asyncio.gather(*(step(saga, f"s-{n}") for n in range(12)))

    asyncio.run(main())
    order = [event.sequence for event in slow.events]
    assert order == list(range(25))


def test_a_slow_batch_is_no_hung_sink_to_who_feeds_events() -> None:
    """A feed waits for room however long a batch takes: nothing is given up while the sink takes what it gets."""
    slow = MemoryListener(delay=0.15)

    async def main() -> None:
        async with FanOut([Queued(slow, size=5, batch_size=5, block_seconds=0.01)]) as fan_out:
            await fan_out.write(events_of("o-1", 20))

    asyncio.run(main())
    assert len(slow.events) == 20


def test_a_large_queue_that_is_left_becomes_dead_letters_whole() -> None:
    """However many there are, at a close nothing is dropped that dead letters can keep."""
    dead = KeptDeadLetters()

    async def main() -> None:
        fan_out = FanOut([Queued(Hung(), size=20_000)], dead_letters=dead)
        await fan_out.write([make_event()] * 15_000)
        assert await fan_out.aclose(timeout=0.3) == {"Hung": 15_000}
        assert (fan_out.counts["Hung"].dead_lettered, fan_out.counts["Hung"].dropped) == (15_000, 0)

    asyncio.run(main())


def test_more_than_can_be_kept_meanwhile_is_dropped_and_counted() -> None:
    """While dead letters are slow, at most 10,000 refused events wait for them: memory is bounded."""

    async def main() -> None:
        fan_out = FanOut([Queued(Hung(), size=1, block_seconds=0)], dead_letters=Grave("hung"))
        for event in [make_event()] * 10_600:
            started(fan_out, event)
        counts = fan_out.counts["Hung"]
        assert 90 <= counts.dropped <= 600
        await fan_out.aclose(timeout=0)

    asyncio.run(main())


def test_a_sink_is_closed_also_where_its_dead_letters_hang() -> None:
    """Nothing outlives the close: neither the sink's connection nor the task that keeps dead letters."""
    closed: list[str] = []

    class Refuses(Misbehaving):
        async def close(self) -> None:
            closed.append("closed")

    async def main() -> None:
        fan_out = FanOut([Refuses(["permanent"] * 9)], dead_letters=Grave("hung"))
        await fan_out.write(events_of("o-1", 3))
        await asyncio.sleep(0.01)
        await fan_out.aclose(timeout=0.1)
        assert len(asyncio.all_tasks()) == 1
        assert fan_out.counts["Refuses"].under_way == 0

    asyncio.run(main())
    assert closed == ["closed"]


def test_two_closes_at_once_are_one() -> None:
    """Both wait for the same end, and the sink is closed once."""
    closed: list[str] = []

    class Closes(MemoryListener):
        async def close(self) -> None:
            await asyncio.sleep(0.01)
            closed.append("closed")

    async def main() -> None:
        fan_out = FanOut([Closes()])
        await asyncio.gather(fan_out.aclose(), fan_out.aclose())

    asyncio.run(main())
    assert closed == ["closed"]


def test_a_hung_disk_of_dead_letters_starves_no_other_thread(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing dead letters has a thread of its own: the service's `asyncio.to_thread` goes on."""
    released = threading.Event()
    monkeypatch.setattr(DeadLetterFile, "_append", lambda *_: released.wait())
    file = DeadLetterFile(tmp_path / "dead.jsonl")

    async def main() -> None:
        burying = [asyncio.create_task(file.bury("sink", [make_event()], "why", 1)) for _ in range(50)]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(lambda: "runs") == "runs"
        for task in burying:
            task.cancel()
        await asyncio.gather(*burying, return_exceptions=True)
        released.set()

    asyncio.run(main())


def test_the_next_event_loop_goes_on() -> None:
    """A loop that was closed with everything in it is given up: what waited is delivered in the next one."""
    memory = MemoryListener()
    fan_out = FanOut([memory, Queued(Hung(), batch_size=1)])

    def one_loop(event: SagaEvent) -> None:
        loop = asyncio.new_event_loop()

        async def tell() -> None:
            started(fan_out, event)
            await asyncio.sleep(0.01)

        loop.run_until_complete(tell())
        loop.close()

    first, second = make_event(), make_event()
    one_loop(first)
    one_loop(second)
    assert memory.events == [first, second]
    loop = asyncio.new_event_loop()
    loop.run_until_complete(fan_out.aclose(timeout=0))
    loop.close()
    counts = fan_out.counts["Hung"]
    assert (counts.accepted, counts.under_way) == (2, 0)


def test_two_open_event_loops_are_refused() -> None:
    """A fan-out's queues are no bridge between threads: the second loop is told so."""
    fan_out = FanOut([MemoryListener()])
    loop = asyncio.new_event_loop()

    async def tell() -> None:
        started(fan_out, make_event())

    loop.run_until_complete(tell())
    with pytest.raises(RuntimeError, match="belongs to one event loop"):
        asyncio.run(tell())
    loop.run_until_complete(fan_out.aclose())
    loop.close()


def test_an_error_that_can_not_be_said_loses_no_event() -> None:
    """A driver's exception whose text fails, or whose retry_after is nonsense, is a failure like another."""

    class UnsayableError(Exception):
        retry_after = float("nan")

        def __str__(self) -> str:
            raise ValueError(SECRET)

    class Raises(EventListener):
        async def write(self, events: Sequence[SagaEvent]) -> None:
            raise UnsayableError

    async def main() -> None:
        fan_out = FanOut([Queued(Raises(), retry=QUICK), Inline(Raises(), timeout_ms=20)])
        await fan_out.write(events_of("o-1", 2))
        await fan_out.aclose()
        assert {(each.dropped, each.under_way) for each in fan_out.counts.values()} == {(2, 0)}
        assert fan_out.health().listeners["Raises"].last_error == "UnsayableError: an error without a text"

    asyncio.run(main())


def test_values_of_the_context_leave_by_no_listeners_error(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A listener of hooks that quotes the context in its error: neither log, health, counts nor dead letter have it."""

    class Quotes(SagaListener):
        async def on_saga_started(self, saga_id: str, saga_name: str, context: Mapping[str, Any]) -> None:
            msg = f"can't send {context}"
            raise PermanentError(msg)

        async def on_step_completed(self, saga_id: str, step_name: str, result: Any, duration_ms: int) -> None:
            raise TransientError(str(result))

    path = tmp_path / "dead.jsonl"

    async def main() -> None:
        retry = Retry(seconds=0)
        policies: list[Queued | Inline] = [Queued(Quotes(), retry=retry), Inline(Quotes(), timeout_ms=50)]
        async with FanOut(policies, dead_letters=DeadLetterFile(path)) as fan_out:
            listeners = [fan_out, ResilientListener(Quotes(), retry=retry, dead_letters=DeadLetterFile(path))]
            async with saga_scope("o-1", "order", listeners=listeners) as saga:
                await saga.started({"address": f"{SECRET} Street 7"})
                await saga.step_started("pay")
                await saga.step_completed("pay", {"receipt": f"{SECRET}-receipt"})
            health = str(fan_out.health())
        assert "[redacted]" in health
        assert SECRET not in health

    asyncio.run(main())
    assert "[redacted]" in path.read_text()
    assert SECRET not in path.read_text()
    assert SECRET not in caplog.text
