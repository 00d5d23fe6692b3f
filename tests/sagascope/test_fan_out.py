"""FanOut: every listener hears all, each by itself; what became of every event is counted."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagascope import (
    FanOut,
    Inline,
    MonitoredListener,
    Queued,
    ResilientListener,
    Retry,
    saga_scope,
)
from sagascope.current import NoSagaScopeError
from sagascope.events import EventType
from sagascope.fan_out import ReportedError
from sagascope.listener import HOOKS, SagaListener
from tests.sagascope.conftest import WHOLE_LIFE, MemoryListener, a_whole_life, make_event, until
from tests.sagascope.sinks import SECRET, Hooks, Hung, KeptDeadLetters, Misbehaving, Scripted, events_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sagascope.events import SagaEvent


OUTCOMES = st.sampled_from(["take", "take", "transient", "unknown", "permanent", "partial"])


LANE = st.fixed_dictionaries(
    {
        "script": st.lists(OUTCOMES, max_size=12),
        "size": st.integers(1, 12),
        "batch_size": st.integers(1, 6),
        "workers": st.integers(1, 3),
        "when_full": st.sampled_from(["block", "drop"]),
        "linger_ms": st.sampled_from([0, 1]),
    }
)


RETRIES = st.fixed_dictionaries(
    {
        "seconds": st.sampled_from([0, 30]),
        "first_wait_seconds": st.just(0),
        "breaker_failures": st.sampled_from([1, 100]),
        "breaker_seconds": st.just(0),
    }
)


@settings(max_examples=150)
@given(
    st.lists(LANE, min_size=1, max_size=4),
    st.lists(st.integers(0, 12), min_size=1, max_size=4),
    RETRIES,
    st.sampled_from([None, 0, 2]),
    st.integers(),
)
def test_accepted_is_delivered_dead_lettered_or_dropped(
    lanes: list[dict[str, Any]], sagas: list[int], retries: dict[str, Any], failures: int | None, seed: int
) -> None:
    """Whatever the sinks do, on each lane every event ends once: taken, kept as a dead letter, or counted as dropped."""
    dead = None if failures is None else KeptDeadLetters(failures)
    sinks = [Scripted(lane["script"], random.Random(seed)) for lane in lanes]
    told = [events_of(f"saga-{n}", number) for n, number in enumerate(sagas)]
    options = [{key: value for key, value in lane.items() if key != "script"} for lane in lanes]

    async def tell(fan_out: FanOut, events: list[SagaEvent]) -> None:
        for event in events:
            await fan_out.write([event])

    async def main() -> FanOut:
        retry = Retry(**retries)
        fan_out = FanOut([Queued(s, retry=retry, **o) for s, o in zip(sinks, options, strict=True)], dead_letters=dead)
        for sink, lane in zip(sinks, fan_out._queued, strict=True):
            sink.lane = lane
        async with asyncio.timeout(30):
            await asyncio.gather(*(tell(fan_out, events) for events in told))
            assert await fan_out.aclose() == {}
        return fan_out

    fan_out = asyncio.run(main())
    everything = {event.event_id for events in told for event in events}
    for sink, lane, (name, counts) in zip(sinks, lanes, fan_out.counts.items(), strict=True):
        taken = [event.event_id for event in sink.taken]
        buried = [event.event_id for listener, event, _ in (dead.buried if dead else ()) if listener == name]
        assert counts.under_way == 0
        assert counts.accepted == len(everything)
        assert (counts.delivered, counts.dead_lettered) == (len(taken), len(buried))
        assert len({*taken, *buried}) == len(taken) + len(buried) == len(everything) - counts.dropped
        assert {*taken, *buried} <= everything
        assert sink.deepest <= lane["size"]
        if "partial" not in lane["script"]:
            for saga_id, events in itertools.groupby(sorted(sink.taken, key=lambda e: e.saga_id), lambda e: e.saga_id):
                order = [event.sequence for event in events]
                assert order == sorted(order), saga_id


def test_nothing_a_listener_does_is_felt_by_another_or_by_the_saga(caplog: pytest.LogCaptureFixture) -> None:
    """Beside a sink that hangs, one that will not be cancelled, and one that raises, the saga and the healthy hear all."""
    memory, inline, stubborn = MemoryListener(), MemoryListener(), Hung(stubborn=True)
    raising = Scripted(["unknown"] * 10_000, random.Random(7))
    dead = KeptDeadLetters()

    async def main() -> float:
        fan_out = FanOut(
            [
                Queued(Hung(), size=5, block_seconds=0.1),
                Queued(stubborn, size=5, block_seconds=0.1, timeout_ms=50),
                Queued(raising, size=5, block_seconds=0.1),
                memory,
                Inline(inline),
            ],
            dead_letters=dead,
        )
        began = time.perf_counter()
        for number in range(20):
            async with saga_scope(f"o-{number}", "order", listeners=[fan_out]) as saga:
                await a_whole_life(saga)
        seconds = time.perf_counter() - began
        left = await fan_out.aclose(timeout=0.5)
        stubborn.stubborn = False  # or the event loop would not end
        assert set(left) <= {"Hung", "Hung-2", "Scripted"}
        assert all(counts.under_way == 0 for name, counts in fan_out.counts.items() if name != "Hung-2")
        assert {counts.accepted for counts in fan_out.counts.values()} == {20 * len(WHOLE_LIFE)}
        return seconds

    assert asyncio.run(main()) < 5, "each of three stuck queues has the saga wait once, for 0.1 s"
    assert memory.story == inline.story == WHOLE_LIFE * 20
    assert len([name for name, _, _ in dead.buried if name == "Hung"]) == 20 * len(WHOLE_LIFE)


def test_a_listener_of_hooks_is_called_with_what_the_saga_said() -> None:
    """Queued hooks get the live result and error, and a copy of the context as it was; the event is theirs to ask for."""
    heard: list[tuple[str, Any]] = []
    result, changed = object(), asyncio.Event()

    class Hooks(SagaListener):
        async def on_saga_started(self, saga_id: str, saga_name: str, context: Mapping[str, Any]) -> None:
            await changed.wait()
            heard.append(("started", dict(context)))

        async def on_step_completed(self, saga_id: str, step_name: str, result: Any, duration_ms: int) -> None:
            heard.append((step_name, result))

    async def main() -> None:
        context = {"order_id": 17}
        async with FanOut([Hooks()]) as fan_out, saga_scope("o-1", "order", listeners=[fan_out]) as saga:
            await saga.started(context)
            context["order_id"] = 18
            changed.set()
            await saga.step_started("pay")
            await saga.step_completed("pay", result)

    asyncio.run(main())
    assert heard == [("started", {"order_id": 17}), ("pay", result)]


def test_what_is_written_is_told_to_listeners_of_hooks_as_far_as_the_event_knows() -> None:
    """An event of a topic becomes its hook again: names of context keys without values, no result, the error's words."""
    heard: list[tuple[Any, ...]] = []

    class Hooks(SagaListener):
        pass

    def note(hook: str) -> Any:
        async def noted(self: Hooks, *arguments: Any) -> None:
            heard.append((hook, *arguments))

        return noted

    for hook in HOOKS:
        setattr(Hooks, hook, note(hook))
    memory = MemoryListener()

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[memory]) as saga:
            await a_whole_life(saga)
        async with FanOut([Hooks()]) as fan_out:
            await fan_out.write(memory.events)
            for kind in (EventType.SAGA_COMPLETED, EventType.SAGA_ROLLED_BACK):
                await fan_out.write([make_event(event_type=kind, total_duration_ms=7)])

    asyncio.run(main())
    assert [call[0] for call in heard[:-2]] == [f"on_{kind}" for kind, _ in WHOLE_LIFE]
    assert heard[0] == ("on_saga_started", "o-1", "order", {"order_id": None})
    assert heard[2] == ("on_step_completed", "o-1", "reserve", None, memory.events[2].duration_ms)
    error = heard[6][3]
    assert (type(error), error.error_type, str(error)) == (ReportedError, "ValueError", "card refused")
    assert heard[-2:] == [("on_saga_completed", "order-17", 7), ("on_saga_rolled_back", "order-17", 7)]


