"""Sagas' definitions, from sagaz's classes through the topic into the table, on real servers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import NewTopic
from pyiceberg.io.pyarrow import schema_to_pyarrow

from pipelines import stack
from pipelines.workload import WorkloadSettings, run_workload
from pipelines.workload.sagas import PAYMENT_PROCESSING, TRAVEL_BOOKING
from sagascope import KafkaListener, SagaDefinition, StepDefinition, saga_scope
from sagascope.definitions import decode_definition
from tests import oracle
from tests.sagascope.conftest import until
from warehouse import history
from warehouse.catalog import open_catalog
from warehouse.definitions import import_definitions
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from sagascope.definitions import PublishedDefinition
    from warehouse.settings import Settings

pytestmark = pytest.mark.broker

MODELS = (PAYMENT_PROCESSING, TRAVEL_BOOKING)


@pytest.fixture
def at(settings: Settings) -> Settings:
    """Settings with a topic of definitions of their own, made as `sagascope up` makes it."""
    own = msgspec.structs.replace(settings, definitions_topic=f"definitions-{uuid.uuid4().hex[:8]}")
    stack.make_topic(own)
    return own


def listener_at(settings: Settings, **options: Any) -> KafkaListener:
    """A listener with the settings' topics."""
    return KafkaListener(
        settings.bootstrap_servers, settings.topic, definitions_topic=settings.definitions_topic, **options
    )


def run_service(settings: Settings) -> KafkaListener:
    """Some seconds of a service that runs two types of sagas; returns its listener, closed."""

    async def run() -> KafkaListener:
        async with listener_at(settings) as listener:
            report = await run_workload(
                [listener],
                rate=40,
                seconds=1.5,
                seed=7,
                scale_time=50,
                stop=asyncio.Event(),
                settings=WorkloadSettings(models=MODELS),
            )
        told = sum(report.events.values())
        assert listener.counts == (told, told, 0), "definitions are no events"
        return listener

    return asyncio.run(run())


def read_topic(settings: Settings) -> list[tuple[str, PublishedDefinition]]:
    """Key and value of every record of the definitions' topic."""
    consumer = KafkaConsumer(bootstrap_servers=settings.bootstrap_servers, enable_auto_commit=False)
    partition = TopicPartition(settings.definitions_topic, 0)
    consumer.assign([partition])
    consumer.seek_to_beginning(partition)
    end, records = consumer.end_offsets([partition])[partition], []
    while consumer.position(partition) < end:
        for batch in consumer.poll(timeout_ms=500).values():
            records += [(record.key.decode(), decode_definition(record.value)) for record in batch]
    consumer.close()
    return records


def store(settings: Settings) -> int:
    """Import as the job does; returns how many definitions are new."""
    with closing(open_catalog(settings)) as catalog:
        return import_definitions(settings, catalog)


def step(
    name: str, *after: str, timeout: float = 60.0, compensable: bool = False, pivot: bool = False
) -> StepDefinition:
    """A step with sagaz's 30 s for its compensation."""
    return StepDefinition(
        step_name=name,
        depends_on=after,
        compensable=compensable,
        pivot=pivot,
        timeout_seconds=timeout,
        compensation_timeout_seconds=30.0,
    )


def test_the_topic_holds_the_definitions_of_the_sagas_that_ran(at: Settings) -> None:
    """One record a type of saga: its edges, pivot, compensations and timeouts; its id is that of the events."""
    listener = run_service(at)
    assert listener.definition_counts == (2, 2, 0)
    records = read_topic(at)
    assert len(records) == 2
    found = {definition.saga_name: definition for _, definition in records}
    assert set(found["payment-processing"].steps) == {
        step("check_fraud"),
        step("authorize_card", "check_fraud", timeout=12.0, compensable=True),
        step("capture_funds", "authorize_card", pivot=True),
        step("post_to_ledger", "capture_funds", compensable=True),
        step("notify_merchant", "capture_funds"),
    }
    assert set(found["travel-booking"].steps) == {
        step("quote_itinerary"),
        step("reserve_flight", "quote_itinerary", compensable=True),
        step("reserve_hotel", "quote_itinerary", compensable=True),
        step("reserve_car", "quote_itinerary", compensable=True),
        step("charge_traveller", "reserve_car", "reserve_flight", "reserve_hotel", compensable=True),
        step("issue_tickets", "charge_traveller", timeout=20.0),
    }
    assert [key for key, _ in records] == [definition.definition_id for _, definition in records]
    events = oracle.read_topic(at).events
    assert {(event.saga_name, event.definition_id, event.service) for event in events} == {
        (definition.saga_name, definition.definition_id, definition.service) for definition in found.values()
    }


