"""Saga events to a topic exchange of RabbitMQ.

Needs the extra `sagascope[rabbitmq]` (aio-pika).

    listener = RabbitMQListener("amqp://shop:secret@rabbit.internal/")
    async with FanOut([listener]) as fan_out:
        await OrderSaga(listeners=[fan_out]).run(context)
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from sagascope.cloudevents import headers
from sagascope.drivers import load
from sagascope.errors import PartialError, TransientError
from sagascope.events import SagaEvent, encode
from sagascope.listener import EventListener

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from aio_pika import Message
    from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
    from aiormq.abc import AbstractConnection as Wire

_SHORT_STRING_BYTES = 255
"""The longest routing key, and the longest message_id, of AMQP 0-9-1."""
_OTHER_PROPERTIES_BYTES = 2_048
"""What a message's properties take at most besides the texts that a service chooses."""
_CLOSE_SECONDS = 5.0
"""What a close waits for a broker that does not answer."""


class _Link(NamedTuple):
    """All that a write goes through. Made anew as a whole when any of it is closed."""

    connection: AbstractConnection
    channel: AbstractChannel
    exchange: AbstractExchange
    wire: Wire
    """The driver's connection below, which knows whether it is blocked."""

    @property
    def is_closed(self) -> bool:
        return self.wire.is_closed or self.channel.is_closed


