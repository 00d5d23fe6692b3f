"""Sinks and dead letters that misbehave, for the tests of what stands between a saga and its listeners."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from sagascope.errors import PartialError, PermanentError, TransientError
from sagascope.listener import EventListener, SagaListener
from tests.sagascope.conftest import make_event

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

    from sagascope.events import SagaEvent
    from sagascope.lanes import Lane


NOT_NOW, NEVER = "not now", "never"


class KeptDeadLetters:
    """Dead letters in memory; the first `failures` times they fail."""

    def __init__(self, failures: int = 0) -> None:
        self.buried: list[tuple[str, SagaEvent, str]] = []
        self._failures = failures

    async def bury(self, listener: str, events: Sequence[SagaEvent], reason: str, attempts: int) -> None:
        await asyncio.sleep(0)
        if self._failures:
            self._failures -= 1
            raise OSError(28, "No space left on device")
        self.buried += [(listener, event, reason) for event in events]


class Hung(EventListener):
    """Takes nothing and never answers; where `stubborn` it will not be cancelled either."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.calls = 0
        self.stubborn = stubborn

    async def write(self, events: Sequence[SagaEvent]) -> None:
        self.calls += 1
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if not self.stubborn:
                    raise


class Scripted(EventListener):
    """Does with each call what its script says, then takes everything."""

    def __init__(self, script: Sequence[str], rng: random.Random) -> None:
        self.taken: list[SagaEvent] = []
        self.script = iter(script)
        self.rng = rng
        self.lane: Lane | None = None
        self.deepest = 0

    async def write(self, events: Sequence[SagaEvent]) -> None:
        if self.lane is not None:
            self.deepest = max(self.deepest, self.lane.counts.under_way - len(self.lane._line))
        await asyncio.sleep(0)
        match next(self.script, "take"):
            case "transient":
                raise TransientError(NOT_NOW, retry_after=self.rng.choice([None, 0.0]))
            case "unknown":
                raise RuntimeError(NOT_NOW)
            case "permanent":
                raise PermanentError(NEVER)
            case "partial":
                shares: list[list[SagaEvent]] = [[], [], []]
                for event in events:
                    self.rng.choice(shares).append(event)
                taken, retry, rejected = shares
                self.taken += taken
                if retry or rejected:
                    raise PartialError(NEVER, retry=retry, rejected=[(event, "never") for event in rejected])
            case _:
                self.taken += events


def events_of(saga_id: str, number: int) -> list[SagaEvent]:
    """Events of one saga, numbered."""
    return [make_event(saga_id=saga_id, sequence=n) for n in range(number)]


SECRET = "c4n4ry-5ecret"  # noqa: S105 - planted


class Misbehaving(EventListener):
    """Does with each call what its script says, then takes everything."""

    def __init__(self, script: Sequence[str]) -> None:
        self.script = iter(script)

    async def write(self, events: Sequence[SagaEvent]) -> None:
        await asyncio.sleep(0)
        match next(self.script, "take"):
            case "transient":
                raise TransientError(SECRET)
            case "permanent":
                raise PermanentError(SECRET)
            case "partial":
                raise PartialError(SECRET, retry=events[:1], rejected=[(event, SECRET) for event in events[1:2]])
            case "partial of others":
                raise PartialError(SECRET, retry=[make_event()])
            case "partial twice":
                raise PartialError(SECRET, retry=events[:1], rejected=[(events[0], SECRET)])
            case "own cancellation":
                raise asyncio.CancelledError
            case "hang":
                await asyncio.sleep(3600)
            case "odd retry_after":
                raise TransientError(SECRET, retry_after="tomorrow")  # type: ignore[arg-type] # as a careless sink may


class Hooks(SagaListener):
    """The same with a hook, one event a call."""

    def __init__(self, script: Sequence[str]) -> None:
        self.sink = Misbehaving(script)

    async def on_saga_started(self, saga_id: str, saga_name: str, context: Mapping[str, Any]) -> None:
        await self.sink.write([])


class Grave:
    """Dead letters that are quick, slow, hung, or refuse."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.buried: Counter[tuple[str, str]] = Counter()

    async def bury(self, listener: str, events: Sequence[SagaEvent], reason: str, attempts: int) -> None:
        match self.kind:
            case "slow":
                await asyncio.sleep(0.003)
            case "hung":
                await asyncio.sleep(3600)
            case "refuses":
                raise OSError(28, "No space left on device")
        self.buried.update((listener, event.event_id) for event in events)
