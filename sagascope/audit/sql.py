"""An audit log in a table of SQLite or PostgreSQL.

Needs the extra `sagascope[sqlite]` or `sagascope[postgres]`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from abc import ABC, abstractmethod
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagascope.audit.chain import AuditLog, Entry, Verification, Verifier, chained, event_id_of
from sagascope.events import encode
from sagascope.postgresql import PostgresPool, table_name, transaction
from sagascope.sqlite import SQLiteDatabase, as_delivery_errors, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    import asyncpg

    from sagascope.events import SagaEvent

_PAGE = 1_000
_IDLE_MS = 10_000
_BEFORE_ALL = -(2**63)
_COLUMNS = "sequence, recorded_at, previous, event, hash, event_id"


def postgresql_schema(table: str = "sagascope_audit") -> str:
    """The SQL that makes the table in PostgreSQL, for those who run migrations by themselves."""
    name = table_name(table).rpartition(".")[2]
    return f"""
CREATE TABLE IF NOT EXISTS {table} (
    sequence    bigint PRIMARY KEY,
    recorded_at bigint NOT NULL, -- milliseconds since the epoch
    previous    text NOT NULL,
    event       bytea NOT NULL,  -- convert_from(event, 'UTF8')::json
    hash        text NOT NULL,
    event_id    text NOT NULL UNIQUE
);
CREATE OR REPLACE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the audit log is append only: % refused', TG_OP; END $$;
DROP TRIGGER IF EXISTS {name}_append_only ON {table};
CREATE TRIGGER {name}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION {table}_refuse();
"""


def sqlite_schema(table: str = "sagascope_audit") -> str:
    """The SQL that makes the table in SQLite, for those who run migrations by themselves."""
    refuse = "BEGIN SELECT RAISE(ABORT, 'the audit log is append only'); END"
    return f"""
CREATE TABLE IF NOT EXISTS {table_name(table)} (
    sequence    INTEGER PRIMARY KEY,
    recorded_at INTEGER NOT NULL, -- milliseconds since the epoch
    previous    TEXT NOT NULL,
    event       BLOB NOT NULL,    -- CAST(event AS TEXT)
    hash        TEXT NOT NULL,
    event_id    TEXT NOT NULL UNIQUE
) STRICT;
CREATE TRIGGER IF NOT EXISTS {table}_no_update BEFORE UPDATE ON {table} {refuse};
CREATE TRIGGER IF NOT EXISTS {table}_no_delete BEFORE DELETE ON {table} {refuse};
"""


class SQLAuditLog(AuditLog):
    """A table to which several processes may append; each waits for its turn, so that the chain has no fork.

    An event whose id is in the table is left out, however long ago it came. Entries are committed by themselves, whatever
    transaction the saga runs in: what was rolled back has happened, too. The table refuses UPDATE and DELETE by a trigger;
    whoever may drop that is found out by `verify`.
    """

    def __init__(
        self,
        database: str | Path | asyncpg.Pool,
        *,
        table: str = "sagascope_audit",
        create_table: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Do no I/O yet.

        Args:
            database: `postgresql://…`, a pool of asyncpg, which stays its owner's to close, or the path of a SQLite file.
            table: The table's name; in PostgreSQL with a schema or without.
            create_table: Make the table where it is absent; False where migrations do.
            clock: Seconds since the epoch; for tests.

        Raises:
            ValueError: a table's name that would need quotes.
        """
        table_name(table)
        self._clock = clock
        self._table: _Table
        if isinstance(database, Path) or (isinstance(database, str) and not is_dsn(database)):
            self._table = _SQLiteTable(Path(database), table, create=create_table)
        else:
            self._table = _PostgresTable(database, table, create=create_table)

    async def open(self) -> None:
        """Connect, and make the table where it is absent."""
        await self._table.open()

    async def close(self) -> None:
        """Let appends under way end, and close what is not the caller's."""
        await self._table.close()

    async def append(self, events: Sequence[SagaEvent]) -> None:
        """Add the events that are not there yet, in one transaction."""
        new: dict[str, bytes] = {}
        for event in events:
            new.setdefault(_as_text(event.event_id), encode(event))
        await self._table.append(new, lambda: int(self._clock() * 1000))

    async def verify(self, head: str | None = None) -> Verification:
        """Read the whole table; what is appended meanwhile may be part of it."""
        verifier = Verifier(head)
        async for row in self._table.rows():
            *values, event_id = row
            entry = Entry(*values)
            if broken := verifier.objection(entry, "by its sequence"):
                return broken
            if _as_text(event_id_of(entry) or "") != event_id:
                return verifier.broken(f"entry {entry.sequence} was changed: its event_id is not that of its event")
        return verifier.result()


def _as_text(event_id: str) -> str:
    """As a text column takes it: without NUL, and lone surrogates."""
    return event_id.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def is_dsn(database: str) -> bool:
    """Whether it is PostgreSQL's."""
    return database.startswith(("postgresql://", "postgres://"))


