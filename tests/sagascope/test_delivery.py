"""The wrappers: each covers every hook and `write`, and composes with the others."""

from __future__ import annotations

import asyncio
import json
import pickle
import resource
import signal
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, Gauge

from sagascope import (
    DeadLetterFile,
    MonitoredListener,
    ResilientListener,
    Retry,
    TimeoutWrappedListener,
    decode,
    saga_scope,
)
from sagascope.errors import ListenerTimeoutError, PartialError, PermanentError, TransientError
from sagascope.listener import HOOKS, EventListener, SagaListener
from sagascope.resilient import Breaker
from tests.sagascope.conftest import WHOLE_LIFE, MemoryListener, a_whole_life, make_event, until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sagascope.delivery import WrappedListener
    from sagascope.events import SagaEvent

BOOM = "boom"


class Calls(SagaListener):
    """Notes each hook that is called, and raises what it was made with."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.heard: list[tuple[str, tuple[Any, ...]]] = []
        self.error = error


def _noted(hook: str) -> Any:
    async def noted(self: Calls, *arguments: Any) -> None:
        self.heard.append((hook, arguments))
        if self.error is not None:
            raise self.error

    return noted


for _hook in HOOKS:
    setattr(Calls, _hook, _noted(_hook))

WRAPPERS: dict[str, Callable[[SagaListener], WrappedListener]] = {
    "timeout": TimeoutWrappedListener,
    "monitored": lambda inner: MonitoredListener(inner, "sink", CollectorRegistry()),
    "resilient": ResilientListener,
    "all": lambda inner: ResilientListener(
        MonitoredListener(TimeoutWrappedListener(inner), "sink", CollectorRegistry())
    ),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
def test_a_wrapper_passes_every_hook_on(wrap: Callable[[SagaListener], WrappedListener]) -> None:
    """Each hook reaches the listener within, with its arguments as they are; an EventListener gets all its events."""
    calls, memory = Calls(), MemoryListener()

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[wrap(calls), wrap(memory)]) as saga:
            await a_whole_life(saga)
            await saga.completed()
            saga._undone |= {"notify", "reserve"}
            await saga.failed(ValueError(BOOM))

    asyncio.run(main())
    assert {hook for hook, _ in calls.heard} == set(HOOKS)
    assert [f"on_{kind}" for kind, _ in WHOLE_LIFE] == [hook for hook, _ in calls.heard][: len(WHOLE_LIFE)]
    assert memory.story[: len(WHOLE_LIFE)] == WHOLE_LIFE
    assert wrap(memory).takes_events
    assert not wrap(calls).takes_events


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
def test_a_wrapper_opens_writes_and_closes_what_is_within(wrap: Callable[[SagaListener], WrappedListener]) -> None:
    """The life of a listener passes through, too, and a listener of hooks has none."""
    lived: list[str] = []

    class Connected(MemoryListener):
        async def open(self) -> None:
            lived.append("open")

        async def close(self) -> None:
            lived.append("close")

    event = make_event()

    async def main() -> None:
        listener = wrap(connected := Connected())
        async with listener:
            await listener.write((event,))
        assert connected.events == [event]
        async with wrap(Calls()):
            pass

    asyncio.run(main())
    assert lived == ["open", "close"]


def test_a_stamp_passes_through() -> None:
    """What a tracer gives the event is kept by the wrappers around it."""

    class Stamps(SagaListener):
        def stamp(self, event: SagaEvent) -> SagaEvent:
            import msgspec

            return msgspec.structs.replace(event, trace_id="t-1")

    memory = MemoryListener()

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[memory, TimeoutWrappedListener(Stamps())]) as saga:
            await saga.started({})

    asyncio.run(main())
    assert memory.events[0].trace_id == "t-1"


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_takes_too_long_is_cancelled(hook: str) -> None:
    """After timeout_ms the hook is cancelled, cleans up, and a transient error names it."""
    ended: list[str] = []

    class Slow(SagaListener):
        pass

    async def slow(self: Slow, *arguments: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(hook)

    setattr(Slow, hook, slow)

    async def main() -> None:
        with pytest.raises(ListenerTimeoutError, match=rf"Slow\.{hook} did not end within 20 ms"):
            await getattr(TimeoutWrappedListener(Slow(), timeout_ms=20), hook)()

    asyncio.run(main())
    assert ended == [hook]
    assert issubclass(ListenerTimeoutError, TransientError)
    assert issubclass(ListenerTimeoutError, TimeoutError)


def test_cancelling_a_limited_call_cancels_the_call_within() -> None:
    """Nothing runs on behind a call that was cancelled from outside."""
    cancelled = asyncio.Event()

    class Slow(EventListener):
        async def write(self, events: Sequence[SagaEvent]) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await TimeoutWrappedListener(Slow(), timeout_ms=60_000).write((make_event(),))
        assert cancelled.is_set()

    asyncio.run(main())


def test_a_timeout_that_is_none_is_refused() -> None:
    """0 would fail every call."""
    with pytest.raises(ValueError, match="timeout_ms: got 0; allowed: milliseconds above 0"):
        TimeoutWrappedListener(Calls(), timeout_ms=0)


def test_each_call_is_counted_and_timed_by_hook() -> None:
    """Success, errors and seconds, by listener and hook; two listeners share the metrics of a registry."""
    registry = CollectorRegistry()

    async def main() -> None:
        good = MonitoredListener(MemoryListener(), "good", registry)
        bad = MonitoredListener(Calls(PermanentError(BOOM)), "bad", registry)
        async with saga_scope("o-1", "order", listeners=[good, bad]) as saga:
            await a_whole_life(saga)
        await good.write((make_event(),))

    asyncio.run(main())

    def value(sample: str, listener: str, hook: str) -> float | None:
        return registry.get_sample_value(sample, {"listener": listener, "hook": hook})

    assert value("listener_success_total", "good", "on_step_started") == 3
    assert value("listener_success_total", "good", "write") == 1
    assert value("listener_duration_count", "good", "on_saga_failed") == 1
    assert value("listener_errors_total", "bad", "on_step_started") == 3
    assert value("listener_success_total", "bad", "on_step_started") is None
    assert value("listener_duration_count", "bad", "on_step_started") == 3


def test_metrics_of_another_by_these_names_are_said_and_nothing_is_half_registered() -> None:
    """A registry that has one of the three names gets none of them, and the error says what to do."""
    registry = CollectorRegistry()
    Gauge("listener_duration", "Of somebody else", registry=registry)
    listener = MonitoredListener(MemoryListener(), "sink", registry)
    for _ in range(2):
        with pytest.raises(PermanentError, match=r"Duplicated timeseries.*another registry"):
            asyncio.run(listener.write((make_event(),)))
    assert [metric.name for metric in registry.collect()] == ["listener_duration"]


def test_without_the_client_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener can be wrapped anywhere; its first call says what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    listener = MonitoredListener(MemoryListener(), "sink")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sagascope\[prometheus\]'"):
        asyncio.run(listener.write((make_event(),)))


class Failing(EventListener):
    """Raises these errors, one a call, then takes everything."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls: list[list[SagaEvent]] = []

    async def write(self, events: Sequence[SagaEvent]) -> None:
        self.calls.append(list(events))
        if self.errors:
            raise self.errors.pop(0)