def test_a_hook_called_by_hand_has_no_identity() -> None:
    """A hook outside a run is refused, naming the cure."""
    fan_out = FanOut([MemoryListener()])
    with pytest.raises(NoSagaScopeError, match="saga_scope"):
        asyncio.run(fan_out.on_saga_completed("o-1", 5))


def test_closing_before_anything_and_twice_is_safe(memory: MemoryListener) -> None:
    """Closing can be called at any time; what is told afterwards is a dead letter, or counted as dropped."""
    dead = KeptDeadLetters()

    async def main() -> None:
        fan_out = FanOut([memory], dead_letters=dead)
        assert await fan_out.aclose() == {}
        assert await fan_out.aclose() == {}
        assert not fan_out.health().ready
        await fan_out.write(events_of("o-1", 2))
        await fan_out.aclose()

    asyncio.run(main())
    assert memory.events == []
    assert [reason for _, _, reason in dead.buried] == ["told after the fan-out was closed"] * 2


def test_closing_keeps_its_deadline_and_says_what_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """A hung sink does not hold up a shutdown: what it has not taken is named, logged, and kept as dead letters in order."""
    dead = KeptDeadLetters()
    events, hung = events_of("o-1", 5), Hung(stubborn=True)

    async def main() -> float:
        fan_out = FanOut([Queued(hung, batch_size=2), MemoryListener()], dead_letters=dead)
        await fan_out.write(events)
        await asyncio.sleep(0.05)
        began = time.perf_counter()
        assert await fan_out.aclose(timeout=0.2) == {"Hung": 5}
        seconds = time.perf_counter() - began
        hung.stubborn = False
        return seconds

    assert asyncio.run(asyncio.wait_for(main(), 10)) < 5
    assert {event.event_id for _, event, _ in dead.buried} == {event.event_id for event in events}
    assert "closed after 0.2 s with events left: {'Hung': 5}" in caplog.text