def test_a_service_that_starts_again_publishes_again_and_the_table_keeps_one(at: Settings) -> None:
    """Each start of a service tells of its sagas anew, so that a topic that was lost is filled; the table stays as it is."""
    run_service(at)
    assert store(at) == 2
    run_service(at)
    assert len(read_topic(at)) == 4
    assert store(at) == 0
    with history.open(at) as tables:
        assert tables.sql("SELECT count(*), count(DISTINCT definition_id) FROM saga_definitions").fetchall() == [(2, 2)]


def test_events_join_their_definition_in_sql(at: Settings) -> None:
    """DuckDB reads a definition's steps: each event's compensable and pivot are what the definition says, and edges too."""
    run_service(at)
    assert store(at) == 2
    events = oracle.read_topic(at).events
    with closing(open_catalog(at)) as catalog:
        table = catalog.load_table(EVENTS.identifier)
        schema = schema_to_pyarrow(table.schema(), include_field_ids=False)
        table.append(
            pa.Table.from_pylist(
                [row | {"timestamp": row["timestamp"] * 1000} for row in map(msgspec.structs.asdict, events)],
                schema=schema,
            )
        )
    with history.open(at) as tables:
        different = tables.sql(
            """
            WITH steps AS (
                SELECT definition_id, unnest(from_json(steps, '[{"step_name":"VARCHAR","pivot":"BOOLEAN","compensable":"BOOLEAN"}]')) AS step
                FROM saga_definitions
            )
            SELECT count(*), count(*) FILTER (e.pivot = step.pivot AND e.compensable = step.compensable)
            FROM events e JOIN steps s ON e.definition_id = s.definition_id AND e.step_name = step.step_name
            """
        ).fetchall()
        edges = tables.sql(
            """
            SELECT DISTINCT step->>'step_name', json_extract_string(step, '$.depends_on[*]')
            FROM (SELECT unnest(json_extract(steps, '$[*]')) AS step FROM saga_definitions WHERE saga_name = 'payment-processing')
            WHERE (step->>'pivot')::BOOLEAN
            """
        ).fetchall()
    about_steps = sum(event.step_name is not None for event in events)
    assert about_steps > 100
    assert different == [(about_steps, about_steps)]
    assert edges == [("capture_funds", ["authorize_card"])]


async def run_one(listener: KafkaListener, definition: SagaDefinition) -> None:
    """One run of another executor's saga: three events."""
    async with saga_scope("s-1", definition.saga_name, listeners=[listener], definition=definition) as saga:
        await saga.started({})
        await saga.step_started("pay")
        await saga.completed()


def saga_of(name: str, step_name: str = "pay") -> SagaDefinition:
    """A saga of one step."""
    return SagaDefinition(saga_name=name, steps=(StepDefinition(step_name=step_name),))


def names(settings: Settings) -> list[str]:
    """The saga_names of the topic's records."""
    return [definition.saga_name for _, definition in read_topic(settings)]


