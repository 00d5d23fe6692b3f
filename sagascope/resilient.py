"""A listener that tries again what may succeed later, leaves a sink that is down alone for a while, and never raises.

    ResilientListener(TimeoutWrappedListener(WebhookListener(url)), dead_letters=DeadLetterFile("dead.jsonl"))

What becomes of each event is counted: accepted = delivered + dead_lettered + dropped + under way.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Protocol

from sagascope.delivery import WrappedListener, name_of
from sagascope.errors import PartialError, PermanentError, TransientError
from sagascope.redaction import redact
from sagascope.scope import event_now

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tenacity import RetryCallState

    from sagascope.events import SagaEvent
    from sagascope.listener import SagaListener

logger = logging.getLogger(__name__)

_LOG_EVERY_SECONDS = 10.0
_MOST_GIVEN_UP = 10_000
"""How many events may wait to be kept as dead letters."""
_BURY_SECONDS = 10.0
"""What keeping dead letters may take."""


class DeadLetters(Protocol):
    """Where events go that a sink did not take."""

    async def bury(self, listener: str, events: Sequence[SagaEvent], reason: str, attempts: int) -> None:
        """Keep the events, with the listener that could not deliver them, and why. Raises where it can't."""


@dataclass(slots=True)
class Counts:
    """What became of the events that a listener was given."""

    accepted: int = 0
    delivered: int = 0
    dead_lettered: int = 0
    dropped: int = 0
    """Neither delivered nor kept: no dead letters were configured, or they failed."""
    retries: int = 0
    """Calls that failed and were made again."""

    @property
    def under_way(self) -> int:
        """Accepted, and none of the others yet."""
        return self.accepted - self.delivered - self.dead_lettered - self.dropped


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


