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
from prometheus_client import CollectorRegistry

from sagascope import FanOut, Inline, MonitoredListener, Queued, Retry, TimeoutWrappedListener, saga_scope
from sagascope.current import NoSagaScopeError
from sagascope.errors import PartialError, PermanentError, TransientError
from sagascope.events import EventType
from sagascope.fan_out import ReportedError
from sagascope.listener import HOOKS, EventListener, SagaListener
from tests.sagascope.conftest import WHOLE_LIFE, MemoryListener, a_whole_life, make_event, until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sagascope.events import SagaEvent
    from sagascope.lanes import Lane

NOT_NOW, NEVER = "not now", "never"


class KeptDeadLetters:
    """Dead letters in memory; the first `failures` times they fail."""

    def __init__(self, failures: int = 0) -> None:
        self.buried: list[tuple[str, SagaEvent, str]] = []
        self._failures = failures

    async def bury(self, listener: str, events: Sequence[SagaEvent], reason: str, attempts: int) -> None:
        await asyncio.sleep(0)
        if self._failures:
            self._failures -= 1
            raise OSError(28, "No space left on device")
        self.buried += [(listener, event, reason) for event in events]


class Hung(EventListener):
    """Takes nothing and never answers; where `stubborn` it will not be cancelled either."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.calls = 0
        self.stubborn = stubborn

    async def write(self, events: Sequence[SagaEvent]) -> None:
        self.calls += 1
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if not self.stubborn:
                    raise


class Scripted(EventListener):
    """Does with each call what its script says, then takes everything."""

    def __init__(self, script: Sequence[str], rng: random.Random) -> None:
        self.taken: list[SagaEvent] = []
        self.script = iter(script)
        self.rng = rng
        self.lane: Lane | None = None
        self.deepest = 0

    async def write(self, events: Sequence[SagaEvent]) -> None:
        if self.lane is not None:
            self.deepest = max(self.deepest, self.lane.counts.under_way - len(self.lane._line))
        await asyncio.sleep(0)
        match next(self.script, "take"):
            case "transient":
                raise TransientError(NOT_NOW, retry_after=self.rng.choice([None, 0.0]))
            case "unknown":
                raise RuntimeError(NOT_NOW)
            case "permanent":
                raise PermanentError(NEVER)
            case "partial":
                shares: list[list[SagaEvent]] = [[], [], []]
                for event in events:
                    self.rng.choice(shares).append(event)
                taken, retry, rejected = shares
                self.taken += taken
                if retry or rejected:
                    raise PartialError(NEVER, retry=retry, rejected=[(event, "never") for event in rejected])
            case _:
                self.taken += events


def events_of(saga_id: str, number: int) -> list[SagaEvent]:
    """Events of one saga, numbered."""
    return [make_event(saga_id=saga_id, sequence=n) for n in range(number)]


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
