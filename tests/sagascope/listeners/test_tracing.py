"""TracingSagaListener: one trace a run, with the real SDK and real sagas of sagaz."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from opentelemetry import context, propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from sagascope.fan_out import FanOut
from sagascope.integrations.sagaz import FanOutSaga, SagazBridge
from sagascope.listeners.tracing import TracingSagaListener
from sagascope.scope import saga_scope
from tests.sagascope.conftest import MemoryListener, a_whole_life, fails, make_event, ok, run_and_cancel, sleeps
from tests.sagascope.listeners.contract import ListenerContract, exceptions_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan


EXCEPTIONS: set[type[BaseException]] = set()


UNSET, ERROR = trace.StatusCode.UNSET, trace.StatusCode.ERROR


class Tracing(NamedTuple):
    """A listener, and what it and the sagas' code have exported."""

    listener: TracingSagaListener
    tracer: trace.Tracer
    exporter: InMemorySpanExporter

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended."""
        return list(self.exporter.get_finished_spans())

    def named(self, name: str) -> ReadableSpan:
        """The one span of that name."""
        (span,) = [span for span in self.spans if span.name == name]
        return span

    @property
    def tree(self) -> dict[str, Any]:
        """Names below the names of their parents; those of one parent in order of their beginning."""
        spans = sorted(self.spans, key=lambda span: span.start_time or 0)

        def below(parent: int | None) -> dict[str, Any]:
            found = [s for s in spans if (s.parent.span_id if s.parent else None) == parent]
            return {span.name: below(span.context.span_id) for span in found}

        return below(None)


def make_tracing(**options: Any) -> Tracing:
    """A listener with a provider of its own."""
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    return Tracing(TracingSagaListener(tracer, **options), tracer, exporter)


@pytest.fixture
def tracing() -> Tracing:
    """A listener with a provider of its own."""
    return make_tracing()


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Neither a listener that failed, nor a context that could not be detached."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


def works(tracing: Tracing, name: str, seconds: float = 0.0) -> Callable[[dict[str, Any]], Awaitable[None]]:
    """A step whose code makes a span of its own, after a pause."""

    async def step(ctx: dict[str, Any]) -> None:
        await asyncio.sleep(seconds)
        with tracing.tracer.start_as_current_span(name):
            await asyncio.sleep(0)

    return step


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """Its attributes, but for what differs from run to run."""
    changing = ("saga.run.id", "saga.duration_ms", "saga.step.duration_ms")
    return {key: value for key, value in (span.attributes or {}).items() if key not in changing}


class TestTracingSagaListener(ListenerContract):
    """The laws of every listener."""

    name = "TracingSagaListener"
    drivers = ("opentelemetry",)
    extra = "opentelemetry"

    def unopened(self, tmp_path: Path) -> TracingSagaListener:
        return TracingSagaListener()


def test_every_exception_of_the_driver_is_decided() -> None:
    """A new exception class of the API has to be looked at."""
    assert exceptions_of(context, trace, trace.span, trace.status) == EXCEPTIONS


@pytest.mark.parametrize("bound", ["max_open", "max_age_seconds"])
def test_a_bound_is_at_least_one(bound: str) -> None:
    """A bound of nothing is refused by its name when the listener is made."""
    bounds: dict[str, Any] = {bound: 0}
    with pytest.raises(ValueError, match=f"{bound}: got 0; allowed: 1 or more"):
        TracingSagaListener(**bounds)


def test_parallel_steps_are_siblings_and_their_code_is_within_them(tracing: Tracing) -> None:
    """Each step has a span below the run's, and what its code does is below the step's, parallel or not."""
    memory = MemoryListener()
    saga = FanOutSaga("shop", listeners=[tracing.listener, memory])
    saga.add_step("reserve", works(tracing, "SELECT 1", 0.02))
    saga.add_step("charge", works(tracing, "POST /charge", 0.01))
    saga.add_step("ship", works(tracing, "POST /ship"), depends_on=["reserve", "charge"])
    asyncio.run(saga.run({}, "o-1"))
    assert tracing.tree == {
        "saga.execute.shop": {
            "saga.step.action.reserve": {"SELECT 1": {}},
            "saga.step.action.charge": {"POST /charge": {}},
            "saga.step.action.ship": {"POST /ship": {}},
        }
    }
    root = tracing.named("saga.execute.shop")
    assert attributes(root) == {
        "saga.id": "o-1",
        "saga.name": "shop",
        "saga.total_steps": 3,
        "saga.status": "completed",
        "saga.completed_steps": 3,
    }
    assert attributes(tracing.named("saga.step.action.ship")) == {
        "saga.id": "o-1",
        "saga.name": "shop",
        "saga.step.name": "ship",
        "saga.step.type": "action",
        "saga.step.retry_count": 0,
        "saga.step.status": "completed",
    }
    assert all(span.status.status_code is UNSET for span in tracing.spans)
    (total,) = [event.total_duration_ms for event in memory.events if event.total_duration_ms is not None]
    assert (root.attributes or {})["saga.duration_ms"] == total
    assert {event.trace_id for event in memory.events} == {f"{root.context.trace_id:032x}"}


def test_a_call_in_a_step_carries_the_steps_span(tracing: Tracing) -> None:
    """What a step's code sends out names the trace and the step as its parent."""
    sent: dict[str, str] = {}

    async def call(ctx: dict[str, Any]) -> None:
        propagate.inject(sent)

    asyncio.run(FanOutSaga("shop", listeners=[tracing.listener]).add_step("charge", call).run({}))
    about = tracing.named("saga.step.action.charge").context
    assert sent["traceparent"] == f"00-{about.trace_id:032x}-{about.span_id:016x}-{about.trace_flags:02x}"


