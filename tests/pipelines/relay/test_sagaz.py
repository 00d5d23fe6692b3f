"""sagaz's own outbox, followed read-only: real sagas of sagaz, real databases, a real topic."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec
import pytest
from sagaz.core.storage.backends.postgresql import PostgreSQLOutboxStorage
from sagaz.core.storage.backends.sqlite import SQLiteOutboxStorage

from pipelines.relay.sagaz import PostgresFollower, SQLiteFollower
from pipelines.relay.work import Pace
from tests.pipelines.relay.conftest import Topic, relaying, sent, until
from tests.warehouse.imports.outboxes import PRIVATE, Happened, add_rows, run_sagas, saga_rows
from warehouse.imports.outbox import outbox_at
from warehouse.imports.source import Refused, Span

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.broker
QUICK = Pace(poll_seconds=0.05)


def events_in(topic: Topic, least: int) -> list[dict[str, Any]]:
    """The topic's events, each once."""
    records = topic.records(least)
    return list({event["event_id"]: event for event in (msgspec.json.decode(one.value) for one in records)}.values())


def happened(events: Sequence[dict[str, Any]]) -> Happened:
    """What the topic tells of each saga, by runs and their numbers."""
    found: Happened = {}
    for event in sorted(events, key=lambda one: (one["timestamp"], one["run_id"], one["sequence"])):
        found.setdefault(event["saga_id"], []).append((event["event_type"], event.get("step_name")))
    return found


def imported(where: str) -> list[dict[str, Any]]:
    """What an import makes of the same outbox."""
    import duckdb

    with duckdb.connect() as spool:
        source = outbox_at(where)
        source.load(spool, Span())
        days = [
            row[0] for row in spool.execute("SELECT DISTINCT CAST(make_timestamp(moment) AS DATE) FROM rows").fetchall()
        ]
        ones = [one for day in days for one in source.records(spool, day) if not isinstance(one, Refused)]
    return [msgspec.json.decode(msgspec.json.encode(one)) for one in ones]


def by_id(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What must be the same however it came."""
    names = ("event_id", "event_type", "saga_id", "saga_name", "run_id", "sequence", "step_name", "timestamp")
    return {event["event_id"]: {name: event.get(name) for name in names} for event in events}


async def insert(connection: Any, saga_id: str, kind: str, payload: dict[str, Any], at: datetime) -> None:
    """A row as sagaz writes it."""
    await connection.execute(
        "INSERT INTO saga_outbox (event_id, saga_id, aggregate_id, event_type, payload, created_at) VALUES ($1, $2, $2, $3, $4, $5)",
        str(uuid.uuid4()),
        saga_id,
        kind,
        json.dumps(payload),
        at,
    )


def test_live_what_happened_from_postgresql(dsn: str, topic: Topic, tmp_path: Path) -> None:
    """While real sagas run, the topic tells what happened, with the ids an import gives; sagaz's rows stay as they are."""

    async def main() -> Happened:
        async with PostgreSQLOutboxStorage(dsn) as storage:
            await storage.initialize()
            follower = PostgresFollower(dsn, "PostgreSQL", tmp_path)
            async with relaying(follower, topic.target(), QUICK) as figures:
                told = await run_sagas(storage)
                await until(lambda: sent(figures) == sum(map(len, told.values())))
                assert await follower.backlog() == (0, 0, 0, 0)
        connection = await asyncpg.connect(dsn)
        assert (
            await connection.fetchval("SELECT count(*) FROM saga_outbox WHERE status <> 'pending' OR retry_count <> 0")
            == 0
        )
        await connection.close()
        return told

    told = asyncio.run(main())
    events = events_in(topic, sum(map(len, told.values())))
    assert happened(events) == told
    assert by_id(events) == by_id(imported(dsn))
    assert PRIVATE not in str(events)


def test_live_what_happened_from_sqlite(topic: Topic, tmp_path: Path) -> None:
    """The same from SQLite."""
    file = tmp_path / "outbox.db"

    async def main() -> Happened:
        async with SQLiteOutboxStorage(str(file)) as storage:
            await storage.initialize()
            async with relaying(SQLiteFollower(file, tmp_path), topic.target(), QUICK) as figures:
                told = await run_sagas(storage)
                await until(lambda: sent(figures) == sum(map(len, told.values())))
        return told

    told = asyncio.run(main())
    events = events_in(topic, sum(map(len, told.values())))
    assert happened(events) == told
    assert by_id(events) == by_id(imported(str(file)))


def test_a_row_that_commits_late_is_not_missed(dsn: str, topic: Topic, tmp_path: Path) -> None:
    """A transaction that began first commits last, its rows older than what was told, sent and updated by then.

    Also where the relay was started anew in between; and what was told of the same saga before keeps its run.
    """
    now = datetime.now(UTC)

    async def main() -> None:
        async with PostgreSQLOutboxStorage(dsn) as storage:
            await storage.initialize()
        one, two = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
        await one.execute("BEGIN")
        await insert(one, "both", "order.pay.success", {"step": "pay", "result": {}}, now - timedelta(hours=2))
        await insert(one, "late", "order.pay.success", {"step": "pay", "result": {}}, now - timedelta(hours=2))
        async with relaying(PostgresFollower(dsn, "PostgreSQL", tmp_path), topic.target(), QUICK) as figures:
            await insert(two, "both", "order.ship.success", {"step": "ship", "result": {}}, now)
            await insert(two, "early", "order.pay.success", {"step": "pay", "result": {}}, now)
            await until(lambda: sent(figures) == 2)
            await two.execute("UPDATE saga_outbox SET status = 'sent', sent_at = now()")
            await asyncio.sleep(0.3)
        async with relaying(PostgresFollower(dsn, "PostgreSQL", tmp_path), topic.target(), QUICK) as figures:
            await asyncio.sleep(0.3)
            await one.execute("COMMIT")
            await until(lambda: sent(figures) == 2)
            await insert(
                two, "both", "order.completed", {"saga_id": "both", "status": "completed"}, now + timedelta(seconds=1)
            )
            await until(lambda: sent(figures) == 3)
            await asyncio.sleep(0.3)
            assert sent(figures) == 3  # nothing was told twice
        await one.close()
        await two.close()

    asyncio.run(main())
    events = events_in(topic, 5)
    assert len(events) == len(topic.records()) == 5
    both = [event for event in events if event["saga_id"] == "both"]
    assert len({event["run_id"] for event in both}) == 1
    assert sorted(event.get("sequence", 0) for event in both) == [0, 1, 2]
    assert {event["saga_id"] for event in events} == {"both", "late", "early"}


def test_rows_of_sqlite_are_found_whatever_becomes_of_their_rowids(topic: Topic, tmp_path: Path) -> None:
    """Rows that are deleted at the end, whose rowids are given again, and VACUUM, hide no row and bring none twice."""
    file = tmp_path / "outbox.db"
    add_rows(file, [row for number in range(4) for row in saga_rows(number, "2026-11-20")])

    def change(*statements: str) -> None:
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement)

    async def main() -> None:
        async with relaying(SQLiteFollower(file, tmp_path), topic.target(), QUICK) as figures:
            await until(lambda: sent(figures) == 12)
        change("DELETE FROM outbox_events WHERE rowid > 9")
        add_rows(file, saga_rows(7, "2026-11-20"))  # has the rowids of those deleted
        async with relaying(SQLiteFollower(file, tmp_path), topic.target(), QUICK) as figures:
            await until(lambda: sent(figures) == 3)
            change("DELETE FROM outbox_events WHERE rowid < 4", "VACUUM")
            add_rows(file, saga_rows(8, "2026-11-20"))
            await until(lambda: sent(figures) == 6)
            await asyncio.sleep(0.3)
            assert sent(figures) == 6

    asyncio.run(main())
    assert len(topic.records()) == len(events_in(topic, 18)) == 18


