"""Identity, given once, where the thing happens.

A `SagaScope` is one run of a saga. It mints each event (id, run, sequence, time, duration) and tells every listener of
it, so that all listeners of one hook see the same `SagaEvent`. The bridge to sagaz opens a scope by itself; any other
executor wraps its run:

    async with saga_scope("order-17", "order", listeners=[...]) as saga:
        await saga.started(context)
        await saga.step_started("pay")
        await saga.step_completed("pay", result)
        await saga.completed()
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from sagascope.current import CURRENT_SCOPE, telling
from sagascope.definitions import remember
from sagascope.events import EventType, SagaEvent, new_id
from sagascope.redaction import redact

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence

    from sagascope.definitions import SagaDefinition
    from sagascope.listener import SagaListener

logger = logging.getLogger(__name__)

_FRAMES_SHOWN = 8
"""Of the traceback of a listener that failed: the innermost."""


class Clock(NamedTuple):
    """The two clocks of a scope, both in seconds: wall time for timestamps, monotonic time for durations."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


def stamped_by(listener: SagaListener, event: SagaEvent) -> SagaEvent:
    """The event with the listener's stamp.

    Raises:
        TypeError: its `stamp` forgot to return the event.
    """
    stamped = listener.stamp(event)
    if not isinstance(stamped, SagaEvent):
        msg = f"stamp has to return the event; got {type(stamped).__name__}"
        raise TypeError(msg)
    return stamped