def test_a_missing_topic_holds_up_no_event_and_is_filled_when_it_comes(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Events are sent at once, whatever becomes of definitions; these wait for their topic, and the log says so."""
    at = msgspec.structs.replace(settings, definitions_topic=f"definitions-{uuid.uuid4().hex[:8]}")

    async def run() -> KafkaListener:
        async with listener_at(at) as listener:
            await run_one(listener, saga_of("order"))
            await run_one(listener, saga_of("refund"))
            await until(lambda: listener.counts.sent == 6)
            assert listener.definition_counts == (2, 0, 0)
            await until(lambda: "is not in topic" in caplog.text)
            await asyncio.to_thread(stack.make_topic, at)
            await until(lambda: listener.definition_counts.sent == 2)
        return listener

    listener = asyncio.run(run())
    assert listener.counts == (6, 6, 0)
    assert listener.definition_counts == (2, 2, 0)
    assert sorted(names(at)) == ["order", "refund"]
    assert f"a saga's definition is not in topic {at.definitions_topic} yet" in caplog.text


def test_what_a_close_gave_up_is_published_when_its_saga_runs_again(settings: Settings) -> None:
    """A close does not wait for a topic that is missing; opened again, the listener publishes only what it still has to."""
    at = msgspec.structs.replace(settings, definitions_topic=f"definitions-{uuid.uuid4().hex[:8]}")

    async def run() -> KafkaListener:
        listener = listener_at(at)
        await run_one(listener, saga_of("order"))
        began = time.monotonic()
        await listener.close()
        assert time.monotonic() - began < 6
        assert listener.definition_counts == (1, 0, 1)
        await asyncio.to_thread(stack.make_topic, at)
        for _ in range(2):
            await run_one(listener, saga_of("order"))
            await listener.close()
        return listener

    listener = asyncio.run(run())
    assert listener.counts == (9, 9, 0)
    assert listener.definition_counts == (2, 1, 1)
    assert names(at) == ["order"]


def test_a_definition_that_no_broker_takes_keeps_no_other_back(at: Settings) -> None:
    """One of more bytes than a record may have fails, alone."""

    async def run() -> KafkaListener:
        async with listener_at(at) as listener:
            for definition in (saga_of("huge", "pay" * 1_000_000), saga_of("order"), saga_of("refund")):
                await run_one(listener, definition)
            await until(lambda: listener.definition_counts.sent == 2)
        return listener

    assert asyncio.run(run()).definition_counts == (3, 2, 1)
    assert names(at) == ["order", "refund"]


def test_definitions_can_be_turned_off(at: Settings) -> None:
    """With definitions_topic=None events alone are sent."""

    async def run() -> KafkaListener:
        async with KafkaListener(at.bootstrap_servers, at.topic, definitions_topic=None) as listener:
            await run_one(listener, saga_of("order"))
        return listener

    listener = asyncio.run(run())
    assert listener.counts == (3, 3, 0)
    assert listener.definition_counts == (0, 0, 0)
    assert {event.definition_id for event in oracle.read_topic(at).events} == {saga_of("order").definition_id}


FORGETFUL = """
import asyncio, sys
from sagascope import KafkaListener, SagaDefinition, saga_scope

async def main(servers, topic, definitions_topic):
    listener = KafkaListener(servers, topic, definitions_topic=definitions_topic)
    definition = SagaDefinition(saga_name="order", steps=())
    async with saga_scope("s-1", "order", listeners=[listener], definition=definition) as saga:
        await saga.started({})
        await saga.completed()

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_service_that_forgets_to_close_publishes_at_its_exit(at: Settings) -> None:
    """The interpreter's exit waits for what is under way, definitions as well as events."""
    command = [sys.executable, "-c", FORGETFUL, at.bootstrap_servers, at.topic, at.definitions_topic]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert ran.stderr == ""
    assert names(at) == ["order"]
    assert len(oracle.read_topic(at).events) == 2


def test_a_compacted_topic_is_read_to_its_end(settings: Settings) -> None:
    """The topic is made compacted, and the offsets that compaction takes out hold up no import."""
    at = msgspec.structs.replace(settings, definitions_topic=f"definitions-{uuid.uuid4().hex[:8]}")
    soon = {"segment.ms": "100", "min.cleanable.dirty.ratio": "0.01", "delete.retention.ms": "0"}
    with stack._admin(at.bootstrap_servers) as admin:
        config = stack.DEFINITIONS_TOPIC_CONFIG | soon
        admin.create_topics([NewTopic(at.definitions_topic, 1, 1, topic_configs=config)])
        admin.wait_for_topics([at.definitions_topic])

    async def run() -> None:
        async with listener_at(at) as listener:
            await run_one(listener, saga_of("order"))
        await asyncio.sleep(0.2)  # beyond the segment

    for _ in range(4):
        asyncio.run(run())
    deadline = time.monotonic() + 60
    while len(names(at)) > 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert len(names(at)) <= 2
    assert store(at) == 1
