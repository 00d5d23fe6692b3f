"""How fast the relay is, PostgreSQL to Kafka: `pipelines.relay`.

Starts a PostgreSQL with synchronous commits to the disk and a Kafka broker of its own, and the command `sagascope relay` as a
user does. Figures, each the median of so many turns:

- events/s: a backlog of committed events, from the first in the topic to the last. Baselines of the same rows in the same
  turn: *read*, a plain SELECT that throws them away; *settled*, claimed and marked sent but not published; *producer*, the
  relay's own target without a database.
- commit → topic: events of 64 sagas at once, committed one transaction a step, 2,000 a second; from when the commit has
  returned to when a consumer has the record, p50 and p99.

- what waking costs a service (`--only notify`): commits a second of one event each, sixteen connections at once, with NOTIFY
  as part of each against without, in turns.

Every event is counted: the topic holds each at least once, and each saga's in order. Below 15,000 events/s or beyond 100 ms:
exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import msgspec
import psutil
from kafka import KafkaConsumer, TopicPartition

from bench.relay_load import events_of, fill
from pipelines import stack
from pipelines.ports import free_port
from pipelines.relay.kafka import KafkaTarget
from sagascope import PostgresOutbox
from sagascope.outbox.storage import claimed_event
from tests.servers import postgresql
from tests.servers.server import state_folder
from warehouse.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAST_EVENTS_A_SECOND, MOST_SECONDS = 15_000, 0.1


class Turn(NamedTuple):
    """What one turn of the throughput gave."""

    read: float
    settled: float
    producer: float
    relay: float
    relay_cpu_per_million: float
    database_cpu_per_million: float
    others: float


class Latency(NamedTuple):
    """What one turn of the latency gave, in seconds."""

    p50: float
    p99: float
    rate: float
    relay_cpu: float


async def read(dsn: str) -> float:
    """Rows a second of a plain SELECT."""
    connection = await asyncpg.connect(dsn)
    began, count = time.perf_counter(), 0
    async with connection.transaction():
        cursor = await connection.cursor(
            "SELECT position, event_id, payload, headers FROM sagascope_outbox ORDER BY position"
        )
        while rows := await cursor.fetch(2_000):
            count += len(rows)
    await connection.close()
    return count / (time.perf_counter() - began)


async def settle(dsn: str) -> float:
    """Rows a second that are claimed and marked sent, three batches at once as the relay does; undone at the end."""
    outbox = PostgresOutbox(dsn)
    began, count = time.perf_counter(), 0

    async def lane(worker: str) -> None:
        nonlocal count
        while claimed := await outbox.claim(worker, limit=2_000, past_dead=False):
            await outbox.mark_sent(worker, [event.event_id for event in claimed])
            count += len(claimed)

    await asyncio.gather(*(lane(f"bench-{number}") for number in range(3)))
    took = time.perf_counter() - began
    await outbox.close()
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "UPDATE sagascope_outbox SET status = 'pending', claimed_by = NULL, claimed_at = NULL, sent_at = NULL"
    )
    await connection.execute("VACUUM ANALYZE sagascope_outbox")
    await connection.close()
    return count / took


async def produce(dsn: str, settings: Settings) -> float:
    """Events a second of the target alone."""
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch(
        "SELECT position, event_id, payload, headers, attempts FROM sagascope_outbox ORDER BY position"
    )
    await connection.close()
    events = [claimed_event(row[0], str(row[1]), row[2], row[3], row[4]) for row in rows]
    batches = iter([events[start : start + 2_000] for start in range(0, len(events), 2_000)])
    target = KafkaTarget(settings.bootstrap_servers, new_topic(settings))
    await target.open()
    began = time.perf_counter()

    async def lane() -> None:
        for batch in batches:
            outcome = await target.publish(batch, pass_on=False)
            assert len(outcome.sent) == len(batch), outcome.failure  # noqa: S101 - the figure would be false

    await asyncio.gather(*(lane() for _ in range(3)))
    took = time.perf_counter() - began
    await target.close()
    return len(events) / took


def new_topic(settings: Settings) -> str:
    """An empty topic's name."""
    topic = f"relay-{uuid.uuid4().hex[:8]}"
    stack.make_topic(msgspec.structs.replace(settings, topic=topic))
    return topic


