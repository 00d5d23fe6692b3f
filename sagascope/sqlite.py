"""SQLite by way of aiosqlite: a connection that opens when it is first used, and what its errors mean for events.

Needs the extra `sagascope[sqlite]`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagascope.drivers import load
from sagascope.errors import DeliveryError, PermanentError, TransientError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

PERMANENT = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.NotSupportedError)
"""Too large a value, a constraint. All else may pass: locked, no room, no such table yet, closed meanwhile, damaged."""
_AGAIN_SECONDS = 0.02


class SQLiteDatabase:
    """One connection to a file, in WAL mode, fully synchronous; each statement is a transaction of its own.

    A statement that is cancelled while it waits for its turn or runs is carried out all the same.
    """

    def __init__(self, path: str | Path, schema: str = "", *, busy_timeout_ms: int = 5_000) -> None:
        self._path = Path(path)
        self._schema = schema
        self._busy_timeout_ms = busy_timeout_ms
        self._connection: Any = None
        self._opening = asyncio.Lock()
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Connect, and run the schema's statements; if that has not been done.

        Raises:
            ModuleNotFoundError: aiosqlite is not installed.
            TransientError: no such folder, no right, no room, or another holds the lock.
        """
        if self._connection is not None:
            return
        async with self._opening:
            if self._connection is not None:
                return
            connection = (await asyncio.to_thread(driver)).connect(self._path, isolation_level=None, timeout=0)
            connection._thread.daemon = True  # noqa: SLF001 - else a service that forgets to close never ends
            with as_delivery_errors():
                try:
                    await connection
                    await self._prepare(connection)
                    await run(connection, "PRAGMA synchronous = FULL")
                    await run(connection, f"PRAGMA busy_timeout = {self._busy_timeout_ms}")
                except BaseException:
                    await connection.close()
                    raise
            self._connection = connection

    async def _prepare(self, connection: Any) -> None:
        """Two that make the file at once may each wait for the other: so none waits within SQLite, but tries again."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._busy_timeout_ms / 1000
        while True:
            try:
                await run(connection, "PRAGMA journal_mode = WAL")
                await connection.executescript(self._schema)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or clock() > deadline:
                    raise
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                return

    async def close(self) -> None:
        """Let what is under way end, then close. Opens again when used."""
        async with self._turn, self._opening:
            connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def execute(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Carry out one statement; returns its rows.

        Raises:
            TransientError: or PermanentError, as `delivery_error` has it.
        """
        await self.open()
        with as_delivery_errors():
            return await run(self._connection, statement, values)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """The connection, in a transaction that holds the file's write lock; one after the other. Not to be cancelled.

        Raises:
            TransientError: or PermanentError, as `delivery_error` has it.
        """
        async with self._turn:
            await self.open()
            connection = self._connection
            with as_delivery_errors():
                await connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    await connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:  # a full disk may have ended it already
                        await connection.execute("ROLLBACK")
                    raise


async def run(connection: Any, statement: str, values: Sequence[Any] = ()) -> list[Any]:
    """Carry out one statement on a connection of aiosqlite, in one go; returns its rows."""
    rows: list[Any] = await connection.execute_fetchall(statement, values)
    return rows


@contextmanager
def as_delivery_errors() -> Iterator[None]:
    """What the driver raises within leaves as TransientError or PermanentError."""
    try:
        yield
    except (sqlite3.Error, ValueError) as error:
        ours = delivery_error(error)
        if ours is None:
            raise
        raise ours from error


def delivery_error(error: Exception) -> DeliveryError | None:
    """What an error of sqlite3, or of aiosqlite, means for the events; None: it is of neither."""
    if isinstance(error, sqlite3.Error):
        message = f"SQLite: {type(error).__name__}: {error}"
        return PermanentError(message) if isinstance(error, PERMANENT) else TransientError(message)
    if isinstance(error, ValueError) and str(error) in ("Connection closed", "no active connection"):
        return TransientError("SQLite: the connection was closed")  # by aiosqlite, which has no class for it
    return None


def driver() -> Any:
    """The module aiosqlite.

    Raises:
        ModuleNotFoundError: it is not installed; names what to install.
    """
    return load("aiosqlite", needed_by="SQLite", package="aiosqlite", extra="sqlite")
