"""From an outbox in PostgreSQL to Kafka, on real servers."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from typing import TYPE_CHECKING

import asyncpg
import pytest

from pipelines import stack
from pipelines.relay.kafka import LARGE_BYTES
from pipelines.relay.outbox import PostgresSource
from pipelines.relay.work import Pace
from sagascope import PostgresOutbox
from sagascope.cloudevents import headers
from sagascope.events import encode
from tests.pipelines.relay.conftest import (
    SLOW,
    Topic,
    firsts,
    make_topic,
    process,
    relaying,
    sagas,
    sent,
    until,
    written,
)
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import a_run

if TYPE_CHECKING:
    from pathlib import Path

    from sagascope.events import SagaEvent
    from warehouse.settings import Settings

pytestmark = pytest.mark.broker


def source(dsn: str, *, pass_on: bool = False) -> PostgresSource:
    """A relay's."""
    return PostgresSource(dsn, "PostgreSQL", pass_on=pass_on)


async def append(dsn: str, events: list[SagaEvent]) -> None:
    """Committed when this returns."""
    outbox = PostgresOutbox(dsn)
    await outbox.append(events)
    await outbox.close()


async def statuses(dsn: str) -> dict[str, int]:
    """How many rows are in each."""
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch("SELECT status, count(*) FROM sagascope_outbox GROUP BY 1")
    await connection.close()
    return {row[0]: row[1] for row in rows}


def test_the_record_is_what_the_kafka_listener_writes(dsn: str, topic: Topic) -> None:
    """Key, value and headers, byte for byte, also of an id that no text column takes; and the row is sent only then."""
    events = [*a_run("order-1"), make_event(saga_id="nul-\0-and-\ud800")]

    async def main() -> None:
        await append(dsn, events)
        async with relaying(source(dsn), topic.target()) as figures:
            await until(lambda: sent(figures) == len(events))
        assert await statuses(dsn) == {"sent": len(events)}

    asyncio.run(main())
    records = sorted(topic.records(len(events)), key=lambda record: record.value)
    expected = sorted(events, key=encode)
    assert [record.value for record in records] == [encode(event) for event in expected]
    assert [record.key for record in records] == [event.saga_id.encode("utf-8", "replace") for event in expected]
    assert [record.headers for record in records] == [headers(event) for event in expected]


def test_a_commit_wakes_the_relay(dsn: str, topic: Topic) -> None:
    """While its polling is set to 60 s, an event is in the topic within 100 ms of its commit."""
    waits = []

    async def main() -> None:
        outbox = PostgresOutbox(dsn)
        await outbox.append(a_run("first"))
        async with relaying(source(dsn), topic.target(), SLOW) as figures:
            await until(lambda: sent(figures) == 4)
            await asyncio.sleep(1)  # idle: only a notification can wake it
            for number in range(20):
                await outbox.append([make_event(saga_id=f"order-{number}")])
                began = time.perf_counter()
                await until(lambda number=number: sent(figures) == 5 + number)  # type: ignore[misc] # of the loop
                waits.append(time.perf_counter() - began)
        await outbox.close()

    asyncio.run(main())
    assert sorted(waits)[-2] < 0.1, waits  # one pause of the machine is no fault of the relay


def test_a_service_that_notifies_nobody_is_found_by_polling(dsn: str, topic: Topic) -> None:
    """Where NOTIFY is turned off, the rows are sent within the time of a poll."""

    async def main() -> None:
        outbox = PostgresOutbox(dsn, notify=False)
        await outbox.open()
        async with relaying(source(dsn), topic.target(), Pace(poll_seconds=0.2)) as figures:
            await asyncio.sleep(1)
            await outbox.append(a_run("order-1"))
            await until(lambda: sent(figures) == 4, 10)
        await outbox.close()

    asyncio.run(main())


def test_a_rollback_wakes_nobody_and_a_late_commit_is_not_missed(dsn: str, topic: Topic) -> None:
    """Of two transactions the one that began first commits last, beneath what was sent already; it is sent, too."""
    early, late, undone = a_run("early"), a_run("late"), a_run("undone")

    async def main() -> None:
        outbox = PostgresOutbox(dsn)
        await outbox.open()
        one, two, three = [await asyncpg.connect(dsn) for _ in range(3)]
        async with relaying(source(dsn), topic.target(), SLOW) as figures:
            await one.execute("BEGIN")
            async with outbox.using(one):
                await outbox.append(late)  # the lower positions
            await three.execute("BEGIN")
            async with outbox.using(three):
                await outbox.append(undone)
            await two.execute("BEGIN")
            async with outbox.using(two):
                await outbox.append(early)
            await two.execute("COMMIT")
            await until(lambda: sent(figures) == 4)
            await three.execute("ROLLBACK")
            await one.execute("COMMIT")
            await until(lambda: sent(figures) == 8)
        for connection in (one, two, three):
            await connection.close()
        await outbox.close()

    asyncio.run(main())
    assert firsts(topic.records(8)) == written(early + late)


