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

from sagascope.delivery import TimeoutWrappedListener
from sagascope.errors import DeliveryError, ListenerTimeoutError, PartialError, TransientError
from sagascope.events import EventType, SagaEvent, decode, encode, new_id
from sagascope.listeners import rabbitmq
from sagascope.listeners.rabbitmq import RabbitMQListener
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import NetworkedContract, a_run, exceptions_of
from tests.servers.proxy import Fault, Proxy
from tests.servers.rabbitmq import MAX_MESSAGE_BYTES, RabbitMQ, rabbitmq_server, stopped_rabbitmq
from tests.servers.server import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from aio_pika.abc import AbstractIncomingMessage, AbstractQueue

    from sagascope.listener import EventListener

__all__ = ["rabbitmq_server"]  # a fixture


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
    module = "sagascope.listeners.rabbitmq"
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


def test_a_channel_that_the_broker_closed_is_opened_again(rabbitmq_server: RabbitMQ, name: str) -> None:
    """An exchange that was deleted closes the channel: transient, and the next write declares it anew."""
    events = a_run("o-1")

    async def main() -> None:
        async with (
            reading(rabbitmq_server.url, name, "#") as queue,
            RabbitMQListener(rabbitmq_server.url, name) as listener,
        ):
            await listener.write(events)
            await queue.channel.exchange_delete(name)
            with pytest.raises(TransientError, match="ChannelNotFoundEntity"):
                await listener.write(events)
            with pytest.raises(TransientError, match="NO_ROUTE"):  # it is there again, without its bindings
                await listener.write(events)
            await queue.bind(name, "#")
            await listener.write(events)
            assert ids(await taken(queue)) == [event.event_id for event in events] * 2

    asyncio.run(main())


def test_an_exchange_of_another_kind_is_said(rabbitmq_server: RabbitMQ, name: str) -> None:
    """An exchange of another type is said, and may be set right; without declaring it is used as it is."""
    events = a_run("o-1")

    async def main() -> None:
        async with await aio_pika.connect(rabbitmq_server.url) as connection:
            channel = await connection.channel()
            await channel.declare_exchange(name, aio_pika.ExchangeType.FANOUT, durable=True)
            queue = await channel.declare_queue(name)
            await queue.bind(name)
            async with aclosing(RabbitMQListener(rabbitmq_server.url, name)) as listener:
                with pytest.raises(TransientError, match="PRECONDITION_FAILED - inequivalent arg 'type'"):
                    await listener.write(events)
            async with RabbitMQListener(rabbitmq_server.url, name, declare=False) as listener:
                await listener.write(events)
            assert len(await taken(queue)) == len(events)

    asyncio.run(main())


def test_a_blocked_connection_waits_and_sends_nothing_more(rabbitmq_server: RabbitMQ, name: str) -> None:
    """In an alarm a write ends with its caller's patience; retries add nothing to what the broker has yet to read."""
    first, second = a_run("o-1"), a_run("o-2")

    async def main() -> None:
        async with (
            reading(rabbitmq_server.url, name, "#") as queue,
            RabbitMQListener(rabbitmq_server.url, name) as inner,
        ):
            listener = TimeoutWrappedListener(inner, timeout_ms=700)
            await asyncio.to_thread(rabbitmq_server.ctl, "set_vm_memory_high_watermark", "absolute", "1")
            try:
                for _ in range(4):
                    async with asyncio.timeout(10):
                        with pytest.raises(ListenerTimeoutError):
                            await listener.write(first)
                waiting = asyncio.create_task(inner.write(second))
            finally:
                await asyncio.to_thread(rabbitmq_server.ctl, "set_vm_memory_high_watermark", "absolute", "512MB")
            async with asyncio.timeout(30):
                await waiting
            assert ids(await taken(queue)) == [event.event_id for event in first + second]

    asyncio.run(main())


