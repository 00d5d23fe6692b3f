"""RabbitMQListener where something is wrong: exchanges, alarms, the wire, the broker, credentials."""

from __future__ import annotations

import asyncio

import aio_pika
import pytest

from pipelines.ports import free_port
from sagascope.delivery import TimeoutWrappedListener
from sagascope.errors import DeliveryError, ListenerTimeoutError, PartialError, TransientError
from sagascope.listeners.rabbitmq import RabbitMQListener
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import a_run, settle
from tests.sagascope.listeners.test_rabbitmq import aclosing, ids, name, reading, taken, url_at
from tests.servers.proxy import Fault, Proxy
from tests.servers.rabbitmq import RabbitMQ, stopped_rabbitmq

__all__ = ["name"]  # a fixture


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
                async with reading(server.url, name) as queue:
                    await settle(listener, after)  # at first its queues may still be on their way
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