def test_a_saga_cancelled_while_it_waits_for_room_loses_no_event() -> None:
    """The event of a cancelled saga is a dead letter where it had no place in the queue yet."""
    dead = KeptDeadLetters()

    async def main() -> None:
        fan_out = FanOut([Queued(Hung(), size=1, block_seconds=60)], dead_letters=dead)
        await fan_out.write(events_of("o-1", 1))
        waiting = asyncio.create_task(fan_out.write(events_of("o-2", 1)))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await fan_out.aclose(timeout=0)
        counts = fan_out.counts["Hung"]
        assert (counts.accepted, counts.dead_lettered) == (2, 2)

    asyncio.run(main())


def test_health_tells_each_listener(caplog: pytest.LogCaptureFixture) -> None:
    """A listener is ok, failing, or left alone; sagas are held up only where an inline one is left alone."""
    broken = Scripted(["transient"] * 1000, random.Random(7))
    outbox = Scripted(["transient"] * 1000, random.Random(7))

    async def main() -> None:
        fan_out = FanOut([broken, Inline(outbox, timeout_ms=50, breaker_failures=1)])
        assert fan_out.health().ready
        await fan_out.write(events_of("o-1", 1))
        await until(lambda: fan_out.health().listeners["Scripted"].state == "failing")
        health = fan_out.health()
        assert (health.ready, health.listeners["Scripted-2"].state) == (False, "open")
        assert health.listeners["Scripted"].last_error == "TransientError: not now"
        await fan_out.aclose(timeout=0)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("listeners", "error", "says"),
    [
        ([], ValueError, "got none"),
        ([print], TypeError, "is no listener"),
        ([m := MemoryListener(), m], ValueError, "MemoryListener twice"),
    ],
)
def test_what_makes_no_fan_out_is_refused(listeners: Any, error: type[Exception], says: str) -> None:
    """A mistake is an error where it is made."""
    with pytest.raises(error, match=says):
        FanOut(listeners)


def test_dead_letters_that_can_keep_nothing_are_refused() -> None:
    """A path instead of a DeadLetterFile would lose every one of them."""
    with pytest.raises(TypeError, match=r"dead_letters: got 'dead.jsonl'; allowed: .*DeadLetterFile\(path\)"):
        FanOut([MemoryListener()], dead_letters="dead.jsonl")  # type: ignore[arg-type] # the mistake


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("size", 0), ("when_full", "explode"), ("workers", 0), ("linger_ms", -1), ("timeout_ms", 0)),
        *(("size", "9"), ("batch_size", 2.5), ("retry", 3)),
    ],
)
def test_an_option_out_of_range_is_refused(option: str, value: Any) -> None:
    """Naming the option, the value, and what is allowed."""
    with pytest.raises(ValueError, match=f"{option}: got {value!r}; allowed"):
        Queued(MemoryListener(), **{option: value})


