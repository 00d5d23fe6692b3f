"""RedisCacheListener on a real Redis server."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from sagascope.events import STEP_EVENTS, EventType, SagaEvent, new_id
from sagascope.listeners.redis_cache import CachedSaga, RedisCacheListener
from sagascope.scope import saga_scope
from tests.sagascope.conftest import a_whole_life, make_event
from tests.sagascope.listeners.contract import NetworkedContract, a_run
from tests.servers.redis import flush

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from sagascope.listener import EventListener


def client_at(port: int, **options: Any) -> Any:
    """A client as the docstring advises; Any, because redis-py's types are those of both its clients at once."""
    return Redis(port=port, socket_timeout=5, retry=Retry(NoBackoff(), 0), **options)


@asynccontextmanager
async def listening(port: int, ttl: float = 3600, **options: Any) -> AsyncIterator[tuple[RedisCacheListener, Any]]:
    """A listener, and its client."""
    async with client_at(port, **options) as client, RedisCacheListener(client, ttl) as listener:
        yield listener, client


async def held(client: Any, saga_id: str) -> dict[str, str]:
    """The saga's hash."""
    reply = await client.execute_command("HGETALL", f"saga:{saga_id}")
    return {field.decode(): value.decode() for field, value in reply.items()}


@pytest.fixture
def port(redis_server: int) -> int:
    """Of an empty Redis."""
    flush(redis_server)
    return redis_server


class TestRedisCache(NetworkedContract):
    """The laws of every listener, on the real server."""

    name = "RedisCacheListener"
    drivers: ClassVar[Sequence[str]] = ("redis",)
    extra = "redis"

    def unopened(self, tmp_path: Path) -> EventListener:
        return RedisCacheListener(client_at(1))

    def expected(self, events: Sequence[SagaEvent]) -> list[str]:
        """The newest event of each saga."""
        return list({event.saga_id: event.event_id for event in events}.values())

    @asynccontextmanager
    async def at(self, port: int) -> AsyncIterator[EventListener]:
        async with client_at(port) as client:
            yield RedisCacheListener(client)

    async def stored(self, port: int) -> list[str]:
        async with client_at(port) as client:
            return [(await client.hget(key, "event_id")).decode() for key in await client.keys("saga:*")]

    @pytest.fixture(autouse=True)
    def server(self, port: int) -> int:
        return port


RUN = new_id()


def test_the_hash_of_a_run_that_succeeds(port: int) -> None:
    """The hash has the documented fields, as text, and nothing else; an absent value is an absent field."""
    events = a_run("order-1")

    async def main() -> None:
        async with listening(port) as (listener, client):
            await listener.write(events)
            fields = await held(client, "order-1")
            assert {field: value for field, value in fields.items() if not field.startswith("_")} == {
                "name": "order",
                "status": "completed",
                "run_id": events[0].run_id,
                "started_at": "2026-05-28T20:26:40.000Z",
                "updated_at": "2026-05-28T20:26:40.003Z",
                "ended_at": "2026-05-28T20:26:40.003Z",
                "duration_ms": "15",
                "step_name": "pay",
                "step_event": "step_completed",
                "step_attempt": "1",
                "step_duration_ms": "12",
                "event_id": events[-1].event_id,
                "event_type": "saga_completed",
                "sequence": "3",
            }
            assert {field for field in fields if field.startswith("_")} == {
                "_newest",
                "_status",
                "_started",
                "_step",
                "_error",
            }

    asyncio.run(main())


@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 3}], ids=["bytes", "text", "RESP3"])
def test_get_reads_it_back(port: int, options: dict[str, Any]) -> None:
    """What was written is read as typed values, by any kind of client; of an unknown saga there is nothing."""
    events = a_run("order-ö/{1}\n")

    async def main() -> None:
        async with listening(port, **options) as (listener, _):
            assert await listener.get("order-ö/{1}\n") is None
            await listener.write(events)
            assert await listener.get("order-ö/{1}\n") == CachedSaga(
                saga_id="order-ö/{1}\n",
                name="order",
                status="completed",
                run_id=events[0].run_id,
                started_at=datetime(2026, 5, 28, 20, 26, 40, tzinfo=UTC),
                updated_at=datetime(2026, 5, 28, 20, 26, 40, 3000, tzinfo=UTC),
                ended_at=datetime(2026, 5, 28, 20, 26, 40, 3000, tzinfo=UTC),
                duration_ms=15,
                step_name="pay",
                step_event=EventType.STEP_COMPLETED,
                step_attempt=1,
                step_duration_ms=12,
                event_id=events[-1].event_id,
                event_type=EventType.SAGA_COMPLETED,
                sequence=3,
            )

    asyncio.run(main())