def test_a_row_too_large_is_parked_in_our_own_file(topic: Topic, tmp_path: Path) -> None:
    """It blocks its saga until somebody deals with it, also across a restart; every other saga goes on."""
    file = tmp_path / "outbox.db"
    rows = saga_rows(1, "2026-11-20")
    keys = json.dumps({f"key{n}": "" for n in range(4_000)})
    rows[0] = (rows[0][0], rows[0][1], "order.reserve.success", f'{{"step": "reserve", "result": {keys}}}', rows[0][4])
    add_rows(file, [*rows, *saga_rows(2, "2026-11-20")])

    async def main() -> None:
        follower = SQLiteFollower(file, tmp_path)
        async with relaying(follower, topic.target(), QUICK) as figures:
            await until(lambda: sent(figures) == 3)
            await asyncio.sleep(0.3)
            backlog = await follower.backlog()
            assert (backlog.depth, backlog.parked, backlog.blocked) == (2, 1, 2)
        follower = SQLiteFollower(file, tmp_path)
        async with relaying(follower, topic.target(), QUICK) as figures:
            await asyncio.sleep(0.5)
            assert sent(figures) == 0
            [parked] = await follower.parked()
            assert (parked.saga_id, parked.event_type) == (rows[0][1], "step_completed")
            assert await follower.retry_parked([parked.event_id]) == 1
            await asyncio.sleep(0.5)
            assert [one.event_id for one in await follower.parked()] == [parked.event_id]  # as large as before
            assert await follower.discard_parked([parked.event_id]) == 1
            await until(lambda: sent(figures) == 2)

    asyncio.run(main())
    assert len(topic.records()) == 5


def test_the_file_forgets_what_the_outbox_has_no_more(tmp_path: Path, topic: Topic) -> None:
    """Rows that sagaz's users have deleted are forgotten after the retention; those that are there are remembered."""
    file = tmp_path / "outbox.db"
    add_rows(file, [*saga_rows(1, "2026-11-20"), *saga_rows(2, "2026-11-20")])

    async def main() -> None:
        async with relaying(SQLiteFollower(file, tmp_path), topic.target(), QUICK) as figures:
            await until(lambda: sent(figures) == 6)
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute("DELETE FROM outbox_events WHERE saga_id LIKE 's1%'")
        follower = SQLiteFollower(file, tmp_path)
        assert await follower.purge(older_than_seconds=3_600, limit=100) == 0
        assert await follower.purge(older_than_seconds=0, limit=100) == 3
        assert await follower.purge(older_than_seconds=0, limit=100) == 0
        await follower.close()

    asyncio.run(main())