class ResilientListener(WrappedListener):
    """Tries each call of a listener again, and never raises.

    Waits between calls with jittered exponential back-off (tenacity). What was not taken within `retry_seconds` goes to
    `dead_letters`, or is dropped and counted where there are none.

    A batch that fails for good is tried event by event, so that one bad event costs no other. After `breaker_failures`
    failed calls in a row only one call each `breaker_seconds` reaches the sink. A sink's own wish to wait
    (`TransientError.retry_after`) goes before the back-off. What is still tried for when a call is cancelled becomes a
    dead letter, too.

    At least once: a call that timed out may have been taken, and is made again.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        inner: SagaListener,
        *,
        dead_letters: DeadLetters | None = None,
        retry_seconds: float = 60.0,
        first_wait_seconds: float = 0.1,
        longest_wait_seconds: float = 5.0,
        breaker_failures: int = 5,
        breaker_seconds: float = 10.0,
        name: str | None = None,
    ) -> None:
        super().__init__(inner)
        for option, value, least in (
            ("retry_seconds", retry_seconds, 0),
            ("first_wait_seconds", first_wait_seconds, 0),
            ("longest_wait_seconds", longest_wait_seconds, 0),
            ("breaker_failures", breaker_failures, 1),
            ("breaker_seconds", breaker_seconds, 0),
        ):
            if not value >= least:
                msg = f"{option}: got {value!r}; allowed: {least} or more"
                raise ValueError(msg)
        self.name = name or name_of(inner)
        self.breaker = Breaker(breaker_failures, breaker_seconds)
        self.last_error: str | None = None
        """Why the last call failed; None once one succeeded."""
        self.dead_letters = dead_letters
        self._retry_seconds = retry_seconds
        self._first_wait = first_wait_seconds
        self._longest_wait = longest_wait_seconds
        self._counts = Counts()
        self._logged = float("-inf")
        self._given_up: list[tuple[SagaEvent, str, int]] = []
        self._burying: asyncio.Task[None] | None = None

    @property
    def counts(self) -> Counts:
        """What became of the events so far."""
        return replace(self._counts)

    async def write(self, events: Sequence[SagaEvent]) -> None:
        if not events:
            return
        self._counts.accepted += len(events)
        await self._deliver(_Delivery(list(events)), super().write)

    async def call(self, hook: str, *arguments: Any) -> None:
        if hook == "write":  # on its way from our own `write`
            await super().call(hook, *arguments)
            return
        self._counts.accepted += 1
        event = event_now()
        await self._deliver(_Delivery([event]), lambda _: WrappedListener.call(self, hook, *arguments))

    async def close(self) -> None:
        if self._burying is not None:
            await asyncio.wait({self._burying})
        await super().close()

    def accept(self, number: int) -> None:
        """Count events that are given up without a call."""
        self._counts.accepted += number

    def drop(self, number: int, reason: str) -> None:
        """Count accepted events as lost."""
        self._counts.dropped += number
        self._log_given_up(reason)

    def give_up(self, events: Sequence[SagaEvent | None], reason: str, attempts: int = 0) -> asyncio.Task[None] | None:
        """Have accepted events kept as dead letters by a task of its own, which is returned; drop them where that can't be.

        Nobody needs to wait for the task, unless to slow down with it: at most 10,000 events wait to be kept.
        """
        known = [event for event in events if event is not None]
        if self.dead_letters is None or len(self._given_up) + len(known) > _MOST_GIVEN_UP:
            known = []
        if len(known) < len(events):
            self.drop(len(events) - len(known), reason)
        self._given_up += [(event, reason, attempts) for event in known]
        if self._given_up and (self._burying is None or self._burying.done()):
            self._burying = asyncio.create_task(self._bury_all(), context=contextvars.Context())
        return self._burying

    async def _bury(self, events: Sequence[SagaEvent | None], reason: str, attempts: int) -> None:
        if task := self.give_up(events, reason, attempts):
            await asyncio.shield(task)

    async def _bury_all(self) -> None:
        """Keep all that were given up, those given up for one reason together."""
        while self._given_up:
            taken, self._given_up = self._given_up, []
            for (reason, attempts), group in groupby(taken, key=itemgetter(1, 2)):
                await self._keep([event for event, _, _ in group], reason, attempts)

    async def _keep(self, events: list[SagaEvent], reason: str, attempts: int) -> None:
        try:
            async with asyncio.timeout(_BURY_SECONDS):
                if self.dead_letters is not None:  # else none of them had been kept to come here
                    await self.dead_letters.bury(self.name, events, reason, attempts)
        except Exception as error:  # noqa: BLE001 - whatever it is, the events are counted, and said to be lost
            self.drop(len(events), f"{reason}; and the dead letters failed: {said(error)}")
        except BaseException:
            self.drop(len(events), f"{reason}; and keeping them was cancelled")
            raise
        else:
            self._counts.dead_lettered += len(events)
            self._log_given_up(reason)

    async def _deliver(self, delivery: _Delivery, send: Callable[[list[Any]], Awaitable[None]]) -> None:
        try:
            try:
                await self._attempt(delivery, send)
            except TransientError as error:
                await self._try_again(delivery, send, error)
        except asyncio.CancelledError:
            self.give_up(delivery.pending, "cancelled before it was delivered", delivery.attempts)
            raise

    async def _try_again(
        self, delivery: _Delivery, send: Callable[[list[Any]], Awaitable[None]], failed: TransientError | None
    ) -> None:
        from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay  # noqa: PLC0415 - loaded when needed

        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(TransientError),
                stop=stop_after_delay(self._retry_seconds),
                wait=self._seconds_to_wait,
                reraise=True,
            ):
                with attempt:
                    if failed is not None:  # the first attempt, made without tenacity
                        error, failed = failed, None
                        raise error
                    await self._attempt(delivery, send)
        except TransientError as error:
            await self._bury(
                delivery.pending, f"not taken within {self._retry_seconds:g} s: {error}", delivery.attempts
            )

    def _seconds_to_wait(self, state: RetryCallState) -> float:
        """What the sink asked for, else the back-off; no longer than it is tried at all."""
        error = state.outcome.exception() if state.outcome else None
        seconds = getattr(error, "retry_after", None)
        if seconds is None:
            seconds = min(self._longest_wait, self._first_wait * 2.0 ** min(state.attempt_number - 1, 32))
            seconds *= random.uniform(0.5, 1.5)  # noqa: S311 - spreads retries, hides nothing
        return max(0.0, min(float(seconds), self._retry_seconds - (state.seconds_since_start or 0.0)))

    async def _attempt(self, delivery: _Delivery, send: Callable[[list[Any]], Awaitable[None]]) -> None:
        """One call for all that is pending, or one for each event where they fail together.

        Raises:
            TransientError: some are pending still.
        """
        if wait := self.breaker.wait():
            msg = f"the circuit is open: {self.last_error}"
            raise TransientError(msg, retry_after=wait)
        if delivery.attempts:
            self._counts.retries += 1
        delivery.attempts += 1
        while delivery.pending:
            batch = delivery.pending[:1] if delivery.one_by_one else delivery.pending
            try:
                await send(batch)
            except PermanentError as error:
                self.breaker.succeeded()  # the sink is there: it is the events that are wrong
                if len(batch) > 1:
                    delivery.one_by_one = True
                else:
                    await self._settle(delivery, batch, rejected=[(batch[0], said(error))])
            except PartialError as error:
                self.breaker.succeeded()
                await self._settle(delivery, batch, retry=error.retry, rejected=error.rejected)
                if error.retry:
                    self.last_error = said(error)
                    raise TransientError(self.last_error, retry_after=error.retry_after) from None
            except Exception as error:  # noqa: BLE001 - what is not known to be permanent may pass
                self.breaker.failed()
                self.last_error = said(error)
                raise TransientError(self.last_error, retry_after=getattr(error, "retry_after", None)) from None
            else:
                self.breaker.succeeded()
                self.last_error = None
                await self._settle(delivery, batch)

    async def _settle(
        self,
        delivery: _Delivery,
        batch: Sequence[Any],
        *,
        retry: Sequence[SagaEvent] = (),
        rejected: Sequence[tuple[SagaEvent, str]] = (),
    ) -> None:
        """Count what became of a batch from the head of what is pending; all but `retry` is pending no more."""
        self._counts.delivered += len(batch) - len(retry) - len(rejected)
        delivery.pending = [*retry, *delivery.pending[len(batch) :]]
        for event, reason in rejected:
            await self._bury([event], redact(reason), delivery.attempts)

    def _log_given_up(self, reason: str) -> None:
        """Once in ten seconds: a sink that is down is one fact, not one an event."""
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY_SECONDS:
            self._logged = now
            counts = self._counts
            logger.error(
                "%s: %d events became dead letters and %d were dropped so far; last: %s",
                self.name,
                counts.dead_lettered,
                counts.dropped,
                reason,
            )


class _Delivery:
    """What is left to deliver of what was given together."""

    __slots__ = ("attempts", "one_by_one", "pending")

    def __init__(self, pending: list[Any]) -> None:
        self.pending = pending
        self.attempts = 0
        self.one_by_one = False


def said(error: BaseException) -> str:
    """The error in a log or a dead letter."""
    return redact(f"{type(error).__name__}: {error}") if not isinstance(error, TransientError) else redact(str(error))