def resilient(inner: SagaListener, **options: Any) -> ResilientListener:
    """One that does not wait long."""
    dead_letters = options.pop("dead_letters", None)
    retry = Retry(**{"first_wait_seconds": 0.001, "breaker_seconds": 0.01} | options)
    return ResilientListener(inner, retry=retry, dead_letters=dead_letters)


def test_what_may_pass_is_tried_again() -> None:
    """Transient and unknown errors alike; no error comes out."""
    failing = Failing(TransientError(BOOM), RuntimeError(BOOM), ConnectionError(BOOM))
    listener = resilient(failing)
    asyncio.run(listener.write((make_event(),)))
    assert len(failing.calls) == 4
    counts = listener.counts
    assert (counts.accepted, counts.delivered, counts.retries) == (1, 1, 3)
    assert listener.last_error is None


def test_a_hook_is_tried_again_and_given_up_like_a_batch() -> None:
    """A listener of hooks: each call is one event, and its event is the dead letter."""
    calls = Calls(TransientError(BOOM))
    kept: list[str] = []

    class Kept:
        async def bury(self, listener: str, events: Sequence[SagaEvent], reason: str, attempts: int) -> None:
            kept.extend(event.event_type for event in events)
            assert (listener, reason) == ("Calls", "not taken within 0.05 s: TransientError: boom")
            assert attempts > 1

    listener = resilient(calls, seconds=0.05, dead_letters=Kept(), breaker_failures=1000)

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[listener]) as saga:
            await saga.started({})
        await listener.on_step_started("o-1", "by hand: no event to keep")
        await listener.close()

    asyncio.run(main())
    assert kept == ["saga_started"]
    assert len(calls.heard) > 2
    assert (listener.counts.dead_lettered, listener.counts.dropped) == (1, 1)


