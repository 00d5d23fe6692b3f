"""A listener that tries again what may succeed later, leaves a sink that is down alone for a while, and never raises.

ResilientListener(TimeoutWrappedListener(WebhookListener(url)), dead_letters=DeadLetterFile("dead.jsonl"))
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sagascope.accounting import Account, Counts, DeadLetters, said
from sagascope.current import event_now
from sagascope.delivery import WrappedListener, name_of
from sagascope.errors import PartialError, PermanentError, TransientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tenacity import RetryCallState

    from sagascope.events import SagaEvent
    from sagascope.listener import SagaListener

    Send = Callable[[Sequence[Any]], Awaitable[None]]

_CLOSE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Retry:
    """How a call is made again, and when a sink is left alone.

    Raises:
        ValueError: an option out of its range.
    """

    seconds: float = 60.0
    """From the first call on; what was not taken by then is given up."""
    first_wait_seconds: float = 0.1
    """Before the second call; doubled each time, and spread by half either way."""
    longest_wait_seconds: float = 5.0
    breaker_failures: int = 5
    """After so many failed calls in a row the sink is left alone,"""
    breaker_seconds: float = 10.0
    """but for one call in so many seconds, until one succeeds."""

    def __post_init__(self) -> None:
        for option in ("seconds", "first_wait_seconds", "longest_wait_seconds", "breaker_failures", "breaker_seconds"):
            least = 1 if option == "breaker_failures" else 0
            if not getattr(self, option) >= least:
                msg = f"{option}: got {getattr(self, option)!r}; allowed: {least} or more"
                raise ValueError(msg)


class Breaker:
    """Whether a sink is worth a call.

    Opens after `failures` failed calls in a row; every `seconds` from then on one call is let through, and the first
    that succeeds closes it.
    """

    def __init__(self, failures: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = failures
        self._seconds = seconds
        self._clock = clock
        self._failures = 0
        self._next = 0.0

    @property
    def is_open(self) -> bool:
        """Whether calls are being held back."""
        return self._failures >= self._limit

    def wait(self) -> float:
        """Seconds until a call may be made; 0.0 is a permission, and while open there is one each `seconds`."""
        if not self.is_open:
            return 0.0
        now = self._clock()
        if now < self._next:
            return self._next - now
        self._next = now + self._seconds
        return 0.0

    def succeeded(self) -> None:
        """A call came through."""
        self._failures = 0

    def failed(self) -> None:
        """A call failed in a way that may pass."""
        self._failures += 1
        if self.is_open:
            self._next = self._clock() + self._seconds


class Delivery:
    """Events on their way together. Whoever gives them up takes them out, so that none is settled twice."""

    __slots__ = ("attempts", "one_by_one", "pending")

    def __init__(self, events: Sequence[SagaEvent | None]) -> None:
        self.pending = list(events)
        self.attempts = 0
        self.one_by_one = False

    def take(self) -> list[SagaEvent | None]:
        """All that is pending, which then is not."""
        taken, self.pending = self.pending, []
        return taken

    def settle(self, number: int, retry: Sequence[SagaEvent] = ()) -> bool:
        """So many from the head are settled but for `retry`; false where they were taken out meanwhile."""
        if not self.pending:
            return False
        self.pending[:number] = retry
        return True


class ResilientListener(WrappedListener):
    """Tries each call of a listener again, and never raises.

    Waits between calls with jittered exponential back-off (tenacity). What was not taken in time (`Retry.seconds`) goes
    to `dead_letters`, or is dropped and counted where there are none; so does what is tried for when a call is cancelled.

    A batch that fails for good is tried event by event, so that one bad event costs no other. A sink's own wish to wait
    (`TransientError.retry_after`) goes before the back-off. At least once: a call that timed out may have been taken, and
    is made again. For use without a FanOut, which does all of this for its listeners.
    """

    def __init__(
        self, inner: SagaListener, *, retry: Retry | None = None, dead_letters: DeadLetters | None = None
    ) -> None:
        super().__init__(inner)
        self.retry = retry or Retry()
        self.breaker = Breaker(self.retry.breaker_failures, self.retry.breaker_seconds)
        self.account = Account(name_of(inner), dead_letters)
        self.last_error: str | None = None
        """Why the last call failed; None once one succeeded."""
        self.gives_up_early = False
        """Whether to give up at once where the next call would come too late, instead of waiting for that long."""

    @property
    def counts(self) -> Counts:
        """What became of the events so far."""
        return self.account.counts

    async def write(self, events: Sequence[SagaEvent]) -> None:
        if events:
            self.account.accept(len(events))
            await self.deliver(Delivery(events))

    async def call(self, hook: str, *arguments: Any) -> None:
        self.account.accept(1)
        await self.deliver(Delivery([event_now()]), lambda _: super(ResilientListener, self).call(hook, *arguments))

    async def close(self) -> None:
        try:
            await self.account.close(time.monotonic() + _CLOSE_SECONDS)
        finally:
            await super().close()

    async def deliver(self, delivery: Delivery, send: Send | None = None) -> None:
        """Try until all of it is settled. Raises nothing but the cancellation of the task that it runs in.

        Args:
            delivery: Events that are accepted already.
            send: What to call with those still pending; the listener's `write` by default.
        """
        send = send or self._write
        deadline = time.monotonic() + self.retry.seconds
        try:
            try:
                await self._attempt(delivery, send)
            except TransientError as error:
                await self._try_again(delivery, send, error, deadline)
        except asyncio.CancelledError:
            last = f"; before that: {self.last_error}" if self.last_error else ""
            self.account.give_up(delivery.take(), f"cancelled before it was delivered{last}", delivery.attempts)
            raise
        except Exception as error:  # noqa: BLE001 - a TransientError when time is up; and no bug loses an event
            reason = f"not taken within {self.retry.seconds:g} s: {said(error)}"
            self.account.give_up(delivery.take(), reason, delivery.attempts)
        await self.account.kept()  # goes no faster than its dead letters

    async def _write(self, events: Sequence[Any]) -> None:
        await super().call("write", events)

    async def _try_again(self, delivery: Delivery, send: Send, failed: TransientError, deadline: float) -> None:
        from tenacity import AsyncRetrying, retry_if_exception_type  # noqa: PLC0415 - never loaded where nothing fails

        def seconds_to_wait(state: RetryCallState) -> float:
            seconds = getattr(state.outcome and state.outcome.exception(), "retry_after", None)
            if seconds is None:
                doubled = self.retry.first_wait_seconds * 2.0 ** min(state.attempt_number - 1, 32)
                seconds = min(self.retry.longest_wait_seconds, doubled) * random.uniform(0.5, 1.5)  # noqa: S311 - to spread
            left = deadline - time.monotonic()
            return seconds if self.gives_up_early else max(0.0, min(seconds, left))

        def is_late(state: RetryCallState) -> bool:
            return time.monotonic() + (state.upcoming_sleep if self.gives_up_early else 0.0) >= deadline

        first = [failed]
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(TransientError), stop=is_late, wait=seconds_to_wait, reraise=True
        ):
            with attempt:
                if first:  # made without tenacity
                    raise first.pop()
                await self._attempt(delivery, send)

    async def _attempt(self, delivery: Delivery, send: Send) -> None:
        """One call for all that is pending, or one for each event where they fail together.

        Raises:
            TransientError: some are pending still.
        """
        if wait := self.breaker.wait():
            held = f"the circuit is open: {self.last_error}"
            raise _transient(held, wait)
        if delivery.attempts:
            self.account.retried()
        delivery.attempts += 1
        while delivery.pending:
            batch = delivery.pending[:1] if delivery.one_by_one else delivery.pending[:]
            try:
                await send(batch)
            except PermanentError as error:
                self._rejected(delivery, batch, error)
            except PartialError as error:
                self._partly_taken(delivery, batch, error)
            except (asyncio.CancelledError, Exception) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                # whatever is not known to be permanent may pass, a sink's own cancellation included
                raise self._failed(error) from None
            else:
                self.breaker.succeeded()
                self.last_error = None
                if delivery.settle(len(batch)):
                    self.account.delivered(len(batch))

    def _rejected(self, delivery: Delivery, batch: Sequence[SagaEvent | None], error: PermanentError) -> None:
        self.breaker.succeeded()  # the sink is there: it is the events that are wrong
        self.last_error = said(error)
        if len(batch) > 1:
            delivery.one_by_one = True
        elif delivery.settle(1):
            self.account.give_up(batch, self.last_error, delivery.attempts)

    def _partly_taken(self, delivery: Delivery, batch: Sequence[SagaEvent | None], error: PartialError) -> None:
        """Settle what the error names.

        Raises:
            TransientError: some are to be tried again; all, where what it names is not of the batch, or twice.
        """
        named = [event.event_id for event in (*error.retry, *(event for event, _ in error.rejected))]
        if len(set(named)) < len(named) or not set(named) <= {event.event_id for event in batch if event}:
            raise self._failed(error) from None
        self.breaker.succeeded()
        self.last_error = said(error)
        if delivery.settle(len(batch), retry=error.retry):
            self.account.delivered(len(batch) - len(named))
            for event, reason in error.rejected:
                self.account.give_up([event], said(PermanentError(reason)), delivery.attempts)
        if error.retry:
            raise _transient(self.last_error, _retry_after(error)) from None

    def _failed(self, error: BaseException) -> TransientError:
        self.breaker.failed()
        self.last_error = said(error)
        return _transient(self.last_error, _retry_after(error))


def _transient(text: str, retry_after: float | None) -> TransientError:
    """For the retries alone, with a text that was said before."""
    error = TransientError(text, retry_after=retry_after)
    error.is_said = True
    return error


def _retry_after(error: BaseException) -> float | None:
    """Seconds that the sink asked to wait; any exception may have an attribute of that name, with anything in it."""
    seconds = getattr(error, "retry_after", None)
    if isinstance(seconds, int | float) and math.isfinite(seconds) and seconds >= 0:
        return float(seconds)
    return None
