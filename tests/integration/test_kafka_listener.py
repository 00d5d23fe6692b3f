"""KafkaListener on a real broker, also one that dies in between."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from kafka import KafkaConsumer, TopicPartition

from pipelines import stack
from sagascope import KafkaListener, SagaEvent, saga_scope
from tests import oracle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from warehouse.settings import Settings

pytestmark = pytest.mark.broker


class Keeping(KafkaListener):
    """Keeps what it was given, beside sending it."""

    kept: list[SagaEvent]

    async def write(self, events: Sequence[SagaEvent]) -> None:
        self.kept = [*getattr(self, "kept", []), *events]
        await super().write(events)


async def _runs(listener: KafkaListener, number: int) -> None:
    for n in range(number):
        async with saga_scope(f"saga-{n}", "order", listeners=[listener], service="shop") as saga:
            await saga.started({"customer": "secret"})
            await saga.step_started("pay")
            await saga.step_completed("pay")
            await saga.completed()


def test_every_event_arrives_in_order_keyed_and_described(settings: Settings) -> None:
    """The record is the event: key saga_id, a saga's events in one partition and in order, CloudEvents headers."""

    async def run() -> Keeping:
        async with Keeping(settings.bootstrap_servers, settings.topic) as listener:
            await _runs(listener, 500)
        return listener

    listener = asyncio.run(run())
    assert listener.counts == (2_000, 2_000, 0)
    consumer = KafkaConsumer(bootstrap_servers=settings.bootstrap_servers, enable_auto_commit=False)
    consumer.assign([TopicPartition(settings.topic, n) for n in range(settings.partitions)])
    consumer.seek_to_beginning()
    records: list[Any] = []
    while len(records) < 2_000:
        batches = consumer.poll(timeout_ms=5_000)
        assert batches, f"only {len(records)} records"
        records += [record for batch in batches.values() for record in batch]
    consumer.close()

    arrived = oracle.read_topic(settings).events
    assert sorted(arrived, key=lambda e: e.event_id) == sorted(listener.kept, key=lambda e: e.event_id)
    places: dict[bytes, set[int]] = {}
    for record in records:
        places.setdefault(record.key, set()).add(record.partition)
    assert len(places) == 500
    assert all(len(partitions) == 1 for partitions in places.values())
    of_one = [msgspec.json.decode(record.value) for record in records if record.key == b"saga-7"]
    assert [event["sequence"] for event in of_one] == [0, 1, 2, 3]
    headers = dict(records[0].headers)
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_id"].decode() == msgspec.json.decode(records[0].value)["event_id"]
    assert headers["ce_source"] == b"shop"


def test_a_broker_that_dies_in_between_loses_and_doubles_nothing(local: Settings) -> None:
    """Sagas go on while the broker is killed; what was told meanwhile arrives once, in order, after it is back."""
    broker = stack.up(local)
    at = msgspec.structs.replace(local, bootstrap_servers=broker.bootstrap_servers)

    async def run() -> KafkaListener:
        listener = KafkaListener(at.bootstrap_servers, at.topic, close_timeout=60)
        await _runs(listener, 50)
        await asyncio.sleep(1)
        process = broker.process
        assert process is not None
        process.kill()
        await asyncio.to_thread(process.wait, 10)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await _runs(listener, 50)
        assert loop.time() - began < 2, "sagas waited for the broker"
        again = await asyncio.to_thread(stack.up, local)
        assert again.port == broker.port
        await _runs(listener, 50)
        await listener.close()
        return listener

    try:
        listener = asyncio.run(run())
        assert listener.counts == (600, 600, 0)
        events = oracle.read_topic(at).events
        assert len(events) == len({event.event_id for event in events}) == 600
    finally:
        stack.down(local)
