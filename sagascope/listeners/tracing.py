"""Saga runs as OpenTelemetry traces. Needs the extra `sagascope[opentelemetry]`: the API only, the SDK is the service's.

    OrderSaga(listeners=[TracingSagaListener(trace.get_tracer("orders"))])

Names and attributes are those of sagaz: `saga.execute.{saga}` for a run, `saga.step.{action|compensation}.{step}` below it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from sagascope.current import current_scope
from sagascope.definitions import recall
from sagascope.drivers import load
from sagascope.events import EventType
from sagascope.listener import EventListener

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

    from sagascope.events import SagaEvent

_STEP = "sagascope-step"
"""The key under which a context holds the step whose code runs in it."""
_REMEMBERED = 10_000
_SAGA_ENDS = {
    EventType.SAGA_COMPLETED: "completed",
    EventType.SAGA_ROLLED_BACK: "rolled_back",
    EventType.SAGA_FAILED: "failed",
}
_STEP_ENDS = {
    EventType.STEP_COMPLETED: "completed",
    EventType.STEP_FAILED: "failed",
    EventType.COMPENSATION_COMPLETED: "completed",
    EventType.COMPENSATION_FAILED: "failed",
}
_COMPENSATIONS = {t for t in EventType if t.startswith("compensation_")}


class TracingSagaListener(EventListener):
    """One trace a run: a span for the run, and below it one for each attempt of a step and for each compensation.

    Spans begin and end in `stamp`, in the saga's own task. While a step's code runs its span is the current one, so that
    a span made there, or a call that carries `traceparent`, belongs to the trace, and so does a saga nested in the step.
    The caller's own context is as it was, after a run that was cancelled, too. The event is given the trace_id.

    `write` makes spans, with the events' own times, of events without a trace_id: of a topic, from services that do not
    trace. Nothing is known of a parent there: each run is a trace of its own. An event that has a trace_id was traced.

    Guarantee: a run whose start was told has one span, and each of its steps, compensations and attempts has one. An event
    told twice makes no second span: a duplicate is known by its event_id, among the 10,000 newest. `write` puts a batch in
    order; an event that comes after later ones in another batch is taken as it comes. What is exported, in what order, and
    what happens while the collector is down is the SDK's to promise; nothing here waits for it. A restart loses spans that
    have not ended.

    A failure sets the span's status to the event's error_type and error_message, from which values of the context have
    been taken; the exception itself is not recorded. A span whose end is never told (the saga was cancelled) ends with
    the time of the run's last event and the status `abandoned`: when its run is left, cancelled or not, or at `close`; of a
    run below a SagazBridge, which hears of no cancellation, when it is older than `max_age_seconds`, or one of more than
    `max_open`, as another begins.
    """

    def __init__(
        self,
        tracer: Tracer | None = None,
        *,
        max_open: int = 10_000,
        max_age_seconds: float = 24 * 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin nothing yet.

        Args:
            tracer: What makes the spans; that of the global provider by default.
            max_open: How many runs may have open spans; beyond, the one that began first is abandoned.
            max_age_seconds: After so long a run is abandoned.
            clock: Seconds, for the age of runs.

        Raises:
            ValueError: a bound below 1.
        """
        for name, bound in {"max_open": max_open, "max_age_seconds": max_age_seconds}.items():
            if not bound >= 1:
                msg = f"{name}: got {bound!r}; allowed: 1 or more"
                raise ValueError(msg)
        self._given = tracer
        self._max_open = max_open
        self._max_age_seconds = max_age_seconds
        self._clock = clock
        self._otel: _OpenTelemetry | None = None
        self._lock = threading.Lock()  # sagas may run in several threads
        self._runs: dict[str, _Run] = {}
        self._ended: dict[str, None] = {}
        self._seen: dict[str, None] = {}

    async def open(self) -> None:
        """Load the API.

        Raises:
            ModuleNotFoundError: opentelemetry-api is not installed.
        """
        self._opened()

    async def close(self) -> None:
        """End the spans that are open as abandoned. Flushing is the tracer provider's, which is its owner's."""
        with self._lock:
            runs = list(self._runs.values())
            self._runs.clear()
        for run in runs:
            self._abandon(run)

    def stamp(self, event: SagaEvent) -> SagaEvent:
        otel = self._opened()
        run = self._advance(otel, event, None) if self._is_new(event) else self._runs.get(event.run_id)
        if run is None or event.trace_id is not None:
            return event
        about = run.span.get_span_context()
        return msgspec.structs.replace(event, trace_id=f"{about.trace_id:032x}") if about.is_valid else event

    def left(self, run_id: str) -> None:
        """End what a run left open that was cancelled, and give its caller the context back."""
        if self._otel is None:
            return
        with self._lock:
            run = self._runs.pop(run_id, None)
        if run is not None:
            self._abandon(run)
        self._otel.leave(lambda step: step.run_id == run_id)

    async def write(self, events: Sequence[SagaEvent]) -> None:
        if not events:
            return
        otel = self._opened()
        for event in sorted(events, key=lambda event: event.sequence):
            if event.trace_id is None and self._is_new(event):
                self._advance(otel, event, event.timestamp * 1_000_000)

    def _opened(self) -> _OpenTelemetry:
        if self._otel is None:
            context, trace = (
                load(
                    f"opentelemetry.{module}",
                    needed_by="TracingSagaListener",
                    package="opentelemetry-api",
                    extra="opentelemetry",
                )
                for module in ("context", "trace")
            )
            self._otel = _OpenTelemetry(context, trace, self._given or trace.get_tracer("sagascope"))
        return self._otel

    def _is_new(self, event: SagaEvent) -> bool:
        with self._lock:
            if event.event_id in self._seen:
                return False
            _remember(self._seen, event.event_id)
            return True

    def _advance(self, otel: _OpenTelemetry, event: SagaEvent, at: int | None) -> _Run | None:
        """Begin or end what the event tells of: at that time, in nanoseconds, or now, in the saga's own context."""
        kind = event.event_type
        run = self._runs.get(event.run_id)
        if run is None:
            begins = kind is EventType.SAGA_STARTED or at is not None  # a reader of a topic may join midway
            if not begins or event.run_id in self._ended:
                if at is None:
                    otel.leave(lambda step: step.run_id == event.run_id)
                return None
            run = self._begin_run(otel, event, at)
        if kind in _SAGA_ENDS:
            self._end_run(otel, run, event, at)
        elif kind in _STEP_ENDS:
            self._end_step(otel, run, event, at)
        elif kind is not EventType.SAGA_STARTED:
            self._begin_step(otel, run, event, at)
        run.told = max(run.told, at or time.time_ns())
        return run

    def _begin_run(self, otel: _OpenTelemetry, event: SagaEvent, at: int | None) -> _Run:
        self._abandon_lost()
        lasted = (event.total_duration_ms or event.duration_ms or 0) * 1_000_000
        span = otel.tracer.start_span(
            f"saga.execute.{_text(event.saga_name)}",
            context=self._around(otel, event) if at is None else otel.context.Context(),
            attributes=_of_run(event),
            start_time=None if at is None else at - lasted,
        )
        run = _Run(event.run_id, span, self._clock())
        with self._lock:
            self._runs[run.run_id] = run
        return run

    def _end_run(self, otel: _OpenTelemetry, run: _Run, event: SagaEvent, at: int | None) -> None:
        with self._lock:
            self._runs.pop(run.run_id, None)
            _remember(self._ended, run.run_id)
        for step in run.steps.values():
            _end_abandoned(step.span, "saga.step.status", at)
        if at is None:
            otel.leave(lambda step: step.run_id == run.run_id)
        status = _SAGA_ENDS[event.event_type]
        run.span.set_attributes({"saga.status": status, "saga.completed_steps": len(run.completed)})
        otel.end(run.span, event, "saga.duration_ms", event.total_duration_ms, at, failed=status != "completed")

    def _begin_step(self, otel: _OpenTelemetry, run: _Run, event: SagaEvent, at: int | None) -> None:
        key = _key(event)
        if before := run.steps.pop(key, None):
            _end_abandoned(before.span, "saga.step.status", run.told)
        outer = otel.context.Context() if at is not None else self._own(otel.context.get_current())
        step = _Step(run.run_id, self._step_span(otel, run, event, at, outer), outer)
        run.steps[key] = step
        if at is None:
            within = otel.context.set_value(_STEP, step, otel.trace.set_span_in_context(step.span, outer))
            otel.context.attach(within)  # never detached by its token: `leave` restores, in whichever task it is

    def _end_step(self, otel: _OpenTelemetry, run: _Run, event: SagaEvent, at: int | None) -> None:
        step = run.steps.pop(_key(event), None)
        if step is None:  # its beginning was not told
            began = (at or time.time_ns()) - (event.duration_ms or 0) * 1_000_000
            span = self._step_span(otel, run, event, began, otel.context.Context())
        else:
            span = step.span
            if at is None:
                otel.leave(lambda other: other is step)
        status = _STEP_ENDS[event.event_type]
        if event.event_type is EventType.STEP_COMPLETED and event.step_name:
            run.completed.add(event.step_name)
        span.set_attribute("saga.step.status", status)
        otel.end(span, event, "saga.step.duration_ms", event.duration_ms, at, failed=status == "failed")

    def _step_span(self, otel: _OpenTelemetry, run: _Run, event: SagaEvent, at: int | None, outer: Context) -> Span:
        phase, step_name = _key(event)
        span: Span = otel.tracer.start_span(
            f"saga.step.{phase}.{step_name}",
            context=otel.trace.set_span_in_context(run.span, outer),
            attributes={
                "saga.id": _text(event.saga_id),
                "saga.name": _text(event.saga_name),
                "saga.step.name": step_name,
                "saga.step.type": phase,
                "saga.step.retry_count": event.attempt - 1,
            },
            start_time=at,
        )
        return span

    def _around(self, otel: _OpenTelemetry, event: SagaEvent) -> Context:
        """What a run that begins now is part of: a nested one of what is current in the run around it."""
        context = self._own(otel.context.get_current())
        scope = current_scope()
        outer = scope.parent if scope is not None and scope.run_id == event.run_id else None
        run = self._runs.get(outer.run_id) if outer else None
        if run is None:
            return context
        step = context.get(_STEP)
        if isinstance(step, _Step) and step.run_id == run.run_id:
            return context
        return otel.trace.set_span_in_context(run.span, context)  # type: ignore[no-any-return] # between two steps

    def _own(self, context: Context) -> Context:
        """The context without the steps of runs that the caller is in no more: one that was cancelled left them here."""
        around, scope = set(), current_scope()
        while scope is not None:
            around.add(scope.run_id)
            scope = scope.parent
        while isinstance(step := context.get(_STEP), _Step) and step.run_id not in around:
            context = step.outer
        return context

    def _abandon_lost(self) -> None:
        """Make room for one more run."""
        lost, oldest = [], self._clock() - self._max_age_seconds
        with self._lock:
            while self._runs:
                run = next(iter(self._runs.values()))
                if len(self._runs) < self._max_open and run.began >= oldest:
                    break
                lost.append(self._runs.pop(run.run_id))
        for run in lost:
            self._abandon(run)

    def _abandon(self, run: _Run) -> None:
        with self._lock:
            _remember(self._ended, run.run_id)
        for step in run.steps.values():
            _end_abandoned(step.span, "saga.step.status", run.told)
        _end_abandoned(run.span, "saga.status", run.told)


