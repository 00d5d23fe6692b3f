"""What becomes of events that KafkaListener took over, whatever the driver does: kafka-python's producer is played."""

from __future__ import annotations

import asyncio
import atexit
import logging
import math
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import kafka
import pytest
from kafka.errors import KafkaTimeoutError
from kafka.future import Future

from sagascope.cloudevents import headers
from sagascope.events import decode
from sagascope.listeners import kafka as kafka_listener
from sagascope.listeners.kafka import DeliveryCounts, KafkaListener
from tests.sagascope.conftest import ManualClock, make_event, threads, until

if TYPE_CHECKING:
    from pathlib import Path

    from sagascope.events import SagaEvent


class Broker:
    """What the fake producers of a test share: what is to happen, and what did."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.tries = 0
        self.down: float = 0
        self.sent: list[dict[str, Any]] = []
        self.late: list[Future] = []
        self.closed = 0
        self.blocked = threading.Event()

    def producer(self, **options: Any) -> Producer:
        """A producer, or an error for as many tries as the broker is down."""
        self.tries += 1
        if self.tries <= self.down:
            msg = "no broker"
            raise KafkaTimeoutError(msg)
        return Producer(self)


class Producer:
    """kafka-python's producer, as far as the listener knows it."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def send(self, topic: str, **record: Any) -> Future:
        """Do with the record what the test planned: ok, error, raise, late (only after the close) or block."""
        self._broker.sent.append({"topic": topic} | record)
        outcome = self._broker.outcomes.pop(0) if self._broker.outcomes else "ok"
        future = Future()
        if outcome == "block":
            self._broker.blocked.wait(10)
        if outcome == "raise":
            msg = "no metadata"
            raise KafkaTimeoutError(msg)
        if outcome == "ok":
            future.success(object())
        elif outcome == "error":
            future.failure(KafkaTimeoutError("expired"))
        else:
            self._broker.late.append(future)
        return future

    def flush(self, timeout: float) -> None:
        """Nothing is held."""

    def close(self, timeout: float) -> None:
        """Count it."""
        self._broker.closed += 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Broker:
    """kafka-python's producer replaced by one that does what the test says."""
    broker = Broker()
    make: Any = broker.producer

    class FakeProducer:
        DEFAULT_CONFIG = kafka.KafkaProducer.DEFAULT_CONFIG

        def __new__(cls, **options: Any) -> Any:
            return make(**options)

    monkeypatch.setattr(kafka, "KafkaProducer", FakeProducer)
    return broker


def some(number: int, saga_id: str = "o-1") -> list[SagaEvent]:
    """Events of one saga."""
    return [make_event(saga_id=saga_id, sequence=n) for n in range(number)]


@pytest.mark.parametrize(
    ("outcomes", "counts"),
    [
        (["ok"] * 4, (4, 4, 0)),
        (["ok", "error", "ok", "error"], (4, 2, 2)),
        (["raise", "ok", "raise", "ok"], (4, 2, 2)),
        (["late", "ok", "late", "late"], (4, 1, 3)),
        (["late", "error", "raise", "ok"], (4, 1, 3)),
    ],
    ids=lambda value: ",".join(map(str, value)),
)
def test_every_event_is_counted_once(fake: Broker, outcomes: list[str], counts: tuple[int, int, int]) -> None:
    """After close, accepted = sent + failed, also where the driver answers only later, or never."""
    fake.outcomes = list(outcomes)
    listener = KafkaListener(close_timeout=0.1)

    async def main() -> None:
        async with listener:
            await listener.write(some(4))

    asyncio.run(main())
    assert listener.counts == counts
    for number, future in enumerate(fake.late):
        future.success(object()) if number % 2 else future.failure(KafkaTimeoutError("closed"))
    assert listener.counts == counts
    assert fake.closed == 1


def test_records_are_keyed_by_saga_and_in_order(fake: Broker) -> None:
    """One record an event, in the order written: key saga_id, value the event's JSON, CloudEvents in the headers."""
    events = [make_event(saga_id="ö\ud800"), *some(20), *some(20, "o-2")]
    listener = KafkaListener(topic="sagas")

    async def main() -> None:
        async with listener:
            await listener.write(events[:5])
            for event in events[5:]:
                await listener.write([event])

    asyncio.run(main())
    assert [record["key"] for record in fake.sent] == ["ö?".encode(), *[b"o-1"] * 20, *[b"o-2"] * 20]
    assert [decode(record["value"]).event_id for record in fake.sent] == [event.event_id for event in events]
    assert [record["headers"] for record in fake.sent] == [headers(event) for event in events]
    assert {record["topic"] for record in fake.sent} == {"sagas"}