@pytest.mark.parametrize("seed", range(2))
def test_three_relays_keep_each_sagas_order(dsn: str, topic: Topic, seed: int) -> None:
    """Of each saga the topic's first occurrences are in order, while events go on being written; each is sent once."""
    chance = random.Random(seed)
    runs = [a_run(f"order-{n}") for n in range(300)]
    events: list[SagaEvent] = []

    async def services(outbox: PostgresOutbox) -> None:
        left = [list(run) for run in runs]
        while left:
            run = chance.choice(left[:20])
            some = [run.pop(0) for _ in range(min(len(run), chance.randint(1, 3)))]
            events.extend(some)
            await outbox.append(some)
            left = [run for run in left if run]

    async def main() -> None:
        outbox = PostgresOutbox(dsn)
        await outbox.append(events)
        await outbox.open()
        pace = Pace(batch_size=7)
        async with (
            relaying(source(dsn), topic.target(), pace) as one,
            relaying(source(dsn), topic.target(), pace) as two,
            relaying(source(dsn), topic.target(), pace) as three,
        ):
            await services(outbox)
            await until(lambda: sent(one) + sent(two) + sent(three) == len(events))
            assert min(map(sent, (one, two, three))) > 0
        await outbox.close()

    asyncio.run(main())
    records = topic.records(len(events))
    assert len(records) == len(events)
    assert firsts(records) == written(events)


def test_a_poison_row_blocks_only_its_saga(dsn: str, topic: Topic) -> None:
    """A row that the broker finds too large is parked with its error; what follows in its saga waits, all else is sent."""
    poison = make_event(saga_id="poisoned", attributes={"big": "ö" * 30_000})
    before, after = a_run("poisoned")[:2], a_run("poisoned")[2:]
    others = sagas(50)

    async def main() -> None:
        await append(dsn, [*before, poison, *after, *others])
        blocking = source(dsn)
        async with relaying(blocking, topic.target()) as figures:
            await until(lambda: sent(figures) == len(before) + len(others))
            assert (await blocking.backlog())._replace(lag_seconds=0) == (2, 0, 1, 2)
            [parked] = await blocking.parked()
            assert (parked.event_id, "MessageSizeTooLarge" in parked.reason) == (poison.event_id, True)
            assert await blocking.discard_parked([poison.event_id]) == 1
            await until(lambda: sent(figures) == len(before) + len(others) + len(after))  # woken by the discard

    asyncio.run(main())
    assert firsts(topic.records(54)) == written([*before, *after, *others])


def test_what_follows_a_poison_row_passes_where_that_is_chosen(dsn: str, topic: Topic) -> None:
    """The setting `pass`: the rest of the saga is sent, the row stays parked; sent again it comes last."""
    poison = make_event(saga_id="poisoned", attributes={"big": "ö" * 30_000})
    run = a_run("poisoned")

    async def main() -> None:
        await append(dsn, [*run[:2], poison, *run[2:]])
        passing = source(dsn, pass_on=True)
        async with relaying(passing, topic.target(), Pace(pass_on=True)) as figures:
            await until(lambda: sent(figures) == len(run))
            assert (await passing.backlog()) == (0, 0, 1, 0)
            assert await passing.retry_parked([poison.event_id]) == 1
            async with asyncio.timeout(20):
                while not (await passing.parked() and (await passing.parked())[0].attempts == 2):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    asyncio.run(main())
    assert firsts(topic.records(4)) == written(run)


def test_large_events_keep_their_place(dsn: str, topic: Topic) -> None:
    """One that is sent alone for its size comes after those before it in its saga, and before those after it."""
    runs = []
    for number in range(10):
        run = a_run(f"order-{number}")
        large = make_event(saga_id=f"order-{number}", attributes={"big": "x" * 2 * LARGE_BYTES})
        runs.append([run[0], large, *run[1:]])
    events = [event for run in runs for event in run]

    async def main() -> None:
        await append(dsn, events)
        async with relaying(source(dsn), topic.target()) as figures:
            await until(lambda: sent(figures) == len(events))

    asyncio.run(main())
    assert firsts(topic.records(len(events))) == written(events)


