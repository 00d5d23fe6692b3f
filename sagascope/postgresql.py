"""PostgreSQL by way of asyncpg: a pool that opens when it is first used, and what its errors mean for events.

Needs the extra `sagascope[postgres]`.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sagascope.drivers import load
from sagascope.errors import DeliveryError, PermanentError, TransientError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    import asyncpg

_CLOSE_SECONDS = 5.0
"""What statements under way may still take when their pool is closed."""
_ANSWER_SECONDS = 10.0
"""How long a cancelled write waits for its part of a caller's transaction to be undone."""
_NAME = re.compile(r"([a-z_][a-z0-9_]{0,39}\.)?[a-z_][a-z0-9_]{0,39}")
"""Of a table, with its schema or without: no quotes needed, and room for the indexes' suffixes in PostgreSQL's 63 bytes."""

PERMANENT_SQLSTATES = ("0A", "20", "21", "22", "23", "2F", "38", "39", "42", "44", "54", "P0", "25P02")
"""By class, or whole: of the data, of the statement, of a constraint or a trigger; and a transaction that has failed
already, in which every statement does until its end."""
TRANSIENT_SQLSTATES = ("42P01", "42703", "42501", "42P05")
"""Exceptions from these: a table, a column or a right that a migration has still to make; a pooler between."""


class PostgresPool:
    """Connections to one database: a pool of its own, made from a DSN, or one handed over, which its owner closes.

    `prepare` is called once an opening, with a connection, before anybody else gets one.
    """

    def __init__(
        self, pool_or_dsn: str | asyncpg.Pool, prepare: Callable[[Any], Awaitable[None]], *, size: int = 4
    ) -> None:
        self._pool_or_dsn = pool_or_dsn
        self._is_own = isinstance(pool_or_dsn, str)
        self._prepare = prepare
        self._size = size
        self._pool: Any = None
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """Connect and prepare, if that has not been done.

        Raises:
            ModuleNotFoundError: asyncpg is not installed.
            TransientError: no server, or none that lets us in.
            PermanentError: the DSN is none.
        """
        if self._pool is not None:
            return
        async with self._opening:
            if self._pool is not None:
                return
            await asyncio.to_thread(driver)  # the import takes a while, and sagas run on
            pool = await self._made()
            try:
                with as_delivery_errors():
                    await self._connect(pool)
            except BaseException:
                if self._is_own:
                    pool.terminate()
                raise
            self._pool = pool

    async def _connect(self, pool: Any) -> None:
        try:
            async with _lent(pool) as connection:
                await self._prepare(connection)
        except ValueError:  # of the DSN, asyncpg's too; its text may hold a part of the password
            msg = "PostgreSQL: the DSN cannot be read; allowed: postgresql://user:password@host:port/database, percent-encoded"
            raise PermanentError(msg) from None

    async def _made(self) -> Any:
        if not self._is_own:
            return self._pool_or_dsn
        # None is kept ready: asyncpg would log a traceback whenever it can't be.
        return await driver().create_pool(self._pool_or_dsn, min_size=0, max_size=self._size, reset=_nothing)

    async def close(self) -> None:
        """Let statements under way end, for 5 s at most, and close the pool if it is our own. Opens again when used."""
        async with self._opening:
            pool, self._pool = self._pool, None
        if pool is not None and self._is_own:
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await pool.close()
            except TimeoutError:  # asyncpg has cut the connections
                pass

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection for a few statements; the driver's errors leave as ours.

        Raises:
            TransientError: or PermanentError, as `delivery_error` has it.
        """
        await self.open()
        with as_delivery_errors():
            async with _lent(self._pool) as connection:
                yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """The same, in one transaction, READ COMMITTED; a cancel leaves it to the server to undo.

        Raises:
            TransientError: or PermanentError, as `delivery_error` has it.
        """
        async with self.connection() as connection, transaction(connection):
            yield connection


@asynccontextmanager
async def transaction(connection: Any) -> AsyncIterator[None]:
    """One transaction. asyncpg's own would wait, when cancelled, for a ROLLBACK that a dead wire never carries."""
    await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
    try:
        yield
    except asyncio.CancelledError:
        raise  # the connection is cut, which undoes it
    except BaseException:
        with suppress(*_errors()):  # the connection is gone, and so the transaction: the cause is raised
            await connection.execute("ROLLBACK")
        raise
    await connection.execute("COMMIT")


