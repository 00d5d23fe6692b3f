"""The relay's work: take, publish, and only then settle."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from pipelines.relay.ends import Outcome, RelayError
from sagascope.errors import DeliveryError, TransientError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pipelines.relay.ends import Source, Target
    from pipelines.relay.figures import Figures
    from sagascope.outbox.storage import ClaimedEvent

logger = logging.getLogger("sagascope.relay")

_LANES = 3
"""So many batches are under way at once: one is read while others are published and settled."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0
_PROBE = 20
"""So many events are tried while the target fails."""
_LINGER_SECONDS = 0.01
"""After a batch that was not full: so that a trickle is taken in handfuls, not one by one."""
_FINISH_SECONDS, _GIVE_BACK_SECONDS = 4.0, 1.5
"""What a stop lets batches under way take, and then the giving back of what is left."""
_LOOK_SECONDS, _TELL_SECONDS, _PURGE_SECONDS = 5.0, 60.0, 30.0
_PURGE_ROWS = 1_000
_PURGE_PAUSE = 0.05
_SETTLE_SECONDS, _TAKE_SECONDS = 15.0, 60.0
_AGAIN_SECONDS = 600.0
"""After so long a purge that failed is tried again."""


class Pace(NamedTuple):
    """How a relay works."""

    batch_size: int = 1_000
    """Events taken at a time."""
    poll_seconds: float = 1.0
    """How long it waits to be woken before it looks by itself."""
    pass_on: bool = False
    """Whether what follows a parked event of a saga is sent all the same."""
    retention_seconds: float = 7 * 86_400.0
    """For how long a sent event stays in the outbox."""


