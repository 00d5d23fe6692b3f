"""RabbitMQListener on a real RabbitMQ server."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import aio_pika
import aiormq.exceptions
import pamqp.exceptions
import pytest

from sagascope.errors import PartialError, TransientError
from sagascope.events import EventType, SagaEvent, decode, encode, new_id
from sagascope.listeners import rabbitmq
from sagascope.listeners.rabbitmq import RabbitMQListener
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import NetworkedContract, a_run, exceptions_of
from tests.servers.rabbitmq import MAX_MESSAGE_BYTES, RabbitMQ

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

    from sagascope.listener import EventListener


def url_at(port: int) -> str:
    """Of a server on this machine."""
    return f"amqp://guest:guest@127.0.0.1:{port}/"


@pytest.fixture
def name() -> str:
    """Of an exchange, and of a queue, of this test alone."""
    return f"events-{new_id()}"


@asynccontextmanager
async def reading(url: str, name: str, *keys: str, **options: Any) -> AsyncIterator[AbstractQueue]:
    """A durable queue that is bound to the exchange, which is declared, by a client of its own."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(name, aio_pika.ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(name, durable=True, arguments=options)
        for key in keys:
            await queue.bind(exchange, key)
        yield queue


async def taken(queue: AbstractQueue) -> list[AbstractIncomingMessage]:
    """All that is in the queue, which is empty then."""
    messages = []
    while message := await queue.get(no_ack=True, fail=False):
        messages.append(message)
    return messages


def ids(messages: Sequence[AbstractIncomingMessage]) -> list[str | None]:
    """The event ids."""
    return [message.message_id for message in messages]


class TestRabbitMQ(NetworkedContract):
    """The laws of every listener, on the real broker."""

    name = "RabbitMQListener"
    drivers: ClassVar[Sequence[str]] = ("aio_pika",)
    extra = "rabbitmq"
    idempotent = False

    exchange = ""
    seen: list[str]

    def unopened(self, tmp_path: Path) -> EventListener:
        return RabbitMQListener(url_at(1))

    @asynccontextmanager
    async def at(self, port: int) -> AsyncIterator[EventListener]:
        async with aclosing(RabbitMQListener(url_at(port), self.exchange)) as listener:
            yield listener

    async def stored(self, port: int) -> list[str]:
        async with reading(url_at(port), self.exchange) as queue:
            self.seen += [decode(message.body).event_id for message in await taken(queue)]
        return self.seen

    @pytest.fixture(autouse=True)
    def server(self, rabbitmq_server: RabbitMQ) -> int:
        async def main() -> None:
            async with reading(rabbitmq_server.url, self.exchange, "#"):
                pass

        self.exchange, self.seen = f"events-{new_id()}", []
        asyncio.run(main())
        return rabbitmq_server.port


@asynccontextmanager
async def aclosing(listener: RabbitMQListener) -> AsyncIterator[RabbitMQListener]:
    """Not opened, but closed."""
    try:
        yield listener
    finally:
        await listener.close()


def test_a_message(rabbitmq_server: RabbitMQ, name: str) -> None:
    """Persistent JSON, with the event's id and type, and CloudEvents attributes by the AMQP binding, binary mode."""
    event = make_event(saga_id="order-ö/2", service="shop ü", timestamp=1_780_000_000_007)

    async def main() -> None:
        async with (
            reading(rabbitmq_server.url, name, "order.saga_started") as queue,
            RabbitMQListener(rabbitmq_server.url, name) as listener,
        ):
            await listener.write([event])
            (message,) = await taken(queue)
            assert message.body == encode(event)
            assert message.routing_key == "order.saga_started"
            assert message.message_id == event.event_id
            assert message.type == "saga_started"
            assert message.content_type == "application/json"
            assert message.delivery_mode is aio_pika.DeliveryMode.PERSISTENT
            assert message.headers == {
                "cloudEvents:specversion": "1.0",
                "cloudEvents:id": event.event_id,
                "cloudEvents:source": "shop%20%C3%BC",
                "cloudEvents:type": "sagascope.saga_started",
                "cloudEvents:subject": "order-ö/2",
                "cloudEvents:time": "2026-05-28T20:26:40.007Z",
            }

    asyncio.run(main())


def test_dots_in_a_name_are_words_of_the_routing_key(rabbitmq_server: RabbitMQ, name: str) -> None:
    """The last word is always the type; of a long name what fits AMQP's 255 bytes stays, in whole characters."""
    names = ["order", "shop.order", "a*b.#", "ö" * 200]
    events = [make_event(saga_name=saga_name, event_type=EventType.SAGA_FAILED) for saga_name in names]

    async def main() -> None:
        async with (
            reading(rabbitmq_server.url, name, "#.saga_failed") as queue,
            RabbitMQListener(rabbitmq_server.url, name) as listener,
        ):
            await listener.write(events)
            messages = await taken(queue)
            assert [decode(message.body).saga_name for message in messages] == names
            keys = [message.routing_key for message in messages]
            assert keys == [
                "order.saga_failed",
                "shop.order.saga_failed",
                "a*b.#.saga_failed",
                "ö" * 121 + ".saga_failed",
            ]

    asyncio.run(main())