def test_a_failure_is_undone_in_the_same_trace(tracing: Tracing) -> None:
    """The failed step, each compensation, and the run: statuses, with the event's error and no exception's text."""
    card = "4111-1111-1111-1111"
    saga = FanOutSaga("shop", listeners=[tracing.listener])
    saga.add_step("reserve", ok, works(tracing, "UPDATE stock"))
    saga.add_step("notify", ok, fails(OSError("mail server gone")), depends_on=["reserve"])
    saga.add_step("charge", fails(ValueError(f"card {card} refused")), depends_on=["notify"])

    async def main() -> None:
        with pytest.raises(ValueError, match=card):
            await saga.run({"card": card}, "o-1")

    asyncio.run(main())
    assert tracing.tree == {
        "saga.execute.shop": {
            "saga.step.action.reserve": {},
            "saga.step.action.notify": {},
            "saga.step.action.charge": {},
            "saga.step.compensation.notify": {},
            "saga.step.compensation.reserve": {"UPDATE stock": {}},
        }
    }
    failed = {span.name: span for span in tracing.spans if span.status.status_code is ERROR}
    assert set(failed) == {"saga.execute.shop", "saga.step.action.charge", "saga.step.compensation.notify"}
    assert failed["saga.step.compensation.notify"].status.description == "OSError: mail server gone"
    assert (failed["saga.step.action.charge"].attributes or {})["error.type"] == "ValueError"
    assert attributes(failed["saga.execute.shop"])["saga.status"] == "failed"
    assert attributes(failed["saga.step.compensation.notify"])["saga.step.type"] == "compensation"
    assert all(card not in span.to_json() and not span.events for span in tracing.spans)


def test_a_timeout_ends_the_steps_span(tracing: Tracing) -> None:
    """A step that timed out, and a compensation that did, have failed, and the run with them."""
    saga = FanOutSaga("slow", listeners=[tracing.listener])
    saga.add_step("reserve", ok, sleeps(60), compensation_timeout_seconds=0.01)
    saga.add_step("charge", sleeps(60), timeout_seconds=0.01, depends_on=["reserve"])

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await saga.run({})

    asyncio.run(main())
    status = {span.name: attributes(span).get("saga.step.status") for span in tracing.spans}
    assert status == {
        "saga.step.action.reserve": "completed",
        "saga.step.action.charge": "failed",
        "saga.step.compensation.reserve": "failed",
        "saga.execute.slow": None,
    }
    assert (tracing.named("saga.step.action.charge").status.description or "").startswith("TimeoutError")