def test_the_life_of_a_saga_in_its_status(port: int) -> None:
    """Told by a running saga, the status goes from running over compensating to failed, and the failure is named."""

    class Watched(RedisCacheListener):
        statuses: ClassVar[list[str]] = []

        async def write(self, events: Sequence[SagaEvent]) -> None:
            await super().write(events)
            saga = await self.get(events[-1].saga_id)
            assert saga is not None
            if self.statuses[-1:] != [saga.status]:
                self.statuses.append(saga.status)

    async def main() -> None:
        async with client_at(port) as client, Watched(client) as listener:
            async with saga_scope("order-1", "order", listeners=[listener], service="shop") as saga:
                await a_whole_life(saga)
            assert listener.statuses == ["running", "compensating", "failed"]
            cached = await listener.get("order-1")
            assert cached is not None
            assert (cached.error_type, cached.error_message) == ("ValueError", "card refused")
            assert (cached.step_name, cached.step_event) == ("notify", EventType.COMPENSATION_FAILED)
            assert cached.service == "shop"

    asyncio.run(main())


def test_a_failure_that_was_overcome_is_not_kept(port: int) -> None:
    """While a saga runs its last failure is shown; once it completed there is none."""

    def event(sequence: int, kind: EventType, **fields: Any) -> SagaEvent:
        return make_event(run_id=RUN, sequence=sequence, event_type=kind, **fields)

    async def main() -> None:
        async with listening(port) as (listener, _):
            await listener.write([event(0, EventType.STEP_FAILED, step_name="pay", error_type="Declined")])
            await listener.write([event(1, EventType.STEP_COMPLETED, step_name="pay", attempt=2)])
            saga = await listener.get("order-17")
            assert saga is not None
            assert (saga.error_type, saga.error_message) == ("Declined", "Declined")
            await listener.write([event(2, EventType.SAGA_COMPLETED, total_duration_ms=0)])
            saga = await listener.get("order-17")
            assert saga is not None
            assert (saga.error_type, saga.error_message, saga.duration_ms) == (None, None, 0)

    asyncio.run(main())


def test_a_straggler_does_not_set_an_ended_run_running_again(port: int) -> None:
    """A step that ends after its saga did is its newest event, and the saga stays ended."""
    events = a_run("order-1")
    late = make_event(
        event_type=EventType.STEP_COMPLETED, saga_id="order-1", run_id=events[0].run_id, sequence=4, step_name="slow"
    )

    async def main() -> None:
        async with listening(port) as (listener, _):
            await listener.write([*events, late])
            saga = await listener.get("order-1")
            assert saga is not None
            assert (saga.status, saga.duration_ms, saga.step_name, saga.sequence) == ("completed", 15, "slow", 4)

    asyncio.run(main())


@st.composite
def histories(draw: st.DrawFn) -> list[SagaEvent]:
    """What happened to one saga: up to three runs, each with events of any types, in order."""
    texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=5)
    events = []
    for run_id in sorted(new_id() for _ in range(draw(st.integers(1, 3)))):
        kinds = draw(st.lists(st.sampled_from(EventType), min_size=1, max_size=6))
        first = draw(st.sampled_from([0, 8, 2**53, 2**63 - 7]))
        for sequence, kind in enumerate(kinds, first):
            fields: dict[str, Any] = {
                "event_type": kind,
                "run_id": run_id,
                "sequence": sequence,
                "timestamp": draw(st.integers(0, 2**63 - 1)),
                "step_name": draw(texts) if kind in STEP_EVENTS else None,
                "error_type": draw(texts | st.none()),
                "total_duration_ms": draw(st.integers(0, 2**63 - 1) | st.none()),
                "duration_ms": draw(st.integers(0, 9) | st.none()),
                "service": draw(texts | st.none()),
            }
            events.append(make_event(**fields))
    return events