def test_a_batch_keeps_its_order(rabbitmq_server: RabbitMQ, name: str) -> None:
    """500 events of one saga arrive in their order; so do those of several writers, each in its own."""
    events = [make_event(saga_id="o-1", run_id="r", sequence=n) for n in range(500)]

    async def main() -> None:
        async with (
            reading(rabbitmq_server.url, name, "#") as queue,
            RabbitMQListener(rabbitmq_server.url, name) as listener,
        ):
            await listener.write(events)
            assert ids(await taken(queue)) == [event.event_id for event in events]
            order = random.Random(5)
            writers: dict[str, list[SagaEvent]] = defaultdict(list)
            for _ in range(500):
                saga_id = order.choice("abcd")
                writers[saga_id].append(make_event(saga_id=saga_id, sequence=len(writers[saga_id])))

            async def tell(events: Sequence[SagaEvent]) -> None:
                for start in range(0, len(events), 7):
                    await listener.write(events[start : start + 7])

            await asyncio.gather(*map(tell, writers.values()))
            got: dict[str, list[str]] = defaultdict(list)
            for message in await taken(queue):
                event = decode(message.body)
                got[event.saga_id].append(event.event_id)
            assert got == {saga_id: [event.event_id for event in events] for saga_id, events in writers.items()}

    asyncio.run(main())


def test_what_no_queue_is_bound_for_is_named(rabbitmq_server: RabbitMQ, name: str) -> None:
    """Of a batch, exactly the events that nobody reads are to be tried again, and arrive once somebody does."""
    orders, refunds = a_run("o-1"), a_run("r-1", "refund")

    async def main() -> None:
        async with (
            reading(rabbitmq_server.url, name, "order.*") as queue,
            RabbitMQListener(rabbitmq_server.url, name) as listener,
        ):
            with pytest.raises(
                PartialError, match=r"took 4 of 8 events; the first not: PublishError.*NO_ROUTE"
            ) as raised:
                await listener.write([*orders[:2], *refunds, *orders[2:]])
            assert raised.value.retry == refunds
            assert raised.value.rejected == []
            with pytest.raises(TransientError, match=r"took 0 of 4 events.*NO_ROUTE"):
                await listener.write(refunds)
            await queue.bind(name, "refund.*")
            await listener.write(refunds)
            assert ids(await taken(queue)) == [event.event_id for event in orders + refunds]

    asyncio.run(main())


def test_an_exchange_whose_readers_choose(rabbitmq_server: RabbitMQ, name: str) -> None:
    """With mandatory=False an event that nobody reads is no error."""
    orders, refunds = a_run("o-1"), a_run("r-1", "refund")

    async def main() -> None:
        async with (
            reading(rabbitmq_server.url, name, "order.*") as queue,
            RabbitMQListener(rabbitmq_server.url, name, mandatory=False) as listener,
        ):
            await listener.write(refunds + orders)
            assert ids(await taken(queue)) == [event.event_id for event in orders]

    asyncio.run(main())


def test_what_a_full_queue_refuses_is_tried_again(rabbitmq_server: RabbitMQ, name: str) -> None:
    """A negative confirm is transient for the events it names, and those taken are not sent again."""
    events = a_run("o-1")
    full = {"x-max-length": 2, "x-overflow": "reject-publish"}

    async def main() -> None:
        async with (
            reading(rabbitmq_server.url, name, "#", **full) as queue,
            RabbitMQListener(rabbitmq_server.url, name) as listener,
        ):
            with pytest.raises(PartialError, match=r"DeliveryError.*Nack") as raised:
                await listener.write(events)
            arrived = ids(await taken(queue))
            assert {*arrived, *(event.event_id for event in raised.value.retry)} == {event.event_id for event in events}
            assert len(arrived) + len(raised.value.retry) == len(events)
            assert raised.value.rejected == []

    asyncio.run(main())


