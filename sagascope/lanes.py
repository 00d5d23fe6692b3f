"""How a fan-out tells one listener: from a bounded queue in batches, or inline while the saga waits."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sagascope.delivery import TimeoutWrappedListener
from sagascope.errors import ListenerTimeoutError
from sagascope.resilient import Counts, DeadLetters, ResilientListener, said
from sagascope.scope import telling

if TYPE_CHECKING:
    from sagascope.events import SagaEvent
    from sagascope.listener import SagaListener

logger = logging.getLogger(__name__)

_LEAST = {
    "size": 1,
    "block_seconds": 0,
    "batch_size": 1,
    "linger_ms": 0,
    "workers": 1,
    "timeout_ms": 1,
    "retry_seconds": 0,
}
_POLL_SECONDS = 0.01
_CLOSED = "told after the fan-out was closed"
_CLOSE_GRACE_SECONDS = 1.0
"""What closing a listener may take when the deadline has passed."""


class Told(NamedTuple):
    """One call of a hook, for a listener that has hooks of its own."""

    event: SagaEvent
    hook: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Queued:
    """Tell the listener from a queue, in batches; the saga does not wait for it.

    Raises:
        ValueError: an option out of its range.
    """

    listener: SagaListener
    size: int = 10_000
    """How many events may be queued or under way."""
    when_full: Literal["block", "drop"] = "block"
    """`block`: the saga waits for room, then the event becomes a dead letter. A sink costs sagas `block_seconds` at most
    until its queue has come down to half, and nothing at all where it has taken nothing for so long: it can slow them
    down for a moment, and never hold them up. Who feeds `FanOut.write` waits as long as the sink takes anything.
    `drop`: the event is dropped and counted at once."""
    block_seconds: float = 1.0
    batch_size: int = 500
    """At most so many events in one `write`."""
    linger_ms: float = 0.0
    """For how long a batch waits to be filled; 0 takes what is there, which grows by itself when the sink is slow."""
    workers: int = 1
    """So many batches are under way at once; the events of one saga keep their order."""
    timeout_ms: int = 10_000
    """Of one `write` or hook; then it is tried again."""
    retry_seconds: float = 60.0
    """For how long; then its events become dead letters. More options has `ResilientListener`, in which to wrap it."""

    def __post_init__(self) -> None:
        for option, least in _LEAST.items():
            if not getattr(self, option) >= least:
                msg = f"{option}: got {getattr(self, option)!r}; allowed: {least} or more"
                raise ValueError(msg)
        if self.when_full not in ("block", "drop"):
            msg = f"when_full: got {self.when_full!r}; allowed: 'block' or 'drop'"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Inline:
    """Have the saga wait for the listener, `timeout_ms` at most, retries included; then the event is a dead letter."""

    listener: SagaListener
    timeout_ms: int = 1_000


class InlineLane:
    """Tells a listener while the saga waits."""

    size = None

    def __init__(self, policy: Inline, name: str, dead_letters: DeadLetters | None) -> None:
        self.name = name
        self.listener = policy.listener
        self.takes_events = policy.listener.takes_events
        seconds = policy.timeout_ms / 1000
        self.resilient = _resilient(policy.listener, name=name, dead_letters=dead_letters, retry_seconds=seconds)
        self._limited = TimeoutWrappedListener(self.resilient, policy.timeout_ms)
        self._closed = False

    @property
    def counts(self) -> Counts:
        """What became of the events so far."""
        return self.resilient.counts

    @property
    def state(self) -> str:
        """See `ListenerHealth.state`."""
        return _state(self.resilient)

    async def tell(self, entry: SagaEvent | Told) -> None:
        """Return when the listener has it, or has been given up."""
        if self._closed:
            self.resilient.accept(1)
            self.resilient.give_up([_event(entry)], _CLOSED)
            return
        with suppress(ListenerTimeoutError):  # which has cancelled the resilient listener, and so made a dead letter
            if isinstance(entry, Told):
                with telling(entry.event):
                    await self._limited.call(entry.hook, *entry.arguments)
            else:
                await self._limited.write((entry,))

    async def close(self, deadline: float) -> int:
        """Wait for what is under way, then close the listener; how many events were left."""
        self._closed = True
        while (left := self.counts.under_way) and time.monotonic() < deadline:  # noqa: ASYNC110 - once in its life
            await asyncio.sleep(_POLL_SECONDS)
        await _close(self.resilient, deadline)
        return left


class Lane:
    """A bounded queue of one listener, and its workers."""

    def __init__(self, policy: Queued, name: str, dead_letters: DeadLetters | None) -> None:
        self.name = name
        self.listener = policy.listener
        self.takes_events = policy.listener.takes_events
        self.size = policy.size
        timed = TimeoutWrappedListener(policy.listener, policy.timeout_ms)
        self.resilient = _resilient(
            policy.listener, timed, name=name, dead_letters=dead_letters, retry_seconds=policy.retry_seconds
        )
        self.policy = policy
        self.closed = False
        self._accepted = 0
        self._depth = 0
        """Events queued or under way."""
        self._line: deque[tuple[SagaEvent | Told, asyncio.Future[None]]] = deque()
        """Sagas that wait for room, first come, first served."""
        self._moved = 0.0
        """When a batch was last settled, or the first event came after the queue had been empty."""
        self._patience_ends: float | None = None
        """Until when sagas wait for room: so long after the first one did, until half of the queue is free again."""
        self._workers = [_Worker(self) for _ in range(policy.workers)]

    @property
    def counts(self) -> Counts:
        """What became of the events so far; those queued are under way."""
        return replace(self.resilient.counts, accepted=self._accepted)

    @property
    def state(self) -> str:
        """See `ListenerHealth.state`."""
        return "full" if self._depth >= self.size else _state(self.resilient)

    def offer(self, entry: SagaEvent | Told) -> bool:
        """Queue it, if there is room and nobody waits for it."""
        if self._depth >= self.size or self._line or self.closed:
            return False
        self._accepted += 1
        self._queue(entry)
        return True

    async def wait_for_room(self, entry: SagaEvent | Told, *, patient: bool) -> None:
        """Queue it when there is room; where there is none in time it is given up.

        Args:
            entry: What to queue.
            patient: Wait as long as the queue moves at all.
        """
        self._accepted += 1
        if self.closed:
            self._refuse(entry, _CLOSED)
            return
        if self.policy.when_full == "drop":
            self.resilient.accept(1)
            self.resilient.drop(1, f"its queue of {self.size:,} is full")
            return
        if self._depth < self.size and not self._line:  # this began a moment after there was none
            self._queue(entry)
            return
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((entry, room))
        try:
            while not room.done() and (seconds := self._patience(patient=patient)) > 0:
                await asyncio.wait({room}, timeout=seconds)
        finally:
            if not room.done():  # also where the saga was cancelled meanwhile
                self._line.remove((entry, room))
                self._refuse(
                    entry, f"its queue of {self.size:,} was full for {self.policy.block_seconds:g} s or longer"
                )

    def settled(self, number: int) -> None:
        """Make room: so many events are no longer under way."""
        self._depth -= number
        self._moved = time.monotonic()
        if self._depth <= self.size // 2:
            self._patience_ends = None
        while self._line and self._depth < self.size:
            entry, room = self._line.popleft()
            self._queue(entry)
            room.set_result(None)

    async def close(self, deadline: float) -> int:
        """Deliver what is queued, give up what is left at the deadline, and close the listener; how many were left."""
        self.closed = True
        for worker in self._workers:
            worker.hurry()
        while self._depth and time.monotonic() < deadline:  # noqa: ASYNC110 - once in its life
            await asyncio.sleep(_POLL_SECONDS)
        left = self._depth
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        await _close(self.resilient, deadline)
        return left

    def _queue(self, entry: SagaEvent | Told) -> None:
        if not self._depth:
            self._moved = time.monotonic()
        self._depth += 1
        workers = self._workers
        (workers[0] if len(workers) == 1 else workers[hash(_event(entry).saga_id) % len(workers)]).put(entry)

    def _patience(self, *, patient: bool) -> float:
        """Seconds that may still be waited for room."""
        now, seconds = time.monotonic(), self.policy.block_seconds
        moving = self._moved + seconds
        if patient:
            return moving - now
        if self._patience_ends is None:
            self._patience_ends = now + seconds
        return min(self._patience_ends, moving) - now

    def _refuse(self, entry: SagaEvent | Told, reason: str) -> None:
        self.resilient.accept(1)
        self.resilient.give_up([_event(entry)], reason)


class _Worker:
    """Takes what is queued in batches, in order. Its task runs while there is something to do."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._waiting: deque[SagaEvent | Told] = deque()
        self._task: asyncio.Task[None] | None = None
        self._filled: asyncio.Future[None] | None = None
        """Set while a batch waits to be filled."""

    def put(self, entry: SagaEvent | Told) -> None:
        waiting = self._waiting
        waiting.append(entry)
        if self._task is None:
            # a context of its own: not that of the saga that happens to be first
            self._task = asyncio.create_task(self._work(), context=contextvars.Context())
        elif self._filled is not None and len(waiting) >= self._lane.policy.batch_size:
            self.hurry()

    def hurry(self) -> None:
        """Wait no longer for a batch to be filled."""
        if self._filled is not None and not self._filled.done():
            self._filled.set_result(None)

    async def stop(self) -> None:
        """End at once; what is under way and what waits is given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_CLOSE_GRACE_SECONDS)
        left = [_event(entry) for entry in self._waiting]
        self._waiting.clear()
        self._lane.resilient.accept(len(left))
        self._lane.resilient.give_up(left, "left in the queue when the fan-out was closed")
        self._lane.settled(len(left))

    async def _work(self) -> None:
        try:
            while self._waiting:
                if self._lane.policy.linger_ms and not self._lane.closed:
                    await self._fill()
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._lane.policy.batch_size))]
                try:
                    await self._deliver(batch)
                finally:
                    self._lane.settled(len(batch))
        finally:
            self._task = None

    async def _fill(self) -> None:
        if len(self._waiting) < self._lane.policy.batch_size:
            self._filled = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._filled}, timeout=self._lane.policy.linger_ms / 1000)
            self._filled = None

    async def _deliver(self, batch: list[Any]) -> None:
        resilient = self._lane.resilient
        if self._lane.takes_events:
            await resilient.write(batch)
            return
        for number, told in enumerate(batch):
            try:
                with telling(told.event):
                    await resilient.call(told.hook, *told.arguments)
            except asyncio.CancelledError:
                rest = [each.event for each in batch[number + 1 :]]
                resilient.accept(len(rest))
                resilient.give_up(rest, "left in the queue when the fan-out was closed")
                raise


def _resilient(
    listener: SagaListener,
    within: SagaListener | None = None,
    *,
    name: str,
    dead_letters: DeadLetters | None,
    retry_seconds: float,
) -> ResilientListener:
    """The listener made resilient, unless its owner has done so in a way of his own."""
    if isinstance(listener, ResilientListener):
        listener.name, listener.dead_letters = name, listener.dead_letters or dead_letters
        return listener
    return ResilientListener(within or listener, name=name, dead_letters=dead_letters, retry_seconds=retry_seconds)


def _state(resilient: ResilientListener) -> str:
    if resilient.breaker.is_open:
        return "open"
    return "ok" if resilient.last_error is None else "failing"


def _event(entry: SagaEvent | Told) -> SagaEvent:
    return entry.event if isinstance(entry, Told) else entry


async def _close(resilient: ResilientListener, deadline: float) -> None:
    """Close the listener, whatever that raises or takes: the others are to be closed, too."""
    seconds = max(_CLOSE_GRACE_SECONDS, deadline - time.monotonic())
    try:
        await TimeoutWrappedListener(resilient, max(1, int(seconds * 1000))).call("close")
    except Exception as error:  # noqa: BLE001
        logger.warning("%s: closing failed: %s", resilient.name, said(error))
