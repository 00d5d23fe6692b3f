"""How a fan-out tells one listener: from a bounded queue in batches, or inline while the saga waits."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sagascope.accounting import DeadLetters, said
from sagascope.current import telling
from sagascope.delivery import TimeoutWrappedListener
from sagascope.resilient import Delivery, ResilientListener, Retry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagascope.accounting import Counts
    from sagascope.events import SagaEvent
    from sagascope.listener import SagaListener
    from sagascope.policies import Inline, Queued
    from sagascope.scope import SagaScope

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.01
_CLOSED = "told after the fan-out was closed"
_LEFT = "left when the fan-out was closed"
_KEEP_SECONDS = 2.0
"""For keeping what is left as dead letters, beyond the deadline."""
_GRACE_SECONDS = 1.0
"""What ending something may take when the deadline has passed."""


State = Literal["ok", "failing", "open", "full"]


class Told(NamedTuple):
    """One event, and for listeners with hooks of their own the call that told of it."""

    event: SagaEvent
    hook: str
    arguments: tuple[Any, ...]
    scope: SagaScope | None
    """The run that tells, whose values no message may quote."""


class _Lane:
    """What both kinds have: a listener with its timeout, retries and account."""

    def __init__(
        self, listener: SagaListener, name: str, dead_letters: DeadLetters | None, ms: int, retry: Retry
    ) -> None:
        self.name = name
        self.listener = listener
        self.takes_events = listener.takes_events
        self._limited = TimeoutWrappedListener(listener, ms)
        self._resilient = ResilientListener(self._limited, retry=retry, dead_letters=dead_letters)
        self.account = self._resilient.account
        self.account.name = name
        self.closed = False

    @property
    def counts(self) -> Counts:
        """What became of the events so far; those queued are under way."""
        return self.account.counts

    @property
    def state(self) -> State:
        """See `ListenerHealth.state`."""
        if self._resilient.breaker.is_open:
            return "open"
        return "ok" if self.last_error is None else "failing"

    @property
    def last_error(self) -> str | None:
        """Why the last call failed; None once one succeeded."""
        return self._resilient.last_error

    async def _deliver(self, told: Sequence[Told], delivery: Delivery) -> None:
        if self.takes_events:
            await self._resilient.deliver(delivery)
            return
        (one,) = told
        with telling(one.event, one.scope):
            await self._resilient.deliver(delivery, lambda _: self._limited.call(one.hook, *one.arguments))

    async def _close(self, deadline: float) -> None:
        """Close the account and the listener, whatever that raises or takes: the others are to be closed, too."""
        await self.account.close(max(deadline, time.monotonic() + _KEEP_SECONDS))
        seconds = max(_GRACE_SECONDS, deadline - time.monotonic())
        try:
            await TimeoutWrappedListener(self.listener, int(seconds * 1000)).call("close")
        except Exception as error:  # noqa: BLE001
            logger.warning("%s: closing failed: %s", self.name, said(error))


class InlineLane(_Lane):
    """Tells a listener while the saga waits."""

    size = None

    def __init__(self, policy: Inline, name: str, dead_letters: DeadLetters | None) -> None:
        self._seconds = policy.timeout_ms / 1000
        retry = Retry(
            seconds=self._seconds,
            first_wait_seconds=self._seconds / 20,
            breaker_failures=policy.breaker_failures,
            breaker_seconds=policy.breaker_seconds,
        )
        super().__init__(policy.listener, name, dead_letters, policy.timeout_ms, retry)
        self._resilient.gives_up_early = True
        self._telling: dict[asyncio.Task[None], Delivery] = {}

    def tell(self, told: Told) -> asyncio.Task[None] | None:
        """A task that ends when the listener has it, or it was given up; it is accepted when this returns."""
        self.account.accept(1)
        if self.closed:
            self.account.refuse(told.event, _CLOSED)
            return None
        delivery = Delivery([told.event])
        task = asyncio.create_task(self._tell(told, delivery))
        self._telling[task] = delivery
        task.add_done_callback(self._ended)
        return task

    async def _tell(self, told: Told, delivery: Delivery) -> None:
        try:
            async with asyncio.timeout(
                self._seconds * 1.05
            ):  # for a second call that hangs; the first has its own limit
                await self._deliver((told,), delivery)
        except TimeoutError:
            pass  # the delivery was cancelled by it, and given up

    def forget_loop(self) -> None:
        """The event loop was closed without ending what ran in it."""
        self.account.forget_loop()
        for task in list(self._telling):
            self._ended(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        delivery = self._telling.pop(task)
        if delivery.pending:  # it was cancelled before it began
            self.account.give_up(delivery.take(), "cancelled before it was delivered")

    async def close(self, deadline: float) -> int:
        """Wait for what is under way, give up what is left at the deadline, close the listener; how many were left."""
        self.closed = True
        while self._telling and time.monotonic() < deadline:  # noqa: ASYNC110 - once in its life
            await asyncio.sleep(_POLL_SECONDS)
        left = 0
        for task, delivery in list(self._telling.items()):
            left += len(delivery.pending)
            self.account.give_up(delivery.take(), _LEFT, delivery.attempts)
            task.cancel()
        await self._close(deadline)
        return left


class Lane(_Lane):
    """A bounded queue of one listener, and its workers."""

    def __init__(self, policy: Queued, name: str, dead_letters: DeadLetters | None) -> None:
        super().__init__(policy.listener, name, dead_letters, policy.timeout_ms, policy.retry)
        self.size = policy.size
        self.policy = policy
        self._depth = 0
        """Events queued or under way."""
        self._line: dict[asyncio.Future[None], Told] = {}
        """Who waits for room, first come, first served."""
        self._began = 0.0
        """When the queue was last empty, and an event came."""
        self._patience_ends: float | None = None
        """Until when sagas wait for room: so long after the first one did, until half of the queue is free again."""
        self._workers = [_Worker(self) for _ in range(policy.workers)]

    @property
    def state(self) -> State:
        return "full" if self._depth >= self.size else super().state

    def tell(self, told: Told, *, patient: bool) -> asyncio.Future[None] | None:
        """Queue it; where there is no room, a future that is done when it is queued, or was given up.

        Args:
            told: It is accepted when this returns.
            patient: Wait until there is room.
        """
        self.account.accept(1)
        if self._depth < self.size and not self._line and not self.closed:
            self._queue(told)
            return None
        if self.closed:
            self.account.refuse(told.event, _CLOSED)
            return None
        if self.policy.when_full == "drop":
            self.account.drop(1, f"its queue of {self.size:,} is full")
            return None
        if not patient and self._patience() <= 0:
            self.account.refuse(told.event, self._full())
            return None
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line[room] = told
        room.add_done_callback(self._waited)
        if not patient:
            self._watch(room)
        return room

    def settled(self, number: int) -> None:
        """Make room: so many events are no longer under way."""
        self._depth -= number
        if self._depth <= self.size // 2:
            self._patience_ends = None
        while self._line and self._depth < self.size and not self.closed:
            room = next(iter(self._line))
            if room.done():  # its saga was cancelled just now
                self._waited(room)
            else:
                self._queue(self._line.pop(room))
                room.set_result(None)

    async def deliver(self, told: Sequence[Told], delivery: Delivery) -> None:
        """Deliver a batch, for a worker."""
        await self._deliver(told, delivery)

    async def close(self, deadline: float) -> int:
        """Deliver what is queued, give up what is left at the deadline, and close the listener; how many were left."""
        for worker in self._workers:
            worker.hurry()
        while (self._depth or self._line) and time.monotonic() < deadline:  # noqa: ASYNC110 - once in its life
            await asyncio.sleep(_POLL_SECONDS)
        self.closed = True
        left = self._depth + len(self._line)
        for room in list(self._line):
            self._end_wait(room)
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        await self._close(deadline)
        return left

    def forget_loop(self) -> None:
        """The event loop was closed without ending what ran in it."""
        self.account.forget_loop()
        for room in list(self._line):
            self._waited(room)
        for worker in self._workers:
            worker.forget_loop()

    def _queue(self, told: Told) -> None:
        if not self._depth:
            self._began = time.monotonic()
        self._depth += 1
        workers = self._workers
        (workers[0] if len(workers) == 1 else workers[hash(told.event.saga_id) % len(workers)]).put(told)

    def _patience(self) -> float:
        """Seconds that a saga may still wait for room."""
        now, seconds = time.monotonic(), self.policy.block_seconds
        if self._patience_ends is None:
            self._patience_ends = now + seconds
        return min(self._patience_ends, max(self._began, self.account.moved) + seconds) - now

    def _watch(self, room: asyncio.Future[None]) -> None:
        """End the wait when patience does, which grows when the queue moves."""
        if room.done():
            return
        if (seconds := self._patience()) > 0:
            asyncio.get_running_loop().call_later(seconds, self._watch, room)
        else:
            self._end_wait(room)

    def _end_wait(self, room: asyncio.Future[None]) -> None:
        self._waited(room)
        if not room.done():
            room.set_result(None)

    def _waited(self, room: asyncio.Future[None]) -> None:
        """Give up what waited in vain: there was no room in time, its saga was cancelled, or the fan-out was closed."""
        if told := self._line.pop(room, None):
            self.account.refuse(told.event, _LEFT if self.closed else self._full())

    def _full(self) -> str:
        return f"its queue of {self.size:,} was full for {self.policy.block_seconds:g} s or longer"


class _Worker:
    """Takes what is queued in batches, in order. Its task runs while there is something to do."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._most = lane.policy.batch_size if lane.takes_events else 1
        self._waiting: deque[Told] = deque()
        self._delivery: Delivery | None = None
        self._task: asyncio.Task[None] | None = None
        self._filled: asyncio.Future[None] | None = None
        """Set while a batch waits to be filled."""
        self._hurried = False

    def put(self, told: Told) -> None:
        waiting = self._waiting
        waiting.append(told)
        if self._task is None:
            self.start()
        elif self._filled is not None and len(waiting) >= self._most and not self._filled.done():
            self._filled.set_result(None)

    def start(self) -> None:
        """Begin with what waits, in a context of its own: not that of the saga that happens to be first."""
        self._task = asyncio.create_task(self._work(), context=contextvars.Context())
        self._task.add_done_callback(self._ended)

    def hurry(self) -> None:
        """Wait for no batch to be filled any more."""
        self._hurried = True
        if self._filled is not None and not self._filled.done():
            self._filled.set_result(None)
        if self._waiting and self._task is None:  # of an event loop that ended before this one
            self.start()

    async def stop(self) -> None:
        """End at once; what is under way and what waits is given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=_GRACE_SECONDS)
        account = self._lane.account
        if self._delivery is not None:  # a sink that will not be cancelled may end one day, and changes nothing then
            account.give_up(self._delivery.take(), _LEFT, self._delivery.attempts)
        account.give_up([told.event for told in self._waiting], _LEFT)
        self._waiting.clear()

    def forget_loop(self) -> None:
        """The event loop was closed with the task in it: what was under way is given up, what waits is begun anew."""
        if self._delivery is not None:
            delivery, self._delivery = self._delivery, None
            left = delivery.take()
            self._lane.account.give_up(left, "its event loop was closed", delivery.attempts)
            self._lane.settled(len(left))
        self._task = self._filled = None
        if self._waiting:
            self.start()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task is self._task:  # it was cancelled before it began
            self._task = None

    async def _work(self) -> None:
        try:
            while self._waiting:
                if self._lane.policy.linger_ms and not self._hurried and len(self._waiting) < self._most:
                    await self._fill()
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._most))]
                self._delivery = Delivery([told.event for told in batch])
                try:
                    await self._lane.deliver(batch, self._delivery)
                finally:
                    self._delivery = None
                    self._lane.settled(len(batch))
        finally:
            self._task = None

    async def _fill(self) -> None:
        self._filled = asyncio.get_running_loop().create_future()
        await asyncio.wait({self._filled}, timeout=self._lane.policy.linger_ms / 1000)
        self._filled = None
