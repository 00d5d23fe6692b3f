"""RabbitMQ as a source: what RabbitMQListener published, bridged to a topic of Kafka, so that it is analysed, too."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipelines.relay.ends import Outcome, RelayError, Source
from pipelines.relay.rabbitmq import is_refusal
from sagascope import SagaEvent, decode
from sagascope.cloudevents import headers
from sagascope.drivers import load
from sagascope.errors import TransientError
from sagascope.outbox.storage import Backlog, ClaimedEvent, ParkedEvent

if TYPE_CHECKING:
    from collections.abc import Collection

_CONNECT_SECONDS = 10.0
_RETURNS = 40
_PREFETCH = 10_000
"""So many messages are held here unacknowledged at most."""
REASON = "x-sagascope-reason"


class RabbitMQSource(Source):
    """A durable queue bound to the exchange, for all its messages; one is acknowledged once its event is published.

    The queue has one active consumer: of several bridges one works, and the others take over. What the target will
    never take, and what is no event, goes to the queue `…-parked`; what follows in its saga is sent all the same,
    as messages that wait here would keep all others from coming.
    """

    def __init__(self, url: str, where: str, exchange: str, queue: str = "sagascope-relay") -> None:
        super().__init__()
        self._url = url
        self._where = where
        self._exchange = exchange
        self._name = queue
        self._connection: Any = None
        self._channel: Any = None
        self._queue: Any = None
        self._waiting: dict[int, Any] = {}
        """Messages by their number, which grows as they come."""
        self._taken: dict[str, tuple[int, Any, SagaEvent]] = {}
        self._under_way: set[str] = set()
        self._number = 0

    def __str__(self) -> str:
        """Where it is, without credentials."""
        return f"queue {self._name} of {self._where}"

    async def open(self) -> None:
        await self._connect()
        await self._queue.consume(self._came)

    async def look(self) -> None:
        await self._connect()

    async def take(self, limit: int) -> list[ClaimedEvent]:
        if self._channel is None or self._channel.is_closed or self._connection.is_closed:
            await self.open()
        events: list[ClaimedEvent] = []
        passed: set[str] = set()
        for number, message in list(self._waiting.items()):
            if len(events) >= limit:
                break
            try:
                event = decode(message.body)
            except ValueError as error:
                del self._waiting[number]
                await self._park(message, f"no event: {error}")
                continue
            if event.saga_id in self._under_way or event.saga_id in passed:
                passed.add(event.saga_id)
                continue
            if event.event_id in self._taken:  # the same twice, in one batch: the second waits for the first
                passed.add(event.saga_id)
                continue
            del self._waiting[number]
            self._taken[event.event_id] = number, message, event
            key = event.saga_id.encode("utf-8", "replace")
            events.append(ClaimedEvent(number, event.event_id, key, message.body, headers(event), 1))
        self._under_way |= {self._taken[event.event_id][2].saga_id for event in events}
        return events

    async def settle(self, outcome: Outcome) -> None:
        reasons = {event.event_id: reason for event, reason in outcome.rejected}
        left = {event.event_id for event in outcome.left}
        for event in (*outcome.sent, *(event for event, _ in outcome.rejected), *outcome.left):
            if event.event_id not in self._taken:
                continue  # settled before a failure in between
            number, message, whole = self._taken[event.event_id]
            if event.event_id in reasons:
                await self._park(message, reasons[event.event_id])
            elif event.event_id in left:
                self._waiting[number] = message
            else:
                await self._acknowledge(message)
            del self._taken[event.event_id]
            self._under_way.discard(whole.saga_id)
        if outcome.left:
            self._waiting = dict(sorted(self._waiting.items()))

    async def backlog(self) -> Backlog:
        queue = await self._declared(self._name, passive=True)
        parked = await self._declared(f"{self._name}-parked", passive=True)
        held = [*self._waiting.values(), *(message for _, message, _ in self._taken.values())]
        stamps = [decode(message.body).timestamp for message in held[:1]] if held else []
        lag = max(0.0, time.time() - stamps[0] / 1000) if stamps else 0.0
        return Backlog(
            queue.declaration_result.message_count + len(held), lag, parked.declaration_result.message_count, 0
        )

    async def parked(self, *, saga_id: str | None = None, limit: int = 1_000) -> list[ParkedEvent]:
        found = await self._look_at_parked(limit, None, "")
        return [one for one in found if saga_id is None or one.saga_id == saga_id]

    async def retry_parked(self, event_ids: Collection[str]) -> int:
        return len(await self._look_at_parked(None, set(event_ids), self._name))

    async def discard_parked(self, event_ids: Collection[str]) -> int:
        return len(await self._look_at_parked(None, set(event_ids), ""))

    async def close(self) -> None:
        if self._connection is not None:
            with suppress(Exception):  # it is given up
                async with asyncio.timeout(2):
                    await self._connection.close()
        self._connection = self._channel = None

    async def _connect(self) -> None:
        aio_pika = load("aio_pika", needed_by="the relay", package="aio-pika", extra="rabbitmq")
        await self.close()
        self._waiting.clear()  # they come again
        self._taken.clear()
        self._under_way.clear()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                self._connection = await aio_pika.connect(self._url)
                self._channel = await self._connection.channel(on_return_raises=True)
                await self._channel.set_qos(_PREFETCH)
                exchange = await self._channel.declare_exchange(self._exchange, "topic", durable=True)
                self._queue = await self._declared(self._name)
                await self._queue.bind(exchange, "#")
                await self._declared(f"{self._name}-parked")
        except TimeoutError:
            msg = f"{self._where} does not answer within {_CONNECT_SECONDS:.0f} s"
            raise TransientError(msg) from None
        except aio_pika.exceptions.CONNECTION_EXCEPTIONS as error:
            said = f"{type(error).__name__}: {error}"[:300]
            if is_refusal(error):
                msg = (
                    f"{self._where} refuses ({said}): look at user, password and vhost of --from, and the user's rights"
                )
                raise RelayError(msg) from None
            msg = f"{self._where}: {said}"
            raise TransientError(msg) from None

    async def _declared(self, name: str, *, passive: bool = False) -> Any:
        aio_pika = load("aio_pika", needed_by="the relay", package="aio-pika", extra="rabbitmq")
        if self._channel is None:
            msg = f"{self._where}: not connected"
            raise TransientError(msg)
        single = {"x-single-active-consumer": True} if name == self._name else {}
        try:
            return await self._channel.declare_queue(name, durable=True, arguments=single, passive=passive)
        except aio_pika.exceptions.CONNECTION_EXCEPTIONS as error:
            if not passive:
                raise
            msg = f"{self._where}: {type(error).__name__}: {error}"[:300]
            raise TransientError(msg) from None

    async def _came(self, message: Any) -> None:
        self._number += 1
        self._waiting[self._number] = message
        self.woken.set()

    async def _acknowledge(self, message: Any) -> None:
        with suppress(Exception):  # the channel is closed: it comes again, with the same id
            await message.ack()

    async def _park(self, message: Any, reason: str) -> None:
        await self._move(message, f"{self._name}-parked", {REASON: reason[:500]})

    async def _move(self, message: Any, queue: str, more: dict[str, str]) -> None:
        """To another queue, there before it leaves its own."""
        aio_pika = load("aio_pika", needed_by="the relay", package="aio-pika", extra="rabbitmq")
        kept = {name: value for name, value in (message.headers or {}).items() if name != REASON}
        copy = aio_pika.Message(
            message.body,
            headers=kept | more,
            content_type=message.content_type,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=message.message_id,
            type=message.type,
        )
        try:
            await self._channel.default_exchange.publish(copy, routing_key=queue)
        except (*aio_pika.exceptions.CONNECTION_EXCEPTIONS, aio_pika.exceptions.DeliveryError) as error:
            msg = f"{self._where}: {type(error).__name__}"
            raise TransientError(msg) from None
        await self._acknowledge(message)

    async def _look_at_parked(self, limit: int | None, chosen: set[str] | None, to: str) -> list[ParkedEvent]:
        """Go through the parked once: those chosen leave, to a queue or for good, the others stay."""
        queue = await self._declared(f"{self._name}-parked", passive=True)
        found: list[ParkedEvent] = []
        kept = []
        for _ in range(queue.declaration_result.message_count):
            message = await queue.get(fail=False)
            if message is None or (limit is not None and len(found) >= limit):
                break
            one = _parked(message)
            if chosen is None or one.event_id not in chosen:
                kept.append(message)
            elif to:
                await self._move(message, to, {})
            else:
                await self._acknowledge(message)
            if chosen is None or one.event_id in chosen:
                found.append(one)
        for message in kept:
            await message.nack(requeue=True)
        for _ in range(_RETURNS):  # the broker puts them back in its own time, and who asks next is to see them
            queue = await self._declared(f"{self._name}-parked", passive=True)
            if queue.declaration_result.message_count >= len(kept):
                break
            await asyncio.sleep(0.05)
        return found


def _parked(message: Any) -> ParkedEvent:
    reason = str((message.headers or {}).get(REASON, ""))
    try:
        event = decode(message.body)
    except ValueError:
        return ParkedEvent(str(message.message_id or ""), "", str(message.type or ""), 1, "", reason)
    return ParkedEvent(event.event_id, event.saga_id, event.event_type.value, 1, "", reason)
