"""The topic as a target, by kafka-python."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kafka import KafkaProducer
from kafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    SaslAuthenticationFailedError,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)

from pipelines.relay.ends import PUBLISH_SECONDS, Outcome, RelayError, Target, by_saga
from sagascope.errors import TransientError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sagascope.outbox.storage import ClaimedEvent

logger = logging.getLogger(__name__)

LARGE_BYTES = 4_096
"""An event of so many may be refused for its size by a topic that takes others: it is sent alone."""
_LARGEST_REQUEST_BYTES = 90_000_000
"""More makes a broker close the connection (socket.request.max.bytes, 100 MiB), without a word that it is too large."""
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
_REFUSALS = (SaslAuthenticationFailedError, UnsupportedSaslMechanismError)
_FINAL = (*_TOO_LARGE, TypeError, ValueError)
"""What the same event will always meet; the last two before it leaves this process."""
_CONNECT_SECONDS = 4.0
"""For a broker to answer, and again for it to know the topic."""


class KafkaTarget(Target):
    """Publishes to a topic: key saga_id, value the event's JSON, headers as KafkaListener writes them.

    Events of a saga go to one partition, one request after the other, so that a retry never overtakes. The producer is
    idempotent, and thrown away with all that it still holds at its first failure: what would follow a failed event in
    its queues must not be sent before it.
    """

    def __init__(self, servers: str, topic: str, options: Mapping[str, Any] | None = None) -> None:
        """Do no I/O yet.

        Args:
            servers: host:port, or several, parted by commas.
            topic: The topic; must exist, or the broker must create it.
            options: More of kafka-python's producer options: security, compression …
        """
        self._servers = servers
        self.topic = topic
        self._options = dict(options or {})
        self._producer: Any = None
        self._large: Any = None
        self._large_connecting = threading.Lock()
        self._connecting = asyncio.Lock()

    def __str__(self) -> str:
        """Where it is, without credentials."""
        return f"topic {self.topic} of Kafka at {self._servers}"

    async def open(self) -> None:
        if self._producer is not None:
            return
        async with self._connecting:
            if self._producer is None:
                self._producer = await asyncio.to_thread(self._connect, enable_idempotence=True)

    async def publish(self, events: Sequence[ClaimedEvent], *, pass_on: bool) -> Outcome:
        outcome, many, few = Outcome(), [], []
        for saga in by_saga(events):
            if any(len(event.payload) > LARGE_BYTES for event in saga):
                few.append(saga)
            else:
                many += saga
        await asyncio.gather(
            self._send_all(many, outcome), *(self._send_in_turn(saga, outcome, pass_on=pass_on) for saga in few)
        )
        return outcome

    async def close(self) -> None:
        for producer in (self._producer, self._large):
            if producer is not None:
                await asyncio.to_thread(_throw_away, producer)
        self._producer = self._large = None

    async def _send_all(self, events: Sequence[ClaimedEvent], outcome: Outcome) -> None:
        """Hand all over at once; the order is the producer's to keep, until it fails."""
        if not events:
            return
        try:
            await self.open()
        except (TransientError, RelayError) as error:  # a topic that was there at the start may come back
            outcome.left += events
            outcome.failure = str(error)
            return
        producer = self._producer
        answers = _Answers(producer, events)
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                await asyncio.to_thread(self._hand_over, events, answers)
                await answers.all
        except TimeoutError:
            outcome.failure = f"{self} did not acknowledge within {PUBLISH_SECONDS:.0f} s"
        finally:
            if answers.failed or not answers.all.done() or answers.all.cancelled():
                self._forget(producer)
        if not answers.failed and outcome.failure is None:
            outcome.sent += events
            return
        for place, event in enumerate(events):
            answer = answers.error_of(place)
            if answer is None:
                outcome.sent.append(event)
            elif isinstance(answer, _FINAL):
                outcome.rejected.append((event, _said(answer)))
            else:
                outcome.left.append(event)
        if outcome.failure is None and (first := answers.first_error) and not isinstance(first, _FINAL):
            outcome.failure = _said(first)

    def _hand_over(self, events: Sequence[ClaimedEvent], answers: _Answers) -> None:
        """In a thread: it may wait for the topic's metadata."""
        send, topic = answers.producer.send, self.topic
        for place, event in enumerate(events):
            if answers.failed:
                return
            try:
                future = send(topic, key=event.key, value=event.payload, headers=event.headers)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
                answers.of[place] = error
                answers.fail(error)
                return
            answers.of[place] = future.add_errback(answers.fail)
            if place in answers.last_of_sagas:
                future.add_callback(answers.taken)

    async def _send_in_turn(self, saga: Sequence[ClaimedEvent], outcome: Outcome, *, pass_on: bool) -> None:
        """Each when the one before it is acknowledged: one that is refused holds back what follows."""
        for place, event in enumerate(saga):
            try:
                await asyncio.to_thread(self._send_alone, event)
            except _FINAL as error:
                outcome.rejected.append((event, _said(error)))
                if pass_on:
                    continue
                outcome.left += saga[place + 1 :]
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, the event is left
                outcome.left += saga[place:]
                outcome.failure = outcome.failure or _said(error)
                return
            outcome.sent.append(event)

    def _send_alone(self, event: ClaimedEvent) -> None:
        """By a producer without sequence numbers, which goes on after a refusal where an idempotent one is done for."""
        with self._large_connecting:
            if self._large is None:
                self._large = self._connect(enable_idempotence=False)
        sent = self._large.send(self.topic, key=event.key, value=event.payload, headers=event.headers)
        sent.get(timeout=PUBLISH_SECONDS)

    def _forget(self, producer: Any) -> None:
        if self._producer is producer:
            self._producer = None
        asyncio.get_running_loop().run_in_executor(None, _throw_away, producer)

    def _connect(self, **own: Any) -> Any:
        options: dict[str, Any] = {
            "bootstrap_servers": self._servers.split(","),
            "client_id": "sagascope-relay",
            "acks": "all",
            "linger_ms": 2,
            "batch_size": 131_072,
            "max_in_flight_requests_per_connection": 1,
            "max_request_size": _LARGEST_REQUEST_BYTES,
            "max_block_ms": 8_000,
            "delivery_timeout_ms": 60_000,  # beyond ours: none is given up while others go on
            "request_timeout_ms": 8_000,
            "bootstrap_timeout_ms": int(_CONNECT_SECONDS * 1000),
            "reconnect_backoff_max_ms": 1_000,
        }
        overheard = _Overheard()
        try:
            with overheard:
                producer = KafkaProducer(**options | self._options | own)
        except (AssertionError, ValueError, TypeError) as error:  # of the options
            msg = f"Kafka: {error}: look at the options in the query of --to"
            raise RelayError(msg) from None
        except (KafkaError, OSError) as error:
            cause = overheard.cause or error
            if isinstance(cause, _REFUSALS):
                msg = f"Kafka at {self._servers} lets nobody in ({_said(cause)}): look at user, password and the options sasl_… of --to"
                raise RelayError(msg) from None
            msg = f"no Kafka answers at {self._servers} ({_said(cause)})"
            raise TransientError(msg) from None
        try:
            self._look_for_topic(producer)
        except BaseException:
            _throw_away(producer)
            raise
        return producer

    def _look_for_topic(self, producer: Any) -> None:
        """Until it is there: a broker that makes topics by itself takes a moment.

        Raises:
            RelayError: it is not, or may not be written.
        """
        deadline = time.monotonic() + _CONNECT_SECONDS
        while time.monotonic() < deadline:
            try:
                if producer.partitions_for(self.topic):
                    return
            except TopicAuthorizationFailedError:
                msg = f"Kafka at {self._servers} does not allow topic {self.topic}: give the relay's user Write and Describe on it"
                raise RelayError(msg) from None
            except KafkaError as error:
                logger.debug("topic %s: %s", self.topic, error)
            time.sleep(0.2)
        msg = f"Kafka at {self._servers} has no topic {self.topic}: make it, or name another one in --to kafka://host:port/topic"
        raise RelayError(msg)


