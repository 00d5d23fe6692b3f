"""A secret planted where sagas keep secrets is looked for in all that leaves the service, on real servers."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from contextlib import AsyncExitStack, closing
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import aio_pika
import asyncpg
import kafka
import pytest
from elasticsearch import AsyncElasticsearch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest
from redis.asyncio import Redis

from sagascope import (
    AuditLogListener,
    DeadLetterFile,
    ElasticsearchListener,
    EventListener,
    EventType,
    FanOut,
    FanOutSaga,
    FlussAnalyticsListener,
    JsonLinesAuditLog,
    KafkaListener,
    MetricsSagaListener,
    MonitoredListener,
    OutboxSagaListener,
    PostgresOutbox,
    Queued,
    RabbitMQListener,
    RedisCacheListener,
    Retry,
    SagaListener,
    SQLiteOutbox,
    TracingSagaListener,
    WebhookListener,
)
from sagascope.delivery_metrics import watch_fan_out
from sagascope.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sagascope import SagaEvent
    from tests.servers.fluss import FlussServer
    from tests.servers.postgresql import PostgresServer
    from tests.servers.rabbitmq import RabbitMQ
    from tests.servers.webhook_receiver import Receiver
    from warehouse.settings import Settings

pytestmark = pytest.mark.broker

CANARY = "c4n4ry-d0-n0t-te11"
SAGAS = 3
EVENTS_OF_A_SAGA = 8


class LeakySaga(FanOutSaga):
    """Its steps put all they know into their errors."""

    saga_name = "leaky"
    attribute_keys: ClassVar[tuple[str, ...]] = ("tenant",)


async def charge(ctx: dict[str, Any]) -> dict[str, Any]:
    """Keeps a secret in the context, and returns one."""
    ctx["session"] = {"deep": [f"{CANARY}-added"]}
    return {"receipt": f"{CANARY}-result"}


async def refund(ctx: dict[str, Any]) -> None:
    """Fails with what was added."""
    msg = f"no refund for {CANARY}-added"
    raise OSError(msg)


async def ship(ctx: dict[str, Any]) -> None:
    """Fails with context, result, and the headers of a request that holds yet another secret."""
    headers = {"Authorization": f"Bearer {CANARY}-header", "Cookie": f"a=1; sid={CANARY}-cookie"}
    msg = f"{ctx['card']} and {CANARY}-result: POST https://u:{CANARY}-url@host/x with {headers}, password={CANARY}-pw"
    raise ConnectionError(msg)


class Refuses(EventListener):
    """Rejects every event, and quotes what it was given."""

    async def write(self, events: Sequence[SagaEvent]) -> None:
        msg = f"refused {events!r}, api_key={CANARY}-key"
        raise PermanentError(msg)


class QuotesHooks(SagaListener):
    """A listener of hooks that quotes the context, the result and the error in what it raises."""

    async def on_saga_started(self, saga_id: str, saga_name: str, context: Mapping[str, Any]) -> None:
        raise PermanentError(str(context))

    async def on_step_completed(self, saga_id: str, step_name: str, result: Any, duration_ms: int) -> None:
        raise ValueError(result)

    async def on_step_failed(self, saga_id: str, step_name: str, error: BaseException, duration_ms: int) -> None:
        raise PermanentError(str(error)) from error


class Servers(NamedTuple):
    """All that sagas are told to."""

    kafka: Settings
    redis: int
    elasticsearch: int
    rabbitmq: RabbitMQ
    postgresql: str
    webhook: Receiver
    fluss: FlussServer
    fluss_table: str


@pytest.fixture
def servers(  # noqa: PLR0917 - fixtures come by name
    settings: Settings,
    redis_server: int,
    elasticsearch_port: int,
    rabbitmq_server: RabbitMQ,
    postgresql: PostgresServer,
    receiver: Receiver,
    fluss_server: FlussServer,
    fluss_table: str,
) -> Servers:
    """Real ones, each with a place of its own for this test."""
    receiver.plan()
    dsn = postgresql.dsn(postgresql.create_database())
    return Servers(
        settings, redis_server, elasticsearch_port, rabbitmq_server, dsn, receiver, fluss_server, fluss_table
    )


class Watched(NamedTuple):
    """What is kept in the service's own process, and in its files."""

    registry: CollectorRegistry
    spans: InMemorySpanExporter
    folder: Path


