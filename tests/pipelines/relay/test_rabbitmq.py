"""From an outbox to RabbitMQ, on a real server."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import aio_pika
import msgspec
import pytest

from pipelines.relay.ends import RelayError
from pipelines.relay.outbox import PostgresSource
from pipelines.relay.rabbitmq import RabbitMQTarget
from sagascope import PostgresOutbox
from sagascope.events import encode
from tests.pipelines.relay.conftest import relaying, sagas, sent, until, written
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import a_run
from tests.servers.rabbitmq import MAX_MESSAGE_BYTES, RabbitMQ, stopped_rabbitmq

if TYPE_CHECKING:
    from sagascope.events import SagaEvent


async def bound(url: str, exchange: str) -> Any:
    """A connection, and a queue with all that the exchange gets."""
    connection = await aio_pika.connect(url)
    channel = await connection.channel()
    made = await channel.declare_exchange(exchange, aio_pika.ExchangeType.TOPIC, durable=True)
    queue = await channel.declare_queue(f"{exchange}-all", durable=True)
    await queue.bind(made, "#")
    return connection, queue


async def messages(queue: Any, number: int) -> list[Any]:
    """So many, in order."""
    found = []
    async with asyncio.timeout(30), queue.iterator(no_ack=True) as incoming:
        async for message in incoming:
            found.append(message)
            if len(found) == number:
                break
    return found


async def append(dsn: str, events: list[SagaEvent]) -> None:
    """Committed when this returns."""
    outbox = PostgresOutbox(dsn)
    await outbox.append(events)
    await outbox.close()


def source(dsn: str) -> PostgresSource:
    """A relay's."""
    return PostgresSource(dsn, "PostgreSQL")


def test_messages_are_those_of_the_listener_and_poison_blocks_only_its_saga(
    dsn: str, rabbitmq_server: RabbitMQ
) -> None:
    """Bodies byte for byte, each saga in order, the listener's routing keys; too large a message is parked."""
    poison = make_event(saga_id="poisoned", attributes={"big": "x" * MAX_MESSAGE_BYTES})
    run, others = a_run("poisoned"), sagas(50)
    events = [*run[:2], poison, *run[2:], *others]

    async def main() -> None:
        connection, queue = await bound(rabbitmq_server.url, "relay-one")
        await append(dsn, events)
        opened = source(dsn)
        async with relaying(opened, RabbitMQTarget(rabbitmq_server.url, "RabbitMQ", "relay-one")) as figures:
            await until(lambda: sent(figures) == 2 + len(others))
            assert (await opened.backlog())._replace(lag_seconds=0) == (2, 0, 1, 2)
            assert await opened.discard_parked([poison.event_id]) == 1
            await until(lambda: sent(figures) == 4 + len(others))
        arrived = await messages(queue, 4 + len(others))
        await connection.close()
        bodies = {event.event_id: encode(event) for event in events}
        order: dict[str, list[str]] = {}
        for message in arrived:
            assert message.body == bodies[message.message_id]
            event = msgspec.json.decode(message.body)
            assert message.routing_key == f"{event['saga_name']}.{event['event_type']}"
            assert message.headers["cloudEvents:id"] == message.message_id
            order.setdefault(event["saga_id"], []).append(message.message_id)
        assert order == written([*run, *others])

    asyncio.run(main())


def test_a_server_that_is_killed_and_comes_back(dsn: str) -> None:
    """Events wait, none is parked, and each is in the queue in the end."""
    events = sagas(60)

    async def main() -> None:
        with stopped_rabbitmq() as server, ExitStack() as second:
            with server.running() as running:
                await (await bound(server.url, "relay-two"))[0].close()
                await append(dsn, events[:120])
                async with relaying(source(dsn), RabbitMQTarget(server.url, "RabbitMQ", "relay-two")) as figures:
                    await until(lambda: sent(figures) == 120)
                    await asyncio.to_thread(server.kill, running)
                    await append(dsn, events[120:])
                    await asyncio.sleep(3)
                    assert sent(figures) == 120
                    await asyncio.to_thread(second.enter_context, server.running())
                    await until(lambda: sent(figures) == len(events), 60)
                    connection, queue = await bound(server.url, "relay-two")
                    arrived = await messages(queue, len(events))
                    await connection.close()
            assert {message.message_id for message in arrived} == {event.event_id for event in events}

    asyncio.run(main())


def test_wrong_credentials_are_said(rabbitmq_server: RabbitMQ) -> None:
    """At once, without the password."""
    url = rabbitmq_server.url.replace("guest:guest", "guest:geheim")

    async def main() -> None:
        target = RabbitMQTarget(url, "RabbitMQ at home")
        with pytest.raises(RelayError, match="look at user, password and vhost") as caught:
            await target.open()
        assert "geheim" not in str(caught.value)
        await target.close()

    asyncio.run(main())