@asynccontextmanager
async def _lent(pool: Any) -> AsyncIterator[Any]:
    connection = await pool.acquire()
    try:
        yield connection
    except asyncio.CancelledError:
        connection.terminate()  # else the release waits for the server to confirm, which a dead wire never does
        raise
    finally:
        await pool.release(connection)


@asynccontextmanager
async def savepoint(connection: Any) -> AsyncIterator[None]:
    """What is done within leaves the caller's transaction as it was when it fails or is cancelled.

    A cancel interrupts what is done within, never the savepoint's own statements: one that is cut off would fail the
    whole transaction.
    """
    await _to_its_end(connection, "SAVEPOINT sagascope")
    try:
        yield
    except BaseException:
        with suppress(*_errors()):  # the connection is gone, or the transaction over: the cause is raised
            await _to_its_end(connection, "ROLLBACK TO SAVEPOINT sagascope; RELEASE SAVEPOINT sagascope")
        raise
    await _to_its_end(connection, "RELEASE SAVEPOINT sagascope")


async def _to_its_end(connection: Any, statement: str) -> None:
    """Carry it out, however often cancelled meanwhile; the cancel is passed on afterwards.

    A connection that does not answer a while after the cancel is cut: it would hang its owner's next statement.
    """
    task = asyncio.ensure_future(connection.execute(statement))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        clock = asyncio.get_running_loop().time
        deadline = clock() + _ANSWER_SECONDS
        while not task.done() and (left := deadline - clock()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task}, timeout=left)
        if not task.done():
            connection.terminate()
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # of no interest beside the cancel
        raise


async def _nothing(connection: Any) -> None:
    """In place of asyncpg's reset, one more round trip a statement: ours leave nothing behind."""


@contextmanager
def as_delivery_errors() -> Iterator[None]:
    """What the driver raises within leaves as TransientError or PermanentError."""
    try:
        yield
    except Exception as error:
        ours = delivery_error(error)
        if ours is None:
            raise
        raise ours from error


def delivery_error(error: Exception) -> DeliveryError | None:
    """What an error of asyncpg, or of the network below it, means for the events; None: it is of neither.

    By SQLSTATE where there is one. The message is the server's without its DETAIL, which may quote a row.
    """
    asyncpg = driver()
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        message = f"PostgreSQL: {type(error).__name__} {state}: {error.args[0] if error.args else ''}"
        return PermanentError(message) if _is_permanent(error, state) else TransientError(message)
    if isinstance(error, _permanent_of_client()):
        return PermanentError(f"PostgreSQL: {type(error).__name__}: {error}")
    if isinstance(error, _errors()):
        return TransientError(f"PostgreSQL: {type(error).__name__}: {error}")
    return None


def _is_permanent(error: Exception, state: str) -> bool:
    if isinstance(error, driver().InvalidCachedStatementError):  # of class 0A; the table was altered: prepared anew
        return False
    return state.startswith(PERMANENT_SQLSTATES) and state not in TRANSIENT_SQLSTATES


def _errors() -> tuple[type[Exception], ...]:
    """What a statement may raise."""
    asyncpg = driver()
    return asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError


def _permanent_of_client() -> tuple[type[Exception], ...]:
    from asyncpg import exceptions  # noqa: PLC0415 - a driver is imported when it is used

    return (
        exceptions._base.DataError,  # noqa: SLF001 - shadowed in asyncpg's namespaces by the server's error of that name
        exceptions.ClientConfigurationError,
        exceptions.UnsupportedClientFeatureError,
        exceptions.UnsupportedServerFeatureError,
    )


def table_name(table: str) -> str:
    """The name, if it is one that needs no quotes.

    Raises:
        ValueError: it is none.
    """
    if not _NAME.fullmatch(table):
        msg = f"table: got {table!r}; allowed: lower-case letters, digits and _, at most 40, with a schema or without"
        raise ValueError(msg)
    return table


def driver() -> Any:
    """The module asyncpg.

    Raises:
        ModuleNotFoundError: it is not installed; names what to install.
    """
    return load("asyncpg", needed_by="PostgreSQL", package="asyncpg", extra="postgres")
