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

What a listener goes through, from the outside in, is what `Queued` and `Inline` compose:

    queue, batches  <-  retry, breaker, dead letters  <-  timeout of one call  <-  the listener
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from sagascope.delivery import name_of
from sagascope.events import EventType
from sagascope.lanes import Inline, InlineLane, Lane, Queued, Told
from sagascope.listener import HOOKS, SagaListener
from sagascope.resilient import said
from sagascope.scope import NoSagaScopeError, event_now

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from sagascope.events import SagaEvent
    from sagascope.resilient import Counts, DeadLetters

logger = logging.getLogger(__name__)


class ListenerHealth(NamedTuple):
    """How one listener of a fan-out is."""

    state: str
    """`ok`; `failing`: its last call failed; `open`: it is left alone for a while; `full`: the saga waits for its queue."""
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
    Per listener, events keep their order (with `workers`, the order of each saga), and at all times

        accepted = delivered + queued + dead_lettered + dropped

    A fan-out belongs to one event loop. Nobody needs to open it; `aclose` delivers what is queued.

    Args:
        listeners: Whom to tell.
        dead_letters: Where events go that a listener did not take; without, they are dropped, counted and logged.

    Raises:
        TypeError: something that is no listener.
        ValueError: no listener, one listener twice, or an option out of its range.
    """

    def __init__(
        self, listeners: Iterable[SagaListener | Queued | Inline], *, dead_letters: DeadLetters | None = None
    ) -> None:
        policies = [_policy(each) for each in listeners]
        if not policies:
            msg = "listeners: got none; allowed: one or more"
            raise ValueError(msg)
        twice = [name_of(p.listener) for p in policies if sum(p.listener is q.listener for q in policies) > 1]
        if twice:
            msg = f"listeners: got {twice[0]} twice, which would deliver everything twice"
            raise ValueError(msg)
        names = _names([policy.listener for policy in policies])
        self._queued: list[Lane] = []
        self._inline: list[InlineLane] = []
        self._lanes: dict[str, Lane | InlineLane] = {}
        for policy, name in zip(policies, names, strict=True):
            if isinstance(policy, Queued):
                self._queued.append(lane := Lane(policy, name, dead_letters))
                self._lanes[name] = lane
            else:
                self._inline.append(inline := InlineLane(policy, name, dead_letters))
                self._lanes[name] = inline
        self._tell_hooks = any(not lane.takes_events for lane in self._lanes.values())
        self._closed = False

    @property
    def counts(self) -> dict[str, Counts]:
        """What became of the events so far, by the listeners' names."""
        return {name: lane.counts for name, lane in self._lanes.items()}

    def health(self) -> Health:
        """How each listener is; does not ask the sinks."""
        listeners = {
            name: ListenerHealth(lane.state, lane.counts.under_way, lane.size, lane.resilient.last_error, lane.counts)
            for name, lane in self._lanes.items()
        }
        waited_for = all(lane.state != "open" for lane in self._inline)
        return Health(ready=waited_for and not self._closed, listeners=listeners)

    def stamp(self, event: SagaEvent) -> SagaEvent:
        for lane in self._lanes.values():
            try:
                event = lane.listener.stamp(event)
            except Exception as error:  # noqa: BLE001 - a listener's fault is neither the saga's nor another listener's
                logger.error("%s.stamp failed for event %s: %s", lane.name, event.event_id, said(error))  # noqa: TRY400
        return event

    def left(self, run_id: str) -> None:
        for lane in self._lanes.values():
            try:
                lane.listener.left(run_id)
            except Exception as error:  # noqa: BLE001 - as above
                logger.error("%s.left failed for run %s: %s", lane.name, run_id, said(error))  # noqa: TRY400

    async def write(self, events: Sequence[SagaEvent]) -> None:
        """Tell of events that no hook is told of now: those of a topic, say. Listeners of hooks hear what events hold.

        Waits for room as long as a sink takes anything: whoever feeds events this way goes at the slowest sink's speed.
        """
        for event in events:
            await self._tell(event, _told_again(event) if self._tell_hooks else event, patient=True)

    async def aclose(self, timeout: float = 10.0) -> dict[str, int]:  # noqa: ASYNC109 - a deadline that keeps what it got
        """Deliver what is queued, then close the listeners; events told of later become dead letters.

        Args:
            timeout: Seconds for all of it; what is left then becomes dead letters.

        Returns:
            How many events were left, by listener; empty where all were delivered.
        """
        self._closed = True
        deadline = time.monotonic() + timeout
        left = dict(
            zip(
                self._lanes,
                await asyncio.gather(*(lane.close(deadline) for lane in self._lanes.values())),
                strict=True,
            )
        )
        left = {name: number for name, number in left.items() if number}
        if left:
            logger.warning("closed after %g s with events left: %s", timeout, left)
        return left

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def _hook(self, hook: str, *arguments: Any) -> None:
        event = event_now()
        if event is None:
            msg = (
                f"FanOut.{hook} was called outside a run, so the event has no identity: "
                "tell it through `async with saga_scope(saga_id, saga_name, listeners=[fan_out])`, or `write` an event"
            )
            raise NoSagaScopeError(msg)
        told: SagaEvent | Told = event
        if self._tell_hooks:
            if hook == "on_saga_started":  # the saga goes on changing its context while this is queued
                arguments = (*arguments[:-1], dict(arguments[-1]))
            told = Told(event, hook, arguments)
        await self._tell(event, told, patient=False)

    async def _tell(self, event: SagaEvent, told: SagaEvent | Told, *, patient: bool) -> None:
        """Hand over to every lane; wait for those that are inline, and for room where there is none."""
        waiting: list[Awaitable[None]] = []
        for lane in self._queued:
            entry = event if lane.takes_events else told
            if not lane.offer(entry):
                waiting.append(lane.wait_for_room(entry, patient=patient))
        if self._inline:
            waiting += [inline.tell(event if inline.takes_events else told) for inline in self._inline]
        if len(waiting) == 1:
            await waiting[0]
        elif waiting:
            await asyncio.gather(*waiting)


def _hook_of(hook: str) -> Callable[..., Awaitable[None]]:
    async def told(self: FanOut, *arguments: Any) -> None:
        await self._hook(hook, *arguments)

    told.__name__ = hook
    return told


for _name in HOOKS:
    setattr(FanOut, _name, _hook_of(_name))


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
    return Told(event, f"on_{event.event_type}", (event.saga_id, *arguments[event.event_type]))


def _policy(listener: SagaListener | Queued | Inline) -> Queued | Inline:
    if isinstance(listener, Queued | Inline):
        return listener
    if not isinstance(listener, SagaListener):
        msg = f"{listener!r} is no listener: subclass sagascope.SagaListener or sagascope.EventListener"
        raise TypeError(msg)
    return Inline(listener) if listener.inline else Queued(listener)


def _names(listeners: Sequence[SagaListener]) -> list[str]:
    """Each listener's name; of the same kind the second is called …-2."""
    seen: Counter[str] = Counter()
    names = []
    for listener in listeners:
        name = name_of(listener)
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return names
