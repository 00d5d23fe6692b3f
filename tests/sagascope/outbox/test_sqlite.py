"""The outbox in SQLite."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiosqlite
import pytest

from sagascope import SQLiteOutbox
from sagascope.errors import PermanentError, TransientError
from sagascope.sqlite import delivery_error
from tests.sagascope.conftest import make_event, until
from tests.sagascope.listeners.contract import exceptions_of
from tests.sagascope.outbox.behaviour import Transaction
from tests.sagascope.outbox.relayed import RelayedBehaviour

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PERMANENT = {sqlite3.DataError, sqlite3.IntegrityError, sqlite3.NotSupportedError}
TRANSIENT = {
    sqlite3.DatabaseError,
    sqlite3.Error,
    sqlite3.InterfaceError,
    sqlite3.InternalError,
    sqlite3.OperationalError,
    sqlite3.ProgrammingError,
}
NO_ERRORS = {sqlite3.Warning}


class SQLiteTransaction(Transaction):
    """Of aiosqlite, with its default handling of transactions."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.connection = connection

    async def order(self, order_id: str) -> None:
        await self.connection.execute("INSERT INTO orders VALUES (?)", (order_id,))

    async def commit(self) -> None:
        await self.connection.commit()

    async def roll_back(self) -> None:
        await self.connection.rollback()


class TestSQLiteOutbox(RelayedBehaviour):
    """The laws of every outbox."""

    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> Path:
        return tmp_path / "orders.db"

    def outbox(self, place: Path) -> SQLiteOutbox:
        return SQLiteOutbox(place)

    @asynccontextmanager
    async def transaction(self, place: Path) -> AsyncIterator[SQLiteTransaction]:
        async with aiosqlite.connect(place) as connection:
            await connection.execute("CREATE TABLE IF NOT EXISTS orders (id TEXT)")
            await connection.execute("BEGIN IMMEDIATE")
            yield SQLiteTransaction(connection)

    async def query(self, place: Path, statement: str) -> list[tuple[Any, ...]]:
        async with aiosqlite.connect(place) as connection:
            rows = list(await connection.execute_fetchall(statement))
            await connection.commit()
        return rows  # type: ignore[return-value] # tuples, without a row factory

    async def refuse(self, place: Path, saga_id: str) -> None:
        await self.query(
            place,
            f"CREATE TRIGGER refusal BEFORE INSERT ON sagascope_outbox WHEN NEW.saga_id = '{saga_id}' "
            "BEGIN SELECT RAISE(ABORT, 'refused'); END",
        )


def test_a_cancelled_write_within_a_transaction_leaves_it_usable(tmp_path: Path) -> None:
    """Cancelling a write that waits for its turn cuts no statement: its event is part of the transaction all the same."""
    busy = threading.Event()

    async def main() -> None:
        outbox, event = SQLiteOutbox(tmp_path / "db"), make_event()
        await outbox.open()
        async with aiosqlite.connect(tmp_path / "db") as connection:
            await connection.create_function("await_test", 0, lambda: busy.wait(60))
            await connection.execute("BEGIN IMMEDIATE")
            async with outbox.using(connection):
                slow = asyncio.create_task(connection.execute_fetchall("SELECT await_test()"))
                writing = asyncio.create_task(outbox.append([event]))
                await until(lambda: connection._tx.qsize() == 1)
                writing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await writing
                busy.set()
                await slow
                await outbox.append([event])
            await connection.commit()
        assert [each.event_id for each in await outbox.claim("relay")] == [event.event_id]
        await outbox.close()

    asyncio.run(main())


def test_a_locked_file_is_transient(tmp_path: Path) -> None:
    """Another's long transaction is waited for until the busy timeout, and then said."""

    async def main() -> None:
        outbox = SQLiteOutbox(tmp_path / "db", busy_timeout_ms=20)
        await outbox.open()
        async with aiosqlite.connect(tmp_path / "db") as other:
            await other.execute("BEGIN IMMEDIATE")
            with pytest.raises(TransientError, match="locked"):
                await outbox.append([make_event()])
            await other.rollback()
        await outbox.append([make_event()])
        assert len(await outbox.claim("relay")) == 1
        await outbox.close()

    asyncio.run(main())