def test_what_amqp_has_no_room_for_costs_no_other_event(rabbitmq_server: RabbitMQ, name: str) -> None:
    """Identifiers beyond AMQP's limits, a time beyond the calendar, too large a body: rejected, each by itself."""
    good = a_run("o-1")
    bad = [
        make_event(event_id="i" * 256),
        make_event(saga_id="s" * 200_000),
        make_event(timestamp=2**63 - 1),
        make_event(attributes={"a": "x" * MAX_MESSAGE_BYTES}),
    ]

    async def main() -> None:
        async with (
            reading(rabbitmq_server.url, name, "#") as queue,
            RabbitMQListener(rabbitmq_server.url, name) as listener,
        ):
            with pytest.raises(PartialError) as raised:
                await listener.write([bad[0], good[0], bad[1], good[1], bad[2], bad[3], *good[2:]])
            assert raised.value.retry == []
            reasons = {event.event_id: reason for event, reason in raised.value.rejected}
            assert set(reasons) == {event.event_id for event in bad}
            assert reasons[bad[0].event_id].startswith("event_id: 256 bytes; allowed: 255")
            assert reasons[bad[1].event_id].startswith("saga_id and service: 200,")
            assert "year" in reasons[bad[2].event_id]
            assert "PRECONDITION_FAILED" in reasons[bad[3].event_id]
            arrived = ids(await taken(queue))
            assert list(dict.fromkeys(arrived)) == [event.event_id for event in good]

    asyncio.run(main())


def test_large_and_odd_values(rabbitmq_server: RabbitMQ, name: str) -> None:
    """A megabyte in a batch, a lone surrogate, zero bytes: all arrive as the event's JSON says them."""
    large = make_event(attributes={"a": "ü" * 500_000}, saga_id="s" * 50_000)
    odd = make_event(saga_id="\x00 {a}:\ud800", saga_name="\ud800.*", service="\x00\ud800")

    async def main() -> None:
        async with (
            reading(rabbitmq_server.url, name, "#") as queue,
            RabbitMQListener(rabbitmq_server.url, name) as listener,
        ):
            await listener.write([large, odd] * 5)
            assert [message.body for message in await taken(queue)] == [encode(large), encode(odd)] * 5

    asyncio.run(main())


@pytest.mark.parametrize("connect", [aio_pika.connect, aio_pika.connect_robust], ids=["plain", "robust"])
def test_a_connection_that_was_handed_over_is_its_owners(rabbitmq_server: RabbitMQ, name: str, connect: Any) -> None:
    """The listener opens and closes a channel of its own, and leaves the connection open."""

    async def main() -> None:
        async with reading(rabbitmq_server.url, name, "#") as queue, await connect(rabbitmq_server.url) as connection:
            listener = RabbitMQListener(connection, name)
            for saga_id in ("o-1", "o-2"):
                events = a_run(saga_id)
                await listener.write(events)
                assert ids(await taken(queue)) == [event.event_id for event in events]
                await listener.close()
                assert not connection.is_closed
            await connection.close()
            with pytest.raises(TransientError):
                await listener.write(a_run("o-3"))
            await listener.close()

    asyncio.run(main())


PERMANENT_CLASSES = {"ChannelPreconditionFailed"}
TRANSIENT_CLASSES = {
    "AMQPChannelError",
    "AMQPConnectionError",
    "AMQPError",
    "AuthenticationError",
    "ChannelAccessRefused",
    "ChannelClosed",
    "ChannelInvalidStateError",
    "ChannelLockedResource",
    "ChannelNotFoundEntity",
    "ConnectionChannelError",
    "ConnectionClosed",
    "ConnectionCommandInvalid",
    "ConnectionFrameError",
    "ConnectionInternalError",
    "ConnectionNotAllowed",
    "ConnectionNotImplemented",
    "ConnectionResourceError",
    "ConnectionSyntaxError",
    "ConnectionUnexpectedFrame",
    "DeliveryError",
    "DuplicateConsumerTag",
    "IncompatibleProtocolError",
    "InvalidFrameError",
    "MessageProcessError",
    "MethodNotImplemented",
    "ProbableAuthenticationError",
    "ProtocolSyntaxError",
    "PublishError",
    "QueueEmpty",
}


def test_every_exception_of_the_driver_has_a_rule() -> None:
    """Each class that aio-pika and aiormq name is transient or permanent; a new one fails here until it is decided."""
    classes = exceptions_of(aio_pika.exceptions, aiormq.exceptions)
    assert {kind.__name__ for kind in classes} <= PERMANENT_CLASSES | TRANSIENT_CLASSES
    for kind in classes:
        assert rabbitmq._is_permanent(aio_pika, kind.__new__(kind)) is (kind.__name__ in PERMANENT_CLASSES), kind
        assert issubclass(kind, aio_pika.exceptions.CONNECTION_EXCEPTIONS), kind
    protocol = exceptions_of(pamqp.exceptions)
    assert protocol
    for kind in protocol:
        assert issubclass(kind, aio_pika.exceptions.CONNECTION_EXCEPTIONS), kind
