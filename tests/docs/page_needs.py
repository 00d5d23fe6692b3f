"""What the blocks of a page need: clients of real servers, and a sink of somebody's own."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import sagascope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.servers.webhook_receiver import Receiver

SECRET = "whsec_" + "c2FnYXNjb3Bl" * 4


class FileSink:
    """A sink of somebody's own: JSON lines in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()

    async def write(self, record: dict[str, Any] | bytes) -> None:
        """Append a record."""
        line = record.decode() if isinstance(record, bytes) else json.dumps(record)
        await asyncio.to_thread(self._append, [line])

    def write_and_wait(self, events: Sequence[sagascope.SagaEvent]) -> None:
        """Append events; for a caller that is not in the event loop."""
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        self._append([sagascope.encode(event).decode() for event in events])

    def written(self, saga_id: str) -> list[dict[str, Any]]:
        """What was written of a saga, in order."""
        records = [json.loads(line) for line in self._path.read_text().splitlines()]
        return [record for record in records if record["saga_id"] == saga_id]

    def story(self, saga_id: str) -> list[str]:
        """The types of its events."""
        return [record["event_type"] for record in self.written(saga_id)]

    def _append(self, lines: list[str]) -> None:
        with self._path.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)


@asynccontextmanager
async def a_sink(_: None, folder: Path) -> AsyncIterator[dict[str, Any]]:
    """A client with an async `write`."""
    yield {"sink_client": FileSink(folder / "sink.jsonl")}


@asynccontextmanager
async def a_place_for_dead_letters(_: None, folder: Path) -> AsyncIterator[dict[str, Any]]:
    """A file that is not there yet."""
    yield {"dead_letters_path": folder / "dead-letters.jsonl"}


@asynccontextmanager
async def a_registry(_: None, folder: Path) -> AsyncIterator[dict[str, Any]]:
    """A registry of Prometheus' client library."""
    from prometheus_client import CollectorRegistry

    yield {"prometheus_registry": CollectorRegistry()}


@asynccontextmanager
async def a_tracer(_: None, folder: Path) -> AsyncIterator[dict[str, Any]]:
    """A tracer of OpenTelemetry's SDK, which keeps its spans."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    yield {"opentelemetry_tracer": provider.get_tracer("orders"), "spans": spans}
    provider.shutdown()


@asynccontextmanager
async def an_audit_log(_: None, folder: Path) -> AsyncIterator[dict[str, Any]]:
    """An audit log in a file."""
    from sagascope import JsonLinesAuditLog

    yield {"audit_storage": JsonLinesAuditLog(folder / "audit.jsonl"), "audit_path": folder / "audit.jsonl"}


@asynccontextmanager
async def an_endpoint(receiver: Receiver, folder: Path) -> AsyncIterator[dict[str, Any]]:
    """An endpoint that verifies what it receives."""
    receiver.plan(secret=SECRET)
    url = f"http://127.0.0.1:{receiver.port}/sagas"
    yield {"webhook_url": url, "webhook_secret": SECRET, "endpoint": receiver}


@asynccontextmanager
async def a_redis(port: int, folder: Path) -> AsyncIterator[dict[str, Any]]:
    """A client of Redis."""
    from redis.asyncio import Redis

    async with Redis(port=port, decode_responses=True) as client:
        yield {"redis": client}


@asynccontextmanager
async def an_elasticsearch(port: int, folder: Path) -> AsyncIterator[dict[str, Any]]:
    """A client of Elasticsearch."""
    from elasticsearch import AsyncElasticsearch

    async with AsyncElasticsearch(f"http://127.0.0.1:{port}") as client:
        yield {"elasticsearch": client}


@asynccontextmanager
async def an_outbox(server: Any, folder: Path) -> AsyncIterator[dict[str, Any]]:
    """An outbox in PostgreSQL, which listeners open and close, and a connection past it."""
    import asyncpg

    from sagascope import PostgresOutbox

    dsn = server.dsn(await asyncio.to_thread(server.create_database))
    connection = await asyncpg.connect(dsn)
    yield {"postgres_storage": PostgresOutbox(dsn), "database": connection}
    await connection.close()


@asynccontextmanager
async def a_fluss(server: Any, folder: Path) -> AsyncIterator[dict[str, Any]]:
    """The address of a Fluss cluster."""
    yield {"fluss": server.address_within, "fluss_server": server}


class Maker(NamedTuple):
    """How a thing that blocks need is made."""

    made: Callable[[Any, Path], AbstractAsyncContextManager[dict[str, Any]]]
    fixture: str | None = None
    """Of the server that it needs."""


MADE_BY = {
    "sink_client": Maker(a_sink),
    "dead_letters": Maker(a_place_for_dead_letters),
    "prometheus": Maker(a_registry),
    "tracer": Maker(a_tracer),
    "audit": Maker(an_audit_log),
    "webhook": Maker(an_endpoint, "receiver"),
    "redis": Maker(a_redis, "redis_server"),
    "elasticsearch": Maker(an_elasticsearch, "elasticsearch_port"),
    "outbox": Maker(an_outbox, "postgresql"),
    "fluss": Maker(a_fluss, "fluss_server"),
}
