"""Sagascope's own outbox as a source: in PostgreSQL, woken by NOTIFY, and in SQLite."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import time
import uuid
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from pipelines.relay.ends import Outcome, RelayError, Source
from sagascope import PostgresOutbox, SQLiteOutbox
from sagascope.errors import PermanentError, TransientError
from sagascope.outbox.postgresql import channel
from sagascope.postgresql import delivery_error, driver
from sagascope.sqlite import SQLiteDatabase

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from sagascope.outbox.storage import Backlog, ClaimedEvent, OutboxStorage, ParkedEvent

logger = logging.getLogger("sagascope.relay")

_CONNECT_SECONDS = 10.0
_LISTEN_AGAIN_SECONDS = 5.0
_STAND_BY_SECONDS = 0.5


class OutboxSource(Source):
    """What both databases have in common: rows are claimed by sagas, for the time of a lease."""

    def __init__(self, storage: OutboxStorage, where: str, *, lease_seconds: float, pass_on: bool) -> None:
        super().__init__()
        self._storage = storage
        self._where = where
        self._lease_seconds = lease_seconds
        self._pass_on = pass_on
        self._worker = f"relay-{socket.gethostname()[:60]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"

    def __str__(self) -> str:
        """Where it is, without credentials."""
        return self._where

    async def take(self, limit: int) -> list[ClaimedEvent]:
        return await self._storage.claim(
            self._worker, limit=limit, lease_seconds=self._lease_seconds, past_dead=self._pass_on
        )

    async def settle(self, outcome: Outcome) -> None:
        # Parked before released: at no moment may somebody claim what follows a parked event.
        for event, reason in outcome.rejected:
            await self._storage.mark_dead(self._worker, [event.event_id], reason)
        if outcome.sent:
            await self._storage.mark_sent(self._worker, [event.event_id for event in outcome.sent])
        if outcome.left:
            await self._storage.release(self._worker, [event.event_id for event in outcome.left], outcome.failure)

    async def backlog(self) -> Backlog:
        return await self._storage.backlog()

    async def parked(self, *, saga_id: str | None = None, limit: int = 1_000) -> list[ParkedEvent]:
        return await self._storage.parked(saga_id=saga_id, limit=limit)

    async def retry_parked(self, event_ids: Collection[str]) -> int:
        return await self._storage.retry_parked(event_ids)

    async def discard_parked(self, event_ids: Collection[str]) -> int:
        return await self._storage.discard_parked(event_ids)

    async def purge(self, *, older_than_seconds: float, limit: int) -> int:
        return await self._storage.purge(older_than_seconds=older_than_seconds, limit=limit)

    async def close(self) -> None:
        await self._storage.close()


class PostgresSource(OutboxSource):
    """Several relays share the work: a saga is one relay's at a time.

    A connection listens for the outbox's NOTIFY. Where it is lost, or a pooler in transaction mode swallows what is
    told, rows are found by polling.
    """

    def __init__(
        self,
        dsn: str,
        where: str,
        *,
        table: str = "sagascope_outbox",
        lease_seconds: float = 30.0,
        pass_on: bool = False,
    ) -> None:
        storage = PostgresOutbox(dsn, table=table, create_table=False)
        super().__init__(storage, where, lease_seconds=lease_seconds, pass_on=pass_on)
        self._dsn = dsn
        self._table = table
        self._listener: Any = None
        self._listening: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self.look()
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen())

    async def look(self) -> None:
        connection = await connected(self._dsn, self._where)
        try:
            there = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", self._table)
        finally:
            connection.terminate()
        if not there:
            msg = (
                f"{self._where} has no table {self._table}: a service makes it as it opens its PostgresOutbox, "
                "migrations by sagascope.outbox.postgresql.schema(); or name another database, or --table"
            )
            raise RelayError(msg)
        await self._storage.open()

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listening = None
        await super().close()

    async def _listen(self) -> None:
        """Hold a connection that listens; made again where it is lost."""
        while True:
            lost = asyncio.Event()
            try:
                connection = await connected(self._dsn, self._where)
            except (TransientError, RelayError):
                await asyncio.sleep(_LISTEN_AGAIN_SECONDS)
                continue
            try:
                connection.add_termination_listener(lambda _, lost=lost: lost.set())
                await connection.add_listener(channel(self._table), lambda *_: self.woken.set())
                self.woken.set()  # what was told before nobody heard
                await lost.wait()
                logger.warning("the connection that listens to %s is lost: polling until it is made again", self._where)
            except Exception as error:  # noqa: BLE001 - polling goes on
                logger.warning("can't listen to %s (%r): polling", self._where, error)
            finally:
                connection.terminate()
            await asyncio.sleep(_LISTEN_AGAIN_SECONDS)


async def connected(dsn: str, where: str) -> Any:
    """A connection past the pool.

    Raises:
        RelayError: the server lets nobody in with that user, password and database, or the DSN is none.
        TransientError: it does not answer.
    """
    asyncpg = driver()
    try:
        return await asyncpg.connect(dsn, timeout=_CONNECT_SECONDS)
    except ValueError:  # of the DSN; its text may hold a part of the password
        msg = "the PostgreSQL URL of --from can't be read; allowed: postgresql://user:password@host:port/database, percent-encoded"
        raise RelayError(msg) from None
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        msg = f"{where} lets nobody in ({error.args[0]}): look at user, password and database of --from"
        raise RelayError(msg) from None
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        ours = delivery_error(error)
        if isinstance(ours, PermanentError):
            raise RelayError(str(ours)) from None
        msg = f"{where} does not answer ({type(error).__name__}: {error})"
        raise TransientError(msg) from None


class SQLiteSource(OutboxSource):
    """One relay at a time: it holds a lock on a file beside the database; another one waits until that is let go.

    SQLite has no NOTIFY: rows are found by polling.
    """

    def __init__(self, path: Path, *, lease_seconds: float = 30.0, pass_on: bool = False) -> None:
        super().__init__(SQLiteOutbox(path), f"SQLite outbox {path}", lease_seconds=lease_seconds, pass_on=pass_on)
        self._path = path
        self._lock_path = path.with_name(f"{path.name}.relay-lock")
        self._lock: IO[str] | None = None
        self._is_first = True

    async def open(self) -> None:
        await self.look()
        if self._lock is None:
            self._lock = locked(self._lock_path, str(self))

    async def look(self) -> None:
        await check_table(self._path, "sagascope_outbox", "a service makes it as it opens its SQLiteOutbox")
        await self._storage.open()

    async def take(self, limit: int) -> list[ClaimedEvent]:
        if not self._is_first:
            return await super().take(limit)
        # The lock is ours: what is claimed was claimed by a relay that is dead.
        events = await self._storage.claim(self._worker, limit=limit, lease_seconds=0.0, past_dead=self._pass_on)
        self._is_first = False
        return events

    async def close(self) -> None:
        await super().close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None


async def check_table(path: Path, table: str, maker: str) -> None:
    """Look for the table, without making the file.

    Raises:
        RelayError: there is no such file, it is no database, or the table is absent.
    """
    if not await asyncio.to_thread(path.is_file):
        msg = f"there is no file {path}: give sqlite:///relative/path or sqlite:////absolute/path; {maker}"
        raise RelayError(msg)
    database = SQLiteDatabase(path)
    try:
        rows = await database.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,))
    except TransientError as error:
        if "not a database" in str(error):
            msg = f"{path} is no SQLite database ({error})"
            raise RelayError(msg) from None
        raise
    finally:
        await database.close()
    if not rows:
        msg = f"{path} has no table {table}: {maker}; or name another file in --from"
        raise RelayError(msg)


def locked(path: Path, what: str) -> IO[str]:
    """The file, locked until it is closed or this process ends.

    Raises:
        TransientError: another relay holds it.
    """
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(100).strip() or "unknown"
        file.close()
        msg = f"another relay (pid {holder}) works on {what}, which has one at a time: this one takes over when that one ends"
        raise TransientError(msg, retry_after=_STAND_BY_SECONDS) from None
    with suppress(OSError):  # a full disk: only the message would be poorer
        file.truncate(0)
        file.write(f"{os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} UTC")
        file.flush()
    return file
