"""The outbox in SQLite.

Needs the extra `sagascope[sqlite]` (aiosqlite).

outbox = SQLiteOutbox("orders.db")
async with OutboxSagaListener(outbox) as listener, aiosqlite.connect("orders.db") as connection:
    await connection.execute("BEGIN IMMEDIATE")
    async with outbox.using(connection):
        await connection.execute("INSERT INTO orders …")
        await OrderSaga(listeners=[listener]).run(context)
    await connection.commit()
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from sagascope.outbox.storage import Backlog, ClaimedEvent, OutboxRow, OutboxStorage, ParkedEvent
from sagascope.sqlite import SQLiteDatabase, as_delivery_errors, driver, run

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

TABLE = "sagascope_outbox"
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    position   INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice, also when rows are deleted
    event_id   TEXT NOT NULL UNIQUE,
    saga_id    TEXT NOT NULL,
    event_type TEXT NOT NULL,
    payload    BLOB NOT NULL, -- the event's JSON, byte for byte: CAST(payload AS TEXT)
    headers    TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ')),
    status     TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'claimed', 'sent', 'dead')),
    attempts   INTEGER NOT NULL DEFAULT 0,
    claimed_by TEXT,
    claimed_at REAL, -- seconds since the epoch, as sent_at
    sent_at    REAL,
    last_error TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS {TABLE}_unsent ON {TABLE} (position) WHERE status IN ('pending', 'claimed');
CREATE INDEX IF NOT EXISTS {TABLE}_claimed ON {TABLE} (saga_id, position) WHERE status = 'claimed';
CREATE INDEX IF NOT EXISTS {TABLE}_dead ON {TABLE} (saga_id, position) WHERE status = 'dead';
CREATE INDEX IF NOT EXISTS {TABLE}_sent ON {TABLE} (sent_at) WHERE status = 'sent';
"""
"""The SQL that makes the table where it is absent, for those who run migrations by themselves."""

_NOW = "(julianday('now') - 2440587.5) * 86400.0"
_ROWS_A_STATEMENT = 1_000
"""Five values each, of the 32,766 that SQLite takes."""
_EVENTS_A_STATEMENT = 10_000


class SQLiteOutbox(OutboxStorage):
    """Events in a table of a SQLite file (3.37 or later), which other processes may write at the same time.

    A transaction that holds the file's write lock must be handed over (`using`): a write outside of it, of a saga that it
    waits for, waits for it in turn until the busy timeout. Begin it with BEGIN IMMEDIATE, as one that has read before it
    writes may find that it can't.
    """

    def __init__(self, path: str | Path, *, busy_timeout_ms: int = 5_000) -> None:
        """Do no I/O yet.

        Args:
            path: The file; made where it is absent, its folder is not.
            busy_timeout_ms: How long a write waits for another process's, before it is a TransientError.
        """
        self._database = SQLiteDatabase(path, SCHEMA, busy_timeout_ms=busy_timeout_ms)

    async def open(self) -> None:
        """Connect, and make the table where it is absent."""
        await self._database.open()

    async def close(self) -> None:
        """Close the connection."""
        await self._database.close()

    def _check(self, connection: Any) -> None:
        if not isinstance(connection, driver().Connection):
            msg = f"connection: got a {type(connection).__name__}; allowed: one of aiosqlite"
            raise TypeError(msg)

    def _in_transaction(self, connection: Any) -> bool:
        try:
            return bool(connection.in_transaction)
        except (ValueError, sqlite3.ProgrammingError):  # closed
            return False

    async def _append_within(self, connection: Any, rows: Sequence[OutboxRow]) -> None:
        # One statement, which SQLite undoes by itself when it fails: a savepoint of ours would also undo what another
        # task wrote between our statements.
        with as_delivery_errors():
            for insert, values in _inserts(rows):
                await run(connection, insert, values)

    async def _append(self, rows: Sequence[OutboxRow]) -> None:
        for insert, values in _inserts(rows):
            await self._database.execute(insert, values)

    async def claim(
        self, worker: str, *, limit: int = 500, lease_seconds: float = 60.0, past_dead: bool = True
    ) -> list[ClaimedEvent]:
        """Take up to `limit` events to send, the eldest first, for so long; several workers may do so at once."""
        statement = _claim(past_dead=past_dead)
        rows = await self._database.execute(statement, (worker, f"{lease_seconds}", limit))
        return await self._readable(worker, rows)

    async def mark_sent(self, worker: str, event_ids: Collection[str]) -> int:
        """These are sent."""
        return await self._settle(f"status = 'sent', sent_at = {_NOW}", worker, event_ids, None)

    async def release(self, worker: str, event_ids: Collection[str], reason: str | None = None) -> int:
        """These are not sent, and may be claimed again."""
        return await self._settle("status = 'pending', claimed_by = NULL, claimed_at = NULL", worker, event_ids, reason)

    async def mark_dead(self, worker: str, event_ids: Collection[str], reason: str) -> int:
        """These will not be sent."""
        return await self._settle("status = 'dead'", worker, event_ids, reason)

    async def _settle(self, change: str, worker: str, event_ids: Collection[str], reason: str | None) -> int:
        whose = "status = 'claimed' AND claimed_by = ?"
        return await self._of(event_ids, f"UPDATE {TABLE} SET {change}, last_error = ?", whose, [reason], [worker])  # noqa: S608 - no input

    async def backlog(self) -> Backlog:
        """What waits, what is parked, and how old the eldest is that waits."""
        return Backlog(*(await self._database.execute(_BACKLOG))[0])

    async def parked(self, *, saga_id: str | None = None, limit: int = 1_000) -> list[ParkedEvent]:
        """The dead, the eldest first; of one saga, or of all."""
        statement = f"""
            SELECT event_id, saga_id, event_type, attempts, created_at, coalesce(last_error, '') FROM {TABLE}
            WHERE status = 'dead' AND (?1 IS NULL OR saga_id = ?1) ORDER BY position LIMIT ?2"""  # noqa: S608 - no input
        return [ParkedEvent(*row) for row in await self._database.execute(statement, (saga_id, limit))]

    async def retry_parked(self, event_ids: Collection[str]) -> int:
        """These dead ones are pending again, in their old place."""
        change = f"UPDATE {TABLE} SET status = 'pending', claimed_by = NULL, claimed_at = NULL"  # noqa: S608 - no input
        return await self._of(event_ids, change, "status = 'dead'")

    async def discard_parked(self, event_ids: Collection[str]) -> int:
        """These dead ones are deleted, and block nothing any more."""
        return await self._of(event_ids, f"DELETE FROM {TABLE}", "status = 'dead'")  # noqa: S608 - no input

    async def purge(self, *, older_than_seconds: float, limit: int = 1_000) -> int:
        """Delete up to `limit` events that were sent so long ago."""
        statement = f"""
            DELETE FROM {TABLE} WHERE position IN (
                SELECT position FROM {TABLE} WHERE status = 'sent' AND sent_at <= {_NOW} - CAST(?1 AS REAL)
                ORDER BY sent_at LIMIT ?2)
            RETURNING 1"""  # noqa: S608 - nothing of it is input
        return len(await self._database.execute(statement, (f"{older_than_seconds}", limit)))

    async def _of(
        self,
        event_ids: Collection[str],
        change: str,
        condition: str,
        before: Sequence[Any] = (),
        after: Sequence[Any] = (),
    ) -> int:
        """Carry out a change on those of the events that meet the condition; returns how many did."""
        done = 0
        ids = list(event_ids)
        for start in range(0, len(ids), _EVENTS_A_STATEMENT):
            some = ids[start : start + _EVENTS_A_STATEMENT]
            statement = f"{change} WHERE event_id IN ({_marks(len(some))}) AND {condition} RETURNING 1"
            done += len(await self._database.execute(statement, (*before, *some, *after)))
        return done


