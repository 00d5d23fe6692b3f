"""The bridge: RabbitMQ to Kafka, on real servers."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

import aio_pika
import pytest

from pipelines.relay.amqp import RabbitMQSource
from pipelines.relay.work import Pace
from sagascope import RabbitMQListener
from tests.pipelines.relay.conftest import SLOW, Topic, firsts, process, relaying, sagas, sent, until, written
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import a_run

if TYPE_CHECKING:
    from pathlib import Path

    from sagascope.events import SagaEvent
    from tests.servers.rabbitmq import RabbitMQ

pytestmark = pytest.mark.broker


@pytest.fixture
def name() -> str:
    """Of an exchange and a queue of their own."""
    return f"bridge-{uuid.uuid4().hex[:8]}"


def source(server: RabbitMQ, name: str) -> RabbitMQSource:
    """A bridge's."""
    return RabbitMQSource(server.url, "RabbitMQ", name, name)


async def bind(server: RabbitMQ, name: str) -> None:
    """Have the queue made, as the first start of a bridge does."""
    opened = source(server, name)
    await opened.look()
    await opened.close()


async def publish(server: RabbitMQ, name: str, events: list[SagaEvent]) -> None:
    """As a service does."""
    async with RabbitMQListener(server.url, name) as listener:
        await listener.write(events)


def test_what_services_publish_is_in_the_topic(rabbitmq_server: RabbitMQ, name: str, topic: Topic) -> None:
    """Each saga in order; what is no event, or too large for the topic, is parked and dealt with, and nothing is lost."""
    poison = make_event(saga_id="poisoned", attributes={"big": "ö" * 30_000})
    run, others = a_run("poisoned"), sagas(50)

    async def main() -> None:
        await bind(rabbitmq_server, name)
        await publish(rabbitmq_server, name, [*run[:2], poison, *run[2:], *others])
        connection = await aio_pika.connect(rabbitmq_server.url)
        exchange = await (await connection.channel()).get_exchange(name)
        await exchange.publish(aio_pika.Message(b"no event", message_id="strange"), "x")
        await connection.close()
        opened = source(rabbitmq_server, name)
        async with relaying(opened, topic.target(), Pace(poll_seconds=60, pass_on=True)) as figures:
            await until(lambda: sent(figures) == len(run) + len(others))
            await publish(rabbitmq_server, name, a_run("later"))  # wakes it
            await until(lambda: sent(figures) == len(run) + len(others) + 4)
        opened = source(rabbitmq_server, name)
        await opened.look()
        assert (await opened.backlog())[::2] == (0, 2)
        parked = {one.event_id: one.reason for one in await opened.parked()}
        assert "MessageSizeTooLarge" in parked[poison.event_id]
        assert "no event" in parked["strange"]
        assert await opened.discard_parked(["strange"]) == 1
        assert await opened.retry_parked([poison.event_id]) == 1
        assert (await opened.backlog())[::2] == (1, 0)
        await opened.close()

    asyncio.run(main())
    assert firsts(topic.records(208))["poisoned"] == written(run)["poisoned"]
    assert {key: ids for key, ids in firsts(topic.records(208)).items() if key.startswith("order")} == written(others)


def test_a_killed_bridge_loses_nothing_and_the_next_takes_over(
    rabbitmq_server: RabbitMQ, name: str, topic: Topic, tmp_path: Path
) -> None:
    """A message is acknowledged only when its event is published: the stand-by has it again, in order."""
    events = sagas(500)
    url = f"{rabbitmq_server.url}?exchange={name}&queue={name}"

    async def main() -> None:
        await bind(rabbitmq_server, name)
        with process(tmp_path, "--from", url, "--to", topic.url) as first:
            await publish(rabbitmq_server, name, events[:1_000])
            await asyncio.to_thread(topic.records, 10)
            first.kill()
        async with relaying(source(rabbitmq_server, name), topic.target(), SLOW):
            await publish(rabbitmq_server, name, events[1_000:])
            await asyncio.to_thread(topic.records, len(events))
            async with asyncio.timeout(60):
                while firsts(await asyncio.to_thread(topic.records)) != written(events):  # noqa: ASYNC110 - the broker's doing
                    await asyncio.sleep(0.2)

    asyncio.run(main())
