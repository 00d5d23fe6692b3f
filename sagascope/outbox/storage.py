"""What every outbox's storage promises, and how events join the caller's own transaction."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import msgspec

from sagascope.cloudevents import headers
from sagascope.errors import PartialError, PermanentError
from sagascope.events import encode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator, Sequence

    from sagascope.events import SagaEvent


class OutboxRow(NamedTuple):
    """An event as it is stored, in the order of the columns."""

    event_id: str
    saga_id: str
    """To order by and to look for: what no text column takes, NUL and lone surrogates, is replaced."""
    event_type: str
    payload: bytes
    """What `encode` gave: the record's value, byte for byte."""
    headers: str
    """The record's headers as one JSON object, ASCII; `ce_subject` is the saga_id as it is."""


class ClaimedEvent(NamedTuple):
    """An event that one relay may send until its lease ends."""

    position: int
    event_id: str
    key: bytes
    """The record's key."""
    payload: bytes
    headers: list[tuple[str, bytes]]
    attempts: int
    """How often it was claimed, this time included."""


class Backlog(NamedTuple):
    """What an outbox holds that is not sent, at one moment."""

    depth: int
    """Events that are to be sent, claimed ones and blocked ones included."""
    lag_seconds: float
    """The age of the eldest of them; 0 where there is none."""
    parked: int
    """Events that were given up, and that nobody has dealt with yet."""
    blocked: int
    """Events of the depth that come after a parked one of their saga."""


class ParkedEvent(NamedTuple):
    """An event that was given up, for whoever decides what becomes of it."""

    event_id: str
    saga_id: str
    event_type: str
    attempts: int
    created_at: str
    """RFC 3339 or nearly, UTC."""
    reason: str


class _Handed:
    """A connection of the caller's, and until when we may use it."""

    def __init__(self, storage: OutboxStorage, connection: Any) -> None:
        self.storage = storage
        self.connection = connection
        same: Iterator[asyncio.Lock] = (other.turn for other in _in_use if other.connection is connection)
        self.turn: asyncio.Lock = next(same, None) or asyncio.Lock()
        self.over = False


_in_use: list[_Handed] = []
"""All that are handed over now, by whichever task."""
_handed: ContextVar[tuple[_Handed, ...]] = ContextVar("sagascope_outbox_handed", default=())