def test_a_bad_event_costs_no_other() -> None:
    """A batch that fails for good is tried event by event: only the bad one is given up, at once."""
    events = [make_event(saga_id=f"o-{n}") for n in range(5)]

    class RefusesOne(MemoryListener):
        async def write(self, batch: Sequence[SagaEvent]) -> None:
            if any(event.saga_id == "o-3" for event in batch):
                raise PermanentError(BOOM)
            await super().write(batch)

    sink = RefusesOne()
    listener = resilient(sink)
    asyncio.run(listener.write(events))
    assert [event.saga_id for event in sink.events] == ["o-0", "o-1", "o-2", "o-4"]
    assert (listener.counts.delivered, listener.counts.dropped, listener.counts.retries) == (4, 1, 0)


def test_what_was_taken_is_not_sent_again() -> None:
    """Of a bulk that was taken in part only the rest is tried again; what never will be is given up at once."""
    first, second, third = events = [make_event() for _ in range(3)]
    failing = Failing(PartialError(BOOM, retry=[second], rejected=[(third, "wrong type")]))
    listener = resilient(failing)
    asyncio.run(listener.write(events))
    assert failing.calls == [events, [second]]
    assert (listener.counts.delivered, listener.counts.dropped) == (2, 1)
    assert first not in failing.calls[1]


def test_a_sinks_own_wish_to_wait_comes_first() -> None:
    """Retry-After of 0 means at once, whatever the back-off; a longer one than the patience is cut to it."""
    failing = Failing(TransientError(BOOM, retry_after=0.0))
    patient = ResilientListener(failing, retry=Retry(first_wait_seconds=30.0))
    began = time.perf_counter()
    asyncio.run(patient.write((make_event(),)))
    hasty = ResilientListener(Failing(TransientError(BOOM, retry_after=3600.0)), retry=Retry(seconds=0.1))
    asyncio.run(hasty.write((make_event(),)))
    assert time.perf_counter() - began < 10
    assert (patient.counts.delivered, hasty.counts.delivered) == (1, 1)


def test_a_sink_that_is_down_is_left_alone() -> None:
    """After breaker_failures failed calls the rest of the patience passes with few calls."""
    failing = Failing(*[TransientError(BOOM)] * 1000)
    retry = Retry(first_wait_seconds=0.0, breaker_failures=3, breaker_seconds=60, seconds=0.2)
    listener = ResilientListener(failing, retry=retry)

    async def main() -> None:
        for _ in range(5):
            await listener.write((make_event(),))

    asyncio.run(main())
    assert len(failing.calls) == 3
    assert listener.breaker.is_open
    assert (listener.counts.accepted, listener.counts.dropped) == (5, 5)