_UNKNOWN = TimeoutError("not known")


class _Answers:
    """What the producer says of each event of a batch, from its own thread and from the one that hands over.

    An event is acknowledged after those before it in its partition, or the producer has failed: so the last of each
    saga is waited for, and the others are asked only after a failure.
    """

    def __init__(self, producer: Any, events: Sequence[ClaimedEvent]) -> None:
        self.producer = producer
        self.last_of_sagas = set({event.key: place for place, event in enumerate(events)}.values())
        self.of: list[Any] = [_UNKNOWN] * len(events)
        """The future of each, or why there is none."""
        self.failed = False
        self.first_error: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._missing = len(self.last_of_sagas)
        self.all: asyncio.Future[None] = self._loop.create_future()
        """Done when each has an answer, or the producer has failed: then nothing more is to be expected."""

    def taken(self, _metadata: object) -> None:
        """The broker has the last of a saga."""
        with self._lock:
            self._missing -= 1
            is_last = self._missing == 0
        if is_last:
            self._tell()

    def fail(self, error: BaseException) -> None:
        """The first failure ends the producer, here in its own thread, before it sends what comes after."""
        self.producer._sender.force_close()  # noqa: SLF001 - close() would first send all that waits
        with self._lock:
            is_first, self.failed = not self.failed, True
        if is_first:
            self.first_error = error
            self._tell()

    def error_of(self, place: int) -> BaseException | None:
        """None: the broker has it."""
        answer = self.of[place]
        if isinstance(answer, BaseException):
            return answer
        if not answer.is_done:
            return _UNKNOWN
        error: BaseException | None = answer.exception
        return error

    def _tell(self) -> None:
        with suppress(RuntimeError):  # the loop is over
            self._loop.call_soon_threadsafe(self._set_done)

    def _set_done(self) -> None:
        if not self.all.done():
            self.all.set_result(None)


class _Overheard(logging.Handler):
    """Why kafka-python could not connect, which it logs, and raises as a time-out whatever it was."""

    _logger = logging.getLogger("kafka.net.manager")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.cause: BaseException | None = None

    def __enter__(self) -> None:
        self._logger.setLevel(logging.WARNING)
        self._logger.propagate = False
        self._logger.addHandler(self)

    def __exit__(self, *exc_info: object) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = True
        self._logger.setLevel(logging.NOTSET)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the last error that is told."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        errors = [one for one in arguments if isinstance(one, BaseException)]
        if errors and not isinstance(self.cause, _REFUSALS):
            self.cause = errors[-1]


def _throw_away(producer: Any) -> None:
    """End it without sending what waits."""
    producer._sender.force_close()  # noqa: SLF001 - close() would first send all that waits
    with suppress(Exception):  # it is given up
        producer.close(timeout=1.0)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]