class OutboxStorage(ABC):
    """A table in the service's own database where events wait for a relay.

    An event is one row. Its status: `pending`, then `claimed` by a relay for the time of a lease, then `sent`, or `dead`
    when it is given up; a claim that is released, or whose lease ends, makes it pending again.
    """

    @abstractmethod
    async def open(self) -> None:
        """Connect, and make the table where it is absent; several services may do so at once.

        Raises:
            TransientError: there is no database to be reached.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of what was opened here; opens again when used."""

    async def append(self, events: Sequence[SagaEvent]) -> None:
        """Store the events, in order; one that is stored already is left as it is.

        Within `using` they go into the transaction that is open on that connection; elsewhere, or once it has ended,
        they are committed when this returns.

        Raises:
            TransientError: none were stored, as far as is known.
            PermanentError: the database will never take them, or the caller's transaction has failed already.
            PartialError: some are no events that could be sent on: no UUID as event_id, no year below 10000.
        """
        rows, rejected = _rows(events)
        if rows:
            await self._append_where_due(rows)
        if rejected:
            msg = f"{len(rejected)} of {len(events)} events cannot be stored: {rejected[0][1]}"
            raise PartialError(msg, rejected=rejected) if rows else PermanentError(msg)

    async def _append_where_due(self, rows: Sequence[OutboxRow]) -> None:
        handed = next((each for each in _handed.get() if each.storage is self and not each.over), None)
        if handed is not None:
            async with handed.turn:
                if not handed.over and self._in_transaction(handed.connection):
                    await self._append_within(handed.connection, rows)
                    return
        await self._append(rows)

    @asynccontextmanager
    async def using(self, connection: Any) -> AsyncIterator[asyncio.Lock]:
        """Events that are written within, in tasks started within too, are part of the transaction open on `connection`.

            async with connection.transaction(), outbox.using(connection):
                await saga.run(context)

        They are committed and rolled back with it. A failing write leaves the transaction as it was. The lock that is
        given is held while a write uses the connection; a caller whose steps run in parallel takes it for their own
        statements, as a connection does one thing at a time. Open the storage before: its table is not made within.

        Raises:
            TypeError: no connection of this storage's driver.
            ValueError: no transaction is open on it.
        """
        self._check(connection)
        if not self._in_transaction(connection):
            msg = "no transaction is open on the connection: begin one, then hand it over"
            raise ValueError(msg)
        handed = _Handed(self, connection)
        _in_use.append(handed)
        token = _handed.set((handed, *_handed.get()))
        try:
            yield handed.turn
        finally:
            _handed.reset(token)
            _in_use.remove(handed)
            handed.over = True
            async with handed.turn:  # what is being written through it ends before its owner commits
                pass

    @abstractmethod
    def _check(self, connection: Any) -> None:
        """Raise TypeError where it is no connection of the storage's driver."""

    @abstractmethod
    def _in_transaction(self, connection: Any) -> bool:
        """Whether a transaction is open on it."""

    @abstractmethod
    async def _append_within(self, connection: Any, rows: Sequence[OutboxRow]) -> None:
        """Store the rows in the transaction of the caller's connection, all or none, and leave it usable."""

    @abstractmethod
    async def _append(self, rows: Sequence[OutboxRow]) -> None:
        """Store and commit the rows."""

    @abstractmethod
    async def claim(
        self, worker: str, *, limit: int = 500, lease_seconds: float = 60.0, past_dead: bool = True
    ) -> list[ClaimedEvent]:
        """Take up to `limit` events to send, the eldest first, for so long.

        Of one saga they are in order, and no other worker gets later ones while these are claimed; so several relays
        keep each saga's order. An event may be claimed twice, by a worker that takes longer than its lease. One whose
        headers can't be read is dead at once.

        Args:
            worker: A name that no other has at this time.
            limit: At most so many.
            lease_seconds: After so long, counted by the database's clock, others may claim them.
            past_dead: Whether events are given that come after a dead one of their saga.
        """

    @abstractmethod
    async def mark_sent(self, worker: str, event_ids: Collection[str]) -> int:
        """These are sent. Returns how many of them the worker still had claimed: of the rest others will know."""

    @abstractmethod
    async def release(self, worker: str, event_ids: Collection[str], reason: str | None = None) -> int:
        """These are not sent, and may be claimed again at once. Returns how many the worker still had claimed."""

    @abstractmethod
    async def mark_dead(self, worker: str, event_ids: Collection[str], reason: str) -> int:
        """These will not be sent, until somebody has them tried again. Returns how many the worker still had claimed."""

    @abstractmethod
    async def backlog(self) -> Backlog:
        """What waits, what is parked, and how old the eldest is that waits."""

    @abstractmethod
    async def parked(self, *, saga_id: str | None = None, limit: int = 1_000) -> list[ParkedEvent]:
        """The dead, the eldest first; of one saga, or of all."""

    @abstractmethod
    async def retry_parked(self, event_ids: Collection[str]) -> int:
        """These dead ones are pending again, in their old place. Returns how many were dead."""

    @abstractmethod
    async def discard_parked(self, event_ids: Collection[str]) -> int:
        """These dead ones are deleted, and block nothing any more. Returns how many were dead."""

    @abstractmethod
    async def purge(self, *, older_than_seconds: float, limit: int = 1_000) -> int:
        """Delete up to `limit` events that were sent so long ago. Returns how many; fewer than `limit`: no more are."""

    async def _readable(self, worker: str, rows: Sequence[Sequence[Any]]) -> list[ClaimedEvent]:
        """What was claimed, by position. One that can't be read would fail each claim for ever: it is dead."""
        events: list[ClaimedEvent] = []
        for row in rows:
            try:
                events.append(claimed_event(*row))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                reason = f"headers: no JSON object of texts with ce_subject ({type(error).__name__})"
                await self.mark_dead(worker, [str(row[1])], reason)
        return sorted(events)


def _rows(events: Sequence[SagaEvent]) -> tuple[list[OutboxRow], list[tuple[SagaEvent, str]]]:
    rows: list[OutboxRow] = []
    rejected: list[tuple[SagaEvent, str]] = []
    for event in events:
        try:
            rows.append(_row(event))
        except (ValueError, OverflowError, OSError) as error:  # of UUID, or of the date of ce_time
            rejected.append((event, f"event_id or timestamp: {error}"))
    return rows, rejected


def _row(event: SagaEvent) -> OutboxRow:
    saga_id = event.saga_id.encode("utf-8", "replace").decode()
    return OutboxRow(
        event_id=str(UUID(event.event_id)),
        saga_id=saga_id.replace("\0", "\N{REPLACEMENT CHARACTER}"),
        event_type=event.event_type.value,
        payload=encode(event),
        headers=json.dumps({name: value.decode() for name, value in headers(event)}),
    )


def claimed_event(position: int, event_id: str, payload: bytes, headers_json: str, attempts: int) -> ClaimedEvent:
    """A row as a relay sends it."""
    values = msgspec.json.decode(headers_json, type=dict[str, str])
    return ClaimedEvent(
        position=position,
        event_id=event_id,
        key=values["ce_subject"].encode(),
        payload=payload,
        headers=[(name, value.encode()) for name, value in values.items()],
        attempts=attempts,
    )
