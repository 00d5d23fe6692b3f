"""A topic to relay to, relays in this process and as processes of their own, and what the topic then holds."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import NewTopic

from pipelines.relay.figures import Figures
from pipelines.relay.kafka import KafkaTarget
from pipelines.relay.work import Pace, Relay
from tests.sagascope.listeners.contract import a_run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from pipelines.relay.ends import Source, Target
    from sagascope import SagaEvent
    from tests.servers.postgresql import PostgresServer

PARTITIONS = 3
SLOW = Pace(poll_seconds=60)


class Topic(NamedTuple):
    """A topic of its own."""

    servers: str
    name: str

    @property
    def url(self) -> str:
        """As --to names it."""
        return f"kafka://{self.servers}/{self.name}"

    def target(self) -> KafkaTarget:
        """A relay's."""
        return KafkaTarget(self.servers, self.name)

    def records(self, least: int = 0, seconds: float = 30.0) -> list[Any]:
        """All of it once it holds at least so many, each partition in order."""
        consumer = KafkaConsumer(bootstrap_servers=self.servers, enable_auto_commit=False)
        try:
            partitions = [TopicPartition(self.name, number) for number in range(PARTITIONS)]
            consumer.assign(partitions)
            consumer.seek_to_beginning()
            found: list[Any] = []
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                for records in consumer.poll(timeout_ms=200).values():
                    found += records
                ends = consumer.end_offsets(partitions)
                if len(found) >= max(least, sum(ends.values())):
                    return found
            pytest.fail(f"{len(found)} records, and at least {least} were to come")
        finally:
            consumer.close()


@pytest.fixture
def topic(broker: str) -> Topic:
    """One that takes no message of more than 20 KB."""
    return make_topic(broker)


def make_topic(servers: str) -> Topic:
    """A new one."""
    made = Topic(servers, f"relay-{uuid.uuid4().hex[:8]}")
    admin = KafkaAdminClient(bootstrap_servers=servers)
    admin.create_topics([NewTopic(made.name, PARTITIONS, 1, topic_configs={"max.message.bytes": "20000"})])
    admin.wait_for_topics([made.name])
    admin.close()
    return made


@pytest.fixture
def dsn(postgresql: PostgresServer) -> str:
    """Of an empty database."""
    return postgresql.dsn(postgresql.create_database())


def sagas(number: int, of: str = "order") -> list[SagaEvent]:
    """So many runs, side by side as services write them."""
    tag = uuid.uuid4().hex[:6]
    runs = [a_run(f"{of}-{tag}-{n}") for n in range(number)]
    return [event for step in zip(*runs, strict=True) for event in step]


def firsts(records: Sequence[Any]) -> dict[str, list[str]]:
    """The ids of each saga's events in the order in which they first came."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        event = msgspec.json.decode(record.value)
        assert record.key.decode() == event["saga_id"]
        found.setdefault(event["saga_id"], {})[event["event_id"]] = None
    return {saga: list(ids) for saga, ids in found.items()}


def written(events: Sequence[SagaEvent]) -> dict[str, list[str]]:
    """The ids of each saga's events as they were written."""
    found: dict[str, list[str]] = {}
    for event in events:
        found.setdefault(event.saga_id, []).append(event.event_id)
    return found


@asynccontextmanager
async def relaying(source: Source, target: Target, pace: Pace = SLOW) -> AsyncIterator[Figures]:
    """A relay in this process, stopped at the end; gives what it counts."""
    figures = Figures()
    relay = Relay(source, target, figures, pace, tell=lambda _: None)
    running = asyncio.create_task(relay.run())
    try:
        yield figures
    finally:
        relay.stop()
        async with asyncio.timeout(12):
            await running


def sent(figures: Figures) -> float:
    """How many events a relay has sent."""
    return figures.registry.get_sample_value("sagascope_relay_sent_total") or 0.0


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for it."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.005)


@contextmanager
def process(home: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`sagascope relay …`, killed at the end if it still runs."""
    command = [sys.executable, "-m", "pipelines", "relay", *arguments]
    environment = os.environ | {"SAGASCOPE_HOME": str(home), "SAGASCOPE_RELAY_POLL_MS": "100"}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGKILL)
        child.communicate()


def command(home: Path, *arguments: str, seconds: float = 30.0) -> subprocess.CompletedProcess[str]:
    """`sagascope relay …` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines", "relay", *arguments],
        env=os.environ | {"SAGASCOPE_HOME": str(home), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
