"""sagaz's own worker, its own brokers, and one topic."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import aio_pika
import pytest
from sagaz.core.outbox import OutboxWorker
from sagaz.core.outbox.brokers.rabbitmq import RabbitMQBroker, RabbitMQBrokerConfig
from sagaz.core.storage.backends.postgresql import PostgreSQLOutboxStorage

from sagascope.integrations.sagaz_broker import OneTopicBroker
from tests.warehouse.imports.outboxes import run_sagas

if TYPE_CHECKING:
    from tests.servers.postgresql import PostgresServer
    from tests.servers.rabbitmq import RabbitMQ


def test_the_worker_publishes_all_to_one_topic(postgresql: PostgresServer, rabbitmq_server: RabbitMQ) -> None:
    """Real sagas, sagaz's outbox, worker and broker: each row is one message, and each has the one routing key."""
    dsn = postgresql.dsn(postgresql.create_database())

    async def main() -> None:
        connection = await aio_pika.connect(rabbitmq_server.url)
        channel = await connection.channel()
        exchange = await channel.declare_exchange("sage.outbox", aio_pika.ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue("one-topic", auto_delete=True)
        await queue.bind(exchange, "#")
        broker = OneTopicBroker(RabbitMQBroker(RabbitMQBrokerConfig(url=rabbitmq_server.url)), topic="all")
        async with PostgreSQLOutboxStorage(dsn) as storage:
            await storage.initialize()
            await broker.connect()
            assert broker.is_connected
            await run_sagas(storage)
            published = await OutboxWorker(storage, broker).process_batch()
        messages = []
        async with asyncio.timeout(20), queue.iterator(no_ack=True) as incoming:
            async for message in incoming:
                messages.append(message)
                if len(messages) == published:
                    break
        assert {message.routing_key for message in messages} == {"all"}
        assert len({json.loads(message.body)["event_id"] for message in messages}) == published > 10
        assert {json.loads(message.body)["event_type"] for message in messages} >= {
            "shop.pay.completed",
            "shop.completed",
        }
        await broker.close()
        await connection.close()

    asyncio.run(main())


def test_a_topic_must_be_named() -> None:
    """An empty name would have each event's type be its topic again."""
    with pytest.raises(ValueError, match="allowed: a topic's name"):
        OneTopicBroker(None, "")