class _OpenTelemetry(NamedTuple):
    """The API, once it is loaded."""

    context: Any
    trace: Any
    tracer: Tracer

    def leave(self, left: Callable[[_Step], bool]) -> None:
        """Give the caller the context back that was around the outermost of these steps, if it is within one."""
        context, outer = self.context.get_current(), None
        while isinstance(step := context.get(_STEP), _Step):
            context = step.outer
            outer = context if left(step) else outer
        if outer is not None:
            self.context.attach(outer)

    def end(
        self, span: Span, event: SagaEvent, duration: str, milliseconds: int | None, at: int | None, *, failed: bool
    ) -> None:
        if milliseconds is not None:
            span.set_attribute(duration, milliseconds)
        if failed:
            what = [_text(text) for text in (event.error_type, event.error_message) if text]
            span.set_status(self.trace.Status(self.trace.StatusCode.ERROR, ": ".join(what) or None))
            if event.error_type:
                span.set_attribute("error.type", _text(event.error_type))
        span.end(end_time=at)


class _Step(NamedTuple):
    """A step or a compensation that has begun."""

    run_id: str
    span: Span
    outer: Context
    """What was current before."""


class _Run:
    """A run that has begun."""

    def __init__(self, run_id: str, span: Span, began: float) -> None:
        self.run_id = run_id
        self.span = span
        self.began = began
        self.told = 0
        """The time of its newest event, in nanoseconds since the epoch."""
        self.steps: dict[tuple[str, str], _Step] = {}
        self.completed: set[str] = set()