def test_an_event_that_cannot_be_written_is_counted_and_the_next_are_sent(fake: Broker) -> None:
    """An event no header can hold (a time beyond the year 9999) fails alone."""
    listener = KafkaListener()

    async def main() -> None:
        async with listener:
            await listener.write([*some(1), make_event(timestamp=2**63 - 1), *some(1)])

    asyncio.run(main())
    assert listener.counts == DeliveryCounts(accepted=3, sent=2, failed=1)


def test_a_broker_that_comes_up_late_gets_all(fake: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """What was written before there was a broker is sent once there is one, in order."""
    fake.down = 1
    listener = KafkaListener()

    async def main() -> None:
        async with listener:
            await listener.write(some(3))
            await until(lambda: listener.counts.sent == 3)
            assert listener.counts == DeliveryCounts(accepted=3, sent=3, failed=0)

    asyncio.run(main())
    assert [decode(record["value"]).sequence for record in fake.sent] == [0, 1, 2]
    assert "no broker at localhost:9092 yet" in caplog.text
    assert "could not be sent" not in caplog.text


def test_without_a_connection_an_event_is_given_up_when_its_time_is_over(
    fake: Broker, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`delivery_timeout` holds before the first connection too: what is late fails, makes room, and is never sent."""
    monkeypatch.setattr(kafka_listener, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(kafka_listener, "time", clock.clock)
    fake.down = math.inf
    listener = KafkaListener(delivery_timeout=60, buffer_events=4)

    async def tried_again() -> None:
        before = fake.tries
        await until(lambda: fake.tries > before + 1)

    async def main() -> None:
        async with listener:
            await listener.write(some(3, "late"))
            clock.advance(59)
            await listener.write(some(1, "in time"))
            await tried_again()
            assert listener.counts == DeliveryCounts(accepted=4, sent=0, failed=0)
            clock.advance(1)
            await until(lambda: listener.counts.failed > 0)
            await tried_again()
            assert listener.counts == DeliveryCounts(accepted=4, sent=0, failed=3)
            await listener.write(some(3, "in time"))
            fake.down = 0
            await until(lambda: listener.counts.sent > 0)

    asyncio.run(main())
    assert [record["key"] for record in fake.sent] == [b"in time"] * 4
    assert listener.counts == DeliveryCounts(accepted=7, sent=4, failed=3)
    assert "3 saga events could not be sent to topic saga-events so far" in caplog.text


def test_a_topic_that_is_missing_costs_the_wait_for_it_once(
    fake: Broker, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What became late behind a send that blocked is given up without a wait of its own; what comes later is sent."""
    monkeypatch.setattr(kafka_listener, "time", clock.clock)
    fake.outcomes = ["block"]
    listener = KafkaListener(delivery_timeout=60)

    async def main() -> None:
        async with listener:
            await listener.write(some(3, "late"))
            await until(lambda: len(fake.sent) == 1)
            clock.advance(30)
            await listener.write(some(2, "in time"))
            clock.advance(30)
            fake.blocked.set()
            await until(lambda: listener.counts.sent == 2)
            assert listener.counts == DeliveryCounts(accepted=5, sent=2, failed=2)

    asyncio.run(main())
    assert [record["key"] for record in fake.sent] == [b"late", b"in time", b"in time"]


def test_a_write_after_close_opens_anew(fake: Broker) -> None:
    """What a close gave up is not sent later; what is written afterwards is, and a second close counts again."""
    fake.down = math.inf
    listener = KafkaListener(close_timeout=0.1)

    async def main() -> None:
        await listener.write(some(2, "given up"))
        await until(lambda: fake.tries > 0)
        await listener.close()
        fake.down = 0
        assert listener.counts == DeliveryCounts(accepted=2, sent=0, failed=2)
        await listener.write(some(2, "new"))
        await listener.write(some(1, "new"))
        await listener.close()

    asyncio.run(main())
    assert [record["key"] for record in fake.sent] == [b"new"] * 3
    assert listener.counts == DeliveryCounts(accepted=5, sent=3, failed=2)


def test_a_closed_listener_leaves_nothing_to_do_at_exit(fake: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening and closing over and over keeps no listener alive until the interpreter's exit."""
    registered: list[Any] = []

    def register(call: Any) -> Any:
        registered.append(call)
        return call

    monkeypatch.setattr(atexit, "register", register)
    monkeypatch.setattr(atexit, "unregister", registered.remove)

    async def main() -> None:
        for _ in range(3):
            async with KafkaListener() as listener:
                await listener.write(some(1))

    asyncio.run(main())
    assert registered == []


def test_many_first_writes_at_once_open_once(fake: Broker) -> None:
    """Sagas that start together share one sending thread."""
    listener = KafkaListener()

    async def main() -> None:
        await asyncio.gather(*(listener.write(some(1, f"o-{n}")) for n in range(50)))
        await listener.close()

    asyncio.run(main())
    assert listener.counts == DeliveryCounts(accepted=50, sent=50, failed=0)
    assert fake.closed == 1


def test_a_driver_that_hangs_does_not_hang_close(fake: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A send that waits for metadata of a missing topic can't be interrupted: close gives all up in time."""
    monkeypatch.setattr(kafka_listener, "_GRACE_SECONDS", 0.1)
    fake.outcomes = ["ok", "block", "ok"]
    listener = KafkaListener(close_timeout=0.1)

    async def main() -> float:
        await listener.write(some(3))
        await until(lambda: listener.counts.sent == 1)
        began = time.perf_counter()
        await listener.close()
        return time.perf_counter() - began

    took = asyncio.run(main())
    assert took < 5  # the driver hangs for ten seconds
    assert listener.counts == DeliveryCounts(accepted=3, sent=1, failed=2)
    fake.blocked.set()
    asyncio.run(until(lambda: not threads()))
    assert len(fake.sent) == 2
    assert listener.counts == DeliveryCounts(accepted=3, sent=1, failed=2)


def test_failures_are_logged_once_in_ten_seconds_and_summed_up_at_close(
    fake: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A hundred failures are two lines: the first at once, the total at the end; a close with nothing new says nothing."""
    caplog.set_level(logging.INFO, "sagascope")
    fake.outcomes = ["error"] * 100
    listener = KafkaListener()

    async def main() -> None:
        for number in (100, 1, 1):
            await listener.write(some(number))
            await listener.close()

    asyncio.run(main())
    lines = [r.getMessage() for r in caplog.records if r.name == "sagascope.listeners.kafka"]
    assert [line.split(maxsplit=1)[0] for line in lines] == ["1", "100"]
    assert "expired" in lines[0]


FORGETFUL = """
import asyncio, sys
from sagascope import KafkaListener
from tests.sagascope.conftest import make_event

async def main():
    await KafkaListener().write([make_event(sequence=n) for n in range(20)])
    await asyncio.sleep(float(sys.argv[1]))

asyncio.run(main())
"""
STUB = """
import atexit, time

class Done:
    def add_callback(self, call, *arguments):
        call(*arguments, None)
        return self
    add_errback = lambda self, call, *arguments: self

class KafkaProducer:
    DEFAULT_CONFIG = {}
    open = True
    def __init__(self, **options):
        time.sleep(0.1)
        atexit.register(self.close)
    def send(self, topic, **record):
        time.sleep(0.01)
        assert self.open, "already closed"
        print("sent", flush=True)
        return Done()
    def flush(self, timeout): pass
    def close(self, timeout=None): self.open = False
"""


@pytest.mark.parametrize("pause", ["0", "0.2"], ids=["before there is a producer", "while it sends"])
def test_a_service_that_forgets_to_close_loses_nothing(tmp_path: Path, pause: str) -> None:
    """At the interpreter's exit all that is under way is sent, before kafka-python closes its producer itself."""
    (tmp_path / "kafka.py").write_text(STUB)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    ran = subprocess.run(
        [sys.executable, "-c", FORGETFUL, pause],
        env=os.environ | {"PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout.count("sent") == 20
    assert ran.stderr == ""