def test_the_canary_is_nowhere(servers: Servers, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Values of context, results, exceptions and headers are in no sink, log, metric, span, health check or dead letter."""
    caplog.set_level(logging.DEBUG)
    watched = Watched(CollectorRegistry(), InMemorySpanExporter(), tmp_path)

    async def main() -> dict[str, str]:
        async with AsyncExitStack() as stack:
            queue = await a_queue(servers, stack)
            fan_out = await a_fan_out(servers, watched, stack)
            async with fan_out:
                for number in range(SAGAS):
                    await run_one(f"canary-{number}", fan_out)
                health = str(fan_out.health())
            assert all(counts.under_way == 0 for counts in fan_out.counts.values())
            there = {"health": health, "counts": str(fan_out.counts)}
            return there | await at_the_servers(servers, queue)

    left = asyncio.run(main()) | in_kafka(servers) | in_the_process(watched)
    # sagaz's own listener logs raw messages: what sagaz logs is not ours to hold
    ours = [record for record in caplog.records if not record.name.startswith("sagaz.")]
    left["logs"] = "\n".join(f"{record.getMessage()} {record.exc_text}" for record in ours)

    for place in ("kafka", "redis", "elasticsearch", "rabbitmq", "postgresql", "sqlite", "fluss", "audit", "webhook"):
        assert "leaky" in left[place], f"nothing of the sagas in {place}"
    for place in ("kafka", "elasticsearch", "rabbitmq", "fluss", "audit", "webhook", "spans", "dead letters", "logs"):
        assert "[redacted]" in left[place], f"no redacted message in {place}"
    assert {place for place, text in left.items() if CANARY in text} == set()


async def run_one(saga_id: str, fan_out: FanOut) -> None:
    """One saga that fails with all its secrets."""
    saga = LeakySaga("leaky", listeners=[fan_out, QuotesHooks()])
    saga.add_step("charge", charge, refund)
    saga.add_step("ship", ship, depends_on={"charge"})
    context = {"card": f"{CANARY}-context", "tenant": "acme", "secret_of": {f"{CANARY}@example.org": 1}}
    with pytest.raises(ConnectionError):
        await saga.run(context, saga_id)


async def a_queue(servers: Servers, stack: AsyncExitStack) -> Any:
    """A queue of RabbitMQ that gets all events."""
    connection = await stack.enter_async_context(await aio_pika.connect(servers.rabbitmq.url))
    channel = await connection.channel()
    exchange = await channel.declare_exchange("canary", "topic", durable=True)
    queue = await channel.declare_queue("canary", durable=True)
    await queue.bind(exchange, "#")
    return queue


async def a_fan_out(servers: Servers, watched: Watched, stack: AsyncExitStack) -> FanOut:
    """Every listener there is, two that fail, and dead letters."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(watched.spans))
    redis = await stack.enter_async_context(Redis(port=servers.redis))
    search = await stack.enter_async_context(AsyncElasticsearch(f"http://127.0.0.1:{servers.elasticsearch}"))
    hook = f"http://127.0.0.1:{servers.webhook.port}/hook"
    fan_out = FanOut(
        [
            KafkaListener(servers.kafka.bootstrap_servers, servers.kafka.topic, definitions_topic=None),
            RedisCacheListener(redis),
            ElasticsearchListener(search, index="canary"),
            RabbitMQListener(servers.rabbitmq.url, "canary"),
            OutboxSagaListener(PostgresOutbox(servers.postgresql)),
            OutboxSagaListener(SQLiteOutbox(watched.folder / "outbox.db")),
            AuditLogListener(JsonLinesAuditLog(watched.folder / "audit.jsonl")),
            MonitoredListener(MetricsSagaListener(watched.registry), "metrics", watched.registry),
            TracingSagaListener(provider.get_tracer("canary")),
            WebhookListener(hook, event_types=list(EventType), allow_networks=["127.0.0.0/8"]),
            FlussAnalyticsListener(servers.fluss.address_within, table=servers.fluss_table),
            Refuses(),
            Queued(QuotesHooks(), retry=Retry(seconds=0)),
        ],
        dead_letters=DeadLetterFile(watched.folder / "dead.jsonl"),
    )
    watch_fan_out(fan_out, watched.registry)
    return fan_out


async def at_the_servers(servers: Servers, queue: Any) -> dict[str, str]:
    """What each holds, read past the listeners."""
    there = {}
    async with Redis(port=servers.redis, decode_responses=True) as redis:
        cache = RedisCacheListener(redis)
        there["redis"] = str([await cache.get(f"canary-{n}") for n in range(SAGAS)])
    async with AsyncElasticsearch(f"http://127.0.0.1:{servers.elasticsearch}") as search:
        await search.indices.refresh(index="canary")
        there["elasticsearch"] = json.dumps((await search.search(index="canary", size=1000)).body)
    messages = [await queue.get(timeout=5) for _ in range(SAGAS * EVENTS_OF_A_SAGA)]
    there["rabbitmq"] = str([(message.body, message.headers, message.routing_key) for message in messages])
    tables = await asyncpg.connect(servers.postgresql)
    there["postgresql"] = str([dict(row) for row in await tables.fetch("SELECT * FROM sagascope_outbox")])
    await tables.close()
    there["fluss"] = str(await servers.fluss.rows(servers.fluss_table))
    there["webhook"] = str(servers.webhook.received)
    return there


def in_kafka(servers: Servers) -> dict[str, str]:
    """The topic's records, keys and headers included."""
    consumer = kafka.KafkaConsumer(
        servers.kafka.topic,
        bootstrap_servers=servers.kafka.bootstrap_servers,
        auto_offset_reset="earliest",
        consumer_timeout_ms=3000,
    )
    records = str(list(consumer))
    consumer.close()
    return {"kafka": records}


def in_the_process(watched: Watched) -> dict[str, str]:
    """Files, metrics and spans."""
    with closing(sqlite3.connect(watched.folder / "outbox.db")) as database:
        rows = database.execute("SELECT * FROM sagascope_outbox").fetchall()
    return {
        "sqlite": str(rows),
        "audit": (watched.folder / "audit.jsonl").read_text(),
        "dead letters": (watched.folder / "dead.jsonl").read_text(),
        "metrics": generate_latest(watched.registry).decode(),
        "spans": "".join(span.to_json() for span in watched.spans.get_finished_spans()),
    }
