"""What a load tells besides Kafka: sinks that need no server, and those whose server is there."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import uvicorn
from prometheus_client import CollectorRegistry

from sagascope import (
    AuditLogListener,
    DeadLetterFile,
    ElasticsearchListener,
    FanOut,
    FlussAnalyticsListener,
    JsonLinesAuditLog,
    MetricsSagaListener,
    Queued,
    RabbitMQListener,
    RedisCacheListener,
    WebhookListener,
    health_app,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AsyncExitStack

    from sagascope import KafkaListener, SagaListener
    from warehouse.settings import Settings

_PROBE_SECONDS = 3.0
_LOCAL = {
    "redis_url": "redis://127.0.0.1:6379/0",
    "elasticsearch_url": "http://127.0.0.1:9200",
    "rabbitmq_url": "amqp://guest:guest@127.0.0.1:5672/",
    "fluss_servers": "127.0.0.1:9123",
}
"""Where each is looked for that no setting names."""


class Sink(NamedTuple):
    """One that takes part."""

    listener: SagaListener | Queued
    where: str
    """For people: without credentials."""


async def connect(
    settings: Settings, cleanup: AsyncExitStack, registry: CollectorRegistry
) -> tuple[list[Sink], list[str]]:
    """The sinks that take part, and a line on each that does not: what kept it away, where, and the setting."""
    folder = settings.fan_out
    folder.mkdir(parents=True, exist_ok=True)
    audit = folder / "audit.jsonl"
    sinks = [
        Sink(MetricsSagaListener(registry), "/metrics"),
        Sink(Queued(AuditLogListener(JsonLinesAuditLog(audit)), linger_ms=100), str(audit)),
    ]
    if settings.webhook_url:
        webhook = WebhookListener(settings.webhook_url, settings.webhook_secret or None, allow_networks=["127.0.0.0/8"])
        sinks.append(Sink(Queued(webhook, workers=4, batch_size=20), settings.webhook_url))
    absent = []
    for setting, connected in _CONNECT.items():
        named: str = getattr(settings, setting)
        place = _place(named or _LOCAL[setting])
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                listener = await connected(named or _LOCAL[setting], cleanup)
        except Exception as error:  # noqa: BLE001 - whatever keeps it away, the load goes on without it
            absent.append(f"{setting.split('_')[0]}: {type(error).__name__} at {place}; SAGASCOPE_{setting.upper()}")
        else:
            sinks.append(Sink(listener, place))
    return sinks, absent


async def _redis(url: str, cleanup: AsyncExitStack) -> SagaListener:
    from redis.asyncio import Redis

    client = Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
    cleanup.push_async_callback(client.aclose)
    await client.ping()
    return RedisCacheListener(redis_client=client)


async def _elasticsearch(url: str, cleanup: AsyncExitStack) -> SagaListener:
    from elasticsearch import AsyncElasticsearch

    client = AsyncElasticsearch(url, request_timeout=5)
    cleanup.push_async_callback(client.close)
    await client.cluster.health()
    return ElasticsearchListener(es_client=client)


async def _rabbitmq(url: str, _cleanup: AsyncExitStack) -> SagaListener:
    import aio_pika

    connection = await aio_pika.connect(url, timeout=2)
    await connection.close()
    return RabbitMQListener(url, mandatory=False)  # nobody may have bound a queue to the demo's exchange


async def _fluss(servers: str, _cleanup: AsyncExitStack) -> SagaListener:
    host, _, port = servers.partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.close()
    return FlussAnalyticsListener(servers)


_CONNECT: dict[str, Callable[[str, AsyncExitStack], Awaitable[SagaListener]]] = {
    "redis_url": _redis,
    "elasticsearch_url": _elasticsearch,
    "rabbitmq_url": _rabbitmq,
    "fluss_servers": _fluss,
}


def _place(url: str) -> str:
    """The address without user and password."""
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


async def join(settings: Settings, kafka: KafkaListener, port: int, cleanup: AsyncExitStack) -> Joined:
    """A fan-out to the topic and to all sinks that take part; its health and metrics are served at the port."""
    for driver in ("elastic_transport", "aiormq"):
        logging.getLogger(driver).setLevel(
            logging.CRITICAL
        )  # tracebacks of who is not there; what matters is told below
    registry = CollectorRegistry()
    sinks, absent = await connect(settings, cleanup, registry)
    topic = Sink(Queued(kafka, size=100_000), f"topic {settings.topic}")
    fan_out = FanOut(
        listeners=[sink.listener for sink in (topic, *sinks)],
        dead_letters=DeadLetterFile(settings.fan_out / "dead-letters.jsonl"),
    )
    cleanup.push_async_callback(fan_out.aclose)
    cleanup.enter_context(_served(fan_out, registry, port))
    return Joined(fan_out, [sink.where for sink in (topic, *sinks)], absent)


class Joined(NamedTuple):
    """A fan-out that takes part, and who does not."""

    fan_out: FanOut
    places: list[str]
    absent: list[str]

    def facts(self) -> list[dict[str, Any]]:
        """What became of the events, a line a listener, for a report."""
        counts = self.fan_out.counts
        return [
            {"listener": name, "where": where, **dataclasses.asdict(each), "queued": each.under_way}
            for (name, each), where in zip(counts.items(), self.places, strict=True)
        ] + [{"absent": line} for line in self.absent]


@contextmanager
def _served(fan_out: FanOut, registry: CollectorRegistry, port: int) -> Iterator[None]:
    """By a thread of its own, which leaves signals to the load."""
    app = health_app(fan_out, registry=registry)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level=logging.WARNING, lifespan="off"))
    thread = threading.Thread(target=server.run, name="sagascope-health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=5)