class Relay:
    """Carries events from a source to a target until it is told to stop.

    Every event is sent at least once, those of a saga in order: what is not settled when this process is killed comes
    again, and nothing else does. One that the target will never take is parked. While either end does not answer, it
    is tried again, after a pause that grows to 15 s, with jitter.
    """

    def __init__(
        self, source: Source, target: Target, figures: Figures, pace: Pace, tell: Callable[[str], None] = print
    ) -> None:
        """Do no I/O yet.

        Args:
            source: Where events come from; opened and closed here.
            target: Where they go; opened and closed here.
            figures: Told what happens.
            pace: How to work.
            tell: Given a line of JSON a minute, and at the end.
        """
        self._source = source
        self._target = target
        self._figures = figures
        self._pace = pace
        self._tell = tell
        self._stop = asyncio.Event()
        self._failures = 0
        self._logged = float("-inf")
        self._lanes: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Take nothing more; `run` returns within 10 s, when what was taken is sent or given back."""
        self._stop.set()
        self._source.woken.set()

    async def run(self) -> None:
        """Work until `stop`.

        Raises:
            RelayError: an end can't be used as it was set up.
            PermanentError: the source can't be read, and never will.
        """
        chores: set[asyncio.Task[None]] = set()
        try:
            if await self._opened(self._source.open) and await self._opened(self._target.open):
                logger.info("relaying from %s to %s", self._source, self._target)
                chores = {asyncio.create_task(chore()) for chore in (self._look, self._purge)}
                await self._take()
                await self._finish()
                with suppress(TransientError, TimeoutError):
                    async with asyncio.timeout(_GIVE_BACK_SECONDS):
                        self._figures.backlog(await self._source.backlog())
                self._tell(self._figures.line())
        finally:
            for task in (*chores, *self._lanes):
                task.cancel()
            await asyncio.gather(*chores, *self._lanes, return_exceptions=True)
            await self._target.close()
            await self._source.close()

    async def _opened(self, opening: Callable[[], Awaitable[None]]) -> bool:
        """Open an end, however long it takes; False when stopped before."""
        while not self._stop.is_set():
            try:
                await opening()
            except TransientError as error:
                await self._pause(f"waiting: {error}", error.retry_after)
            else:
                self._failures = 0
                return True
        return False

    async def _take(self) -> None:
        woken, size = self._source.woken, self._pace.batch_size
        while await self._has_room():
            limit = min(_PROBE, size) if self._failures else size
            woken.clear()  # before it is looked: what comes meanwhile is not missed
            try:
                batch = await self._taken(limit)
            except TransientError as error:
                await self._pause(f"the source fails: {error}")
                continue
            if not batch:
                with suppress(TimeoutError):
                    await asyncio.wait_for(woken.wait(), self._pace.poll_seconds)
                continue
            lane = asyncio.create_task(self._carry(batch))
            self._lanes.add(lane)
            lane.add_done_callback(self._landed)
            if self._failures:  # one probe at a time
                await self._first_of(lane)
                if self._failures:
                    await self._pause(None)
            elif len(batch) < limit:
                await asyncio.sleep(_LINGER_SECONDS)

    async def _taken(self, limit: int) -> list[ClaimedEvent]:
        """What the source gives; a source that hangs is given up, after a moment when stopped."""
        taking = asyncio.ensure_future(self._source.take(limit))
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({taking, stopped}, timeout=_TAKE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                await asyncio.wait({taking}, timeout=_GIVE_BACK_SECONDS)
        finally:
            stopped.cancel()
        if taking.done():
            return taking.result()
        taking.cancel()
        await asyncio.wait({taking}, timeout=_GIVE_BACK_SECONDS)
        msg = f"{self._source} did not answer within {_TAKE_SECONDS:.0f} s"
        raise TransientError(msg)

    async def _has_room(self) -> bool:
        """Wait until another batch may be under way; False when stopped."""
        while len(self._lanes) >= _LANES and not self._stop.is_set():
            await self._first_of(*self._lanes)
        return not self._stop.is_set()

    async def _first_of(self, *lanes: asyncio.Task[None]) -> None:
        """Wait for one of them, or for a stop."""
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({*lanes, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()

    def _landed(self, lane: asyncio.Task[None]) -> None:
        self._lanes.discard(lane)
        if not lane.cancelled() and (error := lane.exception()):
            logger.error("a batch was given up, and comes again: %r", error)
            self._failures += 1
        self._source.woken.set()  # later events of its sagas may be taken now

    async def _carry(self, batch: Sequence[ClaimedEvent]) -> None:
        """Publish and settle; given back when cancelled."""
        outcome = Outcome(left=list(batch))
        try:
            began = time.perf_counter()
            outcome = await self._target.publish(batch, pass_on=self._pace.pass_on)
            self._figures.published(len(batch), time.perf_counter() - began)
        finally:
            await asyncio.shield(self._settle(outcome))
        for event, reason in outcome.rejected:
            logger.error(
                "parked event %s of saga %.200r: %s", event.event_id, event.key.decode(errors="replace"), reason
            )
        if outcome.failure is None:
            self._failures = 0
        else:
            self._failures += 1
            self._warn(f"publishing to {self._target} fails: {outcome.failure}")

    async def _settle(self, outcome: Outcome) -> None:
        """Tried again while the lease lasts: what can't be settled is sent twice."""
        deadline, pause = time.monotonic() + _SETTLE_SECONDS, _FIRST_PAUSE
        while True:
            try:
                async with asyncio.timeout(_SETTLE_SECONDS):
                    await self._source.settle(outcome)
            except (TransientError, TimeoutError) as error:
                if time.monotonic() > deadline:
                    raise
                self._warn(f"{len(outcome.sent)} events are sent and can't be marked so: {error}")
                await asyncio.sleep(_jittered(pause))
                pause *= 2
            else:
                break
        self._figures.settled(sent=len(outcome.sent), retried=len(outcome.left), given_up=len(outcome.rejected))

    async def _finish(self) -> None:
        if self._lanes:
            await asyncio.wait(self._lanes, timeout=_FINISH_SECONDS)
        for lane in self._lanes:
            lane.cancel()
        if self._lanes:
            await asyncio.wait(self._lanes, timeout=_GIVE_BACK_SECONDS)

    async def _pause(self, why: str | None, seconds: float | None = None) -> None:
        """Wait after a failure: so long where it is known, else longer each time, and never as long as another relay."""
        if seconds is None:
            seconds = _jittered(min(_FIRST_PAUSE * 2 ** min(self._failures, 16), _LONGEST_PAUSE))
        if why is not None:
            self._failures += 1
            self._warn(why)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def _warn(self, message: str) -> None:
        """Once in ten seconds: an end that does not answer is one fact, not one a try."""
        moment = time.monotonic()
        if moment - self._logged >= 10.0:
            self._logged = moment
            logger.warning("%s; tried again with growing pauses", message)

    async def _look(self) -> None:
        """Ask what waits, now and then, and tell the numbers once a minute."""
        told = time.monotonic()
        while True:
            with suppress(DeliveryError, RelayError):  # the relay itself says what is wrong
                self._figures.backlog(await self._source.backlog())
            if time.monotonic() - told >= _TELL_SECONDS:
                told = time.monotonic()
                self._tell(self._figures.line())
            await asyncio.sleep(_LOOK_SECONDS)

    async def _purge(self) -> None:
        """Delete what was sent long ago, a little at a time."""
        while True:
            pause = _PURGE_SECONDS
            try:
                while deleted := await self._source.purge(
                    older_than_seconds=self._pace.retention_seconds, limit=_PURGE_ROWS
                ):
                    self._figures.purged(deleted)
                    await asyncio.sleep(_PURGE_PAUSE)
            except (DeliveryError, RelayError) as error:  # no right to delete, say: events go on
                logger.warning("sent rows can't be purged: %s; tried again in %.0f minutes", error, _AGAIN_SECONDS / 60)
                pause = _AGAIN_SECONDS
            await asyncio.sleep(pause)


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