def test_a_loop_that_ends_unclosed_keeps_what_it_had(caplog: pytest.LogCaptureFixture) -> None:
    """Without aclose the end of the event loop leaves nothing uncounted that was under way."""
    dead = KeptDeadLetters()
    fan_out = FanOut([Hung(), MemoryListener()], dead_letters=dead)

    async def one_saga() -> None:
        await fan_out.write(events_of("o-1", 1))
        await asyncio.sleep(0.01)

    caplog.set_level(logging.ERROR)
    asyncio.run(one_saga())
    asyncio.run(one_saga())
    counts = fan_out.counts
    assert counts["MemoryListener"].delivered == 2
    assert counts["Hung"].dropped + counts["Hung"].dead_lettered == 2


@pytest.mark.parametrize("wrap", [ResilientListener, lambda sink: MonitoredListener(ResilientListener(sink), "sink")])
@pytest.mark.parametrize("policy", [Queued, Inline, lambda listener: FanOut([listener])])
def test_retries_within_a_fan_out_are_the_fan_outs(
    wrap: Callable[[SagaListener], SagaListener], policy: Callable[[SagaListener], Any]
) -> None:
    """A ResilientListener would hide from it what became of the events: it is refused, and the cure is named."""
    with pytest.raises(ValueError, match=r"Queued\(retry=…\)"):
        policy(wrap(MemoryListener()))


def test_a_bad_stamp_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """One that raises, and one that forgets to return, are logged; the stamps before and after them stand."""
    import msgspec

    class Stamps(MemoryListener):
        def stamp(self, event: SagaEvent) -> SagaEvent:
            return msgspec.structs.replace(event, trace_id=(event.trace_id or "") + "t")

    class Raises(MemoryListener):
        def stamp(self, event: SagaEvent) -> SagaEvent:
            raise ValueError(SECRET)

    class Forgets(MemoryListener):
        def stamp(self, event: SagaEvent) -> SagaEvent:
            return None  # type: ignore[return-value] # the mistake

    last = Stamps()

    async def main() -> None:
        fan_out = FanOut([Stamps(), Raises(), Forgets(), last])
        listeners = [Forgets(), Stamps(), fan_out, Raises()]
        async with saga_scope("o-1", "order", listeners=listeners) as saga, fan_out:
            await saga.started({"card": SECRET})

    asyncio.run(main())
    assert [event.trace_id for event in last.events] == ["ttt"]
    assert caplog.text.count("stamp has to return the event; got NoneType") == 2
    assert SECRET not in caplog.text


def test_names_are_told_apart() -> None:
    """Two of a kind beside one that was named like the second: three lanes with three names."""
    fan_out = FanOut([MemoryListener(), MonitoredListener(MemoryListener(), "MemoryListener-2"), MemoryListener()])
    assert list(fan_out.counts) == ["MemoryListener", "MemoryListener-2", "MemoryListener-3"]


def test_a_sink_that_rejects_all_is_said_to_fail() -> None:
    """A sink that is there, and takes nothing, is not `ok`."""

    async def main() -> None:
        fan_out = FanOut([Misbehaving(["permanent"])])
        await fan_out.write(events_of("o-1", 1))
        await until(lambda: not fan_out.counts["Misbehaving"].under_way)
        assert fan_out.health().listeners["Misbehaving"].state == "failing"
        await fan_out.aclose()

    asyncio.run(main())


def test_a_fan_out_within_a_fan_out_is_closed_with_it() -> None:
    """What the inner one has queued is delivered before the outer one's close returns, and its sinks are closed."""
    slow, closed = MemoryListener(delay=0.01), []

    class Closes(MemoryListener):
        async def close(self) -> None:
            closed.append("closed")

    async def main() -> None:
        outer = FanOut([FanOut([Queued(slow, batch_size=1), Closes()]), MemoryListener()])
        async with outer, saga_scope("o-1", "order", listeners=[outer]) as saga:
            await a_whole_life(saga)
        assert slow.story == WHOLE_LIFE

    asyncio.run(main())
    assert closed == ["closed"]
