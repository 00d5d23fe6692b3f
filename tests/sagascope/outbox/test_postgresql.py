"""The outbox in PostgreSQL, on a real server."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from pipelines.ports import free_port
from sagascope import PostgresOutbox
from sagascope.delivery import TimeoutWrappedListener
from sagascope.errors import ListenerTimeoutError, PermanentError, TransientError
from sagascope.listeners.outbox import OutboxSagaListener
from sagascope.outbox import postgresql as outbox_module
from tests.sagascope.conftest import make_event, until
from tests.sagascope.listeners.contract import a_run
from tests.sagascope.outbox.behaviour import Transaction
from tests.sagascope.outbox.relayed import RelayedBehaviour
from tests.servers.postgresql import PostgresServer
from tests.servers.proxy import Fault, Proxy
from tests.servers.server import state_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


class PostgresTransaction(Transaction):
    """Of asyncpg; begun by its own means or, as some frameworks do, by a statement."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    async def order(self, order_id: str) -> None:
        await self.connection.execute("INSERT INTO orders VALUES ($1)", order_id)

    async def commit(self) -> None:
        await self.connection.execute("COMMIT")

    async def roll_back(self) -> None:
        await self.connection.execute("ROLLBACK")


@pytest.fixture
def dsn(postgresql: PostgresServer) -> str:
    """Of an empty database."""
    return postgresql.dsn(postgresql.create_database())


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Any]:
    """A connection past the storage."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        connection.terminate()


async def stored(dsn: str) -> list[str]:
    """The ids in the table, by position."""
    async with connected(dsn) as connection:
        rows = await connection.fetch("SELECT event_id FROM sagascope_outbox ORDER BY position")
    return [str(row[0]) for row in rows]


class TestPostgresOutbox(RelayedBehaviour):
    """The laws of every outbox."""

    @pytest.fixture(autouse=True)
    def place(self, dsn: str) -> str:
        return dsn

    def outbox(self, place: str) -> PostgresOutbox:
        return PostgresOutbox(place)

    @asynccontextmanager
    async def transaction(self, place: str) -> AsyncIterator[PostgresTransaction]:
        async with connected(place) as connection:
            await connection.execute("CREATE TABLE IF NOT EXISTS orders (id TEXT)")
            await connection.execute("BEGIN")
            yield PostgresTransaction(connection)

    async def query(self, place: str, statement: str) -> list[tuple[Any, ...]]:
        async with connected(place) as connection:
            return [tuple(row) for row in await connection.fetch(statement)]

    async def refuse(self, place: str, saga_id: str) -> None:
        await self.query(place, f"ALTER TABLE sagascope_outbox ADD CHECK (saga_id <> '{saga_id}')")


async def blocked(connection: Any, blocker: Any) -> None:
    """Wait until one connection's statement waits for the other's transaction."""
    pid, other = connection.get_server_pid(), blocker.get_server_pid()
    async with asyncio.timeout(30):
        while other not in await blocker.fetchval("SELECT pg_blocking_pids($1)", pid):  # noqa: ASYNC110 - the server's
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("cancels", [1, 3])
def test_a_cancelled_insert_leaves_the_transaction_usable(dsn: str, cancels: int) -> None:
    """An insert that waits for another's lock is cut by a cancel, or several; the caller's transaction goes on without it."""
    event, before, after = make_event(), a_run("order-1"), a_run("order-2")

    async def main() -> None:
        outbox = PostgresOutbox(dsn)
        await outbox.open()
        async with connected(dsn) as other, connected(dsn) as connection:
            await other.execute("BEGIN")
            await other.execute(
                "INSERT INTO sagascope_outbox (event_id, saga_id, event_type, payload, headers) VALUES ($1, '', '', '', '{}')",
                event.event_id,
            )
            async with connection.transaction(), outbox.using(connection):
                await outbox.append(before)
                writing = asyncio.create_task(outbox.append([event]))
                await blocked(connection, other)
                for _ in range(cancels):
                    writing.cancel()
                    await asyncio.sleep(0)
                with pytest.raises(asyncio.CancelledError):
                    await writing
                await outbox.append(after)
                assert await connection.fetchval("SELECT 1") == 1
            await other.execute("ROLLBACK")
        assert await stored(dsn) == [each.event_id for each in before + after]
        await outbox.close()

    asyncio.run(main())


def test_a_timeout_leaves_the_transaction_usable(dsn: str) -> None:
    """The same where a fan-out's timeout cancels the write, and again when it is tried anew."""
    event = make_event()

    async def main() -> None:
        async with OutboxSagaListener(PostgresOutbox(dsn)) as inner, connected(dsn) as other, connected(dsn) as own:
            await other.execute("BEGIN")
            await other.execute("LOCK TABLE sagascope_outbox")
            listener = TimeoutWrappedListener(inner, timeout_ms=50)
            async with own.transaction(), inner.storage.using(own):
                for _ in range(3):
                    with pytest.raises(ListenerTimeoutError):
                        await listener.write([event])
                await other.execute("ROLLBACK")
                await TimeoutWrappedListener(inner, timeout_ms=10_000).write([event])
            assert await stored(dsn) == [event.event_id]

    asyncio.run(main())


