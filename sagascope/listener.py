"""The listener interface: hooks for the moments of a saga's life.

`SagaListener` is what to subclass to react to single hooks; `EventListener` is what to subclass to send events
somewhere: it turns every hook into the one `SagaEvent` that all listeners of that hook see, and calls `write`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

from sagascope.current import told
from sagascope.events import EventType

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    from sagascope.events import SagaEvent


class SagaListener:
    """Hooks, all async, all optional: override what you need.

    A listener is independent: what it raises is logged and neither stops the saga nor another listener. Arguments are
    positional, durations whole milliseconds of a monotonic clock. `context` and `result` are the saga's live objects:
    copy what you keep, and never change them.
    """

    inline: bool = False
    """Whether a FanOut lets the saga wait for it, which an outbox needs; the others are told from a queue."""

    @property
    def takes_events(self) -> bool:
        """Whether a FanOut may hand it batches of events, through `write`, instead of calling its hooks one by one."""
        return False

    async def open(self) -> None:
        """Get ready, where there is something to get ready."""

    async def close(self) -> None:
        """Deliver what is held, then release what is open."""

    def stamp(self, event: SagaEvent) -> SagaEvent:
        """The event as every listener is told it; called before all hooks, in the saga's own task and context.

        For what has to happen there and then: a tracer begins the step's span, in which the step's own code runs, and
        gives the event its trace_id. Must neither wait nor do I/O.
        """
        return event

    def tell(self, hook: str, *arguments: Any) -> Awaitable[None] | None:
        """Call a hook of this name; what the saga is to wait for, or None.

        What has to be done even where the saga is cancelled at this very moment is done before this returns.
        """
        return self._call(hook, arguments)

    async def _call(self, hook: str, arguments: tuple[Any, ...]) -> None:
        await getattr(self, hook)(*arguments)

    def left(self, run_id: str) -> None:
        """The run is over in this process; called last, in the saga's own task, also of a run that was cancelled.

        Such a run tells no end: a tracer ends its spans here. Called for runs within `saga_scope` (a `FanOutSaga`'s are),
        not for one that was cancelled below a `SagazBridge`. Must neither wait nor do I/O.
        """

    async def on_saga_started(self, saga_id: str, saga_name: str, context: Mapping[str, Any]) -> None:
        """Once, before the first step."""

    async def on_step_started(self, saga_id: str, step_name: str) -> None:
        """Before each attempt of a step."""

    async def on_step_completed(self, saga_id: str, step_name: str, result: Any, duration_ms: int) -> None:
        """After a step succeeded; `result` may be None or any object."""

    async def on_step_failed(self, saga_id: str, step_name: str, error: BaseException, duration_ms: int) -> None:
        """After a step failed or timed out."""

    async def on_compensation_started(self, saga_id: str, step_name: str) -> None:
        """Before a completed step is undone."""

    async def on_compensation_completed(self, saga_id: str, step_name: str, duration_ms: int) -> None:
        """After a step was undone."""

    async def on_compensation_failed(
        self, saga_id: str, step_name: str, error: BaseException, duration_ms: int
    ) -> None:
        """After undoing a step failed or timed out: its effect is left."""

    async def on_saga_completed(self, saga_id: str, total_duration_ms: int) -> None:
        """The end, all steps done."""

    async def on_saga_rolled_back(self, saga_id: str, total_duration_ms: int) -> None:
        """The end in failure, with all undone that had to be."""

    async def on_saga_failed(self, saga_id: str, error: BaseException, total_duration_ms: int) -> None:
        """The end in failure, with something left: a compensation failed, or a pivot had completed."""


class EventListener(SagaListener, ABC):
    """Sends events somewhere. A subclass writes `write`, and `open` and `close` where it holds a connection.

    Constructing does no I/O. `close` is safe before `open`, and twice. `async with` opens and closes. A client that was
    handed over is its owner's to close.
    """

    @property
    def takes_events(self) -> bool:
        return all(getattr(type(self), hook) is getattr(EventListener, hook) for hook in HOOKS)

    @abstractmethod
    async def write(self, events: Sequence[SagaEvent]) -> None:
        """Take the events over, in order; opens what is not open. The subclass's docstring says what that guarantees.

        Raises:
            TransientError: nothing was taken, as far as is known; it may be tried again.
            PermanentError: the same events will always fail.
            PartialError: some were taken, and which not.
        """

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def on_saga_started(self, saga_id: str, saga_name: str, context: Mapping[str, Any]) -> None:
        await self.write((told(EventType.SAGA_STARTED, saga_id),))

    async def on_step_started(self, saga_id: str, step_name: str) -> None:
        await self.write((told(EventType.STEP_STARTED, saga_id, step_name),))

    async def on_step_completed(self, saga_id: str, step_name: str, result: Any, duration_ms: int) -> None:
        await self.write((told(EventType.STEP_COMPLETED, saga_id, step_name),))

    async def on_step_failed(self, saga_id: str, step_name: str, error: BaseException, duration_ms: int) -> None:
        await self.write((told(EventType.STEP_FAILED, saga_id, step_name),))

    async def on_compensation_started(self, saga_id: str, step_name: str) -> None:
        await self.write((told(EventType.COMPENSATION_STARTED, saga_id, step_name),))

    async def on_compensation_completed(self, saga_id: str, step_name: str, duration_ms: int) -> None:
        await self.write((told(EventType.COMPENSATION_COMPLETED, saga_id, step_name),))

    async def on_compensation_failed(
        self, saga_id: str, step_name: str, error: BaseException, duration_ms: int
    ) -> None:
        await self.write((told(EventType.COMPENSATION_FAILED, saga_id, step_name),))

    async def on_saga_completed(self, saga_id: str, total_duration_ms: int) -> None:
        await self.write((told(EventType.SAGA_COMPLETED, saga_id),))

    async def on_saga_rolled_back(self, saga_id: str, total_duration_ms: int) -> None:
        await self.write((told(EventType.SAGA_ROLLED_BACK, saga_id),))

    async def on_saga_failed(self, saga_id: str, error: BaseException, total_duration_ms: int) -> None:
        await self.write((told(EventType.SAGA_FAILED, saga_id),))


HOOKS = tuple(name for name in vars(SagaListener) if name.startswith("on_"))
"""The names of the hooks, in a saga's order."""