def test_no_room_is_transient_and_stores_nothing_of_the_batch(tmp_path: Path) -> None:
    """A full disk takes all of a batch or nothing, and a write works once there is room."""
    events = [make_event(attributes={"big": "x" * 10_000}) for _ in range(50)]

    async def main() -> None:
        outbox = SQLiteOutbox(tmp_path / "db")
        await outbox.open()
        await outbox._database.execute("PRAGMA max_page_count = 40")
        with pytest.raises(TransientError, match="full"):
            await outbox.append(events)
        assert await outbox.claim("relay") == []
        await outbox._database.execute("PRAGMA max_page_count = 100000")
        await outbox.append(events)
        assert len(await outbox.claim("relay")) == len(events)
        await outbox.close()

    asyncio.run(main())


@pytest.mark.parametrize("damage", ["no such folder", "no database"])
def test_a_file_that_cannot_be_opened_is_transient_and_leaves_no_thread(tmp_path: Path, damage: str) -> None:
    """A folder that is missing or a file that is something else can be mended; trying starts nothing that stays."""
    path = tmp_path / "db"
    if damage == "no database":
        path.write_text("not a database, " * 100)
    else:
        path = tmp_path / "missing" / "db"

    async def main() -> None:
        outbox = SQLiteOutbox(path)
        with pytest.raises(TransientError):
            await outbox.append([make_event()])
        await outbox.close()

    asyncio.run(main())


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    """What two services write to one file is all there."""
    code = """
import asyncio, sys
from sagascope import SQLiteOutbox
from tests.sagascope.listeners.contract import a_run

async def main():
    outbox = SQLiteOutbox(sys.argv[1])
    for n in range(50):
        await outbox.append(a_run(f"order-{n}"))
    await outbox.close()

asyncio.run(main())
"""
    command = [sys.executable, "-c", code, str(tmp_path / "db")]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]

    async def main() -> None:
        outbox = SQLiteOutbox(tmp_path / "db")
        assert len(await outbox.claim("relay", limit=1_000)) == 2 * 50 * 4
        await outbox.close()

    asyncio.run(main())


@pytest.mark.parametrize("attempt", range(10))
def test_many_that_make_the_file_at_once_all_open_it(tmp_path: Path, attempt: int) -> None:
    """Switching a new file to WAL and making its table collide now and then: whoever comes second waits."""

    async def main() -> None:
        services = [SQLiteOutbox(tmp_path / "db") for _ in range(8)]
        await asyncio.gather(*(service.append([make_event()]) for service in services))
        assert len(await services[0].claim("relay")) == len(services)
        await asyncio.gather(*(service.close() for service in services))

    asyncio.run(main())


def test_a_service_that_forgets_to_close_still_ends(tmp_path: Path) -> None:
    """The connection's thread keeps no process alive."""
    code = """
import asyncio, sys
from sagascope import SQLiteOutbox
outbox = SQLiteOutbox(sys.argv[1])
asyncio.run(outbox.open())
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "db")], check=True, timeout=60)


def test_more_events_than_one_statement_takes(tmp_path: Path) -> None:
    """A write has no greatest number of events, nor has what is settled."""
    events = [make_event() for _ in range(2_501)]

    async def main() -> None:
        outbox = SQLiteOutbox(tmp_path / "db")
        await outbox.append(events)
        claimed = await outbox.claim("relay", limit=10_000)
        assert [each.event_id for each in claimed] == [event.event_id for event in events]
        assert await outbox.mark_sent("relay", [event.event_id for event in events] * 5) == len(events)
        await outbox.close()

    asyncio.run(main())


def test_each_error_of_the_driver_is_transient_or_permanent() -> None:
    """By a table; fails when the driver has a class that the table does not."""
    assert exceptions_of(sqlite3, aiosqlite) == PERMANENT | TRANSIENT | NO_ERRORS
    assert {type(delivery_error(error("why"))) for error in PERMANENT} == {PermanentError}
    assert {type(delivery_error(error("why"))) for error in TRANSIENT} == {TransientError}
    assert isinstance(delivery_error(ValueError("Connection closed")), TransientError)
    assert delivery_error(ValueError("anything else")) is None