@contextmanager
def relaying(dsn: str, settings: Settings, topic: str) -> Iterator[psutil.Process]:
    """The command, until the block ends."""
    command = [sys.executable, "-m", "pipelines", "relay", "--from", dsn]
    command += ["--to", f"kafka://{settings.bootstrap_servers}/{topic}"]
    environment = os.environ | {"SAGASCOPE_HOME": settings.home}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield psutil.Process(child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(20)


def consumer_of(settings: Settings, topic: str) -> Any:
    """Of all partitions, from the beginning."""
    consumer = KafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, enable_auto_commit=False, fetch_max_wait_ms=5
    )
    consumer.assign([TopicPartition(topic, number) for number in range(settings.partitions)])
    consumer.seek_to_beginning()
    return consumer


def arrived(consumer: Any) -> int:
    """How many records the topic holds."""
    return sum(consumer.end_offsets(list(consumer.assignment())).values())


def check(consumer: Any, count: int) -> None:
    """Each event is there, and each saga's in order."""
    consumer.seek_to_beginning()
    seen: dict[str, list[int]] = {}
    ids: set[str] = set()
    while len(ids) < count:
        batches = consumer.poll(timeout_ms=10_000)
        if not batches:
            sys.exit(f"only {len(ids):,} of {count:,} events are in the topic")
        for records in batches.values():
            for record in records:
                event = msgspec.json.decode(record.value)
                if event["event_id"] not in ids:
                    ids.add(event["event_id"])
                    seen.setdefault(event["saga_id"], []).append(event["sequence"])
    if any(sequences != sorted(sequences) for sequences in seen.values()):
        sys.exit("a saga's events are not in order")


def cpu_of(process: psutil.Process) -> float:
    """Seconds of it and what it started."""
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def database() -> psutil.Process:
    """Our PostgreSQL: the child of this process of that name."""
    return next(child for child in psutil.Process().children() if child.name() == "postgres")


def turn(server: postgresql.PostgresServer, settings: Settings, count: int) -> Turn:
    """One turn of the throughput."""
    dsn = server.dsn(server.create_database())
    asyncio.run(fill(dsn, count))
    baselines = asyncio.run(read(dsn)), asyncio.run(settle(dsn)), asyncio.run(produce(dsn, settings))
    topic = new_topic(settings)
    consumer = consumer_of(settings, topic)
    all_before, database_before = psutil.cpu_times(), cpu_of(database())
    with relaying(dsn, settings, topic) as relay:
        while not arrived(consumer):
            time.sleep(0.01)
        first, began, cpu = arrived(consumer), time.perf_counter(), cpu_of(relay)
        while (there := arrived(consumer)) < count:
            time.sleep(0.1)
        took, cpu = time.perf_counter() - began, cpu_of(relay) - cpu
        database_cpu = cpu_of(database()) - database_before
        all_after = psutil.cpu_times()
    busy = sum(all_after[:3]) - sum(all_before[:3])
    others = max(0.0, busy - cpu - database_cpu) / max(busy, 0.01)
    check(consumer, count)
    consumer.close()
    moved = there - first
    return Turn(*baselines, moved / took, cpu / moved * 1e6, database_cpu / count * 1e6, others)