def test_a_nested_saga_is_part_of_the_step_that_runs_it(tracing: Tracing) -> None:
    """A saga within a step, and one within that, are one trace; where the inner ends, the outer step goes on."""

    def nests(name: str, inner: FanOutSaga | None) -> FanOutSaga:
        async def step(ctx: dict[str, Any]) -> None:
            if inner:
                await inner.run({})
            with tracing.tracer.start_as_current_span(f"after {name}"):
                pass

        saga = FanOutSaga(name, listeners=[tracing.listener])
        saga.add_step("step", step)
        return saga

    asyncio.run(nests("a", nests("b", nests("c", None))).run({}))

    def below(name: str, inner: dict[str, Any]) -> dict[str, Any]:
        return {f"saga.execute.{name}": {"saga.step.action.step": inner | {f"after {name}": {}}}}

    assert tracing.tree == below("a", below("b", below("c", {})))


def test_concurrent_runs_of_one_instance_are_traces_of_their_own(tracing: Tracing) -> None:
    """Runs that overlap on one instance share no trace, and each has all its spans."""
    saga = FanOutSaga("shop", listeners=[tracing.listener])
    saga.add_step("reserve", works(tracing, "SELECT 1", 0.01)).add_step("charge", works(tracing, "POST /charge", 0.005))

    async def main() -> None:
        await asyncio.gather(*(saga.run({}, f"o-{n}") for n in range(20)))

    asyncio.run(main())
    traces: dict[int, list[str]] = {}
    for span in tracing.spans:
        traces.setdefault(span.context.trace_id, []).append(span.name)
    assert len(traces) == 20
    assert {tuple(sorted(names)) for names in traces.values()} == {
        ("POST /charge", "SELECT 1", "saga.execute.shop", "saga.step.action.charge", "saga.step.action.reserve")
    }


@pytest.mark.parametrize("ending", ["completes", "fails", "is cancelled", "times out"])
def test_the_caller_finds_its_context_as_it_was(tracing: Tracing, ending: str) -> None:
    """The run is below the span around it, which is the current one again after the run, however that ended."""
    step = {"completes": ok, "fails": fails(ValueError("no"))}.get(ending, sleeps(60))
    saga = FanOutSaga("shop", listeners=[tracing.listener]).add_step("step", step)

    async def main() -> None:
        with tracing.tracer.start_as_current_span("request"):
            before = context.get_current()
            try:
                if ending == "is cancelled":
                    await run_and_cancel(SagazBridge([tracing.listener]))
                else:
                    async with asyncio.timeout(0.05 if ending == "times out" else 60):
                        await saga.run({})
            except (ValueError, TimeoutError):
                pass
            assert context.get_current() is before
        await tracing.listener.close()

    asyncio.run(main())
    (run,) = tracing.tree["request"]
    assert run.startswith("saga.execute.")
    assert list(tracing.tree) == ["request"]


def test_a_run_that_was_cancelled_is_abandoned_as_it_is_left(tracing: Tracing) -> None:
    """A cancelled run tells no end: its spans end at once, with the time of the last event and a status that says so."""

    async def main() -> int:
        saga = FanOutSaga("shop", listeners=[FanOut([tracing.listener])]).add_step("pay", sleeps(60))
        running = asyncio.create_task(saga.run({}))
        await asyncio.sleep(0.05)
        assert tracing.spans == []
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        with tracing.tracer.start_as_current_span("later") as later:
            return later.start_time  # type: ignore[attr-defined, no-any-return] # of the SDK's

    later = asyncio.run(main())
    step, run = tracing.named("saga.step.action.pay"), tracing.named("saga.execute.shop")
    assert attributes(step)["saga.step.status"] == attributes(run)["saga.status"] == "abandoned"
    assert all(span.start_time <= span.end_time < later for span in (step, run))  # type: ignore[operator]
    assert step.status.status_code is run.status.status_code is UNSET


def test_a_cancelled_run_of_a_saga_scope_gives_its_caller_the_context_back(tracing: Tracing) -> None:
    """Also where the step ran in the caller's own task, and the cancellation came from outside."""

    async def main() -> None:
        before = context.get_current()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05), saga_scope("o-1", "order", listeners=[tracing.listener]) as saga:
                await saga.started({})
                await saga.step_started("pay")
                await asyncio.sleep(60)
        assert context.get_current() is before

    asyncio.run(main())
    assert attributes(tracing.named("saga.execute.order"))["saga.status"] == "abandoned"


