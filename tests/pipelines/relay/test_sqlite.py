"""From an outbox in SQLite to Kafka."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from pipelines.relay.outbox import SQLiteSource
from pipelines.relay.work import Pace
from sagascope import SQLiteOutbox
from tests.pipelines.relay.conftest import Topic, firsts, process, relaying, sagas, sent, until, written
from tests.sagascope.conftest import make_event
from tests.sagascope.listeners.contract import a_run

if TYPE_CHECKING:
    from pathlib import Path

    from sagascope.events import SagaEvent

pytestmark = pytest.mark.broker
QUICK = Pace(poll_seconds=0.05)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with an empty outbox."""
    found = tmp_path / "orders.db"
    asyncio.run(append(found, []))
    return found


async def append(path: Path, events: list[SagaEvent]) -> None:
    """Committed when this returns."""
    outbox = SQLiteOutbox(path)
    await outbox.open()
    await outbox.append(events)
    await outbox.close()


def count(path: Path, status: str) -> int:
    """How many rows are in it."""
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        found: int = connection.execute("SELECT count(*) FROM sagascope_outbox WHERE status = ?", (status,)).fetchone()[
            0
        ]
    return found


def test_events_are_sent_in_order_and_poison_blocks_only_its_saga(path: Path, topic: Topic) -> None:
    """Found by polling, while the service writes; what can't be sent is parked, and what follows waits until it is discarded."""
    poison = make_event(saga_id="poisoned", attributes={"big": "ö" * 30_000})
    run, others = a_run("poisoned"), sagas(100)

    async def main() -> None:
        await append(path, [run[0], poison, *run[1:]])
        source = SQLiteSource(path)
        async with relaying(source, topic.target(), QUICK) as figures:
            for start in range(0, len(others), 40):
                await append(path, others[start : start + 40])
            await until(lambda: sent(figures) == 1 + len(others))
            assert (await source.backlog())._replace(lag_seconds=0) == (3, 0, 1, 3)
            assert await source.discard_parked([poison.event_id]) == 1
            await until(lambda: sent(figures) == len(run) + len(others))

    asyncio.run(main())
    assert firsts(topic.records(404)) == written(run + others)


def test_one_relay_at_a_time_and_the_next_takes_over(path: Path, topic: Topic, tmp_path: Path) -> None:
    """The second waits and says so; when the first is killed it goes on at once, with what that one had claimed, too."""
    events = sagas(2_000)
    arguments = ("--from", f"sqlite:///{path}", "--to", topic.url)

    async def main() -> None:
        await append(path, events[:400])
        with process(tmp_path, *arguments) as first:
            await until(lambda: count(path, "sent") == 400)
            with process(tmp_path, *arguments) as second:
                assert second.stderr
                line = await asyncio.to_thread(second.stderr.readline)
                assert f"another relay (pid {first.pid}" in line
                assert "takes over" in line
                await append(path, events[400:])
                await until(lambda: count(path, "sent") > 400)
                first.kill()
                killed = time.monotonic()
                await until(lambda: count(path, "sent") == len(events))
                assert time.monotonic() - killed < 25  # no lease had to end
                second.terminate()
                assert await asyncio.to_thread(second.wait, 12) == 0

    asyncio.run(main())
    assert firsts(topic.records(len(events))) == written(events)