class _Table(ABC):
    """What the two databases do in their own ways."""

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    async def close(self) -> None: ...

    @abstractmethod
    async def append(self, events: dict[str, bytes], now: Callable[[], int]) -> None:
        """In one transaction, while no other appends: leave out what is there, and add the rest to the chain."""

    @abstractmethod
    async def page(self, after: int) -> list[Any]:
        """Up to a thousand rows with a greater sequence, in order."""

    async def rows(self) -> AsyncIterator[Any]:
        """All, in order."""
        after = _BEFORE_ALL
        while page := await self.page(after):
            for row in page:
                yield row
            after = page[-1][0]


def _new_rows(events: dict[str, bytes], known: set[str], last: Entry | None, now: int) -> list[tuple[Any, ...]]:
    new = {event_id: event for event_id, event in events.items() if event_id not in known}
    entries = chained(list(new.values()), last, now)
    return [(*entry, event_id) for entry, event_id in zip(entries, new, strict=True)]


class _PostgresTable(_Table):
    def __init__(self, pool_or_dsn: str | asyncpg.Pool, table: str, *, create: bool) -> None:
        self._table = table
        self._create = create
        self._pool = PostgresPool(pool_or_dsn, self._prepare)
        self._known = f"SELECT event_id FROM {table} WHERE event_id = ANY($1)"  # noqa: S608 - checked, as in all below
        self._last = f"SELECT {_COLUMNS} FROM {table} ORDER BY sequence DESC LIMIT 1"  # noqa: S608
        self._next = f"SELECT {_COLUMNS} FROM {table} WHERE sequence > $1 ORDER BY sequence LIMIT {_PAGE}"  # noqa: S608
        self._insert = f"INSERT INTO {table} ({_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6)"  # noqa: S608

    async def open(self) -> None:
        await self._pool.open()

    async def close(self) -> None:
        await self._pool.close()

    async def _prepare(self, connection: Any) -> None:
        if self._create and not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", self._table):
            async with transaction(connection):
                await self._take_turn(connection)
                await connection.execute(postgresql_schema(self._table))

    async def _take_turn(self, connection: Any) -> None:
        # A writer whose wire dies half-way must not keep the others waiting for as long as TCP takes to notice.
        await connection.execute(
            "SELECT set_config('idle_in_transaction_session_timeout', $2, true), pg_advisory_xact_lock(hashtext($1))",
            f"sagascope {self._table}",
            f"{_IDLE_MS}",
        )

    async def append(self, events: dict[str, bytes], now: Callable[[], int]) -> None:
        async with self._pool.transaction() as connection:
            await self._take_turn(connection)
            known = await connection.fetch(self._known, list(events))
            last = await connection.fetchrow(self._last)
            rows = _new_rows(events, {row[0] for row in known}, last and Entry(*last[:5]), now())
            await connection.executemany(self._insert, rows)

    async def page(self, after: int) -> list[Any]:
        async with self._pool.connection() as connection:
            rows: list[Any] = await connection.fetch(self._next, after)
        return rows


class _SQLiteTable(_Table):
    def __init__(self, path: Path, table: str, *, create: bool) -> None:
        self._path = path
        self._table = table
        self._database = SQLiteDatabase(path, sqlite_schema(table) if create else "")
        self._appending: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        await self._database.open()

    async def close(self) -> None:
        if self._appending:
            await asyncio.wait(self._appending)
        await self._database.close()

    async def append(self, events: dict[str, bytes], now: Callable[[], int]) -> None:
        task = asyncio.create_task(self._append(events, now))  # cut off between two statements it would hold the lock
        self._appending.add(task)
        task.add_done_callback(self._appended)
        await asyncio.shield(task)

    def _appended(self, task: asyncio.Task[None]) -> None:
        self._appending.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it gets it; nobody does where that was cancelled

    async def _append(self, events: dict[str, bytes], now: Callable[[], int]) -> None:
        ids = list(events)
        async with self._database.transaction() as connection:
            known: set[str] = set()
            for start in range(0, len(ids), _PAGE):
                some = ids[start : start + _PAGE]
                marks = ", ".join("?" * len(some))
                statement = f"SELECT event_id FROM {self._table} WHERE event_id IN ({marks})"  # noqa: S608 - checked
                known |= {row[0] for row in await run(connection, statement, some)}
            last = await run(connection, f"SELECT {_COLUMNS} FROM {self._table} ORDER BY sequence DESC LIMIT 1")  # noqa: S608 - checked
            rows = _new_rows(events, known, Entry(*last[0][:5]) if last else None, now())
            await connection.executemany(f"INSERT INTO {self._table} ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", rows)  # noqa: S608 - checked

    async def page(self, after: int) -> list[Any]:
        statement = f"SELECT {_COLUMNS} FROM {self._table} WHERE sequence > ? ORDER BY sequence LIMIT {_PAGE}"  # noqa: S608 - checked
        return await asyncio.to_thread(self._read, statement, after)

    def _read(self, statement: str, after: int) -> list[Any]:
        """By a connection of its own, which makes no file and sees nothing that is not committed."""
        address = f"{self._path.resolve().as_uri()}?mode=ro"
        with as_delivery_errors(), closing(sqlite3.connect(address, uri=True)) as connection:
            return connection.execute(statement, (after,)).fetchall()
