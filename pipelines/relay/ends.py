"""The two ends of a relay as it sees them: what gives events, and what takes them."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sagascope.outbox.storage import Backlog, ClaimedEvent, ParkedEvent


class RelayError(RuntimeError):
    """The relay can't work as it was set up: names what is wrong and the cure. Never holds a password."""


@dataclass
class Outcome:
    """What became of the events of one batch; each is in one of the three."""

    sent: list[ClaimedEvent] = field(default_factory=list)
    """Acknowledged by the broker."""
    left: list[ClaimedEvent] = field(default_factory=list)
    """Not acknowledged, or not even tried; to be tried again."""
    rejected: list[tuple[ClaimedEvent, str]] = field(default_factory=list)
    """The broker will never take them, each with why."""
    failure: str | None = None
    """Why those that were tried and are left were not taken; None: all left only wait for an earlier one of their saga."""


class Source(ABC):
    """Gives events and is told what became of them. Of a saga it gives nothing while earlier ones are unsettled."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        """Set when there may be something to take."""

    @abstractmethod
    async def open(self) -> None:
        """Connect.

        Raises:
            RelayError: it can't be used as it is.
            TransientError: it does not answer now.
        """

    async def look(self) -> None:
        """Connect for questions only: beside a relay that works, and without waiting for it.

        Raises:
            RelayError: it can't be used as it is.
            TransientError: it does not answer now.
        """
        await self.open()

    @abstractmethod
    async def take(self, limit: int) -> list[ClaimedEvent]:
        """Up to `limit` committed events that nobody else has taken; a saga's in order."""

    @abstractmethod
    async def settle(self, outcome: Outcome) -> None:
        """Remember what became of them: sent ones never come again, rejected ones are parked, the others come again."""

    @abstractmethod
    async def backlog(self) -> Backlog:
        """What waits, and what is parked."""

    @abstractmethod
    async def parked(self, *, saga_id: str | None = None, limit: int = 1_000) -> list[ParkedEvent]:
        """What was given up, the eldest first."""

    @abstractmethod
    async def retry_parked(self, event_ids: Collection[str]) -> int:
        """Have them tried again; returns how many were parked."""

    @abstractmethod
    async def discard_parked(self, event_ids: Collection[str]) -> int:
        """Never send them, and let what they block pass; returns how many were parked."""

    async def purge(self, *, older_than_seconds: float, limit: int) -> int:  # noqa: ARG002 - the default has nothing to purge
        """Delete some of what was sent so long ago; returns how many."""
        return 0

    @abstractmethod
    async def close(self) -> None:
        """Let go of what was opened."""


class Target(ABC):
    """Takes events."""

    @abstractmethod
    async def open(self) -> None:
        """Connect.

        Raises:
            RelayError: it can't be used as it is.
            TransientError: it does not answer now.
        """

    @abstractmethod
    async def publish(self, events: Sequence[ClaimedEvent], *, pass_on: bool) -> Outcome:
        """Send them, and wait until it is known what became of each, for PUBLISH_SECONDS at most.

        Of each saga they arrive in the order given. After one that is rejected nothing of its saga is sent, unless
        `pass_on`; after one whose fate is not known nothing of its saga is sent either way.
        """

    @abstractmethod
    async def close(self) -> None:
        """Disconnect, at once."""


PUBLISH_SECONDS = 10.0
"""After so long what the broker has not acknowledged is given back; claims are leased for longer."""


def by_saga(events: Sequence[ClaimedEvent]) -> list[list[ClaimedEvent]]:
    """The events of each saga, in order."""
    sagas: dict[bytes, list[ClaimedEvent]] = {}
    for event in events:
        sagas.setdefault(event.key, []).append(event)
    return list(sagas.values())