def latency(server: postgresql.PostgresServer, settings: Settings, rate: int, seconds: float) -> Latency:
    """One turn of the latency."""
    dsn = server.dsn(server.create_database())
    asyncio.run(fill(dsn, 1_000))
    topic = new_topic(settings)
    consumer = consumer_of(settings, topic)
    came: dict[str, float] = {}
    with relaying(dsn, settings, topic) as relay:
        while arrived(consumer) < 1_000:
            time.sleep(0.01)
        cpu = cpu_of(relay)
        command = [sys.executable, "-m", "bench.relay_load", dsn, str(rate), str(seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            while batches := consumer.poll(timeout_ms=5_000):
                now = time.time()
                for records in batches.values():
                    for record in records:
                        came.setdefault(dict(record.headers)["ce_id"].decode(), now)
            told = json.loads(writer.communicate()[0])
        cpu = cpu_of(relay) - cpu
    consumer.close()
    committed: dict[str, float] = told["committed"]
    if missing := set(committed) - set(came):
        sys.exit(f"{len(missing):,} events are not in the topic")
    waits = statistics.quantiles((came[one] - at for one, at in committed.items()), n=100)
    return Latency(waits[49], waits[98], told["rate"], cpu)


class Commits(NamedTuple):
    """What one turn of the waking gave, commits a second."""

    notifying: float
    silent: float
    ratio: float


async def commits(server: postgresql.PostgresServer, seconds: float) -> Commits:
    """One turn: as fast as sixteen services can, each an event a transaction."""
    found = []
    for notify in (True, False):
        dsn = server.dsn(await asyncio.to_thread(server.create_database))
        outbox = PostgresOutbox(dsn, pool_size=16, notify=notify)
        await outbox.open()
        listener = await asyncpg.connect(dsn)
        await listener.add_listener("sagascope_outbox", lambda *_: None)
        done, end = 0, time.perf_counter() + seconds

        async def service(outbox: PostgresOutbox = outbox, end: float = end) -> None:
            nonlocal done
            while time.perf_counter() < end:
                await outbox.append(events_of(0)[:1])
                done += 1

        await asyncio.gather(*(service() for _ in range(16)))
        found.append(done / seconds)
        await listener.close()
        await outbox.close()
    notifying, silent = found
    return Commits(notifying, silent, notifying / silent)


def median(turns: list[Any], name: str) -> str:
    """With its range."""
    values = sorted(getattr(one, name) for one in turns)
    return f"{statistics.median(values):,.4g} ({values[0]:,.4g}-{values[-1]:,.4g})"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python bench/relay.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rate", type=int, default=2_000)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--only", choices=("throughput", "latency", "notify"))
    given = parser.parse_args()
    postgresql.SETTINGS.update(fsync="on", full_page_writes="on", synchronous_commit="on", shared_buffers="256MB")
    server = postgresql.PostgresServer(state_folder("pg-bench"), free_port())
    server.initialise()
    with tempfile.TemporaryDirectory(prefix="relay-") as folder, server.running():
        home = Settings(home=str(Path(folder) / "home"))
        settings = msgspec.structs.replace(home, bootstrap_servers=stack.up(home).bootstrap_servers)
        try:
            all_turns = [one for _ in range(given.repeat) for one in measure(given, server, settings)]
        finally:
            stack.down(home)
    failed = False
    for kind in (Turn, Latency, Commits):
        rows = [one for one in all_turns if isinstance(one, kind)]
        for name in kind._fields if rows else ():
            print(f"{name}: {median(rows, name)}")
        if kind is Turn and rows:
            failed |= statistics.median(one.relay for one in rows if isinstance(one, Turn)) < LEAST_EVENTS_A_SECOND
        if kind is Latency and rows:
            failed |= statistics.median(one.p99 for one in rows if isinstance(one, Latency)) > MOST_SECONDS
    if failed:
        sys.exit(1)


def measure(given: argparse.Namespace, server: postgresql.PostgresServer, settings: Settings) -> Iterator[NamedTuple]:
    """One turn of each figure that is asked for."""
    if given.only == "notify":
        found: NamedTuple = asyncio.run(commits(server, given.seconds))
        print(found, flush=True)
        yield found
        return
    if given.only != "latency":
        found = turn(server, settings, given.events)
        print(found, flush=True)
        yield found
    if given.only != "throughput":
        found = latency(server, settings, given.rate, given.seconds)
        print(found, flush=True)
        yield found


if __name__ == "__main__":
    main()
