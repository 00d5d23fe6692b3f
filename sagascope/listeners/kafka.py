"""Saga events to a Kafka topic.

Needs the extra `sagascope[kafka]` (kafka-python, and crc32c for its speed).

    async with KafkaListener("localhost:9092") as kafka:
        await OrderSaga(listeners=[kafka]).run(context)
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import queue
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from sagascope.events import SagaEvent, encode
from sagascope.listener import EventListener

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger(__name__)

_LOG_EVERY_SECONDS = 10.0
_CLOSE = None


class DeliveryCounts(NamedTuple):
    """What became of the events handed over: accepted = sent + failed + those under way."""

    accepted: int
    sent: int
    failed: int


class KafkaListener(EventListener):
    """Writes each event to a topic, keyed by saga_id, CloudEvents 1.0 attributes in the headers (binary mode).

    `write` only hands over to a thread of its own: it never waits for the broker, and a broker that is down does not
    stop a saga. Up to `buffer_events` are held for up to `delivery_timeout` seconds each; what could not be sent by
    then, or did not fit, is counted in `counts.failed` and logged. The order of a saga's events is kept, and retries
    of the idempotent producer double nothing.
    """

    def __init__(
        self,
        bootstrap_servers: str | Sequence[str] = "localhost:9092",
        topic: str = "saga-events",
        *,
        buffer_events: int = 10_000,
        delivery_timeout: float = 120.0,
        close_timeout: float = 10.0,
        producer_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Do no I/O yet.

        Args:
            bootstrap_servers: One or more host:port.
            topic: The topic; must exist, or the broker must create it.
            buffer_events: How many events may be under way at once; more are refused, counted and logged.
            delivery_timeout: Seconds after which an event that no broker took is given up.
            close_timeout: Seconds that `close` waits for what is under way.
            producer_options: More of kafka-python's producer options (security, compression, linger …).
        """
        self._bootstrap_servers = bootstrap_servers
        self.topic = topic
        self._buffer_events = buffer_events
        self._delivery_timeout = delivery_timeout
        self._close_timeout = close_timeout
        self._producer_options = dict(producer_options or {})
        self._queue: queue.SimpleQueue[SagaEvent | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._accepted = self._sent = self._failed = 0
        self._logged = float("-inf")

    @property
    def counts(self) -> DeliveryCounts:
        """What became of the events so far."""
        with self._lock:
            return DeliveryCounts(self._accepted, self._sent, self._failed)

    async def open(self) -> None:
        """Start the sending thread.

        Raises:
            ModuleNotFoundError: kafka-python is not installed.
            ValueError: an option that kafka-python's producer does not know.
        """
        if self._thread is not None:
            return
        try:
            from kafka import KafkaProducer  # noqa: PLC0415 - a driver is imported when its listener opens
        except ModuleNotFoundError as error:
            msg = "KafkaListener needs kafka-python: pip install 'sagascope[kafka]'"
            raise ModuleNotFoundError(msg) from error
        if unknown := set(self._producer_options) - set(KafkaProducer.DEFAULT_CONFIG):
            msg = (
                f"unknown producer_options {sorted(unknown)}; known: {', '.join(sorted(KafkaProducer.DEFAULT_CONFIG))}"
            )
            raise ValueError(msg)
        self._closing.clear()
        self._thread = threading.Thread(target=self._run, args=(KafkaProducer,), name="sagascope-kafka", daemon=True)
        self._thread.start()
        atexit.register(self._stop)  # a service that forgets to close loses nothing that a broker would take

    async def write(self, events: Sequence[SagaEvent]) -> None:
        if not events:
            return
        await self.open()
        with self._lock:
            under_way = self._accepted - self._sent - self._failed
            self._accepted += len(events)
            room = min(len(events), max(0, self._buffer_events - under_way))
        for event in events[:room]:
            self._queue.put(event)
        if refused := len(events) - room:
            self._count_failed(
                refused, f"{under_way} events are under way already, buffer_events={self._buffer_events}"
            )

    async def close(self) -> None:
        """Wait up to `close_timeout` for what is under way; the rest is counted as failed. A later write reopens."""
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        atexit.unregister(self._stop)
        self._closing.set()
        self._queue.put(_CLOSE)
        thread.join(self._close_timeout + 5.0)

    def _run(self, producer_class: Any) -> None:
        producer = self._connect(producer_class)
        while producer is not None and (event := self._queue.get()) is not _CLOSE:
            try:
                producer.send(
                    self.topic,
                    key=event.saga_id.encode("utf-8", "replace"),
                    value=encode(event),
                    headers=headers(event),
                ).add_callback(self._count_sent).add_errback(self._count_error)
            except Exception as error:  # noqa: BLE001 - whatever it is, the event is counted and the thread lives on
                self._count_error(error)
        if producer is not None:
            self._finish(producer)
        counts = self.counts
        if left := counts.accepted - counts.sent - counts.failed:
            self._count_failed(left, "closed before a broker took them")

    def _connect(self, producer_class: Any) -> Any:
        """A producer, tried for until there is one; None when closed before."""
        timeout_ms = int(self._delivery_timeout * 1000)
        options = {
            "bootstrap_servers": self._bootstrap_servers,
            "client_id": "sagascope",
            "acks": "all",
            "linger_ms": 5,
            "max_block_ms": timeout_ms,
            "delivery_timeout_ms": timeout_ms,
            "request_timeout_ms": min(30_000, timeout_ms - 10),
            "bootstrap_timeout_ms": 2_000,
            "reconnect_backoff_max_ms": 1_000,
        }
        while not self._closing.is_set():
            try:
                return producer_class(**options | self._producer_options)
            except Exception as error:  # noqa: BLE001 - a service must come up without its broker
                self._log("no broker at %s yet: %s", self._bootstrap_servers, error)
                self._closing.wait(0.5)
        return None

    def _finish(self, producer: Any) -> None:
        deadline = time.monotonic() + self._close_timeout
        try:
            producer.flush(timeout=self._close_timeout)
        except Exception as error:  # noqa: BLE001 - what is left is counted by the caller
            self._log("flush of topic %s: %s", self.topic, error)
        producer.close(timeout=max(0.0, deadline - time.monotonic()))

    def _count_sent(self, _metadata: object) -> None:
        with self._lock:
            self._sent += 1

    def _count_error(self, error: BaseException) -> None:
        self._count_failed(1, f"{type(error).__name__}: {error}")

    def _count_failed(self, number: int, reason: str) -> None:
        with self._lock:
            self._failed += number
            failed = self._failed
        self._log("%d saga events could not be sent to topic %s so far; last: %s", failed, self.topic, reason)

    def _log(self, message: str, *arguments: object) -> None:
        """Once in ten seconds: a broker that is down is one fact, not one a event."""
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY_SECONDS:
            self._logged = now
            logger.warning(message, *arguments)


def headers(event: SagaEvent) -> list[tuple[str, bytes]]:
    """The event's attributes by the CloudEvents 1.0 Kafka protocol binding, binary mode."""
    moment = datetime.fromtimestamp(event.timestamp / 1000, UTC).isoformat(timespec="milliseconds")
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", event.event_id.encode("utf-8", "replace")),
        ("ce_source", quote(event.service or "sagascope", errors="replace").encode()),
        ("ce_type", f"sagascope.{event.event_type}".encode()),
        ("ce_subject", event.saga_id.encode("utf-8", "replace")),
        ("ce_time", moment.replace("+00:00", "Z").encode()),
        ("content-type", b"application/json"),
    ]
