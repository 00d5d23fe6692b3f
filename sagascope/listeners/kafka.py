"""Saga events to a Kafka topic, and the definitions of the sagas to another.

Needs the extra `sagascope[kafka]` (kafka-python, and crc32c for its speed).

    async with KafkaListener("localhost:9092") as kafka:
        await OrderSaga(listeners=[kafka]).run(context)
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import queue
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sagascope.cloudevents import headers
from sagascope.definitions import KEPT, encode_definition, recall
from sagascope.drivers import load
from sagascope.events import SagaEvent, encode
from sagascope.listener import EventListener

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

logger = logging.getLogger(__name__)

_LOG_EVERY_SECONDS = 10.0
_GRACE_SECONDS = 5.0
"""What a close may take beyond its timeout: a driver's call that can't be interrupted."""
_RETRY_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 60.0
_LINGER_SECONDS = 2.0
_SHORT_TIMEOUTS = {"max_block_ms": 2_000, "delivery_timeout_ms": 10_000, "request_timeout_ms": 5_000}
"""Of a definition's try, so that a close is soon heard."""
_DEFINITIONS_THREAD = "sagascope-kafka-definitions"
_CLOSE = (math.inf, None)


class DeliveryCounts(NamedTuple):
    """What became of the events, or definitions, handed over: accepted = sent + failed + those under way."""

    accepted: int
    sent: int
    failed: int


