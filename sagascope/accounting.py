"""What becomes of the events that a listener is given, counted; and dead letters, for those that it did not take.

At all times accepted = delivered + dead_lettered + dropped + under way.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from sagascope.current import current_scope
from sagascope.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sagascope.events import SagaEvent

logger = logging.getLogger(__name__)

_LOG_EVERY_SECONDS = 10.0
_MOST_REFUSED = 10_000
"""How many events that found no place may wait to be kept as dead letters."""
_KEPT_TOGETHER = 500
_KEEP_SECONDS = 10.0
"""What keeping some dead letters may take."""


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


class Account:
    """The counts of one listener. Every event that is accepted is settled once: delivered, or given up."""

    def __init__(self, name: str, dead_letters: DeadLetters | None) -> None:
        self.name = name
        self.moved = -math.inf
        """When an event was last delivered, by the monotonic clock."""
        self._dead_letters = dead_letters
        self._counts = Counts()
        self._given_up: deque[tuple[SagaEvent, str, int]] = deque()
        self._keeper: asyncio.Task[None] | None = None
        self._logged = -math.inf

    @property
    def counts(self) -> Counts:
        """As they are now."""
        return replace(self._counts)

    def accept(self, number: int) -> None:
        """So many events are to be delivered."""
        self._counts.accepted += number

    def delivered(self, number: int) -> None:
        """So many were taken."""
        self._counts.delivered += number
        self.moved = time.monotonic()

    def retried(self) -> None:
        """A call is made again."""
        self._counts.retries += 1

    def drop(self, number: int, reason: str) -> None:
        """So many accepted events are lost."""
        self._counts.dropped += number
        self._log(reason)

    def refuse(self, event: SagaEvent | None, reason: str) -> None:
        """Give an accepted event up that found no place; more than 10,000 that wait to be kept are dropped."""
        if len(self._given_up) < _MOST_REFUSED:
            self.give_up([event], reason)
        else:
            self.drop(1, f"{reason}; and {_MOST_REFUSED:,} wait to be kept as dead letters")

    def give_up(self, events: Iterable[SagaEvent | None], reason: str, attempts: int = 0) -> None:
        """Have accepted events kept as dead letters, by a task of its own; dropped where that can't be.

        None stands for an event that nobody minted: a hook was called by hand.
        """
        given_up = list(events)
        known = [event for event in given_up if event is not None and self._dead_letters is not None]
        if len(known) < len(given_up):
            self.drop(len(given_up) - len(known), reason)
        self._given_up += [(event, reason, attempts) for event in known]
        if self._given_up and (self._keeper is None or self._keeper.done()):
            self._keeper = asyncio.create_task(self._keep_all(), context=contextvars.Context())
            self._keeper.add_done_callback(self._keeper_ended)

    async def kept(self) -> None:
        """Wait until what was given up is kept, or dropped; cancelling the wait leaves that alone."""
        if self._keeper is not None and not self._keeper.done():
            await asyncio.wait({self._keeper})

    async def close(self, deadline: float) -> None:
        """Wait until the deadline for what was given up; what is not kept by then is dropped."""
        if self._keeper is not None and not self._keeper.done():
            await asyncio.wait({self._keeper}, timeout=max(0.0, deadline - time.monotonic()))
            self._keeper.cancel()
            await asyncio.wait({self._keeper}, timeout=0.25)

    def forget_loop(self) -> None:
        """The event loop was closed with the task in it: the next event that is given up starts another."""
        self._keeper = None

    async def _keep_all(self) -> None:
        while self._given_up:
            _, reason, attempts = self._given_up[0]
            events: list[SagaEvent] = []
            while self._given_up and self._given_up[0][1:] == (reason, attempts) and len(events) < _KEPT_TOGETHER:
                events.append(self._given_up.popleft()[0])
            try:
                async with asyncio.timeout(_KEEP_SECONDS):
                    if self._dead_letters is not None:  # else none had been given up
                        await self._dead_letters.bury(self.name, events, reason, attempts)
            except Exception as error:  # noqa: BLE001 - whatever it is, the events are counted, and said to be lost
                self.drop(len(events), f"{reason}; and the dead letters failed: {said(error)}")
            except BaseException:
                self.drop(len(events), f"{reason}; and keeping them was cancelled")
                raise
            else:
                self._counts.dead_lettered += len(events)
                self._log(reason)

    def _keeper_ended(self, keeper: asyncio.Task[None]) -> None:
        if keeper.cancelled() and keeper is self._keeper and self._given_up:  # the event loop ends, or it is closed
            left, reason = len(self._given_up), self._given_up[0][1]
            self._given_up.clear()
            self.drop(left, f"{reason}; and keeping them was cancelled")

    def _log(self, reason: str) -> None:
        """Once in ten seconds: a sink that is down is one fact, not one an event."""
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY_SECONDS:
            self._logged = now
            logger.error(
                "%s: %d events became dead letters and %d were dropped so far; last: %s",
                self.name,
                self._counts.dead_lettered,
                self._counts.dropped,
                reason,
            )


def said(error: BaseException) -> str:
    """The error for a log, a dead letter or a health check: without credentials, and without values of the run around."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - not ours, and no reason to lose an event
        text = "an error without a text"
    scope = current_scope()
    text = redact(text) if scope is None else scope.without_values(text)
    return text if getattr(error, "is_said", False) else f"{type(error).__name__}: {text}"