def test_the_breaker_lets_one_call_through_at_a_time() -> None:
    """Open after so many failures in a row; one probe each period; closed by the first success."""
    now = 100.0
    breaker = Breaker(failures=2, seconds=10, clock=lambda: now)
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    assert (breaker.wait(), breaker.is_open) == (0.0, False)
    breaker.failed()
    assert (breaker.wait(), breaker.is_open) == (10.0, True)
    now += 10
    assert breaker.wait() == 0.0
    assert breaker.wait() == 10.0, "the second asks while the first one's call is under way"
    breaker.failed()
    now += 5
    assert breaker.wait() == 5.0
    now += 5
    assert breaker.wait() == 0.0
    breaker.succeeded()
    assert (breaker.wait(), breaker.is_open) == (0.0, False)


def test_a_cancelled_delivery_keeps_its_events(tmp_path: Path) -> None:
    """What was being tried when it was cancelled is in the dead letters, also when the cancellation hits a wait."""
    listener = ResilientListener(
        Failing(*[TransientError(BOOM)] * 1000), dead_letters=DeadLetterFile(tmp_path / "dead.jsonl")
    )
    event = make_event()

    async def main() -> None:
        writing = asyncio.create_task(listener.write((event,)))
        await until(lambda: listener.last_error is not None)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        await listener.close()

    asyncio.run(main())
    assert json.loads((tmp_path / "dead.jsonl").read_text())["original_message"]["event_id"] == event.event_id
    assert listener.counts.dead_lettered == 1


def test_an_option_out_of_range_is_refused() -> None:
    """Naming it, its value, and what is allowed."""
    with pytest.raises(ValueError, match="breaker_failures: got 0; allowed: 1 or more"):
        Retry(breaker_failures=0)


def test_dead_letters_are_whole_lines_in_sagaz_envelope(tmp_path: Path) -> None:
    """One line an event, with the event as it was, why, and how often it was tried; for the owner's eyes only."""
    file = DeadLetterFile(tmp_path / "new" / "dead.jsonl")
    events = [make_event(error_type="E", error_message='a "quoted"\nline', saga_id="ö\ud800") for _ in range(3)]
    asyncio.run(file.bury("Webhook", events, "410 Gone", attempts=3))
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert [decode(json.dumps(line["original_message"]).encode()).event_id for line in lines] == [
        event.event_id for event in events
    ]
    about = lines[0]["dlq_metadata"]
    assert (about["listener"], about["retry_count"], about["last_error"]["message"]) == ("Webhook", 2, "410 Gone")
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What does not fit is taken back whole; the events are counted as dropped, and the log says why."""
    file = DeadLetterFile(tmp_path / "dead.jsonl")
    asyncio.run(file.bury("Sink", [make_event()], BOOM, attempts=1))
    before = file.path.read_bytes()
    listener = ResilientListener(Failing(PermanentError(BOOM)), dead_letters=file)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
    try:
        asyncio.run(listener.write((make_event(),)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert file.path.read_bytes() == before
    assert (listener.counts.dead_lettered, listener.counts.dropped) == (0, 1)
    assert "and the dead letters failed: OSError: [Errno 27] File too large" in caplog.text


def test_errors_come_through_a_process_border_whole() -> None:
    """A worker's error keeps its class, its words and what it says of the events."""
    event = make_event()
    transient: TransientError = pickle.loads(pickle.dumps(TransientError(BOOM, retry_after=3.0)))  # noqa: S301 - our own
    partial: PartialError = pickle.loads(pickle.dumps(PartialError(BOOM, retry=[event], rejected=[(event, "w")])))  # noqa: S301
    assert (str(transient), transient.retry_after) == (BOOM, 3.0)
    assert (str(partial), partial.retry, partial.rejected) == (BOOM, [event], [(event, "w")])
