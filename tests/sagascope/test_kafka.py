"""KafkaListener without a broker: what it promises when nobody answers. `tests/integration/` has the real broker."""

from __future__ import annotations

import asyncio
import importlib.abc
import re
import socket
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import kafka
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagascope.cloudevents import headers
from sagascope.integrations.sagaz import FanOutSaga
from sagascope.listeners.kafka import DeliveryCounts, KafkaListener
from tests.sagascope.conftest import MemoryListener, make_event, ok, threads

if TYPE_CHECKING:
    from sagascope.events import SagaEvent

QUICK = {"bootstrap_timeout_ms": 100}


@pytest.fixture
def nobody() -> str:
    """An address on this machine where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def some(number: int, saga_id: str = "o-1") -> list[SagaEvent]:
    """Events of one saga."""
    return [make_event(saga_id=saga_id, sequence=n) for n in range(number)]


def test_constructing_does_no_io_and_starts_no_thread() -> None:
    """A listener can be made anywhere, at import too; closing it before it opened, and twice, does nothing."""
    before = threading.enumerate()
    listener = KafkaListener("nowhere.invalid:9092")

    async def main() -> None:
        await listener.close()
        await listener.close()
        await listener.write(())
        await listener.close()

    assert threading.enumerate() == before
    asyncio.run(main())
    assert threads() == set()
    assert listener.counts == DeliveryCounts(accepted=0, sent=0, failed=0)


def test_a_broker_that_is_down_holds_nobody_up(
    nobody: str, memory: MemoryListener, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a broker write returns at once and the saga goes on; close counts every event as failed, and logs it."""
    listener = KafkaListener(nobody, close_timeout=0.2, producer_options=QUICK)
    waits: list[float] = []

    async def main() -> None:
        async with listener:
            for event in some(100):
                began = time.perf_counter()
                await listener.write([event])
                waits.append(time.perf_counter() - began)
            await FanOutSaga("order", listeners=[listener, memory]).add_step("pay", ok).run({})
            assert listener.counts == DeliveryCounts(accepted=104, sent=0, failed=0)

    asyncio.run(main())
    assert sorted(waits)[50] < 0.01
    assert max(waits) < 1
    assert len(memory.events) == 4
    assert listener.counts == DeliveryCounts(accepted=104, sent=0, failed=104)
    ours = [r.getMessage() for r in caplog.records if r.name == "sagascope.listeners.kafka"]
    assert ours[0].startswith(f"no broker at {nobody} yet: ")
    assert ours[-1] == (
        "104 saga events could not be sent to topic saga-events so far; last: closed before a broker took them"
    )
    assert threads() == set()


def test_what_does_not_fit_is_refused_counted_and_logged(nobody: str, caplog: pytest.LogCaptureFixture) -> None:
    """No more than buffer_events are held: the rest fails at once, and the log says why."""
    listener = KafkaListener(nobody, buffer_events=3, close_timeout=0.2, producer_options=QUICK)

    async def main() -> None:
        await listener.write(some(2))
        await listener.write(some(5))
        assert listener.counts == DeliveryCounts(accepted=7, sent=0, failed=4)
        await listener.write(some(1))
        assert listener.counts == DeliveryCounts(accepted=8, sent=0, failed=5)
        await listener.close()

    asyncio.run(main())
    assert listener.counts == DeliveryCounts(accepted=8, sent=0, failed=8)
    assert "2 events are under way already, buffer_events=3" in caplog.text


def test_a_broker_that_died_with_events_in_the_driver(
    nobody: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """kafka-python's own flush and close fail on a batch nobody takes: it is counted, and no thread is left behind."""
    monkeypatch.setattr(kafka.KafkaProducer, "_wait_on_metadata", lambda *_: {0})
    monkeypatch.setattr(kafka.KafkaProducer, "_partition", lambda *_: 0)
    listener = KafkaListener(nobody, close_timeout=0.2, producer_options={"api_version": (2, 6)})

    async def main() -> None:
        async with listener:
            await listener.write(some(5))

    asyncio.run(main())
    assert listener.counts == DeliveryCounts(accepted=5, sent=0, failed=5)
    assert "flush of topic saga-events: " in caplog.text
    assert threads() == set()


def test_an_unknown_option_is_refused_and_the_known_ones_listed() -> None:
    """A misspelt producer option is an error at open and at write, naming it and what there is; nothing is accepted."""
    listener = KafkaListener(producer_options={"acks": "all", "linger": 5})

    async def main() -> None:
        for attempt in (listener.open(), listener.write(some(1))):
            with pytest.raises(ValueError, match=r"\['linger'\]; known: acks, .*linger_ms.*ssl_password"):
                await attempt

    asyncio.run(main())
    assert listener.counts == DeliveryCounts(accepted=0, sent=0, failed=0)
    assert threads() == set()


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without kafka-python, open says what to install."""
    monkeypatch.setitem(sys.modules, "kafka", None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'sagascope[kafka]'")):
        asyncio.run(KafkaListener().open())


def test_the_driver_is_not_imported_on_the_event_loop(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """kafka-python's import takes 0.2 s: it is done by another thread, and other sagas run on meanwhile."""
    importing: list[threading.Thread] = []

    class Watch(importlib.abc.MetaPathFinder):
        def find_spec(self, fullname: str, path: object, target: object = None) -> None:
            if fullname == "kafka":
                importing.append(threading.current_thread())

    monkeypatch.setattr(sys, "meta_path", [Watch(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "kafka")
    listener = KafkaListener(nobody, close_timeout=0.0, producer_options=QUICK)

    async def main() -> None:
        await listener.open()
        await listener.close()

    asyncio.run(main())
    assert len(importing) == 1
    assert importing[0] is not threading.main_thread()


def test_headers_are_cloudevents_in_binary_mode() -> None:
    """The attributes stand in `ce_` headers as the Kafka protocol binding has it, the data's type in content-type."""
    event = make_event(event_id="e-1", service="Bestell-Büro 7", saga_id="o-ö", timestamp=1_700_000_000_005)
    assert headers(event) == [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"e-1"),
        ("ce_source", b"Bestell-B%C3%BCro%207"),
        ("ce_type", b"sagascope.saga_started"),
        ("ce_subject", "o-ö".encode()),
        ("ce_time", b"2023-11-14T22:13:20.005Z"),
        ("content-type", b"application/json"),
    ]
    assert dict(headers(make_event()))["ce_source"] == b"sagascope"


@given(st.integers(0, 253_402_300_799_999), st.text(st.characters(), min_size=1))
def test_headers_of_any_event_are_exact(timestamp: int, text: str) -> None:
    """ce_time is RFC 3339 to the millisecond for any time up to the year 9999; any text makes bytes, ce_source ASCII."""
    event = make_event(timestamp=timestamp, service=text, saga_id=text, event_id=text)
    values = dict(headers(event))
    moment = values["ce_time"].decode()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moment)
    since_epoch = datetime.fromisoformat(moment) - datetime(1970, 1, 1, tzinfo=UTC)
    assert since_epoch == timedelta(milliseconds=timestamp)
    assert values["ce_source"].decode("ascii")
    assert values["ce_id"].decode() == values["ce_subject"].decode() == text.encode("utf-8", "replace").decode()