def _key(event: SagaEvent) -> tuple[str, str]:
    """The phase and the step."""
    phase = "compensation" if event.event_type in _COMPENSATIONS else "action"
    return phase, _text(event.step_name or "")


def _of_run(event: SagaEvent) -> Mapping[str, str | int]:
    """What is known of a run when it begins."""
    definition = recall(event.definition_id) if event.definition_id else None
    known = {
        "saga.id": event.saga_id,
        "saga.name": event.saga_name,
        "saga.run.id": event.run_id,
        "saga.service": event.service,
        "saga.parent.id": event.parent_saga_id,
    } | {f"saga.attribute.{key}": value for key, value in event.attributes.items()}
    texts: dict[str, str | int] = {_text(key): _text(value) for key, value in known.items() if value is not None}
    return texts | {"saga.total_steps": len(definition.steps)} if definition else texts


def _end_abandoned(span: Span, attribute: str, at: int | None) -> None:
    span.set_attribute(attribute, "abandoned")
    span.end(end_time=at)


def _remember(keys: dict[str, None], key: str) -> None:
    """Add to a set that forgets its eldest."""
    keys[key] = None
    if len(keys) > _REMEMBERED:
        del keys[next(iter(keys))]


def _text(text: str) -> str:
    """Without lone surrogates, on which an exporter fails."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