@given(history=histories(), data=st.data())
def test_any_order_with_duplicates_leaves_the_same_hash(redis_server: int, history: list[SagaEvent], data: Any) -> None:
    """In any order, repeated, in batches of any size, by two writers at once: the hash is that of once in order."""
    repeated = data.draw(st.lists(st.sampled_from(history), max_size=6))
    delivered = data.draw(st.permutations(history + repeated))
    cut = data.draw(st.integers(0, len(delivered)))
    size = data.draw(st.integers(1, 8))

    async def main() -> None:
        async with listening(redis_server) as (listener, client):
            await client.flushall()
            await listener.write(history)
            in_order = await held(client, "order-17")
            await client.flushall()

            async def deliver(events: Sequence[SagaEvent]) -> None:
                for start in range(0, len(events), size):
                    await listener.write(events[start : start + size])

            await asyncio.gather(deliver(delivered[:cut]), deliver(delivered[cut:]))
            assert await held(client, "order-17") == in_order
            newest = history[-1]
            assert (in_order["run_id"], in_order["event_id"]) == (newest.run_id, newest.event_id)

    asyncio.run(main())


def test_a_later_run_begins_anew(port: int) -> None:
    """A saga_id that runs again has nothing left of the run before, and late events of that one change nothing."""
    first, second = sorted((a_run("order-1"), a_run("order-1")), key=lambda events: events[0].run_id)
    second = second[:1]

    async def main() -> None:
        async with listening(port) as (listener, client):
            await listener.write(first)
            await listener.write(second)
            again = await held(client, "order-1")
            assert again["status"] == "running"
            assert "duration_ms" not in again
            assert "step_name" not in again
            await listener.write(first)
            assert await held(client, "order-1") == again

    asyncio.run(main())


def test_every_event_renews_the_ttl(port: int) -> None:
    """The hash lives for ttl from the latest event of its run on, duplicates too; then it is gone."""
    events = a_run("order-1")

    async def main() -> None:
        async with listening(port, ttl=1000) as (listener, client):
            for event in (*events, events[0]):
                await listener.write([event])
                assert 999_000 < await client.pttl("saga:order-1") <= 1_000_000
                await client.pexpire("saga:order-1", 5_000)
        async with listening(port, ttl=0.02) as (listener, _):
            await listener.write(events)
            async with asyncio.timeout(10):
                while await listener.get("order-1"):  # noqa: ASYNC110 - of a server there is no asyncio.Event
                    await asyncio.sleep(0.01)

    asyncio.run(main())


@pytest.mark.parametrize("ttl", [0, -1, 0.0001, float("nan")])
def test_a_ttl_that_keeps_nothing_is_refused(ttl: float) -> None:
    """A ttl has to be at least a millisecond."""
    with pytest.raises(ValueError, match=r"ttl: got .*; allowed: seconds"):
        RedisCacheListener(client_at(1), ttl)


def test_a_batch_is_one_round_trip(port: int) -> None:
    """500 events cost one round trip to a server that knows the script."""
    events = [event for n in range(125) for event in a_run(f"order-{n}")]

    async def main() -> None:
        async with listening(port) as (listener, client):
            await listener.write(events[:1])
            trips = 0
            send = client.connection_pool.connection_class.send_packed_command

            async def counted(*arguments: Any, **options: Any) -> None:
                nonlocal trips
                trips += 1
                await send(*arguments, **options)

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(client.connection_pool.connection_class, "send_packed_command", counted)
                await listener.write(events)
            assert trips == 1
            assert len(await client.keys("saga:*")) == 125

    asyncio.run(main())


def test_large_and_odd_values(port: int) -> None:
    """Long names, a lone surrogate, zero bytes: all are kept as UTF-8, and read back."""
    saga_id = "\x00 {a}:\ud800" + "x" * 100_000
    event = make_event(
        saga_id=saga_id,
        saga_name="n" * 1_000_000,
        event_type=EventType.SAGA_FAILED,
        error_type="E",
        error_message="é" * 9_000,
    )

    async def main() -> None:
        async with listening(port) as (listener, _):
            await listener.write([event] * 5)
            saga = await listener.get(saga_id)
            assert saga is not None
            assert (saga.name, saga.error_message) == (event.saga_name, event.error_message)

    asyncio.run(main())


def test_writers_at_once_share_a_client(port: int) -> None:
    """Many tasks may write through one listener, each batch complete when its write returns."""
    order = random.Random(11)
    events = [event for n in range(50) for event in a_run(f"order-{n}")]
    order.shuffle(events)

    async def main() -> None:
        async with listening(port) as (listener, client):
            await asyncio.gather(*(listener.write(events[n : n + 10]) for n in range(0, len(events), 10)))
            for n in range(50):
                assert (await held(client, f"order-{n}"))["status"] == "completed"

    asyncio.run(main())