def test_a_kill_in_the_middle_loses_nothing(dsn: str, topic: Topic, tmp_path: Path) -> None:
    """Relays that are killed with SIGKILL again and again: every event is in the topic, each saga's in order."""
    chance = random.Random(7)
    events = sagas(1_500)

    async def main() -> None:
        await append(dsn, events)
        connection = await asyncpg.connect(dsn)
        for _ in range(3):
            before = (await statuses(dsn)).get("sent", 0)
            with process(tmp_path, "--from", dsn, "--to", topic.url) as relay:
                async with asyncio.timeout(60):
                    while (await statuses(dsn)).get("sent", 0) == before:  # noqa: ASYNC110 - another process's doing
                        await asyncio.sleep(0.02)
                await asyncio.sleep(chance.uniform(0, 0.1))
                relay.send_signal(signal.SIGKILL)
            # as if the lease had ended
            await connection.execute(
                "UPDATE sagascope_outbox SET claimed_at = claimed_at - interval '1 h' WHERE status = 'claimed'"
            )
        await connection.close()
        async with relaying(source(dsn), topic.target()):
            async with asyncio.timeout(60):
                while await statuses(dsn) != {"sent": len(events)}:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    asyncio.run(main())
    records = topic.records(len(events))
    assert firsts(records) == written(events)
    assert len(records) <= len(events) + 3 * 3 * 2_000  # three kills, three batches under way


def test_a_stop_gives_back_what_was_taken(dsn: str, topic: Topic, tmp_path: Path) -> None:
    """SIGTERM under load: within 10 s the process is gone with exit code 0, nothing is claimed, nothing was sent twice."""
    events = sagas(4_000)

    async def main() -> None:
        await append(dsn, events)
        with process(tmp_path, "--from", dsn, "--to", topic.url) as relay:
            async with asyncio.timeout(60):
                while not (await statuses(dsn)).get("sent"):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            began = time.monotonic()
            relay.terminate()
            code = await asyncio.to_thread(relay.wait, 12)
            assert (code, time.monotonic() - began < 10) == (0, True)
        now = await statuses(dsn)
        assert "claimed" not in now
        assert now["sent"] + now.get("pending", 0) == len(events)
        assert len(topic.records()) == now["sent"]

    asyncio.run(main())


def test_a_broker_that_is_killed_and_comes_back(dsn: str, local: Settings) -> None:
    """Meanwhile the relay neither loses, parks nor spins; then everything is sent, in order, and a stop works while it is down."""
    broker = stack.up(local)
    topic = make_topic(broker.bootstrap_servers)
    first, second = sagas(50), sagas(50)

    async def main() -> None:
        await append(dsn, first)
        async with relaying(source(dsn), topic.target()) as figures:
            await until(lambda: sent(figures) == len(first))
            assert broker.process
            await asyncio.to_thread(broker.process.kill)
            await append(dsn, second)
            began = time.process_time()
            await asyncio.sleep(15)
            assert time.process_time() - began < 5
            batches = figures.registry.get_sample_value("sagascope_relay_batch_size_count") or 0
            assert batches < 30
            await asyncio.to_thread(stack.up, local)
            await until(lambda: sent(figures) == len(first) + len(second), 60)
            down = stack.status(local)
            assert down
            assert down.process
            await asyncio.to_thread(down.process.kill)
            await append(dsn, sagas(5))
            await asyncio.sleep(1)
            began = time.monotonic()
        assert time.monotonic() - began < 10
        assert await statuses(dsn) == {"sent": 400, "pending": 20}

    try:
        asyncio.run(main())
        stack.up(local)
        assert firsts(topic.records(400)) == written(first + second)
    finally:
        stack.down(local)


def test_sent_rows_are_purged_after_their_retention(dsn: str, topic: Topic) -> None:
    """In small batches, beside the work; what is younger stays."""
    events = sagas(600)

    async def main() -> None:
        await append(dsn, events)
        async with relaying(source(dsn), topic.target()) as figures:
            await until(lambda: sent(figures) == len(events))
        connection = await asyncpg.connect(dsn)
        old = "UPDATE sagascope_outbox SET sent_at = sent_at - interval '8 days' WHERE saga_id <> $1"
        await connection.execute(old, events[0].saga_id)
        await connection.close()
        async with relaying(source(dsn), topic.target()) as figures:
            await until(lambda: figures.registry.get_sample_value("sagascope_relay_purged_total") == len(events) - 4)
        assert await statuses(dsn) == {"sent": 4}

    asyncio.run(main())


def test_a_connection_that_is_lost_is_made_again(dsn: str, topic: Topic) -> None:
    """The server ends every session of the relay, the listening one too: later commits are sent, and wake it again."""

    async def main() -> None:
        outbox = PostgresOutbox(dsn)
        await outbox.open()
        pace = Pace(poll_seconds=0.5)
        async with relaying(source(dsn), topic.target(), pace) as figures:
            await outbox.append(a_run("one"))
            await until(lambda: sent(figures) == 4)
            connection = await asyncpg.connect(dsn)
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await connection.close()
            other = PostgresOutbox(dsn)
            await other.append(a_run("two"))
            await until(lambda: sent(figures) == 8)
            await other.close()
        await outbox.close()

    asyncio.run(main())
    assert len(firsts(topic.records(8))) == 2
