"""WebhookListener against a real endpoint in a process of its own."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from itertools import product
from typing import TYPE_CHECKING

import pytest

from sagascope import EventType, FanOut, PartialError, PermanentError, TransientError, WebhookListener
from sagascope.listeners.webhook import ENDS
from tests.sagascope.conftest import make_event, until
from tests.sagascope.listeners.contract import NetworkedContract
from tests.sagascope.listeners.webhooks import SECRET, ends, got, ids, to, written
from tests.servers.webhook_receiver import Receiver, receiving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


class TestWebhook(NetworkedContract):
    """The laws of every listener."""

    name = "WebhookListener"
    drivers = ("httpx", "httpcore")
    extra = "webhook"
    idempotent = False

    def unopened(self, tmp_path: Path) -> WebhookListener:
        return to(9, event_types=EventType)

    @asynccontextmanager
    async def at(self, port: int) -> AsyncIterator[WebhookListener]:
        async with to(port, event_types=EventType, secret=SECRET) as listener:
            yield listener

    async def stored(self, port: int) -> list[str]:
        return got(Receiver(port))

    @pytest.fixture(autouse=True)
    def server(self, receiver: Receiver) -> int:
        return receiver.port


def test_by_default_it_tells_how_sagas_end(receiver: Receiver) -> None:
    """A webhook for each end, well or not, and none for what happens before."""
    events = [make_event(event_type=kind, step_name="pay") for kind in EventType]
    written(to(receiver.port), events)
    assert {received.content["event"] for received in receiver.received} == set(ENDS)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *product((200, 201, 202, 204, 299), [None]),
        *product((302, 303, 307, 408, 425, 429, 500, 502, 503, 504, 599), [TransientError]),
        *product((300, 301, 304, 308, 400, 401, 403, 404, 405, 409, 413, 422, 451, 499), [PermanentError]),
    ],
)
def test_only_2xx_is_success(receiver: Receiver, status: int, kind: type[Exception] | None) -> None:
    """Every other status fails, in the way that its definition says."""
    receiver.plan({"status": status})
    if kind is None:
        written(to(receiver.port), ends(1))
        return
    with pytest.raises(kind, match=rf"webhook to http://127\.0\.0\.1:{receiver.port}: .*{status}"):
        written(to(receiver.port), ends(1))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        ("Tue, 14 Nov 2023 22:14:20", 60.0),
        ("Tue, 14 Nov 2023 22:12:20 GMT", 0.0),
        ("9" * 5_000, 86_400.0),
        ("Sun, 14 Nov 9999 22:13:20 GMT", 86_400.0),
        ("-5", None),
        ("soon", None),
        ("1e3", None),
        (None, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_the_wait_that_it_asks_for(receiver: Receiver, status: int, header: str | None, seconds: float | None) -> None:
    """Retry-After counts as seconds or as a date, a day at most; what is neither counts as not said."""
    receiver.plan({"status": status, "headers": {"Retry-After": header} if header else {}})
    with pytest.raises(TransientError) as told:
        written(to(receiver.port, clock=lambda: 1_700_000_000.0), ends(1))
    assert told.value.retry_after == seconds


def test_gone_ends_it_until_enabled(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """After a 410 no request is made, every event is rejected, and that is said once; `enable` begins anew."""
    receiver.plan({"status": 204}, {"status": 410})
    events = ends(5)

    async def main() -> None:
        async with to(receiver.port, concurrency=1) as listener:
            with pytest.raises(PartialError) as told:
                await listener.write(events)
            assert ids([event for event, _ in told.value.rejected]) == ids(events[1:])
            assert all("410 Gone" in reason for _, reason in told.value.rejected)
            assert listener.disabled
            with pytest.raises(PermanentError, match=r"410 Gone, .* until enable\(\) is called"):
                await listener.write(events[:1])
            assert len(receiver.received) == 2
            listener.enable()
            await listener.write(events[:1])
            assert not listener.disabled

    asyncio.run(main())
    assert [record.levelname for record in caplog.records if record.name.startswith("sagascope")] == ["ERROR"]


def test_a_batch_says_of_each_event_what_became_of_it(receiver: Receiver) -> None:
    """One event that is wrong, and one that has to wait, cost no event of another saga; what waits keeps its order."""
    receiver.plan({"status": 204}, {"status": 422}, {"status": 204}, {"status": 500})
    first, second, third = (ends(3, saga_id=f"order-{n}") for n in range(3))

    async def main() -> None:
        async with to(receiver.port, concurrency=1) as listener:
            with pytest.raises(PartialError, match=r"500 .*\(3 of 9 events were not taken, 1 were rejected\)") as told:
                await listener.write([event for three in zip(second, first, third, strict=True) for event in three])
            error = told.value
            ((rejected, reason),) = error.rejected
            assert "422 Unprocessable" in reason
            assert rejected is second[1]
            assert list(error.retry) == first
            await listener.write(error.retry)

    asyncio.run(main())
    arrived = got(receiver)
    assert arrived == [*ids(second), first[0].event_id, *ids(third), *ids(first)]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_endpoint_that_is_too_busy_is_left_alone(receiver: Receiver, status: int) -> None:
    """What would meet every event ends the batch; the rest is named, with the wait that was asked for."""
    receiver.plan({"status": 204}, {"status": status, "headers": {"Retry-After": "3"}})
    events = ends(10)

    async def main() -> None:
        async with to(receiver.port, concurrency=1) as listener:
            with pytest.raises(PartialError) as told:
                await listener.write(events)
            assert ids(told.value.retry) == ids(events[1:])
            assert (told.value.rejected, told.value.retry_after) == ([], 3.0)

    asyncio.run(main())
    assert len(receiver.received) == 2


def test_sagas_go_side_by_side_each_in_order(receiver: Receiver) -> None:
    """A batch of 500 from 20 sagas, and a second writer: each event once, those of one saga in order."""
    first = [event for n in range(25) for saga in range(20) for event in ends(1, saga_id=f"{saga}")]
    second = ends(100, saga_id="another")

    async def main() -> None:
        async with to(receiver.port) as listener:
            await asyncio.gather(listener.write(first), listener.write(second))

    asyncio.run(main())
    arrived = got(receiver)
    assert sorted(arrived) == sorted(ids(first + second))
    for saga_id in {event.saga_id for event in first + second}:
        of_saga = [event.event_id for event in first + second if event.saga_id == saga_id]
        assert [event_id for event_id in arrived if event_id in set(of_saga)] == of_saga


def test_what_a_cancelled_write_delivered_is_not_sent_again(receiver: Receiver) -> None:
    """A time limit that cuts a batch costs only the event under way: a batch tried again goes on where it was."""
    receiver.plan({"status": 204}, {"status": 204}, {"status": 204, "seconds": 60})
    events = ends(5)

    async def main() -> None:
        async with to(receiver.port, concurrency=1, timeout=60) as listener:
            writing = asyncio.create_task(listener.write(events))
            await until(lambda: len(receiver.received) == 3)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            await listener.write(events)
            assert got(receiver) == ids([*events[:3], *events[2:]])
            await listener.write(events[:1])  # told of as delivered since: sent again is sent again
            assert len(receiver.received) == 7

    asyncio.run(main())


def test_an_answer_that_does_not_come_is_transient(receiver: Receiver) -> None:
    """A request has its own time limit, and leaves the listener usable."""
    receiver.plan({"status": 204, "seconds": 60})

    async def main() -> None:
        async with to(receiver.port, timeout=0.2) as listener:
            with pytest.raises(TransientError, match=r"no answer within 0\.2 s"):
                await listener.write(ends(1))
            await listener.write(ends(1))

    asyncio.run(main())


def test_an_endpoint_killed_and_restarted(tmp_path: Path) -> None:
    """What was under way when it died, or came while it was down, is transient; once it is back all arrives."""
    events = ends(4, saga_id="order-1")

    async def main() -> None:
        with receiving(tmp_path) as endpoint:
            endpoint.plan({"status": 204}, {"status": 204, "seconds": 60})
            listener = to(endpoint.port, timeout=60)
            writing = asyncio.create_task(listener.write(events))
            await until(lambda: len(endpoint.received) == 2)
            assert endpoint.kill is not None
            endpoint.kill()
            with pytest.raises(PartialError, match=r"ReadError|RemoteProtocolError") as told:
                await writing
        assert list(told.value.retry) == events[1:]
        with pytest.raises(TransientError, match="ConnectError"):
            await listener.write(told.value.retry)
        with receiving(tmp_path, port=endpoint.port) as again:
            await listener.write(told.value.retry)
            assert got(again) == ids(events[1:])
            await listener.close()

    asyncio.run(main())


def test_a_close_while_a_request_is_under_way(receiver: Receiver) -> None:
    """The writer is told that it may try again; nothing hangs."""
    receiver.plan({"status": 204, "seconds": 60})

    async def main() -> None:
        listener = to(receiver.port, timeout=60, concurrency=1)
        await listener.open()
        writing = [asyncio.create_task(listener.write(ends(2))) for _ in range(2)]
        await until(lambda: len(receiver.received) == 1)
        async with asyncio.timeout(10):
            await listener.close()
            results = await asyncio.gather(*writing, return_exceptions=True)
        assert [type(result) for result in results] == [TransientError, TransientError]
        await listener.write(ends(1))
        await listener.close()

    asyncio.run(main())


def test_a_fan_out_delivers_in_the_end(receiver: Receiver) -> None:
    """Behind a fan-out, an endpoint that refuses at first gets every event, each saga's in order."""
    receiver.plan({"status": 503, "headers": {"Retry-After": "0"}}, {"status": 500}, {"status": 429})
    events = ends(3, saga_id="order-1") + ends(3, saga_id="order-2")

    async def main() -> None:
        async with FanOut([to(receiver.port)]) as fan_out:
            await fan_out.write(events)
        assert fan_out.counts["WebhookListener"].delivered == 6

    asyncio.run(main())
    arrived = got(receiver)
    for saga in ("order-1", "order-2"):
        last_tries = [event_id for event_id in arrived if event_id in ids([e for e in events if e.saga_id == saga])]
        assert list(dict.fromkeys(last_tries)) == ids([e for e in events if e.saga_id == saga])


@pytest.mark.parametrize("saga_id", ["a.b/c?d#e", "ö\n\t\0", "\ud800", "名前"])
def test_odd_names_and_big_events_arrive(receiver: Receiver, saga_id: str) -> None:
    """Whatever text an event holds, the request is a valid one, and is verified."""
    receiver.plan(secret=SECRET)
    event = make_event(
        event_type=EventType.SAGA_FAILED, saga_id=saga_id, error_type="E", error_message="é\x00" * 500_000
    )
    written(to(receiver.port, secret=SECRET), [event])
    (received,) = receiver.received
    assert received.verified
    assert json.loads(received.body)["saga_id"] == saga_id.replace("\ud800", "?")