class KafkaListener(EventListener):
    """Writes each event to a topic, keyed by saga_id, CloudEvents 1.0 attributes in the headers (binary mode).

    `write` only hands over to a thread of its own: it never waits for the broker, and a broker that is down does not
    stop a saga. Up to `buffer_events` are held, each for up to `delivery_timeout` seconds until it can be sent and as
    long again until a broker took it; what was too late, or did not fit, is counted in `counts.failed` and logged. The
    order of a saga's events is kept, and retries of the idempotent producer double nothing.

    With the first event of a definition, that definition is published too: once a listener and definition, tried until a
    broker has acknowledged it. Events neither wait for definitions nor fail with them.
    """

    def __init__(
        self,
        bootstrap_servers: str | Sequence[str] = "localhost:9092",
        topic: str = "saga-events",
        *,
        definitions_topic: str | None = "saga-definitions",
        buffer_events: int = 10_000,
        delivery_timeout: float = 120.0,
        close_timeout: float = 10.0,
        producer_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Do no I/O yet.

        Args:
            bootstrap_servers: One or more host:port.
            topic: The topic; must exist, or the broker must create it.
            definitions_topic: The topic of the sagas' definitions, keyed by definition_id; must exist, and be compacted
                (cleanup.policy=compact). None: they are not published.
            buffer_events: How many events may be under way at once; more are refused, counted and logged.
            delivery_timeout: Seconds after which an event that can't be sent (no broker, no such topic), or that was
                sent and no broker took, is given up.
            close_timeout: Seconds that `close` waits for what is under way.
            producer_options: More of kafka-python's producer options (security, compression, linger …).
        """
        self._bootstrap_servers = bootstrap_servers
        self.topic = topic
        self._buffer_events = buffer_events
        self._delivery_timeout = delivery_timeout
        self._close_timeout = close_timeout
        self._producer_options = dict(producer_options or {})
        self._definitions = None if definitions_topic is None else _Definitions(definitions_topic, self._producer)
        self._span: _Span | None = None
        self._lock = threading.Lock()
        self._accepted = self._sent = self._failed = 0
        self._failed_logged = 0
        self._logged = float("-inf")

    @property
    def counts(self) -> DeliveryCounts:
        """What became of the events so far."""
        with self._lock:
            return DeliveryCounts(self._accepted, self._sent, self._failed)

    @property
    def definition_counts(self) -> DeliveryCounts:
        """What became of the definitions so far; `sent` ones are acknowledged, `failed` ones were given up at a close."""
        return self._definitions.counts if self._definitions else DeliveryCounts(0, 0, 0)

    async def open(self) -> None:
        """Start the sending thread.

        Raises:
            ModuleNotFoundError: kafka-python is not installed.
            ValueError: an option that kafka-python's producer does not know.
        """
        if self._span is not None:
            return
        driver = await asyncio.to_thread(  # the import takes 0.2 s, and other sagas run on
            load, "kafka", needed_by="KafkaListener", package="kafka-python", extra="kafka"
        )
        producer_class = driver.KafkaProducer
        if unknown := set(self._producer_options) - set(producer_class.DEFAULT_CONFIG):
            known = ", ".join(sorted(producer_class.DEFAULT_CONFIG))
            msg = f"unknown producer_options {sorted(unknown)}; known: {known}"
            raise ValueError(msg)
        if self._span is None:  # else opened by another saga meanwhile
            self._span = span = _Span(producer_class)
            span.thread = threading.Thread(target=self._run, args=(span,), name="sagascope-kafka", daemon=True)
            span.at_exit = atexit.register(partial(self._stop, span))  # for a service that forgets to close
            span.thread.start()

    async def write(self, events: Sequence[SagaEvent]) -> None:
        if not events:
            return
        while (span := self._span) is None:
            await self.open()
        with self._lock:
            under_way = span.under_way
            room = min(len(events), max(0, self._buffer_events - under_way))
            refused = len(events) - room
            span.under_way += room
            self._accepted += len(events)
            self._failed += refused
        deadline = time.monotonic() + self._delivery_timeout
        for event in events[:room]:
            span.queue.put((deadline, event))
        if refused:
            self._log_failed(f"{under_way} events are under way already, buffer_events={self._buffer_events}")
        if self._definitions:
            for event in events:
                self._definitions.tell(event, span)

    async def close(self) -> None:
        """Wait up to `close_timeout` for what is under way; the rest is counted as failed. A later write reopens."""
        span, self._span = self._span, None
        if span is not None:
            await asyncio.to_thread(self._stop, span)

    def _stop(self, span: _Span) -> None:
        span.closing.set()
        span.queue.put(_CLOSE)
        span.thread.join(self._close_timeout + _GRACE_SECONDS)
        if self._definitions:
            self._definitions.stop(_GRACE_SECONDS)
        atexit.unregister(span.at_exit)
        with self._lock:
            self._failed += span.under_way
            span.under_way, span.over = 0, True  # what a driver may still say of an event no longer counts
        self._log_failed("closed before a broker took them", now=True)

    def _run(self, span: _Span) -> None:
        producer = self._connect(span)
        if producer is None:
            return
        while not span.over:
            self._give_up_late(span)
            _, event = span.queue.get()
            if event is None:
                break
            try:
                future = producer.send(
                    self.topic,
                    key=event.saga_id.encode("utf-8", "replace"),
                    value=encode(event),
                    headers=headers(event),
                )
                future.add_callback(self._count_sent, span).add_errback(self._count_error, span)
            except Exception as error:  # noqa: BLE001 - whatever it is, the event is counted and the thread lives on
                self._count_error(span, error)
        self._finish(producer)

    def _connect(self, span: _Span) -> Any:
        """A producer, tried for until there is one; None when closed before. Tried once even if closed at once."""
        while True:
            try:
                return self._producer(span)
            except Exception as error:  # noqa: BLE001 - a service must come up without its broker
                self._give_up_late(span)
                self._log("no broker at %s yet: %s", self._bootstrap_servers, error)
                if span.closing.wait(_RETRY_SECONDS):
                    return None

    def _producer(self, span: _Span, **own: Any) -> Any:
        """A producer with these options of its own; raises what kafka-python does where no broker answers."""
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
        producer = span.producer_class(**options | self._producer_options | own)
        atexit.unregister(span.at_exit)  # the producer registered itself to be closed at exit:
        if not span.over:
            atexit.register(span.at_exit)  # be called before it, which is after it in order
        return producer

    def _give_up_late(self, span: _Span) -> None:
        """Count as failed what is past its deadline: the eldest come first, and only this thread takes any out."""
        waiting = span.queue.queue
        while waiting and waiting[0][0] <= time.monotonic():
            span.queue.get()
            self._count_error(span, TimeoutError(f"no broker to take it within {self._delivery_timeout:g} s"))

    def _finish(self, producer: Any) -> None:
        try:
            producer.flush(timeout=self._close_timeout)
        except Exception as error:  # noqa: BLE001 - what is left is counted by _stop
            self._log("flush of topic %s: %s", self.topic, error)
            producer._sender.force_close()  # noqa: SLF001 - close() would flush again and fail, its thread running on
        try:
            producer.close(timeout=1.0)
        except Exception as error:  # noqa: BLE001
            self._log("close of the producer: %s", error)

    def _count_sent(self, span: _Span, _metadata: object) -> None:
        with self._lock:
            if not span.over:
                span.under_way -= 1
                self._sent += 1

    def _count_error(self, span: _Span, error: BaseException) -> None:
        with self._lock:
            if span.over:
                return
            span.under_way -= 1
            self._failed += 1
        self._log_failed(f"{type(error).__name__}: {error}")

    def _log_failed(self, reason: str, *, now: bool = False) -> None:
        """Say how many failed, if more did since it was said last."""
        failed = self.counts.failed
        if failed > self._failed_logged and self._log(
            "%d saga events could not be sent to topic %s so far; last: %s", failed, self.topic, reason, now=now
        ):
            self._failed_logged = failed

    def _log(self, message: str, *arguments: object, now: bool = False) -> bool:
        """Once in ten seconds, or now: a broker that is down is one fact, not one an event."""
        moment = time.monotonic()
        if not now and moment - self._logged < _LOG_EVERY_SECONDS:
            return False
        self._logged = moment
        logger.warning(message, *arguments)
        return True


class _Span:
    """From one open to its close. An event is settled once: sent, failed, or left when the span is over."""

    thread: threading.Thread
    at_exit: Callable[[], None]

    def __init__(self, producer_class: Any) -> None:
        self.producer_class = producer_class
        self.queue: queue.Queue[tuple[float, SagaEvent | None]] = queue.Queue()
        """Each with its deadline by the monotonic clock; no event means close."""
        self.closing = threading.Event()
        self.under_way = 0
        self.over = False


class _Definitions:
    """Publishes definitions, each until a broker has acknowledged it.

    By a thread and a producer of its own, which last as long as there is something to publish: kafka-python waits for
    the metadata of a topic that is missing, and no event is to wait behind that.
    """

    def __init__(self, topic: str, connect: Callable[..., Any]) -> None:
        self._topic = topic
        self._connect = connect
        self._lock = threading.Lock()
        self._waiting: dict[str, bytes] = {}
        self._published: dict[str, None] = {}
        self._accepted = self._sent = self._failed = 0
        self._thread: threading.Thread | None = None
        self._ended = True

    @property
    def counts(self) -> DeliveryCounts:
        with self._lock:
            return DeliveryCounts(self._accepted, self._sent, self._failed)

    def tell(self, event: SagaEvent, span: _Span) -> None:
        """Have the definition of the event's saga published, unless it was or is under way."""
        key = event.definition_id
        if key is None or key in self._published or (definition := recall(key)) is None:
            return
        with self._lock:
            if key in self._waiting or len(self._waiting) == KEPT:
                return
            self._waiting[key] = encode_definition(definition, event.service)
            self._accepted += 1
            if self._ended:
                self._thread = threading.Thread(target=self._run, args=(span,), name=_DEFINITIONS_THREAD, daemon=True)
                self._thread.start()
                self._ended = False

    def stop(self, timeout: float) -> None:
        """Give up, after `timeout` seconds, what is under way: the next event of such a saga has it tried again."""
        if self._thread:
            self._thread.join(timeout)
        with self._lock:
            self._thread, self._ended, left = None, True, len(self._waiting)
            self._failed += left
            self._waiting.clear()
        if left:
            logger.warning("closed before %d definitions of sagas were acknowledged in topic %s", left, self._topic)

    def _run(self, span: _Span) -> None:
        producer: Any = None
        pause = _RETRY_SECONDS
        while record := self._next(span):
            key, value = record
            try:
                producer = producer or self._connect(span, **_SHORT_TIMEOUTS)
                producer.send(self._topic, key=key.encode(), value=value).get(timeout=15.0)
            except Exception as error:  # noqa: BLE001 - whatever it is, the sagas run on
                if pause > _RETRY_SECONDS:  # the first failure may be a broker that is a moment late
                    logger.warning("a saga's definition is not in topic %s yet: %r", self._topic, error)
                if span.closing.wait(pause):
                    break
                pause = min(2 * pause, _LONGEST_RETRY_SECONDS)
            else:
                self._acknowledged(key)
                pause = _RETRY_SECONDS
        with suppress(Exception):  # all that it took is acknowledged or given up
            producer.close(timeout=1.0)

    def _next(self, span: _Span) -> tuple[str, bytes] | None:
        """The one that waits longest since its last try; None when none came for a while, which ends the thread."""
        if not self._waiting:
            span.closing.wait(_LINGER_SECONDS)
        with self._lock:
            ours = self._thread is threading.current_thread()  # else given up by a close
            if not self._waiting or not ours:
                self._ended = self._ended or ours
                return None
            key = next(iter(self._waiting))
            value = self._waiting[key] = self._waiting.pop(key)  # to the end: one that can't be sent holds up no other
            return key, value

    def _acknowledged(self, key: str) -> None:
        with self._lock:
            if self._waiting.pop(key, None) is not None:
                self._sent += 1
            self._published[key] = None
            if len(self._published) > KEPT:
                del self._published[next(iter(self._published))]