def test_a_cancelled_run_below_a_bridge_is_abandoned_at_close(tracing: Tracing) -> None:
    """Sagaz tells a bridge of no cancellation."""

    async def main() -> None:
        await run_and_cancel(SagazBridge([tracing.listener]))
        assert tracing.spans == []
        await tracing.listener.close()

    asyncio.run(main())
    assert attributes(tracing.named("saga.execute.lost"))["saga.status"] == "abandoned"


def test_open_runs_are_bounded() -> None:
    """Beyond max_open runs, and after max_age_seconds, those that began first are abandoned when another begins."""
    now = [0.0]
    tracing = make_tracing(max_open=3, max_age_seconds=60.0, clock=lambda: now[0])

    def starts(count: int) -> list[str]:
        tracing.exporter.clear()
        for _ in range(count):
            tracing.listener.stamp(make_event())
        return [attributes(span)["saga.status"] for span in tracing.spans]

    assert starts(3) == []
    assert starts(2) == ["abandoned"] * 2
    now[0] += 61
    assert starts(1) == ["abandoned"] * 3


def test_what_an_abandoned_run_still_does_is_ignored() -> None:
    """A run that was given up is not begun again by its next step, and the caller's context is still given back."""
    tracing = make_tracing(max_open=1)

    async def main() -> None:
        before = context.get_current()
        async with saga_scope("o-1", "order", listeners=[tracing.listener]) as saga:
            await saga.started({})
            await saga.step_started("pay")
            tracing.listener.stamp(make_event(saga_name="another"))
            await saga.step_completed("pay")
            assert context.get_current() is before
            await saga.step_started("ship")
            await saga.step_completed("ship")
            await saga.completed()

    asyncio.run(main())
    assert tracing.tree == {"saga.execute.order": {"saga.step.action.pay": {}}}


def test_steps_in_the_callers_own_task(tracing: Tracing) -> None:
    """An executor that runs its steps in one task: each attempt is a span, and between steps the caller's is current."""

    async def main() -> None:
        with tracing.tracer.start_as_current_span("request"):
            before = context.get_current()
            async with saga_scope("o-1", "order", listeners=[tracing.listener]) as saga:
                await saga.started({})
                for _ in range(2):
                    await saga.step_started("pay")
                    await works(tracing, "POST /charge")({})
                    await saga.step_failed("pay", OSError("busy"))
                    assert context.get_current() is before
                async with saga_scope("o-2", "between", listeners=[tracing.listener]) as nested:
                    await nested.started({})
                    await nested.completed()
                await a_whole_life(saga)
            assert context.get_current() is before

    asyncio.run(main())
    retries = [attributes(s)["saga.step.retry_count"] for s in tracing.spans if s.name == "saga.step.action.pay"]
    assert retries == [0, 1]
    assert "saga.execute.between" in tracing.tree["request"]["saga.execute.order"]
    assert attributes(tracing.named("saga.execute.between"))["saga.parent.id"] == "o-1"


def test_what_a_cancelled_run_left_is_no_parent(tracing: Tracing) -> None:
    """A run that was cancelled in the middle of a step, in the caller's own task, does not adopt the next run."""

    async def main() -> None:
        with tracing.tracer.start_as_current_span("request"):
            before = context.get_current()
            try:
                async with saga_scope("o-1", "lost", listeners=[tracing.listener]) as saga:
                    await saga.started({})
                    await saga.step_started("pay")
                    raise asyncio.CancelledError  # noqa: TRY301 - as a timeout around the step would
            except asyncio.CancelledError:
                pass
            async with saga_scope("o-2", "next", listeners=[tracing.listener]) as saga:
                await saga.started({})
                await saga.step_started("pay")
                await saga.step_completed("pay")
                await saga.completed()
            assert context.get_current() is before
        await tracing.listener.close()

    asyncio.run(main())
    assert set(tracing.tree["request"]) == {"saga.execute.lost", "saga.execute.next"}
    assert tracing.tree["request"]["saga.execute.next"] == {"saga.step.action.pay": {}}


