"""Questions to the history: once a snapshot, two at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from pipelines.dashboard.feed import Feed, NotReadyError
from pipelines.dashboard.questions import Questions
from tests.warehouse.planted import append, events_of
from warehouse.tables import EVENTS

if TYPE_CHECKING:
    from warehouse.history import History
    from warehouse.settings import Settings


def count(tables: History) -> Any:
    """How many events there are."""
    return tables.sql("SELECT count(*) FROM events").fetchall()


def test_the_same_question_is_answered_once_a_snapshot(planted: Settings) -> None:
    """Also where it is asked by many at once; after a commit it is answered anew."""
    asked = 0

    def counting(tables: History) -> Any:
        nonlocal asked
        asked += 1
        time.sleep(0.05)
        return count(tables)

    async def ask() -> None:
        feed = Feed(planted)
        feed.start()
        questions = Questions(planted, feed)
        while feed.newest.frame.snapshot_id is None:
            await feed.after(feed.newest.number, 1)
        answers = await asyncio.gather(*(questions.ask("how many", counting) for _ in range(10)))
        assert len(set(answers)) == asked == 1
        before = feed.newest.frame.snapshot_id
        append(planted, EVENTS, events_of(90, datetime.now(UTC)))
        while feed.newest.frame.snapshot_id == before:
            await feed.after(feed.newest.number, 1)
        assert await questions.ask("how many", counting) != answers[0]
        assert asked == 2
        feed.stop()

    asyncio.run(ask())


def test_two_are_answered_at_a_time(planted: Settings) -> None:
    """Others wait; each gets its answer."""
    lock, now, most = threading.Lock(), 0, 0

    def slowly(tables: History) -> Any:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.1)
        with lock:
            now -= 1
        return count(tables)

    async def ask() -> list[bytes]:
        questions = Questions(planted, Feed(planted))
        return await asyncio.gather(*(questions.ask(n, slowly) for n in range(5)))

    answers = asyncio.run(ask())
    assert len(answers) == 5
    assert most == 2


def test_an_error_is_that_of_the_answer_and_is_not_kept(planted: Settings) -> None:
    """The next one asks again. What is being asked when it ends is interrupted."""

    def fail(tables: History) -> Any:
        msg = "broken"
        raise KeyError(msg)

    async def ask() -> None:
        questions = Questions(planted, Feed(planted))
        with pytest.raises(KeyError, match="broken"):
            await questions.ask("x", fail)
        assert await questions.ask("x", count)
        slow = asyncio.create_task(
            questions.ask(
                "long",
                lambda tables: tables.sql(
                    "SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b"
                ).fetchall(),
            )
        )
        await asyncio.sleep(1.0)
        began = time.monotonic()
        questions.end()
        with pytest.raises(Exception, match=r"INTERRUPT|Interrupt"):
            await slow
        assert time.monotonic() - began < 1
        with pytest.raises(NotReadyError):
            await questions.ask("after", count)

    asyncio.run(ask())
