"""The outbox's listener: every listener's laws on PostgreSQL and SQLite, and sagas that run in a transaction."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import aiosqlite
import asyncpg
import pytest

from sagascope import FanOutSaga, OutboxSagaListener, PostgresOutbox, SQLiteOutbox
from sagascope.events import EventType, decode
from tests.sagascope.conftest import fails, ok
from tests.sagascope.listeners.contract import ListenerContract, a_run
from tests.sagascope.listeners.on_postgresql import NOBODY, PostgresContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.servers.postgresql import PostgresServer


class TestOnPostgreSQL(PostgresContract):
    """The laws of every listener, with a real server."""

    name = "OutboxSagaListener"

    def unopened(self, tmp_path: Path) -> OutboxSagaListener:
        return OutboxSagaListener(PostgresOutbox(NOBODY))

    @asynccontextmanager
    async def at(self, port: int) -> AsyncIterator[OutboxSagaListener]:
        listener = OutboxSagaListener(PostgresOutbox(self.dsn(port)))
        yield listener
        await listener.close()

    async def stored(self, port: int) -> list[str]:
        connection = await asyncpg.connect(self.dsn(port))
        rows = await connection.fetch("SELECT event_id FROM sagascope_outbox ORDER BY position")
        await connection.close()
        return [str(row[0]) for row in rows]


class TestOnSQLite(ListenerContract):
    """The laws that need no server."""

    name = "OutboxSagaListener"
    drivers = ("aiosqlite",)
    extra = "sqlite"

    def unopened(self, tmp_path: Path) -> OutboxSagaListener:
        return OutboxSagaListener(SQLiteOutbox(tmp_path / "missing" / "orders.db"))


def test_the_saga_waits_for_it() -> None:
    """An event that is written after the commit would be no part of it."""
    assert OutboxSagaListener.inline
    assert OutboxSagaListener(SQLiteOutbox("orders.db")).takes_events


class OrderSaga(FanOutSaga):
    """Two steps at once, then a third."""

    saga_name = "order"


def an_order(listener: OutboxSagaListener, *, fail: bool) -> OrderSaga:
    """A saga that is ready to run."""
    saga = OrderSaga(listeners=[listener])
    saga.add_step("reserve", ok, ok)
    saga.add_step("charge", ok, ok)
    saga.add_step("ship", fails(ValueError("no van")) if fail else ok, ok, depends_on={"reserve", "charge"})
    return saga


@pytest.mark.parametrize("fail", [False, True], ids=["completes", "is rolled back"])
def test_a_saga_within_a_transaction(postgresql: PostgresServer, *, fail: bool) -> None:
    """A real saga's events, those of parallel steps too, are in the transaction in which it runs, in the saga's order."""
    dsn = postgresql.dsn(postgresql.create_database())

    async def main() -> list[EventType]:
        connection = await asyncpg.connect(dsn)
        async with OutboxSagaListener(PostgresOutbox(dsn)) as listener:
            for commits in (False, True):
                transaction = connection.transaction()
                await transaction.start()
                async with listener.storage.using(connection):
                    with pytest.raises(ValueError, match="no van") if fail else nullcontext():
                        await an_order(listener, fail=fail).run({"order_id": 17})
                assert await listener.storage.claim("relay") == []
                await (transaction.commit() if commits else transaction.rollback())
            claimed = await listener.storage.claim("relay")
        await connection.close()
        events = [decode(each.payload) for each in claimed]
        assert [event.sequence for event in events] == list(range(len(events)))
        assert len({event.run_id for event in events}) == 1
        return [event.event_type for event in events]

    kinds = asyncio.run(main())
    assert kinds[0] is EventType.SAGA_STARTED
    assert kinds[-1] is (EventType.SAGA_ROLLED_BACK if fail else EventType.SAGA_COMPLETED)
    assert kinds.count(EventType.STEP_STARTED) == 3


def test_a_saga_on_sqlite(tmp_path: Path) -> None:
    """The same on SQLite, where the transaction may begin by the service's first statement."""

    async def main() -> None:
        path = tmp_path / "orders.db"
        async with OutboxSagaListener(SQLiteOutbox(path)) as listener, aiosqlite.connect(path) as connection:
            await connection.execute("CREATE TABLE orders (id TEXT)")
            for commits in (False, True):
                await connection.execute("INSERT INTO orders VALUES ('17')")
                async with listener.storage.using(connection):
                    await an_order(listener, fail=False).run({"order_id": 17})
                await (connection.commit() if commits else connection.rollback())
            claimed = await listener.storage.claim("relay")
            assert [decode(each.payload).sequence for each in claimed] == list(range(8))

    asyncio.run(main())


def test_without_a_transaction_each_write_is_committed(tmp_path: Path) -> None:
    """A saga that runs in no transaction of the service's leaves its events all the same."""
    events = a_run("order-1")

    async def main() -> list[Any]:
        async with OutboxSagaListener(SQLiteOutbox(tmp_path / "db")) as listener:
            await listener.write(events)
            await listener.write(events)
            return [each.event_id for each in await listener.storage.claim("relay")]

    assert asyncio.run(main()) == [event.event_id for event in events]