def test_a_step_that_ends_in_another_task_changes_no_context_there(tracing: Tracing) -> None:
    """Where a step's end is told in a task that did not run it, that task keeps the context it has."""

    async def main() -> None:
        async with saga_scope("o-1", "order", listeners=[tracing.listener]) as saga:
            await saga.started({})

            async def ends() -> None:
                with tracing.tracer.start_as_current_span("other"):
                    before = context.get_current()
                    await told.wait()
                    await saga.step_completed("pay")
                    assert context.get_current() is before

            told = asyncio.Event()
            other = asyncio.create_task(ends())
            await asyncio.sleep(0)
            await saga.step_started("pay")
            told.set()
            await other
            await saga.completed()

    asyncio.run(main())
    assert tracing.tree == {"saga.execute.order": {"saga.step.action.pay": {}}, "other": {}}


def test_a_step_left_open_ends_with_its_run(tracing: Tracing) -> None:
    """A step whose end was not told is abandoned when its run ends, and the caller's context is given back."""

    async def main() -> None:
        before = context.get_current()
        async with saga_scope("o-1", "order", listeners=[tracing.listener]) as saga:
            await saga.started({})
            await saga.step_started("pay")
            await saga.step_started("pay")
            await saga.failed(OSError("lost"))
        assert context.get_current() is before

    asyncio.run(main())
    steps = [attributes(s)["saga.step.status"] for s in tracing.spans if s.name == "saga.step.action.pay"]
    assert steps == ["abandoned", "abandoned"]
    assert attributes(tracing.named("saga.execute.order"))["saga.status"] == "rolled_back"


def test_in_a_fan_out_nothing_is_traced_twice(tracing: Tracing) -> None:
    """A fan-out stamps in the saga's task and writes later: the spans are those of the stamps alone."""
    memory = MemoryListener()

    async def main() -> None:
        async with FanOut([tracing.listener, memory]) as fan_out:
            saga = FanOutSaga("shop", listeners=[fan_out, tracing.listener])  # and told twice of everything
            await saga.add_step("pay", works(tracing, "POST /charge")).run({})
            assert list(tracing.tree) == ["saga.execute.shop"]

    asyncio.run(main())
    assert tracing.tree == {"saga.execute.shop": {"saga.step.action.pay": {"POST /charge": {}}}}
    assert len(tracing.spans) == 3
    assert {event.trace_id for event in memory.events} == {f"{tracing.spans[0].context.trace_id:032x}"}


def test_of_two_tracers_the_first_names_the_trace(tracing: Tracing) -> None:
    """Two listeners with tracers of their own trace the run side by side; its events have the first one's trace_id."""
    second, memory = make_tracing(), MemoryListener()
    saga = FanOutSaga("shop", listeners=[tracing.listener, second.listener, memory])
    asyncio.run(saga.add_step("pay", ok).run({}))
    assert len(tracing.spans) == len(second.spans) == 2
    assert {event.trace_id for event in memory.events} == {f"{tracing.spans[0].context.trace_id:032x}"}


def test_without_an_sdk_events_have_no_trace() -> None:
    """The API alone makes no spans: events are told as they are, and nothing is kept for long."""
    memory = MemoryListener()
    listener = TracingSagaListener(trace.NoOpTracerProvider().get_tracer("none"))
    asyncio.run(FanOutSaga("shop", listeners=[listener, memory]).add_step("pay", ok).run({}))
    assert {event.trace_id for event in memory.events} == {None}
    assert not listener._runs


def test_a_run_that_is_not_sampled_has_a_trace_id() -> None:
    """The sampler's word holds: nothing is exported, also not by `write`, and other services hear of the trace."""
    exporter, memory = InMemorySpanExporter(), MemoryListener()
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    listener = TracingSagaListener(provider.get_tracer("test"))
    asyncio.run(FanOutSaga("shop", listeners=[listener, memory]).add_step("pay", ok).run({}))
    assert exporter.get_finished_spans() == ()
    assert all(event.trace_id and int(event.trace_id, 16) for event in memory.events)