def _inserts(rows: Sequence[OutboxRow]) -> list[tuple[str, list[Any]]]:
    """One statement for each thousand rows."""
    parts = [rows[start : start + _ROWS_A_STATEMENT] for start in range(0, len(rows), _ROWS_A_STATEMENT)]
    return [(_insert(len(part)), [value for row in part for value in row]) for part in parts]


def _insert(rows: int) -> str:
    values = ", ".join([f"({_marks(5)})"] * rows)
    return (
        f"INSERT INTO {TABLE} (event_id, saga_id, event_type, payload, headers) VALUES {values} "  # noqa: S608 - no input
        "ON CONFLICT (event_id) DO NOTHING"
    )


def _marks(count: int) -> str:
    return ", ".join("?" * count)


_DUE = f"(status = 'pending' OR status = 'claimed' AND claimed_at <= {_NOW} - CAST(?2 AS REAL))"
_BACKLOG = f"""
    WITH dead AS MATERIALIZED (
        SELECT saga_id, min(position) AS position FROM {TABLE} WHERE status = 'dead' GROUP BY saga_id)
    SELECT
        (SELECT count(*) FROM {TABLE} WHERE status IN ('pending', 'claimed')),
        coalesce((
            SELECT max((julianday('now') - julianday(created_at)) * 86400.0, 0.0) FROM {TABLE}
            WHERE status IN ('pending', 'claimed') ORDER BY position LIMIT 1), 0.0),
        (SELECT count(*) FROM {TABLE} WHERE status = 'dead'),
        (SELECT count(*) FROM {TABLE} AS event JOIN dead ON dead.saga_id = event.saga_id
            WHERE event.status IN ('pending', 'claimed') AND event.position > dead.position)"""  # noqa: S608 - no input


def _claim(*, past_dead: bool) -> str:
    """One statement, and so one writer at a time; of a saga it takes what comes next, unless some before is claimed."""
    unblocked = f"""
            AND NOT EXISTS (
                SELECT 1 FROM {TABLE} AS dead
                WHERE dead.saga_id = event.saga_id AND dead.position < event.position AND dead.status = 'dead')"""  # noqa: S608 - no input
    return f"""
    UPDATE {TABLE} SET status = 'claimed', claimed_by = ?1, claimed_at = {_NOW}, attempts = attempts + 1
    WHERE position IN (
        SELECT position FROM {TABLE} AS event
        WHERE status IN ('pending', 'claimed') AND {_DUE}
        AND NOT EXISTS (
            SELECT 1 FROM {TABLE} AS earlier
            WHERE earlier.saga_id = event.saga_id AND earlier.position < event.position
            AND earlier.status = 'claimed' AND earlier.claimed_at > {_NOW} - CAST(?2 AS REAL)){"" if past_dead else unblocked}
        ORDER BY position LIMIT ?3)
    RETURNING position, event_id, payload, headers, attempts"""  # noqa: S608 - nothing of it is input