def test_a_cancel_at_any_moment_leaves_the_transaction_usable(dsn: str) -> None:
    """Also one that comes while the savepoint is set, released or taken back."""
    chance = random.Random(7)
    batches = [a_run(f"order-{n}") for n in range(60)]

    async def main() -> None:
        outbox = PostgresOutbox(dsn)
        await outbox.open()
        cancelled = 0
        async with connected(dsn) as connection, connection.transaction(), outbox.using(connection):
            for events in batches:
                writing = asyncio.create_task(outbox.append(events))
                await asyncio.sleep(chance.uniform(0, 0.002))
                writing.cancel()
                await asyncio.wait([writing])
                cancelled += writing.cancelled()
                await outbox.append(events)
        assert cancelled
        assert await stored(dsn) == [event.event_id for events in batches for event in events]
        await outbox.close()

    asyncio.run(main())


def test_a_dead_wire_within_a_transaction_is_cut(postgresql: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled write whose savepoint cannot be undone does not hang: the connection is closed, and its owner sees it."""
    database, events = postgresql.create_database(), a_run("order-1")
    monkeypatch.setattr("sagascope.postgresql._ANSWER_SECONDS", 0.1)

    async def main() -> None:
        outbox = PostgresOutbox(postgresql.dsn(database))
        await outbox.open()
        async with Proxy(postgresql.port) as proxy, connected(postgresql.dsn(database, proxy.port)) as connection:
            await connection.execute("BEGIN")
            async with outbox.using(connection):
                proxy.fault = Fault.TIMEOUT
                async with asyncio.timeout(10):
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.05):
                            await outbox.append(events)
                assert connection.is_closed()
        await outbox.close()

    asyncio.run(main())


def test_a_cancelled_write_occupies_no_connection(postgresql: PostgresServer) -> None:
    """Though the wire is dead, so that the server can't confirm anything, the next write has the pool's one connection."""
    database = postgresql.create_database()

    async def main() -> None:
        async with Proxy(postgresql.port) as proxy:
            outbox = PostgresOutbox(postgresql.dsn(database, proxy.port), pool_size=1)
            await outbox.open()
            proxy.fault = Fault.TIMEOUT
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await outbox.append([make_event()])
            proxy.fault = Fault.NONE
            async with asyncio.timeout(10):
                await outbox.append([make_event()])
                await outbox.close()

    asyncio.run(main())


def test_a_transaction_that_has_failed_is_said_to_have(dsn: str) -> None:
    """Where the service's own statement has failed the transaction, no attempt can put an event into it."""

    async def main() -> None:
        outbox = PostgresOutbox(dsn)
        await outbox.open()
        async with connected(dsn) as connection:
            await connection.execute("BEGIN")
            async with outbox.using(connection):
                with pytest.raises(asyncpg.PostgresSyntaxError):
                    await connection.execute("SELEC")
                with pytest.raises(PermanentError, match="25P02"):
                    await outbox.append([make_event()])
        assert await stored(dsn) == []
        await outbox.close()

    asyncio.run(main())


def test_a_connection_lost_within_a_transaction_is_transient(dsn: str) -> None:
    """The transaction's events are gone with it; what comes later is committed by itself."""
    one, two = a_run("order-1"), a_run("order-2")

    async def main() -> None:
        outbox = PostgresOutbox(dsn)
        await outbox.open()
        async with connected(dsn) as other, connected(dsn) as connection:
            await connection.execute("BEGIN")
            async with outbox.using(connection):
                await outbox.append(one)
                await other.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
                await until(connection.is_closed)
                await outbox.append(two)
        assert await stored(dsn) == [event.event_id for event in two]
        await outbox.close()

    asyncio.run(main())


def test_a_pool_that_is_handed_over_stays_open(dsn: str) -> None:
    """The owner of a pool closes it; its connections can be handed over, too, and given back within the block."""
    events = a_run("order-1")

    async def main() -> None:
        pool = await asyncpg.create_pool(dsn, min_size=1, max_size=2)
        try:
            outbox = PostgresOutbox(pool)
            await outbox.append(events[:1])
            connection = await pool.acquire()
            await connection.execute("BEGIN")
            async with outbox.using(connection):
                await outbox.append(events[1:2])
                await connection.execute("COMMIT")
                await pool.release(connection)
                await outbox.append(events[2:])
            await outbox.close()
            assert await pool.fetchval("SELECT count(*) FROM sagascope_outbox") == len(events)
        finally:
            pool.terminate()

    asyncio.run(main())


def test_a_role_that_may_not_create_uses_the_table_that_is_there(dsn: str) -> None:
    """Migrations may make the table from the documented SQL, in any schema; without it the right is asked for."""

    async def main() -> None:
        limited = dsn.replace("postgres:", "limited_service:")
        async with connected(dsn) as connection:
            await connection.execute("DROP ROLE IF EXISTS limited_service")
            await connection.execute("CREATE ROLE limited_service LOGIN")
            await connection.execute("CREATE SCHEMA sagas; GRANT USAGE ON SCHEMA sagas TO limited_service")
            outbox = PostgresOutbox(limited, table="sagas.outbox")
            with pytest.raises(TransientError, match="42501"):
                await outbox.append([make_event()])
            await connection.execute(outbox_module.schema("sagas.outbox"))
            await connection.execute("GRANT SELECT, INSERT, UPDATE ON sagas.outbox TO limited_service")
            await outbox.append([make_event()])
            assert len(await outbox.claim("relay")) == 1
            await outbox.close()
            await connection.execute("DROP OWNED BY limited_service; DROP ROLE limited_service")

    asyncio.run(main())


def test_a_name_that_needs_quotes_is_refused() -> None:
    """The table's name goes into statements as it is."""
    for name in ("", "Outbox", "a b", "a.b.c", "x; DROP TABLE orders", "x" * 41, "öutbox", "a\n"):
        with pytest.raises(ValueError, match="allowed: lower-case letters"):
            PostgresOutbox("postgresql://", table=name)


@pytest.mark.parametrize("dsn", ["postgresql://u:geheim/word@h/db", "http://u:geheim@h", "postgresql://u:geheim@h:x/d"])
def test_a_dsn_that_cannot_be_read_is_permanent_and_not_repeated(dsn: str) -> None:
    """What is wrong with it could be in the password."""

    async def main() -> None:
        with pytest.raises(PermanentError, match="the DSN cannot be read") as caught:
            await PostgresOutbox(dsn).open()
        assert "geheim" not in repr(caught.value) + repr(caught.value.__cause__)
        assert caught.value.__suppress_context__

    asyncio.run(main())


def test_an_errors_detail_is_not_repeated(dsn: str) -> None:
    """A constraint's error quotes the row in its detail; the message has only what was violated."""

    async def main() -> None:
        outbox = PostgresOutbox(dsn)
        await outbox.open()
        async with connected(dsn) as connection:
            await connection.execute("ALTER TABLE sagascope_outbox ADD CONSTRAINT few CHECK (saga_id = 'order-1')")
        with pytest.raises(PermanentError, match=r"23514: .*few") as caught:
            await outbox.append([make_event(saga_id="geheim")])
        assert "geheim" not in str(caught.value)
        await outbox.close()

    asyncio.run(main())


def test_a_server_that_restarts_is_transient() -> None:
    """While it is down writes say so; once it is back they work, and what was committed is there."""
    server = PostgresServer(state_folder("postgresql"), free_port())
    server.initialise()
    outbox, one, two = PostgresOutbox(server.dsn("postgres")), a_run("order-1"), a_run("order-2")

    def phases() -> Iterator[None]:
        for _ in range(2):
            with server.running():
                yield
            yield

    async def main() -> None:
        phase = phases()
        await asyncio.to_thread(next, phase)
        await outbox.append(one)
        await asyncio.to_thread(next, phase)
        for _ in range(3):
            with pytest.raises(TransientError):
                await outbox.append(two)
        await asyncio.to_thread(next, phase)
        await outbox.append(two)
        assert await stored(server.dsn("postgres")) == [event.event_id for event in one + two]
        await outbox.close()
        await asyncio.to_thread(next, phase)

    asyncio.run(main())
