"""All listeners of a saga at once, each on a lane of its own: none can hurt the saga, nor another.

    fan_out = FanOut(
        listeners=[
            OutboxSagaListener(storage),                               # inline by its nature: the saga waits for it
            ElasticsearchListener(es),                                 # queued
            Queued(WebhookListener(url), workers=8, when_full="drop"),
        ],
        dead_letters=DeadLetterFile("dead-letters.jsonl"),
    )
    async with fan_out:
        await OrderSaga(listeners=[fan_out]).run(context)

What a listener goes through, from the outside in:

    queue, batches  <-  retry, breaker, dead letters  <-  timeout of one call  <-  the listener
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from sagascope.accounting import said
from sagascope.current import NoSagaScopeError, current_scope, event_now
from sagascope.delivery import name_of
from sagascope.events import EventType
from sagascope.lanes import InlineLane, Lane, State, Told
from sagascope.listener import HOOKS, SagaListener
from sagascope.policies import Inline, Queued
from sagascope.scope import stamped_by

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from sagascope.accounting import Counts, DeadLetters
    from sagascope.events import SagaEvent

logger = logging.getLogger(__name__)


class ListenerHealth(NamedTuple):
    """How one listener of a fan-out is."""

    state: State
    """`ok`; `failing`: its last call failed (one that hangs has failed when its time limit is over); `open`: it is left
    alone for a while; `full`: there is no room in its queue."""
    queued: int
    size: int | None
    """How many events its queue takes; None where it is inline."""
    last_error: str | None
    counts: Counts


class Health(NamedTuple):
    """How a fan-out is."""

    ready: bool
    """Accepting events, and no listener that sagas wait for is left alone."""
    listeners: dict[str, ListenerHealth]


class FanOut(SagaListener):
    """Tells all its listeners of every event, each by a lane of its own, and counts what became of it on each.

    A listener is queued, unless it says that it is inline: wrap it in `Queued` or `Inline` to choose, or to set options.
    Per listener, events keep the order in which they were told; with `workers`, that of each saga. At all times

        accepted = delivered + queued + dead_lettered + dropped

    A fan-out belongs to one event loop at a time. Nobody needs to open it; `aclose` delivers what is queued.

    Args:
        listeners: Whom to tell.
        dead_letters: Where events go that a listener did not take; without, they are dropped, counted and logged.
        close_seconds: The deadline of `aclose` where the fan-out is used by `async with`.

    Raises:
        TypeError: something that is no listener, or dead letters that can keep nothing.
        ValueError: no listener, one listener twice, or an option out of its range.
        RuntimeError: told from two event loops.
    """

    def __init__(
        self,
        listeners: Iterable[SagaListener | Queued | Inline],
        *,
        dead_letters: DeadLetters | None = None,
        close_seconds: float = 10.0,
    ) -> None:
        if dead_letters is not None and not hasattr(dead_letters, "bury"):
            msg = (
                f"dead_letters: got {dead_letters!r}; allowed: an object with an async `bury`, as DeadLetterFile(path)"
            )
            raise TypeError(msg)
        policies = [_policy(each) for each in listeners]
        if not policies:
            msg = "listeners: got none; allowed: one or more"
            raise ValueError(msg)
        twice = [name_of(p.listener) for p in policies if sum(p.listener is q.listener for q in policies) > 1]
        if twice:
            msg = f"listeners: got {twice[0]} twice, which would deliver everything twice"
            raise ValueError(msg)
        self._queued: list[Lane] = []
        self._inline: list[InlineLane] = []
        self._lanes: dict[str, Lane | InlineLane] = {}
        for policy in policies:
            name = _unused(name_of(policy.listener), self._lanes)
            if isinstance(policy, Queued):
                self._queued.append(lane := Lane(policy, name, dead_letters))
                self._lanes[name] = lane
            else:
                self._inline.append(inline := InlineLane(policy, name, dead_letters))
                self._lanes[name] = inline
        self.inline = bool(self._inline)  # as a listener of another fan-out, which closes it
        self._calls_hooks = any(not lane.takes_events for lane in self._lanes.values())
        self._close_seconds = close_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[dict[str, int]] | None = None

    @property
    def counts(self) -> dict[str, Counts]:
        """What became of the events so far, by the listeners' names."""
        return {name: lane.counts for name, lane in self._lanes.items()}

    def health(self) -> Health:
        """How each listener is; does not ask the sinks."""
        listeners = {}
        for name, lane in self._lanes.items():
            counts = lane.counts
            listeners[name] = ListenerHealth(lane.state, counts.under_way, lane.size, lane.last_error, counts)
        waited_for = all(lane.state != "open" for lane in self._inline)
        return Health(ready=waited_for and self._closing is None, listeners=listeners)

    def stamp(self, event: SagaEvent) -> SagaEvent:
        for lane in self._lanes.values():
            try:
                event = stamped_by(lane.listener, event)
            except Exception as error:  # noqa: BLE001 - a listener's fault is neither the saga's nor another listener's
                logger.error("%s.stamp failed for event %s: %s", lane.name, event.event_id, said(error))  # noqa: TRY400
        return event

    def left(self, run_id: str) -> None:
        for lane in self._lanes.values():
            try:
                lane.listener.left(run_id)
            except Exception as error:  # noqa: BLE001 - as above
                logger.error("%s.left failed for run %s: %s", lane.name, run_id, said(error))  # noqa: TRY400

    def tell(self, hook: str, *arguments: Any) -> Awaitable[None] | None:
        event = event_now()
        if event is None:
            msg = (
                f"FanOut.{hook} was called outside a run, so the event has no identity: "
                "tell it through `async with saga_scope(saga_id, saga_name, listeners=[fan_out])`, or `write` an event"
            )
            raise NoSagaScopeError(msg)
        if self._calls_hooks and hook == "on_saga_started":
            arguments = (*arguments[:-1], _copied(arguments[-1]))
        return self._tell(Told(event, hook, arguments, current_scope()), patient=False)

    async def write(self, events: Sequence[SagaEvent]) -> None:
        """Tell of events that no hook is told of now: those of a topic, say. Listeners of hooks hear what events hold.

        Waits for room as long as it takes: whoever feeds events this way goes at the slowest sink's speed.
        """
        for event in events:
            told = _told_again(event) if self._calls_hooks else Told(event, "", (), None)
            if waiting := self._tell(told, patient=True):
                await waiting

    async def aclose(self, timeout: float = 10.0) -> dict[str, int]:  # noqa: ASYNC109 - a deadline that keeps what it got
        """Deliver what is queued, then close the listeners; events told of later become dead letters.

        Args:
            timeout: Seconds for all of it; what is left then becomes dead letters.

        Returns:
            How many events were left, by listener; empty where all were delivered.
        """
        if self._closing is None:
            self._use_loop()
            self._closing = asyncio.create_task(self._close(timeout))
        left = await asyncio.shield(self._closing)
        deadline = time.monotonic() + timeout  # for what was told, and refused, since then
        await asyncio.gather(*(lane.account.close(deadline) for lane in self._lanes.values()))
        return left

    async def close(self) -> None:
        """`aclose`, with the deadline that it was made with."""
        await self.aclose(self._close_seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _close(self, seconds: float) -> dict[str, int]:
        deadline = time.monotonic() + seconds
        numbers = await asyncio.gather(*(lane.close(deadline) for lane in self._lanes.values()))
        left = {name: number for name, number in zip(self._lanes, numbers, strict=True) if number}
        if left:
            logger.warning("closed after %g s with events left: %s", seconds, left)
        return left

    def _tell(self, told: Told, *, patient: bool) -> Awaitable[None] | None:
        """Hand over to every lane, now; what is to be waited for: those that are inline, and room where there is none."""
        if self._loop is not asyncio.get_running_loop():
            self._use_loop()
        waiting = [room for lane in self._queued if (room := lane.tell(told, patient=patient)) is not None]
        waiting += [task for inline in self._inline if (task := inline.tell(told)) is not None]
        return _all(waiting) if waiting else None

    def _use_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None:
            if not self._loop.is_closed():
                msg = "a FanOut belongs to one event loop, and another one that told it of events is still open"
                raise RuntimeError(msg)
            for lane in self._lanes.values():
                lane.forget_loop()
        self._loop = loop


async def _all(waiting: Sequence[asyncio.Future[None]]) -> None:
    """Wait for all of them, whatever becomes of each."""
    await asyncio.gather(*waiting, return_exceptions=True)


def _hook_of(hook: str) -> Callable[..., Awaitable[None]]:
    async def told(self: FanOut, *arguments: Any) -> None:
        if waiting := self.tell(hook, *arguments):
            await waiting

    told.__name__ = hook
    return told


for _name in HOOKS:
    setattr(FanOut, _name, _hook_of(_name))


def _copied(context: Any) -> Any:
    """The context as it is now: the saga goes on changing it while the hook is queued."""
    try:
        return dict(context)
    except Exception:  # noqa: BLE001 - of a class that is no proper mapping
        return context


class ReportedError(Exception):
    """The error of an event that comes from elsewhere: only its type's name and its message are known."""

    def __init__(self, error_type: str | None, message: str | None) -> None:
        super().__init__(message or error_type or "no reason was given")
        self.error_type = error_type


def _told_again(event: SagaEvent) -> Told:
    """The hook of an event, with what an event keeps of the hook's arguments: no values, no result."""
    error = ReportedError(event.error_type, event.error_message)
    duration, total = event.duration_ms or 0, event.total_duration_ms or 0
    arguments: Mapping[EventType, tuple[Any, ...]] = {
        EventType.SAGA_STARTED: (event.saga_name, dict.fromkeys(event.context_keys)),
        EventType.STEP_STARTED: (event.step_name,),
        EventType.STEP_COMPLETED: (event.step_name, None, duration),
        EventType.STEP_FAILED: (event.step_name, error, duration),
        EventType.COMPENSATION_STARTED: (event.step_name,),
        EventType.COMPENSATION_COMPLETED: (event.step_name, duration),
        EventType.COMPENSATION_FAILED: (event.step_name, error, duration),
        EventType.SAGA_COMPLETED: (total,),
        EventType.SAGA_ROLLED_BACK: (total,),
        EventType.SAGA_FAILED: (error, total),
    }
    return Told(event, f"on_{event.event_type}", (event.saga_id, *arguments[event.event_type]), None)


def _policy(listener: SagaListener | Queued | Inline) -> Queued | Inline:
    if isinstance(listener, Queued | Inline):
        return listener
    if not isinstance(listener, SagaListener):
        msg = f"{listener!r} is no listener: subclass sagascope.SagaListener or sagascope.EventListener"
        raise TypeError(msg)
    return Inline(listener) if listener.inline else Queued(listener)


def _unused(name: str, taken: Mapping[str, object]) -> str:
    """The name, or name-2, name-3 … where listeners of the same kind are there before it."""
    names = (name if number == 1 else f"{name}-{number}" for number in range(1, len(taken) + 2))
    return next(each for each in names if each not in taken)