class RabbitMQListener(EventListener):
    """Publishes each event, persistent, to a durable topic exchange; CloudEvents 1.0 attributes in the headers.

    The routing key is `saga_name.event_type`. Dots in a name stay, and separate words as any dots do; a type has none.
    So `#.saga_failed` binds the failures of all sagas, `order.*` the events of `order`, `shop.#` those of `shop` and of
    every name that begins with `shop.`. AMQP allows 255 bytes: of a longer name the beginning stays, and the type.

    The body is the event's JSON, message_id its event_id, type its event_type. The attributes are the headers
    `cloudEvents:id` and so on, as the AMQP protocol binding 1.0.2 for CloudEvents names them (section 3.1.3, binary
    mode), all in canonical string form.

    Guarantee: at least once. `write` returns once the broker has confirmed every event of the batch: a durable queue
    has it on disk, a quorum queue on a majority of its nodes. What was not confirmed is raised, to be tried again, and
    may then be there twice: a duplicate has the message_id of the first. Events are published in the order given, over
    all calls of one listener, so each queue has a saga's events in order; one that is tried again comes behind those
    that were confirmed meanwhile, and its `sequence` tells. Where RabbitMQ is down, `write` raises TransientError, and
    the next write connects again; nothing is held here. While it blocks publishers (an alarm of memory or disk),
    `write` waits for as long as its caller lets it, and sends nothing more.

    An event that no queue is bound for is an error with `mandatory`, a transient one: somebody may bind a queue while
    it waits. Nobody did: it ends as a dead letter, as what was tried in vain does.
    """

    def __init__(
        self,
        url_or_connection: str | AbstractConnection,
        exchange: str = "saga-events",
        *,
        declare: bool = True,
        mandatory: bool = True,
    ) -> None:
        """Do no I/O yet.

        Args:
            url_or_connection: amqp://user:password@host:port/vhost or amqps://…, options of aio-pika (heartbeat …) as
                its query; or a connection of aio-pika, which its owner closes, and makes anew where it is lost.
            exchange: The topic exchange.
            declare: Whether to declare it, durable, with each connection; else it has to be there.
            mandatory: Whether an event that no queue is bound for is an error. False: the broker drops it, which suits
                an exchange whose readers bind what they want, where some events are wanted by nobody.

        Raises:
            ValueError: a URL that is none. The message is without it, because of the password.
        """
        if isinstance(url_or_connection, str):
            _check(url_or_connection)
        self.exchange = exchange
        self._url_or_connection = url_or_connection
        self._declare = declare
        self._mandatory = mandatory
        self._link: _Link | None = None
        self._in_doubt = False
        """Whether a write was cancelled while it waited for the link's answer: it may be slow, or dead."""
        self._opening = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connect, open a channel with publisher confirms, declare the exchange; all that is not open yet.

        Raises:
            ModuleNotFoundError: aio-pika is not installed.
            TransientError: the broker could not be reached, or refused.
        """
        await self._linked(_driver())

    async def write(self, events: Sequence[SagaEvent]) -> None:
        if not events:
            return
        aio_pika = _driver()
        link = await self._linked(aio_pika)
        sendable: list[tuple[SagaEvent, Message]] = []
        rejected: list[tuple[SagaEvent, str]] = []
        for event in events:
            try:
                sendable.append((event, _message(aio_pika, event, link.wire.connection_tune.frame_max)))
            except ValueError as error:
                rejected.append((event, str(error)))
        unconfirmed = await self._publish(link, sendable)
        if len(unconfirmed) > 1 and any(_is_permanent(aio_pika, error) for *_, error in unconfirmed):
            # one is larger than the broker allows, which closes the channel over the others, too: each by itself
            again, unconfirmed = unconfirmed, []
            for event, message, _ in again:
                unconfirmed += await self._publish(await self._linked(aio_pika), [(event, message)])
        retry = [event for event, _, error in unconfirmed if not _is_permanent(aio_pika, error)]
        rejected += [(event, _said(error)) for event, _, error in unconfirmed if _is_permanent(aio_pika, error)]
        if retry or rejected:
            first = _said(unconfirmed[0][2]) if unconfirmed else rejected[0][1]
            taken = len(events) - len(retry) - len(rejected)
            msg = f"RabbitMQ took {taken} of {len(events)} events; the first not: {first}"
            if len(retry) == len(events):
                raise TransientError(msg)
            raise PartialError(msg, retry=retry, rejected=rejected)

    async def close(self) -> None:
        """Disconnect; from a broker that does not answer, after five seconds. A later write connects again."""
        self._end_link()
        if self._ending:
            _, unanswered = await asyncio.wait(self._ending, timeout=_CLOSE_SECONDS)
            for task in unanswered:
                task.cancel()

    async def _publish(
        self, link: _Link, sendable: Sequence[tuple[SagaEvent, Message]]
    ) -> list[tuple[SagaEvent, Message, BaseException]]:
        """Publish all, then wait for all confirms; returns what was not confirmed, and why.

        The order is kept because tasks start in the order they are made, and the first thing each waits for is the
        channel's lock, which is given in the order it is asked for.
        """
        try:
            answers = await asyncio.gather(
                *(
                    link.exchange.publish(message, _routing_key(event), mandatory=self._mandatory)
                    for event, message in sendable
                ),
                return_exceptions=True,
            )
        except asyncio.CancelledError:
            self._in_doubt = self._in_doubt or link is self._link
            raise
        return [
            (event, message, answer)
            for (event, message), answer in zip(sendable, answers, strict=True)
            if isinstance(answer, BaseException)
        ]

    async def _linked(self, aio_pika: ModuleType) -> _Link:
        """The link, made where there is none that works; waits while it is blocked."""
        async with self._opening:
            while True:
                link = self._link
                if link is None:
                    self._link = await self._connect(aio_pika)
                elif link.is_closed:
                    self._end_link()
                elif await _is_blocked(link.wire):
                    await _unblocked_or_closed(link.wire)
                    self._in_doubt = False  # that is why there was no answer
                elif self._in_doubt:
                    self._end_link()
                else:
                    return link

    async def _connect(self, aio_pika: ModuleType) -> _Link:
        connection = channel = None
        try:
            if isinstance(self._url_or_connection, str):
                connection = await aio_pika.connect(self._url_or_connection)
            else:
                connection = self._url_or_connection
            # not connection.channel(): a robust one would wait for its connection where a write is to fail
            channel = aio_pika.Channel(connection, publisher_confirms=True, on_return_raises=True)
            await channel.initialize()
            if self._declare:
                exchange = await channel.declare_exchange(self.exchange, aio_pika.ExchangeType.TOPIC, durable=True)
            else:
                exchange = await channel.get_exchange(self.exchange, ensure=False)
            return _Link(connection, channel, exchange, (await channel.get_underlay_channel()).connection)
        except BaseException as error:
            self._end(connection, channel)
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task and not task.cancelling():
                msg = "RabbitMQ: the connection was closed while it was opened"  # which the driver tells in this way
                raise TransientError(msg) from error
            if isinstance(error, aio_pika.exceptions.CONNECTION_EXCEPTIONS):
                msg = f"RabbitMQ: {_said(error)}"
                raise TransientError(msg) from error
            raise

    def _end_link(self) -> None:
        link, self._link, self._in_doubt = self._link, None, False
        if link is not None:
            self._end(link.connection, link.channel)

    def _end(self, connection: AbstractConnection | None, channel: AbstractChannel | None) -> None:
        """Close what is ours, with nobody waiting: a peer that is gone answers late, or never."""
        ours = connection if isinstance(self._url_or_connection, str) else channel
        if ours is not None:
            task = asyncio.create_task(_closed(ours))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


def _driver() -> Any:
    return load("aio_pika", needed_by="RabbitMQListener", package="aio-pika", extra="rabbitmq")


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"amqp", "amqps"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none: often a part of a password
        valid = False
    if not valid:
        msg = "url: allowed: amqp[s]://user:password@host:port/vhost, with / # ? @ in a password as %2F %23 %3F %40"
        raise ValueError(msg)


def _message(aio_pika: ModuleType, event: SagaEvent, frame_max: int) -> Message:
    """The event as a message.

    Raises:
        ValueError: AMQP has no room for an identifier, or CloudEvents none for the time.
    """
    attributes = {name: value for name, value in headers(event) if name.startswith("ce_")}
    if len(attributes["ce_id"]) > _SHORT_STRING_BYTES:
        msg = f"event_id: {len(attributes['ce_id']):,} bytes; allowed: {_SHORT_STRING_BYTES}, as an AMQP message_id"
        raise ValueError(msg)
    size, room = sum(map(len, attributes.values())), frame_max - _OTHER_PROPERTIES_BYTES
    if 0 < room < size:  # such a frame would make the broker close the connection
        msg = f"saga_id and service: {size:,} bytes; allowed: {room:,}, as headers have to fit in one AMQP frame"
        raise ValueError(msg)
    message: Message = aio_pika.Message(
        encode(event),
        headers={f"cloudEvents:{name.removeprefix('ce_')}": value.decode() for name, value in attributes.items()},
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=attributes["ce_id"].decode(),
        type=event.event_type.value,
    )
    return message


def _routing_key(event: SagaEvent) -> str:
    name, suffix = event.saga_name.encode("utf-8", "replace"), f".{event.event_type}"
    return name[: _SHORT_STRING_BYTES - len(suffix)].decode("utf-8", "ignore") + suffix


async def _is_blocked(wire: Wire) -> bool:
    """Whether the broker has asked to publish nothing for now."""
    try:
        async with asyncio.timeout(0):
            await wire.ready()
    except TimeoutError:
        return True
    return False


async def _unblocked_or_closed(wire: Wire) -> None:
    unblocked = asyncio.ensure_future(wire.ready())
    try:
        await asyncio.wait({unblocked, wire.closing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        unblocked.cancel()


async def _closed(resource: AbstractConnection | AbstractChannel) -> None:
    with suppress(Exception):  # it is given up
        await resource.close()


def _is_permanent(aio_pika: ModuleType, error: BaseException) -> bool:
    """Whether the same message will always fail.

    That is so of one that the broker finds too large, which it calls a failed precondition. All else is about the
    connection, the broker's state (a full queue, no queue) or its set-up (credentials, permissions, the exchange),
    which may change while the events wait.
    """
    return isinstance(error, aio_pika.exceptions.ChannelPreconditionFailed)


def _said(error: BaseException) -> str:
    """The error, without the driver's objects in it."""
    kind = type(error).__name__
    told = "" if isinstance(error, RuntimeError | asyncio.CancelledError) else str(error)
    return f"{kind}: {told}"[:300] if told else f"{kind}: the channel is closed"