@asynccontextmanager
async def saga_scope(
    saga_id: str,
    saga_name: str,
    *,
    listeners: Sequence[SagaListener] = (),
    definition: SagaDefinition | None = None,
    service: str | None = None,
    attribute_keys: Collection[str] = (),
    error_filter: Callable[[str], str] | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[SagaScope]:
    """Open a run of a saga; inside another one it names that one as its parent.

    Args:
        saga_id: Whose run this is; any non-empty string.
        saga_name: The kind of saga.
        listeners: Who is told of its events.
        definition: Its steps, where known: events then say what is compensable or a pivot, and carry its id, and
            KafkaListener publishes it.
        service: The reporting service's name.
        attribute_keys: The context's keys whose values may leave the service, as `attributes` of every event.
        error_filter: Has the last word on each error's message, after values of the context and of results, and what
            looks like a credential, were taken out (see `sagascope.redaction`).
        clock: For tests.

    Raises:
        TypeError: attribute_keys is one string instead of a collection of them.
    """
    scope = SagaScope(
        saga_id,
        saga_name,
        listeners=listeners,
        definition=definition,
        service=service,
        attribute_keys=attribute_keys,
        error_filter=error_filter,
        clock=clock or Clock(),
    )
    scope.enter()
    try:
        yield scope
    finally:
        scope.leave()


class SagaScope:
    """One run of one saga. Made by `saga_scope`; the methods are the moments of its life."""

    def __init__(
        self,
        saga_id: str,
        saga_name: str,
        *,
        listeners: Sequence[SagaListener],
        definition: SagaDefinition | None,
        service: str | None,
        attribute_keys: Collection[str],
        clock: Clock,
        error_filter: Callable[[str], str] | None = None,
    ) -> None:
        if isinstance(attribute_keys, str):
            msg = f"attribute_keys={attribute_keys!r} is one string, and would allow each letter: write [{attribute_keys!r}]"
            raise TypeError(msg)
        self.saga_id = saga_id
        self.saga_name = saga_name
        self.run_id = new_id()
        self.listeners = listeners
        self._definition = definition
        self._definition_id = remember(definition) if definition else None
        self._service = service
        self._attribute_keys = attribute_keys
        self._attributes: dict[str, str] = {}
        self._error_filter = error_filter
        self._private: list[object] = []
        """The context and the results: what no message may quote."""
        self._clock = clock
        self.parent: SagaScope | None = None
        self.opener: object | None = None
        """Whose hooks tell of this run: the run that is current when they are called may be another's."""
        self.steps_leave: asyncio.Task[Any] | None = None
        """The task whose runs do all steps in other tasks: a run that begins in this one is no part of this run, which
        was cancelled, and nobody told."""
        self._outer: SagaScope | None = None
        self._sequence = 0
        self._over = False
        self._first: SagaEvent | None = None
        self._began = clock.monotonic()
        self._step_began: dict[tuple[EventType, str], float] = {}
        self._attempts: dict[str, int] = {}
        self._done: dict[str, None] = {}
        self._undone: set[str] = set()
        self._not_undone: set[str] = set()
        self._telling: set[asyncio.Task[None]] = set()

    def enter(self) -> None:
        """Make this the current scope of the running task and of the tasks it starts."""
        around = self.parent = self._outer = CURRENT_SCOPE.get()
        if around is not None and around.steps_leave is not None and around.steps_leave is asyncio.current_task():
            self.parent = around._outer = around.parent  # noqa: SLF001 - its own class; cut, so that no chain grows
        CURRENT_SCOPE.set(self)

    def leave(self) -> None:
        """Give the place back to the run around this one, also from a run in it that was cancelled and never left."""
        within = CURRENT_SCOPE.get()
        while within is not None and within is not self:
            within = within._outer  # noqa: SLF001 - its own class
        if within is self:
            CURRENT_SCOPE.set(self._outer)
        if not self._over:
            self._over = True
            for listener in tuple(self.listeners):
                try:
                    listener.left(self.run_id)
                except Exception as error:  # noqa: BLE001 - a listener's fault is not the saga's
                    self._say_failed(listener, f"left failed for run {self.run_id}", error)

    async def started(self, context: Mapping[str, Any]) -> None:
        """The run begins. Of `context` only the keys' names are kept, and the values that the allow-list names."""
        self._began = self._clock.monotonic()
        self.keep_private(context)
        self._attributes = {key: _text(context[key]) for key in self._attribute_keys if key in context}
        keys = tuple(sorted(key for key in map(_text, context) if not key.startswith("__")))
        event = self.mint(EventType.SAGA_STARTED, context_keys=keys)
        self._first = await self._tell(event, "on_saga_started", self.saga_id, self.saga_name, context)

    async def step_started(self, step_name: str) -> None:
        """An attempt of a step begins."""
        self._attempts[step_name] = self._attempts.get(step_name, 0) + 1
        event = self.mint(EventType.STEP_STARTED, step_name)
        await self._tell(event, "on_step_started", self.saga_id, step_name)
        self._step_began[EventType.STEP_STARTED, step_name] = self._clock.monotonic()  # the listeners' time is not its

    async def step_completed(self, step_name: str, result: Any = None) -> None:
        """The step succeeded. `result` goes to in-process hooks, never into an event."""
        self.keep_private(result)
        event = self.mint(EventType.STEP_COMPLETED, step_name)
        await self._tell(event, "on_step_completed", self.saga_id, step_name, result, event.duration_ms)

    async def step_failed(self, step_name: str, error: BaseException) -> None:
        """This attempt of the step failed."""
        event = self.mint(EventType.STEP_FAILED, step_name, error=error)
        await self._tell(event, "on_step_failed", self.saga_id, step_name, error, event.duration_ms)

    async def compensation_started(self, step_name: str) -> None:
        """Undoing a completed step begins."""
        event = self.mint(EventType.COMPENSATION_STARTED, step_name)
        await self._tell(event, "on_compensation_started", self.saga_id, step_name)
        self._step_began[EventType.COMPENSATION_STARTED, step_name] = self._clock.monotonic()

    async def compensation_completed(self, step_name: str) -> None:
        """The step is undone."""
        event = self.mint(EventType.COMPENSATION_COMPLETED, step_name)
        await self._tell(event, "on_compensation_completed", self.saga_id, step_name, event.duration_ms)

    async def compensation_failed(self, step_name: str, error: BaseException, *, derived: bool = False) -> None:
        """Undoing the step failed. `derived`: its end was only noticed now, so its duration is an upper bound."""
        event = self.mint(EventType.COMPENSATION_FAILED, step_name, error=error, duration_derived=derived)
        await self._tell(event, "on_compensation_failed", self.saga_id, step_name, error, event.duration_ms)

    def note_compensation_failed(self, step_name: str, error: BaseException) -> None:
        """The same where a wait could be cut short (a timeout runs): told by a task of its own, before the next event."""
        event = self.mint(EventType.COMPENSATION_FAILED, step_name, error=error)
        arguments = (self.saga_id, step_name, error, event.duration_ms)
        task = asyncio.create_task(self._deliver(self._stamped(event), "on_compensation_failed", arguments))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    def keep_private(self, value: object) -> None:
        """No error's message may quote this value, or one within it."""
        if value is not None and not any(value is known for known in self._private):
            self._private.append(value)

    def open_compensations(self) -> list[str]:
        """Steps whose compensation began and has not ended."""
        begun = [step_name for kind, step_name in self._step_began if kind is EventType.COMPENSATION_STARTED]
        return [step_name for step_name in begun if step_name not in self._undone | self._not_undone]

    async def completed(self) -> None:
        """The run ended well."""
        event = self.mint(EventType.SAGA_COMPLETED)
        await self._tell(event, "on_saga_completed", self.saga_id, event.total_duration_ms)

    async def failed(self, error: BaseException) -> None:
        """The run ended in failure: rolled back where nothing is left that had to be undone, else failed."""
        if self.left_behind():
            event = self.mint(EventType.SAGA_FAILED, error=error)
            await self._tell(event, "on_saga_failed", self.saga_id, error, event.total_duration_ms)
        else:
            event = self.mint(EventType.SAGA_ROLLED_BACK, error=error)
            await self._tell(event, "on_saga_rolled_back", self.saga_id, event.total_duration_ms)

    def left_behind(self) -> list[str]:
        """Completed steps whose effect stands although it had to be undone, and pivots that completed.

        A step had to be undone if the definition calls it compensable, or if undoing it was begun.
        """
        left = []
        for step_name in self._done:
            step = self._definition.step(step_name) if self._definition else None
            begun = (EventType.COMPENSATION_STARTED, step_name) in self._step_began
            if (begun or (step and (step.compensable or step.pivot))) and step_name not in self._undone:
                left.append(step_name)
        return left

    def mint(
        self,
        event_type: EventType,
        step_name: str | None = None,
        *,
        error: BaseException | None = None,
        context_keys: tuple[str, ...] = (),
        duration_derived: bool = False,
    ) -> SagaEvent:
        """The next event of the run, of this very moment. Synchronous, so that order and time are those of the fact."""
        now = self._clock.monotonic()
        step = self._definition.step(step_name) if self._definition and step_name else None
        duration = self._measure(event_type, step_name, now) if step_name else None
        ended = event_type in (EventType.SAGA_COMPLETED, EventType.SAGA_ROLLED_BACK, EventType.SAGA_FAILED)
        sequence, self._sequence = self._sequence, self._sequence + 1
        return SagaEvent(
            event_id=new_id(),
            event_type=event_type,
            saga_id=self.saga_id,
            saga_name=self.saga_name,
            run_id=self.run_id,
            sequence=sequence,
            timestamp=int(self._clock.wall() * 1000),
            step_name=step_name,
            attempt=self._attempts.get(step_name, 1) if step_name else 1,
            compensable=step.compensable if step else None,
            pivot=step.pivot if step else None,
            duration_ms=duration,
            duration_derived=duration_derived,
            total_duration_ms=_milliseconds(now - self._began) if ended else None,
            error_type=type(error).__name__ if error is not None else None,
            error_message=self._message(error) if error is not None else None,
            context_keys=context_keys,
            attributes=self._attributes.copy(),  # an event is nobody else's to change
            definition_id=self._definition_id,
            parent_saga_id=self.parent.saga_id if self.parent else None,
            service=self._service,
        )

    def _measure(self, event_type: EventType, step_name: str, now: float) -> int | None:
        """Keep what the end of the run depends on; the duration since the step or the compensation began."""
        match event_type:
            case EventType.STEP_STARTED | EventType.COMPENSATION_STARTED:
                self._step_began[event_type, step_name] = now
                return None
            case EventType.STEP_COMPLETED:
                self._done[step_name] = None
                self._undone.discard(step_name)  # done again after it was undone
            case EventType.COMPENSATION_COMPLETED:
                self._undone.add(step_name)
            case EventType.COMPENSATION_FAILED:
                self._not_undone.add(step_name)
        of_step = event_type in (EventType.STEP_COMPLETED, EventType.STEP_FAILED)
        start = EventType.STEP_STARTED if of_step else EventType.COMPENSATION_STARTED
        began = self._step_began.get((start, step_name))
        return None if began is None else _milliseconds(now - began)

    def _message(self, error: BaseException) -> str:
        """What the error says, without what must not leave the service."""
        return self.without_values(_text(error))

    def without_values(self, message: str) -> str:
        """The message without values of the context and of results, and without credentials."""
        allowed = {self.saga_id, self.saga_name, *self._attributes.values()}
        try:
            said = redact(message, self._private, allowed=allowed)
            return self._error_filter(said) if self._error_filter else said
        except Exception as error:  # noqa: BLE001 - a filter that fails lets nothing through, nor does its own error
            where = "".join(traceback.format_tb(error.__traceback__, limit=-_FRAMES_SHOWN)).rstrip()
            logger.error(  # noqa: TRY400 - without what the error says
                "a filter of error messages failed, %s: a message is withheld\n%s", type(error).__name__, where
            )
            return "[withheld: the filter of error messages failed]"

    async def _tell(self, event: SagaEvent, hook: str, *arguments: Any) -> SagaEvent:
        """Tell all listeners, after those that are still being told of something before; the event as they saw it."""
        event = self._stamped(event)
        if self._telling:
            await asyncio.wait(self._telling)
        await self._deliver(event, hook, arguments)
        return event

    def _stamped(self, event: SagaEvent) -> SagaEvent:
        for listener in tuple(self.listeners):
            try:
                event = stamped_by(listener, event)
            except Exception as error:  # noqa: BLE001 - a listener's fault is not the saga's
                self._say_failed(listener, f"stamp failed for event {event.event_id}", error)
        return event

    async def _deliver(self, event: SagaEvent, hook: str, arguments: tuple[Any, ...]) -> None:
        """Call the hook on all listeners at once; each sees `event`, and none can hurt another or the saga."""
        failure = f"{hook} failed for event {event.event_id}"
        waiting: list[tuple[SagaListener, Awaitable[None]]] = []
        with telling(event, self):
            for listener in tuple(self.listeners):  # one may be added meanwhile
                try:
                    if (told := listener.tell(hook, *arguments)) is not None:
                        waiting.append((listener, told))
                except Exception as error:  # noqa: BLE001 - a listener's fault is not the saga's
                    self._say_failed(listener, failure, error)
            if waiting:
                results = await asyncio.gather(*(told for _, told in waiting), return_exceptions=True)
                for (listener, _), result in zip(waiting, results, strict=True):
                    if result is not None:  # a listener's own CancelledError too, which would else cancel the step
                        self._say_failed(listener, failure, result)

    def _say_failed(self, listener: SagaListener, failure: str, error: BaseException) -> None:
        """In the log: where, and what, but not the values that a traceback's last line may quote."""
        where = "".join(traceback.format_tb(error.__traceback__, limit=-_FRAMES_SHOWN)).rstrip()
        what = (type(listener).__name__, failure, type(error).__name__, self._message(error), where)
        logger.error("%s.%s: %s: %s\n%s", *what)


def _text(value: object) -> str:
    """str(value), or what stands for it where a class of the service fails to say."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - not ours, and no reason to lose an event or stop a saga
        return f"<{type(value).__name__} without a text>"


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))