def test_a_close_while_blocked_ends(rabbitmq_server: RabbitMQ, name: str) -> None:
    """Neither a close nor another listener's first write hangs on a broker that reads nothing."""

    async def main() -> None:
        async with reading(rabbitmq_server.url, name, "#"):
            listener = RabbitMQListener(rabbitmq_server.url, name)
            await listener.open()
            await asyncio.to_thread(rabbitmq_server.ctl, "set_vm_memory_high_watermark", "absolute", "1")
            try:
                with pytest.raises(ListenerTimeoutError):
                    await TimeoutWrappedListener(listener, timeout_ms=500).write(a_run("o-1"))
                async with asyncio.timeout(10):
                    await listener.close()
            finally:
                await asyncio.to_thread(rabbitmq_server.ctl, "set_vm_memory_high_watermark", "absolute", "512MB")

    asyncio.run(main())


def test_a_wire_that_dies_in_mid_batch_loses_nothing(rabbitmq_server: RabbitMQ, name: str) -> None:
    """What is raised to be tried again, and what is not, together are the batch: none is lost, order is kept."""
    events = [make_event(saga_id="o-1", sequence=n, attributes={"a": "x" * 20_000}) for n in range(500)]

    async def main() -> None:
        async with reading(rabbitmq_server.url, name, "#") as queue, Proxy(rabbitmq_server.port) as proxy:
            listener = RabbitMQListener(url_at(proxy.port), name)
            await listener.open()
            writing = asyncio.create_task(listener.write(events))
            while (await queue.declare()).message_count == 0:  # noqa: ASYNC110 - of a server there is no asyncio.Event
                await asyncio.sleep(0)
            proxy.fault = Fault.RESET
            with pytest.raises(DeliveryError) as raised:
                await writing
            left = raised.value.retry if isinstance(raised.value, PartialError) else events
            assert 0 < len(left) <= len(events)
            proxy.fault = Fault.NONE
            await listener.write(left)
            arrived = ids(await taken(queue))
            assert list(dict.fromkeys(arrived)) == [event.event_id for event in events]
            await listener.close()

    asyncio.run(main())


def test_a_broker_killed_and_restarted(name: str) -> None:
    """What was confirmed survives a kill; writes fail as transient meanwhile, and go on by themselves."""
    before, after = a_run("o-1"), a_run("o-2")

    async def main(server: RabbitMQ) -> None:
        async with aclosing(RabbitMQListener(server.url, name)) as listener:
            with server.running() as process:
                async with reading(server.url, name, "#"):
                    pass
                await listener.write(before)
                server.kill(process)
                with pytest.raises(TransientError):
                    await listener.write(after)
            with pytest.raises(TransientError):
                await listener.write(after)
            with server.running():
                await listener.write(after)
                async with reading(server.url, name) as queue:
                    assert ids(await taken(queue)) == [event.event_id for event in before + after]

    with stopped_rabbitmq() as server:
        asyncio.run(main(server))


def test_credentials_are_never_said(rabbitmq_server: RabbitMQ, caplog: pytest.LogCaptureFixture) -> None:
    """Refused credentials are transient, as they may be set right; neither the error nor a log record has them."""

    async def main() -> None:
        url = f"amqp://shop:wr0ng-s3cret@127.0.0.1:{rabbitmq_server.port}/"
        with pytest.raises(TransientError, match="ACCESS_REFUSED") as raised:
            await RabbitMQListener(url).write(a_run("o-1"))
        assert "s3cret" not in str(raised.value)
        with pytest.raises(TransientError) as raised:
            await RabbitMQListener(f"amqp://shop:wr0ng-s3cret@127.0.0.1:{free_port()}/").write(a_run("o-1"))
        assert "s3cret" not in str(raised.value)

    asyncio.run(main())
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "redis://shop:s3cret@localhost/",
        "shop:s3cret@localhost",
        "amqp://shop:s3cret/x@localhost/",
        "amqp://shop:s3cret#x@localhost/",
        "amqp://shop:s3cret@localhost:port/",
        "amqp://shop:s3cret@[localhost/",
        "amqp://",
        "",
    ],
)
def test_a_url_that_is_none_is_refused_without_being_said(url: str) -> None:
    """At construction, naming what is allowed, and nothing of what may be a password."""
    with pytest.raises(ValueError, match="url: allowed: amqp") as raised:
        RabbitMQListener(url)
    assert "s3cret" not in str(raised.value)


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
